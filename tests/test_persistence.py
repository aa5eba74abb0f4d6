"""Files: what a fitted model consists of, and what comes back of it."""

import copy
import dataclasses
import pickle
import pickletools
import struct
import warnings
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from files.make import tables

from skvae import VAETransformer, likelihoods, networks
from skvae._backend import files
from skvae.likelihoods import Bernoulli, Gaussian
from skvae.networks import MLP

ESTIMATORS = {
    "names": {},
    "values": {"likelihood": Gaussian("shared"), "network": MLP()},
    "given noise": {"likelihood": Gaussian(0.5)},
    "noise per sample": {"likelihood": Gaussian("per_sample")},
    "bernoulli": {"likelihood": Bernoulli()},
    "early stopping": {"early_stopping": True, "beta_warmup": 0.5},
    "warm start": {"warm_start": True, "hidden_layer_sizes": [8, 4]},
    "linear": {"hidden_layer_sizes": ()},
}
any_estimator = pytest.mark.parametrize("params", ESTIMATORS.values(), ids=ESTIMATORS)


@pytest.fixture
def binary(X):
    """Zeros and ones: what every likelihood accepts."""
    return (X.mean(axis=0) < X).astype(np.float32)


def assert_same_model(left, right, X):
    for vae in (left, right):
        assert type(vae) is VAETransformer
    assert left.get_params() == right.get_params()
    np.testing.assert_array_equal(left.transform(X), right.transform(X))
    np.testing.assert_array_equal(left.score_samples(X), right.score_samples(X))
    Z = left.transform(X)
    np.testing.assert_array_equal(left.inverse_transform(Z), right.inverse_transform(Z))
    np.testing.assert_array_equal(left.sample(5, 0), right.sample(5, 0))
    for name, values in left.history_.items():
        np.testing.assert_array_equal(values, right.history_[name])


# --- what a fitted model consists of ------------------------------------------------------


def foreign(value, path="vars"):
    """Paths of all that is neither numpy's, plain Python nor a part of the model."""
    if isinstance(value, dict):
        return [
            where
            for key, item in value.items()
            for where in foreign(key, f"{path} key {key!r}") + foreign(item, f"{path}[{key!r}]")
        ]
    if isinstance(value, list | tuple):
        return [w for i, item in enumerate(value) for w in foreign(item, f"{path}[{i}]")]
    if dataclasses.is_dataclass(value) and type(value).__module__ in (
        likelihoods.__name__,
        networks.__name__,
    ):
        return foreign(vars(value), path)
    if isinstance(value, np.ndarray):
        numbers = value.dtype.kind in "fiub" and type(value) is np.ndarray
        return [] if numbers else foreign(value.tolist(), f"{path}.tolist()")
    return [] if type(value) in (str, int, float, bool, type(None)) else [f"{path}: {type(value)}"]


@any_estimator
def test_a_fitted_model_is_arrays_and_plain_values_and_its_pickle_knows_no_torch(
    binary, quick, params
):
    for X in (binary, pd.DataFrame(binary, columns=list("abcd"))):
        vae = quick(**params).fit(X)
        assert foreign(vae.__getstate__()) == []
        assert all(type(array) is np.ndarray for array in vae.state_.values())
    texts = [text for _, text, _ in pickletools.genops(pickle.dumps(vae)) if isinstance(text, str)]
    assert any("skvae" in text for text in texts)
    assert not any("torch" in text for text in texts)


def test_what_is_foreign_is_found():
    assert foreign({"a": [1, {"b": torch.zeros(1)}]}) == ["vars['a'][1]['b']: " + str(torch.Tensor)]
    assert foreign({"a": np.array([torch.nn.ReLU()], dtype=object)}) != []


def test_the_class_has_a_name_that_survives_when_files_move():
    assert VAETransformer.__module__ == "skvae"
    assert b"skvae._vae" not in pickle.dumps(VAETransformer())


# --- joblib -------------------------------------------------------------------------------


@any_estimator
def test_joblib_gives_back_the_same_numbers_and_can_memory_map_the_arrays(
    binary, quick, tmp_path, params
):
    vae = quick(**params).fit(binary)
    joblib.dump(vae, tmp_path / "vae.joblib")
    assert_same_model(joblib.load(tmp_path / "vae.joblib"), vae, binary)
    loaded = joblib.load(tmp_path / "vae.joblib", mmap_mode="r")
    arrays = [array for array in loaded.state_.values() if array.size and array.ndim]
    assert all(isinstance(array, np.memmap) for array in arrays)
    assert not any(array.flags.writeable for array in arrays)
    assert_same_model(loaded, vae, binary)
    for tensor in loaded.to_module().state_dict().values():
        tensor.add_(1)  # a copy: the file is not touched
    assert_same_model(loaded, vae, binary)
    loaded.fit(binary)
    assert loaded.n_iter_ == (8 if vae.warm_start else 4)


