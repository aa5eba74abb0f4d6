"""A training step is a sum over shares of its batch, and threads change nothing about it."""

import threading
from dataclasses import dataclass

import joblib
import numpy as np
import pytest
import torch
from own_parts import Laplace, Logistic
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from threadpoolctl import threadpool_limits
from torch import nn

from skvae import VAEGridSearchCV, VAETransformer
from skvae._backend import team
from skvae._fit import job
from skvae._model import loop
from skvae.likelihoods import Gaussian
from skvae.networks import MLP, Conv
from skvae.priors import Vamp


@dataclass(frozen=True)
class Shifted(Gaussian):
    """Autograd returns one tensor for a and b, and an expanded one for c."""

    def build(self, n_features):
        module = super().build(n_features)
        for name in ("a", "b", "c"):
            module.register_parameter(name, nn.Parameter(torch.zeros(n_features)))
        return module

    def log_prob(self, module, raw, x):
        shift = module.a + module.b
        mean, rest = raw[..., : x.shape[-1]], raw[..., x.shape[-1] :]
        return super().log_prob(module, torch.cat([mean + shift, rest], -1), x) + module.c.mean()


N_FEATURES = 64
X = np.random.default_rng(0).normal(size=(400, 3)) @ np.random.default_rng(1).normal(
    size=(3, N_FEATURES)
)
HOLES = np.where(np.random.default_rng(2).uniform(size=X.shape) < 0.1, np.nan, X)

# Models whose steps take different ways, and the rows that they are fitted to.
MODELS = {
    "default": ({}, X),
    "holes": ({}, HOLES),
    "several draws": ({"n_importance_samples": 3}, X),
    "clipped": ({"max_grad_norm": 1.0, "weight_decay": 0.1}, X),
    "images": ({"network": Conv((1, 8, 8))}, X),
    "dropped units": ({"network": MLP(dropout=0.2, layer_norm=True)}, X),
    "pseudo-inputs": ({"prior": Vamp(8)}, X),
    "own parts": ({"prior": Laplace(), "posterior": Logistic()}, X),
    "gradients in one tensor": ({"likelihood": Shifted()}, X),
    "counts": ({"likelihood": "negative_binomial"}, np.floor(np.exp(X))),
}


@pytest.fixture
def cut(monkeypatch):
    """Steps are cut into three shares of a batch of 300 rows, however narrow the network is."""
    monkeypatch.setattr(job, "SHARE_PRODUCTS", 1)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 4)


def model(**parameters):
    numbers = {"hidden_layer_sizes": (16,), "batch_size": 300, "max_iter": 3, "random_state": 0}
    numbers |= {"early_stopping": False}  # or factor analysis may be kept, which has no steps
    return VAETransformer(3, **numbers | parameters, device="cpu")


def hash_of(vae):
    return joblib.hash([vae.state_, vae.history_])


def fitted_on(n_threads, vae, rows, **more):
    with threadpool_limits(n_threads, user_api="openmp"):
        return clone(vae).fit(rows, **more)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("name", MODELS)
def test_a_fit_has_the_same_bits_on_any_number_of_threads(name):
    parameters, rows = MODELS[name]
    weights = np.random.default_rng(3).uniform(0.5, 2, len(rows))
    hashes = {
        hash_of(fitted_on(n, model(**parameters), rows, sample_weight=weights)) for n in (1, 2, 4)
    }
    assert len(hashes) == 1


@pytest.mark.parametrize("name", MODELS)
def test_the_shares_of_a_step_add_up_to_the_step(name, cut, monkeypatch):
    parameters, rows = MODELS[name]
    vae = model(precision="float64", **parameters)
    weights = np.random.default_rng(3).uniform(0.5, 2, len(rows))
    in_shares = fitted_on(2, vae, rows, sample_weight=weights)
    monkeypatch.setattr(job, "SHARE_PRODUCTS", 2**62)
    whole = fitted_on(2, vae, rows, sample_weight=weights)
    for name, value in whole.state_.items():
        np.testing.assert_allclose(in_shares.state_[name], value, rtol=1e-6, atol=1e-9)
    for name, values in whole.history_.items():
        np.testing.assert_allclose(in_shares.history_[name], values, rtol=1e-9, err_msg=name)


@pytest.mark.usefixtures("cut")
def test_a_wide_search_finds_what_one_fit_after_the_other_finds():
    vae, grid = model(precision="float64"), {"beta": [0.5, 2.0], "n_components": [1, 3]}
    ours, theirs = (
        search(vae, grid, cv=2).fit(X).cv_results_["mean_test_score"]
        for search in (VAEGridSearchCV, GridSearchCV)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_free_bits_are_a_mean_over_the_whole_batch(cut, monkeypatch):
    # Each share would have means of its own, which give another loss.
    hashes = {hash_of(fitted_on(2, model(free_bits=0.5), X))}
    monkeypatch.setattr(job, "SHARE_PRODUCTS", 2**62)
    hashes.add(hash_of(fitted_on(2, model(free_bits=0.5), X)))
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("of_torch", "of_process", "expected"), [(1, 8, 1), (4, 8, 4), (4, 2, 2), (4, 1, 1)]
)
def test_as_many_threads_compute_as_torch_and_the_process_have(
    monkeypatch, of_torch, of_process, expected
):
    monkeypatch.setattr(joblib, "cpu_count", lambda: of_process)
    with threadpool_limits(of_torch, user_api="openmp"):
        assert team.n_threads(torch.device("cpu")) == expected
    assert team.n_threads(torch.device("cuda")) == 1


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_shares_of_a_step_are_computed_side_by_side(monkeypatch, n_threads):
    barrier, idents, gradient = (
        threading.Barrier(n_threads, timeout=10),
        set(),
        loop.loss_gradient,
    )

    def watched(*args):
        if len(idents) < n_threads:
            barrier.wait()
            idents.add(threading.get_ident())
        assert torch.get_num_threads() == 1
        return gradient(*args)

    monkeypatch.setattr(loop, "loss_gradient", watched)
    before = threading.active_count()
    fitted_on(n_threads, model(max_iter=1, early_stopping=False), X)
    assert len(idents) == n_threads
    assert threading.active_count() == before


def test_an_exit_in_a_thread_is_raised_by_the_caller():
    other = threading.Event()

    def exit_elsewhere(item):
        if threading.current_thread() is threading.main_thread():
            assert other.wait(10)
        else:
            other.set()
            raise SystemExit

    with team.Team(torch.device("cpu"), 2) as us, pytest.raises(SystemExit):
        us.map(exit_elsewhere, [0, 1])
