"""Networks: the functions inside the encoder q(z|x) and the decoder p(x|z).

A network is a value: a frozen dataclass. Its `encoder` and `decoder` make an ``nn.Module`` with
n_in inputs and n_out outputs, and its `initialise` draws the first values of the module.

`MLP` is the multilayer perceptron,

    h_0 = x,    h_i = activation(W_i h_{i-1} + b_i),    output = W h_last + b + A x,

where A x is the linear map of PCA and factor analysis. Without hidden layers, W h_last + b is this
map. A, which may be left out, starts at 0. All other weights start uniform with variance
2 / (n_in + n_out) (Glorot & Bengio, Understanding the difficulty of training deep feedforward
neural networks, 2010, eq. 16), and biases at 0. A hidden layer may add its input (He et al., Deep
residual learning, 2016, arXiv:1512.03385), be normalised before its activation (Ba, Kiros &
Hinton, Layer normalization, 2016, arXiv:1607.06450) and drop units after it (Srivastava et al.,
Dropout, 2014). `Conv` is for images, and `Own` holds a user's modules.

Noise is an argument, as for every draw; it decides which units are dropped.

`Layers.vjp` is backpropagation, written out for M modules at once, whose weights are stacked along
a leading dimension. It gives the output, and a function that pulls a gradient back through it. For
layers as small as those of a table, autograd's bookkeeping takes longer than the arithmetic.
Written out, a training step takes about half the time, and stacked models share the bookkeeping
that is left. All other modules use autograd, stacked by ``torch.func.vmap``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.special import ndtri
from torch import nn

from skvae._backend import ops
from skvae._backend.autograd import module_vjp
from skvae._backend.ops import tanh
from skvae._backend.part import Part

__all__ = ["MLP", "Conv", "Network"]

aten: Any = torch.ops.aten


class Tanh(nn.Tanh):
    """tanh, faster on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply tanh to each value."""
        return tanh(x)


# Activations and their derivatives: (gradient of output, input, output) -> gradient of input.
Derivative = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
ACTIVATIONS: dict[str, tuple[type[nn.Module], Derivative]] = {
    "elu": (nn.ELU, lambda g, x, y: aten.elu_backward.default(g, 1.0, 1.0, 1.0, False, x)),
    "gelu": (nn.GELU, lambda g, x, y: aten.gelu_backward.default(g, x)),
    "relu": (nn.ReLU, lambda g, x, y: aten.threshold_backward.default(g, y, 0)),
    "silu": (nn.SiLU, lambda g, x, y: aten.silu_backward.default(g, x)),
    "softplus": (nn.Softplus, lambda g, x, y: aten.softplus_backward.default(g, x, 1.0, 20.0)),
    "tanh": (Tanh, lambda g, x, y: aten.tanh_backward.default(g, y)),
}
DERIVATIVES = dict(ACTIVATIONS.values())

# From the gradient of the output (M, B, n_out) to the gradients of the input, or None if it is not
# needed, and of the parameters. It can be called once only.
Pullback = Callable[[torch.Tensor], tuple[torch.Tensor | None, list[torch.Tensor]]]


class Linear(nn.Linear):
    """Fully connected layer whose forward rounds a row the same at every index in a batch."""

    def reset_parameters(self) -> None:
        """Draw nothing, which saves time: `initialise` or a state sets the values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., n_in) to (..., n_out)."""
        return ops.linear(x, self.weight, self.bias)


class Layers(nn.Sequential):
    """Linear layers and activations in turn, and optionally a linear map beside them."""

    def __init__(self, *layers: nn.Module, linear: nn.Parameter | None = None) -> None:
        super().__init__(*layers)
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., n_in) to (..., n_out)."""
        h: torch.Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return h if self.linear is None else h + ops.linear(x, self.linear)

    def vjp(self, x: torch.Tensor, *, to_input: bool) -> tuple[torch.Tensor, Pullback]:
        """Return the output (M, B, n_out) for x (M, B, n_in), and the pullback of its gradient.

        The weights are stacked: (M, n_out, n_in) and (M, n_out).
        """
        tape: list[tuple[torch.Tensor | Derivative, torch.Tensor, torch.Tensor]] = []
        first, beside = x, self.linear
        for layer in self._modules.values():  # children() takes longer than a small layer
            before = x
            if isinstance(layer, nn.Linear):
                weight, bias = _parameters(layer)
                x = torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)
                tape.append((weight, before, x))
            elif layer is not None:
                x = layer.forward(x)
                tape.append((DERIVATIVES[type(layer)], before, x))
        if beside is not None:
            x = torch.baddbmm(x, first, beside.mT)

        def pull(g: torch.Tensor) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
            assert tape, "a pullback is called once"
            gradients: list[torch.Tensor] = []
            outer, g_beside = g, [] if beside is None else [torch.bmm(g.mT, first)]
            while tape:  # popping an entry frees its memory for the next gradients
                operation, before, after = tape.pop()
                if not isinstance(operation, torch.Tensor):
                    g = operation(g, before, after)
                    continue
                gradients += [g.sum(-2), torch.bmm(g.mT, before)]
                if before is first and not to_input:
                    return None, g_beside + gradients[::-1]
                g = torch.bmm(g, operation)
            if beside is not None:
                g = torch.baddbmm(g, outer, beside)
            return g, g_beside + gradients[::-1]

        return x, pull


