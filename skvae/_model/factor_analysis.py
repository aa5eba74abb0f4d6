"""Factor analysis: the linear model that a network with a linear part is to beat.

    y = mu + W z + noise,    z ~ N(0, I),    noise ~ N(0, diag(v)),

has the posterior N(A (y - mu), T) with T = (I + W' V^-1 W)^-1 and A = T W' V^-1, V = diag(v). EM
maximises its likelihood (Rubin & Thayer, EM algorithms for ML factor analysis, 1982): for rows of
covariance S,

    W = S A' (T + A S A')^-1,    r = diag(S - W A S),    v = r,

after which W is multiplied by a Cholesky factor of T + A S A', the covariance that z would have
if it were free (the parameter expansion of Liu, Rubin & Wu, Parameter expansion to accelerate
EM, 1998).

Maximum likelihood is a poor guide where rows are few: a noise variance falls to 0 where a component
has one column for itself (a Heywood case). Three numbers guard against that.

- The noise variance is shrunk towards the variance s_d of its column by `pseudo_rows` a,
  v_d = (n_d r_d + a s_d) / (n_d + a), the mode under an inverse gamma prior (Martin & McDonald,
  Bayesian estimation in unrestricted factor analysis: a treatment for Heywood cases, 1975). The
  column's variance is known as well as that of n_d = 2 n / (kurtosis - 1) rows, at most n, of a
  normal column. A column with three values other than 0 has an n_d of about six, for any n.
- The covariance is inflated by (n + 1) / (n - k - 3), at most 3. A normal distribution with the
  mean and the variance of n rows is too narrow for a new one, by (n + 1) / (n - 3) where one column
  is fitted alone, and k components cost k degrees of freedom more.
- The number of components k, from 0 (independent columns) on, and a are chosen by the
  log-likelihood of rows left out, in folds. Probabilistic PCA is a candidate, too (Tipping &
  Bishop, Probabilistic principal component analysis, 1999). Its noise is the same in all columns,
  in the units of the table, so that it learns one number in place of many.

Few rows do not show which candidate is the best: with other rows, another one would have the
highest log-likelihood. So the rows left out are drawn anew many times (the Bayesian bootstrap,
Rubin, 1981), and the weight of each size is the share of the draws in which it is the best. The
covariances are averaged with these weights, as pseudo-BMA+ averages predictions (Yao, Vehtari,
Simpson & Gelman, Using stacking to average Bayesian predictive distributions, 2018). The result is
the factor analysis of the average.

With missing values, S is the covariance of the rows as the model completes them, and each row has
its own posterior, given the values that it has. An encoder that is linear in the values and in the
mask is fitted to these posteriors by ridge regression.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from skvae._model.evidence import is_better

N_FOLDS = 5
LEAST_KEPT = 0.4  # share of the weight of all rows that the training rows of a fold need
PSEUDO_ROWS = 0.0, 0.1, 0.5, 2.0, 8.0  # candidates for a
N_DRAWS = 400  # draws of the bootstrap
N_UNITS = 1000  # most rows or groups that are drawn separately; with more, some are drawn as one
COVERED = 0.9  # share of the draws that the averaged sizes win together
N_STEPS, N_LAST_STEPS = 30, 300  # most steps of EM: to compare sizes, and for the result
# EM ends when a step changes all noise variances by less than this share of them.
CONVERGED = 1e-6
START = 0.1  # standard deviation of the first loadings
# Most multiplications of a choice; and, where values are missing, most values times squared
# components.
AFFORDED, HOLED = 2**30, 2**25
# With more loadings than this (columns times components), sizes are fitted one by one, since
# padding would cost more.
WIDE = 2**11
# Largest ratio of two columns' units: above it, the noise of PCA would be lost in rounding.
FARTHEST_UNITS = 1e6
# Standard errors by which a size must beat independent columns on the rows left out.
N_ERRORS = 2.0
HIGHEST_INFLATION = 3.0
RIDGE = 1.0  # rows that the encoder of complete rows counts for, where values are missing


class Size(NamedTuple):
    """A candidate model; rows left out decide between the candidates."""

    n_components: int
    pseudo_rows: float = 0.0
    is_pca: bool = False  # whether the noise is the same in all columns, in the table's units


# Sizes and their weights, whose sum is 1.
Choice = tuple[tuple[Size, float], ...]
ALONE: Choice = ((Size(0), 1.0),)  # independent columns


class Noise(NamedTuple):
    """Constraints on the noise variance."""

    floor: torch.Tensor  # (D,) or (1,)
    kind: str | None  # "per_feature", "shared", or None: the variance is the floor
    units: torch.Tensor | None = None  # units of the columns (D,); None: PCA is no candidate


class Factors(NamedTuple):
    """Factor analysis, rotated so that the posterior's components are independent."""

    mean: torch.Tensor  # mu (D,)
    loading: torch.Tensor  # W (D, L), the strongest component first
    variance: torch.Tensor  # v (D,)
    # The posterior's mean and log std are linear in [y, mask, 1]: (L, 2D + 1). Without missing
    # values the coefficients of the mask are 0.
    encode: torch.Tensor
    log_std: torch.Tensor


