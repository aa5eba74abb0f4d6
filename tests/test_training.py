"""The training loop: what it shows the loss, the steps it takes, the weights it keeps."""

import copy
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from architectures import architecture_of

from skvae._backend import devices
from skvae._backend.team import Team
from skvae._data import statistics
from skvae._fit import execution, loading
from skvae._fit.job import Job
from skvae._model import loop, objective
from skvae._model.adam import Adam
from skvae._model.member import Best, Plan, Record, Run, Simple
from skvae._model.noise import draw_noise, draw_row_noise
from skvae._model.rows import Batch, Rows
from skvae._model.stack import Stack
from skvae._model.state import cast_state, from_state, initial_state
from skvae.likelihoods import Bernoulli
from skvae.networks import MLP

N_COMPONENTS = 2
CPU = torch.device("cpu")


def plan(**numbers):
    """Numbers of a run without anything special, but for these."""
    plain = {
        "n_components": N_COMPONENTS,
        "n_held_out": 0,
        "batch_size": 4,
        "max_iter": 5,
        "learning_rate": 0.01,
        "schedule": "constant",
        "weight_decay": 0.0,
        "beta": 1.0,
        "n_warmup": 0,
        "patience": 100,
        "tol": 0.0,
    }
    return Plan(**plain | numbers)


def rows_of(n_rows, first=0):
    """Rows that are told apart by their first value, their number."""
    numbers = torch.arange(first, first + n_rows)
    return torch.stack([numbers, 100 + numbers], dim=1).float()


class Shown(NamedTuple):
    """What one member was shown in one step, or at one judgement."""

    epoch: int
    rows: torch.Tensor  # (B, D)
    noise: torch.Tensor  # (S, B, .)
    beta: float | None = None
    row_noise: torch.Tensor | None = None  # noise of the rows, (B, N)


class Problem:
    """Losses with a matrix and a vector to learn each, that remember all they were shown.

    `judge` replaces the terms of a member's judged rows by numbers of the epoch, from 1;
    `spoil` changes the terms of its training rows in place, though not their gradients.
    Members are known by their number at the start.
    """

    def __init__(self, judge=None, interrupt=None, spoil=None, dtype=torch.float64, members=(0,)):
        self.members = list(members)  # those still in the stack
        self.learned = []
        for shape in [(2, 2), (2,)]:
            draws = [
                torch.randn(shape, generator=self.generator(member, len(shape)), dtype=dtype)
                for member in members
            ]
            self.learned.append(torch.stack(draws))
        self.judge, self.interrupt, self.spoil = judge, interrupt, spoil
        self.started = 0  # epochs
        self.n_steps = 0
        self.batches = {member: [] for member in members}
        self.judged = {member: [] for member in members}
        self.after = []  # of each complete epoch: the weights of those in the stack, (M, P)
        self.records = []  # of each complete epoch: the records
        self.events = []
        self.progress = []  # fraction of the epochs done, before each

    @staticmethod
    def generator(*numbers):
        return torch.Generator().manual_seed(int.from_bytes(bytes(numbers), "big"))

    def weights(self):
        return torch.cat([p.flatten(1) for p in self.learned], dim=1).clone()

    @staticmethod
    def is_training(eps):
        """Whether this noise is that of a training step, and not of a judgement."""
        return eps.shape[1] != loop.N_VALIDATION_DRAWS

    # --- what training asks of a stack ---

    def parameters(self):
        return self.learned

    def decays(self):
        return [True, False]

    def keep(self, members):
        self.members = [self.members[place] for place in members.tolist()]
        for p in self.learned:
            p.data = p.data[members]

    def begin_epoch(self, progress):
        self.progress.append(progress.tolist())

    def vjp(self, batch, *, by_draw):
        y, eps, row_noise = batch[:3]
        training = self.is_training(eps)
        if training:
            self.n_steps += 1
            if self.interrupt == (self.started, "step"):
                raise KeyboardInterrupt
        with torch.enable_grad():
            learned = [p.detach().requires_grad_() for p in self.learned]
            terms = self.row_terms(learned, y, eps)
        log_likelihood, kl = (term.detach().clone() for term in terms)
        for place, member in enumerate(self.members):
            if training and self.spoil is not None:
                self.spoil(self.started, member, log_likelihood[place], kl[place])
            if training:
                continue
            batch = Shown(
                self.started, y[place].clone(), eps[place].clone(), None, row_noise[place]
            )
            self.judged[member].append(batch)
            if self.judge is not None:
                reconstruction, kl[place] = self.judge(self.started, member)
                log_likelihood[place] = -reconstruction

        def pull(g_log_likelihood, g_kl):
            for place, member in enumerate(self.members):
                # beta is known by its gradient: some digits are lost.
                beta = round(g_kl[place].sum().item(), 12)
                batch = Shown(
                    self.started, y[place].clone(), eps[place].clone(), beta, row_noise[place]
                )
                self.batches[member].append(batch)
            return torch.autograd.grad(terms, learned, [g_log_likelihood, g_kl])

        return (log_likelihood, kl), pull

    def row_terms(self, learned, y, eps):
        """Log-likelihood (M, S, B) and KL (M, 1, B, 1), of rows, noise and parameters."""
        matrix, vector = learned
        z = (0.01 * y.to(matrix.dtype) @ matrix).unsqueeze(1) + eps.to(matrix.dtype)
        log_likelihood = -(z - vector[:, None, None]).square().sum(-1)
        kl = matrix.square().sum((1, 2)) + vector.exp().sum(1)
        return log_likelihood, kl[:, None, None, None].expand(-1, 1, y.shape[1], 1)

    # --- what training tells ---

    def start_epoch(self):
        self.started += 1
        self.events.append(("begin", self.started, self.n_steps))
        if self.interrupt == (self.started, "begin"):
            raise KeyboardInterrupt

    def end_epoch(self, records):
        self.events.append(("end", self.started, self.n_steps))
        self.after.append(self.weights())
        self.records.append(copy.deepcopy(records))
        if self.interrupt == (self.started, "end"):
            raise KeyboardInterrupt
        return False

    # --- the run ---

    def train_all(
        self, rows, plans, seeds, end_epoch=None, cut=None, become_simple=None, **of_rows
    ):
        """Train all members, each on its rows; `cut` makes parts of the training rows."""
        precision = "float64" if self.learned[0].dtype == torch.float64 else "float32"
        units = {"location": np.zeros(2), "scale": np.ones(2)}  # of their own
        arrays = {id(table): table.numpy() for table in rows}
        jobs = []
        for table, numbers, seed in zip(rows, plans, seeds, strict=True):
            places = held_out(len(table), numbers.n_held_out, seed)
            own = arrays[id(table)], len(table), ANY, units, numbers, seed, CPU, precision, places
            jobs.append(Job(*own, **of_rows))
        generators = [devices.generator(seed) for seed in seeds]
        read, judged, _ = loading.read_once(jobs)
        return loop.train(
            self,
            read if cut is None else lambda epoch: cut(*read(epoch)),
            judged,
            plans,
            generators,
            self.start_epoch,
            end_epoch or self.end_epoch,
            become_simple,
            team=Team(CPU, 1),
        )

    def train(self, rows, numbers, seed=0, **params):
        """Train the only member."""
        (record,) = self.train_all([rows], [numbers], [seed], **params)
        return record


def in_parts(n_parts):
    """Makes parts of rows, of unequal sizes, each in a memory of its own, in a new order."""
    g = torch.Generator().manual_seed(0)

    def cut(whole):
        (share, rows), n_rows = whole, whole[1].index.shape[1]
        ends = [round(n_rows * (i / n_parts) ** 1.5) for i in range(n_parts + 1)]
        for i in torch.randperm(n_parts, generator=g).tolist():
            places = rows.index[:, ends[i] : ends[i + 1]]
            data = rows.data[places].flatten(0, 1)
            index = torch.arange(len(data)).view(places.shape)
            yield share * places.shape[1] / n_rows, Rows(data, index)

    return cut


def told(record):
    """All of a record but its weights, which tensors cannot be compared with ``==``."""
    return {name: value for name, value in vars(record).items() if name != "weights"}


ANY = architecture_of(2)


def held_out(n_rows, n_held_out, seed):
    """Places of rows to hold out, in random order."""
    return np.random.default_rng(seed).permutation(n_rows)[:n_held_out]


def numbers_of(rows):
    """Numbers of rows, as `rows_of` made them."""
    return rows[:, 0].int().tolist()


# --- Adam -------------------------------------------------------------------------------------

SHAPES = [(3, 4), (4,), (), (2, 3, 2), (1, 1)]
# Not all matrices, and not matrices alone.
DECAYS = [True, False, False, True, False]


