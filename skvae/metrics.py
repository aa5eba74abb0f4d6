"""What a fitted model says of data, in nats: estimates with noise of each row's own.

Every function is a scorer, ``f(estimator, X, y=None)``, of a `VAETransformer` or a Pipeline that
ends in one, whose earlier steps transform X first: densities are those of what the last step
sees, as in ``Pipeline.score``. With K independent draws z_k of q(z|x) for each row,

    log w_k = log p(x|z_k) + log p(z_k) - log q(z_k|x),
    ELBO(x) = mean_k log w_k <= log p(x) ~ log mean_k w_k,

where the latter estimate is itself below log p(x) on average, and rises with K (Burda, Grosse &
Salakhutdinov, Importance weighted autoencoders, 2016, arXiv:1509.00519, theorem 1). For it, a
fifth of the draws come from wider distributions than q(z|x), with weights to match
(`skvae._model.importance`).

What `fit` has not seen costs what it does in ``VAETransformer.score_samples``, where log p(x|z) is
a part of the number: infinity and values out of reach make it infinite. Functions of q(z|x) alone,
such as `kl`, refuse these.

The ELBO is reconstruction + KL, with the signs of losses here:

    -ELBO(x) = reconstruction(x) + kl(x),
    mean of kl(x) over rows = mutual information + KL(mean of q(z|x) over rows || p(z)),

(Hoffman & Johnson, ELBO surgery: yet another way to carve up the variational evidence lower
bound, 2016).
"""

import math
from numbers import Integral
from typing import Any, overload

import numpy as np
import torch
from sklearn.utils import check_random_state, check_scalar

