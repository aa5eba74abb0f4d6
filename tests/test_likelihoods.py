"""Likelihoods: densities, draws, units and gradients, against torch.distributions."""

import copy
import math
import pickle
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import distributions as D
from torch.nn import functional as F

from skvae._arrays import Columns, describe_columns, standardise
from skvae.likelihoods import LIKELIHOODS, Bernoulli, Gaussian

KINDS = ["per_feature", "shared", "per_sample", 0.5]


class Support(NamedTuple):
    """Data, and all values x with the weights of a sum or an integral over them."""

    data: np.ndarray
    values: torch.Tensor
    weights: torch.Tensor


def real_line():
    rng = np.random.default_rng(0)
    values = torch.linspace(-40, 40, 80_001, dtype=torch.float64)
    # Trapezia are exact to rounding for a smooth density that vanishes at the ends.
    return Support(rng.normal([3, 0, -8], [1.0, 0.4, 2.0], (50, 3)), values, 0 * values + 1e-3)


def zero_and_one():
    rng = np.random.default_rng(0)
    values = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return Support((rng.random((50, 3)) < [0.2, 0.5, 0.7]).astype(float), values, 0 * values + 1)


class Start(NamedTuple):
    """A likelihood at work: what `_model` makes of it, in float64."""

    columns: Columns
    location: np.ndarray
    scale: np.ndarray
    module: torch.nn.Module
    raw: torch.Tensor  # decoder outputs, (6, P)
    x: torch.Tensor  # rows in the model's units, (6, 3)


def normals(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64)


def start(likelihood, X, learn=True, seed=0):
    """The likelihood on data X, with learned values drawn away from where they start."""
    columns = describe_columns(X)
    location, scale = likelihood.units(columns)
    module = likelihood.build(X.shape[1]).double()
    with torch.no_grad():
        likelihood.initialise(module, columns, scale)
        for p in module.parameters():
            p.add_(normals(*p.shape, seed=seed) * learn)
    raw = normals(6, likelihood.n_outputs(X.shape[1]), seed=seed + 1)
    x = torch.tensor(standardise(X[:6], location, scale)).double()
    return Start(columns, location, scale, module, raw, x)


def starts(likelihood, X, n_models):
    """The likelihood on parts of X: learned values, units, outputs and rows all differ."""
    return [start(likelihood, X[10 * m :], seed=10 * m) for m in range(n_models)]


def stacked(several):
    """One `Start` of several, along a leading dimension."""
    module = copy.deepcopy(several[0].module)
    for name, tensor in module.state_dict(keep_vars=True).items():
        tensor.data = torch.stack([s.module.state_dict()[name] for s in several])
    raw, x = (torch.stack([getattr(s, name).detach() for s in several]) for name in ("raw", "x"))
    return several[0]._replace(module=module, raw=raw, x=x)


def per_feature(s, raw):
    return D.Normal(raw, (0.01**2 + s.module.raw_variance.exp()).sqrt())


def shared(s, raw):
    rms = math.sqrt((s.columns.std**2).mean())
    floor = max(0.01 * s.columns.std.min() / rms, 1e-4)
    return D.Normal(raw, (floor**2 + s.module.raw_variance.exp()).sqrt())


def per_sample(s, raw):
    mean, log_variance = raw[..., :3], raw[..., 3:]
    return D.Normal(mean, (0.01**2 + (30 * torch.tanh(log_variance / 30)).exp()).sqrt())


def one_half(s, raw):
    return D.Normal(raw, math.sqrt(0.5 / (s.columns.std**2).mean()))


def bernoulli(s, raw):
    mean = torch.tensor(s.columns.mean)
    return D.Bernoulli(logits=(mean / (1 - mean)).log() + raw, validate_args=False)


class Case(NamedTuple):
    likelihood: object
    support: Callable[[], Support]
    oracle: Callable[[Start, torch.Tensor], D.Distribution]


# One line for each likelihood: the value, its support, and the distribution of x that raw
# outputs stand for.
CASES = [
    Case(Gaussian("per_feature"), real_line, per_feature),
    Case(Gaussian("shared"), real_line, shared),
    Case(Gaussian("per_sample"), real_line, per_sample),
    Case(Gaussian(0.5), real_line, one_half),
    Case(Bernoulli(), zero_and_one, bernoulli),
]

every_likelihood = pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case.likelihood))


# --- every likelihood -------------------------------------------------------------------------


@every_likelihood
def test_log_prob_equals_torch_distributions(case):
    likelihood, s = case.likelihood, start(case.likelihood, case.support().data)
    raw = s.raw + normals(4, 1, 1)
    log_prob = likelihood.log_prob(s.module, raw, s.x)
    assert log_prob.shape == (4, 6, 3)
    expected = case.oracle(s, raw).log_prob(s.x)
    torch.testing.assert_close(log_prob, expected, rtol=1e-12, atol=1e-12)


