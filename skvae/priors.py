"""Priors p(z): the distribution of the latent variables before any row is seen.

A prior is a value. `log_prob` is its log-density in nats, and `rsample` turns standard normal
noise into draws. The learned values of a prior are in the module that its `build` makes.

`StandardNormal` is the prior of Kingma & Welling, Auto-Encoding Variational Bayes (2013),
arXiv:1312.6114: p(z) = N(z; 0, I). The best prior for the ELBO is the mean of the posteriors of
all rows (Hoffman & Johnson, ELBO surgery, 2016). Two other priors come closer to it:

    Mixture:   p(z) = sum_k w_k N(z; m_k, diag(s_k**2)),
    Vamp:      p(z) = 1/K sum_k q(z|u_k).

`Vamp` has learned rows u_k, the pseudo-inputs, that go through the encoder (Tomczak & Welling, VAE
with a VampPrior, 2018, arXiv:1705.07120, eq. 9). The KL divergence of these two priors from q(z|x)
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
from skvae._backend.part import Part

__all__ = ["Mixture", "Prior", "StandardNormal", "Vamp"]

LOG_STD_BOUND = 6.0  # the std of a mixture's component is between 0.002 and 400

# From the gradient of log p(z) (M, N) to the gradients of z, of the prior's parameters, and of mean
# and log std of the pseudo-inputs, or None without these.
Pullback = Callable[[torch.Tensor], tuple[torch.Tensor, list[torch.Tensor], Any]]


def _check_n(prior: str, n: int) -> None:
    if not isinstance(n, Integral) or isinstance(n, bool) or n < 1:
        raise ValueError(f"The n of a {prior} prior must be a positive integer. Got {n!r} instead.")


class Encoded(Protocol):
    """The posteriors q(z|u_k) of pseudo-inputs, which the methods of such a prior get."""

    def log_density(self, z: torch.Tensor) -> torch.Tensor:
        """log q(z|u_k) in nats, (..., K), of latent rows z (..., L)."""
        ...

    def rsample(self, index: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Draws (B, L) from the posteriors at `index` (B,), by standard normal noise (B, L)."""
        ...


