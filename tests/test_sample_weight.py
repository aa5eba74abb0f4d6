"""`sample_weight`: means over rows are weighted means, and a row of weight 0 was never there."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array
from sklearn import config_context
from sklearn.base import clone
from sklearn.decomposition import FactorAnalysis
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import VAEGridSearchCV, VAETransformer
from skvae._data import arrays, statistics
from skvae._data.units import standardise
from skvae._fit import execution, job, packing
from skvae._fit.preparation import prepare
from skvae._model import factor_analysis, loop, objective
from skvae._model.state import units_of
from skvae.likelihoods import Gaussian
from skvae.networks import MLP
from skvae.priors import Mixture, Vamp


def table(n_rows=120, n_features=5):
    """Correlated columns of several scales, off centre."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(n_features, n_features))
    return rng.normal(size=(n_rows, n_features)) @ mixing * 3.0 ** np.arange(n_features) + 7


def counts_of(n_rows, least=1):
    """Whole weights of rows."""
    return np.random.default_rng(1).integers(least, 5, size=n_rows)


def small(**params):
    plain = {"n_components": 2, "hidden_layer_sizes": (6,), "max_iter": 4, "random_state": 0}
    return VAETransformer(**plain | params)


def assert_same_bits(first, second):
    """The fits are the same: weights, units and all numbers of the way there."""
    for name in ("state_", "history_"):
        ours, theirs = vars(first)[name], vars(second)[name]
        assert ours.keys() == theirs.keys()
        for key, array in ours.items():
            np.testing.assert_array_equal(array, theirs[key], err_msg=key)


# 120 rows of 5 columns; read in parts of 32 rows where memory is that short.
IN_PARTS = 0.0045

HOW = {
    "plain": {},
    "linear": {"hidden_layer_sizes": ()},
    "importance": {"n_importance_samples": 3},
    "free bits": {"free_bits": 0.3},
    "vamp": {"prior": Vamp(4)},
    "mixture": {"prior": Mixture(3)},
    "full": {"posterior": "full"},
    "all rows": {"early_stopping": False},
    "clipped": {"max_grad_norm": 0.5},
    "float64": {"precision": "float64"},
}


# --- the loss ---------------------------------------------------------------------------------

LOSSES = {
    "draws": (None, False),
    "free bits": ([0.2, 0.6], False),
    "importance": (None, True),
}


def terms_of(n_rows, *, by_draw=False):
    """Terms of two models, three draws and two components, in float64."""
    g = torch.Generator().manual_seed(0)
    kl = (2, 3, n_rows, 1) if by_draw else (2, 1, n_rows, 2)
    return (
        torch.randn(2, 3, n_rows, generator=g).double(),
        torch.rand(kl, generator=g).double(),
    )


def weights_of(free_bits, importance):
    column = None if free_bits is None else torch.tensor(free_bits).double()[:, None]
    return objective.Weights(torch.tensor([[0.7], [2.0]]).double(), column, importance)