def draws_of(n_models):
    """Draws parameters or gradients, each (M, ...)."""
    g = torch.Generator().manual_seed(0)

    def draw(shape):
        return torch.randn(n_models, *shape, generator=g, dtype=torch.float64)

    return draw


def adam_of_torch(parameters, weight_decay, decays):
    """The optimizer of one model, with decay of what is to decay."""
    groups = [
        {"params": [p], "weight_decay": decay * weight_decay}
        for p, decay in zip(parameters, decays, strict=True)
    ]
    return torch.optim.AdamW(groups) if weight_decay else torch.optim.Adam(parameters)


NEVER = math.inf  # the norm of a gradient beyond which it is clipped


@pytest.mark.parametrize(
    ("decays", "norms"),
    [
        ([0.0], [NEVER]),
        ([0.1], [NEVER]),
        ([0.1], [1.0]),
        ([0.0, 0.0, 0.0, 0.0], [NEVER] * 4),
        ([0.0, 0.1, 0.0, 0.5], [NEVER] * 4),
        ([0.0, 0.1, 0.0, 0.5], [1.0, 0.01, NEVER, 3.0]),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("keep", "by_rows"), [([0, 1, 2, 3], True), ([1, 3], True), ([1, 3], False), ([2], False)]
)
@torch.no_grad()
def test_adam_takes_the_steps_of_torch_and_decays_what_is_to_decay(decays, norms, keep, by_rows):
    n_models = len(decays)
    draw = draws_of(n_models)
    ours = [draw(shape) for shape in SHAPES]
    theirs = [[p[m].clone() for p in ours] for m in range(n_models)]
    oracles = [
        adam_of_torch(parameters, decay, DECAYS)
        for parameters, decay in zip(theirs, decays, strict=True)
    ]
    adam, members = Adam(ours, decays, norms, DECAYS), list(range(n_models))
    assert adam.by_rows  # as on every CPU
    adam.by_rows = by_rows
    for start in range(0, 120, 10):
        if start == 60 and n_models > 1:  # some leave
            members = keep
            adam.keep(torch.tensor(members))
        # Every step has rates of its own: one of members 0 and 3, others of 1 and of 2.
        rates = [[0.1 / (1 + (7 * (m % 3) + step) % 11) for m in members] for step in range(10)]
        for step, coefficients in enumerate(adam.coefficients(rates)):
            # Gradients of many sizes, some of them 0.
            gradients = [10 ** ((start + step) % 9 - 6) * draw(shape) for shape in SHAPES]
            if step % 5 == 0:
                gradients[0].zero_()
            adam.step([gradient[members] for gradient in gradients], *coefficients)
            for m, rate in zip(members, rates[step], strict=True):
                for p, gradient in zip(theirs[m], gradients, strict=True):
                    p.grad = gradient[m].clone()
                if math.isfinite(norms[m]):
                    torch.nn.utils.clip_grad_norm_(theirs[m], norms[m])
                for group in oracles[m].param_groups:
                    group["lr"] = rate
                oracles[m].step()
    expected = [torch.stack([theirs[m][i] for m in members]) for i in range(len(SHAPES))]
    # Rounding of 120 steps.
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("n_models", [1, 3])
@torch.no_grad()
def test_adam_reads_gradients_that_are_views_of_other_tensors(n_models):
    # A sum hands its gradient to all elements as one number; a stack of two, every other one.
    steps = []
    for make in (lambda g: g, lambda g: g.clone(memory_format=torch.contiguous_format)):
        parameters = [torch.ones(n_models, 4), torch.ones(n_models, 3)]
        adam = Adam(parameters, [0.0] * n_models, [NEVER] * n_models)
        for number in range(1, 4):
            every_other = (number * torch.arange(6.0 * n_models)).view(n_models, 6)[:, ::2]
            gradients = [torch.full((n_models, 1), 2.0).expand(-1, 4), every_other]
            assert not any(g.is_contiguous() for g in gradients)
            ((rate, *more),) = adam.coefficients([[0.1] * n_models])
            adam.step([make(g) for g in gradients], rate, *more)
        steps.append(adam.weights.clone())
    assert torch.equal(*steps)
    assert (steps[0] != 1).float().mean() > 0.8


@pytest.mark.parametrize(("n_models", "keep"), [(1, None), (3, None), (4, [1, 2])])
@torch.no_grad()
def test_adam_leaves_the_parameters_themselves_with_their_values_as_views_of_one_matrix(
    n_models, keep
):
    draw = draws_of(n_models)
    parameters = [draw(shape).requires_grad_() for shape in SHAPES]
    values, same = [p.detach().clone() for p in parameters], list(parameters)
    adam = Adam(parameters, [0.1] * n_models, [1.0] * n_models, DECAYS)
    if keep is not None:
        adam.keep(torch.tensor(keep))
        values, n_models = [value[keep] for value in values], len(keep)
    assert len(adam.weights) == n_models
    for p, value, before in zip(parameters, values, same, strict=True):
        assert p is before
        assert torch.equal(p, value)
        assert p.requires_grad
    adam.weights.copy_(torch.arange(n_models)[:, None])
    for m in range(n_models):
        assert all((p[m] == m).all() for p in parameters)


# --- Plan -------------------------------------------------------------------------------------


def test_rate_of_the_cosine_schedule_equals_that_of_torch():
    cosine = plan(schedule="cosine", learning_rate=0.3, max_iter=50)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for epoch in range(50):
        assert cosine.rate_at(epoch) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-10)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("max_iter", "n_cycles", "n_warmup", "expected"),
    [
        (6, 1, 0, [8, 8, 8, 8, 8, 8]),
        (6, 1, 3, [2, 4, 6, 8, 8, 8]),
        (6, 2, 1, [4, 8, 8, 4, 8, 8]),
        (8, 2, 3, [2, 4, 6, 8, 2, 4, 6, 8]),
        (8, 3, 1, [4, 8, 4, 8, 4, 8, 8, 8]),  # the last cycle is longer
        (5, 3, 0, [8, 8, 8, 8, 8]),
        (2, 5, 0, [8, 8]),
    ],
)
def test_beta_rises_in_every_cycle_and_stays_after_the_last(max_iter, n_cycles, n_warmup, expected):
    cyclical = plan(beta=8.0, max_iter=max_iter, n_cycles=n_cycles, n_warmup=n_warmup)
    betas = [cyclical.beta_in(epoch) for epoch in range(max_iter)]
    assert betas == expected
    # The warm-up is over once beta has its full weight for good: counted from 1.
    still = [any(beta < 8 for beta in betas[epoch:]) for epoch in range(max_iter)]
    assert [cyclical.is_warming(epoch + 1) for epoch in range(max_iter)] == still


# --- what the loss is shown -------------------------------------------------------------------


@pytest.mark.parametrize("n_held_out", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 11, 14])
@pytest.mark.parametrize("n_parts", [1, 3])
def test_every_training_row_is_used_exactly_once_an_epoch(n_held_out, batch_size, n_parts):
    n_training, sizes = 14 - n_held_out, {}
    problem, rows, in_some = Problem(), rows_of(14), in_parts(n_parts)
    before = rows.clone()

    def counted(whole):
        for share, part in in_some(whole):
            n_rows = part.index.shape[1]
            # Each part ends with a ragged batch of its own.
            batches = [min(batch_size, n_rows - i) for i in range(0, n_rows, batch_size)]
            sizes.setdefault(problem.started, []).extend(batches)
            assert share == pytest.approx(n_rows / n_training)
            yield share, part

    numbers = plan(n_held_out=n_held_out, batch_size=min(batch_size, n_training), max_iter=4)
    problem.train(rows, numbers, cut=counted)
    assert torch.equal(rows, before)
    out = numbers_of(problem.judged[0][0].rows) if n_held_out else []
    assert len(set(out)) == n_held_out
    orders = []
    for epoch in range(1, 5):
        batches = [batch.rows for batch in problem.batches[0] if batch.epoch == epoch]
        assert [len(batch) for batch in batches] == sizes[epoch]
        used = numbers_of(torch.cat(batches))
        assert sorted(used + out) == list(range(14))
        orders.append(tuple(used))
    assert len(set(orders)) == 4


