"""Displays: what they show is what the model says, in the units of the data."""

import itertools
import pickle
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from scipy.stats import norm
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler

import skvae
from skvae import VAETransformer, metrics
from skvae.inspection import (
    ComponentsDisplay,
    LatentSpaceDisplay,
    LossCurveDisplay,
    ReconstructionDisplay,
    SampleDisplay,
    SearchDisplay,
    TraversalDisplay,
)
from skvae.networks import MLP, Conv
from skvae.priors import Mixture

plt = pytest.importorskip("matplotlib.pyplot")

SCORING = {
    name: partial(getattr(metrics, name), n_samples=5, random_state=0)
    for name in ("elbo", "kl", "reconstruction")
}
GRID = {"vaetransformer__beta": [0.5, 2.0], "vaetransformer__n_components": [2, 3]}
# Each with what it needs besides an estimator and X.
DISPLAYS = {
    "loss curve": lambda estimator, X, **o: LossCurveDisplay.from_estimator(estimator, **o),
    "components": ComponentsDisplay.from_estimator,
    "latent space": partial(LatentSpaceDisplay.from_estimator, ellipses=True),
    "reconstruction": ReconstructionDisplay.from_estimator,
    "reconstructed images": partial(ReconstructionDisplay.from_estimator, image_shape=(2, 2)),
    "traversal": TraversalDisplay.from_estimator,
    "traversal of images": partial(TraversalDisplay.from_estimator, image_shape=(2, 2)),
    "manifold": partial(TraversalDisplay.from_estimator, kind="manifold"),
    "manifold of images": partial(
        TraversalDisplay.from_estimator, kind="manifold", image_shape=(2, 2)
    ),
    "samples": partial(SampleDisplay.from_estimator, random_state=0),
    "sampled images": partial(SampleDisplay.from_estimator, random_state=0, image_shape=(2, 2)),
    "search": lambda estimator, X, **o: SearchDisplay.from_estimator(estimator, **o),
    "rates of a search": lambda estimator, X, **o: SearchDisplay.from_estimator(
        estimator, kind="rate_distortion", **o
    ),
}
every_display = pytest.mark.parametrize("draw", DISPLAYS.values(), ids=DISPLAYS)


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4)) * [1, 2, 0.5, 4] + [3, -1, 0, 9]


@pytest.fixture(scope="module")
def pipe(rows):
    """A Pipeline whose model has three components, fitted."""
    vae = VAETransformer(
        3, hidden_layer_sizes=(8,), max_iter=20, early_stopping=False, random_state=0
    )
    return make_pipeline(StandardScaler(), vae).fit(rows)


@pytest.fixture(scope="module")
def search(pipe, rows):
    """A search over it, fitted, which every display takes."""
    return GridSearchCV(clone(pipe), GRID, scoring=SCORING, refit="elbo", cv=3).fit(rows)


# --- laws of all displays -----------------------------------------------------------------


@every_display
def test_display_draws_on_the_axes_that_it_is_given_and_nowhere_else(draw, search, rows):
    figure, (left, right) = plt.subplots(1, 2)
    display = draw(search, rows, ax=right)
    assert display.ax_ is right
    assert display.figure_ is figure
    assert not left.has_data()
    assert plt.get_fignums() == [figure.number]
    inside = [ax for ax in figure.axes if ax is not left]
    assert any(ax.has_data() for ax in inside)
    # To the right of the other axes.
    figure.canvas.draw()
    assert all(ax.get_position().x0 >= left.get_position().x1 for ax in inside)


@every_display
def test_display_makes_a_figure_and_draws_again_what_it_has(draw, search, rows):
    display = draw(search, rows)
    assert plt.get_fignums() == [display.figure_.number]
    before, first = pickle.dumps(numbers(display)), display.figure_
    options = {"kind": "rate_distortion"} if "rates" in ids(draw) else {}
    assert display.plot(**options) is display
    assert display.figure_ is not first
    assert pickle.dumps(numbers(display)) == before
    first.canvas.draw(), display.figure_.canvas.draw()
    if "latent" not in ids(draw):  # drawn again without its ellipses
        drawn = [np.asarray(figure.canvas.buffer_rgba()) for figure in (first, display.figure_)]
        np.testing.assert_array_equal(*drawn)


def ids(draw):
    return next(name for name, known in DISPLAYS.items() if known is draw)


def numbers(display):
    """What a display has computed."""
    return {name: value for name, value in vars(display).items() if "_" not in (name[0], name[-1])}


@every_display
def test_display_shows_nothing_and_leaves_estimator_data_and_global_state_as_they_are(
    draw, search, rows, global_state, monkeypatch
):
    def fail(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(plt, "show", fail)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    draw(search, rows)  # what is imported late is there
    before = pickle.dumps((search, rows)), global_state()
    draw(search, rows)
    assert (pickle.dumps((search, rows)), global_state()) == before


@every_display
def test_display_without_matplotlib_says_what_is_missing(draw, search, rows, monkeypatch):
    display = draw(search, rows)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"Display\.from_estimator requires matplotlib"):
        draw(search, rows)
    with pytest.raises(ImportError, match=r"Display\.plot requires matplotlib"):
        display.plot()


@every_display
def test_display_of_an_unfitted_or_another_estimator_raises(draw, search, rows):
    estimator = clone(search if "search" in ids(draw) else search.estimator)
    with pytest.raises(NotFittedError):
        draw(estimator, rows)
    other = PCA(2)
    if "search" in ids(draw):
        other = GridSearchCV(LinearRegression(), {"fit_intercept": [True]}, cv=2)
        other.fit(rows[:, 1:], rows[:, 0])
    with pytest.raises(TypeError, match=r"Display expects .*Got "):
        draw(other, rows)
    assert not plt.get_fignums()


