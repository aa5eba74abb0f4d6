"""Displays of losses: those of a training run, and those of the candidates of a search."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from sklearn.base import clone
from sklearn.model_selection._search import BaseSearchCV
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils.validation import check_is_fitted

from skvae import _pipeline
from skvae._typing import Estimator
from skvae.inspection._display import BESIDE, COLOURS, Display, Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_TICKS = 8  # one for each value
ELBO = "ELBO (nats per row)"


@dataclass(eq=False, repr=False, kw_only=True)
class LossCurveDisplay(Display):
    """The negative ELBO of each epoch, and its two parts.

    These are the reconstruction term, -E[log p(x|z)], and the KL divergence. Dashed lines are of
    the rows that were held out. The epoch whose weights were kept is marked: with early stopping,
    that where the held-out loss with its final beta was least, in which rows far above the others
    count less. It need not be where the negative ELBO was least.

    Parameters
    ----------
    history : dict of str to ndarray of shape (n_iter,)
        Numbers of every epoch, in nats per row, as in `VAETransformer.history_`.
    kept_iter : int or None, default=None
        The epoch that was kept, counted from 1; 0 for factor analysis. None is not known.

    Attributes
    ----------
    ax_ : matplotlib Axes
        What was drawn on.
    beta_ax_ : matplotlib Axes or None
        The axis of beta on the right, where beta changes from epoch to epoch.
    figure_ : matplotlib Figure
        Its figure.

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
            Where to draw; None makes a figure.

        Returns
        -------
        display : LossCurveDisplay
            The numbers, drawn.
        """
        vae = Source(cls, estimator).vae
        # A file that was saved by an earlier version has no such number.
        kept_iter = getattr(vae, "kept_iter_", None)
        return cls(history=vae.history_, kept_iter=kept_iter).plot(ax)

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : LossCurveDisplay
            Itself.
        """
        ax = self._begin(ax, (6.4, 4.2))
        self.beta_ax_: Axes | None = None
        history, beta = self.history, self.history["beta"]
        epochs = 1 + np.arange(len(beta))
        changes = bool(np.any(beta != beta[-1]))
        labels = {
            "negative_elbo": "Negative ELBO",
            "reconstruction": "Reconstruction",
            "kl": "KL divergence" if changes else f"KL divergence (β = {beta[-1]:g})",
        }
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
            self.beta_ax_ = ax.twinx()
            self.beta_ax_.step(epochs, beta, where="mid", color="0.7")
            self.beta_ax_.set(ylim=(0, 1.05 * beta.max()))
            self.beta_ax_.set_ylabel("β", color="0.5", rotation=0, labelpad=10)
            self.beta_ax_.tick_params(axis="y", colors="0.5")
        ax.set(xlabel="Epoch", ylabel="Nats per row", ylim=_limits(history))
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize="small")
        return self


