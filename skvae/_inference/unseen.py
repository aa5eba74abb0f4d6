"""Give rows to a fitted model, block by block, and charge for values that `fit` has not seen.

A value is ordinary, missing, or of an unseen kind. A missing value is no part of the bound. The
model has no density for an unseen value. Such a value must not count in the row's favour, so it
costs nats. With n the training rows that have a value in the column,

- a category that was not in `fit` costs as much as the rarest category of `fit` in that row, given
  z, and at least log(n + 1) nats;
- a value other than the constant, in a column that was constant in `fit`, costs log(n + 1) nats:
  all other values together have a mass of 1 / (n + 1). A row with the constant keeps its score;
- infinity, or a value that is too far for float32, has a density of 0: the score is minus infinity.

The encoder takes the first and the last kind as missing, and it ignores constant columns.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from skvae._backend import blocks
from skvae._backend.tensors import Array, to_tensor
from skvae._backend.warn import warn
from skvae._data import arrays
from skvae._data.codes import UNSEEN
from skvae._data.units import FARTHEST, Units, check_reach, measure_reach, standardise
from skvae._data.words import Labels, listed, rows_in_words
from skvae._model.rows import Batch, Unseen
from skvae._model.vae import VAE
from skvae.likelihoods import Likelihood


class Blocks:
    """A function that gives blocks of rows of X to models, in their units, and collects costs.

    Several threads may call it at once.

    Parameters
    ----------
    X : ndarray, sparse matrix of shape (n_rows, n_columns)
        Rows as `Schema.read` reads them.
    likelihood : value
        The likelihood of the model.
    units : Units
        The units of the model.
    seen : dict or None
        Facts about the rows of `fit`: how many had a value in each column, and the relative
        difference up to which values are one constant. It is None for a model of an older version,
        which did not save this. Then n is 0, and a value other than a constant costs nothing, as in
        that version.
    labels : Labels
        Names of the columns for messages.
    accept_far : bool
        Whether infinite values and values that are too far cost infinity; otherwise they raise an
        error.
    row_of : ndarray of shape (n_rows,) or None
        The user's number of each row, if X is a part of the user's rows.
    """

    def __init__(
        self,
        X: Any,
        likelihood: Likelihood,
        units: Units,
        seen: Mapping[str, Any] | None,
        labels: Labels,
        *,
        accept_far: bool,
        row_of: Array | None = None,
    ) -> None:
        self.X, self.likelihood, self.labels = X, likelihood, labels
        self.accept_far, self.row_of = accept_far, row_of
        n_columns = X.shape[1]
        self.column_of = likelihood.columns_of(n_columns)
        self.units = units
        self.is_known = seen is not None
        known = seen or {"n_values": np.zeros(n_columns, np.int64), "resolution": 0.0}
        # The cost of a value other than the constant, or of a category that was not in `fit`.
        self.nats = np.log1p(known["n_values"])
        # Rows may have a coarser dtype than those of `fit`.
        self.resolution = max(known["resolution"], arrays.resolution_of(X.dtype))
        self.categorical = np.array(sorted(likelihood.categorical(n_columns)), int)
        # Tuples (rows, columns, values): of values that differ from a constant, or are too far.
        self.beside: list[tuple[Array, Array, Array]] = []
        self.far: list[tuple[Array, Array, Array]] = []

    def __call__(self, model: VAE, rows: slice) -> Batch:
        """Return the block of these rows for `model`."""
        block, strange = arrays.dense(self.X[rows]), None
        if len(self.categorical) and (block[:, self.categorical] == UNSEEN).any():
            strange = np.zeros(block.shape, bool)
            strange[:, self.categorical] = block[:, self.categorical] == UNSEEN
            block = np.where(strange, np.nan, block)
        some = self._support(block, rows.start)
        y = standardise(some, self.units, model.varies.dtype)
        if self.units.constant is not None:
            self._note_beside(some, rows.start)
        reach = self._check_reach(y, some, block, rows.start)
        device, n_rows = model.varies.device, rows.stop - rows.start
        unseen = [] if strange is None else self._unseen(strange, n_rows, device)
        return Batch(blocks.to_block(y, n_rows, device), reach=reach, unseen=unseen)

    def _support(self, block: Array, start: int) -> Array:
        """Return the features of a block, without infinity and counts that are too far."""
        if not self.accept_far:
            return self.likelihood.check_support(block, self.labels)
        if block.dtype.kind == "f":
            with np.errstate(over="ignore", invalid="ignore"):
                finite = np.isfinite(block.sum())
            if not finite and (infinite := np.isinf(block)).any():
                block = self._leave_out(block, infinite, block, start)
        try:
            return self.likelihood.check_support(block, self.labels)
        except ValueError:
            far = self._is_far(block)
            if not far.any():
                raise
            return self.likelihood.check_support(
                self._leave_out(block, far, block, start), self.labels
            )

    def _is_far(self, block: Array) -> Array:
        """Whether values are too far, in columns that have one feature and vary."""
        location, unit = (t.numpy() for t in self.units[:2])
        counts = np.bincount(self.column_of, minlength=block.shape[1])
        feature = np.zeros(block.shape[1], int)
        feature[self.column_of] = np.arange(len(self.column_of))
        alone = counts == 1
        alone[self.categorical] = False
        if self.units.constant is not None:
            alone[self.column_of[self.units.constant.numpy()]] = False
        with np.errstate(over="ignore", invalid="ignore"):
            distance = np.abs(np.asarray(block, np.float64) - location[feature]) / unit[feature]
        return alone & (distance > FARTHEST)

    def _leave_out(self, block: Array, far: Array, values: Array, start: int) -> Array:
        """Note the values that are too far, and return the block with NaN in their place."""
        row, column = np.nonzero(far)
        self.far.append((row + start, column, values[row, column].astype(np.float64)))
        return np.where(far, np.nan, block)

    def _check_reach(self, y: torch.Tensor, some: Array, block: Array, start: int) -> float:
        """Return the largest distance of rows y from 0; values too far become NaN or an error."""
        labels = self.labels._replace(indices=self.column_of)
        if not self.accept_far:
            return check_reach(y, some, self.units, labels)
        reach, far = measure_reach(y)
        if far is not None:
            row, feature = np.nonzero(far.numpy())
            column = self.column_of[feature]
            with np.errstate(over="ignore"):  # a longdouble may become infinity
                values = block[row, column].astype(np.float64)
            self.far.append((row + start, column, values))
            y[far] = np.nan
            reach = np.nan
        return reach

    def _note_beside(self, some: Array, start: int) -> None:
        """Note values that differ from the constants of `fit` by more than rounding."""
        assert self.units.constant is not None
        index = self.units.constant.numpy()
        constant = self.units.location.numpy()[index]
        with np.errstate(over="ignore", invalid="ignore"):
            own = np.asarray(some[:, index], np.float64)
            if (own == constant).all():
                return
            # Halves do not overflow; `describe_columns` takes them, too.
            rounding = self.resolution * np.maximum(np.abs(own), np.abs(constant))
            differs = np.abs(own / 2 - constant / 2) > rounding  # not of NaN
        differs |= np.isnan(constant) & ~np.isnan(own)
        # Note a value once, even if its column has several features.
        row, feature = np.nonzero(differs)
        cells = np.stack([row, self.column_of[index[feature]]], axis=1)
        cells, first = np.unique(cells, axis=0, return_index=True)
        if len(cells):
            self.beside.append((cells[:, 0] + start, cells[:, 1], own[row, feature][first]))

    def _unseen(self, strange: Array, n_rows: int, device: torch.device) -> list[Unseen]:
        """Return the rows of each column whose category was not in `fit`, for the model."""
        unseen = []
        for column in np.flatnonzero(strange.any(axis=0)):
            rows = np.zeros(n_rows, bool)
            rows[: len(strange)] = strange[:, column]
            features = np.flatnonzero(self.column_of == column)
            unseen.append(
                Unseen(
                    to_tensor(features, device),
                    to_tensor(rows, device),
                    float(self.nats[column]),
                )
            )
        return unseen

    def costs(self) -> tuple[Array, Array, Array]:
        """Return rows, columns and nats of the costs that do not depend on z."""
        beside, far = _joined(self.beside), _joined(self.far)
        rows, columns = (np.concatenate([a, b]) for a, b in zip(beside[:2], far[:2], strict=True))
        nats = np.concatenate([self.nats[beside[1]], np.full(len(far[0]), np.inf)])
        return rows, columns, nats

    def warn(self) -> None:
        """Warn of unseen values, and name their columns, the number of rows and the first row."""
        rows, columns, values = _joined(self.beside)
        empty = np.isnan(_constants(self.units, self.column_of))[columns]
        what = "that differ from the constant of a column in the rows that fit trained on"
        self._warn_beside(what, self.is_known, rows, columns, values, ~empty)
        what = "in columns that had no value in the rows that fit trained on"
        self._warn_beside(what, False, rows, columns, values, empty)
        rows, columns, values = _joined(self.far)
        if len(rows):
            words = self._words(rows, columns, values, np.ones(len(rows), bool))
            warn(
                f"X has values that are infinite, or more than {FARTHEST:.0e} times the "
                f"scale of the training data from it: {words}. The score of such a row is -inf. "
                "Check the units of the column, or make the value NaN if it stands for a missing "
                "one."
            )

    def _warn_beside(
        self, what: str, costs: bool, rows: Array, columns: Array, values: Array, chosen: Array
    ) -> None:
        if chosen.any():
            nats = (
                "costs log(n + 1) nats in the score, with n training rows"
                if costs
                else ("costs the score nothing")
            )
            warn(
                f"X has values {what}: {self._words(rows, columns, values, chosen)}. The encoder "
                f"does not see such a value, and it {nats}. Fit on rows in which these columns "
                "vary, or drop them."
            )

    def _words(self, rows: Array, columns: Array, values: Array, chosen: Array) -> str:
        """Words for each column: the first chosen value, and the rows that have chosen values."""
        words = []
        for column in np.unique(columns[chosen]):
            own = np.flatnonzero(chosen & (columns == column))
            first = own[np.argmin(rows[own])]
            in_rows = np.unique(rows[own])
            where = rows_in_words(in_rows if self.row_of is None else self.row_of[in_rows])
            words.append(f"{values[first]:.10g} in {self.labels.of(column)} ({where})")
        return listed(words)


def _joined(pieces: list[tuple[Array, Array, Array]]) -> tuple[Array, Array, Array]:
    """Join the rows, columns and values of all blocks, in the order of the rows."""
    if not pieces:
        return np.empty(0, int), np.empty(0, int), np.empty(0)
    rows, columns, values = (np.concatenate(part) for part in zip(*pieces, strict=True))
    order = np.lexsort((columns, rows))
    return rows[order], columns[order], values[order]


def _constants(units: Units, column_of: Array) -> Array:
    """Return the location of each column, read from one of its features."""
    location = np.zeros(column_of.max() + 1)
    location[column_of] = units.location.numpy()
    return location
