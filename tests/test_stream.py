"""Rows that training goes on with: which of them are said to be unlike the first ones."""

import numpy as np
import pytest

from skvae._data import stream
from skvae._data.arrays import resolution_of
from skvae._data.statistics import describe_columns


def compare(first, now):
    of_first, of_now = describe_columns(first), describe_columns(now)
    of_first = of_first._replace(mean=np.where(of_first.is_empty, np.nan, of_first.mean))
    return stream.compare(of_first, of_now, now, lambda block: block, resolution_of(float))


ORDINARY = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "uniform": lambda rng, shape: rng.random(shape),
    "exponential": lambda rng, shape: rng.exponential(size=shape),
    "lognormal": lambda rng, shape: rng.lognormal(0, 1, shape),
    "lognormal, wide": lambda rng, shape: rng.lognormal(0, 1.5, shape),
    "Student": lambda rng, shape: rng.standard_t(2, shape),
    "few counts": lambda rng, shape: rng.poisson(0.05, shape).astype(float),
    "counts": lambda rng, shape: rng.poisson(5, shape).astype(float),
    "overdispersed counts": lambda rng, shape: rng.poisson(rng.gamma(0.2, 10, shape)).astype(float),
    "bools": lambda rng, shape: (rng.random(shape) < 0.5).astype(float),
    "rare bools": lambda rng, shape: (rng.random(shape) < 0.02).astype(float),
    "very rare bools": lambda rng, shape: (rng.random(shape) < 0.005).astype(float),
}


@pytest.mark.parametrize("draw", ORDINARY.values(), ids=ORDINARY)
@pytest.mark.parametrize("n_first", [50, 500])
def test_of_1000_blocks_like_the_first_less_than_one_leaves_its_units(draw, n_first):
    n_columns, n_found, n_varying = 1000, 0, 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        first = draw(rng, (n_first, n_columns))
        n_varying += (np.ptp(first, axis=0) > 0).sum()
        n_found += compare(first, draw(rng, (50, n_columns)))[0].sum()
    assert n_found < n_varying / 1000


GROWN = {
    "a thousand times as large": lambda X: 1000 * X,
    "ten times as large": lambda X: 10 * X,
    "a thousandth": lambda X: X / 1000,
    "a hundredth": lambda X: X / 100,
    "elsewhere": lambda X: X + 20,
    "large in some rows": lambda X: np.where(np.arange(len(X))[:, None] % 7 == 0, 1e5 * X, X),
}


@pytest.mark.parametrize("grow", GROWN.values(), ids=GROWN)
@pytest.mark.parametrize("kind", ["normal", "exponential", "lognormal"])
def test_rows_in_other_units_leave_those_of_the_first(grow, kind):
    draw, rng = ORDINARY[kind], np.random.default_rng(0)
    leaves, *_ = compare(draw(rng, (50, 100)), grow(draw(rng, (50, 100))))
    assert leaves.mean() > 0.85  # ten times is at the bounds of a lognormal column


def test_few_values_that_are_far_are_outliers():
    rng = np.random.default_rng(0)
    now = rng.normal(size=(50, 3))
    now[:2] = 1e6
    assert not compare(rng.normal(size=(50, 3)), now)[0].any()


def test_columns_of_mostly_zeros_that_grow_leave_their_units():
    rng = np.random.default_rng(0)
    first, now = (np.where(rng.random((500, 20)) < 0.02, rng.random((500, 20)), 0) for _ in "ab")
    assert not compare(first, now)[0].any()
    assert compare(first, 1000 * now)[0].all()


def test_two_rows_say_where_they_are_and_not_how_wide():
    first = np.random.default_rng(0).normal(size=(50, 2))
    assert compare(first, np.array([[40.0, 0.1], [41.0, 0.1001]]))[0].tolist() == [True, False]


def test_a_constant_column_varies_as_soon_as_one_value_is_another():
    first = np.tile([0.0, 0.1, 1.7e9, 3.0], (20, 1))
    now = np.tile([0.0, 0.1, 1.7e9, 5.0], (20, 1))
    now[3] = [1e-9, 0.1 + 1e-17, 1.7e9 + 60, 5.0]
    leaves, varies, filled = compare(first, now)
    assert not leaves.any()
    assert not filled.any()
    assert varies.tolist() == [True, False, True, True]


@pytest.mark.parametrize("value", [1.0, 0.0, 5e9])  # 1 stands for a mean where there is none
def test_a_column_that_had_no_value_is_filled_by_one_value(value):
    first = np.array([[np.nan, np.nan, 2.0, 1.0]] * 20)
    now = np.array([[np.nan, np.nan, 2.0, 1.0]] * 20)
    now[7, 1] = value
    leaves, varies, filled = compare(first, now)
    assert not leaves.any()
    assert not varies.any()
    assert filled.tolist() == [False, True, False, False]


def test_missing_values_are_not_compared():
    rng = np.random.default_rng(0)
    first, now = rng.normal(size=(50, 3)), rng.normal(size=(50, 3))
    first[:, 2] = 4.0
    now[:49, 0] = np.nan
    now[::2, 1:] = np.nan
    now[1::2, 2] = 4.0
    leaves, varies, filled = compare(first, now)
    assert not leaves.any()
    assert not varies.any()
    assert not filled.any()
