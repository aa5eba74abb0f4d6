"""Words for columns and rows in messages."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from skvae._backend.tensors import Array


class Labels(NamedTuple):
    """Names of the columns of a block for messages: their indices in X, and their names, if any."""

    names: Array | None = None  # names of all columns of X
    indices: Array | None = None  # indices in X of the columns of the block; None: all

    def of(self, column: Any) -> str:
        """Words for a column of the block."""
        place = column if self.indices is None else self.indices[column]
        name = "" if self.names is None else f" ({str(self.names[place])!r})"
        return f"column {place}{name}"


UNNAMED = Labels()


def cell(X: Array, where: Array, labels: Labels) -> tuple[str, int]:
    """Words for the first value of X that is marked in `where`, and its column."""
    row, column = np.argwhere(where)[0]
    return f"{X[row, column]:.10g} in {labels.of(column)}", column


def n_rows_in_words(n: int) -> str:
    """Words for a number of rows."""
    return "1 row" if n == 1 else f"{n} rows"


def listed(words: Iterable[str], most: int = 5) -> str:
    """Join the first of some words, and say how many more there are."""
    words = list(words)
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def rows_in_words(rows: Sequence[int] | Array) -> str:
    """Words for these rows, which are in order: how many there are, and the first."""
    return f"1 row: {rows[0]}" if len(rows) == 1 else f"{len(rows)} rows, the first is {rows[0]}"
