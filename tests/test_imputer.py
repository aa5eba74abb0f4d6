"""VAEImputer, against the exact conditional normal distribution and scikit-learn's imputers."""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from skvae import VAEImputer, VAETransformer, _imputer, _vae
from skvae.likelihoods import Gaussian


@parametrize_with_checks([VAEImputer(VAETransformer(2, max_iter=2, device="cpu"), n_draws=4)])
def test_common_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def wine():
    X = load_wine().data
    return (X - X.mean(axis=0)) / X.std(axis=0)


@pytest.fixture(scope="module")
def holes(wine):
    X = wine.copy()
    X[np.random.default_rng(0).random(X.shape) < 0.2] = np.nan
    return X


@pytest.fixture(scope="module")
def linear(holes):
    vae = VAETransformer(
        2,
        likelihood=Gaussian("per_feature"),
        hidden_layer_sizes=(),
        learning_rate=1e-2,
        early_stopping=False,
        random_state=0,
    )
    return VAEImputer(vae, n_draws=2000, random_state=0).fit(holes)


def conditional(vae, X):
    """Mean and covariance of what is missing in each row, given what is there."""
    location = vae.inverse_transform(np.zeros((1, 2)))[0]
    W = (vae.inverse_transform(np.eye(2)) - location).T
    covariance = W @ W.T + np.diag(vae.noise_variance_)
    for x in X:
        m, o = np.flatnonzero(np.isnan(x)), np.flatnonzero(~np.isnan(x))
        gain = covariance[np.ix_(m, o)] @ np.linalg.inv(covariance[np.ix_(o, o)])
        mean = location[m] + gain @ (x[o] - location[o])
        yield m, mean, covariance[np.ix_(m, m)] - gain @ covariance[np.ix_(o, m)]


def test_imputations_are_conditional_means(linear, holes):
    filled = linear.transform(holes[:50])
    for row, (m, mean, _) in zip(filled, conditional(linear.estimator_, holes[:50]), strict=True):
        # 2000 draws, weighted; standard deviations of about 0.6.
        np.testing.assert_allclose(row[m], mean, atol=0.1)


def test_drawn_imputations_have_the_conditional_mean_and_covariance(linear, holes):
    row = holes[np.isnan(holes).sum(axis=1).argmax()]
    drawing = clone(linear).set_params(sample_posterior=True, n_draws=200)
    drawing.__dict__.update({k: v for k, v in vars(linear).items() if k.endswith("_")})
    drawing._empty = linear._empty
    drawn = drawing.transform(np.tile(row, (4000, 1)))
    ((m, mean, covariance),) = conditional(linear.estimator_, row[None])
    assert len(m) > 3
    error = np.sqrt(np.diag(covariance) / 4000)
    assert (np.abs(drawn[:, m].mean(axis=0) - mean) < 5 * error + 0.02).all()
    np.testing.assert_allclose(np.cov(drawn[:, m].T), covariance, atol=0.08)


def quick(monkeypatch, max_iter):
    """Let the model that None is train for few epochs."""
    monkeypatch.setitem(_imputer.DEFAULT, "max_iter", max_iter)


@pytest.mark.parametrize("complete", [False, True], ids=["fit_to_holes", "fit_to_complete_rows"])
def test_it_is_nearer_than_the_mean(wine, holes, monkeypatch, complete):
    quick(monkeypatch, 30)
    train, test, truth = (wine[1::2], holes[::2], wine[::2]) if complete else (holes, holes, wine)
    ours, means = (
        imputer.fit(train).transform(test)
        for imputer in (VAEImputer(random_state=0), SimpleImputer())
    )
    error, error_of_means = (np.square(f - truth)[np.isnan(test)].mean() for f in (ours, means))
    assert error < 0.75 * error_of_means


def curves(n, seed):
    """A class, and three numbers that are other curves of one number for each class."""
    rng = np.random.default_rng(seed)
    c, t = rng.integers(3, size=n), rng.uniform(-1, 1, n)
    numbers = np.c_[t + c, np.sin(2 * t) - c, t * c] + 0.02 * rng.standard_normal((n, 3))
    return pd.DataFrame(
        {"kind": np.array(list("abc"))[c], **dict(zip("xyz", numbers.T, strict=True))}
    )


