"""Parts as a user writes them, which define no more than they have to; tests apply the laws."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from skvae._data.words import UNNAMED
from skvae.likelihoods import Gaussian, Likelihood
from skvae.networks import Network
from skvae.posteriors import Diagonal, Normal, Posterior
from skvae.priors import Prior, StandardNormal


@dataclass(frozen=True)
class Laplace(Prior):
    """Nothing is learned."""

    def log_prob(self, module, z):
        return -(z.abs() + np.log(2)).sum(-1)

    def rsample(self, module, eps):
        uniform = torch.special.ndtr(eps) - 0.5
        return -uniform.sign() * torch.log1p(-2 * uniform.abs().clamp(max=0.5 - 1e-7))


@dataclass(frozen=True)
class Shifted(Prior):
    """A coupling of halves by a network: modules within a module, with values of their own."""

    def build(self, n_features, n_components):
        module = nn.Module()
        module.shift = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, n_components - 1))
        return module

    def log_prob(self, module, z):
        rest = z[..., 1:] - module.shift(z[..., :1])
        unit = torch.cat([z[..., :1], rest], -1)
        return -0.5 * (unit.square() + np.log(2 * np.pi)).sum(-1)

    def rsample(self, module, eps):
        return torch.cat([eps[..., :1], eps[..., 1:] + module.shift(eps[..., :1])], -1)


@dataclass(frozen=True)
class Logistic(Posterior):
    def n_outputs(self, n_components):
        return 2 * n_components

    def parameters(self, raw):
        mean, log_scale = raw.chunk(2, dim=-1)
        return Normal(mean, 15 * torch.tanh(log_scale / 15))

    def mean_std(self, module, q):
        return q.mean, q.log_std.exp() * np.pi / np.sqrt(3)

    def draw(self, module, q, eps):
        unit = torch.special.ndtr(eps).clamp(1e-6, 1 - 1e-6).logit()
        log_density = -unit - 2 * nn.functional.softplus(-unit) - q.log_std
        return q.mean + q.log_std.exp() * unit, log_density.sum(-1)


@dataclass(frozen=True)
class Dense(Network):
    width: int = 6

    def encoder(self, n_in, n_out, hidden_layer_sizes, activation):
        return nn.Sequential(nn.Linear(n_in, self.width), nn.Tanh(), nn.Linear(self.width, n_out))

    decoder = encoder


@dataclass(frozen=True)
class Nested(Likelihood):
    """Normal noise whose log std is what a network within the module makes of the mean."""

    def build(self, n_features):
        module = nn.Module()
        module.noise = nn.Sequential(nn.Linear(n_features, 3), nn.Tanh(), nn.Linear(3, n_features))
        return module

    def units(self, columns):
        return columns.mean, columns.std

    def mean(self, module, raw):
        return raw

    def log_prob(self, module, raw, x):
        return torch.distributions.Normal(raw, self.std(module, raw), validate_args=False).log_prob(
            x
        )

    def std(self, module, raw):
        return (5 * torch.tanh(module.noise(raw) / 5)).exp()

    def sample(self, module, raw, generator):
        noise = torch.randn(raw.shape, generator=generator, dtype=raw.dtype)
        return raw + self.std(module, raw) * noise.to(raw.device)


@dataclass(frozen=True)
class Scaled(Posterior):
    """Standard deviations times learned numbers, with a density and a divergence."""

    has_kl = True
    has_density = True

    def n_outputs(self, n_components):
        return 2 * n_components

    def build(self, n_components):
        module = nn.Module()
        module.log_scale = nn.Parameter(torch.zeros(n_components))
        return module

    def parameters(self, raw):
        mean, log_std = raw.chunk(2, dim=-1)
        return Normal(mean, 5 * torch.tanh(log_std / 5))

    def mean_std(self, module, q):
        return q.mean, (q.log_std + module.log_scale).exp()

    def draw(self, module, q, eps):
        log_std = q.log_std + module.log_scale
        log_q = -(log_std + 0.5 * (eps.square() + np.log(2 * np.pi))).sum(-1)
        return q.mean + log_std.exp() * eps, log_q

    def log_density(self, module, q, z):
        std = (q.log_std + module.log_scale).exp()
        normal = torch.distributions.Normal(q.mean, std, validate_args=False)
        return normal.log_prob(z.unsqueeze(-2)).sum(-1)

    def kl(self, q):
        return 0.5 * (q.mean.square() + (2 * q.log_std).exp() - 1) - q.log_std


@dataclass(frozen=True)
class Learned(Scaled):
    has_kl = False  # its formula would lack what is learned


@dataclass(frozen=True)
class Tempered(Prior):
    """A normal whose variance is a number that is kept: a buffer, and nothing learned."""

    def build(self, n_features, n_components):
        module = nn.Module()
        module.register_buffer("std", torch.full((n_components,), 2.0))
        return module

    def log_prob(self, module, z):
        normal = torch.distributions.Normal(0.0, module.std, validate_args=False)
        return normal.log_prob(z).sum(-1)

    def rsample(self, module, eps):
        return module.std * eps


@dataclass(frozen=True)
class Weighted(Prior):
    """A `Vamp` whose pseudo-inputs have learned weights."""

    n: int = 3

    @property
    def n_pseudo_inputs(self):
        return self.n

    def n_noise(self, n_components):
        return n_components + 1

    def build(self, n_features, n_components):
        module = nn.Module()
        module.log_weight = nn.Parameter(torch.zeros(self.n))
        module.pseudo_inputs = nn.Parameter(torch.zeros(self.n, n_features))
        return module

    def initialise(self, module, rows, generator):
        module.pseudo_inputs.copy_(rows)

    def log_prob(self, module, z, encoded):
        return (encoded.log_density(z) + module.log_weight.log_softmax(-1)).logsumexp(-1)

    def rsample(self, module, eps, encoded):
        edges = module.log_weight.softmax(-1).cumsum(-1)[:-1]
        index = torch.searchsorted(edges, torch.special.ndtr(eps[..., -1]).contiguous())
        return encoded.rsample(index, eps[..., :-1])


@dataclass(frozen=True)
class Exponential(Likelihood):
    """Waiting times: what a user may write, with what the base class brings."""

    def check_support(self, X, labels=UNNAMED):
        if (X < 0).any():
            raise ValueError("Waiting times are not negative.")
        return X

    def units(self, columns):
        varies = columns.std > 0
        return np.where(varies, 0.0, columns.mean), np.where(varies, columns.mean, 0.0)

    def log_mean(self, raw):
        return 20 * torch.tanh(raw / 20)

    def log_prob(self, module, raw, x):
        log_mean = self.log_mean(raw)
        return -log_mean - x * torch.exp(-log_mean)

    def mean(self, module, raw):
        return self.log_mean(raw).exp()

    def sample(self, module, raw, generator):
        noise = torch.empty(raw.shape, dtype=raw.dtype, device=generator.device)
        noise.exponential_(generator=generator)
        return self.mean(module, raw) * noise.to(raw.device)


# --- parts that inherit from skvae's ----------------------------------------------------------


def wide(z):
    return -0.5 * ((z / 3).square() + np.log(2 * np.pi * 9)).sum(-1)


@dataclass(frozen=True)
class WideStandard(StandardNormal):
    def log_prob(self, module, z):
        return wide(z)

    def rsample(self, module, eps):
        return 3 * eps


@dataclass(frozen=True)
class Wide(Prior):
    def log_prob(self, module, z):
        return wide(z)

    def rsample(self, module, eps):
        return 3 * eps


@dataclass(frozen=True)
class LogisticDiagonal(Diagonal):
    mean_std, draw = Logistic.mean_std, Logistic.draw


@dataclass(frozen=True)
class LogisticPlain(Posterior):
    n_outputs, parameters = Diagonal.n_outputs, Diagonal.parameters
    mean_std, draw = Logistic.mean_std, Logistic.draw


@dataclass(frozen=True)
class Doubled(Gaussian):
    def log_prob(self, module, raw, x):
        return 2 * super().log_prob(module, raw, x)
