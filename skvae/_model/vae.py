"""The variational autoencoder: encoder, posterior, prior, decoder and likelihood joined.

    log p(x) = ELBO(x) + KL(q(z|x) || p(z|x)),
    ELBO(x)  = E_q[log p(x|z)] - KL(q(z|x) || p(z)) = E_q[log p(x|z) + log p(z) - log q(z|x)]

(Kingma & Welling 2013, arXiv:1312.6114, eq. 1-3). The model lives in its own units
y = (x - location) / scale. The density of x is that of y divided by the scales, so

    log p(x) = log p(y) - sum_d log scale_d,

over the columns that vary: a constant column (scale 0) is no part of the density. A column that
had no value in `fit` has the location NaN as well, so that its values are returned as NaN.

Letters: S draws of noise, B rows, D features, L components. Tensors are (S, B, .). `VAE.forward` is
the model; `skvae._model.stack` computes it and its gradient for M models at once.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from skvae._backend.blocks import draws_at_once
from skvae._backend.tensors import Array
from skvae._model.architecture import Architecture
from skvae._model.rows import Batch, Unseen
from skvae.likelihoods import Likelihood
from skvae.posteriors import Normal

State = Mapping[str, Array]


# Inputs of the encoder are cut at 20 standard deviations from the location. Otherwise a pixel that
# hardly varied in `fit`, and is now off by 100, would move z, and with it all other pixels, to
# where no row has been. The values of up to 400 rows cannot be that far. A linear model has no
# bound, since it is factor analysis for every row.
ENCODER_BOUND = 20.0


class Terms(NamedTuple):
    """The terms of every bound, in nats."""

    log_likelihood: torch.Tensor  # log p(y|z) of each draw, (S, B)
    # KL(q(z|x) || p(z)) of each component, (1, B, L); or of all components, if it is no sum over
    # them, (1, B, 1); or its estimate log q(z|x) - log p(z) from each draw, (S, B, 1).
    kl: torch.Tensor


class Complete(NamedTuple):
    """Rows in which the typical value stands for each missing one.

    With scales s, log p(x) = log p(y) - sum_d log s_d, where the sum is over the values that are
    there. The score of a row subtracts the sum over all columns (`log_jacobian` in
    `skvae._model.state`). So `more` is the sum over the missing values, and is added to log p(y).
    """

    y: torch.Tensor  # (B, D)
    weight: torch.Tensor  # (1|B, D): 1 for a value of a column that varies, 0 for a missing one
    more: torch.Tensor | float  # nats, (B,)
    reach: float  # the largest distance from 0; NaN if it is not known

    def first(self, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | float]:
        """Return values, weights and terms of the first n rows."""
        more = self.more[:n] if isinstance(self.more, torch.Tensor) else self.more
        return self.y[:n], self.weight[:n] if len(self.weight) > 1 else self.weight, more

    def redrawn(self, likelihood: Any, noise: torch.Tensor) -> "Complete":
        """Return rows whose values the likelihood draws anew, by standard normal noise (B, N)."""
        drawn = likelihood.redraw(self.y, noise)
        has_holes = isinstance(self.more, torch.Tensor)
        return self._replace(y=torch.where(self.weight > 0, drawn, self.y) if has_holes else drawn)


class _Encoded(NamedTuple):
    """The posteriors of pseudo-inputs, as `skvae.priors.Encoded` describes them."""

    posterior: Any
    flow: nn.Module
    q: Normal

    def log_density(self, z: torch.Tensor) -> torch.Tensor:
        """log q(z|u_k) in nats, (..., K), of latent rows z (..., L)."""
        return self.posterior.log_density(self.flow, self.q, z)

    def rsample(self, index: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Draws (B, L) from the posteriors at `index` (B,), by standard normal noise (B, L)."""
        own = Normal(*(None if values is None else values[index] for values in self.q))  # type: ignore[arg-type]
        return self.posterior.draw(self.flow, own, eps.unsqueeze(0))[0].squeeze(0)


