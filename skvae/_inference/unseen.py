"""Rows for a fitted model, block by block, and what is in them that `fit` has not seen.

A value is ordinary, missing, or unseen in kind. A missing one is no part of the bound. An unseen
one is nothing that the density can say, and so must not count in the row's favour. With n the
training rows that have a value in the column,

- a category that was not in `fit` costs what the rarest of those costs in that row, given z, and
  log(n + 1) nats at least;
- a value beside the constant, in a column that was constant in `fit`, costs log(n + 1) nats: a
  mass of 1 / (n + 1) is beside the constant. A row with the constant keeps its score;
- infinity, and what is too far for float32, has a density of 0: the score is minus infinity.

The encoder takes the first and the last as missing, and never looks at a constant column.
"""

import warnings

import numpy as np

from skvae._backend import blocks
from skvae._backend.tensors import to_tensor
from skvae._data import arrays
from skvae._data.codes import UNSEEN
from skvae._data.units import FARTHEST, check_reach, measure_reach, standardise
from skvae._data.words import listed, rows_in_words
from skvae._model.vae import Unseen


class Blocks:
    """Gives rows of X to models, in their units, as blocks; the costs of a row are known then.

    Threads may ask for blocks at once.

    Parameters
    ----------
    X : ndarray, sparse matrix of shape (n_rows, n_columns)
        Rows as `Schema.read` reads them.
    likelihood : value
        That of the model.
    units : Units
        Those of the model.
    seen : dict or None
        What is known of the rows of `fit`: how many had a value in each column, and the relative
        difference of values that are one constant. None of a model that was saved before this was
        kept: then n is 0, and a value beside a constant costs nothing, as it did.
    labels : Labels
        What to call the columns.
    accept_far : bool
        Whether infinity and what is too far make a row cost infinity, or are an error.
    row_of : ndarray of shape (n_rows,) or None
        The number of each row for the user, where these are some rows only.
    """

    def __init__(self, X, likelihood, units, seen, labels, *, accept_far, row_of=None):
        self.X, self.likelihood, self.labels = X, likelihood, labels
        self.accept_far, self.row_of = accept_far, row_of
        n_columns = X.shape[1]
        self.column_of = likelihood.columns_of(n_columns)
        self.units = units
        self.is_known = seen is not None
        known = seen or {"n_values": np.zeros(n_columns, np.int64), "resolution": 0.0}
        # Of a mass beside the constant, or of a category that was not in `fit`.
        self.nats = np.log1p(known["n_values"])
        # Rows may have a coarser dtype than those of `fit`.
        self.resolution = max(known["resolution"], arrays.resolution_of(X.dtype))
        self.categorical = np.array(sorted(likelihood.categorical(n_columns)), int)
        # (rows, columns, values) that differ from a constant, and that are too far.
        self.beside, self.far = [], []

    def __call__(self, model, rows):
        """The block of these rows for `model`, its own, which is told what to expect."""
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
        model.expect(reach, unseen)
        return blocks.to_block(y, n_rows, device)

    def _support(self, block, start):
        """The features of a block, of which infinity and counts that are too far are no part."""
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

    def _is_far(self, block):
        """Whether values of columns that are one feature are beyond reach of the units."""
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

    def _leave_out(self, block, far, values, start):
        """The block without the values that are too far, which are noted."""
        row, column = np.nonzero(far)
        self.far.append((row + start, column, values[row, column].astype(np.float64)))
        return np.where(far, np.nan, block)

    def _check_reach(self, y, some, block, start):
        """The largest distance of rows y from 0, which lose what is too far."""
        labels = self.labels._replace(indices=self.column_of)
        if not self.accept_far:
            return check_reach(y, some, self.units, labels)
        reach, far = measure_reach(y)
        if far is not None:
            row, feature = np.nonzero(far.numpy())
            column = self.column_of[feature]
            with np.errstate(over="ignore"):  # of a longdouble, which is infinity then
                values = block[row, column].astype(np.float64)
            self.far.append((row + start, column, values))
            y[far] = np.nan
            reach = np.nan
        return reach

    def _note_beside(self, some, start):
        """Note what differs from the constants of `fit`, by more than rounding."""
        index = self.units.constant.numpy()
        constant = self.units.location.numpy()[index]
        with np.errstate(over="ignore", invalid="ignore"):
            own = np.asarray(some[:, index], np.float64)
            if (own == constant).all():
                return
            # By halves, as `describe_columns` does it.
            rounding = self.resolution * np.maximum(np.abs(own), np.abs(constant))
            differs = np.abs(own / 2 - constant / 2) > rounding  # not of NaN
        differs |= np.isnan(constant) & ~np.isnan(own)
        # Once for each column, of however many features.
        row, feature = np.nonzero(differs)
        cells = np.stack([row, self.column_of[index[feature]]], axis=1)
        cells, first = np.unique(cells, axis=0, return_index=True)
        if len(cells):
            self.beside.append((cells[:, 0] + start, cells[:, 1], own[row, feature][first]))

    def _unseen(self, strange, n_rows, device):
        """What the model is told of categories that were not in `fit`."""
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

    def costs(self):
        """Rows, columns and nats, of what is unseen whatever z is."""
        beside, far = _joined(self.beside), _joined(self.far)
        rows, columns = (np.concatenate([a, b]) for a, b in zip(beside[:2], far[:2], strict=True))
        nats = np.concatenate([self.nats[beside[1]], np.full(len(far[0]), np.inf)])
        return rows, columns, nats

    def warn(self):
        """Warn of what was met, with columns, numbers of rows and the first of them."""
        rows, columns, values = _joined(self.beside)
        empty = np.isnan(_constants(self.units, self.column_of))[columns]
        what = "that differ from the constant of a column in the rows that fit trained on"
        self._warn_beside(what, self.is_known, rows, columns, values, ~empty)
        what = "in columns that had no value in the rows that fit trained on"
        self._warn_beside(what, False, rows, columns, values, empty)
        rows, columns, values = _joined(self.far)
        if len(rows):
            words = self._words(rows, columns, values, np.ones(len(rows), bool))
            warnings.warn(
                f"X has values that are infinite, or more than {FARTHEST:.0e} times the "
                f"scale of the training data from it: {words}. The score of such a row is -inf. "
                "Check the units of the column, or make the value NaN if it stands for a missing "
                "one.",
                stacklevel=3,
            )

    def _warn_beside(self, what, costs, rows, columns, values, chosen):
        if chosen.any():
            nats = (
                "costs log(n + 1) nats in the score, with n training rows"
                if costs
                else ("costs the score nothing")
            )
            warnings.warn(
                f"X has values {what}: {self._words(rows, columns, values, chosen)}. The encoder "
                f"does not see such a value, and it {nats}. Fit on rows in which these columns "
                "vary, or drop them.",
                stacklevel=4,
            )

    def _words(self, rows, columns, values, chosen):
        """Words for each column: its first value that is chosen, and in which rows there are."""
        words = []
        for column in np.unique(columns[chosen]):
            own = np.flatnonzero(chosen & (columns == column))
            first = own[np.argmin(rows[own])]
            in_rows = np.unique(rows[own])
            in_rows = rows_in_words(in_rows if self.row_of is None else self.row_of[in_rows])
            words.append(f"{values[first]:.10g} in {self.labels.of(column)} ({in_rows})")
        return listed(words)


def _joined(pieces):
    """Rows, columns and values of all blocks, in the order of the rows."""
    if not pieces:
        return np.empty(0, int), np.empty(0, int), np.empty(0)
    rows, columns, values = (np.concatenate(part) for part in zip(*pieces, strict=True))
    order = np.lexsort((columns, rows))
    return rows[order], columns[order], values[order]


def _constants(units, column_of):
    """The location of each column, by one of its features."""
    location = np.zeros(column_of.max() + 1)
    location[column_of] = units.location.numpy()
    return location