@pytest.mark.parametrize("n_rows", [100, 101, 119])
@pytest.mark.parametrize("n_held_out", [0, 7, 10])
@pytest.mark.parametrize("n_block", [1, 4, 50])
def test_every_row_that_is_read_in_parts_is_used_exactly_once_an_epoch(
    monkeypatch, n_rows, n_held_out, n_block
):
    monkeypatch.setattr(loading, "LEAST_BLOCKS", 4)
    monkeypatch.setattr(loading, "READ_VALUES", 2 * n_block)
    units = {"location": np.zeros(2), "scale": np.ones(2)}
    data, numbers = rows_of(n_rows).numpy(), plan(n_held_out=n_held_out)
    progress = []
    own = data, 20, ANY, units, numbers, 0, CPU, "float32", held_out(n_rows, n_held_out, 0)
    read, judged, _ = loading.read_in_parts(Job(*own), lambda *now: progress.append(now))
    out = numbers_of(judged.take(judged.index)[0]) if n_held_out else []
    assert len(set(out)) == n_held_out
    orders = []
    for epoch in range(3):
        seen, total = [], 0.0
        for share, rows in read(epoch):
            assert rows.index.shape[1] <= 20
            part = numbers_of(rows.take(rows.index)[0])
            assert share == pytest.approx(len(part) / (n_rows - n_held_out))
            seen, total = seen + part, total + share
        assert sorted(seen + out) == list(range(n_rows))
        assert total == pytest.approx(1)
        assert progress[-1] == (epoch, pytest.approx(1))
        orders.append(tuple(seen))
    assert len(set(orders)) == 3


@pytest.mark.parametrize("n_held_out", [0, 6])
@pytest.mark.parametrize("n_probe", [3, 100])
def test_weights_are_judged_on_the_same_rows_and_noise_after_every_epoch(
    monkeypatch, n_held_out, n_probe
):
    monkeypatch.setattr(loop, "PROBE_ROWS", n_probe)
    problem = Problem()
    problem.train(rows_of(20), plan(n_held_out=n_held_out, max_iter=4))
    (_, rows, noise, *_), *others = problem.judged[0]
    assert [batch.epoch for batch in problem.judged[0]] == [1, 2, 3, 4]
    assert len(rows) == (n_held_out or min(n_probe, 20))
    for same in others:
        assert torch.equal(rows, same.rows)
        assert torch.equal(noise, same.noise)
    # Of each row its own, in pairs eps and -eps.
    assert noise.shape == (loop.N_VALIDATION_DRAWS, len(rows), N_COMPONENTS)
    rising = noise.sort(dim=0).values
    assert torch.equal(rising, -rising.flip(0))
    assert len(noise.unique()) == noise.numel()


def test_rows_and_units_have_noise_of_their_own_in_training_and_rows_alone_when_judged():
    problem = Problem()
    numbers = plan(n_noise=(3, 2, 4), batch_size=64, max_iter=3, n_held_out=50)
    problem.row_terms = lambda learned, y, eps: Problem.row_terms(
        problem, learned, y, eps[..., :N_COMPONENTS]
    )
    problem.train(rows_of(550), numbers)
    noise = torch.cat([batch.noise for batch in problem.batches[0]], dim=1)
    row_noise = torch.cat([batch.row_noise for batch in problem.batches[0]])
    assert noise.shape == (1, 1500, N_COMPONENTS + 3)
    assert row_noise.shape == (1500, 2 + 4)
    # New in every epoch; of so many numbers in float32, a few are the same by chance.
    together = torch.cat([noise[0], row_noise], dim=1)
    assert len(together.unique()) > 0.999 * together.numel()
    for some in (noise, row_noise):  # five standard errors of standard normals
        assert some.mean().abs() < 5 / math.sqrt(some.numel())
        assert (some.var() - 1).abs() < 5 * math.sqrt(2 / some.numel())
    (_, _, noise, _, row_noise), *others = problem.judged[0]
    assert noise.shape == (loop.N_VALIDATION_DRAWS, 50, N_COMPONENTS)  # no unit is dropped
    assert row_noise.shape == (50, 2)  # but rows are drawn anew, the same way after every epoch
    assert all(torch.equal(row_noise, same.row_noise) for same in others)


@pytest.mark.parametrize("n_values", [1, 300, 1 << 22])
def test_noise_is_new_for_every_row_however_much_of_it_is_drawn_at_once(monkeypatch, n_values):
    monkeypatch.setattr(loop, "NOISE_VALUES", n_values)
    problem = Problem()
    problem.train(rows_of(30), plan(n_noise=(0, 2, 0), batch_size=4, max_iter=3))
    for batches in (
        torch.cat([batch.noise for batch in problem.batches[0]], dim=1),
        torch.cat([batch.row_noise for batch in problem.batches[0]]),
    ):
        assert batches.shape[-2:] == (90, 2)
        assert len(batches.unique()) == batches.numel()


def test_every_epoch_is_announced_before_its_first_step_and_ended_with_its_record_after_its_last():
    problem = Problem()
    problem.train(rows_of(10), plan(batch_size=4, max_iter=2))
    assert problem.events == [("begin", 1, 0), ("end", 1, 3), ("begin", 2, 3), ("end", 2, 6)]
    for n_iter, ((record,), weights) in enumerate(zip(problem.records, problem.after, strict=True)):
        assert record.n_iter == len(record.history["loss"]) == n_iter + 1
        assert torch.equal(record.weights, weights[0])


