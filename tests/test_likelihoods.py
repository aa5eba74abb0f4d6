"""Likelihoods: densities, draws, units and gradients, against torch.distributions."""

import math
import pickle
import re
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from likelihood_laws import Case, LikelihoodLaws, Support, normals, stacked, start
from own_parts import Exponential, Nested
from scipy import stats
from torch import distributions as D
from torch.nn import functional as F

from skvae import VAETransformer, safetensors
from skvae._data.statistics import Moments, describe_columns
from skvae._data.units import Units, standardise
from skvae._data.words import UNNAMED, Labels
from skvae._model.rows import Batch
from skvae.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    Columns,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    Laplace,
    Likelihood,
    NegativeBinomial,
    Poisson,
    StudentT,
    ZeroInflated,
)

KINDS = ["per_feature", "shared", "per_sample", 0.5]


def real_line():
    data = np.random.default_rng(0).normal([3, 0, -8], [1.0, 0.4, 2.0], (50, 3))
    # x = sinh(u) reaches where the heaviest tails end. Trapezia in u are exact to rounding for
    # a smooth density that vanishes at the ends.
    u = torch.linspace(-40, 40, 80_001, dtype=torch.float64)
    return Support(data, u.sinh(), 1e-3 * u.cosh())


def zero_and_one():
    rng = np.random.default_rng(0)
    values = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return Support((rng.random((50, 3)) < [0.2, 0.5, 0.7]).astype(float), values, 0 * values + 1)


def unit_interval():
    data = np.random.default_rng(0).beta([1.0, 2.0, 3.0], 2.0, (50, 3))
    nodes, weights = map(torch.tensor, np.polynomial.legendre.leggauss(60))
    return Support(data, (nodes + 1) / 2, weights / 2)


def whole_numbers(levels):
    def support():
        rng = np.random.default_rng(0)
        X = rng.normal((levels - 1) * np.array([0.2, 0.5, 0.9]), 0.5 * (levels - 1), (50, 3))
        values = torch.linspace(-1, 1, levels, dtype=torch.float64)
        return Support(X.round().clip(0, levels - 1), values, 0 * values + 1)

    return support


def counts():
    rng = np.random.default_rng(0)
    data = rng.poisson([0.5, 1.5, 4] * rng.gamma(2.0, 0.5, (50, 3))).astype(float)
    values = torch.arange(20_001).double()  # beyond, the heaviest tail has 1e-11
    return Support(data, values, 0 * values + 1)


def mean_variance(noise, s, raw):
    """Mean and variance that the raw outputs of real values stand for, by the formulas."""
    rms = math.sqrt((s.columns.std**2).mean())
    if noise == "per_feature":
        return raw, 0.01**2 + s.module.raw_variance.exp()
    if noise == "shared":
        floor = max(0.01 * s.columns.std.min() / rms, 1e-4)
        return raw, floor**2 + s.module.raw_variance.exp()
    if noise == "per_sample":
        deviation = 5 * torch.tanh(raw[..., 3:] / 5)
        return raw[..., :3], 0.01**2 + (s.module.raw_variance + deviation).exp()
    return raw, torch.tensor(noise / rms**2, dtype=torch.float64)


def normal(likelihood, s, raw):
    mean, variance = mean_variance(likelihood.noise, s, raw)
    return D.Normal(mean, variance.sqrt())


def laplace(likelihood, s, raw):
    mean, variance = mean_variance(likelihood.noise, s, raw)
    return D.Laplace(mean, (variance / 2).sqrt())


def student_t(likelihood, s, raw):
    mean, variance = mean_variance(likelihood.noise, s, raw)
    df = likelihood.df
    df = 2.1 + (8 * torch.tanh(s.module.raw_df / 8)).exp() if df is None else mean.new_tensor(df)
    return D.StudentT(df, mean, (variance * (df - 2) / df).sqrt())


def log_odds(s, raw):
    mean = torch.tensor(s.columns.mean)
    return (mean / (1 - mean)).log() + raw


def bernoulli(likelihood, s, raw):
    return D.Bernoulli(logits=log_odds(s, raw), validate_args=False)


def continuous_bernoulli(likelihood, s, raw):
    # Where they start from has a test of its own.
    bounded = 1000 * torch.tanh((s.module.log_odds + raw) / 1000)
    return D.ContinuousBernoulli(logits=bounded, validate_args=False)


class Levels(NamedTuple):
    """Levels of grey from -1 to 1 by a logistic distribution: differences of its CDF."""

    levels: int
    location: torch.Tensor
    scale: torch.Tensor

    def log_prob(self, x):
        half = 1 / (self.levels - 1)
        low = torch.where(x < half - 1, -math.inf, (x - half - self.location) / self.scale)
        high = torch.where(x > 1 - half, math.inf, (x + half - self.location) / self.scale)
        # Above the mean, where the CDF is near 1, from the other side: no digit is lost.
        low, high = torch.where(low > 0, -high, low), torch.where(low > 0, -low, high)
        return (high.sigmoid() - low.sigmoid()).log()


def discretized_logistic(likelihood, s, raw):
    levels, columns = likelihood.levels, s.columns
    half = (levels - 1) / 2
    log_scale = np.log(np.maximum(columns.std, 2) / half * math.sqrt(3) / math.pi)
    log_scale = (10 * torch.tanh((torch.tensor(log_scale) + raw[..., 3:]) / 10)).exp()
    location = torch.tensor(columns.mean / half - 1) + raw[..., :3]
    return Levels(levels, location, log_scale.clamp(min=0.2 / (levels - 1)))