@pytest.mark.parametrize("kind", LOSSES)
def test_gradient_is_that_of_the_weighted_mean(kind):
    terms = [tensor.requires_grad_() for tensor in terms_of(6, by_draw=kind == "importance")]
    weights = weights_of(*LOSSES[kind])
    v = torch.tensor([[0.1, 3.0, 0.5, 1.4, 0.6, 0.9], [1.0, 2.0, 0.25, 0.75, 0.5, 0.5]]).double()
    log_likelihood, kl = terms
    reconstruction = -(v * log_likelihood.mean(1)).sum(1) / 6
    of_component = (v.unsqueeze(-1) * kl.mean(1)).sum(1) / v.sum(1, keepdim=True)
    if kind == "importance":
        # beta is 0.7 and 2: from 1 upwards it weighs the divergence beside the bound.
        log_w = log_likelihood - torch.clamp(weights.beta, max=1).unsqueeze(-1) * kl.squeeze(-1)
        total = -(v * log_w.exp().mean(1).log()).sum(1) / 6
        beyond = torch.clamp(weights.beta.squeeze(1) - 1, min=0)
        total = total + beyond * (v * kl.mean(1).squeeze(-1)).sum(1) / 6
    else:
        least = 0.0 if weights.free_bits is None else weights.free_bits
        cost = weights.beta.squeeze(1) * torch.clamp(of_component, min=least).sum(1)
        total = reconstruction + v.mean(1) * cost
    expected = torch.autograd.grad(total.sum(), terms)
    with torch.no_grad():
        numbers, *gradients = objective.loss(terms, weights, v)
    torch.testing.assert_close(numbers[0], total.detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(numbers[1], reconstruction.detach(), rtol=1e-13, atol=0)
    mean_kl = of_component.detach().sum(1) * v.mean(1)
    torch.testing.assert_close(numbers[2], mean_kl, rtol=1e-13, atol=0)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("kind", LOSSES)
def test_whole_weights_are_repetitions(kind):
    terms, n = terms_of(6, by_draw=kind == "importance"), torch.tensor([1, 3, 2, 1, 5, 2])
    weights = weights_of(*LOSSES[kind])
    repeated = [tensor.repeat_interleave(n, dim=2) for tensor in terms]
    v = (n / n.double().mean()).expand(2, -1)
    ours, theirs = objective.loss(terms, weights, v), objective.loss(repeated, weights)
    torch.testing.assert_close(ours.numbers, theirs.numbers, rtol=1e-13, atol=0)
    for own, of_each in zip(ours[1:], theirs[1:], strict=True):
        row = torch.arange(6).repeat_interleave(n)
        together = torch.zeros_like(own).index_add(2, row, of_each)
        torch.testing.assert_close(own, together, rtol=1e-13, atol=1e-18)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_batch_counts_as_much_as_its_rows(kind):
    terms, weights = terms_of(6, by_draw=kind == "importance"), weights_of(*LOSSES[kind])
    v = torch.tensor([0.5, 1.5, 0.75, 1.25, 1.0, 1.0]).double().expand(2, -1)
    once, thrice = (objective.loss(terms, weights, c * v) for c in (1, 3))
    for one, three in zip(once, thrice, strict=True):
        torch.testing.assert_close(3 * one, three, rtol=1e-13, atol=1e-18)


# --- every row has its weight -----------------------------------------------------------------


@pytest.fixture
def batches(monkeypatch):
    """What each call of the loss's gradient saw: rows (M, B, D) and their weights (M, B)."""
    seen, gradient = [], loop.loss_gradient

    def watch(stack, batch, weights, n_rows):
        row_weight = batch.row_weight
        seen.append((batch.y.clone(), None if row_weight is None else row_weight.clone()))
        return gradient(stack, batch, weights, n_rows)

    monkeypatch.setattr(loop, "loss_gradient", watch)
    return seen


@pytest.fixture
def judged(monkeypatch):
    """The rows that each training run is judged by."""
    seen, train = [], loop.train

    def watch(stack, read, rows, *args, **more):
        seen.append(rows)
        return train(stack, read, rows, *args, **more)

    monkeypatch.setattr(loop, "train", watch)
    return seen


def weight_by_row(vae, X, weight):
    """Weights of rows by their values, as the model sees them."""
    y = standardise(X, units_of(vae.state_)).numpy()
    return dict(zip(map(tuple, y), weight, strict=True))


@pytest.mark.parametrize("working_memory", [IN_PARTS, 1000])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_rows_are_shuffled_with_their_weights(batches, judged, working_memory, early_stopping):
    X, w = table(), np.random.default_rng(2).exponential(size=120)
    with config_context(working_memory=working_memory):
        vae = small(batch_size=16, max_iter=3, early_stopping=early_stopping).fit(X, None, w)
    if not early_stopping:
        mean = np.average(X, axis=0, weights=w)
        np.testing.assert_allclose(vae.state_["location"], mean, rtol=1e-12)
        std = np.sqrt(np.average((X - mean) ** 2, axis=0, weights=w))
        np.testing.assert_allclose(vae.state_["scale"], std, rtol=1e-12)
    known = weight_by_row(vae, X, w)
    epochs = np.array_split(np.arange(len(batches)), 3)
    (held_out,) = judged
    for batch_numbers in epochs:
        rows = torch.cat([batches[i][0][0] for i in batch_numbers])
        weight = torch.cat([batches[i][1][0] for i in batch_numbers]).double()
        own = np.array([known[row] for row in map(tuple, rows.numpy())])
        assert len(set(own)) == 120 - early_stopping * held_out.index.shape[1]
        np.testing.assert_allclose(weight, own / own.mean(), rtol=1e-6)
    rows = map(tuple, held_out.take(held_out.index)[0].numpy())
    own = np.array([known[row] for row in rows])
    np.testing.assert_allclose(held_out.weight[0], own / own.mean(), rtol=1e-6)


def test_members_of_a_stack_have_weights_of_their_own(batches):
    X, seeds = table(), (0, 1, 2)
    weights = [np.random.default_rng(seed).exponential(size=120) for seed in seeds]
    jobs = [
        prepare(small(random_state=seed, max_iter=1 + seed), X, sample_weight=w)[0]
        for seed, w in zip(seeds, weights, strict=True)
    ]
    # One table in the same units, as where fits go on from one model: the weights still differ.
    jobs = [job._replace(data=jobs[0].data, state=jobs[0].state) for job in jobs]
    together = execution.train(jobs, lambda: None, lambda *told: False)
    stacked = list(batches)
    batches.clear()
    for m, own_job in enumerate(jobs):
        (alone,) = execution.train([own_job], lambda: None, lambda *told: False)
        for (rows, weight), (own_rows, own_weight) in zip(stacked, batches, strict=False):
            place = m - (3 - len(rows))  # those before have ended
            assert torch.equal(rows[place], own_rows[0])
            torch.testing.assert_close(weight[place], own_weight[0], rtol=1e-6, atol=0)
        np.testing.assert_allclose(
            together[m].record.history["loss"], alone.record.history["loss"], rtol=1e-5
        )
        batches.clear()


def test_jobs_without_weights_make_another_stack():
    X, w = table(), counts_of(120)
    with_weights, without = (prepare(small(), X, sample_weight=v)[0] for v in (w, None))
    jobs = dict(enumerate([with_weights, without, copy.copy(with_weights)]))
    assert sorted(map(sorted, packing.gather(jobs, 10))) == [[0, 2], [1]]


def closed_kl(vae, X):
    """KL(q(z|x) || N(0, I)) of each row."""
    mean, std = (moment.astype(np.float64) for moment in vae.encode(X))
    return (0.5 * (mean**2 + std**2 - 1) - np.log(std)).sum(axis=1)


@pytest.mark.parametrize("working_memory", [IN_PARTS, 1000])
def test_history_is_of_weighted_means(judged, working_memory):
    X, w = table(), np.random.default_rng(2).exponential(size=120)
    # The first weights, and no factor analysis instead.
    still = {"learning_rate": 1e-30, "max_iter": 1, "network": MLP(linear=False)}
    with config_context(working_memory=working_memory):
        vae = small(batch_size=16, beta=2.0, **still).fit(X, sample_weight=w)
    known, (rows,) = weight_by_row(vae, X, np.arange(120)), judged
    out = [known[row] for row in map(tuple, rows.take(rows.index)[0].numpy())]
    kept, kl = np.setdiff1d(np.arange(120), out), closed_kl(vae, X)
    for name, some in (("kl", kept), ("validation_kl", out)):
        expected = np.average(kl[some], weights=w[some])
        assert not math.isclose(expected, kl[some].mean(), rel_tol=1e-3)
        np.testing.assert_allclose(vae.history_[name], expected, rtol=1e-5)


# --- units ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_rows", [120, 300_000])  # one block, and several
def test_units_are_weighted_moments(n_rows):
    X, w = table(n_rows), np.random.default_rng(2).exponential(size=n_rows)
    columns = statistics.describe_columns(X, weight=w)
    mean = np.average(X, axis=0, weights=w)
    np.testing.assert_allclose(columns.mean, mean, rtol=1e-12)
    variance = np.average((X - mean) ** 2, axis=0, weights=w)
    np.testing.assert_allclose(columns.std, np.sqrt(variance), rtol=1e-12)


def test_units_are_those_of_repeated_rows():
    X, n = table(), counts_of(120)
    X[:, 3] = 4.25
    X[::4, 1] = np.nan
    ours = statistics.describe_columns(X, weight=n / n.mean())
    theirs = statistics.describe_columns(np.repeat(X, n, axis=0))
    for own, repeated in zip(ours[:3], theirs[:3], strict=True):
        np.testing.assert_allclose(own, repeated, rtol=1e-13)
    assert ours.mean[3] == 4.25
    assert ours.std[3] == 0


def test_a_column_that_only_rows_of_little_weight_have_is_described():
    X = np.arange(12.0).reshape(6, 2)
    X[:4, 1] = np.nan
    columns = statistics.describe_columns(X, weight=np.array([1, 1, 1, 1, 1e-20, 3e-20]))
    np.testing.assert_allclose(columns.mean[1], (9 + 3 * 11) / 4, rtol=1e-12)
    np.testing.assert_allclose(columns.std[1], np.sqrt(3) / 4 * 2, rtol=1e-12)


# --- factor analysis --------------------------------------------------------------------------


@pytest.mark.parametrize("working_memory", [IN_PARTS, 1000])
def test_factor_analysis_of_a_fit_has_the_weights_of_its_rows(monkeypatch, working_memory):
    X, w, seen, analyse = table(), np.random.default_rng(2).exponential(size=120), [], None
    analyse = factor_analysis.analyse

    def watch(y, size, noise, weight):
        seen.append((y, weight))
        return analyse(y, size, noise, weight)

    monkeypatch.setattr(factor_analysis, "analyse", watch)
    with config_context(working_memory=working_memory):
        vae = small(batch_size=16, max_iter=1).fit(X, sample_weight=w)
    known = weight_by_row(vae, X, w)
    assert len(seen) == 2  # of the rows trained on, and of all
    for y, weight in seen:
        own = np.array([known[row] for row in map(tuple, y.numpy().astype(np.float32))])
        assert len(own) > 50
        np.testing.assert_allclose(weight / weight.mean(), own / own.mean(), rtol=1e-6)


@pytest.mark.parametrize(
    ("early_stopping", "scale", "max_iter", "short"), [(False, 1, 200, 0.1), (True, 5, 1, 0.02)]
)
def test_a_linear_model_is_factor_analysis_of_the_repeated_rows(
    early_stopping, scale, max_iter, short
):
    # Rows along a line, and a tenth as many along another that weigh twenty times as much. Where
    # rows are held out, it is factor analysis itself that is kept.
    sizes = [300 * scale, 30 * scale]
    rng, n = np.random.default_rng(0), np.repeat([1, 20], sizes)
    lines = [2 * rng.normal(size=(n_rows, 1)) @ rng.normal(size=(1, 6)) for n_rows in sizes]
    X = np.vstack(lines) + rng.normal(size=(len(n), 6))
    repeated = np.repeat(X, n, axis=0)
    best = FactorAnalysis(2, tol=1e-4, max_iter=3000).fit(repeated).score(repeated)
    vae = VAETransformer(
        2,
        likelihood=Gaussian("per_feature"),
        hidden_layer_sizes=(),
        early_stopping=early_stopping,
        validation_fraction=0.05,
        learning_rate=0.1,
        batch_size=32,
        max_iter=max_iter,
        random_state=0,
    )
    score = vae.fit(X, sample_weight=n).score(X, sample_weight=n)
    np.testing.assert_allclose(vae.score(repeated), score, rtol=1e-9)
    assert best - short < score < best + 1e-3
    assert vae.fit(X).score(X, sample_weight=n) < best - 0.5


# --- the same to the last bit -----------------------------------------------------------------


@pytest.mark.parametrize("how", HOW)
def test_a_constant_factor_changes_nothing(how):
    X, n = table(), counts_of(120)
    first = small(**HOW[how]).fit(X, sample_weight=n)
    for factor in (3, 0.125, 2.0**1020, 2.0**-1000) if how == "plain" else (3,):
        assert_same_bits(first, small(**HOW[how]).fit(X, sample_weight=factor * n))


def test_any_constant_factor_changes_no_more_than_rounding():
    X, w = table(), np.random.default_rng(2).exponential(size=120)
    first, second = (
        small(precision="float64").fit(X, sample_weight=factor * w) for factor in (1, 0.1)
    )
    for name, values in first.history_.items():
        np.testing.assert_allclose(second.history_[name], values, rtol=1e-9)


@pytest.mark.parametrize("working_memory", [IN_PARTS, 1000])
@pytest.mark.parametrize("how", HOW)
def test_a_row_of_weight_0_was_never_there(how, working_memory):
    X, n = table(160), counts_of(160, least=0)
    kept, before = n > 0, n.copy()
    with config_context(working_memory=working_memory):
        ours = small(batch_size=16, **HOW[how]).fit(X, sample_weight=n)
        theirs = small(batch_size=16, **HOW[how]).fit(X[kept], sample_weight=n[kept])
        assert_same_bits(ours, theirs)
        if how == "plain":  # the others have the same weight
            ours = small(batch_size=16).fit(X, sample_weight=kept)
            assert_same_bits(ours, small(batch_size=16).fit(X[kept]))
    np.testing.assert_array_equal(n, before)


@pytest.mark.parametrize(
    "convert",
    [
        np.asfortranarray,
        lambda X: X.astype(np.float32),
        lambda X: X.astype(np.int16),
        lambda X: np.where(X > 7, np.nan, X),
        lambda X: pd.DataFrame(X, columns=list("abcde")),
        lambda X: X.tolist(),
    ],
    ids=["Fortran", "float32", "integers", "missing", "frame", "list"],
)
def test_a_row_of_weight_0_was_never_there_whatever_rows_are_in(convert):
    X, n = table(), counts_of(120, least=0)
    X[n == 0] *= 1e6  # nobody will know
    ours = small().fit(convert(X), sample_weight=n)
    assert_same_bits(ours, small().fit(convert(X[n > 0]), sample_weight=n[n > 0]))


def test_rows_of_weight_0_may_be_anything_finite():
    X = (table() > 7).astype(float)
    X[:5] = 17.0
    vae = small(likelihood="bernoulli")
    with pytest.raises(ValueError, match="17"):
        vae.fit(X)
    assert_same_bits(
        vae.fit(X, sample_weight=np.arange(120) >= 5), small(likelihood="bernoulli").fit(X[5:])
    )


@pytest.mark.parametrize("weight", [1, 0.3, np.full(120, 0.1), [7] * 120, torch.ones(120)])
def test_the_same_weight_for_all_is_none(weight):
    X = table()
    assert_same_bits(small().fit(X, sample_weight=weight), small().fit(X))


@pytest.mark.parametrize("convert", [list, pd.Series, torch.from_numpy, lambda n: n.astype("f4")])
def test_weights_come_in_any_container(convert):
    X, n = table(), counts_of(120)
    assert_same_bits(small().fit(X, sample_weight=convert(n)), small().fit(X, sample_weight=n))


def test_rows_that_count_are_not_copied(tmp_path, monkeypatch):
    X, n = table(4000), counts_of(4000, least=0)
    np.save(tmp_path / "X.npy", X)
    mapped, at_once = np.load(tmp_path / "X.npy", mmap_mode="r"), []
    begin = arrays.Subset.__init__

    class Watched:
        def __init__(self, X):
            self.X, self.shape, self.dtype = X, X.shape, X.dtype

        def __getitem__(self, rows):
            some = self.X[rows]
            at_once.append(len(some))
            return some

    monkeypatch.setattr(
        arrays.Subset, "__init__", lambda self, X, rows: begin(self, Watched(X), rows)
    )
    monkeypatch.setattr(execution, "ACTIVITY_ROWS", 10)
    monkeypatch.setattr(job, "FACTOR_ROWS", 10)
    # Blocks of columns' moments are a fixed number of values.
    monkeypatch.setattr(arrays, "READ_AT_ONCE", 500)
    vae = small(batch_size=16, max_iter=2)
    with config_context(working_memory=0.02):
        vae.fit(mapped, sample_weight=n)
    assert max(at_once) <= 120
    assert sum(at_once) > 4 * (n > 0).sum()  # moments in two passes, two epochs


# --- the score --------------------------------------------------------------------------------


def test_score_is_the_weighted_mean():
    X, w = table(), np.random.default_rng(2).exponential(size=120)
    w[:50] = 0
    vae = small().fit(X)
    rows = vae.score_samples(X)
    np.testing.assert_allclose(
        vae.score(X, sample_weight=w), (w * rows).sum() / w.sum(), rtol=1e-13
    )
    np.testing.assert_allclose(vae.score(X, sample_weight=w), vae.score(X, sample_weight=1e300 * w))
    assert vae.score(X, sample_weight=2.0) == vae.score(X) == rows.mean()


# --- what is no weight ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({3: -0.25}, r"sample_weight has the value -0\.25 in row 3\..* at least 0"),
        ({7: np.nan}, "sample_weight contains NaN"),
        ({7: np.inf}, "sample_weight contains infinity"),
        (dict.fromkeys(range(120), 0), "zero"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "score"])