def _limits(history):
    """Limits of the curves without the first epochs, which may be thousands of nats above."""
    terms = [f"{rows}{term}" for rows in ("", "validation_") for term in ("reconstruction", "kl")]
    terms += ["negative_elbo", "validation_negative_elbo"]
    curves = [history[term][len(history[term]) // 10 :] for term in terms if term in history]
    low, high = np.nanmin(curves), np.nanmax(curves)
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin


@dataclass(eq=False, repr=False, kw_only=True)
class SearchDisplay(Display):
    """What a search has found: held-out negative ELBO, or rate and distortion.

    Over `beta` and `n_components`. Where other parameters vary, too, the best candidate of each
    pair is shown. Of a search by successive halving the last iteration is shown, whose candidates
    alone can be compared with the best.

    Parameters
    ----------
    beta : ndarray of shape (n_betas,)
        Values of `beta`, ascending.
    n_components : ndarray of shape (n_sizes,)
        Values of `n_components`, ascending.
    negative_elbo : ndarray of shape (n_sizes, n_betas)
        Mean over the folds, in nats per row; NaN where there was no candidate.
    std_error : ndarray of shape (n_sizes, n_betas)
        Standard error of the difference from the best candidate, over the folds: 0 for this. What
        makes a fold hard for all candidates is no part of it. It takes folds to be independent,
        which they are not quite: they share training rows.
    kl, reconstruction : ndarray of shape (n_sizes, n_betas) or None, default=None
        Held-out rate and distortion in nats per row, where the search has measured them.
    name : str, default="negative ELBO (nats per row)"
        What `negative_elbo` is called, with its units.

    Attributes
    ----------
    ax_ : matplotlib Axes
        What was drawn on.
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
        """Draw what a fitted search has found.

        Parameters
        ----------
        search : GridSearchCV, VAEGridSearchCV or another fitted search
            Over a VAETransformer or a Pipeline that ends in one.
        score : str, default=None
            The name of a score in `scoring`, in nats per row: `skvae.metrics.elbo` or
            `log_likelihood`. None: "elbo", or that of the estimator.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
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
        shape, places = (len(sizes), len(betas)), (i, j)
        folds = np.stack([results[f"split{k}_test_{score}"] for k in range(search.n_splits_)])
        from_best, n_folds = folds - folds[:, -1:], len(folds)
        std = from_best.std(axis=0, ddof=1) if n_folds > 1 else np.full(folds.shape[1], np.nan)
        display = cls(
            beta=betas,
            n_components=sizes,
            negative_elbo=-_lay_out(results[f"mean_test_{score}"], places, shape),
            std_error=_lay_out(std / math.sqrt(n_folds), places, shape),
            name=f"negative {_describe(search, score)}",
            **{
                name: _lay_out(results[f"mean_test_{name}"], places, shape)
                for name in ("kl", "reconstruction")
                if f"mean_test_{name}" in results
            },
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
            Where to draw; None makes a figure.
        kind : {"negative_elbo", "rate_distortion"}, default="negative_elbo"
            "negative_elbo" is drawn over `beta`, or over `n_components` where `beta` has one
            value: on a logarithmic axis if there are more than eight. Bars are of one standard
            error of the difference from the best candidate, `std_error`. "rate_distortion" [1]_
            has the reconstruction term against the KL divergence, whose sum is the negative ELBO;
            a dashed line has that of the best. The search must have measured them, by the
            functions of `skvae.metrics`: ``scoring={"elbo": elbo, "kl": kl, "reconstruction":
            reconstruction}, refit="elbo"``.

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
        if kind == "rate_distortion" and (self.kl is None or self.reconstruction is None):
            raise ValueError(
                "The rate-distortion curve needs the held-out KL divergence and reconstruction, "
                "which this search has not measured. Search with scoring={'elbo': metrics.elbo, "
                "'kl': metrics.kl, 'reconstruction': metrics.reconstruction} and refit='elbo', "
                "functions of skvae.metrics."
            )
        ax = self._begin(ax, (5.6, 4.0))
        best = np.unravel_index(np.nanargmin(self.negative_elbo), self.negative_elbo.shape)
        if kind == "negative_elbo":
            self._draw_scores(ax, *best)
        else:
            self._draw_rates(ax, *best)
        return self

    def _draw_scores(self, ax, *best):
        over_beta = len(self.beta) > 1
        values, errors, lines, ticks = (
            self.negative_elbo,
            self.std_error,
            self.n_components,
            self.beta,
        )
        if not over_beta:
            values, errors, lines, ticks = values.T, errors.T, self.beta, self.n_components
        line, place = best if over_beta else best[::-1]
        colours, style = _shades(len(lines)), {"marker": "o", "markersize": 4, "capsize": 2}
        if len(ticks) <= MOST_TICKS:
            places = np.arange(len(ticks)) + 0.06 * (np.arange(len(lines))[:, None] - line)
            ax.set_xticks(range(len(ticks)), [f"{tick:g}" for tick in ticks])
        else:
            places, style["linestyle"] = np.tile(ticks, (len(lines), 1)), "none"
            _make_logarithmic(ax, ticks)
        shown = [
            ax.errorbar(places[i], values[i], errors[i], label=label, color=colours[i], **style)
            for i, label in _seen(lines, values)
        ]
        ring = {"color": "k", "mfc": "none", "ms": 12, "linestyle": "none"}
        shown += ax.plot(places[line, place], values[line, place], "o", label="Best", **ring)
        if np.isfinite(errors).any():
            label = "Standard error of the\ndifference from the best"
            shown += ax.plot([], [], "|", color="0.3", ms=10, label=label)
        title, label = ("n_components", "β") if over_beta else ("β", "n_components")
        ax.set(xlabel=label, ylabel=f"Held-out {self.name}")
        ax.legend(handles=shown, title=title, **BESIDE)

    def _draw_rates(self, ax, *best):
        colours, (line, _) = _shades(len(self.n_components)), best
        for i, label in _seen(self.n_components, self.kl):
            ax.plot(self.kl[i], self.reconstruction[i], "o-", color=colours[i], ms=4, label=label)
        ax.margins(0.2, 0.12)  # with room for words
        known = np.flatnonzero(np.isfinite(self.kl[line]))
        for j in {known[0], known[-1]}:  # of the best line: more would lie on each other
            place = self.kl[line, j], self.reconstruction[line, j]
            style = {"textcoords": "offset points", "fontsize": "x-small", "color": "0.3"}
            ax.annotate(f"β = {self.beta[j]:g}", place, (0, 9), ha="center", **style)
        ring = {"color": "k", "mfc": "none", "ms": 12, "linestyle": "none"}
        ax.plot(self.kl[best], self.reconstruction[best], "o", label="Best", **ring)
        whole = self.kl[best] + self.reconstruction[best]
        ends = np.array(ax.get_xlim())
        ax.set(xlim=ends, ylim=ax.get_ylim())
        ax.plot(ends, whole - ends, color="0.3", lw=0.8, linestyle="--", label="Its negative ELBO")
        ax.set_xlabel("Rate: KL divergence (nats per row)")
        ax.set_ylabel("Distortion: reconstruction (nats per row)")
        ax.legend(title="n_components", **BESIDE)


def _ranked(results, score):
    """`cv_results_` of the last iteration, which only halving counts, the best candidate last."""
    results = {name: np.asarray(values) for name, values in results.items()}
    iteration = results.get("iter", np.zeros(len(results["params"])))
    last = np.flatnonzero(iteration == iteration.max())
    means = np.nan_to_num(results[f"mean_test_{score}"][last], nan=-np.inf)
    order = last[np.argsort(means, kind="stable")]
    return {name: values[order] for name, values in results.items()}


def _lay_out(values, places, shape):
    """A table of the values of candidates: the last, where several have one place."""
    table = np.full(shape, np.nan)
    table[places] = values
    return table


def _candidate(search, params):
    """The VAETransformer of a candidate, not fitted."""
    estimator = clone(search.estimator).set_params(**clone(params, safe=False))
    return _pipeline.split(estimator, "SearchDisplay expects a search over")[1]


def _score_of(search, score):
    """The name in `cv_results_` of the score to show."""
    names = [key[10:] for key in search.cv_results_ if key.startswith("mean_test_")]
    if score is None:
        score = "elbo" if "elbo" in names else "score"
        if score not in names or _describe(search, score) != ELBO:
            raise ValueError(
                "SearchDisplay cannot tell which score of this search is the ELBO. Say so by "
                f"score=, one of {names}."
            )
    if score not in names:
        raise ValueError(f"score must be one of {names}, those of the search. Got {score!r}.")
    return score


def _describe(search, score):
    """What a score of the search is called, with its units where these are known."""
    name = score
    if score == "score":  # the only one, which has a name of its own
        scorer = getattr(search.scoring, "func", search.scoring)  # that of a partial
        name = "elbo" if scorer is None else getattr(scorer, "__name__", score)
    return {"elbo": ELBO, "log_likelihood": "log-likelihood (nats per row)"}.get(name, name)


def _seen(labels, rows):
    """Places and labels of the rows of a table that have a value."""
    return [(i, f"{labels[i]:g}") for i in np.flatnonzero(np.isfinite(rows).any(axis=1))]


def _make_logarithmic(ax, values):
    """Let the x axis be logarithmic; linear from 0 to the first power of ten where 0 is a value."""
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


def _shades(n):
    """Colours for n values in their order, from dark to light."""
    import matplotlib as mpl

    return mpl.colormaps["viridis"](np.linspace(0, 0.85, n))
