"""The parts that all displays share: axes, the model of an estimator, and rows to show."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils.validation import check_is_fitted

from skvae import _pipeline, metrics
from skvae._backend.tensors import Array
from skvae._data import arrays, codes, containers, words
from skvae._typing import Estimator
from skvae.networks import Conv

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Ten colours that people with deficient colour vision can tell apart, too (M. A. Petroff,
# Accessible color sequences for data visualization, 2021, arXiv:2107.02270).
COLOURS = ["#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"]
COLOURS += ["#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"]
N_CHANNELS = (1, 3)  # numbers of channels of images that can be drawn
MOST_PANELS = 16  # largest number of features, unless the user names them
# A legend to the right of the axes.
BESIDE: dict[str, Any] = {
    "loc": "upper left",
    "bbox_to_anchor": (1, 1),
    "frameon": False,
    "fontsize": "small",
}


class Display:
    """A display with its axes."""

    ax_: "Axes"
    figure_: "Figure"

    def _begin(self, ax: "Axes | None", size: tuple[float, float]) -> "Axes":
        """Return the axes to draw on: `ax`, or those of a new figure of `size`, in inches."""
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(figsize=size, layout="constrained")
        figure: Any = ax.figure
        self.ax_, self.figure_ = ax, figure
        return ax


# --- rows ---------------------------------------------------------------------------------


class Source:
    """The model of an estimator, and functions that return rows in the units to show.

    These are the units of the estimator's input. They are the units of the model's input if a step
    before the model has no inverse.
    """

    def __init__(self, display: type[Display], estimator: Estimator) -> None:
        check_matplotlib_support(f"{display.__name__}.from_estimator")
        self.before, self.vae = _pipeline.split(estimator, f"{display.__name__} expects")
        check_is_fitted(self.vae)
        self.n_components = self.vae._fitted.n_components
        self.inverts = all(_pipeline.has_inverse(step) for _, step in self.before)

    def transform(self, X: Any) -> Any:
        """Transform rows X with the earlier steps."""
        return _pipeline.transform(self.before, X)

    def to_shown(self, X: Any) -> Any:
        """Return rows X in the units to show."""
        return X if self.inverts else self.transform(X)

    def decode(self, Z: Any) -> Any:
        """Return E[x|z] of latent rows Z, in the units to show."""
        return self.invert(self.vae.inverse_transform(Z))

    def invert(self, rows: Any) -> Any:
        """Bring rows of the model to the units to show."""
        return _pipeline.invert(self.before, rows) if self.inverts else rows

    def choose(
        self,
        rows: Any,
        image_shape: Sequence[int] | None,
        features: Sequence[str | int] | None,
    ) -> tuple[list[int], dict[str, Any]]:
        """Return the indices of the columns to show, and the arguments of displays of rows."""
        if image_shape is not None and features is not None:
            raise ValueError(
                "image_shape and features exclude each other, since an image has all features. Got "
                f"image_shape={image_shape!r} and features={features!r}: give image_shape or "
                "features, not both."
            )
        names, network = self._names(rows), self.vae._fitted.architecture.network
        if image_shape is None and features is None and isinstance(network, Conv):
            known = network.image_shape
            fits = known[0] in N_CHANNELS and math.prod(known) == len(names)
            image_shape = known if fits else None
        if image_shape is None:
            index = _choose(rows, names, features)
        else:
            image_shape = _check_image_shape(image_shape, len(names))
            index = list(range(len(names)))
        return index, {
            "feature_names": [names[i] for i in index],
            "image_shape": image_shape,
            "units": None if self.inverts else f"after {self.before[-1][0]!r}",
        }

    def _names(self, rows: Any) -> list[str]:
        """Return the names of the columns of rows in the units to show."""
        names: Any = containers.names(rows)
        if names is None:
            steps = [step for _, step in self.before] or [self.vae]
            if self.inverts:
                names = getattr(steps[0], "feature_names_in_", None)
            elif all(hasattr(step, "get_feature_names_out") for step in steps):
                for step in steps:
                    names = step.get_feature_names_out(names)
        if names is None or len(names) != rows.shape[1]:
            names = [f"x{i}" for i in range(rows.shape[1])]
        return list(map(str, names))


def take(rows: Any, index: list[int]) -> Array:
    """Return the columns of rows at `index` as numbers, (n, n_shown)."""
    rows = arrays.dense(containers.to_validate(rows))
    if isinstance(rows, np.ndarray) and rows.dtype.kind in "biuf":
        return rows[:, index].astype(np.float64)
    columns = list(containers.columns(rows))
    numbers = [codes.to_numbers(columns[i], words.UNNAMED.of(i)) for i in index]
    return np.stack(numbers, axis=1)


def _check_image_shape(shape: Any, n_features: int) -> tuple[int, ...]:
    """Return (channels, height, width) for a shape that may lack the channels."""
    whole = tuple(shape) if np.iterable(shape) else (shape,)
    whole = (1, *whole) if len(whole) == 2 else whole
    if len(whole) != 3 or whole[0] not in N_CHANNELS or math.prod(whole) != n_features:
        raise ValueError(
            "image_shape must be (height, width) or (channels, height, width), with 1 or 3 "
            f"channels and {n_features} values in all, the number of features. Got {shape!r}."
        )
    return whole


def _choose(rows: Any, names: list[str], features: Any) -> list[int]:
    """Return the indices of the features to show, all of which are numbers."""
    is_number = [kind != "O" for kind in containers.kinds(rows)]
    if features is None:
        features = np.flatnonzero(is_number)[:MOST_PANELS].tolist()
    if isinstance(features, str) or not np.iterable(features):
        raise ValueError(
            f"features must be a list of names or indices of columns. Got {features!r}."
        )
    index = []
    for feature in features:
        if feature not in names and feature not in range(len(names)):
            raise ValueError(
                f"features has {feature!r}, which is neither a name nor an index of a column. The "
                f"columns are {names}."
            )
        index.append(names.index(feature) if feature in names else int(feature))
        if not is_number[index[-1]]:
            raise ValueError(
                f"features has {feature!r}, whose values are categories. Only numbers can be "
                "shown: leave it out."
            )
    if not index:
        raise ValueError(
            "There is no column of numbers to show. Look at the rows that transform, sample and "
            "inverse_transform return."
        )
    return index


# --- components -------------------------------------------------------------------------


def activity(source: Source, X: Any) -> tuple[Array | None, Array, Array, Array]:
    """Measure how active each component is for the rows of X.

    Returns the KL divergence of each component (None if it has no closed form), the variance of
    its posterior means, and the posterior means and standard deviations of the rows.
    """
    transformed = source.transform(X)
    mean, std = source.vae.encode(transformed)
    kl = None
    architecture = source.vae._fitted.architecture
    if architecture.has_kl and architecture.posterior.factorises:
        kl = metrics.kl_per_component(source.vae, transformed)
    return kl, mean.var(axis=0, dtype=np.float64), mean, std


def most_active(kl: Array | None, variance: Array) -> Array:
    """Sort the components, the most active first."""
    return np.argsort(-(variance if kl is None else kl), kind="stable")


def check_components(components: Iterable[int], n_components: int) -> tuple[int, ...]:
    """Return components as a tuple; raise a ValueError if the model lacks one of them."""
    chosen = tuple(components)
    if not chosen or not all(i in range(n_components) for i in chosen):
        raise ValueError(
            f"components must be numbers from 0 to {n_components - 1}, since the model has "
            f"n_components={n_components}. Got {components!r}."
        )
    return tuple(map(int, chosen))
