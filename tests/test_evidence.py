"""What rows that are held out tell of two models: means, standard errors, and far rows."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from skvae._model.evidence import FAR_DIFFERENCE, FAR_ROW, excess, gain, is_better, needed_errors


def losses(n=40, seed=0):
    """Losses of the same rows under two models."""
    rng = np.random.default_rng(seed)
    worse = rng.gamma(2.0, size=n)
    return worse, worse - 0.1 + 0.3 * rng.normal(size=n)


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


WEIGHTS = {
    "none": None,
    "equal": np.full(40, 7.0),
    "unequal": np.random.default_rng(1).exponential(size=40),
}
GROUPS = {
    "none": None,
    "single rows": np.random.default_rng(4).permutation(40),
    "of one size": np.random.default_rng(2).permutation(np.repeat([3, -1, 12, 5], 10)),
    "of any size": np.random.default_rng(3).integers(6, size=40),
}


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_gain_is_the_weighted_mean_with_the_standard_error_of_the_sums_of_groups(weight, group):
    worse, better = losses()
    given = [None if v is None else torch.from_numpy(v) for v in (weight, group)]
    mean, error = gain(*tensors(worse, better), *given)
    difference = worse - better
    share = np.full(40, 1 / 40) if weight is None else weight / weight.sum()
    names = np.arange(40) if group is None else group
    assert mean == pytest.approx(share @ difference, rel=1e-12)
    sums = np.array([(share * (difference - mean))[names == g].sum() for g in np.unique(names)])
    expected = math.sqrt(len(sums) / (len(sums) - 1) * np.square(sums).sum())
    assert error == pytest.approx(expected, rel=1e-12)
    if weight is None and group is None:  # the textbook's
        assert error == pytest.approx(difference.std(ddof=1) / math.sqrt(40), rel=1e-12)


def test_copies_of_rows_that_are_in_one_group_make_nothing_more_certain():
    worse, better = losses()
    group = np.arange(40)
    once = gain(*tensors(worse, better), None, torch.from_numpy(group))
    copies = tensors(*(np.tile(array, 5) for array in (worse, better)))
    five = gain(*copies, None, torch.from_numpy(np.tile(group, 5)))
    assert five == pytest.approx(once, rel=1e-12)
    # As rows by themselves they would look more certain by a factor of about the root of 5.
    assert gain(*copies)[1] == pytest.approx(once[1] / math.sqrt(5), rel=0.02)


@pytest.mark.parametrize("n", [1, 40])
def test_one_group_tells_nothing_of_the_error(n):
    mean, error = gain(torch.ones(n), torch.zeros(n), None, torch.zeros(n, dtype=torch.long))
    assert (mean, error) == (1.0, math.inf)
    assert gain(torch.ones(1), torch.zeros(1)) == (1.0, math.inf)


def test_gain_is_a_float64_of_float32_losses():
    worse = torch.full((1000,), 1e6)
    better = worse - 0.0625  # a step of float32 there
    mean, error = gain(worse, better)
    assert mean == pytest.approx(0.0625, rel=1e-12)
    assert error < 1e-12


@pytest.mark.parametrize("weighted", [False, True])
def test_better_is_lower_by_more_than_so_many_standard_errors(weighted):
    worse, better = tensors(*losses())
    weight = torch.linspace(0.1, 3, 40).double() if weighted else None
    mean, error = gain(worse, better, weight)
    ratio = mean / error
    assert is_better(worse, better, 0.999 * ratio, weight)
    assert not is_better(worse, better, 1.001 * ratio, weight)
    assert not is_better(better, worse, 0.0, weight)


def test_the_same_losses_are_no_better():
    worse, _ = tensors(*losses())
    assert not is_better(worse, worse, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_losses_that_are_finite_are_better_than_others(value):
    worse, _ = tensors(*losses())
    spoiled = worse.clone()
    spoiled[3] = value
    assert is_better(spoiled, worse, 2.0)
    assert not is_better(worse, spoiled, 2.0)
    assert not is_better(spoiled, spoiled, 2.0)


# --- far rows ---------------------------------------------------------------------------------


def mean_distance(values, low, high):
    """From the median, of values that are cut at those of these ranks."""
    ranked = np.sort(values)
    middle = ranked[(len(values) - 1) // 2]
    return middle, np.abs(np.clip(values, ranked[low], ranked[high]) - middle).mean()


def test_excess_is_0_where_no_row_is_far_beyond_the_others():
    rng = np.random.default_rng(0)
    # 20 mean distances above the median of an exponential: a chance of 1e-5 in 100 rows.
    rows = torch.from_numpy(rng.exponential(size=(3, 100)))
    assert excess(rows).tolist() == [0, 0, 0]


@pytest.mark.parametrize("far", [1e3, 1e6, 1e12])
def test_a_row_far_beyond_the_others_counts_as_one_at_the_bound(far):
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(np.stack([rng.normal(size=101), 5 * rng.normal(size=101)]))
    rows[:, 50] = far
    own = rows.numpy()
    # 5 % of 101 rows are 5.05, 95 % are 95.95.
    bound = [sum(np.multiply((1, FAR_ROW), mean_distance(r, 5, 95))) for r in own]
    expected = np.minimum(own, np.reshape(bound, (2, 1))).mean(axis=1)
    # far / 101 has about 1e-16 of its size of rounding.
    np.testing.assert_allclose(own.mean(axis=1) - excess(rows).numpy(), expected, atol=1e-15 * far)


def test_what_a_far_row_counts_has_a_bound_however_far_it_is():
    rows = torch.linspace(0, 1, 100).double().repeat(4, 1)
    rows[:, -1] = torch.tensor([1.0, 1e2, 1e5, 1e8])
    judged = rows.mean(1) - excess(rows)
    # The median is half, the mean distance about a quarter: 5.5 in the place of what is beyond.
    assert judged[1:].tolist() == pytest.approx([judged[1].item()] * 3, abs=1e-8)
    assert judged[1] - judged[0] == pytest.approx((0.5 + 20 * 0.25 - 1) / 100, rel=0.05)


def test_excess_of_rows_that_are_repeated_is_that_of_whole_weights():
    rng = np.random.default_rng(5)
    rows, times = rng.gamma(0.1, size=60) ** 3, rng.integers(0, 4, size=60)
    weight = torch.from_numpy(times / times.mean()).unsqueeze(0)
    repeated = torch.from_numpy(np.repeat(rows, times)).unsqueeze(0)
    assert excess(repeated).item() > 0
    weighed = excess(torch.from_numpy(rows).unsqueeze(0), weight)
    assert weighed.item() == pytest.approx(excess(repeated).item(), rel=1e-9)


@pytest.mark.parametrize("n_other", [1, 4, 10, 30])
def test_where_most_losses_are_equal_the_others_still_count(n_other):
    # Zeros in most rows of a sparse table: an epoch that is worse on all others is worse.
    rows = torch.zeros(2, 100).double()
    rows[0, :n_other], rows[1, :n_other] = 1.0, 2.0
    judged = rows.mean(1) - excess(rows)
    assert judged[1] > judged[0]


@pytest.mark.parametrize("n_other", [1, 4, 10, 40])
def test_where_most_differences_are_equal_the_others_still_count(n_other):
    worse, better = torch.zeros(100).double(), torch.full((100,), -1e-9).double()
    better[:n_other] += torch.linspace(1, 2, n_other).double()
    mean, error = gain(worse, better)
    assert mean == pytest.approx(-1.5 * n_other / 100, rel=0.4)
    assert error > 0
    assert not is_better(worse, better, 1.0)


def test_of_two_models_far_differences_are_moved_to_the_limit_on_both_sides():
    rng = np.random.default_rng(6)
    difference = rng.normal(0.3, 1.0, size=101)
    difference[:2] = 1e6, -1e4
    middle, distance = mean_distance(difference, 5, 95)
    limit = FAR_DIFFERENCE * distance
    expected = np.clip(difference, middle - limit, middle + limit)
    mean, error = gain(torch.from_numpy(difference), torch.zeros(101).double())
    assert mean == pytest.approx(expected.mean(), rel=1e-12)
    assert error == pytest.approx(expected.std(ddof=1) / np.sqrt(101), rel=1e-12)


# --- how much is enough -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [6, 12, 30, 100, 100_000])
def test_few_rows_need_more_standard_errors(n):
    # As unlikely by Student's t as 1 + 16 / n are under a normal distribution.
    expected = scipy.stats.t(n - 1).isf(scipy.stats.norm.sf(1 + 16 / n))
    assert needed_errors(np.ones(n)) == pytest.approx(expected, rel=1e-6)


def test_the_fewest_rows_tell_nothing():
    assert needed_errors(np.ones(1)) == math.inf
    assert needed_errors(np.array([3.0, 0.0])) == math.inf
    assert needed_errors(np.array([1e9, 1.0])) > 1e3
    assert needed_errors(np.ones(2)) > 1e5


def test_rows_of_a_group_are_one_and_weights_make_fewer_of_them():
    group = np.array([7, 7, 7, 2, 2, 2, 5, 5, 5])
    assert needed_errors(np.ones(9), group) == needed_errors(np.ones(3))
    assert needed_errors(np.ones(9), np.zeros(9, int)) == math.inf
    # Twelve rows of these weights say as much as nine.
    weight = np.repeat([1.0, 2 + math.sqrt(3)], 6)
    assert needed_errors(weight) == pytest.approx(needed_errors(np.ones(9)), rel=1e-9)
    assert needed_errors(8 * weight) == pytest.approx(needed_errors(weight))


def test_a_model_that_fails_on_single_rows_is_no_better():
    # Better by 1 on 96 of 100 rows, and worse by far more on the others.
    rng = np.random.default_rng(0)
    worse = torch.from_numpy(1 + 0.5 * rng.normal(size=100))
    better = torch.zeros(100).double()
    for n_failed, expected in ((0, True), (1, True), (4, False)):
        failing = better.clone()
        failing[:n_failed] = 1e4
        mean, error = gain(worse, failing)
        assert mean > error
        assert is_better(worse, failing, 1.0) == expected
