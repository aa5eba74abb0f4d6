"""What holds of every likelihood: one body of tests, for those of skvae and for your own.

A test class inherits it and says which likelihood is meant, and of what values:

    class TestExponential(LikelihoodLaws):
        @pytest.fixture
        def case(self):
            return Case(Exponential(), waiting_times)

where ``waiting_times()`` gives a `Support`: 50 rows of three columns of data, and all values that
there are with the weights of a sum, or enough of them with those of an integral. The file imports
pytest, numpy and torch only, and may be copied. Copy it anew with a new version of skvae: it calls
methods that the reference doesn't list.
"""

import copy
import math
import pickle
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch


class Support(NamedTuple):
    """Data, and all values x with the weights of a sum or an integral over them."""

    data: np.ndarray
    values: torch.Tensor
    weights: torch.Tensor


class Moments(NamedTuple):
    """What a likelihood is told of the columns."""

    mean: np.ndarray
    std: np.ndarray
    has_holes: bool = False
    n_values: np.ndarray | None = None
    n_various: np.ndarray | None = None  # rows with another value than most


class Start(NamedTuple):
    """A likelihood at work: what `_model` makes of it, in float64."""

    columns: Moments
    location: np.ndarray
    scale: np.ndarray
    module: torch.nn.Module
    raw: torch.Tensor  # decoder outputs, (6, P)
    x: torch.Tensor  # rows in the model's units, (6, 3)


def normals(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64)


def describe(X):
    """The moments of columns; a constant one has its constant and exactly 0."""
    constant = np.ptp(X, axis=0) == 0
    return Moments(np.where(constant, X[0], X.mean(axis=0)), np.where(constant, 0.0, X.std(axis=0)))


def start(likelihood, X, learn=True, seed=0):
    """The likelihood on data X, with learned values drawn away from where they start."""
    columns = describe(X)
    location, scale = likelihood.units(columns)
    module = likelihood.build(X.shape[1]).double()
    with torch.no_grad():
        likelihood.initialise(module, columns, scale)
        for p in module.parameters():
            p.add_(normals(*p.shape, seed=seed) * learn)
    raw = normals(6, likelihood.n_outputs(X.shape[1]), seed=seed + 1)
    x = torch.tensor((X[:6] - location) / np.where(scale > 0, scale, 1.0))
    return Start(columns, location, scale, module, raw, x)


def starts(likelihood, X, n_models):
    """The likelihood on parts of X: learned values, units, outputs and rows all differ."""
    return [start(likelihood, X[10 * m :], seed=10 * m) for m in range(n_models)]


def stack_modules(modules):
    """One module with the tensors of several, along a leading dimension."""
    stack = copy.deepcopy(modules[0])
    for name, tensor in stack.state_dict(keep_vars=True).items():
        tensor.data = torch.stack([module.state_dict()[name] for module in modules])
    return stack


def check_is_a_value(part):
    """Check that a part is equal to its copies, and prints as the code that makes it."""
    for same in (pickle.loads(pickle.dumps(part)), copy.deepcopy(part)):
        assert same == part
        assert hash(same) == hash(part)
    assert eval(repr(part), vars(sys.modules[type(part).__module__])) == part


def stacked(several):
    """One `Start` of several, along a leading dimension."""
    module = stack_modules([s.module for s in several])
    raw, x = (torch.stack([getattr(s, name).detach() for s in several]) for name in ("raw", "x"))
    return several[0]._replace(module=module, raw=raw, x=x)


class Case(NamedTuple):
    """A likelihood, and what is needed to try it."""

    likelihood: Any
    support: Callable[[], Support]
    # The distribution of x that a likelihood at work and raw outputs stand for, where known.
    of: Callable[..., Any] | None = None
    tolerance: float = 1e-10  # of sums and integrals over the support

    def oracle(self, s, raw):
        """The distribution of x that raw outputs stand for."""
        return self.of(self.likelihood, s, raw)


# Of columns, one row for all; and of values, as where some are missing.
WEIGHTS = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]).double().unsqueeze(1)
HOLES = torch.stack([WEIGHTS.repeat(2, 1, 1).squeeze(1).roll(m, 0) for m in range(3)])


