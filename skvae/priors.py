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
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from skvae._backend import normal
from skvae._backend.normal import LOG_2PI

__all__ = ["Mixture", "Prior", "StandardNormal", "Vamp"]

LOG_STD_BOUND = 6.0  # of a component of a mixture: from 0.002 to 400

# Gradient of log p(z) (M, N) -> of z, of what the prior learns, and of the pseudo-inputs' mean
# and log std or None.
Pullback = Callable[[torch.Tensor], tuple[torch.Tensor, list[torch.Tensor], Any]]


def _check_n(prior: str, n: int) -> None:
    if not isinstance(n, Integral) or isinstance(n, bool) or n < 1:
        raise ValueError(f"The n of a {prior} prior must be a positive integer. Got {n!r} instead.")


class Encoded(Protocol):
    """The posteriors q(z|u_k) of pseudo-inputs, as a prior that has some is given them."""

    def log_density(self, z: torch.Tensor) -> torch.Tensor:
        """log q(z|u_k) in nats, (..., K), of latent rows z (..., L)."""
        ...

    def rsample(self, index: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Draws (B, L) from those of these indices (B,), by standard normal noise (B, L)."""
        ...


class Prior(ABC):
    """What a prior of your own inherits from: p(z), a density of latent rows.

    A prior is a value, such as a frozen dataclass, with pure functions of tensors. It has to say
    `log_prob` and `rsample`; the rest has defaults. What it learns is in the module that `build`
    makes and `initialise` fills. Derivatives come by autograd.

    A prior with `n_pseudo_inputs` above 0 is a function of posteriors: its module has
    ``pseudo_inputs`` (n, D), rows as the encoder sees them, and `log_prob` and `rsample` get one
    argument more, the posteriors of these (`Encoded`).

    Attributes
    ----------
    n_pseudo_inputs : int
        Rows that go through the encoder with those of a batch; 0 by default.
    initialises_all : bool
        Of the class: whether `initialise` sets every value of the module, so that it may be made
        without values. False by default.

    Examples
    --------
    Components with a spread of their own, learned:

    >>> from dataclasses import dataclass
    >>> import torch
    >>> from skvae import VAETransformer
    >>> from skvae.priors import Prior
    >>> @dataclass(frozen=True)
    ... class Wide(Prior):
    ...     def build(self, n_features, n_components):
    ...         module = torch.nn.Module()
    ...         module.log_std = torch.nn.Parameter(torch.zeros(n_components))
    ...         return module
    ...
    ...     def log_prob(self, module, z):
    ...         normal = torch.distributions.Normal(0.0, module.log_std.exp(), validate_args=False)
    ...         return normal.log_prob(z).sum(-1)
    ...
    ...     def rsample(self, module, eps):
    ...         return module.log_std.exp() * eps
    >>> X = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).numpy()
    >>> vae = VAETransformer(2, prior=Wide(), max_iter=5, random_state=0).fit(X)
    >>> vae.sample(3, random_state=0).shape
    (3, 4)
    """

    initialises_all: ClassVar[bool] = False
    is_standard: ClassVar[bool] = False  # whether it is N(0, I)
    can_be_standard: ClassVar[bool] = False  # whether `become_standard` makes it N(0, I)
    n_pseudo_inputs: int = 0

    def n_noise(self, n_components: int) -> int:
        """Standard normals that a draw takes; by default one for each component."""
        return n_components

    def build(self, n_features: int, n_components: int) -> nn.Module:
        """Make the module of what is learned; by default of nothing.

        Parameters
        ----------
        n_features : int
            Number of features.
        n_components : int
            Number of components.

        Returns
        -------
        module : torch.nn.Module
            Its parameters are learned, its buffers kept.
        """
        return nn.Module()

    def initialise(  # noqa: B027, it may do nothing
        self, module: Any, rows: torch.Tensor | None, generator: torch.Generator
    ) -> None:
        """Fill the module with where its values start; by default they stay as they were made.

        Parameters
        ----------
        module : torch.nn.Module
            What `build` made.
        rows : tensor of shape (n_pseudo_inputs, n_features) or None
            Rows of the data in the model's units, as many as `n_pseudo_inputs` asks for.
        generator : torch.Generator
            Of what is random.
        """

    def become_standard(self, module: Any) -> None:
        """Make the prior N(0, I), where it `can_be_standard`."""
        raise NotImplementedError

    @abstractmethod
    def log_prob(self, module: Any, z: torch.Tensor) -> torch.Tensor:
        """Return log p(z) in nats.

        Parameters
        ----------
        module : torch.nn.Module
            What is learned.
        z : tensor of shape (..., n_components)
            Latent rows.

        Returns
        -------
        log_prob : tensor of shape (...)
            With every constant.
        """

    @abstractmethod
    def rsample(self, module: Any, eps: torch.Tensor) -> torch.Tensor:
        """Return draws of z.

        Parameters
        ----------
        module : torch.nn.Module
            What is learned.
        eps : tensor of shape (n_rows, n_noise)
            Standard normal noise, all that is random.

        Returns
        -------
        z : tensor of shape (n_rows, n_components)
            Latent rows.
        """

    def has_vjp(self, posterior: Any) -> bool:
        """Whether the gradient is written out, under this posterior."""
        return False

    def vjp(self, module: Any, z: torch.Tensor, q: Any) -> tuple[torch.Tensor, Pullback]:
        """log p(z) (M, N) of M priors, of z (M, N, L), and the pullback of its gradient."""
        raise NotImplementedError


@dataclass(frozen=True)
class StandardNormal(Prior):
    """Independent standard normal components, N(0, I).

    Examples
    --------
    >>> import torch
    >>> from skvae.priors import StandardNormal
    >>> StandardNormal().log_prob(None, torch.zeros(1, 2))
    tensor([-1.8379])
    """

    initialises_all: ClassVar[bool] = True
    is_standard: ClassVar[bool] = True
    can_be_standard: ClassVar[bool] = True

    def become_standard(self, module: Any) -> None:
        """Make the prior N(0, I), which it is."""

    def rsample(self, module: Any, eps: torch.Tensor) -> torch.Tensor:
        """Draws of z from standard normal noise, (B, L) to (B, L)."""
        return eps

    def log_prob(self, module: Any, z: torch.Tensor) -> torch.Tensor:
        """log p(z) in nats, (..., L) to (...)."""
        return -0.5 * (z.square() + LOG_2PI).sum(-1)


def _choose(log_weights: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """A component for each standard normal number of eps (B,), by log-weights (K,)."""
    uniform = torch.special.ndtr(eps.double())
    edges = log_weights.double().softmax(-1).cumsum(-1)[:-1]
    return torch.searchsorted(edges, uniform)


@dataclass(frozen=True)
class Mixture(Prior):
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

    initialises_all: ClassVar[bool] = True
    can_be_standard: ClassVar[bool] = True

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
        """Make all normals N(0, I): their mixture is the same."""
        for parameter in (module.log_weight, module.mean, module.raw_std):
            parameter.zero_()

    def rsample(self, module: Any, eps: torch.Tensor) -> torch.Tensor:
        """Draws of z from standard normal noise, (B, L + 1) to (B, L)."""
        chosen = _choose(module.log_weight, eps[..., -1])
        std = _log_std(module.raw_std).exp()
        return module.mean[chosen] + std[chosen] * eps[..., :-1]

    def log_prob(self, module: Any, z: torch.Tensor) -> torch.Tensor:
        """log p(z) in nats, (..., L) to (...)."""
        log_std = _log_std(module.raw_std)
        log_prob = normal.log_density(z, module.mean, log_std)
        return torch.logsumexp(log_prob + module.log_weight.log_softmax(-1), -1)

    def has_vjp(self, posterior: Any) -> bool:
        """Whether the gradient is written out, under this posterior: under any."""
        return True

    def vjp(self, module: Any, z: torch.Tensor, q: Any) -> tuple[torch.Tensor, Pullback]:
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
class Vamp(Prior):
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

    initialises_all: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse what is no number of pseudo-inputs."""
        _check_n("Vamp", self.n)

    @property
    def n_pseudo_inputs(self) -> int:  # type: ignore[override]
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

    def rsample(  # type: ignore[override]
        self, module: Any, eps: torch.Tensor, encoded: Encoded
    ) -> torch.Tensor:
        """Draws of z from standard normal noise, (B, L + 1) to (B, L)."""
        equal = eps.new_zeros(self.n)
        return encoded.rsample(_choose(equal, eps[..., -1]), eps[..., :-1])

    def log_prob(  # type: ignore[override]
        self, module: Any, z: torch.Tensor, encoded: Encoded
    ) -> torch.Tensor:
        """log p(z) in nats, (..., L) to (...)."""
        return torch.logsumexp(encoded.log_density(z), -1) - math.log(self.n)

    def has_vjp(self, posterior: Any) -> bool:
        """Whether the gradient is written out, under this posterior: one that factorises."""
        return bool(posterior.factorises)

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


PRIORS: dict[str, Prior] = {"standard_normal": StandardNormal()}
