"""What a model is made of: sizes and parts, without the values of its weights."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
    """The part that `value` is or names; `kind` is a key of `NAMED`."""
    return NAMED[kind].get(value, value)


def name_of(kind: str, part: Any) -> Any:
    """The name of a part that has one, else the part: a saved model then needs no class for it."""
    return next((name for name, known in NAMED[kind].items() if known == part), part)


@dataclass(frozen=True)
class Architecture:
    """Sizes and parts of a model; it answers what follows from them without building the model."""

    n_features: int  # D
    n_components: int  # L
    likelihood: Likelihood
    network: Any
    hidden_layer_sizes: tuple[int, ...]
    activation: str
    prior: Any
    posterior: Any
    missing: bool  # whether values may be missing, NaN: the encoder then also sees which are

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Architecture":
        """The architecture of these values; parts may be given by name, or left out."""
        default = {"prior": "standard_normal", "posterior": "diagonal", "missing": False}
        values = {**default, **values}
        parts = {kind: part_of(kind, values[kind]) for kind in NAMED}
        return cls(**values | parts | {"hidden_layer_sizes": tuple(values["hidden_layer_sizes"])})

    def to_dict(self) -> dict[str, Any]:
        """The values in a dict, parts by their names if they have any: `of` takes it back."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return values | {kind: name_of(kind, values[kind]) for kind in NAMED}

    @property
    def initialises_all(self) -> bool:
        """Whether all parts set every value of their modules, which may be made without values."""
        parts = self.likelihood, self.network, self.prior, self.posterior
        return all(part.initialises_all for part in parts)

    @property
    def has_kl(self) -> bool:
        """Whether the KL divergence is known: from the standard normal alone."""
        return self.posterior.has_kl and self.prior.is_standard

    @property
    def n_encoder_inputs(self) -> int:
        """Numbers that the encoder takes for a row: the features, and which of them are there."""
        return (1 + self.missing) * self.n_features

    @property
    def n_noise(self) -> tuple[int, int, int]:
        """Standard normals of a training step besides those of z.

        For each draw, of units to drop; for each row, to draw it anew, and of units to drop.
        """
        dropped = self.network.n_noise(self.hidden_layer_sizes)
        return dropped, self.likelihood.n_redrawn(self.n_features), dropped
