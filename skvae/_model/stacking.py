"""Stack the weights of M models into one model, and take the weights of one model out again."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from skvae._backend.tensors import to_array, to_tensor
from skvae._model.architecture import Architecture
from skvae._model.state import empty_model, widened
from skvae._model.vae import VAE, State


def stack_models(
    architectures: Sequence[Architecture], states: Sequence[State], device: torch.device
) -> VAE:
    """Make one model of M models that differ in `n_components` only, on `device`."""
    wide = max(architectures, key=lambda architecture: architecture.n_components)
    model = empty_model(wide)
    states = [widened(state, model) for state in states]
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in shapes.items():
        padded = np.zeros((len(states), *shape), states[0][name].dtype)
        for m, (architecture, state) in enumerate(zip(architectures, states, strict=True)):
            own = own_index(model, name, architecture, shape, state[name].shape)
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


def own_index(
    model: VAE,
    name: str,
    architecture: Architecture,
    wide: tuple[int, ...],
    narrow: tuple[int, ...],
) -> Any:
    """Index of a model's own values in an array of a stack with more components."""
    own, all_ = architecture.n_components, model.n_components
    if own == all_:
        return ...
    indices = list(range(own))
    if name.startswith("encoder."):
        indices = model.posterior.places(own, all_)
    sides = (range(n) if n == of else indices for n, of in zip(narrow, wide, strict=True))
    return np.ix_(*sides) if wide else ()


def learned_state(
    model: VAE, architecture: Architecture, before: State, weights: torch.Tensor
) -> State:
    """Return the part of a model's state that training changes.

    `weights` are the parameters of one model of the stack `model`, end to end.
    """
    state, start = {}, 0
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape[1:])
        end = start + math.prod(shape)
        own = own_index(model, name, architecture, shape, before[name].shape)
        state[name] = to_array(weights[start:end].view(shape))[own]
        start = end
    return state
