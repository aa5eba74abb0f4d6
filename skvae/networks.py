"""Networks: the functions inside the encoder q(z|x) and the decoder p(x|z).

A network is a value: a frozen dataclass that says how to make an ``nn.Module`` from n_in
inputs to n_out outputs. `build` makes it without values, `initialise` draws them.

`MLP` is the multilayer perceptron,

    h_0 = x,    h_i = activation(W_i h_{i-1} + b_i),    output = W h_last + b,

which without hidden layers is the linear map of PCA and factor analysis. Weights start
uniform with variance 2 / (n_in + n_out) (Glorot & Bengio, Understanding the difficulty of
training deep feedforward neural networks, 2010, eq. 16), biases at 0.

`vjp` is backpropagation written out, for M modules at once whose weights are stacked along
a leading dimension: the output, and a function that pulls a gradient back through it. For
layers as small as those of a table, autograd's bookkeeping takes longer than the
arithmetic; written out, a training step takes about half the time, and stacked, the
bookkeeping that is left is shared. A network without a `vjp` has one by `torch.func`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

aten = torch.ops.aten

# Each with its derivative: (gradient of output, input, output) -> gradient of input.
Derivative = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
ACTIVATIONS: dict[str, tuple[type[nn.Module], Derivative]] = {
    "elu": (nn.ELU, lambda g, x, y: aten.elu_backward.default(g, 1.0, 1.0, 1.0, False, x)),
    "gelu": (nn.GELU, lambda g, x, y: aten.gelu_backward.default(g, x)),
    "relu": (nn.ReLU, lambda g, x, y: aten.threshold_backward.default(g, y, 0)),
    "silu": (nn.SiLU, lambda g, x, y: aten.silu_backward.default(g, x)),
    "softplus": (nn.Softplus, lambda g, x, y: aten.softplus_backward.default(g, x, 1.0, 20.0)),
    "tanh": (nn.Tanh, lambda g, x, y: aten.tanh_backward.default(g, y)),
}
DERIVATIVES = dict(ACTIVATIONS.values())

# Gradient of the output (M, B, n_out) -> of the input, if asked for, and of the parameters.
Pullback = Callable[[torch.Tensor], tuple[torch.Tensor | None, list[torch.Tensor]]]


class Linear(nn.Linear):
    """Fully connected layer whose forward rounds a row the same at every place in a batch.

    Products with fewer than 9 outputs and an odd number of inputs don't (seen in MKL: the
    last bit depends on the row's place), so that narrow layers compute 16 outputs. In
    float64 an odd number of inputs is enough, and gets a neighbour of zeros.
    """

    def reset_parameters(self) -> None:
        """Leave the values to `initialise` or a state: drawing others takes longer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., n_in) to (..., n_out)."""
        narrow = max(0, 16 - self.out_features)
        odd = self.in_features % 2 if x.dtype == torch.float64 else 0
        if not narrow and not odd:
            return super().forward(x)
        weight, bias = F.pad(self.weight, (0, odd, 0, narrow)), F.pad(self.bias, (0, narrow))
        return F.linear(F.pad(x, (0, odd)), weight, bias)[..., : self.out_features]


def _values(layer: nn.Linear) -> list[Any]:
    """Weight and bias; asking a module for them by name takes as long as a small layer's."""
    return list(layer._parameters.values())


@dataclass(frozen=True)
class MLP:
    """Multilayer perceptron of fully connected layers.

    Its sizes and activation are those of the estimator (`hidden_layer_sizes`,
    `activation`); the decoder has the encoder's hidden layers in reverse order.

    Examples
    --------
    >>> from skvae.networks import MLP
    >>> MLP().build(4, 2, hidden_layer_sizes=(8,), activation="tanh")
    Sequential(
      (0): Linear(in_features=4, out_features=8, bias=True)
      (1): Tanh()
      (2): Linear(in_features=8, out_features=2, bias=True)
    )
    """

    def build(
        self, n_in: int, n_out: int, hidden_layer_sizes: Sequence[int], activation: str
    ) -> nn.Module:
        """Make the module from (B, n_in) to (B, n_out)."""
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise([n_in, *hidden_layer_sizes, n_out]):
            layers += [Linear(fan_in, fan_out), ACTIVATIONS[activation][0]()]
        return nn.Sequential(*layers[:-1])

    def initialise(self, module: nn.Module, generator: torch.Generator) -> None:
        """Draw the weights of `module`, on the CPU, from `generator`."""
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)

    def vjp(
        self, module: nn.Module, x: torch.Tensor, *, to_input: bool
    ) -> tuple[torch.Tensor, Pullback]:
        """Output (M, B, n_out) for x (M, B, n_in), and the pullback of its gradient.

        The weights of `module` are stacked: (M, n_out, n_in) and (M, n_out).
        """
        tape: list[tuple[torch.Tensor | Derivative, torch.Tensor, torch.Tensor]] = []
        for layer in module._modules.values():  # children() takes longer than a small layer
            before = x
            if isinstance(layer, nn.Linear):
                weight, bias = _values(layer)
                x = torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)
                tape.append((weight, before, x))
            elif layer is not None:
                x = layer.forward(x)
                tape.append((DERIVATIVES[type(layer)], before, x))

        def pull(g: torch.Tensor) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
            gradients: list[torch.Tensor] = []
            for operation, before, after in reversed(tape):
                if not isinstance(operation, torch.Tensor):
                    g = operation(g, before, after)
                    continue
                gradients += [g.sum(-2), torch.bmm(g.mT, before)]
                if before is tape[0][1] and not to_input:
                    return None, gradients[::-1]
                g = torch.bmm(g, operation)
            return g, gradients[::-1]

        return x, pull


def vjp(
    network: Any, module: nn.Module, x: torch.Tensor, *, to_input: bool
) -> tuple[torch.Tensor, Pullback]:
    """`network.vjp`; for a network that has none, the same by `torch.func`."""
    if hasattr(network, "vjp"):
        return network.vjp(module, x, to_input=to_input)
    learned, kept = dict(module.named_parameters()), dict(module.named_buffers())

    def outputs(
        learned: dict[str, torch.Tensor], kept: dict[str, torch.Tensor], x: torch.Tensor
    ) -> torch.Tensor:
        return torch.func.functional_call(module, (learned, kept), (x,))

    def all_outputs(learned: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.vmap(outputs)(learned, kept, x)

    # The tape of autograd takes no tensors of the inference mode that training runs in.
    with torch.inference_mode(False):
        copies = {name: parameter.detach().clone() for name, parameter in learned.items()}
        kept = {name: buffer.clone() for name, buffer in kept.items()}
        result, backward, *_ = torch.func.vjp(all_outputs, copies, x.clone())

    def pull(g: torch.Tensor) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        with torch.inference_mode(False):
            gradients, g_x = backward(g.clone())
        return g_x, list(gradients.values())

    return result, pull


NETWORKS: dict[str, MLP] = {"mlp": MLP()}
