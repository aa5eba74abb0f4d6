"""Likelihoods of categories: one of a few values, without order.

A column of K categories becomes K features, of which one is 1 and the others are 0. The decoder
gives a number a_k for each. For each column, the log-probability is

    log p(x|z) = sum_k x_k (a_k - log sum_j exp a_j),

which is that of a categorical distribution, and minus its cross-entropy.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from skvae._backend.tensors import Array, to_tensor
from skvae._data.statistics import Moments
from skvae._data.words import UNNAMED, Labels
from skvae.likelihoods._base import Likelihood, Pullback, draw_uniform

LEAST_SHARE = 1e-3  # least share of a category at the start


@dataclass(frozen=True)
class Categorical(Likelihood):
    """Categories: values of any kind without order, such as strings.

    `fit` learns the categories of each column, as `OneHotEncoder` does; a pandas Categorical,
    a polars Enum and a dictionary of pyarrow bring theirs. The score is a log-probability.

    Parameters
    ----------
    handle_unknown : {"warn", "error"}, default="warn"
        How to handle a category that `fit` has not seen. "warn" warns once for a table, so that
        folds with rare categories can be scored. The encoder takes the category as missing. Its
        score is that of the rarest category of `fit`, or lower: at least log(n + 1) nats below 0,
        with n the training rows that have a value in the column. "error" raises a ValueError.

    n_categories : tuple of int, default=()
        Number of categories of each column. `fit` sets it: leave it at the default.

    Raises
    ------
    ValueError
        If `handle_unknown` is neither.

    Examples
    --------
    >>> from skvae.likelihoods import Categorical
    >>> Categorical(handle_unknown="error")
    Categorical(handle_unknown='error')
    """

    # A name for pickles and links that survives when files move.
    __module__ = "skvae.likelihoods"

    handle_unknown: str = "warn"
    n_categories: tuple[int, ...] = ()

    is_mass: ClassVar[bool] = True
    initialises_all: ClassVar[bool] = True
    is_foreign: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise an error if `handle_unknown` is not valid."""
        if self.handle_unknown not in ("warn", "error"):
            raise ValueError(
                "The handle_unknown of a Categorical must be 'warn' or 'error'. Got "
                f"{self.handle_unknown!r} instead."
            )

    def __repr__(self) -> str:
        """Return the representation, without the numbers that `fit` sets."""
        named = "" if self.handle_unknown == "warn" else f"handle_unknown={self.handle_unknown!r}"
        return f"Categorical({named})"

    # --- columns and features ---

    def check_support(self, X: Array, labels: Labels = UNNAMED) -> Array:
        """Turn columns of codes into zeros and ones; a NaN code gives NaN features."""
        own = np.concatenate([np.arange(n) for n in self.n_categories])
        hot = (np.repeat(X, self.n_categories, axis=1) == own).astype(np.float64)
        missing = np.isnan(X)
        if missing.any():
            hot[np.repeat(missing, self.n_categories, axis=1)] = np.nan
        return hot

    def give_back(self, X: Array, *, drawn: bool) -> Array:
        """Return the code of the largest feature of each column; NaN if the features are NaN."""
        pieces = np.split(X, np.cumsum(self.n_categories)[:-1], axis=1)
        codes = np.stack([piece.argmax(axis=1) for piece in pieces], axis=1).astype(np.float64)
        missing = np.stack([np.isnan(piece[:, 0]) for piece in pieces], axis=1)
        codes[missing] = np.nan
        return codes

    def columns_of(self, n_columns: int) -> Array:
        """Return the index of each feature's column."""
        return np.repeat(np.arange(n_columns), self.n_categories)

    def categorical(self, n_columns: int) -> Mapping[int, Any]:
        """Return all columns, each with this likelihood."""
        return dict.fromkeys(range(n_columns), self)

    def with_categories(self, n_categories: Mapping[int, int]) -> Any:
        """Return the same likelihood, for columns with these numbers of categories."""
        return replace(self, n_categories=tuple(n_categories[i] for i in sorted(n_categories)))

    # --- features ---

    def units(self, columns: Moments) -> tuple[Array, Array]:
        """Return location and scale of the model's units, each (D,), which keep the data as it is.

        A category without any row counts as varying, too, since later rows may have it.
        """
        varies = np.repeat([n > 1 for n in self.n_categories], self.n_categories)
        return np.where(varies, 0.0, 1.0), varies.astype(np.float64)

    def build(self, n_features: int) -> Any:
        """Make the module of the log-odds that the decoder's outputs are added to."""
        module: Any = nn.Module()
        module.register_buffer("log_odds", torch.empty(n_features))
        return module

    def initialise(self, module: Any, columns: Moments, scale: Array) -> None:
        """Start from the share of each category."""
        module.log_odds.copy_(to_tensor(columns.mean, "cpu").clamp(min=LEAST_SHARE).log())

    def _log_shares(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        """log p of each category, (..., D)."""
        log_odds = module.log_odds.unsqueeze(-2) + raw
        groups, back = _groups(self.n_categories, raw.device)
        shares = [
            log_odds.index_select(-1, index).unflatten(-1, (-1, size)).log_softmax(-1).flatten(-2)
            for size, index in groups
        ]
        return torch.cat(shares, -1).index_select(-1, back)

    def log_levels(self, module: Any, raw: torch.Tensor, n_features: int) -> torch.Tensor:
        """log p of each category, (..., D)."""
        return self._log_shares(module, raw)

    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """log p(x_d|z) per feature in nats, (..., D): 0 for features that are 0."""
        return x * self._log_shares(module, raw)

    def vjp(
        self, module: Any, raw: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, Pullback]:
        """Return `total` of M models, and its pullback."""
        log_shares = self._log_shares(module, raw)

        def pull(g: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            # The formula holds since one feature of each column is 1, or the column's weight is 0.
            return (x - log_shares.exp()) * weight * g.unsqueeze(-1), []

        return (x * log_shares * weight).sum(-1), pull

    def mean(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        """Probability of each category, (..., D)."""
        return self._log_shares(module, raw).exp()

    def sample(self, module: Any, raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw x, (..., D), zeros and ones."""
        log_shares = self._log_shares(module, raw)
        uniform = draw_uniform(log_shares.shape, log_shares.dtype, generator)
        # The largest of log p_k + g_k has the probabilities p, if the g_k are Gumbel noise.
        noisy = log_shares - (-uniform.to(raw.device).log()).log()
        pieces = noisy.split(self.n_categories, -1)
        hot = [nn.functional.one_hot(p.argmax(-1), p.shape[-1]) for p in pieces]
        return torch.cat(hot, -1).to(raw.dtype)


@functools.cache
def _groups(
    n_categories: tuple[int, ...], device: torch.device
) -> tuple[list[tuple[int, torch.Tensor]], torch.Tensor]:
    """Group the features of columns with equal numbers of categories.

    Returns pairs of this number and the indices of the features, and for each feature its index
    after the groups are laid end to end.
    """
    of_feature = np.repeat(n_categories, n_categories)
    order = np.argsort(of_feature, kind="stable")
    with torch.inference_mode(False):  # the cached tensors may be used where gradients are needed
        groups = [
            (int(size), torch.tensor(order[of_feature[order] == size], device=device))
            for size in np.unique(n_categories)
        ]
        return groups, torch.tensor(np.argsort(order), device=device)