def test_what_is_no_weight_is_refused(method, change, message):
    X, w = table(), np.ones(120)
    for place, value in change.items():
        w[place] = value
    vae = small().fit(X)
    before = vars(vae).copy()
    with pytest.raises(ValueError, match=message):
        getattr(vae, method)(X, sample_weight=w)
    assert vars(vae) == before


@pytest.mark.parametrize("container", [np.asarray, pd.DataFrame, csr_array])
def test_infinity_in_a_row_of_weight_0_is_left_out_with_it(container):
    X, n = table(), counts_of(120)
    n[[4, 9]] = 0
    expected = small().fit(container(X), sample_weight=n)
    X[4, 2], X[9, 0] = np.inf, -np.inf
    fitted = small().fit(container(X), sample_weight=n)
    assert fitted.n_features_in_ == 5
    np.testing.assert_array_equal(fitted.transform(table()), expected.transform(table()))
    n[9] = 1
    with pytest.raises(ValueError, match="contains infinity in column 0, row 9"):
        small().fit(container(X), sample_weight=n)


# --- where scikit-learn hands them on ---------------------------------------------------------


def test_a_pipeline_hands_weights_to_its_last_step_by_name_and_by_routing():
    X, n = table(), counts_of(120)
    Z = StandardScaler().fit_transform(X)
    expected = small().fit(Z, sample_weight=n)
    pipe = make_pipeline(StandardScaler(), small()).fit(X, vaetransformer__sample_weight=n)
    assert_same_bits(pipe[-1], expected)
    with config_context(enable_metadata_routing=True):
        vae = small().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipe = make_pipeline(scaler, vae).fit(X, sample_weight=n)
        score = pipe.score(X, sample_weight=n)
    assert_same_bits(pipe[-1], expected)
    assert score == expected.score(Z, sample_weight=n)


