"""Posteriors: the laws of all, and densities and divergences against torch.distributions."""

import math
import sys

import own_parts
import pytest
import torch
from posterior_laws import SIZES, Case, PosteriorLaws, normals, standard_normal
from torch import distributions as D

from skvae.posteriors import POSTERIORS as NAMES
from skvae.posteriors import Diagonal, Flow, Full


def bent(raw):
    """Log std, bent into +-15."""
    return 15 * torch.tanh(raw / 15)


def diagonal(raw):
    """N(mean, diag(std**2)), read from the formula."""
    mean, log_std = raw.chunk(2, dim=-1)
    return D.MultivariateNormal(mean, scale_tril=torch.diag_embed(bent(log_std).exp()))


def full(raw):
    """N(mean, T T'), T's entries below the diagonal row by row."""
    n = {2: 1, 5: 2, 9: 3, 14: 4, 20: 5}[raw.shape[-1]]
    factor = torch.diag_embed(bent(raw[..., n : 2 * n]).exp())
    place = 2 * n
    for i in range(n):
        for j in range(i):
            factor[..., i, j] = raw[..., place]
            place += 1
    return D.MultivariateNormal(raw[..., :n], scale_tril=factor)


NORMAL = [Case(Diagonal(), diagonal), Case(Full(), full)]
CASES = [
    *NORMAL,
    Case(Flow(hidden_layer_sizes=(8,), n_context=3), error_of_moments=0.1),  # of 64 fixed draws
    # A logit of a normal's distribution function loses some digits.
    Case(own_parts.Logistic(), tolerance=1e-9),
    Case(own_parts.LogisticDiagonal(), tolerance=1e-9),
    Case(own_parts.Learned()),
]


class TestEveryPosterior(PosteriorLaws):
    @pytest.fixture(params=CASES, ids=lambda case: repr(case.posterior))
    def case(self, request):
        return request.param


every_normal = pytest.mark.parametrize("case", NORMAL, ids=lambda case: repr(case.posterior))


def test_names_of_posteriors_stand_for_values():
    assert NAMES["diagonal"] == Diagonal()
    assert NAMES["full"] == Full()


# --- normal posteriors ------------------------------------------------------------------------


