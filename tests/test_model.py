"""The model: its parts joined, its units, its state as arrays."""

import math

import numpy as np
import pytest
import torch
from architectures import architecture_of
from likelihood_laws import normals
from scipy.special import expit
from torch import distributions as D
from torch import nn

from skvae import VAETransformer
from skvae._data.statistics import describe_columns
from skvae._data.units import standardise
from skvae._model import factor_analysis
from skvae._model.rows import Batch
from skvae._model.stack import Stack
from skvae._model.state import (
    cast_state,
    from_state,
    initial_state,
    log_jacobian,
    units_of,
)
from skvae.likelihoods import Bernoulli, Gaussian, NegativeBinomial, Poisson, ZeroInflated
from skvae.networks import MLP, Own
from skvae.priors import Mixture, Vamp

# One line for each likelihood.
LIKELIHOODS = [
    "gaussian",
    Gaussian("shared"),
    Gaussian("per_feature"),
    Gaussian(0.5),
    "bernoulli",
]

every_likelihood = pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)


def describe(n_features=4, n_components=2, likelihood="gaussian", hidden=(6, 5), **others):
    others = {"likelihood": likelihood, "activation": "silu"} | others
    return architecture_of(n_features, n_components, hidden, **others)


def data(likelihood="gaussian", n_rows=30):
    """Rows of different units, of which column 2 is constant."""
    rng = np.random.default_rng(0)
    if likelihood == "bernoulli":
        X = (rng.random((n_rows, 4)) < 0.4).astype(float)
    else:
        X = rng.normal([1.7e9, 0, 0, -3], [1e3, 0.1, 1, 20], (n_rows, 4))
    X[:, 2] = 1
    return X


def made(likelihood="gaussian", n_components=2, hidden=(6, 5), seed=1):
    """A model in float64 whose learned values are all away from where they start."""
    architecture = describe(4, n_components, likelihood, hidden)
    columns = describe_columns(data(likelihood))
    state = cast_state(initial_state(architecture, columns, 0), np.float64)
    rng = np.random.default_rng(seed)
    for name in learned_names(architecture, state):
        state[name] = 0.6 * rng.normal(size=state[name].shape)
    return from_state(architecture, state), state


def learned_names(architecture, state):
    return [name for name, _ in from_state(architecture, state).named_parameters()]


def stacked(architectures, states):
    return Stack(architectures, states, torch.device("cpu"))


def end_to_end(stack):
    """The parameters of each model of a stack, (M, P)."""
    return torch.cat([p.detach().flatten(1) for p in stack.parameters()], dim=1)


def silu(x):
    return x * expit(x)


def mlp(state, part, h):
    """The multilayer perceptron in numpy."""
    *inner, last = [name for name in state if name.startswith(part) and name.endswith("weight")]
    first = h
    for name in inner:
        h = silu(h @ state[name].T + state[name.replace("weight", "bias")])
    beside = first @ state[f"{part}.linear"].T if inner else 0
    return h @ state[last].T + state[last.replace("weight", "bias")] + beside


# --- state ------------------------------------------------------------------------------------


@every_likelihood
def test_state_of_a_model_made_from_a_state_is_that_state_bit_for_bit(likelihood):
    architecture = describe(likelihood=likelihood)
    state = initial_state(architecture, describe_columns(data(likelihood)), 0)
    assert all(type(array) is np.ndarray for array in state.values())
    model = from_state(architecture, state)
    again = model.state_dict()
    assert list(again) == list(state)
    for name, array in state.items():
        assert array.dtype == again[name].numpy().dtype
        np.testing.assert_array_equal(again[name].numpy(), array)


