"""Laws of every posterior: one body of tests, for the posteriors of skvae and for those of a user.

A test class inherits it and names the posteriors:

    class TestEveryPosterior(PosteriorLaws):
        @pytest.fixture(params=CASES)
        def case(self, request):
            return request.param
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from likelihood_laws import check_is_a_value, normals, stack_modules
from torch import distributions as D

from skvae._backend.autograd import module_vjp

SIZES = [1, 3, 5]


class Case(NamedTuple):
    """A posterior, and how to try it."""

    posterior: Any
    # From raw outputs to the distribution that they stand for, where torch has one.
    oracle: Callable[..., D.Distribution] | None = None
    # The largest error of mean and std, in standard deviations, where draws estimate them.
    error_of_moments: float = 0.0
    tolerance: float = 1e-11  # of log-densities against a determinant

    def built(self, n_components=3, seed=0):
        """The module of what is learned besides the encoder, with random values, in float64."""
        module = self.posterior.build(n_components).double()
        with torch.no_grad():
            for i, p in enumerate(module.parameters()):
                p.copy_(0.5 * normals(*p.shape, seed=seed + i))
        return module

    def raw(self, n_rows=6, n_components=3, size=1.5, seed=1):
        return size * normals(n_rows, self.posterior.n_outputs(n_components), seed=seed)


def standard_normal(n_components):
    return D.MultivariateNormal(
        torch.zeros(n_components).double(), torch.eye(n_components).double()
    )


class PosteriorLaws:
    """Tests of the fixture `case`."""

    @pytest.mark.parametrize("n_components", SIZES)
    def test_log_density_of_a_draw_is_that_of_its_noise_less_the_log_determinant(
        self, case, n_components
    ):
        posterior, module = case.posterior, case.built(n_components)
        q = posterior.parameters(case.raw(1, n_components))

        def draw(eps):
            return posterior.draw(module, q, eps.view(1, 1, -1))[0].flatten()

        for eps in normals(4, n_components, seed=2):
            jacobian = torch.autograd.functional.jacobian(draw, eps)
            log_determinant = torch.linalg.slogdet(jacobian).logabsdet
            expected = standard_normal(n_components).log_prob(eps) - log_determinant
            (log_q,) = posterior.draw(module, q, eps.view(1, 1, -1))[1].flatten()
            # float64: rounding of a determinant of a few numbers.
            torch.testing.assert_close(log_q, expected, rtol=case.tolerance, atol=case.tolerance)

    def test_density_integrates_to_1(self, case):
        posterior, q = case.posterior, case.posterior.parameters(case.raw(5, 1))
        eps = torch.linspace(-10, 10, 4001, dtype=torch.float64).reshape(-1, 1, 1)
        with torch.no_grad():
            z, log_q = posterior.draw(case.built(1), q, eps)
        # Trapezia are exact to rounding for a smooth density that vanishes at the ends, and to the
        # square of their steps where these differ.
        total = torch.trapezoid(log_q.exp(), z[..., 0], dim=0)
        torch.testing.assert_close(total, torch.ones(5).double(), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("n_rows_of_noise", [6, 1])
    def test_draws_of_a_row_depend_on_its_own_outputs_and_noise_alone(self, case, n_rows_of_noise):
        posterior, raw, module = case.posterior, case.raw(), case.built()
        eps = normals(4, n_rows_of_noise, 3)
        z, log_q = posterior.draw(module, posterior.parameters(raw), eps)
        assert z.shape == (4, 6, 3)
        assert log_q.shape == (4, 6)
        for row in range(6):
            own = posterior.parameters(raw[[row]])
            z_alone, log_q_alone = posterior.draw(module, own, eps[:, [row % n_rows_of_noise]])
            torch.testing.assert_close(z[:, [row]], z_alone, rtol=1e-13, atol=1e-13)
            torch.testing.assert_close(log_q[:, [row]], log_q_alone, rtol=1e-13, atol=1e-13)

    def test_mean_and_std_are_those_of_many_draws(self, case):
        posterior, raw, n, module = case.posterior, case.raw(size=0.5), 200_000, case.built()
        with torch.no_grad():
            q = posterior.parameters(raw)
            z, _ = posterior.draw(module, q, normals(n, 1, 3, seed=3))
            mean, std = posterior.mean_std(module, q)
            torch.testing.assert_close(posterior.mean(module, raw), mean, rtol=0, atol=0)
        # Five standard errors; that of a standard deviation from the spread of the squares.
        square = (z - z.mean(0)).square()
        limit = 5 / math.sqrt(n) * square.std(0) / (2 * std) + case.error_of_moments * std
        assert ((z.mean(0) - mean).abs() < (5 / math.sqrt(n) + case.error_of_moments) * std).all()
        assert ((z.std(0) - std).abs() < limit).all()

    def test_gradients_are_those_of_differences_and_reach_every_output(self, case):
        posterior, raw = case.posterior, case.raw().requires_grad_()
        module, eps = case.built(), normals(2, 6, 3)

        def log_ratio(raw, *parameters):  # differences change the parameters in place
            z, log_q = posterior.draw(module, posterior.parameters(raw), eps)
            return log_q - standard_normal(3).log_prob(z)

        inputs = [raw, *module.parameters()]
        assert torch.autograd.gradcheck(log_ratio, inputs, fast_mode=True)
        gradient, *others = torch.autograd.grad(log_ratio(*inputs).sum(), inputs)
        assert (gradient != 0).all()
        assert all((other != 0).any() for other in others)  # masked weights of a flow have none

    @pytest.mark.parametrize("n_components", SIZES)
    def test_kl_is_the_mean_log_ratio_of_draws_to_the_standard_normal(self, case, n_components):
        posterior, raw, n = case.posterior, case.raw(n_components=n_components), 100_000
        if not posterior.has_kl:
            return
        q = posterior.parameters(raw)
        kl = posterior.kl(q)
        assert kl.shape == (6, n_components if posterior.factorises else 1)
        assert (kl > 0).all()
        z, log_q = posterior.draw(case.built(n_components), q, normals(n, 1, n_components))
        log_ratio = log_q - standard_normal(n_components).log_prob(z)
        # Five standard errors.
        error = log_ratio.std(0) / math.sqrt(n)
        assert ((log_ratio.mean(0) - kl.sum(-1)).abs() < 5 * error).all()

    def test_log_density_of_draws_for_every_row_is_their_log_q_on_the_diagonal(self, case):
        posterior, module, q = case.posterior, case.built(), case.posterior.parameters(case.raw())
        if not posterior.has_density:
            return
        z, log_q = posterior.draw(module, q, normals(4, 6, 3))
        log_density = posterior.log_density(module, q, z)
        assert log_density.shape == (4, 6, 6)
        own = log_density.diagonal(dim1=-2, dim2=-1)
        # z - mean loses some digits where std is small.
        torch.testing.assert_close(own, log_q, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("n_draws", [1, 3])
    @pytest.mark.parametrize("n_models", [1, 3])
    def test_a_stack_equals_its_members_and_pulls_back_as_autograd_of_each_does(
        self, case, n_models, n_draws
    ):
        posterior = case.posterior
        raw = torch.stack([(1 + m) * case.raw().roll(m, 0) for m in range(n_models)])
        modules = [case.built(seed=10 * m) for m in range(n_models)]
        eps, g_z = (normals(n_models, n_draws, 6, 3, seed=seed) for seed in (0, 2))
        for by_draw in [True, False][: 1 + posterior.has_vjp]:
            n_kl = (n_draws, 6, 1) if by_draw else (1, 6, 3 if posterior.factorises else 1)
            g_kl = normals(n_models, *n_kl, seed=3)

            def terms(module, raw, eps, by_draw=by_draw):
                q = posterior.parameters(raw)
                z, log_q = posterior.draw(module, q, eps)
                log_ratio = log_q - standard_normal(3).log_prob(z)
                return [z, log_ratio.unsqueeze(-1) if by_draw else posterior.kl(q).unsqueeze(0)]

            draws, expected = [], []
            for m, module in enumerate(modules):
                own = raw[m].clone().requires_grad_()
                pair = terms(module, own, eps[m])
                inputs = [own, *module.parameters()]
                expected.append(torch.autograd.grad(pair, inputs, [g_z[m], g_kl[m]]))
                draws.append([tensor.detach() for tensor in pair])
            with torch.inference_mode():  # as in training
                if posterior.has_vjp:
                    z, kl, pull = posterior.vjp(raw.clone(), eps, by_draw=by_draw)
                    gradients = [pull(g_z, g_kl)]
                else:
                    stack = stack_modules(modules)
                    (z, kl), pull = module_vjp(terms, stack, [raw.clone()], [eps])
                    of_raw, of_parameters = pull([g_z, g_kl])
                    gradients = [*of_raw, *of_parameters]
            own_z, own_kl = (torch.stack(own) for own in zip(*draws, strict=True))
            torch.testing.assert_close(z, own_z, rtol=1e-13, atol=1e-13)
            # Half of z**2 - eps**2, of up to a few thousand, loses some digits.
            torch.testing.assert_close(kl, own_kl, rtol=1e-12, atol=1e-12)
            stacked = [torch.stack(own) for own in zip(*expected, strict=True)]
            torch.testing.assert_close(gradients, stacked, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("size", [1e3, -1e3, 1e6])
    def test_draws_stay_finite_in_float32_for_outputs_of_any_size(self, case, size):
        posterior = case.posterior
        raw = torch.ones(2, posterior.n_outputs(3))
        raw[:, 3:6] = size  # of log std, in every posterior here
        q, eps = posterior.parameters(raw), normals(4, 2, 3).float()
        for result in posterior.draw(posterior.build(3), q, eps):
            assert result.dtype == torch.float32
            assert torch.isfinite(result).all()

    def test_float32_is_near_float64(self, case):
        posterior, module, raw, eps = case.posterior, case.built(), case.raw(), normals(4, 6, 3)
        exact = posterior.draw(module, posterior.parameters(raw), eps)
        single = posterior.draw(module.float(), posterior.parameters(raw.float()), eps.float())
        for value, expected in zip(single, exact, strict=True):
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)

    def test_first_values_are_decided_by_the_generator_alone(self, case):
        def values():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                module = case.posterior.build(3)
            case.posterior.initialise(module, torch.Generator().manual_seed(0))
            return module.state_dict()

        before = torch.get_rng_state()
        torch.testing.assert_close(values(), values(), rtol=0, atol=0)
        assert torch.equal(torch.get_rng_state(), before)

    def test_posterior_is_a_value(self, case):
        check_is_a_value(case.posterior)
