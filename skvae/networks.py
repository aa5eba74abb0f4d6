"""Networks: the functions inside the encoder q(z|x) and the decoder p(x|z).

A network is a value: a frozen dataclass that says how to make an ``nn.Module`` from n_in
inputs to n_out outputs. `build` makes it without values, `initialise` draws them.

`MLP` is the multilayer perceptron,

    h_0 = x,    h_i = activation(W_i h_{i-1} + b_i),    output = W h_last + b,

which without hidden layers is the linear map of PCA and factor analysis. Weights start
uniform with variance 2 / (n_in + n_out) (Glorot & Bengio, Understanding the difficulty of
training deep feedforward neural networks, 2010, eq. 16), biases at 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


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
            layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
        return nn.Sequential(*layers[:-1])

    def initialise(self, module: nn.Module, generator: torch.Generator) -> None:
        """Draw the weights of `module`, on the CPU, from `generator`."""
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)


NETWORKS: dict[str, MLP] = {"mlp": MLP()}