@pytest.mark.parametrize("columns", ["auto", "gaussian"])
def test_fitted_to_complete_rows_an_estimator_fills_in_from_what_is_there(columns, monkeypatch):
    quick(monkeypatch, 20)
    train, test = curves(300, 0), curves(100, 1)
    if columns == "gaussian":
        train, test = (frame[["x", "y", "z"]] for frame in (train, test))
    vae = VAETransformer(4, likelihood=columns, max_iter=60, random_state=0)
    errors = []
    for imputer in (VAEImputer(vae, n_draws=50), VAEImputer(random_state=0, n_draws=50)):
        imputer.set_output(transform="pandas").fit(train)
        errors.append([])
        for name in "xyz":
            filled = imputer.transform(test.assign(**{name: np.nan}))
            error = (filled[name] - test[name]) / test[name].std()
            errors[-1].append(np.sqrt(np.mean(error**2)))
    assert (np.array(errors[0]) < 1.3 * np.array(errors[1])).all(), errors


def test_whole_categories_are_hidden_and_each_copy_knows_its_row():
    rng = np.random.default_rng(0)
    X = np.c_[np.arange(50), rng.integers(3, size=50)].astype(float)
    rows, row_of = _imputer._hide(X, rng)
    assert len(rows) == len(row_of) == 5 * 50
    np.testing.assert_array_equal(rows[:50], X)
    there = ~np.isnan(rows)
    np.testing.assert_array_equal(rows[there], X[row_of][there])
    assert 0.15 < 1 - there[50:].mean() < 0.35  # a quarter: up to half of a row's


def test_the_parameters_of_an_estimator_are_checked(holes):
    with pytest.raises(ValueError, match="The 'beta' parameter of VAETransformer"):
        VAEImputer(VAETransformer(2, beta=-1.0)).fit(holes)


@pytest.mark.parametrize(
    "imputer",
    [
        lambda seed: VAEImputer(VAETransformer(2, max_iter=2, random_state=seed)),
        lambda seed: VAEImputer(random_state=seed),
        lambda seed: VAEImputer(
            VAETransformer(2, max_iter=2, random_state=0), sample_posterior=True, random_state=seed
        ),
    ],
    ids=["estimator", "no_estimator", "draws"],
)
def test_imputations_are_decided_by_random_state(holes, monkeypatch, imputer):
    quick(monkeypatch, 2)
    first, same, other = (imputer(seed).fit_transform(holes) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other)[np.isnan(holes)].all()


def test_an_imputer_of_an_earlier_version_says_what_its_model_does_not_know(wine, holes):
    imputer = VAEImputer(VAETransformer(2, max_iter=2, random_state=0)).fit(wine)
    # As they were: fitted to the rows as they are.
    imputer.estimator_ = VAETransformer(2, max_iter=2, random_state=0).fit(wine)
    with pytest.warns(UserWarning, match="X has missing values in .* of 178 rows"):
        imputer.transform(holes)


def test_without_an_estimator_categories_are_hidden_and_filled_in(holes, monkeypatch):
    quick(monkeypatch, 30)
    kinds = np.array(["low", "middle", "high"])[load_wine().target]
    table = pd.DataFrame({"kind": kinds, "a": holes[:, 0], "b": holes[:, 6], "c": holes[:, 12]})
    gaps = table.copy()
    gaps.loc[::5, "kind"] = None
    filled = VAEImputer(random_state=0).fit_transform(gaps)
    # The most frequent of three is right for 0.4 of all.
    assert (filled["kind"] == table["kind"])[::5].mean() > 0.7
    assert not filled.isna().any(axis=None)


@pytest.mark.parametrize(
    ("n_components", "posterior", "precision"),
    [(5, "diagonal", "float32"), (9, "full", "float64"), (16, "diagonal", "float64")],
)
def test_imputations_of_a_row_have_the_same_bits_in_any_place(
    holes, n_components, posterior, precision
):
    holes, order = holes[:70], np.random.default_rng(0)
    vae = VAETransformer(n_components, hidden_layer_sizes=(7,), max_iter=1, random_state=0)
    vae.set_params(posterior=posterior, precision=precision)
    imputer = VAEImputer(vae, n_draws=24).fit(holes)
    filled = imputer.transform(holes)
    for n in (70, *order.integers(2, 70, size=2), 1, 1):
        places = order.permutation(70)[:n]
        np.testing.assert_array_equal(imputer.transform(holes[places]), filled[places])


