"""The promises of the estimator, and of `skvae.sample`: what its words mean, what it refuses."""

import contextlib
import itertools
import math
import pickle
import re
import tracemalloc
import warnings

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
import scipy.stats
import sklearn
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, RobustScaler, StandardScaler
from threadpoolctl import threadpool_limits

import skvae
from skvae import VAETransformer, likelihoods, posteriors, priors
from skvae._backend import blocks
from skvae._data import weighting
from skvae._fit.preparation import prepare
from skvae.likelihoods import Bernoulli, Gaussian
from skvae.networks import MLP

LIKELIHOODS = [
    Gaussian("per_feature"),
    Gaussian("shared"),
    Gaussian("per_sample"),
    Gaussian(0.5),
    Bernoulli(),
]
any_likelihood = pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)

OUTPUTS = {
    "transform": lambda vae, X: vae.transform(X),
    "encode": lambda vae, X: np.hstack(vae.encode(X)),
    "inverse_transform": lambda vae, X: vae.inverse_transform(vae.transform(X)),
    "score_samples": lambda vae, X: vae.score_samples(X),
}


def suited(X, likelihood):
    """X, or zeros and ones where nothing else will do."""
    return (np.mean(X, axis=0) < X).astype(X.dtype) if likelihood == Bernoulli() else X


def assert_same_state(left, right):
    assert left.state_.keys() == right.state_.keys()
    for name, array in left.state_.items():
        np.testing.assert_array_equal(array, right.state_[name])


def assert_finite(vae, X):
    """The model and its results on X are finite numbers."""
    assert all(np.isfinite(array).all() for array in vae.state_.values())
    assert all(np.isfinite(output(vae, X)).all() for output in OUTPUTS.values())
    assert np.isfinite(vae.sample(3, random_state=0)).all()


# --- the score ----------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["per_feature", "shared", 0.5])
def test_score_samples_is_the_elbo_at_beta_1_whatever_was_trained(X, quick, numpy_elbo, noise):
    vae = quick(
        n_components=3,
        hidden_layer_sizes=(),
        likelihood=Gaussian(noise),
        beta=7.0,
        beta_warmup=0.5,
        max_iter=30,
    ).fit(X)
    elbo = numpy_elbo(vae, X)
    np.testing.assert_allclose(vae.score_samples(X), elbo, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(vae.score(X), elbo.mean(), rtol=1e-5)


def test_score_samples_of_a_network_is_the_elbo_by_other_draws(X, quick, numpy_elbo):
    vae = quick(likelihood=Gaussian("per_feature"), max_iter=100, learning_rate=0.01).fit(X)
    elbo = numpy_elbo(vae, X, n_draws=4000)
    np.testing.assert_allclose(vae.score(X), elbo.mean(), atol=0.05)  # 64 draws, shared
    vae.set_params(n_score_draws=4096)
    np.testing.assert_allclose(vae.score(X), elbo.mean(), atol=0.02)


@pytest.mark.parametrize("beta", [0, 1e-9, 1, 1e9])
def test_score_is_the_mean_of_score_samples_and_a_finite_float_whatever_beta_is(X, quick, beta):
    vae = quick(beta=beta).fit(X)
    assert np.isfinite(vae.score(X))
    assert type(vae.score(X)) is float
    assert vae.score(X) == np.mean(vae.score_samples(X))
    assert vae.score_samples(X).shape == (60,)
    assert vae.score_samples(X).dtype == np.float64


def test_score_does_not_see_what_only_training_uses(X, quick):
    vae = quick(beta=4.0).fit(X)
    before = vae.score_samples(X)
    vae.set_params(beta=50, beta_warmup=0.9, max_iter=1, weight_decay=3, batch_size=1)
    np.testing.assert_array_equal(vae.score_samples(X), before)


def test_beta_changes_what_is_learned(X, quick):
    kl = [quick(beta=beta, max_iter=50).fit(X).history_["kl"][-1] for beta in (0, 1, 10)]
    assert kl[0] > kl[1] > kl[2]


class OwnMatrix(likelihoods.StudentT):
    """A likelihood that learns a matrix, which a user's may."""

    def build(self, n_features):
        module = super().build(n_features)
        module.matrix = torch.nn.Parameter(torch.empty(2, n_features))
        return module

    def initialise(self, module, columns, scale):
        super().initialise(module, columns, scale)
        torch.nn.init.ones_(module.matrix)

    def log_prob(self, module, raw, y):
        return super().log_prob(module, raw, y) + 0 * module.matrix.sum(-2).unsqueeze(-2)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"prior": priors.Mixture(3)},
        {"prior": priors.Vamp(3)},
        {"prior": priors.Vamp(3), "posterior": "full"},
        {"posterior": posteriors.Flow(hidden_layer_sizes=(4,), n_context=2)},
        {"network": MLP(residual=True, layer_norm=True)},
        {"likelihood": likelihoods.StudentT()},
        {"likelihood": OwnMatrix("shared", df=4)},
    ],
    ids=str,
)
def test_weight_decay_is_of_the_matrices_of_the_networks_alone(X, quick, parts):
    one_step = {"max_iter": 1, "batch_size": len(X), "learning_rate_schedule": "constant"}
    one_step |= {"precision": "float64", **parts}
    first = quick(learning_rate=1e-30, **one_step).fit(X).state_
    rate, decay = 0.01, 0.3
    plain, decayed = (
        quick(learning_rate=rate, weight_decay=own, **one_step).fit(X).state_
        for own in (0.0, decay)
    )
    for name, before in first.items():
        if name.endswith(".mask"):
            continue
        networks = name.startswith(("encoder.", "decoder.", "flow."))
        expected = rate * decay * before if networks and before.ndim > 1 else 0.0
        # float32 states, of numbers around 1.
        np.testing.assert_allclose(plain[name] - decayed[name], expected, atol=1e-6, err_msg=name)


# --- units --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("likelihood", "scale", "scaled"),
    [
        *(
            (Gaussian(noise), scale, Gaussian(noise))
            for noise in ("per_feature", "per_sample")
            for scale in (1024.0, (1e-6, 1e6, 1, 1e-6), (1e-12, 1e12, 1e-3, 1))
        ),
        (Gaussian("shared"), 1024.0, Gaussian("shared")),
        (Gaussian(0.5), 1024.0, Gaussian(0.5 * 1024**2)),
    ],
    ids=str,
)
def test_columns_times_a_scale_move_the_score_by_minus_its_logarithm(
    X, quick, likelihood, scale, scaled
):
    score = quick(likelihood=likelihood, max_iter=30).fit(X).score_samples(X)
    Y = X * scale
    moved = quick(likelihood=scaled, max_iter=30).fit(Y).score_samples(Y)
    exact = isinstance(scale, float)  # a power of 2 rounds nothing
    jacobian = np.log(np.broadcast_to(scale, 4)).sum()
    np.testing.assert_allclose(moved.mean(), score.mean() - jacobian, atol=1e-3)
    if exact:
        np.testing.assert_allclose(moved, score - jacobian, atol=1e-4)


def test_time_stamps_of_1_7e9_keep_their_digits(X, quick):
    near = 1e3 * (X - X.mean(axis=0)) / X.std(axis=0)
    vae = quick(max_iter=100, learning_rate=0.02)
    Z, score = vae.fit_transform(near), vae.score(near)
    back = vae.inverse_transform(Z)
    far = near + 1.7e9
    np.testing.assert_allclose(vae.fit_transform(far), Z, atol=1e-3)
    np.testing.assert_allclose(vae.score(far), score, atol=1e-3)
    np.testing.assert_allclose(vae.inverse_transform(Z), back + 1.7e9, rtol=0, atol=1)
    assert (vae.inverse_transform(Z) - far).std() < 1e3