class Prior(Part, ABC):
    """The base class of a prior of your own: p(z), a density of latent rows.

    A prior is a value, such as a frozen dataclass, with pure functions of tensors. It must define
    `log_prob` and `rsample`; all other methods have defaults. `build` makes a module for learned
    values, and `initialise` fills it. Autograd computes the derivatives.

    A prior with `n_pseudo_inputs` above 0 is a function of posteriors. Its module has
    ``pseudo_inputs`` (n, D), which are inputs of the encoder, and `log_prob` and `rsample` get one
    more argument, the posteriors of the pseudo-inputs (`Encoded`).

    Attributes
    ----------
    n_pseudo_inputs : int
        Number of pseudo-inputs, which go through the encoder with each batch; 0 by default.
    initialises_all : bool
        A class attribute: whether `initialise` sets every value of the module, so that it can be
        made without values. False by default.

    Examples
    --------
    Each component has its own standard deviation, which is learned:

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

    not_inherited = (*Part.not_inherited, "is_standard", "can_be_standard", "has_vjp")
    is_standard: ClassVar[bool] = False  # whether it is N(0, I)
    can_be_standard: ClassVar[bool] = False  # whether `become_standard` makes it N(0, I)
    n_pseudo_inputs: int = 0

    def n_noise(self, n_components: int) -> int:
        """Number of standard normals that a draw needs; by default one for each component."""
        return n_components

    def build(self, n_features: int, n_components: int) -> nn.Module:
        """Make the module of the learned values; by default an empty one.

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

    def initialise(
        self, module: Any, rows: torch.Tensor | None, generator: torch.Generator
    ) -> None:
        """Fill the module with its first values; by default they stay unchanged.

        Parameters
        ----------
        module : torch.nn.Module
            The module that `build` made.
        rows : tensor of shape (n_pseudo_inputs, n_features) or None
            Rows of the data as the encoder sees them; None without pseudo-inputs.
        generator : torch.Generator
            The source of randomness.
        """

    def become_standard(self, module: Any) -> None:
        """Turn the prior into N(0, I), if it `can_be_standard`."""
        raise NotImplementedError

    @abstractmethod
    def log_prob(self, module: Any, z: torch.Tensor) -> torch.Tensor:
        """Return log p(z) in nats.

        Parameters
        ----------
        module : torch.nn.Module
            The values that are learned.
        z : tensor of shape (..., n_components)
            Latent rows.

        Returns
        -------
        log_prob : tensor of shape (...)
            Log-densities, including all constants.
        """

    @abstractmethod
    def rsample(self, module: Any, eps: torch.Tensor) -> torch.Tensor:
        """Return draws of z.

        Parameters
        ----------
        module : torch.nn.Module
            The values that are learned.
        eps : tensor of shape (n_rows, n_noise)
            Standard normal noise, the only source of randomness.

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
    is_foreign: ClassVar[bool] = False
    is_standard: ClassVar[bool] = True
    can_be_standard: ClassVar[bool] = True

    def become_standard(self, module: Any) -> None:
        """Do nothing: the prior is N(0, I)."""

    def rsample(self, module: Any, eps: torch.Tensor) -> torch.Tensor:
        """Draws of z from standard normal noise, (B, L) to (B, L)."""
        return eps

    def log_prob(self, module: Any, z: torch.Tensor) -> torch.Tensor:
        """log p(z) in nats, (..., L) to (...)."""
        return -0.5 * (z.square() + LOG_2PI).sum(-1)


def _choose(log_weights: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """Choose a component for each standard normal number of eps (B,), by log-weights (K,)."""
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
    is_foreign: ClassVar[bool] = False
    can_be_standard: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise an error if `n` is not valid."""
        _check_n("Mixture", self.n)

    def n_noise(self, n_components: int) -> int:
        """Number of standard normals that a draw needs; the last one chooses the component."""
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
        """Start near N(0, I): half of the variance comes from the means."""
        nn.init.zeros_(module.log_weight)
        nn.init.normal_(module.mean, std=math.sqrt(0.5), generator=generator)
        nn.init.constant_(module.raw_std, _raw(math.log(math.sqrt(0.5))))

    def become_standard(self, module: Any) -> None:
        """Turn all normals into N(0, I), so that their mixture is N(0, I)."""
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
        """Whether the gradient is written out, which is true for any posterior."""
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
    """Return the raw value for which `_log_std` gives `log_std`."""
    return LOG_STD_BOUND * math.atanh(log_std / LOG_STD_BOUND)


def _log_std(raw: torch.Tensor) -> torch.Tensor:
    return LOG_STD_BOUND * torch.tanh(raw / LOG_STD_BOUND)


@dataclass(frozen=True)
class Vamp(Prior):
    """A mixture of the posteriors of learned pseudo-inputs, with equal weights.

    The pseudo-inputs start as rows of the training data, in the model's own units, so that the
    columns may have any scale.

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
    is_foreign: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise an error if `n` is not valid."""
        _check_n("Vamp", self.n)

    @property
    def n_pseudo_inputs(self) -> int:  # type: ignore[override]
        """Number of pseudo-inputs, which go through the encoder with each batch."""
        return self.n

    def n_noise(self, n_components: int) -> int:
        """Number of standard normals that a draw needs; the last one chooses the pseudo-input."""
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
        assert rows is not None  # there are n_pseudo_inputs rows
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
        """Whether the gradient is written out, which is true for a posterior that factorises."""
        return bool(posterior.factorises)

    def vjp(self, module: Any, z: torch.Tensor, q: Any) -> tuple[torch.Tensor, Pullback]:
        """log p(z) (M, N) of M priors, of z (M, N, L), and the pullback of its gradient.

        The posteriors q of the pseudo-inputs have independent components, (M, K, L).
        """
        equal = z.new_full((len(z), self.n), -math.log(self.n))
        log_p, pull = normal.mixture_vjp(z, equal, q.mean, q.log_std)

        def pull_all(g: torch.Tensor) -> Any:
            g_z, _, g_mean, g_log_std = pull(g)
            return g_z, [], (g_mean, g_log_std)

        return log_p, pull_all


PRIORS: dict[str, Prior] = {"standard_normal": StandardNormal()}