def test_frames_names_and_the_indicator(holes, mixed):
    frame = pd.DataFrame(holes, columns=[f"c{i}" for i in range(13)])
    frame["c0"] = np.nan_to_num(frame["c0"])
    vae = VAETransformer(2, likelihood="auto", max_iter=2, random_state=0)
    imputer = VAEImputer(vae, add_indicator=True).set_output(transform="pandas")
    filled = imputer.fit_transform(frame)
    assert list(filled.columns[:13]) == list(frame.columns)
    expected = MissingIndicator().fit_transform(frame)
    np.testing.assert_array_equal(filled.iloc[:, 13:].to_numpy(), expected)
    assert filled.columns[13] == "missingindicator_c1"
    # Beside the indicator's, names are strings; and tables go into the container asked for.
    filled = imputer.set_output(transform="polars").fit_transform(
        mixed[1].set_axis(range(3), axis=1)
    )
    assert isinstance(filled, pl.DataFrame)
    assert filled.columns[:4] == ["x0", "x1", "x2", "missingindicator_x0"]


def test_other_marks_than_nan(holes):
    vae = VAETransformer(2, max_iter=2, random_state=0)
    expected = VAEImputer(vae).fit_transform(holes)
    marked = VAEImputer(vae, missing_values=-999).fit_transform(np.nan_to_num(holes, nan=-999))
    np.testing.assert_array_equal(marked, expected)


def test_in_a_pipeline_and_a_search(holes):
    pipe = make_pipeline(
        VAEImputer(VAETransformer(max_iter=3, random_state=0)), LogisticRegression()
    )
    grid = {"vaeimputer__estimator__n_components": [1, 2]}
    search = GridSearchCV(pipe, grid, cv=3).fit(holes, load_wine().target)
    assert search.best_score_ > 0.8


