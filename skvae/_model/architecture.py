"""The architecture of a model: its sizes and parts, without the values of its weights."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skvae._backend.part import look_up
from skvae.likelihoods import LIKELIHOODS, Likelihood
from skvae.networks import NETWORKS
from skvae.posteriors import POSTERIORS
from skvae.priors import PRIORS

NAMED: dict[str, Mapping[str, Any]] = {
    "likelihood": LIKELIHOODS,
    "network": NETWORKS,
    "prior": PRIORS,
    "posterior": POSTERIORS,
}


def part_of(kind: str, value: Any) -> Any:
    """Return the part that `value` is, or that it names; `kind` is a key of `NAMED`."""
    return look_up(kind, value, NAMED[kind])


def name_of(kind: str, part: Any) -> Any:
    """Return the name of a part, or the part itself if it has no name.

    A saved model does not need the class of a part that it stores by name.
    """
    return next((name for name, known in NAMED[kind].items() if known == part), part)


@dataclass(frozen=True)
class Architecture:
    """Sizes and parts of a model, and properties that follow from them without building it."""

    n_features: int  # D
    n_components: int  # L
    likelihood: Likelihood
    network: Any
    hidden_layer_sizes: tuple[int, ...]
    activation: str
    prior: Any
    posterior: Any
    missing: bool  # whether values may be NaN (missing), so that the encoder also sees a mask

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Architecture":
        """Make an architecture of these values; parts may be given by name, or left out."""
        default = {"prior": "standard_normal", "posterior": "diagonal", "missing": False}
        values = {**default, **values}
        parts = {kind: part_of(kind, values[kind]) for kind in NAMED}
        return cls(**values | parts | {"hidden_layer_sizes": tuple(values["hidden_layer_sizes"])})

    def to_dict(self) -> dict[str, Any]:
        """Return the values in a dict that `of` accepts; a part with a name is given by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return values | {kind: name_of(kind, values[kind]) for kind in NAMED}

    @property
    def initialises_all(self) -> bool:
        """Whether all parts set every value of their modules, so these can be built empty."""
        return all(part.initialises_all for part in self._parts)

    @property
    def is_foreign(self) -> bool:
        """Whether a part is a user's, whose functions and modules may do anything."""
        return any(part.is_foreign for part in self._parts)

    @property
    def _parts(self) -> tuple[Any, ...]:
        return self.likelihood, self.network, self.prior, self.posterior

    @property
    def has_kl(self) -> bool:
        """Whether the KL divergence has a closed form, which needs a standard normal prior."""
        return self.posterior.has_kl and self.prior.is_standard

    @property
    def n_encoder_inputs(self) -> int:
        """Number of encoder inputs for a row: the features, and a mask if `missing`."""
        return (1 + self.missing) * self.n_features

    @property
    def n_noise(self) -> tuple[int, int, int]:
        """Numbers of standard normals that a training step needs besides those of z.

        The first drop units of the decoder, for each draw; the second redraw the row, for each row;
        the third drop units of the encoder, for each row.
        """
        dropped = self.network.n_noise(self.hidden_layer_sizes)
        return dropped, self.likelihood.n_redrawn(self.n_features), dropped