def _parameters(layer: nn.Linear) -> list[Any]:
    """Return weight and bias without a look-up by name, which takes as long as a small layer."""
    return list(layer._parameters.values())


class Hidden(nn.Module):
    """A hidden layer with the options of an `MLP`."""

    def __init__(self, n_in: int, n_out: int, activation: str, options: "MLP") -> None:
        super().__init__()
        self.linear: Linear = Linear(n_in, n_out)
        self.norm: nn.Module = nn.LayerNorm(n_out) if options.layer_norm else nn.Identity()
        self.activation: nn.Module = ACTIVATIONS[activation][0]()
        self.dropout: float = options.dropout
        # The input is added as it is, or by a linear map if the widths differ.
        self.skip: nn.Module | None = None
        if options.residual:
            self.skip = nn.Identity() if n_in == n_out else Linear(n_in, n_out)

    def forward(self, x: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """(..., n_in) to (..., n_out); drops units by standard normal noise (..., n_out).

        A row with infinite noise drops no unit, as in inference.
        """
        h = self.activation(self.norm(self.linear(x)))
        if noise is not None:
            kept = noise > float(ndtri(self.dropout))
            scaled = torch.where(noise == math.inf, h, h / (1 - self.dropout))
            h = torch.where(kept, scaled, 0.0)
        return h if self.skip is None else h + self.skip(x)


class HiddenLayers(nn.Module):
    """Layers of `Hidden`, a linear layer at the end, and optionally a linear map beside them."""

    def __init__(
        self, hidden: Sequence[Hidden], last: Linear, linear: nn.Parameter | None = None
    ) -> None:
        super().__init__()
        self.hidden: nn.ModuleList = nn.ModuleList(hidden)
        self.last: Linear = last
        self.linear: nn.Parameter | None = linear
        # Widths of the noise that each layer takes.
        self.widths: list[int] = [
            layer.linear.out_features if layer.dropout else 0 for layer in hidden
        ]
        self.n_noise: int = sum(self.widths)

    def forward(self, x: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """(..., n_in) to (..., n_out), with noise (..., n_noise) in training."""
        own = self.widths if noise is None else noise.split(self.widths, dim=-1)
        h = x
        for layer, part in zip(self.hidden, own, strict=True):
            h = layer(h, None if noise is None else part)
        h = self.last(h)
        return h if self.linear is None else h + ops.linear(x, self.linear)


class Network(Part, ABC):
    """The base class of a network of your own: encoder and decoder, as torch modules.

    A network is a value, such as a frozen dataclass. It must define `encoder` and `decoder`; all
    other methods have defaults. The output of a module for a row must not depend on other rows or
    on random numbers.

    Attributes
    ----------
    initialises_all : bool
        A class attribute: whether `initialise` sets every value of the modules, so that they can be
        made without values. False by default.
    is_foreign : bool
        A class attribute: whether the modules may write into their inputs. True by default.

    Examples
    --------
    An encoder that sees each column through waves of several lengths:

    >>> from dataclasses import dataclass
    >>> import numpy as np
    >>> import torch
    >>> from skvae import VAETransformer
    >>> from skvae.networks import Network
    >>> class Waves(torch.nn.Module):
    ...     def __init__(self, lengths):
    ...         super().__init__()
    ...         self.register_buffer("rate", 2 * np.pi / torch.tensor(lengths))
    ...
    ...     def forward(self, x):
    ...         angle = (x.unsqueeze(-1) * self.rate).flatten(-2)
    ...         return torch.cat([x, angle.sin(), angle.cos()], dim=-1)
    >>> @dataclass(frozen=True)
    ... class Periodic(Network):
    ...     lengths: tuple[float, ...] = (1.0, 2.0, 4.0)
    ...
    ...     def encoder(self, n_in, n_out, hidden_layer_sizes, activation):
    ...         n_waves = n_in * (1 + 2 * len(self.lengths))
    ...         return torch.nn.Sequential(Waves(self.lengths), torch.nn.Linear(n_waves, n_out))
    ...
    ...     def decoder(self, n_in, n_out, hidden_layer_sizes, activation):
    ...         return torch.nn.Sequential(
    ...             torch.nn.Linear(n_in, 32), torch.nn.Tanh(), torch.nn.Linear(32, n_out)
    ...         )
    >>> X = np.random.default_rng(0).normal(size=(200, 4))
    >>> vae = VAETransformer(2, network=Periodic(), max_iter=5, random_state=0).fit(X)
    >>> vae.transform(X).shape
    (200, 2)
    """

    not_inherited = (*Part.not_inherited, "is_linear", "can_be_padded")

    @abstractmethod
    def encoder(
        self, n_in: int, n_out: int, hidden_layer_sizes: Sequence[int], activation: str
    ) -> nn.Module:
        """Make the module from rows (B, n_in) to the raw outputs of the posterior, (B, n_out).

        Parameters
        ----------
        n_in : int
            Number of features; twice that if the encoder also sees a mask of the values.
        n_out : int
            Number of outputs for a row.
        hidden_layer_sizes : sequence of int
            The estimator's `hidden_layer_sizes`.
        activation : str
            The estimator's `activation`, a key of `ACTIVATIONS`.

        Returns
        -------
        module : torch.nn.Module
            Its parameters are learned, its buffers kept.
        """

    @abstractmethod
    def decoder(
        self, n_in: int, n_out: int, hidden_layer_sizes: Sequence[int], activation: str
    ) -> nn.Module:
        """Make the module from latent rows (B, n_in) to outputs for the likelihood, (B, n_out).

        Parameters
        ----------
        n_in : int
            Number of components.
        n_out : int
            Number of outputs for a row.
        hidden_layer_sizes : sequence of int
            The estimator's `hidden_layer_sizes`, in reverse order.
        activation : str
            The estimator's `activation`, a key of `ACTIVATIONS`.

        Returns
        -------
        module : torch.nn.Module
            Its parameters are learned, its buffers kept.
        """

    def initialise(self, module: nn.Module, generator: torch.Generator) -> None:
        """Draw the first weights of `module`, on the CPU; by default they stay unchanged."""

    def n_noise(self, hidden_layer_sizes: Sequence[int]) -> int:
        """Number of standard normals per row that drop units, in encoder and decoder alike."""
        return 0

    def check_rows(self, n_features: int, n_columns: int) -> None:
        """Raise a ValueError if the network cannot read rows of so many features and columns."""

    def is_linear(self, hidden_layer_sizes: Sequence[int]) -> bool:
        """Whether encoder and decoder are linear functions of their input."""
        return False

    @property
    def can_be_padded(self) -> bool:
        """Whether further inputs and outputs of 0 leave a row's own values unchanged."""
        return False


@dataclass(frozen=True)
class MLP(Network):
    """Multilayer perceptron of fully connected layers.

    Its sizes and activation are those of the estimator (`hidden_layer_sizes`,
    `activation`); the decoder has the encoder's hidden layers in reverse order.

    Parameters
    ----------
    residual : bool, default=False
        Whether each hidden layer adds its input, by a linear map where their widths differ.
    dropout : float, default=0.0
        Probability, in [0, 1), that a unit of a hidden layer is left out of a training step.
    layer_norm : bool, default=False
        Whether hidden layers are normalised before their activation.
    linear : bool, default=True
        Whether a linear map goes from the input to the output beside the hidden layers. A model of
        real values can then become factor analysis, with noise variances at or above their floor,
        and the hidden layers learn the rest.

    Raises
    ------
    ValueError
        If a parameter is none of these.

    Examples
    --------
    >>> from skvae.networks import MLP
    >>> MLP(linear=False).encoder(4, 2, hidden_layer_sizes=(8,), activation="tanh")
    Layers(
      (0): Linear(in_features=4, out_features=8, bias=True)
      (1): Tanh()
      (2): Linear(in_features=8, out_features=2, bias=True)
    )
    """

    residual: bool = False
    dropout: float = 0.0
    layer_norm: bool = False
    linear: bool = True

    initialises_all: ClassVar[bool] = True
    is_foreign: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise an error if a parameter is not valid."""
        for name in ("residual", "layer_norm", "linear"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise ValueError(
                    f"The {name} of an MLP must be True or False. Got {getattr(self, name)!r}."
                )
        number = isinstance(self.dropout, Real) and not isinstance(self.dropout, bool)
        if not (number and 0 <= self.dropout < 1):
            raise ValueError(
                f"The dropout of an MLP must be a number in [0, 1). Got {self.dropout!r}."
            )

    def encoder(
        self, n_in: int, n_out: int, hidden_layer_sizes: Sequence[int], activation: str
    ) -> nn.Module:
        """Make the module from (B, n_in) to (B, n_out)."""
        pairs = list(pairwise([n_in, *hidden_layer_sizes]))
        last = Linear([n_in, *hidden_layer_sizes][-1], n_out)
        linear = None
        if self.linear and pairs:  # without hidden layers the network is linear anyway
            linear = nn.Parameter(torch.empty(n_out, n_in))
        if pairs and (self.residual or self.dropout or self.layer_norm):
            hidden = [Hidden(*pair, activation, self) for pair in pairs]
            return HiddenLayers(hidden, last, linear)
        layers: list[nn.Module] = []
        for pair in pairs:
            layers += [Linear(*pair), ACTIVATIONS[activation][0]()]
        return Layers(*layers, last, linear=linear)

    decoder = encoder

    def n_noise(self, hidden_layer_sizes: Sequence[int]) -> int:
        """Number of standard normals per row that drop units, in encoder and decoder alike."""
        return sum(hidden_layer_sizes) if self.dropout else 0

    def is_linear(self, hidden_layer_sizes: Sequence[int]) -> bool:
        """Whether there are no hidden layers."""
        return not hidden_layer_sizes

    @property
    def can_be_padded(self) -> bool:
        """Whether further inputs and outputs of 0 leave a row's own values unchanged."""
        return not self.residual

    def initialise(self, module: nn.Module, generator: torch.Generator) -> None:
        """Draw the weights of `module`, on the CPU, from `generator`."""
        draw_weights(module, generator)
        for layer in module.modules():  # a user's class may wrap them
            if isinstance(layer, Layers | HiddenLayers) and layer.linear is not None:
                nn.init.zeros_(layer.linear)
        if isinstance(module, HiddenLayers) and self.residual:
            # Sums of layers are large, and a standard deviation is the exponential of such a sum.
            with torch.no_grad():
                module.last.weight.mul_(0.1)


def last_layer(module: nn.Module) -> nn.Linear | None:
    """Return the last layer of a fully connected network; None for any other network."""
    if isinstance(module, HiddenLayers):
        return module.last
    return module[-1] if isinstance(module, Layers) else None  # type: ignore[return-value]


def is_linear(module: nn.Module) -> bool:
    """Whether a network can become a linear map."""
    if not isinstance(module, Layers | HiddenLayers):
        return False
    return module.linear is not None or (isinstance(module, Layers) and len(module) == 1)


def become_linear(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Set the weights of a network, or of a stack, so that it is the map x W' + b."""
    assert isinstance(module, Layers | HiddenLayers)
    last: Any = last_layer(module)
    last.bias.copy_(bias)
    if module.linear is None:
        last.weight.copy_(weight)
    else:
        last.weight.zero_()
        module.linear.copy_(weight)


def draw_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of linear layers and convolutions; normalisations start as in torch."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            layer.reset_parameters()


@dataclass(frozen=True)
class Conv(Network):
    """Convolutions for images that are given as rows.

    The encoder halves height and width with each convolution, of 3 x 3 pixels, and goes on
    with the fully connected layers of `hidden_layer_sizes`; the decoder does the same in
    reverse order.

    Parameters
    ----------
    image_shape : tuple of 3 int
        (channels, height, width) of an image; a row has its values in this order.
        Height and width are at least 8.
    channels : tuple of int, default=(32, 64)
        Channels after each convolution.

    Raises
    ------
    ValueError
        If a parameter is no such shape.

    Examples
    --------
    >>> from skvae.networks import Conv
    >>> Conv((1, 28, 28))
    Conv(image_shape=(1, 28, 28), channels=(32, 64))
    """

    image_shape: tuple[int, int, int]
    channels: tuple[int, ...] = (32, 64)

    initialises_all: ClassVar[bool] = True
    is_foreign: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise an error if a parameter is not valid."""
        for name in ("image_shape", "channels"):
            sizes = getattr(self, name)
            known = isinstance(sizes, tuple) and len(sizes) > 0
            if not (known and all(isinstance(n, int | np.integer) and n > 0 for n in sizes)):
                raise ValueError(
                    f"The {name} of a Conv must be a tuple of positive integers. Got {sizes!r}."
                )
        if len(self.image_shape) != 3 or min(self.image_shape[1:]) < 8:
            raise ValueError(
                "The image_shape of a Conv must be (channels, height, width), with height and "
                f"width of at least 8. Got {self.image_shape!r}."
            )

    def _sizes(self) -> list[tuple[int, int]]:
        """Return height and width before and after each convolution."""
        sizes = [self.image_shape[1:]]
        for _ in self.channels:
            height, width = sizes[-1]
            sizes.append((-(-height // 2), -(-width // 2)))
        return sizes

    def check_rows(self, n_features: int, n_columns: int) -> None:
        """Raise a ValueError if rows are no images of this shape."""
        if n_features != n_columns:
            raise ValueError(
                f"network={self!r} is for pixels that are numbers. Got categories, which become "
                f"{n_features} features: use 'mlp', or a likelihood of numbers."
            )
        n_values = math.prod(self.image_shape)
        if n_features != n_values:
            raise ValueError(
                f"{self!r} is for rows of {n_values} features. Got rows of {n_features}: give the "
                "(channels, height, width) of the images in X."
            )

    def encoder(
        self, n_in: int, n_out: int, hidden_layer_sizes: Sequence[int], activation: str
    ) -> nn.Module:
        """Make the module from images in rows (B, n_in) to (B, n_out).

        If a pixel has several inputs, such as its value and a mask, n_in is a multiple of the
        number of an image's values.
        """
        n_channels = self.image_shape[0] * n_in // math.prod(self.image_shape)
        layers: list[nn.Module] = [nn.Unflatten(-1, (n_channels, *self.image_shape[1:]))]
        for before, after in pairwise([n_channels, *self.channels]):
            layers += [nn.Conv2d(before, after, 3, 2, 1), ACTIVATIONS[activation][0]()]
        n_flat = self.channels[-1] * math.prod(self._sizes()[-1])
        dense = MLP(linear=False).encoder(n_flat, n_out, hidden_layer_sizes, activation)
        return nn.Sequential(*layers, nn.Flatten(-3), *dense.children())

    def decoder(
        self, n_in: int, n_out: int, hidden_layer_sizes: Sequence[int], activation: str
    ) -> nn.Module:
        """Make the module from latent rows (B, n_in) to images in rows (B, n_out).

        If a pixel has several outputs, n_out is a multiple of the number of an image's values.
        """
        n_per_pixel = n_out // math.prod(self.image_shape)
        sizes = self._sizes()[::-1]
        first = self.channels[-1], *sizes[0]
        dense = MLP(linear=False).encoder(n_in, math.prod(first), hidden_layer_sizes, activation)
        layers = [*dense.children(), ACTIVATIONS[activation][0](), nn.Unflatten(-1, first)]
        channels = [*self.channels[::-1], self.image_shape[0] * n_per_pixel]
        steps = zip(pairwise(channels), pairwise(sizes), strict=True)
        for (before, after), (small, large) in steps:
            # A step turns n pixels into 2 n - 1. One more is missing if the size was even.
            missing = (large[0] - 2 * small[0] + 1, large[1] - 2 * small[1] + 1)
            layers += [
                nn.ConvTranspose2d(before, after, 3, 2, 1, missing),
                ACTIVATIONS[activation][0](),
            ]
        return nn.Sequential(*layers[:-1], nn.Flatten(-3))

    def initialise(self, module: nn.Module, generator: torch.Generator) -> None:
        """Draw the weights of `module`, on the CPU, from `generator`."""
        draw_weights(module, generator)


@dataclass(frozen=True)
class Own(Network):
    """A user's own modules, made by callables ``(n_in, n_out) -> nn.Module``.

    The callables set their first values.
    """

    make_encoder: Callable[[int, int], nn.Module]
    make_decoder: Callable[[int, int], nn.Module]

    def encoder(
        self, n_in: int, n_out: int, hidden_layer_sizes: Sequence[int], activation: str
    ) -> nn.Module:
        """Make the module from (B, n_in) to (B, n_out)."""
        return self.make_encoder(n_in, n_out)

    def decoder(
        self, n_in: int, n_out: int, hidden_layer_sizes: Sequence[int], activation: str
    ) -> nn.Module:
        """Make the module from (B, n_in) to (B, n_out)."""
        return self.make_decoder(n_in, n_out)


def check_outputs(module: nn.Module, part: str, n_in: int, n_out: int) -> None:
    """Raise a ValueError if a module doesn't turn (2, n_in) into (2, n_out)."""
    try:
        outputs = module(torch.zeros(2, n_in, dtype=torch.float32, device="cpu"))
    except Exception as error:
        raise ValueError(
            f"The {part} of the network failed on an input of shape (2, {n_in}): "
            f"{type(error).__name__}: {error}. It must take (n, {n_in}) and give (n, {n_out})."
        ) from error
    shape = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if shape != (2, n_out):
        raise ValueError(
            f"The {part} of the network must give outputs of shape (n, {n_out}) for an input of "
            f"shape (n, {n_in}). Got {shape} for n = 2."
        )


def vjp(
    module: nn.Module, x: torch.Tensor, noise: torch.Tensor | None = None, *, to_input: bool
) -> tuple[torch.Tensor, Pullback]:
    """Return the outputs of stacked modules for x (M, B, n_in), and the pullback of their gradient.

    `noise` (M, B, n_noise) drops units, if a module does so.
    """
    if isinstance(module, Layers):
        return module.vjp(x, to_input=to_input)
    noises = [] if noise is None else [noise]
    (result,), backward = module_vjp(lambda one, *inputs: [one(*inputs)], module, [x], noises)

    def pull(g: torch.Tensor) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        (g_x,), gradients = backward([g])
        return g_x, gradients

    return result, pull


NETWORKS: dict[str, MLP] = {"mlp": MLP()}
