"""Laws of every network: one body of tests, for the networks of skvae and for those of a user.

A test class inherits it and names the networks:

    class TestEveryNetwork(NetworkLaws):
        @pytest.fixture(params=CASES)
        def case(self, request):
            return request.param
"""

from typing import Any, NamedTuple

import pytest
import torch
from likelihood_laws import check_is_a_value, normals, stack_modules
from torch import nn

from skvae.networks import Layers, vjp

HIDDEN = [(), (5,), (6, 3)]


class Case(NamedTuple):
    """A network, and the number of features that it reads and writes."""

    network: Any
    n_features: int = 4

    def sizes(self, side):
        """Numbers of inputs and outputs of the encoder or the decoder."""
        return (self.n_features, 2) if side == "encoder" else (2, 2 * self.n_features)

    def make(self, side, hidden, activation="tanh"):
        return getattr(self.network, side)(*self.sizes(side), hidden, activation)

    def built(self, side, hidden, activation="tanh", seed=0):
        """A module in float64 with every parameter away from 0, biases too."""
        module = self.make(side, hidden, activation).double()
        with torch.no_grad():
            for i, p in enumerate(module.parameters()):
                p.copy_(normals(*p.shape, seed=100 * seed + i))
        return module


class NetworkLaws:
    """Tests of the fixture `case`."""

    @pytest.fixture(params=["encoder", "decoder"])
    def side(self, request):
        return request.param

    @pytest.fixture(params=HIDDEN, ids=str)
    def hidden(self, request):
        return request.param

    def test_module_maps_inputs_to_outputs_row_by_row(self, case, side, hidden):
        (n_in, n_out), module = case.sizes(side), case.built(side, hidden)
        x = normals(7, n_in)
        output = module(x)
        assert output.shape == (7, n_out)
        for i in range(7):
            torch.testing.assert_close(module(x[[i]]), output[[i]], rtol=1e-13, atol=1e-13)

    @pytest.mark.parametrize("n_models", [1, 3])
    @pytest.mark.parametrize("drops", [False, True], ids=["without_noise", "with_noise"])
    def test_a_stack_equals_its_members_and_pulls_back_as_autograd_of_each_does(
        self, case, side, hidden, n_models, drops
    ):
        self.check_vjp(case, side, hidden, "tanh", n_models, drops)

    def check_vjp(self, case, side, hidden, activation, n_models, drops=False):
        (n_in, n_out), n_noise = case.sizes(side), case.network.n_noise(hidden)
        modules = [case.built(side, hidden, activation, seed=m) for m in range(n_models)]
        x, g = (normals(n_models, 7, n, seed=n) for n in (n_in, n_out))
        noise = normals(n_models, 7, n_noise, seed=3) if drops and n_noise else None
        outputs, expected = [], []
        for m, module in enumerate(modules):
            own = x[m].clone().requires_grad_()
            output = module(own) if noise is None else module(own, noise[m])
            expected.append(torch.autograd.grad(output, [own, *module.parameters()], g[m]))
            outputs.append(output.detach())
        expected_to_input, *expected = (torch.stack(own) for own in zip(*expected, strict=True))
        with torch.inference_mode():  # as in training
            stack = stack_modules(modules)
            output, pull = vjp(stack, x.clone(), noise, to_input=True)
            to_input, gradients = pull(g)
            _, pull_again = vjp(stack, x.clone(), noise, to_input=False)
            nothing, same = pull_again(g)
        # float64: rounding of sums of up to a few hundred numbers, which layer_norm divides.
        torch.testing.assert_close(output, torch.stack(outputs), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(to_input, expected_to_input, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-11)
        assert nothing is None or not isinstance(stack, Layers)
        torch.testing.assert_close(same, gradients, rtol=0, atol=0)

    def test_a_gradient_reaches_every_parameter(self, case, side, hidden):
        module = case.built(side, hidden)
        module(normals(7, case.sizes(side)[0])).square().sum().backward()
        assert list(module.parameters())
        for name, p in module.named_parameters():
            assert (p.grad != 0).all(), name

    def test_first_values_are_decided_by_the_generator_alone(self, case, side, hidden):
        network = case.network

        def weights(module, seed=0):
            network.initialise(module, torch.Generator().manual_seed(seed))
            return nn.utils.parameters_to_vector(module.parameters()).detach()

        def make():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return case.make(side, hidden)

        before = torch.get_rng_state()
        first, same, other = weights(make()), weights(make()), weights(make(), seed=1)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(same, first)
        if network.initialises_all:
            with torch.device("meta"):
                module = case.make(side, hidden)
            assert torch.equal(weights(module.to_empty(device="cpu")), first)
            assert not torch.equal(other, first)

    def test_float32_stays_float32_and_near_float64(self, case, side, hidden):
        module, x = case.built(side, hidden), normals(7, case.sizes(side)[0])
        expected, value = module(x), module.float()(x.float())
        assert value.dtype == torch.float32
        size = expected.abs().max().item()
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5 * size)

    def test_network_is_a_value(self, case):
        check_is_a_value(case.network)
