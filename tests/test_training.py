"""The training loop: what it shows the loss, the steps it takes, the weights it keeps."""

import copy
import math

import pytest
import torch

from skvae import _training
from skvae._training import Adam, Best, Plan, Record

N_COMPONENTS = 2


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


def rows_of(n_rows):
    """Rows that are told apart by their first value, their number."""
    return torch.stack([torch.arange(n_rows), 100 + torch.arange(n_rows)], dim=1).float()


class Problem:
    """A loss with a matrix and a vector to learn, that remembers all it was shown.

    `judge` replaces the terms of a judged row by numbers of the epoch, from 1.
    """

    def __init__(self, judge=None, interrupt=None, spoil=None, dtype=torch.float64):
        g = torch.Generator().manual_seed(0)
        self.parameters = [
            torch.randn(2, 2, generator=g, dtype=dtype).requires_grad_(),
            torch.randn(2, generator=g, dtype=dtype).requires_grad_(),
        ]
        self.judge, self.interrupt, self.spoil = judge, interrupt, spoil
        self.started = 0  # epochs
        self.batches = []  # of each step: epoch, rows, noise, beta
        self.judged = []  # of each judgement: epoch, rows, noise
        self.after = []  # of each complete epoch: the weights
        self.records = []  # of each complete epoch: the record
        self.events = []

    def weights(self):
        return torch.cat([p.detach().reshape(-1) for p in self.parameters]).clone()

    def row_terms(self, rows, eps):
        """Two terms of each row, (B, 2), that depend on rows, noise and parameters."""
        matrix, vector = self.parameters
        z = 0.01 * rows.to(matrix.dtype) @ matrix + eps.to(matrix.dtype)
        reconstruction = (z - vector).square().sum(-1).mean(0)
        kl = (matrix.square().sum() + vector.exp().sum()).expand(len(rows))
        return torch.stack([reconstruction, kl], dim=1)

    def terms(self, rows, eps):
        self.judged.append((self.started, rows.clone(), eps.clone()))
        if self.judge is None:
            return self.row_terms(rows, eps).sum(0)
        return torch.tensor(self.judge(self.started), dtype=torch.float64) * len(rows)

    def gradient(self, rows, eps, beta):
        self.batches.append((self.started, rows.clone(), eps.clone(), beta))
        if self.interrupt == (self.started, "step"):
            raise KeyboardInterrupt
        with torch.enable_grad():
            terms = self.row_terms(rows, eps).sum(0)
            loss = (terms[0] + beta * terms[1]) / len(rows)
            gradients = torch.autograd.grad(loss, self.parameters)
        if self.spoil is not None:
            terms = self.spoil(self.started, terms)
        return terms.detach(), gradients

    def begin_epoch(self):
        self.started += 1
        self.events.append(("begin", self.started, len(self.batches)))
        if self.interrupt == (self.started, "begin"):
            raise KeyboardInterrupt

    def end_epoch(self, record):
        self.events.append(("end", self.started, len(self.batches)))
        self.after.append(self.weights())
        self.records.append(copy.deepcopy(record))
        if self.interrupt == (self.started, "end"):
            raise KeyboardInterrupt
        return False

    def train(self, rows, numbers, seed=0, end_epoch=None):
        return _training.train(
            self.terms,
            self.gradient,
            self.parameters,
            rows,
            numbers,
            torch.Generator().manual_seed(seed),
            self.begin_epoch,
            end_epoch or self.end_epoch,
        )


def numbers_of(rows):
    """Numbers of rows, as `rows_of` made them."""
    return rows[:, 0].int().tolist()


# --- Adam -------------------------------------------------------------------------------------