def choose(
    y: torch.Tensor,
    n_components: int,
    noise: Noise,
    weight: torch.Tensor | None = None,
    group: torch.Tensor | None = None,
) -> Choice:
    """Choose the sizes, of at most `n_components`, under which rows left out are most likely.

    Rows y (B, D) are float64 on the CPU, NaN where a value is missing. `weight` (B,) is how much
    each row counts; only ratios matter. Rows of one `group` (B,), an integer, are left out
    together, if there are other groups.
    """
    y, noise = without_constants(y, noise)
    n_rows = len(y)
    weight = torch.ones_like(y[:, 0]) if weight is None else weight / weight.mean()
    rows = torch.arange(n_rows, device=y.device)
    sizes, n_folds = _affordable(y, n_components, noise)
    group = rows if group is None else group
    kept = _leave_out(weight, group, n_folds)
    judged = group[(kept == 0).any(0) & (weight > 0)]
    if len(judged.unique()) < 2:  # a standard error needs two groups
        group, kept = rows, _leave_out(weight, rows, n_folds)
    if not len(kept):
        return ALONE
    rows_out, of_sizes = [], []
    for own, found in zip(kept, maximise(y, sizes, noise, kept, N_STEPS), strict=True):
        out = torch.nonzero((own == 0) & (weight > 0)).squeeze(1)
        rows_out.append(out)
        of_sizes.append(torch.stack([-log_likelihood(y[out], *each) for each in found]))
    out, loss = torch.cat(rows_out), torch.cat(of_sizes, dim=1)
    # A size whose likelihood is not finite is not chosen.
    finite = loss.isfinite().all(1)
    of_rows = weight[out], group[out]
    better = [
        size
        for size, own, good in zip(sizes, loss, finite, strict=True)
        if size == sizes[0] or (good and is_better(loss[0], own, N_ERRORS, *of_rows))
    ]
    indices = [sizes.index(size) for size in better]
    share = _share_of_draws(loss[indices].nan_to_num(nan=torch.inf), *of_rows)
    return _most_frequent(better, share)


def _most_frequent(sizes: Sequence[Size], share: Sequence[float]) -> Choice:
    """Return the sizes with the largest shares, `COVERED` together, and their weights."""
    order = np.argsort(share, kind="stable")[::-1]
    n = 1 + int(np.searchsorted(np.cumsum([share[i] for i in order]), COVERED))
    chosen = sorted(order[:n])
    total = sum(share[i] for i in chosen)
    return tuple((sizes[i], share[i] / total) for i in chosen)


