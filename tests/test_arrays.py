"""The border between numpy and torch: units, blocks of rows, noise, devices, modes."""

import math
import re
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch
from architectures import architecture_of
from scipy.sparse import csr_array
from threadpoolctl import threadpool_limits

from skvae._backend import blocks, devices, quadrature
from skvae._backend.tensors import to_array, to_tensor
from skvae._data import arrays, statistics, words
from skvae._data.units import FARTHEST, Units, check_reach, fill_standardised, restore, standardise
from skvae._model import objective
from skvae._model.rows import Batch
from skvae._model.state import from_state, initial_state

CPU = torch.device("cpu")
FLOAT32 = np.finfo(np.float32).eps
FLOAT64 = np.finfo(np.float64).eps


@pytest.fixture(params=[1, 7, 100])
def small_blocks(request, monkeypatch):
    """Blocks of a few values: of one row, of two with a ragged end, of all."""
    slices, times = arrays.slices, 2**20 // request.param
    monkeypatch.setattr(arrays, "slices", lambda X, n_features: slices(X, times * n_features))


# --- describe_columns -------------------------------------------------------------------------


def exact_mean_std(column):
    """Mean and standard deviation in rational arithmetic, rounded once at the end."""
    values = [Fraction(float(value)) for value in column]
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    unit = max(map(abs, values))
    return float(mean), float(unit) * math.sqrt(variance / unit**2)


@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [(np.float32, exponent) for exponent in (-30, -3, 0, 3, 30)]
    + [(np.float64, exponent) for exponent in (-300, -160, -30, -3, 0, 3, 30, 160, 300)],
)
def test_describe_columns_equals_rational_arithmetic_at_every_magnitude(dtype, exponent):
    t = np.random.default_rng(0).normal([0, 5, -1e4], 1, size=(23, 3))
    X = (t * 10.0**exponent).astype(dtype)

    mean, std, *_ = statistics.describe_columns(X)

    assert mean.dtype == std.dtype == np.float64
    expected = np.transpose([exact_mean_std(column) for column in X.T])
    # The rounding of x / magnitude is relative to the largest value of the column.
    tolerance = 10 * FLOAT64 * abs(X).max(axis=0)
    assert (abs(mean - expected[0]) <= tolerance).all()
    assert (abs(std - expected[1]) <= tolerance).all()


def test_describe_columns_of_values_near_the_largest_float_does_not_overflow():
    X = np.array([[-1.7e308, 1e-3], [1.7e308, 3e-3]])
    mean, std, *_ = statistics.describe_columns(X)
    np.testing.assert_allclose(mean, [0, 2e-3], rtol=1e-15)
    np.testing.assert_allclose(std, [1.7e308, 1e-3], rtol=1e-15)


@pytest.mark.usefixtures("small_blocks")
def test_describe_columns_in_blocks_equals_the_whole():
    X = np.random.default_rng(0).normal(5, 2, size=(21, 3))
    mean, std, *_ = statistics.describe_columns(X)
    np.testing.assert_allclose(mean, X.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(std, X.std(axis=0), rtol=1e-14)


@pytest.mark.parametrize("value", [0.0, 0.1, -0.1, 1 / 3, 1e300, -1e-300, 1.7e9])
def test_describe_columns_gives_a_constant_column_std_0_and_the_constant_itself(value):
    X = np.full((1001, 2), value)
    X[:, 1] += np.arange(1001)
    mean, std, *_ = statistics.describe_columns(X)
    assert mean[0] == value
    assert std[0] == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e30])
def test_describe_columns_calls_constant_what_the_dtype_does_not_resolve(magnitude, dtype):
    # Sums of float64 numbers resolve a little less than the numbers do.
    eps = max(np.finfo(dtype).eps, 50 * FLOAT64)
    noise = np.array([[0.0, 0.0], [2 * eps, 50 * eps]] * 10)
    X = (magnitude * (1 + noise)).astype(dtype)

    mean, std, *_ = statistics.describe_columns(X)

    assert std[0] == 0
    assert mean[0] in X[:, 0]
    assert std[1] == pytest.approx(25 * eps * magnitude, rel=0.05)
    if dtype is np.float32:  # the same numbers are resolved by float64
        assert (statistics.describe_columns(X.astype(np.float64)).std > 0).all()