# --- losses -------------------------------------------------------------------------------


def marked(display):
    """The epochs that are marked by a vertical line."""
    lines = [line.get_xdata() for line in display.ax_.lines if line.get_linestyle() == ":"]
    return [float(x[0]) for x in lines if len(x) == 2 and x[0] == x[1]]


def words(display):
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


def test_loss_curves_are_the_history_and_mark_the_best_epoch(rows):
    vae = VAETransformer(
        2, network=MLP(linear=False), beta=3, max_iter=200, learning_rate=0.03, random_state=2
    ).fit(rows)
    display = LossCurveDisplay.from_estimator(make_pipeline(vae))
    assert display.history is vae.history_
    best = 1 + np.argmin(vae.history_["validation_loss"])
    assert best not in (1 + np.argmin(vae.history_["validation_negative_elbo"]), vae.n_iter_)
    assert display.kept_iter == best
    assert marked(display) == [best]
    assert f"Epoch kept: {best}" in words(display)
    drawn = [line.get_ydata() for line in display.ax_.lines]
    for term in ("negative_elbo", "reconstruction", "kl"):
        for name in (term, f"validation_{term}"):
            assert any(np.array_equal(y, vae.history_[name]) for y in drawn), name
    assert display.ax_.get_ylabel() == "Nats per row"


def test_loss_curves_mark_no_epoch_where_factor_analysis_was_kept():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(150, 2)) @ rng.normal(size=(2, 6)) + rng.normal(size=(150, 6))
    vae = VAETransformer(2, max_iter=20, random_state=0).fit(X)
    display = LossCurveDisplay.from_estimator(vae)
    assert display.kept_iter == 0
    assert marked(display) == []
    assert "Factor analysis was kept" in words(display)


def test_loss_curves_mark_the_last_epoch_without_early_stopping_and_none_that_is_not_known(pipe):
    display = LossCurveDisplay.from_estimator(pipe)
    assert marked(display) == [20]
    assert "Held-out rows" not in words(display)
    assert "KL divergence (β = 1)" in words(display)
    assert display.beta_ax_ is None
    assert marked(LossCurveDisplay(history=pipe[-1].history_).plot()) == []


def test_loss_curves_have_an_axis_for_a_beta_that_changes(quick, X):
    vae = quick(max_iter=10, beta=2.0, beta_warmup=0.5).fit(X)
    display = LossCurveDisplay.from_estimator(vae)
    (line,) = display.beta_ax_.lines
    np.testing.assert_array_equal(line.get_ydata(), vae.history_["beta"])
    assert display.beta_ax_.get_ylabel() == "β"


def test_loss_curves_leave_out_a_steep_beginning_and_nothing_else(pipe):
    history = {name: values.copy() for name, values in pipe[-1].history_.items()}
    history["negative_elbo"][0] = history["reconstruction"][0] = 1e6
    low, high = LossCurveDisplay(history=history).plot().ax_.get_ylim()
    assert high < 1e3
    for term in ("negative_elbo", "reconstruction", "kl"):
        assert ((low < history[term][2:]) & (history[term][2:] < high)).all()


@pytest.mark.parametrize(
    ("warmup", "kept_iter", "size"),
    [
        (0.0, 0, (5, 3)),
        (0.0, 10, None),
        (0.0, None, (9, 6)),
        (0.5, 0, None),
        (0.5, 0, (5, 3)),
        (0.5, 10, (5, 3)),
        (0.5, 10, (9, 6)),
        (0.5, None, None),
    ],
)
def test_legend_of_loss_curves_covers_neither_title_nor_axes(quick, X, warmup, kept_iter, size):
    vae = quick(max_iter=10, beta_warmup=warmup).fit(X)
    ax = None if size is None else plt.subplots(figsize=size, layout="constrained")[1]
    display = LossCurveDisplay(history=vae.history_, kept_iter=kept_iter).plot(ax)
    display.ax_.set_title("Losses of a model, in a title as wide as the axes")
    display.figure_.canvas.draw()
    legend = display.ax_.get_legend().get_window_extent()
    assert not legend.overlaps(display.ax_.title.get_window_extent())
    assert not legend.overlaps(display.ax_.get_window_extent())
    if display.beta_ax_ is not None:
        assert not legend.overlaps(display.beta_ax_.yaxis.get_tightbbox())
    assert display.figure_.bbox.count_contains(legend.corners()) == 4


# --- searches -----------------------------------------------------------------------------


def test_search_is_laid_out_by_beta_and_n_components(search):
    display = SearchDisplay.from_estimator(search)
    np.testing.assert_array_equal(display.beta, [0.5, 2.0])
    np.testing.assert_array_equal(display.n_components, [2, 3])
    results = search.cv_results_
    folds = np.stack([results[f"split{k}_test_elbo"] for k in range(3)])
    best = results["mean_test_elbo"].argmax()
    for candidate, params in enumerate(results["params"]):
        i = [2, 3].index(params["vaetransformer__n_components"])
        j = [0.5, 2.0].index(params["vaetransformer__beta"])
        assert display.negative_elbo[i, j] == -results["mean_test_elbo"][candidate]
        assert display.kl[i, j] == results["mean_test_kl"][candidate]
        error = np.std(folds[:, candidate] - folds[:, best], ddof=1) / np.sqrt(3)
        assert display.std_error[i, j] == pytest.approx(error)
    whole = display.kl + display.reconstruction
    np.testing.assert_allclose(whole, display.negative_elbo, rtol=1e-12)
    assert display.ax_.get_ylabel() == "Held-out negative ELBO (nats per row)"


