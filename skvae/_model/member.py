"""The training of one model of a stack: its plan, its record, and the weights to keep."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from skvae._model.evidence import is_better
from skvae._model.objective import warm_up

SCHEDULES = ("constant", "cosine")


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
    n_cycles: int = 1  # cycles of the warm-up
    n_importance_samples: int = 1
    free_bits: float = 0.0  # nats per component
    # Standard normals besides those of z: for each draw; for each row, in validation, too; and for
    # each row in training alone. See `Architecture.n_noise`.
    n_noise: tuple[int, int, int] = (0, 0, 0)
    max_grad_norm: float = math.inf  # nats per row, for a change of all parameters by 1
    n_held_back: int = 0  # first epochs, in which some parameters are not learned yet
    # Standard errors by which the best epoch must beat a simple model on the judged rows; None:
    # there is no comparison.
    n_errors: float | None = None
    constant: float = 0.0  # nats, added to every reconstruction that is reported
    continues: bool = False  # whether training starts from weights of an earlier run

    def beta_in(self, epoch: int) -> float:
        """Weight of the KL divergence in `epoch`, counted from 0."""
        # The last cycle is longer if the epochs can't be divided equally.
        cycle = min(epoch // self._period, self.n_cycles - 1)
        return self.beta * warm_up(epoch - cycle * self._period, self.n_warmup)

    @property
    def _period(self) -> int:
        return max(1, self.max_iter // self.n_cycles)

    def is_warming(self, epoch: int) -> bool:
        """Whether `epoch`, counted from 1, comes before the end of beta's last warm-up."""
        last = (self.n_cycles - 1) * self._period
        return self.n_warmup > 0 and epoch <= last + self.n_warmup

    def rate_at(self, epoch: float) -> float:
        """Learning rate: constant, or half a cosine from `learning_rate` to 0.

        Loshchilov & Hutter, SGDR (2016), arXiv:1608.03983, eq. 5, without restarts.
        """
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * (1 + math.cos(math.pi * epoch / self.max_iter)) / 2


# The state of the training of one model after an epoch: tensors and numbers by name. Training that
# continues from it, with the same rows and plan, gives what it would give without a stop. Without
# the key "n_iter" it is the state of the optimiser and the generator alone.
Progress = Mapping[str, Any]
OF_STEPS = ("n_steps", "mean", "square", "generator")


@dataclass
class Record:
    """The course of the training of one model so far."""

    history: dict[str, list[float]] = field(default_factory=dict)  # a number an epoch
    member: int = field(default=0, compare=False)  # index of the model in the first stack
    n_iter: int = 0  # complete epochs
    # The epoch whose weights were kept, counted from 1; 0: the first weights, or a simple model's.
    kept: int = 0
    is_simple: bool = False
    outcome: str = "finished"  # or "converged", "stopped", "diverged", "interrupted"
    interrupted: bool = False  # whether Ctrl-C came, though it may have come after the last epoch
    # The parameters, laid end to end.
    weights: torch.Tensor = field(default_factory=lambda: torch.empty(0), compare=False)
    progress: Progress | None = field(default=None, compare=False)  # None: it is not recorded

    def add(self, numbers: Sequence[float], plan: Plan) -> None:
        """Add the terms of a complete epoch, and those of the held-out rows."""
        epochs = [("", numbers[:3], plan.beta_in(self.n_iter))]
        if plan.n_held_out:
            epochs.append(("validation_", numbers[3:6], plan.beta))
        for prefix, (minimised, reconstruction, kl), beta in epochs:
            if plan.n_importance_samples == 1 and not plan.free_bits:
                minimised = reconstruction + beta * kl  # so that it holds to the last digit
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


