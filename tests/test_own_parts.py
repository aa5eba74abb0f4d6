"""Priors, posteriors, networks and likelihoods of a user's, which say no more than they have to."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from own_parts import (
    Dense,
    Doubled,
    Laplace,
    Learned,
    Logistic,
    LogisticDiagonal,
    LogisticPlain,
    Nested,
    Shifted,
    Tempered,
    Weighted,
    Wide,
    WideStandard,
)
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

from skvae import VAEGridSearchCV, VAEImputer, VAETransformer, metrics
from skvae._model.rows import Batch
from skvae._model.stack import Stack
from skvae.likelihoods import Gaussian
from skvae.networks import MLP
from skvae.priors import Mixture, Prior, Vamp

SMALL = {"hidden_layer_sizes": (8,), "max_iter": 4, "random_state": 0, "device": "cpu"}


PARTS = [
    {"prior": Laplace()},
    {"prior": Shifted()},
    {"posterior": Logistic()},
    {"network": Dense()},
    {"likelihood": Nested()},
    {"prior": Shifted(), "posterior": Logistic(), "network": Dense(), "likelihood": Nested()},
    {"prior": Laplace(), "posterior": "full"},
    {"posterior": Learned()},
    {"posterior": Learned(), "prior": Vamp(2)},
    {"prior": Tempered()},
    {"prior": Weighted()},
    {"prior": Weighted(), "posterior": Learned()},
]
every_part = pytest.mark.parametrize("parts", PARTS, ids=str)


def table():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 2)) @ rng.normal(size=(2, 4)) + 0.1 * rng.normal(size=(60, 4))


@every_part
def test_a_part_of_ones_own_is_trained_and_asked_like_others(parts):
    X = table()
    vae = VAETransformer(2, **parts, **{**SMALL, "max_iter": 20}).fit(X)
    assert vae.history_["loss"][-1] < vae.history_["loss"][0]
    assert vae.sample(5, random_state=0).shape == vae.inverse_transform(vae.transform(X[:5])).shape
    bound, error = metrics.elbo(vae, X, n_samples=300, random_state=0, return_std_error=True)
    assert abs(bound - vae.score(X)) < 0.1 + 5 * error
    assert metrics.log_likelihood(vae, X, n_samples=300, random_state=0) > bound - 5 * error


@every_part
def test_a_search_over_parts_of_ones_own_is_that_of_one_model_after_the_other(parts):
    X, vae = table(), VAETransformer(2, **parts, **{**SMALL, "max_iter": 3}, precision="float64")
    grid = [{"beta": [0.5]}, {"n_components": [3], "beta": [2]}]
    ours, theirs = (
        search(clone(vae), grid, cv=2, refit=False).fit(X).cv_results_["mean_test_score"]
        for search in (VAEGridSearchCV, GridSearchCV)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


@pytest.mark.parametrize("parts", PARTS[1:6:3], ids=str)
def test_modules_begin_with_the_values_that_they_are_made_with(parts):
    X = table()
    vae = VAETransformer(2, **parts, **{**SMALL, "learning_rate": 1e-12, "max_iter": 1}).fit(X)
    own = {name: v for name, v in vae.state_.items() if ".shift." in name or ".noise." in name}
    assert own
    for name, array in own.items():  # torch's own first values: uniform within 1 / sqrt(n_in)
        assert 0 < np.abs(array).max() <= 1, name
        assert len(np.unique(array)) == array.size


@every_part
def test_rows_with_holes_go_through_parts_of_ones_own(parts):
    X = table()
    X[::5, 1] = np.nan
    filled = VAEImputer(VAETransformer(2, **parts, **SMALL)).fit_transform(X)
    there = ~np.isnan(X)
    np.testing.assert_array_equal(filled[there], X[there])
    assert np.isfinite(filled).all()


@pytest.mark.parametrize("kind", ["prior", "posterior", "network", "likelihood"])
def test_what_inherits_from_nothing_is_refused(kind):
    class Thing:
        pass

    with pytest.raises(ValueError, match=f"The '{kind}' parameter of VAETransformer must be"):
        VAETransformer(2, **{kind: Thing()}).fit(table())


# --- gradients ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        {"posterior": Learned(), "prior": Vamp(3)},
        {"posterior": Learned(), "prior": Mixture(2)},
        {"posterior": Learned(), "prior": Weighted()},
        {"prior": Shifted()},
        {"prior": Tempered()},
    ],
    ids=str,
)
@pytest.mark.parametrize("n_models", [1, 3])
def test_gradients_are_those_of_the_terms(parts, n_models):
    vae = VAETransformer(2, **parts, **SMALL, precision="float64").fit(table())
    rng = np.random.default_rng(0)
    y = torch.tensor(rng.normal(size=(n_models, 5, 4)))
    eps = torch.tensor(rng.normal(size=(n_models, 2, 5, 2)))
    states = [
        {k: v + 0.1 * m * (k.split(".")[0] in ("mixture", "flow")) for k, v in vae.state_.items()}
        for m in range(n_models)
    ]

    def terms_of(states):
        stack = Stack([vae._fitted.architecture] * n_models, states, torch.device("cpu"))
        with torch.inference_mode():
            return stack, *stack.vjp(Batch(y, eps, y[..., :0]), by_draw=True)

    stack, terms, pull = terms_of(states)
    with torch.inference_mode():
        flat = torch.cat([g.flatten(1) for g in pull(*map(torch.ones_like, terms))], dim=1)
    ways = {name: rng.normal(size=p.shape[1:]) for name, p in stack.model.named_parameters()}
    way = torch.tensor(np.concatenate([v.ravel() for v in ways.values()]))

    def total(step):
        moved = [s | {k: s[k] + step * way for k, way in ways.items()} for s in states]
        return [sum(map(torch.sum, each)) for each in zip(*terms_of(moved)[1], strict=True)]

    there, back = total(1e-5), total(-1e-5)
    for m in range(n_models):
        slope = float(there[m] - back[m]) / 2e-5
        assert float(flat[m] @ way) == pytest.approx(slope, rel=1e-5, abs=1e-6)


# --- parts that inherit from skvae's ------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "inherits", "plain"),
    [("prior", WideStandard(), Wide()), ("posterior", LogisticDiagonal(), LogisticPlain())],
)
def test_a_subclass_is_what_it_says_and_not_its_parent(kind, inherits, plain):
    X = table()
    of_own, of_plain = (
        VAETransformer(2, **{kind: part}, **SMALL, precision="float64").fit(X)
        for part in (inherits, plain)
    )
    np.testing.assert_allclose(of_own.score_samples(X), of_plain.score_samples(X), rtol=1e-10)


def test_a_subclass_of_a_likelihood_is_trained_and_scored_by_its_own_density():
    X = table()
    vae = VAETransformer(2, likelihood=Doubled("per_feature"), **SMALL).fit(X)
    loss = vae.history_["negative_elbo"][0]
    plain = VAETransformer(2, likelihood=Gaussian("per_feature"), **SMALL).fit(X)
    assert abs(loss - plain.history_["negative_elbo"][0]) > 1


class Gain(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module
        self.register_buffer("gain", torch.full((1,), 2.0))
        self.register_buffer("n_calls", torch.zeros(1))

    def forward(self, x):
        self.n_calls.add_(1.0)
        return self.gain * self.module(x)


@dataclass(frozen=True)
class Gained(MLP):
    def encoder(self, *sizes):
        return Gain(super().encoder(*sizes))


def test_a_subclass_of_a_network_keeps_the_values_that_its_modules_are_made_with():
    vae = VAETransformer(2, network=Gained(), **SMALL).fit(table())
    assert vae.state_["encoder.gain"] == 2


def test_all_layers_within_a_users_module_start_as_they_do_without_it():
    still = {**SMALL, "learning_rate": 1e-12, "max_iter": 1, "early_stopping": False}
    own, plain = (VAETransformer(2, network=n, **still).fit(table()) for n in (Gained(), MLP()))
    for name, array in plain.state_.items():
        if name.startswith("encoder."):
            inside = own.state_[name.replace("encoder.", "encoder.module.")]
            np.testing.assert_allclose(inside, array, atol=1e-9, err_msg=name)


def test_a_part_without_a_hash_is_refused_in_words():
    @dataclass
    class Mutable(Prior):
        n: int = 1

        def log_prob(self, module, z):
            return z.sum(-1)

        def rsample(self, module, eps):
            return eps

    with pytest.raises(TypeError, match="A prior has to be a value, which has a hash"):
        VAETransformer(2, prior=Mutable(), **SMALL).fit(table())