def _leave_out(weight: torch.Tensor, group: torch.Tensor, n_folds: int) -> torch.Tensor:
    """Return the training weight of each row, for each fold that is left out, (F, B).

    A fold is skipped if its rows make up most of the weight.
    """
    fold = _fold(group, N_FOLDS)
    folds = torch.arange(min(n_folds, int(fold.max()) + 1), device=weight.device)
    kept = weight * (fold != folds.unsqueeze(1))
    return kept[(kept.sum(1) >= LEAST_KEPT * weight.sum()) & ((kept > 0).sum(1) > 1)]


def _affordable(y: torch.Tensor, n_components: int, noise: Noise) -> tuple[list[Size], int]:
    """Return the sizes to choose from, independent columns first, and the number of folds.

    There are fewer of both if the choice would take too long.
    """
    n_rows, n_features = y.shape
    n_varying = int(_varies(y).sum())
    most = min(n_components, n_varying, n_rows - 2)
    pseudo_rows: Sequence[float] = PSEUDO_ROWS if noise.kind is not None else (0.0,)
    has_holes = bool(y.isnan().any())
    if has_holes:
        most = min(most, math.isqrt(HOLED // y.numel()))
    step = 4 * N_STEPS * n_features * (n_rows * most if has_holes else min(n_rows, n_features))

    def cost(n_folds: int) -> int:
        return n_folds * step * sum(size.n_components for size in sizes)

    path = _path(most)
    sizes = [Size(k, a) for k in path if k for a in pseudo_rows]
    if has_holes or cost(N_FOLDS) > AFFORDED:  # fewer numbers of components and of pseudo-rows
        path = sorted({0, *(2**i for i in range(most.bit_length())), most})
        few = pseudo_rows[2::2] or pseudo_rows
        sizes = [Size(k, a) for k in path if k for a in few]
        if cost(1) > AFFORDED:
            sizes = [Size(k, few[0]) for k in path if k]
    n_folds = max((n for n in (N_FOLDS, 3, 1) if cost(n) <= AFFORDED), default=1)
    if has_holes:
        return [Size(0), *sizes], min(n_folds, 3)
    if _has_pca(noise) and min(n_rows, n_features) ** 3 <= AFFORDED:
        sizes += [Size(k, is_pca=True) for k in path if k < n_varying]
    return [Size(0), *sizes], n_folds


def _has_pca(noise: Noise) -> bool:
    """Whether PCA in the units of the table is a further candidate, and can be computed."""
    if noise.units is None or not len(noise.units):
        return False
    return bool(noise.units.max() <= FARTHEST_UNITS * noise.units.min())


def _share_of_draws(loss: torch.Tensor, weight: torch.Tensor, group: torch.Tensor) -> list[float]:
    """Return the share of bootstrap draws in which each of the losses (G, B) has the least mean.

    The rows of a group are drawn as one. If there are many groups, some are merged.
    """
    rng = np.random.default_rng(0)
    _, unit = np.unique(group.numpy(), return_inverse=True)
    n_units = int(unit.max()) + 1
    if n_units > N_UNITS:
        unit = (rng.permutation(n_units) % N_UNITS)[unit]
        n_units = N_UNITS
    total = loss.new_zeros(len(loss), n_units)
    total.index_add_(1, torch.from_numpy(unit), weight * loss)
    drawn = torch.from_numpy(rng.standard_exponential((N_DRAWS, n_units)))
    best = (total @ drawn.T).argmin(0)
    return (torch.bincount(best, minlength=len(loss)) / N_DRAWS).tolist()


def analyse(
    y: torch.Tensor, choice: Choice, noise: Noise, weight: torch.Tensor | None = None
) -> Factors:
    """Fit factor analysis of the chosen sizes to rows y (B, D), which are as for `choose`."""
    varies = _varies(y)
    if varies.any() and not varies.all():
        own, of_own = _part(y, noise, varies)
        return _with_constants(analyse(own, choice, of_own, weight), y, noise, varies)
    most, has_pca = len(y) - 1, _has_pca(noise)
    # A column that did not vary in the rows of the choice may have other units.
    sizes = [
        Size(min(k, most), pseudo_rows, is_pca and has_pca)
        for (k, pseudo_rows, is_pca), _ in choice
    ]
    weight = torch.ones_like(y[:, 0]) if weight is None else weight
    (found,) = maximise(y, sizes, noise, weight[None], N_LAST_STEPS)
    mean, loading, variance = _average(found, [share for _, share in choice], noise)
    strength, turn = torch.linalg.eigh(loading.T @ (loading / variance.unsqueeze(1)))
    strength, loading = strength.clamp(min=0).flip(0), loading @ turn.flip(1)
    projection = (loading / variance.unsqueeze(1)).T / (1 + strength).unsqueeze(1)
    zero = torch.zeros_like(projection)
    encode = torch.cat([projection, zero, -(projection @ mean).unsqueeze(1)], dim=1)
    log_std = torch.cat([zero, zero, -0.5 * strength.log1p().unsqueeze(1)], dim=1)
    if y.isnan().any() and len(strength):
        encode, log_std = _encode_holes(y, mean, loading, variance, encode, log_std)
    return Factors(mean, loading, variance, encode, log_std)


# Mean (D,), loading (D, k) and noise variance (D,).
Parameters = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def maximise(
    y: torch.Tensor, sizes: Sequence[Size], noise: Noise, weight: torch.Tensor, n_steps: int
) -> list[list[Parameters]]:
    """Fit each size for each row of `weight` (F, B), and inflate the covariances for new rows.

    The weights are how much the rows y (B, D) count; 0 leaves a row out.
    """
    if y.isnan().any():
        found = [
            [_maximise_holes(y[own > 0], own[own > 0], size, noise, n_steps) for size in sizes]
            for own in weight
        ]
    else:
        own = [size for size in sizes if not size.is_pca]
        of_own = _maximise_complete(y, weight, own, noise, n_steps) if own else [[]] * len(weight)
        pca = [size for size in sizes if size.is_pca]
        of_pca = [_principal(y, each, pca, noise) if pca else [] for each in weight]
        indices = [(own + pca).index(size) for size in sizes]
        both = [a + b for a, b in zip(of_own, of_pca, strict=True)]
        found = [[each[i] for i in indices] for each in both]
    if noise.kind is None:
        return found
    inflated = []
    for n_rows, each in zip(_n_rows(weight).tolist(), found, strict=True):
        n_least = (n_rows + 1) / HIGHEST_INFLATION
        factors = [(n_rows + 1) / max(n_rows - k - 3, n_least) for k, *_ in sizes]
        inflated.append(
            [(m, math.sqrt(f) * w, f * v) for f, (m, w, v) in zip(factors, each, strict=True)]
        )
    return inflated


def _n_rows(weight: torch.Tensor) -> torch.Tensor:
    """Number of rows of equal weight that are worth as much, (F,) (Kish, Survey sampling, 1965)."""
    return weight.sum(-1).square() / weight.square().sum(-1)


def log_likelihood(
    y: torch.Tensor, mean: torch.Tensor, loading: torch.Tensor, variance: torch.Tensor
) -> torch.Tensor:
    """log p(y) of the values that rows (B, D) have, in nats, (B,)."""
    there = ~y.isnan()
    y = torch.where(there, y - mean, 0.0)
    n_components = loading.shape[1]
    weighted = loading / variance.unsqueeze(1)
    terms = y.square() / variance + variance.log() + math.log(2 * math.pi)
    total = torch.where(there, terms, 0.0).sum(1)
    if n_components:
        precision = torch.eye(n_components, dtype=y.dtype, device=y.device)
        if there.all():
            factor = torch.linalg.cholesky(precision + loading.T @ weighted)
        else:
            squares = torch.einsum("dk,dl->dkl", loading, weighted).flatten(1)
            of_row = (there.to(y.dtype) @ squares).unflatten(1, (n_components, n_components))
            factor = torch.linalg.cholesky(precision + of_row)
        found = torch.linalg.solve_triangular(factor, (y @ weighted).unsqueeze(2), upper=False)
        total = total - found.square().sum((1, 2))
        total = total + 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * total


# --- EM -----------------------------------------------------------------------------------


def _shrink(
    residual: torch.Tensor,
    square: torch.Tensor,
    rows: torch.Tensor,
    pseudo_rows: torch.Tensor | float,
    noise: Noise,
) -> torch.Tensor:
    """Return noise variances (..., D): `residual` shrunk towards `square`, the columns' variances.

    `residual` counts as `rows` rows, and `square` as `pseudo_rows`.
    """
    floor, kind, _ = noise
    if kind is None:
        return floor.expand_as(residual)
    varies = square > 0
    variance = (rows * residual + pseudo_rows * square) / (rows + pseudo_rows).clamp(min=1e-300)
    if kind == "shared":
        n_varying = varies.sum(-1, keepdim=True).clamp(min=1)
        variance = (variance * varies).sum(-1, keepdim=True) / n_varying
        variance = variance.expand(*variance.shape[:-1], residual.shape[-1])
    # A little above the floor, since the model learns the logarithm of the difference.
    return torch.maximum(variance, 1.01 * floor)


def _good_rows(n_rows: torch.Tensor, square: torch.Tensor, fourth: torch.Tensor) -> torch.Tensor:
    """Number of rows of a normal column that determine its variance as well, (..., D)."""
    kurtosis = fourth / square.square().clamp(min=1e-300)
    return n_rows * (2 / (kurtosis - 1).clamp(min=2.0))


def _start(n_components: int, n_features: int) -> torch.Tensor:
    """Return the first loadings (D, k); a component starts the same for every k."""
    rng = np.random.default_rng(0)
    return START * torch.from_numpy(rng.standard_normal((n_components, n_features))).T


class _Moments(NamedTuple):
    """Moments of complete rows in F folds, as EM needs them."""

    mean: torch.Tensor  # (F, D)
    square: torch.Tensor  # the variances (F, 1, D)
    n_rows: torch.Tensor  # rows that each variance rests on, by `_good_rows` (F, 1, D)
    times: Callable[[torch.Tensor], torch.Tensor]  # multiplies the covariances by (F, D, K)


def _moments(y: torch.Tensor, weight: torch.Tensor) -> _Moments:
    """Compute the moments of rows y (B, D) with weights (F, B), one fold after the other."""
    n_folds, (n_rows, n_features) = len(weight), y.shape
    share = weight / weight.sum(1, keepdim=True)
    mean = share @ y
    square, fourth = torch.empty_like(mean), torch.empty_like(mean)
    covariance = y.new_empty(n_folds, n_features, n_features) if n_features <= n_rows else None
    for f in range(n_folds):
        centred = y - mean[f]
        if covariance is not None:
            covariance[f] = centred.T @ (centred * share[f].unsqueeze(1))
        squared = centred.square_()
        square[f] = share[f] @ squared
        fourth[f] = share[f] @ squared.square_()
    rows = _good_rows(_n_rows(weight).unsqueeze(1), square, fourth)

    def times(flat: torch.Tensor) -> torch.Tensor:
        if covariance is not None:
            return covariance @ flat
        # With fewer rows than columns the covariance is larger than the rows, so it is not made.
        scores = (y @ flat - mean.unsqueeze(1) @ flat) * share.unsqueeze(2)  # (F, B, K)
        return y.T @ scores - mean.unsqueeze(2) * scores.sum(1, keepdim=True)

    return _Moments(mean, square.unsqueeze(1), rows.unsqueeze(1), times)


def _maximise_complete(
    y: torch.Tensor, weight: torch.Tensor, sizes: Sequence[Size], noise: Noise, n_steps: int
) -> list[list[Parameters]]:
    """Run EM on complete rows y (B, D), for each fold (F, B) and each size."""
    moments = _moments(y, weight)
    if y.shape[1] * max(size.n_components for size in sizes) <= WIDE:
        return _maximise_moments(moments, sizes, noise, n_steps)
    each = [_maximise_moments(moments, [size], noise, n_steps) for size in sizes]
    return [[of_size[fold][0] for of_size in each] for fold in range(len(weight))]


def _maximise_moments(
    moments: _Moments, sizes: Sequence[Size], noise: Noise, n_steps: int
) -> list[list[Parameters]]:
    """Run EM for all folds F and sizes G at once, padded to the most components."""
    mean, square, rows, times = moments
    (n_folds, n_features), n_sizes = mean.shape, len(sizes)
    wide = max(size.n_components for size in sizes)
    loading = _start(wide, n_features).expand(n_folds, n_sizes, -1, -1).clone()
    for place, size in enumerate(sizes):
        loading[:, place, :, size.n_components :] = 0.0
    pseudo_rows = mean.new_tensor([[size.pseudo_rows] for size in sizes])
    shrink = functools.partial(
        _shrink, square=square, rows=rows, pseudo_rows=pseudo_rows, noise=noise
    )
    alone = shrink(square).expand(-1, n_sizes, -1)
    loading, variance = _iterate(times, square, loading, shrink, n_steps)
    return [
        [
            (mean[f], loading[f, g, :, :k], variance[f, g] if k else alone[f, g])
            for g, (k, *_) in enumerate(sizes)
        ]
        for f in range(n_folds)
    ]


def _iterate(
    times: Callable[[torch.Tensor], torch.Tensor],
    square: torch.Tensor,
    loading: torch.Tensor,
    shrink: Callable[[torch.Tensor], torch.Tensor],
    n_steps: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run EM from loadings (F, G, D, k); return loadings and noise variances (F, G, D).

    `times` multiplies (F, D, G k) by covariances, whose diagonals are `square` (F, 1, D).
    """
    n_sizes, wide = loading.shape[1], loading.shape[3]
    variance = shrink(square / 2).expand(loading.shape[:3])
    identity = torch.eye(wide, dtype=loading.dtype, device=loading.device)
    for _ in range(n_steps if wide else 0):
        weighted = loading / variance.unsqueeze(3)
        spread = torch.linalg.inv(identity + loading.mT @ weighted)
        projection = weighted @ spread  # A', (F, G, D, k)
        product = times(projection.transpose(1, 2).flatten(2))
        cross = product.unflatten(2, (n_sizes, wide)).transpose(1, 2)  # S A'
        # Without the last term, rounding would make the matrix indefinite where noise is almost 0.
        moment = spread + projection.mT @ cross + 1e-9 * identity
        loading = torch.linalg.solve(moment, cross.mT).mT
        residual = square - (loading * cross).sum(3)
        before = variance
        variance = shrink(residual.clamp(min=0))
        loading = loading @ torch.linalg.cholesky(moment)
        if bool(((variance - before).abs() <= CONVERGED * variance).all()):
            break
    return loading, variance


def _principal(
    y: torch.Tensor, weight: torch.Tensor, sizes: Sequence[Size], noise: Noise
) -> list[Parameters]:
    """Fit probabilistic PCA in the units of the table to complete rows (B, D), weights (B,)."""
    assert noise.units is not None
    units = noise.units / noise.units.max()  # so that their squares are finite
    share = weight / weight.sum()
    mean = share @ y
    rows = (y - mean) * units * share.sqrt().unsqueeze(1)
    n_varying = int((rows != 0).any(0).sum())
    wide = rows.shape[1] > rows.shape[0]
    strength, turn = torch.linalg.eigh(rows @ rows.mT if wide else rows.mT @ rows)
    strength, turn = strength.clamp(min=0).flip(0), turn.flip(1)
    if wide:
        turn = rows.mT @ turn / strength.sqrt().clamp(min=1e-150)
    found = []
    for k, *_ in sizes:
        shared = (strength.sum() - strength[:k].sum()).clamp(min=0) / max(1, n_varying - k)
        loading = turn[:, :k] * (strength[:k] - shared).clamp(min=0).sqrt()
        variance = (shared / units.square()).maximum(1.01 * noise.floor)
        found.append((mean, loading / units.unsqueeze(1), variance))
    return found


def _average(found: Sequence[Parameters], share: Sequence[float], noise: Noise) -> Parameters:
    """Fit factor analysis to the mean covariance of models, which count as `share` says."""
    if len(found) == 1:
        return found[0]
    shares = found[0][0].new_tensor(share)
    mean, noises = (
        torch.stack(parts, dim=1) @ shares for parts in list(zip(*found, strict=True))[::2]
    )
    of_all = torch.cat(
        [s**0.5 * loading for s, (_, loading, _) in zip(share, found, strict=True)], dim=1
    )
    square = noises + of_all.square().sum(1)
    most = max(loading.shape[1] for _, loading, _ in found)

    def times(flat: torch.Tensor) -> torch.Tensor:
        return of_all @ (of_all.mT @ flat) + noises.unsqueeze(1) * flat

    loading, variance = _iterate(
        times,
        square.expand(1, 1, -1),
        _start(most, len(mean))[None, None],
        lambda residual: _shrink(residual, square, square, 0.0, noise),
        N_LAST_STEPS,
    )
    return mean, loading[0, 0], variance[0, 0]


def _maximise_holes(
    y: torch.Tensor, weight: torch.Tensor, size: Size, noise: Noise, n_steps: int
) -> Parameters:
    """Run EM on rows with missing values, where each row has its own posterior."""
    there = ~y.isnan()
    own = weight.unsqueeze(1) * there
    total = own.sum(0).clamp(min=1e-300)
    y = torch.where(there, y, 0.0)
    mean = (weight @ y) / total
    square = (own * (y - mean).square()).sum(0) / total
    fourth = (own * (y - mean).pow(4)).sum(0) / total
    counts = own.sum(0).square() / own.square().sum(0).clamp(min=1e-300)
    rows = _good_rows(counts, square, fourth)
    n, k = len(y), size.n_components
    if k == 0:
        return mean, y.new_zeros(y.shape[1], 0), _shrink(square, square, rows, 0.0, noise)
    loading = _start(k, y.shape[1])
    loading[square == 0] = 0.0
    variance = _shrink(square / 2, square, rows, size.pseudo_rows, noise)
    mask = there.to(y.dtype)
    for _ in range(n_steps):
        z, spread = _posterior(y, mask, mean, loading, variance)
        # These are moments of [z, 1], so that the mean is learned as one more loading.
        one = torch.ones(n, 1, dtype=y.dtype, device=y.device)
        wide = torch.cat([z, one], dim=1)
        moments = wide.unsqueeze(2) * wide.unsqueeze(1)
        moments[:, :k, :k] += spread
        of_column = (own.T @ moments.flatten(1)).unflatten(1, (k + 1, k + 1))
        of_column = of_column + 1e-9 * torch.eye(k + 1, dtype=y.dtype, device=y.device)
        cross = (own * y).T @ wide
        found = torch.linalg.solve(of_column, cross.unsqueeze(2)).squeeze(2)
        residual = (own * y.square()).sum(0) - (found * cross).sum(1)
        before = variance
        variance = _shrink((residual / total).clamp(min=0), square, rows, size.pseudo_rows, noise)
        loading, mean = found[:, :k], found[:, k]
        moment = (weight @ moments[:, :k, :k].flatten(1) / weight.sum()).unflatten(0, (k, k))
        loading = loading @ torch.linalg.cholesky(moment)
        if bool(((variance - before).abs() <= CONVERGED * variance).all()):
            break
    return mean, loading, variance


def _posterior(
    y: torch.Tensor,
    mask: torch.Tensor,
    mean: torch.Tensor,
    loading: torch.Tensor,
    variance: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (B, k) and covariance (B, k, k) of z, given rows (B, D) with a mask."""
    k = loading.shape[1]
    weighted = loading / variance.unsqueeze(1)
    squares = (loading.unsqueeze(2) * weighted.unsqueeze(1)).flatten(1)
    precision = (mask @ squares).unflatten(1, (k, k)) + torch.eye(k, dtype=y.dtype, device=y.device)
    spread = torch.linalg.inv(precision)
    return (spread @ ((mask * (y - mean)) @ weighted).unsqueeze(2)).squeeze(2), spread


def _encode_holes(
    y: torch.Tensor,
    mean: torch.Tensor,
    loading: torch.Tensor,
    variance: torch.Tensor,
    encode: torch.Tensor,
    log_std: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit the linear encoders of complete rows to the posteriors of rows with missing values.

    The encoder sees a 0 in place of a missing value.
    """
    mask = (~y.isnan()).to(y.dtype)
    y = y.nan_to_num(nan=0.0)
    z, _ = _posterior(y, mask, mean, loading, variance)
    precision = 1 + mask @ (loading.square() / variance.unsqueeze(1))
    one = torch.ones(len(y), 1, dtype=y.dtype, device=y.device)
    inputs = torch.cat([y, 1 - mask, one], dim=1)
    target = torch.cat([z, -0.5 * precision.log()], dim=1)
    first = torch.cat([encode, log_std]).T
    gram = inputs.T @ inputs + RIDGE * torch.eye(inputs.shape[1], dtype=y.dtype, device=y.device)
    moved = first + torch.linalg.solve(gram, inputs.T @ (target - inputs @ first))
    # Turn coefficients of 1 - mask into coefficients of the mask.
    n_features = y.shape[1]
    holes = moved[n_features : 2 * n_features]
    moved[-1] += holes.sum(0)
    moved[n_features : 2 * n_features] = -holes
    return moved.T.tensor_split(2)


# --- rows and sizes -----------------------------------------------------------------------


def without_constants(y: torch.Tensor, noise: Noise) -> tuple[torch.Tensor, Noise]:
    """Return the columns of rows y (B, D) that vary, if there are any, and their noise.

    Constant columns are no part of the model's density, so they must not decide what is best.
    """
    varies = _varies(y)
    return _part(y, noise, varies) if varies.any() else (y, noise)


def _part(y: torch.Tensor, noise: Noise, varies: torch.Tensor) -> tuple[torch.Tensor, Noise]:
    floor = noise.floor.expand(len(varies))[varies]
    units = None if noise.units is None else noise.units[varies]
    return y[:, varies], Noise(floor, noise.kind, units)


def _with_constants(
    factors: Factors, y: torch.Tensor, noise: Noise, varies: torch.Tensor
) -> Factors:
    """Add the constant columns, which do not depend on z, to the factors of those that vary."""
    n_features = len(varies)
    floor = noise.floor.expand(n_features)
    mean = y.nanmean(0).nan_to_num(nan=0.0)
    loading = y.new_zeros(n_features, factors.loading.shape[1])
    variance = (floor if noise.kind is None else 1.01 * floor).clone()
    mean[varies], loading[varies], variance[varies] = factors[:3]
    # The inputs are y, the mask, and 1 for the bias.
    seen = torch.cat([varies, varies, varies.new_ones(1)])
    encoders = []
    for part in (factors.encode, factors.log_std):
        encoder = y.new_zeros(len(part), len(seen))
        encoder[:, seen] = part
        encoders.append(encoder)
    return Factors(mean, loading, variance, *encoders)


def _varies(y: torch.Tensor) -> torch.Tensor:
    """Whether the values of each column differ, (D,)."""
    low = torch.where(y.isnan(), torch.inf, y).amin(0)
    return torch.where(y.isnan(), -torch.inf, y).amax(0) > low


def _path(most: int) -> list[int]:
    """Return the numbers of components to try: each one, then in steps of about a third."""
    path = [0]
    while path[-1] < most:
        path.append(min(most, path[-1] + max(1, path[-1] // 3)))
    return path


def _fold(group: torch.Tensor, n_folds: int) -> torch.Tensor:
    """Return the fold of each row (B,); groups get folds at random, by a fixed seed."""
    names, place = np.unique(group.numpy(), return_inverse=True)
    order = np.random.default_rng(0).permutation(len(names))
    return torch.from_numpy(order[place] % min(n_folds, len(names)))