def rate(s, raw):
    mean, std = map(torch.tensor, s.columns[:2])
    spread = (std / (1 + mean)).clamp(max=1)
    return mean * (20 * torch.tanh(raw * spread / 20)).exp()


def poisson(likelihood, s, raw):
    return D.Poisson(rate(s, raw), validate_args=False)


def negative_binomial(likelihood, s, raw):
    dispersion = (15 * torch.tanh(s.module.raw_dispersion / 15)).exp()
    odds = rate(s, raw) / dispersion
    return D.NegativeBinomial(dispersion, logits=odds.log(), validate_args=False)


class WithZeros(NamedTuple):
    """A distribution of counts, or else 0."""

    counts: D.Distribution
    share: torch.Tensor

    def log_prob(self, x):
        return (
            torch.where(x == 0, self.share, 0)
            .add((1 - self.share) * self.counts.log_prob(x).exp())
            .log()
        )


def zero_inflated(likelihood, s, raw):
    inner = poisson if likelihood.likelihood == Poisson() else negative_binomial
    square = (s.columns.std / s.columns.mean) ** 2
    first = np.minimum(0.5 * square / (1 + square), 0.1)
    mean = s.columns.mean / (1 - first)
    std = np.sqrt(s.columns.std**2 / (1 - first) - first * mean**2)
    own = s._replace(columns=Moments(mean, std))
    share = (raw[..., 3:] + torch.tensor(first).logit()).sigmoid()
    return WithZeros(inner(likelihood.likelihood, own, raw[..., :3]), share)


# One line for each likelihood: the value, its support, and the distribution of x that raw
# outputs stand for.
CASES = [
    *(Case(Gaussian(noise), real_line, normal) for noise in KINDS),
    # Trapezia see the kink of the density to 3e-3**2.
    *(Case(Laplace(noise), real_line, laplace, 1e-4) for noise in KINDS),
    *(Case(StudentT(noise), real_line, student_t) for noise in KINDS),
    Case(StudentT("per_feature", df=5.0), real_line, student_t),
    Case(StudentT("per_sample", df=3.0), real_line, student_t),
    Case(Bernoulli(), zero_and_one, bernoulli),
    Case(Bernoulli(resample=True), zero_and_one, bernoulli),
    # Series near log-odds of 0, ours to 4e-10 and torch's to 1e-9.
    Case(ContinuousBernoulli(), unit_interval, continuous_bernoulli, 2e-9),
    Case(DiscretizedLogistic(2), whole_numbers(2), discretized_logistic),
    Case(DiscretizedLogistic(5), whole_numbers(5), discretized_logistic),
    Case(DiscretizedLogistic(256), whole_numbers(256), discretized_logistic),
    Case(Poisson(), counts, poisson),
    Case(NegativeBinomial(), counts, negative_binomial, 1e-8),
    Case(ZeroInflated(Poisson()), counts, zero_inflated),
    Case(ZeroInflated(NegativeBinomial()), counts, zero_inflated, 1e-8),
]

COUNTS = poisson, negative_binomial, zero_inflated
SUPPORTED = bernoulli, discretized_logistic, continuous_bernoulli, *COUNTS
every_likelihood = pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case.likelihood))
every_noise = pytest.mark.parametrize("family", [Gaussian, Laplace, StudentT])


class TestEveryLikelihood(LikelihoodLaws):
    @pytest.fixture(params=CASES, ids=lambda case: repr(case.likelihood))
    def case(self, request):
        return request.param


def waiting_times():
    data = np.random.default_rng(0).exponential([1.0, 0.1, 30.0], (50, 3))
    # x = exp(u): trapezia in u are exact to rounding for a smooth density that vanishes there.
    u = torch.linspace(-60, 12, 72_001, dtype=torch.float64)
    return Support(data, u.exp(), 1e-3 * u.exp())


class TestALikelihoodOfAUser(LikelihoodLaws):
    @pytest.fixture
    def case(self):
        return Case(Exponential(), waiting_times)


class TestALikelihoodOfAUserWithANetworkOfAllColumns(LikelihoodLaws):
    @pytest.fixture
    def case(self):
        return Case(Nested(), real_line)

    # The network starts from random weights, as wide as the columns are many.
    test_a_constant_column_does_not_change_the_units_and_start_of_the_others = None


def test_a_likelihood_of_a_user_finds_waiting_times_through_the_estimator(quick):
    X, new = (np.random.default_rng(seed).exponential([1, 50], (500, 2)) for seed in (0, 1))
    vae = quick(likelihood=Exponential(), max_iter=100).fit(X)
    truth = stats.expon.logpdf(new, scale=[1, 50]).sum(axis=1).mean()
    assert vae.score(new) == pytest.approx(truth, abs=0.05)  # of 500 rows' means
    drawn = vae.sample(4000, random_state=0)
    np.testing.assert_allclose(drawn.mean(axis=0), X.mean(axis=0), rtol=0.1)
    assert pickle.loads(pickle.dumps(vae)).score(new) == vae.score(new)
    with pytest.raises(ValueError, match="not negative"):
        vae.transform(-X)
    part = Columns([(Exponential(), [1]), (Gaussian("per_feature"), [0])])
    assert np.isfinite(quick(likelihood=part).fit(X).score(new))
    with pytest.raises(ValueError, match="which only code can make again"):
        safetensors.save(vae, "never.safetensors")


