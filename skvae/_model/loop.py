"""The training loop: stochastic gradient descent on M models at once.

A fit trains a stack of one model, and a search trains stacks of candidates and folds. Both use
this loop, in which every tensor has a leading M. Each member draws its permutations and its noise
from its own generator, as it would alone. Numbers that differ between members (beta, learning
rate, weight decay, patience) are vectors. Numbers that decide a shape (rows, held-out rows, batch
size) are the same for all. Each member ends by itself and leaves the stack.

The loop knows tensors and numbers only; the stack is an argument. The parameters of a member are
laid end to end in one row of a matrix, and each parameter becomes a view of it. So a step of Adam
is a handful of operations for any number of layers and members, and a copy of the weights is one
`clone`.

An epoch draws its permutation at once and its noise for many steps, and reads numbers from the
device once, at its end. Then the weights are judged on rows and noise that never change. These are
the held-out rows; without any, they are a few of the training rows, which only matter if the loss
stops being finite. On CUDA the step is captured once, as a graph, and replayed.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, Self

import torch

from skvae._backend.team import Team
from skvae._model.adam import Adam
from skvae._model.evidence import excess
from skvae._model.graphs import Step, capture
from skvae._model.member import Plan, Progress, Record, Run, Simple
from skvae._model.noise import draw_noise, draw_row_noise
from skvae._model.objective import Stack as Objective
from skvae._model.objective import Terms, Weights, loss, loss_gradient, row_losses
from skvae._model.rows import Batch, Rows

# Antithetic draws of each held-out row: two pairs, forward only, on a tenth of the rows.
N_VALIDATION_DRAWS = 4
# Most rows of all members, and most values, that are judged at once. Accelerators, where each
# launch costs time, take ON_ACCELERATORS times as many.
JUDGED_ROWS, JUDGED_VALUES = 2**10, 2**17
ON_ACCELERATORS = 64
# Share of the members that may stay in the stack after they have ended: on CUDA each change of a
# stack captures its step anew.
IDLE_SHARE = {"cuda": 0.25}
NOISE_VALUES = 1 << 22  # values of noise that a member draws at once
PROBE_ROWS = 64  # training rows that are judged if none are held out


class Stack(Objective, Protocol):
    """The interface that training needs of M models."""

    def parameters(self) -> Iterable[torch.Tensor]:
        """Return the learned tensors, each (M, ...), in the order of the pullback."""
        ...

    def decays(self) -> Sequence[bool]:
        """Return, for each of the parameters, whether weight decay applies to it."""
        ...

    def keep(self, members: torch.Tensor) -> None:
        """Keep only these models."""
        ...

    def copy(self: Self) -> Self:
        """Return a stack of modules of its own that share all tensors with this one."""
        ...


def make_step(
    stacks: Sequence[Stack], team: Team, adam: Adam, seen: torch.Tensor, weights: Weights
) -> Step:
    """Return a function that makes a training step and adds its numbers (3, M) to `seen`.

    There is one of `stacks` for each share of a batch.
    """

    def step(
        rows: Rows,
        index: torch.Tensor,
        row_weight: torch.Tensor | None,
        eps: torch.Tensor,
        row_noise: torch.Tensor,
        beta: torch.Tensor,
        *coefficients: Any,
    ) -> None:
        now, n_rows = weights._replace(beta=beta), index.shape[1]

        def gradient(share: tuple[Stack, slice]) -> tuple[torch.Tensor, list[torch.Tensor]]:
            stack, own = share
            of_rows = None if row_weight is None else row_weight[:, own]
            batch = Batch(rows.take(index[:, own]), eps[:, :, own], row_noise[:, own], of_rows)
            return loss_gradient(stack, batch, now, n_rows)

        size = -(-n_rows // len(stacks))
        slices = [slice(start, start + size) for start in range(0, n_rows, size)]
        (numbers, gradients), *others = team.map(gradient, list(zip(stacks, slices)))  # noqa: B905
        for more_numbers, more in others:  # always in this order, so that sums round the same
            numbers = numbers + more_numbers
            # In new tensors: autograd may return one tensor for two parameters, or an expanded one.
            gradients = list(torch._foreach_add(gradients, more))
        adam.step(gradients, *coefficients)
        seen.add_(numbers, alpha=n_rows)

    if seen.device.type != "cuda":
        return step
    return capture(step, [adam.weights, adam.mean, adam.square, seen])


class Members:
    """The models of a stack that are still in training, with their plans, noise and optimiser."""

    def __init__(
        self,
        stack: Stack,
        judged: Rows,
        plans: Sequence[Plan],
        generators: Sequence[torch.Generator],
        team: Team,
        n_shares: int,
    ) -> None:
        self.stack, self.judged, self.team, self.n_shares = stack, judged, team, n_shares
        self.plans, self.generators = list(plans), list(generators)
        self.wide = max(plan.n_components for plan in plans)  # it stays when members leave
        n_rows, dtype = judged.index.shape[1], judged.data.dtype
        importance = plans[0].n_importance_samples > 1
        n_draws = plans[0].n_importance_samples if importance else N_VALIDATION_DRAWS
        half = draw_noise((-(-n_draws // 2), n_rows), self.wide, 0, plans, generators)
        # The draws are antithetic: eps and -eps.
        self.noise = torch.cat([half, -half], dim=1)[:, :n_draws].to(dtype)
        self.row_noise = draw_row_noise(n_rows, plans[0].n_noise[1], generators).to(dtype)
        self.adam = Adam(
            list(stack.parameters()),
            [plan.weight_decay for plan in plans],
            [plan.max_grad_norm for plan in plans],
            stack.decays(),
        )
        self.chosen: torch.Tensor | None = None  # indices of the members that remain; None: all
        self._prepare()

    def _prepare(self) -> None:
        self.seen = self.adam.weights.new_zeros(3, len(self.plans))
        # 0 free bits become -inf, since a KL divergence near 0 may be rounded to below 0.
        free_bits = self.seen.new_tensor([[plan.free_bits or -math.inf] for plan in self.plans])
        self.weights = Weights(
            self.seen.new_tensor([[plan.beta] for plan in self.plans]),
            free_bits if any(plan.free_bits for plan in self.plans) else None,
            self.plans[0].n_importance_samples > 1,
        )
        # Threads must not use one module at once, since autograd replaces its tensors meanwhile.
        self.stacks = [self.stack, *(self.stack.copy() for _ in range(self.n_shares - 1))]
        self.step = make_step(self.stacks, self.team, self.adam, self.seen, self.weights)

    def keep(self, indices: Sequence[int]) -> None:
        """Keep only the members of these indices."""
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
        """Return the state of a member's optimiser and of its generator."""
        return {**self.adam.progress(place), "generator": self.generators[place].get_state()}

    def go_on(self, progress: Sequence[Progress]) -> None:
        """Continue all members from states that `progress` returned."""
        for place, own in enumerate(progress):
            self.adam.go_on(place, own)
            if "weights" in own:
                self.adam.weights[place].copy_(own["weights"])
            self.generators[place].set_state(own["generator"])

    def run_epoch(self, parts: Iterable[tuple[float, Rows]], epoch: int) -> torch.Tensor:
        """Train for one pass over all rows; return the mean numbers (3, M) of its steps."""
        progress = [1.0 if plan.continues else epoch / plan.max_iter for plan in self.plans]
        for stack in self.stacks:
            stack.begin_epoch(self.seen.new_tensor(progress))
        self.seen.zero_()
        done, n_rows = 0.0, 0
        for share, rows in parts:
            if self.chosen is not None:
                rows = rows.of(self.chosen)
            self._run_part(rows, epoch, done, share)
            done, n_rows = done + share, n_rows + rows.index.shape[1]
        return self.seen / n_rows

    def _run_part(self, rows: Rows, epoch: int, done: float, share: float) -> None:
        """Train for one pass over `rows`, in a new order; they are this share of the epoch."""
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
        """Yield the noise of batches of these sizes, which is drawn for many steps at once."""
        plan, size = self.plans[0], self.plans[0].batch_size
        n_draws, (of_draw, redrawn, of_row) = plan.n_importance_samples, plan.n_noise
        # 16 stands for any n_components, so that a member's draws don't depend on the others.
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
        """Return mean numbers of the judged rows and their `excess`, (4, M); and losses (M, B)."""
        times = 1 if self.seen.device.type == "cpu" else ON_ACCELERATORS
        at_once = min(times * JUDGED_ROWS, times * JUDGED_VALUES // self.judged.data.shape[-1])
        at_once = at_once * N_VALIDATION_DRAWS // self.noise.shape[1]
        size = max(1, at_once // len(self.plans))
        blocks = list(
            zip(
                self.judged.index.split(size, 1),
                self.noise.split(size, 2),
                self.row_noise.split(size, 1),
                strict=True,
            )
        )

        def judge_own(first: int) -> list[Terms]:
            """Return the terms of every block that a stack takes, beginning with block `first`."""
            return [
                self.stacks[first].vjp(
                    Batch(self.judged.take(index), eps, row_noise),
                    by_draw=self.weights.importance,
                )[0]
                for index, eps, row_noise in blocks[first :: self.n_shares]
            ]

        taken = self.team.map(judge_own, range(self.n_shares))
        terms = [taken[i % self.n_shares][i // self.n_shares] for i in range(len(blocks))]
        # The loss needs all rows at once: with free bits it is no mean of the rows' losses.
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
    team: Team,
    n_shares: int = 1,
    keep_progress: bool = False,
) -> list[Record]:
    """Minimise reconstruction + beta * KL for each model of a stack.

    Parameters
    ----------
    stack : Stack
        The models, changed in place. A model that ends leaves the stack.
    read : callable
        ``read(epoch)`` gives the training rows of an epoch, counted from 0, part by part, each with
        its share of the epoch.
    judged : Rows
        Rows to judge the weights by.
    plans : sequence of Plan
        The numbers of each model; batch size and rows held out are the same for all.
    generators : sequence of torch.Generator
        They draw each model's permutations and noise, on the device of the rows.
    begin_epoch, end_epoch : callables
        Called before and after every epoch. `end_epoch` gets the records of the models in training;
        if it returns True, they stop.
    become_simple : callable or None, default=None
        ``become_simple(False)`` turns the models, in place, into simple models of the training
        rows, and ``become_simple(True)`` into simple models of all rows. The latter are kept unless
        the best epoch beats the former on the judged rows by ``plan.n_errors`` standard errors.
        Models whose plan has no ``n_errors`` are not compared.
    progress : sequence of Progress, default=()
        The states of earlier runs of the same plans on the same rows. This run continues them,
        unless they had ended. A state may hold the optimiser and the generator alone; then a new
        run begins with these.
    team : Team
        The threads that compute.
    n_shares : int, default=1
        Number of shares of a batch, each of which one thread computes. The result depends on this
        number and not on the number of threads. With free bits, it must be 1.
    keep_progress : bool, default=False
        Whether the records have the progress after each epoch.

    Returns
    -------
    list of Record
        ``kept`` is 0 if no epoch left finite weights. If the best epoch did not beat the simple
        model by enough, ``kept`` is 0 and ``is_simple`` is True.

    Raises
    ------
    KeyboardInterrupt
        If it came before the first epoch of this run was complete.
    """
    members = Members(stack, judged, plans, generators, team, n_shares)
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
            # Only this line of an epoch waits for the device.
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