@pytest.mark.parametrize("make", ["model", "stack"])
def test_state_and_model_share_no_memory(make):
    architecture = describe()
    state = initial_state(architecture, describe_columns(data()), 0)
    before = {name: array.copy() for name, array in state.items()}
    for array in state.values():
        array.setflags(write=False)  # as a memory map
    if make == "model":
        model, learned = from_state(architecture, state), {}
    else:
        model = stacked([architecture], [state])
        weights = end_to_end(model)[0]
        learned = model.state_of(architecture, state, weights)
        weights.add_(1)
    with torch.no_grad():
        for tensor in getattr(model, "model", model).state_dict().values():
            tensor.add_(1)
    for name, array in before.items():
        np.testing.assert_array_equal(array, state[name])
    for name, array in learned.items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_state_that_is_cast_has_weights_of_the_dtype_and_the_units_it_had(dtype):
    state = initial_state(describe(), describe_columns(data()), 0)
    # Units that no float32 holds.
    state = {**state, "location": np.full(4, 1e200), "scale": np.full(4, 1e-200)}
    cast = cast_state(state, dtype)
    assert set(cast) == set(state)
    for name, array in cast.items():
        assert array.dtype == (np.float64 if name in ("location", "scale") else dtype)
        np.testing.assert_array_equal(array, state[name])  # float32 fits into either


def test_decoder_has_the_hidden_layers_of_the_encoder_in_reverse():
    _, state = made(hidden=(6, 5))
    shapes = {name: array.shape for name, array in state.items() if name.endswith("weight")}
    assert shapes == {
        "encoder.0.weight": (6, 4),
        "encoder.2.weight": (5, 6),
        "encoder.4.weight": (4, 5),
        "decoder.0.weight": (5, 2),
        "decoder.2.weight": (6, 5),
        "decoder.4.weight": (8, 6),
    }


# --- in the units of X ------------------------------------------------------------------------


@every_likelihood
@pytest.mark.parametrize("hidden", [(), (6, 5)])
def test_encode_and_decode_equal_the_formula_in_the_units_of_x(likelihood, hidden):
    model, state = made(likelihood, hidden=hidden)
    X, Z = data(likelihood), normals(7, 2)
    if not hidden:  # then values are not bounded
        X[0, 0] = state["location"][0] + 1e6 * state["scale"][0]

    mean, std = model.encode(torch.tensor(X))
    back = model.decode(Z).detach().numpy()

    scale = np.where(state["scale"] > 0, state["scale"], np.inf)
    raw = mlp(state, "encoder", (X - state["location"]) / scale)
    np.testing.assert_allclose(mean.detach(), raw[:, :2], rtol=1e-11, atol=1e-12)
    expected = np.exp(15 * np.tanh(raw[:, 2:] / 15))
    np.testing.assert_allclose(std.detach(), expected, rtol=1e-11)
    Y = mlp(state, "decoder", Z.numpy())[:, :4]
    if likelihood == "bernoulli":
        Y = expit(state["observation.log_odds"] + Y)
    np.testing.assert_allclose(back, state["location"] + state["scale"] * Y, rtol=1e-12)
    np.testing.assert_array_equal(back[:, 2], 1)  # the constant column


@every_likelihood
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("farthest", [1.0, 19.9, 20.1, 1e6, math.nan])
def test_a_model_that_knows_the_reach_of_its_rows_gives_the_same_numbers(
    likelihood, farthest, missing
):
    architecture = describe(likelihood=likelihood, missing=missing)
    state = initial_state(architecture, describe_columns(data(likelihood)), 0)
    y = standardise(data(likelihood), units_of(state))
    y[3, 1] = farthest
    eps = normals(3, 30, 2).float()
    model = from_state(architecture, state)
    reach = math.nan if math.isnan(farthest) else float(y.abs().max())
    known, unknown = Batch(y, eps, reach=reach), Batch(y, eps)
    inputs = (model.inputs(model.complete(batch)) for batch in (known, unknown))
    for a, b in [tuple(inputs), *zip(model(known), model(unknown), strict=True)]:
        assert torch.equal(a, b)


def test_what_the_encoder_sees_is_bounded_though_counts_are_near():
    X = np.random.default_rng(0).poisson(10.0, (200, 2)).astype(float)
    X[:, 1] = 10 + (np.arange(200) == 7)
    state = initial_state(describe(2, likelihood="poisson"), describe_columns(X), 0)
    model = from_state(describe(2, likelihood="poisson"), state)
    y = torch.tensor([[12.0, 10.0], [0.0, 15.0]])
    seen = model.inputs(model.complete(Batch(y, reach=15.0)))
    assert seen.abs().max() == model.bound


