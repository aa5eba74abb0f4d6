"""Laws of every prior: one body of tests, for the priors of skvae and for those of a user.

A test class inherits it and names the priors:

    class TestEveryPrior(PriorLaws):
        @pytest.fixture(params=CASES)
        def case(self, request):
            return request.param
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from likelihood_laws import check_is_a_value, normals, stack_modules

from skvae._backend.autograd import module_vjp
from skvae.posteriors import Diagonal

N_FEATURES = 4


class Case(NamedTuple):
    """A prior, and how to try it."""

    prior: Any
    # From a `Start` to its distribution, where torch has one.
    oracle: Callable[..., torch.distributions.Distribution] | None = None
    posterior: Any = Diagonal()  # of the pseudo-inputs
    sizes: tuple[int, ...] = (1, 2, 5)  # numbers of components
    tolerance: float = 1e-10  # of integrals


class Start(NamedTuple):
    """A prior in use, in float64, with learned values away from where they start."""

    case: Case
    module: torch.nn.Module
    raw: torch.Tensor | None  # outputs of an encoder for the pseudo-inputs

    @property
    def q(self):
        """The posteriors of the pseudo-inputs."""
        return self.case.posterior.parameters(self.raw)

    def log_prob(self, z):
        return self.case.prior.log_prob(self.module, z, *encoded(self.case, self.raw))

    def rsample(self, eps):
        return self.case.prior.rsample(self.module, eps, *encoded(self.case, self.raw))


def encoded(case, raw):
    """The last argument of a prior with pseudo-inputs."""
    if raw is None:
        return ()
    q = case.posterior.parameters(raw)
    factor = torch.diag_embed(q.log_std.exp())
    factor = factor if q.below is None else factor + q.below
    return (
        SimpleNamespace(
            log_density=lambda z: case.posterior.log_density(None, q, z),
            rsample=lambda index, eps: q.mean[index] + (factor[index] @ eps[..., None])[..., 0],
        ),
    )


def first_rows(prior):
    return normals(prior.n_pseudo_inputs, N_FEATURES).float() if prior.n_pseudo_inputs else None


def start(case, n_components, seed=0):
    """The prior for so many components. The encoder of pseudo-inputs is linear."""
    prior = case.prior
    module = prior.build(N_FEATURES, n_components)
    with torch.no_grad():
        prior.initialise(module, first_rows(prior), torch.Generator().manual_seed(seed))
        module.double()
        for i, p in enumerate(module.parameters()):
            p.add_(normals(*p.shape, seed=seed + i))
    raw = None
    if prior.n_pseudo_inputs:
        weight = normals(N_FEATURES, case.posterior.n_outputs(n_components), seed=seed + 1)
        raw = 0.25 * module.pseudo_inputs @ weight
    return Start(case, module, raw)


def grid(n_components):
    """Latent rows and the weights of an integral over them.

    z = sinh(u) is dense near the origin. Trapezia are exact to rounding for a smooth density that
    vanishes at the ends.
    """
    u = torch.linspace(-5, 5, 801, dtype=torch.float64)
    z, weight = (torch.cartesian_prod(*[v] * n_components) for v in (u.sinh(), u.cosh() / 80))
    return z.reshape(-1, n_components), weight.reshape(-1, n_components).prod(-1)


class PriorLaws:
    """Tests of the fixture `case`."""

    def test_density_integrates_to_1(self, case):
        for n_components in set(case.sizes) & {1, 2}:
            z, weight = grid(n_components)
            with torch.no_grad():
                total = (start(case, n_components).log_prob(z).exp() * weight).sum().item()
            assert total == pytest.approx(1, abs=case.tolerance)

    def test_draws_have_the_characteristic_function_of_the_density(self, case):
        n, n_components = 100_000, case.sizes[0]
        s, (z, weight) = start(case, n_components), grid(n_components)
        with torch.no_grad():
            drawn = s.rsample(normals(n, case.prior.n_noise(n_components))).sum(-1)
            density = s.log_prob(z).exp() * weight
        for function in (torch.cos, torch.sin):
            for frequency in (0.3, 1.0, 4.0):
                value = function(frequency * drawn)
                expected = (density * function(frequency * z.sum(-1))).sum()
                # Five standard errors.
                limit = 5 * value.std() / math.sqrt(n) + case.tolerance
                assert (value.mean() - expected).abs() < limit

    def test_draws_have_the_moments_that_the_slope_of_log_prob_implies(self, case):
        # Stein's identity: the slope has mean 0, and its product with z has mean -I.
        n = 100_000
        for n_components in case.sizes:
            s = start(case, n_components)
            z = s.rsample(normals(n, case.prior.n_noise(n_components))).detach().requires_grad_()
            assert z.shape == (n, n_components)
            (slope,) = torch.autograd.grad(s.log_prob(z).sum(), z)
            product = z.detach().unsqueeze(-1) * slope.unsqueeze(-2)
            for values, mean in [(slope, 0), (product, -torch.eye(n_components))]:
                # Five standard errors.
                assert ((values.mean(0) - mean).abs() < 5 * values.std(0) / math.sqrt(n)).all()

    def test_draws_are_decided_by_their_noise_alone(self, case):
        s, eps = start(case, 2), normals(50, case.prior.n_noise(2))
        torch.rand(1)  # so that no seed gives the state
        before = torch.get_rng_state()
        assert torch.equal(s.rsample(eps), s.rsample(eps))
        assert torch.equal(torch.get_rng_state(), before)

    def test_log_prob_is_of_each_row_alone(self, case):
        s, z = start(case, 3), 3 * normals(4, 6, 3)
        log_prob = s.log_prob(z)
        assert log_prob.shape == (4, 6)
        torch.testing.assert_close(s.log_prob(z[2, 3]), log_prob[2, 3], rtol=1e-13, atol=0)

    def test_gradients_are_those_of_differences_and_reach_every_parameter(self, case):
        module, z = start(case, 3).module, normals(4, 3).requires_grad_()
        weight = normals(N_FEATURES, case.posterior.n_outputs(3), seed=1)

        def log_prob(z, *parameters):  # differences change the parameters in place
            raw = 0.25 * module.pseudo_inputs @ weight if case.prior.n_pseudo_inputs else None
            return Start(case, module, raw).log_prob(z)

        inputs = [z, *module.parameters()]
        assert torch.autograd.gradcheck(log_prob, inputs)
        for gradient in torch.autograd.grad(log_prob(*inputs).sum(), inputs):
            assert (gradient != 0).all() or gradient.numel() == 1  # one weight alone says nothing

    @pytest.mark.parametrize("n_models", [1, 3])
    def test_a_stack_equals_its_members_and_pulls_back_as_autograd_of_each_does(
        self, case, n_models
    ):
        prior = case.prior
        members = [start(case, 3, seed=10 * m) for m in range(n_models)]
        z, g = normals(n_models, 7, 3, seed=1), normals(n_models, 7, seed=2)
        raws = [] if members[0].raw is None else [torch.stack([s.raw for s in members]).detach()]
        log_probs, expected = [], []
        for m, s in enumerate(members):
            inputs = [tensor[m].clone().requires_grad_() for tensor in (z, *raws)]
            log_prob = s._replace(raw=inputs[1] if raws else None).log_prob(inputs[0])
            learned = [p for name, p in s.module.named_parameters() if name != "pseudo_inputs"]
            expected.append(torch.autograd.grad(log_prob, [*inputs, *learned], g[m]))
            log_probs.append(log_prob.detach())
        stack = stack_modules([s.module for s in members])
        names = [name for name, _ in stack.named_parameters()]

        def log_prob_of_one(module, z, raw=None):
            return [prior.log_prob(module, z, *encoded(case, raw))]

        with torch.inference_mode():  # as in training
            if prior.has_vjp(case.posterior):
                q, pull_raw = case.posterior.parameters_vjp(raws[0]) if raws else (None, None)
                value, pull = prior.vjp(stack, z.clone(), q)
                g_z, of_parameters, of_q = pull(g)
                gradients = [g_z, *([pull_raw(*of_q)] if raws else []), *of_parameters]
            else:
                (value,), pull = module_vjp(log_prob_of_one, stack, [z, *raws])
                of_inputs, of_parameters = pull([g])
                pairs = zip(names, of_parameters, strict=True)
                gradients = [*of_inputs, *(p for name, p in pairs if name != "pseudo_inputs")]

        torch.testing.assert_close(value, torch.stack(log_probs), rtol=1e-12, atol=1e-12)
        expected = [torch.stack(own) for own in zip(*expected, strict=True)]
        torch.testing.assert_close(gradients, expected, rtol=1e-11, atol=1e-12)

    def test_float32_stays_float32_and_near_float64(self, case):
        s, z = start(case, 3), 3 * normals(20, 3)
        eps = normals(20, case.prior.n_noise(3), seed=1)
        exact = s.log_prob(z), s.rsample(eps)
        raw = None if s.raw is None else s.raw.float()
        single = Start(case, s.module.float(), raw)
        for value, expected in zip(
            (single.log_prob(z.float()), single.rsample(eps.float())), exact, strict=True
        ):
            assert value.dtype == torch.float32
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)

    def test_first_values_are_decided_by_the_generator_alone(self, case):
        prior = case.prior

        def values(module):
            prior.initialise(module, first_rows(prior), torch.Generator().manual_seed(0))
            return module.state_dict()

        def build():
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(0)
                return prior.build(N_FEATURES, 3)

        with torch.no_grad():
            before = torch.get_rng_state()
            first, same = values(build()), values(build())
            assert torch.equal(torch.get_rng_state(), before)
            torch.testing.assert_close(same, first, rtol=0, atol=0)
            if prior.initialises_all:
                with torch.device("meta"):
                    module = prior.build(N_FEATURES, 3)
                torch.testing.assert_close(
                    values(module.to_empty(device="cpu")), first, rtol=0, atol=0
                )

    def test_pseudo_inputs_start_as_the_rows_that_are_given(self, case):
        prior = case.prior
        module = prior.build(N_FEATURES, 2)
        with torch.no_grad():
            prior.initialise(module, first_rows(prior), torch.Generator())
        own = getattr(module, "pseudo_inputs", None)
        assert (own is None) == (prior.n_pseudo_inputs == 0)
        assert own is None or torch.equal(own, first_rows(prior))

    def test_prior_is_standard_normal_where_it_says_so(self, case):
        s, z = start(case, 3), normals(20, 3)
        if case.prior.can_be_standard:
            with torch.no_grad():
                case.prior.become_standard(s.module)
        expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
        is_standard = np.allclose(s.log_prob(z).detach(), expected, rtol=1e-12)
        assert is_standard == (case.prior.can_be_standard or case.prior.is_standard)

    def test_prior_is_a_value(self, case):
        check_is_a_value(case.prior)