def test_a_likelihood_of_a_user_that_leaves_out_a_function_is_told_which():
    @dataclass(frozen=True)
    class Own(Likelihood):
        def log_prob(self, module, raw, x):
            return -(raw + x * torch.exp(-raw))

        def sample(self, module, raw, generator):
            return raw

    with pytest.raises(TypeError, match=r"method '?mean'?$"):
        Own()


@dataclass
class Changeable(Likelihood):
    """One that may change, and so has no hash."""

    log_prob, mean, sample = Exponential.log_prob, Exponential.mean, Exponential.sample


@dataclass(frozen=True)
class OfAList(Exponential):
    """Frozen, but for what it holds."""

    rates: list


@pytest.mark.parametrize("own", [Changeable(), OfAList([1.0])], ids=repr)
def test_a_likelihood_of_a_user_that_is_no_value_is_refused_with_what_mends_it(own, quick):
    for likelihood in (own, Columns([(own, [0, 1])])):
        message = rf"Got .*{type(own).__name__}.*@dataclass\(frozen=True\)"
        with pytest.raises(TypeError, match=message):
            quick(likelihood=likelihood).fit(np.ones((60, 2)))


# --- every likelihood, by its formula -----------------------------------------------------------


@every_likelihood
def test_log_prob_equals_torch_distributions(case):
    likelihood, s = case.likelihood, start(case.likelihood, case.support().data)
    raw = s.raw + normals(4, 1, 1)
    log_prob = likelihood.log_prob(s.module, raw, s.x)
    assert log_prob.shape == (4, 6, 3)
    expected = case.oracle(s, raw).log_prob(s.x)
    exact = case.tolerance if case.of is continuous_bernoulli else 1e-12
    torch.testing.assert_close(log_prob, expected, rtol=exact, atol=exact)


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.of in (normal, laplace, student_t, bernoulli, *COUNTS)],
    ids=lambda case: repr(case.likelihood),
)
def test_outputs_of_0_stand_for_the_mean_of_each_column(case):
    X = case.support().data
    likelihood, s = case.likelihood, start(case.likelihood, X, learn=False)
    mean = likelihood.mean(s.module, torch.zeros_like(s.raw)).numpy()
    X_mean = np.broadcast_to(X.mean(axis=0), mean.shape)
    np.testing.assert_allclose(s.location + s.scale * mean, X_mean, rtol=1e-12, atol=1e-12)


def test_names_of_likelihoods_stand_for_values():
    assert LIKELIHOODS["gaussian"] == Gaussian("per_sample")
    assert LIKELIHOODS["laplace"] == Laplace("per_sample")
    assert LIKELIHOODS["student_t"] == StudentT("per_sample", df=None)
    assert LIKELIHOODS["bernoulli"] == Bernoulli(resample=False)
    assert LIKELIHOODS["continuous_bernoulli"] == ContinuousBernoulli()
    assert LIKELIHOODS["poisson"] == Poisson()
    assert LIKELIHOODS["negative_binomial"] == NegativeBinomial()


# One line for each value that a likelihood refuses: the value, and what it expects.
OUTSIDE = [
    *(
        (likelihood, value, "values in [0, 1]")
        for likelihood in (Bernoulli(), Bernoulli(resample=True), ContinuousBernoulli())
        for value in (-0.25, 1.5, -1.1e-6, 1 + 1.1e-6, 255.0)
    ),
    *((DiscretizedLogistic(4), value, "whole numbers from 0 to 3") for value in (-1.0, 4.0, 0.5)),
    (DiscretizedLogistic(), 256.0, "whole numbers from 0 to 255"),
    *(
        (likelihood, value, "counts, whole numbers from 0 to 1e+10")
        for likelihood in (Poisson(), NegativeBinomial(), ZeroInflated(NegativeBinomial()))
        for value in (-1.0, 0.5, 1e6 + 0.5, -1.1e-6, 1.1e10)
    ),
]


@pytest.mark.parametrize(("likelihood", "value", "expected"), OUTSIDE)
@pytest.mark.parametrize(
    ("labels", "column"),
    [(UNNAMED, "column 1"), (Labels(np.array(["a", "b", "c"])), "column 1 ('b')")],
)
def test_a_value_outside_the_support_raises_and_is_named_with_its_column(
    likelihood, value, expected, labels, column
):
    X = np.ones((5, 3))
    X[3, 1] = X[4, 2] = value
    message = f"{expected}. Got {value:.10g} in {column}."
    with pytest.raises(ValueError, match=re.escape(message)):
        likelihood.check_support(X, labels)


NO_NOISE = ("full", "", 0, 0.0, -1.0, math.inf, -math.inf, math.nan, True, None, (1.0,), ["shared"])
# One line for each kind of parameter: what makes the likelihood, values, and what it expects.
REFUSED = [
    *(
        (
            family,
            NO_NOISE,
            f"The noise of a {family.__name__} must be one of ('per_sample', 'per_feature', "
            "'shared') or a positive finite variance. Got {!r} instead.",
        )
        for family in (Gaussian, Laplace, StudentT)
    ),
    (
        lambda df: StudentT(df=df),
        (2, 2.0, 0, -1.0, math.inf, math.nan, "5", True),
        "The df of a StudentT must be a finite number above 2, or None. Got {!r}.",
    ),
    (
        Bernoulli,
        (0, 1, "yes", None),
        "The resample of a Bernoulli must be True or False. Got {!r}.",
    ),
    (
        DiscretizedLogistic,
        (1, 0, -3, 2.0, "256", None, True),
        "The levels of a DiscretizedLogistic must be an integer of at least 2. Got {!r}",
    ),
]


