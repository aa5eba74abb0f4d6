"""Posteriors q(z|x): the distribution of the latent variables of a row, given by the encoder.

A posterior is a value that reads the raw outputs of the encoder. Noise is an argument: a draw is a
function of the parameters and of standard normal noise eps. This is the reparameterisation of
Kingma & Welling, Auto-Encoding Variational Bayes (2013), arXiv:1312.6114, section 2.4. With a
lower-triangular factor T, which is diagonal for `Diagonal`,

    z = mean + T eps,
    log q(z|x) = -sum_j (log T_jj + eps_j**2 / 2 + log(2 pi) / 2),
    KL(q || N(0, I)) = 1/2 (|mean|**2 + |T|**2 - L) - sum_j log T_jj,

If T is diagonal, the KL divergence is a sum over components (appendix B). `Flow` sends such a z
through further invertible maps f, with log q(f(z)) = log q(z) - log |det df/dz|.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from skvae._backend import normal, ops
from skvae._backend.normal import LOG_2PI
from skvae._backend.part import Part
from skvae._backend.quadrature import score_noise
from skvae._backend.tensors import to_tensor

__all__ = ["Diagonal", "Flow", "Full", "Normal", "Posterior"]

aten: Any = torch.ops.aten

# The bound on log std is smooth: exp(+-15) squared is still far from float32's limits, and the
# gradient does not become 0, as it would with a clamp.
LOG_STD_BOUND = 15.0
N_MEAN_DRAWS = 64  # draws that estimate the mean of a flow, which has no formula


class Normal(NamedTuple):
    """Parameters of q(z|x) for a batch of rows.

    Parameters
    ----------
    mean : tensor of shape (..., n_rows, n_components)
        Means of the draws before a flow transforms them.
    log_std : tensor of shape (..., n_rows, n_components)
        Logarithm of the standard deviations; of `Full`, of the diagonal of the factor.
    below : tensor of shape (..., n_rows, n_components, n_components) or None, default=None
        The factor below its diagonal.
    context : tensor of shape (..., n_rows, n_context) or None, default=None
        Information on the row for a flow.

    Examples
    --------
    >>> import torch
    >>> from skvae.posteriors import Diagonal
    >>> Diagonal().parameters(torch.zeros(1, 4)).mean
    tensor([[0., 0.]])
    """

    mean: torch.Tensor  # (..., B, L)
    log_std: torch.Tensor  # (..., B, L): of Full, the logarithm of the factor's diagonal
    below: torch.Tensor | None = None  # (..., B, L, L): the factor below its diagonal
    context: torch.Tensor | None = None  # (..., B, C): information on the row for a flow


# From gradients of z (M, S, B, L) and of the KL terms to the gradient of the raw outputs (M, B, P).
Pullback = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _bend(raw: torch.Tensor) -> torch.Tensor:
    return LOG_STD_BOUND * torch.tanh(raw / LOG_STD_BOUND)


def unbend(log_std: torch.Tensor) -> torch.Tensor:
    """Return the raw outputs that give these log stds, or the nearest possible ones."""
    return LOG_STD_BOUND * torch.atanh((log_std / LOG_STD_BOUND).clamp(-0.999, 0.999))


class Posterior(Part, ABC):
    """The base class of a posterior of your own: q(z|x), given the encoder's outputs for a row.

    A posterior is a value, such as a frozen dataclass, with pure functions of tensors. It must
    define `n_outputs`, `parameters`, `mean_std` and `draw`; all other methods have defaults.
    `build` makes a module for values that are learned besides the encoder, and `initialise` fills
    it. Autograd computes the derivatives.

    Attributes
    ----------
    has_kl : bool
        A class attribute: whether `kl` gives the divergence from N(0, I); otherwise draws estimate
        it. False by default.
    factorises : bool
        A class attribute: whether that divergence is a sum over the components. False by default.
    has_density : bool
        A class attribute: whether `log_density` gives the density everywhere. False by default.
    initialises_all : bool
        A class attribute: whether `initialise` sets every value of the module, so that it can be
        made without values. False by default.

    Examples
    --------
    Components that have a logistic distribution:

    >>> from dataclasses import dataclass
    >>> import numpy as np
    >>> import torch
    >>> from skvae import VAETransformer
    >>> from skvae.posteriors import Normal, Posterior
    >>> @dataclass(frozen=True)
    ... class Logistic(Posterior):
    ...     def n_outputs(self, n_components):
    ...         return 2 * n_components
    ...
    ...     def parameters(self, raw):
    ...         mean, log_scale = raw.chunk(2, dim=-1)
    ...         return Normal(mean, log_scale.clamp(-15, 15))
    ...
    ...     def mean_std(self, module, q):
    ...         return q.mean, q.log_std.exp() * np.pi / np.sqrt(3)
    ...
    ...     def draw(self, module, q, eps):
    ...         unit = torch.special.ndtr(eps).clamp(1e-6, 1 - 1e-6).logit()
    ...         z = q.mean + q.log_std.exp() * unit
    ...         log_density = -unit - 2 * torch.nn.functional.softplus(-unit) - q.log_std
    ...         return z, log_density.sum(-1)
    >>> X = np.random.default_rng(0).normal(size=(200, 4))
    >>> vae = VAETransformer(2, posterior=Logistic(), max_iter=5, random_state=0).fit(X)
    >>> vae.transform(X).shape
    (200, 2)
    """

    not_inherited = (
        *Part.not_inherited,
        *("has_kl", "factorises", "has_density", "has_vjp", "mean"),
    )
    has_kl: ClassVar[bool] = False
    factorises: ClassVar[bool] = False
    has_density: ClassVar[bool] = False
    has_vjp: ClassVar[bool] = False  # whether the gradient is written out

    @abstractmethod
    def n_outputs(self, n_components: int) -> int:
        """Return the number of the encoder's outputs for a row.

        Parameters
        ----------
        n_components : int
            Number of components.

        Returns
        -------
        n_outputs : int
            Length of the last dimension of `raw`.
        """

    @abstractmethod
    def parameters(self, raw: torch.Tensor) -> "Normal":
        """Return the posterior's parameters, read from the encoder's outputs.

        Parameters
        ----------
        raw : tensor of shape (..., n_rows, n_outputs)
            The encoder's outputs, which may be any numbers, and large early in training.

        Returns
        -------
        q : Normal
            Parameters of each row. ``mean`` and ``log_std`` have the shape (..., n_rows,
            n_components), ``below`` and ``context`` any shape.
        """

    @abstractmethod
    def mean_std(self, module: Any, q: "Normal") -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of z.

        Parameters
        ----------
        module : torch.nn.Module
            The values that are learned besides the encoder.
        q : Normal
            Parameters of rows.

        Returns
        -------
        mean, std : tensors of shape (n_rows, n_components)
            Of each component.
        """

    @abstractmethod
    def draw(
        self, module: Any, q: "Normal", eps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return draws of z and their log-densities.

        Parameters
        ----------
        module : torch.nn.Module
            The values that are learned besides the encoder.
        q : Normal
            Parameters of rows.
        eps : tensor of shape (n_draws, n_rows or 1, n_components)
            Standard normal noise, the only source of randomness.

        Returns
        -------
        z : tensor of shape (n_draws, n_rows, n_components)
            Latent rows.
        log_q : tensor of shape (n_draws, n_rows)
            log q(z|x) of each, in nats, with every constant.
        """

    def build(self, n_components: int) -> nn.Module:
        """Make the module of values learned besides the encoder; by default an empty one."""
        return nn.Module()

    def initialise(self, module: nn.Module, generator: torch.Generator) -> None:
        """Fill the module with its first values; by default they stay unchanged."""

    def mean(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        """Mean of z, (B, L), from raw encoder outputs (B, P)."""
        return self.mean_std(module, self.parameters(raw))[0]

    def rsample(self, q: "Normal", eps: torch.Tensor) -> torch.Tensor:
        """Draws of z, (S, B, L), without their density, where the gradient is written out."""
        raise NotImplementedError

    def kl(self, q: "Normal") -> torch.Tensor:
        """KL(q || N(0, I)) in nats, (..., B, L), or (..., B, 1) if it is no sum over components."""
        raise NotImplementedError

    def log_density(self, module: Any, q: "Normal", z: torch.Tensor) -> torch.Tensor:
        """log q(z|x_k) in nats, (..., B, K), of any z (..., B, L) for rows q (K, L)."""
        raise NotImplementedError

    def vjp(
        self, raw: torch.Tensor, eps: torch.Tensor, *, by_draw: bool
    ) -> tuple[torch.Tensor, torch.Tensor, "Pullback"]:
        """Return z, its KL terms from N(0, I), and the pullback of their gradients, of M models."""
        raise NotImplementedError

    def places(self, n_components: int, n_wider: int) -> list[int]:
        """Return the indices of the raw outputs for L components among those for `n_wider`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Diagonal(Posterior):
    """Independent normal components, N(mean, diag(std**2)).

    Examples
    --------
    >>> import torch
    >>> from skvae.posteriors import Diagonal
    >>> posterior = Diagonal()
    >>> q = posterior.parameters(torch.zeros(1, 4))  # mean 0, std 1: the prior itself
    >>> posterior.kl(q).sum(-1)
    tensor([0.])
    """

    has_kl: ClassVar[bool] = True
    factorises: ClassVar[bool] = True
    has_density: ClassVar[bool] = True
    has_vjp: ClassVar[bool] = True
    initialises_all: ClassVar[bool] = True
    is_foreign: ClassVar[bool] = False

    def n_outputs(self, n_components: int) -> int:
        """Number of raw encoder outputs."""
        return 2 * n_components

    def places(self, n_components: int, n_wider: int) -> list[int]:
        """Return the indices of the raw outputs for L components among those for `n_wider`."""
        return [*range(n_components), *range(n_wider, n_wider + n_components)]

    def parameters(self, raw: torch.Tensor) -> Normal:
        """Read raw encoder outputs (..., B, 2L)."""
        mean, log_std = raw.chunk(2, dim=-1)
        return Normal(mean, _bend(log_std))

    def parameters_vjp(self, raw: torch.Tensor) -> tuple[Normal, Any]:
        """`parameters`, and the pullback of the gradients of mean and log std to raw."""
        mean, raw_log_std = raw.chunk(2, dim=-1)
        bend = torch.tanh(raw_log_std / LOG_STD_BOUND)

        def pull(g_mean: torch.Tensor, g_log_std: torch.Tensor) -> torch.Tensor:
            return torch.cat([g_mean, g_log_std * (1 - bend.square())], dim=-1)

        return Normal(mean, LOG_STD_BOUND * bend), pull

    def mean(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        """Mean of z, (B, L), from raw encoder outputs (B, 2L)."""
        return raw.chunk(2, dim=-1)[0]

    def mean_std(self, module: Any, q: Normal) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of z, each (B, L)."""
        return q.mean, q.log_std.exp()

    def rsample(self, q: Normal, eps: torch.Tensor) -> torch.Tensor:
        """Draws of z, (S, B, L), from standard normal noise (S, B, L) or (S, 1, L)."""
        return torch.addcmul(q.mean, q.log_std.exp(), eps)

    def log_prob(self, q: Normal, eps: torch.Tensor) -> torch.Tensor:
        """log q(z|x) in nats, (S, B), of the draws that came from `eps`."""
        return -(q.log_std + 0.5 * (eps.square() + LOG_2PI)).sum(-1)

    def draw(self, module: Any, q: Normal, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws of z, (S, B, L), from standard normal noise, and their log q(z|x), (S, B)."""
        return self.rsample(q, eps), self.log_prob(q, eps)

    def log_density(self, module: Any, q: Normal, z: torch.Tensor) -> torch.Tensor:
        """log q(z|x_k) in nats, (..., B, K), of any z (..., B, L) for rows q (K, L)."""
        return normal.log_density(z, q.mean, q.log_std)

    def kl(self, q: Normal) -> torch.Tensor:
        """KL(q || N(0, I)) of each component in nats, (..., B, L)."""
        return 0.5 * (q.mean.square() + (2 * q.log_std).exp() - 1) - q.log_std

    def vjp(
        self, raw: torch.Tensor, eps: torch.Tensor, *, by_draw: bool
    ) -> tuple[torch.Tensor, torch.Tensor, Pullback]:
        """Return z, its KL terms from N(0, I), and the pullback of their gradients, of M models.

        From raw (M, B, 2L) and eps (M, S, B, L) to z (M, S, B, L) and KL (M, 1, B, L), or
        `by_draw` to log q(z|x) - log p(z) of each draw, (M, S, B, 1).
        """
        mean, raw_log_std = raw.chunk(2, dim=-1)
        bend = torch.tanh(raw_log_std / LOG_STD_BOUND)
        log_std = LOG_STD_BOUND * bend
        std = log_std.exp()
        deviation = std.unsqueeze(1) * eps
        z = mean.unsqueeze(1) + deviation
        if by_draw:
            twice = (z.square() - eps.square()).sum(-1) - 2 * log_std.sum(-1).unsqueeze(1)
            kl = 0.5 * twice.unsqueeze(-1)
        else:
            excess = std.square() - 1
            kl = torch.addcmul(excess, mean, mean).mul_(0.5).sub_(log_std).unsqueeze(1)

        def pull(g_z: torch.Tensor, g_kl: torch.Tensor) -> torch.Tensor:
            if by_draw:
                g_z = torch.addcmul(g_z, z, g_kl)
            g_mean, g_log_std = g_z, g_z * deviation
            if g_z.shape[1] == 1:  # a view, where a sum would copy
                g_mean, g_log_std = g_mean.squeeze(1), g_log_std.squeeze(1)
            else:
                g_mean, g_log_std = g_mean.sum(1), g_log_std.sum(1)
            if by_draw:
                g_log_std = g_log_std - g_kl.sum(1)
            else:
                g_kl = g_kl.squeeze(1)
                g_mean = torch.addcmul(g_mean, mean, g_kl)
                g_log_std = torch.addcmul(g_log_std, excess, g_kl)
            g_raw = aten.tanh_backward.default(g_log_std, bend)
            return torch.cat([g_mean, g_raw], dim=-1)

        return z, kl, pull


def _triangle(n_components: int, device: torch.device) -> torch.Tensor:
    """Return the indices below the diagonal of a flat square, row by row."""
    i, j = torch.tril_indices(n_components, n_components, -1, device=device)
    return i * n_components + j


def _square(lower: torch.Tensor, n_components: int) -> torch.Tensor:
    """Put entries below a diagonal, (..., K), into a square (..., L, L), which is 0 elsewhere."""
    flat = lower.new_zeros(*lower.shape[:-1], n_components**2)
    flat = flat.index_copy(-1, _triangle(n_components, lower.device), lower)
    return flat.unflatten(-1, (n_components, n_components))


@dataclass(frozen=True)
class Full(Posterior):
    """Normal components that depend on each other: N(mean, T T'), T lower-triangular.

    The encoder has L (L + 1) / 2 outputs for T, so `Full` suits few components.

    Examples
    --------
    >>> from skvae.posteriors import Full
    >>> Full().n_outputs(3)  # a mean of 3, a diagonal of 3, and 3 below it
    9
    """

    has_kl: ClassVar[bool] = True
    has_density: ClassVar[bool] = True
    has_vjp: ClassVar[bool] = True
    initialises_all: ClassVar[bool] = True
    is_foreign: ClassVar[bool] = False

    def n_outputs(self, n_components: int) -> int:
        """Number of raw encoder outputs."""
        return 2 * n_components + n_components * (n_components - 1) // 2

    def places(self, n_components: int, n_wider: int) -> list[int]:
        """Return the indices of the raw outputs for L components among those for `n_wider`."""
        below = n_components * (n_components - 1) // 2  # row by row: the first rows come first
        diagonal = Diagonal().places(n_components, n_wider)
        return [*diagonal, *range(2 * n_wider, 2 * n_wider + below)]

    def parameters(self, raw: torch.Tensor) -> Normal:
        """Read raw encoder outputs (..., B, P)."""
        n_outputs = raw.shape[-1]
        n_components = (math.isqrt(9 + 8 * n_outputs) - 3) // 2
        mean, log_std, lower = raw.split(
            [n_components, n_components, n_outputs - 2 * n_components], dim=-1
        )
        return Normal(mean, _bend(log_std), _square(lower, n_components))

    def mean(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        """Mean of z, (B, L), from raw encoder outputs (B, P)."""
        return self.parameters(raw).mean

    def _below(self, q: Normal) -> torch.Tensor:
        assert q.below is not None
        return q.below

    def mean_std(self, module: Any, q: Normal) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of z, each (B, L)."""
        variance = (2 * q.log_std).exp() + self._below(q).square().sum(-1)
        return q.mean, variance.sqrt()

    def rsample(self, q: Normal, eps: torch.Tensor) -> torch.Tensor:
        """Draws of z, (S, B, L), from standard normal noise (S, B, L) or (S, 1, L)."""
        mixed = ops.each(self._below(q), eps)
        return torch.addcmul(q.mean.unsqueeze(-3), q.log_std.unsqueeze(-3).exp(), eps) + mixed

    def draw(self, module: Any, q: Normal, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws of z, (S, B, L), from standard normal noise, and their log q(z|x), (S, B)."""
        eps = eps.expand(*eps.shape[:-2], *q.mean.shape[-2:])
        log_std = q.log_std.unsqueeze(-3)
        return self.rsample(q, eps), -(log_std + 0.5 * (eps.square() + LOG_2PI)).sum(-1)

    def log_density(self, module: Any, q: Normal, z: torch.Tensor) -> torch.Tensor:
        """log q(z|x_k) in nats, (..., B, K), of any z (..., B, L) for rows q (K, L)."""
        factor = self._below(q) + torch.diag_embed(q.log_std.exp())
        point, mean = z, q.mean
        if z.device.type != "mps":  # mps has no float64
            factor, point, mean = factor.double(), z.double(), mean.double()
        # One product gives T_k^-1 (z - m_k) of all k. A solver would round a z by its index.
        one = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
        inverse = torch.linalg.solve_triangular(factor, one.expand_as(factor), upper=False)
        shift = -(inverse @ mean.unsqueeze(-1)).flatten()
        unit = ops.linear(point, inverse.flatten(0, 1), shift).unflatten(-1, mean.shape)
        return ((-0.5 * (unit.square() + LOG_2PI)).sum(-1) - q.log_std.sum(-1)).to(z.dtype)

    def kl(self, q: Normal) -> torch.Tensor:
        """KL(q || N(0, I)) in nats, (..., B, 1), since it is no sum over the components."""
        alone = 0.5 * (q.mean.square() + (2 * q.log_std).exp() - 1) - q.log_std
        return alone.sum(-1, keepdim=True) + 0.5 * self._below(q).square().sum((-2, -1))[..., None]

    def vjp(
        self, raw: torch.Tensor, eps: torch.Tensor, *, by_draw: bool
    ) -> tuple[torch.Tensor, torch.Tensor, Pullback]:
        """Do as `Diagonal.vjp`, from raw (M, B, P), with one KL term (M, 1, B, 1)."""
        n_components = eps.shape[-1]
        lower = raw[..., 2 * n_components :]
        alone, kl, pull_alone = Diagonal().vjp(raw[..., : 2 * n_components], eps, by_draw=by_draw)
        rows = eps.transpose(1, 2)  # (M, B, S, L), as are the products
        below = _square(lower, n_components)
        mixed = (rows @ below.mT).transpose(1, 2)
        z = alone + mixed
        if by_draw:
            kl = kl + 0.5 * (z.square() - alone.square()).sum(-1, keepdim=True)
        else:
            kl = kl.sum(-1, keepdim=True) + 0.5 * lower.square().sum(-1)[:, None, :, None]

        def pull(g_z: torch.Tensor, g_kl: torch.Tensor) -> torch.Tensor:
            if by_draw:
                g_first = pull_alone(torch.addcmul(g_z, mixed, g_kl), g_kl)
                g_z = torch.addcmul(g_z, z, g_kl)
            else:
                g_first = pull_alone(g_z, g_kl.expand(*g_kl.shape[:-1], n_components))
            g_below = (g_z.transpose(1, 2).mT @ rows).flatten(-2)
            g_lower = g_below.index_select(-1, _triangle(n_components, raw.device))
            if not by_draw:
                g_lower = torch.addcmul(g_lower, lower, g_kl.squeeze(1))
            return torch.cat([g_first, g_lower], dim=-1)

        return z, kl, pull


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Apply a layer of zuko's networks, which has a mask unless there is one component only."""
    mask = getattr(layer, "mask", None)
    return ops.linear(x, layer.weight if mask is None else mask * layer.weight, layer.bias)


@dataclass(frozen=True)
class Flow(Posterior):
    """A normal distribution sent through inverse autoregressive maps of the package zuko.

    Each map shifts and scales every component by numbers from a masked network, which sees the
    components before it and the context of the row. The order of the components is reversed from
    map to map. `Flow` needs the package zuko: ``pip install "skvae[flows]"``.

    Parameters
    ----------
    n_transforms : int, default=2
        Number of maps.
    hidden_layer_sizes : tuple of int, default=(64,)
        Widths of the hidden layers of each map's network.
    n_context : int, default=16
        Number of encoder outputs that the maps get as the context of the row.

    References
    ----------
    Improving variational inference with inverse autoregressive flow (D. P. Kingma et al.,
    2016), https://arxiv.org/abs/1606.04934.

    Examples
    --------
    >>> from skvae.posteriors import Flow
    >>> Flow(n_transforms=3)
    Flow(n_transforms=3, hidden_layer_sizes=(64,), n_context=16)
    """

    n_transforms: int = 2
    hidden_layer_sizes: tuple[int, ...] = (64,)
    n_context: int = 16

    is_foreign: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise an error if a parameter is not valid."""
        sizes = self.hidden_layer_sizes
        numbers = [self.n_transforms, self.n_context]
        if isinstance(sizes, tuple):
            numbers += sizes
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers)
        if not (whole and isinstance(sizes, tuple)):
            raise ValueError(
                "A Flow takes a positive n_transforms and n_context, and a tuple of positive "
                f"integers as hidden_layer_sizes. Got {self!r}."
            )

    def n_outputs(self, n_components: int) -> int:
        """Number of raw encoder outputs."""
        return 2 * n_components + self.n_context

    def build(self, n_components: int) -> nn.Module:
        """Make the maps."""
        try:
            from zuko.flows.autoregressive import MaskedAutoregressiveTransform
        except ImportError as error:
            raise ImportError(
                "The Flow posterior needs the package zuko, which is not installed: "
                'pip install "skvae[flows]", or use posterior="diagonal" or "full".'
            ) from error
        # zuko reads values while it builds, which the device "meta" does not have, and draws from
        # torch's own generator.
        device = torch.get_default_device()
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            order = torch.arange(n_components)
            maps = nn.ModuleList(
                MaskedAutoregressiveTransform(
                    n_components,
                    self.n_context,
                    hidden_features=self.hidden_layer_sizes,
                    order=order.flip(0) if number % 2 else order,
                )
                for number in range(self.n_transforms)
            )
        for layer in maps.modules():
            # zuko has linear layers of two kinds, and only one of them is torch's.
            if isinstance(getattr(layer, "weight", None), torch.Tensor):
                # The layer's own forward rounds a row by its index. Unlike a method, a partial can
                # be copied.
                layer.forward = functools.partial(_forward, layer)
        return maps.to(device)

    def initialise(self, module: nn.Module, generator: torch.Generator) -> None:
        """Draw the weights of the maps, on the CPU, from `generator`."""
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)

    def mean(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        """Mean of z, (B, L), from raw encoder outputs (B, 2L + C), by fixed draws."""
        return self.mean_std(module, self.parameters(raw))[0]

    def mean_std(self, module: Any, q: Normal) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of z, each (B, L), by fixed draws."""
        noise = score_noise(N_MEAN_DRAWS, q.mean.shape[-1])
        eps = to_tensor(noise[:, None, :], "cpu").to(q.mean)
        z = self.draw(module, q, eps)[0]
        return z.mean(0), z.std(0, correction=0)

    def parameters(self, raw: torch.Tensor) -> Normal:
        """Read raw encoder outputs (..., B, 2L + C)."""
        n_components = (raw.shape[-1] - self.n_context) // 2
        mean, log_std, context = raw.split([n_components, n_components, self.n_context], dim=-1)
        return Normal(mean, _bend(log_std), None, context)

    def draw(self, module: Any, q: Normal, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws of z, (S, B, L), from standard normal noise, and their log q(z|x), (S, B)."""
        diagonal = Diagonal()
        eps = eps.expand(len(eps), *q.mean.shape)
        z, log_prob = diagonal.rsample(q, eps), diagonal.log_prob(q, eps)
        assert q.context is not None
        context = q.context.expand(len(eps), *q.context.shape)
        for one in module:
            z, log_slope = one(context).call_and_ladj(z)
            log_prob = log_prob - log_slope
        return z, log_prob


POSTERIORS: dict[str, Posterior] = {"diagonal": Diagonal(), "full": Full()}
