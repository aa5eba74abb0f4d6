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
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch

from skvae._model.adam import Adam
from skvae._model.evidence import excess
from skvae._model.graphs import Step, capture
from skvae._model.member import Plan, Progress, Record, Run, Simple
from skvae._model.noise import draw_noise, draw_row_noise
from skvae._model.objective import Stack as Objective
from skvae._model.objective import Weights, loss, loss_gradient, row_losses
from skvae._model.rows import Rows

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


def make_step(stack: Stack, adam: Adam, seen: torch.Tensor, weights: Weights) -> Step:
    """A training step, which adds the numbers (3, M) of its rows to `seen`."""

    def step(
        rows: Rows,
        index: torch.Tensor,
        row_weight: torch.Tensor | None,
        eps: torch.Tensor,
        row_noise: torch.Tensor,
        beta: torch.Tensor,
        *coefficients: Any,
    ) -> None:
        now = weights._replace(beta=beta)
        numbers, gradients = loss_gradient(stack, rows.take(index), eps, row_noise, now, row_weight)
        adam.step(gradients, *coefficients)
        seen.add_(numbers, alpha=index.shape[1])

    if seen.device.type != "cuda":
        return step
    return capture(step, [adam.weights, adam.mean, adam.square, seen])


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
        self.row_noise = draw_row_noise(n_rows, plans[0].n_noise[1], generators).to(dtype)
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

    def keep(self, indices: Sequence[int]) -> None:
        """Go on with the members of these indices only."""
        chosen = torch.tensor(indices, device=self.seen.device)
        self.chosen = chosen if self.chosen is None else self.chosen[chosen]
        self.plans = [self.plans[i] for i in indices]
        self.generators = [self.generators[i] for i in indices]
        self.judged = self.judged.of(chosen)
        self.noise, self.row_noise = self.noise[chosen], self.row_noise[chosen]
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
        progress = [1.0 if plan.continues else epoch / plan.max_iter for plan in self.plans]
        self.stack.begin_epoch(self.seen.new_tensor(progress))
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
        batches = rows.index.gather(1, order).split(size, dim=1)
        weights: Sequence[torch.Tensor | None] = [None] * len(batches)
        if rows.weight is not None:
            weights = rows.weight.gather(1, order).split(size, dim=1)
        beta = self.seen.new_tensor([[plan.beta_in(epoch)] for plan in self.plans])
        times = [epoch + done + share * i * size / n_rows for i in range(len(batches))]
        rates = [[plan.rate_at(time) for plan in self.plans] for time in times]
        noise = self._draw([batch.shape[1] for batch in batches], rows.data.dtype)
        steps = zip(batches, weights, noise, self.adam.coefficients(rates), strict=True)
        for batch, weight, (eps, row_noise), coefficients in steps:
            self.step(rows, batch, weight, eps, row_noise, beta, *coefficients)

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
            row_noise = draw_row_noise(n_rows, redrawn + of_row, self.generators)
            yield from zip(
                eps.to(dtype).split(size, 2), row_noise.to(dtype).split(size, 1), strict=True
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
            self.row_noise.split(size, 1),
            strict=True,
        )
        terms = [
            self.stack.vjp(
                self.judged.take(index), eps, row_noise, by_draw=self.weights.importance
            )[0]
            for index, eps, row_noise in blocks
        ]
        # All together, since not every loss is a mean of the rows'.
        log_likelihood, kl = (torch.cat(term, dim=2) for term in zip(*terms, strict=True))
        numbers = loss((log_likelihood, kl), self.weights, self.judged.weight).numbers
        losses = row_losses((log_likelihood, kl), self.weights, self.judged.weight)
        far = excess(losses, self.judged.weight).nan_to_num(nan=0.0, posinf=0.0)
        return torch.cat([numbers, far.unsqueeze(0)]), losses


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
    in_stack = runs
    live = [run for run in runs if run.goes_on()]
    idle_share = IDLE_SHARE.get(judged.data.device.type, 0.0)
    try:
        while live:
            epoch = live[0].last[0]
            begin_epoch()
            seen = members.run_epoch(read(epoch), epoch)
            judgement, judged_rows = members.judge()
            # The one place of an epoch that waits for the device.
            numbers = torch.cat([seen, judgement]).T.tolist()
            ends = zip(in_stack, numbers, judged_rows, members.adam.weights.clone(), strict=True)
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
            if live and len(live) < (1 - idle_share) * len(in_stack):
                members.keep([in_stack.index(run) for run in live])
                in_stack = live
        return [run.finish() for run in runs]
    except KeyboardInterrupt:
        if not any(run.last[0] > run.first for run in runs):
            raise
        for run in runs:
            run.interrupt()
        return [run.finish() for run in runs]
