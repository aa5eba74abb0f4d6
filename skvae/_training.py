"""The training loop: stochastic gradient descent on M models at once.

A fit trains a stack of one model, a search the stacks of its candidates and folds: one
loop, in which every tensor has a leading M, and each member draws its permutations and its
noise from a generator of its own, as it would alone. Numbers that differ between members
(beta, learning rate, weight decay, patience) are vectors; what decides a shape (rows, rows
held out, batch size) is the same for all. Members end on their own, and leave the stack.

Knows tensors and numbers only; the stack comes as an argument. The parameters of a member
are laid end to end in one row of a matrix, of which each parameter becomes a view, so that a
step of Adam is a handful of operations whatever the number of layers and members, and a copy
of the weights is one `clone`.

An epoch draws its permutation at once and its noise for many steps, and asks the device for
numbers once, at its end. Then the weights are judged on rows and noise that never change: those
held out, or else a few of the training rows, which only matter if the loss stops being finite.
On CUDA the step is captured once, as a graph, and replayed.
"""

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn import functional as F

from skvae._evidence import excess, is_better
from skvae._objective import Stack as Objective
from skvae._objective import Weights, loss, loss_gradient, row_losses, warm_up

SCHEDULES = ("constant", "cosine")

# Antithetic draws of each held-out row: two pairs, forward only, on a tenth of the rows.
N_VALIDATION_DRAWS = 4
# Rows that are judged at once, of all members, and their values; and so many times as many on
# accelerators, where each launch costs.
JUDGED_ROWS, JUDGED_VALUES = 2**10, 2**17
ON_ACCELERATORS = 64
# Share of the members that may have ended and still go along: on CUDA each change of a stack
# captures its step anew.
IDLE_SHARE = {"cuda": 0.25}
NOISE_VALUES = 1 << 22  # of a member, drawn at once
PROBE_ROWS = 64  # training rows that are judged where none are held out


class Stack(Objective, Protocol):
    """What this floor asks of M models at once."""

    def parameters(self) -> Iterable[torch.Tensor]:
        """What is learned, each (M, ...), in the order of the pullback."""
        ...

    def decays(self) -> Sequence[bool]:
        """Whether weight decay applies to each of the parameters."""
        ...

    def keep(self, members: torch.Tensor) -> None:
        """Forget all models but these."""
        ...


@dataclass(frozen=True)
class Rows:
    """Rows of data, and which of them are whose."""

    data: torch.Tensor  # (R, D)
    index: torch.Tensor  # (M, n), rows of `data`
    # (M, n), how much each counts: of mean 1 over an epoch, or over what is judged. None: 1.
    weight: torch.Tensor | None = None
    # (M, n), the number of the group of each row that is judged. None: each row is its own.
    group: torch.Tensor | None = None

    def of(self, members: torch.Tensor) -> "Rows":
        """Those of some members."""
        own = (None if v is None else v[members] for v in (self.weight, self.group))
        return Rows(self.data, self.index[members], *own)

    def take(self, places: torch.Tensor) -> torch.Tensor:
        """Rows (M, B, D) at places (M, B) of `data`."""
        return self.data.index_select(0, places.reshape(-1)).view(*places.shape, -1)


