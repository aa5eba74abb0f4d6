"""What fit has not seen: categories, values beside a constant, values out of reach, empty columns.

None of it counts in a row's favour, and none of it changes the rows beside it.
"""

import re
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from own_parts import Exponential
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score

import skvae.safetensors
from skvae import VAEGridSearchCV, VAETransformer, metrics
from skvae.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    NegativeBinomial,
    Poisson,
)

CATEGORY = "ignore:X has categories that were not in the data of fit"
CONSTANT = "ignore:X has values that differ from the constant"
FAR = "ignore:X has values that are infinite"
EMPTY = "ignore:X has no value in"
WITHOUT = "ignore:X has values in columns that had no value in"

# The models of these tests are fitted to complete rows, and rows with holes are scored, too.
pytestmark = pytest.mark.filterwarnings("ignore:X has missing values in:UserWarning")


def quick(likelihood="gaussian", max_iter=10, **params):
    small = {"hidden_layer_sizes": (8,), "random_state": 0, "early_stopping": False}
    return VAETransformer(2, likelihood=likelihood, max_iter=max_iter, **small | params)


def logs(n=400, seed=0):
    """Two numbers and two columns of categories that follow each other."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    service = np.array(["mail", "web", "dns"], object)[np.digitize(z, [-1.5, 0.3])]
    return pd.DataFrame(
        {
            "bytes": z + 0.3 * rng.normal(size=n),
            "seconds": rng.normal(size=n) - z,
            "service": service,
            "flag": rng.choice(np.array(["S0", "SF"], object), n, p=[0.1, 0.9]),
        }
    )


# --- categories -----------------------------------------------------------------------------


@pytest.mark.filterwarnings(CATEGORY)
@pytest.mark.parametrize("holes", [False, True])
def test_a_category_that_fit_has_not_seen_makes_a_row_less_normal(holes):
    train, test = logs(), logs(200, seed=1)
    if holes:  # the encoder then has a mask
        train.loc[::9, ["bytes", "service"]] = None
    vae = quick("auto", 60).fit(train)
    usual = vae.score_samples(test)
    one, two = test.assign(service="tunnel"), test.assign(service="tunnel", flag="X")
    scores = vae.score_samples(one), vae.score_samples(two)
    odd = np.repeat([0, 1], 200)
    assert roc_auc_score(odd, -np.concatenate([usual, scores[0]])) > 0.95
    missing = vae.score_samples(test.assign(service=None))
    n = train["service"].notna().sum()
    assert (scores[0] <= missing - np.log(n + 1) + 1e-4).all()
    missing = vae.score_samples(test.assign(service="tunnel", flag=None))
    assert (scores[1] <= missing - np.log(401) + 1e-4).all()


def expected_costs(vae, frame, n, n_draws=4):
    """Log-likelihood of the rows without the service, and what the rarest one costs, by draw."""
    model = vae.to_module()
    likelihood = model.likelihood
    data = vae._fitted.read(frame.assign(service=None))
    block = vae._fitted.blocks(data)
    eps = torch.randn(n_draws, len(frame), 2, generator=torch.Generator().manual_seed(0))
    batch = block(model, slice(0, len(frame)))._replace(eps=eps)
    features = np.flatnonzero(likelihood.columns_of(4) == 2)
    with torch.inference_mode():
        terms = model(batch, by_draw=True)
        raw = model.raw(model.encode_draws(batch))
        of_levels = []
        for level in range(len(features)):
            x = torch.zeros(len(frame), 7)
            x[:, features[level]] = 1.0
            log_prob = likelihood.log_prob(model.observation, raw, x)
            of_levels.append(log_prob[..., features].sum(-1))
        rarest = torch.stack(of_levels).amin(0)
    return model, eps, terms, torch.clamp(-rarest, min=np.log(n + 1))


@pytest.mark.filterwarnings(CATEGORY)
@pytest.mark.parametrize("n", [3, 10**9])  # the rarest costs more than log 4, less than 20 nats
def test_an_unseen_category_costs_what_the_rarest_does_given_z_and_log_n_plus_1_at_least(n):
    train, test = logs(), logs(30, seed=1)
    vae = quick("auto", 60).fit(train)
    vae._fitted.seen = {**vae._seen, "n_values": np.full(4, n)}
    model, eps, terms, cost = expected_costs(vae, test, n)
    assert (cost == np.float32(np.log(n + 1))).all() == (n == 10**9)
    data = vae._fitted.read(test.assign(service="tunnel"))
    batch = vae._fitted.blocks(data)(model, slice(0, 30))._replace(eps=eps)
    with torch.inference_mode():
        charged = model(batch, by_draw=True)
    torch.testing.assert_close(charged.log_likelihood, terms.log_likelihood - cost)
    torch.testing.assert_close(charged.kl, terms.kl, rtol=0, atol=0)


@pytest.mark.filterwarnings(CATEGORY)
def test_what_an_unseen_category_costs_is_in_its_column_and_in_every_metric():
    vae, test = quick("auto", 30).fit(logs()), logs(40, seed=1)
    strange = test.copy()
    strange.loc[::2, "service"] = "tunnel"
    how = {"n_samples": 20, "random_state": 0, "per_sample": True}
    each = metrics.reconstruction(vae, strange, per_feature=True, **how)
    whole = metrics.reconstruction(vae, strange, **how)
    np.testing.assert_allclose(each.sum(axis=1), whole, rtol=1e-5)
    assert (each[::2, 2] >= np.log(401) - 1e-4).all()
    np.testing.assert_allclose(
        metrics.elbo(vae, strange, **how), -whole - metrics.kl(vae, strange, **how), rtol=1e-5
    )
    gone = strange.replace("tunnel", None)
    for measure in (metrics.elbo, metrics.log_likelihood):
        difference = measure(vae, gone, **how) - measure(vae, strange, **how)
        assert (difference[::2] >= np.log(401) - 1e-3).all()
        np.testing.assert_array_equal(difference[1::2], 0)


@pytest.mark.filterwarnings(CATEGORY)
def test_rows_beside_an_unseen_category_keep_their_bits():
    vae, test = quick("auto", 30).fit(logs()), logs(40, seed=1)
    strange = test.copy()
    strange.loc[[3, 5], "service"] = "tunnel"
    together, usual = vae.score_samples(strange), vae.score_samples(test)
    others = np.setdiff1d(np.arange(40), [3, 5])
    np.testing.assert_array_equal(together[others], usual[others])
    for row in (3, 5):
        np.testing.assert_array_equal(vae.score_samples(strange.iloc[[row]]), together[[row]])


@pytest.mark.filterwarnings(CATEGORY)
def test_a_column_of_one_category_costs_log_n_plus_1_for_another():
    train = logs().assign(flag="SF")
    train.loc[::4, "flag"] = None
    vae, test = quick("auto").fit(train), logs(30, seed=1).assign(flag="SF")
    usual, strange = vae.score_samples(test), vae.score_samples(test.assign(flag="S0"))
    np.testing.assert_allclose(usual - strange, np.log(301), rtol=1e-5)


@pytest.mark.filterwarnings(CATEGORY)
def test_the_rarest_category_is_one_that_fit_has_seen():
    train, test = logs(), logs(30, seed=1)
    known = ["mail", "web", "dns"]
    scores = []
    for more in ([], ["never"]):
        kinds = {"service": pd.CategoricalDtype(known + more)}
        vae = quick("auto", 40).fit(train.astype(kinds))
        vae._fitted.seen = {**vae._seen, "n_values": np.zeros(4, int)}
        strange = test.assign(service="tunnel")
        scores.append(vae.score_samples(strange).mean())
    # A category that never came is of less than a thousandth, which would cost 7 nats and more.
    assert abs(scores[0] - scores[1]) < 1.5


@pytest.mark.filterwarnings(CATEGORY)
def test_a_search_counts_unseen_categories():
    frame = logs(120)
    frame.loc[7, "service"] = "tunnel"
    grid, cv = {"beta": [1.0]}, [(np.arange(40, 120), np.arange(40))]
    ours = VAEGridSearchCV(quick("auto"), grid, cv=cv, refit=False).fit(frame)
    theirs = GridSearchCV(quick("auto"), grid, cv=cv, refit=False).fit(frame)
    without = VAEGridSearchCV(quick("auto"), grid, cv=cv, refit=False)
    without.fit(frame.assign(service=frame["service"].replace("tunnel", None)))
    score = ours.cv_results_["mean_test_score"][0]
    assert score == pytest.approx(theirs.cv_results_["mean_test_score"][0], abs=1e-5)
    assert score <= without.cv_results_["mean_test_score"][0] - np.log(81) / 40 + 1e-6


# --- columns that were constant in fit --------------------------------------------------------


def rows(likelihood, n=60, seed=0):
    """Rows of three columns that a likelihood supports."""
    rng = np.random.default_rng(seed)
    if isinstance(likelihood, Bernoulli):
        return rng.integers(0, 2, (n, 3)).astype(float)
    if isinstance(likelihood, ContinuousBernoulli):
        return rng.random((n, 3))
    if isinstance(likelihood, Poisson | NegativeBinomial | DiscretizedLogistic):
        return rng.poisson(4.0, (n, 3)).astype(float)
    return rng.normal(size=(n, 3))


EVERY = [
    Gaussian(),
    Gaussian("per_feature"),
    Gaussian("shared"),
    Poisson(),
    NegativeBinomial(),
    Bernoulli(),
    ContinuousBernoulli(),
    DiscretizedLogistic(16),
]


@pytest.mark.filterwarnings(CONSTANT)
@pytest.mark.parametrize("likelihood", EVERY, ids=str)
def test_a_value_beside_the_constant_costs_log_n_plus_1_and_the_encoder_does_not_see_it(likelihood):
    X, new = rows(likelihood), rows(likelihood, 40, seed=1)
    X[:, 1], new[:, 1] = 1.0, 1.0
    vae = quick(likelihood).fit(X)
    other = new.copy()
    other[::2, 1] = 0.0
    usual, strange = vae.score_samples(new), vae.score_samples(other)
    np.testing.assert_array_equal(strange[1::2], usual[1::2])
    np.testing.assert_allclose((usual - strange)[::2], np.log(61), rtol=1e-9)
    np.testing.assert_array_equal(vae.transform(other), vae.transform(new))
    how = {"n_samples": 5, "random_state": 0, "per_sample": True}
    each = [metrics.reconstruction(vae, Z, per_feature=True, **how)[:, 1] for Z in (new, other)]
    np.testing.assert_array_equal(each[0], 0)
    np.testing.assert_allclose(each[1], np.where(np.arange(40) % 2, 0, np.log(61)), rtol=1e-12)
    for measure, sign in (
        (metrics.elbo, 1),
        (metrics.log_likelihood, 1),
        (metrics.reconstruction, -1),
    ):
        difference = measure(vae, new, **how) - measure(vae, other, **how)
        np.testing.assert_allclose(sign * difference[::2], np.log(61), rtol=1e-9)


def test_values_beside_constants_are_named_with_their_rows():
    X = pd.DataFrame(rows(None), columns=list("abc")).assign(b=7.0, c=0.0)
    vae = quick().fit(X)
    new = X.head(10).copy()
    new.loc[[2, 5, 8], "b"] = [9.0, 8.0, 9.0]
    new.loc[4, "c"] = -1.0
    message = "9 in column 1 ('b') (3 rows, the first is 2), -1 in column 2 ('c') (1 row: 4)"
    for method in (vae.score_samples, vae.transform, vae.encode, vae.sample_posterior):
        with pytest.warns(UserWarning, match=re.escape(message)) as caught:
            method(new)
        assert len(caught) == 1
    for measure in (metrics.elbo, metrics.kl, metrics.kl_per_component, metrics.mutual_information):
        with pytest.warns(UserWarning, match=re.escape(message)):
            measure(vae, new)


@pytest.mark.filterwarnings(CONSTANT)
def test_n_is_the_number_of_rows_that_had_a_value_whatever_their_weight():
    X = rows(None)
    X[:, 1] = 3.0
    X[:20, 1] = np.nan
    weight = np.where(np.arange(60) < 50, 2.5, 0.0)
    weight[20] = 1.0
    new = X[20:30].copy()
    new[:, 1] = 4.0
    vae = quick().fit(X, sample_weight=weight)
    usual, strange = vae.score_samples(X[20:30]), vae.score_samples(new)
    np.testing.assert_allclose(usual - strange, np.log(31), rtol=1e-9)


@pytest.mark.parametrize("value", [0.1, -1 / 3, 1.7e9, 1e-30, 1e30])
def test_rounding_does_not_make_a_value_another_than_the_constant(value):
    X = rows(None)
    X[:, 1] = value
    # A model of either precision, and rows of either.
    for fitted in (X, X.astype(np.float32)):
        vae = quick().fit(fitted)
        usual = vae.score_samples(fitted)
        for given in (X.astype(np.float32), X.astype(np.float32).astype(np.float64)):
            if given.dtype == fitted.dtype == np.float64:
                continue  # which float64 does tell apart
            np.testing.assert_allclose(vae.score_samples(given), usual, atol=1e-4)


@pytest.mark.filterwarnings(CONSTANT)
def test_files_keep_what_a_value_beside_the_constant_costs_and_earlier_ones_have_none(tmp_path):
    X = rows(None)
    X[:, 1] = 0.0
    new = X[:5].copy()
    new[:, 1] = 1.0
    vae = quick().fit(X)
    expected = vae.score_samples(new)
    joblib.dump(vae, tmp_path / "vae.joblib")
    skvae.safetensors.save(vae, tmp_path / "vae.safetensors")
    for loaded in (
        joblib.load(tmp_path / "vae.joblib"),
        skvae.safetensors.load(tmp_path / "vae.safetensors"),
    ):
        np.testing.assert_array_equal(loaded.score_samples(new), expected)
    state = vae.__getstate__()
    del state["_seen"], state["_skvae_format"], state["_skvae_checksum"]
    before = VAETransformer()
    before.__setstate__(state)
    np.testing.assert_array_equal(before.score_samples(new), vae.score_samples(X[:5]))


@pytest.mark.filterwarnings(CONSTANT)
def test_a_constant_of_a_fold_that_others_leave_costs_them():
    X = rows(None)
    X[:, 1] = 0.0
    X[:20, 1] = 5.0
    folds = [(np.arange(20, 60), np.arange(20))]
    vae = quick()
    (score,) = cross_val_score(vae, X, cv=folds)
    usual = np.where(np.arange(3) == 1, 0.0, X[:20])
    assert vae.fit(X[20:]).score(usual) - score == pytest.approx(np.log(41), rel=1e-9)
    search = VAEGridSearchCV(vae, {"beta": [1.0]}, cv=folds, refit=False).fit(X)
    assert search.cv_results_["mean_test_score"][0] == pytest.approx(score, abs=1e-5)


def test_a_likelihood_of_ones_own_needs_nothing_new():
    X = np.random.default_rng(0).exponential(3.0, (80, 4))
    X[:, 1], X[:, 2] = 2.0, np.nan
    vae = quick(Exponential())
    with pytest.warns(UserWarning, match="no value in column 2"):
        vae.fit(X)
    new = X[:10].copy()
    new[3, 1], new[4, 0] = 5.0, np.inf
    with pytest.warns(UserWarning, match="differ from the constant|infinite"):
        scores = vae.score_samples(new)
    usual = vae.score_samples(X[:10])
    assert usual[3] - scores[3] == pytest.approx(np.log(81), rel=1e-9)
    assert scores[4] == -np.inf
    np.testing.assert_array_equal(np.delete(scores, [3, 4]), np.delete(usual, [3, 4]))
    empty = np.isnan(vae.sample(5, random_state=0)).all(axis=0)
    assert np.flatnonzero(empty).tolist() == [2]


# --- out of reach ---------------------------------------------------------------------------


@pytest.mark.filterwarnings(FAR)
@pytest.mark.parametrize(
    ("likelihood", "holes"), [(own, i % 2 == 1) for i, own in enumerate(EVERY)], ids=str
)
def test_infinity_and_beyond_cost_their_row_everything_and_the_others_nothing(likelihood, holes):
    X, new = rows(likelihood), rows(likelihood, 40, seed=1)
    if holes:
        X[::7, 0] = np.nan
    vae = quick(likelihood).fit(X)
    usual = vae.score_samples(new)
    bad = {3: np.inf, 8: -np.inf}
    if not isinstance(likelihood, Bernoulli | ContinuousBernoulli | DiscretizedLogistic):
        bad[11] = 1e25
    odd, others = new.copy(), np.setdiff1d(np.arange(40), list(bad))
    for row, value in bad.items():
        odd[row, row % 3] = value
    with warnings.catch_warnings():
        # Of scikit-learn, which adds up infinities of both signs.
        warnings.filterwarnings("ignore", "invalid value encountered in reduce", RuntimeWarning)
        scores = vae.score_samples(odd)
        assert (scores[list(bad)] == -np.inf).all()
        np.testing.assert_array_equal(scores[others], usual[others])
        assert vae.score(odd) == -np.inf
        how = {"n_samples": 5, "random_state": 0, "per_sample": True}
        for measure, sign in (
            (metrics.elbo, -1),
            (metrics.log_likelihood, -1),
            (metrics.reconstruction, 1),
        ):
            values, errors = measure(vae, odd, return_std_error=True, **how)
            assert (values[list(bad)] == sign * np.inf).all()
            np.testing.assert_array_equal(values[others], measure(vae, new, **how)[others])
            assert np.isfinite(errors).all()
            mean, _ = measure(vae, odd, n_samples=5, random_state=0, return_std_error=True)
            assert mean == sign * np.inf
        each = metrics.reconstruction(vae, odd, per_feature=True, **how)
        assert np.argwhere(np.isinf(each)).tolist() == [[row, row % 3] for row in bad]
        for method in (vae.transform, vae.encode, vae.fit, vae.sample_posterior):
            with pytest.raises(ValueError, match="column"):
                method(odd)


def test_what_is_out_of_reach_is_named_with_its_rows():
    X = pd.DataFrame(rows(None), columns=list("abc"))
    vae, odd = quick().fit(X), X.head(9).copy()
    odd.loc[[2, 7], "b"] = [np.inf, 1e30]
    odd.loc[5, "c"] = -1e30
    with pytest.warns(UserWarning, match="infinite") as caught:
        scores = vae.score_samples(odd)
    words = "inf in column 1 ('b') (2 rows, the first is 2), -1e+30 in column 2 ('c') (1 row: 5)"
    assert words in str(caught[0].message)
    assert caught[0].filename == __file__
    assert len(caught) == 1
    assert np.flatnonzero(np.isinf(scores)).tolist() == [2, 5, 7]


@pytest.mark.filterwarnings(FAR)
def test_a_row_of_no_weight_does_not_make_the_score_infinite():
    X = rows(None)
    vae = quick().fit(X)
    odd = X.copy()
    odd[3, 0] = np.inf
    weight = (np.arange(60) != 3).astype(float)
    assert vae.score(odd, sample_weight=weight) == pytest.approx(vae.score(np.delete(X, 3, axis=0)))


@pytest.mark.filterwarnings(FAR)
def test_values_that_cannot_be_are_errors_beside_infinity_too():
    X = rows(Poisson())
    vae = quick(Poisson()).fit(X)
    X[3, 0], X[4, 1] = np.inf, -1.0
    with pytest.raises(ValueError, match=re.escape("Got -1 in column 1")):
        vae.score_samples(X)


@pytest.mark.filterwarnings(FAR)
def test_infinity_in_a_table_is_named_with_its_column():
    frame = logs()
    vae = quick("auto").fit(frame)
    frame.loc[3, "seconds"] = np.inf
    match = re.escape("Input X contains infinity in column 1 ('seconds'), row 3.")
    for method in (vae.fit, vae.transform, vae.encode):
        with pytest.raises(ValueError, match=match):
            method(frame)
    assert np.flatnonzero(np.isinf(vae.score_samples(frame))).tolist() == [3]


# --- columns without a value ------------------------------------------------------------------


def test_an_empty_column_is_no_part_of_the_density_and_comes_back_as_missing():
    X = rows(None)
    wide = np.insert(X, 1, np.nan, axis=1)
    vae, expected = quick(), quick().fit(X)
    with pytest.warns(UserWarning, match=r"X has no value in column 1: all are missing\."):
        vae.fit(wide)
    assert not vae._fitted.architecture.missing
    back = vae.inverse_transform(vae.transform(wide))
    assert back.dtype == wide.dtype
    for Z in (back, vae.sample(7, random_state=0), vae.sample(7, random_state=0, mean=True)):
        assert np.isnan(Z).all(axis=0).tolist() == [False, True, False, False]
    module = vae.to_module()
    with torch.inference_mode():
        z, _ = module.encode(torch.from_numpy(wide))
        assert torch.isnan(module.decode(z)).all(0).tolist() == [False, True, False, False]
    np.testing.assert_allclose(z.numpy(), vae.transform(wide), atol=1e-5)
    # One network more wide: not the same numbers, but the same density to be had.
    assert vae.score(wide) == pytest.approx(expected.score(X), abs=1.0)
    other = wide.copy()
    other[:, 1] = 4.0
    with pytest.warns(UserWarning, match=re.escape("4 in column 1 (60 rows, the first is 0)")):
        scores = vae.score_samples(other)
    np.testing.assert_array_equal(scores, vae.score_samples(wide))
    with pytest.warns(UserWarning, match=re.escape("4 in column 1 (60 rows, the first is 0)")):
        np.testing.assert_array_equal(vae.transform(other), vae.transform(wide))


@pytest.mark.filterwarnings(EMPTY)
@pytest.mark.parametrize("likelihood", EVERY, ids=str)
def test_every_likelihood_takes_an_empty_column(likelihood):
    X, linear = np.insert(rows(likelihood), 1, np.nan, axis=1), {"hidden_layer_sizes": ()}
    for params in ({}, linear | {"early_stopping": True}):
        vae = quick(likelihood, max_iter=2, **params).fit(X)
        assert np.isfinite(vae.score_samples(X)).all()
        assert np.isfinite(vae.transform(X)).all()
        empty = np.isnan(vae.sample(5, random_state=0)).all(axis=0)
        assert np.flatnonzero(empty).tolist() == [1]


@pytest.mark.filterwarnings("ignore:.*whole numbers of fewer than 20")
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("float64", np.nan),
        ("object", None),
        ("Int64", pd.NA),
        ("boolean", pd.NA),
        ("string", pd.NA),
        ("category", None),
        (pd.CategoricalDtype(["a", "b"]), None),
    ],
    ids=str,
)
def test_an_empty_column_of_any_dtype_comes_back_empty(dtype, value):
    frame = logs(80)
    frame["none"] = pd.Series([value] * 80, dtype=dtype)
    vae = quick("auto", max_iter=2)
    with pytest.warns(UserWarning, match=re.escape("X has no value in column 4 ('none')")):
        vae.fit(frame)
    for back in (vae.inverse_transform(vae.transform(frame)), vae.sample(5, random_state=0)):
        assert back["none"].isna().all()
        assert back["none"].dtype.name == frame["none"].dtype.name
        assert not back.drop(columns="none").isna().any().any()
    scores = vae.score_samples(frame)
    assert np.isfinite(scores).all()
    if dtype == "object":  # any category in such a column costs nothing
        for other in ("a", 3):
            with pytest.warns(UserWarning, match="had no value"):
                np.testing.assert_array_equal(vae.score_samples(frame.assign(none=other)), scores)


@pytest.mark.filterwarnings(EMPTY, WITHOUT, CATEGORY)
@pytest.mark.parametrize("likelihood", ["gaussian", "auto"])
def test_a_fold_without_a_value_in_a_column_has_a_score(likelihood):
    frame = logs(90)[["bytes", "seconds"]] if likelihood == "gaussian" else logs(90)
    frame.loc[30:, frame.columns[-1]] = None
    scores = cross_val_score(quick(likelihood), frame, cv=3)
    assert np.isfinite(scores).all()
    search = VAEGridSearchCV(quick(likelihood), {"beta": [0.5, 1.0]}, cv=3).fit(frame)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize(
    "X", [np.full((20, 3), np.nan), pd.DataFrame({"a": [None] * 20})], ids=type
)
@pytest.mark.parametrize("likelihood", ["gaussian", "auto"])
def test_rows_without_any_value_are_refused(X, likelihood):
    with pytest.raises(ValueError, match="Input X has only missing values"):
        quick(likelihood).fit(X)


# --- sentinels --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "n_rows", "weighted"),
    [(1e20, 1, True), (999999.0, 6, False), (-1e6, 1, False), (-1e6, 6, True)],
)
def test_fit_warns_of_a_value_that_is_farther_than_all_others_together(value, n_rows, weighted):
    X = np.random.default_rng(0).normal(50, 10, (200, 3))
    X[::5, 1] = np.nan
    X[1 : 1 + n_rows, 1] = value
    weight = np.random.default_rng(1).uniform(0.5, 2, 200) if weighted else None
    named = pd.DataFrame(X, columns=["a", "income", "c"])
    how = f"{value:.10g} in column 1 ('income') ({n_rows} row"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quick(max_iter=1).fit(named, sample_weight=weight)
    (message,) = [str(w.message) for w in caught if "farther" in str(w.message)]
    assert how in message
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "column",
    [
        np.eye(1, 200, 7).ravel(),  # one value that is not 0
        np.eye(1, 200, 7).ravel() + 3 * np.eye(1, 200, 9).ravel(),  # two
        np.random.default_rng(0).standard_t(2, 200),
        np.random.default_rng(0).lognormal(0, 1, 200),
        np.random.default_rng(0).poisson(0.05, 200),
        np.random.default_rng(0).normal(size=200) + 1e9,
        np.repeat([0.0, 1e6], [120, 80]),
    ],
)
def test_fit_does_not_warn_of_columns_that_are_only_rare_or_long_tailed(column):
    X = np.column_stack([np.random.default_rng(1).normal(size=(len(column), 2)), column])
    quick(max_iter=1).fit(X)  # warnings are errors
