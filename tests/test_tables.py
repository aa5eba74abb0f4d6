"""Tables: categories, columns of several kinds, and back into the user's own terms."""

import copy
import io
import re
import tracemalloc
import warnings
from decimal import Decimal

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
import sklearn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.compose import make_column_selector
from torch import distributions as D
from torch.utils._python_dispatch import TorchDispatchMode

from skvae import VAEGridSearchCV, VAETransformer, metrics
from skvae._data.statistics import Moments
from skvae.likelihoods import (
    Bernoulli,
    Categorical,
    Columns,
    DiscretizedLogistic,
    Gaussian,
    Laplace,
    NegativeBinomial,
    Poisson,
    ZeroInflated,
)
from skvae.networks import Conv

SIZES = (3, 1, 5, 2)
ALL_INACTIVE = "ignore:All .* components are inactive"


def normals(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64)


def start(likelihood, n_features, seed=0):
    """The module of a likelihood, with values drawn away from where they start."""
    rng = np.random.default_rng(seed)
    module = likelihood.build(n_features).double()
    moments = Moments(rng.uniform(0.1, 0.9, n_features), rng.uniform(0.1, 0.9, n_features))
    with torch.no_grad():
        likelihood.initialise(module, moments, np.ones(n_features))
        for p in module.parameters():
            p.add_(normals(*p.shape, seed=seed))
    return module


