"""Networks: the functions they are, the weights they start from, the gradients they return."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from skvae.networks import ACTIVATIONS, MLP, NETWORKS, vjp

# Of each activation, its formula.
FORMULAS = {
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "relu": lambda x: x * (x > 0),
    "silu": lambda x: x / (1 + (-x).exp()),
    "softplus": lambda x: (1 + x.exp()).log(),
    "tanh": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
}
HIDDEN = [(), (5,), (6, 3)]

# One line for each network.
every_network = pytest.mark.parametrize("network", [MLP()], ids=repr)
every_activation = pytest.mark.parametrize("activation", list(ACTIVATIONS))
every_depth = pytest.mark.parametrize("hidden", HIDDEN, ids=str)


def built(network, hidden, activation="tanh", n_in=4, n_out=2, seed=0):
    """A module in float64 with every parameter away from 0, biases too."""
    module = network.build(n_in, n_out, hidden, activation).double()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype))
    return module


def stacked(modules):
    """One module with the weights of all, along a leading dimension."""
    stack = copy.deepcopy(modules[0])
    weights = zip(*(module.parameters() for module in modules), strict=True)
    for p, members in zip(stack.parameters(), weights, strict=True):
        p.data = torch.stack(members).detach()
    return stack


def rows(n_rows=7, n_in=4, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n_rows, n_in, generator=g, dtype=torch.float64)


# --- every network ----------------------------------------------------------------------------


@every_network
@every_depth
def test_network_maps_n_in_inputs_to_n_out_outputs_row_by_row(network, hidden):
    module, x = built(network, hidden), rows()
    output = module(x)
    assert output.shape == (7, 2)
    for i in range(7):
        torch.testing.assert_close(module(x[i : i + 1]), output[i : i + 1], rtol=0, atol=1e-13)
    assert module(x.expand(3, 7, 4)).shape == (3, 7, 2)


@every_network
@pytest.mark.parametrize("hidden", [(), (7,)], ids=str)
@pytest.mark.parametrize("n_rows", [16, 48])
def test_network_rounds_a_row_the_same_at_every_place_in_a_batch(network, hidden, n_rows):
    differ = []
    for n_in in (1, 2, 3, 5, 6, 10, 13, 17, 30, 31, 57, 64, 100):
        for n_out in (1, 2, 3, 4, 5, 7, 8, 9, 10, 13, 15, 16, 17):
            module = built(network, hidden, "tanh", n_in, n_out).float()
            x = rows(1, n_in).float().expand(n_rows, n_in).contiguous()
            output = module(x)
            if not torch.equal(output, output[:1].expand(n_rows, n_out)):
                differ.append((n_in, n_out))
    assert not differ


@every_network
@every_depth
@every_activation
@pytest.mark.parametrize("n_models", [1, 3])
def test_network_pulls_gradients_back_as_autograd_does(network, hidden, activation, n_models):
    modules = [built(network, hidden, activation, seed=10 + m) for m in range(n_models)]
    x = torch.stack([rows(seed=20 + m) for m in range(n_models)]).requires_grad_()
    g = torch.stack([rows(7, 2, seed=30 + m) for m in range(n_models)])
    outputs = torch.stack([module(x[m]) for m, module in enumerate(modules)])
    parameters = [p for module in modules for p in module.parameters()]
    expected_to_input, *expected = torch.autograd.grad(outputs, [x, *parameters], g)
    # Of each parameter, those of all members.
    n_each = len(expected) // n_models
    expected = [torch.stack(expected[i::n_each]) for i in range(n_each)]

    with torch.no_grad():
        output, pull = network.vjp(stacked(modules), x.detach(), to_input=True)
        to_input, gradients = pull(g)
        _, pull_again = network.vjp(stacked(modules), x.detach(), to_input=False)
        nothing, same = pull_again(g)

    # float64: rounding of sums of a few numbers.
    torch.testing.assert_close(output, outputs.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(to_input, expected_to_input, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gradients, expected, rtol=1e-12, atol=1e-13)
    assert nothing is None
    torch.testing.assert_close(same, gradients, rtol=0, atol=0)


@every_network
@every_depth
def test_network_of_a_stack_gives_what_it_gives_alone(network, hidden):
    modules = [built(network, hidden, seed=10 + m) for m in range(3)]
    x, g = (torch.stack([rows(7, n, seed=20 + m) for m in range(3)]) for n in (4, 2))
    with torch.no_grad():
        output, pull = network.vjp(stacked(modules), x, to_input=True)
        to_input, gradients = pull(g)
        for m, module in enumerate(modules):
            one = slice(m, m + 1)
            alone, pull_alone = network.vjp(stacked([module]), x[one], to_input=True)
            expected_to_input, expected = pull_alone(g[one])
            # float64: rounding of sums of a few numbers.
            torch.testing.assert_close(output[one], alone, rtol=1e-13, atol=1e-13)
            torch.testing.assert_close(to_input[one], expected_to_input, rtol=1e-12, atol=1e-13)
            own = [gradient[one] for gradient in gradients]
            torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-13)


@every_network
@every_depth
def test_network_lets_a_gradient_reach_every_parameter(network, hidden):
    module = built(network, hidden)
    module(rows()).square().sum().backward()
    assert list(module.parameters())
    for name, p in module.named_parameters():
        assert (p.grad != 0).all(), name


@every_network
@every_depth
def test_network_starts_from_its_generator_alone(network, hidden):
    def weights(seed):
        module = network.build(4, 2, hidden, "tanh")
        network.initialise(module, torch.Generator().manual_seed(seed))
        return nn.utils.parameters_to_vector(module.parameters()).detach()

    first = weights(0)
    before = torch.get_rng_state()
    module = network.build(4, 2, hidden, "tanh").to("meta")
    torch.set_rng_state(before)
    network.initialise(module.to_empty(device="cpu"), torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(nn.utils.parameters_to_vector(module.parameters()), first)
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)


@every_network
def test_network_is_a_value(network):
    assert pickle.loads(pickle.dumps(network)) == network
    assert hash(network) == hash(type(network)())
    assert eval(repr(network)) == network


# --- MLP --------------------------------------------------------------------------------------


@every_depth
@every_activation
def test_mlp_equals_its_formula(hidden, activation):
    module, x = built(MLP(), hidden, activation), rows()
    *inner, (weight, bias) = zip(*[iter(module.parameters())] * 2, strict=True)
    assert [len(b) for _, b in inner] == list(hidden)
    h = x
    for w, b in inner:
        h = FORMULAS[activation](h @ w.T + b)
    torch.testing.assert_close(module(x), h @ weight.T + bias, rtol=1e-12, atol=1e-12)


def test_mlp_without_hidden_layers_is_affine():
    module, x = built(MLP(), ()), rows()
    a, b = module(x[:3]), module(x[3:6])
    mixed = module(0.25 * x[:3] + 0.75 * x[3:6])
    torch.testing.assert_close(mixed, 0.25 * a + 0.75 * b, rtol=1e-13, atol=1e-13)


def test_mlp_starts_uniform_with_the_variance_of_glorot_and_biases_at_0():
    module = MLP().build(300, 500, (200,), "relu")
    MLP().initialise(module, torch.Generator().manual_seed(0))
    for layer, (n_in, n_out) in zip(module[::2], [(300, 200), (200, 500)], strict=True):
        variance = 2 / (n_in + n_out)
        # A uniform sample of n values: relative standard error of its variance 0.9 / sqrt(n).
        assert layer.weight.var().item() == pytest.approx(variance, rel=4.5 / math.sqrt(6e4))
        bound = math.sqrt(3 * variance)
        assert 0.999 * bound < layer.weight.abs().max().item() <= bound
        assert (layer.bias == 0).all()


def test_names_of_networks_stand_for_values():
    assert NETWORKS["mlp"] == MLP()


# --- a network without gradients of its own ---------------------------------------------------


class Plain:
    """No more than what makes a module."""

    build, initialise = MLP.build, MLP.initialise


@every_depth
@pytest.mark.parametrize("n_models", [1, 3])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_of_a_network_that_has_no_vjp_are_those_of_one_that_has(hidden, n_models, mode):
    modules = [built(Plain(), hidden, seed=10 + m) for m in range(n_models)]
    with mode():
        stack = stacked(modules)
        x, g = (torch.stack([rows(7, n, seed=m) for m in range(n_models)]) for n in (4, 2))
        output, pull = vjp(Plain(), stack, x, to_input=True)
        expected, pull_expected = vjp(MLP(), stack, x, to_input=True)
        torch.testing.assert_close(output, expected, rtol=1e-13, atol=1e-13)
        to_input, gradients = pull(g)
        expected_to_input, expected_gradients = pull_expected(g)
    # float64: rounding of sums of a few numbers.
    torch.testing.assert_close(to_input, expected_to_input, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-12, atol=1e-13)