def encoded_by(posterior: Any, flow: nn.Module, raw: torch.Tensor) -> list[_Encoded]:
    """Return the posteriors of pseudo-inputs with encoder outputs (K, P), in a list of one."""
    return [_Encoded(posterior, flow, posterior.parameters(raw))]


class VAE(nn.Module):
    """A VAE in torch: `encode` and `decode` in the units of X.

    Parameters
    ----------
    architecture : Architecture
        Sizes and parts of the model. `hidden_layer_sizes` are those of the encoder; the decoder's
        are reversed.
    """

    location: torch.Tensor
    scale: torch.Tensor
    varies: torch.Tensor
    has_units: torch.Tensor  # 1 for densities, 0 for probabilities
    typical: torch.Tensor  # the mean, which replaces a missing value
    bound: torch.Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        n_features, n_components = architecture.n_features, architecture.n_components
        sizes, activation = architecture.hidden_layer_sizes, architecture.activation
        self.likelihood, self.network = architecture.likelihood, architecture.network
        self.prior, self.posterior = architecture.prior, architecture.posterior
        self.n_components, self.missing = n_components, architecture.missing
        if self.prior.n_pseudo_inputs and not self.posterior.has_density:
            raise ValueError(
                f"prior={self.prior!r} needs a posterior whose density is known everywhere: "
                f'"diagonal" or "full". Got posterior={self.posterior!r}.'
            )
        self.network.check_rows(n_features, n_features)
        self.encoder = self.network.encoder(
            architecture.n_encoder_inputs,
            self.posterior.n_outputs(n_components),
            sizes,
            activation,
        )
        self.decoder = self.network.decoder(
            n_components, self.likelihood.n_outputs(n_features), sizes[::-1], activation
        )
        # Modules of the values that the parts learn or keep besides the networks.
        self.observation = self.likelihood.build(n_features)
        self.mixture = self.prior.build(n_features, n_components)
        self.flow = self.posterior.build(n_components)
        # Width of the widest layer: the largest side of any weights.
        self.width = max(max(weights.shape, default=1) for weights in self.parameters())
        # Number of standard normals that draw a row anew.
        self.n_redrawn = self.likelihood.n_redrawn(n_features)
        # The divergence has a closed form for the standard normal prior only.
        self.has_kl = architecture.has_kl
        self.register_buffer("varies", torch.empty(n_features))
        self.register_buffer("has_units", torch.empty(n_features))
        self.register_buffer("typical", torch.empty(n_features))
        self.register_buffer("bound", torch.empty(()))
        # The value of `bound`, kept here to save a read from the device. It is None if the models
        # of a stack differ.
        self.limit: float | None = math.inf
        self.eval()  # otherwise the dropout of a user's module would make results random
        self.float()  # independent of torch's default dtype; only the units are float64
        self.register_buffer("location", torch.empty(n_features, dtype=torch.float64))
        self.register_buffer("scale", torch.empty(n_features, dtype=torch.float64))

    # --- in the units of X ---

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of q(z|x), each (B, L), of rows x (B, D)."""
        unit = torch.where(self.scale > 0, self.scale, 1.0)
        y = (x - self.location) / unit * self.varies
        return self.encode_rows(Batch(y.to(self.varies.dtype)))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """E[x|z], (B, D), of latent rows z (B, L)."""
        return self.location + self.scale * self.decode_mean(z)

    # --- in the model's own units ---

    def forward(self, batch: Batch, *, by_draw: bool = False) -> Terms:
        """Compute the bound's terms for a batch with noise eps (S, B, L) or (S, 1, L).

        With `by_draw` the KL term is log q(z|x) - log p(z) of each draw, even if the divergence has
        a closed form, so that the terms give log weights. If only the first `n_rows` matter, the
        others get no terms, unless the first rows would round in another way without them.
        """
        assert batch.eps is not None
        complete = self.complete(batch)
        q = self._encode(complete)
        n_rows, size = self._cut(len(batch.y), batch.n_rows, len(batch.eps))
        y, weight, more = complete.first(n_rows)
        known = self.has_kl and not by_draw
        log_likelihood, kl = [], []
        for eps in batch.eps.split(size):
            if known and self.posterior.has_vjp:
                # The density of the draws is not needed, and would cost a tenth of the time.
                z = self.posterior.rsample(q, eps)[:, :n_rows]
            else:
                z, log_q = (v[:, :n_rows] for v in self.posterior.draw(self.flow, q, eps))
                if not known:
                    kl.append((log_q - self.log_prior(z)).unsqueeze(-1))
            raw = self.raw(z)
            total = self.likelihood.total(self.observation, raw, y, weight) + more
            for _, nats in self._charge(raw, batch.unseen):
                total = total - nats
            log_likelihood.append(total)
        if known:
            kl = [self.posterior.kl(q)[:n_rows].unsqueeze(0)]
        return Terms(torch.cat(log_likelihood), torch.cat(kl))

    def _cut(self, n_block: int, n_rows: int | None, n_draws: int) -> tuple[int, int]:
        """Return how many rows of a block get terms, and how many draws are taken at once.

        Products round a row the same for every number of rows that is a multiple of 32.
        """
        cuts = self.posterior.factorises and n_draws % 32 == 0
        if cuts and n_rows is not None and n_rows < n_block:
            size = draws_at_once(n_rows, self.width) // 32 * 32
            if size:
                return n_rows, size
        return n_block, draws_at_once(n_block, self.width)

    def complete(self, batch: Batch) -> Complete:
        """Return rows without missing values, the weight of each value, and a term for log p."""
        y, weight = batch.y, self.varies.unsqueeze(-2)
        if not math.isnan(batch.reach):
            return Complete(y, weight, 0.0, batch.reach)
        there = ~y.isnan()
        y = torch.where(there, y, self.typical.unsqueeze(-2))
        more = (self.log_scale.unsqueeze(-2) * ~there).sum(-1)
        return Complete(y, weight * there, more, batch.reach)

    def _charge(
        self, raw: torch.Tensor, unseen: Sequence[Unseen]
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the cost of categories that `fit` has not seen, in nats for each draw, (S, B).

        Each cost follows the first feature of its column. It is the cost of the category that is
        least probable, given z, among the categories of `fit`, and at least `Unseen.nats`.
        """
        if not unseen:
            return
        levels = self.likelihood.log_levels(self.observation, raw, len(self.varies))
        for features, rows, nats in unseen:
            known = self.typical[features] > 0
            rarest = torch.where(known, levels[..., features], 0.0).amin(-1)
            own = rows[: rarest.shape[-1]]
            yield int(features[0]), torch.where(own, (-rarest).clamp(min=nats), 0.0)

    @property
    def log_scale(self) -> torch.Tensor:
        """log p(y_d) - log p(x_d) of each column in nats, (D,); 0 if it is constant or unitless."""
        varies = (self.scale > 0) & (self.has_units > 0)
        return torch.where(varies, self.scale, 1.0).log().to(self.varies.dtype)

    def inputs(self, complete: Complete) -> torch.Tensor:
        """Return the encoder's inputs for rows: their values, and which of them are there."""
        seen = self.likelihood.seen(self.observation, complete.y)
        as_they_are = type(self.likelihood).seen is Likelihood.seen
        is_near = as_they_are and self.limit is not None and complete.reach <= self.limit
        # A user's encoder may write into its input, so it gets the copy that clamping makes.
        if self.network.is_foreign or not is_near:
            seen = self._bounded(seen)
        return self._with_mask(seen, complete.weight)

    def pseudo_inputs(self) -> torch.Tensor:
        """Return the prior's pseudo-inputs, (K, .): inputs of the encoder, none of them missing."""
        seen = self._bounded(self.mixture.pseudo_inputs)
        return self._with_mask(seen, torch.ones_like(seen))

    def _with_mask(self, seen: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.cat([seen, weight.expand_as(seen)], dim=-1) if self.missing else seen

    def _bounded(self, seen: torch.Tensor) -> torch.Tensor:
        limit = self.bound[..., None, None] if self.limit is None else self.limit
        return torch.clamp(seen, -limit, limit)  # type: ignore[arg-type]

    def raw_posterior(self, batch: Batch) -> torch.Tensor:
        """Return the encoder's outputs, (B, P), for a batch."""
        return self.encoder(self.inputs(self.complete(batch)))

    def _encode(self, complete: Complete) -> Normal:
        return self.posterior.parameters(self.encoder(self.inputs(complete)))

    def encode_posterior(self, batch: Batch) -> Normal:
        """Parameters of q(z|x) of the rows of a batch."""
        return self._encode(self.complete(batch))

    def _encoded(self) -> list[_Encoded]:
        """Return the posteriors of the pseudo-inputs in a list, which is empty without any."""
        if not self.prior.n_pseudo_inputs:
            return []
        return encoded_by(self.posterior, self.flow, self.encoder(self.pseudo_inputs()))

    def encode_mean(self, batch: Batch) -> torch.Tensor:
        """Mean of q(z|x), (B, L), of the rows of a batch."""
        return self.posterior.mean(self.flow, self.raw_posterior(batch))

    def encode_rows(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of q(z|x), each (B, L), of the rows of a batch."""
        return self.posterior.mean_std(self.flow, self.encode_posterior(batch))

    def weigh(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws z from q(z|x), (S, B, L), and log p(y, z) - log q(z|x) of each, (S, B)."""
        complete = self.complete(batch)
        z, log_q = self.posterior.draw(self.flow, self._encode(complete), batch.eps)
        log_p = self.likelihood.total(self.observation, self.raw(z), complete.y, complete.weight)
        return z, log_p + self.log_prior(z) - log_q

    def encode_draws(self, batch: Batch) -> torch.Tensor:
        """Draws from q(z|x), (S, B, L), of the rows of a batch by noise (S, B, L)."""
        return self.posterior.draw(self.flow, self.encode_posterior(batch), batch.eps)[0]

    def log_prior(self, z: torch.Tensor) -> torch.Tensor:
        """log p(z) in nats, (...), of latent rows (..., L)."""
        return self.prior.log_prob(self.mixture, z, *self._encoded())

    def draw_prior(self, eps: torch.Tensor) -> torch.Tensor:
        """Draws from p(z), (B, L), by noise (B, prior.n_noise(L))."""
        return self.prior.rsample(self.mixture, eps, *self._encoded())

    def raw(self, z: torch.Tensor) -> torch.Tensor:
        """Decoder outputs, (..., P), for latent rows (..., L)."""
        return self.decoder(z.reshape(-1, z.shape[-1])).view(*z.shape[:-1], -1)

    def log_prob(self, batch: Batch, z: torch.Tensor) -> torch.Tensor:
        """log p(y_d|z) per feature in nats, (S, B, D); 0 in the columns that don't vary.

        It is `log_scale` where a value is missing, so that log p(x_d|z) is 0. The cost of a
        category that `fit` has not seen is subtracted in the first feature of its column.
        """
        complete, raw = self.complete(batch), self.raw(z)
        log_prob = self.likelihood.log_prob(self.observation, raw, complete.y)
        log_prob = torch.where(complete.weight == 0, self.log_scale, log_prob)
        for feature, nats in self._charge(raw, batch.unseen):
            log_prob[..., feature] -= nats
        return log_prob

    def decode_mean(self, z: torch.Tensor) -> torch.Tensor:
        """E[y|z], (..., D)."""
        return self.likelihood.mean(self.observation, self.raw(z))

    def decode_sample(self, z: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draws from p(y|z), (..., D)."""
        return self.likelihood.sample(self.observation, self.raw(z), generator)
