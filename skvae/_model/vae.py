"""The variational autoencoder: encoder, posterior, prior, decoder and likelihood joined.

    log p(x) = ELBO(x) + KL(q(z|x) || p(z|x)),
    ELBO(x)  = E_q[log p(x|z)] - KL(q(z|x) || p(z)) = E_q[log p(x|z) + log p(z) - log q(z|x)]

(Kingma & Welling 2013, arXiv:1312.6114, eq. 1-3). The model lives in its own units
y = (x - location) / scale. The density of x is that of y divided by the scales, so

    log p(x) = log p(y) - sum_d log scale_d,

over the columns that vary: a constant column (scale 0) is no part of the density. A column that
had no value in `fit` has the location NaN as well, so that its values are returned as NaN.

Letters: M models, S draws of noise, B rows, D features, L components. Tensors are (S, B, .), with
M in front where models are stacked. A fit trains a stack of one or of many models, and all
tensors of a stack have a leading M. Models with fewer components than the widest of their stack
are padded with weights and noise of 0. The padded components never change: the encoder gives
N(0, 1) for them, whose KL divergence is 0; their z is 0 and meets decoder weights of 0; and every
gradient among them is 0.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from skvae import networks
from skvae._backend import autograd
from skvae._backend.blocks import draws_at_once
from skvae._backend.normal import LOG_2PI
from skvae._backend.tensors import Array
from skvae._model import factor_analysis
from skvae._model.architecture import Architecture
from skvae.likelihoods import Likelihood
from skvae.posteriors import Diagonal, Normal, unbend

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


class Unseen(NamedTuple):
    """Rows of a block whose category in one column `fit` has not seen."""

    features: torch.Tensor  # indices of the features of the column
    rows: torch.Tensor  # (B,), the mask of these rows
    nats: float  # the least cost


# From gradients of the log-likelihoods and the KL terms to gradients of the parameters.
Pullback = Callable[[torch.Tensor, torch.Tensor], list[torch.Tensor]]


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


class _Latent(nn.Module):
    """Draws from a posterior and their KL terms, as a module whose values can be replaced."""

    def __init__(self, posterior: Any, flow: nn.Module, prior: Any, mixture: nn.Module) -> None:
        super().__init__()
        self.mixture, self.flow = mixture, flow
        self.posterior, self.prior = posterior, prior

    def forward(
        self, raw: torch.Tensor, pseudo: torch.Tensor, eps: torch.Tensor, known: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return z (S, B, L) and the KL terms, from encoder outputs (B, P) and noise (S, B, L).

        `pseudo` are the encoder's outputs for the pseudo-inputs. `known`: the divergence has a
        formula.
        """
        q = self.posterior.parameters(raw)
        z, log_q = self.posterior.draw(self.flow, q, eps)
        if known:
            return z, self.posterior.kl(q).unsqueeze(0)
        encoded = []
        if self.prior.n_pseudo_inputs:
            encoded = [_Encoded(self.posterior, self.flow, self.posterior.parameters(pseudo))]
        return z, (log_q - self.prior.log_prob(self.mixture, z, *encoded)).unsqueeze(-1)


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
        # What is known of the next rows: whether values may be missing, and whether the encoder's
        # bound may be reached.
        self.has_holes, self.is_far = self.missing, True
        self.unseen: Sequence[Unseen] = ()
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
        # The value of `bound`, kept here to save a read from the device. It is a tensor (M, 1, 1)
        # if the models of a stack differ.
        self.limit: float | torch.Tensor = math.inf
        self.eval()  # otherwise the dropout of a user's module would make results random
        self.low_precision = False  # whether a stack's networks multiply in bfloat16
        self.float()  # independent of torch's default dtype; only the units are float64
        self.register_buffer("location", torch.empty(n_features, dtype=torch.float64))
        self.register_buffer("scale", torch.empty(n_features, dtype=torch.float64))

    def __copy__(self) -> "VAE":
        # As in torch, without its checks for attributes that pickles of older versions lack.
        new = object.__new__(type(self))
        vars(new).update(vars(self))
        return new

    # --- in the units of X ---

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of q(z|x), each (B, L), of rows x (B, D)."""
        unit = torch.where(self.scale > 0, self.scale, 1.0)
        y = (x - self.location) / unit * self.varies
        return self.encode_rows(y.to(self.varies.dtype))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """E[x|z], (B, D), of latent rows z (B, L)."""
        return self.location + self.scale * self.decode_mean(z)

    # --- in the model's own units ---

    def forward(
        self,
        y: torch.Tensor,
        eps: torch.Tensor,
        *,
        by_draw: bool = False,
        n_rows: int | None = None,
    ) -> Terms:
        """Compute the bound's terms for rows y (B, D) and noise eps (S, B, L) or (S, 1, L).

        With `by_draw` the KL term is log q(z|x) - log p(z) of each draw, even if the divergence has
        a closed form, so that the terms give log weights. With `n_rows` only the first rows matter,
        and the others fill a block. They get no terms if the first rows round the same without.
        """
        y, weight, more = self._complete(y)
        q = self._encode(y, weight)
        n_rows, size = self._cut(len(y), n_rows, len(eps))
        y, more = y[:n_rows], more[:n_rows] if isinstance(more, torch.Tensor) else more
        weight = weight[:n_rows] if len(weight) > 1 else weight
        known = self.has_kl and not by_draw
        log_likelihood, kl = [], []
        for some in eps.split(size):
            if known and self.posterior.has_vjp:
                # The density of the draws is not needed, and would cost a tenth of the time.
                z = self.posterior.rsample(q, some)[:, :n_rows]
            else:
                z, log_q = (v[:, :n_rows] for v in self.posterior.draw(self.flow, q, some))
                if not known:
                    kl.append((log_q - self.log_prior(z)).unsqueeze(-1))
            raw = self.raw(z)
            total = self.likelihood.total(self.observation, raw, y, weight) + more
            for _, nats in self._charge(raw):
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

    def expect(self, reach: float, unseen: Sequence[Unseen] = ()) -> None:
        """Set what is known of the next rows: their values are at most `reach` from 0.

        A `reach` of NaN says that some values are missing. `unseen` are categories that `fit` has
        not seen, which the encoder takes as missing.
        """
        self.has_holes, self.unseen = math.isnan(reach), unseen
        as_they_are = type(self.likelihood).seen is Likelihood.seen
        # A user's encoder may write into its input, so it gets the copy that clamping makes.
        own = not self.network.is_foreign
        self.is_far = not (own and as_they_are and reach <= self.limit)

    def _complete(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | float]:
        """Return rows without missing values, the weight of each value, and a term for log p.

        With scale s, log p(x) = log p(y) - sum_d log s_d, summed over the values that are there.
        Another function subtracts the sum over all columns, so the term adds the sum over the
        missing values.
        """
        weight = self.varies.unsqueeze(-2)
        if not self.has_holes:
            return y, weight, 0.0
        there = ~y.isnan()
        y = torch.where(there, y, self.typical.unsqueeze(-2))
        return y, weight * there, (self.log_scale.unsqueeze(-2) * ~there).sum(-1)

    def _charge(self, raw: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the cost of categories that `fit` has not seen, in nats for each draw, (S, B).

        Each cost follows the first feature of its column. It is the cost of the category that is
        least probable, given z, among the categories of `fit`, and at least `Unseen.nats`.
        """
        if not self.unseen:
            return
        levels = self.likelihood.log_levels(self.observation, raw, len(self.varies))
        for features, rows, nats in self.unseen:
            seen = self.typical[features] > 0
            rarest = torch.where(seen, levels[..., features], 0.0).amin(-1)
            own = rows[: rarest.shape[-1]]
            yield int(features[0]), torch.where(own, (-rarest).clamp(min=nats), 0.0)

    @property
    def log_scale(self) -> torch.Tensor:
        """log p(y_d) - log p(x_d) of each column in nats, (D,); 0 if it is constant or unitless."""
        varies = (self.scale > 0) & (self.has_units > 0)
        return torch.where(varies, self.scale, 1.0).log().to(self.varies.dtype)

    def see(self, y: torch.Tensor) -> torch.Tensor:
        """Return the encoder's inputs for rows y (B, D) or (M, B, D)."""
        y, weight, _ = self._complete(y)
        return self._see(y, weight)

    def _see(self, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        seen = self.likelihood.seen(self.observation, y)
        seen = self._bounded(seen) if self.is_far else seen
        return torch.cat([seen, weight.expand_as(seen)], dim=-1) if self.missing else seen

    def _encode(self, y: torch.Tensor, weight: torch.Tensor) -> Normal:
        return self.posterior.parameters(self.encoder(self._see(y, weight)))

    def _bounded(self, seen: torch.Tensor) -> torch.Tensor:
        return torch.clamp(seen, -self.limit, self.limit)  # type: ignore[arg-type]

    def encode_posterior(self, y: torch.Tensor) -> Normal:
        """Parameters of q(z|x) of rows y (B, D)."""
        return self.posterior.parameters(self.encoder(self.see(y)))

    def _see_pseudo_inputs(self) -> torch.Tensor:
        # Pseudo-inputs are inputs of the encoder already, and none of their values is missing.
        seen = self._bounded(self.mixture.pseudo_inputs)
        return torch.cat([seen, torch.ones_like(seen)], dim=-1) if self.missing else seen

    def _encoded(self) -> list["_Encoded"]:
        """Return the posteriors of the pseudo-inputs in a list, which is empty without any."""
        if not self.prior.n_pseudo_inputs:
            return []
        q = self.posterior.parameters(self.encoder(self._see_pseudo_inputs()))
        return [_Encoded(self.posterior, self.flow, q)]

    def encode_mean(self, y: torch.Tensor) -> torch.Tensor:
        """Mean of q(z|x), (B, L), of rows y (B, D)."""
        return self.posterior.mean(self.flow, self.encoder(self.see(y)))

    def encode_rows(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of q(z|x), each (B, L), of rows y (B, D)."""
        return self.posterior.mean_std(self.flow, self.encode_posterior(y))

    def weigh(self, y: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws z from q(z|x), (S, B, L), and log p(y, z) - log q(z|x) of each, (S, B)."""
        y, weight, _ = self._complete(y)
        z, log_q = self.posterior.draw(self.flow, self._encode(y, weight), eps)
        log_p = self.likelihood.total(self.observation, self.raw(z), y, weight)
        return z, log_p + self.log_prior(z) - log_q

    def encode_draws(self, y: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Draws from q(z|x), (S, B, L), of rows y (B, D) by noise (S, B, L)."""
        return self.posterior.draw(self.flow, self.encode_posterior(y), eps)[0]

    def log_prior(self, z: torch.Tensor) -> torch.Tensor:
        """log p(z) in nats, (...), of latent rows (..., L)."""
        return self.prior.log_prob(self.mixture, z, *self._encoded())

    def draw_prior(self, eps: torch.Tensor) -> torch.Tensor:
        """Draws from p(z), (B, L), by noise (B, prior.n_noise(L))."""
        return self.prior.rsample(self.mixture, eps, *self._encoded())

    def raw(self, z: torch.Tensor) -> torch.Tensor:
        """Decoder outputs, (..., P), for latent rows (..., L)."""
        return self.decoder(z.reshape(-1, z.shape[-1])).view(*z.shape[:-1], -1)

    def log_prob(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """log p(y_d|z) per feature in nats, (S, B, D); 0 in the columns that don't vary.

        It is `log_scale` where a value is missing, so that log p(x_d|z) is 0. The cost of a
        category that `fit` has not seen is subtracted in the first feature of its column.
        """
        y, weight, _ = self._complete(y)
        raw = self.raw(z)
        log_prob = self.likelihood.log_prob(self.observation, raw, y)
        log_prob = torch.where(weight == 0, self.log_scale, log_prob)
        for feature, nats in self._charge(raw):
            log_prob[..., feature] -= nats
        return log_prob

    def decode_mean(self, z: torch.Tensor) -> torch.Tensor:
        """E[y|z], (..., D)."""
        return self.likelihood.mean(self.observation, self.raw(z))

    def decode_sample(self, z: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draws from p(y|z), (..., D)."""
        return self.likelihood.sample(self.observation, self.raw(z), generator)

    # --- M models at once ---

    def vjp(
        self, y: torch.Tensor, eps: torch.Tensor, row_noise: torch.Tensor, *, by_draw: bool
    ) -> tuple[Terms, Pullback]:
        """Compute `forward` of each model of a stack, and the pullback of its terms' gradients.

        Rows y (M, B, D) and noise eps (M, S, B, L) give terms with a leading M. The pullback turns
        gradients of the terms into gradients of all parameters, as autograd would. Columns of eps
        beyond L drop units of the decoder. The first columns of `row_noise` (M, B, N) draw rows
        anew, if the likelihood does so; in training, the others drop units of the encoder.
        """
        n_models, n_draws, n_rows, n_noise = eps.shape
        drop_encoder = drop_decoder = None
        if n_noise > self.n_components:
            drop_decoder = eps[..., self.n_components :].flatten(1, 2)
            eps = eps[..., : self.n_components]
        y, weight, more = self._complete(y)
        if row_noise.shape[-1]:
            if self.n_redrawn:
                drawn = self.likelihood.redraw(y, row_noise[..., : self.n_redrawn])
                y = torch.where(weight > 0, drawn, y) if self.has_holes else drawn
            if row_noise.shape[-1] > self.n_redrawn:
                drop_encoder = row_noise[..., self.n_redrawn :]
        n_pseudo, seen = self.prior.n_pseudo_inputs, self._see(y, weight)
        if n_pseudo:
            pseudo_inputs = self.mixture.pseudo_inputs
            seen = torch.cat([seen, self._see_pseudo_inputs()], dim=1)
            if drop_encoder is not None:  # pseudo-inputs drop no units
                drop_encoder = nn.functional.pad(drop_encoder, (0, 0, 0, n_pseudo), value=math.inf)
        raw, pull_encoder = self._network_vjp(
            self.encoder, seen, drop_encoder, to_input=n_pseudo > 0
        )
        z, kl, pull_latent = self._latent_vjp(raw, eps, n_rows, by_draw=by_draw)
        flat = z.view(n_models, -1, self.n_components)
        outputs, pull_decoder = self._network_vjp(self.decoder, flat, drop_decoder, to_input=True)
        if n_draws > 1:
            y = y.repeat(1, n_draws, 1)
            weight = weight.repeat(1, n_draws, 1) if self.has_holes else weight
        log_likelihood, pull_likelihood = self.likelihood.vjp(self.observation, outputs, y, weight)
        log_likelihood = log_likelihood.view(n_models, n_draws, -1)
        if self.has_holes:
            log_likelihood = log_likelihood + more.unsqueeze(1)  # type: ignore[union-attr]

        def pull(g_log_likelihood: torch.Tensor, g_kl: torch.Tensor) -> list[torch.Tensor]:
            g_outputs, observation = pull_likelihood(g_log_likelihood.view(n_models, -1))
            g_z, decoder = pull_decoder(g_outputs)
            assert g_z is not None  # it was asked for
            g_raw, mixture, flow = pull_latent(g_z.view_as(z), g_kl)
            g_seen, encoder = pull_encoder(g_raw)
            if n_pseudo:
                assert g_seen is not None
                inside = pseudo_inputs.abs() < self.limit
                g_pseudo = g_seen[:, n_rows:, : inside.shape[-1]] * inside
                names = [name for name, _ in self.mixture.named_parameters()]
                if not mixture:  # no other way than through the encoder
                    mixture = [g_pseudo] * len(names)
                elif "pseudo_inputs" in names:
                    own = names.index("pseudo_inputs")
                    mixture[own] = mixture[own] + g_pseudo
            return [*encoder, *decoder, *observation, *mixture, *flow]

        return Terms(log_likelihood, kl), pull

    def _latent_vjp(
        self, raw: torch.Tensor, eps: torch.Tensor, n_rows: int, *, by_draw: bool
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Return z, the KL terms, and the pullback to `raw`, the prior and the posterior.

        `raw` has the outputs of the rows first, and then the outputs of the pseudo-inputs.
        """
        if self.posterior.has_vjp and self.prior.is_standard:
            z, kl, pull = self.posterior.vjp(raw, eps, by_draw=by_draw)
            return z, kl, lambda g_z, g_kl: (pull(g_z, g_kl), [], [])
        # The written-out gradient needs float64, which not every device has.
        written = self.posterior.has_vjp and self.prior.has_vjp(self.posterior)
        if written and raw.device.type != "mps":
            return self._mixture_vjp(raw, eps, n_rows)
        module = _Latent(self.posterior, self.flow, self.prior, self.mixture)
        names = [name for name, _ in module.named_parameters()]
        kept = [name for name, _ in module.named_buffers()]
        parameters, buffers = autograd.values(module)
        known = self.has_kl and not by_draw

        def of_one(
            raw: torch.Tensor, eps: torch.Tensor, learned: Any, buffers: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            state = dict(zip([*names, *kept], [*learned, *buffers], strict=True))
            inputs = raw[:n_rows], raw[n_rows:], eps, known
            return torch.func.functional_call(module, state, inputs)

        def latent(inputs: Any, constants: Any) -> Any:
            return autograd.each(of_one, inputs[0], constants[0], inputs[1:], constants[1:])

        (z, kl), backward = autograd.vjp(latent, [raw, *parameters], [eps, *buffers])
        n_of_prior = len(list(self.mixture.parameters()))

        def pull_all(g_z: torch.Tensor, g_kl: torch.Tensor) -> Any:
            g_raw, *others = backward([g_z, g_kl])
            return g_raw, others[:n_of_prior], others[n_of_prior:]

        return z, kl, pull_all

    def _mixture_vjp(
        self, raw: torch.Tensor, eps: torch.Tensor, n_rows: int
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """`_latent_vjp` for a prior that is a mixture of normals with independent components."""
        # This is log q(z|x) - log N(z; 0, I). Below, log p(z) takes the place of the second term.
        z, from_standard, pull_own = self.posterior.vjp(raw[:, :n_rows], eps, by_draw=True)
        q, pull_pseudo = Diagonal().parameters_vjp(raw[:, n_rows:])
        log_p, pull_prior = self.prior.vjp(self.mixture, z.flatten(1, 2), q)
        standard = -0.5 * (z.square() + LOG_2PI).sum(-1, keepdim=True)
        kl = from_standard + standard - log_p.view_as(standard)

        def pull(g_z: torch.Tensor, g_kl: torch.Tensor) -> Any:
            g_point, mixture, g_q = pull_prior(-g_kl.flatten(1))
            g_z = g_z + g_point.view_as(z) - z * g_kl
            g_raw = pull_own(g_z, g_kl)
            if g_q is not None:
                g_raw = torch.cat([g_raw, pull_pseudo(*g_q)], dim=1)
            return g_raw, mixture, []

        return z, kl, pull

    def _network_vjp(
        self,
        module: nn.Module,
        x: torch.Tensor,
        noise: torch.Tensor | None,
        *,
        to_input: bool,
    ) -> tuple[torch.Tensor, networks.Pullback]:
        """Compute the network's vjp; with `low_precision`, its products are in bfloat16."""
        if not self.low_precision:
            return networks.vjp(module, x, noise, to_input=to_input)
        products = torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False)
        with products:
            outputs, pull_inside = networks.vjp(module, x, noise, to_input=to_input)

        def pull(g: torch.Tensor) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
            with products:
                g_x, gradients = pull_inside(g)
            gradients = [gradient.to(x.dtype) for gradient in gradients]
            return None if g_x is None else g_x.to(x.dtype), gradients

        return outputs.to(x.dtype), pull

    def decays(self) -> list[bool]:
        """Whether weight decay applies to each parameter of a stack, in their order.

        It applies to the matrices and kernels of the three networks: encoder, decoder, and what
        moves a posterior's draws. It does not apply to biases, nor to the parameters of prior and
        likelihood, for which 0 is no simpler value than any other.
        """
        networks = ("encoder.", "decoder.", "flow.")
        return [
            name.startswith(networks) and parameter.ndim > 2  # M is in front
            for name, parameter in self.named_parameters()
        ]

    def begin_epoch(self, progress: torch.Tensor) -> None:
        """Called before each epoch with the fraction of the epochs that is done, (M,)."""
        self.likelihood.begin_epoch(self.observation, progress)

    @property
    def contains_factors(self) -> bool:
        """Whether this model can become factor analysis."""
        both = networks.is_linear(self.encoder) and networks.is_linear(self.decoder)
        normal = self.posterior.has_kl and self.prior.can_be_standard
        return both and normal and self.likelihood.can_begin

    @property
    def factor_noise(self) -> list[factor_analysis.Noise]:
        """The noise of the factor analysis that each model of a stack can become."""
        kind = self.likelihood.noise_kind
        floors = self.observation.floor.cpu().double()
        if kind != "per_feature":
            return [factor_analysis.Noise(floor, kind) for floor in floors]
        # Each column has its own scale, so that PCA in the table's units is a further model.
        units = torch.where(self.scale > 0, self.scale, 1.0).cpu().double()
        return [factor_analysis.Noise(f, kind, u) for f, u in zip(floors, units, strict=True)]

    def become_factors(self, found: Sequence[factor_analysis.Factors]) -> None:
        """Turn each model of a stack into its factor analysis in `found`."""
        (n_models, n_features), wide = self.location.shape, self.n_components
        n_raw = self.posterior.n_outputs(wide)
        new = partial(torch.zeros, dtype=self.varies.dtype, device="cpu")
        n_seen = (1 + self.missing) * n_features
        encode, of_encoder = new(n_models, n_raw, n_seen), new(n_models, n_raw)
        n_outputs = self.likelihood.n_outputs(n_features)
        decode, of_decoder = new(n_models, n_outputs, wide), new(n_models, n_outputs)
        variance = new(n_models, n_features, dtype=torch.float64)
        for m, factors in enumerate(found):
            n = factors.loading.shape[1]
            decode[m, :n_features, :n], variance[m] = factors.loading, factors.variance
            of_decoder[m, :n_features] = factors.mean
            # The posterior bends its log std. The constant is unbent to make up for it, and the
            # coefficients of the mask stay as they are.
            bent = factors.log_std.clone()
            bent[:, -1] = unbend(factors.log_std[:, -1])
            for first, linear in ((0, factors.encode), (wide, bent)):
                # A model without a mask as input takes y's columns and the bias only.
                encode[m, first : first + n] = linear[:, :n_seen]
                of_encoder[m, first : first + n] = linear[:, -1]
        networks.become_linear(self.encoder, encode, of_encoder)
        networks.become_linear(self.decoder, decode, of_decoder)
        self.likelihood.begin(self.observation, variance)
        self.prior.become_standard(self.mixture)

    def keep(self, members: torch.Tensor) -> None:
        """Keep only these models of a stack."""
        for module in self.modules():
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data[members]
            for name, buffer in list(module.named_buffers(recurse=False)):
                module._buffers[name] = buffer[members]
        if isinstance(self.limit, torch.Tensor):
            self.limit = self.limit[members]