def test_training_goes_on_from_a_file_and_begins_from_one(X, quick, tmp_path):
    vae, path = quick(warm_start=True), tmp_path / "vae.joblib"
    for _ in range(2):  # not fitted, and fitted
        joblib.dump(vae, path)
        assert joblib.load(path).get_params() == vae.get_params()
        assert_same_model(joblib.load(path).fit(X), vae.fit(X), X)


# --- skops --------------------------------------------------------------------------------


@any_estimator
def test_skops_needs_one_trusted_name_and_one_for_each_value(binary, quick, params):
    vae = quick(**params).fit(binary)
    dumped = skops.io.dumps(vae)
    trusted = ["skvae.VAETransformer"] + [
        f"{type(value).__module__}.{type(value).__name__}"
        for value in params.values()
        if dataclasses.is_dataclass(value)
    ]
    assert sorted(skops.io.get_untrusted_types(data=dumped)) == sorted(trusted)
    assert_same_model(skops.io.loads(dumped, trusted=trusted), vae, binary)


# --- from a machine with an accelerator to one without ------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize(
    ("device", "params"), [("cuda", {}), ("cuda:1", {"likelihood": "bernoulli"}), ("mps", {})]
)
def test_a_model_fitted_on_an_accelerator_works_without_one(
    binary, quick, tmp_path, device, params
):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is one")
    vae = quick(**params).fit(binary)
    Z, scores = vae.transform(binary), vae.score_samples(binary)
    back, drawn = vae.inverse_transform(Z), vae.sample(5, 0)
    vae.set_params(device=device)  # as it would have been there
    joblib.dump(vae, tmp_path / "vae.joblib")
    loaded = joblib.load(tmp_path / "vae.joblib")
    assert loaded.device == device
    for compute, expected in [
        (lambda: loaded.transform(binary), Z),
        (lambda: loaded.score_samples(binary), scores),
        (lambda: loaded.inverse_transform(Z), back),
        (lambda: loaded.sample(5, 0), drawn),
    ]:
        with pytest.warns(UserWarning, match=f"device='{device}' is not available") as caught:
            np.testing.assert_array_equal(compute(), expected)
        assert len(caught) == 1
        assert "Computing on the CPU" in str(caught[0].message)
    with pytest.raises(ValueError, match=f"device='{device}' is not available"):
        loaded.fit(binary)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_fitted_on_cuda_computes_the_same_on_the_cpu(X, quick, tmp_path):
    vae = quick(device="cuda").fit(X)
    joblib.dump(vae, tmp_path / "vae.joblib")
    loaded = joblib.load(tmp_path / "vae.joblib").set_params(device="cpu")
    assert foreign(vars(loaded)) == []
    np.testing.assert_allclose(loaded.transform(X), vae.transform(X), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(loaded.score_samples(X), vae.score_samples(X), atol=1e-2)
    np.testing.assert_allclose(loaded.sample(5, 0), vae.sample(5, 0), rtol=1e-3, atol=1e-3)


# --- formats, and files that are damaged --------------------------------------------------

FILES = Path(__file__).with_name("files")


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.InconsistentVersionWarning")
@pytest.mark.parametrize("written", range(files.FORMAT + 1))
def test_files_of_every_format_still_load_and_compute_what_they_did(written):
    path, X = FILES / f"format_{written}.joblib", tables()
    expected = np.load(path.with_suffix(".npz"))
    for name, (table, model) in joblib.load(path).items():
        for method in ("transform", "score_samples"):
            now = getattr(model, method)(X[table])
            # Another machine's products of matrices round otherwise.
            np.testing.assert_allclose(now, expected[f"{name} {method}"], rtol=1e-5, atol=1e-5)
    assert joblib.load(path)["holes"][1].fit(X["holes"]).n_iter_ == 6


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.InconsistentVersionWarning")
@pytest.mark.parametrize("written", [0, 1])
@pytest.mark.parametrize("name", ["names", "holes", "mixed"])
def test_columns_of_files_of_before_they_had_floors_of_their_own_share_one(written, name):
    table, vae = joblib.load(FILES / f"format_{written}.joblib")[name]
    X = tables()[table]
    places = [key for key in vae.state_ if key.endswith("floor")]
    assert [vae.state_[key].shape for key in places] == [(1,)]
    before = vae.score_samples(X), vae.transform(X)
    n_columns = 5 - (name == "mixed")  # one has categories, which have no noise
    for key in places:
        vae.state_[key] = np.repeat(vae.state_[key], n_columns)
    for ours, same in zip((vae.score_samples(X), vae.transform(X)), before, strict=True):
        np.testing.assert_array_equal(ours, same)
    again = vae.set_params(warm_start=True, max_iter=1).fit(X)
    assert np.isfinite(again.score(X))


def test_what_is_saved_says_its_format_and_what_is_loaded_does_not(X, quick):
    vae = quick().fit(X)
    assert vae.__getstate__()["_skvae_format"] == files.FORMAT
    assert not any("skvae" in name for name in vars(pickle.loads(pickle.dumps(vae))))


@pytest.mark.parametrize("written", [files.FORMAT + 1, "new"])
def test_a_newer_format_is_refused_and_named(X, quick, monkeypatch, written):
    vae = quick().fit(X)
    with monkeypatch.context() as patch:
        patch.setattr(files, "FORMAT", written)
        dumped = pickle.dumps(vae)
    with pytest.raises(ValueError, match=rf"format {written!r} of skvae.* up to {files.FORMAT}"):
        pickle.loads(dumped)


def changed(name):
    def change(state):
        state["state_"] = state["state_"] | {name: state["state_"][name] + 1}

    return change


@pytest.mark.parametrize(
    "change",
    [
        changed("scale"),
        changed("decoder.0.weight"),
        lambda state: state.update(n_score_draws=128),
        lambda state: state.update(activation="relu"),
        lambda state: state.update(_output={**state["_output"], "dtype": "float32"}),
        lambda state: state["history_"].pop("loss"),
        lambda state: state.update(likelihood=Gaussian(0.25)),
        lambda state: state.update(beta=np.float64(2.0)),
    ],
    ids=["unit", "weight", "number", "word", "nested", "absent", "value", "scalar"],
)
def test_numbers_that_are_not_those_that_were_saved_are_refused(X, quick, change):
    state = quick().fit(X).__getstate__()
    VAETransformer().__setstate__(state)
    change(state)
    with pytest.raises(ValueError, match="file is damaged"):
        VAETransformer().__setstate__(state)


class Caching(VAETransformer):
    """Keeps what it can compute again, but not in files."""

    def __getstate__(self):
        state = super().__getstate__()
        state.pop("means", None)
        return state | {"left_out": "means"}


def test_what_a_subclass_keeps_is_its_own_affair(X):
    vae = Caching(2, max_iter=2, random_state=0).fit(X)
    vae.means = vae.transform(X)
    for other in (pickle.loads(pickle.dumps(vae)), copy.deepcopy(vae), copy.copy(vae)):
        np.testing.assert_array_equal(other.transform(X), vae.transform(X))


def test_a_file_of_another_byte_order_is_not_damaged(X, quick, tmp_path):
    vae = quick(hidden_layer_sizes=np.array([8], ">i4")).fit(X)
    joblib.dump(vae, tmp_path / "vae.joblib")
    loaded = joblib.load(tmp_path / "vae.joblib")
    np.testing.assert_array_equal(loaded.transform(X), vae.transform(X))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A file, what it holds, and rows."""
    X = np.random.default_rng(0).normal(size=(60, 4))
    vae = VAETransformer(2, hidden_layer_sizes=(4,), max_iter=2, random_state=0).fit(X)
    path = tmp_path_factory.mktemp("saved") / "vae.joblib"
    joblib.dump(vae, path)
    return path.read_bytes(), vae, X


def load(content, tmp_path):
    path = tmp_path / "vae.joblib"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever a broken pickle makes numpy say
        return joblib.load(path)


@pytest.mark.parametrize("share", [None, 0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_off_or_of_something_else_raises(saved, tmp_path, share):
    content, _, _ = saved
    # The last by joblib 1.4, where the cut is within a string.
    errors = EOFError, ValueError, pickle.UnpicklingError, struct.error, IndexError, KeyError
    spoiled = b"X,y\n1,2\n" if share is None else content[: int(share * len(content))]
    with pytest.raises(errors):
        load(spoiled, tmp_path)


def test_a_file_with_one_changed_byte_raises_or_is_the_same_model(saved, tmp_path):
    content, vae, X = saved
    rng, refused = np.random.default_rng(0), 0
    for place in rng.integers(len(content), size=150):
        spoiled = bytearray(content)
        spoiled[place] ^= 1 << rng.integers(8)
        try:
            loaded = load(bytes(spoiled), tmp_path)
        except Exception:  # the pickle may be broken in any way
            refused += 1
            continue
        # What is left: names of the file's own, padding, memo numbers that are never read.
        np.testing.assert_array_equal(loaded.score_samples(X), vae.score_samples(X))
        np.testing.assert_array_equal(
            loaded.inverse_transform(loaded.transform(X)), vae.inverse_transform(vae.transform(X))
        )
    assert refused > 100
