"""Rows of a stack of models, as tensors."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rows:
    """Rows of data, and which of them are whose."""

    data: torch.Tensor  # (R, D)
    index: torch.Tensor  # (M, n), rows of `data`
    # (M, n), how much each counts: of mean 1 over an epoch, or over what is judged. None: 1.
    weight: torch.Tensor | None = None
    # (M, n), the number of the group of each row that is judged. None: each row is its own.
    group: torch.Tensor | None = None

    def of(self, members: torch.Tensor) -> "Rows":
        """Those of some members."""
        own = (None if v is None else v[members] for v in (self.weight, self.group))
        return Rows(self.data, self.index[members], *own)

    def take(self, index: torch.Tensor) -> torch.Tensor:
        """Rows (M, B, D) at index (M, B) of `data`."""
        return self.data.index_select(0, index.reshape(-1)).view(*index.shape, -1)