@every_normal
@pytest.mark.parametrize("n_components", SIZES)
def test_mean_and_std_equal_torch_distributions(case, n_components):
    raw = case.raw(n_components=n_components)
    mean, std = case.posterior.mean_std(None, case.posterior.parameters(raw))
    torch.testing.assert_close(mean, case.oracle(raw).mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(std, case.oracle(raw).stddev, rtol=1e-14, atol=0)


@every_normal
@pytest.mark.parametrize("n_components", SIZES)
def test_kl_equals_torch_distributions(case, n_components):
    raw = case.raw(n_components=n_components)
    kl = case.posterior.kl(case.posterior.parameters(raw))
    assert kl.shape == (6, n_components if case.posterior.factorises else 1)
    assert (kl > 0).all()
    expected = D.kl_divergence(case.oracle(raw), standard_normal(n_components))
    torch.testing.assert_close(kl.sum(-1), expected, rtol=1e-13, atol=0)
    if case.posterior.factorises:  # that of each component
        q = D.Normal(case.oracle(raw).mean, case.oracle(raw).stddev)
        expected = D.kl_divergence(q, D.Normal(0.0, 1.0))
        torch.testing.assert_close(kl, expected, rtol=1e-13, atol=1e-13)


@every_normal
@pytest.mark.parametrize("n_components", SIZES)
def test_log_density_of_any_z_is_that_of_torch_distributions_for_every_row(case, n_components):
    raw = case.raw(6, n_components)
    z = 2 * normals(2, 4, n_components, seed=5)
    log_density = case.posterior.log_density(None, case.posterior.parameters(raw), z)
    assert log_density.shape == (2, 4, 6)
    expected = case.oracle(raw).log_prob(z.unsqueeze(-2))
    torch.testing.assert_close(log_density, expected, rtol=1e-11, atol=1e-11)


@every_normal
@pytest.mark.parametrize(("n_components", "n_wider"), [(1, 5), (2, 3), (3, 3), (1, 2)])
def test_raw_outputs_in_their_places_say_the_same_and_the_prior_of_the_other_components(
    case, n_components, n_wider
):
    raw = case.raw(n_components=n_components)
    places = case.posterior.places(n_components, n_wider)
    assert len(set(places)) == len(places) == case.posterior.n_outputs(n_components)
    wide = torch.zeros(6, case.posterior.n_outputs(n_wider)).double()
    wide[:, places] = raw
    q, q_wide = case.posterior.parameters(raw), case.posterior.parameters(wide)
    for moment, own, of_prior in zip(
        case.posterior.mean_std(None, q_wide), case.posterior.mean_std(None, q), (0, 1), strict=True
    ):
        assert torch.equal(moment[:, :n_components], own)
        assert (moment[:, n_components:] == of_prior).all()
    torch.testing.assert_close(case.posterior.kl(q_wide).sum(-1), case.posterior.kl(q).sum(-1))
    # Noise of 0 stays 0 there.
    eps = normals(4, 6, n_components)
    z, _ = case.posterior.draw(None, q, eps)
    z_wide, _ = case.posterior.draw(
        None, q_wide, torch.nn.functional.pad(eps, (0, n_wider - n_components))
    )
    torch.testing.assert_close(z_wide[..., :n_components], z, rtol=1e-14, atol=1e-14)
    assert (z_wide[..., n_components:] == 0).all()


@every_normal
def test_raw_outputs_0_are_the_prior(case):
    q = case.posterior.parameters(torch.zeros(2, case.posterior.n_outputs(4)))
    assert case.posterior.kl(q).sum(-1).tolist() == [0, 0]


@every_normal
@pytest.mark.parametrize("raw_log_std", [-1e6, -40.0, 40.0, 1e6])
def test_kl_stays_finite_in_float32_for_raw_outputs_of_any_size(case, raw_log_std):
    q = case.posterior.parameters(torch.tensor([[0.5, raw_log_std]]))
    assert torch.isfinite(case.posterior.kl(q)).all()


@every_normal
@pytest.mark.parametrize("raw_log_std", [-40.0, 40.0])
def test_kl_lets_a_gradient_through_where_a_clamp_would_not(case, raw_log_std):
    raw = torch.tensor([[0.5, raw_log_std]], requires_grad=True)
    case.posterior.kl(case.posterior.parameters(raw)).sum().backward()
    assert raw.grad[0, 1].sign() == math.copysign(1, raw_log_std)  # towards the prior


# --- Flow -------------------------------------------------------------------------------------


def test_flow_is_built_without_moving_a_generator_and_where_torch_builds():
    before = torch.get_rng_state()
    flow = Flow()
    assert {p.device.type for p in flow.build(3).parameters()} == {"cpu"}
    with torch.device("meta"):
        assert {p.device.type for p in flow.build(3).parameters()} == {"meta"}
    assert torch.equal(torch.get_rng_state(), before)


def test_flow_is_told_of_the_row():
    posterior = Flow(hidden_layer_sizes=(8,), n_context=3)
    raw, module = torch.zeros(2, posterior.n_outputs(3)).double(), Case(posterior).built()
    raw[1, 6:] = 1.0
    z, _ = posterior.draw(module, posterior.parameters(raw), normals(4, 1, 3))
    assert (z[:, 0] != z[:, 1]).all()


def test_maps_of_a_flow_see_earlier_components_first_and_later_ones_next():
    # Files of models rely on this order.
    for n_transforms, sees in ((1, torch.ones(3, 3).tril()), (2, torch.ones(3, 3))):
        case = Case(Flow(n_transforms, (8,), 3))
        module, q = case.built(), case.posterior.parameters(case.raw(1))

        def draw(eps, case=case, module=module, q=q):
            return case.posterior.draw(module, q, eps.view(1, 1, 3))[0].flatten()

        jacobian = torch.autograd.functional.jacobian(draw, normals(3, seed=2))
        assert torch.equal(jacobian != 0, sees.bool())


def test_flow_without_zuko_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko.flows.autoregressive", None)
    with pytest.raises(ImportError, match=r'pip install "skvae\[flows\]"'):
        Flow().build(3)


@pytest.mark.parametrize(
    "parameters",
    [
        {"n_transforms": 0},
        {"n_transforms": -1},
        {"n_context": 0},
        {"hidden_layer_sizes": [8]},
        {"hidden_layer_sizes": (8, 0)},
        {"hidden_layer_sizes": (8, True)},
    ],
    ids=str,
)
def test_flow_refuses_what_is_no_flow(parameters):
    with pytest.raises(ValueError, match="A Flow takes a positive n_transforms"):
        Flow(**parameters)


# --- places -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("posterior", [Diagonal(), Full(), Flow(2, (8,), 5)], ids=str)
@pytest.mark.parametrize("n_components", range(1, 18))
@torch.no_grad()
def test_a_row_has_the_same_bits_at_every_place_in_a_block(posterior, n_components, dtype):
    g = torch.Generator().manual_seed(n_components)
    n_rows, n_draws = 61, 48
    module = posterior.build(n_components)
    posterior.initialise(module, g)
    module.to(dtype)

    def draw(*shape):
        return torch.randn(shape, generator=g, dtype=dtype)

    raw, pseudo = (draw(n, posterior.n_outputs(n_components)) for n in (n_rows, 3))
    others = posterior.parameters(pseudo)
    for n_own in (1, n_rows):  # noise that all rows share, or each row's own
        eps = draw(n_draws, n_own, n_components)

        def results(raw, eps):
            q = posterior.parameters(raw)
            z, log_q = posterior.draw(module, q, eps)
            if not posterior.has_density:
                return z, log_q
            return z, log_q, posterior.log_density(module, others, z), posterior.kl(q)[None]

        whole = results(raw, eps)
        for _ in range(3):
            places = torch.randperm(n_rows, generator=g)
            moved = results(raw[places], eps if n_own == 1 else eps[:, places])
            for ours, theirs in zip(moved, whole, strict=True):
                assert torch.equal(ours, theirs[:, places])