@pytest.mark.parametrize(("kind", "place"), [("negative_elbo", 0), ("rate_distortion", 7.0)])
def test_search_marks_the_best_candidate(kind, place):
    kl = np.array([[5.0, 4.0, 3.0], [7.0, 6.0, 5.0]])
    reconstruction = np.array([[4.0, 4.5, 5.0], [0.5, 3.0, 5.0]])
    display = SearchDisplay(
        beta=np.array([0.5, 1.0, 2.0]),
        n_components=np.array([2, 8]),
        negative_elbo=kl + reconstruction,
        std_error=np.zeros((2, 3)),
        kl=kl,
        reconstruction=reconstruction,
    ).plot(kind=kind)
    (ring,) = (line for line in display.ax_.lines if line.get_label() == "Best")
    height = 7.5 if kind == "negative_elbo" else 0.5
    assert (*ring.get_xdata(), *ring.get_ydata()) == (place, height)


def test_line_of_equal_elbo_goes_through_the_best_candidate(search):
    display = SearchDisplay.from_estimator(search, kind="rate_distortion")
    (line,) = (line for line in display.ax_.lines if line.get_label() == "Its negative ELBO")
    np.testing.assert_allclose(sum(line.get_data()), display.negative_elbo.min(), rtol=1e-12)


def test_search_over_other_parameters_shows_the_best_of_each_pair(quick, X):
    grid = [{"beta": [1.0], "learning_rate": [1e-4, 1e-2]}, {"n_components": [1]}]
    search = GridSearchCV(quick(), grid, cv=2).fit(X)
    display = SearchDisplay.from_estimator(search)
    scores = search.cv_results_["mean_test_score"]
    np.testing.assert_array_equal(display.beta, [1.0])  # the estimator's own, where not searched
    np.testing.assert_array_equal(display.n_components, [1, 2])
    np.testing.assert_array_equal(display.negative_elbo[:, 0], [-scores[2], -scores[:2].max()])
    assert display.ax_.get_xlabel() == "n_components"


def test_of_a_halving_search_the_last_iteration_is_shown(quick, X):
    betas = [0.5, 1.0, 2.0, 4.0]
    search = HalvingGridSearchCV(quick(), {"beta": betas}, cv=2, factor=2, random_state=0).fit(X)
    display = SearchDisplay.from_estimator(search)
    last = search.cv_results_["iter"] == search.n_iterations_ - 1
    assert 0 < last.sum() < len(betas)
    order = np.argsort(search.cv_results_["param_beta"][last])
    np.testing.assert_array_equal(display.beta, search.cv_results_["param_beta"][last][order])
    scores = search.cv_results_["mean_test_score"][last][order]
    np.testing.assert_array_equal(display.negative_elbo[0], -scores)
    assert display.beta[display.negative_elbo.argmin()] == search.best_params_["beta"]
    assert display.std_error.min() == 0


@pytest.mark.parametrize("first", [1e-3, 0.0])
def test_many_values_are_on_an_axis_of_their_logarithms(first):
    beta = np.array([first, *np.geomspace(2e-3, 5, 11)])
    table = np.stack([np.linspace(9, 10, 12), np.linspace(10, 8, 12)])
    errors = np.zeros((2, 12))
    display = SearchDisplay(
        beta=beta, n_components=np.array([2, 8]), negative_elbo=table, std_error=errors
    ).plot()
    assert display.ax_.get_xscale() == ("log" if first else "symlog")
    for bars, values in zip(display.ax_.containers, table, strict=True):
        points = bars.lines[0]
        np.testing.assert_array_equal(points.get_data(), [beta, values])
        assert points.get_linestyle() == "None"
    (ring,) = (line for line in display.ax_.lines if line.get_label() == "Best")
    np.testing.assert_allclose(ring.get_data(), [[5], [8]])


def test_bars_are_said_to_be_of_the_difference_from_the_best():
    table = {"beta": np.array([1.0, 2.0]), "n_components": np.array([2])}
    table["negative_elbo"] = np.array([[9.0, 10.0]])
    display = SearchDisplay(**table, std_error=np.array([[0.0, 0.5]])).plot()
    assert words(display)[-1] == "Standard error of the\ndifference from the best"
    one_fold = SearchDisplay(**table, std_error=np.full((1, 2), np.nan)).plot()
    assert words(one_fold) == ["2", "Best"]


@pytest.mark.parametrize("kind", ["negative_elbo", "rate_distortion"])
def test_candidates_that_failed_have_no_place_in_the_legend(kind):
    kl = np.array([[5.0, 4.0, np.nan], [np.nan] * 3])
    display = SearchDisplay(
        beta=np.array([0.5, 1.0, 2.0]),
        n_components=np.array([2, 8]),
        negative_elbo=2 * kl,
        std_error=0 * kl,
        kl=kl,
        reconstruction=kl,
    ).plot(kind=kind)
    assert words(display)[:2] == ["2", "Best"]
    if kind == "rate_distortion":  # with beta at the ends of the line of the best
        places = {text.get_text(): text.xy for text in display.ax_.texts}
        assert places == {"β = 0.5": (5, 5), "β = 1": (4, 4)}


def test_rate_and_distortion_must_have_been_measured(quick, X):
    search = GridSearchCV(quick(), {"beta": [1.0, 2.0]}, cv=2).fit(X)
    with pytest.raises(ValueError, match=r"Search with scoring=\{'elbo': metrics.elbo"):
        SearchDisplay.from_estimator(search, kind="rate_distortion")
    with pytest.raises(ValueError, match=r"kind must be .* Got 'heat'"):
        SearchDisplay.from_estimator(search, kind="heat")


