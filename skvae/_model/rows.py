"""Rows of a stack of models, as tensors."""

from dataclasses import dataclass

import torch


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