SHAPES = [(3, 4), (4,), (), (2, 3, 2), (1, 1)]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_takes_the_steps_of_torch_with_decay_of_matrices_only(weight_decay):
    g = torch.Generator().manual_seed(0)

    def draw(shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    ours = [draw(shape).requires_grad_() for shape in SHAPES]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    groups = [
        {"params": [p for p in theirs if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in theirs if p.ndim <= 1], "weight_decay": 0.0},
    ]
    oracle = torch.optim.AdamW(groups) if weight_decay else torch.optim.Adam(theirs)
    with torch.no_grad():
        adam = Adam(ours, weight_decay)
        for step in range(300):
            # Gradients of many sizes, some of them 0; every step has a rate of its own.
            gradients = [10 ** (step % 9 - 6) * draw(shape) for shape in SHAPES]
            if step % 5 == 0:
                gradients[0].zero_()
            rate = 0.1 / (1 + step % 7)
            adam.step([gradient.clone() for gradient in gradients], rate)
            for p, gradient in zip(theirs, gradients, strict=True):
                p.grad = gradient
            for group in oracle.param_groups:
                group["lr"] = rate
            oracle.step()
    # Rounding of 300 steps.
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_adam_leaves_the_parameters_themselves_with_their_values_as_views_of_one_vector():
    parameters = [torch.randn(shape, requires_grad=True) for shape in SHAPES]
    values, same = [p.detach().clone() for p in parameters], list(parameters)
    adam = Adam(parameters)
    for p, value, before in zip(parameters, values, same, strict=True):
        assert p is before
        assert torch.equal(p, value)
        assert p.requires_grad
    with torch.no_grad():
        adam.vector.fill_(7)
    assert all((p == 7).all() for p in parameters)


# --- Plan -------------------------------------------------------------------------------------


def test_rate_of_the_cosine_schedule_falls_from_the_rate_to_0_along_half_a_cosine():
    cosine = plan(schedule="cosine", learning_rate=0.3, max_iter=6)
    rates = [cosine.rate_at(epoch) for epoch in range(7)]
    expected = [1, (1 + math.sqrt(0.75)) / 2, 0.75, 0.5, 0.25, (1 - math.sqrt(0.75)) / 2, 0]
    assert rates == pytest.approx([0.3 * share for share in expected], abs=1e-16)
    assert cosine.rate_at(1.5) == pytest.approx(0.3 * (1 + math.sqrt(0.5)) / 2)


def test_rate_of_the_cosine_schedule_equals_that_of_torch():
    cosine = plan(schedule="cosine", learning_rate=0.3, max_iter=50)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for epoch in range(50):
        assert cosine.rate_at(epoch) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-10)
        optimizer.step()
        scheduler.step()


def test_rate_of_the_constant_schedule_stays():
    assert {plan(learning_rate=0.3).rate_at(epoch) for epoch in (0, 0.5, 4.9)} == {0.3}


def test_beta_rises_during_the_warm_up_and_stays():
    warming = plan(beta=8.0, n_warmup=3)
    assert [warming.beta_in(epoch) for epoch in range(6)] == [2, 4, 6, 8, 8, 8]
    assert plan(beta=8.0).beta_in(0) == 8


# --- what the loss is shown -------------------------------------------------------------------


@pytest.mark.parametrize("n_held_out", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 11, 14])
def test_every_training_row_is_used_exactly_once_an_epoch(n_held_out, batch_size):
    n_training = 14 - n_held_out
    batch_size = min(batch_size, n_training)
    problem, rows = Problem(), rows_of(14)
    before = rows.clone()
    problem.train(rows, plan(n_held_out=n_held_out, batch_size=batch_size, max_iter=4))

    assert torch.equal(rows, before)
    held_out = numbers_of(problem.judged[0][1]) if n_held_out else []
    assert len(set(held_out)) == n_held_out
    orders = []
    for epoch in range(1, 5):
        batches = [batch[1] for batch in problem.batches if batch[0] == epoch]
        sizes = [len(batch) for batch in batches]
        assert sizes[:-1] == [batch_size] * (len(sizes) - 1)  # a ragged last batch
        assert 1 <= sizes[-1] <= batch_size
        used = numbers_of(torch.cat(batches))
        assert sorted(used + held_out) == list(range(14))
        orders.append(tuple(used))
    assert len(set(orders)) == 4


def test_rows_held_out_are_drawn_and_not_the_first_ones():
    drawn = []
    for seed in range(5):
        problem = Problem()
        problem.train(rows_of(20), plan(n_held_out=5, max_iter=1), seed)
        drawn.append(frozenset(numbers_of(problem.judged[0][1])))
    assert len(set(drawn)) > 1
    assert frozenset(range(5)) not in drawn


def test_noise_of_training_is_new_for_every_row_and_every_epoch():
    problem = Problem()
    problem.train(rows_of(500), plan(batch_size=64, max_iter=3))
    noise = torch.cat([eps for _, _, eps, _ in problem.batches], dim=1)
    assert noise.shape == (1, 1500, N_COMPONENTS)
    assert len(noise.unique()) == noise.numel()
    # Five standard errors of standard normals.
    assert noise.mean().abs() < 5 / math.sqrt(noise.numel())
    assert (noise.var() - 1).abs() < 5 * math.sqrt(2 / noise.numel())


