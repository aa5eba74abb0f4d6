"""Displays of the latent space: what components tell of rows, and where rows lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_consistent_length, column_or_1d

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

LABEL_POINTS = 18  # the width of a component's number below its bar, with room beside it


@dataclass(eq=False, repr=False, kw_only=True)
class ComponentsDisplay(Display):
    """What each component tells of a row, sorted: the scree plot of a VAE.

    That is KL(q(z_j|x) || p(z_j)) of component j, mean over rows. Where the divergence is no sum
    over components, with a posterior other than "diagonal" or a prior other than "standard_normal",
    it is the variance of the posterior mean over rows. Whichever is shown, a component is active
    if that variance is above 0.01 [1]_. All others are collapsed: they tell next to nothing of the
    row.

    Parameters
    ----------
    kl : ndarray of shape (n_components,) or None
        Nats per row; None where the divergence is no sum over components.
    variance : ndarray of shape (n_components,)
        Variance of the posterior means over rows.
    threshold : float, default=0.01
        Variance above which a component is active.

    Attributes
    ----------
    order : ndarray of shape (n_components,)
        The components as they are drawn: the one that tells most first.
    active : ndarray of shape (n_components,)
        Whether each component is active, in the order of the model.
    ax_ : matplotlib Axes
        What was drawn on.
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
        """Draw what the components of a fitted estimator tell of rows.

        Parameters
        ----------
        estimator : VAETransformer, Pipeline or fitted search
            The model.
        X : array-like of shape (n_samples, n_features)
            Rows.
        threshold : float, default=0.01
            Variance of the posterior mean over rows above which a component is active.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

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
            Where to draw; None makes a figure.

        Returns
        -------
        display : ComponentsDisplay
            Itself.
        """
        n = len(self.variance)
        ax = self._begin(ax, (min(max(4.8, 0.3 * n + 1.5), 10), 3.6))
        heights = self.variance if self.kl is None else self.kl
        styles = {"Active": {"color": COLOURS[0]}, "Collapsed": {"color": "w", "hatch": "////"}}
        for (name, style), active in zip(styles.items(), (True, False), strict=True):
            places = np.flatnonzero(self.active[self.order] == active)
            if len(places):
                label, bars = f"{name}: {len(places)}", heights[self.order][places]
                ax.bar(places, bars, edgecolor="0.4", label=label, **style)
        if self.kl is None:
            ax.axhline(
                self.threshold, color="0.3", linestyle=":", label=f"Threshold: {self.threshold:g}"
            )
        name = "Variance of posterior means" if self.kl is None else "KL divergence (nats per row)"
        ax.set(xlabel="Component, sorted", ylabel=name)
        box = ax.get_window_extent()
        fitting = max(1, int(box.width / self.figure_.dpi * 72 / LABEL_POINTS))
        labelled = range(0, n, 1 + (n - 1) // fitting)
        ax.set_xticks(labelled, self.order[labelled])
        for label, component in zip(ax.get_xticklabels(), self.order[labelled], strict=True):
            label.set_color("k" if self.active[component] else "0.6")
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
        width, height = legend.get_window_extent().size / box.size
        left, right = ax.get_xlim()
        under = np.arange(n) + 0.5 > right - (width + 0.05) * (right - left)
        highest = heights[self.order][under].max()
        ax.update_datalim([(0, highest / max(0.5, 0.98 - height))])  # axes that share it grow too
        ax.autoscale_view()
        return self


@dataclass(eq=False, repr=False, kw_only=True)
class LatentSpaceDisplay(Display):
    """Posterior means of rows in the plane of two components.

    Parameters
    ----------
    mean, std : ndarray of shape (n_samples, 2)
        Means and standard deviations of the rows' posteriors, of the two components.
    components : tuple of 2 int
        Which components these are, counted from 0.
    y : array-like of shape (n_samples,) or None, default=None
        What colours the rows. Its name, if it is a Series, is that of the colour bar.

    Attributes
    ----------
    scatters_ : list of matplotlib PathCollection
        The rows: those of each class, or all; then those whose `y` is missing, if any.
    ellipses_ : matplotlib EllipseCollection or None
        The ellipses.
    ax_ : matplotlib Axes
        What was drawn on.
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
            The model, of at least two components.
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : array-like of shape (n_samples,), default=None
            What colours the rows. Fewer than 20 different values, and values that are no numbers,
            are classes, in a legend; other numbers have a colour bar. Where it is missing, rows
            are grey.
        components : tuple of 2 int, default=None
            Which components, counted from 0. None: the two most active, by KL divergence, or
            by the variance of their means where that is no sum over components.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
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
                "LatentSpaceDisplay shows two components. Got a model of n_components=1, whose "
                "latent space a histogram of transform(X) shows."
            )
        kl, variance, mean, std = activity(source, X)
        if components is None:
            components = most_active(kl, variance)[:2]
        components = check_components(components, source.n_components)
        if len(components) != 2:
            raise ValueError(f"components must be two. Got {components!r}.")
        if y is not None:
            check_consistent_length(mean, y)
        mean, std = mean[:, components], std[:, components]
        return cls(mean=mean, std=std, components=components, y=y).plot(ax, **options)

    def plot(self, ax: "Axes | None" = None, *, ellipses: bool = False) -> Self:
        """Draw the rows.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        ellipses : bool, default=False
            Whether to draw an ellipse of one posterior standard deviation around each mean, along
            the axes whatever the posterior.

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
            points = ax.scatter(*self.mean[own].T, s=12, linewidths=0, **look)
            points.update_scalarmappable()
            edges[own] = points.get_facecolor()
            self.scatters_.append(points)
        has_bar = self.scatters_[0].get_array() is not None
        if has_bar:
            self.figure_.colorbar(self.scatters_[0], ax=ax, label=_name(self.y))
        if any("label" in look for _, look in groups):
            ax.legend(markerscale=2, **({} if has_bar else BESIDE))
        self.ellipses_: EllipseCollection | None = (
            self._add_ellipses(ax, edges) if ellipses else None
        )
        for axis, component in zip("xy", self.components, strict=True):
            ax.set(**{f"{axis}label": f"Posterior mean of component {component}"})
        ax.set_aspect("equal", adjustable="datalim")
        return self

    def _add_ellipses(self, ax, edges):
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
        return ax.add_collection(ellipses)


def _groups(y, n):
    """Which of n rows are drawn at once, and how they look."""
    if y is None:
        return [(np.full(n, True), {"c": COLOURS[0]})]
    y = column_or_1d(y)
    missing = np.array([containers.is_missing(value) for value in y.tolist()])
    known = np.array(y[~missing].tolist())  # numbers that a None has made objects are so again
    labels, codes = np.unique(known, return_inverse=True)
    groups = []
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


def _name(y):
    """What y is called: a Series, a column of a DataFrame, or else "y"."""
    return getattr(y, "name", None) or next(iter(getattr(y, "columns", [])), "y")
