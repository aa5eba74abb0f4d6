"""Metrics of a fitted model on data, in nats, with independent noise for each row.

Every function is a scorer, ``f(estimator, X, y=None)``. The estimator is a `VAETransformer` or a
Pipeline that ends in one. The earlier steps of a Pipeline transform X first. Densities are those
of the input of the last step, as in ``Pipeline.score``. With K independent draws z_k of q(z|x) for
each row,

    log w_k = log p(x|z_k) + log p(z_k) - log q(z_k|x),
    ELBO(x) = mean_k log w_k <= log p(x) ~ log mean_k w_k.

The second estimate, too, is below log p(x) on average, and it rises with K (Burda, Grosse &
Salakhutdinov, Importance weighted autoencoders, 2016, arXiv:1509.00519, theorem 1). A fifth of its
draws come from distributions that are wider than q(z|x), with weights to match
(`skvae._model.importance`).

A value that `fit` has not seen costs as much as in ``VAETransformer.score_samples``, if log p(x|z)
is a part of the metric. Infinity and values out of reach make such a metric infinite. Metrics of
q(z|x) alone, such as `kl`, raise an error for them.

The negative ELBO is the sum of two losses:

    -ELBO(x) = reconstruction(x) + kl(x),
    mean of kl(x) over rows = mutual information + KL(mean of q(z|x) over rows || p(z)),

(Hoffman & Johnson, ELBO surgery: yet another way to carve up the variational evidence lower
bound, 2016).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral
from typing import Any, overload

import numpy as np
import torch
from sklearn.utils import check_random_state, check_scalar

from skvae import _pipeline
from skvae._backend import blocks, devices, team
from skvae._backend.tensors import Array, to_array, to_tensor
from skvae._backend.warn import warn
from skvae._inference.fitted import FittedModel
from skvae._model import importance
from skvae._model.rows import Batch
from skvae._model.state import ACTIVE_VARIANCE
from skvae._model.vae import VAE
from skvae._typing import Estimator, RandomState, Rows

__all__ = [
    "active_units",
    "elbo",
    "kl",
    "kl_per_component",
    "log_likelihood",
    "mutual_information",
    "reconstruction",
]

# Share of the rows that may have a k-hat above 0.7 without a warning.
MOST_HEAVY = 0.1

# Draws noise (n, B, L) for the rows of a block.
Noise = Callable[[int], torch.Tensor]


@overload
def log_likelihood(
    estimator: Estimator,
    X: Rows,
    y: Any = None,
    *,
    n_samples: int = 100,
    random_state: RandomState = None,
) -> float: ...
@overload
def log_likelihood(
    estimator: Estimator,
    X: Rows,
    y: Any = None,
    *,
    n_samples: int = 100,
    random_state: RandomState = None,
    per_sample: bool = False,
    return_std_error: bool = False,
    return_pareto_k: bool = False,
) -> Any: ...
def log_likelihood(
    estimator: Estimator,
    X: Rows,
    y: Any = None,
    *,
    n_samples: int = 100,
    random_state: RandomState = None,
    per_sample: bool = False,
    return_std_error: bool = False,
    return_pareto_k: bool = False,
) -> Any:
    """Estimate log p(x) by importance sampling: mean over the rows of X.

    The estimate is good if q(z|x) is close to the true posterior of z, and too low otherwise. The
    Pareto k-hat of a row tells which is the case: if it is above 0.7, do not trust the estimate of
    the row and its standard error.

    Parameters
    ----------
    estimator : VAETransformer or Pipeline
        Fitted model.
    X : array-like of shape (n_samples, n_features)
        Rows.
    y : Ignored
        Present for the API's sake.
    n_samples : int, default=100
        Number of draws of z for each row, independent of other rows. With more draws the estimate
        rises towards log p(x), from below; 5,000 are usual in papers. With 40 draws or more, a
        fifth of them has 1 + c / sqrt(L) times the standard deviation of q(z|x), where L is
        `n_components` and c is 1.5, 4 or 10; the weights correct for this.
    random_state : int, RandomState instance or None, default=None
        Decides the draws; None uses numpy's global generator.
    per_sample : bool, default=False
        If True, return an estimate for each row.
    return_std_error : bool, default=False
        If True, also return the standard error. The error of a row comes from its draws (delta
        method, too small if k-hat is above 0.7). The error of the mean comes from the spread of
        the rows' estimates, which contains both the draws and the choice of rows.
    return_pareto_k : bool, default=False
        If True, also return, as the last result, the Pareto k-hat of each row [1]_: the shape of
        the tail of its weights.

    Returns
    -------
    log_likelihood : float or ndarray of shape (n_samples,)
        Nats per row.
    std_error : float or ndarray of shape (n_samples,)
        Only with `return_std_error`.
    pareto_k : ndarray of shape (n_samples,)
        Only with `return_pareto_k`, one number for each row even if the estimate is the mean over
        rows. NaN for fewer than 25 draws.

    Warns
    -----
    UserWarning
        If k-hat is above 0.7 for more than a tenth of the rows.

    References
    ----------
    .. [1] Pareto smoothed importance sampling (A. Vehtari, D. Simpson, A. Gelman, Y. Yao &
       J. Gabry, 2024), https://arxiv.org/abs/1507.02646.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.metrics import elbo, log_likelihood
    >>> X = load_iris().data
    >>> vae = VAETransformer(2, max_iter=20, random_state=0).fit(X)
    >>> bool(log_likelihood(vae, X, random_state=0) > elbo(vae, X, random_state=0))
    True
    """
    fitted, X = _split(estimator, X)
    check_scalar(n_samples, "n_samples", Integral, min_val=1)
    data = fitted.read(X, accept_far=True)
    block = fitted.blocks(data, accept_far=True)
    value, error, pareto_k = (np.empty(data.shape[0]) for _ in range(3))
    strata = importance.strata(n_samples, fitted.n_components)
    scales = importance.scales(strata).astype(fitted.dtype)

    def measure(model: VAE, rows: slice, noise: Noise) -> list[Array]:
        log_weight, log_ratio = _weigh_wide(model, block(model, rows), noise, scales, strata)
        # The error of the logarithm is the relative error of the mean weight.
        estimates = map(to_array, importance.log_mean(log_weight, log_ratio, strata))
        return [*estimates, importance.pareto_k(to_array(log_weight))]

    fitted.map_noise(measure, random_state, value, error, pareto_k, n_draws=n_samples)
    value -= fitted.log_jacobian
    rows, _, nats = block.costs()
    np.add.at(value, rows, -nats)
    error[rows[np.isinf(nats)]] = 0.0  # minus infinity for any draws
    block.warn()
    _warn_of_tails(pareto_k, n_samples)
    results = _give(value, error, per_sample, return_std_error)
    if not return_pareto_k:
        return results
    return (*results, pareto_k) if return_std_error else (results, pareto_k)


@overload
def elbo(
    estimator: Estimator,
    X: Rows,
    y: Any = None,
    *,
    n_samples: int = 100,
    random_state: RandomState = None,
) -> float: ...
@overload
def elbo(
    estimator: Estimator,
    X: Rows,
    y: Any = None,
    *,
    n_samples: int = 100,
    random_state: RandomState = None,
    per_sample: bool = False,
    return_std_error: bool = False,
) -> Any: ...
def elbo(
    estimator: Estimator,
    X: Rows,
    y: Any = None,
    *,
    n_samples: int = 100,
    random_state: RandomState = None,
    per_sample: bool = False,
    return_std_error: bool = False,
) -> Any:
    """Evidence lower bound, with independent draws for each row: mean over the rows of X.

    `skvae.VAETransformer.score` estimates the same with fixed draws that all rows share.

    Parameters
    ----------
    estimator : VAETransformer or Pipeline
        Fitted model.
    X : array-like of shape (n_samples, n_features)
        Rows.
    y : Ignored
        Present for the API's sake.
    n_samples : int, default=100
        Number of draws of z for each row, independent of other rows.
    random_state : int, RandomState instance or None, default=None
        Decides the draws; None uses numpy's global generator.
    per_sample : bool, default=False
        If True, return an estimate for each row.
    return_std_error : bool, default=False
        If True, also return the standard error. The error of a row comes from its draws, the error
        of the mean from the spread of the rows' estimates.

    Returns
    -------
    elbo : float or ndarray of shape (n_samples,)
        Nats per row.
    std_error : float or ndarray of shape (n_samples,)
        Only with `return_std_error`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.metrics import elbo
    >>> X = load_iris().data
    >>> vae = VAETransformer(2, max_iter=20, random_state=0).fit(X)
    >>> value, error = elbo(vae, X, random_state=0, return_std_error=True)
    >>> bool(abs(value - vae.score(X)) < error)
    True
    """
    totals = _measure_terms(estimator, X, n_samples, random_state)
    return _give(totals["elbo"], totals["elbo_error"], per_sample, return_std_error)


@overload
def reconstruction(
    estimator: Estimator,
    X: Rows,
    y: Any = None,
    *,
    n_samples: int = 100,
    random_state: RandomState = None,
) -> float: ...
@overload
def reconstruction(
    estimator: Estimator,
    X: Rows,
    y: Any = None,
    *,
    n_samples: int = 100,
    random_state: RandomState = None,
    per_sample: bool = False,
    per_feature: bool = False,
    return_std_error: bool = False,
) -> Any: ...
def reconstruction(
    estimator: Estimator,
    X: Rows,
    y: Any = None,
    *,
    n_samples: int = 100,
    random_state: RandomState = None,
    per_sample: bool = False,
    per_feature: bool = False,
    return_std_error: bool = False,
) -> Any:
    """-E[log p(x|z)] under q(z|x): mean over the rows of X, smaller is better.

    Parameters
    ----------
    estimator : VAETransformer or Pipeline
        Fitted model.
    X : array-like of shape (n_samples, n_features)
        Rows.
    y : Ignored
        Present for the API's sake.
    n_samples : int, default=100
        Number of draws of z for each row, independent of other rows.
    random_state : int, RandomState instance or None, default=None
        Decides the draws; None uses numpy's global generator.
    per_sample : bool, default=False
        If True, return an estimate for each row.
    per_feature : bool, default=False
        If True, return the term of each column, which shows which columns make a row unlikely.
        The terms of all columns sum to the whole. A column that was constant in `fit` has 0 nats,
        and log(n + 1) nats for another value, as in `VAETransformer.score_samples`. It cannot be
        combined with `return_std_error`.
    return_std_error : bool, default=False
        If True, also return the standard error. The error of a row comes from its draws, the error
        of the mean from the spread of the rows' estimates.

    Returns
    -------
    reconstruction : float or ndarray of shape (n_samples,), (n_features,) or both
        Nats per row.
    std_error : float or ndarray of shape (n_samples,)
        Only with `return_std_error`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.metrics import elbo, kl, reconstruction
    >>> X = load_iris().data
    >>> vae = VAETransformer(2, max_iter=20, random_state=0).fit(X)
    >>> total = reconstruction(vae, X, random_state=0) + kl(vae, X, random_state=0)
    >>> bool(abs(total + elbo(vae, X, random_state=0)) < 1e-6)
    True
    """
    if not per_feature:
        totals = _measure_terms(estimator, X, n_samples, random_state)
        return _give(
            totals["reconstruction"], totals["reconstruction_error"], per_sample, return_std_error
        )
    if return_std_error:
        raise ValueError(
            "reconstruction has no standard errors per feature. Got per_feature=True and "
            "return_std_error=True: set one of them to False."
        )
    columns = _reconstruct_columns(estimator, X, n_samples, random_state)
    return columns if per_sample else columns.mean(axis=0)


def _reconstruct_columns(
    estimator: Estimator, X: Rows, n_samples: int, random_state: RandomState
) -> Array:
    """Return the reconstruction term of each column, (n_samples, n_columns)."""
    fitted, X = _split(estimator, X)
    check_scalar(n_samples, "n_samples", Integral, min_val=1)
    data = fitted.read(X, accept_far=True)
    block = fitted.blocks(data, accept_far=True)
    result = np.empty((data.shape[0], fitted.schema.n_columns))
    jacobian = fitted.log_scales
    columns = fitted.likelihood.columns_of(fitted.schema.n_columns)

    def measure(model: VAE, rows: slice, noise: Noise) -> list[Array]:
        batch: Batch = block(model, rows)
        total = torch.zeros((), dtype=torch.float64, device=batch.y.device)
        for n in _parts(n_samples, batch, model):
            batch = batch._replace(eps=noise(n))
            log_prob = model.log_prob(batch, model.encode_draws(batch))
            total = total + log_prob.double().sum(0)
        features = jacobian - to_array(total) / n_samples
        of_columns = np.zeros((len(features), fitted.schema.n_columns))
        np.add.at(of_columns.T, columns, features.T)
        return [of_columns]

    # The draws are those of the whole term for the same `random_state`.
    fitted.map_noise(measure, random_state, result, n_draws=n_samples)
    rows, columns, nats = block.costs()
    np.add.at(result, (rows, columns), nats)
    block.warn()
    return result


@overload
def kl(
    estimator: Estimator,
    X: Rows,
    y: Any = None,
    *,
    n_samples: int = 100,
    random_state: RandomState = None,
) -> float: ...
@overload
def kl(
    estimator: Estimator,
    X: Rows,
    y: Any = None,
    *,
    n_samples: int = 100,
    random_state: RandomState = None,
    per_sample: bool = False,
    return_std_error: bool = False,
) -> Any: ...
def kl(
    estimator: Estimator,
    X: Rows,
    y: Any = None,
    *,
    n_samples: int = 100,
    random_state: RandomState = None,
    per_sample: bool = False,
    return_std_error: bool = False,
) -> Any:
    """KL(q(z|x) || p(z)): mean over the rows of X.

    It is exact if the divergence has a closed form, and otherwise an estimate by draws.

    Parameters
    ----------
    estimator : VAETransformer or Pipeline
        Fitted model.
    X : array-like of shape (n_samples, n_features)
        Rows.
    y : Ignored
        Present for the API's sake.
    n_samples : int, default=100
        Number of draws of z for each row, independent of other rows.
    random_state : int, RandomState instance or None, default=None
        Decides the draws; None uses numpy's global generator.
    per_sample : bool, default=False
        If True, return an estimate for each row.
    return_std_error : bool, default=False
        If True, also return the standard error. The error of a row comes from its draws, the error
        of the mean from the spread of the rows' estimates.

    Returns
    -------
    kl : float or ndarray of shape (n_samples,)
        Nats per row.
    std_error : float or ndarray of shape (n_samples,)
        Only with `return_std_error`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.metrics import kl, kl_per_component
    >>> X = load_iris().data
    >>> vae = VAETransformer(2, max_iter=20, random_state=0).fit(X)
    >>> bool(abs(kl(vae, X) - kl_per_component(vae, X).sum()) < 1e-4)  # exact: no draws
    True
    """
    totals = _measure_terms(estimator, X, n_samples, random_state, accept_far=False)
    return _give(totals["kl"], totals["kl_error"], per_sample, return_std_error)


def kl_per_component(estimator: Estimator, X: Rows, y: Any = None) -> np.ndarray:
    """KL(q(z_j|x) || p(z_j)) of each component, mean over the rows of X.

    Parameters
    ----------
    estimator : VAETransformer or Pipeline
        Fitted model.
    X : array-like of shape (n_samples, n_features)
        Rows.
    y : Ignored
        Present for the API's sake.

    Returns
    -------
    kl : ndarray of shape (n_components,)
        Nats per row; about 0 for a component that carries no information about the rows.

    Raises
    ------
    ValueError
        If the divergence is not a sum over components, because the posterior is not "diagonal" or
        the prior is not "standard_normal".

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.metrics import kl_per_component
    >>> X = load_iris().data
    >>> vae = VAETransformer(2, max_iter=20, random_state=0).fit(X)
    >>> kl_per_component(vae, X).shape
    (2,)
    """
    fitted, X = _split(estimator, X)
    model = fitted.architecture
    if not (model.has_kl and model.posterior.factorises):
        raise ValueError(
            "The KL divergence is a sum over the components only for posterior='diagonal' and "
            f"prior='standard_normal'. Got posterior={model.posterior!r} and "
            f"prior={model.prior!r}: see active_units, which works with any of them."
        )
    data = fitted.read(X)
    block = fitted.blocks(data)
    result = np.empty((data.shape[0], fitted.n_components))

    def measure(model: VAE, rows: slice) -> list[Array]:
        q = model.encode_posterior(block(model, rows))
        return [to_array(model.posterior.kl(q))]

    fitted.map_rows(measure, result)
    block.warn()
    return result.mean(axis=0)


def active_units(
    estimator: Estimator, X: Rows, y: Any = None, *, threshold: float = ACTIVE_VARIANCE
) -> int:
    """Number of components whose posterior mean changes with the row.

    Parameters
    ----------
    estimator : VAETransformer or Pipeline
        Fitted model.
    X : array-like of shape (n_samples, n_features)
        Rows.
    y : Ignored
        Present for the API's sake.
    threshold : float, default=0.01
        Variance of the posterior mean over rows above which a component is active [1]_.

    Returns
    -------
    n_active : int
        Between 0 and n_components.

    References
    ----------
    .. [1] Importance weighted autoencoders (Y. Burda, R. Grosse & R. Salakhutdinov, 2016),
       https://arxiv.org/abs/1509.00519, section 5.2.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.metrics import active_units
    >>> X = load_iris().data
    >>> vae = VAETransformer(2, max_iter=20, random_state=0).fit(X)
    >>> active_units(vae, X)
    2
    """
    before, vae = _pipeline.split(estimator, "Metrics expect")
    means = vae.transform(_pipeline.transform(before, X))
    return int((np.var(means, axis=0, dtype=np.float64) > threshold).sum())


def mutual_information(
    estimator: Estimator,
    X: Rows,
    y: Any = None,
    *,
    n_samples: int = 1,
    random_state: RandomState = None,
) -> float:
    """Mutual information of z and the index of its row in X, under q(z|x).

    With N rows it is at most log N. It is a good estimate for rows beyond X if it is far below
    log N.

    Parameters
    ----------
    estimator : VAETransformer or Pipeline
        Fitted model.
    X : array-like of shape (n_samples, n_features)
        Rows.
    y : Ignored
        Present for the API's sake.
    n_samples : int, default=1
        Number of draws of z for each row. Each draw needs its density under all N posteriors, so
        time grows with N**2.
    random_state : int, RandomState instance or None, default=None
        Decides the draws; None uses numpy's global generator.

    Returns
    -------
    information : float
        Nats per row.

    Raises
    ------
    ValueError
        If the posterior, such as `Flow`, knows the density of its own draws only.

    References
    ----------
    ELBO surgery: yet another way to carve up the variational evidence lower bound
    (M. D. Hoffman & M. J. Johnson, 2016), eq. 8.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.metrics import kl, mutual_information
    >>> X = load_iris().data
    >>> vae = VAETransformer(2, max_iter=20, random_state=0).fit(X)
    >>> bool(mutual_information(vae, X, random_state=0) < kl(vae, X))
    True
    """
    fitted, X = _split(estimator, X)
    posterior = fitted.architecture.posterior
    if not posterior.has_density:
        raise ValueError(
            "mutual_information needs a posterior whose density is known everywhere: "
            f"'diagonal' or 'full'. Got {posterior!r}."
        )
    check_scalar(n_samples, "n_samples", Integral, min_val=1)
    seed = int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
    data = fitted.read(X)
    block = fitted.blocks(data)
    n_rows, n_raw = data.shape[0], posterior.n_outputs(fitted.n_components)
    raw = np.empty((n_rows, n_raw), fitted.dtype)

    def read(model: VAE, rows: slice) -> list[Array]:
        return [to_array(model.raw_posterior(block(model, rows)))]

    fitted.map_rows(read, raw)
    block.warn()
    flow = fitted.to_module().flow
    return _compare_posteriors(posterior, flow, raw, fitted.n_components, n_samples, seed)


# --- draws --------------------------------------------------------------------------------


def _split(estimator: Estimator, X: Rows) -> tuple[FittedModel, Any]:
    """Return the fitted model, and X transformed by the earlier steps of a Pipeline."""
    before, vae = _pipeline.split(estimator, "Metrics expect")
    return vae._fitted, _pipeline.transform(before, X)


def _parts(n_samples: int, batch: Batch, model: VAE) -> Iterator[int]:
    """Split `n_samples` draws into parts that fit into a block's memory."""
    size = blocks.draws_at_once(len(batch.y), model.width)
    for start in range(0, n_samples, size):
        yield min(size, n_samples - start)