def test_search_by_something_else_is_not_taken_for_an_elbo(quick, X):
    search = GridSearchCV(quick(), {"beta": [1.0, 2.0]}, cv=2, scoring=metrics.active_units).fit(X)
    with pytest.raises(ValueError, match=r"cannot tell .* by score=, one of \['score'\]"):
        SearchDisplay.from_estimator(search)
    with pytest.raises(ValueError, match=r"score must be one of \['score'\].*Got 'elbo'"):
        SearchDisplay.from_estimator(search, score="elbo")
    search.set_params(scoring={"log_likelihood": metrics.log_likelihood}, refit=False).fit(X)
    display = SearchDisplay.from_estimator(search, score="log_likelihood")
    assert display.ax_.get_ylabel() == "Held-out negative log-likelihood (nats per row)"
    with pytest.raises(ValueError, match=r"one of \['log_likelihood'\]"):
        SearchDisplay.from_estimator(search)


@pytest.mark.parametrize(
    ("scoring", "name"),
    [
        (None, "ELBO (nats per row)"),
        (metrics.elbo, "ELBO (nats per row)"),
        (SCORING["elbo"], "ELBO (nats per row)"),
        (metrics.log_likelihood, "log-likelihood (nats per row)"),
        (partial(metrics.log_likelihood, n_samples=5), "log-likelihood (nats per row)"),
        (metrics.active_units, "active_units"),
    ],
)
def test_the_only_score_of_a_search_has_the_name_of_its_scorer(quick, X, scoring, name):
    search = GridSearchCV(quick(max_iter=1), {"beta": [1.0]}, cv=2, scoring=scoring).fit(X)
    display = SearchDisplay.from_estimator(search, score="score")
    assert display.ax_.get_ylabel() == f"Held-out negative {name}"


# --- the latent space ---------------------------------------------------------------------


def test_components_are_those_of_the_metrics(pipe, rows):
    display = ComponentsDisplay.from_estimator(pipe, rows)
    np.testing.assert_array_equal(display.kl, metrics.kl_per_component(pipe, rows))
    variance = np.var(pipe.transform(rows), axis=0, dtype=np.float64)
    np.testing.assert_array_equal(display.variance, variance)
    assert (np.diff(display.kl[display.order]) <= 0).all()
    assert display.active.sum() == metrics.active_units(pipe, rows)
    assert display.ax_.get_ylabel() == "KL divergence (nats per row)"


def test_bars_are_sorted_and_tell_active_and_collapsed_components_apart():
    kl, variance = np.array([0.02, 1.5, 0.7, 0.005]), np.array([0.001, 0.8, 0.6, 0.0])
    display = ComponentsDisplay(kl=kl, variance=variance).plot()
    active, collapsed = display.ax_.containers
    assert [bar.get_height() for bar in active] == [1.5, 0.7]
    assert [bar.get_height() for bar in collapsed] == [0.02, 0.005]
    assert [label.get_text() for label in display.ax_.get_xticklabels()] == ["1", "2", "0", "3"]
    assert words(display) == ["Active: 2", "Collapsed: 2"]
    title = display.ax_.get_legend().get_title().get_text()
    assert title == "Active: variance of means > 0.01"
    stricter = ComponentsDisplay(kl=kl, variance=variance, threshold=0.7).plot()
    assert words(stricter) == ["Active: 1", "Collapsed: 3"]


@pytest.mark.parametrize(
    ("n", "shape", "is_sum", "size"),
    [
        (1, "scree", True, None),
        (1, "flat", False, (4, 3)),
        (3, "scree", False, (4, 3)),
        (3, "flat", True, (7, 5)),
        (3, "flat", True, (4, 3)),
        (30, "scree", True, (4, 3)),
        (30, "flat", False, None),
        (30, "flat", True, (4, 3)),
        (100, "scree", False, (7, 5)),
        (100, "flat", True, (4, 3)),
        (100, "flat", True, None),
    ],
)
def test_legend_of_components_covers_neither_title_nor_bars(n, shape, is_sum, size):
    variance = np.full(n, 0.9) if shape == "flat" else 0.9 * 0.7 ** np.arange(n)
    ax = None if size is None else plt.subplots(figsize=size)[1]
    display = ComponentsDisplay(kl=2 * variance if is_sum else None, variance=variance).plot(ax)
    display.ax_.set_title("Components of a model, in a title as wide as the picture")
    display.figure_.canvas.draw()
    legend = display.ax_.get_legend().get_window_extent()
    assert not legend.overlaps(display.ax_.title.get_window_extent())
    bars = [bar.get_window_extent() for bars in display.ax_.containers for bar in bars]
    assert not legend.count_overlaps(bars)
    assert display.ax_.get_window_extent().count_contains(legend.corners()) == 4


@pytest.mark.parametrize("heights", [(1.0, 9.0), (9.0, 1.0)], ids=str)
def test_components_on_axes_that_share_heights_are_seen_whole(heights):
    _, axes = plt.subplots(1, 2, sharey=True, figsize=(9, 3))
    for ax, height in zip(axes, heights, strict=True):
        ComponentsDisplay(kl=None, variance=height * 0.1 ** np.arange(6)).plot(ax)
    axes[0].figure.canvas.draw()
    for ax in axes:
        bars = [bar.get_window_extent() for bars in ax.containers for bar in bars]
        assert not ax.get_legend().get_window_extent().count_overlaps(bars)
        assert max(bar.y1 for bar in bars) < ax.get_window_extent().y1