@dataclass(frozen=True)
class Plan:
    """The numbers of the training of one model."""

    n_components: int
    n_held_out: int  # rows; 0: train to the end and keep the last weights
    batch_size: int  # rows
    max_iter: int  # epochs
    learning_rate: float
    schedule: str  # one of SCHEDULES
    weight_decay: float
    beta: float
    n_warmup: int  # epochs before beta has its full weight, in each cycle
    patience: int  # epochs
    tol: float  # nats
    n_cycles: int = 1  # of the warm-up
    n_importance_samples: int = 1
    free_bits: float = 0.0  # nats per component
    # Standard normals besides those of z: of each draw; of each row, in validation, and beyond.
    n_noise: tuple[int, int, int] = (0, 0, 0)
    max_grad_norm: float = math.inf  # nats per row, for a change of all parameters by 1
    n_held_back: int = 0  # epochs before all that is to be learned is being learned
    # Standard errors by which the best epoch must beat a simple model on the rows that are judged;
    # None where it has none to beat.
    n_errors: float | None = None
    constant: float = 0.0  # nats, added to every reconstruction that is reported
    continues: bool = False  # the first weights are those of an earlier run: they may be best

    def beta_in(self, epoch: int) -> float:
        """Weight of the KL divergence in `epoch`, from 0."""
        # The last cycle is longer, where the epochs can't be shared out equally.
        cycle = min(epoch // self._period, self.n_cycles - 1)
        return self.beta * warm_up(epoch - cycle * self._period, self.n_warmup)

    @property
    def _period(self) -> int:
        return max(1, self.max_iter // self.n_cycles)

    def is_warming(self, epoch: int) -> bool:
        """Whether beta has yet to rise for the last time in `epoch`, counted from 1."""
        last = (self.n_cycles - 1) * self._period
        return self.n_warmup > 0 and epoch <= last + self.n_warmup

    def rate_at(self, epoch: float) -> float:
        """Learning rate: constant, or half a cosine from `learning_rate` to 0.

        Loshchilov & Hutter, SGDR (2016), arXiv:1608.03983, eq. 5, without restarts.
        """
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * (1 + math.cos(math.pi * epoch / self.max_iter)) / 2


# What the training of one model needs, besides its rows and its plan, to go on after an epoch as
# if it had not stopped there: tensors and numbers by name. Without "n_iter", of its steps alone.
Progress = Mapping[str, Any]
OF_STEPS = ("n_steps", "mean", "square", "generator")


@dataclass
class Record:
    """What the training of one model did so far."""

    history: dict[str, list[float]] = field(default_factory=dict)  # a number an epoch
    member: int = field(default=0, compare=False)  # which of the models
    n_iter: int = 0  # complete epochs
    # The epoch whose weights were kept, counted from 1; 0: the first weights, or a simple model's.
    kept: int = 0
    is_simple: bool = False
    outcome: str = "finished"  # or "converged", "stopped", "diverged", "interrupted"
    interrupted: bool = False  # whether Ctrl-C came, though it may have come after the last epoch
    # Parameters, end to end.
    weights: torch.Tensor = field(default_factory=lambda: torch.empty(0), compare=False)
    progress: Progress | None = field(default=None, compare=False)  # where it is kept

    def add(self, numbers: Sequence[float], plan: Plan) -> None:
        """Add a complete epoch: its terms, and those of the held-out rows."""
        epochs = [("", numbers[:3], plan.beta_in(self.n_iter))]
        if plan.n_held_out:
            epochs.append(("validation_", numbers[3:6], plan.beta))
        for prefix, (minimised, reconstruction, kl), beta in epochs:
            if plan.n_importance_samples == 1 and not plan.free_bits:
                minimised = reconstruction + beta * kl  # to the last digit
            row = {
                "loss": minimised + plan.constant,
                "reconstruction": reconstruction + plan.constant,
                "kl": kl,
                "negative_elbo": reconstruction + kl + plan.constant,
                "beta": beta,
            }
            for name, value in row.items():
                self.history.setdefault(prefix + name, []).append(value)
        self.n_iter += 1


# Of Adam's moving means of the gradient and its square, and beside the root of the latter.
BETAS, EPSILON = (0.9, 0.999), 1e-8


class Adam:
    """Adam for M models, whose parameters become views of a matrix.

    With decoupled weight decay of the parameters that `decays` names, and gradients clipped to a
    norm, all parameters together.

    Kingma & Ba, Adam: a method for stochastic optimization (2014), arXiv:1412.6980,
    algorithm 1; Loshchilov & Hutter, Decoupled weight decay regularization (2017),
    arXiv:1711.05101, algorithm 2. ``torch.optim.AdamW`` takes the same steps at one rate for
    all, and its first use imports a compiler for over a second.

    A CPU waits for memory: there, torch's kernel for whole updates passes over a model's row
    once, where operations on the matrix pass over all rows a dozen times (784-200-200-50: 0.13
    against 0.66 ms). The kernel has one rate a call, and takes the rows of all models of that
    rate. An accelerator waits for launches, of which the matrix needs fewest.
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
        """Make the parameters views of the matrix, and room for a step."""
        n_models = len(self.weights)
        sizes = [p.numel() // len(p) for p in self.parameters]
        for p, piece in zip(self.parameters, self.weights.split(sizes, 1), strict=True):
            p.data = piece.view(n_models, *p.shape[1:])
        self.gradient = torch.empty_like(self.weights)
        matrices = self.weights, self.mean, self.square
        # The gradients of one model need no row in common, unless their norm is asked for.
        self.alone = n_models == 1 and self.max_norm is None
        if self.alone:
            self.owners = [0] * len(sizes)
            self.rows = [list(matrix.split(sizes, 1)) for matrix in matrices]
        else:
            self.owners = list(range(n_models))
            self.rows = [list(matrix.unbind()) for matrix in matrices]

    def keep(self, members: torch.Tensor) -> None:
        """Go on with these models only."""
        self.weights, self.mean = self.weights[members], self.mean[members]
        self.square = self.square[members]
        if self.decay is not None:
            self.decay = self.decay[members]
        if self.max_norm is not None:
            self.max_norm = self.max_norm[members]
        self._lay_out()

    def progress(self, member: int) -> Progress:
        """What the steps of a model so far have left."""
        mean, square = self.mean[member].clone(), self.square[member].clone()
        return {"n_steps": self.n_steps, "mean": mean, "square": square}

    def go_on(self, member: int, progress: Progress) -> None:
        """Go on from there."""
        self.n_steps = progress["n_steps"]
        self.mean[member].copy_(progress["mean"])
        self.square[member].copy_(progress["square"])

    def coefficients(self, rates: Sequence[Sequence[float]]) -> list[tuple[Any, ...]]:
        """What the next steps at these rates (steps, M) need: the rates (M, 1) and more.

        By rows, the number of the step, and the places in `rows` that have a rate. Else
        1 / rate and epsilon (M, 1) with the bias corrections of both moments, so that a step
        divides the mean by ``sqrt(square) / rate' + epsilon'`` alone.
        """
        first = self.n_steps + 1
        self.n_steps += len(rates)
        steps = self.weights.new_tensor(rates).unsqueeze(-1).unbind()
        if self.by_rows:
            numbers = torch.arange(
                first, self.n_steps + 1, dtype=torch.float32, device=self.weights.device
            )
            return list(zip(steps, numbers.unbind(), map(self._places, rates), strict=True))
        rows = []
        for n, row in enumerate(rates, start=first):
            correction = math.sqrt(1 - BETAS[1] ** n)
            # A rate that has fallen to 0 would be infinite there.
            inverse = [(1 - BETAS[0] ** n) / (max(rate, 1e-30) * correction) for rate in row]
            rows.append([inverse, [EPSILON * correction * i for i in inverse]])
        table = self.weights.new_tensor(rows).unsqueeze(-1).unbind()
        return [(rate, *more.unbind()) for rate, more in zip(steps, table, strict=True)]

    def _places(self, rates: Sequence[float]) -> dict[float, list[int]]:
        places: dict[float, list[int]] = {}
        for place, member in enumerate(self.owners):
            places.setdefault(rates[member], []).append(place)
        return places

    def step(self, gradients: Sequence[torch.Tensor], rate: torch.Tensor, *more: Any) -> None:
        """One update."""
        n_models = len(self.weights)
        # Contiguous, as the kernel takes for granted: a network of a user's may give views.
        flat = [g.reshape(n_models, -1).contiguous() for g in gradients]
        if self.decay is not None:
            self.weights.addcmul_(self.weights * self.decay, rate, value=-1)
        if self.by_rows and self.alone:
            return self._update_rows(flat, *more)
        gradient = torch.cat(flat, dim=1, out=self.gradient)
        if self.max_norm is not None:
            norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            # Beside a finite norm an infinite one changes nothing, not even where both are.
            gradient.mul_((self.max_norm / (norm + 1e-6)).clamp_(max=1.0).nan_to_num_(nan=1.0))
        if self.by_rows:
            return self._update_rows(gradient.unbind(), *more)
        self._update(*more)

    def _update_rows(
        self,
        gradients: Sequence[torch.Tensor],
        n_steps: torch.Tensor,
        places: Mapping[float, Sequence[int]],
    ) -> None:
        for rate, own in places.items():
            rows = ([of_all[place] for place in own] for of_all in (gradients, *self.rows))
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


class Best:
    """The best weights so far, by a loss that is judged after every epoch.

    An epoch after the warm-up beats all of those in it, whose loss had another beta.
    """

    def __init__(self, weights: torch.Tensor) -> None:
        self.weights = weights.clone()
        self.epoch = 0
        self.key = (True, math.inf)
        self.rows: torch.Tensor | None = None  # the loss of each judged row, (B,)
        self.mark = math.inf
        self.waited = 0  # epochs since the loss last fell by more than tol

    def judge(
        self, loss: float, rows: torch.Tensor, epoch: int, weights: torch.Tensor, plan: Plan
    ) -> None:
        """Copy `weights` if they are the best after `epoch` epochs, by the loss of judged rows."""
        warming = plan.is_warming(epoch)
        if (warming, loss) < self.key:
            self.weights, self.epoch, self.key = weights.clone(), epoch, (warming, loss)
            self.rows = rows.clone()
        if warming:
            return
        self.waited += 1
        if loss < self.mark - plan.tol or epoch <= plan.n_held_back:
            self.mark, self.waited = min(loss, self.mark), 0


# --- noise --------------------------------------------------------------------------------


def draw_noise(
    shape: tuple[int, int],
    wide: int,
    n_more: int,
    plans: Sequence[Plan],
    generators: Sequence[torch.Generator],
) -> torch.Tensor:
    """Standard normals (M, *shape, wide + n_more): of each member's own components, and more.

    0 where a member has fewer components than `wide`.
    """
    draws = []
    for plan, g in zip(plans, generators, strict=True):
        own = (*shape, plan.n_components + n_more)
        eps = torch.randn(own, generator=g, dtype=torch.float32, device=g.device)
        if plan.n_components < wide:
            of_z, more = eps.split([plan.n_components, n_more], dim=-1)
            eps = torch.cat([F.pad(of_z, (0, wide - plan.n_components)), more], dim=-1)
        draws.append(eps)
    return torch.stack(draws)


def draw_about(n_rows: int, n_noise: int, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Standard normals (M, n_rows, n_noise) of rows."""
    if n_noise == 0:
        return torch.empty(len(generators), n_rows, 0, device=generators[0].device)
    shape = n_rows, n_noise
    return torch.stack(
        [torch.randn(shape, generator=g, dtype=torch.float32, device=g.device) for g in generators]
    )


# --- the step -----------------------------------------------------------------------------

# Of rows, their places (M, B) and weights (M, B) or None, noise (M, S, B, .) and (M, B, .),
# beta (M, 1), and the coefficients of Adam.
Step = Callable[..., None]


def make_step(stack: Stack, adam: Adam, seen: torch.Tensor, weights: Weights) -> Step:
    """A training step, which adds the numbers (3, M) of its rows to `seen`."""

    def step(
        rows: Rows,
        places: torch.Tensor,
        row_weight: torch.Tensor | None,
        eps: torch.Tensor,
        about: torch.Tensor,
        beta: torch.Tensor,
        *coefficients: Any,
    ) -> None:
        now = weights._replace(beta=beta)
        numbers, gradients = loss_gradient(stack, rows.take(places), eps, about, now, row_weight)
        adam.step(gradients, *coefficients)
        seen.add_(numbers, alpha=places.shape[1])

    if seen.device.type != "cuda":
        return step
    return capture(step, [adam.weights, adam.mean, adam.square, seen])


# torch captures one graph at a time.
_capturing = threading.Lock()


def capture(step: Step, changes: Sequence[torch.Tensor]) -> Step:
    """`step`, which changes these tensors, as CUDA graphs: one launch instead of a hundred.

    There is one graph for whole batches and one for the rest of an epoch; where rests are of
    many sizes, the others are launched as they are.
    """
    graphs: dict[Any, tuple[torch.cuda.CUDAGraph, list[torch.Tensor | None]]] = {}
    device = changes[0].device

    def record(rows: Rows, inputs: Sequence[torch.Tensor | None]) -> torch.cuda.CUDAGraph:
        before = [tensor.clone() for tensor in changes]
        # Libraries choose their kernels and their memory outside of a capture.
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(3):
                step(rows, *inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # On a stream of this device, and whatever other threads do meanwhile.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            step(rows, *inputs)
        for tensor, value in zip(changes, before, strict=True):
            tensor.copy_(value)
        return graph

    def replay(rows: Rows, places: torch.Tensor, *others: torch.Tensor | None) -> None:
        inputs = places, *others
        key = rows.data.data_ptr(), places.shape
        if key not in graphs:
            if len(graphs) == 2:
                return step(rows, *inputs)
            own = [None if tensor is None else tensor.clone() for tensor in inputs]
            with _capturing:
                graphs[key] = record(rows, own), own
        graph, own = graphs[key]
        for tensor, value in zip(own, inputs, strict=True):
            if tensor is not None and value is not None:
                tensor.copy_(value)
        graph.replay()

    return replay


# --- the loop -----------------------------------------------------------------------------


class Members:
    """The models of a stack that are still in training, and what belongs to each."""

    def __init__(
        self,
        stack: Stack,
        judged: Rows,
        plans: Sequence[Plan],
        generators: Sequence[torch.Generator],
    ) -> None:
        self.stack, self.judged = stack, judged
        self.plans, self.generators = list(plans), list(generators)
        self.wide = max(plan.n_components for plan in plans)  # of the stack, to its end
        n_rows, dtype = judged.index.shape[1], judged.data.dtype
        importance = plans[0].n_importance_samples > 1
        n_draws = plans[0].n_importance_samples if importance else N_VALIDATION_DRAWS
        half = draw_noise((-(-n_draws // 2), n_rows), self.wide, 0, plans, generators)
        # Antithetic: eps and -eps.
        self.noise = torch.cat([half, -half], dim=1)[:, :n_draws].to(dtype)
        self.about = draw_about(n_rows, plans[0].n_noise[1], generators).to(dtype)
        self.adam = Adam(
            list(stack.parameters()),
            [plan.weight_decay for plan in plans],
            [plan.max_grad_norm for plan in plans],
            stack.decays(),
        )
        self.chosen: torch.Tensor | None = None  # of the members at the start; None: all
        self._prepare()

    def _prepare(self) -> None:
        self.seen = self.adam.weights.new_zeros(3, len(self.plans))
        # None at all, where there are none: a KL divergence near 0 may be rounded to below it.
        free_bits = self.seen.new_tensor([[plan.free_bits or -math.inf] for plan in self.plans])
        self.weights = Weights(
            self.seen.new_tensor([[plan.beta] for plan in self.plans]),
            free_bits if any(plan.free_bits for plan in self.plans) else None,
            self.plans[0].n_importance_samples > 1,
        )
        self.step = make_step(self.stack, self.adam, self.seen, self.weights)

    def keep(self, places: Sequence[int]) -> None:
        """Go on with the members at these places."""
        chosen = torch.tensor(places, device=self.seen.device)
        self.chosen = chosen if self.chosen is None else self.chosen[chosen]
        self.plans = [self.plans[place] for place in places]
        self.generators = [self.generators[place] for place in places]
        self.judged = self.judged.of(chosen)
        self.noise, self.about = self.noise[chosen], self.about[chosen]
        self.stack.keep(chosen)
        self.adam.keep(chosen)
        self._prepare()

    def progress(self, place: int) -> Progress:
        """What the steps of the member at this place have left, and those to come will draw."""
        return {**self.adam.progress(place), "generator": self.generators[place].get_state()}

    def go_on(self, progress: Sequence[Progress]) -> None:
        """Go on from there, all members."""
        for place, own in enumerate(progress):
            self.adam.go_on(place, own)
            if "weights" in own:
                self.adam.weights[place].copy_(own["weights"])
            self.generators[place].set_state(own["generator"])

    def run_epoch(self, parts: Iterable[tuple[float, Rows]], epoch: int) -> torch.Tensor:
        """One pass over all rows; returns its mean numbers, (3, M), as seen on the way."""
        shares = [1.0 if plan.continues else epoch / plan.max_iter for plan in self.plans]
        self.stack.at(self.seen.new_tensor(shares))
        self.seen.zero_()
        done, n_rows = 0.0, 0
        for share, rows in parts:
            if self.chosen is not None:
                rows = rows.of(self.chosen)
            self._run_part(rows, epoch, done, share)
            done, n_rows = done + share, n_rows + rows.index.shape[1]
        return self.seen / n_rows

    def _run_part(self, rows: Rows, epoch: int, done: float, share: float) -> None:
        """One pass over `rows`, in a new order, which are this share of the epoch."""
        n_rows, size = rows.index.shape[1], self.plans[0].batch_size
        orders = [torch.randperm(n_rows, generator=g, device=g.device) for g in self.generators]
        order = torch.stack(orders)
        places = rows.index.gather(1, order).split(size, dim=1)
        weights: Sequence[torch.Tensor | None] = [None] * len(places)
        if rows.weight is not None:
            weights = rows.weight.gather(1, order).split(size, dim=1)
        beta = self.seen.new_tensor([[plan.beta_in(epoch)] for plan in self.plans])
        times = [epoch + done + share * i * size / n_rows for i in range(len(places))]
        rates = [[plan.rate_at(time) for plan in self.plans] for time in times]
        noise = self._draw([batch.shape[1] for batch in places], rows.data.dtype)
        steps = zip(places, weights, noise, self.adam.coefficients(rates), strict=True)
        for batch, weight, (eps, about), coefficients in steps:
            self.step(rows, batch, weight, eps, about, beta, *coefficients)

    def _draw(
        self, sizes: Sequence[int], dtype: torch.dtype
    ) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """Noise of batches of these sizes, that of many steps at once."""
        plan, size = self.plans[0], self.plans[0].batch_size
        n_draws, (of_draw, redrawn, of_row) = plan.n_importance_samples, plan.n_noise
        # 16 stands for any n_components: a member's draws don't depend on the others'.
        n_values = size * (n_draws * (16 + of_draw) + redrawn + of_row)
        n_steps = max(1, NOISE_VALUES // n_values)
        for first in range(0, len(sizes), n_steps):
            n_rows = sum(sizes[first : first + n_steps])
            shape = n_draws, n_rows
            eps = draw_noise(shape, self.wide, of_draw, self.plans, self.generators)
            about = draw_about(n_rows, redrawn + of_row, self.generators)
            yield from zip(
                eps.to(dtype).split(size, 2), about.to(dtype).split(size, 1), strict=True
            )

    def judge(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean numbers of the judged rows, and what far rows add, (4, M); their losses (M, B)."""
        times = 1 if self.seen.device.type == "cpu" else ON_ACCELERATORS
        at_once = min(times * JUDGED_ROWS, times * JUDGED_VALUES // self.judged.data.shape[-1])
        at_once = at_once * N_VALIDATION_DRAWS // self.noise.shape[1]
        size = max(1, at_once // len(self.plans))
        blocks = zip(
            self.judged.index.split(size, 1),
            self.noise.split(size, 2),
            self.about.split(size, 1),
            strict=True,
        )
        terms = [
            self.stack.vjp(self.judged.take(places), eps, about, by_draw=self.weights.importance)[0]
            for places, eps, about in blocks
        ]
        # All together, since not every loss is a mean of the rows'.
        log_likelihood, kl = (torch.cat(term, dim=2) for term in zip(*terms, strict=True))
        numbers = loss((log_likelihood, kl), self.weights, self.judged.weight).numbers
        losses = row_losses((log_likelihood, kl), self.weights, self.judged.weight)
        far = excess(losses, self.judged.weight).nan_to_num(nan=0.0, posinf=0.0)
        return torch.cat([numbers, far.unsqueeze(0)]), losses


class Simple(NamedTuple):
    """A simple model that the epochs are compared with, by the rows that are held out."""

    rows: torch.Tensor  # (B,), their loss under the model of the training rows
    weights: torch.Tensor  # of the model of all rows, which is kept
    weight: torch.Tensor | None  # (B,), how much each row counts
    group: torch.Tensor | None  # (B,), its group


class Run:
    """The training of one model: what it did, and the weights to keep."""

    def __init__(self, member: int, plan: Plan, weights: torch.Tensor) -> None:
        self.plan, self.record, self.best = plan, Record(member=member), Best(weights)
        self.first = 0  # complete epochs of earlier runs, which this one goes on from
        # Complete epochs, the weights and the progress after them, together, whenever Ctrl-C comes.
        self.last: tuple[int, torch.Tensor, Progress | None] = (0, self.best.weights, None)
        # A simple model that is to be beaten.
        self.simple: Simple | None = None

    def begin(self, loss: float, rows: torch.Tensor) -> None:
        """Take the first weights as the best, if they are those of an earlier run."""
        if self.plan.continues and math.isfinite(loss):
            self.best.judge(loss, rows, 0, self.best.weights, self.plan)

    def progress(self, weights: torch.Tensor, of_steps: Progress) -> Progress:
        """All that is to be known to go on from here."""
        return {
            **of_steps,
            "weights": weights,
            "n_iter": self.record.n_iter,
            "outcome": self.record.outcome,
            "history": {name: list(values) for name, values in self.record.history.items()},
            "best": dict(vars(self.best)),
            "simple": {} if self.simple is None else self.simple._asdict(),
        }

    def go_on(self, progress: Progress) -> None:
        """Go on from there."""
        self.record.n_iter = self.first = n_iter = progress["n_iter"]
        self.record.outcome = progress["outcome"]
        self.record.history = {name: list(own) for name, own in progress["history"].items()}
        vars(self.best).update(progress["best"])
        # Files of before there were losses of rows go on without a simple model.
        if "rows" in progress["simple"]:
            self.simple = Simple(**progress["simple"])
        self.last = (n_iter, progress["weights"], progress)

    def end_epoch(
        self,
        numbers: Sequence[float],
        rows: torch.Tensor,
        weights: torch.Tensor,
        of_steps: Progress | None,
    ) -> None:
        """Note the terms of an epoch and of the judged rows, and the weights after it."""
        if not all(map(math.isfinite, numbers)):
            self.record.outcome = "diverged"
            return
        n_iter = self.last[0] + 1
        self.record.add(numbers, self.plan)
        self.best.judge(numbers[3] - numbers[6], rows, n_iter, weights, self.plan)
        waited = self.plan.n_held_out > 0 and self.best.waited >= self.plan.patience
        if waited or (self.simple is not None and self.plan.n_errors == math.inf):
            self.record.outcome = "converged"  # no epoch to come would be kept
        progress = None if of_steps is None else self.progress(weights, of_steps)
        self.last = (n_iter, weights, progress)
        self.record.weights, self.record.progress = weights, progress

    def goes_on(self) -> bool:
        """Whether there is another epoch; if not, lets go of all others' weights."""
        n_iter, weights, progress = self.last
        if self.record.outcome == "finished" and n_iter < self.plan.max_iter:
            return True
        # A row of a matrix that holds those of the whole stack.
        self.record.weights = weights.clone()
        self.last = (n_iter, self.record.weights, progress)
        return False

    def interrupt(self) -> None:
        """End with the last complete epoch, unless it has ended by itself."""
        record, n_iter = self.record, self.last[0]
        record.interrupted = True
        if record.outcome != "finished" or n_iter == self.plan.max_iter:
            return
        record.outcome, record.n_iter = "interrupted", n_iter
        record.history = {name: values[:n_iter] for name, values in record.history.items()}

    def finish(self) -> Record:
        """The record, with the weights that are kept."""
        record = self.record
        record.progress = self.last[2]
        judged = self.plan.n_held_out > 0 or self.simple is not None
        if (record.outcome != "diverged" and not judged) or record.outcome == "interrupted":
            record.kept, record.weights, _ = self.last
        else:
            record.kept, record.weights = self.best.epoch, self.best.weights
            # Where not even the first epoch left finite weights, nothing stands in for them.
            trained = record.outcome != "diverged" or self.best.epoch
            if trained and self.simple is not None and not self._beats(self.simple):
                record.kept, record.weights, record.is_simple = 0, self.simple.weights, True
        return record

    def _beats(self, simple: Simple) -> bool:
        """Whether the best epoch is better on the held-out rows by more than luck gives."""
        if self.best.rows is None or self.plan.n_errors is None:
            return False
        of_rows = simple.weight, simple.group
        return is_better(simple.rows, self.best.rows, self.plan.n_errors, *of_rows)


def train(
    stack: Stack,
    read: Callable[[int], Iterable[tuple[float, Rows]]],
    judged: Rows,
    plans: Sequence[Plan],
    generators: Sequence[torch.Generator],
    begin_epoch: Callable[[], None],
    end_epoch: Callable[[Sequence[Record]], bool],
    become_simple: Callable[[bool], None] | None = None,
    progress: Sequence[Progress] = (),
    *,
    keep_progress: bool = False,
) -> list[Record]:
    """Minimise reconstruction + beta * KL for each model of a stack.

    Parameters
    ----------
    stack : Stack
        The models, changed in place; those that end leave it.
    read : callable
        Gives the training rows of an epoch, counted from 0, part by part, each with its share of
        the epoch.
    judged : Rows
        Rows to judge the weights by.
    plans : sequence of Plan
        The numbers of each model; batch size and rows held out are the same for all.
    generators : sequence of torch.Generator
        Of each model's permutations and noise, on the device of the rows.
    begin_epoch, end_epoch : callables
        Told of every epoch. `end_epoch` gets the records of the models in training; where
        it returns True, they stop.
    become_simple : callable or None, default=None
        ``become_simple(False)`` makes the models simple ones of the training rows, in place, and
        ``become_simple(True)`` of all rows. The latter is kept unless the best epoch beats the
        former on the judged rows by ``plan.n_errors`` standard errors, if the plan has these.
    progress : sequence of Progress, default=()
        Where earlier runs of the same plans on the same rows had come to: these go on, unless they
        had ended there. Or only what their steps had left: these runs begin with that.
    keep_progress : bool, default=False
        Whether the records have the progress after each epoch.

    Returns
    -------
    list of Record
        With ``kept == 0`` where no epoch left finite weights; with ``is_simple``, too, where the
        best epoch did not beat the simple model by enough.

    Raises
    ------
    KeyboardInterrupt
        Before the first epoch, of this run, was complete.
    """
    members = Members(stack, judged, plans, generators)
    rows = enumerate(zip(plans, members.adam.weights, strict=True))
    runs = [Run(m, plan, weights) for m, (plan, weights) in rows]
    if progress:
        members.go_on(progress)
    if progress and "n_iter" in progress[0]:
        for run, own in zip(runs, progress, strict=True):
            run.go_on(own)
    elif any(plan.continues for plan in plans):
        judgement, judged_rows = members.judge()
        first = (judgement[0] - judgement[3]).tolist()
        for run, value, rows_of in zip(runs, first, judged_rows, strict=True):
            run.begin(value, rows_of)
    elif become_simple is not None and any(plan.n_errors is not None for plan in plans):
        start = members.adam.weights.clone()
        become_simple(False)
        judged_rows = members.judge()[1]
        become_simple(True)
        beaten = zip(runs, judged_rows, members.adam.weights.clone(), strict=True)
        for m, (run, rows_of, weights) in enumerate(beaten):
            of_rows = (None if v is None else v[m] for v in (judged.weight, judged.group))
            if run.plan.n_errors is not None:
                run.simple = Simple(rows_of, weights, *of_rows)
        members.adam.weights.copy_(start)
    held = runs  # in the stack
    live = [run for run in runs if run.goes_on()]  # in training
    idle_share = IDLE_SHARE.get(judged.data.device.type, 0.0)
    try:
        while live:
            epoch = live[0].last[0]
            begin_epoch()
            seen = members.run_epoch(read(epoch), epoch)
            judgement, judged_rows = members.judge()
            # The one place of an epoch that waits for the device.
            numbers = torch.cat([seen, judgement]).T.tolist()
            ends = zip(held, numbers, judged_rows, members.adam.weights.clone(), strict=True)
            for place, (run, row, rows_of, weights) in enumerate(ends):
                if run in live:
                    of_steps = members.progress(place) if keep_progress else None
                    run.end_epoch(row, rows_of, weights, of_steps)
            sound = [run.record for run in live if run.record.outcome != "diverged"]
            if sound and end_epoch(sound):
                for record in sound:
                    if record.outcome == "finished":
                        record.outcome = "stopped"
            live = [run for run in live if run.goes_on()]
            if live and len(live) < (1 - idle_share) * len(held):
                members.keep([held.index(run) for run in live])
                held = live
        return [run.finish() for run in runs]
    except KeyboardInterrupt:
        if not any(run.last[0] > run.first for run in runs):
            raise
        for run in runs:
            run.interrupt()
        return [run.finish() for run in runs]