def test_an_encoder_that_writes_into_its_input_does_not_change_what_is_scored():
    class Encoder(nn.Module):
        def __init__(self, n_in, n_out):
            super().__init__()
            self.last = nn.Linear(n_in, n_out)

        def forward(self, x):
            x = x.detach()
            x -= 0.5
            return self.last(x)

    X = np.random.default_rng(0).normal(size=(200, 4))
    vae = VAETransformer(2, network=(Encoder, nn.Linear), max_iter=2, random_state=0).fit(X)
    far = X.copy()
    far[5, 0] = 1e5  # in the same block
    np.testing.assert_array_equal(vae.score_samples(far)[:5], vae.score_samples(X)[:5])
    model = vae.to_module()
    y = standardise(X, units_of(vae.state_))
    before = y.clone()
    model(Batch(y, normals(3, 200, 2).float(), reach=float(y.abs().max())))
    assert torch.equal(y, before)


def test_a_foreign_module_may_have_float64_values_that_its_state_has_not():
    class Shifted(nn.Module):
        def __init__(self, n_in, n_out):
            super().__init__()
            self.last = nn.Linear(n_in, n_out)
            shift = torch.from_numpy(np.linspace(0, 1, n_in)[None])
            self.register_buffer("shift", shift, persistent=False)

        def forward(self, x):
            return self.last(x - self.shift)

    X = np.random.default_rng(0).normal(size=(200, 4))
    vae = VAETransformer(2, network=(Shifted, nn.Linear), max_iter=2, random_state=0).fit(X)
    assert np.isfinite(vae.score_samples(X)).all()


@every_likelihood
def test_gradients_of_codes_are_finite_and_0_for_a_constant_column(likelihood):
    model, _ = made(likelihood)
    x = torch.tensor(data(likelihood), requires_grad=True)
    mean, std = model.encode(x)
    (mean.square().sum() + std.sum()).backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad[:, 2] == 0).all()
    assert (x.grad[:, [0, 1, 3]] != 0).all()


@every_likelihood
def test_encoder_sees_what_is_farther_than_20_deviations_as_that_far(likelihood):
    model, state = made(likelihood)
    X, scale = data(likelihood), state["scale"]
    varies = scale > 0
    # Where columns share a scale, 20 deviations of the column that varies most.
    bound = 20 * max(1, (X.std(axis=0)[varies] / scale[varies]).max())
    far, near, nearer = (torch.tensor(X[:2]) for _ in range(3))
    for x, distance in [(far, 1e5), (near, bound), (nearer, 0.99 * bound)]:
        x[0, 0] = state["location"][0] + distance * scale[0]
        x[1, 3] = state["location"][3] - distance * scale[3]
    of_far, of_near, of_nearer = map(model.encode, (far, near, nearer))
    # The bound is a float32 in the state, and 1.7e9 + 2e4 is rounded.
    torch.testing.assert_close(of_far, of_near, rtol=1e-5, atol=1e-6)
    assert ((of_far[0] - of_nearer[0]).abs() > 1e-4).all()

    y, eps = torch.tensor([[1e5, 0, 0, -1e3]]).double(), normals(3, 1, 2)
    seen = y.clamp(-model.bound, model.bound)
    with torch.no_grad():
        terms, of_seen = model(Batch(y, eps)), model(Batch(seen, eps))
        q = model.posterior.parameters(model.encoder(seen))
        expected = model.log_prob(Batch(y), model.posterior.rsample(q, eps)).sum(-1)
    assert torch.equal(terms.kl, of_seen.kl)
    # The likelihood sees all; sums in another order.
    torch.testing.assert_close(terms.log_likelihood, expected, rtol=1e-14, atol=0)


