"""Rows as tensors: all rows of a stack of models, and the batch of one call of a model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Unseen(NamedTuple):
    """Rows of a batch whose category in one column `fit` has not seen."""

    features: torch.Tensor  # indices of the features of the column
    rows: torch.Tensor  # (B,), the mask of these rows
    nats: float  # the least cost


class Batch(NamedTuple):
    """Rows in the model's units, and all that a call of the model takes besides them.

    The tensors of a training step have a leading M, the number of models of a stack.
    """

    y: torch.Tensor  # (B, D); NaN: missing
    eps: torch.Tensor | None = None  # (S, B|1, L), the noise of draws of z; in training (S, B, L+N)
    row_noise: torch.Tensor | None = None  # (B, N), the noise of a training step for each row
    row_weight: torch.Tensor | None = None  # (B,), how much each row counts; None: 1
    reach: float = math.nan  # the largest distance from 0; NaN if values may be missing
    unseen: Sequence[Unseen] = ()  # categories that the encoder takes as missing
    # How many of the first rows matter; the others fill a block. None: all.
    n_rows: int | None = None


@dataclass(frozen=True)
class Rows:
    """Rows of data, and the rows of each model among them."""

    data: torch.Tensor  # (R, D)
    index: torch.Tensor  # (M, n), the rows of each model in `data`
    # (M, n), how much each row counts, with mean 1 over an epoch or over the judged rows. None: 1.
    weight: torch.Tensor | None = None
    # (M, n), the number of the group of each judged row. None: each row is its own group.
    group: torch.Tensor | None = None

    def of(self, members: torch.Tensor) -> "Rows":
        """Return the rows of some members."""
        own = (None if v is None else v[members] for v in (self.weight, self.group))
        return Rows(self.data, self.index[members], *own)

    def take(self, index: torch.Tensor) -> torch.Tensor:
        """Return the rows (M, B, D) of `data` at `index` (M, B)."""
        return self.data.index_select(0, index.reshape(-1)).view(*index.shape, -1)