# --- tables -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed():
    """A table of every kind of column, whole and with holes."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal(400)
    whole = pd.DataFrame(
        {
            "height": 170 + 10 * z + rng.standard_normal(400),
            "size": np.array(["S", "M", "L"])[np.digitize(z, [-0.6, 0.6])],
            "tall": pd.array(z > 0, dtype="boolean"),
        },
        index=np.arange(400)[::-1],
    )
    holes, gone = whole.copy(), rng.random(whole.shape) < 0.2
    for i, name in enumerate(whole):
        holes.loc[gone[:, i], name] = pd.NA if name == "tall" else None
    return whole, holes


@pytest.mark.parametrize("draws", [False, True])
def test_a_table_is_filled_in_and_what_is_there_stays(mixed, draws):
    whole, holes = mixed
    before = holes.copy(deep=True)
    imputer = VAEImputer(
        VAETransformer(2, likelihood="auto", hidden_layer_sizes=16, max_iter=60, random_state=0),
        sample_posterior=draws,
        random_state=0,
    )
    filled = imputer.fit_transform(holes)
    pd.testing.assert_frame_equal(holes, before)
    pd.testing.assert_series_equal(filled.dtypes, whole.dtypes)
    pd.testing.assert_index_equal(filled.index, whole.index)
    for name in whole:
        gone = holes[name].isna()
        pd.testing.assert_series_equal(filled.loc[~gone, name], holes.loc[~gone, name])
    gone = holes["size"].isna() & holes["height"].notna()
    guess = (whole["size"] == "M").mean()  # of the most frequent one
    assert (filled["size"] == whole["size"])[gone].mean() > guess + (0.1 if draws else 0.2)


def test_a_table_of_categories_is_read_without_being_told(mixed, monkeypatch):
    quick(monkeypatch, 2)
    imputer = VAEImputer(random_state=0, add_indicator=True).fit(mixed[1])
    assert imputer.estimator_.likelihood == "auto"
    filled = imputer.transform(mixed[1])
    assert list(filled.columns) == list(imputer.get_feature_names_out())
    expected = mixed[1].isna().to_numpy()
    np.testing.assert_array_equal(filled.iloc[:, 3:].to_numpy(dtype=bool), expected)
    # Numbers alone stay an array of numbers.
    imputer = VAEImputer().fit(load_wine().data[:30])
    assert imputer.estimator_.likelihood == Gaussian("per_feature")


def test_a_mark_for_missing_values_is_for_numbers(mixed):
    with pytest.raises(ValueError, match="missing_values=-1 is for numbers of one likelihood"):
        VAEImputer(missing_values=-1).fit(mixed[1])


@pytest.mark.parametrize("kind", ["array", "read-only array", "frame"])
def test_auto_on_numbers_changes_no_input(holes, kind):
    X = holes.copy()
    X.flags.writeable = kind != "read-only array"
    X = pd.DataFrame(X) if kind == "frame" else X
    vae = VAETransformer(2, likelihood="auto", max_iter=3, random_state=0)
    filled = VAEImputer(vae).fit(X).transform(X)
    assert type(filled) is type(X)
    np.testing.assert_array_equal(np.asarray(X), holes)
    assert np.isfinite(np.asarray(filled)).all()
    whole = np.nan_to_num(holes)
    assert not np.shares_memory(VAEImputer(vae).fit(whole).transform(whole), whole)


def test_values_that_are_there_stay_to_the_last_digit_and_unknown_ones_too():
    frame = pd.DataFrame(
        {
            "large": pd.array([2**60 + i for i in range(59)] + [None], dtype="Int64"),
            "bool": pd.Series([True, False, None] * 20, dtype=object),
            "kind": ["x", "y", None] * 20,
        }
    )
    vae = VAETransformer(2, likelihood="auto", max_iter=3, random_state=0)
    with pytest.warns(UserWarning, match=r"column 0 \('large'\) that differ by less"):
        imputer = VAEImputer(vae).fit(frame)
    strange = frame.copy()
    strange.loc[0, "kind"] = "new"
    with pytest.warns(UserWarning, match="taken as missing: 'new'"):
        filled = imputer.transform(strange)
    for name in frame:
        there = strange[name].notna()
        assert filled.loc[there, name].tolist() == strange.loc[there, name].tolist()
        assert filled[name].notna().all()
    assert {type(value) for value in filled["bool"]} == {bool}


def test_a_failed_fit_changes_nothing(mixed, holes):
    imputer = VAEImputer(VAETransformer(2, likelihood="auto", max_iter=2, random_state=0))
    nothing = mixed[1].assign(**dict.fromkeys(mixed[1], None))
    with pytest.raises(ValueError, match="only missing values"):
        imputer.fit(nothing)
    assert not hasattr(imputer, "n_features_in_")
    imputer.fit(mixed[1])
    before = dict(vars(imputer))
    with pytest.raises(ValueError, match="only missing values"):
        imputer.fit(nothing.assign(strange=None))
    assert vars(imputer) == before


def test_a_category_that_only_fit_knew_is_filled_in(mixed):
    table = mixed[1].assign(size=pd.Categorical(mixed[1]["size"], categories=list("SML")))
    vae = VAETransformer(2, likelihood="auto", hidden_layer_sizes=16, max_iter=60, random_state=0)
    tall = table[table["height"] > 180].head(5).copy()
    tall["size"] = pd.Categorical([None, None, "S", None, None], categories=["S"])
    filled = VAEImputer(vae).fit(table).transform(tall)
    assert filled["size"].tolist() == ["L", "L", "S", "L", "L"]


@pytest.mark.parametrize("how", ["array", "polars", "set_output", "subclass"])
def test_values_that_are_there_stay_whatever_the_containers(mixed, how):
    vae = VAETransformer(2, likelihood="auto", max_iter=3, random_state=0)
    imputer = VAEImputer(vae, add_indicator=True).fit(mixed[1])
    rows = mixed[1].dropna().head(6).copy()
    rows.iloc[0, 1], rows.iloc[1, 0] = "new", None
    if how == "array":
        given = rows.to_numpy(dtype=object)
    elif how == "polars":
        loose = {"height": [None if v != v else v for v in rows["height"]]}
        given = pl.DataFrame(loose | {name: rows[name].tolist() for name in rows.columns[1:]})
    elif how == "subclass":
        given = type("Frame", (pd.DataFrame,), {})(rows)
    else:
        given = rows
        imputer.set_output(transform="polars")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "X has categories|X does not have")
        filled = imputer.transform(given)
    names = list(filled.columns)
    values = [[*map(lambda v: v, filled[name])] for name in names[:3]]
    assert values[1] == ["new", *rows["size"].tolist()[1:]]
    assert values[2] == rows["tall"].tolist()
    assert values[0][2:] == rows["height"].tolist()[2:]
    assert np.isfinite(values[0][1])
    # What is unknown is not missing.
    assert np.asarray(filled[names[4]]).tolist() == [False] * 6
    assert np.asarray(filled[names[3]]).tolist() == [False, True, *[False] * 4]


def test_imputed_bools_and_whole_numbers_are_such_in_arrays_of_objects_too():
    X = np.array([[True, "x", 1], [None, "y", None], [False, None, 7]] * 20, dtype=object)
    vae = VAETransformer(2, likelihood="auto", max_iter=3, random_state=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*whole numbers of fewer than 20")
        filled = VAEImputer(vae).fit_transform(X)
    assert [{type(value) for value in column} for column in filled.T] == [{bool}, {str}, {int}]


@pytest.mark.parametrize("dtype", ["Int64", "Int8", "float32"])
def test_a_table_in_other_dtypes_than_that_of_fit_keeps_them_where_they_have_room(dtype):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"i": rng.integers(0, 100, 60).astype(float), "k": list("xy") * 30})
    table.loc[::7, "i"] = np.nan
    vae = VAETransformer(2, likelihood="auto", max_iter=3, random_state=0)
    other = table.astype({"i": dtype})
    filled = VAEImputer(vae).fit(table).transform(other)
    assert filled["i"].dtype == other["i"].dtype
    assert filled["i"].notna().all()


# --- columns without a value ------------------------------------------------------------------

AUTO = VAETransformer(2, likelihood="auto", max_iter=2, random_state=0)
PLAIN = VAETransformer(2, max_iter=2, random_state=0)


@pytest.mark.parametrize("estimator", [None, PLAIN, AUTO], ids=["none", "plain", "auto"])
@pytest.mark.parametrize("keep", [False, True])
def test_an_empty_column_of_an_array_is_left_out_or_filled_with_0(holes, estimator, keep):
    H = np.insert(holes[:60], 1, np.nan, axis=1)
    imputer = VAEImputer(estimator, keep_empty_features=keep, add_indicator=True, random_state=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if estimator is None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(_imputer.DEFAULT, "max_iter", 2)
                imputer.fit(H)
        else:
            imputer.fit(H)
    (message,) = [str(w.message) for w in caught if "no value" in str(w.message)]
    assert "X has no value in column 1" in message
    filled = imputer.transform(H)
    names = imputer.get_feature_names_out().tolist()
    n_kept = holes.shape[1] + keep
    assert names[:n_kept] == [f"x{i}" for i in range(holes.shape[1] + 1) if keep or i != 1]
    assert filled.shape == (60, len(names))
    there = ~np.isnan(H)
    there[:, 1] = True
    expected = np.where(np.arange(H.shape[1]) == 1, 0.0, H)
    kept = np.arange(H.shape[1]) != 1 if not keep else slice(None)
    own = filled[:, :n_kept]
    np.testing.assert_array_equal(own[there[:, kept]], expected[:, kept][there[:, kept]])
    assert np.isfinite(filled).all()


@pytest.mark.filterwarnings("ignore:X has no value in")
@pytest.mark.filterwarnings("ignore:X has values in columns that had no value in")
@pytest.mark.parametrize("estimator", [PLAIN, AUTO], ids=["plain", "auto"])
def test_values_in_a_column_that_was_empty_stay(holes, estimator):
    H = np.insert(holes[:60], 1, np.nan, axis=1)
    imputer = VAEImputer(estimator, keep_empty_features=True).fit(H)
    H[::2, 1] = 3.0
    np.testing.assert_array_equal(imputer.transform(H)[:, 1], np.where(np.arange(60) % 2, 0, 3))


@pytest.mark.filterwarnings("ignore:X has no value in")
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("container", ["pandas", "polars", "objects"])
def test_an_empty_column_of_a_table_is_left_out_or_filled_with_0(mixed, keep, container):
    table = mixed[1].head(60).copy()
    table.insert(1, "none", np.nan)
    table.insert(3, "nobody", pd.Series([None] * len(table), dtype=object, index=table.index))
    given = {
        "pandas": lambda: table,
        "polars": lambda: pl.DataFrame(
            {c: table[c].astype(object).where(table[c].notna(), None).tolist() for c in table}
        ),
        "objects": lambda: table.to_numpy(dtype=object),
    }[container]()
    imputer = VAEImputer(AUTO, keep_empty_features=keep).fit(given)
    filled = imputer.transform(given)
    empty = {"none", "nobody"} if container != "objects" else {"x1", "x3"}
    names = imputer.get_feature_names_out().tolist()
    assert (empty <= set(names)) == keep
    assert empty.isdisjoint(names) == (not keep)
    assert filled.shape == (60, len(names))
    frame = pd.DataFrame({n: list(np.asarray(filled)[:, i]) for i, n in enumerate(names)})
    assert frame.notna().all().all()
    if keep:
        assert (frame[list(empty)] == 0).all().all()


# --- groups -----------------------------------------------------------------------------------


def watched(monkeypatch):
    """Lists of the rows held out by each fit and of the groups of all rows."""
    seen, prepare = [], _vae.prepare

    def watch(*args, **more):
        job, fitted = prepare(*args, **more)
        seen.append((job.held_out, job.group))
        return job, fitted

    monkeypatch.setattr(_vae, "prepare", watch)
    return seen


@pytest.mark.parametrize("n_rows", [1, 6])  # of a group
def test_groups_of_rows_are_held_out_whole_with_their_copies(holes, monkeypatch, n_rows):
    seen, groups = watched(monkeypatch), np.array([f"p{i // n_rows}" for i in range(len(holes))])
    vae = VAETransformer(2, max_iter=1, random_state=0)
    VAEImputer(vae, n_draws=4).fit(holes, groups=groups if n_rows > 1 else None)
    ((held_out, group),) = seen
    _, first, sizes = np.unique(groups, return_index=True, return_counts=True)
    sizes = sizes[first.argsort()] * (_imputer.N_COPIES + 1)
    np.testing.assert_array_equal(np.sort(np.bincount(group)), np.sort(sizes))
    out = np.bincount(group[held_out], minlength=len(sizes))
    assert set((out / np.bincount(group)).tolist()) == {0.0, 1.0}
    with pytest.raises(ValueError, match=r"groups has .* labels, but X has"):
        VAEImputer(vae).fit(holes, groups=groups[:-1])


def test_a_target_that_looks_like_rows_to_validate_on_is_refused(holes):
    with pytest.raises(ValueError, match="looks like rows to validate on"):
        VAEImputer(VAETransformer(2, max_iter=2)).fit(holes[:100], holes[100:])


@pytest.mark.parametrize("missing", [np.nan, -1.0])
def test_infinity_is_refused_with_its_column_and_row(wine, missing):
    vae = VAETransformer(2, max_iter=2, random_state=0)
    fitted = VAEImputer(vae, missing_values=missing, n_draws=4).fit(wine)
    X = wine.copy()
    X[5, 1], X[9, 3], X[2, 7] = missing, -np.inf, missing
    for method in (clone(fitted).fit, fitted.transform):
        with pytest.raises(ValueError, match=r"infinity in column 3, row 9\. Make it NaN if it"):
            method(X)
    frame = pd.DataFrame(X, columns=[f"c{i}" for i in range(X.shape[1])])
    with pytest.raises(ValueError, match=r"infinity in column 3 \('c3'\), row 9\."):
        clone(fitted).fit(frame)


def test_a_value_beside_a_constant_is_named_with_its_row_in_what_is_filled(wine):
    X = wine.copy()
    X[:, 3] = 2.0
    vae = VAETransformer(2, max_iter=2, random_state=0)
    imputer = VAEImputer(vae, n_draws=4).fit(X)
    X[10, 1], X[20, 1], X[20, 3] = np.nan, np.nan, 5.0
    with pytest.warns(UserWarning, match=r"5 in column 3 \(1 row: 20\)"):
        imputer.transform(X)
