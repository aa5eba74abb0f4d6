"""A stack: M models of one architecture, whose tensors have a leading M and train together.

A fit trains a stack of one model, and a search trains stacks of candidates and folds. Models with
fewer components than the widest of their stack are padded with weights and noise of 0. The padded
components never change: the encoder gives N(0, 1) for them, whose KL divergence is 0; their z is 0
and meets decoder weights of 0; and every gradient among them is 0.

The gradient of a training step is that of `VAE.forward`, part by part. For layers as small as those
of a table, autograd's bookkeeping takes longer than the arithmetic, so most parts have a gradient
that is written out for M models at once: a step then takes about half the time. Autograd of
`forward` as a whole, mapped over the models, is 1.3 to 1.5 times slower for networks without a
written-out gradient, and 3 times slower for priors that are mixtures.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from skvae import networks
from skvae._backend import autograd
from skvae._backend.normal import LOG_2PI
from skvae._backend.tensors import to_array, to_tensor
from skvae._model import factor_analysis
from skvae._model.architecture import Architecture
from skvae._model.rows import Batch
from skvae._model.state import empty_model, widened
from skvae._model.vae import State, Terms, encoded_by
from skvae.posteriors import Diagonal, unbend

# From gradients of the log-likelihoods and the KL terms to gradients of the parameters.
Pullback = Callable[[torch.Tensor, torch.Tensor], list[torch.Tensor]]
# From gradients of z and of the KL terms to gradients of the encoder's outputs, and of the
# parameters of prior and posterior.
LatentPullback = Callable[
    [torch.Tensor, torch.Tensor], tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]
]


def _split(noise: torch.Tensor, n_own: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Split noise into its first columns, and the others, which drop units."""
    if noise.shape[-1] <= n_own:
        return noise, None
    return noise[..., :n_own], noise[..., n_own:]