def _weigh_wide(
    model: VAE, batch: Batch, noise: Noise, scales: Array, strata: importance.Strata
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log weights of draws with these scales, and the log ratios, each (S, B)."""
    weights, ratios, start = [], [], 0
    for n in _parts(len(scales), batch, model):
        scale = to_tensor(scales[start : start + n], batch.y.device)
        eps = scale[:, None, None] * noise(n)
        terms = model(batch._replace(eps=eps), by_draw=True)
        ratio = importance.log_ratio(eps, strata)
        weight = terms.log_likelihood.double() - terms.kl.double().sum(-1)
        weights.append(weight - ratio)
        ratios.append(ratio)
        start += n
    return torch.cat(weights), torch.cat(ratios)


def _measure_terms(
    estimator: Estimator,
    X: Rows,
    n_samples: int,
    random_state: RandomState,
    *,
    accept_far: bool = True,
) -> dict[str, Array]:
    """Return the ELBO of each row, its two terms, and the standard errors of all three."""
    fitted, X = _split(estimator, X)
    check_scalar(n_samples, "n_samples", Integral, min_val=1)
    data = fitted.read(X, accept_far=accept_far)
    block = fitted.blocks(data, accept_far=accept_far)
    names = ("elbo", "elbo_error", "reconstruction", "reconstruction_error", "kl", "kl_error")
    totals = {name: np.empty(data.shape[0]) for name in names}

    def measure(model: VAE, rows: slice, noise: Noise) -> Iterable[Array]:
        return map(to_array, _terms_of(model, block(model, rows), noise, n_samples))

    fitted.map_noise(measure, random_state, *totals.values(), n_draws=n_samples)
    totals["elbo"] -= fitted.log_jacobian
    totals["reconstruction"] += fitted.log_jacobian
    rows, _, nats = block.costs()
    np.add.at(totals["elbo"], rows, -nats)
    np.add.at(totals["reconstruction"], rows, nats)
    for name in ("elbo_error", "reconstruction_error"):
        totals[name][rows[np.isinf(nats)]] = 0.0  # infinite for any draws
    block.warn()
    return totals


def _terms_of(model: VAE, batch: Batch, noise: Noise, n_samples: int) -> list[torch.Tensor]:
    """Return ELBO, reconstruction and KL of each row, each followed by its error, (B,)."""
    likelihoods, divergences = [], []
    for n in _parts(n_samples, batch, model):
        terms = model(batch._replace(eps=noise(n)), by_draw=True)
        likelihoods.append(terms.log_likelihood.double())
        divergences.append(terms.kl.double().sum(-1))
    log_likelihood, kl = torch.cat(likelihoods), torch.cat(divergences)
    mean_kl, error_kl, error = kl.mean(0), _error(kl), _error(log_likelihood - kl)
    if model.has_kl:  # a closed form replaces the estimate
        mean_kl = model.posterior.kl(model.encode_posterior(batch)).double().sum(-1)
        error_kl, error = torch.zeros_like(mean_kl), _error(log_likelihood)
    mean = log_likelihood.mean(0)
    return [mean - mean_kl, error, -mean, _error(log_likelihood), mean_kl, error_kl]


def _compare_posteriors(
    posterior: Any, flow: torch.nn.Module, raw: Array, n_components: int, n_samples: int, seed: int
) -> float:
    """Mean of log q(z|x) less the log-density of z under the mixture of all rows' posteriors.

    `raw` are the encoder's outputs of all rows. Each row is compared for `n_samples` draws of z.
    """
    n_rows, cpu = len(raw), torch.device("cpu")
    rng, total = np.random.default_rng(seed), 0.0
    size = max(1, (1 << 20) // (n_rows * n_components))
    with team.Team(cpu, team.n_threads(cpu)) as threads, devices.computing(cpu):
        all_rows = posterior.parameters(torch.from_numpy(raw))
        for _ in range(n_samples):
            eps = torch.from_numpy(rng.standard_normal((n_rows, n_components), raw.dtype))

            def compare(start: int, eps: torch.Tensor = eps) -> float:
                own = posterior.parameters(torch.from_numpy(raw[start : start + size]))
                z, log_q = posterior.draw(flow, own, eps[None, start : start + size])
                among = posterior.log_density(flow, all_rows, z[0]).double()
                log_mean = torch.logsumexp(among, -1) - math.log(n_rows)
                return float((log_q[0].double() - log_mean).sum())

            total += sum(threads.map(compare, range(0, n_rows, size)))
    return total / (n_rows * n_samples)


def _warn_of_tails(pareto_k: Array, n_samples: int) -> None:
    """Warn once if the weights of many rows have a heavy tail."""
    n_heavy = int((pareto_k > importance.LARGEST_K).sum())
    if n_heavy > MOST_HEAVY * len(pareto_k):
        warn(
            f"Pareto k-hat is above {importance.LARGEST_K} for {n_heavy} of {len(pareto_k)} rows: "
            "a few draws have most of the weight there, so log_likelihood is likely too low and "
            f"its standard error too small. Got n_samples={n_samples}. Use more draws, for example "
            f"n_samples={10 * n_samples}. If k-hat stays large, take the value as a lower bound. "
            "return_pareto_k=True returns k-hat for each row.",
            UserWarning,
        )


def _error(draws: torch.Tensor) -> torch.Tensor:
    """Standard error of the mean over the first axis; NaN for one draw."""
    if len(draws) < 2:
        return torch.full_like(draws[0], math.nan)
    return draws.std(0) / math.sqrt(len(draws))


def _give(values: Array, errors: Array, per_sample: bool, return_std_error: bool) -> Any:
    """Return the values or their mean, with the standard errors if asked for."""
    if per_sample:
        return (values, errors) if return_std_error else values
    n_rows, error = len(values), math.nan
    if n_rows > 1 and np.isfinite(values).all():
        error = float(np.std(values, ddof=1) / math.sqrt(n_rows))
    mean = float(values.mean())
    return (mean, error) if return_std_error else mean