class LikelihoodLaws:
    """Tests of the fixture `case`."""

    def test_density_integrates_to_1_and_has_the_mean_that_the_likelihood_gives(self, case):
        likelihood, support = case.likelihood, case.support()
        s = start(likelihood, support.data)
        x, weights = support.values[:, None, None], support.weights[:, None, None]
        with torch.no_grad():
            density = likelihood.log_prob(s.module, s.raw, x).exp()
            mean = likelihood.mean(s.module, s.raw)
        ones, tolerance = torch.ones(6, 3).double(), case.tolerance
        torch.testing.assert_close((weights * density).sum(0), ones, rtol=0, atol=tolerance)
        moment = (weights * x * density).sum(0)
        torch.testing.assert_close(moment, mean, rtol=tolerance, atol=tolerance)

    def test_draws_have_the_characteristic_function_of_the_density(self, case):
        # Bounded, so that heavy tails have a standard error too.
        likelihood, support, n = case.likelihood, case.support(), 20_000
        s = start(likelihood, support.data)
        values, weights = support.values[:, None, None], support.weights[:, None, None]
        with torch.no_grad():
            x = likelihood.sample(
                s.module, s.raw.expand(n, -1, -1), torch.Generator().manual_seed(0)
            )
            density = weights * likelihood.log_prob(s.module, s.raw, values).exp()
        for function in (torch.cos, torch.sin):
            for frequency in (0.5, 2.0, 8.0):
                drawn = function(frequency * x)
                # Values beyond 1e6 have no density to speak of, and no phase.
                expected = (density * function(frequency * values.clamp(-1e6, 1e6))).sum(0)
                # Five standard errors.
                limit = 5 * drawn.std(0) / math.sqrt(n) + case.tolerance
                assert ((drawn.mean(0) - expected).abs() < limit).all()

    def test_draws_are_decided_by_their_generator_alone(self, case):
        likelihood, s = case.likelihood, start(case.likelihood, case.support().data)
        torch.rand(1)  # so that no seed gives the state
        before = torch.get_rng_state()
        many = s.raw.expand(50, -1, -1)
        first, same, other = (
            likelihood.sample(s.module, many, torch.Generator().manual_seed(seed))
            for seed in (0, 0, 1)
        )
        assert torch.equal(first, same)
        assert not torch.equal(first, other)
        assert torch.equal(torch.get_rng_state(), before)

    def test_draws_are_possible_values(self, case):
        likelihood, s = case.likelihood, start(case.likelihood, case.support().data)
        x = likelihood.sample(s.module, s.raw, torch.Generator().manual_seed(0)).detach().numpy()
        X = np.float64(s.location + s.scale * x)
        np.testing.assert_allclose(likelihood.check_support(X), X, rtol=1e-14)  # units round

    def test_a_gradient_reaches_every_output_and_every_parameter(self, case):
        likelihood, s = case.likelihood, start(case.likelihood, case.support().data)
        raw = s.raw.requires_grad_()
        likelihood.log_prob(s.module, raw, s.x).sum().backward()
        assert (raw.grad != 0).all()
        for name, p in s.module.named_parameters():
            assert (p.grad != 0).all(), name

    @pytest.mark.parametrize("n_models", [1, 3])
    @pytest.mark.parametrize("first", [0, 1])
    @pytest.mark.parametrize("of_each", [WEIGHTS, HOLES], ids=["columns", "values"])
    def test_vjp_equals_weighted_log_prob_and_pulls_back_as_autograd_does(
        self, case, n_models, first, of_each
    ):
        likelihood = case.likelihood
        several = starts(likelihood, case.support().data, n_models)
        weights = of_each.roll(-first, 0)[:n_models]
        g = normals(n_models, 6, seed=2)
        log_probs, of_raw, of_parameters = [], [], []
        for s, weight, own in zip(several, weights, g, strict=True):
            raw = s.raw.requires_grad_()
            log_prob = (likelihood.log_prob(s.module, raw, s.x) * weight).sum(-1)
            gradient, *others = torch.autograd.grad(log_prob, [raw, *s.module.parameters()], own)
            log_probs.append(log_prob.detach())
            of_raw.append(gradient)
            of_parameters.append(others)
        expected = [torch.stack(own) for own in (of_raw, *zip(*of_parameters, strict=True))]

        stack = stacked(several)
        with torch.inference_mode():  # as in training
            stack = stack._replace(raw=stack.raw.clone(), x=stack.x.clone())
            same, pull = likelihood.vjp(stack.module, stack.raw, stack.x, weights)
            g_raw, g_parameters = pull(g)
            each = zip(several, weights, strict=True)
            total = torch.stack([likelihood.total(s.module, s.raw, s.x, w) for s, w in each])

        torch.testing.assert_close(same, torch.stack(log_probs), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(total, same, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close([g_raw, *g_parameters], expected, rtol=1e-11, atol=1e-12)

    @pytest.mark.parametrize("shape", [(4, 1, 1), (1, 1)])
    def test_total_without_a_stack_is_the_weighted_log_prob_of_every_draw(self, case, shape):
        likelihood, s = case.likelihood, start(case.likelihood, case.support().data)
        raw, weight = s.raw + normals(*shape), WEIGHTS[1]
        with torch.no_grad():
            value = likelihood.total(s.module, raw, s.x, weight)
            expected = likelihood.log_prob(s.module, raw, s.x) @ weight[0]
        assert value.shape == raw.shape[:-1]
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("constant", [0.0, 1.0])
    def test_constant_columns_have_scale_0_at_their_constant_and_the_others_do_not(
        self, case, constant
    ):
        X = case.support().data.copy()
        X[:, 1] = constant
        location, scale = case.likelihood.units(describe(X))
        assert location.dtype == scale.dtype == np.float64
        assert location[1] == constant
        assert scale[1] == 0
        assert (scale[[0, 2]] > 0).all()

    def test_a_constant_column_does_not_change_the_units_and_start_of_the_others(self, case):
        X = case.support().data
        with_constant = np.insert(X, 1, 1.0, axis=1)
        s, more = (
            start(case.likelihood, X, False),
            start(case.likelihood, with_constant, False),
        )
        for a, b in [(s.location, more.location), (s.scale, more.scale)]:
            np.testing.assert_array_equal(a, np.delete(b, 1))
        for a, b in zip(
            s.module.state_dict().values(), more.module.state_dict().values(), strict=True
        ):
            b = b if len(a) == 1 else torch.cat([b[:1], b[2:]])
            torch.testing.assert_close(a, b, rtol=1e-14, atol=0)

    def test_data_of_constants_only_leaves_everything_finite(self, case):
        X = np.ones((6, 3))
        s = start(case.likelihood, X, learn=False)
        assert not s.scale.any()
        assert torch.isfinite(case.likelihood.log_prob(s.module, s.raw, s.x)).all()
        np.testing.assert_array_equal(s.location, 1)

    def test_float32_stays_float32_and_finite_for_outputs_of_any_size(self, case):
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

    def test_likelihood_is_a_value(self, case):
        check_is_a_value(case.likelihood)