@pytest.mark.parametrize(
    ("noise", "dtype"),
    [("per_feature", np.float32), ("shared", np.float64), ("per_sample", np.float64), (0.5, "f4")],
)
def test_a_constant_column_is_given_back_exactly_and_is_no_part_of_the_score(
    X, quick, numpy_elbo, noise, dtype
):
    X = X.astype(dtype)
    X[:, 1] = 0.1
    vae = quick(likelihood=Gaussian(noise), hidden_layer_sizes=()).fit(X)
    assert (vae.inverse_transform(vae.transform(X))[:, 1] == X[0, 1]).all()
    assert (vae.sample(30, random_state=0)[:, 1] == X[0, 1]).all()
    other = X.copy()
    other[:, 1] = 7e20
    with pytest.warns(UserWarning, match="differ from the constant of a column in the rows"):
        scores = vae.score_samples(other)  # a mass of 1 / (n + 1) is beside the constant
    np.testing.assert_allclose(vae.score_samples(X) - scores, np.log(61), rtol=1e-9)
    if noise != "per_sample":
        elbo = numpy_elbo(vae, X, columns=[0, 2, 3])
        np.testing.assert_allclose(vae.score_samples(X), elbo, atol=1e-3)


@any_likelihood
def test_constant_rows_are_fitted_and_given_back(quick, likelihood):
    X = np.full((20, 3), 0.3)
    with pytest.warns(UserWarning, match="All columns of X are constant"):
        vae = quick(likelihood=likelihood).fit(X)
    np.testing.assert_array_equal(vae.inverse_transform(vae.transform(X)), X)
    np.testing.assert_array_equal(vae.sample(4), X[:4])
    assert -10 < vae.score(X) <= 0  # no density is left: minus a KL divergence


# --- determinism --------------------------------------------------------------------------


# One line for each kind of product: of widths, components, parts and dtypes.
SIZES = [
    {"hidden_layer_sizes": ()},
    {"hidden_layer_sizes": (7,), "n_components": 3, "precision": "float64"},
    {"hidden_layer_sizes": (50, 25), "precision": "float64"},
    {"hidden_layer_sizes": (128, 64)},
    {"prior": priors.Mixture(3), "posterior": "full", "n_components": 5},
    {"prior": priors.Mixture(3), "n_components": 9, "precision": "float64"},
    {"prior": priors.Vamp(20), "posterior": "full", "n_components": 9},
    {"prior": priors.Vamp(3), "n_components": 16, "precision": "float64"},
    {"posterior": "full", "n_components": 16},
    {"posterior": posteriors.Flow(hidden_layer_sizes=(8,)), "n_components": 3},
]


@pytest.mark.parametrize("params", SIZES, ids=str)
def test_a_row_has_the_same_numbers_alone_and_in_any_batch(quick, params):
    rng, dtype = np.random.default_rng(0), params.get("precision", "float32")
    many = rng.normal(size=(2100, 13)).astype(dtype)  # more than one block of 2048
    vae = quick(**params, n_score_draws=70, max_iter=1).fit(many[:60])
    order = rng.permutation(len(many))
    for output in OUTPUTS.values():
        expected = output(vae, many)
        np.testing.assert_array_equal(output(vae, many[order]), expected[order])
        for rows in [slice(0, 1), slice(2047, 2050), slice(5, 22), slice(2099, None)]:
            np.testing.assert_array_equal(output(vae, many[rows]), expected[rows])


EVERY_OUTPUT = OUTPUTS | {
    "sample": lambda vae, X: vae.sample(len(X), random_state=0),
    "mean of samples": lambda vae, X: vae.sample(len(X), random_state=0, mean=True),
}


@pytest.mark.parametrize(
    ("likelihood", "hidden"), [*((own, 8) for own in LIKELIHOODS), (Gaussian(), (301, 99))], ids=str
)
def test_several_blocks_give_the_same_numbers_on_any_number_of_threads(quick, likelihood, hidden):
    rng = np.random.default_rng(0)
    many = suited(rng.normal(size=(5000, 7)), likelihood)
    vae = quick(likelihood=likelihood, hidden_layer_sizes=hidden, activation="silu", max_iter=1)
    vae.set_params(n_score_draws=16).fit(many[:60])
    for output in EVERY_OUTPUT.values():
        with threadpool_limits(1, user_api="openmp"):
            expected = output(vae, many)
        for n_threads in (2, 6):
            with threadpool_limits(n_threads, user_api="openmp"):
                np.testing.assert_array_equal(output(vae, many), expected)
                with sklearn.config_context(working_memory=1):
                    np.testing.assert_array_equal(output(vae, many), expected)


@pytest.mark.parametrize(("working_memory", "n_threads"), [(1, 1), (1024, 2)])
@pytest.mark.usefixtures("two_threads")
def test_there_are_as_many_threads_as_torch_has_and_as_fit_into_working_memory(
    X, quick, monkeypatch, working_memory, n_threads
):
    vae = quick(hidden_layer_sizes=(128,)).fit(X)
    asked, map_rows = [], blocks.map_rows
    monkeypatch.setattr(
        blocks, "map_rows", lambda *args: (asked.append(args[-1]), map_rows(*args))[1]
    )
    with sklearn.config_context(working_memory=working_memory):
        vae.transform(np.tile(X, (40, 1)))
    assert asked == [n_threads]


def peak_of_arrays(function):
    """Result, and largest size in bytes of all arrays that numpy held at a time meanwhile."""
    tracemalloc.start()
    try:
        result = function()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("likelihood", "dtype"), [(Gaussian(), np.float32), (Bernoulli(), np.float64)], ids=str
)
@pytest.mark.usefixtures("two_threads")
def test_no_array_but_the_result_grows_with_the_number_of_rows(quick, likelihood, dtype):
    X = np.random.default_rng(0).random((200_000, 20), dtype=np.float32).astype(dtype)
    vae = quick(likelihood=likelihood, n_components=1, max_iter=1, n_score_draws=1).fit(X[:100])
    Z = vae.transform(X)
    calls = [
        lambda: vae.transform(X),
        lambda: vae.inverse_transform(Z),
        lambda: vae.score_samples(X),
        lambda: vae.sample(len(X), random_state=0),
    ]
    for call in calls:
        result, peak = peak_of_arrays(call)
        assert peak <= result.nbytes + 6 * 2**20  # X has 15 or 30 MiB


@any_likelihood
def test_one_seed_gives_one_model_in_clones_refits_and_pickles(X, quick, likelihood):
    X = suited(X, likelihood)
    vae = quick(likelihood=likelihood).fit(X)
    assert_same_state(vae, clone(vae).fit(X))
    assert_same_state(vae, clone(vae).fit(X).fit(X))
    loaded = pickle.loads(pickle.dumps(vae))
    assert_same_state(vae, loaded)
    for output in OUTPUTS.values():
        np.testing.assert_array_equal(output(loaded, X), output(vae, X))
    np.testing.assert_array_equal(loaded.sample(5, random_state=1), vae.sample(5, random_state=1))


# --- what comes back ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_of_fit_comes_back_and_transform_is_the_mean_of_encode(X, quick, dtype):
    X = X.astype(dtype)
    vae = quick().fit(X)
    Z, (mean, std) = vae.transform(X), vae.encode(X)
    for same in (Z, clone(vae).fit_transform(X)):
        np.testing.assert_array_equal(same, mean)
    assert std.shape == mean.shape == (60, 2)
    assert (std > 0).all()
    assert {array.dtype for array in (Z, mean, std)} == {np.dtype(dtype)}
    assert vae.inverse_transform(Z).dtype == vae.sample(3).dtype == dtype
    assert vae.score_samples(X).dtype == np.float64


@pytest.mark.parametrize(
    ("columns", "dtype"),
    [
        (list("abcd"), np.float32),
        ([3, 1, 2, 0], np.float64),
        (pd.MultiIndex.from_product([["a", "b"], ["c", "d"]]), np.float64),
    ],
    ids=["names", "numbers", "two levels"],
)
def test_a_pandas_frame_comes_back_with_columns_dtype_and_index(X, quick, columns, dtype):
    frame = pd.DataFrame(X.astype(dtype), columns=columns, index=[f"r{i}" for i in range(60)])
    vae = quick().set_output(transform="pandas").fit(frame)
    Z = vae.transform(frame)
    assert list(Z.columns) == ["vaetransformer0", "vaetransformer1"]
    back, sampled = vae.inverse_transform(Z), vae.sample(3, random_state=0)
    for rows, index in ((back, frame.index), (sampled, range(3))):
        pd.testing.assert_index_equal(rows.columns, frame.columns)
        assert list(rows.index) == list(index)
    assert set(back.dtypes) == {np.dtype(dtype)}
    np.testing.assert_array_equal(back, quick().fit(X.astype(dtype)).inverse_transform(Z))
    for form in (np.asarray, np.ndarray.tolist, tuple):  # of latent rows without an index
        rows = vae.inverse_transform(form(Z.to_numpy()))
        np.testing.assert_allclose(rows, back, rtol=1e-6)
        assert list(rows.index) == list(range(60))
    # An array's model forgets the names.
    vae.set_output(transform="default").fit(X)
    assert not hasattr(vae, "feature_names_in_")
    assert type(vae.inverse_transform(vae.transform(X))) is np.ndarray


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_polars_frame_comes_back_with_columns_and_dtype(X, quick, dtype):
    frame = pl.DataFrame(X.astype(dtype), schema=list("abcd"))
    vae = quick().set_output(transform="polars").fit(frame)
    Z = vae.transform(frame)
    expected = quick().fit(X.astype(dtype)).inverse_transform(Z.to_numpy())
    np.testing.assert_allclose(vae.inverse_transform(Z), expected, rtol=1e-6)
    for result in (vae.inverse_transform(Z), vae.sample(60)):
        assert isinstance(result, pl.DataFrame)
        assert result.schema == frame.schema