def _put(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Replace a parameter or buffer of a model by a tensor of another shape."""
    owner, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    if leaf not in owner._parameters:
        owner._buffers[leaf] = tensor
    elif isinstance(tensor, nn.Parameter):
        owner._parameters[leaf] = tensor
    else:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


class Stack:
    """M models that differ in their values and in `n_components` only.

    Parameters
    ----------
    architectures : sequence of Architecture
        The architecture of each model.
    states : sequence of State
        The first values of each model.
    device : torch.device
        The device of the stacked tensors.
    low_precision : bool
        Whether networks multiply in bfloat16.
    """

    def __init__(
        self,
        architectures: Sequence[Architecture],
        states: Sequence[State],
        device: torch.device,
        *,
        low_precision: bool = False,
    ) -> None:
        self.wide = max(architectures, key=lambda architecture: architecture.n_components)
        self.model = model = empty_model(self.wide)
        states = [widened(state, model) for state in states]
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for name, shape in shapes.items():
            padded = np.zeros((len(states), *shape), states[0][name].dtype)
            for m, (architecture, state) in enumerate(zip(architectures, states, strict=True)):
                own = self._index(name, architecture, shape, state[name].shape)
                padded[m, ...][own] = state[name]
            _put(model, name, to_tensor(padded, device))
        bounds = {float(state["bound"]) for state in states}
        model.limit = bounds.pop() if len(bounds) == 1 else None
        # The modules of the prior and of the posterior, whose functions autograd may differentiate.
        self.latent_parts = nn.ModuleList([model.mixture, model.flow])
        self.low_precision = low_precision

    def _index(
        self, name: str, architecture: Architecture, wide: tuple[int, ...], narrow: tuple[int, ...]
    ) -> Any:
        """Index of a model's own values in an array of the stack, without the leading M."""
        own, all_ = architecture.n_components, self.model.n_components
        if own == all_:
            return ...
        indices = list(range(own))
        if name.startswith("encoder."):
            indices = self.model.posterior.places(own, all_)
        sides = (range(n) if n == of else indices for n, of in zip(narrow, wide, strict=True))
        return np.ix_(*sides) if wide else ()

    def state_of(self, architecture: Architecture, before: State, weights: torch.Tensor) -> State:
        """Return the part of a model's state that training changes.

        `weights` are the parameters of one model, end to end.
        """
        state, start = {}, 0
        for name, parameter in self.model.named_parameters():
            shape = tuple(parameter.shape[1:])
            end = start + math.prod(shape)
            own = self._index(name, architecture, shape, before[name].shape)
            state[name] = to_array(weights[start:end].view(shape))[own]
            start = end
        return state

    def parameters(self) -> Iterator[torch.Tensor]:
        """Return the learned tensors, each (M, ...), in the order of the pullback."""
        return self.model.parameters()

    def decays(self) -> list[bool]:
        """Return whether weight decay applies to each parameter, in their order.

        It applies to the matrices and kernels of the three networks: encoder, decoder, and what
        moves a posterior's draws. It does not apply to biases, nor to the parameters of prior and
        likelihood, for which 0 is no simpler value than any other.
        """
        of_networks = ("encoder.", "decoder.", "flow.")
        return [
            name.startswith(of_networks) and parameter.ndim > 2  # M is in front
            for name, parameter in self.model.named_parameters()
        ]

    def begin_epoch(self, progress: torch.Tensor) -> None:
        """Called before each epoch with the fraction of the epochs that is done, (M,)."""
        self.model.likelihood.begin_epoch(self.model.observation, progress)

    def copy(self) -> "Stack":
        """Return a stack of modules of its own that share all tensors with this one."""
        twin = copy.copy(self)
        twin.model = empty_model(self.wide)
        for name, tensor in itertools.chain(
            self.model.named_parameters(), self.model.named_buffers()
        ):
            _put(twin.model, name, tensor)
        twin.model.limit = self.model.limit
        twin.latent_parts = nn.ModuleList([twin.model.mixture, twin.model.flow])
        return twin

    def keep(self, members: torch.Tensor) -> None:
        """Keep only these models."""
        for module in self.model.modules():
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data[members]
            for name, buffer in list(module.named_buffers(recurse=False)):
                module._buffers[name] = buffer[members]

    # --- gradients ---

    def vjp(self, batch: Batch, *, by_draw: bool) -> tuple[Terms, Pullback]:
        """Compute `VAE.forward` of each model, and the pullback of its terms' gradients.

        Rows y (M, B, D) and noise eps (M, S, B, L) give terms with a leading M. The pullback turns
        gradients of the terms into gradients of all parameters, as autograd would. Columns of eps
        beyond L drop units of the decoder. The first columns of `row_noise` (M, B, N) draw rows
        anew, if the likelihood does so; the others drop units of the encoder.
        """
        model = self.model
        assert batch.eps is not None
        assert batch.row_noise is not None
        eps, drop_decoder = _split(batch.eps, model.n_components)
        of_rows, drop_encoder = _split(batch.row_noise, model.n_redrawn)
        n_models, n_draws, n_rows, _ = eps.shape
        complete = model.complete(batch._replace(reach=math.nan if model.missing else math.inf))
        if of_rows.shape[-1]:
            complete = complete.redrawn(model.likelihood, of_rows)
        seen, n_pseudo = model.inputs(complete), model.prior.n_pseudo_inputs
        if n_pseudo:
            seen = torch.cat([seen, model.pseudo_inputs()], dim=1)
            if drop_encoder is not None:  # pseudo-inputs drop no units
                drop_encoder = nn.functional.pad(drop_encoder, (0, 0, 0, n_pseudo), value=math.inf)
        raw, pull_encoder = self._network_vjp(
            model.encoder, seen, drop_encoder, to_input=n_pseudo > 0
        )
        z, kl, pull_latent = self._latent_vjp(raw, eps, by_draw=by_draw)
        flat = z.view(n_models, -1, model.n_components)
        if drop_decoder is not None:
            drop_decoder = drop_decoder.flatten(1, 2)
        outputs, pull_decoder = self._network_vjp(model.decoder, flat, drop_decoder, to_input=True)
        y, weight = complete.y, complete.weight
        if n_draws > 1:
            y = y.repeat(1, n_draws, 1)
            weight = weight.repeat(1, n_draws, 1) if model.missing else weight
        log_likelihood, pull_likelihood = model.likelihood.vjp(
            model.observation, outputs, y, weight
        )
        log_likelihood = log_likelihood.view(n_models, n_draws, n_rows)
        if isinstance(complete.more, torch.Tensor):
            log_likelihood = log_likelihood + complete.more.unsqueeze(1)

        def pull(g_log_likelihood: torch.Tensor, g_kl: torch.Tensor) -> list[torch.Tensor]:
            g_outputs, observation = pull_likelihood(g_log_likelihood.view(n_models, -1))
            g_z, decoder = pull_decoder(g_outputs)
            assert g_z is not None  # it was asked for
            g_raw, mixture, flow = pull_latent(g_z.view_as(z), g_kl)
            g_seen, encoder = pull_encoder(g_raw)
            if n_pseudo:
                assert g_seen is not None
                mixture = self._through_encoder(g_seen[:, n_rows:], mixture)
            return [*encoder, *decoder, *observation, *mixture, *flow]

        return Terms(log_likelihood, kl), pull

    def _network_vjp(
        self, network: nn.Module, x: torch.Tensor, noise: torch.Tensor | None, *, to_input: bool
    ) -> tuple[torch.Tensor, networks.Pullback]:
        """Compute the network's vjp; with `low_precision`, its products are in bfloat16."""
        if not self.low_precision:
            return networks.vjp(network, x, noise, to_input=to_input)
        products = torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False)
        with products:
            outputs, pull_inside = networks.vjp(network, x, noise, to_input=to_input)

        def pull(g: torch.Tensor) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
            with products:
                g_x, gradients = pull_inside(g)
            gradients = [gradient.to(x.dtype) for gradient in gradients]
            return None if g_x is None else g_x.to(x.dtype), gradients

        return outputs.to(x.dtype), pull

    def _latent_vjp(
        self, raw: torch.Tensor, eps: torch.Tensor, *, by_draw: bool
    ) -> tuple[torch.Tensor, torch.Tensor, LatentPullback]:
        """Return z, the KL terms, and the pullback to `raw`, the prior and the posterior.

        `raw` has the outputs of the rows first, and then the outputs of the pseudo-inputs.
        """
        posterior, prior, n_rows = self.model.posterior, self.model.prior, eps.shape[2]
        if posterior.has_vjp and prior.is_standard:
            z, kl, pull = posterior.vjp(raw, eps, by_draw=by_draw)
            return z, kl, lambda g_z, g_kl: (pull(g_z, g_kl), [], [])
        # The written-out gradient needs float64, which not every device has.
        written = posterior.has_vjp and prior.has_vjp(posterior)
        if written and raw.device.type != "mps":
            return self._mixture_vjp(raw, eps)
        known = self.model.has_kl and not by_draw

        def latent(parts: Any, raw: torch.Tensor, eps: torch.Tensor) -> list[torch.Tensor]:
            mixture, flow = parts
            q = posterior.parameters(raw[:n_rows])
            z, log_q = posterior.draw(flow, q, eps)
            if known:
                return [z, posterior.kl(q).unsqueeze(0)]
            encoded = encoded_by(posterior, flow, raw[n_rows:]) if prior.n_pseudo_inputs else []
            return [z, (log_q - prior.log_prob(mixture, z, *encoded)).unsqueeze(-1)]

        (z, kl), backward = autograd.module_vjp(latent, self.latent_parts, [raw], [eps])
        n_of_prior = len(list(self.model.mixture.parameters()))

        def pull_all(g_z: torch.Tensor, g_kl: torch.Tensor) -> Any:
            (g_raw,), others = backward([g_z, g_kl])
            return g_raw, others[:n_of_prior], others[n_of_prior:]

        return z, kl, pull_all

    def _mixture_vjp(
        self, raw: torch.Tensor, eps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, LatentPullback]:
        """`_latent_vjp` for a prior that is a mixture of normals with independent components."""
        prior, n_rows = self.model.prior, eps.shape[2]
        # This is log q(z|x) - log N(z; 0, I). Below, log p(z) takes the place of the second term.
        z, from_standard, pull_own = self.model.posterior.vjp(raw[:, :n_rows], eps, by_draw=True)
        q, pull_pseudo = Diagonal().parameters_vjp(raw[:, n_rows:])
        log_p, pull_prior = prior.vjp(self.model.mixture, z.flatten(1, 2), q)
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

    def _through_encoder(
        self, g_seen: torch.Tensor, mixture: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Add the gradient of pseudo-inputs through the encoder to the prior's gradients."""
        inputs, limit = self.model.mixture.pseudo_inputs, self.model.bound[:, None, None]
        g_pseudo = g_seen[..., : inputs.shape[-1]] * (inputs.abs() < limit)
        names = [name for name, _ in self.model.mixture.named_parameters()]
        if not mixture:  # no other way than through the encoder
            return [g_pseudo] * len(names)
        if "pseudo_inputs" in names:
            own = names.index("pseudo_inputs")
            mixture[own] = mixture[own] + g_pseudo
        return mixture

    # --- factor analysis ---

    @property
    def contains_factors(self) -> bool:
        """Whether the models can become factor analysis."""
        model = self.model
        both = networks.is_linear(model.encoder) and networks.is_linear(model.decoder)
        normal = model.posterior.has_kl and model.prior.can_be_standard
        return both and normal and model.likelihood.can_begin

    @property
    def factor_noise(self) -> list[factor_analysis.Noise]:
        """The noise of the factor analysis that each model can become."""
        model = self.model
        kind = model.likelihood.noise_kind
        floors = model.observation.floor.cpu().double()
        if kind != "per_feature":
            return [factor_analysis.Noise(floor, kind) for floor in floors]
        # Each column has its own scale, so that PCA in the table's units is a further model.
        units = torch.where(model.scale > 0, model.scale, 1.0).cpu().double()
        return [factor_analysis.Noise(f, kind, u) for f, u in zip(floors, units, strict=True)]

    def become_factors(self, found: Sequence[factor_analysis.Factors]) -> None:
        """Turn each model into its factor analysis in `found`."""
        model = self.model
        (n_models, n_features), wide = model.location.shape, model.n_components
        n_raw = model.posterior.n_outputs(wide)
        new = partial(torch.zeros, dtype=model.varies.dtype, device="cpu")
        n_seen = (1 + model.missing) * n_features
        encode, of_encoder = new(n_models, n_raw, n_seen), new(n_models, n_raw)
        n_outputs = model.likelihood.n_outputs(n_features)
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
        networks.become_linear(model.encoder, encode, of_encoder)
        networks.become_linear(model.decoder, decode, of_decoder)
        model.likelihood.begin(model.observation, variance)
        model.prior.become_standard(model.mixture)
