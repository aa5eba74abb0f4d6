"""The variational autoencoder: encoder, posterior, prior, decoder and likelihood joined.

    log p(x) = ELBO(x) + KL(q(z|x) || p(z|x)),
    ELBO(x)  = E_q[log p(x|z)] - KL(q(z|x) || p(z)) = E_q[log p(x|z) + log p(z) - log q(z|x)]

(Kingma & Welling 2013, arXiv:1312.6114, eq. 1-3). The model lives in its own units
y = (x - location) / scale. The density of x is that of y divided by the scales, so

    log p(x) = log p(y) - sum_d log scale_d,

over the columns that vary: a constant column (scale 0) is no part of the density.

Letters: M models, S draws of noise, B rows, D features, L components; tensors are (S, B, .),
with M in front where models are stacked. A fit trains a stack, of one model or of many: all
tensors of a stack have a leading M. Models with fewer components than the widest of their
stack are padded with weights and noise of 0. Then the components that are not theirs stay
what they are: the encoder says N(0, 1) of them, whose KL divergence is 0, z is 0 there and
meets decoder weights of 0, and every gradient among them is 0.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from skvae._arrays import Array, Columns, draws_at_once, generator, to_array, to_tensor
from skvae.likelihoods import LIKELIHOODS
from skvae.networks import NETWORKS, vjp
from skvae.networks import Pullback as NetworkPullback
from skvae.posteriors import Diagonal
from skvae.priors import StandardNormal

State = Mapping[str, Array]


# The encoder sees no value farther than 20 standard deviations from the location: a pixel
# that hardly varied in `fit` and stands out by 100 would else drive z, and all other pixels
# with it, where no row has been. The values of up to 400 rows cannot reach it. A linear
# model has no bound: it is factor analysis for every row.
ENCODER_BOUND = 20.0


class Terms(NamedTuple):
    """What every bound is made of, in nats."""

    log_likelihood: torch.Tensor  # log p(y|z) of each draw, (S, B)
    kl: torch.Tensor  # KL(q(z|x) || p(z)), (B,)


# Gradients of the log-likelihoods (S, B) and the KL divergences (B,) -> of the parameters.
Pullback = Callable[[torch.Tensor, torch.Tensor], list[torch.Tensor]]


class VAE(nn.Module):
    """A VAE in torch: `encode` and `decode` in the units of X.

    Parameters
    ----------
    n_features, n_components : int
        D and L.
    likelihood, network : str or value
        Parts of the model: `skvae.likelihoods`, `skvae.networks`.
    hidden_layer_sizes : tuple of int
        Widths of the encoder's hidden layers; the decoder's are reversed.
    activation : str
        A key of `skvae.networks.ACTIVATIONS`.
    """

    location: torch.Tensor
    scale: torch.Tensor
    varies: torch.Tensor
    bound: torch.Tensor

    def __init__(
        self,
        n_features: int,
        n_components: int,
        likelihood: Any,
        network: Any,
        hidden_layer_sizes: tuple[int, ...],
        activation: str,
    ) -> None:
        super().__init__()
        self.likelihood = LIKELIHOODS.get(likelihood, likelihood)
        self.network = NETWORKS.get(network, network)
        self.n_components = n_components
        self.prior = StandardNormal()
        self.posterior = Diagonal()
        self.encoder = self.network.build(
            n_features, self.posterior.n_outputs(n_components), hidden_layer_sizes, activation
        )
        self.decoder = self.network.build(
            n_components,
            self.likelihood.n_outputs(n_features),
            hidden_layer_sizes[::-1],
            activation,
        )
        self.observation = self.likelihood.build(n_features)
        # Of the widest layer: the largest side of any weights.
        self.width = max(max(weights.shape, default=1) for weights in self.parameters())
        self.register_buffer("varies", torch.empty(n_features))
        self.register_buffer("bound", torch.empty(()))
        # The value of `bound`, which a device need not be asked for: (M, 1, 1) where they differ.
        self.limit: float | torch.Tensor = math.inf
        self.low_precision = False  # whether a stack's networks multiply in bfloat16
        self.float()  # whatever torch's default dtype is; units alone are float64
        self.register_buffer("location", torch.empty(n_features, dtype=torch.float64))
        self.register_buffer("scale", torch.empty(n_features, dtype=torch.float64))

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

    def forward(self, y: torch.Tensor, eps: torch.Tensor) -> Terms:
        """All terms of the bound for rows y (B, D) and noise eps (S, B, L) or (S, 1, L)."""
        q = self.posterior.parameters(self.encoder(self.bounded(y)))
        log_likelihood = [
            self.log_likelihood(y, self.posterior.rsample(q, some))
            for some in eps.split(draws_at_once(len(y), self.width))
        ]
        return Terms(torch.cat(log_likelihood), self.posterior.kl(q))

    def bounded(self, y: torch.Tensor) -> torch.Tensor:
        """What the encoder sees of rows y (B, D) or (M, B, D)."""
        return torch.clamp(y, -self.limit, self.limit)  # type: ignore[arg-type]

    def encode_mean(self, y: torch.Tensor) -> torch.Tensor:
        """Mean of q(z|x), (B, L), of rows y (B, D)."""
        return self.posterior.mean(self.encoder(self.bounded(y)))

    def encode_rows(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of q(z|x), each (B, L), of rows y (B, D)."""
        return self.posterior.mean_std(self.posterior.parameters(self.encoder(self.bounded(y))))

    def log_likelihood(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """log p(y|z) in nats, (S, B), summed over the columns that vary."""
        return self.likelihood.vjp(self.observation, self.decoder(z), y, self.varies)[0]

    def decode_mean(self, z: torch.Tensor) -> torch.Tensor:
        """E[y|z], (..., D)."""
        return self.likelihood.mean(self.observation, self.decoder(z))

    def decode_sample(self, z: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draws from p(y|z), (..., D)."""
        return self.likelihood.sample(self.observation, self.decoder(z), generator)

    # --- M models at once ---

    def vjp(self, y: torch.Tensor, eps: torch.Tensor) -> tuple[Terms, Pullback]:
        """`forward` of each model of a stack, and the pullback of its terms' gradients.

        From rows y (M, B, D) and noise eps (M, S, B, L) to the terms (M, S, B) and (M, B);
        from their gradients to those of all parameters, as autograd has them.
        """
        n_models, n_draws, _, n_components = eps.shape
        raw, pull_encoder = self._network_vjp(self.encoder, self.bounded(y), to_input=False)
        z, kl, pull_posterior = self.posterior.vjp(raw, eps)
        flat = z.view(n_models, -1, n_components)
        outputs, pull_decoder = self._network_vjp(self.decoder, flat, to_input=True)
        repeated = y if n_draws == 1 else y.repeat(1, n_draws, 1)
        log_likelihood, pull_likelihood = self.likelihood.vjp(
            self.observation, outputs, repeated, self.varies
        )

        def pull(g_log_likelihood: torch.Tensor, g_kl: torch.Tensor) -> list[torch.Tensor]:
            g_outputs, observation = pull_likelihood(g_log_likelihood.view(n_models, -1))
            g_z, decoder = pull_decoder(g_outputs)
            assert g_z is not None  # it was asked for
            g_raw = pull_posterior(g_z.view_as(z), g_kl)
            return [*pull_encoder(g_raw)[1], *decoder, *observation]

        return Terms(log_likelihood.view(n_models, n_draws, -1), kl), pull

    def _network_vjp(
        self, module: nn.Module, x: torch.Tensor, *, to_input: bool
    ) -> tuple[torch.Tensor, NetworkPullback]:
        """The network's vjp, its products in bfloat16 if so asked; all else is as it was."""
        if not self.low_precision:
            return vjp(self.network, module, x, to_input=to_input)
        products = torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False)
        with products:
            outputs, pull_inside = vjp(self.network, module, x, to_input=to_input)

        def pull(g: torch.Tensor) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
            with products:
                g_x, gradients = pull_inside(g)
            gradients = [gradient.to(x.dtype) for gradient in gradients]
            return None if g_x is None else g_x.to(x.dtype), gradients

        return outputs.to(x.dtype), pull

    def keep(self, members: torch.Tensor) -> None:
        """Keep these models of a stack."""
        for module in self.modules():
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data[members]
            for name, buffer in list(module.named_buffers(recurse=False)):
                module._buffers[name] = buffer[members]
        if isinstance(self.limit, torch.Tensor):
            self.limit = self.limit[members]


def _empty(architecture: Mapping[str, Any]) -> VAE:
    """A model without values, made without asking any generator for them."""
    with torch.device("meta"):
        return VAE(**architecture)


def initial_state(architecture: Mapping[str, Any], columns: Columns, seed: int) -> State:
    """Units and first weights of a model: the same on every device."""
    model = _empty(architecture).to_empty(device="cpu")
    g = generator(seed)
    location, scale = model.likelihood.units(columns)
    with torch.no_grad():
        model.location.copy_(to_tensor(location, "cpu"))
        model.scale.copy_(to_tensor(scale, "cpu"))
        model.varies.copy_(model.scale > 0)
        spread = np.divide(columns.std, scale, out=np.zeros_like(scale), where=scale > 0)
        linear = not architecture["hidden_layer_sizes"]
        model.bound.fill_(np.inf if linear else ENCODER_BOUND * max(1.0, spread.max()))
        model.network.initialise(model.encoder, g)
        model.network.initialise(model.decoder, g)
        model.likelihood.initialise(model.observation, columns, scale)
    return {name: to_array(tensor) for name, tensor in model.state_dict().items()}


def cast(state: State, dtype: Any) -> State:
    """The state with weights of this dtype; units stay float64."""
    units = ("location", "scale")
    return {
        name: array.astype(dtype, copy=False)
        if name not in units and array.dtype.kind == "f"
        else array
        for name, array in state.items()
    }


def from_state(
    architecture: Mapping[str, Any], state: State, device: torch.device | str = "cpu"
) -> VAE:
    """The model with this state, on `device`."""
    model = _empty(architecture)
    tensors = {name: to_tensor(array, device) for name, array in state.items()}
    model.load_state_dict(tensors, assign=True)
    model.limit = float(state["bound"])
    return model


# --- stacks ---


def stack(
    architectures: Sequence[Mapping[str, Any]], states: Sequence[State], device: torch.device
) -> VAE:
    """M models at once, alike but for `n_components`, on `device`."""
    wide = max(architectures, key=lambda architecture: architecture["n_components"])
    model = _empty(wide)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in shapes.items():
        padded = np.zeros((len(states), *shape), states[0][name].dtype)
        for m, (architecture, state) in enumerate(zip(architectures, states, strict=True)):
            own = _places(model, name, architecture, shape, state[name].shape)
            padded[m, ...][own] = state[name]
        owner, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        tensor = to_tensor(padded, device)
        if leaf in owner._parameters:
            owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        else:
            owner._buffers[leaf] = tensor
    bounds = {float(state["bound"]) for state in states}
    model.limit = bounds.pop() if len(bounds) == 1 else model.bound.view(-1, 1, 1)
    return model


def _places(
    model: VAE,
    name: str,
    architecture: Mapping[str, Any],
    wide: tuple[int, ...],
    narrow: tuple[int, ...],
) -> Any:
    """Index of a model's own values in an array of a stack that has more components."""
    own, all_ = architecture["n_components"], model.n_components
    places = list(range(own))
    if name.startswith("encoder."):
        places = model.posterior.places(own, all_)
    sides = (range(n) if n == of else places for n, of in zip(narrow, wide, strict=True))
    return np.ix_(*sides) if wide else ()


def learned(model: VAE, architecture: Mapping[str, Any], weights: torch.Tensor) -> State:
    """The part of a model's state that training changes.

    `weights` are the parameters of one model of the stack `model`, end to end.
    """
    narrow = _empty(architecture)
    state, start = {}, 0
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape[1:])
        end = start + math.prod(shape)
        own = _places(model, name, architecture, shape, tuple(narrow.get_parameter(name).shape))
        state[name] = to_array(weights[start:end].view(shape))[own]
        start = end
    return state


def log_jacobian(scale: Array) -> float:
    """sum_d log scale_d in nats over the columns that vary: log p(y) - log p(x)."""
    return float(np.log(scale[scale > 0]).sum())


def n_weights(state: State) -> int:
    """Number of values of the model: about its multiplications for a row."""
    return sum(array.size for array in state.values())
