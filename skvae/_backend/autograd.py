"""Pullbacks by autograd, for functions of tensors without a written-out derivative.

Training runs in torch's inference mode, and autograd refuses tensors of this mode. So inputs are
copied. The tape is kept for one pullback.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

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


class _Holder(nn.Module):
    """A function of a module, as a module whose tensors can be replaced."""

    def __init__(self, module: nn.Module, function: Callable[..., Tensors]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, *tensors: torch.Tensor) -> Tensors:
        return self.function(self.module, *tensors)


def module_vjp(
    function: Callable[..., Tensors],
    module: nn.Module,
    inputs: Tensors,
    constants: Tensors = (),
    *,
    all_at_once: bool = False,
) -> tuple[list[torch.Tensor], Callable[[Tensors], tuple[Tensors, list[torch.Tensor]]]]:
    """Return ``function(module, *inputs, *constants)`` of M models, and its pullback.

    All tensors have a leading M, those of the module too. `function` gets the tensors of one model;
    with `all_at_once`, for a module without modules inside, it gets the tensors of all models. The
    pullback turns gradients of the outputs into gradients of the inputs and of the module's
    parameters.
    """
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    names, n, k = [*parameters, *buffers], len(inputs), len(buffers)

    def of_one(inputs: Tensors, learned: Tensors, kept: Tensors, constants: Tensors) -> Tensors:
        values = dict(zip(names, [*learned, *kept], strict=True))
        if all_at_once:  # a namespace takes less time than a call of a module
            return function(SimpleNamespace(**values), *inputs, *constants)
        values = {f"module.{name}": value for name, value in values.items()}
        holder = _Holder(module, function)
        return torch.func.functional_call(holder, values, (*inputs, *constants))

    def of_all(tensors: Tensors, constants: Tensors) -> Tensors:
        groups = tensors[:n], tensors[n:], constants[:k], constants[k:]
        if all_at_once:
            return of_one(*groups)
        if len(tensors[0]) > 1:
            return torch.func.vmap(of_one)(*groups)
        # One model needs no vmap, which takes longer.
        outputs = of_one(*([tensor[0] for tensor in group] for group in groups))
        return [output.unsqueeze(0) for output in outputs]

    outputs, backward = vjp(
        of_all, [*inputs, *parameters.values()], [*buffers.values(), *constants]
    )

    def pull(gradients: Tensors) -> tuple[Tensors, list[torch.Tensor]]:
        results = backward(gradients)
        return results[:n], results[n:]

    return outputs, pull


def is_nested(module: nn.Module) -> bool:
    """Whether a module has modules inside, which may need tensors of a single model."""
    return next(module.children(), None) is not None