# --- the steps --------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("n_held_out", [0, 3])
@pytest.mark.parametrize("n_parts", [1, 3])
def test_training_equals_a_loop_of_torch_over_the_same_batches(schedule, n_held_out, n_parts):
    problem, oracle = Problem(), Problem()
    numbers = plan(
        schedule=schedule,
        n_held_out=n_held_out,
        learning_rate=0.05,
        weight_decay=0.1,
        beta=0.5,
        n_warmup=2,
        max_iter=6,
    )
    problem.train(rows_of(17), numbers, cut=None if n_parts == 1 else in_parts(n_parts))

    matrix, vector = (p[0].requires_grad_() for p in oracle.learned)
    adam = adam_of_torch([matrix, vector], 0.1, [True, False])
    n_training, done = 17 - n_held_out, 0
    for epoch, rows, eps, *_ in problem.batches[0]:
        share = (done - (epoch - 1) * n_training) / n_training
        for group in adam.param_groups:
            cosine = (1 + math.cos(math.pi * (epoch - 1 + share) / 6)) / 2
            group["lr"] = 0.05 * (cosine if schedule == "cosine" else 1)
        log_likelihood, kl = oracle.row_terms([matrix[None], vector[None]], rows[None], eps[None])
        adam.zero_grad()
        (0.5 * min(1, epoch / 3) * kl.mean() - log_likelihood.mean()).backward()
        adam.step()
        done += len(rows)
    assert done == 6 * n_training
    expected = torch.cat([matrix.detach().flatten(), vector.detach()])
    torch.testing.assert_close(problem.after[-1][0], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("n_held_out", [0, 4])
def test_training_is_decided_by_its_generator_and_moves_no_other(n_held_out):
    torch.rand(1)  # so that no seed gives the state
    before = torch.get_rng_state()
    ends = [Problem().train(rows_of(14), plan(n_held_out=n_held_out), seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert told(ends[0]) == told(ends[1])
    assert torch.equal(ends[0].weights, ends[1].weights)
    assert not torch.equal(ends[0].weights, ends[2].weights)


# --- the record -------------------------------------------------------------------------------


class Counting(Problem):
    """Terms of a row that are its number and 2, and nothing to learn."""

    def row_terms(self, learned, y, eps):
        nothing = sum(0 * p.sum() for p in learned)
        log_likelihood = -y[..., 0].unsqueeze(1).expand(eps.shape[:3])
        return log_likelihood + nothing, torch.full_like(y[:, None, :, :1], 2.0) + nothing


@pytest.mark.parametrize("n_parts", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 10])
def test_record_weighs_the_batches_of_an_epoch_by_their_rows(batch_size, n_parts):
    cut = None if n_parts == 1 else in_parts(n_parts)
    record = Counting().train(rows_of(10), plan(batch_size=batch_size, max_iter=3), cut=cut)
    # Sums in float64.
    assert record.history["reconstruction"] == pytest.approx([4.5] * 3, rel=1e-13)
    assert record.history["kl"] == pytest.approx([2.0] * 3, rel=1e-13)


@pytest.mark.parametrize("n_at_once", [1, 3, 4, 100])
def test_record_weighs_the_parts_of_the_held_out_rows_by_their_rows(monkeypatch, n_at_once):
    whole = Problem()
    expected = whole.train(rows_of(14), plan(n_held_out=10))
    monkeypatch.setattr(loop, "JUDGED_ROWS", n_at_once)
    problem = Problem()
    record = problem.train(rows_of(14), plan(n_held_out=10))
    for name, values in expected.history.items():
        assert record.history[name] == pytest.approx(values, rel=1e-12)
    assert max(len(batch.rows) for batch in problem.judged[0]) == min(n_at_once, 10)


@pytest.mark.parametrize("n_held_out", [0, 4])
def test_record_holds_the_terms_of_every_epoch_and_what_they_add_up_to(n_held_out):
    numbers = plan(n_held_out=n_held_out, beta=3.0, n_warmup=2, max_iter=4, constant=10.0)
    problem, without = Problem(), Problem()
    record = problem.train(rows_of(12), numbers)
    plain = without.train(rows_of(12), plan(**vars(numbers) | {"constant": 0.0}))

    names = ["loss", "reconstruction", "kl", "negative_elbo", "beta"]
    prefixes = ["", "validation_"] if n_held_out else [""]
    assert list(record.history) == [prefix + name for prefix in prefixes for name in names]
    for prefix in prefixes:
        columns = [record.history[prefix + name] for name in names]
        assert [len(values) for values in columns] == [4] * 5
        for loss, reconstruction, kl, negative_elbo, beta in zip(*columns, strict=True):
            assert loss == pytest.approx(reconstruction + beta * kl, rel=1e-12)
            assert negative_elbo == pytest.approx(reconstruction + kl, rel=1e-12)
        moved = [value + 10 for value in plain.history[prefix + "reconstruction"]]
        assert record.history[prefix + "reconstruction"] == pytest.approx(moved, rel=1e-12)
    assert record.history["beta"] == [1.0, 2.0, 3.0, 3.0]
    if n_held_out:
        assert record.history["validation_beta"] == [3.0] * 4


def test_record_of_held_out_rows_is_that_of_the_weights_after_the_epoch():
    problem = Problem()
    record = problem.train(rows_of(12), plan(n_held_out=4, max_iter=3))
    _, rows, noise, *_ = problem.judged[0][0]
    for epoch, weights in enumerate(problem.after):
        learned = weights[:, :4].view(1, 2, 2), weights[:, 4:]
        log_likelihood, kl = problem.row_terms(learned, rows[None], noise[None])
        seen = [record.history[f"validation_{name}"][epoch] for name in ("reconstruction", "kl")]
        assert seen == pytest.approx([-log_likelihood.mean().item(), kl.mean().item()], rel=1e-12)


# --- the weights that are kept ----------------------------------------------------------------


def judged_by(losses):
    """Terms of the judged rows, by epoch from 1: a reconstruction, and KL 0."""
    return lambda epoch, member: (losses[epoch - 1], 0.0)


BETA_2 = [(2.0, 2.0), (4.0, 0.5), (1.0, 4.0)]  # with 1 the first were the best, with 0 the third


@pytest.mark.parametrize(
    ("terms", "numbers", "outcome", "n_iter", "kept"),
    [
        # The best epoch on held-out rows, judged at the final beta.
        ([5, 4, 2, 3, 4, 6], {}, "finished", 6, 3),
        (BETA_2, {"beta": 2.0}, "finished", 3, 2),
        # Without held-out rows, the last epoch.
        ([5, 1, 2, 3, 4], {"n_held_out": 0, "patience": 1}, "finished", 5, 5),
        # Patience runs from the epoch after the smallest loss.
        ([5, 4, 4, 4, 4, 4, 4], {"patience": 2}, "converged", 4, 2),
        ([5, 4, 5, 3, 5, 5, 5], {"patience": 2}, "converged", 6, 4),
        # A fall by no more than tol isn't waited for, but its weights are the best.
        ([5, 4.95, 4.9, 4.85, 4.84], {"patience": 3, "tol": 0.2}, "converged", 4, 4),
        # Small falls add up.
        ([5, 4.9, 4.7, 4.6, 4.4, 4.4, 4.4], {"patience": 2, "tol": 0.2}, "converged", 7, 5),
        # Nothing ends before the warm-up has, and no epoch of it is the best.
        ([1, 2, 3, 5, 5, 5, 5], {"patience": 2, "n_warmup": 3}, "converged", 6, 4),
        ([3, 1, 7, 6, 8], {"n_warmup": 2}, "finished", 5, 4),
    ],
)
def test_training_keeps_the_best_epoch_and_ends_after_patience(
    terms, numbers, outcome, n_iter, kept
):
    terms = [own if isinstance(own, tuple) else (float(own), 0.0) for own in terms]
    problem = Problem(lambda epoch, member: terms[epoch - 1])
    numbers = plan(**{"n_held_out": 4, "max_iter": len(terms)} | numbers)
    record = problem.train(rows_of(14), numbers)
    assert (record.outcome, record.n_iter, record.kept) == (outcome, n_iter, kept)
    assert problem.started == n_iter
    assert torch.equal(record.weights, problem.after[kept - 1][0])
    assert len({tuple(weights[0].tolist()) for weights in problem.after}) == n_iter
    if numbers.n_held_out:
        expected = [reconstruction + numbers.beta * kl for reconstruction, kl in terms[:n_iter]]
        assert record.history["validation_loss"] == expected


@pytest.mark.parametrize(
    ("first", "terms", "numbers", "kept"),
    [
        # The weights that training began with are kept where no epoch is better.
        (1, [5, 2, 3, 4], {}, 0),
        (1, [2, 3, 4], {}, 0),
        (4, [5, 2, 3, 4], {}, 2),
        # The warm-up begins anew: an epoch after it is kept.
        (1, [5, 2, 3, 4], {"n_warmup": 2}, 3),
        # They are judged at the final beta, and never kept with a loss that is not finite.
        ((2.0, 2.0), [(4.0, 0.5)], {"beta": 2.0}, 1),
        (math.nan, [5, 2, 3], {}, 2),
        (math.inf, [5, 2, 3], {}, 2),
    ],
)
def test_training_that_continues_may_keep_the_weights_it_began_with(first, terms, numbers, kept):
    terms = [own if isinstance(own, tuple) else (float(own), 0.0) for own in (first, *terms)]
    problem = Problem(lambda epoch, member: terms[epoch])
    start = problem.weights()[0]
    numbers = plan(n_held_out=4, max_iter=len(terms) - 1, continues=True, **numbers)
    record = problem.train(rows_of(14), numbers)
    assert (record.outcome, record.n_iter, record.kept) == ("finished", len(terms) - 1, kept)
    assert {len(values) for values in record.history.values()} == {record.n_iter}
    assert torch.equal(record.weights, problem.after[kept - 1][0] if kept else start)


@pytest.mark.parametrize(("n_held_out", "kept"), [(4, 2), (0, 3)])
def test_training_stops_where_end_epoch_returns_true(n_held_out, kept):
    problem = Problem(judged_by([3.0, 1.0, 2.0, 0.5, 0.5]))

    def end_epoch(records):
        problem.end_epoch(records)
        return records[0].n_iter == 3

    record = problem.train(rows_of(14), plan(n_held_out=n_held_out), end_epoch=end_epoch)
    assert (record.outcome, record.n_iter, record.kept) == ("stopped", 3, kept)
    assert problem.started == 3
    assert torch.equal(record.weights, problem.after[kept - 1][0])


# --- divergence -------------------------------------------------------------------------------


def spoiled(epoch, index, value, member=0):
    """Terms of a member's training batches that are no finite number from an epoch on."""

    def spoil(now, who, *terms):
        if now >= epoch and who == member:
            terms[index].fill_(-value if index == 0 else value)

    return spoil


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("n_held_out", [0, 4])
@pytest.mark.parametrize("where", ["training", "judging"])
def test_divergence_keeps_the_best_weights_whose_loss_was_finite(value, index, n_held_out, where):
    losses = [5.0, 3.0, 4.0, 9.0]

    def judge(epoch, member):
        terms = [losses[epoch - 1], 0.0]
        if where == "judging" and epoch == 4:
            terms[index] = value
        return terms

    spoil = spoiled(4, index, value) if where == "training" else None
    problem = Problem(judge, spoil=spoil)
    record = problem.train(rows_of(14), plan(n_held_out=n_held_out, max_iter=10))
    assert (record.outcome, record.n_iter, record.kept) == ("diverged", 3, 2)
    assert all(len(values) == 3 for values in record.history.values())
    assert len(problem.after) == 3  # the epoch that diverged is not ended
    assert torch.equal(record.weights, problem.after[1][0])


@pytest.mark.parametrize("continues", [False, True])
@pytest.mark.parametrize("n_held_out", [0, 4])
def test_divergence_in_the_first_epoch_keeps_nothing_but_the_first_weights(n_held_out, continues):
    problem = Problem(spoil=spoiled(1, 0, math.nan))
    first = problem.weights()[0]
    record = problem.train(rows_of(14), plan(n_held_out=n_held_out, continues=continues))
    assert (record.outcome, record.n_iter, record.kept) == ("diverged", 0, 0)
    if not continues:
        assert told(record) == told(Record(member=record.member, outcome="diverged"))
    assert torch.equal(record.weights, first)


# --- interruption -----------------------------------------------------------------------------


@pytest.mark.parametrize("n_held_out", [0, 4])
@pytest.mark.parametrize(("moment", "complete"), [("begin", 2), ("step", 2), ("end", 3)])
def test_interruption_keeps_the_last_complete_epoch(n_held_out, moment, complete):
    problem = Problem(judged_by([1.0, 2.0, 3.0, 4.0, 5.0]), interrupt=(3, moment))
    record = problem.train(rows_of(14), plan(n_held_out=n_held_out))
    assert (record.outcome, record.n_iter, record.kept) == ("interrupted", complete, complete)
    assert all(len(values) == complete for values in record.history.values())
    assert torch.equal(record.weights, problem.after[complete - 1][0])


@pytest.mark.parametrize("moment", ["begin", "step"])
@pytest.mark.parametrize(("n_members", "n_held_out"), [(1, 0), (1, 4), (3, 0)])
def test_interruption_before_the_first_epoch_is_complete_is_raised_again(
    moment, n_members, n_held_out
):
    problem = Problem(interrupt=(1, moment), members=range(n_members))
    plans = [plan(n_held_out=n_held_out)] * n_members
    with pytest.raises(KeyboardInterrupt):
        problem.train_all([rows_of(14)] * n_members, plans, range(n_members))


def test_another_exception_goes_through():
    def end_epoch(records):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        Problem().train(rows_of(14), plan(), end_epoch=end_epoch)


# --- many members -----------------------------------------------------------------------------

# Rounding of some hundred steps in float64, whose products are summed in another order.
ROUNDING = {"rtol": 1e-10, "atol": 1e-11}


def assert_same_run(record, alone):
    """Two runs told the same and kept the same, but for rounding."""
    assert (record.outcome, record.n_iter, record.kept) == (
        alone.outcome,
        alone.n_iter,
        alone.kept,
    )
    assert list(record.history) == list(alone.history)
    for name, values in alone.history.items():
        assert record.history[name] == pytest.approx(values, rel=1e-10, abs=1e-11), name
    torch.testing.assert_close(record.weights, alone.weights, **ROUNDING)


def assert_same_shown(problem, alone, member):
    """A member was shown the same rows, noise and beta as alone: none after its end."""
    for told_to in ("batches", "judged"):
        together, by_itself = getattr(problem, told_to)[member], getattr(alone, told_to)[member]
        assert len(together) == len(by_itself)
        for batch, same in zip(together, by_itself, strict=True):
            assert (batch.epoch, batch.beta) == (same.epoch, same.beta)
            assert torch.equal(batch.rows, same.rows)
            assert torch.equal(batch.noise, same.noise)
            assert torch.equal(batch.row_noise, same.row_noise)


# Of each member, what is its own besides its seed.
MIXED = [
    {"beta": 0.5, "max_iter": 9},
    {"beta": 4.0, "n_warmup": 3, "max_iter": 9, "weight_decay": 0.3},
    {"learning_rate": 0.2, "schedule": "cosine", "max_iter": 6},
    {"learning_rate": 0.05, "max_iter": 1},
    {"schedule": "cosine", "max_iter": 12, "n_warmup": 5, "beta": 2.0, "max_grad_norm": 0.5},
    {"learning_rate": 0.3, "patience": 2, "tol": 0.5, "max_iter": 12},
    {"learning_rate": 0.1, "patience": 1, "tol": 5.0, "max_iter": 12, "constant": 7.0},
]


@pytest.mark.parametrize("n_held_out", [0, 4])
@pytest.mark.parametrize("n_tables", [1, 3])
@pytest.mark.parametrize("n_parts", [1, 3])
def test_every_member_trains_as_it_does_alone(n_held_out, n_tables, n_parts):
    plans = [plan(n_held_out=n_held_out, **numbers) for numbers in MIXED]
    tables = [rows_of(14, first=50 * i) for i in range(n_tables)]
    rows = [tables[m % n_tables] for m in range(len(MIXED))]
    seeds = [5, 5, 6, 7, 8, 9, 9]

    def cut():
        """Parts of the same places for all members."""
        if n_parts == 1:
            return None
        return lambda whole: (
            (whole[0] * part.shape[1] / whole[1].index.shape[1], Rows(whole[1].data, part))
            for part in whole[1].index.split(4, dim=1)
        )

    problem = Problem(members=range(len(MIXED)))
    records = problem.train_all(rows, plans, seeds, cut=cut())

    for m, record in enumerate(records):
        alone = Problem(members=[m])
        (expected,) = alone.train_all([rows[m]], [plans[m]], [seeds[m]], cut=cut())
        assert_same_run(record, expected)
        assert_same_shown(problem, alone, m)
    outcomes = {record.outcome for record in records}
    assert outcomes == ({"finished", "converged"} if n_held_out else {"finished"})
    assert len({record.n_iter for record in records}) > 3


def all_spoiled(now, member, *terms):
    terms[0].fill_(math.nan)


class Scenario(NamedTuple):
    """What happens to members, and how each of them ends."""

    numbers: list  # of each member's plan
    outcomes: list
    n_iters: list
    spoil: object = None
    interrupt: tuple | None = None
    stop: int | None = None  # the epoch after which `end_epoch` returns True


BETAS = [{"beta": beta} for beta in (0.5, 1.0, 2.0)]
LENGTHS = [{"max_iter": n, "beta": n} for n in (5, 2, 5, 7)]
SCENARIOS = [
    *(
        Scenario(
            BETAS,
            ["finished", "diverged", "finished"],
            [5, epoch - 1, 5],
            spoiled(epoch, 0, value, member=1),
        )
        for epoch in (1, 3)
        for value in (math.nan, math.inf)
    ),
    Scenario(BETAS, ["diverged"] * 3, [0] * 3, all_spoiled),
    Scenario(
        LENGTHS,
        ["stopped", "finished", "diverged", "stopped"],
        [4, 2, 2, 4],
        spoiled(3, 1, math.inf, member=2),
        stop=4,
    ),
    *(
        Scenario(
            LENGTHS,
            ["interrupted", "finished", "diverged", "interrupted"],
            [complete, 2, 2, complete],
            spoiled(3, 0, math.nan, member=2),
            (4, moment),
        )
        for moment, complete in [("begin", 3), ("step", 3), ("end", 4)]
    ),
    Scenario(
        BETAS,
        ["interrupted", "diverged", "interrupted"],
        [2, 1, 2],
        spoiled(2, 0, math.nan, member=1),
        (2, "end"),
    ),
]


@pytest.mark.parametrize("n_held_out", [0, 4])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_end_of_some_members_leaves_the_others_as_they_are_alone(scenario, n_held_out):
    plans = [plan(n_held_out=n_held_out, **numbers) for numbers in scenario.numbers]

    def train(members):
        problem = Problem(spoil=scenario.spoil, interrupt=scenario.interrupt, members=members)

        def end_epoch(records):
            problem.end_epoch(records)
            return records[0].n_iter == scenario.stop

        own = [plans[m] for m in members]
        rows = [rows_of(14)] * len(own)
        return problem, problem.train_all(rows, own, list(members), end_epoch=end_epoch)

    problem, records = train(range(len(plans)))
    assert [record.outcome for record in records] == scenario.outcomes
    assert [record.n_iter for record in records] == scenario.n_iters
    # `end_epoch` sees the members in training, and no epoch in which all diverge.
    assert [len(seen) for seen in problem.records] == [
        sum(n >= epoch for n in scenario.n_iters) for epoch in range(1, max(scenario.n_iters) + 1)
    ]
    for m, record in enumerate(records):
        alone, (expected,) = train([m])
        assert_same_run(record, expected)
        assert_same_shown(problem, alone, m)


@pytest.mark.parametrize("n_held_out", [0, 4])
def test_a_member_with_an_enormous_rate_diverges_and_leaves_the_others_alone(n_held_out):
    rates = [0.01, 1e30, 0.02, 1e18]
    plans = [plan(n_held_out=n_held_out, learning_rate=rate, max_iter=20) for rate in rates]
    problem = Problem(dtype=torch.float32, members=range(4))
    records = problem.train_all([rows_of(14)] * 4, plans, [0, 1, 2, 3])
    assert [record.outcome for record in records] == ["finished", "diverged"] * 2
    for m, record in enumerate(records):
        alone = Problem(dtype=torch.float32, members=[m])
        expected = alone.train(rows_of(14), plans[m], seed=m)
        assert torch.isfinite(record.weights).all()
        assert record.n_iter == expected.n_iter
        # Rounding of 80 steps in float32.
        torch.testing.assert_close(record.weights, expected.weights, rtol=1e-3, atol=1e-4)


def test_kept_weights_are_copies_that_later_epochs_do_not_change():
    of_stack = torch.ones(3, 5)  # training writes into these weights, of three models
    rows = torch.zeros(4)
    run = Run(1, plan(max_iter=2, n_held_out=4), of_stack[1])
    for epoch, loss in enumerate((2.0, 1.0), 1):
        of_stack.fill_(epoch + 1)
        run.best.judge(loss, rows.fill_(loss), epoch, of_stack[1], run.plan)
    of_stack.fill_(9)
    rows.fill_(9)
    assert run.last[1].tolist() == [1] * 5  # the first weights
    assert run.best.weights.tolist() == [3] * 5
    assert run.best.rows.tolist() == [1] * 4


def test_the_weights_of_a_record_at_the_end_release_those_of_other_models():
    of_stack = torch.ones(1000, 5)
    run = Run(1, plan(max_iter=1), of_stack[1])
    run.end_epoch([0.0] * 7, torch.zeros(4), of_stack[1], None)
    assert not run.goes_on()
    for weights in (run.record.weights, run.last[1], run.finish().weights):
        assert weights.untyped_storage().nbytes() == 5 * weights.element_size()


def test_interruption_while_members_are_recorded_keeps_what_each_has_complete(monkeypatch):
    judge, n_judged = Best.judge, 0

    def interrupted(self, *arguments):
        nonlocal n_judged
        n_judged += 1
        if n_judged == 3 + 2:  # the second member, after its second epoch
            raise KeyboardInterrupt
        judge(self, *arguments)

    plans = [plan(n_held_out=4)] * 3
    whole = Problem(members=range(3))
    whole.train_all([rows_of(14)] * 3, plans, [0, 1, 2])
    monkeypatch.setattr(Best, "judge", interrupted)
    problem = Problem(members=range(3))
    records = problem.train_all([rows_of(14)] * 3, plans, [0, 1, 2])
    assert [record.outcome for record in records] == ["interrupted"] * 3
    assert [record.n_iter for record in records] == [2, 1, 1]
    for m, record in enumerate(records):
        assert record.kept == record.n_iter
        assert {len(values) for values in record.history.values()} == {record.n_iter}
        assert torch.equal(record.weights, whole.after[record.n_iter - 1][m])


def test_members_that_continue_may_keep_their_first_weights_beside_others_that_do_not():
    losses = [[5.0, 6.0, 1.0], [5.0, 6.0, 7.0], [5.0, 6.0, 1.0]]  # the last: before epoch 1
    plans = [
        plan(n_held_out=4, max_iter=2, continues=continues) for continues in (True, True, False)
    ]
    problem = Problem(lambda epoch, m: (losses[m][epoch - 1], 0.0), members=range(3))
    first = problem.weights()
    records = problem.train_all([rows_of(14)] * 3, plans, [0, 1, 2])
    assert [record.kept for record in records] == [0, 1, 1]
    assert torch.equal(records[0].weights, first[0])
    assert torch.equal(records[1].weights, problem.after[0][1])


def test_a_rate_that_has_fallen_to_0_moves_nothing():
    weights = torch.ones(1, 3)
    adam = Adam([weights], [0.0], [math.inf])
    (coefficients,) = adam.coefficients([[0.0]])
    adam.step([torch.full((1, 3), 5.0)], *coefficients)
    assert torch.equal(adam.weights, torch.ones(1, 3))


def test_a_model_that_has_converged_keeps_its_best_weights_under_ctrl_c():
    problem = Problem(lambda epoch, m: ([5.0, 6.0, 7.0, 8.0][min(epoch, 4) - 1], 0.0))
    problem.interrupt = (3, "end")
    record = problem.train(rows_of(14), plan(n_held_out=4, max_iter=9, patience=2))
    assert (record.outcome, record.kept, record.n_iter) == ("converged", 1, 3)


def test_noise_is_drawn_for_some_steps_at_once_whatever_the_others_have(monkeypatch):
    monkeypatch.setattr(loop, "NOISE_VALUES", 16 * 4 * 3)  # three batches
    problem = Problem(lambda epoch, m: (1.0, 0.0), members=range(2))
    plans = [plan(batch_size=4, max_iter=2, n_components=n) for n in (1, 2)]
    problem.train_all([rows_of(31)] * 2, plans, [0, 1])
    for m in range(2):
        alone = Problem(lambda epoch, m: (1.0, 0.0), members=[m])
        alone.train(rows_of(31), plans[m], seed=m)
        for batch, expected in zip(problem.batches[m], alone.batches[m], strict=True):
            n = plans[m].n_components
            assert torch.equal(batch.noise[..., :n], expected.noise[..., :n])


# --- noise ------------------------------------------------------------------------------------


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("n_more", [0, 4])
def test_noise_of_every_member_is_that_of_its_own_generator_and_0_beyond_its_components(n_more):
    plans = [plan(n_components=n) for n in (2, 5, 1)]
    noise = draw_noise((3, 7), 5, n_more, plans, generators(0, 1, 2))
    assert noise.shape == (3, 3, 7, 5 + n_more)
    for m, (own, numbers) in enumerate(zip(noise, plans, strict=True)):
        n_components = numbers.n_components
        (alone,) = draw_noise((3, 7), n_components, n_more, [numbers], generators(m))
        assert torch.equal(own[..., :n_components], alone[..., :n_components])
        assert (own[..., n_components:5] == 0).all()
        assert torch.equal(own[..., 5:], alone[..., n_components:])
        assert len(alone.unique()) == alone.numel()


@pytest.mark.parametrize("n_noise", [0, 1, 4])
def test_noise_of_rows_is_that_of_the_generator_of_each_member(n_noise):
    first, second, same = draw_row_noise(7, n_noise, generators(0, 1, 0))
    assert first.shape == second.shape == (7, n_noise)
    assert torch.equal(first, same)
    assert torch.equal(first, second) == (n_noise == 0)
    assert len(first.unique()) == first.numel()


# --- stacks of models -------------------------------------------------------------------------


def job_of(
    seed, n_components=2, hidden=(6, 5), device=CPU, precision="float64", parts=None, **numbers
):
    """A model of some components on a small table, from its own first weights."""
    rng = np.random.default_rng(0)
    data = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 4)) + 0.1 * rng.normal(size=(40, 4))
    described = architecture_of(4, n_components, hidden, activation="silu", **(parts or {}))
    if parts and "likelihood" in parts:
        data = 1 / (1 + np.exp(-data))
    numbers = {"n_noise": described.n_noise} | numbers
    state = initial_state(described, statistics.describe_columns(data), seed)
    state = cast_state(state, np.float64 if precision == "float64" else np.float32)
    numbers = plan(n_components=n_components, **{"batch_size": 8, "max_iter": 8} | numbers)
    out = held_out(len(data), numbers.n_held_out, seed)
    own = data, len(data), described, state, numbers, seed, device, precision, out
    return Job(*own)


