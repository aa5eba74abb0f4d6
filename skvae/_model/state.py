"""The state of a model: the arrays that it consists of, their first values, and back to a model."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._device import device_decorator

from skvae import networks
from skvae._backend.devices import generator, one_thread
from skvae._backend.tensors import Array, share_tensor, to_array, to_tensor
from skvae._data.statistics import Moments
from skvae._data.units import Units, standardise
from skvae._model.architecture import Architecture
from skvae._model.rows import Batch
from skvae._model.vae import ENCODER_BOUND, VAE, State

# Variance of the posterior means above which a component is active (Burda, Grosse &
# Salakhutdinov, Importance weighted autoencoders, 2016, section 5.2).
ACTIVE_VARIANCE = 0.01


def empty_model(architecture: Architecture) -> VAE:
    """Make a model without values, which needs no random numbers."""
    # A `with` block here could be left by Ctrl-C before its end: all of torch would stay on "meta".
    return device_decorator(torch.device("meta"), lambda: VAE(architecture))()


# All threads share torch's generator.
_borrowing = threading.Lock()


def _new(architecture: Architecture, seed: int) -> VAE:
    """Make a model; modules of users have their own first values, and ours have none yet."""
    if architecture.initialises_all:
        model = empty_model(architecture)
        # The first call of `to_empty` would import sympy: half a second and 30 MiB.
        tensors = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            for name, tensor in model.state_dict().items()
        }
        model.load_state_dict(tensors, assign=True)
        return model
    with _borrowing, torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        return VAE(architecture)


@one_thread()
def initial_state(
    architecture: Architecture,
    columns: Moments,
    seed: int,
    take: Callable[[int], Array] = lambda n: np.empty(0),
) -> State:
    """Return the units and the first weights of a model, which are the same on every device.

    ``take(n)`` gives n rows of the data, in the units of X, for a prior with pseudo-inputs.
    """
    model = _new(architecture, seed)
    g = generator(seed)
    location, scale = model.likelihood.units(columns)
    # A column without any value is no part of the density, and is returned as missing.
    location = np.where(columns.is_empty, np.nan, location)
    scale = np.where(columns.is_empty, 0.0, scale)
    with torch.no_grad():
        model.location.copy_(to_tensor(location, "cpu"))
        model.scale.copy_(to_tensor(scale, "cpu"))
        model.varies.copy_(model.scale > 0)
        model.has_units.copy_(torch.from_numpy(model.likelihood.has_units(len(scale))))
        unit = np.where(scale > 0, scale, 1.0)
        typical = np.where(columns.is_empty, 0.0, (columns.mean - location) / unit)
        model.typical.copy_(to_tensor(typical, "cpu"))
        model.network.initialise(model.encoder, g)
        model.network.initialise(model.decoder, g)
        model.likelihood.initialise(model.observation, columns, scale)
        linear = model.network.is_linear(architecture.hidden_layer_sizes)
        spread = _spread_seen(model, columns)
        model.bound.fill_(np.inf if linear else ENCODER_BOUND * max(1.0, spread))
        last = networks.last_layer(model.decoder)
        if last is not None:  # so that all rows have one variance at first
            last.weight[list(model.likelihood.held_back(len(scale)))] = 0.0
        rows = None
        if model.prior.n_pseudo_inputs:
            rows = standardise(take(model.prior.n_pseudo_inputs), Units.of(location, scale))
            rows = torch.where(rows.isnan(), model.typical, rows)
            rows = model.likelihood.seen(model.observation, rows)
        model.prior.initialise(model.mixture, rows, g)
        model.posterior.initialise(model.flow, g)
        n_outputs = model.posterior.n_outputs(model.n_components)
        pairs = [
            (model.encoder, "encoder", architecture.n_encoder_inputs, n_outputs),
            (model.decoder, "decoder", model.n_components, model.likelihood.n_outputs(len(scale))),
        ]
        for module, part, n_in, n_out in pairs:
            if not isinstance(module, networks.Layers):
                networks.check_outputs(module, part, n_in, n_out)
    return {name: to_array(tensor) for name, tensor in model.state_dict().items()}


def _spread_seen(model: VAE, columns: Moments) -> float:
    """Largest distance between mean and mean + std of a column, as the encoder sees them."""
    location, scale = to_array(model.location), to_array(model.scale)
    rows = np.stack([columns.mean, columns.mean + columns.std])
    rows = np.divide(rows - location, scale, out=np.zeros_like(rows), where=scale > 0)
    seen = model.likelihood.seen(model.observation, torch.from_numpy(rows))
    return float((seen[1] - seen[0]).abs().max())


def cast_state(state: State, dtype: Any) -> State:
    """Cast the weights of a state to a dtype; units stay float64."""
    units = ("location", "scale")
    return {
        name: array.astype(dtype, copy=False)
        if name not in units and array.dtype.kind == "f"
        else array
        for name, array in state.items()
    }


@one_thread()
def from_state(
    architecture: Architecture,
    state: State,
    device: torch.device | str = "cpu",
    *,
    shares: bool = False,
) -> VAE:
    """Make the model with this state, on `device`.

    With `shares` its tensors use the memory of the arrays, where torch allows it.
    """
    model = empty_model(architecture)
    state = widened(state, model)
    make = share_tensor if shares else partial(to_tensor, device=device)
    model.load_state_dict({name: make(array) for name, array in state.items()}, assign=True)
    model.limit = float(state["bound"])
    return model


def observation(architecture: Architecture, state: State) -> nn.Module:
    """Make the module of the likelihood alone, with its learned values from this state."""
    prefix, module = "observation.", architecture.likelihood.build(architecture.n_features)
    own = {name: array for name, array in state.items() if name.startswith(prefix)}
    own = {name.removeprefix(prefix): array for name, array in own.items()}
    tensors = {name: to_tensor(array, "cpu") for name, array in widened(own, module).items()}
    module.load_state_dict(tensors, assign=True)
    return module


def widened(state: State, module: nn.Module) -> State:
    """Return the state with one noise floor per column; earlier files have one for all columns."""
    wide = {name: tuple(b.shape) for name, b in module.named_buffers() if name.endswith("floor")}
    return {**state, **{name: np.broadcast_to(state[name], shape) for name, shape in wide.items()}}


def n_active(architecture: Architecture, state: State, y: torch.Tensor) -> int:
    """Count the components whose posterior mean varies over rows y (B, D), on the CPU."""
    means = from_state(architecture, state).encode_mean(Batch(y)).double()
    return int((means.var(0, correction=0) > ACTIVE_VARIANCE).sum())


def units_of(state: State) -> Units:
    """Return the units of a model's rows."""
    return Units.of(state["location"], state["scale"])


def log_scales(state: State) -> Array:
    """log p(y_d) - log p(x_d) of each column, in nats: 0 if it is constant or has no units."""
    varies = (state["scale"] > 0) & (state["has_units"] > 0)
    return np.log(np.where(varies, state["scale"], 1.0))


def log_jacobian(state: State) -> float:
    """log p(y) - log p(x) in nats, the sum over all columns."""
    return float(log_scales(state).sum())


def n_weights(state: State) -> int:
    """Number of values of the model, which is about its number of multiplications for a row."""
    return sum(array.size for array in state.values())
