"""The training loop: stochastic gradient descent on a loss that is given by closures.

Knows tensors and numbers only. The parameters are laid end to end in one vector, of which
each becomes a view, so that a step of Adam is a handful of operations whatever the number
of layers, and a copy of the weights is one `clone`.

An epoch draws its permutation and its noise at once from the generator of the fit, and asks
the device for numbers once, at its end. Then the weights are judged on rows and noise that
never change: those held out, or else a few of the training rows, which only matter if the
loss stops being finite.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from skvae._objective import warm_up

SCHEDULES = ("constant", "cosine")

# Antithetic draws of each held-out row: two pairs, forward only, on a tenth of the rows.
N_VALIDATION_DRAWS = 4
JUDGED_ROWS = 4096  # at once
PROBE_ROWS = 64  # training rows that are judged where none are held out

# Rows (B, D) and noise (S, B, L) -> (2,): reconstruction and KL in nats, summed over rows.
Terms = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# Rows, noise and beta -> the same, and the gradient of the mean reconstruction + beta KL.
Gradient = Callable[
    [torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, Sequence[torch.Tensor]]
]


@dataclass(frozen=True)
class Plan:
    """The numbers of a training run."""

    n_components: int
    n_held_out: int  # rows; 0: train to the end and keep the last weights
    batch_size: int  # rows
    max_iter: int  # epochs
    learning_rate: float
    schedule: str  # one of SCHEDULES
    weight_decay: float
    beta: float
    n_warmup: int  # epochs before beta has its full weight
    patience: int  # epochs
    tol: float  # nats
    constant: float = 0.0  # nats, added to every reconstruction that is reported
    continues: bool = False  # the first weights are those of an earlier run: they may be best

    def beta_in(self, epoch: int) -> float:
        """Weight of the KL divergence in `epoch`, from 0."""
        return self.beta * warm_up(epoch, self.n_warmup)

    def rate_at(self, epoch: float) -> float:
        """Learning rate: constant, or half a cosine from `learning_rate` to 0.

        Loshchilov & Hutter, SGDR (2016), arXiv:1608.03983, eq. 5, without restarts.
        """
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * (1 + math.cos(math.pi * epoch / self.max_iter)) / 2


@dataclass
class Record:
    """What a training run did so far."""

    history: dict[str, list[float]] = field(default_factory=dict)  # a number an epoch
    n_iter: int = 0  # complete epochs
    kept: int = 0  # the epoch whose weights were kept, counted from 1; 0: the first weights
    outcome: str = "finished"  # or "converged", "stopped", "diverged", "interrupted"

    def add(self, numbers: Sequence[float], plan: Plan) -> None:
        """Add a complete epoch: its terms, and those of the held-out rows."""
        epochs = [("", numbers[:2], plan.beta_in(self.n_iter))]
        if plan.n_held_out:
            epochs.append(("validation_", numbers[2:], plan.beta))
        for prefix, (reconstruction, kl), beta in epochs:
            reconstruction += plan.constant
            row = {
                "loss": reconstruction + beta * kl,
                "reconstruction": reconstruction,
                "kl": kl,
                "negative_elbo": reconstruction + kl,
                "beta": beta,
            }
            for name, value in row.items():
                self.history.setdefault(prefix + name, []).append(value)
        self.n_iter += 1


class Adam:
    """Adam with decoupled weight decay, on parameters that become views of one vector.

    Kingma & Ba, Adam: a method for stochastic optimization (2014), arXiv:1412.6980,
    algorithm 1; Loshchilov & Hutter, Decoupled weight decay regularization (2017),
    arXiv:1711.05101, algorithm 2. ``torch.optim.AdamW`` takes the same steps, one parameter
    at a time, and its first use imports a compiler for over a second.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], weight_decay: float = 0.0) -> None:
        self.vector = torch.cat([p.detach().reshape(-1) for p in parameters])
        pieces = self.vector.split([p.numel() for p in parameters])
        for p, piece in zip(parameters, pieces, strict=True):
            p.data = piece.view(p.shape)
        self.mean = torch.zeros_like(self.vector)
        self.square = torch.zeros_like(self.vector)
        self.gradient = torch.empty_like(self.vector)
        self.deviation = torch.empty_like(self.vector)
        self.n_steps = 0
        # Weights of layers decay; biases and variances, which are vectors, do not.
        decay = [torch.full_like(p, weight_decay * (p.ndim > 1)).view(-1) for p in parameters]
        self.decay = torch.cat(decay) if weight_decay else None

    def step(self, gradients: Sequence[torch.Tensor], rate: float) -> None:
        """One update with beta_1 = 0.9, beta_2 = 0.999 and epsilon = 1e-8."""
        self.n_steps += 1
        gradient = torch.cat([g.reshape(-1) for g in gradients], out=self.gradient)
        if self.decay is not None:
            self.vector.addcmul_(self.vector, self.decay, value=-rate)
        self.mean.lerp_(gradient, 0.1)
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        # The bias corrections of both moments are numbers: one factor of rate and epsilon.
        correction = math.sqrt(1 - 0.999**self.n_steps)
        deviation = torch.sqrt(self.square, out=self.deviation).add_(1e-8 * correction)
        rate *= correction / (1 - 0.9**self.n_steps)
        self.vector.addcdiv_(self.mean, deviation, value=-rate)


