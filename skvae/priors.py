"""Priors p(z): what the latent variables are before any row is seen.

A prior is a value. `log_prob` is its log-density in nats, and `rsample` turns standard normal
noise into draws. What a prior learns is in the module that its `build` makes.

`StandardNormal` is the prior of Kingma & Welling, Auto-Encoding Variational Bayes (2013),
arXiv:1312.6114: p(z) = N(z; 0, I). The best prior for the ELBO is the mean of the posteriors of
all rows (Hoffman & Johnson, ELBO surgery, 2016), which two others come closer to:

    Mixture:   p(z) = sum_k w_k N(z; m_k, diag(s_k**2)),
    Vamp:      p(z) = 1/K sum_k q(z|u_k),

the latter with learned rows u_k, the pseudo-inputs, that go through the encoder (Tomczak &
Welling, VAE with a VampPrior, 2018, arXiv:1705.07120, eq. 9). Their KL divergence from q(z|x)
has no closed form: it is estimated as log q(z|x) - log p(z) of each draw.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import nn

from skvae._backend import normal
from skvae._backend.normal import LOG_2PI

__all__ = ["Mixture", "StandardNormal", "Vamp"]

LOG_STD_BOUND = 6.0  # of a component of a mixture: from 0.002 to 400

# Log-densities (..., K) of latent rows (..., L) under the posteriors of the pseudo-inputs.
Densities = Callable[[torch.Tensor], torch.Tensor]

# Gradient of log p(z) (M, N) -> of z, of what the prior learns, and of the pseudo-inputs' mean
# and log std or None.
Pullback = Callable[[torch.Tensor], tuple[torch.Tensor, list[torch.Tensor], Any]]


def _check_n(prior: str, n: int) -> None:
    if not isinstance(n, Integral) or isinstance(n, bool) or n < 1:
        raise ValueError(f"The n of a {prior} prior must be a positive integer. Got {n!r} instead.")


@dataclass(frozen=True)
class StandardNormal:
    """Independent standard normal components, N(0, I).

    Examples
    --------
    >>> import torch
    >>> from skvae.priors import StandardNormal
    >>> StandardNormal().log_prob(None, torch.zeros(1, 2))
    tensor([-1.8379])
    """

    n_pseudo_inputs = 0

    def n_noise(self, n_components: int) -> int:
        """Standard normals that a draw takes."""
        return n_components

    def build(self, n_features: int, n_components: int) -> nn.Module:
        """Make the module of what is learned: nothing."""
        return nn.Module()

    def initialise(
        self, module: Any, rows: torch.Tensor | None, generator: torch.Generator
    ) -> None:
        """Nothing is learned."""

    def become_standard(self, module: Any) -> None:
        """Be N(0, I): it is."""

    def rsample(
        self, module: Any, eps: torch.Tensor, draw: Callable[..., torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Draws of z from standard normal noise, (B, L) to (B, L)."""
        return eps

    def log_prob(
        self, module: Any, z: torch.Tensor, densities: Densities | None = None
    ) -> torch.Tensor:
        """log p(z) in nats, (..., L) to (...)."""
        return -0.5 * (z.square() + LOG_2PI).sum(-1)


