"""The variational autoencoder: encoder, posterior, prior, decoder and likelihood joined.

    log p(x) = ELBO(x) + KL(q(z|x) || p(z|x)),
    ELBO(x)  = E_q[log p(x|z)] - KL(q(z|x) || p(z)) = E_q[log p(x|z) + log p(z) - log q(z|x)]

(Kingma & Welling 2013, arXiv:1312.6114, eq. 1-3). The model lives in its own units
y = (x - location) / scale. The density of x is that of y divided by the scales, so

    log p(x) = log p(y) - sum_d log scale_d,

over the columns that vary: a constant column (scale 0) is no part of the density.

Letters: S draws of noise, B rows, D features, L components; tensors are (S, B, .).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from skvae._arrays import Array, Columns, draws_at_once, generator, to_array, to_tensor
from skvae.likelihoods import LIKELIHOODS
from skvae.networks import NETWORKS
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
        self.limit = math.inf  # the value of `bound`, which a device need not be asked for
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
        """What the encoder sees of rows y (B, D)."""
        return y.clamp(-self.limit, self.limit)

    def encode_mean(self, y: torch.Tensor) -> torch.Tensor:
        """Mean of q(z|x), (B, L), of rows y (B, D)."""
        return self.posterior.mean(self.encoder(self.bounded(y)))

    def encode_rows(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of q(z|x), each (B, L), of rows y (B, D)."""
        return self.posterior.mean_std(self.posterior.parameters(self.encoder(self.bounded(y))))

    def vjp(self, y: torch.Tensor, eps: torch.Tensor) -> tuple[Terms, Pullback]:
        """`forward`, and the pullback of the gradients of its terms to all parameters.

        The same numbers as autograd's, in about half the time for small networks.
        """
        n_draws = len(eps)
        raw, pull_encoder = self.network.vjp(self.encoder, self.bounded(y), to_input=False)
        z, kl, pull_posterior = self.posterior.vjp(raw, eps)
        outputs, pull_decoder = self.network.vjp(self.decoder, z.flatten(0, 1), to_input=True)
        repeated = y if n_draws == 1 else y.repeat(n_draws, 1)
        log_likelihood, pull_likelihood = self.likelihood.vjp(
            self.observation, outputs, repeated, self.varies
        )

        def pull(g_log_likelihood: torch.Tensor, g_kl: torch.Tensor) -> list[torch.Tensor]:
            g_outputs, observation = pull_likelihood(g_log_likelihood.flatten())
            g_z, decoder = pull_decoder(g_outputs)
            _, encoder = pull_encoder(pull_posterior(g_z.view_as(z), g_kl))
            return [*encoder, *decoder, *observation]

        return Terms(log_likelihood.view(n_draws, -1), kl), pull

    def log_likelihood(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """log p(y|z) in nats, (S, B), summed over the columns that vary."""
        return self.likelihood.vjp(self.observation, self.decoder(z), y, self.varies)[0]

    def decode_mean(self, z: torch.Tensor) -> torch.Tensor:
        """E[y|z], (..., D)."""
        return self.likelihood.mean(self.observation, self.decoder(z))

    def decode_sample(self, z: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draws from p(y|z), (..., D)."""
        return self.likelihood.sample(self.observation, self.decoder(z), generator)


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


def from_state(
    architecture: Mapping[str, Any], state: State, device: torch.device | str = "cpu"
) -> VAE:
    """The model with this state, on `device`."""
    model = _empty(architecture)
    tensors = {name: to_tensor(array, device) for name, array in state.items()}
    model.load_state_dict(tensors, assign=True)
    model.limit = float(state["bound"])
    return model


def learned(model: VAE) -> State:
    """The part of the state that training changes."""
    return {name: to_array(tensor) for name, tensor in model.named_parameters()}


def log_jacobian(scale: Array) -> float:
    """sum_d log scale_d in nats over the columns that vary: log p(y) - log p(x)."""
    return float(np.log(scale[scale > 0]).sum())


def n_weights(state: State) -> int:
    """Number of values of the model: about its multiplications for a row."""
    return sum(array.size for array in state.values())