def search_both(estimator, X, **weights):
    """Both searches, of which the results are the same."""
    grid = {"beta": [0.5, 2.0], "n_components": [1, 2]}
    if not isinstance(estimator, VAETransformer):
        grid = {f"vaetransformer__{name}": values for name, values in grid.items()}
    params = {"param_grid": grid, "cv": KFold(3)}
    searches = [S(estimator, **params).fit(X, **weights) for S in (VAEGridSearchCV, GridSearchCV)]
    for name in ("split0_test_score", "split2_test_score", "mean_test_score"):
        ours, theirs = (search.cv_results_[name] for search in searches)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-8)
        assert np.isfinite(ours).all()
    best = [search.best_estimator_ for search in searches]
    assert_same_bits(*(vae if isinstance(vae, VAETransformer) else vae[-1] for vae in best))
    return searches[0]


@pytest.fixture
def sizes(monkeypatch):
    """The sizes of the stacks that were trained."""
    found, run = [], execution.train

    def watch(jobs, *args, **params):
        found.append(len(jobs))
        return run(jobs, *args, **params)

    monkeypatch.setattr(execution, "train", watch)
    monkeypatch.setattr(packing, "MOST_STACKS", 1)  # whatever the number of cores
    return found


# The refit, and the 12 fits and the refit of GridSearchCV.
ALONE = [1] * 14