from skvae import _pipeline
from skvae._backend import blocks, devices
from skvae._backend.tensors import to_array, to_tensor
from skvae._backend.warn import warn
from skvae._model import importance
from skvae._model.state import ACTIVE_VARIANCE
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
    """Importance-sampled log p(x): mean over the rows of X.

    The estimate is good where q(z|x) is close to the true posterior of z, and too low where it is
    not. The Pareto k-hat of a row tells one from the other: above 0.7 the estimate of the row and
    its standard error are not to be trusted.

    Parameters
    ----------
    estimator : VAETransformer or Pipeline
        Fitted model.
    X : array-like of shape (n_samples, n_features)
        Rows.
    y : Ignored
        Present for the API's sake.
    n_samples : int, default=100
        Draws of z for each row, of its own. More bring the estimate closer to log p(x), from
        below; 5,000 are usual in papers. From 40 on, a fifth of them is drawn with 1 + c / sqrt(L)
        times the standard deviation of q(z|x), where L is `n_components` and c is 1.5, 4 or 10;
        the weights make up for it.
    random_state : int, RandomState instance or None, default=None
        Decides the draws; None uses numpy's global generator.
    per_sample : bool, default=False
        If True, return an estimate for each row.
    return_std_error : bool, default=False
        If True, return the standard error too: of a row that of its draws (delta method, which
        says too little where k-hat is above 0.7); of the mean that of the rows' estimates, by both
        their draws and the choice of rows.
    return_pareto_k : bool, default=False
        If True, return the Pareto k-hat of each row last [1]_: the shape of the tail of its
        weights.

    Returns
    -------
    log_likelihood : float or ndarray of shape (n_samples,)
        Nats per row.
    std_error : float or ndarray of shape (n_samples,)
        Only with `return_std_error`.
    pareto_k : ndarray of shape (n_samples,)
        Only with `return_pareto_k`, also where the estimate is the mean over rows. NaN for fewer
        than 25 draws.

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
    fitted, X = _last(estimator, X)
    check_scalar(n_samples, "n_samples", Integral, min_val=1)
    data = fitted.read(X, accept_far=True)
    block = fitted.blocks(data, accept_far=True)
    value, error, pareto_k = (np.empty(data.shape[0]) for _ in range(3))
    strata = importance.strata(n_samples, fitted.n_components)
    scales = importance.scales(strata).astype(fitted.dtype)

    def measure(model, rows, noise):
        batch, weights, ratios, start = block(model, rows), [], [], 0
        for n in _parts(n_samples, batch, model):
            scale = to_tensor(scales[start : start + n], batch.y.device)
            eps = scale[:, None, None] * noise(n)
            terms = model(batch._replace(eps=eps), by_draw=True)
            ratio = importance.log_ratio(eps, strata)
            weight = terms.log_likelihood.double() - terms.kl.double().sum(-1)
            weights.append(weight - ratio)
            ratios.append(ratio)
            start += n
        weights, ratios = torch.cat(weights), torch.cat(ratios)
        # The error of the mean weight, relative to it, is that of its logarithm.
        estimates = map(to_array, importance.log_mean(weights, ratios, strata))
        return [*estimates, importance.pareto_k(to_array(weights))]

    fitted.map_noise(measure, random_state, value, error, pareto_k, n_draws=n_samples)
    value -= fitted.log_jacobian
    rows, _, nats = block.costs()
    np.add.at(value, rows, -nats)
    error[rows[np.isinf(nats)]] = 0.0  # whatever the draws
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
    """Evidence lower bound, with draws of each row's own: mean over the rows of X.

    `skvae.VAETransformer.score` is the same by fixed draws that all rows share.

    Parameters
    ----------
    estimator : VAETransformer or Pipeline
        Fitted model.
    X : array-like of shape (n_samples, n_features)
        Rows.
    y : Ignored
        Present for the API's sake.
    n_samples : int, default=100
        Draws of z for each row, of its own.
    random_state : int, RandomState instance or None, default=None
        Decides the draws; None uses numpy's global generator.
    per_sample : bool, default=False
        If True, return an estimate for each row.
    return_std_error : bool, default=False
        If True, return the standard error too: of a row that of its draws, of the mean that of
        the rows' estimates.

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
    totals = _weigh(estimator, X, n_samples, random_state)
    return _give(totals["mean"], totals["error"], per_sample, return_std_error)


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
        Draws of z for each row, of its own.
    random_state : int, RandomState instance or None, default=None
        Decides the draws; None uses numpy's global generator.
    per_sample : bool, default=False
        If True, return an estimate for each row.
    per_feature : bool, default=False
        If True, that of each column, which says which columns make a row unlikely. They sum to
        the whole. Columns that were constant in `fit` have 0, and log(n + 1) nats where a value is
        another, as in `VAETransformer.score_samples`. Not with `return_std_error`.
    return_std_error : bool, default=False
        If True, return the standard error too: of a row that of its draws, of the mean that of
        the rows' estimates.

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
        totals = _weigh(estimator, X, n_samples, random_state)
        return _give(
            totals["reconstruction"], totals["reconstruction_error"], per_sample, return_std_error
        )
    if return_std_error:
        raise ValueError("reconstruction has no standard errors per feature: leave one of both.")
    fitted, X = _last(estimator, X)
    check_scalar(n_samples, "n_samples", Integral, min_val=1)
    data = fitted.read(X, accept_far=True)
    block = fitted.blocks(data, accept_far=True)
    result = np.empty((data.shape[0], fitted.schema.n_columns))
    jacobian = fitted.log_scales
    columns = fitted.likelihood.columns_of(fitted.schema.n_columns)

    def measure(model, rows, noise):
        batch, total = block(model, rows), 0.0
        for n in _parts(n_samples, batch, model):
            batch = batch._replace(eps=noise(n))
            log_prob = model.log_prob(batch, model.encode_draws(batch))
            total = total + log_prob.double().sum(0)
        features = jacobian - to_array(total) / n_samples
        of_columns = np.zeros((len(features), fitted.schema.n_columns))
        np.add.at(of_columns, (slice(None), columns), features)
        return [of_columns]

    fitted.map_noise(measure, random_state, result, n_draws=n_samples)  # those of the whole
    rows, columns, nats = block.costs()
    np.add.at(result, (rows, columns), nats)
    block.warn()
    return result if per_sample else result.mean(axis=0)


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

    Exact where it has a closed form, else an estimate by draws.

    Parameters
    ----------
    estimator : VAETransformer or Pipeline
        Fitted model.
    X : array-like of shape (n_samples, n_features)
        Rows.
    y : Ignored
        Present for the API's sake.
    n_samples : int, default=100
        Draws of z for each row, of its own.
    random_state : int, RandomState instance or None, default=None
        Decides the draws; None uses numpy's global generator.
    per_sample : bool, default=False
        If True, return an estimate for each row.
    return_std_error : bool, default=False
        If True, return the standard error too: of a row that of its draws, of the mean that of
        the rows' estimates.

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
    totals = _weigh(estimator, X, n_samples, random_state, accept_far=False)
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
        Nats per row; about 0 for a component that says nothing of X.

    Raises
    ------
    ValueError
        If the divergence is no sum over components: a posterior other than "diagonal", or a
        prior other than "standard_normal".

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
    fitted, X = _last(estimator, X)
    model = fitted.architecture
    if not (model.has_kl and model.posterior.factorises):
        raise ValueError(
            "The KL divergence is a sum over the components only for posterior='diagonal' and "
            f"prior='standard_normal'. Got posterior={model.posterior!r} and "
            f"prior={model.prior!r}: see active_units, which needs neither."
        )
    data = fitted.read(X)
    block = fitted.blocks(data)
    result = np.empty((data.shape[0], fitted.n_components))

    def measure(model, rows):
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
    """What a draw of z tells of which row of X it came from, under q(z|x).

    With N rows, at most log N: the estimate for data beyond X is good where it is far below.

    Parameters
    ----------
    estimator : VAETransformer or Pipeline
        Fitted model.
    X : array-like of shape (n_samples, n_features)
        Rows.
    y : Ignored
        Present for the API's sake.
    n_samples : int, default=1
        Draws of z for each row. Each is compared with all rows: N**2 densities.
    random_state : int, RandomState instance or None, default=None
        Decides the draws; None uses numpy's global generator.

    Returns
    -------
    information : float
        Nats per row.

    Raises
    ------
    ValueError
        If the posterior's density is not known for any z: `Flow`.

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
    fitted, X = _last(estimator, X)
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

    def read(model, rows):
        return [to_array(model.raw_posterior(block(model, rows)))]

    fitted.map_rows(read, raw)
    block.warn()
    rng, total = np.random.default_rng(seed), 0.0
    size = max(1, (1 << 20) // (n_rows * fitted.n_components))
    with devices.computing(torch.device("cpu"), one_thread=False):
        all_rows, flow = posterior.parameters(torch.from_numpy(raw)), fitted.to_module().flow
        for _ in range(n_samples):
            eps = torch.from_numpy(rng.standard_normal((n_rows, fitted.n_components), raw.dtype))
            for start in range(0, n_rows, size):
                own = posterior.parameters(torch.from_numpy(raw[start : start + size]))
                z, log_q = posterior.draw(flow, own, eps[None, start : start + size])
                among = posterior.log_density(flow, all_rows, z[0]).double()
                log_mean = torch.logsumexp(among, -1) - math.log(n_rows)
                total += float((log_q[0].double() - log_mean).sum())
    return total / (n_rows * n_samples)


# --- draws --------------------------------------------------------------------------------


def _last(estimator, X):
    """The model, and X as its Pipeline's earlier steps make it."""
    before, vae = _pipeline.split(estimator, "Metrics expect")
    return vae._fitted, _pipeline.transform(before, X)