def test_numbers_of_many_components_on_narrow_axes_stand_apart():
    _, ax = plt.subplots(figsize=(3, 2.5))
    display = ComponentsDisplay(kl=None, variance=np.full(100, 0.5)).plot(ax)
    display.figure_.canvas.draw()
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert len(boxes) > 3
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


@pytest.mark.parametrize("params", [{"posterior": "full"}, {"prior": Mixture(3)}], ids=str)
def test_components_whose_divergence_is_no_sum_show_the_variance_of_means(quick, X, params):
    vae = quick(**params, n_components=3).fit(X)
    display = ComponentsDisplay.from_estimator(vae, X)
    assert display.kl is None
    variance = np.var(vae.transform(X), axis=0, dtype=np.float64)
    np.testing.assert_array_equal(display.variance, variance)
    heights = [bar.get_height() for bars in display.ax_.containers for bar in bars]
    np.testing.assert_array_equal(heights, np.sort(variance)[::-1])
    assert display.ax_.get_ylabel() == "Variance of posterior means"


def test_latent_space_has_the_posteriors_of_the_two_most_active_components(pipe, rows):
    display = LatentSpaceDisplay.from_estimator(pipe, rows)
    most = np.argsort(metrics.kl_per_component(pipe, rows))[::-1][:2]
    assert display.components == tuple(most)
    mean, std = pipe[-1].encode(pipe[:-1].transform(rows))
    np.testing.assert_array_equal(display.mean, mean[:, most])
    np.testing.assert_array_equal(display.std, std[:, most])
    np.testing.assert_array_equal(display.scatters_[0].get_offsets(), mean[:, most])
    assert display.ax_.get_xlabel() == f"Posterior mean of component {most[0]}"
    other = LatentSpaceDisplay.from_estimator(pipe, rows, components=(2, 0))
    np.testing.assert_array_equal(other.mean, mean[:, [2, 0]])


def test_classes_have_a_legend_and_numbers_a_colour_bar(pipe, rows):
    names = np.where(rows[:, 0] > 3, "many", "few")
    display = LatentSpaceDisplay.from_estimator(pipe, rows, names)
    assert words(display) == ["few", "many"]
    for scatter, name in zip(display.scatters_, ["few", "many"], strict=True):
        np.testing.assert_array_equal(scatter.get_offsets(), display.mean[names == name])
    assert len(display.figure_.axes) == 1
    display = LatentSpaceDisplay.from_estimator(pipe, rows, pd.Series(rows[:, 0], name="price"))
    assert display.ax_.get_legend() is None
    (scatter,) = display.scatters_
    np.testing.assert_array_equal(scatter.get_array(), rows[:, 0])
    assert display.figure_.axes[1].get_ylabel() == "price"
    # Few numbers are classes.
    display = LatentSpaceDisplay.from_estimator(pipe, rows, np.arange(60) % 3)
    assert words(display) == ["0", "1", "2"]


def test_rows_whose_class_or_number_is_missing_are_grey(pipe, rows):
    few, many = np.arange(60) % 3.0, rows[:, 0].copy()
    names = np.array(["up", "down"], dtype=object)[np.arange(60) % 2]
    few[::5], many[::5], names[::5] = np.nan, np.nan, None
    objects = [None if np.isnan(value) else value for value in many]
    of_few = ["0.0", "1.0", "2.0"]
    for y, known in ((few, of_few), (many, []), (objects, []), (names, ["down", "up"])):
        display = LatentSpaceDisplay.from_estimator(pipe, rows, y, ellipses=True)
        assert words(display) == [*known, "missing"]
        *others, grey = display.scatters_
        np.testing.assert_array_equal(grey.get_offsets(), display.mean[::5])
        np.testing.assert_array_equal(grey.get_facecolor(), [[0.8, 0.8, 0.8, 1.0]])
        assert sum(len(scatter.get_offsets()) for scatter in others) == 48
        edges = display.ellipses_.get_edgecolor()[::5, :3]
        np.testing.assert_array_equal(edges, 0.8)


@pytest.mark.parametrize("n_values", [3, 60])
def test_y_may_be_a_column_of_its_own(pipe, rows, n_values):
    y = np.arange(60) % n_values
    display = LatentSpaceDisplay.from_estimator(pipe, rows, y[:, None])
    assert len(display.scatters_) == (3 if n_values == 3 else 1)
    display = LatentSpaceDisplay.from_estimator(pipe, rows, pd.DataFrame({"price": y}))
    if n_values == 60:
        np.testing.assert_array_equal(display.scatters_[0].get_array(), y)
        assert display.figure_.axes[1].get_ylabel() == "price"
    with pytest.raises(ValueError, match="y should be a 1d array"):
        LatentSpaceDisplay.from_estimator(pipe, rows, rows)


def test_more_than_ten_classes_have_other_markers(pipe, rows):
    display = LatentSpaceDisplay.from_estimator(pipe, rows, np.arange(60) % 12)
    first, eleventh = display.scatters_[0], display.scatters_[10]
    np.testing.assert_array_equal(first.get_facecolor(), eleventh.get_facecolor())
    assert len(first.get_paths()[0]) != len(eleventh.get_paths()[0])


