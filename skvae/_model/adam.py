"""Adam for a stack of models, each with its own rate, weight decay and largest gradient norm."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from skvae._model.member import Progress

# BETAS are the decay rates of the moving means of the gradient and of its square. EPSILON is added
# to the root of the latter.
BETAS, EPSILON = (0.9, 0.999), 1e-8


class Adam:
    """Adam for M models, whose parameters become views of a matrix.

    Weight decay is decoupled, and applies to the parameters that `decays` marks. The gradient of
    all parameters of a model together is clipped to its largest norm.

    Kingma & Ba, Adam: a method for stochastic optimization (2014), arXiv:1412.6980,
    algorithm 1; Loshchilov & Hutter, Decoupled weight decay regularization (2017),
    arXiv:1711.05101, algorithm 2. ``torch.optim.AdamW`` takes the same steps, but has one rate
    for all models, and its first use imports a compiler for over a second.

    A CPU waits for memory. There, torch's kernel for whole updates passes over a model's row once,
    while operations on the matrix pass over all rows a dozen times (784-200-200-50: 0.13 against
    0.66 ms). One call of the kernel has one rate, so it takes the rows of all models with that
    rate. An accelerator waits for kernel launches, and operations on the matrix need the fewest.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        weight_decay: Sequence[float],
        max_norm: Sequence[float],
        decays: Sequence[bool] = (),
    ) -> None:
        n_models = len(weight_decay)
        self.parameters = list(parameters)
        self.weights = torch.cat([p.detach().reshape(n_models, -1) for p in parameters], dim=1)
        self.mean = torch.zeros_like(self.weights)
        self.square = torch.zeros_like(self.weights)
        self.decay: torch.Tensor | None = None
        if any(weight_decay):
            kinds = [
                torch.full_like(p, decay).view(n_models, -1)
                for p, decay in zip(parameters, decays, strict=True)
            ]
            self.decay = torch.cat(kinds, dim=1) * self.weights.new_tensor(weight_decay)[:, None]
        self.max_norm: torch.Tensor | None = None
        if any(map(math.isfinite, max_norm)):
            self.max_norm = self.weights.new_tensor(max_norm)[:, None]
        self.n_steps = 0
        self.by_rows = self.weights.device.type == "cpu" and hasattr(torch, "_fused_adamw_")
        self._lay_out()

    def _lay_out(self) -> None:
        """Make the parameters views of the matrix, and allocate the gradient of a step."""
        n_models = len(self.weights)
        sizes = [p.numel() // len(p) for p in self.parameters]
        for p, piece in zip(self.parameters, self.weights.split(sizes, 1), strict=True):
            p.data = piece.view(n_models, *p.shape[1:])
        self.gradient = torch.empty_like(self.weights)
        matrices = self.weights, self.mean, self.square
        # One model's gradients are used one by one, unless their common norm is needed.
        self.alone = n_models == 1 and self.max_norm is None
        if self.alone:
            self.owners = [0] * len(sizes)
            self.rows = [list(matrix.split(sizes, 1)) for matrix in matrices]
        else:
            self.owners = list(range(n_models))
            self.rows = [list(matrix.unbind()) for matrix in matrices]

    def keep(self, members: torch.Tensor) -> None:
        """Keep only these models."""
        self.weights, self.mean = self.weights[members], self.mean[members]
        self.square = self.square[members]
        if self.decay is not None:
            self.decay = self.decay[members]
        if self.max_norm is not None:
            self.max_norm = self.max_norm[members]
        self._lay_out()

    def progress(self, member: int) -> Progress:
        """Return the state of a model's moving means after its steps so far."""
        mean, square = self.mean[member].clone(), self.square[member].clone()
        return {"n_steps": self.n_steps, "mean": mean, "square": square}

    def go_on(self, member: int, progress: Progress) -> None:
        """Continue a model from a state that `progress` returned."""
        self.n_steps = progress["n_steps"]
        self.mean[member].copy_(progress["mean"])
        self.square[member].copy_(progress["square"])

    def coefficients(self, rates: Sequence[Sequence[float]]) -> list[tuple[Any, ...]]:
        """Return the arguments of `step`, besides the gradients, for steps at rates (steps, M).

        The first argument is the rates (M, 1). If `by_rows`, the others are the number of the step
        and, for each rate, the indices in `rows` that have it. Otherwise they are 1 / rate' and
        epsilon' (M, 1), which contain the bias corrections of both moments: a step only divides
        the mean by ``sqrt(square) / rate' + epsilon'``.
        """
        first = self.n_steps + 1
        self.n_steps += len(rates)
        steps = self.weights.new_tensor(rates).unsqueeze(-1).unbind()
        if self.by_rows:
            numbers = torch.arange(
                first, self.n_steps + 1, dtype=torch.float32, device=self.weights.device
            )
            return list(zip(steps, numbers.unbind(), map(self._index_by_rate, rates), strict=True))
        rows = []
        for n, row in enumerate(rates, start=first):
            correction = math.sqrt(1 - BETAS[1] ** n)
            # The inverse of a rate that has fallen to 0 would be infinite.
            inverse = [(1 - BETAS[0] ** n) / (max(rate, 1e-30) * correction) for rate in row]
            rows.append([inverse, [EPSILON * correction * i for i in inverse]])
        table = self.weights.new_tensor(rows).unsqueeze(-1).unbind()
        return [(rate, *more.unbind()) for rate, more in zip(steps, table, strict=True)]

    def _index_by_rate(self, rates: Sequence[float]) -> dict[float, list[int]]:
        indices: dict[float, list[int]] = {}
        for i, member in enumerate(self.owners):
            indices.setdefault(rates[member], []).append(i)
        return indices

    def step(self, gradients: Sequence[torch.Tensor], rate: torch.Tensor, *more: Any) -> None:
        """Update the parameters once."""
        n_models = len(self.weights)
        # The kernel needs contiguous gradients, and a user's network may return views.
        flat = [g.reshape(n_models, -1).contiguous() for g in gradients]
        if self.decay is not None:
            self.weights.addcmul_(self.weights * self.decay, rate, value=-1)
        if self.by_rows and self.alone:
            return self._update_rows(flat, *more)
        gradient = torch.cat(flat, dim=1, out=self.gradient)
        if self.max_norm is not None:
            norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            # A model whose largest norm is inf keeps its gradient. If the gradient's norm is inf,
            # too, their ratio is NaN and becomes 1.
            gradient.mul_((self.max_norm / (norm + 1e-6)).clamp_(max=1.0).nan_to_num_(nan=1.0))
        if self.by_rows:
            return self._update_rows(gradient.unbind(), *more)
        self._update(*more)

    def _update_rows(
        self,
        gradients: Sequence[torch.Tensor],
        n_steps: torch.Tensor,
        indices: Mapping[float, Sequence[int]],
    ) -> None:
        for rate, own in indices.items():
            rows = ([of_all[i] for i in own] for of_all in (gradients, *self.rows))
            gradient, weights, mean, square = rows
            torch._fused_adamw_(
                weights,
                gradient,
                mean,
                square,
                [],
                [n_steps] * len(own),
                lr=rate,
                beta1=BETAS[0],
                beta2=BETAS[1],
                weight_decay=0.0,
                eps=EPSILON,
                amsgrad=False,
                maximize=False,
            )

    def _update(self, inverse: torch.Tensor, epsilon: torch.Tensor) -> None:
        self.mean.lerp_(self.gradient, 1 - BETAS[0])
        self.square.lerp_(self.gradient.square(), 1 - BETAS[1])
        deviation = self.square.sqrt().mul_(inverse).add_(epsilon)
        self.weights.addcdiv_(self.mean, deviation, value=-1)
