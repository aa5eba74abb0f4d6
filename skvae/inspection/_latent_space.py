"""Displays of the latent space: how active its components are, and where rows lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_consistent_length, column_or_1d

from skvae._backend.tensors import Array
from skvae._data import containers
from skvae._model.state import ACTIVE_VARIANCE
from skvae._typing import Estimator, Rows
from skvae.inspection._display import (
    BESIDE,
    COLOURS,
    Display,
    Source,
    activity,
    check_components,
    most_active,
)
from skvae.likelihoods import _choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import EllipseCollection, PathCollection

LABEL_POINTS = 18  # width of a component's number below its bar, with some space beside it


@dataclass(eq=False, repr=False, kw_only=True)
class ComponentsDisplay(Display):
    """Bars of how many nats each component tells of a row, sorted: the scree plot of a VAE.

    The height of the bar of component j is KL(q(z_j|x) || p(z_j)), the mean over rows. The
    divergence is a sum over components only for a posterior "diagonal" and a prior
    "standard_normal". For other models the height is the variance of the posterior mean over rows.
    In both cases a component is active if this variance is above 0.01 [1]_. The other components
    are collapsed: they tell next to nothing of the row.

    Parameters
    ----------
    kl : ndarray of shape (n_components,) or None
        Nats per row; None if the divergence is not a sum over components.
    variance : ndarray of shape (n_components,)
        Variance of the posterior means over rows.
    threshold : float, default=0.01
        Variance above which a component is active.

    Attributes
    ----------
    order : ndarray of shape (n_components,)
        Indices of the components from left to right, the most active first.
    active : ndarray of shape (n_components,)
        Whether each component is active, in the order of the model.
    ax_ : matplotlib Axes
        The axes of the picture.
    figure_ : matplotlib Figure
        Its figure.

    See Also
    --------
    skvae.metrics.kl_per_component : The divergences.
    skvae.metrics.active_units : The number of active components.

    References
    ----------
    .. [1] Importance weighted autoencoders (Y. Burda, R. Grosse & R. Salakhutdinov, 2016),
       https://arxiv.org/abs/1509.00519, section 5.2.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.inspection import ComponentsDisplay
    >>> X = load_iris().data
    >>> vae = VAETransformer(4, max_iter=20, random_state=0).fit(X)
    >>> display = ComponentsDisplay.from_estimator(vae, X)
    >>> display.kl.shape
    (4,)
    """

    __module__ = "skvae.inspection"

    kl: np.ndarray | None
    variance: np.ndarray
    threshold: float = ACTIVE_VARIANCE

    @classmethod
    def from_estimator(
        cls,
        estimator: Estimator,
        X: Rows,
        *,
        threshold: float = ACTIVE_VARIANCE,
        ax: "Axes | None" = None,
    ) -> Self:
        """Draw how active the components of a fitted estimator are for rows.

        Parameters
        ----------
        estimator : VAETransformer, Pipeline or fitted search
            The model.
        X : array-like of shape (n_samples, n_features)
            Rows.
        threshold : float, default=0.01
            Variance of the posterior mean over rows above which a component is active.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a figure.

        Returns
        -------
        display : ComponentsDisplay
            The numbers, drawn.
        """
        kl, variance, _, _ = activity(Source(cls, estimator), X)
        return cls(kl=kl, variance=variance, threshold=threshold).plot(ax)

    def __post_init__(self) -> None:
        """Sort the components."""
        self.order: np.ndarray = most_active(self.kl, self.variance)
        self.active: np.ndarray = self.variance > self.threshold

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw a bar for each component.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a figure.

        Returns
        -------
        display : ComponentsDisplay
            Itself.
        """
        n = len(self.variance)
        ax = self._begin(ax, (min(max(4.8, 0.3 * n + 1.5), 10), 3.6))
        heights = (self.variance if self.kl is None else self.kl)[self.order]
        self._draw_bars(ax, heights)
        if self.kl is None:
            ax.axhline(
                self.threshold, color="0.3", linestyle=":", label=f"Threshold: {self.threshold:g}"
            )
        name = "Variance of posterior means" if self.kl is None else "KL divergence (nats per row)"
        ax.set(xlabel="Component, sorted", ylabel=name)
        self._label_bars(ax)
        self._add_legend(ax, heights)
        return self

    def _draw_bars(self, ax: "Axes", heights: Array) -> None:
        """Draw the bars of active and of collapsed components."""
        styles: dict[str, Any] = {
            "Active": {"color": COLOURS[0]},
            "Collapsed": {"color": "w", "hatch": "////"},
        }
        for (name, style), active in zip(styles.items(), (True, False), strict=True):
            x = np.flatnonzero(self.active[self.order] == active)
            if len(x):
                ax.bar(x, heights[x], edgecolor="0.4", label=f"{name}: {len(x)}", **style)

    def _label_bars(self, ax: "Axes") -> None:
        """Write the indices of components below their bars, as many as there is room for."""
        n, inches = len(self.order), ax.get_window_extent().width / self.figure_.dpi
        fitting = max(1, int(inches * 72 / LABEL_POINTS))
        labelled = range(0, n, 1 + (n - 1) // fitting)
        components = self.order[labelled].tolist()
        ax.set_xticks(labelled, [str(component) for component in components])
        for label, component in zip(ax.get_xticklabels(), components, strict=True):
            label.set_color("k" if self.active[component] else "0.6")

    def _add_legend(self, ax: "Axes", heights: Array) -> None:
        """Add a legend inside the axes, and raise their upper limit so that it covers no bar."""
        n, box = len(heights), ax.get_window_extent()
        criterion = f"Active: variance of means > {self.threshold:g}"
        legend = ax.legend(
            title=None if self.kl is None else criterion,
            alignment="left",
            loc="upper right",
            edgecolor="none",
            fontsize="small",
            title_fontsize="small",
        )
        # Bars end below the legend, or in a very small picture at half of the height.
        width, height = np.asarray(legend.get_window_extent().size) / np.asarray(box.size)
        left, right = ax.get_xlim()
        under = np.arange(n) + 0.5 > right - (width + 0.05) * (right - left)
        highest = heights[under].max()
        # Data limits also raise the limits of axes that share this axis.
        ax.update_datalim([(0, highest / max(0.5, 0.98 - height))])
        ax.autoscale_view()


@dataclass(eq=False, repr=False, kw_only=True)
class LatentSpaceDisplay(Display):
    """Posterior means of rows in the plane of two components.

    Parameters
    ----------
    mean, std : ndarray of shape (n_samples, 2)
        Means and standard deviations of the rows' posteriors, for the two components.
    components : tuple of 2 int
        Indices of the two components, counted from 0.
    y : array-like of shape (n_samples,) or None, default=None
        Values that colour the rows. If it is a Series, the colour bar has its name.

    Attributes
    ----------
    scatters_ : list of matplotlib PathCollection
        The points, one collection for each class or one for all rows, then one for the rows
        whose `y` is missing, if any.
    ellipses_ : matplotlib EllipseCollection or None
        The ellipses.
    ax_ : matplotlib Axes
        The axes of the picture.
    figure_ : matplotlib Figure
        Its figure.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.inspection import LatentSpaceDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> vae = VAETransformer(3, max_iter=20, random_state=0).fit(X)
    >>> display = LatentSpaceDisplay.from_estimator(vae, X, y)
    >>> display.mean.shape
    (150, 2)
    """

    __module__ = "skvae.inspection"

    mean: np.ndarray
    std: np.ndarray
    components: tuple[int, int]
    y: Any = None

    @classmethod
    def from_estimator(
        cls,
        estimator: Estimator,
        X: Rows,
        y: ArrayLike | Sequence[Any] | None = None,
        *,
        components: Sequence[int] | None = None,
        ax: "Axes | None" = None,
        **options: Any,
    ) -> Self:
        """Draw where a fitted estimator puts rows.

        Parameters
        ----------
        estimator : VAETransformer, Pipeline or fitted search
            The model, with at least two components.
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : array-like of shape (n_samples,), default=None
            Values that colour the rows. Fewer than 20 different values, or values that are not
            numbers, are classes, in a legend. Other numbers have a colour bar. Rows with a
            missing value are grey.
        components : tuple of 2 int, default=None
            Indices of the components, counted from 0. None: the two most active, by KL divergence,
            or by the variance of their means if the divergence is not a sum over components.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a figure.
        **options : dict
            Options of `plot`.

        Returns
        -------
        display : LatentSpaceDisplay
            The numbers, drawn.
        """
        source = Source(cls, estimator)
        if source.n_components < 2:
            raise ValueError(
                "LatentSpaceDisplay shows two components. Got a model of n_components=1: draw a "
                "histogram of transform(X)."
            )
        kl, variance, mean, std = activity(source, X)
        if components is None:
            components = most_active(kl, variance)[:2].tolist()
        chosen = check_components(components, source.n_components)
        if len(chosen) != 2:
            raise ValueError(f"components must be two. Got {chosen!r}.")
        if y is not None:
            check_consistent_length(mean, y)
        mean, std = mean[:, chosen], std[:, chosen]
        return cls(mean=mean, std=std, components=chosen, y=y).plot(ax, **options)

    def plot(self, ax: "Axes | None" = None, *, ellipses: bool = False) -> Self:
        """Draw the rows.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a figure.
        ellipses : bool, default=False
            Whether to draw an ellipse of one posterior standard deviation around each mean. Its
            axes are those of the picture, for any posterior.

        Returns
        -------
        display : LatentSpaceDisplay
            Itself.
        """
        ax = self._begin(ax, (5.4, 4.4))
        self.scatters_: list[PathCollection] = []
        edges = np.empty((len(self.mean), 4))
        groups = _groups(self.y, len(self.mean))
        for own, look in groups:
            x, y = self.mean[own].T
            points = ax.scatter(x, y, s=12, linewidths=0, **look)
            points.update_scalarmappable()
            edges[own] = points.get_facecolor()
            self.scatters_.append(points)
        has_bar = self.scatters_[0].get_array() is not None
        if has_bar:
            self.figure_.colorbar(self.scatters_[0], ax=ax, label=_name(self.y))
        if any("label" in look for _, look in groups):
            where: dict[str, Any] = {} if has_bar else BESIDE
            ax.legend(markerscale=2, **where)
        self.ellipses_: EllipseCollection | None = (
            self._add_ellipses(ax, edges) if ellipses else None
        )
        x_label, y_label = (f"Posterior mean of component {i}" for i in self.components)
        ax.set(xlabel=x_label, ylabel=y_label)
        ax.set_aspect("equal", adjustable="datalim")
        return self

    def _add_ellipses(self, ax: "Axes", edges: Array) -> "EllipseCollection":
        """Draw an ellipse around each mean, in the colour of its point."""
        from matplotlib.collections import EllipseCollection

        widths, heights = 2 * self.std.T
        ellipses = EllipseCollection(
            widths,
            heights,
            np.zeros(len(widths)),
            units="xy",
            offsets=self.mean,
            offset_transform=ax.transData,
            facecolors="none",
            edgecolors=list(edges),
            linewidths=0.5,
            alpha=0.6,
        )
        ax.update_datalim(np.concatenate([self.mean - self.std, self.mean + self.std]))
        ax.add_collection(ellipses)
        return ellipses


def _groups(y: Any, n: int) -> list[tuple[Array, dict[str, Any]]]:
    """Split n rows into groups of one look; return a mask and the look of each group."""
    if y is None:
        return [(np.full(n, True), {"c": COLOURS[0]})]
    y = column_or_1d(y)
    missing = np.array([containers.is_missing(value) for value in y.tolist()])
    # A None makes numbers objects. A new array of the others has their dtype again.
    known = np.array(y[~missing].tolist())
    labels, codes = np.unique(known, return_inverse=True)
    groups: list[tuple[Array, dict[str, Any]]] = []
    if known.dtype.kind in "iuf" and len(labels) >= _choice.FEW_VALUES:
        groups.append((~missing, {"c": known, "cmap": "viridis"}))
    else:
        for i, label in enumerate(labels):
            own = ~missing
            own[own] = codes == i
            look = {"c": COLOURS[i % 10], "marker": "os^Dv"[i // 10 % 5], "label": label}
            groups.append((own, look))
    if missing.any():
        groups.append((missing, {"c": "0.8", "label": "missing"}))
    return groups


def _name(y: Any) -> str:
    """Return the name of y if it is a Series or a DataFrame of one column, otherwise "y"."""
    return getattr(y, "name", None) or next(iter(getattr(y, "columns", [])), "y")
