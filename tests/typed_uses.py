"""What the guide shows, as a type checker sees it: `make lint` checks this file, tests run it.

A value is used as what it is said to be, and `assert_type` says what a checker must infer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_type

import joblib
import numpy as np
import pandas as pd
import scipy.sparse
import torch
from numpy.typing import NDArray
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import skvae
import skvae.onnx
import skvae.safetensors
from skvae import Checkpoint, VAEGridSearchCV, VAEImputer, VAETransformer, metrics
from skvae.inspection import (
    ComponentsDisplay,
    LatentSpaceDisplay,
    LossCurveDisplay,
    ReconstructionDisplay,
    SampleDisplay,
    SearchDisplay,
    TraversalDisplay,
)
from skvae.likelihoods import Categorical, Columns, Gaussian, Likelihood, Poisson, StudentT
from skvae.networks import MLP, Network
from skvae.posteriors import Full, Normal, Posterior
from skvae.priors import Mixture, Prior

Rows = NDArray[np.float64]


def rows(n: int = 60) -> Rows:
    """Rows of two factors."""
    rng = np.random.default_rng(0)
    X: Rows = rng.standard_normal((n, 2)) @ np.array([[1.0, 2, 0, 1], [0, 1, -1, 2]])
    return X + 0.3 * rng.standard_normal((n, 4))


def small(n_components: int = 2, likelihood: Likelihood | str = "gaussian") -> VAETransformer:
    """A model that is trained in no time."""
    return VAETransformer(
        n_components,
        likelihood=likelihood,
        hidden_layer_sizes=(8,),
        max_iter=3,
        early_stopping=False,
        random_state=0,
    )


# --- the estimator ------------------------------------------------------------------------


def construct() -> None:
    """Parameters are names, plain values or parts."""
    VAETransformer()
    VAETransformer(2, likelihood="auto", prior="standard_normal", posterior="full", network="mlp")
    VAETransformer(
        n_components=4,
        likelihood=StudentT(df=5),
        prior=Mixture(5),
        posterior=Full(),
        network=MLP(residual=True, dropout=0.1),
        hidden_layer_sizes=[32, 16],
        activation="relu",
    )
    VAETransformer(hidden_layer_sizes=32, beta=4, beta_warmup=0.5, n_beta_cycles=2, free_bits=0.1)
    VAETransformer(hidden_layer_sizes=(), learning_rate=1e-2, learning_rate_schedule="constant")
    VAETransformer(batch_size=128, early_stopping=False, max_grad_norm=1.0, weight_decay=0.01)
    VAETransformer(batch_size="auto", early_stopping="auto", n_score_draws="auto")
    VAETransformer(early_stopping=True, n_score_draws=64, n_importance_samples=5, tol=1e-2)
    VAETransformer(device="cpu", precision="bf16", warm_start=True, verbose=True)
    VAETransformer(random_state=np.random.RandomState(0))
    for likelihood in ["gaussian", "laplace"]:
        VAETransformer(likelihood=likelihood)


def construct_with_modules() -> None:
    """A network may be a pair of callables."""

    def encoder(n_in: int, n_out: int) -> nn.Module:
        return nn.Linear(n_in, n_out)

    vae = VAETransformer(2, network=(encoder, nn.Linear), max_iter=2, early_stopping=False)
    assert_type(vae.fit(rows()), VAETransformer)


def fit_and_use() -> None:
    """Methods say what they return, and a fitted model what it learned."""
    X = rows()
    vae = small().fit(X)
    assert_type(vae, VAETransformer)
    assert_type(vae.n_iter_, int)
    assert_type(vae.kept_iter_, int | None)
    assert_type(vae.n_features_in_, int)
    assert_type(vae.likelihood_, Likelihood)
    assert_type(vae.score(X), float)
    round(float(vae.history_["loss"][-1]), 2)
    sorted(vae.state_)

    Z = vae.transform(X)
    mean, std = vae.encode(X)
    draws = vae.sample_posterior(X[:1], n_draws=5, random_state=0)
    print(Z.shape, (mean - 2 * std).min(), draws[:, 0].mean(axis=0))
    print(vae.inverse_transform(Z).shape, vae.sample(3, random_state=0, mean=True).shape)
    print(np.quantile(vae.score_samples(X), 0.05), vae.fit_transform(X).shape)
    vae.to_module().float()

    weight = np.arange(len(X)) % 3
    groups = [("a", i // 10) for i in range(len(X))]
    print(vae.fit(X, sample_weight=weight, groups=groups).score(X, sample_weight=weight))
    assert_type(vae.partial_fit(X), VAETransformer)
    vae.set_params(beta=2.0).fit(X)


def noise() -> None:
    """A likelihood may have one variance for each column."""
    variance = small(likelihood=Gaussian("per_feature")).fit(rows()).noise_variance_
    print(np.sqrt(variance))


def fit_other_rows() -> None:
    """Rows are arrays, lists, sparse matrices, frames and memory maps."""
    X = rows()
    small().fit(X.tolist()).transform(X.astype(np.float32))
    counts = np.random.default_rng(0).poisson(1.0, (60, 5))
    small(likelihood=Poisson()).fit(scipy.sparse.csr_array(counts)).score(counts)
    table = pd.DataFrame(X[:, :3], columns=["a", "b", "c"])
    table["d"] = pd.Categorical(["no", "yes", "no"] * 20)
    parts = [(Gaussian(), ["a", "b", "c"]), (Categorical(), ["d"])]
    vae = small(likelihood=Columns(parts)).fit(table)
    print(vae.sample(2, random_state=0)["d"], list(vae.feature_names_in_))
    print(VAEImputer(small(likelihood="auto")).fit_transform(table).isna().sum())


# --- around it ----------------------------------------------------------------------------


def pipelines() -> None:
    """A Pipeline is fitted, asked and drawn from."""
    X = rows()
    pipe = make_pipeline(StandardScaler(), small())
    pipe.fit(X)
    print(pipe.transform(X).shape, pipe.score(X))
    print(skvae.sample(pipe, 10, random_state=0).shape)
    print(round(metrics.elbo(pipe, X, n_samples=5, random_state=0), 1))
    print(skvae.sample(small().fit(X), mean=True).shape)


def search() -> None:
    """A search takes a grid of values and parts, and folds of any kind."""
    X = rows()
    grid = {"likelihood": ["gaussian", Gaussian("shared")], "beta": [0.5, 1]}
    found = VAEGridSearchCV(small(), grid, cv=2, scoring=metrics.kl, refit=True).fit(X)
    assert_type(found, VAEGridSearchCV)
    assert_type(found.best_score_, float)
    print(found.best_params_["beta"], found.cv_results_["mean_test_score"].max())
    print(found.best_estimator_.transform(X).shape, skvae.sample(found, 3).shape)
    VAEGridSearchCV(
        small(), [{"beta": [1, 2]}, {"n_components": [1, 2]}], cv=GroupKFold(2), n_jobs=1
    )
    VAEGridSearchCV(make_pipeline(StandardScaler(), small()), {}, max_stack=4, error_score="raise")
    scoring = {"elbo": metrics.elbo, "kl": metrics.kl, "reconstruction": metrics.reconstruction}
    own = VAEGridSearchCV(small(), {"beta": [0.5, 1]}, scoring=scoring, refit="elbo", cv=2).fit(X)
    SearchDisplay.from_estimator(own, kind="rate_distortion")
    print(GridSearchCV(small(), {"n_components": [1, 2]}, cv=2).fit(X).best_index_)


def imputer() -> None:
    """An imputer has parameters and attributes of its own."""
    X = rows()
    X[::7, 2] = np.nan
    imputer = VAEImputer(small(), n_draws=8, sample_posterior=True, random_state=0).fit(X)
    assert_type(imputer, VAEImputer)
    assert_type(imputer.estimator_, VAETransformer)
    print(np.isnan(imputer.transform(X)).any(), imputer.get_feature_names_out()[0])
    VAEImputer(missing_values=-999, add_indicator=True, keep_empty_features=True)


def measure() -> None:
    """A metric is a float, unless more is asked for."""
    X = rows()
    vae = small().fit(X)
    assert_type(metrics.elbo(vae, X), float)
    assert_type(metrics.kl(vae, X, random_state=0), float)
    assert_type(metrics.reconstruction(vae, X, n_samples=5), float)
    assert_type(metrics.active_units(vae, X), int)
    assert_type(metrics.mutual_information(vae, X), float)
    value, error = metrics.elbo(vae, X, n_samples=5, return_std_error=True)
    bound, k = metrics.log_likelihood(vae, X, n_samples=30, per_sample=True, return_pareto_k=True)
    nats = metrics.reconstruction(vae, X, per_sample=True, per_feature=True)[0]
    print(value - error, bound[k < 0.7].mean(), nats.argmax(), metrics.kl_per_component(vae, X)[0])


def pictures(folder: Path) -> None:
    """A display is made of an estimator, and drawn again."""
    X = rows()
    vae = small().fit(X)
    display = LossCurveDisplay.from_estimator(vae)
    assert_type(display, LossCurveDisplay)
    display.ax_.set_title("Training")
    display.figure_.savefig(folder / "losses.png")
    LossCurveDisplay(history=vae.history_, kept_iter=vae.kept_iter_).plot(display.ax_)
    print(ComponentsDisplay.from_estimator(vae, X).order[0])
    LatentSpaceDisplay.from_estimator(vae, X, X[:, 0], components=[0, 1]).plot(ellipses=True)
    ReconstructionDisplay.from_estimator(vae, X, image_shape=(2, 2)).plot(
        n_images=5, cmap="viridis"
    )
    TraversalDisplay.from_estimator(vae, X, kind="manifold", n_steps=5, features=[0, "x2"])
    SampleDisplay.from_estimator(vae, X, n_samples=50, mean=True, random_state=0)


def files(folder: Path) -> None:
    """Paths are strings or path-like."""
    X = rows()
    vae = small().fit(X)
    skvae.safetensors.save(vae, folder / "vae.safetensors")
    loaded = skvae.safetensors.load(str(folder / "vae.safetensors"))
    assert_type(loaded, VAETransformer)
    skvae.onnx.export(vae, folder / "encoder.onnx")
    skvae.onnx.export(vae, str(folder / "decoder.onnx"), part="decoder")
    skvae.onnx.register()
    joblib.dump(vae, folder / "vae.joblib")
    checkpoint = Checkpoint(folder / "long.joblib", every=2)
    vae = VAETransformer(2, max_iter=3, warm_start=True, early_stopping=False, random_state=0)
    if hasattr(vae, "set_callbacks"):  # from scikit-learn 1.9 on
        vae.set_callbacks(checkpoint)
        vae.fit(X)


# --- parts of one's own -------------------------------------------------------------------


@dataclass(frozen=True)
class Wide(Prior):
    """N(0, diag(s**2)) with a learned s."""

    def build(self, n_features: int, n_components: int) -> nn.Module:
        """The log of s."""
        module = nn.Module()
        module.log_std = nn.Parameter(torch.zeros(n_components))
        return module

    def log_prob(self, module: Any, z: torch.Tensor) -> torch.Tensor:
        """log p(z)."""
        normal = torch.distributions.Normal(0.0, module.log_std.exp(), validate_args=False)
        density: torch.Tensor = normal.log_prob(z)
        return density.sum(-1)

    def rsample(self, module: Any, eps: torch.Tensor) -> torch.Tensor:
        """Draws."""
        draws: torch.Tensor = module.log_std.exp() * eps
        return draws


@dataclass(frozen=True)
class Logistic(Posterior):
    """Independent logistic components."""

    def n_outputs(self, n_components: int) -> int:
        """Two for each component."""
        return 2 * n_components

    def parameters(self, raw: torch.Tensor) -> Normal:
        """Means and log scales."""
        mean, log_scale = raw.chunk(2, dim=-1)
        return Normal(mean, 15 * torch.tanh(log_scale / 15))

    def mean_std(self, module: Any, q: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation."""
        return q.mean, q.log_std.exp() * np.pi / np.sqrt(3)

    def draw(self, module: Any, q: Any, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws, and their log-densities."""
        unit = torch.special.ndtr(eps).clamp(1e-6, 1 - 1e-6).logit()
        log_density = -unit - 2 * nn.functional.softplus(-unit) - q.log_std
        return q.mean + q.log_std.exp() * unit, log_density.sum(-1)


@dataclass(frozen=True)
class Dense(Network):
    """One hidden layer of a width of its own."""

    width: int = 6

    def encoder(
        self, n_in: int, n_out: int, hidden_layer_sizes: Sequence[int], activation: str
    ) -> nn.Module:
        """From rows to what the posterior has."""
        return nn.Sequential(nn.Linear(n_in, self.width), nn.Tanh(), nn.Linear(self.width, n_out))

    def decoder(
        self, n_in: int, n_out: int, hidden_layer_sizes: Sequence[int], activation: str
    ) -> nn.Module:
        """The same the other way."""
        return self.encoder(n_in, n_out, hidden_layer_sizes, activation)


def own_parts() -> None:
    """A part of one's own is a value like others."""
    vae = VAETransformer(
        2,
        prior=Wide(),
        posterior=Logistic(),
        network=Dense(width=4),
        max_iter=2,
        early_stopping=False,
        random_state=0,
    )
    assert_type(vae.fit(rows()).score(rows()), float)