class Best:
    """The best weights so far, by a loss that is judged after every epoch.

    An epoch after the warm-up beats all of those in it, whose loss had another beta.
    """

    def __init__(self, weights: torch.Tensor) -> None:
        self.weights = weights.clone()
        self.epoch = 0
        self.key = (True, math.inf)
        self.mark = math.inf
        self.waited = 0  # epochs since the loss last fell by more than tol

    def judge(self, loss: float, epoch: int, weights: torch.Tensor, plan: Plan) -> None:
        """Copy `weights` if they are the best after `epoch` epochs."""
        warming = epoch <= plan.n_warmup and plan.n_warmup > 0
        if (warming, loss) < self.key:
            self.weights, self.epoch, self.key = weights.clone(), epoch, (warming, loss)
        if warming:
            return
        self.waited += 1
        if loss < self.mark - plan.tol:
            self.mark, self.waited = loss, 0


def antithetic_noise(
    n_rows: int, n_components: int, generator: torch.Generator, device: torch.device
) -> torch.Tensor:
    """Noise of each row's own in pairs eps, -eps: (N_VALIDATION_DRAWS, n_rows, L)."""
    shape = (N_VALIDATION_DRAWS // 2, n_rows, n_components)
    half = torch.randn(shape, generator=generator, dtype=torch.float32, device=device)
    return torch.cat([half, -half])


def run_epoch(
    gradient: Gradient,
    adam: Adam,
    rows: torch.Tensor,
    plan: Plan,
    generator: torch.Generator,
    epoch: int,
) -> torch.Tensor:
    """One pass over all rows; returns their mean terms, (2,), as seen on the way."""
    n_rows, device = len(rows), rows.device
    order = torch.randperm(n_rows, generator=generator, device=device)
    shape = (1, n_rows, plan.n_components)
    noise = torch.randn(shape, generator=generator, dtype=torch.float32, device=device)
    beta = plan.beta_in(epoch)
    seen = torch.zeros(2, dtype=torch.float32, device=device)
    batches = order.split(plan.batch_size), noise.split(plan.batch_size, dim=1)
    for i, (batch, eps) in enumerate(zip(*batches, strict=True)):
        terms, gradients = gradient(rows.index_select(0, batch), eps, beta)
        adam.step(gradients, plan.rate_at(epoch + i * plan.batch_size / n_rows))
        seen += terms
    return seen / n_rows


def judge_rows(terms: Terms, rows: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Mean terms of `rows`, (2,), under the weights as they are."""
    pairs = zip(rows.split(JUDGED_ROWS), noise.split(JUDGED_ROWS, dim=1), strict=True)
    return torch.stack([terms(some, eps) for some, eps in pairs]).sum(0) / len(rows)


def train(
    terms: Terms,
    gradient: Gradient,
    parameters: Sequence[torch.Tensor],
    rows: torch.Tensor,
    plan: Plan,
    generator: torch.Generator,
    begin_epoch: Callable[[], None],
    end_epoch: Callable[[Record], bool],
) -> Record:
    """Minimise reconstruction + beta * KL; `parameters` end as the weights that are kept.

    Parameters
    ----------
    terms, gradient : callables
        The loss in two parts, and its gradient in the order of `parameters`.
    parameters : sequence of tensors
        What is learned, changed in place.
    rows : tensor of shape (N, D)
        Data, of which `plan.n_held_out` rows are drawn to judge the weights.
    plan : Plan
        The numbers.
    generator : torch.Generator
        Of every permutation and all noise, on the device of the rows.
    begin_epoch, end_epoch : callables
        Told of every epoch; training stops where `end_epoch` returns True.

    Returns
    -------
    Record
        With ``kept == 0`` where no epoch left finite weights.

    Raises
    ------
    KeyboardInterrupt
        Before the first epoch was complete.
    """
    order = torch.randperm(len(rows), generator=generator, device=rows.device)
    held_out, rows = rows[order[: plan.n_held_out]], rows[order[plan.n_held_out :]]
    judged = held_out if plan.n_held_out else rows[:PROBE_ROWS]
    fixed = antithetic_noise(len(judged), plan.n_components, generator, rows.device)
    adam = Adam(parameters, plan.weight_decay)
    best = Best(adam.vector)
    if plan.continues:
        reconstruction, kl = judge_rows(terms, judged, fixed).tolist()
        if math.isfinite(reconstruction + plan.beta * kl):
            best.judge(reconstruction + plan.beta * kl, 0, adam.vector, plan)
    record = Record()
    last = (0, best.weights)  # complete epochs, and a copy of the weights after them
    try:
        for epoch in range(plan.max_iter):
            begin_epoch()
            seen = run_epoch(gradient, adam, rows, plan, generator, epoch)
            # The one place of an epoch that waits for the device.
            numbers = torch.cat([seen, judge_rows(terms, judged, fixed)]).tolist()
            if not all(map(math.isfinite, numbers)):
                record.outcome = "diverged"
                break
            record.add(numbers, plan)
            best.judge(numbers[2] + plan.beta * numbers[3], epoch + 1, adam.vector, plan)
            last = (epoch + 1, adam.vector.clone())
            if end_epoch(record):
                record.outcome = "stopped"
                break
            if plan.n_held_out and best.waited >= plan.patience:
                record.outcome = "converged"
                break
    except KeyboardInterrupt:
        if last[0] == 0:
            raise
        record.outcome = "interrupted"
        record.n_iter = last[0]
        record.history = {name: values[: last[0]] for name, values in record.history.items()}
    if record.outcome == "interrupted" or (record.outcome != "diverged" and not plan.n_held_out):
        record.kept, weights = last
    else:
        record.kept, weights = best.epoch, best.weights
    adam.vector.copy_(weights)
    return record
