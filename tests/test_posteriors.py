"""Posteriors: densities, divergences, draws and gradients, against torch.distributions."""

import math
import pickle
import sys

import pytest
import torch
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


# One line for each posterior: the value, and the distribution that its raw outputs stand for,
# if it is a normal one.
POSTERIORS = [
    pytest.param(Diagonal(), diagonal, id="Diagonal"),
    pytest.param(Full(), full, id="Full"),
    pytest.param(Flow(hidden_layer_sizes=(8,), n_context=3), None, id="Flow"),
]

every_posterior = pytest.mark.parametrize(("posterior", "oracle"), POSTERIORS)
every_normal = pytest.mark.parametrize(("posterior", "oracle"), POSTERIORS[:2])
SIZES = [1, 3, 5]


def normals(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64)


def raw_outputs(posterior, n_rows=6, n_components=3, size=1.5):
    return size * normals(n_rows, posterior.n_outputs(n_components), seed=1)


def built(posterior, n_components=3):
    """What is learned besides the encoder, in float64, of values drawn at random."""
    module = posterior.build(n_components).double()
    with torch.no_grad():
        for seed, p in enumerate(module.parameters()):
            p.copy_(0.5 * normals(*p.shape, seed=seed))
    return module


def prior(n_components):
    return D.MultivariateNormal(
        torch.zeros(n_components).double(), torch.eye(n_components).double()
    )


# --- every posterior --------------------------------------------------------------------------


@every_posterior
@pytest.mark.parametrize("n_components", SIZES)
def test_log_density_of_a_draw_is_that_of_its_noise_less_the_log_determinant(
    posterior, oracle, n_components
):
    raw, module = raw_outputs(posterior, 1, n_components), built(posterior, n_components)
    q = posterior.parameters(raw)

    def draw(eps):
        return posterior.draw(module, q, eps.view(1, 1, -1))[0].flatten()

    for eps in normals(4, n_components, seed=2):
        jacobian = torch.autograd.functional.jacobian(draw, eps)
        expected = prior(n_components).log_prob(eps) - torch.linalg.slogdet(jacobian).logabsdet
        (log_prob,) = posterior.draw(module, q, eps.view(1, 1, -1))[1].flatten()
        # float64: rounding of a determinant of a few numbers.
        torch.testing.assert_close(log_prob, expected, rtol=1e-11, atol=1e-11)