def run(jobs):
    return execution.train(jobs, lambda: None, lambda records, states: False)


def assert_same_trained(trained, alone):
    assert (trained.record.outcome, trained.record.n_iter, trained.record.kept) == (
        alone.record.outcome,
        alone.record.n_iter,
        alone.record.kept,
    )
    for name, values in alone.record.history.items():
        assert trained.record.history[name] == pytest.approx(values, rel=1e-9, abs=1e-10), name
    assert list(trained.state) == list(alone.state)
    for name, array in alone.state.items():
        # Rounding of some hundred steps in float64.
        np.testing.assert_allclose(trained.state[name], array, rtol=1e-8, atol=1e-9)


# What is alike in a stack, and what is each member's own.
OBJECTIVES = [
    ({}, [{"free_bits": 0.0}, {"free_bits": 0.1, "n_warmup": 3}, {"free_bits": 2.0}]),
    ({"n_importance_samples": 3}, [{"beta": 0.5}, {"n_warmup": 2, "n_cycles": 2}, {}]),
    ({"parts": {"network": MLP(dropout=0.3)}}, [{"free_bits": 0.3}, {"beta": 3.0}, {}]),
    ({"parts": {"network": MLP(dropout=0.3)}, "n_importance_samples": 5}, [{}, {"beta": 3.0}]),
    ({"parts": {"likelihood": Bernoulli(resample=True)}}, [{}, {"beta": 0.2}, {"n_cycles": 3}]),
]