@pytest.mark.filterwarnings("ignore:The scoring")
@pytest.mark.parametrize("routing", [False, True])
def test_a_search_trains_stacks_with_the_weights_of_their_folds(sizes, routing):
    X, n = table(), counts_of(120)
    with config_context(enable_metadata_routing=routing):
        vae = small(precision="float64")
        if routing:
            vae.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        weighted = search_both(vae, X, sample_weight=n)
    assert sizes == [12, *ALONE]
    plain = VAEGridSearchCV(small(precision="float64"), {"beta": [0.5, 2.0]}, cv=KFold(3)).fit(X)
    assert abs(weighted.best_score_ - plain.best_score_) > 1e-3


@pytest.mark.filterwarnings("ignore:The scoring")
def test_folds_of_other_numbers_of_rows_that_count_make_other_stacks(sizes):
    n = counts_of(120)
    n[:13] = 0
    search_both(small(precision="float64"), table(), sample_weight=n)
    assert sizes == [4, 8, *ALONE] or sizes == [8, 4, *ALONE]


@pytest.mark.parametrize(("first", "kind"), [(0, "test"), (1, "training")])
def test_a_search_refuses_weights_that_leave_a_fold_without_rows(first, kind, sizes):
    n = np.where(np.arange(120) < 40, first, 1 - first)
    search = VAEGridSearchCV(small(), {"beta": [1, 2]}, cv=KFold(3))
    message = rf"sample_weight is zero in all {kind} rows of fold 0 of cv.*shuffle=True"
    with config_context(enable_metadata_routing=True):
        vae = small().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        with pytest.raises(ValueError, match=message):
            clone(search).set_params(estimator=vae).fit(table(), sample_weight=n.tolist())
    pipe = make_pipeline(StandardScaler(), small())
    named = clone(search).set_params(estimator=pipe, param_grid={"vaetransformer__beta": [1, 2]})
    if kind == "training":
        with pytest.raises(ValueError, match="vaetransformer__" + message):
            named.fit(table(), vaetransformer__sample_weight=n)
    assert sizes == []
    search.set_params(cv=KFold(3, shuffle=True, random_state=0))
    with config_context(enable_metadata_routing=True):
        search.set_params(estimator=vae).fit(table(), sample_weight=n)
    assert np.isfinite(search.best_score_)


