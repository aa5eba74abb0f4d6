"""Priors, posteriors, networks and likelihoods of a user's, which say no more than they have to."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

from skvae import VAEGridSearchCV, VAEImputer, VAETransformer, metrics
from skvae.likelihoods import Likelihood
from skvae.networks import Network
from skvae.posteriors import Normal, Posterior
from skvae.priors import Prior

SMALL = {"hidden_layer_sizes": (8,), "max_iter": 4, "random_state": 0, "device": "cpu"}


@dataclass(frozen=True)
class Laplace(Prior):
    """Nothing is learned."""

    def log_prob(self, module, z):
        return -(z.abs() + np.log(2)).sum(-1)

    def rsample(self, module, eps):
        uniform = torch.special.ndtr(eps) - 0.5
        return -uniform.sign() * torch.log1p(-2 * uniform.abs().clamp(max=0.5 - 1e-7))


@dataclass(frozen=True)
class Shifted(Prior):
    """A coupling of halves by a network: modules within a module, with values of their own."""

    def build(self, n_features, n_components):
        module = nn.Module()
        module.shift = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, n_components - 1))
        return module

    def log_prob(self, module, z):
        rest = z[..., 1:] - module.shift(z[..., :1])
        unit = torch.cat([z[..., :1], rest], -1)
        return -0.5 * (unit.square() + np.log(2 * np.pi)).sum(-1)

    def rsample(self, module, eps):
        return torch.cat([eps[..., :1], eps[..., 1:] + module.shift(eps[..., :1])], -1)


@dataclass(frozen=True)
class Logistic(Posterior):
    def n_outputs(self, n_components):
        return 2 * n_components

    def parameters(self, raw):
        mean, log_scale = raw.chunk(2, dim=-1)
        return Normal(mean, 15 * torch.tanh(log_scale / 15))

    def mean_std(self, module, q):
        return q.mean, q.log_std.exp() * np.pi / np.sqrt(3)

    def draw(self, module, q, eps):
        unit = torch.special.ndtr(eps).clamp(1e-6, 1 - 1e-6).logit()
        log_density = -unit - 2 * nn.functional.softplus(-unit) - q.log_std
        return q.mean + q.log_std.exp() * unit, log_density.sum(-1)


@dataclass(frozen=True)
class Dense(Network):
    width: int = 6

    def encoder(self, n_in, n_out, hidden_layer_sizes, activation):
        return nn.Sequential(nn.Linear(n_in, self.width), nn.Tanh(), nn.Linear(self.width, n_out))

    decoder = encoder


@dataclass(frozen=True)
class Nested(Likelihood):
    """Normal noise whose log std is what a network within the module makes of the mean."""

    def build(self, n_features):
        module = nn.Module()
        module.noise = nn.Sequential(nn.Linear(n_features, 3), nn.Tanh(), nn.Linear(3, n_features))
        return module

    def units(self, columns):
        return columns.mean, columns.std

    def mean(self, module, raw):
        return raw

    def log_prob(self, module, raw, x):
        return torch.distributions.Normal(raw, self.std(module, raw), validate_args=False).log_prob(
            x
        )

    def std(self, module, raw):
        return (5 * torch.tanh(module.noise(raw) / 5)).exp()

    def sample(self, module, raw, generator):
        noise = torch.randn(raw.shape, generator=generator, dtype=raw.dtype)
        return raw + self.std(module, raw) * noise.to(raw.device)


PARTS = [
    {"prior": Laplace()},
    {"prior": Shifted()},
    {"posterior": Logistic()},
    {"network": Dense()},
    {"likelihood": Nested()},
    {"prior": Shifted(), "posterior": Logistic(), "network": Dense(), "likelihood": Nested()},
    {"prior": Laplace(), "posterior": "full"},
]
every_part = pytest.mark.parametrize("parts", PARTS, ids=str)


def table():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 2)) @ rng.normal(size=(2, 4)) + 0.1 * rng.normal(size=(60, 4))


@every_part
def test_a_part_of_ones_own_is_trained_and_asked_like_others(parts):
    X = table()
    vae = VAETransformer(2, **parts, **{**SMALL, "max_iter": 30}).fit(X)
    assert vae.history_["loss"][-1] < vae.history_["loss"][0]
    assert vae.sample(5, random_state=0).shape == vae.inverse_transform(vae.transform(X[:5])).shape
    bound, error = metrics.elbo(vae, X, n_samples=500, random_state=0, return_std_error=True)
    assert abs(bound - vae.score(X)) < 0.1 + 5 * error
    assert metrics.log_likelihood(vae, X, n_samples=500, random_state=0) > bound - 5 * error


@every_part
@pytest.mark.parametrize("grid", [{"beta": [0.5, 2]}, {"n_components": [2, 3]}], ids=str)
def test_a_search_over_parts_of_ones_own_is_that_of_one_model_after_the_other(parts, grid):
    X, vae = table(), VAETransformer(2, **parts, **SMALL, precision="float64")
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