TOGETHER = [
    *(
        [alike | own | {"max_iter": 6 + m} for m, own in enumerate(each)]
        for alike, each in OBJECTIVES
    ),
    # Of different numbers of components, the widest of which may end first.
    *(
        [
            {"n_components": 1, "hidden": hidden, "weight_decay": 0.3},
            {"n_components": 5, "hidden": hidden, "beta": 0.2},
            {"n_components": 2, "hidden": hidden, "schedule": "cosine", "n_warmup": 3},
        ]
        for hidden in [(), (6, 5)]
    ),
    *(
        [{"n_components": n, "max_iter": 9 - n} for n in mixture]
        for mixture in [(1, 2, 5), (5, 2, 1), (2, 5, 1)]
    ),
    # The second diverges.
    [{}, {"n_components": 3, "learning_rate": 1e200}],
]


@pytest.mark.parametrize("numbers", TOGETHER, ids=str)
@pytest.mark.parametrize("n_held_out", [0, 8])
def test_models_train_together_as_they_do_alone(numbers, n_held_out):
    jobs = [job_of(m, **own, n_held_out=n_held_out) for m, own in enumerate(numbers)]
    for trained, job in zip(run(jobs), jobs, strict=True):
        diverges = job.plan.learning_rate > 1
        assert trained.record.outcome == ("diverged" if diverges else "finished")
        assert diverges or trained.record.n_iter == job.plan.max_iter
        assert_same_trained(trained, run([job])[0])