def test_a_model_of_an_array_gives_arrays_even_for_frames(X, quick):
    vae = quick().fit(X)
    Z = pd.DataFrame(vae.transform(X), index=np.arange(60) + 7)
    assert type(vae.inverse_transform(Z)) is np.ndarray
    assert type(vae.sample()) is np.ndarray


# --- sample -------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["per_feature", "shared", 0.5])
def test_samples_have_the_observation_noise_and_the_mean_has_none(X, quick, noise):
    vae = quick(likelihood=Gaussian(noise)).fit(X)
    n_samples = 20_000
    drawn = vae.sample(n_samples, random_state=0)
    mean = vae.sample(n_samples, random_state=0, mean=True)
    residual = (drawn - mean) / np.sqrt(vae.noise_variance_)  # the same z in both
    tolerance = 5 / np.sqrt(n_samples)
    np.testing.assert_allclose(residual.mean(axis=0), 0, atol=tolerance)
    np.testing.assert_allclose(np.cov(residual.T), np.eye(4), atol=np.sqrt(2) * tolerance)
    assert scipy.stats.kstest(residual.ravel(), "norm").pvalue > 1e-4
    np.testing.assert_allclose(residual.T @ (mean - mean.mean(axis=0)) / n_samples, 0, atol=0.2)


def test_the_mean_of_samples_is_decoded_from_the_prior(X, quick):
    vae = quick(hidden_layer_sizes=(), n_components=3).fit(X)
    origin = vae.inverse_transform(np.zeros((1, 3)))
    slopes = vae.inverse_transform(np.eye(3)) - origin
    drawn = vae.sample(20_000, random_state=0, mean=True)
    z = (drawn - origin) @ np.linalg.pinv(slopes)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(np.cov(z.T), np.eye(3), atol=0.05)
    assert scipy.stats.kstest(z.ravel(), "norm").pvalue > 1e-4


def test_noise_per_sample_is_drawn_with_the_variance_of_the_row(X, quick):
    vae = quick(likelihood=Gaussian("per_sample"), max_iter=50).fit(X)
    drawn = vae.sample(20_000, random_state=0)
    mean = vae.sample(20_000, random_state=0, mean=True)
    module = vae.to_module()
    z = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    raw = module.decoder(z).detach()
    variance = module.likelihood._mean_variance(module.observation, raw)[1].detach().numpy()
    variance = variance * vae.state_["scale"] ** 2
    np.testing.assert_allclose((drawn - mean).var(axis=0), variance.mean(axis=0), rtol=0.05)


@any_likelihood
def test_the_first_samples_are_the_same_however_many_follow(X, quick, likelihood):
    X = suited(X, likelihood)
    for n_components, mean in [(1, True), (2, False), (3, True), (3, False)]:
        vae = quick(likelihood=likelihood, n_components=n_components, max_iter=1).fit(X)
        many = vae.sample(4100, random_state=5, mean=mean)
        for n_samples in (1, 2, 7, 8, 9, 16, 33, 100, 2047, 2048, 2049, 4097):
            few = vae.sample(n_samples, random_state=5, mean=mean)
            np.testing.assert_array_equal(few, many[:n_samples])


def test_no_two_blocks_of_samples_have_the_same_latent_rows_or_noise(X, quick):
    vae = quick().fit(X)
    drawn, mean = (vae.sample(3 * 2048, random_state=0, mean=mean) for mean in (False, True))
    assert len(np.unique(drawn, axis=0)) == len(drawn)
    blocks = np.split(drawn - mean, 3)  # 2048 rows each
    for one, other in itertools.combinations(blocks, 2):
        for column in range(4):
            # Five standard errors of a correlation of 0.
            assert abs(np.corrcoef(one[:, column], other[:, column])[0, 1]) < 5 / np.sqrt(2048)


def test_sample_draws_one_row_and_reads_the_global_generator_or_its_own_on(X, quick):
    vae = quick().fit(X)
    generator = np.random.RandomState(0)
    np.random.seed(0)
    first, second = vae.sample(), vae.sample()
    assert first.shape == (1, 4)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(vae.sample(1, generator), first)
    np.testing.assert_array_equal(vae.sample(1, generator), second)


# --- skvae.sample -------------------------------------------------------------------------


def test_sample_of_a_pipeline_is_in_the_units_of_its_input(X, quick):
    pipe = make_pipeline(RobustScaler(), "passthrough", quick(max_iter=100)).fit(X)
    drawn = skvae.sample(pipe, 500, random_state=0)
    expected = pipe[0].inverse_transform(pipe[-1].sample(500, random_state=0))
    np.testing.assert_array_equal(drawn, expected)
    assert (abs(drawn.mean(axis=0) - X.mean(axis=0)) < X.std(axis=0)).all()
    mean = skvae.sample(pipe, 500, random_state=0, mean=True)
    assert (mean.std(axis=0) < drawn.std(axis=0)).all()


def test_sample_of_pipelines_within_a_pipeline_inverts_all_steps(X, quick):
    vae = quick().fit(X)
    drawn = skvae.sample(vae, 3, random_state=1)
    np.testing.assert_array_equal(drawn, vae.sample(3, random_state=1))
    inner = make_pipeline(StandardScaler(), quick())
    pipe = make_pipeline(make_pipeline(RobustScaler(), None, StandardScaler()), inner)
    with pytest.raises(NotFittedError):
        skvae.sample(pipe)
    drawn = skvae.sample(pipe.fit(X), 5, random_state=0)
    expected = pipe[0].inverse_transform(skvae.sample(inner, 5, random_state=0))
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (make_pipeline(StandardScaler(), FunctionTransformer(np.tanh)), "functiontransformer"),
        (FunctionTransformer(np.cbrt), "functiontransformer"),
        (make_pipeline(StandardScaler(), Normalizer()), "normalizer"),
        (SimpleImputer(add_indicator=True), "simpleimputer"),
    ],
)
def test_sample_refuses_steps_whose_inverse_is_none_of_new_rows(X, quick, step, name):
    if name == "simpleimputer":
        X[0, 0] = np.nan
    pipe = make_pipeline(step, quick()).fit(X)
    with pytest.raises(TypeError, match=f"Step '{name}' of the Pipeline has no inverse,"):
        skvae.sample(pipe, 3)


@pytest.mark.parametrize(
    "estimator", [StandardScaler(), make_pipeline(VAETransformer(), StandardScaler()), None]
)
def test_sample_refuses_what_does_not_end_in_a_vae(estimator):
    with pytest.raises(TypeError, match="expects a VAETransformer, a Pipeline that ends in one"):
        skvae.sample(estimator)


def test_sample_of_a_search_is_that_of_its_best_estimator_if_it_has_one(X, quick):
    search = GridSearchCV(make_pipeline(StandardScaler(), quick()), {}, cv=2).fit(X)
    drawn = skvae.sample(search, 3, random_state=1)
    np.testing.assert_array_equal(drawn, skvae.sample(search.best_estimator_, 3, random_state=1))
    without = clone(search).set_params(refit=False).fit(X)
    for unknown in (without, clone(search)):
        with pytest.raises(TypeError, match="a search over either that was fitted, with refit=Tr"):
            skvae.sample(unknown)


# --- history, warm-up, early stopping -----------------------------------------------------

TERMS = ["loss", "reconstruction", "kl", "negative_elbo", "beta"]


