"""Displays of losses: the loss curves of a fit, and the losses of the candidates of a search."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from sklearn.base import clone
from sklearn.model_selection._search import BaseSearchCV
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils.validation import check_is_fitted

from skvae import _pipeline
from skvae._backend.tensors import Array
from skvae._typing import Estimator
from skvae.inspection._display import BESIDE, COLOURS, Display, Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_TICKS = 8  # largest number of values with a tick for each value
BETA_INCHES = 0.6  # width of the ticks and the label of the axis of beta
ELBO = "ELBO (nats per row)"
RING: dict[str, Any] = {"color": "k", "mfc": "none", "ms": 12, "linestyle": "none"}


@dataclass(eq=False, repr=False, kw_only=True)
class LossCurveDisplay(Display):
    """The negative ELBO of each epoch, and its two parts.

    The parts are the reconstruction term, -E[log p(x|z)], and the KL divergence. Dashed lines show
    the held-out rows. A vertical line marks the epoch whose weights were kept. With early stopping,
    this is the epoch of the least held-out loss at the final beta, in which rows far above the
    others count less. The negative ELBO may be least in another epoch.

    Parameters
    ----------
    history : dict of str to ndarray of shape (n_iter,)
        Numbers of every epoch, in nats per row, as in `VAETransformer.history_`.
    kept_iter : int or None, default=None
        The epoch that was kept, counted from 1; 0 for factor analysis. None: not known.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes of the curves.
    beta_ax_ : matplotlib Axes or None
        The axis of beta on the right; None if beta is the same in all epochs.
    figure_ : matplotlib Figure
        Their figure.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.inspection import LossCurveDisplay
    >>> vae = VAETransformer(2, max_iter=20, random_state=0).fit(load_iris().data)
    >>> display = LossCurveDisplay.from_estimator(vae)
    >>> display.history["negative_elbo"].shape
    (20,)
    """

    __module__ = "skvae.inspection"

    history: dict[str, np.ndarray]
    kept_iter: int | None = None

    @classmethod
    def from_estimator(cls, estimator: Estimator, *, ax: "Axes | None" = None) -> Self:
        """Draw how a fitted estimator was trained.

        Parameters
        ----------
        estimator : VAETransformer, Pipeline or fitted search
            The model.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a figure.

        Returns
        -------
        display : LossCurveDisplay
            The numbers, drawn.
        """
        vae = Source(cls, estimator).vae
        # A file of an earlier version has no such number.
        kept_iter = getattr(vae, "kept_iter_", None)
        return cls(history=vae.history_, kept_iter=kept_iter).plot(ax)

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a figure.

        Returns
        -------
        display : LossCurveDisplay
            Itself.
        """
        ax = self._begin(ax, (7.4, 4.2))
        self.beta_ax_: Axes | None = None
        history, beta = self.history, self.history["beta"]
        changes = bool(np.any(beta != beta[-1]))
        labels = {
            "negative_elbo": "Negative ELBO",
            "reconstruction": "Reconstruction",
            "kl": "KL divergence" if changes else f"KL divergence (β = {beta[-1]:g})",
        }
        epochs = 1 + np.arange(len(beta))
        for (term, label), colour in zip(labels.items(), COLOURS, strict=False):
            ax.plot(epochs, history[term], color=colour, label=label)
            if f"validation_{term}" in history:
                ax.plot(epochs, history[f"validation_{term}"], color=colour, linestyle="--")
        if "validation_loss" in history:
            ax.plot([], [], color="0.3", linestyle="--", label="Held-out rows")
        if self.kept_iter == 0:
            ax.plot([], [], " ", label="Factor analysis was kept")
        elif self.kept_iter is not None:
            label = f"Epoch kept: {self.kept_iter}"
            ax.axvline(self.kept_iter, color="0.3", linestyle=":", label=label)
        if changes:
            self.beta_ax_ = _add_beta(ax, epochs, beta)
        ax.set(xlabel="Epoch", ylabel="Nats per row", ylim=_limits(history))
        _add_legend(ax, BETA_INCHES if changes else 0.0)
        return self


def _add_beta(ax: "Axes", epochs: Array, beta: Array) -> "Axes":
    """Draw beta on an axis of its own, on the right."""
    beta_ax = ax.twinx()
    beta_ax.step(epochs, beta, where="mid", color="0.7")
    beta_ax.set(ylim=(0, 1.05 * beta.max()))
    beta_ax.set_ylabel("β", color="0.5", rotation=0, labelpad=10)
    beta_ax.tick_params(axis="y", colors="0.5")
    return beta_ax