def test_free_bits_of_0_are_none_in_a_stack_with_those_of_others():
    # A divergence of 0, as a collapsed component has, may be rounded to below 0.
    jobs = [job_of(0, free_bits=0.0), job_of(1, free_bits=0.5)]
    kl = torch.tensor([[[[-1e-9, 1.0]]], [[[0.1, 1.0]]]]).double()
    weights = members_of(jobs).weights
    numbers, _, g_kl = objective.loss((torch.zeros(2, 1, 1).double(), kl), weights)
    assert numbers[0].tolist() == [1 - 1e-9, 1.5]
    assert g_kl.tolist() == [[[[1, 1]]], [[[0, 1]]]]


def members_of(jobs):
    """The models of jobs, about to be trained."""
    stack = Stack([job.architecture for job in jobs], [job.state for job in jobs], CPU)
    generators = [devices.generator(job.seed) for job in jobs]
    _, judged, _ = loading.read_once(jobs)
    return loop.Members(stack, judged, [job.plan for job in jobs], generators, Team(CPU, 1), 1)


@pytest.mark.parametrize("alike", [alike for alike, _ in OBJECTIVES], ids=str)
@pytest.mark.parametrize("n_at_once", [1, 7, 8, 100])
def test_judgement_does_not_depend_on_how_many_rows_or_models_are_judged_at_once(
    monkeypatch, alike, n_at_once
):
    numbers = {"free_bits": 0.05} if "n_importance_samples" not in alike else {}
    jobs = [job_of(m, **alike, **numbers, n_held_out=30) for m in range(3)]
    with torch.inference_mode():
        numbers, losses = zip(*(members_of([job]).judge() for job in jobs), strict=True)
        monkeypatch.setattr(loop, "JUDGED_ROWS", n_at_once)
        together = members_of(jobs).judge()
    for ours, alone in zip(together, [torch.cat(numbers, dim=1), torch.cat(losses)], strict=True):
        torch.testing.assert_close(ours, alone, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("free_bits", [0.0, 0.05, 3.0])
def test_judgement_with_free_bits_is_of_the_mean_divergence_of_all_judged_rows(
    monkeypatch, free_bits
):
    monkeypatch.setattr(loop, "JUDGED_ROWS", 4)
    job = job_of(0, free_bits=free_bits, beta=2.0, n_held_out=30)
    with torch.inference_mode():
        members = members_of([job])
        judgement, losses = members.judge()
        loss, reconstruction, kl, far = judgement[:, 0].tolist()
        rows = members.judged.take(members.judged.index)[0]
    model = from_state(job.architecture, job.state)
    with torch.no_grad():
        of_rows = model(Batch(rows, members.noise[0]))
    of_components = of_rows.kl.mean((0, 1))
    assert reconstruction == pytest.approx(-of_rows.log_likelihood.mean().item(), rel=1e-12)
    assert kl == pytest.approx(of_components.sum().item(), rel=1e-12)
    held = of_components.clamp(min=free_bits).sum().item()
    assert loss == pytest.approx(reconstruction + 2 * held, rel=1e-12)
    assert losses.mean().item() == pytest.approx(loss, rel=1e-12)
    assert far == 0


@pytest.mark.parametrize("k", [2, 3, 6])
def test_judgement_of_importance_samples_is_of_as_many_antithetic_draws(k):
    job = job_of(0, n_importance_samples=k, beta=2.0, n_held_out=30)
    with torch.inference_mode():
        members = members_of([job])
        judgement, losses = members.judge()
        loss, reconstruction, kl, _ = judgement[:, 0].tolist()
        rows, noise = members.judged.take(members.judged.index)[0], members.noise[0]
    assert noise.shape == (k, 30, 2)
    half = (k + 1) // 2
    assert torch.equal(noise[half:], -noise[: k - half])
    model = from_state(job.architecture, job.state)
    with torch.no_grad():
        log_likelihood, log_ratio = model(Batch(rows, noise), by_draw=True)
    log_w = log_likelihood - log_ratio.sum(-1)
    bound = torch.logsumexp(log_w, 0) - math.log(k)
    bound = bound - log_ratio.sum(-1).mean(0)  # beta - 1 is 1
    torch.testing.assert_close(losses[0], -bound, rtol=1e-12, atol=1e-12)
    assert loss == pytest.approx(-bound.mean().item(), rel=1e-12)
    assert reconstruction == pytest.approx(-log_likelihood.mean().item(), rel=1e-12)
    assert kl == pytest.approx(log_ratio.mean().item(), rel=1e-12)


@pytest.mark.parametrize("numbers", [{"n_importance_samples": 3}, {"free_bits": 0.2}], ids=str)
def test_record_of_an_objective_is_its_loss_beside_the_terms_of_the_elbo(numbers):
    (trained,) = run([job_of(0, n_held_out=8, constant=10.0, beta=2.0, **numbers)])
    for prefix in ("", "validation_"):
        loss, reconstruction, kl, negative_elbo = (
            np.array(trained.record.history[prefix + name])
            for name in ("loss", "reconstruction", "kl", "negative_elbo")
        )
        np.testing.assert_allclose(negative_elbo, reconstruction + kl, rtol=1e-12)
        if "free_bits" in numbers:  # they cost, where they do anything
            assert (loss >= reconstruction + 2 * kl - 1e-12).all()
            assert (loss >= reconstruction + 2 * 2 * 0.2 - 1e-12).all()
        else:  # the bound of several draws is tighter than the mean of theirs
            assert (loss < reconstruction + 2 * kl).all()


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_what_pads_a_model_in_a_stack_stays_exactly_0_in_training(weight_decay):
    jobs = [job_of(m, n, weight_decay=weight_decay) for m, n in enumerate([1, 2, 5])]
    architectures = [job.architecture for job in jobs]
    stack = Stack(architectures, [job.state for job in jobs], CPU)
    generators = [devices.generator(job.seed) for job in jobs]
    read, judged, _ = loading.read_once(jobs)
    plans = [job.plan for job in jobs]
    with torch.inference_mode():
        records = loop.train(
            stack,
            read,
            judged,
            plans,
            generators,
            lambda: None,
            lambda records: False,
            team=Team(CPU, 1),
        )
        states = [
            {**job.state, **stack.state_of(job.architecture, job.state, record.weights)}
            for job, record in zip(jobs, records, strict=True)
        ]
        # Padded anew, the values of each are all that its weights were.
        anew = Stack(architectures, states, CPU)
        weights = torch.cat([p.flatten(1) for p in anew.parameters()], dim=1)
    for record, job, state, expected in zip(records, jobs, states, weights, strict=True):
        assert torch.equal(record.weights, expected)
        assert not np.array_equal(state["decoder.0.weight"], job.state["decoder.0.weight"])
    assert (weights[0] == 0).sum() > (weights[1] == 0).sum() > (weights[2] == 0).sum()


# --- CUDA -------------------------------------------------------------------------------------

# Of three steps an epoch, whose kernels may be chosen anew: float64 and float32 differ by
# rounding, and bfloat16 has 8 bits.
TOLERANCES = {"float64": 1e-9, "float32": 1e-3, "bf16": 0.05}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("n_held_out", [0, 8])
@pytest.mark.parametrize("rows", ["at once", "in parts"])
@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_captured_steps_train_as_plain_steps_do(monkeypatch, n_held_out, rows, precision):
    if rows == "in parts":
        monkeypatch.setattr(loading, "LEAST_BLOCKS", 5)
        members = [(0, 2, {})]
    else:  # the second leaves, which captures the steps of the others anew
        members = [(0, 2, {}), (1, 5, {"max_iter": 2}), (2, 1, {"weight_decay": 0.3, "beta": 4.0})]
    jobs = [
        # Batches of 7: the last of an epoch has fewer rows.
        job_of(
            seed,
            n_components,
            device=torch.device("cuda"),
            precision=precision,
            n_held_out=n_held_out,
            batch_size=7,
            **{"max_iter": 4} | numbers,
        )
        for seed, n_components, numbers in members
    ]
    if rows == "in parts":
        jobs = [job._replace(n_at_once=16) for job in jobs]
    captured, captures = run(jobs), []
    monkeypatch.setattr(loop, "capture", lambda step, changes: captures.append(step) or step)
    plain = run(jobs)
    assert captures
    for a, b in zip(captured, plain, strict=True):
        assert (a.record.outcome, a.record.n_iter) == (b.record.outcome, b.record.n_iter)
        for name, values in b.record.history.items():
            tolerance = TOLERANCES[precision]
            assert a.record.history[name] == pytest.approx(values, rel=tolerance, abs=tolerance)


# --- a simple model that is to be beaten --------------------------------------------------------

# Of the first judgement, which is that of the simple model, and of each epoch's, in float64.
EPOCHS = {1: 5.0, 2: 3.0, 3: 4.0}


def simple_record(loss_of_simple, spoiled=None, interrupt=None, of_rows=None, **numbers):
    """The record of three epochs, and the weights of the simple model: 7, of all rows.

    `of_rows`: the losses of epochs are those, and of each row so much more.
    """

    def judge(epoch, member):
        more = 0.0 if of_rows is None or epoch == 0 else torch.tensor(of_rows)
        return torch.tensor(EPOCHS.get(epoch, loss_of_simple)) + more, 0.0

    def spoil(epoch, member, log_likelihood, kl):
        if epoch == spoiled:
            log_likelihood.fill_(math.nan)

    def become_simple(of_all):
        for p in problem.learned:
            p.fill_(7.0 if of_all else 5.0)

    problem = Problem(judge=judge, spoil=spoil, interrupt=interrupt)
    named = {name: numbers.pop(name) for name in ("group", "sample_weight") if name in numbers}
    numbers = {"n_held_out": 4, "max_iter": 3, "n_errors": 0.0} | numbers
    record = problem.train(rows_of(12), plan(**numbers), become_simple=become_simple, **named)
    return record, problem


@pytest.mark.parametrize(("loss", "kept"), [(2.9, 0), (3.0, 0), (3.1, 2), (math.nan, 2)])
def test_a_simple_model_is_kept_where_held_out_rows_judge_no_epoch_better(loss, kept):
    record, problem = simple_record(loss)
    assert (record.kept, record.is_simple, record.n_iter) == (kept, kept == 0, 3)
    if kept == 0:
        assert (record.weights == 7).all()
    else:
        torch.testing.assert_close(record.weights, problem.after[kept - 1][0], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["rows", "weights", "groups"])
def test_a_simple_model_is_kept_unless_an_epoch_beats_it_by_its_standard_errors(kind):
    # Of four rows, epoch 2 is better by 0.7, 0.1, 0.6 and 0.2.
    gains, places = np.array([0.7, 0.1, 0.6, 0.2]), held_out(12, 4, 0)
    weight, group, of_rows = np.ones(4), np.arange(4), {}
    if kind == "weights":
        weight = np.array([1.0, 2.0, 0.5, 4.0])
        of_rows["sample_weight"] = np.ones(12)
        of_rows["sample_weight"][places] = weight
    if kind == "groups":
        group = np.array([0, 1, 1, 0])
        of_rows["group"] = np.arange(2, 14)
        of_rows["group"][places] = group
    share = weight / weight.sum()
    deviations = np.bincount(group, share * (gains - share @ gains))
    n = len(deviations)
    ratio = share @ gains / np.sqrt(n / (n - 1) * (deviations**2).sum())
    for n_errors, is_simple in [(0.999 * ratio, False), (1.001 * ratio, True)]:
        losses = (-gains).tolist()
        record, _ = simple_record(3.0, of_rows=losses, n_errors=n_errors, **of_rows)
        assert record.is_simple == is_simple
        assert record.kept == (0 if is_simple else 2)


def test_of_a_held_out_row_far_beyond_the_others_only_a_part_decides_which_epoch_is_best():
    # The second epoch is better for all rows but one, which no weights can know.
    near = torch.linspace(0.0, 1.0, 9)
    far = {1: 500.0, 2: 900.0, 3: 800.0}
    better = {1: 0.0, 2: -0.5, 3: -0.2}

    def judge(epoch, member):
        return torch.cat([near + better[epoch], torch.tensor([far[epoch]])]), 0.0

    record = Problem(judge).train(rows_of(20), plan(n_held_out=10, max_iter=3))
    assert record.kept == 2
    # What is reported is the mean of all rows.
    means = [(9 * (0.5 + better[epoch]) + far[epoch]) / 10 for epoch in (1, 2, 3)]
    assert record.history["validation_loss"] == pytest.approx(means, rel=1e-6)


def test_progress_of_before_there_were_losses_of_rows_goes_on_without_a_simple_model():
    run = Run(0, plan(n_held_out=4), torch.zeros(3))
    run.end_epoch([1.0] * 7, torch.ones(4), torch.ones(3), {})
    run.simple = Simple(torch.ones(4), torch.zeros(3), None, None)
    progress = run.progress(torch.ones(3), {})
    again = Run(0, plan(n_held_out=4), torch.zeros(3))
    again.go_on(progress)
    assert torch.equal(again.simple.rows, torch.ones(4))
    old = Run(0, plan(n_held_out=4), torch.zeros(3))
    old.go_on({**progress, "simple": {"loss": 3.0, "weights": torch.zeros(3)}})
    assert old.simple is None
    assert old.record.n_iter == 1


def test_training_beside_a_simple_model_is_that_without():
    _, problem = simple_record(2.9)
    alone = Problem()
    alone.train(rows_of(12), plan(n_held_out=4, max_iter=3))
    for with_simple, without in zip(problem.after, alone.after, strict=True):
        torch.testing.assert_close(with_simple, without, rtol=0, atol=0)


@pytest.mark.parametrize(("spoiled", "loss", "kept"), [(1, 4.9, 0), (2, 4.9, 0), (2, 5.1, 1)])
def test_a_simple_model_is_there_when_training_diverges_after_an_epoch(spoiled, loss, kept):
    record, _ = simple_record(loss, spoiled=spoiled)
    assert record.outcome == "diverged"
    assert (record.kept, record.is_simple) == (kept, spoiled > 1 and loss < EPOCHS[1])


def test_ctrl_c_keeps_the_last_epoch_and_not_the_simple_model():
    record, _ = simple_record(-9.0, interrupt=(3, "begin"))
    assert (record.outcome, record.kept, record.is_simple) == ("interrupted", 2, False)


@pytest.mark.parametrize("numbers", [{"n_errors": None}, {"continues": True}], ids=str)
def test_no_simple_model_is_judged_where_none_is_to_be_beaten_or_training_goes_on(numbers):
    record, _ = simple_record(-9.0, **numbers)
    assert not record.is_simple
    assert not (record.weights == 7).any()


@pytest.mark.parametrize("interrupt", [None, (2, "begin")])
def test_training_ends_with_the_simple_model_where_no_number_of_errors_is_enough(interrupt):
    record, _ = simple_record(99.0, n_held_out=0, n_errors=math.inf, interrupt=interrupt)
    assert (record.outcome, record.n_iter) == ("converged", 1)
    assert (record.kept, record.is_simple) == (0, True)
    assert (record.weights == 7).all()


def test_patience_begins_when_nothing_is_held_back_any_more():
    losses = [5.0, *[6.0] * 9]
    for n_held_back, n_iter in [(0, 3), (4, 6)]:
        problem = Problem(judge=lambda epoch, member: (torch.tensor(losses[epoch - 1]), 0.0))
        numbers = plan(n_held_out=4, max_iter=10, patience=2, n_held_back=n_held_back)
        assert problem.train(rows_of(12), numbers).n_iter == n_iter


@pytest.mark.parametrize(
    ("continues", "fractions"), [(False, [0, 0.25, 0.5, 0.75]), (True, [1.0] * 4)]
)
def test_begin_epoch_gets_the_fraction_of_the_epochs_that_is_done(continues, fractions):
    problem = Problem()
    problem.train(rows_of(12), plan(max_iter=4, continues=continues))
    assert problem.progress == [[fraction] for fraction in fractions]