def test_ellipses_have_one_standard_deviation_in_each_direction(pipe, rows):
    display = LatentSpaceDisplay.from_estimator(pipe, rows, ellipses=True)
    np.testing.assert_allclose(display.ellipses_.get_widths(), 2 * display.std[:, 0])
    np.testing.assert_allclose(display.ellipses_.get_heights(), 2 * display.std[:, 1])
    np.testing.assert_array_equal(display.ellipses_.get_offsets(), display.mean)
    for limits, mean, std in zip(
        (display.ax_.get_xlim(), display.ax_.get_ylim()), display.mean.T, display.std.T, strict=True
    ):
        assert limits[0] <= (mean - std).min()
        assert (mean + std).max() <= limits[1]
    assert display.plot().ellipses_ is None


def test_components_that_a_model_has_not_raise(pipe, quick, X, rows):
    with pytest.raises(ValueError, match=r"from 0 to 2, .* n_components=3. Got \(0, 3\)"):
        LatentSpaceDisplay.from_estimator(pipe, rows, components=(0, 3))
    with pytest.raises(ValueError, match=r"components must be two. Got \(0,\)"):
        LatentSpaceDisplay.from_estimator(pipe, rows, components=(0,))
    with pytest.raises(ValueError, match=r"from 0 to 2.*Got \(\)"):
        TraversalDisplay.from_estimator(pipe, components=())
    one = quick(n_components=1).fit(X)
    with pytest.raises(ValueError, match="Got a model of n_components=1"):
        LatentSpaceDisplay.from_estimator(one, X)
    for model, components in ((one, None), (pipe, (0, 1, 2)), (pipe, (1, 1))):
        with pytest.raises(ValueError, match=r"kind='manifold' moves two components. Got"):
            TraversalDisplay.from_estimator(model, kind="manifold", components=components)


# --- rows ---------------------------------------------------------------------------------


def picture(display):
    (image,) = display.ax_.images
    return np.ma.filled(image.get_array(), np.nan)


def test_reconstructions_of_a_pipeline_are_in_the_units_of_its_input(pipe, rows):
    display = ReconstructionDisplay.from_estimator(pipe, rows)
    np.testing.assert_array_equal(display.data, rows)
    expected = pipe.inverse_transform(pipe.transform(rows))
    np.testing.assert_array_equal(display.reconstruction, expected)
    for panel, x, y in zip(display.axes_, rows.T, expected.T, strict=True):
        np.testing.assert_array_equal(panel.collections[0].get_offsets(), np.stack([x, y], 1))
    assert display.units is None
    assert display.axes_[-1].get_xlabel() == "Value"


def test_rows_after_a_step_without_inverse_are_as_the_model_sees_them(quick, X):
    table = pd.DataFrame(np.exp(X / 9), columns=list("abcd"))
    pipe = make_pipeline(StandardScaler(), Normalizer(), quick(max_iter=20)).fit(table)
    seen = pipe[:-1].transform(table)
    display = ReconstructionDisplay.from_estimator(pipe, table)
    np.testing.assert_array_equal(display.data, seen)
    expected = pipe[-1].inverse_transform(pipe[-1].transform(seen))
    np.testing.assert_array_equal(display.reconstruction, expected)
    assert display.feature_names == list("abcd")
    assert display.axes_[-1].get_xlabel() == "Value (after 'normalizer')"
    samples = SampleDisplay.from_estimator(pipe, table, n_samples=7, random_state=0)
    np.testing.assert_array_equal(samples.samples, pipe[-1].sample(7, random_state=0))
    np.testing.assert_array_equal(samples.data, seen)
    assert samples.axes_[-1].get_xlabel() == "Value (after 'normalizer')"
    for options in ({"kind": "manifold"}, {}):
        display = TraversalDisplay.from_estimator(pipe, n_steps=3, **options)
        labels = [ax.get_xlabel() + ax.get_ylabel() for ax in display.figure_.axes]
        assert any("E[x|z] (after 'normalizer')" in label for label in labels)
    # Pixels have such units, components have none.
    images = {"image_shape": (2, 2)}
    for display, label in (
        (TraversalDisplay.from_estimator(pipe, **images), "Value of the component"),
        (TraversalDisplay.from_estimator(pipe, **images, kind="manifold"), "Component 0"),
        (ReconstructionDisplay.from_estimator(pipe, table, **images), ""),
        (SampleDisplay.from_estimator(pipe, **images), ""),
    ):
        assert display.ax_.get_title() == "Pixels after 'normalizer'"
        assert display.ax_.get_xlabel().removesuffix(", all others at 0") == label


def test_rows_after_a_one_way_step_within_a_pipeline_are_as_the_model_sees_them(quick, X):
    first = make_pipeline(StandardScaler(), FunctionTransformer(np.tanh))
    pipe = make_pipeline(first, quick()).fit(X)
    display = ReconstructionDisplay.from_estimator(pipe, X)
    assert display.units == "after 'functiontransformer'"
    np.testing.assert_array_equal(display.data, np.tanh(StandardScaler().fit_transform(X)))


def test_columns_are_named_only_where_every_step_says_how(quick, X):
    table = pd.DataFrame(X, columns=list("abcd"))
    turn = FunctionTransformer(lambda X: np.asarray(X)[:, ::-1])
    display = SampleDisplay.from_estimator(make_pipeline(turn, quick()).fit(table), random_state=0)
    assert display.feature_names == ["x0", "x1", "x2", "x3"]
    turn.set_params(feature_names_out=lambda step, names: names[::-1])
    display = SampleDisplay.from_estimator(make_pipeline(turn, quick()).fit(table), random_state=0)
    assert display.feature_names == list("dcba")
    # A step that passes rows on has no say.
    pipe = make_pipeline("passthrough", StandardScaler(), quick()).fit(table)
    assert SampleDisplay.from_estimator(pipe, random_state=0).feature_names == list("abcd")