@every_likelihood
def test_density_integrates_to_1_and_has_the_mean_that_the_likelihood_gives(case):
    likelihood, support = case.likelihood, case.support()
    s = start(likelihood, support.data)
    x, weights = support.values[:, None, None], support.weights[:, None, None]
    with torch.no_grad():
        density = likelihood.log_prob(s.module, s.raw, x).exp()
        mean = likelihood.mean(s.module, s.raw)
    ones = torch.ones(6, 3).double()
    torch.testing.assert_close((weights * density).sum(0), ones, rtol=0, atol=1e-11)
    torch.testing.assert_close((weights * x * density).sum(0), mean, rtol=1e-10, atol=1e-10)


@every_likelihood
def test_draws_have_mean_and_variance_of_the_density(case):
    likelihood, s = case.likelihood, start(case.likelihood, case.support().data)
    n = 50_000
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        x = likelihood.sample(s.module, s.raw.expand(n, -1, -1), g)
        oracle = case.oracle(s, s.raw)
    assert x.shape == (n, 6, 3)
    assert x.dtype == torch.float64
    # Five standard errors; that of the variance from the spread of the squares.
    error, square = (oracle.variance / n).sqrt(), (x - oracle.mean).square()
    assert ((x.mean(0) - oracle.mean).abs() < 5 * error).all()
    limit = 5 * square.std(0) / math.sqrt(n) + (5 * error).square()
    assert ((x.var(0) - oracle.variance).abs() < limit).all()