@pytest.mark.parametrize(
    ("make", "value", "message"),
    [(make, value, message) for make, values, message in REFUSED for value in values],
)
def test_a_parameter_that_is_not_valid_is_refused_with_what_is_expected(make, value, message):
    with pytest.raises(ValueError, match=re.escape(message.format(value))):
        make(value)


# --- Gaussian: units --------------------------------------------------------------------------


def columns_of(std, mean=0.0):
    std = np.asarray(std, float)
    return Moments(np.broadcast_to(np.float64(mean), std.shape), std)


@pytest.mark.parametrize("noise", ["per_feature", "per_sample"])
def test_gaussian_noise_of_the_column_gives_each_column_its_own_scale(noise):
    mean, std = np.array([1.7e9, 0, -3]), np.array([1e3, 1e-6, 1e6])
    location, scale = Gaussian(noise).units(Moments(mean, std))
    np.testing.assert_array_equal(location, mean)
    np.testing.assert_array_equal(scale, std)


@pytest.mark.parametrize("noise", ["shared", 0.5])
def test_gaussian_noise_of_all_columns_gives_them_one_scale_their_root_mean_square(noise):
    location, scale = Gaussian(noise).units(columns_of([3, 4, 0, 5], mean=7))
    np.testing.assert_array_equal(location, 7)
    np.testing.assert_allclose(scale, np.sqrt(50 / 3) * np.array([1, 1, 0, 1]), rtol=1e-15)


@pytest.mark.parametrize("noise", ["shared", 0.5])
def test_gaussian_noise_of_all_columns_has_the_same_scale_after_a_rotation(noise):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 4)) * [1, 2, 3, 4]
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    before, after = (Gaussian(noise).units(describe_columns(Z))[1] for Z in (X, X @ rotation))
    np.testing.assert_allclose(before, after, rtol=1e-13)


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e200, 1e300])
def test_gaussian_scale_of_any_magnitude_neither_overflows_nor_vanishes(size):
    _, scale = Gaussian("shared").units(columns_of([size, size / 2]))
    np.testing.assert_allclose(scale, size * math.sqrt(0.625), rtol=1e-15)


# --- Gaussian: noise --------------------------------------------------------------------------


def noise_variance(noise, std, raw=None, family=Gaussian):
    """Noise variance in squared units of X: at the start, or with all learned values `raw`."""
    likelihood, columns = family(noise), columns_of(std)
    _, scale = likelihood.units(columns)
    module = likelihood.build(len(std)).double()
    likelihood.initialise(module, columns, scale)
    with torch.no_grad():
        if raw is not None:
            module.raw_variance.fill_(raw)
        return likelihood.variance(module).numpy() * scale**2


NOTHING = -1e4  # as the log of a variance


@pytest.mark.parametrize(
    ("std", "floor"),
    [
        ([1.0, 1.0], 0.01),
        ([1.0, 0.2], 0.01 * 0.2),  # a hundredth of the smallest column's
        ([1e6, 2e5], 0.01 * 2e5),
        ([1.0, 1e-6], 1e-4 * math.sqrt(0.5)),  # 1e-4 of the root mean square
    ],
)
def test_gaussian_shared_noise_has_the_floor_of_the_smallest_column_that_float32_resolves(
    std, floor
):
    variance = noise_variance("shared", np.array(std), NOTHING)
    np.testing.assert_allclose(np.sqrt(variance), floor, rtol=1e-6)


def floor_of(noise, X, family=Gaussian):
    """The least noise variance of the columns of X, in units of their variance."""
    columns = describe_columns(X)
    likelihood = family(noise)
    module = likelihood.build(X.shape[1])
    _, scale = likelihood.units(columns)
    likelihood.initialise(module, columns, scale)
    return module.floor.numpy()


def few(n, n_rows=100, value=0.0):
    """A column of which n rows have other values than the others."""
    column = np.full(n_rows, value)
    column[:n] = value + 1 + np.arange(n)
    return column


FEW = [1, 2, 5, 20, 49, 51, 100]


@pytest.mark.parametrize("family", [Gaussian, Laplace, StudentT])
@pytest.mark.parametrize("noise", ["per_feature", "per_sample"])
@pytest.mark.parametrize("value", [0.0, -3.5])
def test_the_floor_of_a_column_of_mostly_one_value_rests_on_the_rows_that_differ(
    family, noise, value
):
    X = np.transpose([few(n, value=value) for n in FEW])
    X = np.random.default_rng(0).permutation(X)
    expected = [1.0, *np.square([2 / 3, 2 / 6, 2 / 21, 2 / 50]), 1e-4, 1e-4]
    np.testing.assert_allclose(floor_of(noise, X, family), expected, rtol=1e-6)
    # Whatever the units of X.
    np.testing.assert_allclose(floor_of(noise, 1e6 * X, family), expected, rtol=1e-6)