def _choose(log_weights: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """A component for each standard normal number of eps (B,), by log-weights (K,)."""
    uniform = torch.special.ndtr(eps.double())
    edges = log_weights.double().softmax(-1).cumsum(-1)[:-1]
    return torch.searchsorted(edges, uniform)


@dataclass(frozen=True)
class Mixture:
    """A mixture of normal distributions with learned weights, means and standard deviations.

    Parameters
    ----------
    n : int, default=10
        Number of components of the mixture.

    Raises
    ------
    ValueError
        If `n` is no positive integer.

    Examples
    --------
    >>> from skvae.priors import Mixture
    >>> Mixture(5)
    Mixture(n=5)
    """

    n: int = 10
    n_pseudo_inputs = 0

    def __post_init__(self) -> None:
        """Refuse what is no number of components."""
        _check_n("Mixture", self.n)

    def n_noise(self, n_components: int) -> int:
        """Standard normals that a draw takes: the last one chooses the component."""
        return n_components + 1

    def build(self, n_features: int, n_components: int) -> nn.Module:
        """Make the module of the weights, means and standard deviations."""
        module: Any = nn.Module()
        module.log_weight = nn.Parameter(torch.empty(self.n))
        module.mean = nn.Parameter(torch.empty(self.n, n_components))
        module.raw_std = nn.Parameter(torch.empty(self.n, n_components))
        return module

    def initialise(
        self, module: Any, rows: torch.Tensor | None, generator: torch.Generator
    ) -> None:
        """Start near N(0, I): half of the variance is that of the means."""
        nn.init.zeros_(module.log_weight)
        nn.init.normal_(module.mean, std=math.sqrt(0.5), generator=generator)
        nn.init.constant_(module.raw_std, _raw(math.log(math.sqrt(0.5))))

    def become_standard(self, module: Any) -> None:
        """Be N(0, I), which one normal of mean 0 is, or all of them."""
        for parameter in (module.log_weight, module.mean, module.raw_std):
            parameter.zero_()

    def rsample(
        self, module: Any, eps: torch.Tensor, draw: Callable[..., torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Draws of z from standard normal noise, (B, L + 1) to (B, L)."""
        chosen = _choose(module.log_weight, eps[..., -1])
        std = _log_std(module.raw_std).exp()
        return module.mean[chosen] + std[chosen] * eps[..., :-1]

    def log_prob(
        self, module: Any, z: torch.Tensor, densities: Densities | None = None
    ) -> torch.Tensor:
        """log p(z) in nats, (..., L) to (...)."""
        log_std = _log_std(module.raw_std)
        log_prob = normal.log_density(z, module.mean, log_std)
        return torch.logsumexp(log_prob + module.log_weight.log_softmax(-1), -1)

    def vjp(self, module: Any, z: torch.Tensor, q: Any = None) -> tuple[torch.Tensor, Pullback]:
        """log p(z) (M, N) of M priors, of z (M, N, L), and the pullback of its gradient."""
        bend = torch.tanh(module.raw_std / LOG_STD_BOUND)
        log_weight = module.log_weight.log_softmax(-1)
        log_p, pull = normal.mixture_vjp(z, log_weight, module.mean, LOG_STD_BOUND * bend)

        def pull_all(g: torch.Tensor) -> Any:
            g_z, g_log_weight, g_mean, g_log_std = pull(g)
            g_log_weight = g_log_weight - log_weight.exp() * g_log_weight.sum(-1, keepdim=True)
            return g_z, [g_log_weight, g_mean, g_log_std * (1 - bend.square())], None

        return log_p, pull_all


def _raw(log_std: float) -> float:
    """The raw value that `_log_std` makes this of."""
    return LOG_STD_BOUND * math.atanh(log_std / LOG_STD_BOUND)


def _log_std(raw: torch.Tensor) -> torch.Tensor:
    return LOG_STD_BOUND * torch.tanh(raw / LOG_STD_BOUND)


@dataclass(frozen=True)
class Vamp:
    """A mixture of the posteriors of learned pseudo-inputs, with equal weights.

    The pseudo-inputs start as rows of the training data, in the model's own units, so that
    any scale of the columns will do.

    Parameters
    ----------
    n : int, default=100
        Number of pseudo-inputs.

    Raises
    ------
    ValueError
        If `n` is no positive integer.

    References
    ----------
    VAE with a VampPrior (J. M. Tomczak & M. Welling, 2018), https://arxiv.org/abs/1705.07120,
    eq. 9.

    Examples
    --------
    >>> from skvae.priors import Vamp
    >>> Vamp(50)
    Vamp(n=50)
    """

    n: int = 100

    def __post_init__(self) -> None:
        """Refuse what is no number of pseudo-inputs."""
        _check_n("Vamp", self.n)

    @property
    def n_pseudo_inputs(self) -> int:
        """Rows that go through the encoder with those of a batch."""
        return self.n

    def n_noise(self, n_components: int) -> int:
        """Standard normals that a draw takes: the last one chooses the pseudo-input."""
        return n_components + 1

    def build(self, n_features: int, n_components: int) -> nn.Module:
        """Make the module of the pseudo-inputs, in the model's units."""
        module: Any = nn.Module()
        module.pseudo_inputs = nn.Parameter(torch.empty(self.n, n_features))
        return module

    def initialise(
        self, module: Any, rows: torch.Tensor | None, generator: torch.Generator
    ) -> None:
        """Start from rows of the data, (n, D)."""
        assert rows is not None  # as many as n_pseudo_inputs asks for
        module.pseudo_inputs.copy_(rows)

    def rsample(
        self, module: Any, eps: torch.Tensor, draw: Callable[..., torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Draws of z from standard normal noise, (B, L + 1) to (B, L).

        ``draw(chosen, eps)`` draws from the posterior of the chosen pseudo-inputs.
        """
        assert draw is not None
        equal = eps.new_zeros(self.n)
        return draw(_choose(equal, eps[..., -1]), eps[..., :-1])

    def log_prob(
        self, module: Any, z: torch.Tensor, densities: Densities | None = None
    ) -> torch.Tensor:
        """log p(z) in nats, (..., L) to (...)."""
        assert densities is not None
        return torch.logsumexp(densities(z), -1) - math.log(self.n)

    def vjp(self, module: Any, z: torch.Tensor, q: Any) -> tuple[torch.Tensor, Pullback]:
        """log p(z) (M, N) of M priors, of z (M, N, L), and the pullback of its gradient.

        Of pseudo-inputs whose posteriors q have independent components, (M, K, L).
        """
        equal = z.new_full((len(z), self.n), -math.log(self.n))
        log_p, pull = normal.mixture_vjp(z, equal, q.mean, q.log_std)

        def pull_all(g: torch.Tensor) -> Any:
            g_z, _, g_mean, g_log_std = pull(g)
            return g_z, [], (g_mean, g_log_std)

        return log_p, pull_all


Prior = StandardNormal | Mixture | Vamp

PRIORS: dict[str, Prior] = {"standard_normal": StandardNormal()}
