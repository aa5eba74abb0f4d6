"""A likelihood of parts: columns of several kinds side by side.

Given z, columns are independent, so that

    log p(x|z) = sum over the parts of log p(their columns|z),

with a density for real values and a probability for categories and counts. The score is the
logarithm of this mixed density, in nats.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from skvae._backend.tensors import Array
from skvae._data.statistics import Moments
from skvae._data.words import UNNAMED, Labels
from skvae.likelihoods._base import Likelihood, Pullback


@dataclass(frozen=True)
class Columns(Likelihood):
    """Columns of several kinds, each with a likelihood of its own.

    Parameters
    ----------
    parts : list of (likelihood, columns)
        Likelihoods, by value or by name, and their columns, given as for a `ColumnTransformer`:
        names, positions, slices, boolean masks, or a callable such as `make_column_selector` that
        takes X. Each column belongs to one part.

    Examples
    --------
    >>> from skvae.likelihoods import Categorical, Columns, Gaussian
    >>> Columns([(Gaussian(), ["height", "weight"]), (Categorical(), ["colour"])])
    Columns([(Gaussian(noise='per_sample'), ['height', 'weight']), (Categorical(), ['colour'])])
    """

    # A name for pickles and links that survives when files move.
    __module__ = "skvae.likelihoods"

    parts: Sequence[tuple[Any, Any]]

    def __post_init__(self) -> None:
        """Raise an error if `parts` is not valid."""
        pairs = isinstance(self.parts, list | tuple) and len(self.parts) > 0
        if not pairs or not all(isinstance(p, list | tuple) and len(p) == 2 for p in self.parts):
            raise ValueError(
                "The parts of Columns must be a list of pairs (likelihood, columns). Got "
                f"{self.parts!r} instead."
            )
        for likelihood, _ in self.parts:
            if not isinstance(likelihood, str | Likelihood) or isinstance(likelihood, Columns):
                raise ValueError(
                    "Each part of Columns must begin with a value of skvae.likelihoods other than "
                    f"Columns, or its name. Got {likelihood!r} instead."
                )
        # Tuples replace lists, which may change, and arrays, whose comparison gives an array.
        parts = tuple((likelihood, _frozen(columns)) for likelihood, columns in self.parts)
        object.__setattr__(self, "parts", parts)

    def __repr__(self) -> str:
        """Return the call that makes it."""
        parts = [
            (likelihood, list(columns) if isinstance(columns, tuple) else columns)
            for likelihood, columns in self.parts
        ]
        return f"Columns({parts!r})"

    def __hash__(self) -> int:
        """Return a hash of the likelihoods alone: some ways to give columns have no hash."""
        return hash(tuple(likelihood for likelihood, _ in self.parts))

    # All methods below need columns given as positions: see `skvae.likelihoods._choice.place`.

    @property
    def initialises_all(self) -> bool:  # type: ignore[override]
        """Whether `initialise` sets every value of the modules of all parts."""
        return all(part.initialises_all for part, _ in self.parts)

    @property
    def is_foreign(self) -> bool:  # type: ignore[override]
        """Whether a part is a user's."""
        return any(part.is_foreign for part, _ in self.parts)

    @property
    def share_held_back(self) -> float:  # type: ignore[override]
        """Share of the epochs, the first ones, in which some parameters are not learned yet."""
        return max(part.share_held_back for part, _ in self.parts)

    # --- columns and features ---

    def check_support(self, X: Array, labels: Labels = UNNAMED) -> Array:
        """Return the features of columns X; a ValueError names a value that is impossible."""
        blocks = []
        for part, columns in self.parts:
            own = np.array(columns)
            blocks.append(part.check_support(X[:, own], Labels(labels.names, own)))
        return np.concatenate(blocks, axis=1)

    def give_back(self, X: Array, *, drawn: bool) -> Array:
        """Return the columns of features X; `drawn` ones may be rounded to possible values."""
        result = np.empty((len(X), sum(len(columns) for _, columns in self.parts)))
        for (part, columns), piece in zip(self.parts, self._split(X), strict=True):
            result[:, list(columns)] = part.give_back(piece, drawn=drawn)
        return result

    def columns_of(self, n_columns: int) -> Array:
        """Return the index of each feature's column."""
        own = [np.array(columns)[part.columns_of(len(columns))] for part, columns in self.parts]
        return np.concatenate(own)

    def categorical(self, n_columns: int) -> Mapping[int, Any]:
        """Return the columns whose values are categories, each with its likelihood."""
        return {
            columns[i]: likelihood
            for part, columns in self.parts
            for i, likelihood in part.categorical(len(columns)).items()
        }

    def with_categories(self, n_categories: Mapping[int, int]) -> Any:
        """Return the same likelihood, for columns with these numbers of categories."""
        parts = []
        for part, columns in self.parts:
            own = {i: n_categories[c] for i, c in enumerate(columns) if c in n_categories}
            parts.append((part.with_categories(own), columns))
        return Columns(tuple(parts))

    # --- features, part by part ---

    @property
    def _n_features(self) -> list[int]:
        return [len(part.columns_of(len(columns))) for part, columns in self.parts]

    def _split(self, features: Any) -> Any:
        """Split features (..., D) into those of each part."""
        if isinstance(features, torch.Tensor):
            return features.split(self._n_features, -1)
        return np.split(features, np.cumsum(self._n_features)[:-1], axis=-1)

    def _each(self, module: Any, raw: torch.Tensor) -> Iterator[tuple[Any, Any, torch.Tensor]]:
        """Iterate over the parts, with their modules and their decoder outputs."""
        parts = [part for part, _ in self.parts]
        sizes = [p.n_outputs(n) for p, n in zip(parts, self._n_features, strict=True)]
        return zip(parts, module, raw.split(sizes, -1), strict=True)

    def _sized(self) -> Iterator[tuple[Any, int]]:
        return zip((part for part, _ in self.parts), self._n_features, strict=True)

    def has_units(self, n_features: int) -> Array:
        """Return, for each feature, whether it has a density, which has units."""
        return np.concatenate([part.has_units(n) for part, n in self._sized()])

    def n_redrawn(self, n_features: int) -> int:
        """Number of standard normals that draw a row anew."""
        return sum(part.n_redrawn(n) for part, n in self._sized())

    def redraw(self, x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Draw rows x (..., D) anew by standard normal noise."""
        pieces = []
        needs = [part.n_redrawn(n) for part, n in self._sized()]
        for (part, _), own, noise in zip(
            self.parts, self._split(x), eps.split(needs, -1), strict=True
        ):
            pieces.append(part.redraw(own, noise) if noise.shape[-1] else own)
        return torch.cat(pieces, -1)

    def units(self, columns: Moments) -> tuple[Array, Array]:
        """Return location and scale of the model's units, each (D,)."""
        pairs = zip(self.parts, self._split(columns.mean), self._split(columns.std), strict=True)
        units = [part.units(Moments(mean, std)) for (part, _), mean, std in pairs]
        location, scale = map(np.concatenate, zip(*units, strict=True))
        return location, scale

    def n_outputs(self, n_features: int) -> int:
        """Number of raw decoder outputs."""
        return sum(part.n_outputs(n) for part, n in self._sized())

    def held_back(self, n_features: int) -> Sequence[int]:
        """Return the indices of decoder outputs that start as 0 for all rows."""
        held, start = [], 0
        for part, n in self._sized():
            held += [start + i for i in part.held_back(n)]
            start += part.n_outputs(n)
        return held

    def build(self, n_features: int) -> Any:
        """Make the modules of the parts."""
        return nn.ModuleList(part.build(n) for part, n in self._sized())

    def initialise(self, module: Any, columns: Moments, scale: Array) -> None:
        """Start from the moments of the features."""
        known = (columns.mean, columns.std, columns.n_values, columns.n_various)
        none = [None] * len(self.parts)
        moments = zip(*(none if v is None else self._split(v) for v in known), strict=True)
        for (part, _), own, (mean, std, n_values, n_various), unit in zip(
            self.parts, module, moments, self._split(scale), strict=True
        ):
            of_part = Moments(mean, std, n_values=n_values, n_various=n_various)
            part.initialise(own, of_part, unit)

    def begin_epoch(self, module: Any, progress: torch.Tensor) -> None:
        """Called before each epoch with the fraction of the epochs that is done, (M,)."""
        for (part, _), own in zip(self.parts, module, strict=True):
            part.begin_epoch(own, progress)

    def seen(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        """Return the encoder's inputs for rows x."""
        pieces = zip(self.parts, module, self._split(x), strict=True)
        return torch.cat([part.seen(own, piece) for (part, _), own, piece in pieces], -1)

    def log_levels(self, module: Any, raw: torch.Tensor, n_features: int) -> torch.Tensor:
        """log p of the category that each feature stands for, (..., D); 0 for other features."""
        pieces = zip(self._each(module, raw), self._n_features, strict=True)
        return torch.cat([part.log_levels(own, out, n) for (part, own, out), n in pieces], -1)

    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """log p(x_d|z) per feature in nats, (..., D)."""
        pieces = zip(self._each(module, raw), self._split(x), strict=True)
        return torch.cat([part.log_prob(own, out, piece) for (part, own, out), piece in pieces], -1)

    def total(
        self, module: Any, raw: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """Sum `log_prob` (M, n, D) over features with a `weight` (M, 1|n, D); M may be absent."""
        pieces = zip(self._each(module, raw), self._split(x), self._split(weight), strict=True)
        return sum(part.total(own, out, piece, w) for (part, own, out), piece, w in pieces)

    def vjp(
        self, module: Any, raw: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, Pullback]:
        """Return `total` of M models, and its pullback."""
        pieces = zip(self._each(module, raw), self._split(x), self._split(weight), strict=True)
        results = [part.vjp(own, out, piece, w) for (part, own, out), piece, w in pieces]

        def pull(g: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            pulled = [pull(g) for _, pull in results]
            learned = [gradient for _, gradients in pulled for gradient in gradients]
            return torch.cat([g_raw for g_raw, _ in pulled], -1), learned

        return sum(total for total, _ in results), pull

    def mean(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        """E[x|z], (..., D)."""
        return torch.cat([part.mean(own, out) for part, own, out in self._each(module, raw)], -1)

    def sample(self, module: Any, raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw x, (..., D)."""
        draws = [part.sample(own, out, generator) for part, own, out in self._each(module, raw)]
        return torch.cat(draws, -1)


def _frozen(columns: Any) -> Any:
    """Turn a list or array of columns into a tuple; leave a name, a slice or a callable."""
    if isinstance(columns, str | slice) or not hasattr(columns, "__len__"):
        return columns
    return tuple(columns.tolist() if hasattr(columns, "tolist") else columns)
