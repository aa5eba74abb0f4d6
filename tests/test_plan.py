"""The numbers of a training run: which rows are held out, and what luck may do."""

import numpy as np
import pytest
from sklearn import config_context

from skvae import VAETransformer
from skvae._fit import planning
from skvae._fit.preparation import prepare
from skvae._model.evidence import needed_errors


def hold_out(n_rows, *, n_at_once=None, seed=0, group=None, **params):
    vae = VAETransformer(2, **params)
    shape = n_rows, 10
    return planning.hold_out(vae, shape, n_rows if n_at_once is None else n_at_once, seed, group)


@pytest.mark.parametrize(("n_rows", "n_held_out"), [(2, 0), (19, 0), (20, 2), (49, 4), (1000, 100)])
def test_auto_holds_out_a_tenth_from_20_rows_on(n_rows, n_held_out):
    held_out = hold_out(n_rows)
    assert len(held_out) == len(set(held_out)) == n_held_out
    assert held_out.dtype == np.intp
    assert all(0 <= row < n_rows for row in held_out)


def test_nothing_is_held_out_where_that_is_not_asked_for():
    assert len(hold_out(1000, early_stopping=False)) == 0


def test_rows_held_out_are_those_of_the_seed():
    drawn = [hold_out(60, seed=seed).tolist() for seed in range(5)]
    assert hold_out(60, seed=3).tolist() == drawn[3]
    assert len(set(map(tuple, drawn))) == 5
    assert set(range(6)) not in map(set, drawn)


def test_every_row_is_held_out_as_often_as_any_other():
    times = np.bincount(np.concatenate([hold_out(30, seed=seed) for seed in range(1000)]))
    # 100 each; 4.5 standard deviations of 9.5.
    assert len(times) == 30
    assert np.abs(times - 100).max() < 43


@pytest.mark.parametrize("n_rows", [65, 101, 640])
def test_of_rows_that_are_read_in_parts_one_of_each_stretch_is_held_out(n_rows):
    drawn = []
    for seed in range(20):
        held_out = hold_out(n_rows, n_at_once=60, seed=seed, validation_fraction=0.5)
        n = min(n_rows // 2, 60 * 10 // (10 + 2 * 4 * 2))  # with the noise of their draws
        assert len(held_out) == n
        edges = np.arange(n + 1) * n_rows // n
        found = np.searchsorted(edges, np.sort(held_out), side="right") - 1
        assert found.tolist() == list(range(n))
        assert sorted(held_out) != held_out.tolist()  # in random order
        drawn.append(tuple(sorted(held_out)))
    assert len(set(drawn)) == 20


@pytest.mark.parametrize("early_stopping", ["auto", True])
@pytest.mark.parametrize("n_at_once", [100, 400])
def test_no_group_is_divided(early_stopping, n_at_once):
    group = np.random.default_rng(0).integers(30, size=400)
    group = np.unique(group, return_inverse=True)[1]
    sizes = np.bincount(group)
    for seed in range(10):
        held_out = hold_out(
            400, n_at_once=n_at_once, seed=seed, group=group, early_stopping=early_stopping
        )
        out = np.bincount(group[held_out], minlength=30)
        assert set(np.unique(out / sizes)) == {0, 1}
        # As many groups as it takes for a tenth of the rows.
        assert 40 <= len(held_out) < 40 + sizes.max()
        assert len(held_out) == len(set(held_out))


def test_one_group_at_least_is_trained_on():
    group = np.repeat([0, 1], [5, 35])
    for seed in range(10):
        held_out = hold_out(40, seed=seed, group=group, validation_fraction=0.9)
        assert len(set(group[held_out])) == 1


def test_too_few_rows_to_hold_one_out_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"too small: 0\.1 of 9 rows\. Increase 'validation"):
        hold_out(9, early_stopping=True)
    assert len(hold_out(9, early_stopping=True, validation_fraction=0.12)) == 1


# --- what luck may do -------------------------------------------------------------------------


def table(n=60):
    return np.random.default_rng(0).normal(size=(n, 3))


@pytest.mark.parametrize("n", [20, 100, 1000])
def test_an_epoch_must_win_by_more_standard_errors_where_fewer_rows_are_held_out(n):
    job, _ = prepare(VAETransformer(2, random_state=0), table(n))
    n_held_out = n // 10
    assert job.plan.n_held_out == n_held_out
    assert job.plan.n_errors == needed_errors(np.ones(n_held_out))


def test_groups_are_as_many_as_speak_for_an_epoch():
    group = np.arange(100) // 4
    job, _ = prepare(VAETransformer(2, random_state=0), table(100), groups=group)
    n_groups = len(set(group[job.held_out]))
    assert n_groups == 3
    assert job.plan.n_held_out == 12
    assert job.plan.n_errors == needed_errors(np.ones(3))


def test_weights_make_fewer_of_the_rows_that_speak_for_an_epoch():
    weight = np.random.default_rng(0).exponential(size=100)
    job, _ = prepare(VAETransformer(2, random_state=0), table(100), sample_weight=weight)
    assert job.plan.n_errors == pytest.approx(needed_errors(weight[job.held_out]))
    assert job.plan.n_errors > needed_errors(np.ones(10))


def test_by_one_row_no_epoch_is_told_from_luck():
    vae = VAETransformer(2, early_stopping=True, random_state=0)
    assert prepare(vae, table(10))[0].plan.n_errors == np.inf


def test_batches_are_of_the_rows_that_are_trained_on():
    job, _ = prepare(VAETransformer(2, early_stopping=True, random_state=0), table(30))
    assert job.plan.batch_size == 27


def test_of_many_rows_in_groups_as_many_are_judged_as_have_room():
    group = np.arange(1000) // 100
    vae = VAETransformer(2, batch_size=16, random_state=0)
    with config_context(working_memory=0.01):
        job, _ = prepare(vae, np.random.default_rng(0).normal(size=(1000, 10)), groups=group)
    assert len(job.held_out) == 300  # three groups
    assert job.plan.n_held_out < 300