class Best:
    """The best weights so far, by the loss of the judged rows after every epoch.

    Any epoch after the warm-up beats all epochs of the warm-up, whose loss had another beta.
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
        """Keep a copy of the `weights` after `epoch` epochs if their loss is the best so far."""
        warming = plan.is_warming(epoch)
        if (warming, loss) < self.key:
            self.weights, self.epoch, self.key = weights.clone(), epoch, (warming, loss)
            self.rows = rows.clone()
        if warming:
            return
        self.waited += 1
        if loss < self.mark - plan.tol or epoch <= plan.n_held_back:
            self.mark, self.waited = min(loss, self.mark), 0


class Simple(NamedTuple):
    """A simple model that the epochs are compared with on the held-out rows."""

    rows: torch.Tensor  # (B,), the loss of each row under the simple model of the training rows
    weights: torch.Tensor  # of the simple model of all rows, which is the one to keep
    weight: torch.Tensor | None  # (B,), how much each row counts
    group: torch.Tensor | None  # (B,), its group


class Run:
    """The training of one model: its record, and the weights to keep."""

    def __init__(self, member: int, plan: Plan, weights: torch.Tensor) -> None:
        self.plan, self.record, self.best = plan, Record(member=member), Best(weights)
        self.first = 0  # complete epochs of the earlier runs that this run continues
        # The number of complete epochs, and the weights and the progress after them. They are one
        # tuple, so that they belong together whenever Ctrl-C comes.
        self.last: tuple[int, torch.Tensor, Progress | None] = (0, self.best.weights, None)
        # The simple model that the best epoch must beat.
        self.simple: Simple | None = None

    def begin(self, loss: float, rows: torch.Tensor) -> None:
        """Take the first weights as the best so far, if they come from an earlier run."""
        if self.plan.continues and math.isfinite(loss):
            self.best.judge(loss, rows, 0, self.best.weights, self.plan)

    def progress(self, weights: torch.Tensor, of_steps: Progress) -> Progress:
        """Return the state that training can continue from."""
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
        """Continue from a state that `progress` returned."""
        self.record.n_iter = self.first = n_iter = progress["n_iter"]
        self.record.outcome = progress["outcome"]
        self.record.history = {name: list(own) for name, own in progress["history"].items()}
        vars(self.best).update(progress["best"])
        # Files of earlier versions have no losses of rows. Their runs have no simple model.
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
        """Record the terms of an epoch and of the judged rows, and the weights after it."""
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
        """Return whether there is another epoch; if not, release the weights of other models."""
        n_iter, weights, progress = self.last
        if self.record.outcome == "finished" and n_iter < self.plan.max_iter:
            return True
        # These weights are a row of a matrix with the weights of the whole stack, hence the copy.
        self.record.weights = weights.clone()
        self.last = (n_iter, self.record.weights, progress)
        return False

    def interrupt(self) -> None:
        """End with the last complete epoch, unless training has ended by itself."""
        record, n_iter = self.record, self.last[0]
        record.interrupted = True
        if record.outcome != "finished" or n_iter == self.plan.max_iter:
            return
        record.outcome, record.n_iter = "interrupted", n_iter
        record.history = {name: values[:n_iter] for name, values in record.history.items()}

    def finish(self) -> Record:
        """Return the record, with the weights to keep."""
        record = self.record
        record.progress = self.last[2]
        judged = self.plan.n_held_out > 0 or self.simple is not None
        if (record.outcome != "diverged" and not judged) or record.outcome == "interrupted":
            record.kept, record.weights, _ = self.last
        else:
            record.kept, record.weights = self.best.epoch, self.best.weights
            # If training diverged in its first epoch, the simple model does not take its place.
            trained = record.outcome != "diverged" or self.best.epoch
            if trained and self.simple is not None and not self._beats(self.simple):
                record.kept, record.weights, record.is_simple = 0, self.simple.weights, True
        return record

    def _beats(self, simple: Simple) -> bool:
        """Whether the best epoch beats the simple model on the held-out rows by more than luck."""
        if self.best.rows is None or self.plan.n_errors is None:
            return False
        of_rows = simple.weight, simple.group
        return is_better(simple.rows, self.best.rows, self.plan.n_errors, *of_rows)