def _parts(n_samples, batch, model):
    """`n_samples` draws in parts that fit into a block's memory."""
    size = blocks.draws_at_once(len(batch.y), model.width)
    for start in range(0, n_samples, size):
        yield min(size, n_samples - start)


def _weigh(estimator, X, n_samples, random_state, *, accept_far=True):
    """Means over the draws of each row's log weight and of its two parts."""
    fitted, X = _last(estimator, X)
    check_scalar(n_samples, "n_samples", Integral, min_val=1)
    data = fitted.read(X, accept_far=accept_far)
    block = fitted.blocks(data, accept_far=accept_far)
    names = ["mean", "error"]
    names += ["reconstruction", "reconstruction_error", "kl", "kl_error"]
    totals = {name: np.empty(data.shape[0]) for name in names}

    def measure(model, rows, noise):
        batch, likelihoods, divergences = block(model, rows), [], []
        for n in _parts(n_samples, batch, model):
            terms = model(batch._replace(eps=noise(n)), by_draw=True)
            likelihoods.append(terms.log_likelihood.double())
            divergences.append(terms.kl.double().sum(-1))
        log_likelihood, kl = torch.cat(likelihoods), torch.cat(divergences)
        mean_kl, error_kl, error = kl.mean(0), _error(kl), _error(log_likelihood - kl)
        if model.has_kl:  # what is known needs no estimate
            mean_kl = model.posterior.kl(model.encode_posterior(batch)).double().sum(-1)
            error_kl, error = torch.zeros_like(mean_kl), _error(log_likelihood)
        mean = log_likelihood.mean(0)
        results = [mean - mean_kl, error]
        results += [-mean, _error(log_likelihood), mean_kl, error_kl]
        return map(to_array, results)

    fitted.map_noise(measure, random_state, *totals.values(), n_draws=n_samples)
    constant = fitted.log_jacobian
    totals["mean"] -= constant
    totals["reconstruction"] += constant
    rows, _, nats = block.costs()
    for name in ("mean", "reconstruction"):
        np.add.at(totals[name], rows, nats if name == "reconstruction" else -nats)
    for name in ("error", "reconstruction_error"):
        totals[name][rows[np.isinf(nats)]] = 0.0  # whatever the draws
    block.warn()
    return totals


def _warn_of_tails(pareto_k, n_samples):
    """Warn once if the weights of many rows have a heavy tail."""
    n_heavy = int((pareto_k > importance.LARGEST_K).sum())
    if n_heavy > MOST_HEAVY * len(pareto_k):
        warn(
            f"Pareto k-hat is above {importance.LARGEST_K} for {n_heavy} of {len(pareto_k)} rows: "
            "a few draws have most of the weight there, so that log_likelihood is likely too low "
            f"and its standard error too small. Got n_samples={n_samples}. Take more draws, for "
            f"example n_samples={10 * n_samples}; where k-hat stays large, take the value as a "
            "lower bound. return_pareto_k=True tells which rows they are.",
            UserWarning,
        )


def _error(draws):
    """Standard error of the mean over the first axis; NaN for one draw."""
    if len(draws) < 2:
        return torch.full_like(draws[0], math.nan)
    return draws.std(0) / math.sqrt(len(draws))


def _give(values, errors, per_sample, return_std_error):
    if not per_sample:
        n_rows, errors = len(values), math.nan
        if n_rows > 1 and np.isfinite(values).all():
            errors = float(np.std(values, ddof=1) / math.sqrt(n_rows))
        values = float(values.mean())
    return (values, errors) if return_std_error else values