@every_likelihood
def test_log_jacobian_is_that_of_the_map_to_the_models_units(likelihood):
    _, state = made(likelihood)
    varies = [0, 1, 3]
    location, scale = (torch.tensor(state[name][varies]) for name in ("location", "scale"))
    x = torch.tensor(data(likelihood)[0, varies])
    jacobian = torch.autograd.functional.jacobian(lambda x: (x - location) / scale, x)
    assert log_jacobian(state) == pytest.approx(
        -torch.linalg.slogdet(jacobian).logabsdet.item(), rel=1e-13, abs=1e-13
    )


def test_log_jacobian_of_nothing_that_varies_is_0():
    assert log_jacobian({"scale": np.zeros(3), "has_units": np.ones(3)}) == 0


# --- terms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_rows", [5, 1])
def test_terms_equal_torch_distributions_over_the_columns_that_vary(noise_rows):
    model, state = made(Gaussian("per_feature"))
    y, eps = normals(5, 4), normals(3, noise_rows, 2, seed=1)
    with torch.no_grad():
        terms, by_draw = model(Batch(y, eps)), model(Batch(y, eps), by_draw=True)

    raw = torch.tensor(mlp(state, "encoder", y.numpy()))
    q = D.Normal(raw[:, :2], (15 * torch.tanh(raw[:, 2:] / 15)).exp())
    expected_kl = D.kl_divergence(q, D.Normal(0.0, 1.0))
    torch.testing.assert_close(terms.kl, expected_kl[None], rtol=1e-12, atol=1e-12)
    z = q.mean + q.stddev * eps
    expected_ratio = (q.log_prob(z) - D.Normal(0.0, 1.0).log_prob(z)).sum(-1, keepdim=True)
    torch.testing.assert_close(by_draw.kl, expected_ratio, rtol=1e-11, atol=1e-11)

    mean = torch.tensor(mlp(state, "decoder", z.numpy()))
    variance = state["observation.floor"] + np.exp(state["observation.raw_variance"])
    by_column = D.Normal(mean, torch.tensor(variance).sqrt()).log_prob(y)
    expected = by_column[..., [0, 1, 3]].sum(-1)
    for some in (terms, by_draw):
        torch.testing.assert_close(some.log_likelihood, expected, rtol=1e-12, atol=1e-12)


def gradients_like(terms, seed=2):
    """Gradients of the terms of a stack, or of one model."""
    return tuple(normals(*term.shape, seed=seed + i) for i, term in enumerate(terms))


@every_likelihood
@pytest.mark.parametrize("n_draws", [1, 3])
@pytest.mark.parametrize("n_models", [1, 3])
@pytest.mark.parametrize("by_draw", [False, True])
def test_vjp_equals_forward_and_pulls_back_to_every_parameter_as_autograd_does(
    likelihood, n_draws, n_models, by_draw
):
    models, states = zip(*(made(likelihood, seed=1 + m) for m in range(n_models)), strict=True)
    Y = standardise(data(likelihood), units_of(states[0]), torch.float64)
    y = torch.stack([Y.roll(m, 0) for m in range(n_models)])
    y[:, 0, 0], y[:, 1, 3] = 50, -60  # farther than the encoder sees
    eps = normals(n_models, n_draws, 30, 2)
    terms = [
        model(Batch(*own), by_draw=by_draw) for model, *own in zip(models, y, eps, strict=True)
    ]
    g = gradients_like([torch.stack(own) for own in zip(*terms, strict=True)])
    of_each = [
        torch.autograd.grad(own, list(model.parameters()), [*g_own])
        for model, own, *g_own in zip(models, terms, *g, strict=True)
    ]
    expected = [torch.stack(own) for own in zip(*of_each, strict=True)]

    with torch.inference_mode():
        stack = stacked([describe(likelihood=likelihood)] * n_models, states)
        same, pull = stack.vjp(Batch(y, eps, y[..., :0]), by_draw=by_draw)
        gradients = pull(*g)

    for a, b in zip(same, zip(*terms, strict=True), strict=True):
        torch.testing.assert_close(a, torch.stack(b).detach(), rtol=1e-11, atol=1e-11)
    names = learned_names(describe(likelihood=likelihood), states[0])
    for name, a, b in zip(names, gradients, expected, strict=True):
        # Rounding of sums whose terms may be much larger than they are.
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11 * max(1, b.abs().max().item()))
        # Of a constant column, nothing can be learned.
        reached = torch.ones_like(a, dtype=torch.bool)
        if name in ("encoder.0.weight", "encoder.linear"):
            reached[..., 2] = False
        elif a.shape[1:2] in [(4,), (8,)] and name.startswith(
            ("decoder.4", "decoder.linear", "observation")
        ):
            reached[:, 2::4] = False
        assert ((a != 0) == reached).all(), name