@pytest.mark.parametrize("n_held_out", [0, 6])
@pytest.mark.parametrize("n_probe", [3, 100])
def test_weights_are_judged_on_the_same_rows_and_noise_after_every_epoch(
    monkeypatch, n_held_out, n_probe
):
    monkeypatch.setattr(_training, "PROBE_ROWS", n_probe)
    problem = Problem()
    problem.train(rows_of(20), plan(n_held_out=n_held_out, max_iter=4))
    (_, rows, noise), *others = problem.judged
    assert [epoch for epoch, _, _ in problem.judged] == [1, 2, 3, 4]
    assert len(rows) == (n_held_out or min(n_probe, 20))
    for _, same_rows, same_noise in others:
        assert torch.equal(rows, same_rows)
        assert torch.equal(noise, same_noise)
    # Of each row its own, in pairs eps and -eps.
    assert noise.shape == (_training.N_VALIDATION_DRAWS, len(rows), N_COMPONENTS)
    rising = noise.sort(dim=0).values
    assert torch.equal(rising, -rising.flip(0))
    assert len(noise.unique()) == noise.numel()


def test_training_shows_the_loss_beta_of_the_epoch():
    problem = Problem()
    problem.train(rows_of(8), plan(beta=8.0, n_warmup=3, max_iter=5))
    shown = {epoch: beta for epoch, _, _, beta in problem.batches}
    assert shown == {1: 2.0, 2: 4.0, 3: 6.0, 4: 8.0, 5: 8.0}


def test_every_epoch_is_announced_before_its_first_step_and_ended_after_its_last():
    problem = Problem()
    problem.train(rows_of(10), plan(batch_size=4, max_iter=2))
    assert problem.events == [("begin", 1, 0), ("end", 1, 3), ("begin", 2, 3), ("end", 2, 6)]