@every_posterior
@pytest.mark.parametrize("n_rows_of_noise", [6, 1])
def test_draws_of_shared_noise_are_those_of_the_same_noise_for_each_row(
    posterior, oracle, n_rows_of_noise
):
    raw, eps, module = raw_outputs(posterior), normals(4, n_rows_of_noise, 3), built(posterior)
    z, log_prob = posterior.draw(module, posterior.parameters(raw), eps)
    assert z.shape == (4, 6, 3)
    assert log_prob.shape == (4, 6)
    for row in range(6):
        own = posterior.parameters(raw[row : row + 1])
        noise = eps[:, [row % n_rows_of_noise]]
        z_alone, log_prob_alone = posterior.draw(module, own, noise)
        torch.testing.assert_close(z[:, [row]], z_alone, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(log_prob[:, [row]], log_prob_alone, rtol=1e-13, atol=1e-13)


@every_posterior
def test_density_integrates_to_1(posterior, oracle):
    raw, module = raw_outputs(posterior, 5, 1), built(posterior, 1)
    eps = torch.linspace(-10, 10, 4001, dtype=torch.float64).reshape(-1, 1, 1)
    with torch.no_grad():
        z, log_prob = posterior.draw(module, posterior.parameters(raw), eps)
    # Trapezia are exact to rounding for a smooth density that vanishes at the ends, and to the
    # square of their steps where these differ.
    total = torch.trapezoid(log_prob.exp(), z[..., 0], dim=0)
    torch.testing.assert_close(total, torch.ones(5).double(), rtol=0, atol=1e-5)


@every_posterior
def test_mean_and_std_are_those_of_many_draws(posterior, oracle):
    raw, n, module = raw_outputs(posterior, size=0.5), 200_000, built(posterior)
    with torch.no_grad():
        q = posterior.parameters(raw)
        z, _ = posterior.draw(module, q, normals(n, 1, 3, seed=3))
        mean, std = posterior.mean_std(module, q)
        torch.testing.assert_close(posterior.mean(module, raw), mean, rtol=0, atol=0)
    # A flow takes 64 fixed draws; the others know.
    error = 0.1 if oracle is None else 0.0
    assert ((z.mean(0) - mean).abs() < (5 / math.sqrt(n) + error) * std).all()
    assert ((z.std(0) - std).abs() < (5 / math.sqrt(2 * n) + error) * std).all()


@every_posterior
def test_gradients_reach_every_raw_output_and_every_parameter(posterior, oracle):
    raw, module = raw_outputs(posterior).requires_grad_(), built(posterior)
    z, log_prob = posterior.draw(module, posterior.parameters(raw), normals(2, 6, 3))
    log_ratio = (log_prob - prior(3).log_prob(z)).sum()
    gradient, *others = torch.autograd.grad(log_ratio, [raw, *module.parameters()])
    assert (gradient != 0).all()
    assert bool(others) == (oracle is None)
    # Masked weights of a flow have none.
    assert all((other != 0).any() for other in others)


@every_posterior
@pytest.mark.parametrize("size", [1e3, -1e3, 1e6])
def test_draws_stay_finite_in_float32_for_raw_outputs_of_any_size(posterior, oracle, size):
    raw = torch.ones(2, posterior.n_outputs(3))
    raw[:, 3:6] = size  # of log std
    z, log_prob = posterior.draw(
        posterior.build(3), posterior.parameters(raw), normals(4, 2, 3).float()
    )
    assert z.dtype == log_prob.dtype == torch.float32
    assert torch.isfinite(z).all()
    assert torch.isfinite(log_prob).all()


@every_posterior
def test_posterior_is_a_value(posterior, oracle):
    assert pickle.loads(pickle.dumps(posterior)) == posterior
    assert hash(posterior) == hash(pickle.loads(pickle.dumps(posterior)))
    assert eval(repr(posterior)) == posterior


def test_names_of_posteriors_stand_for_values():
    assert NAMES["diagonal"] == Diagonal()
    assert NAMES["full"] == Full()


# --- normal posteriors ------------------------------------------------------------------------


@every_normal
@pytest.mark.parametrize("n_components", SIZES)
def test_mean_and_std_equal_torch_distributions(posterior, oracle, n_components):
    raw = raw_outputs(posterior, n_components=n_components)
    mean, std = posterior.mean_std(None, posterior.parameters(raw))
    torch.testing.assert_close(mean, oracle(raw).mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(std, oracle(raw).stddev, rtol=1e-14, atol=0)


@every_normal
@pytest.mark.parametrize("n_components", SIZES)
def test_kl_equals_torch_distributions(posterior, oracle, n_components):
    raw = raw_outputs(posterior, n_components=n_components)
    kl = posterior.kl(posterior.parameters(raw))
    assert kl.shape == (6, n_components if posterior.factorises else 1)
    assert (kl > 0).all()
    expected = D.kl_divergence(oracle(raw), prior(n_components))
    torch.testing.assert_close(kl.sum(-1), expected, rtol=1e-13, atol=0)


def test_kl_of_a_component_is_its_own():
    raw = raw_outputs(Diagonal())
    mean, std = Diagonal().mean_std(None, Diagonal().parameters(raw))
    expected = D.kl_divergence(D.Normal(mean, std), D.Normal(torch.zeros(3).double(), 1.0))
    torch.testing.assert_close(
        Diagonal().kl(Diagonal().parameters(raw)), expected, rtol=1e-13, atol=1e-13
    )


@every_normal
def test_kl_is_the_mean_log_ratio_over_draws(posterior, oracle):
    raw, n = raw_outputs(posterior), 100_000
    q = posterior.parameters(raw)
    z, log_prob = posterior.draw(None, q, normals(n, 1, 3))
    log_ratio = log_prob - prior(3).log_prob(z)
    error = log_ratio.std(0) / math.sqrt(n)
    assert ((log_ratio.mean(0) - posterior.kl(q).sum(-1)).abs() < 5 * error).all()


@every_normal
@pytest.mark.parametrize("n_components", SIZES)
def test_log_prob_of_draws_equals_torch_distributions(posterior, oracle, n_components):
    raw, eps = raw_outputs(posterior, n_components=n_components), normals(4, 6, n_components)
    z, log_prob = posterior.draw(None, posterior.parameters(raw), eps)
    # z - mean loses some digits where std is small: the oracle is rounded more.
    torch.testing.assert_close(log_prob, oracle(raw).log_prob(z), rtol=1e-10, atol=1e-10)


@every_normal
def test_draws_have_the_covariance_of_the_density(posterior, oracle):
    raw, n = raw_outputs(posterior, size=0.7), 100_000
    z, _ = posterior.draw(None, posterior.parameters(raw), normals(n, 1, 3))
    whitened = torch.linalg.solve_triangular(
        oracle(raw).scale_tril, (z - oracle(raw).mean).unsqueeze(-1), upper=False
    ).squeeze(-1)
    assert (whitened.mean(0).abs() < 5 / math.sqrt(n)).all()
    covariance = torch.einsum("nbi,nbj->bij", whitened, whitened) / n
    # Five standard errors: of a variance the square root of 2 / n.
    assert ((covariance - torch.eye(3)).abs() < 5 * math.sqrt(2 / n)).all()


@every_normal
@pytest.mark.parametrize("n_components", SIZES)
def test_log_density_of_any_z_is_that_of_torch_distributions_for_every_row(
    posterior, oracle, n_components
):
    raw = raw_outputs(posterior, 6, n_components)
    z = 2 * normals(2, 4, n_components, seed=5)
    log_density = posterior.log_density(None, posterior.parameters(raw), z)
    assert log_density.shape == (2, 4, 6)
    expected = oracle(raw).log_prob(z.unsqueeze(-2))
    torch.testing.assert_close(log_density, expected, rtol=1e-11, atol=1e-11)


@every_normal
def test_log_density_of_a_draw_is_its_log_prob(posterior, oracle):
    raw = raw_outputs(posterior)
    q = posterior.parameters(raw)
    z, log_prob = posterior.draw(None, q, normals(4, 6, 3))
    own = posterior.log_density(None, q, z).diagonal(dim1=-2, dim2=-1)
    # z - mean loses some digits where std is small.
    torch.testing.assert_close(own, log_prob, rtol=1e-10, atol=1e-10)


@every_normal
@pytest.mark.parametrize(("n_components", "n_wider"), [(1, 5), (2, 3), (3, 3), (1, 2)])
def test_raw_outputs_in_their_places_say_the_same_and_the_prior_of_the_other_components(
    posterior, oracle, n_components, n_wider
):
    raw = raw_outputs(posterior, n_components=n_components)
    places = posterior.places(n_components, n_wider)
    assert len(set(places)) == len(places) == posterior.n_outputs(n_components)
    wide = torch.zeros(6, posterior.n_outputs(n_wider)).double()
    wide[:, places] = raw
    q, q_wide = posterior.parameters(raw), posterior.parameters(wide)
    for moment, own, of_prior in zip(
        posterior.mean_std(None, q_wide), posterior.mean_std(None, q), (0, 1), strict=True
    ):
        assert torch.equal(moment[:, :n_components], own)
        assert (moment[:, n_components:] == of_prior).all()
    torch.testing.assert_close(posterior.kl(q_wide).sum(-1), posterior.kl(q).sum(-1))
    # Noise of 0 stays 0 there.
    eps = normals(4, 6, n_components)
    z, _ = posterior.draw(None, q, eps)
    z_wide, _ = posterior.draw(
        None, q_wide, torch.nn.functional.pad(eps, (0, n_wider - n_components))
    )
    torch.testing.assert_close(z_wide[..., :n_components], z, rtol=1e-14, atol=1e-14)
    assert (z_wide[..., n_components:] == 0).all()


@every_normal
def test_raw_outputs_0_are_the_prior(posterior, oracle):
    q = posterior.parameters(torch.zeros(2, posterior.n_outputs(4)))
    assert posterior.kl(q).sum(-1).tolist() == [0, 0]


@every_normal
@pytest.mark.parametrize("raw_log_std", [-1e6, -40.0, 40.0, 1e6])
def test_kl_stays_finite_in_float32_for_raw_outputs_of_any_size(posterior, oracle, raw_log_std):
    q = posterior.parameters(torch.tensor([[0.5, raw_log_std]]))
    assert torch.isfinite(posterior.kl(q)).all()


@every_normal
@pytest.mark.parametrize("raw_log_std", [-40.0, 40.0])
def test_kl_lets_a_gradient_through_where_a_clamp_would_not(posterior, oracle, raw_log_std):
    raw = torch.tensor([[0.5, raw_log_std]], requires_grad=True)
    posterior.kl(posterior.parameters(raw)).sum().backward()
    assert raw.grad[0, 1].sign() == math.copysign(1, raw_log_std)  # towards the prior


# --- vjp --------------------------------------------------------------------------------------


@every_normal
@pytest.mark.parametrize("by_draw", [False, True])
@pytest.mark.parametrize("n_draws", [1, 3])
@pytest.mark.parametrize("n_models", [1, 3])
def test_vjp_equals_draws_and_kl_and_pulls_back_as_autograd_does(
    posterior, oracle, n_models, n_draws, by_draw
):
    raw = torch.stack([(1 + m) * raw_outputs(posterior).roll(m, 0) for m in range(n_models)])
    raw, eps = raw.requires_grad_(), normals(n_models, n_draws, 6, 3)
    qs = [posterior.parameters(rows) for rows in raw]
    z, log_q = map(
        torch.stack,
        zip(*(posterior.draw(None, q, own) for q, own in zip(qs, eps, strict=True)), strict=True),
    )
    if by_draw:
        kl = (log_q - prior(3).log_prob(z)).unsqueeze(-1)
    else:
        kl = torch.stack([posterior.kl(q).unsqueeze(0) for q in qs])
    g_z, g_kl = normals(n_models, n_draws, 6, 3, seed=2), normals(*kl.shape, seed=3)
    (expected,) = torch.autograd.grad([z, kl], raw, [g_z, g_kl])

    with torch.inference_mode():  # as in training
        same_z, same_kl, pull = posterior.vjp(raw.detach().clone(), eps, by_draw=by_draw)
        gradient = pull(g_z, g_kl)

    torch.testing.assert_close(same_z, z.detach(), rtol=1e-13, atol=1e-13)
    # Half of z**2 - eps**2, of up to a few thousand, loses some digits.
    torch.testing.assert_close(same_kl, kl.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@every_normal
@pytest.mark.parametrize("by_draw", [False, True])
@pytest.mark.parametrize("n_draws", [1, 3])
def test_vjp_of_a_stack_gives_what_each_member_gives_alone(posterior, oracle, n_draws, by_draw):
    n_kl = (n_draws, 6, 1) if by_draw else (1, 6, 3 if posterior.factorises else 1)
    raw = 1.5 * normals(3, 6, posterior.n_outputs(3), seed=1)
    eps, g_z, g_kl = normals(3, n_draws, 6, 3), normals(3, n_draws, 6, 3, seed=2), normals(3, *n_kl)
    z, kl, pull = posterior.vjp(raw, eps, by_draw=by_draw)
    gradient = pull(g_z, g_kl)
    for m in range(3):
        one = slice(m, m + 1)
        z_alone, kl_alone, pull_alone = posterior.vjp(raw[one], eps[one], by_draw=by_draw)
        # float64: rounding alone.
        for a, b in [
            (z[one], z_alone),
            (kl[one], kl_alone),
            (gradient[one], pull_alone(g_z[one], g_kl[one])),
        ]:
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


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
    raw, module = torch.zeros(2, posterior.n_outputs(3)).double(), built(posterior)
    raw[1, 6:] = 1.0
    z, _ = posterior.draw(module, posterior.parameters(raw), normals(4, 1, 3))
    assert (z[:, 0] != z[:, 1]).all()


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
@pytest.mark.parametrize("posterior", [Diagonal(), Full()], ids=str)
@pytest.mark.parametrize("n_components", range(1, 18))
@torch.no_grad()
def test_a_row_has_the_same_bits_at_every_place_in_a_block(posterior, n_components, dtype):
    g = torch.Generator().manual_seed(n_components)
    n_rows, n_draws = 61, 48

    def draw(*shape):
        return torch.randn(shape, generator=g, dtype=dtype)

    raw, pseudo = (draw(n, posterior.n_outputs(n_components)) for n in (n_rows, 3))
    others = posterior.parameters(pseudo)
    for n_own in (1, n_rows):  # noise that all rows share, or each row's own
        eps = draw(n_draws, n_own, n_components)

        def results(raw, eps):
            q = posterior.parameters(raw)
            z, log_q = posterior.draw(None, q, eps)
            return z, log_q, posterior.log_density(None, others, z), posterior.kl(q)[None]

        whole = results(raw, eps)
        for _ in range(3):
            places = torch.randperm(n_rows, generator=g)
            moved = results(raw[places], eps if n_own == 1 else eps[:, places])
            for ours, theirs in zip(moved, whole, strict=True):
                assert torch.equal(ours, theirs[:, places])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n_components", range(1, 18))
@torch.no_grad()
def test_a_row_of_a_flow_has_the_same_bits_at_every_place_in_a_block(n_components, dtype):
    pytest.importorskip("zuko")
    g, posterior = torch.Generator().manual_seed(n_components), Flow(2, (8,), 5)
    module = posterior.build(n_components)
    posterior.initialise(module, g)
    module.to(dtype)
    raw = torch.randn(61, posterior.n_outputs(n_components), generator=g, dtype=dtype)
    eps = torch.randn(48, 1, n_components, generator=g, dtype=dtype)
    whole = posterior.draw(module, posterior.parameters(raw), eps)
    for _ in range(3):
        places = torch.randperm(len(raw), generator=g)
        moved = posterior.draw(module, posterior.parameters(raw[places]), eps)
        for ours, theirs in zip(moved, whole, strict=True):
            assert torch.equal(ours, theirs[:, places])
