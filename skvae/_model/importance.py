"""Importance sampling of p(x): wider draws, the mean weight, and how far it can be trusted.

A draw of q(z|x) is z = T(eps) with eps from N(0, I). If q is narrower than the true posterior,
a few of its draws have nearly all the weight. Most samples contain none of these, so the
estimate is too low while its standard error is small. So a share a_k of the draws is made from
s_k eps, with s_k > 1. All draws together come from a mixture (Hesterberg, Weighted average
importance sampling and defensive mixture distributions, 1995), and the weight of each becomes

    w = p(x, z) / q(z|x) / r(eps),    r(eps) = sum_k a_k N(eps; 0, s_k^2 I) / N(eps; 0, I).

The number of draws of each scale is fixed. This is a stratified sample, whose mean weight is p(x)
on average. The mean of 1/r is known, too: it is 1, since q is a density. So 1/r is a control
variate (Owen & Zhou, Safe and effective importance sampling, 2000): if q is the true posterior,
w is p(x) / r, and w - p(x) (1/r - 1) has no variance. The draws are split into two halves A and B.
Each half estimates the coefficient p(x) for the other, which leaves the mean unbiased:

    p(x) ~ 1/2 [w_A (2 - v_B) + w_B (2 - v_A)],    w_A, v_A: means of w and 1/r over A.

The Pareto k-hat is the shape of a generalised Pareto distribution, fitted to the largest weights
(Vehtari, Simpson, Gelman, Yao & Gabry, Pareto smoothed importance sampling, arXiv:1507.02646).
Weights have finite moments of an order below 1/k. Above 0.7, do not trust their mean and its
standard error.
"""

import math
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]

# Pairs of a share of the draws, and c in their scale 1 + c / sqrt(L). The squared radius of noise
# in L dimensions has mean L and standard deviation sqrt(2 L), so that such a scale reaches equally
# far beyond q for every L. In 2 dimensions the scales are 2.1, 3.8 and 8.1.
WIDER = ((0.1, 1.5), (0.05, 4.0), (0.05, 10.0))

LARGEST_K = 0.7  # largest k-hat of weights whose mean can be trusted

# Pairs of a scale and its number of draws.
Strata = list[tuple[float, int]]


def strata(n_samples: int, n_components: int) -> Strata:
    """Return the scales and their numbers of draws, which are even except for the first scale.

    With fewer than 40 draws, all of them have scale 1.
    """
    wider = [
        (1 + c / math.sqrt(n_components), 2 * int(share * n_samples / 2)) for share, c in WIDER
    ]
    if min(n for _, n in wider) == 0:
        return [(1.0, n_samples)]
    return [(1.0, n_samples - sum(n for _, n in wider)), *wider]


def scales(of: Strata) -> Array:
    """The scale of each draw, (S,)."""
    return np.repeat([scale for scale, _ in of], [n for _, n in of])


def log_ratio(eps: torch.Tensor, of: Strata) -> torch.Tensor:
    """log r of draws eps (S, B, L), which are multiplied by their scales: (S, B), float64."""
    n_samples, square = sum(n for _, n in of), eps.double().square().sum(-1)
    if len(of) == 1:
        return torch.zeros_like(square)
    logs = [
        math.log(n / n_samples) - eps.shape[-1] * math.log(scale) + 0.5 * (1 - scale**-2) * square
        for scale, n in of
    ]
    return torch.logsumexp(torch.stack(logs), 0)


def log_mean(
    log_weight: torch.Tensor, log_ratio: torch.Tensor, of: Strata
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithm of the estimate of p(x), (B,), and its standard error, from draws (S, B).

    The error is the standard error of the estimate divided by the estimate (delta method). It is
    NaN for one draw.
    """
    largest = log_weight.max(0).values
    largest = torch.where(largest.isfinite(), largest, 0.0)  # a row may have only weights of 0
    weight, inverse = (log_weight - largest).exp(), (-log_ratio).exp()
    sizes = [n for _, n in of]
    n_samples = sum(sizes)

    def half(values: torch.Tensor, first: int) -> torch.Tensor:
        """Return the mean of every second draw, in which each scale counts by its share."""
        own = [draws[first::2].mean(0) for draws in values.split(sizes)]
        return torch.stack([n / n_samples * mean for n, mean in zip(sizes, own, strict=True)]).sum(
            0
        )

    if len(of) == 1:
        mean = weight.mean(0)
    else:  # the mean is above 0, since 1/r is at most 1.25
        (w_a, v_a), (w_b, v_b) = ((half(weight, i), half(inverse, i)) for i in (0, 1))
        mean = 0.5 * (w_a * (2 - v_b) + w_b * (2 - v_a))
    if n_samples < 2:
        return largest + mean.log(), torch.full_like(mean, math.nan)
    rest = (weight / mean - inverse).split(sizes)
    variances = [n * draws.var(0) for n, draws in zip(sizes, rest, strict=True)]
    return largest + mean.log(), torch.stack(variances).sum(0).sqrt() / n_samples


def pareto_k(log_weight: Array) -> Array:
    """Pareto k-hat of each row, (B,), from the logarithms of its weights, (S, B).

    The largest min(S / 5, 3 sqrt(S)) weights are the tail. The result is NaN for fewer than 25
    draws, whose tail has fewer than 5, and 0 if all weights of the tail are the same.
    """
    n_samples, n_rows = log_weight.shape
    n_tail = min(n_samples // 5, math.ceil(3 * math.sqrt(n_samples)))
    if n_tail < 5:
        return np.full(n_rows, np.nan)
    top = np.partition(log_weight, n_samples - n_tail - 1, axis=0)[n_samples - n_tail - 1 :]
    top = np.sort(top, axis=0)
    weight = np.exp(top - np.where(np.isfinite(top[-1]), top[-1], 0.0))
    excess = weight[1:] - weight[0]
    same = excess[-1] <= 1e-12  # equal up to rounding, since the largest weight is 1
    excess[:, same] = np.linspace(0.5, 1, n_tail)[:, None]  # any tail: k is set to 0 below
    k = fit_pareto(np.maximum(excess, 1e-200))
    # The fit of a short tail varies, so k is moved towards 0.5, which counts as ten weights.
    k = (n_tail * k + 10 * 0.5) / (n_tail + 10)
    return np.where(same, 0.0, k)


def fit_pareto(x: Array) -> Array:
    """Shape k of generalised Pareto distributions, (B,), from sorted values x > 0, (N, B).

    The density is 1 / sigma (1 + k x / sigma)^(-1 / k - 1). With b = -k / sigma, k is the mean of
    log(1 - b x), and b is the mean over its posterior of the profile likelihood, under a weak
    prior, on a grid (Zhang & Stephens, A new and efficient estimation method for the
    generalized Pareto distribution, Technometrics 51, 2009, eq. 6-8).
    """
    n = len(x)
    n_grid = 30 + int(math.sqrt(n))
    quartile = x[int(n / 4 + 0.5) - 1]
    points = 1 - np.sqrt(n_grid / (np.arange(n_grid) + 0.5))
    grid = 1 / x[-1] + points[:, None] / (3 * quartile)  # (G, B)
    profile = np.empty_like(grid)
    for j, b in enumerate(grid):
        k = np.log1p(-b * x).mean(0)
        profile[j] = n * (np.log(-b / k) - k - 1)
    weight = np.exp(profile - profile.max(0))
    b = (weight * grid).sum(0) / weight.sum(0)
    return np.log1p(-b * x).mean(0)