def test_names_after_steps_that_make_new_features_are_theirs(quick, X):
    pipe = make_pipeline(PCA(3), Normalizer(), quick()).fit(X)
    display = ReconstructionDisplay.from_estimator(pipe, X)
    assert display.feature_names == ["pca0", "pca1", "pca2"]


def test_steps_that_can_be_inverted_are_so_whatever_they_make(quick, X):
    table = pd.DataFrame(X, columns=list("abcd"))
    pipe = make_pipeline(PCA(3), quick()).fit(table)
    display = TraversalDisplay.from_estimator(pipe, n_steps=2)
    assert display.feature_names == list("abcd")
    assert display.values.shape == (2, 2, 4)


def test_images_lie_beside_their_reconstructions(pipe, rows):
    display = ReconstructionDisplay.from_estimator(pipe, rows, image_shape=(2, 2), n_images=5)
    assert display.image_shape == (1, 2, 2)
    drawn = picture(display)
    assert drawn.shape == (2 * 2 + 1, 5 * 2 + 4)  # with gaps of a pixel
    for j in range(5):
        np.testing.assert_array_equal(drawn[:2, 3 * j : 3 * j + 2], rows[j].reshape(2, 2))
        own = display.reconstruction[j].reshape(2, 2)
        np.testing.assert_array_equal(drawn[3:, 3 * j : 3 * j + 2], own)
    assert np.isnan(drawn[2]).all()


def test_conv_knows_its_images_unless_features_are_asked_for(quick):
    X = np.random.default_rng(0).random((20, 64))
    vae = quick(network=Conv((1, 8, 8), channels=(2,)), max_iter=1)
    display = ReconstructionDisplay.from_estimator(make_pipeline(StandardScaler(), vae).fit(X), X)
    assert display.image_shape == (1, 8, 8)
    display = ReconstructionDisplay.from_estimator(vae.fit(X), X, features=[3, "x9"])
    assert display.image_shape is None
    assert display.feature_names == ["x3", "x9"]
    np.testing.assert_array_equal(display.data, X[:, [3, 9]])
    # Images that a step before has made are none in the units of its input.
    wide = np.random.default_rng(0).random((80, 70))
    display = TraversalDisplay.from_estimator(make_pipeline(PCA(64), vae).fit(wide))
    assert display.image_shape is None
    # Nor can two channels be drawn.
    two = quick(network=Conv((2, 8, 8), channels=(2,)), max_iter=1).fit(np.tile(X, 2))
    assert ReconstructionDisplay.from_estimator(two, np.tile(X, 2)).image_shape is None


def test_images_of_three_channels_keep_their_colours(quick):
    X = np.random.default_rng(0).random((20, 12))
    X[:2] = np.repeat([[0.0], [1.0]], 12, axis=1)  # the darkest and the lightest
    vae = quick(max_iter=1).fit(X)
    display = ReconstructionDisplay.from_estimator(vae, X, image_shape=(3, 2, 2), n_images=9)
    drawn = picture(display)
    for j in range(9):
        own = X[j].reshape(3, 2, 2).transpose(1, 2, 0)
        np.testing.assert_allclose(drawn[:2, 3 * j : 3 * j + 2], own, atol=0.02)  # of contrast
    np.testing.assert_array_equal(drawn[2], 1.0)  # the gap is white


@pytest.mark.parametrize("kind", ["components", "manifold"])
def test_traversal_is_what_the_pipeline_makes_of_latent_rows(pipe, rows, kind):
    display = TraversalDisplay.from_estimator(
        pipe, kind=kind, components=(2, 0), n_steps=5, image_shape=(2, 2)
    )
    for i, j in np.ndindex(display.values.shape[:2]):
        z = np.zeros((1, 3))
        if kind == "components":
            z[0, (2, 0)[i]] = np.linspace(-3, 3, 5)[j]
        else:
            z[0, 2], z[0, 0] = norm.ppf(0.1 + 0.2 * j), norm.ppf(0.1 + 0.2 * i)
        own = pipe.inverse_transform(z)[0]
        np.testing.assert_allclose(display.values[i, j], own, rtol=1e-6)
        # A component a row, from above; the manifold's second one rises.
        row = i if kind == "components" else 4 - i
        drawn = picture(display)[3 * row : 3 * row + 2, 3 * j : 3 * j + 2]
        np.testing.assert_array_equal(drawn, display.values[i, j].reshape(2, 2))
        label = display.ax_.get_yticklabels()[row].get_text()
        step = f"{display.grid[i]:.1f}"
        assert label == (step if kind == "manifold" else f"Component {(2, 0)[i]}")


def test_traversal_takes_the_most_active_components_first(pipe, rows):
    assert TraversalDisplay.from_estimator(pipe).components == (0, 1, 2)
    order = tuple(np.argsort(metrics.kl_per_component(pipe, rows))[::-1])
    assert TraversalDisplay.from_estimator(pipe, rows).components == order
    # Others where the rows are others: those that differ in what component 1 says alone.
    Z = np.zeros((60, 3))
    Z[:, 1], Z[:, 2] = np.linspace(-2, 2, 60), np.linspace(-1, 1, 60)
    others = pipe.inverse_transform(Z)
    order = tuple(np.argsort(metrics.kl_per_component(pipe, others))[::-1])
    assert order != (0, 1, 2)
    assert TraversalDisplay.from_estimator(pipe, others).components == order
    manifold = TraversalDisplay.from_estimator(pipe, others, kind="manifold")
    assert manifold.components == order[:2]