def table(n=300, seed=0, holes=0.0):
    """Columns of every kind that know of each other."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal(n)
    frame = pd.DataFrame(
        {
            "age": 40 + 10 * z + rng.standard_normal(n),
            "sex": np.where(z + rng.standard_normal(n) > 0, "f", "m"),
            "city": pd.Categorical(
                np.array(["Bern", "Oslo", "Rome"])[np.digitize(z, [-0.7, 0.7])],
                categories=["Rome", "Oslo", "Bern", "Nice"],
            ),
            "children": rng.poisson(np.exp(0.5 * z)),
            "member": rng.random(n) < 1 / (1 + np.exp(-2 * z)),
        },
        index=np.arange(100, 100 + n),
    )
    if holes:
        frame["member"] = frame["member"].astype("boolean")
        frame["children"] = frame["children"].astype("Int64")
        gone = rng.random(frame.shape) < holes
        for i, name in enumerate(frame.columns):
            frame.loc[gone[:, i], name] = None if name in ("sex", "city") else pd.NA
    return frame


KINDS = Columns(
    [
        (Gaussian(), ["age"]),
        ("categorical", ["sex", "city"]),
        (Poisson(), ["children"]),
        ("bernoulli", ["member"]),
    ]
)


def model(likelihood=KINDS, max_iter=5, **params):
    return VAETransformer(
        2, likelihood=likelihood, max_iter=max_iter, random_state=0, hidden_layer_sizes=8, **params
    )


# --- Categorical --------------------------------------------------------------------------


def categorical(module, raw):
    """One distribution for each column, by torch."""
    logits = (module.log_odds + raw).split(SIZES, -1)
    return [D.OneHotCategorical(logits=own) for own in logits]


def test_categories_have_the_log_probabilities_of_torch_distributions():
    likelihood = Categorical(n_categories=SIZES)
    module, raw = start(likelihood, sum(SIZES)), normals(6, sum(SIZES))
    oracle = categorical(module, raw)
    x = torch.cat([d.sample() for d in oracle], -1)
    log_prob = likelihood.log_prob(module, raw, x).split(SIZES, -1)
    for own, d, part in zip(log_prob, oracle, x.split(SIZES, -1), strict=True):
        torch.testing.assert_close(own.sum(-1), d.log_prob(part), rtol=1e-12, atol=1e-12)


def test_probabilities_of_categories_sum_to_1():
    likelihood = Categorical(n_categories=SIZES)
    module, raw = start(likelihood, sum(SIZES)), 30 * normals(6, sum(SIZES))
    every = likelihood.log_prob(module, raw, torch.ones_like(raw)).exp()
    for own in (every, likelihood.mean(module, raw)):
        for part in own.split(SIZES, -1):
            torch.testing.assert_close(part.sum(-1), torch.ones(6).double(), rtol=1e-12, atol=0)


def test_draws_have_the_probabilities_of_the_categories():
    likelihood, n = Categorical(n_categories=SIZES), 40_000
    module, raw = start(likelihood, sum(SIZES)), normals(2, sum(SIZES))
    g = torch.Generator().manual_seed(0)
    x = likelihood.sample(module, raw.expand(n, -1, -1), g)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    for part in x.split(SIZES, -1):
        assert (part.sum(-1) == 1).all()
    p = likelihood.mean(module, raw)
    assert ((x.mean(0) - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()


@pytest.mark.parametrize("of_each", [False, True], ids=["columns", "values"])
@pytest.mark.parametrize(
    "likelihood",
    [
        Categorical(n_categories=SIZES),
        Columns(
            (
                (Gaussian(), (0, 3)),
                (Categorical(n_categories=(3, 2)), (1, 5)),
                (NegativeBinomial(), (2,)),
                (Laplace("per_feature"), (4,)),
            )
        ),
    ],
    ids=["Categorical", "Columns"],
)
def test_vjp_equals_weighted_log_prob_and_pulls_back_as_autograd_does(likelihood, of_each):
    n_features = len(likelihood.columns_of(6 if isinstance(likelihood, Columns) else 4))
    modules = [start(likelihood, n_features, seed) for seed in range(3)]
    stack = copy.deepcopy(modules[0])
    for name, tensor in stack.state_dict(keep_vars=True).items():
        tensor.data = torch.stack([m.state_dict()[name] for m in modules])
    raw = normals(3, 4, likelihood.n_outputs(n_features), seed=1)
    x = normals(3, 4, n_features, seed=2).abs().round()
    # Each column whole: of the features of a category one counts if all do.
    columns = likelihood.columns_of(6 if isinstance(likelihood, Columns) else 4)
    weight = (normals(3, 4 if of_each else 1, 6, seed=3) > 0).double()[..., columns]
    if isinstance(likelihood, Categorical):
        hot = [D.OneHotCategorical(logits=torch.zeros(n).double()).sample((3, 4)) for n in SIZES]
        x = torch.cat(hot, -1)
    else:
        x[..., 2:7] = torch.tensor([0.0, 1, 0, 0, 1]).double()
    g = normals(3, 4, seed=4)
    with torch.inference_mode():
        total, pull = likelihood.vjp(stack, raw.clone(), x.clone(), weight.clone())
        g_raw, gradients = pull(g)
    for m, module in enumerate(modules):
        own = raw[m].clone().requires_grad_()
        expected = (likelihood.log_prob(module, own, x[m]) * weight[m]).sum(-1)
        torch.testing.assert_close(total[m], expected, rtol=1e-12, atol=1e-12)
        wanted, *others = torch.autograd.grad(expected, [own, *module.parameters()], g[m])
        torch.testing.assert_close(g_raw[m], wanted, rtol=1e-10, atol=1e-12)
        for gradient, other in zip(gradients, others, strict=True):
            torch.testing.assert_close(gradient[m], other, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings(ALL_INACTIVE)
def test_independent_categories_score_minus_their_entropy():
    rng = np.random.default_rng(0)
    p, q = [0.6, 0.3, 0.08, 0.02], [0.9, 0.1]
    X = np.stack([rng.choice(4, 4000, p=p), rng.choice(2, 4000, p=q)], axis=1).astype(float)
    entropy = -sum(np.sum(share * np.log(share)) for share in (np.array(p), np.array(q)))
    vae = model("categorical", 40).fit(X[:3000])
    assert vae.score(X[3000:]) == pytest.approx(-entropy, abs=0.05)


def test_a_category_that_fit_knows_but_never_saw_is_improbable_and_not_impossible():
    frame = table()
    vae = model().fit(frame)
    usual, strange = vae.score_samples(frame.head(1)), frame.head(1).copy()
    strange["city"] = pd.Categorical(["Nice"], categories=frame["city"].cat.categories)
    (score,) = vae.score_samples(strange)
    assert np.isfinite(score)
    assert score < usual[0] - 2


# --- Columns ------------------------------------------------------------------------------


def test_columns_are_the_sum_of_their_parts():
    parts = [(Gaussian(), (0, 3)), (Categorical(n_categories=(3,)), (1,)), (Poisson(), (2, 4))]
    likelihood, sizes = Columns(tuple(parts)), (2, 3, 2)
    module, raw = start(likelihood, 7), normals(5, likelihood.n_outputs(7))
    x = normals(5, 7, seed=1).abs().round()
    total, start_raw, columns = 0, 0, []
    for (part, _), own, piece in zip(parts, module, x.split(sizes, -1), strict=True):
        n = part.n_outputs(piece.shape[-1])
        out = raw[:, start_raw : start_raw + n]
        start_raw += n
        columns.append(part.log_prob(own, out, piece))
        total = total + columns[-1].sum(-1)
    weight = torch.ones(1, 7).double()
    assert torch.equal(likelihood.log_prob(module, raw, x), torch.cat(columns, -1))
    torch.testing.assert_close(likelihood.total(module, raw, x, weight), total, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "likelihood", [Gaussian("per_feature"), Bernoulli(resample=True), DiscretizedLogistic(4)]
)
def test_one_part_of_all_columns_is_the_likelihood_itself(likelihood):
    X = np.random.default_rng(0).integers(0, 2, (200, 5)).astype(float)
    one, parts = (
        model(value, early_stopping=False).fit(X)
        for value in (likelihood, Columns([(likelihood, slice(None))]))
    )
    np.testing.assert_array_equal(one.score_samples(X), parts.score_samples(X))
    np.testing.assert_array_equal(one.sample(20, 1), parts.sample(20, 1))
    np.testing.assert_array_equal(
        metrics.reconstruction(one, X, random_state=0, per_feature=True),
        metrics.reconstruction(parts, X, random_state=0, per_feature=True),
    )


def test_columns_may_be_named_in_every_way_of_a_column_transformer():
    frame = table()
    mask = [False, False, False, True, False]
    number = make_column_selector(dtype_include=float)
    ways = Columns(
        [
            ("gaussian", number),
            ("categorical", slice("sex", "city")),
            ("poisson", mask),
            ("bernoulli", -1),
        ]
    )
    assert model(ways).fit(frame).score(frame) == model().fit(frame).score(frame)


def test_the_order_of_the_parts_changes_names_and_values_of_none():
    frame = table()
    turned = Columns(KINDS.parts[::-1])
    for vae in (model().fit(frame), model(turned).fit(frame)):
        drawn = vae.sample(200, random_state=0)
        assert list(drawn.columns) == list(frame.columns)
        assert drawn["age"].between(0, 80).mean() > 0.95
        assert set(drawn["sex"]) == {"f", "m"}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([(Gaussian(), ["age"])], "Column 1 ('sex') is in no part of Columns("),
        (
            [*KINDS.parts, (Laplace(), ["age"])],
            "Column 0 ('age') is in 2 parts of Columns(",
        ),
        ([(Gaussian(), ["size"])], "Columns cannot find ['size'] in X: "),
        ([("gauss", ["age"])], "Columns has a part 'gauss', which is no likelihood"),
    ],
)
def test_columns_that_fit_no_table_are_refused(parts, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        model(Columns(parts)).fit(table())


@pytest.mark.parametrize("parts", [[], "abc", [(Gaussian(),)], [(KINDS, [0])], [(3, [0])]])
def test_what_are_no_parts_is_refused(parts):
    with pytest.raises(ValueError, match="Columns"):
        Columns(parts)


# --- auto ---------------------------------------------------------------------------------


def test_auto_reads_dtypes():
    frame = table().assign(year=np.arange(300) + 1900, price=1.0, word=list("ab") * 150)
    with pytest.warns(UserWarning, match=re.escape("column 3 ('children'): whole numbers")):
        vae = model("auto").fit(frame)
    assert vae.likelihood_ == Columns(
        [
            (Gaussian(), ["age", "children", "year", "price"]),
            (Bernoulli(), ["member"]),
            (Categorical(), ["sex", "city", "word"]),
        ]
    )


@pytest.mark.parametrize(
    ("X", "likelihood"),
    [
        (np.random.default_rng(0).normal(size=(30, 2)), Gaussian()),
        (np.random.default_rng(0).normal(size=(30, 2)) > 0, Bernoulli()),
        (np.array([["a", "b"], ["a", "c"]] * 9), Categorical()),
        (np.array([["a", 1.5], ["b", None]] * 9, dtype=object), None),
    ],
)
def test_auto_reads_arrays(X, likelihood):
    vae = model("auto").fit(X)
    expected = Columns([(Gaussian(), [1]), (Categorical(), [0])])
    assert vae.likelihood_ == (likelihood or expected)
    drawn = vae.sample(5, random_state=0)
    assert isinstance(drawn, np.ndarray)
    if X.dtype.kind in "OU":
        assert set(drawn[:, 0]) <= set(X[:, 0])


def test_auto_on_real_values_is_the_default():
    X = np.random.default_rng(0).normal(size=(100, 3))
    for data in (X, pd.DataFrame(X, columns=list("abc"))):
        auto, plain = model("auto").fit(data), model("gaussian").fit(data)
        np.testing.assert_array_equal(auto.score_samples(data), plain.score_samples(data))


# --- out again ----------------------------------------------------------------------------


@pytest.mark.parametrize("holes", [0, 0.2])
def test_what_comes_out_is_a_table_like_that_of_fit(holes):
    frame = table(holes=holes)
    vae = model(max_iter=30).fit(frame)
    back = vae.inverse_transform(pd.DataFrame(vae.transform(frame), index=frame.index))
    drawn = vae.sample(50, random_state=0)
    for out in (back, drawn):
        pd.testing.assert_series_equal(out.dtypes, frame.dtypes)
        assert set(out["sex"]) <= {"f", "m"}
        assert not out.isna().any(axis=None)
        assert (out["children"] >= 0).all()
    pd.testing.assert_index_equal(back.index, frame.index)
    # More than the most frequent one.
    whole = table()
    assert (back["city"] == whole["city"]).mean() > (whole["city"] == "Oslo").mean() + 0.1


def polars_table():
    frame = table()
    columns = {name: frame[name].tolist() for name in frame.columns}
    columns["sex"][::5] = [None] * 60
    cities = pl.Series(columns["city"], dtype=pl.Enum(list(frame["city"].cat.categories)))
    return pl.DataFrame({**columns, "city": cities}).with_columns(pl.col("age").cast(pl.Float32))


def test_polars_frames_come_out_as_polars_frames():
    frame = polars_table()
    vae = model().fit(frame)
    for out in (vae.inverse_transform(vae.transform(frame)), vae.sample(20, random_state=0)):
        assert isinstance(out, pl.DataFrame)
        assert out.schema == frame.schema
    as_pandas = pd.DataFrame({name: frame[name].to_list() for name in frame.columns})
    as_pandas["city"] = pd.Categorical(as_pandas["city"], table()["city"].cat.categories)
    as_pandas["age"] = as_pandas["age"].astype("float32")
    same = model().fit(as_pandas)
    np.testing.assert_array_equal(same.score_samples(as_pandas), vae.score_samples(frame))


def test_the_container_is_the_one_of_set_output():
    frame = table()
    vae = model().fit(frame).set_output(transform="polars")
    out = vae.inverse_transform(np.zeros((2, 2)))
    assert isinstance(out, pl.DataFrame)
    assert out.columns == list(frame.columns)
    assert isinstance(vae.set_output(transform="pandas").sample(2), pd.DataFrame)


def test_sample_draws_categories_and_inverse_transform_gives_the_most_probable():
    rng = np.random.default_rng(0)
    X = rng.choice(["a", "b"], (500, 1), p=[0.7, 0.3])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All")
        vae = model("categorical", 20, beta=10.0).fit(X)  # z says nothing
    assert (vae.inverse_transform(vae.transform(X)) == "a").all()
    assert (vae.sample(2000, random_state=0) == "b").mean() == pytest.approx(0.3, abs=0.06)


def test_the_terms_of_columns_sum_to_the_whole():
    frame = table(holes=0.1)
    vae = model().fit(frame)
    parts = metrics.reconstruction(vae, frame, random_state=0, per_feature=True, per_sample=True)
    assert parts.shape == frame.shape
    np.testing.assert_allclose(
        parts.sum(axis=1),
        metrics.reconstruction(vae, frame, random_state=0, per_sample=True),
        rtol=1e-4,
        atol=1e-4,
    )
    # What is missing says nothing.
    np.testing.assert_allclose(parts[frame.isna().to_numpy()], 0, atol=1e-6)


def test_a_fitted_model_of_a_table_survives_a_file():
    frame = table(holes=0.1)
    vae, file = model().fit(frame), io.BytesIO()
    joblib.dump(vae, file)
    file.seek(0)
    again = joblib.load(file)
    np.testing.assert_array_equal(again.score_samples(frame), vae.score_samples(frame))
    pd.testing.assert_frame_equal(again.sample(9, 0), vae.sample(9, 0))
    assert clone(vae).get_params()["likelihood"] == KINDS


def test_warm_start_goes_on_with_the_categories_of_the_first_fit():
    frame = table()
    vae = model(warm_start=True).fit(frame)
    fewer = frame[frame["sex"] == "f"]
    vae.fit(fewer)
    assert vae.n_iter_ == 10
    assert vae.sample(300, random_state=0)["sex"].isin(["f", "m"]).all()


# --- what is wrong ------------------------------------------------------------------------


def test_an_unknown_category_is_a_missing_value_with_one_warning():
    frame = table(holes=0.1)
    frame["city"] = frame["city"].astype(object)
    vae = model().fit(frame)
    strange, gone = frame.copy(), frame.copy()
    strange.loc[[101, 107], "city"] = "Atlantis"
    strange.loc[101, "sex"] = "x"
    gone.loc[[101, 107], "city"] = None
    gone.loc[101, "sex"] = None
    message = (
        "taken as missing: 'x' in column 1 ('sex') (1 row: 1), "
        "'Atlantis' in column 2 ('city') (2 rows, the first is 1)."
    )
    with pytest.warns(UserWarning, match=re.escape(message)) as caught:
        scores = vae.score_samples(strange)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    missing, others = vae.score_samples(gone), np.setdiff1d(np.arange(300), [1, 7])
    np.testing.assert_array_equal(scores[others], missing[others])
    # And costs what 1 in n + 1 of the rows trained on does, at least: see test_unseen.py.
    _, sex, city, *_ = vae._seen["n_values"]
    costs = np.log(city + 1) + np.array([np.log(sex + 1), 0])
    assert (scores[[1, 7]] <= missing[[1, 7]] - costs + 1e-4).all()
    with pytest.warns(UserWarning, match=re.escape(message)):
        latent = vae.transform(strange)
    np.testing.assert_array_equal(latent, vae.transform(gone))


def changed(name, value):
    frame = table()
    frame[name] = frame[name].astype(object)
    frame.loc[105, name] = value
    return frame


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (changed("children", -1), "Got -1 in column 3 ('children')"),
        (changed("children", 1.5), "Got 1.5 in column 3 ('children')"),
        (changed("age", "old"), "X has the value 'old' in column 0 ('age'), which is no number"),
        (changed("age", 1e30), "X has the value 1e+30 in column 0 ('age')"),
        (changed("member", 2), "Got 2 in column 4 ('member')"),
        (changed("sex", 3), "X has the value 3 in column 1 ('sex'), whose categories in fit"),
        (table().drop(columns="sex"), "sex"),
        (table()[["sex", "age", "city", "children", "member"]], "order"),
    ],
    ids=str,
)
def test_bad_values_and_columns_are_named(frame, message):
    vae = model().fit(table())
    with pytest.raises(ValueError, match=re.escape(message)):
        vae.transform(frame)


def test_an_unknown_category_is_an_error_where_that_is_asked_for():
    parts = [(Categorical(handle_unknown="error"), ["sex", "city"]), *KINDS.parts[2:]]
    vae = model(Columns([KINDS.parts[0], *parts])).fit(table())
    message = "X has the category 'x' in column 1 ('sex'), which was not in the data of fit"
    with pytest.raises(ValueError, match=re.escape(message)):
        vae.transform(changed("sex", "x"))


def test_categories_of_several_types_are_refused():
    X = np.array([["a"], [1], ["b"]] * 9, dtype=object)
    with pytest.raises(
        ValueError, match=re.escape("column 0 are of the types int, str, which cannot")
    ):
        model("categorical").fit(X)


def test_the_table_itself_is_not_changed():
    frame = table(holes=0.2)
    before = frame.copy(deep=True)
    vae = model().fit(frame)
    vae.transform(frame)
    vae.score(frame)
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize("first", ["categorical", "gaussian", Columns([("gaussian", [0, 1])])])
def test_a_warm_start_with_another_likelihood_is_refused_before_anything_is_read(first):
    X = np.random.default_rng(0).integers(0, 3, (60, 2)).astype(float)
    vae = model(first, warm_start=True).fit(X)
    other = "categorical" if first != "categorical" else "gaussian"
    with pytest.raises(ValueError, match="whose likelihood is"):
        vae.set_params(likelihood=other).fit(X + 10)


def test_pixels_that_are_categories_are_refused_by_convolutions():
    X = np.random.default_rng(0).integers(0, 3, (30, 64))
    vae = model("categorical", network=Conv((1, 8, 8)))
    with pytest.raises(ValueError, match="Got categories, which become 192 features"):
        vae.fit(X)


# --- values of every kind -----------------------------------------------------------------


def test_lists_of_rows_keep_the_types_of_their_values():
    frame = table()[["age", "sex"]]
    rows = frame.to_numpy(dtype=object).tolist()
    vae = model("auto").fit(rows)
    assert vae.likelihood_ == Columns([(Gaussian(), [0]), (Categorical(), [1])])
    np.testing.assert_array_equal(
        vae.score_samples(rows), vae.score_samples(np.array(rows, object))
    )
    holes = model("auto").fit([["a"], [float("nan")], ["b"], [None]] * 20)
    assert set(holes.sample(99, random_state=0).ravel()) == {"a", "b"}


@pytest.mark.parametrize(
    "values",
    [
        pd.cut(np.arange(60) % 7, 3),
        [2**60 + 1, 2**60 + 3] * 30,
        pd.array([2**60 + 1, None, 2**60 + 3] * 20, dtype="Int64"),
        [(1, 2), (1, 3)] * 30,
        [Decimal("1.5"), Decimal("2.5")] * 30,
        [b"x", b"y"] * 30,
        pd.Categorical([1, "a"] * 30),
        pd.Categorical(pd.to_datetime(["2020-01-01", "2021-01-01"] * 30)),
    ],
    ids=lambda values: type(values[0]).__name__,
)
def test_any_value_can_be_a_category_and_comes_back_as_it_was(values):
    frame = pd.DataFrame({"c": values, "x": np.arange(60.0)})
    likelihood = Columns([("categorical", ["c"]), ("gaussian", ["x"])])
    vae = model(likelihood).fit(frame)
    drawn = vae.sample(60, random_state=0)
    assert drawn["c"].dtype == frame["c"].dtype
    assert set(drawn["c"]) == set(frame["c"].dropna())
    assert np.isfinite(vae.score_samples(frame)).all()


def test_an_array_of_whole_numbers_that_are_categories_comes_back_to_the_last_digit():
    X = np.array([[2**60 + 1], [2**60 + 3]] * 30)
    drawn = model("categorical").fit(X).sample(60, random_state=0)
    assert drawn.dtype == X.dtype
    assert set(drawn.ravel()) == set(X.ravel())


def test_objects_that_are_bools_or_whole_numbers_are_taken_for_such():
    b, i = [True, False, None] * 30, [*range(44), None] * 2
    frame = pd.DataFrame(
        {"b": pd.Series(b, dtype=object), "i": pd.Series(i, dtype=object), "x": np.arange(90.0)}
    )
    vae = model("auto").fit(frame)
    assert vae.likelihood_ == Columns([(Gaussian(), ["i", "x"]), (Bernoulli(), ["b"])])
    drawn = vae.sample(50, random_state=0)
    assert {type(value) for value in drawn["b"]} == {bool}
    assert {type(value) for value in drawn["i"]} == {int}


def test_numbers_among_objects_may_be_missing_in_any_way():
    X = np.arange(60.0)[:, None] % 7
    loose = X.astype(object)
    loose[::4], loose[1::4], loose[2::4] = None, pd.NA, np.nan
    X[0::4] = X[1::4] = X[2::4] = np.nan
    for likelihood in ("auto", "gaussian"):
        vae = model(likelihood)
        np.testing.assert_array_equal(
            vae.fit(pd.DataFrame(loose)).score_samples(loose), vae.fit(X).score_samples(X)
        )


def test_rows_of_no_weight_say_nothing_of_what_a_column_is():
    frame = pd.DataFrame({"o": [1.0, None, 2.5, "bad"] * 20, "x": np.arange(80.0)}, dtype=object)
    weight = (frame["o"] != "bad").astype(float)
    vae = model("auto").fit(frame, sample_weight=weight)
    assert vae.likelihood_ == Gaussian()
    same = model("auto").fit(frame[weight > 0])
    np.testing.assert_array_equal(
        vae.score_samples(frame[weight > 0]), same.score_samples(frame[weight > 0])
    )


def test_many_categories_in_one_column_cost_the_others_nothing():
    # A column of a thousand categories among 60 of two.
    likelihood = Categorical(n_categories=(*[2] * 30, 1000, *[2] * 30))
    module, raw = start(likelihood, 1120), normals(5, 1120)
    largest = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            largest.extend(t.numel() for t in [out] if isinstance(t, torch.Tensor))
            return out

    with Watch():
        likelihood.log_prob(module, raw, torch.ones_like(raw))
    assert max(largest) <= 5 * 1120


# --- searches -----------------------------------------------------------------------------


def test_a_search_on_a_table_with_rare_categories_equals_fits_one_by_one():
    frame = table(holes=0.1)
    frame["city"] = frame["city"].astype(object)
    frame.loc[103, "city"] = "Nice"  # in one fold alone
    vae = model(precision="float64")
    grid = {"beta": [0.5, 1.0], "n_components": [1, 2]}
    with pytest.warns(UserWarning, match="taken as missing: 'Nice'"):
        search = VAEGridSearchCV(vae, grid, cv=3, refit=False).fit(frame)
    folds = np.split(np.arange(300), 3)
    for i, params in enumerate(search.cv_results_["params"]):
        for k, test in enumerate(folds):
            train = np.setdiff1d(np.arange(300), test)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "X has categories")
                own = clone(vae).set_params(**params).fit(frame.iloc[train])
                expected = own.score(frame.iloc[test])
            score = search.cv_results_[f"split{k}_test_score"][i]
            assert score == pytest.approx(expected, abs=1e-6)


# --- sparse -------------------------------------------------------------------------------


KINDS_OF_SPARSE = [
    f"{kind}_{form}" for kind in ("csr", "csc", "coo", "lil") for form in ("array", "matrix")
]


@pytest.mark.parametrize(
    "likelihood", ["poisson", "bernoulli", ZeroInflated(), "gaussian"], ids=str
)
def test_sparse_rows_are_the_same_rows(likelihood):
    X = (np.random.default_rng(0).random((200, 30)) < 0.1).astype(float)
    dense = model(likelihood).fit(X)
    for kind in KINDS_OF_SPARSE:
        S = getattr(scipy.sparse, kind)(X)
        sparse = model(likelihood).fit(S)
        for name, array in dense.state_.items():
            np.testing.assert_array_equal(sparse.state_[name], array)
        for rows in (X, S):
            np.testing.assert_array_equal(sparse.score_samples(rows), dense.score_samples(X))
            np.testing.assert_array_equal(sparse.transform(rows), dense.transform(X))


@pytest.mark.slow
@pytest.mark.filterwarnings(ALL_INACTIVE)
def test_sparse_rows_are_never_dense_as_a_whole():
    n_rows, n_columns = 20_000, 500  # 40 MB in float32
    rng = np.random.default_rng(0)
    places = rng.integers(n_rows, size=20_000), rng.integers(n_columns, size=20_000)
    S = scipy.sparse.csr_array((rng.integers(1, 6, 20_000) / 1, places), (n_rows, n_columns))
    vae = model("poisson", 1, early_stopping=False, n_score_draws=8)
    with sklearn.config_context(working_memory=4):  # MiB
        tracemalloc.start()
        seen = []
        whole = scipy.sparse.csr_array.toarray

        def toarray(self, *args, **kwargs):
            seen.append(self.shape[0])
            return whole(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scipy.sparse.csr_array, "toarray", toarray)
            scores = vae.fit(S).score_samples(S)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert np.isfinite(scores).all()
    # A block of a million values at most, in float64, and what is made of it.
    assert max(seen) <= 2**20 // n_columns
    assert peak < 8 * n_rows * n_columns / 2


@pytest.mark.parametrize("dtype", [("uint8", 0), ("float64", 0.0)])
def test_sparse_columns_of_a_frame_come_back_dense(dtype):
    rng = np.random.default_rng(0)
    dtype = pd.SparseDtype(*dtype)
    frame = pd.DataFrame({"c": rng.integers(0, 2, 60), "k": list("xy") * 30}).astype({"c": dtype})
    vae = model(Columns([("poisson", ["c"]), ("categorical", ["k"])])).fit(frame)
    drawn = vae.sample(99, random_state=0)["c"]
    assert drawn.dtype == frame["c"].dtype.subtype
    assert drawn.between(0, 20).all()


def test_auto_reads_the_dtype_of_sparse_rows():
    X = scipy.sparse.csr_array(np.eye(30, 4, dtype=bool))
    assert model("auto").fit(X).likelihood_ == Bernoulli()
    assert model("auto").fit(X.astype(int)).likelihood_ == Gaussian()


def test_a_search_takes_sparse_rows():
    rng = np.random.default_rng(0)
    X = (rng.random((90, 12)) < 0.3).astype(float)
    grid = {"n_components": [1, 2]}
    results = [
        VAEGridSearchCV(model("bernoulli"), grid, cv=3, refit=False).fit(rows).cv_results_
        for rows in (X, scipy.sparse.csr_matrix(X))
    ]
    np.testing.assert_array_equal(*(result["mean_test_score"] for result in results))


# --- any table ----------------------------------------------------------------------------

COLUMNS = {
    "float": st.floats(-1e6, 1e6),
    "whole": st.integers(-100, 100),
    "bool": st.booleans(),
    "string": st.sampled_from(["a", "b", "c", "d"]),
    "mixed numbers": st.sampled_from([0.5, 1, 2.25, True]),
}


@st.composite
def tables(draw):
    n_rows = draw(st.integers(2, 40))
    kinds = draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=8))
    columns = {}
    for i, kind in enumerate(kinds):
        values = draw(st.lists(COLUMNS[kind], min_size=n_rows, max_size=n_rows))
        gone = draw(st.lists(st.booleans(), min_size=n_rows, max_size=n_rows))
        gone[draw(st.integers(0, n_rows - 1))] = False
        if not draw(st.booleans()):
            gone = [False] * n_rows
        loose = [None if g else v for v, g in zip(values, gone, strict=True)]
        series = pd.Series(loose, dtype=object)
        how = draw(st.sampled_from(["loose", "convert", "category"]))
        if how == "convert":
            series = series.convert_dtypes()
        elif how == "category" and kind == "string":
            series = series.astype("category")
        columns[f"c{i}"] = series
    return pd.DataFrame(columns)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(tables())
def test_any_table_goes_there_and_back(frame):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vae = model("auto", 2).fit(frame)
        drawn = vae.sample(5, random_state=0)
        assert list(drawn.columns) == list(frame.columns)
        for rows in (frame, drawn):
            Z = vae.transform(rows)
            assert np.isfinite(Z).all()
            assert np.isfinite(vae.score_samples(rows)).all()
        back = vae.inverse_transform(vae.transform(frame))
    assert back.shape == frame.shape
    for name in frame.columns:
        if frame[name].dtype != object:
            assert back[name].dtype == frame[name].dtype == drawn[name].dtype