def test_the_floor_of_many_rows_that_differ_is_a_hundredth_of_the_column_again():
    X = np.random.default_rng(0).permutation(few(299, 1000))[:, None]
    np.testing.assert_allclose(floor_of("per_feature", X), 1e-4, rtol=1e-6)
    X = np.random.default_rng(0).permutation(few(99, 1000))[:, None]
    np.testing.assert_allclose(floor_of("per_feature", X), 4e-4, rtol=1e-6)


def test_values_that_are_missing_differ_from_nothing():
    X = np.transpose([few(5), few(5), few(30)])
    X[50:, 1] = np.nan
    X[50:, 2] = np.nan  # 30 of 50 differ
    np.testing.assert_allclose(floor_of("per_feature", X), [1 / 9, 1 / 9, 1e-4], rtol=1e-6)


def test_each_column_of_columns_has_the_floor_that_it_has_alone(quick):
    X = np.transpose([few(n) for n in (2, 20, 60)])
    X = np.random.default_rng(0).permutation(X)
    own = Columns([("gaussian", [0, 2]), ("laplace", [1])])
    alone = quick().fit(X).state_["observation.floor"]
    state = quick(likelihood=own).fit(X).state_
    floors = [array for name, array in state.items() if name.endswith("floor")]
    np.testing.assert_allclose(np.concatenate(floors), alone[[0, 2, 1]], rtol=1e-6)
    np.testing.assert_allclose(alone, [(2 / 3) ** 2, (2 / 21) ** 2, 1e-4], rtol=1e-6)


@every_noise
@pytest.mark.parametrize("variance", [1e-6, 0.5, 3.0])
@pytest.mark.parametrize("std", [[1.0, 2.0], [1e-3, 1e3]])
def test_noise_that_is_given_is_the_variance_in_squared_units_of_x(family, variance, std):
    assert noise_variance(variance, np.array(std), family=family) == pytest.approx(
        variance, rel=1e-14
    )


@pytest.mark.parametrize("noise", [Gaussian, Laplace, StudentT])
def test_variances_of_rows_are_learned_once_they_are_released(noise):
    likelihood = noise("per_sample")
    s = start(likelihood, real_line().data)
    stack = stacked([s, s])
    value, _ = likelihood.vjp(stack.module, stack.raw, stack.x, torch.ones(2, 1, 3))
    # Of ten epochs three are behind the first model, and two behind the second.
    likelihood.begin_epoch(stack.module, torch.tensor([0.3, 0.2]))
    held, pull = likelihood.vjp(stack.module, stack.raw, stack.x, torch.ones(2, 1, 3))
    torch.testing.assert_close(held, value, rtol=0, atol=0)
    g_raw, (g_variance, *_) = pull(torch.ones(2, 6).double())
    assert (g_raw[0] != 0).all()
    assert (g_raw[1, :, :3] != 0).all()
    assert (g_raw[1, :, 3:] == 0).all()
    torch.testing.assert_close(g_variance[0], g_variance[1], rtol=0, atol=0)
    assert (g_variance != 0).all()


@pytest.mark.parametrize("noise", ["per_feature", "shared"])
@pytest.mark.parametrize("std", [[1.0, 1.5], [1e-6, 1.5e-6]])
def test_gaussian_noise_that_is_learned_starts_at_a_share_of_the_variance(noise, std):
    std = np.array(std)
    variance = std**2 if noise == "per_feature" else (std**2).mean()
    # At most the floor besides, a ten-thousandth of the variance.
    np.testing.assert_allclose(noise_variance(noise, std), 0.3 * variance, rtol=4e-4)


@pytest.mark.parametrize("noise", ["per_feature", "shared", "per_sample"])
def test_gaussian_noise_at_its_floor_in_float32_still_has_the_gradient_of_autograd(noise):
    likelihood = Gaussian(noise)
    s = start(likelihood, real_line().data, learn=False)
    module, raw, x = s.module.float(), s.raw.float(), s.x.float()
    with torch.no_grad():  # exp(-20) is lost beside the floor
        module.raw_variance.fill_(-20.0)
    learned = raw.requires_grad_() if noise == "per_sample" else module.raw_variance
    log_prob = likelihood.log_prob(module, raw, x).sum()
    (expected,) = torch.autograd.grad(log_prob, learned)
    with torch.no_grad():
        stack = stacked([s._replace(raw=raw, x=x)])
        _, pull = likelihood.vjp(stack.module, stack.raw, stack.x, torch.ones(1, 1, 3))
        of_raw, of_parameters = pull(torch.ones(1, 6))
    gradient = (of_raw if noise == "per_sample" else of_parameters[0])[0]
    assert (gradient[..., -3:] != 0).all()
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("noise", [0.5, np.float32(0.5), np.float64(0.5)])
def test_gaussian_noise_of_one_half_is_the_squared_error_up_to_a_constant(noise):
    likelihood, X = Gaussian(noise), real_line().data * 100 + 7
    s = start(likelihood, X)
    log_density = likelihood.log_prob(s.module, s.raw, s.x).sum(-1) - np.log(s.scale).sum()
    X_hat = s.location + s.scale * likelihood.mean(s.module, s.raw).numpy()
    X_seen = s.location + s.scale * s.x.numpy()
    squared_error = ((X_seen - X_hat) ** 2).sum(axis=1)
    assert (squared_error > 1).all()
    expected = squared_error + 3 / 2 * math.log(math.pi)
    np.testing.assert_allclose(-log_density.numpy(), expected, rtol=1e-11)


