"""Files of safetensors: the same model comes back, and no code with it."""

import json
import os
import sys

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_wine
from sklearn.pipeline import make_pipeline
from torch import nn

import skvae.safetensors
from skvae import Checkpoint, VAETransformer
from skvae.likelihoods import (
    Categorical,
    Columns,
    DiscretizedLogistic,
    Gaussian,
    Poisson,
    ZeroInflated,
)
from skvae.networks import MLP, Conv
from skvae.posteriors import Flow
from skvae.priors import Mixture, Vamp

SMALL = {"hidden_layer_sizes": (6,), "max_iter": 2, "random_state": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def X():
    return load_wine().data[:60, :9]


def again(vae, tmp_path):
    file = tmp_path / "vae.safetensors"
    skvae.safetensors.save(vae, file)
    assert os.listdir(tmp_path) == [file.name]
    return skvae.safetensors.load(file)


MODELS = {
    "names": {},
    "values": {
        "likelihood": Gaussian("shared"),
        "network": MLP(residual=True),
        "prior": Mixture(2),
        "posterior": "full",
    },
    "list of sizes": {"hidden_layer_sizes": [6, 4]},
    "integers of numpy": {"n_components": np.int64(2), "beta": np.float32(0.5)},
    "zeros": {"likelihood": ZeroInflated(Poisson())},
    "levels": {"likelihood": DiscretizedLogistic(levels=300)},
    "pseudo-inputs": {"prior": Vamp(3)},
    "flow": {"posterior": Flow()},
}


@pytest.mark.parametrize("params", MODELS.values(), ids=MODELS)
def test_a_model_comes_back_as_it_was(X, tmp_path, params):
    rows = np.round(X) % 300
    vae = VAETransformer(**{"n_components": 2} | SMALL | params).fit(rows)
    loaded = again(vae, tmp_path)
    assert loaded.get_params() == vae.get_params()
    assert vars(loaded).keys() == vars(vae).keys()
    for method in ("transform", "score_samples"):
        np.testing.assert_array_equal(getattr(loaded, method)(rows), getattr(vae, method)(rows))
    np.testing.assert_array_equal(loaded.sample(5, 0), vae.sample(5, 0))
    for name, values in vae.history_.items():
        np.testing.assert_array_equal(loaded.history_[name], values)
    assert loaded.__getstate__()["_skvae_checksum"] == vae.__getstate__()["_skvae_checksum"]


def test_an_image_model_comes_back(tmp_path):
    rows = np.random.default_rng(0).random((40, 64))
    vae = VAETransformer(2, network=Conv((1, 8, 8), channels=(2,)), **SMALL).fit(rows)
    np.testing.assert_array_equal(again(vae, tmp_path).transform(rows), vae.transform(rows))


def test_a_model_of_a_table_gives_back_its_columns(X, tmp_path):
    frame = pd.DataFrame(X[:, :3], columns=["a", "b", "c"])
    frame["kind"] = pd.Categorical(np.where(X[:, 3] > 18, "high", "low"), ordered=True)
    frame["n"] = np.arange(60) % 30
    vae = VAETransformer(2, likelihood="auto", **SMALL).fit(frame)
    loaded = again(vae, tmp_path)
    pd.testing.assert_frame_equal(loaded.sample(9, 0), vae.sample(9, 0))
    columns = [(Gaussian(), ["a", "b", "c", "n"]), (Categorical(), ["kind"])]
    vae = VAETransformer(2, likelihood=Columns(columns), **SMALL).fit(frame)
    np.testing.assert_array_equal(
        again(vae, tmp_path).score_samples(frame), vae.score_samples(frame)
    )


def test_partial_fits_go_on_from_a_file(X, tmp_path):
    vae = VAETransformer(2, **SMALL).partial_fit(X)
    loaded = again(vae, tmp_path).partial_fit(X)
    np.testing.assert_array_equal(loaded.transform(X), vae.partial_fit(X).transform(X))


def test_a_model_that_is_not_fitted_comes_back(tmp_path):
    loaded = again(VAETransformer(3, beta=2.0), tmp_path)
    assert loaded.get_params() == VAETransformer(3, beta=2.0).get_params()
    assert not hasattr(loaded, "state_")


def test_the_tensors_are_the_weights_by_their_names(X, tmp_path):
    vae = VAETransformer(2, **SMALL).fit(X)
    again(vae, tmp_path)
    tensors = load_file(tmp_path / "vae.safetensors")
    for name, array in vae.state_.items():
        np.testing.assert_array_equal(tensors[f"state_.{name}"], array)
        assert tensors[f"state_.{name}"].shape == array.shape


def wide(n_in, n_out):
    return nn.Linear(n_in, n_out)


@pytest.mark.parametrize(
    ("params", "where"),
    [
        ({"network": (wide, wide)}, "network.0 is <function wide"),
        ({"random_state": np.random.RandomState(0)}, "random_state is RandomState"),
    ],
    ids=["network", "random_state"],
)
def test_what_only_code_can_make_is_named(X, tmp_path, params, where):
    vae = VAETransformer(2, **SMALL | params).fit(X)
    with pytest.raises(ValueError, match=f"^{where}.* which only code can make again"):
        again(vae, tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_model_with_callbacks_is_refused(tmp_path):
    vae = VAETransformer(2, warm_start=True)
    if not hasattr(vae, "set_callbacks"):
        pytest.skip("no callbacks in this scikit-learn")
    with pytest.raises(ValueError, match="_skl_callbacks"):
        again(vae.set_callbacks(Checkpoint("vae.joblib")), tmp_path)


def test_what_is_no_vae_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"save takes a VAETransformer\. Got Pipeline"):
        again(make_pipeline(VAETransformer()), tmp_path)


def test_a_file_with_one_changed_byte_raises_or_is_the_same_model(X, tmp_path):
    vae = VAETransformer(2, **SMALL).fit(X)
    again(vae, tmp_path)
    file, rng, refused = tmp_path / "vae.safetensors", np.random.default_rng(0), 0
    content = file.read_bytes()
    for place in rng.integers(len(content), size=150):
        spoiled = bytearray(content)
        spoiled[place] ^= 1 << rng.integers(8)
        file.write_bytes(spoiled)
        try:
            loaded = skvae.safetensors.load(file)
        except ValueError:
            refused += 1
            continue
        np.testing.assert_array_equal(loaded.score_samples(X), vae.score_samples(X))
    assert refused > 100


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_file_that_is_cut_off_is_refused(X, tmp_path, share):
    again(VAETransformer(2, **SMALL).fit(X), tmp_path)
    file = tmp_path / "vae.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="is damaged, or no model"):
        skvae.safetensors.load(file)


SEALED = {"_skvae_format": 1, "_skvae_checksum": 0}


@pytest.mark.parametrize(
    "attributes",
    [
        SEALED | {"beta": {"part": "os.system", "values": []}},
        SEALED | {"beta": {"part": "Own", "values": [["make_encoder", "print"]]}},
        SEALED | {"beta": {"number": 1.0, "dtype": "nonsense"}},
        SEALED | {"beta": {"number": 3e8, "dtype": "V"}},
        SEALED | {"beta": {"number": 1000, "dtype": "|i1"}},
        SEALED | {"beta": {"else": 1}},
        SEALED | {"transform": "x"},
        {"beta": 2.0},
        {},
        ["beta"],
        None,
        "nested without end",
    ],
    ids=str,
)
def test_nothing_is_built_but_the_values_of_skvae(tmp_path, attributes):
    file, message = tmp_path / "vae.safetensors", "damaged, or no model of this version"
    words = {"skvae": json.dumps(attributes)}
    if attributes is None:
        words, message = None, "it holds tensors of something else"
    elif attributes == "nested without end":
        words = {"skvae": '{"list": [' * 50_000}
    save_file({"weight": np.zeros(3)}, file, words)
    with pytest.raises(ValueError, match=message):
        skvae.safetensors.load(file)


def test_a_newer_format_is_named(X, tmp_path, monkeypatch):
    vae = VAETransformer(2, **SMALL).fit(X)
    with monkeypatch.context() as patch:
        patch.setattr(skvae._backend.files, "FORMAT", 99)
        skvae.safetensors.save(vae, tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match="in format 99 of skvae"):
        skvae.safetensors.load(tmp_path / "vae.safetensors")


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        skvae.safetensors.load(tmp_path / "nothing.safetensors")


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    for name in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'skvae\[safetensors\]'"):
        skvae.safetensors.load("vae.safetensors")