@pytest.mark.parametrize("early_stopping", [False, True])
def test_history_has_every_term_of_every_epoch(X, quick, early_stopping):
    vae = quick(beta=3.0, beta_warmup=0.6, max_iter=5, early_stopping=early_stopping).fit(X)
    history = vae.history_
    prefixes = ["", "validation_"] if early_stopping else [""]
    assert list(history) == [prefix + term for prefix in prefixes for term in TERMS]
    assert vae.n_iter_ == 5
    for values in history.values():
        assert type(values) is np.ndarray
        assert values.shape == (5,)
        assert np.isfinite(values).all()
    assert all((history[prefix + "kl"] >= 0).all() for prefix in prefixes)
    assert pd.DataFrame(history).shape == (5, 5 * len(prefixes))


def test_history_reports_the_elbo_that_the_score_measures(X, quick):
    vae = quick(learning_rate=1e-9, learning_rate_schedule="constant", max_iter=400)
    seen = vae.fit(X).history_["negative_elbo"]  # 400 looks at the first weights
    np.testing.assert_allclose(seen.mean(), -vae.score(X), atol=5 * seen.std() / 20)


@pytest.mark.parametrize(
    ("share", "max_iter"),
    [(0, 1), (0.3, 7), (0.5, 1), (0.5, 10), (0.99, 2), (0.99, 10), (np.nextafter(1, 0), 3)],
)
def test_beta_rises_to_its_full_weight_before_the_end(X, quick, share, max_iter):
    vae = quick(beta=2.0, beta_warmup=share, max_iter=max_iter).fit(X)
    beta = vae.history_["beta"]
    assert beta[-1] == 2.0
    assert (np.diff(beta) >= 0).all()
    assert (beta > 0).all()
    assert np.sum(beta < 2.0) == int(share * max_iter)


def test_the_weights_of_the_best_epoch_are_restored(X, quick):
    vae = quick(
        likelihood=Gaussian("per_feature"),
        network=MLP(linear=False),  # which factor analysis is not part of
        early_stopping=True,
        learning_rate=0.1,
        learning_rate_schedule="constant",
        n_iter_no_change=5,
        max_iter=300,
    ).fit(X)
    best = int(np.argmin(vae.history_["validation_loss"])) + 1
    assert best < vae.n_iter_ < 300
    assert vae.kept_iter_ == best
    shorter = clone(vae).set_params(max_iter=best)
    with pytest.warns(ConvergenceWarning, match=f"Maximum number of epochs \\({best}\\)"):
        shorter.fit(X)
    assert_same_state(vae, shorter)


# --- units are those of the rows that are trained on ------------------------------------------


def held_out_of(vae, X, **more):
    """Places of the rows that a fit holds out."""
    return np.sort(prepare(vae, X, **more)[0].held_out)