def test_a_search_over_a_pipeline_trains_stacks_with_weights(sizes):
    pipe = make_pipeline(StandardScaler(), small(precision="float64"))
    weight = {"vaetransformer__sample_weight": counts_of(120)}
    search_both(pipe, table(), **weight)
    assert sizes == [12, *ALONE]


@pytest.mark.filterwarnings("ignore:The scoring")
def test_what_other_steps_get_is_fitted_by_itself(sizes):
    pipe, n = make_pipeline(StandardScaler(), small(precision="float64")), counts_of(120)
    search_both(pipe, table(), standardscaler__sample_weight=n, vaetransformer__sample_weight=n)
    with config_context(enable_metadata_routing=True):
        pipe[0].set_fit_request(sample_weight=True)
        pipe[1].set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        VAEGridSearchCV(pipe, {"vaetransformer__beta": [1, 2]}, cv=2).fit(table(), sample_weight=n)
    assert set(sizes) == {1}


def test_a_search_trains_stacks_with_weights_that_are_routed_by_another_name(sizes):
    n = counts_of(120)
    with config_context(enable_metadata_routing=True):
        vae = small(precision="float64")
        vae.set_fit_request(sample_weight="counts").set_score_request(sample_weight="counts")
        search = search_both(vae, table(), counts=n)
    assert np.isfinite(search.best_score_)
    assert sizes == [12, *ALONE]