# --- stacks -----------------------------------------------------------------------------------

# Numbers of components of the members of a stack.
MIXTURES = [(1, 2, 5), (5, 2, 1), (3, 3, 3), (4,)]

every_mixture = pytest.mark.parametrize("mixture", MIXTURES, ids=str)


def made_several(likelihood, mixture, hidden=(6, 5)):
    """Architectures and states in float64 of models with these numbers of components."""
    architectures = [describe(4, n, likelihood, hidden) for n in mixture]
    states = [made(likelihood, n, hidden, seed=1 + m)[1] for m, n in enumerate(mixture)]
    for m, state in enumerate(states):  # each sees values as far as a bound of its own
        state["bound"] = state["bound"] / (1 + m)
    return architectures, states


@every_likelihood
@every_mixture
@pytest.mark.parametrize("hidden", [(), (6, 5)], ids=str)
def test_a_stack_gives_back_the_learned_values_of_every_member_exactly(likelihood, mixture, hidden):
    architectures, states = made_several(likelihood, mixture, hidden)
    stack = stacked(architectures, states)
    for architecture, state, weights in zip(architectures, states, end_to_end(stack), strict=True):
        learned = stack.state_of(architecture, state, weights)
        assert list(learned) == learned_names(architecture, state)
        for name, array in learned.items():
            np.testing.assert_array_equal(array, state[name])


@every_likelihood
def test_every_value_of_a_stack_beyond_its_members_own_is_0(likelihood):
    architectures, states = made_several(likelihood, (1, 2, 5))
    tensors = stacked(architectures, states).model.state_dict()
    assert list(tensors) == list(states[0])
    for name, tensor in tensors.items():
        assert len(tensor) == 3
        for own, state in zip(tensor.numpy(), states, strict=True):
            # No value that was drawn is 0, and what is not drawn is the same for all members.
            assert np.count_nonzero(own) == np.count_nonzero(state[name]), name


@every_likelihood
@pytest.mark.parametrize(
    ("mixture", "by_draw"),
    # By draw, components that are not there were learned: such models are not mixed.
    [*((mixture, False) for mixture in MIXTURES), ((3, 3, 3), True), ((4,), True)],
    ids=str,
)
@pytest.mark.parametrize("hidden", [(), (6, 5)], ids=str)
@pytest.mark.parametrize("n_draws", [1, 3])
def test_a_member_of_a_stack_has_the_terms_and_gradients_that_it_has_alone(
    likelihood, mixture, hidden, n_draws, by_draw
):
    architectures, states = made_several(likelihood, mixture, hidden)
    n_models, wide = len(mixture), max(mixture)
    y, eps = normals(n_models, 7, 4), normals(n_models, n_draws, 7, wide, seed=1)
    y[:, 0, 0] = 50  # farther than the encoder sees
    for m, n_components in enumerate(mixture):
        eps[m, ..., n_components:] = 0
    with torch.inference_mode():
        stack = stacked(architectures, states)
        terms, pull = stack.vjp(Batch(y, eps, y[..., :0]), by_draw=by_draw)
        g = gradients_like(terms)
        gradients = torch.cat([gradient.flatten(1) for gradient in pull(*g)], dim=1)
        for m, (architecture, state) in enumerate(zip(architectures, states, strict=True)):
            one = slice(m, m + 1)
            model = stacked([architecture], [state])
            n_own = mixture[m]
            alone, pull_alone = model.vjp(
                Batch(y[one], eps[one, ..., :n_own], y[one, :, :0]), by_draw=by_draw
            )
            for a, b in zip(terms, alone, strict=True):
                own_terms = a[one, ..., : b.shape[-1]]
                torch.testing.assert_close(own_terms, b, rtol=1e-12, atol=1e-12)
            if not by_draw:  # a component that is not there diverges from nothing
                assert (terms.kl[m, ..., n_own:] == 0).all()
            expected = pull_alone(g[0][one], g[1][one, ..., : alone.kl.shape[-1]])
            own = stack.state_of(architecture, state, gradients[m])
            for a, b in zip(own.values(), expected, strict=True):
                # Rounding of sums whose terms may be much larger than they are.
                atol = 1e-12 * max(1, b.abs().max().item())
                torch.testing.assert_close(torch.tensor(a), b[0], rtol=1e-12, atol=atol)
            # Nothing is learned beyond the member's own values.
            n_learned = sum(np.count_nonzero(array) for array in own.values())
            assert torch.count_nonzero(gradients[m]) == n_learned


