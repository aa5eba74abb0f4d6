"""Files: what a fitted model consists of, and what comes back of it."""

import dataclasses
import pickle
import pickletools

import joblib
import numpy as np
import pytest
import skops.io
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import VAETransformer, likelihoods, networks
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
def test_a_fitted_model_is_arrays_and_plain_values(binary, quick, params):
    vae = quick(**params).fit(binary)
    assert foreign(vars(vae)) == []
    assert all(type(array) is np.ndarray for array in vae.state_.values())


def test_a_model_of_a_frame_is_arrays_and_plain_values(binary, quick):
    pandas = pytest.importorskip("pandas")
    vae = quick().fit(pandas.DataFrame(binary, columns=list("abcd")))
    assert foreign(vars(vae)) == []


def test_what_is_foreign_is_found():
    assert foreign({"a": [1, {"b": torch.zeros(1)}]}) == ["vars['a'][1]['b']: " + str(torch.Tensor)]
    assert foreign({"a": np.array([torch.nn.ReLU()], dtype=object)}) != []


@any_estimator
def test_a_pickle_of_a_fitted_model_knows_nothing_of_torch(binary, quick, params):
    dumped = pickle.dumps(quick(**params).fit(binary))
    texts = [argument for _, argument, _ in pickletools.genops(dumped) if isinstance(argument, str)]
    assert any("skvae" in text for text in texts)
    assert not any("torch" in text for text in texts)


def test_the_class_has_a_name_that_survives_when_files_move():
    assert VAETransformer.__module__ == "skvae"
    assert b"skvae._vae" not in pickle.dumps(VAETransformer())


# --- joblib -------------------------------------------------------------------------------


@any_estimator
def test_joblib_gives_back_the_same_numbers(binary, quick, tmp_path, params):
    vae = quick(**params).fit(binary)
    joblib.dump(vae, tmp_path / "vae.joblib")
    assert_same_model(joblib.load(tmp_path / "vae.joblib"), vae, binary)


@any_estimator
def test_joblib_can_memory_map_the_arrays(binary, quick, tmp_path, params):
    vae = quick(**params).fit(binary)
    joblib.dump(vae, tmp_path / "vae.joblib")
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


def test_training_goes_on_from_a_file(X, quick, tmp_path):
    vae = quick(warm_start=True).fit(X)
    joblib.dump(vae, tmp_path / "vae.joblib")
    assert_same_model(joblib.load(tmp_path / "vae.joblib").fit(X), vae.fit(X), X)


def test_a_pipeline_is_one_file(X, quick, tmp_path):
    pipe = make_pipeline(StandardScaler(), quick()).fit(X)
    joblib.dump(pipe, tmp_path / "pipe.joblib")
    loaded = joblib.load(tmp_path / "pipe.joblib")
    np.testing.assert_array_equal(loaded.score_samples(X), pipe.score_samples(X))


def test_an_unfitted_model_can_be_saved(tmp_path):
    joblib.dump(VAETransformer(3, beta=4), tmp_path / "vae.joblib")
    loaded = joblib.load(tmp_path / "vae.joblib")
    assert loaded.get_params() == VAETransformer(3, beta=4).get_params()


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


def test_skops_loads_nothing_without_trust(X, quick):
    dumped = skops.io.dumps(quick().fit(X))
    with pytest.raises(skops.io.exceptions.UntrustedTypesFoundException, match="skvae"):
        skops.io.loads(dumped, trusted=[])


# --- from a machine with an accelerator to one without ------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
@pytest.mark.parametrize("params", [{}, {"likelihood": "bernoulli"}], ids=str)
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
