"""Factor analysis, where training begins and which it is to beat."""

import math
import warnings

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn import config_context
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.model_selection import GridSearchCV

from skvae import VAEGridSearchCV, VAETransformer
from skvae._data import statistics
from skvae._fit.preparation import prepare
from skvae._model import factor_analysis, loop
from skvae._model.factor_analysis import Noise, Size
from skvae.likelihoods import Gaussian, Laplace, StudentT, _reals
from skvae.networks import MLP, Conv
from skvae.priors import Mixture, Vamp

TABLES = {f.__name__[5:]: f for f in (load_wine, load_diabetes, load_iris, load_breast_cancer)}
FLOOR = 1e-4


def standardised(table):
    X = TABLES[table]().data
    return (X - X.mean(axis=0)) / X.std(axis=0)


def noise_of(kind="per_feature", floor=FLOOR):
    return Noise(torch.tensor([floor]).double(), kind)


def plane(n=400, n_features=6, rank=2, noise=0.5, seed=0):
    """Rows around a plane."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, n_features))
    return rows + noise * rng.normal(size=(n, n_features))


def with_holes(y, share=0.2, seed=1):
    """Rows some of whose values are missing completely at random."""
    hidden = np.random.default_rng(seed).random(y.shape) < share
    return np.where(hidden, np.nan, y)


def factors(y, size, noise=None, weight=None, n_steps=factor_analysis.N_LAST_STEPS):
    """Mean, loading and variance, as they are given to new rows."""
    noise = noise_of() if noise is None else noise
    weight = np.ones(len(y)) if weight is None else weight
    weight = torch.from_numpy(np.asarray(weight, dtype=np.float64))[None]
    ((found,),) = factor_analysis.maximise(torch.from_numpy(y), [size], noise, weight, n_steps)
    return [part.numpy() for part in found]


def deflated(y, size, noise=None, n=None, **more):
    """The same without what they are inflated by for new rows."""
    n = len(y) if n is None else n
    mean, loading, variance = factors(y, size, noise, **more)
    inflation = (n + 1) / (n - size.n_components - 3)
    return mean, loading / np.sqrt(inflation), variance / inflation


def log_likelihood(y, mean, loading, variance):
    covariance = loading @ loading.T + np.diag(variance)
    return scipy.stats.multivariate_normal(mean, covariance).logpdf(y).mean()


def choose(y, n_components, noise=None, weight=None, group=None):
    noise = noise_of() if noise is None else noise
    given = [None if v is None else torch.from_numpy(np.asarray(v)) for v in (weight, group)]
    return factor_analysis.choose(torch.from_numpy(y), n_components, noise, *given)


def analyse(y, chosen, noise=None):
    """Factor analysis of what was chosen, or of one size."""
    chosen = ((chosen, 1.0),) if isinstance(chosen, Size) else chosen
    return factor_analysis.analyse(
        torch.from_numpy(y), chosen, noise_of() if noise is None else noise
    )


def share_of(chosen, n_components):
    """What sizes of so many components count."""
    assert sum(share for _, share in chosen) == pytest.approx(1)
    return sum(share for size, share in chosen if size.n_components == n_components)


def score(y, found):
    """Log-likelihood of each row under factors that are found."""
    return factor_analysis.log_likelihood(torch.from_numpy(y), *found[:3]).numpy()


# --- EM ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:FactorAnalysis did not converge")
@pytest.mark.parametrize(
    ("table", "n_components"),
    [("wine", 1), ("wine", 4), ("diabetes", 2), ("diabetes", 4), ("iris", 1), ("breast_cancer", 2)],
)
def test_em_comes_as_far_as_factor_analysis_of_scikit_learn(table, n_components):
    y = standardised(table)
    noise = noise_of(floor=1e-12)
    found = deflated(y, Size(n_components), noise, n_steps=factor_analysis.N_STEPS)
    reference = FactorAnalysis(n_components, svd_method="lapack", tol=1e-5, max_iter=3000).fit(y)
    # 50 steps of EM, against some thousand.
    assert log_likelihood(y, *found) > reference.score(y) - 0.05


@pytest.mark.parametrize("table", ["wine", "diabetes"])
@pytest.mark.parametrize("n_components", [1, 3])
def test_with_shared_noise_it_is_pca(table, n_components):
    y = standardised(table)
    mean, loading, variance = deflated(y, Size(n_components), noise_of("shared"))
    assert len(set(variance)) == 1
    pca = PCA(n_components).fit(y)
    assert log_likelihood(y, mean, loading, variance) == pytest.approx(pca.score(y), abs=1e-3)


@pytest.mark.parametrize("kind", ["per_feature", "shared", None])
def test_no_components_are_independent_columns(kind):
    y = np.random.default_rng(0).normal(size=(50, 3)) * [1.0, 2.0, 0.5] + 7
    noise = noise_of(kind, 0.25)
    mean, loading, variance = factors(y, Size(0), noise)
    np.testing.assert_allclose(mean, y.mean(axis=0), rtol=1e-12)
    assert loading.shape == (3, 0)
    inflation = 51 / 47
    expected = {"per_feature": y.var(axis=0), "shared": np.full(3, y.var(axis=0).mean())}
    if kind is None:
        assert variance.tolist() == [0.25] * 3
    else:
        above = np.maximum(expected[kind], 1.01 * 0.25)
        np.testing.assert_allclose(variance, inflation * above, rtol=1e-12)


def test_the_covariance_is_inflated_for_new_rows():
    y = plane(n=60)
    complete = torch.from_numpy(y)
    ones = torch.ones(1, 60).double()
    for k in (0, 1, 2):
        ((own,),) = factor_analysis._maximise_complete(complete, ones, [Size(k)], noise_of(), 50)
        mean, loading, variance = factors(y, Size(k), n_steps=50)
        inflation = 61 / (60 - k - 3)
        np.testing.assert_allclose(mean, own[0])
        np.testing.assert_allclose(loading, np.sqrt(inflation) * own[1].numpy(), rtol=1e-12)
        np.testing.assert_allclose(variance, inflation * own[2].numpy(), rtol=1e-12)


def test_the_covariance_of_few_rows_is_inflated_by_at_most_three():
    y = plane(n=5)
    _, _, variance = factors(y, Size(0))
    np.testing.assert_allclose(variance, 3 * y.var(axis=0), rtol=1e-12)


@pytest.mark.parametrize("pseudo_rows", [0.0, 2.0])
@pytest.mark.parametrize("kind", ["per_feature", "shared", None])
def test_em_for_holes_of_rows_without_any_takes_the_steps_of_em(kind, pseudo_rows):
    y, noise = plane(), noise_of(kind, 0.25 if kind is None else FLOOR)
    y[:, 1] *= 3
    weight = np.random.default_rng(2).exponential(size=len(y))
    size = Size(3, pseudo_rows)
    tensors = torch.from_numpy(y), torch.from_numpy(weight)
    for n_steps in (1, 50):
        ((complete,),) = factor_analysis._maximise_complete(
            tensors[0], tensors[1][None], [size], noise, n_steps
        )
        holes = factor_analysis._maximise_holes(*tensors, size, noise, n_steps)
        for ours, theirs in zip(holes, complete, strict=True):
            # What keeps the equations of a column solvable is 1e-9, some hundred rows beside it.
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


def test_em_for_holes_finds_what_makes_the_values_that_are_there_likely():
    y = plane(800)
    holed = with_holes(y)
    complete, holes = deflated(y, Size(2)), deflated(holed, Size(2))
    # Each is the best for its own rows.
    assert score(holed, tensors_of(holes)).mean() > score(holed, tensors_of(complete)).mean()
    assert log_likelihood(y, *complete) > log_likelihood(y, *holes)
    # A fifth fewer values, of 800 rows.
    assert log_likelihood(y, *holes) > log_likelihood(y, *complete) - 0.05
    covariances = [loading @ loading.T + np.diag(v) for _, loading, v in (complete, holes)]
    scale = np.sqrt(np.diag(covariances[0]))
    assert np.abs((covariances[1] - covariances[0]) / np.outer(scale, scale)).max() < 0.1


def tensors_of(found):
    return [torch.from_numpy(part) for part in found]


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_every_step_of_em_makes_the_rows_more_likely(share):
    y, before = with_holes(plane(200), share), -np.inf
    for n_steps in (1, 2, 3, 5, 10, 30):
        now = score(y, tensors_of(deflated(y, Size(2), noise_of(floor=1e-9), n_steps=n_steps)))
        assert now.mean() > before
        before = now.mean()


@pytest.mark.parametrize("n_components", [0, 1, 3])
def test_log_likelihood_with_holes_is_that_of_the_values_that_are_there(n_components):
    rng = np.random.default_rng(0)
    y = with_holes(rng.normal(size=(20, 5)), 0.4)
    y[0] = np.nan
    mean, loading = rng.normal(size=5), rng.normal(size=(5, n_components))
    variance = rng.exponential(size=5)
    covariance = loading @ loading.T + np.diag(variance)
    for row, found in zip(y, score(y, tensors_of((mean, loading, variance))), strict=True):
        there = ~np.isnan(row)
        if not there.any():
            assert found == 0
            continue
        block = covariance[np.ix_(there, there)]
        normal = scipy.stats.multivariate_normal(mean[there], block)
        assert found == pytest.approx(normal.logpdf(row[there]), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["per_feature", "shared"])
def test_weights_are_rows_that_are_repeated(share, kind):
    y = with_holes(plane(300), share)
    n = 1 + np.random.default_rng(2).integers(3, size=300)
    ours = factors(y, Size(2), noise_of(kind), weight=n / 7)
    theirs = factors(np.repeat(y, n, axis=0), Size(2), noise_of(kind))
    # Rows that count unequally say as much as fewer that count the same.
    n_ours, n_theirs = n.sum() ** 2 / (n**2).sum(), n.sum()
    factor = (n_ours + 1) / (n_ours - 5) / ((n_theirs + 1) / (n_theirs - 5))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6, atol=1e-7)
    for own, repeated in ((ours[1] @ ours[1].T, theirs[1] @ theirs[1].T), (ours[2], theirs[2])):
        np.testing.assert_allclose(own, factor * repeated, rtol=1e-5, atol=1e-6)


def test_only_ratios_of_weights_matter_and_a_weight_of_0_leaves_a_row_out():
    y, w = plane(100), np.random.default_rng(2).exponential(size=100)
    assert choose(y, 4, weight=w) == choose(y, 4, weight=1e3 * w)
    first = factors(y, Size(2, 2.0), weight=w), factors(y[:80], Size(2, 2.0))
    second = ({"weight": 1e3 * w}, {"weight": np.arange(100) < 80})
    for found, given in zip(first, second, strict=True):
        for a, b in zip(found, factors(y, Size(2, 2.0), **given), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)


def test_pseudo_rows_shrink_the_noise_towards_the_variance_of_the_column():
    # A column that a component has for itself, as in a Heywood case.
    y = plane(40, rank=1)
    y[:, 0] *= 10
    y[:, 0] += np.random.default_rng(5).normal(size=40)
    shares = [
        (variance / y.var(axis=0)).min()
        for variance in (deflated(y, Size(3, a))[2] for a in (0.0, 0.5, 2.0, 8.0, 1e9))
    ]
    assert (np.diff(shares) > 0).all()
    assert shares[-1] == pytest.approx(1, rel=1e-6)
    # At most as if no residual were left: a of n + a rows.
    n = factor_analysis._good_rows(
        torch.tensor(40.0),
        *(torch.from_numpy(((y - y.mean(axis=0)) ** power).mean(axis=0)) for power in (2, 4)),
    )
    assert shares[2] >= (2 / (n + 2)).min()


def test_a_column_of_few_values_is_worth_as_many_rows():
    y = np.zeros((1000, 2))
    y[:, 0] = np.random.default_rng(0).normal(size=1000)
    y[:6, 1] = [1, 1, -1, 1, 1, -1]
    square, fourth = (
        ((y - y.mean(axis=0)) ** 2).mean(axis=0),
        ((y - y.mean(axis=0)) ** 4).mean(axis=0),
    )
    n = factor_analysis._good_rows(torch.tensor(1000.0), *map(torch.from_numpy, (square, fourth)))
    # The kurtosis of normal values is 3 but for the draws; that of k of n values is about n / k.
    assert n[0] == pytest.approx(1000, rel=0.2)
    assert n[1] == pytest.approx(2 * 6, rel=0.02)


# --- the posterior ----------------------------------------------------------------------------


def test_the_posterior_is_that_of_the_normal_distribution():
    found = analyse(standardised("wine"), Size(3))
    mean, loading, variance = (part.numpy() for part in found[:3])
    joint = loading @ loading.T + np.diag(variance)
    expected = loading.T @ np.linalg.inv(joint)
    encode, log_std = found.encode.numpy(), found.log_std.numpy()
    np.testing.assert_allclose(encode[:, :13], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(encode[:, -1], -expected @ mean, rtol=1e-9, atol=1e-12)
    assert (encode[:, 13:26] == 0).all()  # the mask plays no part
    assert (log_std[:, :-1] == 0).all()
    covariance = np.eye(3) - expected @ loading
    np.testing.assert_allclose(
        covariance, np.diag(np.exp(2 * log_std[:, -1])), rtol=1e-9, atol=1e-12
    )
    assert (np.diff(log_std[:, -1]) > 0).all()  # the strongest first


def test_turned_factors_have_the_covariance_that_was_found():
    y = standardised("wine")
    mean, loading, variance = factors(y, Size(3, 2.0))
    found = analyse(y, Size(3, 2.0))
    np.testing.assert_allclose(found.mean, mean, atol=1e-12)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-12)
    np.testing.assert_allclose(found.loading @ found.loading.T, loading @ loading.T, atol=1e-10)


def exact_posterior(y, found):
    """Means and standard deviations (B, k) of z given the values that are there."""
    mean, loading, variance = (part.numpy() for part in found[:3])
    means, stds = [], []
    for row in y:
        there = ~np.isnan(row)
        own = loading[there]
        joint = own @ own.T + np.diag(variance[there])
        gain = own.T @ np.linalg.inv(joint)
        means.append(gain @ (row - mean)[there])
        stds.append(np.sqrt(np.diag(np.eye(own.shape[1]) - gain @ own)))
    return np.array(means), np.array(stds)


def encode(y, found):
    mask = ~np.isnan(y)
    inputs = np.hstack([np.nan_to_num(y), mask, np.ones((len(y), 1))])
    return inputs @ found.encode.numpy().T, np.exp(inputs @ found.log_std.numpy().T)


def test_the_encoder_for_holes_is_exact_for_rows_without_any_where_none_has_holes():
    y = standardised("wine")
    found = analyse(y, Size(3))
    moved = factor_analysis._encode_holes(torch.from_numpy(y), *found)
    for ours, exact in zip(moved, found[3:], strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)
    for ours, exact in zip(encode(y, found), exact_posterior(y, found), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("table", TABLES)
def test_the_encoder_for_holes_comes_close_to_the_posteriors_of_new_rows(table):
    y = with_holes(standardised(table))
    new = with_holes(standardised(table), seed=2)
    found = analyse(y, Size(2, 2.0))
    ours, exact = encode(new, found), exact_posterior(new, found)
    for j in range(2):
        assert np.corrcoef(ours[0][:, j], exact[0][:, j])[0, 1] > 0.9


# --- the choice of a size ---------------------------------------------------------------------


def test_components_that_are_not_worth_it_are_left_out():
    y = plane(800, 20)
    assert share_of(choose(y + 7, 6), 2) > 0.8
    assert share_of(choose(with_holes(y), 6), 2) > 0.8


@pytest.mark.parametrize("n", [20, 60, 300])
def test_nothing_is_left_of_columns_that_have_nothing_in_common(n):
    chosen = []
    for seed in range(10):
        y = np.random.default_rng(seed).normal(size=(n, 8))
        chosen.append(choose((y - y.mean(axis=0)) / y.std(axis=0), 6))
    assert sum(share_of(each, 0) < 1 for each in chosen) <= 1


def watch_folds(monkeypatch, tried=None):
    """A list that gets the weights (folds, rows) of each choice; `tried` gets its sizes."""
    seen, maximise = [], factor_analysis.maximise

    def watch(y, sizes, noise, weight, n_steps):
        seen.append(weight.numpy())
        if tried is not None:
            tried.append(sizes)
        return maximise(y, sizes, noise, weight, n_steps)

    monkeypatch.setattr(factor_analysis, "maximise", watch)
    return seen


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_rows_of_a_group_are_left_out_together(monkeypatch, share):
    group = np.random.default_rng(0).integers(12, size=90) * 7 - 3
    seen = watch_folds(monkeypatch)
    choose(with_holes(plane(90), share), 3, group=group)
    (folds,) = seen
    assert len(folds) >= 3
    assert ((folds == 0).sum(axis=0) <= 1).all()  # in one fold at most
    for own in folds:
        out = {name: set(own[group == name] == 0) for name in np.unique(group)}
        assert all(len(values) == 1 for values in out.values())
        assert 0 < (own == 0).sum() < 90
    choose(plane(90), 3)
    assert ((seen[1] == 0).sum(axis=0) == 1).all()
    assert np.ptp((seen[1] == 0).sum(axis=1)) <= 1


def test_rows_that_are_copies_of_each_other_choose_components_only_without_their_groups():
    # 12 rows of independent columns, ten times each: folds of rows have seen them all.
    y = np.repeat(np.random.default_rng(0).normal(size=(12, 8)), 10, axis=0)
    y += 0.01 * np.random.default_rng(1).normal(size=y.shape)
    assert min(size.n_components for size, _ in choose(y, 6)) >= 5
    assert share_of(choose(y, 6, group=np.repeat(np.arange(12), 10)), 0) == 1


def test_where_groups_leave_too_few_rows_the_folds_are_of_rows():
    y = plane(90)
    expected = choose(y, 3)
    assert expected != factor_analysis.ALONE
    assert choose(y, 3, group=np.zeros(90, int)) == expected
    # Without the 80 rows of one group too few are left: the other folds decide.
    giant = np.where(np.arange(90) < 80, 0, np.arange(90))
    kept = factor_analysis._leave_out(torch.ones(90).double(), torch.from_numpy(giant), 5)
    assert len(kept) == 4
    assert (kept[:, :80] == 1).all()


def test_two_groups_are_two_folds(monkeypatch):
    seen = watch_folds(monkeypatch)
    group = np.arange(90) % 2
    choose(plane(90), 3, group=group)
    assert {tuple(own > 0) for own in seen[0]} == {tuple(group == 0), tuple(group == 1)}


def test_of_groups_that_leave_one_to_judge_the_folds_are_of_rows():
    group = np.repeat([0, 1], [110, 50])
    y = plane(160)
    assert choose(y, 3, group=group) == choose(y, 3) != factor_analysis.ALONE


@pytest.mark.parametrize("kind", ["per_feature", "shared"])
@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.parametrize("unit", [1.0, 1e3])
def test_constant_columns_change_neither_choice_nor_analysis(kind, share, unit):
    y = with_holes(plane(80), share)
    units = torch.linspace(1, 2, 6).double() * unit if kind == "per_feature" else None
    wide = np.insert(y, [0, 3, 6], 0.0, axis=1)
    varies = np.array([False, True, True, True, False, True, True, True, False])
    of_wide = None if units is None else torch.ones(9).double()
    if units is not None:
        of_wide[torch.from_numpy(varies)] = units
    noise, of_wide = (noise_of(kind)._replace(units=each) for each in (units, of_wide))
    chosen = choose(y, 3, noise)
    assert choose(wide, 3, of_wide) == chosen
    own, found = analyse(y, chosen, noise), analyse(wide, chosen, of_wide)
    for name in ("mean", "loading", "variance"):
        np.testing.assert_array_equal(getattr(found, name)[varies], getattr(own, name))
    assert not found.loading[~varies].any()
    np.testing.assert_allclose(found.variance[~varies], 1.01 * FLOOR)
    seen = np.concatenate([varies, varies, [True]])
    for name in ("encode", "log_std"):
        np.testing.assert_array_equal(getattr(found, name)[:, seen], getattr(own, name))
        assert not getattr(found, name)[:, ~seen].any()


@pytest.mark.parametrize("apart", [1e5, 1e9, 1e160])
def test_units_far_apart_leave_no_pca(apart):
    y = plane(60)
    units = torch.tensor([apart, 1, 1, 1, 1, 1]).double()
    sizes, _ = factor_analysis._affordable(torch.from_numpy(y), 3, noise_of()._replace(units=units))
    assert any(size.is_pca for size in sizes) == (apart <= 1e6)
    if apart > 1e6:
        assert choose(y, 3, noise_of()._replace(units=units)) == choose(y, 3)


# --- PCA, and the average ---------------------------------------------------------------------


@pytest.mark.parametrize("n", [150, 8])  # more and fewer rows than columns
@pytest.mark.parametrize("n_components", [1, 3])
def test_pca_is_that_of_the_units_of_the_table(n, n_components):
    X = plane(n, 12, 3) * np.logspace(-1, 1, 12) + 5
    location, scale = X.mean(axis=0), X.std(axis=0)
    noise = Noise(torch.tensor([1e-12]).double(), "per_feature", torch.from_numpy(scale))
    found = factors((X - location) / scale, Size(n_components, is_pca=True), noise)
    _, loading, variance = found
    inflation = (n + 1) / max(n - n_components - 3, (n + 1) / 3)
    covariance = scale[:, None] * (loading @ loading.T + np.diag(variance)) * scale / inflation
    # scikit-learn divides by n - 1, and shares what is left among as many as could vary.
    pca = PCA(n_components, svd_solver="full").fit(X)
    of_rows = np.linalg.svd(X - location, compute_uv=False) ** 2 / n
    left = of_rows[n_components:].sum() / (12 - n_components)
    axes = pca.components_.T * (of_rows[:n_components] - left)
    np.testing.assert_allclose(covariance, axes @ pca.components_ + left * np.eye(12), rtol=1e-8)
    if n > 12:
        np.testing.assert_allclose(covariance * n / (n - 1), pca.get_covariance(), rtol=1e-8)


def test_weights_of_pca_are_rows_that_are_repeated():
    y = plane(60, 5)
    times = np.random.default_rng(2).integers(0, 4, size=60)
    noise = noise_of()._replace(units=torch.linspace(0.5, 2, 5).double())
    size = Size(2, is_pca=True)
    weight = torch.from_numpy(times.astype(float))
    (weighed,) = factor_analysis._principal(torch.from_numpy(y), weight, [size], noise)
    repeated = torch.from_numpy(np.repeat(y, times, axis=0))
    ones = torch.ones(len(repeated)).double()
    (expected,) = factor_analysis._principal(repeated, ones, [size], noise)
    for one, other in zip(weighed, expected, strict=True):
        np.testing.assert_allclose(one.abs(), other.abs(), rtol=1e-9, atol=1e-12)


def test_pca_is_chosen_where_it_is_the_truth_and_factor_analysis_where_that_is():
    rng = np.random.default_rng(0)
    latent, noise = rng.normal(size=(200, 2)) @ rng.normal(size=(2, 10)), rng.normal(size=(200, 10))
    shares = []
    for scale in (0.5, np.logspace(-1, 0.5, 10)):
        X = latent + scale * noise
        units = torch.from_numpy(X.std(axis=0))
        chosen = choose((X - X.mean(axis=0)) / X.std(axis=0), 4, noise_of()._replace(units=units))
        shares.append(sum(share for size, share in chosen if size.is_pca))
    assert shares[0] > 0.8
    assert shares[1] == 0


@pytest.mark.parametrize("kind", ["per_feature", "shared"])
def test_the_average_of_models_of_one_covariance_is_that_covariance(kind):
    _, loading, variance = (torch.from_numpy(part) for part in factors(plane(100), Size(2)))
    if kind == "shared":
        variance = torch.full_like(variance, 0.3)
    turn = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(0)).double())[
        0
    ]
    models = [
        (torch.zeros(6).double(), loading @ turn, variance),
        (torch.ones(6).double(), loading, variance),
    ]
    mean, w, v = factor_analysis._average(models, [0.25, 0.75], noise_of(kind))
    np.testing.assert_allclose(mean, np.full(6, 0.75))
    expected = loading @ loading.T + torch.diag(variance)
    np.testing.assert_allclose(w @ w.T + torch.diag(v), expected, atol=2e-3)


def test_the_average_is_the_factor_analysis_closest_to_the_mean_covariance():
    models = [
        [torch.from_numpy(part) for part in factors(plane(80, seed=s), Size(k))]
        for s, k in ((0, 1), (1, 2))
    ]
    _, w, v = (part.numpy() for part in factor_analysis._average(models, [0.4, 0.6], noise_of()))
    mean = sum(
        share * (m[1] @ m[1].T + torch.diag(m[2]))
        for share, m in zip([0.4, 0.6], models, strict=True)
    ).numpy()
    # What maximises the likelihood of rows of this covariance: the noise makes up each variance,
    # and S V^-1 W = W (I + W' V^-1 W).
    np.testing.assert_allclose((w @ w.T + np.diag(v)).diagonal(), mean.diagonal(), rtol=1e-4)
    weighted = w / v[:, None]
    np.testing.assert_allclose(mean @ weighted, w @ (np.eye(2) + w.T @ weighted), atol=5e-3)


def test_shares_are_how_often_a_size_is_the_best_of_rows_that_are_drawn():
    rng = np.random.default_rng(0)
    loss = torch.from_numpy(
        np.stack([rng.normal(size=300), rng.normal(0.05, 1, size=300), np.full(300, 9.0)])
    )
    weight, group = torch.ones(300).double(), torch.arange(300)
    share = factor_analysis._share_of_draws(loss, weight, group)
    drawn = np.random.default_rng(7).dirichlet(np.ones(300), 20_000) @ loss.numpy().T
    expected = np.bincount(drawn.argmin(axis=1), minlength=3) / 20_000
    np.testing.assert_allclose(share, expected, atol=4 * 0.5 / math.sqrt(factor_analysis.N_DRAWS))
    assert share[2] == 0
    # Rows of a group come together: of one group, the best is always the best.
    one = factor_analysis._share_of_draws(loss, weight, torch.zeros(300, dtype=torch.long))
    assert sorted(one) == [0, 0, 1]
    assert one[int(loss.mean(1).argmin())] == 1


def test_many_rows_are_drawn_some_at_a_time(monkeypatch):
    rng = np.random.default_rng(0)
    loss = torch.from_numpy(rng.normal(size=(2, 3000)))
    whole = [torch.ones(3000).double(), torch.arange(3000)]
    some = factor_analysis._share_of_draws(loss, *whole)
    monkeypatch.setattr(factor_analysis, "N_UNITS", 3000)
    assert some == pytest.approx(factor_analysis._share_of_draws(loss, *whole), abs=0.1)


@pytest.mark.parametrize(("n", "n_features", "share"), [(300, 60, 0.01), (1000, 100, 0.003)])
def test_the_choice_is_never_worse_than_independent_columns_where_values_are_rare(
    n, n_features, share
):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        many = (rng.random((3 * n, n_features)) < share) * rng.exponential(size=(3 * n, n_features))
        X, new = many[:n], many[n:]
        columns = statistics.describe_columns(X)
        std = np.where(columns.std > 0, columns.std, 1.0)
        y, new = ((rows - columns.mean) / std for rows in (X, new))
        varies = columns.std > 0
        y, new = y[:, varies], new[:, varies]
        floor = np.maximum(FLOOR, _reals._floor_of_few(columns))[varies]
        noise = Noise(torch.from_numpy(floor), "per_feature", torch.from_numpy(std[varies]))
        chosen, independent = (
            score(new, analyse(y, size, noise)) for size in (choose(y, 8, noise), Size(0))
        )
        difference = chosen - independent
        assert difference.mean() >= -2 * difference.std() / np.sqrt(len(new))


@pytest.mark.filterwarnings("ignore:FactorAnalysis did not converge")
def test_of_30_rows_the_choice_is_as_good_as_the_better_of_pca_and_factor_analysis():
    differences = []
    for seed in range(5):
        X = np.random.default_rng(seed).permutation(load_wine().data)
        location, scale = X[:30].mean(axis=0), X[:30].std(axis=0)
        y, new = (X[:30] - location) / scale, (X[30:] - location) / scale
        k = min(5, y.shape[1] - 1)
        noise = noise_of()
        ours = score(new, analyse(y, choose(y, k, noise), noise)).mean()
        theirs = []
        for model in (PCA(), FactorAnalysis(svd_method="lapack", max_iter=300)):
            grid = {"n_components": range(k + 1)}
            theirs.append(GridSearchCV(model, grid, cv=5).fit(y).score(new))
        differences.append(ours - max(theirs))
    assert np.median(differences) >= 0


@pytest.mark.parametrize("columns", [0, 1, 3])
@pytest.mark.parametrize("kind", ["per_feature", "shared", None])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_columns_that_do_not_vary_and_few_rows_leave_finite_numbers(columns, kind, share):
    y = np.zeros((6, 5))
    y[:, :columns] = np.random.default_rng(0).normal(size=(6, columns))
    y = with_holes(y, share)
    chosen = choose(y, 8, noise_of(kind))
    assert max(size.n_components for size, _ in chosen) <= max(columns, 0)
    for size in (Size(0), Size(1), Size(8, 2.0), chosen):
        for part in analyse(y, size, noise_of(kind)):
            assert part.isfinite().all()


def test_a_choice_that_would_take_long_tries_fewer_sizes_in_fewer_folds(monkeypatch):
    tried = []
    seen = watch_folds(monkeypatch, tried)
    for afforded in (factor_analysis.AFFORDED, 2**24, 1):
        monkeypatch.setattr(factor_analysis, "AFFORDED", afforded)
        assert share_of(choose(plane(400, 20), 12), 2) > 0.8
    numbers = [len(sizes) * len(folds) for sizes, folds in zip(tried, seen, strict=True)]
    assert numbers[0] > numbers[1] >= numbers[2]
    assert len(seen[2]) == 1
    for sizes in tried:
        assert {0, 1, 2, 12} <= {size.n_components for size in sizes}


# --- what fits make of it ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_candidates_that_become_factor_analysis_are_one(precision):
    # Whatever is trained beside them, and with how many components: to the last bit.
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 2)) @ rng.normal(size=(2, 6)) + 0.5 * rng.normal(size=(300, 6))
    vae = VAETransformer(learning_rate=1e-9, max_iter=1, random_state=0, precision=precision)
    grid = {"beta": [0.5, 1], "n_components": [1, 2, 3]}
    search = VAEGridSearchCV(vae, grid, cv=3).fit(X)
    scores = search.cv_results_["mean_test_score"].reshape(2, 3)
    assert (scores == scores[0]).all()
    assert scores[0, 0] < scores[0, 1]
    reference = GridSearchCV(vae, grid, cv=3).fit(X)
    np.testing.assert_array_equal(scores.ravel(), reference.cv_results_["mean_test_score"])


# Every pair of a family, a noise, a posterior and a prior.
PAIRS = [
    (Gaussian("per_sample"), "diagonal", "standard_normal"),
    (Gaussian("per_feature"), "full", Mixture(3)),
    (Gaussian("shared"), "diagonal", Mixture(3)),
    (Gaussian(0.5), "full", "standard_normal"),
    (Laplace("per_sample"), "full", Mixture(3)),
    (Laplace("per_feature"), "diagonal", "standard_normal"),
    (Laplace("shared"), "full", "standard_normal"),
    (Laplace(0.5), "diagonal", Mixture(3)),
    (StudentT("per_sample"), "full", "standard_normal"),
    (StudentT("per_feature"), "diagonal", Mixture(3)),
    (StudentT("shared"), "full", Mixture(3)),
    (StudentT(0.5), "diagonal", "standard_normal"),
]


@pytest.mark.parametrize(("likelihood", "posterior", "prior"), PAIRS, ids=str)
def test_a_fit_that_learns_nothing_is_factor_analysis(likelihood, posterior, prior):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 2)) @ rng.normal(size=(2, 6)) + 0.5 * rng.normal(size=(300, 6))
    parts = {"likelihood": likelihood, "posterior": posterior, "prior": prior}
    vae = VAETransformer(2, **parts, learning_rate=1e-9, max_iter=1, random_state=0).fit(X)
    Z = vae.transform(X)
    best = PCA(2).fit(X).score(X)
    if type(likelihood) is Gaussian and likelihood.noise != 0.5:
        # 270 of the 300 rows were trained on.
        assert best - 0.3 < vae.score(X) < best + 0.3
    explained = PCA(2).fit_transform(X)
    residual = explained - Z @ np.linalg.lstsq(Z, explained, rcond=None)[0]
    assert residual.var() < 0.1 * explained.var()


@pytest.mark.parametrize(
    "params",
    [
        {"network": MLP(linear=False)},
        {"network": Conv((1, 8, 8))},
        {"likelihood": "bernoulli"},
        {"early_stopping": False},
        {"prior": Vamp(3)},
    ],
    ids=["no linear part", "convolutions", "no real values", "nothing held out", "pseudo-inputs"],
)
def test_nothing_is_kept_but_what_training_left_where_there_is_no_other(params):
    X = (np.random.default_rng(0).normal(size=(100, 64)) > 0).astype(float)
    start, end = (
        VAETransformer(2, max_iter=1, learning_rate=rate, random_state=0, **params).fit(X)
        for rate in (1e-9, 1e-2)
    )
    names = [name for name in start.state_ if name.endswith("weight")]
    assert any((start.state_[name] != end.state_[name]).any() for name in names)


@pytest.mark.parametrize("working_memory", [0.03, 1000])
def test_rows_that_are_held_out_are_a_part_of_what_is_kept_and_not_of_what_is_judged(
    monkeypatch, working_memory
):
    X, chosen, seen, judged = plane(1000, 10), [], [], []
    choose, analyse, train = factor_analysis.choose, factor_analysis.analyse, loop.train

    def watch_choice(y, *args):
        chosen.append(set(map(tuple, y.numpy())))
        return choose(y, *args)

    def watch_analysis(y, *args):
        seen.append(set(map(tuple, y.numpy())))
        return analyse(y, *args)

    def watch_training(stack, read, rows, *args, **more):
        judged.append(set(map(tuple, rows.take(rows.index)[0].double().numpy())))
        return train(stack, read, rows, *args, **more)

    monkeypatch.setattr(factor_analysis, "choose", watch_choice)
    monkeypatch.setattr(factor_analysis, "analyse", watch_analysis)
    monkeypatch.setattr(loop, "train", watch_training)
    with config_context(working_memory=working_memory):
        VAETransformer(2, max_iter=1, random_state=0).fit(X)
    ((of_choice,), (held_out,), (first, last)) = chosen, judged, seen
    assert len(first) > 800
    assert len(held_out) > 10
    assert of_choice == first
    assert not first & held_out
    assert last == first | held_out


@pytest.mark.parametrize(
    ("scale", "noise", "n_copies"),
    [(1.0, 1e-14, 1), (1.0, 1e-14, 3), (1e3, 1, 3), (1e5, 0.5, 1), (1e6, 1, 3), (1e7, 0.5, 1)],
)
def test_rows_of_few_dimensions_far_above_their_noise_can_be_fitted(scale, noise, n_copies):
    rng = np.random.default_rng(0)
    X = np.tile(rng.normal(size=(200, 2)) @ rng.normal(size=(2, 6)), n_copies) * scale
    vae = VAETransformer(8, likelihood=Gaussian(noise), max_iter=2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert np.isfinite(vae.fit(X).score(X))


def test_variances_of_rows_are_learned_in_every_epoch_of_a_warm_start():
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(300, 1))
    X = np.hstack([Z, np.exp(Z) * rng.normal(size=(300, 1))])
    vae = VAETransformer(1, max_iter=1, early_stopping=False, warm_start=True, random_state=0)
    for _ in range(3):
        vae.fit(X)
    assert (vae.state_["decoder.linear"][2:] != 0).all()


@pytest.mark.parametrize("far", [1e38, 1e39, 1e100, 1e300])
@pytest.mark.filterwarnings("ignore:X has values that are farther from the others:UserWarning")
def test_a_held_out_value_that_changes_the_units_of_its_column_leaves_all_scores_finite(far):
    # PCA is chosen on rows in which this column does not vary, in units of 1 to 10.
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4)) * [1, 2, 0.5, 4] + [3, -1, 0, 9]
    vae = VAETransformer(2, hidden_layer_sizes=(8,), max_iter=2, random_state=0)
    X[np.sort(prepare(vae, X)[0].held_out)[1], 2] = far
    vae.fit(X)
    assert np.isfinite(vae.score_samples(X)).all()
    assert vae.kept_iter_ == 0