def mostly_zeros(order, n_rows=240_000):
    """A column in which 20 of 24 rows are 0, and the others have a value of their own."""
    column = np.where(np.arange(n_rows) % 24 < 4, 1.0 + np.arange(n_rows), 0.0)
    return {"as is": column, "up": np.sort(column), "down": np.sort(column)[::-1]}[order]


@pytest.mark.parametrize("container", [np.asarray, csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("order", ["as is", "up", "down"])
def test_describe_columns_finds_a_common_value_whatever_the_order_of_the_rows(order, container):
    columns = [mostly_zeros(order), 5.0 * (mostly_zeros(order) > 0), np.arange(240_000.0)]
    columns = statistics.describe_columns(container(np.column_stack(columns)))
    assert columns.n_various[:2].tolist() == [40_000, 40_000]
    assert columns.n_various[2] >= 239_999


@pytest.mark.usefixtures("small_blocks")
def test_describe_columns_finds_a_common_value_that_is_seldom_there(monkeypatch):
    monkeypatch.setattr(statistics, "MEDIAN_ROWS", 5)
    X = np.full((500, 3), np.nan)
    X[:, 0] = 1.0
    X[::50, 1] = 3.0  # 10 rows
    X[50, 1] = 4.0
    assert statistics.describe_columns(X).n_various.tolist() == [0, 1, 0]


@pytest.mark.parametrize("n_rows", [7, 1000, 10_000])
def test_describe_columns_of_a_small_table_knows_the_median_of_all_rows(n_rows):
    X = np.random.default_rng(0).normal(size=(n_rows, 3))
    X[n_rows // 2 :, 1] = np.nan
    found = statistics._find_common(X, lambda block: block, 3)
    expected = np.nanquantile(X, 0.5, axis=0, method="inverted_cdf")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_describe_columns_of_a_column_with_infinity_raises_and_names_it(value):
    X = np.ones((5, 4))
    X[3, 2] = value
    with pytest.raises(ValueError, match=r"Input X contains infinity in column 2\."):
        statistics.describe_columns(X)


# --- standardise and restore ------------------------------------------------------------------


def standardised(X, location, scale):
    return standardise(X, Units.of(np.array(location), np.array(scale))).numpy()


@pytest.mark.parametrize(
    ("location", "scale"), [(1.7e9, 1e3), (-1.7e9, 1e3), (0, 1e-6), (0, 1e6), (3e-250, 1e-253)]
)
def test_standardise_keeps_the_digits_of_a_large_location(location, scale):
    t = np.random.default_rng(0).normal(size=(50, 1))
    X = location + scale * t

    Y = standardised(X, [location], [scale])

    assert Y.dtype == np.float32
    # X itself is rounded to float64 before, the result to float32 at the end.
    tolerance = FLOAT32 * abs(t) + 2 * FLOAT64 * abs(location) / scale
    assert (abs(Y - t) <= tolerance).all()


def test_standardise_subtracts_in_float64_where_x_is_float32():
    X = np.float32([[16777216.0], [16777218.0]])
    Y = standardised(X, [16777217.0], [1.0])
    np.testing.assert_array_equal(Y, [[-1], [1]])


def test_standardise_gives_constant_columns_0_whatever_comes():
    X = np.array([[5.0, 1.0], [7.0, 2.0], [1e300, 3.0], [np.inf, 2.0]])
    Y = standardised(X, [5.0, 2.0], [0.0, 1.0])
    np.testing.assert_array_equal(Y, [[0, -1], [0, 0], [0, 1], [0, 0]])


@pytest.mark.parametrize("value", [1e20, -1e20, 1.7e308, -1.7e308, np.inf])
@pytest.mark.parametrize(
    ("labels", "column"),
    [
        (words.UNNAMED, "column 1"),
        (words.Labels(np.array(["a", "b", "c"])), "column 1 ('b')"),
        (words.Labels(indices=[4, 7, 2]), "column 7"),
        (words.Labels(np.array(["a", "b", "c"]), [1, 2, 0]), "column 2 ('c')"),
    ],
)
def test_check_reach_of_a_far_value_raises_and_names_column_and_value(value, labels, column):
    X = np.zeros((4, 3))
    X[2, 1], X[3, 0] = value, np.nan
    units = Units.of(np.array([0, -7, 0.0]), np.array([1, 1e-4, 1]))
    message = (
        f"X has the value {value:.10g} in {column}: more than 1e+10 times the scale of the "
        "training data (0.0001 around -7)."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        check_reach(standardise(X, units), X, units, labels)


def test_standardise_leaves_missing_values_missing():
    X = np.array([[0.0, 1.0], [np.nan, np.nan], [np.nan, 3.0]])
    Y = standardised(X, [0.0, 1.0], [0.0, 2.0])  # but for those of constant columns
    np.testing.assert_array_equal(Y, [[0, 0], [0, np.nan], [0, 1]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_check_reach_gives_the_largest_distance_or_nan(dtype):
    units = Units.of(np.array([1.0, 0.0]), np.array([2.0, 0.0]))

    def reach(X):
        return check_reach(standardise(X, units, dtype), X, units)

    assert reach(np.array([[7.0, 9.0], [0.0, -1e300]])) == 3
    assert reach(np.array([[-9.0, 9.0], [7.0, 0.0]])) == 5
    assert np.isnan(reach(np.array([[-9.0, 9.0], [np.nan, 0.0]])))


def test_check_reach_accepts_values_up_to_the_farthest_whose_square_float32_holds():
    X = np.array([[FARTHEST], [-FARTHEST]])
    units = Units.of(np.zeros(1), np.ones(1))
    y = standardise(X, units)
    assert check_reach(y, X, units) == FARTHEST
    assert (y / 0.01).square().isfinite().all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("given", [np.float32, np.float64])
def test_standardise_gives_the_dtype_that_was_asked_for(given, dtype):
    X = np.random.default_rng(0).normal(size=(50, 2)).astype(given)
    location, scale = np.array([1 / 3, -7]), np.array([0.1, 3])
    units = Units.of(location, scale)
    Y = standardise(X, units, getattr(torch, np.dtype(dtype).name)).numpy()
    assert Y.dtype == dtype
    np.testing.assert_array_equal(Y, ((X - location) / scale).astype(dtype))


def test_standardise_does_not_change_its_input():
    X = np.arange(6.0).reshape(3, 2)
    standardised(X, [1.0, 1.0], [0.0, 2.0])
    np.testing.assert_array_equal(X, np.arange(6.0).reshape(3, 2))


def test_restore_of_standardised_rows_gives_them_back():
    rng = np.random.default_rng(0)
    location, scale = np.array([1.7e9, 0, -3, 42]), np.array([1e3, 1e-6, 1e6, 0])
    t = rng.normal(size=(30, 4))
    X = location + scale * t
    restored = restore(standardised(X, location, scale), location, scale)
    assert restored.dtype == np.float64
    assert (abs(restored - X) <= FLOAT32 * abs(scale * t) + 2 * FLOAT64 * abs(X)).all()
    np.testing.assert_array_equal(restored[:, 3], 42)


@pytest.mark.usefixtures("small_blocks")
def test_rows_standardised_in_blocks_equal_the_whole():
    X = np.random.default_rng(0).normal(size=(21, 3))
    location, scale = np.array([0, 1, 2.0]), np.array([1, 0, 3.0])
    Y = torch.empty(X.shape)
    fill_standardised(Y, X, Units.of(location, scale))
    assert Y.dtype == torch.float32
    np.testing.assert_array_equal(Y.numpy(), standardised(X, location, scale))


# --- tensors and arrays -----------------------------------------------------------------------

VIEWS = {
    "whole": lambda a: a,
    "strided": lambda a: a[::2, 1:],
    "transposed": lambda a: a.T,
    "reversed": lambda a: a[::-1],
    "broadcast": lambda a: np.broadcast_to(a[0], (3, 4)),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_to_tensor_copies_any_view(view, dtype):
    array = np.arange(20.0, dtype=dtype).reshape(5, 4)
    expected = view(array).copy()
    tensor = to_tensor(view(array), CPU)
    array[:] = -1
    assert tensor.numpy().dtype == dtype
    np.testing.assert_array_equal(tensor.numpy(), expected)


def test_to_tensor_copies_a_read_only_memory_map(tmp_path):
    np.save(tmp_path / "X.npy", np.arange(6.0).reshape(3, 2))
    array = np.load(tmp_path / "X.npy", mmap_mode="r")
    tensor = to_tensor(array, CPU)
    np.testing.assert_array_equal(tensor.numpy(), np.arange(6.0).reshape(3, 2))
    assert not np.shares_memory(tensor.numpy(), array)


def test_to_array_is_a_copy_that_no_gradient_holds():
    tensor = torch.ones(3, requires_grad=True)
    array = to_array(tensor)
    array[:] = 7
    assert tensor.tolist() == [1, 1, 1]


# --- blocks of rows ---------------------------------------------------------------------------


@pytest.mark.parametrize("n_weights", [0, 1, 100, 2**16, 70_001, 2**20, 5_000_001, 2**27, 2**40])
@pytest.mark.parametrize("width", [1, 128, 200, 784, 8192, 8193, 10**6])
def test_block_rows_is_a_multiple_of_32_of_bounded_cost_and_size(n_weights, width):
    def fits(n_rows):
        return n_rows * n_weights <= 2**27 and n_rows * width <= blocks.BLOCK_VALUES

    n_rows = blocks.block_rows(n_weights, width)
    assert n_rows % 32 == 0
    assert 32 <= n_rows <= 2048
    assert n_rows == 32 or fits(n_rows)
    assert n_rows == 2048 or not fits(n_rows + 32)


@pytest.mark.parametrize(
    ("n_rows", "width"), [(32, 1), (64, 128), (320, 784), (2048, 20), (32, 9999)]
)
def test_draws_at_once_are_as_many_as_fit_and_at_least_one(n_rows, width):
    n_draws = blocks.draws_at_once(n_rows, width)
    assert n_draws == 1 or n_draws * n_rows * width <= blocks.BLOCK_VALUES
    assert (n_draws + 1) * n_rows * width > blocks.BLOCK_VALUES


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_to_block_has_all_rows_and_zeros_below(dtype):
    rows = np.arange(6, dtype=dtype).reshape(3, 2)
    block = blocks.to_block(torch.tensor(rows), 5, CPU).numpy()
    assert block.dtype == dtype
    np.testing.assert_array_equal(block, [*rows, [0, 0], [0, 0]])
    np.testing.assert_array_equal(blocks.to_block(torch.tensor(rows), 3, CPU).numpy(), rows)


def filled(function, n_samples, n_rows, n_threads=1):
    """One column of float64, filled by `map_rows`."""
    output = np.full((n_samples, 1), np.nan)
    blocks.map_rows(lambda rows: [function(rows)], [output], n_rows, CPU, n_threads)
    return output[:, 0]


def numbers(rows):
    return np.arange(rows.start, rows.stop)[:, None]


@pytest.mark.parametrize(
    ("activation", "n_rows"), [("silu", 32), ("tanh", 224), ("elu", 32)], ids=str
)
@pytest.mark.parametrize(
    ("n_features", "hidden", "n_components"),
    [
        (1, (), 1),
        (2, (3,), 1),
        (5, (64,), 3),
        (10, (), 2),
        (13, (50,), 2),
        (17, (200, 30), 5),
        (30, (), 4),
        (64, (128, 64), 7),
        (101, (7,), 2),
        (101, (257,), 3),
        (401, (301, 99), 6),
    ],
)
def test_map_rows_gives_a_row_the_same_bits_whatever_rows_come_with_it(
    n_features, hidden, n_components, activation, n_rows
):
    # A BLAS may take another path for another number of rows, or for another place among
    # them, and an elementwise kernel for what does not fill a vector: sizes of every kind.
    described = architecture_of(n_features, n_components, hidden, activation=activation)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(37, n_features)).astype(np.float32)
    state = initial_state(described, statistics.describe_columns(X), 0)
    model = from_state(described, state)

    eps = torch.tensor(quadrature.score_noise(5, n_components)[:, None, :], dtype=torch.float32)

    def infer(X):
        def results(rows):
            y = blocks.to_block(torch.tensor(X[rows]), n_rows, CPU)
            mean, std = model.encode_rows(Batch(y))
            tensors = mean, std, model.decode_mean(mean), objective.elbo(model, Batch(y, eps))
            return list(map(to_array, tensors))

        outputs = [np.empty((len(X), n)) for n in (n_components, n_components, n_features)]
        outputs.append(np.empty(len(X)))
        blocks.map_rows(results, outputs, n_rows, CPU)
        return np.column_stack(outputs)

    whole = infer(X)
    assert np.isfinite(whole).all()
    order = rng.permutation(37)
    np.testing.assert_array_equal(infer(X[order]), whole[order])
    for some in (slice(0, 1), slice(5, 6), slice(30, 31), slice(3, 5), slice(20, 37)):
        np.testing.assert_array_equal(infer(X[some]), whole[some])


@pytest.mark.parametrize("n_threads", [1, 2, 4])
@pytest.mark.parametrize("n_samples", [1, 15, 16, 17, 32, 33, 1000])
def test_map_rows_fills_every_row_from_slices_of_one_length(n_samples, n_threads):
    lengths = set()

    def function(rows):
        lengths.add(rows.stop - rows.start)
        return numbers(rows)

    expected = np.arange(n_samples)
    np.testing.assert_array_equal(filled(function, n_samples, 16, n_threads), expected)
    assert lengths == {16}


def test_map_rows_fills_several_outputs_and_keeps_their_dtypes():
    outputs = np.empty(5, np.float32), np.empty((5, 2), np.float64)
    blocks.map_rows(lambda rows: [np.ones(2), np.full((2, 2), 1 / 3)], outputs, 2, CPU, 2)
    np.testing.assert_array_equal(outputs[0], np.ones(5, np.float32))
    np.testing.assert_array_equal(outputs[1], np.full((5, 2), 1 / 3))


@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_map_rows_computes_as_many_blocks_at_a_time_as_it_has_threads(n_threads):
    # Nobody passes the barrier before `n_threads` blocks are under way.
    barrier, states = threading.Barrier(n_threads, timeout=10), set()

    def function(rows):
        barrier.wait()
        states.add(
            (threading.get_ident(), torch.get_num_threads(), torch.is_inference_mode_enabled())
        )
        return numbers(rows)

    filled(function, 16 * 8, 16, n_threads)
    threads, counts, modes = zip(*states, strict=True)
    assert len(set(threads)) == n_threads
    assert set(counts) == {1}
    assert set(modes) == {True}


@pytest.mark.parametrize(("n_samples", "n_threads"), [(16, 4), (100, 1)])
def test_map_rows_stays_in_its_thread_where_one_is_enough(n_samples, n_threads):
    idents = set()

    def function(rows):
        idents.add(threading.get_ident())
        return numbers(rows)

    filled(function, n_samples, 16, n_threads)
    assert idents == {threading.get_ident()}


@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_map_rows_raises_the_error_of_the_first_rows_and_begins_no_further_block(n_threads):
    begun, before = [], threading.active_count()

    def function(rows):
        begun.append(rows.start)
        if rows.start >= 160:
            # The later, the sooner.
            time.sleep(max(0, 200 - rows.start) / 1000)
            raise ValueError(f"rows from {rows.start}")
        return numbers(rows)

    with pytest.raises(ValueError, match="rows from 160"):
        filled(function, 16 * 1000, 16, n_threads)
    assert len(begun) <= 11 + n_threads
    assert threading.active_count() == before


@pytest.mark.parametrize("moment", [0, 160])  # while threads are started, and later
def test_map_rows_ends_soon_after_ctrl_c(moment):
    main, begun = threading.main_thread(), []

    def function(rows):
        begun.append(rows.start)
        if rows.start == moment:
            signal.pthread_kill(main.ident, signal.SIGINT)
        time.sleep(0.01)
        return numbers(rows)

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        filled(function, 16 * 1000, 16, 2)
    assert len(begun) < 100
    # A thread that was being started when the signal came ends with its first block.
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_the_number_of_threads_is_put_back_wherever_ctrl_c_comes(monkeypatch):
    openmp = devices._openmp()

    class Interrupted:
        def limit(self, limits):
            limited = openmp.limit(limits=limits)
            if limits == 1:
                raise KeyboardInterrupt
            return limited

    with openmp.limit(limits=3):
        torch.get_num_threads()
        monkeypatch.setattr(devices, "_openmp", Interrupted)
        with pytest.raises(KeyboardInterrupt), devices.computing(CPU):
            pass
        assert torch.get_num_threads() == 3


def test_blocks_are_computed_in_one_error_mode_of_numpy_whichever_thread_takes_them():
    def function(rows):
        np.array([1e-300]).astype(np.float32)  # underflows
        return numbers(rows)

    with np.errstate(all="raise"):
        filled(function, 1000, 16, 2)


# --- noise of the score -----------------------------------------------------------------------

NOISE_SIZES = [(1, 1), (4, 1), (64, 2), (65, 2), (64, 16), (64, 17), (101, 5), (3, 40), (1000, 7)]


@pytest.mark.parametrize(
    ("n_draws", "n_components", "expected"),
    [
        (1, 1, 4),
        (4, 1, 4),
        (5, 1, 5),
        (1, 2, 8),
        (1, 3, 16),  # the power of two above 12
        (1, 4, 16),
        (1, 5, 32),
        (64, 2, 64),
        (65, 2, 65),
        (64, 16, 64),
        (64, 17, 128),
        (1000, 17, 1000),
        ("auto", 1, 256),
        ("auto", 16, 256),
        ("auto", 17, 512),
        ("auto", 40, 1024),
    ],
)
def test_score_noise_has_n_draws_or_the_power_of_two_from_4_n_components(
    n_draws, n_components, expected
):
    assert quadrature.score_noise(n_draws, n_components).shape == (expected, n_components)


@pytest.mark.parametrize(("n_draws", "n_components"), NOISE_SIZES)
def test_score_noise_has_mean_0_and_covariance_i(n_draws, n_components):
    noise = quadrature.score_noise(n_draws, n_components)
    # Rounding only: sums of up to 1000 numbers of size 1.
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=1e-14)
    covariance = noise.T @ noise / len(noise)
    np.testing.assert_allclose(covariance, np.eye(n_components), atol=1e-13)


@pytest.mark.parametrize(("n_draws", "n_components"), NOISE_SIZES)
def test_score_noise_is_antithetic_with_distinct_draws(n_draws, n_components):
    noise = quadrature.score_noise(n_draws, n_components)
    draws = {tuple(row) for row in noise}
    assert draws == {tuple(row) for row in -noise}
    assert len(draws) == len(noise)


@pytest.mark.parametrize("n_components", [1, 2, 5, 15])
def test_score_noise_of_fewer_components_is_its_first_columns(n_components):
    more = quadrature.score_noise(64, 16)
    fewer = quadrature.score_noise(64, n_components)
    assert len(more) == len(fewer) == 64
    np.testing.assert_allclose(more[:, :n_components], fewer, atol=1e-13)  # rounding of a solve


@pytest.mark.parametrize("n_components", [1, 2, 8])
def test_score_noise_is_normal_in_each_coordinate(n_components):
    noise = np.sort(quadrature.score_noise(256, n_components), axis=0)
    # The distance of Kolmogorov-Smirnov: 0.085 would be the 5 % limit of independent draws.
    cdf = (1 + torch.erf(torch.tensor(noise) / math.sqrt(2)).numpy()) / 2
    steps = (np.arange(256)[:, None] + 0.5) / 256
    assert abs(cdf - steps).max() < 0.03
    np.testing.assert_allclose((noise**4).mean(axis=0), 3, atol=0.35)


@pytest.mark.parametrize("n_components", [2, 8, 16, 32])
def test_the_radii_of_score_noise_vary_as_those_of_normals_do(n_components):
    # The squared radius has variance 2 L; of 64 draws in 16 dimensions a quarter of it is left.
    square = np.square(quadrature.score_noise("auto", n_components)).sum(axis=1)
    assert square.var() == pytest.approx(2 * n_components, rel=0.4)


# --- devices ----------------------------------------------------------------------------------


@pytest.fixture
def pretend(monkeypatch):
    """Pretend that torch has these accelerators."""

    def pretend(n_cuda=0, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n_cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n_cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("accelerators", "available", "auto"),
    [
        ({}, ["cpu"], "cpu"),
        ({"n_cuda": 2}, ["cpu", "cuda", "cuda:0", "cuda:1"], "cuda"),
        ({"mps": True}, ["cpu", "mps"], "mps"),
        ({"n_cuda": 1, "mps": True}, ["cpu", "cuda", "cuda:0", "mps"], "cuda"),
    ],
)
def test_resolve_device_knows_what_is_there_and_auto_is_the_accelerator(
    pretend, accelerators, available, auto
):
    pretend(**accelerators)
    assert devices.available_devices() == available
    assert devices.resolve_device("auto") == torch.device(auto)
    for name in available:
        assert devices.resolve_device(name) == torch.device(name)


@pytest.mark.parametrize("name", ["cuda:2", "mps", "tpu", "CPU", "", "cuda:-1"])
def test_resolve_device_of_what_is_not_there_raises_and_names_what_is(pretend, name):
    pretend(n_cuda=2)
    message = (
        f"device={name!r} is not available here. Available are: 'cpu', 'cuda', 'cuda:0', "
        "'cuda:1'. Use one of them or device='auto'."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        devices.resolve_device(name)


def test_device_or_cpu_of_what_is_no_accelerator_raises(pretend):
    pretend()
    with pytest.raises(ValueError, match="device='tpu' is not available here"):
        devices.device_or_cpu("tpu")


# --- generators and modes ---------------------------------------------------------------------


def in_fresh_thread(function):
    """The result of a function in a thread of its own."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result()


def threads_in_computing():
    """Threads of torch before, in and after a block, and after one that failed."""
    counts = [torch.get_num_threads()]
    with devices.computing(CPU):
        counts.append(torch.get_num_threads())
    counts.append(torch.get_num_threads())
    with pytest.raises(RuntimeError), devices.computing(CPU):
        raise RuntimeError
    return [*counts, torch.get_num_threads()]


def test_computing_is_done_on_one_thread_and_the_number_restored():
    def counts():
        torch.get_num_threads()  # a thread's first call sets its number
        with threadpool_limits(2, user_api="openmp"):
            return threads_in_computing()

    assert in_fresh_thread(counts) == [2, 1, 2, 2]


def test_computing_in_a_fresh_thread_holds_after_the_user_has_set_a_number():
    def inside():
        with devices.computing(CPU):
            return torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert in_fresh_thread(inside) == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(
    sys.platform == "win32" or "mkl_get_max_threads" not in torch.__config__.parallel_info(),
    reason="no MKL, or none whose number is in reach",
)
@pytest.mark.parametrize(("of_mkl", "after"), [(3, 3), (0, 4)])
def test_products_have_one_thread_in_computing_and_then_as_many_as_before(
    threads_of_products, of_mkl, after
):
    # A number of MKL's own, as torch.set_num_threads gives it one, or, where that is 0, OpenMP's.
    def counts():
        torch.get_num_threads()
        devices._limit_mkl()(of_mkl)
        with threadpool_limits(5, user_api="openmp"):
            with devices.computing(CPU):
                inside = threads_of_products()
            with threadpool_limits(4, user_api="openmp"):
                return inside, threads_of_products()

    assert in_fresh_thread(counts) == (1, after)
