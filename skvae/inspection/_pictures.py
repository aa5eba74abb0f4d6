"""Displays of rows as images or by feature: data, reconstructions, traversals and samples."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from scipy.stats import norm
from sklearn.utils import check_scalar

from skvae._backend.tensors import Array
from skvae._typing import Estimator, RandomState, Rows
from skvae.inspection._display import (
    BESIDE,
    COLOURS,
    Display,
    Source,
    activity,
    check_components,
    most_active,
    take,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap


@dataclass(eq=False, repr=False, kw_only=True)
class RowsDisplay(Display):
    """Rows as images, or as a panel for each feature."""

    feature_names: list[str]
    image_shape: tuple[int, int, int] | None = None
    units: str | None = None

    def _begin_panels(self, ax: "Axes | None", x: str, y: str) -> "list[Axes]":
        """Make a panel for each feature inside `ax`, which becomes invisible.

        `x` and `y` are the labels of the axes of the outer panels.
        """
        n = len(self.feature_names)
        n_columns = n if n <= 3 else min(4, math.ceil(math.sqrt(n)))
        n_rows = math.ceil(n / n_columns)
        ax = self._begin(ax, (max(2.3 * n_columns, 4.0), 2.1 * n_rows + 0.4))
        ax.set_axis_off()
        spec = ax.get_subplotspec()
        gaps: dict[str, Any] = {}
        if not self.figure_.get_layout_engine():
            gaps = {"wspace": 0.5, "hspace": 0.7}
        grid: Any
        if spec is None:
            (left, bottom), (right, top) = ax.get_position().get_points()
            gaps |= {"left": left, "bottom": bottom, "right": right, "top": top}
            grid = self.figure_.add_gridspec(n_rows, n_columns, **gaps)
        else:
            grid = spec.subgridspec(n_rows, n_columns, **gaps)
        panels = [self.figure_.add_subplot(grid[divmod(i, n_columns)]) for i in range(n)]
        self.axes_: np.ndarray | None = np.array(panels)
        self._last_of_row = panels[n_columns - 1]
        for i, (panel, name) in enumerate(zip(panels, self.feature_names, strict=True)):
            panel.set_title(name if len(name) <= 20 else f"{name[:19]}…", fontsize="medium")
            panel.tick_params(labelsize="small")
            if i + n_columns >= n:
                panel.set_xlabel(x, fontsize="small")
            if i % n_columns == 0:
                panel.set_ylabel(y, fontsize="small")
        return panels

    def _in_units(self, label: str) -> str:
        """Return the label of an axis of values, with units unless they are the input's."""
        return label if self.units is None else f"{label} ({self.units})"

    def _draw_images(
        self,
        ax: "Axes | None",
        images: Array,
        cmap: "str | Colormap",
        like: Array,
        rows: Sequence[str],
        columns: Sequence[str] = (),
    ) -> "Axes":
        """Draw images (R, C, n_shown) in rows, with labels of rows and columns.

        Black and white are about the least and the largest value of `like`. NaN is left blank.
        """
        shape: Any = self.image_shape
        n_channels, height, width = shape
        n_rows, n_columns, _ = images.shape
        inches = min(0.75, 9 / n_columns) * n_columns
        size = inches + 1.2, inches * n_rows * height / (n_columns * width) + 0.7
        ax, self.axes_ = self._begin(ax, size), None
        low, high = np.nanquantile(like, [0.005, 0.995])
        if low == high:
            low, high = np.nanmin(like), np.nanmax(like)
        gap = max(1, height // 14)
        canvas = np.full((n_rows, height + gap, n_columns, width + gap, n_channels), np.nan)
        images = images.reshape(n_rows, n_columns, *shape)
        canvas[:, :height, :, :width] = images.transpose(0, 3, 1, 4, 2)
        canvas = canvas.reshape(n_rows * (height + gap), n_columns * (width + gap), n_channels)
        canvas = canvas[:-gap, :-gap]
        if n_channels == 3:
            canvas = np.nan_to_num(np.clip((canvas - low) / (high - low or 1), 0, 1), nan=1.0)
        ax.imshow(canvas if n_channels == 3 else canvas[..., 0], cmap=cmap, vmin=low, vmax=high)
        ax.set_yticks((height - 1) / 2 + (height + gap) * np.arange(len(rows)), rows)
        ax.set_xticks((width - 1) / 2 + (width + gap) * np.arange(len(columns)), columns)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        if self.units is not None:
            ax.set_title(f"Pixels {self.units}", fontsize="medium")
        return ax


@dataclass(eq=False, repr=False, kw_only=True)
class ReconstructionDisplay(RowsDisplay):
    """Rows beside their reconstructions, E[x|z] at the posterior mean z.

    Images are drawn as images. Other rows have a panel for each feature, with reconstructions
    against values.

    Parameters
    ----------
    feature_names : list of str
        Names of the features that are shown.
    image_shape : tuple of 3 int or None, default=None
        (channels, height, width) of rows that are images.
    units : str or None, default=None
        The units of rows, if they are not those of the estimator's input.
    data, reconstruction : ndarray of shape (n_samples, n_shown)
        Rows and their reconstructions.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes of the picture, or around the panels.
    axes_ : ndarray of matplotlib Axes or None
        The panels of the features.
    figure_ : matplotlib Figure
        Their figure.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skvae import VAETransformer
    >>> from skvae.inspection import ReconstructionDisplay
    >>> X = load_digits().data
    >>> vae = VAETransformer(2, max_iter=2, random_state=0).fit(X)
    >>> display = ReconstructionDisplay.from_estimator(vae, X[:10], image_shape=(8, 8))
    >>> display.reconstruction.shape
    (10, 64)
    """

    __module__ = "skvae.inspection"

    data: np.ndarray
    reconstruction: np.ndarray

    @classmethod
    def from_estimator(
        cls,
        estimator: Estimator,
        X: Rows,
        *,
        image_shape: Sequence[int] | None = None,
        features: Sequence[str | int] | None = None,
        ax: "Axes | None" = None,
        **options: Any,
    ) -> Self:
        """Draw rows and their reconstructions by a fitted estimator.

        Parameters
        ----------
        estimator : VAETransformer, Pipeline or fitted search
            The model.
        X : array-like of shape (n_samples, n_features)
            Rows.
        image_shape : tuple of int, default=None
            (height, width) or (channels, height, width) of rows that are images. None: the shape
            of a `skvae.networks.Conv`; with other networks rows are not images.
        features : list of str or int, default=None
            Names or indices of the features to show if rows are not images; their values must be
            numbers. None: the first 16 features of numbers.
        ax : matplotlib Axes, default=None
            Axes to draw in, with panels inside; None makes a figure.
        **options : dict
            Options of `plot`.

        Returns
        -------
        display : ReconstructionDisplay
            The numbers, drawn.
        """
        source = Source(cls, estimator)
        reconstruction = source.decode(source.vae.encode(source.transform(X))[0])
        index, shown = source.choose(reconstruction, image_shape, features)
        data, reconstruction = take(source.to_shown(X), index), take(reconstruction, index)
        return cls(data=data, reconstruction=reconstruction, **shown).plot(ax, **options)

    def plot(
        self, ax: "Axes | None" = None, *, n_images: int = 10, cmap: "str | Colormap" = "gray"
    ) -> Self:
        """Draw the rows and their reconstructions.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw in, with panels inside; None makes a figure.
        n_images : int, default=10
            Number of images to show; they are the first rows.
        cmap : str or matplotlib Colormap, default="gray"
            Colours of images of one channel.

        Returns
        -------
        display : ReconstructionDisplay
            Itself.
        """
        if self.image_shape is not None:
            check_scalar(n_images, "n_images", int, min_val=1)
            images = np.stack([self.data[:n_images], self.reconstruction[:n_images]])
            self._draw_images(ax, images, cmap, images[0], ["Data", "Reconstruction"])
            return self
        panels = self._begin_panels(ax, self._in_units("Value"), "Reconstruction")
        for panel, x, y in zip(panels, self.data.T, self.reconstruction.T, strict=True):
            panel.scatter(x, y, s=6, alpha=0.5, linewidths=0, c=COLOURS[0])
            ends = np.nanmin(x), np.nanmax(x)
            panel.plot(ends, ends, color="0.3", linewidth=0.8, linestyle="--")
        return self


@dataclass(eq=False, repr=False, kw_only=True)
class TraversalDisplay(RowsDisplay):
    """Decoded rows E[x|z] for z along single components, or in the plane of two components.

    Images are drawn as images, with one component in each row of the picture. Other rows have a
    panel for each feature, with a curve for each component or a map of the plane.

    Parameters
    ----------
    feature_names : list of str
        Names of the features that are shown.
    image_shape : tuple of 3 int or None, default=None
        (channels, height, width) of rows that are images.
    units : str or None, default=None
        The units of rows, if they are not those of the estimator's input.
    components : tuple of int
        Indices of the components that change, counted from 0; all others are 0.
    grid : ndarray of shape (n_steps,)
        Values of these components.
    values : ndarray of shape (n_moved, n_steps, n_shown) or (n_steps, n_steps, n_shown)
        E[x|z]. For "components", ``values[i, j]`` has ``components[i]`` at ``grid[j]``. For
        "manifold", it has the first component at ``grid[j]`` and the second at ``grid[i]``.
    kind : {"components", "manifold"}, default="components"
        Whether z moves along single components, or in the plane of two.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes of the picture, or around the panels.
    axes_ : ndarray of matplotlib Axes or None
        The panels of the features.
    figure_ : matplotlib Figure
        Their figure.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skvae import VAETransformer
    >>> from skvae.inspection import TraversalDisplay
    >>> X = load_digits().data
    >>> vae = VAETransformer(2, max_iter=2, random_state=0).fit(X)
    >>> display = TraversalDisplay.from_estimator(vae, image_shape=(8, 8))
    >>> display.values.shape
    (2, 11, 64)
    """

    __module__ = "skvae.inspection"

    components: tuple[int, ...]
    grid: np.ndarray
    values: np.ndarray
    kind: str = "components"

    @classmethod
    def from_estimator(
        cls,
        estimator: Estimator,
        X: Rows | None = None,
        *,
        kind: Literal["components", "manifold"] = "components",
        components: Sequence[int] | None = None,
        n_steps: int = 11,
        image_shape: Sequence[int] | None = None,
        features: Sequence[str | int] | None = None,
        ax: "Axes | None" = None,
        **options: Any,
    ) -> Self:
        """Draw decoded rows of a fitted estimator for a grid of latent rows.

        Parameters
        ----------
        estimator : VAETransformer, Pipeline or fitted search
            The model.
        X : array-like of shape (n_samples, n_features), default=None
            Rows to measure how active components are; the most active come first. None: the order
            of the model, which has no meaning.
        kind : {"components", "manifold"}, default="components"
            "components" moves each component from -3 to 3, an interval that has 99.7 % of N(0, 1).
            "manifold" moves two components over quantiles of N(0, 1), so that all cells of the
            grid have the same probability [1]_.
        components : sequence of int, default=None
            Indices of the components, counted from 0. None: the first ten, or the first two for
            "manifold".
        n_steps : int, default=11
            Number of values of each component.
        image_shape : tuple of int, default=None
            (height, width) or (channels, height, width) of rows that are images. None: the shape
            of a `skvae.networks.Conv`; with other networks rows are not images.
        features : list of str or int, default=None
            Names or indices of the features to show if rows are not images; their values must be
            numbers. None: the first 16 features of numbers.
        ax : matplotlib Axes, default=None
            Axes to draw in, with panels inside; None makes a figure.
        **options : dict
            Options of `plot`.

        Returns
        -------
        display : TraversalDisplay
            The numbers, drawn.

        References
        ----------
        .. [1] Auto-encoding variational Bayes (D. P. Kingma & M. Welling, 2013),
           https://arxiv.org/abs/1312.6114, appendix A.
        """
        source = Source(cls, estimator)
        if kind not in ("components", "manifold"):
            raise ValueError(f"kind must be 'components' or 'manifold'. Got {kind!r}.")
        check_scalar(n_steps, "n_steps", int, min_val=2)
        if components is None:
            order = list(range(source.n_components))
            if X is not None:
                order = most_active(*activity(source, X)[:2]).tolist()
            components = order[: 10 if kind == "components" else 2]
        chosen = check_components(components, source.n_components)
        move = _move_each if kind == "components" else _move_two
        grid, Z = move(chosen, n_steps, source.n_components)
        decoded = source.decode(Z.reshape(-1, source.n_components))
        index, shown = source.choose(decoded, image_shape, features)
        values = take(decoded, index).reshape(*Z.shape[:2], -1)
        display = cls(components=chosen, grid=grid, values=values, kind=kind, **shown)
        return display.plot(ax, **options)

    def plot(self, ax: "Axes | None" = None, *, cmap: "str | Colormap" = "gray") -> Self:
        """Draw the expected rows.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw in, with panels inside; None makes a figure.
        cmap : str or matplotlib Colormap, default="gray"
            Colours of images of one channel.

        Returns
        -------
        display : TraversalDisplay
            Itself.
        """
        labels = [f"Component {component}" for component in self.components]
        if self.image_shape is not None:
            self._draw_all_images(ax, cmap, labels)
        elif self.kind == "components":
            panels = self._begin_panels(ax, "z", self._in_units("E[x|z]"))
            for panel, curves in zip(panels, np.moveaxis(self.values, 2, 0), strict=True):
                for i, label in enumerate(labels):
                    panel.plot(self.grid, curves[i], color=COLOURS[i % 10], label=label)
            self._last_of_row.legend(**BESIDE)
        else:
            panels = self._begin_panels(ax, *labels)
            for panel, plane in zip(panels, np.moveaxis(self.values, 2, 0), strict=True):
                map_ = panel.pcolormesh(self.grid, self.grid, plane, shading="gouraud")
                bar = self.figure_.colorbar(map_, ax=panel)
                bar.ax.tick_params(labelsize="small")
                if panel is self._last_of_row:
                    bar.set_label(self._in_units("E[x|z]"), fontsize="small")
        return self

    def _draw_all_images(
        self, ax: "Axes | None", cmap: "str | Colormap", labels: list[str]
    ) -> None:
        """Draw the decoded rows as images, with the values of the components beside them."""
        steps = [f"{step:.1f}" for step in self.grid]
        if self.kind == "components":
            ax = self._draw_images(ax, self.values, cmap, self.values, labels, steps)
            ax.set_xlabel("Value of the component, all others at 0")
        else:  # the second component rises from bottom to top
            ax = self._draw_images(ax, self.values[::-1], cmap, self.values, steps[::-1], steps)
            ax.set(xlabel=labels[0], ylabel=labels[1])


def _move_each(components: tuple[int, ...], n_steps: int, n_components: int) -> tuple[Array, Array]:
    """Return the values of each component, and latent rows (n_moved, n_steps, n_components)."""
    grid = np.linspace(-3, 3, n_steps)
    Z = np.zeros((len(components), n_steps, n_components))
    for i, component in enumerate(components):
        Z[i, :, component] = grid
    return grid, Z


def _move_two(components: tuple[int, ...], n_steps: int, n_components: int) -> tuple[Array, Array]:
    """Return the values of two components, and latent rows of all pairs of values."""
    if len(set(components)) != 2 or len(components) != 2:
        raise ValueError(
            "kind='manifold' moves two components. Got "
            f"components={components!r} of a model with n_components={n_components}: name two."
        )
    grid = norm.ppf((np.arange(n_steps) + 0.5) / n_steps)
    Z = np.zeros((n_steps, n_steps, n_components))
    Z[:, :, components[0]], Z[:, :, components[1]] = np.meshgrid(grid, grid)
    return grid, Z


@dataclass(eq=False, repr=False, kw_only=True)
class SampleDisplay(RowsDisplay):
    """Rows drawn from the model, beside rows of data if they are given.

    Images are drawn as images. Other rows have a panel for each feature, with histograms.

    Parameters
    ----------
    feature_names : list of str
        Names of the features that are shown.
    image_shape : tuple of 3 int or None, default=None
        (channels, height, width) of rows that are images.
    units : str or None, default=None
        The units of rows, if they are not those of the estimator's input.
    samples : ndarray of shape (n_samples, n_shown)
        Drawn rows.
    data : ndarray of shape (n_rows, n_shown) or None, default=None
        Rows of data.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes of the picture, or around the panels.
    axes_ : ndarray of matplotlib Axes or None
        The panels of the features.
    figure_ : matplotlib Figure
        Their figure.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.inspection import SampleDisplay
    >>> X = load_iris(as_frame=True).data
    >>> vae = VAETransformer(2, max_iter=20, random_state=0).fit(X)
    >>> display = SampleDisplay.from_estimator(vae, X, random_state=0)
    >>> display.samples.shape
    (1000, 4)
    """

    __module__ = "skvae.inspection"

    samples: np.ndarray
    data: np.ndarray | None = None

    @classmethod
    def from_estimator(
        cls,
        estimator: Estimator,
        X: Rows | None = None,
        *,
        n_samples: int = 1000,
        mean: bool = False,
        random_state: RandomState = None,
        image_shape: Sequence[int] | None = None,
        features: Sequence[str | int] | None = None,
        ax: "Axes | None" = None,
        **options: Any,
    ) -> Self:
        """Draw rows from a fitted estimator.

        Parameters
        ----------
        estimator : VAETransformer, Pipeline or fitted search
            The model.
        X : array-like of shape (n_rows, n_features), default=None
            Data to compare with.
        n_samples : int, default=1000
            Number of rows to draw.
        mean : bool, default=False
            If True, show E[x|z] of the drawn z, without observation noise.
        random_state : int, RandomState instance or None, default=None
            Decides the draws; None uses numpy's global generator.
        image_shape : tuple of int, default=None
            (height, width) or (channels, height, width) of rows that are images. None: the shape
            of a `skvae.networks.Conv`; with other networks rows are not images.
        features : list of str or int, default=None
            Names or indices of the features to show if rows are not images; their values must be
            numbers. None: the first 16 features of numbers.
        ax : matplotlib Axes, default=None
            Axes to draw in, with panels inside; None makes a figure.
        **options : dict
            Options of `plot`.

        Returns
        -------
        display : SampleDisplay
            The numbers, drawn.
        """
        source = Source(cls, estimator)
        samples = source.invert(source.vae.sample(n_samples, random_state, mean=mean))
        index, shown = source.choose(samples, image_shape, features)
        data = None if X is None else take(source.to_shown(X), index)
        return cls(samples=take(samples, index), data=data, **shown).plot(ax, **options)

    def plot(
        self, ax: "Axes | None" = None, *, n_images: int = 30, cmap: "str | Colormap" = "gray"
    ) -> Self:
        """Draw the rows.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw in, with panels inside; None makes a figure.
        n_images : int, default=30
            Number of images to show of the samples and of the data; they are the first rows.
        cmap : str or matplotlib Colormap, default="gray"
            Colours of images of one channel.

        Returns
        -------
        display : SampleDisplay
            Itself.
        """
        kinds = {"Samples": self.samples}
        if self.data is not None:
            kinds = {"Data": self.data, **kinds}
        if self.image_shape is not None:
            check_scalar(n_images, "n_images", int, min_val=1)
            self._draw_blocks(ax, {name: rows[:n_images] for name, rows in kinds.items()}, cmap)
            return self
        styles: dict[str, dict[str, Any]] = {
            "Data": {"color": "0.75", "histtype": "stepfilled"},
            "Samples": {"color": COLOURS[0], "histtype": "step", "linewidth": 1.5},
        }
        panels = self._begin_panels(ax, self._in_units("Value"), "Density")
        for i, panel in enumerate(panels):
            bins: Any = _bins(np.concatenate([rows[:, i] for rows in kinds.values()]))
            for name, rows in kinds.items():
                panel.hist(rows[:, i], bins, density=True, label=name, **styles[name])
        self._last_of_row.legend(**BESIDE)
        return self

    def _draw_blocks(
        self, ax: "Axes | None", kinds: Mapping[str, Array], cmap: "str | Colormap"
    ) -> None:
        """Draw the images of each kind, in rows of ten."""
        n_columns = min(10, max(map(len, kinds.values())))
        blocks, labels = [], []
        for name, rows in kinds.items():
            n_rows = math.ceil(len(rows) / n_columns)
            block = np.full((n_rows * n_columns, rows.shape[1]), np.nan)
            block[: len(rows)] = rows
            blocks.append(block.reshape(n_rows, n_columns, -1))
            labels += [name] + [""] * (n_rows - 1)
        self._draw_images(ax, np.concatenate(blocks), cmap, blocks[0], labels)


def _bins(values: Array) -> Array:
    """Return edges of bins of a histogram: a bin for each number if they are whole and few."""
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0.005, 0.995])
    if high - low < 50 and np.all(values == np.rint(values)):
        return np.arange(np.floor(low), np.ceil(high) + 2) - 0.5
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, 31)