@pytest.mark.parametrize("likelihood", [Gaussian("per_feature"), Bernoulli()], ids=str)
def test_units_are_those_of_the_rows_that_are_trained_on(X, quick, likelihood):
    X = suited(X, likelihood)
    vae = quick(
        likelihood=likelihood, network=MLP(linear=False), early_stopping=True, max_iter=1
    ).fit(X)
    out = held_out_of(vae, X)
    assert len(out) == 6
    training = np.delete(X, out, axis=0)
    alone = clone(vae).set_params(early_stopping=False).fit(training).state_
    for name in ("location", "scale", "varies"):
        np.testing.assert_allclose(vae.state_[name], alone[name], rtol=1e-12)
    # A row that is held out moves no unit, and none of the weights of an epoch.
    moved = X.copy()
    moved[out] = 0.5 * moved[out]
    assert_same_state(vae, clone(vae).fit(moved))
    if likelihood != Bernoulli():
        np.testing.assert_allclose(vae.state_["location"], training.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(vae.state_["scale"], training.std(axis=0), rtol=1e-12)


@pytest.mark.parametrize("noise", ["per_sample", "shared"])
def test_a_column_that_only_held_out_rows_have_is_constant_and_wrecks_nothing(X, quick, noise):
    vae = quick(likelihood=Gaussian(noise), early_stopping=True, max_iter=30)
    column = np.zeros((60, 1))
    column[held_out_of(vae, X)[:2]] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of values beside the constant
        fitted = vae.fit(np.hstack([X, column]))
        plain = clone(vae).fit(X)
    assert fitted.state_["scale"][4] == 0
    assert np.isfinite(fitted.history_["validation_loss"]).all()
    # Its values cost the held-out rows nothing, so that they judge about what they judge without
    # it: one standard deviation of four columns away, and not thousands.
    best = [vae.history_["validation_loss"].min() for vae in (fitted, plain)]
    assert best[0] < best[1] + 3


def test_rows_of_fit_that_were_held_out_may_differ_from_a_constant_and_the_words_are_true(X, quick):
    vae = quick(early_stopping=True)
    X[:, 1] = 0.5
    row = held_out_of(vae, X)[2]
    X[row, 1] = 7.0
    vae.fit(X)
    what = f"constant of a column in the rows that fit trained on: 7 in column 1 \\(1 row: {row}\\)"
    with pytest.warns(UserWarning, match=what):
        scores = vae.score_samples(X)
    # log(n + 1) nats, with n = 54 rows trained on.
    same = X.copy()
    same[row, 1] = 0.5
    cost = vae.score_samples(same) - scores
    np.testing.assert_allclose(cost[row], np.log(55), rtol=1e-9)
    assert (np.delete(cost, row) == 0).all()


@pytest.mark.parametrize(
    ("where", "value", "noise"),
    [
        ("held out", 1e8, "per_sample"),
        ("held out", 1e20, "shared"),
        ("held out", -1e300, "per_sample"),
        ("trained on", 1e8, "shared"),
        ("trained on", 1e20, "per_sample"),
        ("trained on", -1e300, "shared"),
        ("nothing held out", 1e39, "per_sample"),
        ("nothing held out", -1e300, "per_sample"),
        ("nothing held out", np.finfo(np.float64).max, "shared"),
    ],
)
def test_a_sentinel_is_named_wherever_it_is(X, quick, where, value, noise):
    vae = quick(likelihood=Gaussian(noise), early_stopping=where != "nothing held out")
    out = held_out_of(vae, X)
    row = out[1] if where == "held out" else np.delete(np.arange(60), out)[3]
    X[row, 2] = value
    what = re.escape(f"{value:.10g} in column 2 (1 row)")
    with pytest.warns(UserWarning, match=f"X has values .* {what}"):
        vae.fit(X)
    assert_finite(vae, X)
    assert all(np.isfinite(values).all() for values in vae.history_.values())


@pytest.mark.parametrize("weighted", [False, True])
def test_a_sentinel_fits_the_same_whichever_rows_are_held_out(X, quick, weighted):
    X[7, 2] = 1e20
    weight = np.linspace(1, 2, 60) if weighted else None
    spread, n_out = np.std(X[:, 2]), 0
    for seed in range(6):
        vae = quick(early_stopping=True, validation_fraction=0.4, random_state=seed)
        n_out += 7 in held_out_of(vae, np.where(X < 1e20, X, 0.0))
        with pytest.warns(UserWarning, match=r"farther .* 1e\+20 in column 2 \(1 row\)"):
            vae.fit(X, sample_weight=weight)
        assert vae.state_["scale"][2] == pytest.approx(spread, rel=0.5)
        # The unit of another column is that of the rows trained on.
        assert vae.state_["scale"][1] < 100
        assert np.isfinite(vae.score_samples(X)).all()
    assert 0 < n_out < 6


def test_holes_of_held_out_rows_alone_give_the_encoder_a_mask(X, quick):
    vae = quick(early_stopping=True)
    X[held_out_of(vae, X)[0], 1] = np.nan
    fitted = vae.fit(X)
    assert fitted.state_["encoder.0.weight"].shape[1] == 8
    assert np.isfinite(fitted.history_["validation_loss"]).all()


# --- groups -----------------------------------------------------------------------------------


def patients(n_groups, seed, n_visits=10):
    """Visits of patients, of whom each is at a place of its own: rows and their groups."""
    rng = np.random.default_rng(seed)
    loading = np.random.default_rng(7).normal(size=(3, 8))
    places = rng.normal(size=(n_groups, 3)) @ loading + rng.normal(size=(n_groups, 8))
    group = np.repeat(np.arange(n_groups), n_visits)
    return places[group] + 0.1 * rng.normal(size=(len(group), 8)), group


def test_groups_are_held_out_whole_whatever_names_them():
    X, group = patients(30, 0)
    vae = VAETransformer(2, random_state=0)
    out = held_out_of(vae, X, groups=group)
    assert len(out) == 30
    assert len(set(group[out])) == 3
    for names in (
        np.array([f"patient {g}" for g in group]),
        pd.Series(group * 1.5, index=np.arange(300) + 7),
        [(g + 5) * 2 for g in group.tolist()],
    ):
        same = held_out_of(vae, X, groups=names)
        assert len(set(group[same])) == 3
        assert len(same) == 30


def test_a_score_of_new_groups_is_better_with_groups():
    (X, group), (new, _) = patients(30, 10), patients(200, 1, n_visits=2)
    vae = VAETransformer(4, hidden_layer_sizes=(128, 128), max_iter=60, random_state=0)
    with_groups, without = vae.fit(X, groups=group).score(new), clone(vae).fit(X).score(new)
    # -14.9 and -18.9 here; after 100 epochs -14.9 and -36.6, with other patients -14.9 and -82.9.
    assert with_groups > without + 2


def test_groups_do_nothing_where_no_row_is_held_out(X, quick):
    assert_same_state(quick().fit(X), quick().fit(X, groups=np.arange(60) // 5))


def test_with_one_group_each_row_stands_for_itself(X, quick):
    vae = quick(early_stopping=True, max_iter=3)
    expected = clone(vae).fit(X)
    assert_same_state(expected, clone(vae).fit(X, groups=["a"] * 60))
    weight, group = np.repeat([0.0, 1.0], [20, 40]), np.repeat([5, 7], [20, 40])
    one = clone(vae).fit(X, sample_weight=weight, groups=group)
    assert_same_state(one, clone(vae).fit(X, sample_weight=weight))


DAYS = pd.date_range("2024-01-01", periods=12)


@pytest.mark.parametrize(
    "labels",
    [
        DAYS,
        DAYS.tz_localize("Europe/Berlin"),
        pd.Series(DAYS),
        pl.Series(DAYS.date.tolist()),
        DAYS.to_numpy(),
        DAYS.to_period("D"),
        (DAYS - DAYS[0]).to_numpy(),
        list(DAYS.date),
        [(i // 5, str(i)) for i in range(12)],
        pd.MultiIndex.from_product([[1, 2, 3], list("abcd")]),
        pd.Categorical([f"p{i}" for i in range(12)]),
        torch.arange(12),
        np.arange(12).reshape(-1, 1),
        np.ma.array(np.arange(12), mask=False),
        [f"p{i}" if i % 2 else i for i in range(12)],
    ],
    ids=lambda labels: type(labels).__name__,
)
def test_groups_are_labels_of_any_kind(X, labels):
    group = np.arange(60) % 12
    if isinstance(labels, list):
        given = [labels[i] for i in group]
    elif isinstance(labels, pd.Series):
        given = labels.iloc[group]
    else:
        given = labels[group]
    numbered = weighting._number_groups(given, X)
    same = numbered[:, None] == numbered
    np.testing.assert_array_equal(same, group[:, None] == group)
    assert numbered.max() == 11


def test_a_column_of_tuples_has_groups(X, quick):
    frame = pd.DataFrame({"group": [(i // 10, "a") for i in range(60)]})
    fitted = quick(early_stopping=True).fit(X, groups=frame["group"])
    assert_same_state(fitted, quick(early_stopping=True).fit(X, groups=np.arange(60) // 10))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (np.arange(59), r"groups has 59 labels, but X has 60 rows\. Give one label for each row"),
        ("patient", r"groups is the string 'patient'.*pass the column of that name, X\['patient'"),
        (scipy.sparse.csr_array(np.ones((60, 1))), r"groups is a sparse matrix.*toarray\(\)"),
        (np.ones((60, 2)), r"groups has 2 columns.*list\(map\(tuple, groups"),
        (pd.DataFrame({"a": range(60), "b": range(60)}), r"groups has 2 columns.*groupby"),
        ({"a": 1}, r"groups is of type dict and shape \(\)\. Expected one label for each row"),
        (5, "groups is of type int and shape"),
        ([{1}] * 60, "groups has a label of type set in row 0.*Make it a number, a string"),
        ([np.ones(2)] * 60, "groups has a label of type ndarray in row 0"),
    ],
)
def test_groups_that_are_none_are_refused_with_words_about_groups(X, quick, groups, message):
    with pytest.raises(ValueError, match=message):
        quick().fit(X, groups=groups)


@pytest.mark.parametrize(
    "hole", [None, np.nan, pd.NA, pd.NaT, np.datetime64("NaT")], ids=lambda hole: repr(hole)
)
def test_a_row_without_a_group_is_named(X, quick, hole):
    groups = np.array([f"p{i}" for i in range(60)], dtype=object)
    if isinstance(hole, np.datetime64):
        groups = np.arange(60).astype("datetime64[ns]")
    groups[17] = hole
    with pytest.raises(ValueError, match=r"groups has no value in row 17.*value of its own"):
        quick().fit(X, groups=groups)


def test_groups_of_rows_without_weight_are_left_out(X, quick):
    vae, group = quick(early_stopping=True, max_iter=3), np.arange(60) // 3
    weight = np.where(group < 5, 0.0, 1.0)
    kept = weight > 0
    fitted = clone(vae).fit(X, None, weight, group)
    assert_same_state(fitted, clone(vae).fit(X[kept], groups=group[kept]))


def test_groups_reach_the_fit_of_a_pipeline_by_name_and_by_routing(X, quick):
    X, group = np.vstack([X, X + 1]), np.arange(120) // 6
    vae = quick(early_stopping=True, max_iter=3)
    Y = StandardScaler().fit_transform(X)
    expected = clone(vae).fit(Y, groups=group)
    pipeline = make_pipeline(StandardScaler(), clone(vae))
    assert_same_state(pipeline.fit(X, vaetransformer__groups=group)[-1], expected)
    with config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(StandardScaler(), clone(vae).set_fit_request(groups=True))
        assert_same_state(pipeline.fit(X, groups=group)[-1], expected)


@pytest.mark.parametrize("container", [np.asarray, pd.DataFrame], ids=["array", "DataFrame"])
def test_a_target_that_looks_like_rows_to_validate_on_is_refused(X, quick, container):
    given = container(X[:40]), container(X[40:])
    with pytest.raises(ValueError, match=r"y has 4 columns, as X has, and 20 rows.*groups\."):
        quick().fit(*given)
    with pytest.raises(ValueError, match="looks like rows to validate on"):
        quick().fit_transform(*given)
    # Names tell it, whatever the number of rows.
    frame = pd.DataFrame(X, columns=list("abcd"))
    with pytest.raises(ValueError, match="looks like rows to validate on"):
        quick().fit(frame[:30], frame[30:])


def test_other_targets_are_ignored(X, quick):
    expected = quick().fit(X)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(60, 4)), columns=list("abcd"))
    numbers = X, rng.integers(3, size=60), X[:, 0], rng.normal(size=(60, 4)), X[:, :3], frame
    for y in (*numbers, ["any", "thing"], np.full(3, np.nan), "y", object()):
        vae = quick().fit(X, y)
        assert_same_state(vae, expected)
        assert vae.score(X, y) == expected.score(X)


# --- how a fit ended --------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["per_feature", "shared"])
def test_a_linear_model_that_ends_short_of_its_optimum_says_so(noise):
    X = load_wine().data[:40]
    vae = VAETransformer(
        2, likelihood=Gaussian(noise), hidden_layer_sizes=(), early_stopping=False, random_state=0
    )
    match = r"short of factor analysis.*so factor analysis is kept. Lower learning_rate"
    with pytest.warns(ConvergenceWarning, match=match):
        vae.set_params(learning_rate=1.0, max_iter=2).fit(X)
    assert vae.kept_iter_ == 0
    best = clone(vae).set_params(learning_rate=1e-6).fit(X)  # hardly a step away
    assert vae.score(X) == pytest.approx(best.score(X), abs=1e-3)
    # A fit that comes there, one that keeps factor analysis itself, and others in which nobody
    # knows the optimum.
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        clone(vae).set_params(max_iter=300, learning_rate=3e-3).fit(X)
        clone(vae).set_params(early_stopping=True).fit(X)
        for params in ({"hidden_layer_sizes": (4,)}, {"beta": 2.0}, {"likelihood": "laplace"}):
            clone(vae).set_params(**params).fit(X)


# --- noise_variance_ ----------------------------------------------------------------------


def test_noise_variance_is_one_per_feature_one_for_all_or_the_one_given(X, quick):
    per_feature = quick(likelihood=Gaussian("per_feature")).fit(X).noise_variance_
    assert per_feature.shape == (4,)
    assert per_feature.dtype == np.float64
    shared = quick(likelihood=Gaussian("shared")).fit(X).noise_variance_
    assert type(shared) is float
    assert quick(likelihood=Gaussian(0.3)).fit(X).noise_variance_ == 0.3
    per_feature_moved = quick(likelihood=Gaussian("per_feature")).fit(1024 * X).noise_variance_
    np.testing.assert_allclose(per_feature_moved, 1024**2 * per_feature, rtol=1e-5)


@pytest.mark.parametrize("likelihood", [Gaussian("per_sample"), Bernoulli()], ids=str)
def test_noise_variance_is_absent_where_there_is_none(X, quick, likelihood):
    X = suited(X, likelihood)
    vae = quick(likelihood=likelihood)
    assert not hasattr(vae, "noise_variance_")
    with pytest.raises(AttributeError, match="no noise_variance_ before fit"):
        vae.noise_variance_  # noqa: B018
    assert not hasattr(vae.fit(X), "noise_variance_")
    with pytest.raises(AttributeError, match="has no noise variance of its own"):
        vae.noise_variance_  # noqa: B018


# --- to_module ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("likelihood", "dtype"),
    [*zip(LIKELIHOODS, [torch.float32, torch.float64] * 3, strict=False)],
    ids=str,
)
def test_the_module_encodes_and_decodes_in_the_units_of_x(X, quick, likelihood, dtype):
    X = suited(X, likelihood)
    X[:, 2] = 0.25
    vae = quick(likelihood=likelihood).fit(X)
    module = vae.to_module()
    assert isinstance(module, torch.nn.Module)
    mean, std = module.encode(torch.tensor(X, dtype=dtype))
    for tensor, array in zip((mean, std), vae.encode(X), strict=True):
        np.testing.assert_allclose(tensor.detach(), array, rtol=1e-4, atol=1e-5)
    decoded = module.decode(mean).detach()
    np.testing.assert_allclose(decoded, vae.inverse_transform(vae.transform(X)), rtol=1e-4)


def test_the_module_can_be_differentiated_row_by_row(X, quick):
    module = quick().fit(X).to_module().double()
    x = torch.tensor(X[:5])

    def mean(row):
        return module.encode(row[None])[0][0]

    slopes = torch.vmap(torch.func.jacrev(mean))(x)
    expected = torch.stack([torch.autograd.functional.jacobian(mean, row) for row in x])
    torch.testing.assert_close(slopes, expected)


def test_training_the_module_leaves_the_estimator_alone(X, quick):
    vae = quick().fit(X)
    before, hashed = vae.score_samples(X), joblib.hash(vars(vae))
    module = vae.to_module()
    assert module is not vae.to_module()
    rows = torch.tensor(X)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    loss = (module.decode(module.encode(rows)[0]) - rows).square().mean()
    loss.backward()
    optimiser.step()
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(1)
    np.testing.assert_array_equal(vae.score_samples(X), before)
    assert joblib.hash(vars(vae)) == hashed
    assert not np.allclose(module.encode(rows)[0].detach(), vae.transform(X))


# --- warm_start ---------------------------------------------------------------------------


def test_warm_start_continues_with_the_fitted_weights(X, quick):
    vae = quick(warm_start=True, learning_rate=0.01).fit(X)
    first = {name: values.copy() for name, values in vae.history_.items()}
    vae.fit(X)
    assert vae.n_iter_ == 8
    for name, values in vae.history_.items():
        assert values.shape == (8,)
        np.testing.assert_array_equal(values[:4], first[name])
    assert vae.history_["loss"][4] < first["loss"][0]
    assert vae.score(X) > quick(learning_rate=0.01).fit(X).score(X)


def test_warm_start_without_a_step_leaves_the_model_as_it_was(X, quick):
    vae = quick(warm_start=True).fit(X)
    scores = vae.score_samples(X)
    vae.set_params(learning_rate=1e-30).fit(X * 3 + 1)  # its units are those of the first fit
    np.testing.assert_array_equal(vae.score_samples(X), scores)


def test_without_warm_start_or_an_earlier_fit_a_fit_begins_anew(X, quick):
    vae, expected = quick().fit(X).fit(X[:, :3]), quick(warm_start=True).fit(X[:, :3])
    assert_same_state(vae, expected)
    assert vae.n_iter_ == expected.n_iter_ == 4
    assert vae.n_features_in_ == 3


@pytest.mark.parametrize(
    "changed",
    [
        {"n_components": 3},
        {"hidden_layer_sizes": (9,)},
        {"activation": "silu"},
        {"likelihood": "bernoulli"},
        {"likelihood": Gaussian("shared")},
    ],
    ids=str,
)
def test_warm_start_names_the_part_of_the_model_that_changed(X, quick, changed):
    X = suited(X, Bernoulli())
    vae = quick(warm_start=True).fit(X)
    vae.set_params(**changed)
    with unchanged(vae), pytest.raises(ValueError, match=f"whose {next(iter(changed))} is"):
        vae.fit(X)


# --- a fit that fails ---------------------------------------------------------------------


@contextlib.contextmanager
def unchanged(estimator):
    """Check that the block leaves all attributes the same objects, of the same content."""
    before = dict(vars(estimator))
    hashed = joblib.hash(before)
    yield
    assert vars(estimator).keys() == before.keys()
    for name, value in vars(estimator).items():
        assert value is before[name]
    assert joblib.hash(vars(estimator)) == hashed


def infinite(X):
    return np.where(np.arange(len(X))[:, None] == 7, np.inf, X)


FAILURES = {
    "bad data": ({}, infinite, "contains infinity"),
    "other columns": ({}, lambda X: pd.DataFrame(infinite(X), columns=list("abcd")), "infinity"),
    "bad parameter": ({"beta": -1}, np.copy, "'beta' parameter of VAETransformer must be"),
    "bad sizes": ({"hidden_layer_sizes": (8, 0)}, np.copy, "'hidden_layer_sizes' parameter"),
    "no such device": ({"device": "tpu"}, np.copy, "device='tpu' is not available"),
    "out of support": ({"likelihood": "bernoulli"}, np.copy, "expects values in"),
    "noise out of reach": ({"likelihood": Gaussian(1e-300)}, np.copy, "noise variance of 1e-300"),
    "no validation rows": (
        {"early_stopping": True, "validation_fraction": 0.01},
        np.copy,
        "validation set is too small: 0.01 of 60 rows",
    ),
    "divergence": (
        {"learning_rate": 1e6},
        np.copy,
        "not finite in epoch 1, at learning rate 1e.*Use a smaller learning_rate",
    ),
}


@pytest.mark.filterwarnings("ignore:X has feature names:UserWarning")
@pytest.mark.parametrize(("fitted", "warm_start"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("params", "spoil", "match"), FAILURES.values(), ids=FAILURES)
def test_a_failed_fit_leaves_the_estimator_as_it_was(
    X, quick, params, spoil, match, fitted, warm_start
):
    vae = quick(warm_start=warm_start)
    if fitted:
        scores = vae.fit(X).score_samples(X)
    vae.set_params(**params)
    if warm_start and "likelihood" in params:
        match = "whose likelihood is|expects values in"
    with unchanged(vae), pytest.raises(ValueError, match=match):
        vae.fit(spoil(X))
    if fitted:
        np.testing.assert_array_equal(vae.set_params(device="cpu").score_samples(X), scores)
    else:
        with pytest.raises(NotFittedError):
            vae.transform(X)


def test_a_loss_that_stops_being_finite_keeps_the_best_weights_and_warns(X, quick):
    vae = quick(learning_rate=30.0, max_iter=20)
    with pytest.warns(ConvergenceWarning, match=r"not finite in epoch \d+, at learning rate \d"):
        vae.fit(X)
    assert 1 <= vae.n_iter_ < 20
    assert np.isfinite(vae.history_["loss"]).all()
    assert np.isfinite(vae.score(X))
    assert all(np.isfinite(array).all() for array in vae.state_.values())


# --- the rest of the process --------------------------------------------------------------


def test_verbose_prints_a_line_an_epoch(X, quick, capsys):
    vae = quick(verbose=1).fit(X)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == vae.n_iter_ == 4
    for number, (line, loss) in enumerate(zip(lines, vae.history_["loss"], strict=True), 1):
        start, _, printed = line.partition(", loss = ")
        assert start == f"Iteration {number}"
        np.testing.assert_allclose(float(printed), loss, atol=1e-6)
    assert err == ""
    quick(verbose=True, early_stopping=True).fit(X)
    out, _ = capsys.readouterr()
    assert all("validation loss = " in line for line in out.splitlines())


# --- what is accepted ---------------------------------------------------------------------


def test_bernoulli_clips_what_is_outside_by_rounding(X, quick):
    X = suited(X, Bernoulli())
    vae = quick(likelihood="bernoulli").fit(X)
    rounded = X + np.where(X > 0, 9e-7, -9e-7)
    assert_same_state(quick(likelihood="bernoulli").fit(rounded), vae)
    np.testing.assert_array_equal(vae.score_samples(rounded), vae.score_samples(X))


# --- what is refused ----------------------------------------------------------------------


def put(value):
    """Function that puts a value in row 3, column 2."""

    def spoil(X):
        X = X.copy()
        X[3, 2] = value
        return X

    return spoil


DATA_METHODS = ["fit", "transform", "encode", "score_samples", "score"]


@pytest.mark.parametrize("method", DATA_METHODS[1:])
@pytest.mark.parametrize("row", [3, 2050])  # in the first block of rows, and in a later one
def test_a_value_too_far_from_the_data_is_named(X, quick, method, row):
    far = np.tile(X, (40, 1))
    far[row, 2] = 1e30
    if method.startswith("score"):
        with pytest.warns(UserWarning, match=rf"1e\+30 in column 2 \(1 row: {row}\)"):
            scores = np.atleast_1d(getattr(quick().fit(X), method)(far))
        assert np.flatnonzero(scores == -np.inf).tolist() == [row * (len(scores) > 1)]
        return
    with pytest.raises(ValueError, match=r"X has the value 1e\+30 in column 2:"):
        getattr(quick().fit(X), method)(far)
    frame, far = (pd.DataFrame(rows, columns=list("abcd")) for rows in (X, far))
    with pytest.raises(ValueError, match=r"X has the value 1e\+30 in column 2 \('c'\):"):
        getattr(quick().fit(frame), method)(far)


@pytest.mark.parametrize("method", DATA_METHODS)
def test_bernoulli_names_the_value_that_is_no_frequency(X, quick, method):
    X, value = suited(X, Bernoulli()), 1.25
    vae = quick(likelihood="bernoulli").fit(X)
    match = rf"expects values in \[0, 1\]. Got {value} in column 2\."
    with pytest.raises(ValueError, match=match):
        getattr(vae, method)(put(value)(X))
    frame, outside = (pd.DataFrame(rows, columns=list("abcd")) for rows in (X, put(value)(X)))
    vae = quick(likelihood="bernoulli").fit(frame)
    with pytest.raises(ValueError, match=rf"Got {value} in column 2 \('c'\)\."):
        getattr(vae, method)(outside)


@pytest.mark.parametrize("likelihood", [Gaussian(), Gaussian("shared"), Bernoulli()], ids=str)
@pytest.mark.parametrize(
    # Rounding of a few steps; bfloat16 has 8 bits.
    ("precision", "dtype", "tolerance"),
    [("float32", np.float32, 1e-4), ("bf16", np.float32, 0.1), ("float64", np.float64, 1e-4)],
)
def test_precision_is_that_of_the_weights_and_changes_results_by_rounding_only(
    X, quick, likelihood, precision, dtype, tolerance
):
    X = suited(X, likelihood)
    vae = quick(likelihood=likelihood, precision=precision).fit(X)
    for name, array in vae.state_.items():
        assert array.dtype == (np.float64 if name in ("location", "scale") else dtype)
    single = quick(likelihood=likelihood).fit(X)
    same = np.array_equal(vae.state_["encoder.0.weight"], single.state_["encoder.0.weight"])
    assert same == (precision == "float32")
    for output in OUTPUTS.values():
        expected = output(single, X)
        assert output(vae, X).dtype == expected.dtype
        np.testing.assert_allclose(output(vae, X), expected, rtol=tolerance, atol=tolerance)


def test_a_linear_model_is_factor_analysis_for_outliers_too(X, quick):
    # A network's encoder sees a bounded value, a linear one all of it.
    Z = np.repeat(X, 20, axis=0)
    Z[0] *= 100
    linear = quick(hidden_layer_sizes=(), n_components=1).fit(X)
    mean, _ = linear.encode(X[:2])
    far, _ = linear.encode(X[:2] * 100 - 99 * linear.state_["location"])
    centre, _ = linear.encode(linear.state_["location"][None])
    np.testing.assert_allclose(far - centre, 100 * (mean - centre), rtol=1e-4, atol=1e-4)


def test_a_column_that_is_constant_but_for_rounding_is_constant(X, quick):
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(50), size=len(X))
    whole = np.column_stack([X, shares.sum(axis=1)])
    assert np.ptp(whole[:, -1]) > 0
    vae = quick().fit(whole)
    assert vae.state_["scale"][-1] == 0
    changed = whole.copy()
    changed[:, -1] = 1.0 + 1e-15
    np.testing.assert_array_equal(vae.score_samples(changed), vae.score_samples(whole))


def test_one_hidden_layer_may_be_given_as_its_size(X, quick):
    one, same = quick(hidden_layer_sizes=5).fit(X), quick(hidden_layer_sizes=(5,)).fit(X)
    assert_same_state(one, same)


def test_a_warm_start_that_finds_nothing_better_ends_as_it_began(quick):
    X = load_wine().data
    vae = quick(max_iter=60, warm_start=True, early_stopping=True, learning_rate=5e-3).fit(X)
    before = vae.history_["validation_loss"].min(), vae.score(X)
    kept, n_iter = vae.kept_iter_, vae.n_iter_
    vae.set_params(max_iter=1, learning_rate=0.5, learning_rate_schedule="cosine").fit(X)
    assert vae.history_["validation_loss"][-1] > before[0]  # one giant step
    assert vae.score(X) == before[1]
    assert (vae.kept_iter_, vae.n_iter_) == (kept, n_iter + 1)


def test_the_epoch_that_was_kept_is_counted_over_all_fits(X, quick):
    vae = quick(warm_start=True).fit(X).fit(X)
    assert vae.kept_iter_ == vae.n_iter_ == 8
    vae = quick().partial_fit(X)
    assert vae.partial_fit(X).kept_iter_ == 2


class Unlearned(likelihoods.Likelihood):
    """Of its own making: normal values whose variance is that of their column."""

    def units(self, columns):
        return columns.mean, columns.std

    def log_prob(self, module, raw, x):
        return -0.5 * (x - raw) ** 2 - 0.5 * np.log(2 * np.pi)

    def mean(self, module, raw):
        return raw

    def sample(self, module, raw, generator):
        return raw + torch.randn(raw.shape, generator=generator)

    def variance(self, module):
        return torch.ones(1)


def test_a_likelihood_of_ones_own_may_have_a_noise_variance(X, quick):
    vae = quick(likelihood=Unlearned()).fit(X)
    np.testing.assert_allclose(vae.noise_variance_, X.var(axis=0), rtol=1e-12)


# --- what is asked for ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda vae, X: vae.transform(X), id="transform"),
        pytest.param(lambda vae, X: vae.encode(X), id="encode"),
        pytest.param(lambda vae, X: vae.sample_posterior(X), id="sample_posterior"),
        pytest.param(lambda vae, X: vae.inverse_transform(X), id="inverse_transform"),
        pytest.param(lambda vae, X: vae.score_samples(X), id="score_samples"),
        pytest.param(lambda vae, X: vae.score(X), id="score"),
        pytest.param(lambda vae, X: vae.sample(), id="sample"),
        pytest.param(lambda vae, X: vae.to_module(), id="to_module"),
        pytest.param(lambda vae, X: vae.get_feature_names_out(), id="get_feature_names_out"),
    ],
)
def test_every_method_says_when_fit_is_missing(X, quick, call):
    with pytest.raises(NotFittedError, match="This VAETransformer instance is not fitted yet"):
        call(quick(), X)


BAD_PARAMETERS = {
    "n_components": [0, 2.0, None, np.nan, np.inf],
    "likelihood": ["binomial", Gaussian, None],
    "prior": ["normal", 1, None],
    "posterior": ["full_rank", 1, None],
    "network": ["cnn", MLP, None, (MLP,), ("mlp", "mlp")],
    "hidden_layer_sizes": [
        *(0, -3, "8", None, (8, 0), (8, -1), (8.5,), ("8",), (0,), (2.0,), (True,)),
        *((16, (8,)), [[16, 8], [4, 4]]),
    ],
    "activation": ["sine", math.tanh, None],
    "beta": [-1, np.nan, np.inf, None, "1"],
    "beta_warmup": [-0.1, 1.0, np.nan, None],
    "n_beta_cycles": [0, 1.5, None],
    "free_bits": [-1, np.nan, np.inf, None],
    "n_importance_samples": [0, 1.5, None],
    "learning_rate": [0, -1, np.nan, np.inf, None],
    "learning_rate_schedule": ["linear", None],
    "weight_decay": [-1e-3, np.nan, np.inf, None],
    "max_grad_norm": [0, np.nan, np.inf],
    "batch_size": [0, "all", 1.5, None],
    "max_iter": [0, 1.5, np.inf, None],
    "early_stopping": ["yes", None],
    "validation_fraction": [0, 1.0, np.nan, None],
    "n_iter_no_change": [0, 1.5, None],
    "tol": [-1.0, np.nan, np.inf, None],
    "n_score_draws": [0, 1.5, None],
    "warm_start": ["no", None],
    "device": [None, 0],
    "precision": ["float16", np.float32, None],
    "random_state": ["seed", -1, 1.5],
    "verbose": [-1, "yes"],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{name}={value!r}")
        for name, values in BAD_PARAMETERS.items()
        for value in values
    ],
)
def test_a_parameter_out_of_its_range_is_named(X, quick, name, value):
    with pytest.raises(
        ValueError, match=f"The '{name}' parameter of VAETransformer must (be|hold)"
    ):
        quick(**{name: value}).fit(X)


def test_every_parameter_has_bad_values():
    assert BAD_PARAMETERS.keys() == VAETransformer().get_params().keys()


@pytest.mark.parametrize(
    ("n_samples", "error", "match"),
    [
        pytest.param(0, ValueError, "n_samples == 0, must be >= 1", id="none"),
        pytest.param(-1, ValueError, "n_samples == -1, must be >= 1", id="less than none"),
        pytest.param(1.5, TypeError, "n_samples must be an instance of", id="not whole"),
        pytest.param("3", TypeError, "n_samples must be an instance of", id="a string"),
    ],
)
def test_sample_refuses_what_is_no_number_of_rows(X, quick, n_samples, error, match):
    with pytest.raises(error, match=match):
        quick().fit(X).sample(n_samples)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_model_of_an_absent_device_is_loaded_and_computes_on_the_cpu(X, quick):
    vae = quick().fit(X)
    expected = vae.score_samples(X)
    loaded = pickle.loads(pickle.dumps(vae.set_params(device="cuda")))  # as it would be there
    with pytest.warns(UserWarning, match="'cuda' is not available.*Computing on the CPU") as caught:
        np.testing.assert_array_equal(loaded.score_samples(X), expected)
    assert len(caught) == 1


def test_one_row_that_counts_is_too_few_to_fit(X, quick):
    weight = np.eye(1, 60)[0]
    vae = quick().fit(X)
    with pytest.raises(ValueError, match=r"at least two rows\. Got n_samples = 1 with"):
        vae.fit(X, sample_weight=weight)
    assert vae.score(X, sample_weight=weight) == vae.score_samples(X)[0]


def test_the_last_epoch_is_a_warning_where_training_was_to_end_by_itself(X, quick):
    early, constant = {"early_stopping": True}, {"learning_rate_schedule": "constant"}
    with pytest.warns(ConvergenceWarning, match=r"Maximum number of epochs \(4\).*Increase max_i"):
        quick(**early, **constant).fit(X)
    # A warning would be an error: without rows held out nobody knows, and a rate that falls to 0
    # ends training by itself.
    quick(**constant).fit(X)
    quick(**early).fit(X)


# --- tables of every size and scale -----------------------------------------------------------


@pytest.mark.parametrize("magnitude", [1e-200, 1e39, 1e200])
def test_numbers_that_float32_does_not_hold_are_fitted(X, quick, magnitude):
    # No error: units are float64, so that fit has none that are too large.
    vae = quick(max_iter=30)
    score = vae.fit(X).score(X)
    Y = X * magnitude
    np.testing.assert_allclose(vae.fit(Y).score(Y), score - 4 * np.log(magnitude), atol=1e-3)
    assert np.isfinite(vae.inverse_transform(vae.transform(Y))).all()


@pytest.mark.parametrize(
    ("change", "noise"),
    [
        pytest.param(lambda X: np.full_like(X, 0.3), "per_feature", id="all constant"),
        pytest.param(lambda X: np.repeat(X[:1], 60, axis=0), "shared", id="one row many times"),
        pytest.param(lambda X: np.hstack([X, X]), "per_sample", id="every column twice"),
        pytest.param(
            lambda X: np.tile([[1.0, 1.0, 3.0], [2.0, 2.0, 5.0]], (30, 1)),
            "per_sample",
            id="rows and columns many times",
        ),
        pytest.param(
            lambda X: np.tile([[1.0, 1.0, 3.0], [2.0, 2.0, 5.0]], (30, 1)),
            0.5,
            id="rows and columns many times, and a given noise",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:All columns of X are constant:UserWarning")
def test_columns_and_rows_that_say_nothing_new_are_fitted(X, quick, change, noise):
    X = change(X)
    assert_finite(quick(likelihood=Gaussian(noise), max_iter=50).fit(X), X)


@pytest.mark.parametrize("n_rows", [2, 3, 50])
def test_two_rows_and_more_fit_with_the_defaults(X, n_rows):
    vae = VAETransformer(random_state=0).fit(X[:n_rows])
    assert np.isfinite(vae.score(X[:n_rows]))
    assert vae.transform(X[:1]).shape == (1, vae.n_components)


def test_a_batch_larger_than_the_data_is_one_batch(X, quick):
    assert_same_state(quick(batch_size=1000).fit(X), quick(batch_size=60).fit(X))


@pytest.mark.parametrize(
    ("n_features", "params", "likelihood"),
    [
        pytest.param(4, {"batch_size": 59}, Bernoulli(), id="a last batch of one row"),
        pytest.param(4, {"batch_size": 1}, Gaussian("shared"), id="batches of one row"),
        pytest.param(
            4,
            {"batch_size": 59, "network": MLP(dropout=0.2, layer_norm=True)},
            Gaussian("per_feature"),
            id="a last batch of one row that is normalised",
        ),
        pytest.param(4, {"n_components": 9}, Gaussian(), id="more components than features"),
        *(pytest.param(1, {}, own, id=f"one feature, {own}") for own in LIKELIHOODS),
        pytest.param(1, {"n_components": 1, "hidden_layer_sizes": 8}, Gaussian(), id="one of each"),
        pytest.param(4, {"hidden_layer_sizes": ()}, Bernoulli(), id="no hidden layer"),
        pytest.param(
            4, {"hidden_layer_sizes": np.array([8, 4])}, Gaussian(0.5), id="layers in an array"
        ),
    ],
)
def test_unusual_sizes_fit(X, quick, n_features, params, likelihood):
    X = suited(X, likelihood)[:, :n_features]
    vae = quick(likelihood=likelihood, **params).fit(X)
    assert np.isfinite(vae.score_samples(X)).all()
    assert vae.transform(X).shape == (60, params.get("n_components", 2))
    assert vae.inverse_transform(vae.transform(X)).shape == X.shape
    assert vae.sample(3).shape == (3, n_features)