def test_a_member_of_a_stack_has_the_terms_of_rows_with_missing_values_that_it_has_alone():
    architecture = describe(missing=True)
    columns = describe_columns(data())
    states = [
        cast_state(initial_state(architecture, columns, seed), np.float64) for seed in range(3)
    ]
    y, eps = normals(3, 7, 4), normals(3, 3, 7, 2, seed=1)  # as many draws as models
    y[normals(3, 7, 4, seed=2) > 0.5] = torch.nan
    with torch.inference_mode():
        stack = stacked([architecture] * 3, states)
        terms, _ = stack.vjp(Batch(y, eps, y[..., :0]), by_draw=False)
        for m, state in enumerate(states):
            expected = from_state(architecture, state)(Batch(y[m], eps[m]))
            torch.testing.assert_close(terms[0][m], expected[0], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(terms[1][m], expected[1], rtol=1e-12, atol=1e-12)
    # Units of 1e3 and 0.1 are in the terms of what is missing.
    assert (terms.log_likelihood.isfinite()).all()


@pytest.mark.parametrize("likelihood", ["gaussian", Gaussian("shared"), "bernoulli"], ids=str)
def test_the_log_likelihood_of_rows_with_missing_values_is_that_of_what_is_there(likelihood):
    architecture = describe(likelihood=likelihood, missing=True)
    columns = describe_columns(data(likelihood))
    state = cast_state(initial_state(architecture, columns, 0), np.float64)
    model = from_state(architecture, state)
    y = standardise(data(likelihood), units_of(state), torch.float64)
    eps = normals(3, 30, 2)
    there = (normals(30, 4, seed=1) < 0.5) & (model.scale > 0)
    y[~there & (model.scale > 0)] = torch.nan
    with torch.no_grad():
        z = model.encode_draws(Batch(y, eps))
        filled = torch.where(y.isnan(), 0.0, y)
        log_prob = model.likelihood.log_prob(model.observation, model.raw(z), filled)
        log_likelihood = model(Batch(y, eps)).log_likelihood
    scale = torch.ones(4) if likelihood == "bernoulli" else model.scale
    log_scale = torch.where(model.scale > 0, scale, 1.0).log()
    # log p(x|z), where the sum of log s_d over all columns is taken elsewhere.
    expected = ((log_prob - log_scale) * there).sum(-1)
    torch.testing.assert_close(log_likelihood - log_scale.sum(), expected, rtol=1e-9, atol=1e-9)


@every_likelihood
def test_a_stack_that_keeps_some_members_is_the_stack_of_these(likelihood):
    architectures, states = made_several(likelihood, (2, 2, 5, 5))
    states[3] = states[3] | {"bound": states[3]["bound"] * 2}
    stack = stacked(architectures, states)
    stack.keep(torch.tensor([1, 3]))
    expected = stacked(architectures[1::2], states[1::2])
    for (name, a), (same, b) in zip(
        stack.model.state_dict().items(), expected.model.state_dict().items(), strict=True
    ):
        assert name == same
        assert torch.equal(a, b), name
    y, eps = 50 * normals(2, 7, 4), normals(2, 1, 7, 5, seed=1)
    eps[0, ..., 2:] = 0
    of_both = (
        model.vjp(Batch(y, eps, y[..., :0]), by_draw=False)[0] for model in (stack, expected)
    )
    for a, b in zip(*of_both, strict=True):
        assert torch.equal(a, b)


# --- other parts, and noise of rows and units ---------------------------------------------------

COUNTS = Poisson(), ZeroInflated(NegativeBinomial())
PARTS = [
    {"missing": True},
    {"missing": True, "posterior": "full"},
    {"posterior": "full"},
    {"prior": Mixture(3)},
    {"prior": Mixture(3), "posterior": "full"},
    {"prior": Vamp(5)},
    {"prior": Vamp(5), "posterior": "full"},
    {"prior": Vamp(3), "missing": True},
    {"network": MLP(residual=True, layer_norm=True)},
    {"network": MLP(dropout=0.4)},
    {"network": MLP(dropout=0.4), "prior": Vamp(5)},
    {"likelihood": Bernoulli(resample=True)},
    {"likelihood": Bernoulli(resample=True), "network": MLP(residual=True, dropout=0.4)},
    {"likelihood": COUNTS[0]},
    {"likelihood": COUNTS[0], "prior": Vamp(5)},
    {"likelihood": COUNTS[1], "prior": Mixture(3)},
]


def made_of(parts, n_models):
    """The architecture and models in float64 with these parts, and their states."""
    architecture = describe(4, 2, **parts)
    kind = "bernoulli" if "likelihood" in parts else "gaussian"
    X = data(kind)
    state = initial_state(architecture, describe_columns(X), 0, lambda n: X[:n])
    states = []
    for m in range(n_models):
        own, rng = dict(cast_state(state, np.float64)), np.random.default_rng(m)
        for name in learned_names(architecture, own):
            own[name] = 0.3 * rng.normal(size=own[name].shape)
        states.append(own)
    return architecture, [from_state(architecture, own) for own in states], states


def terms_of(model, y, eps, row_noise, by_draw):
    """Terms (S, B) and (S|1, B, L|1) of a model for noise of draws, rows and units."""
    if model.n_redrawn:
        y = (torch.special.ndtr(row_noise[:, : model.n_redrawn]) < y).double()
    drop = row_noise[:, model.n_redrawn :]
    seen = model.inputs(model.complete(Batch(y)))
    raw = model.encoder(seen, drop) if drop.shape[1] else model.encoder(seen)
    q = model.posterior.parameters(raw)
    z, log_q = model.posterior.draw(model.flow, q, eps[..., :2])
    flat = z.flatten(0, 1)
    drop = eps[..., 2:].flatten(0, 1)
    outputs = model.decoder(flat, drop) if drop.shape[1] else model.decoder(flat)
    outputs = outputs.view(*z.shape[:2], -1)
    log_p_x = model.likelihood.log_prob(model.observation, outputs, y)
    log_likelihood = (log_p_x * model.varies).sum(-1)
    if model.has_kl and not by_draw:
        return log_likelihood, model.posterior.kl(q)[None]
    return log_likelihood, (log_q - model.log_prior(z)).unsqueeze(-1)


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("n_draws", [1, 3])
@pytest.mark.parametrize("n_models", [1, 3])
@pytest.mark.parametrize("by_draw", [False, True])
def test_vjp_with_noise_of_rows_and_units_is_that_of_autograd(parts, n_draws, n_models, by_draw):
    architecture, models, states = made_of(parts, n_models)
    of_draw, redrawn, of_row = architecture.n_noise
    y = normals(n_models, 7, 4)
    if redrawn:
        y = y.sigmoid()
    if architecture.likelihood in COUNTS:
        y = y.exp().round()
    eps = normals(n_models, n_draws, 7, 2 + of_draw, seed=1)
    row_noise = normals(n_models, 7, redrawn + of_row, seed=5)
    terms = [
        terms_of(model, *own, by_draw)
        for model, *own in zip(models, y, eps, row_noise, strict=True)
    ]
    g = gradients_like([torch.stack(own) for own in zip(*terms, strict=True)])
    of_each = [
        torch.autograd.grad(own, list(model.parameters()), [*g_own])
        for model, own, *g_own in zip(models, terms, *g, strict=True)
    ]
    with torch.inference_mode():
        stack = stacked([architecture] * n_models, states)
        same, pull = stack.vjp(Batch(y, eps, row_noise), by_draw=by_draw)
        gradients = pull(*g)
    for a, b in zip(same, zip(*terms, strict=True), strict=True):
        torch.testing.assert_close(a, torch.stack(b).detach(), rtol=1e-10, atol=1e-10)
    names = learned_names(architecture, states[0])
    for name, a, *b in zip(names, gradients, *of_each, strict=True):
        b = torch.stack(b)
        atol = 1e-10 * max(1, b.abs().max().item())  # rounding of sums of larger terms
        torch.testing.assert_close(a, b, rtol=1e-9, atol=atol, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_noise_that_drops_and_redraws_nothing_changes_no_terms(parts):
    architecture, (model,), states = made_of(parts, 1)
    _, redrawn, _ = architecture.n_noise
    y, eps = normals(7, 4), normals(3, 7, 2, seed=1)
    if redrawn:
        y = (y > 0).double()  # zeros and ones stay what they are
    if architecture.likelihood in COUNTS:
        y = y.exp().round()
    row_noise = normals(1, 7, redrawn)
    with torch.inference_mode():
        terms = stacked([architecture], states).vjp(
            Batch(y[None], eps[None], row_noise), by_draw=False
        )[0]
    with torch.no_grad():
        for a, b in zip(terms, model(Batch(y, eps)), strict=True):
            torch.testing.assert_close(a[0], b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prior", [Mixture(3), Vamp(5)], ids=str)
def test_draws_of_the_prior_have_the_density_of_the_prior(prior):
    _, (model,), _ = made_of({"prior": prior}, 1)
    n = 100_000
    with torch.no_grad():
        z = model.draw_prior(normals(n, prior.n_noise(2)))
        assert z.shape == (n, 2)
        # E[q(z) / p(z)] = 1 under p for every density q.
        wide = D.MultivariateNormal(z.mean(0), z.T.cov())
        ratio = (wide.log_prob(z) - model.log_prior(z)).exp()
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(n)


def test_members_of_a_stack_become_factor_analysis_as_they_do_alone():
    architectures, states = made_several("gaussian", (1, 2))
    rows = [normals(30, 4, seed=seed) @ normals(4, 4, seed=seed + 2) for seed in range(2)]
    noise = factor_analysis.Noise(torch.full((1,), 1e-4).double(), "per_feature")
    found = [
        factor_analysis.analyse(y, ((factor_analysis.Size(m + 1), 1.0),), noise)
        for m, y in enumerate(rows)
    ]
    stack = stacked(architectures, states)
    with torch.inference_mode():
        stack.become_factors(found)
        for m, (architecture, state) in enumerate(zip(architectures, states, strict=True)):
            alone = stacked([architecture], [state])
            alone.become_factors(found[m : m + 1])
            own = stack.state_of(architecture, state, end_to_end(stack)[m])
            expected = alone.state_of(architecture, state, end_to_end(alone)[0])
            for name, array in own.items():
                np.testing.assert_array_equal(array, expected[name], err_msg=name)
            assert np.abs(own["encoder.linear"]).max() > 0.1


def test_an_encoder_of_ones_own_has_an_input_for_what_is_missing():
    architecture = describe(network=Own(nn.Linear, nn.Linear), missing=True)
    state = initial_state(architecture, describe_columns(data()), 0)
    assert state["encoder.weight"].shape == (4, 8)