def _add_legend(ax: "Axes", inches: float) -> None:
    """Add a legend to the right of the axes, at this distance: titles are above the axes."""
    from matplotlib.transforms import ScaledTranslation

    figure: Any = ax.figure
    shift = ScaledTranslation(inches, 0, figure.dpi_scale_trans)
    ax.legend(**BESIDE, bbox_transform=ax.transAxes + shift)


def _limits(history: Mapping[str, Array]) -> tuple[float, float]:
    """Limits of the curves without the first epochs, which may be thousands of nats above."""
    terms = [f"{rows}{term}" for rows in ("", "validation_") for term in ("reconstruction", "kl")]
    terms += ["negative_elbo", "validation_negative_elbo"]
    curves = [history[term][len(history[term]) // 10 :] for term in terms if term in history]
    low, high = np.nanmin(curves), np.nanmax(curves)
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin


@dataclass(eq=False, repr=False, kw_only=True)
class SearchDisplay(Display):
    """Results of a search over `beta` and `n_components`: negative ELBO, or rate and distortion.

    All numbers are of held-out rows. If other parameters vary, too, the best candidate of each pair
    of values is shown. For a search by successive halving the last iteration is shown, since only
    its candidates can be compared with the best.

    Parameters
    ----------
    beta : ndarray of shape (n_betas,)
        Values of `beta`, ascending.
    n_components : ndarray of shape (n_sizes,)
        Values of `n_components`, ascending.
    negative_elbo : ndarray of shape (n_sizes, n_betas)
        Mean over the folds, in nats per row; NaN if there is no candidate.
    std_error : ndarray of shape (n_sizes, n_betas)
        Standard error, over the folds, of the difference from the best candidate; 0 for the best.
        A fold that is hard for all candidates does not make it larger. The formula assumes that
        folds are independent, although they share training rows.
    kl, reconstruction : ndarray of shape (n_sizes, n_betas) or None, default=None
        Held-out rate and distortion in nats per row, if the search has measured them.
    name : str, default="negative ELBO (nats per row)"
        Name of `negative_elbo` on its axis, with its units.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes of the picture.
    figure_ : matplotlib Figure
        Its figure.

    Examples
    --------
    >>> from functools import partial
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAEGridSearchCV, VAETransformer, metrics
    >>> from skvae.inspection import SearchDisplay
    >>> vae = VAETransformer(hidden_layer_sizes=(8,), max_iter=20, random_state=0)
    >>> grid = {"beta": [0.5, 1, 4], "n_components": [1, 2]}
    >>> scoring = {name: partial(getattr(metrics, name), n_samples=10, random_state=0)
    ...            for name in ("elbo", "kl", "reconstruction")}
    >>> search = VAEGridSearchCV(vae, grid, scoring=scoring, refit="elbo", cv=2)
    >>> search = search.fit(load_iris().data)
    >>> display = SearchDisplay.from_estimator(search, kind="rate_distortion")
    >>> display.negative_elbo.shape
    (2, 3)
    """

    __module__ = "skvae.inspection"

    beta: np.ndarray
    n_components: np.ndarray
    negative_elbo: np.ndarray
    std_error: np.ndarray
    kl: np.ndarray | None = None
    reconstruction: np.ndarray | None = None
    name: str = "negative ELBO (nats per row)"

    @classmethod
    def from_estimator(
        cls,
        search: Estimator,
        *,
        score: str | None = None,
        ax: "Axes | None" = None,
        **options: Any,
    ) -> Self:
        """Draw the results of a fitted search.

        Parameters
        ----------
        search : GridSearchCV, VAEGridSearchCV or another fitted search
            Over a VAETransformer or a Pipeline that ends in one.
        score : str, default=None
            The name of a score in `scoring`, in nats per row: `skvae.metrics.elbo` or
            `log_likelihood`. None: "elbo", or the score of the estimator.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a figure.
        **options : dict
            Options of `plot`.

        Returns
        -------
        display : SearchDisplay
            The numbers, drawn.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        if not isinstance(search, BaseSearchCV):
            raise TypeError(f"SearchDisplay expects a fitted search. Got {search!r}.")
        check_is_fitted(search, "cv_results_")
        score = _score_of(search, score)
        results = _ranked(search.cv_results_, score)
        candidates = [_candidate(search, params) for params in results["params"]]
        (sizes, i), (betas, j) = (
            np.unique([getattr(vae, name) for vae in candidates], return_inverse=True)
            for name in ("n_components", "beta")
        )
        shape, cells = (len(sizes), len(betas)), (i, j)
        folds = np.stack([results[f"split{k}_test_{score}"] for k in range(search.n_splits_)])
        from_best, n_folds = folds - folds[:, -1:], len(folds)
        std = from_best.std(axis=0, ddof=1) if n_folds > 1 else np.full(folds.shape[1], np.nan)
        terms = {
            name: _lay_out(results[f"mean_test_{name}"], cells, shape)
            for name in ("kl", "reconstruction")
            if f"mean_test_{name}" in results
        }
        display = cls(
            beta=betas,
            n_components=sizes,
            negative_elbo=-_lay_out(results[f"mean_test_{score}"], cells, shape),
            std_error=_lay_out(std / math.sqrt(n_folds), cells, shape),
            kl=terms.get("kl"),
            reconstruction=terms.get("reconstruction"),
            name=f"negative {_describe(search, score)}",
        )
        return display.plot(ax, **options)

    def plot(
        self,
        ax: "Axes | None" = None,
        *,
        kind: Literal["negative_elbo", "rate_distortion"] = "negative_elbo",
    ) -> Self:
        """Draw the candidates, a line for each `n_components`.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a figure.
        kind : {"negative_elbo", "rate_distortion"}, default="negative_elbo"
            "negative_elbo" is drawn over `beta`, or over `n_components` if `beta` has one value.
            With more than eight values the axis is logarithmic. Error bars show one `std_error`,
            of the difference from the best candidate. "rate_distortion" [1]_ shows the
            reconstruction term against the KL divergence. Their sum is the negative ELBO, and it
            is the same everywhere on the dashed line, which goes through the best candidate. The
            search must have measured both with the functions of `skvae.metrics`:
            ``scoring={"elbo": elbo, "kl": kl, "reconstruction": reconstruction}, refit="elbo"``.

        Returns
        -------
        display : SearchDisplay
            Itself.

        References
        ----------
        .. [1] Fixing a broken ELBO (A. A. Alemi et al., 2018), https://arxiv.org/abs/1711.00464,
           section 3.
        """
        if kind not in ("negative_elbo", "rate_distortion"):
            raise ValueError(f"kind must be 'negative_elbo' or 'rate_distortion'. Got {kind!r}.")
        rate, distortion = self.kl, self.reconstruction
        if kind == "rate_distortion" and (rate is None or distortion is None):
            raise ValueError(
                "The rate-distortion curve needs the held-out KL divergence and reconstruction, "
                "which this search has not measured. Search with scoring={'elbo': metrics.elbo, "
                "'kl': metrics.kl, 'reconstruction': metrics.reconstruction} and refit='elbo', "
                "functions of skvae.metrics."
            )
        ax = self._begin(ax, (5.6, 4.0))
        i, j = np.unravel_index(np.nanargmin(self.negative_elbo), self.negative_elbo.shape)
        best = int(i), int(j)
        if kind == "negative_elbo":
            self._draw_scores(ax, best)
        else:
            self._draw_rates(ax, rate, distortion, best)
        return self

    def _draw_scores(self, ax: "Axes", best: tuple[int, int]) -> None:
        """Draw the negative ELBO over the values of one parameter, with a ring around the best."""
        over_beta = len(self.beta) > 1
        values, errors, lines, ticks = (
            self.negative_elbo,
            self.std_error,
            self.n_components,
            self.beta,
        )
        if not over_beta:
            values, errors, lines, ticks = values.T, errors.T, self.beta, self.n_components
        line, tick = best if over_beta else best[::-1]
        style: dict[str, Any] = {"marker": "o", "markersize": 4, "capsize": 2}
        colours = _shades(len(lines))
        if len(ticks) <= MOST_TICKS:
            x = np.arange(len(ticks)) + 0.06 * (np.arange(len(lines))[:, None] - line)
            ax.set_xticks(range(len(ticks)), [f"{value:g}" for value in ticks])
        else:
            x, style["linestyle"] = np.tile(ticks, (len(lines), 1)), "none"
            _make_logarithmic(ax, ticks)
        shown: list[Any] = [
            ax.errorbar(x[i], values[i], errors[i], label=label, color=colours[i], **style)
            for i, label in _labelled(lines, values)
        ]
        shown += ax.plot(x[line, tick], values[line, tick], "o", label="Best", **RING)
        if np.isfinite(errors).any():
            label = "Standard error of the\ndifference from the best"
            shown += ax.plot([], [], "|", color="0.3", ms=10, label=label)
        title, label = ("n_components", "β") if over_beta else ("β", "n_components")
        ax.set(xlabel=label, ylabel=f"Held-out {self.name}")
        ax.legend(handles=shown, title=title, **BESIDE)

    def _draw_rates(self, ax: "Axes", rate: Any, distortion: Any, best: tuple[int, int]) -> None:
        """Draw distortion over rate, with a line through the best of equal negative ELBO."""
        colours, (line, _) = _shades(len(self.n_components)), best
        for i, label in _labelled(self.n_components, rate):
            ax.plot(rate[i], distortion[i], "o-", color=colours[i], ms=4, label=label)
        ax.margins(0.2, 0.12)  # room for the words
        known = np.flatnonzero(np.isfinite(rate[line]))
        style: dict[str, Any] = {"textcoords": "offset points", "fontsize": "x-small"}
        # Only the ends of the best line have words, since words at all points would overlap.
        for j in {known[0], known[-1]}:
            point = rate[line, j], distortion[line, j]
            ax.annotate(f"β = {self.beta[j]:g}", point, (0, 9), ha="center", color="0.3", **style)
        ax.plot(rate[best], distortion[best], "o", label="Best", **RING)
        whole = rate[best] + distortion[best]
        low, high = ax.get_xlim()
        ends = np.array([low, high])
        ax.set(xlim=(low, high), ylim=ax.get_ylim())
        ax.plot(ends, whole - ends, color="0.3", lw=0.8, linestyle="--", label="Its negative ELBO")
        ax.set_xlabel("Rate: KL divergence (nats per row)")
        ax.set_ylabel("Distortion: reconstruction (nats per row)")
        ax.legend(title="n_components", **BESIDE)


def _ranked(results: Mapping[str, Any], score: str) -> dict[str, Array]:
    """Sort `cv_results_`, the best candidate last; of successive halving, keep the last iteration.

    Other searches have no iterations.
    """
    results = {name: np.asarray(values) for name, values in results.items()}
    iteration = results.get("iter", np.zeros(len(results["params"])))
    last = np.flatnonzero(iteration == iteration.max())
    means = np.nan_to_num(results[f"mean_test_{score}"][last], nan=-np.inf)
    order = last[np.argsort(means, kind="stable")]
    return {name: values[order] for name, values in results.items()}


def _lay_out(values: Array, cells: tuple[Array, Array], shape: tuple[int, int]) -> Array:
    """Put the values of candidates into the cells of a table; the last one of a cell stays."""
    table = np.full(shape, np.nan)
    table[cells] = values
    return table


def _candidate(search: Any, params: Mapping[str, Any]) -> Any:
    """Return the VAETransformer of a candidate, not fitted."""
    estimator = clone(search.estimator).set_params(**clone(params, safe=False))
    return _pipeline.split(estimator, "SearchDisplay expects a search over")[1]


def _score_of(search: Any, score: str | None) -> str:
    """Return the name in `cv_results_` of the score to show."""
    names = [key[10:] for key in search.cv_results_ if key.startswith("mean_test_")]
    if score is None:
        score = "elbo" if "elbo" in names else "score"
        if score not in names or _describe(search, score) != ELBO:
            raise ValueError(
                "SearchDisplay cannot tell which score of this search is the ELBO. Name it by "
                f"score=, one of {names}."
            )
    if score not in names:
        raise ValueError(f"score must be one of {names}, the scores of the search. Got {score!r}.")
    return score


def _describe(search: Any, score: str) -> str:
    """Return the name of a score of the search, with its units if these are known."""
    name = score
    if score == "score":  # a single score, whose function has a name
        scorer = getattr(search.scoring, "func", search.scoring)  # the function of a partial
        name = "elbo" if scorer is None else getattr(scorer, "__name__", score)
    return {"elbo": ELBO, "log_likelihood": "log-likelihood (nats per row)"}.get(name, name)


def _labelled(labels: Array, rows: Array) -> list[tuple[int, str]]:
    """Return the indices and labels of the rows of a table that have a value."""
    has_value = np.isfinite(rows).any(axis=1)
    return [(i, f"{labels[i]:g}") for i in np.flatnonzero(has_value).tolist()]


def _make_logarithmic(ax: "Axes", values: Array) -> None:
    """Make the x axis logarithmic; if 0 is a value, it is linear up to the first power of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if values.min() > 0:
        ax.set_xscale("log")
        few = values.max() < 100 * values.min()
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        first = np.floor(np.log10(values[values > 0].min()))
        ax.set_xscale("symlog", linthresh=10**first)
    ax.xaxis.set_major_formatter("{x:g}")


def _shades(n: int) -> Any:
    """Return colours for n values in their order, from dark to light."""
    import matplotlib as mpl

    return mpl.colormaps["viridis"](np.linspace(0, 0.85, n))