@every_likelihood
def test_draws_are_decided_by_their_generator_alone(case):
    likelihood, s = case.likelihood, start(case.likelihood, case.support().data)
    torch.rand(1)  # so that no seed gives the state
    before = torch.get_rng_state()
    many = s.raw.expand(50, -1, -1)
    first, same, other = (
        likelihood.sample(s.module, many, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@every_likelihood
def test_draws_are_possible_values(case):
    likelihood, s = case.likelihood, start(case.likelihood, case.support().data)
    x = likelihood.sample(s.module, s.raw, torch.Generator().manual_seed(0)).detach().numpy()
    X = np.float64(s.location + s.scale * x)
    np.testing.assert_array_equal(likelihood.check_support(X), X)


@every_likelihood
def test_a_gradient_reaches_every_output_and_every_parameter(case):
    likelihood, s = case.likelihood, start(case.likelihood, case.support().data)
    raw = s.raw.requires_grad_()
    likelihood.log_prob(s.module, raw, s.x).sum().backward()
    assert (raw.grad != 0).all()
    for name, p in s.module.named_parameters():
        assert (p.grad != 0).all(), name


WEIGHTS = [[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]


@every_likelihood
@pytest.mark.parametrize("n_models", [1, 3])
@pytest.mark.parametrize("first", [0, 1])
def test_vjp_equals_weighted_log_prob_and_pulls_back_as_autograd_does(case, n_models, first):
    likelihood, several = case.likelihood, starts(case.likelihood, case.support().data, n_models)
    weights = torch.tensor((WEIGHTS[first:] + WEIGHTS[:first])[:n_models]).double()
    g = normals(n_models, 6, seed=2)
    log_probs, of_raw, of_parameters = [], [], []
    for s, weight, own in zip(several, weights, g, strict=True):
        raw = s.raw.requires_grad_()
        log_prob = likelihood.log_prob(s.module, raw, s.x) @ weight
        gradient, *others = torch.autograd.grad(log_prob, [raw, *s.module.parameters()], own)
        log_probs.append(log_prob.detach())
        of_raw.append(gradient)
        of_parameters.append(others)
    expected = [torch.stack(own) for own in (of_raw, *zip(*of_parameters, strict=True))]

    stack = stacked(several)
    with torch.no_grad():
        same, pull = likelihood.vjp(stack.module, stack.raw, stack.x, weights)
        g_raw, g_parameters = pull(g)

    torch.testing.assert_close(same, torch.stack(log_probs), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close([g_raw, *g_parameters], expected, rtol=1e-11, atol=1e-12)


@every_likelihood
def test_vjp_of_a_stack_gives_what_each_member_gives_alone(case):
    likelihood, several = case.likelihood, starts(case.likelihood, case.support().data, 3)
    stack, weights, g = stacked(several), torch.tensor(WEIGHTS).double(), normals(3, 6, seed=2)
    with torch.no_grad():
        value, pull = likelihood.vjp(stack.module, stack.raw, stack.x, weights)
        g_raw, g_parameters = pull(g)
        for m, s in enumerate(several):
            one, alone = slice(m, m + 1), stacked([s])
            expected, pull_alone = likelihood.vjp(alone.module, alone.raw, alone.x, weights[one])
            of_raw, of_parameters = pull_alone(g[one])
            # float64: rounding of sums of a few numbers.
            torch.testing.assert_close(value[one], expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(g_raw[one], of_raw, rtol=1e-12, atol=1e-12)
            own = [gradient[one] for gradient in g_parameters]
            torch.testing.assert_close(own, of_parameters, rtol=1e-12, atol=1e-12)


@every_likelihood
@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 1)])
def test_value_of_vjp_without_a_stack_is_the_weighted_log_prob_of_every_draw(case, shape):
    likelihood, s = case.likelihood, start(case.likelihood, case.support().data)
    raw, weight = s.raw + normals(*shape), torch.tensor(WEIGHTS[1]).double()
    with torch.no_grad():
        value, _ = likelihood.vjp(s.module, raw, s.x, weight)
        expected = likelihood.log_prob(s.module, raw, s.x) @ weight
    assert value.shape == raw.shape[:-1]
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


@every_likelihood
def test_outputs_of_0_stand_for_the_mean_of_each_column(case):
    X = case.support().data
    likelihood, s = case.likelihood, start(case.likelihood, X, learn=False)
    mean = likelihood.mean(s.module, torch.zeros_like(s.raw)).numpy()
    X_mean = np.broadcast_to(X.mean(axis=0), mean.shape)
    np.testing.assert_allclose(s.location + s.scale * mean, X_mean, rtol=1e-12, atol=1e-12)


@every_likelihood
@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_constant_columns_have_scale_0_at_their_constant_and_the_others_do_not(case, constant):
    X = case.support().data.copy()
    X[:, 1] = constant
    location, scale = case.likelihood.units(describe_columns(X))
    assert location.dtype == scale.dtype == np.float64
    assert location[1] == constant
    assert scale[1] == 0
    assert (scale[[0, 2]] > 0).all()


@every_likelihood
def test_a_constant_column_does_not_change_the_units_and_start_of_the_others(case):
    X = case.support().data
    with_constant = np.insert(X, 1, 1.0, axis=1)
    s, more = start(case.likelihood, X, False), start(case.likelihood, with_constant, False)
    for a, b in [(s.location, more.location), (s.scale, more.scale)]:
        np.testing.assert_array_equal(a, np.delete(b, 1))
    for a, b in zip(s.module.state_dict().values(), more.module.state_dict().values(), strict=True):
        b = b if len(a) == 1 else torch.cat([b[:1], b[2:]])
        torch.testing.assert_close(a, b, rtol=1e-14, atol=0)


@every_likelihood
def test_data_of_constants_only_leaves_everything_finite(case):
    X = np.ones((6, 3))
    s = start(case.likelihood, X, learn=False)
    assert not s.scale.any()
    assert torch.isfinite(case.likelihood.log_prob(s.module, s.raw, s.x)).all()
    np.testing.assert_array_equal(s.location, 1)


@every_likelihood
def test_float32_stays_float32_and_finite_for_outputs_of_any_size(case):
    likelihood, s = case.likelihood, start(case.likelihood, case.support().data)
    s.module.float()
    for size in (1.0, 1e3, -1e3, 1e6):
        raw = size * s.raw.abs().float()
        g = torch.Generator().manual_seed(0)
        results = (
            likelihood.log_prob(s.module, raw, s.x.float()),
            likelihood.mean(s.module, raw),
            likelihood.sample(s.module, raw, g),
        )
        for result in results:
            assert result.dtype == torch.float32
            assert torch.isfinite(result).all()


@every_likelihood
def test_likelihood_is_a_value(case):
    likelihood = case.likelihood
    assert pickle.loads(pickle.dumps(likelihood)) == likelihood
    assert hash(likelihood) == hash(pickle.loads(pickle.dumps(likelihood)))
    assert eval(repr(likelihood)) == likelihood


def test_names_of_likelihoods_stand_for_values():
    assert LIKELIHOODS["gaussian"] == Gaussian("per_feature")
    assert LIKELIHOODS["bernoulli"] == Bernoulli()


# One line for each value that a likelihood refuses: the value, and what it expects.
OUTSIDE = [
    (Bernoulli(), -0.25, "values in [0, 1]"),
    (Bernoulli(), 1.5, "values in [0, 1]"),
    (Bernoulli(), -1.1e-6, "values in [0, 1]"),
    (Bernoulli(), 1 + 1.1e-6, "values in [0, 1]"),
    (Bernoulli(), 255.0, "values in [0, 1]"),
]


@pytest.mark.parametrize(("likelihood", "value", "expected"), OUTSIDE)
@pytest.mark.parametrize(
    ("names", "column"), [(None, "column 1"), (np.array(["a", "b", "c"]), "column 1 ('b')")]
)
def test_a_value_outside_the_support_raises_and_is_named_with_its_column(
    likelihood, value, expected, names, column
):
    X = np.ones((5, 3))
    X[3, 1] = X[4, 2] = value
    message = f"{expected}. Got {value:.10g} in {column}."
    with pytest.raises(ValueError, match=re.escape(message)):
        likelihood.check_support(X, names)


# --- Gaussian: units --------------------------------------------------------------------------


def columns_of(std, mean=0.0):
    std = np.asarray(std, float)
    return Columns(np.broadcast_to(np.float64(mean), std.shape), std)


@pytest.mark.parametrize("noise", ["per_feature", "per_sample"])
def test_gaussian_noise_of_the_column_gives_each_column_its_own_scale(noise):
    mean, std = np.array([1.7e9, 0, -3]), np.array([1e3, 1e-6, 1e6])
    location, scale = Gaussian(noise).units(Columns(mean, std))
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


def noise_variance(noise, std, raw=None):
    """Noise variance in squared units of X: at the start, or with all learned values `raw`."""
    likelihood, columns = Gaussian(noise), columns_of(std)
    _, scale = likelihood.units(columns)
    module = likelihood.build(len(std)).double()
    likelihood.initialise(module, columns, scale)
    with torch.no_grad():
        if raw is not None:
            module.raw_variance.fill_(raw)
        return likelihood.variance(module).numpy() * scale**2


NOTHING = -1e4  # as the log of a variance


def test_gaussian_noise_per_feature_has_a_floor_of_a_hundredth_of_the_column():
    std = np.array([1e-6, 1.0, 1e6])
    variance = noise_variance("per_feature", std, NOTHING)
    np.testing.assert_allclose(np.sqrt(variance), 0.01 * std, rtol=1e-14)


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


def test_gaussian_noise_per_sample_has_a_floor_of_a_hundredth_of_the_column():
    s = start(Gaussian("per_sample"), real_line().data)
    mean = torch.zeros(1, 3).double()
    raw = torch.cat([mean, torch.full((1, 3), NOTHING).double()], dim=-1)
    highest = Gaussian("per_sample").log_prob(s.module, raw, mean).exp()
    density = 1 / (0.01 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(highest, torch.full_like(highest, density), rtol=1e-8, atol=0)


@pytest.mark.parametrize("variance", [1e-6, 0.5, 3.0])
@pytest.mark.parametrize("std", [[1.0, 2.0], [1e-3, 1e3]])
def test_gaussian_noise_that_is_given_is_the_variance_in_squared_units_of_x(variance, std):
    assert noise_variance(variance, np.array(std)) == pytest.approx(variance, rel=1e-14)


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
        low = raw[:, 3:] if noise == "per_sample" else module.raw_variance
        low.fill_(-20.0)
    learned = raw.requires_grad_() if noise == "per_sample" else module.raw_variance
    log_prob = likelihood.log_prob(module, raw, x).sum()
    (expected,) = torch.autograd.grad(log_prob, learned)
    with torch.no_grad():
        stack = stacked([s._replace(raw=raw, x=x)])
        _, pull = likelihood.vjp(stack.module, stack.raw, stack.x, torch.ones(1, 3))
        of_raw, of_parameters = pull(torch.ones(1, 6))
    gradient = (of_raw if noise == "per_sample" else of_parameters[0])[0]
    assert (gradient != 0).all()
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


@pytest.mark.parametrize(
    "noise",
    ["full", "", 0, 0.0, -1.0, math.inf, -math.inf, math.nan, True, None, (1.0,), ["shared"]],
)
def test_gaussian_refuses_what_is_no_noise(noise):
    message = (
        "The noise of a Gaussian must be one of ('per_feature', 'shared', 'per_sample') or a "
        f"positive finite variance. Got {noise!r} instead."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Gaussian(noise)


@pytest.mark.parametrize(("variance", "size"), [(1e30, 1e-3), (1e-30, 1e3)])
def test_gaussian_refuses_a_noise_that_is_out_of_reach_of_the_data(variance, size):
    message = (
        f"A noise variance of {variance:.3g} is out of reach for data whose columns vary by "
        f"{size:.3g}: give noise in squared units of X"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        noise_variance(variance, np.array([size, size]))


@pytest.mark.parametrize("noise", KINDS)
def test_gaussian_accepts_every_finite_number(noise):
    X = np.array([[-1e300, 0.0], [1e-300, 5.0]])
    np.testing.assert_array_equal(Gaussian(noise).check_support(X), X)


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