# --- the steps --------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("n_held_out", [0, 3])
def test_training_equals_a_loop_of_torch_over_the_same_batches(schedule, n_held_out):
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
    problem.train(rows_of(17), numbers)

    matrix, vector = oracle.parameters
    groups = [{"params": [matrix], "weight_decay": 0.1}, {"params": [vector], "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups)
    n_training, done = 17 - n_held_out, 0
    for epoch, rows, eps, _ in problem.batches:
        share = (done - (epoch - 1) * n_training) / n_training
        for group in adam.param_groups:
            cosine = (1 + math.cos(math.pi * (epoch - 1 + share) / 6)) / 2
            group["lr"] = 0.05 * (cosine if schedule == "cosine" else 1)
        reconstruction, kl = oracle.row_terms(rows, eps).mean(0)
        adam.zero_grad()
        (reconstruction + 0.5 * min(1, epoch / 3) * kl).backward()
        adam.step()
        done += len(rows)
    assert done == 6 * n_training
    torch.testing.assert_close(problem.after[-1], oracle.weights(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("n_held_out", [0, 4])
def test_training_is_decided_by_its_generator_and_moves_no_other(n_held_out):
    torch.rand(1)  # so that no seed gives the state
    before = torch.get_rng_state()
    ends = []
    for seed in (0, 0, 1):
        problem = Problem()
        record = problem.train(rows_of(14), plan(n_held_out=n_held_out), seed)
        ends.append((record, problem.weights()))
    assert torch.equal(torch.get_rng_state(), before)
    assert ends[0][0] == ends[1][0]
    assert torch.equal(ends[0][1], ends[1][1])
    assert not torch.equal(ends[0][1], ends[2][1])


# --- the record -------------------------------------------------------------------------------


class Counting(Problem):
    """Terms of a row that are its number and 2, and nothing to learn."""

    def row_terms(self, rows, eps):
        return torch.stack([rows[:, 0], torch.full((len(rows),), 2.0)], dim=1).double()

    def gradient(self, rows, eps, beta):
        self.batches.append((self.started, rows, eps, beta))
        return self.row_terms(rows, eps).sum(0), [torch.zeros_like(p) for p in self.parameters]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10])
def test_record_weighs_the_batches_of_an_epoch_by_their_rows(batch_size):
    record = Counting().train(rows_of(10), plan(batch_size=batch_size, max_iter=3))
    # Sums in float32.
    assert record.history["reconstruction"] == pytest.approx([4.5] * 3, rel=1e-6)
    assert record.history["kl"] == pytest.approx([2.0] * 3, rel=1e-6)


@pytest.mark.parametrize("n_at_once", [1, 3, 4, 100])
def test_record_weighs_the_parts_of_the_held_out_rows_by_their_rows(monkeypatch, n_at_once):
    whole = Problem()
    expected = whole.train(rows_of(14), plan(n_held_out=10))
    monkeypatch.setattr(_training, "JUDGED_ROWS", n_at_once)
    problem = Problem()
    record = problem.train(rows_of(14), plan(n_held_out=10))
    for name, values in expected.history.items():
        assert record.history[name] == pytest.approx(values, rel=1e-12)
    assert max(len(rows) for _, rows, _ in problem.judged) == min(n_at_once, 10)


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
    _, rows, noise = problem.judged[0]
    for epoch, weights in enumerate(problem.after):
        matrix, vector = problem.parameters
        with torch.no_grad():
            matrix.copy_(weights[:4].view(2, 2))
            vector.copy_(weights[4:])
            reconstruction, kl = problem.row_terms(rows, noise).mean(0).tolist()
        seen = [record.history[f"validation_{name}"][epoch] for name in ("reconstruction", "kl")]
        assert seen == pytest.approx([reconstruction, kl], rel=1e-12)


def test_end_epoch_sees_the_record_so_far():
    problem = Problem()
    problem.train(rows_of(8), plan(max_iter=3))
    assert [record.n_iter for record in problem.records] == [1, 2, 3]
    assert [len(record.history["loss"]) for record in problem.records] == [1, 2, 3]


# --- the weights that are kept ----------------------------------------------------------------


def judged_by(losses):
    """Terms of the judged rows, by epoch from 1: a reconstruction, and KL 0."""
    return lambda epoch: (losses[epoch - 1], 0.0)


def test_best_weights_are_a_copy_of_those_with_the_smallest_loss():
    weights = torch.zeros(2)
    best = Best(weights)
    for epoch, loss in enumerate([5.0, 3.0, 4.0, 3.0], start=1):
        weights.fill_(epoch)
        best.judge(loss, epoch, weights, plan())
    weights.fill_(99)
    assert best.epoch == 2
    assert best.weights.tolist() == [2, 2]


def test_best_weights_are_of_an_epoch_after_the_warm_up_though_one_in_it_had_a_smaller_loss():
    weights = torch.zeros(2)
    best = Best(weights)
    for epoch, loss in enumerate([3.0, 1.0, 7.0, 6.0, 8.0], start=1):
        weights.fill_(epoch)
        best.judge(loss, epoch, weights, plan(n_warmup=2))
        assert best.epoch == [1, 2, 3, 4, 4][epoch - 1]
        assert best.waited == [0, 0, 0, 0, 1][epoch - 1]
    assert best.weights.tolist() == [4, 4]


def test_training_restores_the_weights_of_the_best_epoch_on_held_out_rows():
    problem = Problem(judged_by([5.0, 4.0, 2.0, 3.0, 4.0, 6.0]))
    record = problem.train(rows_of(14), plan(n_held_out=4, max_iter=6))
    assert (record.outcome, record.n_iter, record.kept) == ("finished", 6, 3)
    assert torch.equal(problem.weights(), problem.after[2])
    assert len({tuple(weights.tolist()) for weights in problem.after}) == 6


def test_training_without_held_out_rows_keeps_the_last_weights():
    problem = Problem(judged_by([5.0, 1.0, 2.0, 3.0, 4.0]))
    record = problem.train(rows_of(14), plan(patience=1))
    assert (record.outcome, record.n_iter, record.kept) == ("finished", 5, 5)
    assert torch.equal(problem.weights(), problem.after[4])


@pytest.mark.parametrize(
    ("losses", "numbers", "n_iter", "kept"),
    [
        # Patience runs from the epoch after the smallest loss.
        ([5, 4, 4, 4, 4, 4, 4], {"patience": 2}, 4, 2),
        ([5, 4, 5, 3, 5, 5, 5], {"patience": 2}, 6, 4),
        # A fall by no more than tol isn't waited for, but its weights are the best.
        ([5, 4.95, 4.9, 4.85, 4.84], {"patience": 3, "tol": 0.2}, 4, 4),
        # Small falls add up.
        ([5, 4.9, 4.7, 4.6, 4.4, 4.4, 4.4], {"patience": 2, "tol": 0.2}, 7, 5),
        # Nothing ends before the warm-up has.
        ([1, 2, 3, 5, 5, 5, 5], {"patience": 2, "n_warmup": 3}, 6, 4),
    ],
)
def test_training_converges_after_patience_epochs_without_a_fall(losses, numbers, n_iter, kept):
    problem = Problem(judged_by([float(loss) for loss in losses]))
    record = problem.train(rows_of(14), plan(n_held_out=4, max_iter=len(losses), **numbers))
    assert (record.outcome, record.n_iter, record.kept) == ("converged", n_iter, kept)
    assert problem.started == n_iter
    assert torch.equal(problem.weights(), problem.after[kept - 1])


def test_training_judges_by_the_objective_at_its_final_beta():
    # With beta = 2 the best epoch is the second, with 1 it were the first, with 0 the third.
    terms = [(2.0, 2.0), (4.0, 0.5), (1.0, 4.0)]
    problem = Problem(lambda epoch: terms[epoch - 1])
    record = problem.train(rows_of(14), plan(n_held_out=4, max_iter=3, beta=2.0))
    assert record.kept == 2
    assert record.history["validation_loss"] == [6.0, 5.0, 9.0]


@pytest.mark.parametrize(("n_held_out", "kept"), [(4, 2), (0, 3)])
def test_training_stops_where_end_epoch_returns_true(n_held_out, kept):
    problem = Problem(judged_by([3.0, 1.0, 2.0, 0.5, 0.5]))

    def end_epoch(record):
        problem.end_epoch(record)
        return record.n_iter == 3

    record = problem.train(rows_of(14), plan(n_held_out=n_held_out), end_epoch=end_epoch)
    assert (record.outcome, record.n_iter, record.kept) == ("stopped", 3, kept)
    assert problem.started == 3
    assert torch.equal(problem.weights(), problem.after[kept - 1])


@pytest.mark.parametrize(
    ("first_loss", "n_warmup", "kept"),
    [
        (1.0, 0, 0),  # no epoch was better than the weights that the run began with
        (4.0, 0, 2),
        (1.0, 2, 3),  # the warm-up begins anew: an epoch after it is kept
    ],
)
def test_training_that_continues_may_keep_the_weights_it_began_with(first_loss, n_warmup, kept):
    problem = Problem(judged_by([5.0, 2.0, 3.0, 4.0, first_loss]))  # the last: before epoch 1
    first = problem.weights()
    record = problem.train(
        rows_of(14), plan(n_held_out=4, max_iter=4, n_warmup=n_warmup, continues=True)
    )
    assert (record.outcome, record.n_iter, record.kept) == ("finished", 4, kept)
    assert {len(values) for values in record.history.values()} == {4}
    assert torch.equal(problem.weights(), problem.after[kept - 1] if kept else first)


def test_training_that_continues_judges_its_first_weights_at_the_final_beta():
    terms = [(2.0, 2.0), (4.0, 0.5)]  # before and after epoch 1
    problem = Problem(lambda epoch: terms[epoch])
    numbers = plan(n_held_out=4, max_iter=1, beta=2.0, continues=True)
    assert problem.train(rows_of(14), numbers).kept == 1


@pytest.mark.parametrize("n_held_out", [0, 4])
def test_training_that_continues_and_diverges_keeps_the_weights_it_began_with(n_held_out):
    problem = Problem(spoil=spoiled(1, 0, math.nan))
    first = problem.weights()
    record = problem.train(rows_of(14), plan(n_held_out=n_held_out, continues=True))
    assert (record.outcome, record.n_iter, record.kept) == ("diverged", 0, 0)
    assert torch.equal(problem.weights(), first)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_training_that_continues_does_not_keep_weights_whose_loss_was_not_finite(value):
    problem = Problem(judged_by([5.0, 2.0, 3.0, value]))  # the last: before epoch 1
    record = problem.train(rows_of(14), plan(n_held_out=4, max_iter=3, continues=True))
    assert (record.outcome, record.kept) == ("finished", 2)


# --- divergence -------------------------------------------------------------------------------


def spoiled(epoch, index, value):
    """Terms of a training batch that are no finite number from an epoch on."""

    def spoil(now, terms):
        terms = terms.detach().clone()
        if now >= epoch:
            terms[index] = value
        return terms

    return spoil


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("n_held_out", [0, 4])
@pytest.mark.parametrize("where", ["training", "judging"])
def test_divergence_keeps_the_best_weights_whose_loss_was_finite(value, index, n_held_out, where):
    losses = [5.0, 3.0, 4.0, 9.0]

    def judge(epoch):
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
    assert torch.equal(problem.weights(), problem.after[1])


@pytest.mark.parametrize("n_held_out", [0, 4])
def test_divergence_in_the_first_epoch_keeps_nothing_but_the_first_weights(n_held_out):
    problem = Problem(spoil=spoiled(1, 0, math.nan))
    first = problem.weights()
    record = problem.train(rows_of(14), plan(n_held_out=n_held_out))
    assert record == Record(outcome="diverged")
    assert record.kept == record.n_iter == 0
    assert torch.equal(problem.weights(), first)


@pytest.mark.parametrize("learning_rate", [1e3, 1e18, 1e30])
@pytest.mark.parametrize("n_held_out", [0, 4])
def test_divergence_by_an_enormous_rate_leaves_finite_weights(learning_rate, n_held_out):
    problem = Problem(dtype=torch.float32)
    first = problem.weights()
    record = problem.train(
        rows_of(14), plan(learning_rate=learning_rate, n_held_out=n_held_out, max_iter=20)
    )
    assert record.outcome == "diverged"
    expected = problem.after[record.kept - 1] if record.kept else first
    assert torch.equal(problem.weights(), expected)
    assert torch.isfinite(expected).all()


# --- interruption -----------------------------------------------------------------------------


@pytest.mark.parametrize("n_held_out", [0, 4])
@pytest.mark.parametrize(("moment", "complete"), [("begin", 2), ("step", 2), ("end", 3)])
def test_interruption_keeps_the_last_complete_epoch(n_held_out, moment, complete):
    problem = Problem(judged_by([1.0, 2.0, 3.0, 4.0, 5.0]), interrupt=(3, moment))
    record = problem.train(rows_of(14), plan(n_held_out=n_held_out))
    assert (record.outcome, record.n_iter, record.kept) == ("interrupted", complete, complete)
    assert all(len(values) == complete for values in record.history.values())
    assert torch.equal(problem.weights(), problem.after[complete - 1])


def test_interruption_in_the_middle_of_a_batch_forgets_the_steps_of_its_epoch():
    problem = Problem()
    step, n_steps = problem.gradient, 0

    def gradient(rows, eps, beta):
        nonlocal n_steps
        n_steps += 1
        if n_steps == 3 + 3 + 2:  # the second step of the third epoch
            raise KeyboardInterrupt
        return step(rows, eps, beta)

    problem.gradient = gradient
    record = problem.train(rows_of(10), plan(batch_size=4))
    assert (record.outcome, record.n_iter, record.kept) == ("interrupted", 2, 2)
    assert torch.equal(problem.weights(), problem.after[1])


def test_interruption_while_an_epoch_is_recorded_forgets_that_epoch(monkeypatch):
    judge = Best.judge

    def interrupted(self, loss, epoch, weights, plan):
        if epoch == 2:
            raise KeyboardInterrupt
        judge(self, loss, epoch, weights, plan)

    monkeypatch.setattr(Best, "judge", interrupted)
    problem = Problem()
    record = problem.train(rows_of(10), plan(n_held_out=4))
    assert (record.outcome, record.n_iter, record.kept) == ("interrupted", 1, 1)
    assert all(len(values) == 1 for values in record.history.values())
    assert torch.equal(problem.weights(), problem.after[0])


@pytest.mark.parametrize("moment", ["begin", "step"])
@pytest.mark.parametrize("n_held_out", [0, 4])
def test_interruption_before_the_first_epoch_is_complete_is_raised_again(moment, n_held_out):
    problem = Problem(interrupt=(1, moment))
    with pytest.raises(KeyboardInterrupt):
        problem.train(rows_of(14), plan(n_held_out=n_held_out))


def test_another_exception_goes_through():
    def end_epoch(record):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        Problem().train(rows_of(14), plan(), end_epoch=end_epoch)


def test_a_run_that_continues_and_finds_nothing_better_keeps_the_weights_it_began_with():
    problem = Problem()
    start = [p.clone() for p in problem.parameters]
    problem.terms = lambda rows, noise: (  # worse with every step
        torch.tensor([1.0 + len(problem.events), 0.0]) * len(rows)
    )
    for continues, kept in ((True, 0), (False, 1)):
        record = problem.train(rows_of(20), plan(n_held_out=4, max_iter=3, continues=continues))
        assert record.kept == kept
        if continues:
            assert all(torch.equal(p, q) for p, q in zip(problem.parameters, start, strict=True))
