"""What the displays share: axes, the model behind an estimator, its rows as they are shown."""

import math
from typing import TYPE_CHECKING

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils.validation import check_is_fitted

from skvae import _pipeline, metrics
from skvae._data import arrays, codes, containers, words
from skvae.networks import Conv

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Ten colours that people with deficient colour vision, too, can tell apart (M. A. Petroff,
# Accessible color sequences for data visualization, 2021, arXiv:2107.02270).
COLOURS = ["#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"]
COLOURS += ["#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"]
N_CHANNELS = (1, 3)  # of images that can be drawn
MOST_PANELS = 16  # of features, unless the user says which
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False, "fontsize": "small"}


class Display:
    """The axes that are drawn on."""

    ax_: "Axes"
    figure_: "Figure"

    def _begin(self, ax, size):
        """The axes to draw on: `ax`, or those of a new figure of `size`, in inches."""
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(figsize=size, layout="constrained")
        self.ax_, self.figure_ = ax, ax.figure
        return ax


# --- rows ---------------------------------------------------------------------------------


class Source:
    """The model behind an estimator, and rows as they are shown.

    That is in the units of the estimator's input, or of the model's own where a step before it
    has no inverse.
    """

    def __init__(self, display, estimator):
        check_matplotlib_support(f"{display.__name__}.from_estimator")
        self.before, self.vae = _pipeline.split(estimator, f"{display.__name__} expects")
        check_is_fitted(self.vae)
        self.n_components = self.vae._fitted.n_components
        self.inverts = all(_pipeline.has_inverse(step) for _, step in self.before)

    def see(self, X):
        """Rows X as the model sees them."""
        return _pipeline.transform(self.before, X)

    def data(self, X):
        """Rows X as they are shown."""
        return X if self.inverts else self.see(X)

    def decode(self, Z):
        """E[x|z] of latent rows Z, as shown."""
        return self.show(self.vae.inverse_transform(Z))

    def show(self, rows):
        """Rows of the model as they are shown."""
        return _pipeline.invert(self.before, rows) if self.inverts else rows

    def choose(self, rows, image_shape, features):
        """Places of the columns to show of rows like `rows`; what displays say of them."""
        if image_shape is not None and features is not None:
            raise ValueError(
                "An image has all features. Give image_shape or features, not both. Got "
                f"image_shape={image_shape!r} and features={features!r}."
            )
        names, network = self._names(rows), self.vae._fitted.architecture.network
        if image_shape is None and features is None and isinstance(network, Conv):
            known = network.image_shape
            fits = known[0] in N_CHANNELS and math.prod(known) == len(names)
            image_shape = known if fits else None
        if image_shape is None:
            places = _choose(rows, names, features)
        else:
            image_shape = _check_image_shape(image_shape, len(names))
            places = list(range(len(names)))
        return places, {
            "feature_names": [names[i] for i in places],
            "image_shape": image_shape,
            "units": None if self.inverts else f"after {self.before[-1][0]!r}",
        }

    def _names(self, rows):
        names = containers.names(rows)
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


def take(rows, places):
    """The columns of rows at these places, numbers (n, n_shown)."""
    rows = arrays.dense(containers.to_validate(rows))
    if isinstance(rows, np.ndarray) and rows.dtype.kind in "biuf":
        return rows[:, places].astype(np.float64)
    columns = [codes.to_numbers(rows, i, words.UNNAMED) for i in places]
    return np.stack(columns, axis=1)


def _check_image_shape(shape, n_features):
    """(channels, height, width), of a shape that may have no channels."""
    whole = tuple(shape) if np.iterable(shape) else (shape,)
    whole = (1, *whole) if len(whole) == 2 else whole
    if len(whole) != 3 or whole[0] not in N_CHANNELS or math.prod(whole) != n_features:
        raise ValueError(
            "image_shape must be (height, width) or (channels, height, width), with 1 or 3 "
            f"channels, of {n_features} values in all, as rows have. Got {shape!r}."
        )
    return whole


def _choose(rows, names, features):
    """Places of the features to show, all of them numbers."""
    is_number = [containers.kind(rows, i) != "O" for i in range(len(names))]
    if features is None:
        features = np.flatnonzero(is_number)[:MOST_PANELS].tolist()
    if isinstance(features, str) or not np.iterable(features):
        raise ValueError(
            f"features must be a list of names or places of columns. Got {features!r}."
        )
    places = []
    for feature in features:
        if feature not in names and feature not in range(len(names)):
            raise ValueError(
                f"features has {feature!r}, which is neither a column nor its place. The columns "
                f"are {names}."
            )
        places.append(names.index(feature) if feature in names else int(feature))
        if not is_number[places[-1]]:
            raise ValueError(
                f"features has {feature!r}, whose values are categories. Only numbers can be shown."
            )
    if not places:
        raise ValueError(
            "There is no column of numbers to show. See the rows that transform, sample and "
            "inverse_transform give."
        )
    return places


# --- components -------------------------------------------------------------------------


def activity(source, X):
    """What tells how active each component is: KL divergence or None, and variance of means.

    And the posterior means and standard deviations of the rows of X.
    """
    seen = source.see(X)
    mean, std = source.vae.encode(seen)
    kl = None
    architecture = source.vae._fitted.architecture
    if architecture.has_kl and architecture.posterior.factorises:
        kl = metrics.kl_per_component(source.vae, seen)
    return kl, mean.var(axis=0, dtype=np.float64), mean, std


def most_active(kl, variance):
    """Components, the most active first."""
    return np.argsort(-(variance if kl is None else kl), kind="stable")


def check_components(components, n_components):
    """Components as a tuple, or a ValueError where the model has no such."""
    chosen = tuple(components)
    if not chosen or not all(i in range(n_components) for i in chosen):
        raise ValueError(
            f"components must be numbers from 0 to {n_components - 1}, since the model has "
            f"n_components={n_components}. Got {components!r}."
        )
    return tuple(map(int, chosen))
