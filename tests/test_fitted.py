"""The fitted model behind an estimator: what it keeps between calls, and what it must not keep."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from skvae import VAETransformer
from skvae._model import state
from skvae.posteriors import Flow
from skvae.priors import Mixture, Vamp


def count_models(monkeypatch):
    """Note each model that is built from here on."""
    built, build = [], state.VAE
    monkeypatch.setattr(state, "VAE", lambda architecture: built.append(1) or build(architecture))
    return built


def test_a_model_is_built_once_for_all_calls(X, quick, monkeypatch):
    vae = quick(device="cpu").fit(X)
    built = count_models(monkeypatch)
    for _ in range(3):
        vae.transform(X[:1])
        vae.score_samples(X)
        vae.sample(2, random_state=0)
    assert len(built) == 1


def add_to_a_bias(vae, other):
    name = next(name for name in vae.state_ if name.endswith("bias"))
    vae.state_[name][:] += 1


def replace_arrays(vae, other):
    for name, array in other.state_.items():
        vae.state_[name] = array


def replace_state(vae, other):
    vae.state_ = dict(other.state_)


def widen_the_bound(vae, other):
    vae.state_["bound"][...] = 1e6


def double_in_another_order(vae, other):
    name = next(name for name, array in vae.state_.items() if array.ndim == 2)
    vae.state_[name] = np.asfortranarray(vae.state_[name])
    vae.transform(np.zeros((1, 4)))
    vae.state_[name][...] *= 2


@pytest.mark.parametrize(
    "change",
    [add_to_a_bias, replace_arrays, replace_state, widen_the_bound, double_in_another_order],
)
def test_arrays_are_read_at_each_call(X, quick, change):
    vae, other = quick(device="cpu").fit(X), quick(device="cpu", random_state=1).fit(X)
    far = X + 1e3
    before = vae.transform(far)
    change(vae, other)
    expected = pickle.loads(pickle.dumps(vae)).transform(far)
    assert not np.array_equal(before, expected)
    np.testing.assert_array_equal(vae.transform(far), expected)


def test_a_refit_a_copy_and_a_file_have_models_of_their_own(X, quick, monkeypatch):
    vae = quick(device="cpu").fit(X)
    first = vae.transform(X)
    assert b"FittedModel" not in pickle.dumps(vae)
    twin, loaded = copy.copy(vae), pickle.loads(pickle.dumps(vae))
    vae.set_params(random_state=1).fit(X)
    assert not np.array_equal(vae.transform(X), first)
    for other in (twin, loaded, copy.deepcopy(twin)):
        np.testing.assert_array_equal(other.transform(X), first)


def test_no_call_changes_the_attributes_of_an_estimator(X, quick):
    vae = quick(device="cpu").fit(X)
    before = dict(vars(vae))
    vae.transform(X)
    assert vars(vae) == before


def test_a_module_of_a_users_is_built_for_each_call(X, quick, monkeypatch):
    class Counting(nn.Linear):
        def __init__(self, n_in, n_out):
            super().__init__(n_in, n_out)
            self.register_buffer("n_calls", torch.zeros(()))

        def forward(self, x):  # a module may do anything
            return super().forward(x) + self.n_calls.add_(1.0)

    vae = quick(device="cpu", network=(Counting, nn.Linear)).fit(X)
    built = count_models(monkeypatch)
    np.testing.assert_array_equal(vae.transform(X), vae.transform(X))
    assert len(built) == 2


@pytest.mark.parametrize(
    "parts", [{}, {"prior": Mixture(3)}, {"prior": Vamp(3)}, {"posterior": Flow()}], ids=str
)
def test_threads_share_a_model(X, quick, parts):
    holes = np.where(np.quantile(X, 0.9) < X, np.nan, X)
    vae = quick(device="cpu", **parts).fit(holes)
    tables = [X, X[:1], X[5:40], holes] * 8
    expected = [vae.score_samples(table) for table in tables]
    fresh = pickle.loads(pickle.dumps(vae))
    with ThreadPoolExecutor(8) as threads:
        for score, own in zip(threads.map(fresh.score_samples, tables), expected, strict=True):
            np.testing.assert_array_equal(score, own)


def test_another_device_is_asked_for_at_the_next_call(X, quick):
    vae = quick(device="cpu").fit(X)
    expected = vae.transform(X)
    vae.device = "cuda:99"
    with pytest.warns(UserWarning, match="Computing on the CPU"):
        np.testing.assert_array_equal(vae.transform(X), expected)


class Told(VAETransformer):
    def fit(self, X, y=None):
        self.mode_ = True
        return super().fit(X)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = getattr(self, "state_", None) is None or self.mode_
        return tags


def test_a_subclass_may_ask_its_own_attributes(X):
    vae = Told(2, hidden_layer_sizes=(4,), max_iter=2, random_state=0).fit(X)
    assert vae.transform(X).shape == (60, 2)
    assert pickle.loads(pickle.dumps(vae)).transform(X).shape == (60, 2)


def test_names_that_are_taken_away_are_not_asked_for(X, quick):
    pandas = pytest.importorskip("pandas")
    vae = quick().fit(pandas.DataFrame(X, columns=list("abcd")))
    expected = vae.transform(pandas.DataFrame(X, columns=list("abcd")))
    del vae.feature_names_in_
    np.testing.assert_array_equal(vae.transform(X), expected)
