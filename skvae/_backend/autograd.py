"""Pullbacks by autograd, for functions of tensors without a written-out derivative.

Training runs in torch's inference mode, and autograd refuses tensors of this mode. So inputs are
copied. The tape is kept for one pullback.
"""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

Tensors = Sequence[torch.Tensor]


def vjp(
    function: Callable[[Tensors, Tensors], Tensors], inputs: Tensors, constants: Tensors
) -> tuple[list[torch.Tensor], Callable[[Tensors], list[torch.Tensor]]]:
    """Return ``function(inputs, constants)``, and the pullback of gradients to the inputs."""
    with torch.inference_mode(False), torch.enable_grad():
        inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
        outputs = function(inputs, [tensor.detach().clone() for tensor in constants])

    def pull(gradients: Tensors) -> list[torch.Tensor]:
        with torch.inference_mode(False):
            pairs = [
                (output, g.clone())
                for output, g in zip(outputs, gradients, strict=True)
                if output.requires_grad
            ]
            return list(
                torch.autograd.grad(
                    [output for output, _ in pairs],
                    inputs,
                    [g for _, g in pairs],
                    allow_unused=True,
                    materialize_grads=True,
                )
            )

    return [output.detach() for output in outputs], pull


def each(function: Callable[..., Tensors], *arguments: Any) -> Tensors:
    """Apply ``function`` to the arguments of each model, (M, ...), and stack the results."""
    if len(arguments[0]) > 1:
        return torch.func.vmap(function)(*arguments)
    # One model needs no vmap, which takes longer.
    alone = [x[0] if isinstance(x, torch.Tensor) else [t[0] for t in x] for x in arguments]
    return [output.unsqueeze(0) for output in function(*alone)]


def values(module: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the parameters and the buffers of a module, each in their order."""
    return list(module.parameters()), list(module.buffers())


def holder(module: nn.Module, parameters: Tensors, buffers: Tensors = ()) -> Any:
    """Return an object with the names of a module and other values, for a part's functions.

    It is a plain namespace if the module has no modules inside, and else a copy of the module.
    """
    names = [name for name, _ in module.named_parameters()]
    names += [name for name, _ in module.named_buffers()]
    values = dict(zip(names, [*parameters, *buffers], strict=True))
    return _copy(module, values, "") if is_nested(module) else SimpleNamespace(**values)


def is_nested(module: nn.Module) -> bool:
    """Whether a module has modules inside, which may need tensors of a single model."""
    return next(module.children(), None) is not None


def _copy(module: nn.Module, values: Mapping[str, torch.Tensor], prefix: str) -> nn.Module:
    """Copy a module with these values, which are named as in the outermost module."""
    new = object.__new__(type(module))
    vars(new).update(vars(module))
    for kind in ("_parameters", "_buffers"):
        own = {name: values.get(prefix + name, v) for name, v in getattr(module, kind).items()}
        vars(new)[kind] = own
    vars(new)["_modules"] = {
        name: child if child is None else _copy(child, values, f"{prefix}{name}.")
        for name, child in module._modules.items()
    }
    return new