def test_traversal_by_feature_has_a_curve_for_each_component(pipe):
    display = TraversalDisplay.from_estimator(pipe, features=[1, 3])
    for d, panel in enumerate(display.axes_):
        assert len(panel.lines) == 3
        for i, line in enumerate(panel.lines):
            np.testing.assert_array_equal(line.get_xdata(), display.grid)
            np.testing.assert_array_equal(line.get_ydata(), display.values[i, :, d])


def test_samples_are_those_of_sample(pipe, rows):
    display = SampleDisplay.from_estimator(pipe, rows, n_samples=50, random_state=3)
    np.testing.assert_array_equal(display.samples, skvae.sample(pipe, 50, random_state=3))
    np.testing.assert_array_equal(display.data, rows)
    means = SampleDisplay.from_estimator(pipe, n_samples=50, random_state=3, mean=True)
    expected = skvae.sample(pipe, 50, random_state=3, mean=True)
    np.testing.assert_array_equal(means.samples, expected)
    assert means.data is None


def test_sampled_images_lie_below_the_data_ten_in_a_row(pipe, rows):
    display = SampleDisplay.from_estimator(
        pipe, rows, n_samples=12, random_state=0, image_shape=(2, 2), n_images=12
    )
    drawn = picture(display)
    assert drawn.shape == (4 * 2 + 3, 10 * 2 + 9)
    np.testing.assert_array_equal(drawn[3:5, 3:5], rows[11].reshape(2, 2))
    np.testing.assert_array_equal(drawn[9:, :2], display.samples[10].reshape(2, 2))
    assert np.isnan(drawn[9:, 6:]).all()
    labels = [label.get_text() for label in display.ax_.get_yticklabels()]
    assert labels == ["Data", "", "Samples", ""]


def test_histograms_have_a_bin_for_each_of_few_whole_numbers(quick):
    X = np.random.default_rng(0).poisson(3.0, (80, 2)).astype(float)
    vae = quick(likelihood="poisson").fit(X)
    display = SampleDisplay.from_estimator(vae, X, random_state=0)
    data, _ = display.axes_[0].patches
    edges = np.unique(data.get_xy()[:, 0])
    np.testing.assert_array_equal(edges % 1, 0.5)
    np.testing.assert_array_equal(np.diff(edges), 1.0)


@pytest.mark.filterwarnings("ignore:column 3:UserWarning")
def test_of_a_table_only_columns_of_numbers_are_shown(quick, X):
    table = pd.DataFrame(X[:, :2], columns=["a", "b"])
    table.insert(0, "kind", pd.Categorical(np.where(X[:, 2] > 0, "up", "down")))
    table["some"] = X[:, 3] > 9
    vae = quick(likelihood="auto").fit(table)
    display = ReconstructionDisplay.from_estimator(vae, table)
    assert display.feature_names == ["a", "b", "some"]
    np.testing.assert_array_equal(display.data, table[["a", "b", "some"]].astype(float))
    expected = vae.inverse_transform(vae.transform(table))[["a", "b", "some"]]
    np.testing.assert_array_equal(display.reconstruction, expected.astype(float))
    assert [panel.get_title() for panel in display.axes_] == ["a", "b", "some"]
    with pytest.raises(ValueError, match="features has 'kind', whose values are categories"):
        ReconstructionDisplay.from_estimator(vae, table, features=["kind"])
    with pytest.raises(ValueError, match=r"'c', which is neither .* are \['kind', 'a', 'b'"):
        ReconstructionDisplay.from_estimator(vae, table, features=["c"])
    with pytest.raises(ValueError, match="no column of numbers to show"):
        SampleDisplay.from_estimator(quick(likelihood="auto").fit(table[["kind"]]))


def test_rows_that_are_sparse_or_have_holes_are_shown(quick, X):
    sparse = scipy.sparse.csr_array(X)
    display = ReconstructionDisplay.from_estimator(quick().fit(sparse), sparse)
    np.testing.assert_array_equal(display.data, X)
    X[::5, 1] = np.nan
    vae = quick().fit(X)
    np.testing.assert_array_equal(ReconstructionDisplay.from_estimator(vae, X).data, X)
    SampleDisplay.from_estimator(vae, X, random_state=0)


def test_many_features_show_the_first_sixteen(quick):
    X = np.random.default_rng(0).normal(size=(30, 20))
    display = ReconstructionDisplay.from_estimator(quick().fit(X), X)
    assert display.feature_names == [f"x{i}" for i in range(16)]
    assert len(display.axes_) == 16


@pytest.mark.parametrize(
    ("options", "match"),
    [
        *(
            ({"image_shape": shape}, r"image_shape must be .* 4 values in all.*Got [4(]")
            for shape in ((2, 3), (4,), (4, 1, 1), (2, 1, 2), 4)
        ),
        ({"features": "x1"}, "features must be a list .* Got 'x1'"),
        ({"features": 1}, "features must be a list .* Got 1"),
        ({"image_shape": (2, 2), "features": [1]}, "image_shape or features, not both"),
        ({"image_shape": (2, 2), "n_images": 0}, "n_images == 0, must be >= 1"),
        ({"n_steps": 1}, "n_steps == 1, must be >= 2"),
        ({"kind": "both"}, r"kind must be 'components' or 'manifold'. Got 'both'"),
    ],
    ids=str,
)
def test_options_that_are_none_of_a_display_raise(pipe, rows, options, match):
    of_steps = options.keys() & {"n_steps", "kind"}
    display = TraversalDisplay if of_steps else ReconstructionDisplay
    with pytest.raises(ValueError, match=match):
        display.from_estimator(pipe, rows, **options)