@every_noise
@pytest.mark.parametrize(("variance", "size"), [(1e30, 1e-3), (1e-30, 1e3)])
def test_a_given_noise_that_is_out_of_reach_of_the_data_is_refused(family, variance, size):
    message = (
        f"A noise variance of {variance:.3g} is out of reach for data whose columns vary by "
        f"{size:.3g}: give noise in squared units of X"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        noise_variance(variance, np.array([size, size]), family=family)


@every_noise
@pytest.mark.parametrize("noise", KINDS)
def test_real_values_may_be_every_finite_number(family, noise):
    X = np.array([[-1e300, 0.0], [1e-300, 5.0]])
    np.testing.assert_array_equal(family(noise).check_support(X), X)


# --- Bernoulli --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bernoulli_clips_what_is_outside_by_at_most_its_tolerance(dtype):
    X = np.array([[-1e-6, -1e-7, 0.0, 0.3], [1 + 1e-6, 1 + 1e-7, 1.0, 1e-7]], dtype=dtype)
    before = X.copy()
    clipped = Bernoulli().check_support(X)
    assert clipped.dtype == dtype
    np.testing.assert_array_equal(clipped[:, :2], [[0, 0], [1, 1]])
    np.testing.assert_array_equal(clipped[:, 2:], X[:, 2:])
    np.testing.assert_array_equal(X, before)


def test_bernoulli_keeps_the_units_of_the_data():
    location, scale = Bernoulli().units(columns_of([0.5, 0.1], mean=0.3))
    np.testing.assert_array_equal(location, 0)
    np.testing.assert_array_equal(scale, 1)


def test_bernoulli_log_prob_is_minus_the_binary_cross_entropy_on_grey_values_too():
    s = start(Bernoulli(), np.random.default_rng(0).random((50, 3)))
    x_hat = Bernoulli().mean(s.module, s.raw)
    expected = F.binary_cross_entropy(x_hat, s.x, reduction="none")
    log_prob = Bernoulli().log_prob(s.module, s.raw, s.x)
    torch.testing.assert_close(-log_prob, expected, rtol=1e-12, atol=1e-12)


def test_bernoulli_starts_from_finite_log_odds_where_all_but_one_are_equal():
    X = np.zeros((10_000, 2))
    X[0, 0] = X[1:, 1] = 1
    s = start(Bernoulli(), X)
    (mean,) = Bernoulli().mean(s.module, torch.zeros(1, 2)).tolist()
    assert mean == pytest.approx([0.001, 0.999])
    assert Bernoulli().variance(s.module) is None


def test_bernoulli_redraws_zeros_and_ones_with_their_probabilities_and_keeps_what_is_certain():
    likelihood, n = Bernoulli(resample=True), 100_000
    assert likelihood.n_noise == 1
    assert Bernoulli().n_noise == 0
    x = torch.tensor([0.0, 0.01, 0.3, 0.5, 0.9, 1.0]).double()
    drawn = likelihood.redraw(x.expand(n, -1), normals(n, 6))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    # Five standard errors: none where a value is certain.
    assert ((drawn.mean(0) - x).abs() <= 5 * (x * (1 - x) / n).sqrt()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bernoulli_redraws_no_certain_value_by_the_farthest_noise(dtype):
    eps = torch.tensor([-9.0, -6.0, 6.0, 9.0], dtype=dtype)
    for x in (torch.zeros_like(eps), torch.ones_like(eps)):
        assert torch.equal(Bernoulli(resample=True).redraw(x, eps), x)


# --- ContinuousBernoulli ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "log_odds", [0.0, 1e-8, 1e-5, 2e-4, 0.0999, 0.1001, 0.1999, 0.2001, 3.0, 40.0, 700.0]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_continuous_bernoulli_is_a_density_with_its_mean_on_all_branches(log_odds, sign):
    likelihood = ContinuousBernoulli()
    module = likelihood.build(1).double()
    module.log_odds.fill_(sign * log_odds)
    raw = torch.zeros(1, 1).double()
    # Panels of 60 nodes: 700 is steep.
    nodes, weights = np.polynomial.legendre.leggauss(60)
    panels = np.arange(20)[:, None]
    x = torch.tensor((panels + (nodes + 1) / 2) / 20).view(-1, 1)
    weight = torch.tensor(np.broadcast_to(weights / 40, (20, 60)).copy()).view(-1, 1)
    density = weight * likelihood.log_prob(module, raw, x).exp()
    # The series are cut at 4e-10.
    assert density.sum().item() == pytest.approx(1, abs=1e-9)
    mean = likelihood.mean(module, raw).item()
    assert (density * x).sum().item() == pytest.approx(mean, abs=1e-9)


def test_continuous_bernoulli_bounds_its_density():
    likelihood = ContinuousBernoulli()
    module = likelihood.build(1).double()
    module.log_odds.fill_(-1e6)
    raw = torch.zeros(1, 1).double()
    # l / (1 - exp(-l)) at the end of the interval.
    highest = likelihood.log_prob(module, raw, raw)
    torch.testing.assert_close(highest, torch.full_like(raw, math.log(1000)))


# --- DiscretizedLogistic ----------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_discretized_logistic_has_its_levels_back_from_its_own_units(levels, dtype):
    likelihood = DiscretizedLogistic(levels)
    X = np.repeat(np.unique(np.linspace(0, levels - 1, 500).round())[:, None], 2, axis=1)
    location, scale = likelihood.units(describe_columns(X))
    y = standardise(X, Units.of(location, scale), dtype)
    again = location + scale * y.numpy()
    np.testing.assert_array_equal(likelihood.check_support(again), X)


def test_discretized_logistic_gives_a_level_far_from_the_mean_a_finite_log_probability():
    likelihood = DiscretizedLogistic(256)
    X = np.full((6, 3), 128.0) + np.arange(6)[:, None]
    s = start(likelihood, X)
    raw = torch.zeros(1, 6).double()
    raw[:, 3:] = -1e3  # the least scale
    with torch.no_grad():
        far = likelihood.log_prob(s.module, raw, torch.full((1, 3), -1.0).double())
    distance = (torch.tensor(X.mean()) / 127.5 - 1 / 255) / (0.2 / 255)
    # log s(-a) = -a for a large a; the edge of the level is half of one from it.
    torch.testing.assert_close(far, -distance.expand(1, 3), rtol=1e-12, atol=0)


# --- StudentT ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("df", "raw_df"),
    [(df, None) for df in (2 + 1e-9, 2.0001, 2.01, 2.5, 3, 30.0, 3e3, 1e6)]
    + [(None, raw_df) for raw_df in (-30.0, -8.0, -2.0, 0.0, 4.0, 30.0)],
)
@torch.no_grad()
def test_student_t_is_that_of_scipy_whatever_its_degrees_of_freedom(df, raw_df, dtype):
    likelihood = StudentT("per_feature", df=df)
    s = start(likelihood, real_line().data)
    module, raw, x = s.module.to(dtype), s.raw.to(dtype), s.x.to(dtype)
    if df is None:  # it is learned
        module.raw_df.fill_(raw_df)
        df = 2.1 + math.exp(8 * math.tanh(raw_df / 8))  # at least 2.1, at most 2983
    log_prob = likelihood.log_prob(module, raw, x)
    mean, variance = (t.double() for t in likelihood._mean_variance(module, raw))
    scale = np.sqrt(variance.numpy() * (df - 2) / df)
    expected = torch.tensor(stats.t.logpdf(x.double().numpy(), df, mean.numpy(), scale))
    # 1e-6 of the squares of up to 20 deviations, in float32; scipy's own digits, in float64.
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(log_prob.double(), expected, rtol=tolerance, atol=tolerance)


# --- through the estimator --------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.of in SUPPORTED], ids=lambda case: repr(case.likelihood)
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_that_a_fitted_model_draws_are_in_its_support(case, dtype, quick):
    X = case.support().data.astype(dtype)
    vae = quick(likelihood=case.likelihood, device="cpu").fit(X)
    drawn = vae.sample(200, random_state=0)
    assert drawn.dtype == dtype
    np.testing.assert_array_equal(case.likelihood.check_support(drawn), drawn)
    assert np.isfinite(vae.score(drawn))
    if case.likelihood.is_mass:
        np.testing.assert_array_equal(drawn, drawn.round())
        assert (vae.score_samples(X) < 0).all()  # logarithms of probabilities


@pytest.mark.parametrize("likelihood", [Poisson(), NegativeBinomial(), ZeroInflated(Poisson())])
def test_counts_of_any_size_have_the_same_log_probability_in_float32(likelihood):
    # A million counts: logarithms add up to 1e7, of which float32 would know 1 nat.
    X = np.random.default_rng(0).poisson([1e6, 1e3, 10], (50, 3)).astype(float)
    s = start(likelihood, X)
    s.module.float()  # all that it knows of what it learned
    exact = start(likelihood, X).module
    exact.load_state_dict(s.module.state_dict())
    expected = likelihood.log_prob(exact, s.raw.float().double(), s.x)
    log_prob = likelihood.log_prob(s.module.float(), s.raw.float(), s.x.float())
    torch.testing.assert_close(log_prob.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mean", [0.01, 1.0, 1e3, 1e6])
def test_the_encoder_sees_logarithms_of_counts_about_as_wide_as_any_other_column(mean):
    X = np.random.default_rng(0).poisson(mean, (2000, 3)).astype(float)
    s = start(Poisson(), X)
    x = torch.from_numpy(X)
    seen = Poisson().seen(s.module, x).numpy()
    expected = np.log1p(X) - np.log1p(X.mean(axis=0))
    np.testing.assert_allclose(seen / seen[:1], expected / expected[:1], rtol=1e-9, atol=1e-9)
    assert 0.5 < seen.std(axis=0).min() < seen.std(axis=0).max() < 2


def test_the_encoder_sees_nothing_of_a_constant_column_of_counts():
    X = np.random.default_rng(0).poisson(5.0, (60, 3)).astype(float)
    wide = np.insert(X, 1, 1e5, axis=1)
    vae, wider = (
        VAETransformer(2, likelihood="poisson", max_iter=1, random_state=0).fit(Z)
        for Z in (X, wide)
    )
    module = wider.to_module()
    seen = module.inputs(module.complete(Batch(torch.zeros(1, 4))))
    assert seen[0, 1] == 0
    assert (seen[0, [0, 2, 3]] != 0).all()
    assert vae.state_["bound"] == wider.state_["bound"] == 20


@pytest.mark.parametrize(
    ("likelihood", "mean"),
    [(NegativeBinomial(), 1e5), (ZeroInflated(), 100), (ZeroInflated(NegativeBinomial()), 1e5)],
    ids=str,
)
def test_high_poisson_counts_get_about_their_log_probability_of_whatever_contains_them(
    likelihood, mean
):
    rng = np.random.default_rng(0)
    X, new = rng.poisson(mean, (1000, 3)), rng.poisson(mean, (1000, 3))
    vae = VAETransformer(1, likelihood=likelihood, hidden_layer_sizes=(8,), random_state=0)
    vae.set_params(max_iter=40, learning_rate=5e-3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All 1 components are inactive")
        vae.fit(X)
    assert vae.score(new) > stats.poisson(mean).logpmf(new).sum(axis=1).mean() - 0.1


@pytest.mark.parametrize(
    ("likelihood", "draw", "log_prob"),
    [
        ("poisson", lambda rng, n: rng.poisson(3.0, n), stats.poisson(3.0).logpmf),
        (
            "negative_binomial",
            lambda rng, n: rng.negative_binomial(2.0, 0.25, n),
            stats.nbinom(2.0, 0.25).logpmf,
        ),
        (
            ZeroInflated(Poisson()),
            lambda rng, n: rng.poisson(3.0, n) * (rng.random(n) < 0.6),
            lambda x: np.log(0.4 * (x == 0) + 0.6 * stats.poisson(3.0).pmf(x)),
        ),
    ],
    ids=["poisson", "negative_binomial", "zero_inflated"],
)
def test_independent_counts_get_the_log_probability_that_they_have(likelihood, draw, log_prob):
    rng = np.random.default_rng(0)
    X, new = (draw(rng, (2000, 3)) for _ in range(2))
    vae = VAETransformer(1, likelihood=likelihood, hidden_layer_sizes=(8,), random_state=0)
    vae.set_params(max_iter=25, learning_rate=5e-3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All 1 components are inactive")
        difference = vae.fit(X).score_samples(new) - log_prob(new).sum(axis=1)
    # A few learned numbers cost a few nats on 2000 rows together.
    assert abs(difference.mean()) < 0.01


def test_a_continuous_bernoulli_starts_from_the_mean_of_each_column():
    likelihood, means = ContinuousBernoulli(), np.array([0.01, 0.3, 0.5, 0.9, 0.995])
    columns = Moments(means, np.full(5, 0.1))
    module = likelihood.build(5).double()
    with torch.no_grad():
        likelihood.initialise(module, columns, np.ones(5))
    mean = likelihood.mean(module, torch.zeros(1, 5, dtype=torch.float64))
    # The log-odds are bent a little towards their bound.
    np.testing.assert_allclose(mean[0].numpy(), means, rtol=0.02)


# --- Categorical ------------------------------------------------------------------------------


@pytest.mark.parametrize("n_models", [1, 3])
def test_vjp_of_categories_is_that_of_autograd_where_some_are_missing(n_models):
    likelihood = Categorical(n_categories=(3, 2, 3))
    hot = likelihood.check_support(np.random.default_rng(0).integers(2, size=(30, 3)) * 1.0)
    columns = describe_columns(hot)
    module = likelihood.build(8).double()
    likelihood.initialise(module, columns, np.ones(8))
    x = torch.tensor(hot)[: 6 * n_models].unflatten(0, (-1, 6))
    there = (normals(n_models, 6, 3) > -0.5).repeat_interleave(torch.tensor([3, 2, 3]), -1)
    raw, g = normals(n_models, 6, 8, seed=1), normals(n_models, 6, seed=2)
    raw.requires_grad_()
    total = (likelihood.log_prob(module, raw, x) * there).sum(-1)
    (expected,) = torch.autograd.grad(total, raw, g)
    assert (expected != 0).any((0, 1)).all()

    with torch.inference_mode():
        module.log_odds = module.log_odds.expand(n_models, -1).clone()
        same, pull = likelihood.vjp(module, raw.clone(), x.clone(), there.double())
        g_raw, learned = pull(g)

    torch.testing.assert_close(same, total.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(g_raw, expected, rtol=1e-12, atol=1e-12)
    assert learned == []


def test_draws_of_categories_are_one_of_each_column_with_their_probabilities():
    likelihood, n = Categorical(n_categories=(3, 2, 3)), 100_000
    X = likelihood.check_support(np.random.default_rng(0).integers(2, size=(30, 3)) * 1.0)
    module = likelihood.build(8).double()
    likelihood.initialise(module, describe_columns(X), np.ones(8))
    raw = normals(8, seed=1).expand(n, 8)
    drawn = likelihood.sample(module, raw, torch.Generator().manual_seed(0))
    for column in drawn.split([3, 2, 3], -1):
        assert set(column.unique().tolist()) == {0.0, 1.0}
        assert (column.sum(-1) == 1).all()
    p = likelihood.mean(module, raw[0])
    assert ((drawn.mean(0) - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all()


def test_a_column_of_one_category_does_not_vary_and_all_others_do():
    none = Moments(np.zeros(6), np.zeros(6))
    location, scale = Categorical(n_categories=(3, 1, 2)).units(none)
    np.testing.assert_array_equal(location, [0, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(scale, [1, 1, 1, 0, 1, 1])


# --- Columns ----------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", ["price", slice(2), len, ("a", "b"), (0, 3)], ids=str)
def test_columns_are_kept_as_they_are_named(columns):
    assert Columns([(Gaussian(), columns)]).parts == ((Gaussian(), columns),)
    if isinstance(columns, tuple):
        for many in (list(columns), np.array(columns)):
            assert Columns([(Gaussian(), many)]) == Columns([(Gaussian(), columns)])
