"""The only border between numpy and torch: devices, generators, units, blocks of rows.

Above this file arrays are numpy's, in the units of the user. Below it they are tensors,
mostly of float32, in the model's own units,

    y = (x - location) / scale,        column by column,

computed in float64 first, so that a column of 1.7e9 +- 1e3 keeps its digits. A column with
``scale == 0`` was constant in ``fit``: the model sees zeros there and gives back its
location.

Inference goes in blocks of one fixed number of rows, the last one padded, each computed on
one thread. A matrix product takes another path through the BLAS for another number of rows
and then rounds differently, and so do the last elements of a thread's share that don't fill
a vector; with one fixed shape, a multiple of 32, a row has the same result, bit for bit,
whatever rows come with it. Several threads take a block each; nothing larger than a block is
made but the result.
"""

import contextlib
import ctypes
import functools
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats import qmc
from threadpoolctl import ThreadpoolController
from torch import nn

# Largest distance from the training data, in units of `scale`, that float32 can carry
# through a network and a square: (1e10 / 0.01)**2 = 1e24, far below 3e38. A float64, so that
# what is compared with it becomes one too: no float16 is as large.
FARTHEST = np.float64(1e10)

# Multiplications in a training step below which one thread takes it: about a millisecond.
# Two that wait for each other in every operation were up to 90 times slower while another
# process was running.
FEW_PRODUCTS = 2**24

PRECISIONS = ("float32", "bf16", "float64")

# Values of the widest layer that inference makes at once: what a core keeps in its cache,
# and what malloc doesn't return to the system each time, to be cleared for the next use.
BLOCK_VALUES = 2**18

# Freed memory that each training thread keeps: more than a step of a stack takes.
KEPT_BYTES = 24 << 20

Array = np.ndarray[Any, Any]


# --- devices, generators, modes -----------------------------------------------------------


def available_devices() -> list[str]:
    """Names of the devices that torch can compute on here."""
    names = ["cpu"]
    if torch.cuda.is_available():
        names += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def resolve_device(name: str) -> torch.device:
    """The torch device called `name`; "auto" is the accelerator if there is one."""
    available = available_devices()
    if name == "auto":
        name = "cuda" if "cuda" in available else available[-1]
    if name not in available:
        raise ValueError(
            f"device={name!r} is not available here. Available are: "
            f"{', '.join(map(repr, available))}. Use one of them or device='auto'."
        )
    return torch.device(name)


def device_or_cpu(name: str) -> torch.device:
    """As `resolve_device`; the CPU, with a warning, where there is no such accelerator.

    So a model fitted on an accelerator works on a machine without one.
    """
    try:
        return resolve_device(name)
    except ValueError as error:
        if not name.startswith(("cuda", "mps")):
            raise
        warnings.warn(f"{error} Computing on the CPU.", UserWarning, stacklevel=4)
        return torch.device("cpu")


def dtype_of(precision: str, device: torch.device) -> type[np.floating[Any]]:
    """The dtype of a model's values."""
    if precision != "float64":
        return np.float32
    if device.type == "mps":
        raise ValueError("device='mps' has no float64. Use precision='float32', or device='cpu'.")
    return np.float64


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own: the global one is never read or moved."""
    return torch.Generator(device=device).manual_seed(seed)


@functools.cache
def _openmp() -> ThreadpoolController:
    """The thread pools of OpenMP, torch's among them, looked up once."""
    return ThreadpoolController().select(user_api="openmp")


@functools.cache
def _limit_mkl() -> Callable[[int], int]:
    """What gives the calling thread a number of MKL's own threads, and returns that before.

    0 is OpenMP's number. ``torch.set_num_threads`` gives MKL, which multiplies torch's matrices,
    another, that a limit of OpenMP leaves alone. MKL is inside of torch, where threadpoolctl
    doesn't find it.
    """
    try:
        # By the library of torch that is loaded already: symbols are looked up in all it needs.
        return ctypes.CDLL(torch._C.__file__).MKL_Set_Num_Threads_Local
    except (OSError, AttributeError):  # no MKL, or on Windows, where others' are not looked up
        return lambda n_threads: 0


@contextlib.contextmanager
def computing(device: torch.device, *, one_thread: bool) -> Iterator[None]:
    """Compute the same whatever grad, inference, autocast or numpy error mode the caller is in.

    No gradient is left to autograd (see `skvae.networks`), so nothing is recorded: that
    saves a sixth of a small training step.

    The limit to one thread holds for the calling thread alone and ends with the block.
    """
    n_threads = torch.get_num_threads()  # which a new thread asks for first
    # What is captured or replayed on a device must be said on it.
    on = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    errors = np.errstate(all="warn", under="ignore")  # numpy's own
    with torch.inference_mode(), torch.autocast(device.type, enabled=False), errors, on:
        limited = None
        of_mkl: list[int] = []
        try:
            if one_thread:
                # Limited and noted in one step, which Ctrl-C doesn't come between.
                of_mkl.extend(map(_limit_mkl(), [1]))
                limited = _openmp().limit(limits=1)
            yield
        finally:
            for n in of_mkl:
                _limit_mkl()(n)
            if limited is not None:
                limited.restore_original_limits()
            elif one_thread:  # Ctrl-C has come before it was known what was limited
                _openmp().limit(limits=n_threads)


@functools.cache
def keep_memory() -> None:
    """Have memory that is freed stay with the process, where its C library is glibc.

    Else that may give it back at the end of each training step, and the next one waits for the
    system to clear page after page. Free memory at the end of a heap, of which each thread has
    one, stays as long as it is less than twice the largest block of up to 32 MiB that the system
    itself had given and got back (mallopt(3), M_MMAP_THRESHOLD). Such a block is taken here and
    freed, without a word written to it.
    """
    torch.empty(KEPT_BYTES // 2, dtype=torch.uint8, device="cpu")


# --- arrays and tensors -------------------------------------------------------------------


def to_tensor(array: Array, device: torch.device | str) -> torch.Tensor:
    """A copy of `array` as a tensor of the same dtype: memory maps and views are welcome."""
    if torch.device(device).type == "mps" and array.dtype == np.float64:
        array = array.astype(np.float32)  # all that this device has
    # With strides that torch takes: those of a single row may be negative.
    return torch.from_numpy(np.array(array, order="C")).to(device)


def to_array(tensor: torch.Tensor) -> Array:
    """A copy of `tensor` in main memory."""
    return tensor.numpy(force=True).copy()


# --- units --------------------------------------------------------------------------------


class Moments(NamedTuple):
    """What a likelihood needs to know of the columns: arrays of shape (n_features,)."""

    mean: Array  # float64; the constant itself where the column is constant
    std: Array  # float64; 0 where the column is constant
    has_holes: bool = False  # whether values are missing, in a column that has some
    n_values: Array | None = None  # rows in which the column has a value; None: all
    # The lowest and the highest value, (2, n_features), where it is so far from the mean that it
    # may be no value but stand for a missing one; NaN elsewhere.
    suspects: Array | None = None
    # Rows whose value is not the one that more than half of the rows have; None: not known.
    n_various: Array | None = None
    # Whether the column is taken as constant, although its values differ by more than rounding, or
    # are whole numbers that are one as float64; None: not known.
    unresolved: Array | None = None

    @property
    def is_empty(self) -> Array:
        """Whether the column has no value at all, (n_features,); its mean is then 1."""
        return np.zeros(len(self.mean), bool) if self.n_values is None else self.n_values == 0


# Rows that say which value of a column may be the one that more than half of them have, and the
# values that are read of them at once.
MEDIAN_ROWS = 10_000
READ_AT_ONCE = 1 << 20


class Labels(NamedTuple):
    """What to call the columns of a block: by their places in X, and by names if they have any."""

    names: Array | None = None  # of all columns of X
    places: Array | None = None  # of those of the block; None: all

    def of(self, column: int) -> str:
        """Words for a column of the block."""
        place = column if self.places is None else self.places[column]
        name = "" if self.names is None else f" ({str(self.names[place])!r})"
        return f"column {place}{name}"


UNNAMED = Labels()


class Subset:
    """Some rows of X, none of which is copied before it is asked for: X may be a memory map."""

    def __init__(self, X: Array, rows: Array) -> None:
        self.X, self.rows, self.dtype = X, rows, X.dtype
        self.shape = len(rows), X.shape[1]

    def __getitem__(self, rows: Any) -> Array:
        return self.X[self.rows[rows]]


def slices(X: Array, n_features: int) -> Iterator[Array]:
    """`X` in dense blocks of rows, which become about a million values of so many features."""
    n_rows = max(1, READ_AT_ONCE // n_features)
    for start in range(0, X.shape[0], n_rows):
        yield dense(X[start : start + n_rows])


def dense(rows: Any) -> Array:
    """Some rows of X, which may be sparse."""
    return rows.toarray() if hasattr(rows, "toarray") else rows


def _blocks(X: Array, n_features: int) -> Iterator[Array]:
    """`X` in blocks of rows, as float64."""
    for block in slices(X, n_features):
        # Contiguous, so that sums over it are taken in one order, whatever that of X.
        yield np.ascontiguousarray(block, dtype=np.float64)


# What takes values that are outside of a likelihood's support by rounding into it.
Support = Callable[[Array], Array]


def find_extremes(X: Array, support: Support, n_features: int) -> tuple[Array, Array]:
    """The lowest and the highest value of each feature, (D,), in blocks; NaN where there is none.

    They are float64: those of a longdouble may be infinity then.
    """
    low = high = np.full(n_features, np.nan)
    for block in map(support, slices(X, n_features)):
        low = np.fmin(low, np.fmin.reduce(block, axis=0))
        high = np.fmax(high, np.fmax.reduce(block, axis=0))
    with np.errstate(over="ignore"):
        return np.asarray(low, np.float64), np.asarray(high, np.float64)


def describe_columns(
    X: Array,
    support: Support = lambda block: block,
    labels: Labels = UNNAMED,
    weight: Array | None = None,
) -> Moments:
    """Mean and standard deviation of each column, of any magnitude, in blocks of rows.

    The columns are those that `support` makes of those of X, which `labels` are of. NaN are
    missing values. A column is constant when its range is below the `resolution` of X. `weight`
    (n_samples,), above 0, is how much each row counts.

    A column without any value has a mean of 1, which every likelihood supports, and a standard
    deviation of 0.
    """
    n_features = X.shape[1] if labels.places is None else len(labels.places)
    low, high = find_extremes(X, support, n_features)
    empty, infinite = np.isnan(low), np.isinf(low) | np.isinf(high)
    if empty.all():
        raise ValueError(
            "Input X has only missing values. A model needs some values to learn from."
        )
    low, high = np.where(empty, 1.0, low), np.where(empty, 1.0, high)
    if infinite.any():  # under assume_finite=True, or as float64
        raise ValueError(f"Input X contains infinity in {labels.of(int(np.argmax(infinite)))}.")
    # Halves, since the range of the largest floats overflows.
    centre, radius = low / 2 + high / 2, high / 2 - low / 2
    size = np.maximum(abs(low), abs(high))
    constant = radius <= resolution_of(X.dtype) * size
    # Moments of values moved to [-1, 1], whose squares neither overflow nor vanish.
    unit = np.where(constant, 1.0, radius)
    total = square = n_there = np.zeros(n_features)
    plain_total = plain_square = np.zeros(n_features)  # without weights
    n_values, n_equal = np.zeros(n_features, np.int64), np.zeros((2, n_features), np.int64)
    # A value that more than half of the rows have is the median.
    common, n_common = _find_common(X, support, n_features), np.zeros(n_features, np.int64)
    start, has_holes = 0, False
    for block in map(support, _blocks(X, n_features)):
        if np.isnan(common[~empty]).any():  # values that are too rare to be met before
            common = np.where(np.isnan(common), _median(block[:MEDIAN_ROWS]), common)
        n_common += (block == common).sum(axis=0)
        moved = (block - centre) / unit
        there = ~np.isnan(moved)
        has_holes = has_holes or not (there | empty).all()
        n_values += there.sum(axis=0)
        n_equal += [(block == low).sum(axis=0), (block == high).sum(axis=0)]
        moved[~there] = 0.0
        counted = moved
        if weight is not None:
            plain_total = plain_total + moved.sum(axis=0)
            plain_square = plain_square + np.einsum("nd,nd->d", moved, moved)
            own = weight[start : start + len(block), None]
            counted, there = own * moved, own * there
        n_there = n_there + there.sum(axis=0)
        total = total + counted.sum(axis=0)
        square = square + np.einsum("nd,nd->d", moved, counted)
        start += len(block)
    n_there = np.where(empty, 1.0, n_there)
    mean = total / n_there
    std = unit * np.sqrt(np.maximum(square / n_there - mean**2, 0.0))
    if weight is None:
        plain_total, plain_square = total, square
    suspects = np.stack([low, high])
    suspects[:, constant] = np.nan
    suspects[~_stand_out(plain_total, plain_square, n_values, n_equal)] = np.nan
    centre = np.where(constant, low, centre + unit * mean)
    std = np.where(constant, 0.0, std)
    unresolved = constant & (radius > rounding_of(X.dtype) * size)
    unresolved |= _is_one_as_float(X, support, constant & (size > 2**53))
    return Moments(centre, std, has_holes, n_values, suspects, n_values - n_common, unresolved)


def _is_one_as_float(X: Array, support: Support, chosen: Array) -> Array:
    """Whether a `chosen` feature has different whole numbers, which float64 rounds to one, (D,)."""
    differs = np.zeros(len(chosen), bool)
    if X.dtype.kind not in "iu" or not chosen.any():
        return differs
    first = support(dense(X[:1]))
    for block in map(support, slices(X, len(chosen))):
        differs |= (block != first).any(axis=0)
    return chosen & differs


def _find_common(X: Array, support: Support, n_features: int) -> Array:
    """The lower median of each feature, (D,), by rows from everywhere; NaN where these have none.

    One row of each stretch of neighbouring rows is taken, at random: the first rows of a table that
    is sorted are no sample of it, nor is each 24th row of one that repeats itself after 24.
    """
    n = min(X.shape[0], MEDIAN_ROWS, max(1, READ_AT_ONCE // n_features))
    stretches = np.arange(n + 1) * X.shape[0] // n
    rows = np.random.default_rng(0).integers(stretches[:-1], stretches[1:])
    return _median(support(np.asarray(dense(X[rows]), dtype=np.float64)))


def _median(rows: Array) -> Array:
    """The lower median of the values of each column, (D,); NaN where there is none."""
    ordered = np.sort(rows, axis=0)  # NaN last
    last = (~np.isnan(ordered)).sum(axis=0) - 1
    return np.take_along_axis(ordered, np.maximum(last, 0)[None] // 2, axis=0)[0]


# --- values that stand for a missing one ----------------------------------------------------

# A sentinel is farther than this many mean distances, and farther than all of them together.
FAR_DISTANCES = 50


def _stand_out(total: Array, square: Array, n_there: Array, n_equal: Array) -> Array:
    """Whether the lowest and the highest value, -1 and 1, may be sentinels: (2, D).

    `total` and `square` are sums of `n_there` values in [-1, 1] and of their squares. `n_equal`,
    (2, D), is how often the value comes. With the mean m of the n others, and e the distance of
    the value from the mean of all, the others have

        sum (x_i - m)**2 = sum of the same of all - e**2 n_equal n_there / n,

    which is below the square of sum |x_i - m|, and that below that of the value's distance from m,
    e n_there / n, where the value is a sentinel.
    """
    n_there = np.maximum(n_there, 1)
    n_others = np.maximum(n_there - n_equal, 1)
    mean = total / n_there
    far = (np.stack([-1 - mean, 1 - mean]) * n_there) ** 2 / n_others
    of_all = square - mean * total
    # Besides, less than half of the values are.
    rounding = 1e-6 * square
    alone = of_all - far * n_equal / n_there <= far / n_others + rounding
    return alone & (n_equal < n_others)


def find_sentinels(
    X: Array, suspects: Array, support: Support = lambda block: block
) -> dict[int, tuple[float, int]]:
    """Columns with a value that is far beyond all others: the value, and in how many rows it is.

    `suspects` are those of `describe_columns`. A value is far beyond the others where its
    distance from their mean is larger than the sum of their own distances, and than
    `FAR_DISTANCES` times the mean of these over the values that are not at the one end at which
    most are, which in a column of counts is 0. It may be in several rows, but in fewer than half
    of those that have a value.

    Moments of all values would not do: beside 1e20, float64 knows nothing of the others. So
    each column is read again, in blocks, without the value.
    """
    sides, columns = np.nonzero(~np.isnan(suspects))
    if not len(columns):
        return {}
    value, n_features = suspects[sides, columns], suspects.shape[1]
    start, low, high = (np.full(len(columns), np.nan) for _ in range(3))
    total, n_others, n_equal = (np.zeros(len(columns)) for _ in range(3))

    def others() -> Iterator[tuple[Array, Array]]:
        for block in map(support, _blocks(X, n_features)):
            own = block[:, columns]
            yield np.where(own == value, np.nan, own), (own == value).sum(axis=0)

    with np.errstate(over="ignore", invalid="ignore"):  # of values such as 1e308
        for own, n in others():
            there = ~np.isnan(own)
            low, high = np.fmin(low, np.fmin.reduce(own)), np.fmax(high, np.fmax.reduce(own))
            # From a value of the column, so that the sum keeps the digits of differences.
            first = own[there.argmax(axis=0), np.arange(len(columns))]
            start = np.where(np.isnan(start), first, start)
            total += np.where(there, own - start, 0.0).sum(axis=0)
            n_others, n_equal = n_others + there.sum(axis=0), n_equal + n
        mean = start + total / np.maximum(n_others, 1)
        spread, at_low, at_high = (np.zeros(len(columns)) for _ in range(3))
        for own, _ in others():
            spread += np.nan_to_num(np.abs(own - mean), posinf=np.inf).sum(axis=0)
            at_low, at_high = at_low + (own == low).sum(axis=0), at_high + (own == high).sum(axis=0)
        distance = np.abs(value - mean)
        n_various = n_others - np.maximum(at_low, at_high)
        far = (distance > spread) & (distance * n_various > FAR_DISTANCES * spread)
        far &= (spread > 0) & (n_various >= 2) & (n_equal < n_others)
    return {int(columns[i]): (float(value[i]), int(n_equal[i])) for i in np.flatnonzero(far)}


def resolution_of(dtype: Any) -> float:
    """The relative difference of numbers that are one by rounding: of this dtype, or in sums."""
    dtype = np.dtype(dtype)
    epsilon = np.finfo(dtype).eps if dtype.kind == "f" else 0.0
    return float(max(2 * epsilon, 64 * np.finfo(np.float64).eps))


def rounding_of(dtype: Any) -> float:
    """Half of the relative difference of numbers that a sum in this dtype may leave of one."""
    epsilon = np.finfo(dtype if np.dtype(dtype).kind == "f" else np.float64).eps
    return float(min(4 * epsilon, resolution_of(dtype) / 2))


def cell(X: Array, where: Array, labels: Labels) -> tuple[str, int]:
    """Words for the first value of X that is marked in `where`, and its column."""
    row, column = np.argwhere(where)[0]
    return f"{X[row, column]:.10g} in {labels.of(column)}", column


class Units(NamedTuple):
    """What rows are standardised by: float64, (n_features,), on the CPU."""

    location: torch.Tensor
    unit: torch.Tensor  # the scale; 1 in constant columns
    constant: torch.Tensor | None  # places of the constant columns, if there are any

    @classmethod
    def of(cls, location: Array, scale: Array) -> "Units":
        """The units of columns, of which those whose scale is 0 are constant."""
        varies = scale > 0
        unit = to_tensor(np.where(varies, scale, 1.0), "cpu")
        constant = None if varies.all() else torch.from_numpy(np.flatnonzero(~varies))
        return cls(to_tensor(location, "cpu"), unit, constant)


def standardise(X: Array, units: Units, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(X - location) / unit, computed in float64, as `dtype`; 0 in constant columns.

    NaN, which are missing values, stay.
    """
    with np.errstate(over="ignore"):  # of a longdouble, which is infinity then
        y = torch.from_numpy(np.array(X, np.float64, order="C"))  # one copy, whatever X
    y -= units.location
    y /= units.unit
    if units.constant is not None:
        y[:, units.constant] = 0.0
    return y.to(dtype)


def measure_reach(y: torch.Tensor) -> tuple[float, torch.Tensor | None]:
    """The largest distance of rows y from 0, NaN if values are missing; and which are too far.

    None where no value is farther than float32 can carry.
    """
    low, high = torch.aminmax(y)
    reach = max(high.item(), -low.item())  # if one is NaN, both are
    if reach <= FARTHEST:
        return reach, None
    far = y.abs() > FARTHEST
    return reach, far if far.any() else None


def check_reach(y: torch.Tensor, X: Array, units: Units, labels: Labels = UNNAMED) -> float:
    """The largest distance of the standardised rows y of X from 0; NaN if values are missing.

    Raises a ValueError that names column and value where a number is too far from the training
    data for float32.
    """
    reach, far = measure_reach(y)
    if far is not None:
        value, column = cell(X, far.numpy(), labels)
        raise ValueError(
            f"X has the value {value}: more than {FARTHEST:.0e} times the scale of the training "
            f"data ({units.unit[column]:.3g} around {units.location[column]:.3g}). Check the "
            "units of the column, or fit on such data."
        )
    return reach


def fill_standardised(
    into: torch.Tensor,
    X: Array,
    units: Units,
    support: Support = lambda block: block,
) -> None:
    """All of X, within its support, in the model's units, converted in blocks of rows."""
    start = 0
    for block in map(support, _blocks(X, into.shape[1])):
        y = standardise(block, units, into.dtype)
        check_reach(y, block, units)
        into[start : start + len(block)] = y
        start += len(block)


def restore(Y: Array, location: Array, scale: Array) -> Array:
    """location + scale * Y in float64: back in the user's units."""
    X = scale * Y  # scale is float64
    return np.add(location, X, out=X)


# --- blocks of rows -----------------------------------------------------------------------


def block_rows(n_weights: int, width: int) -> int:
    """Rows of an inference block of a model with `n_weights` multiplications a row.

    A block costs about 2**27 of them and has `BLOCK_VALUES` values in the widest layer, of
    `width` values a row, within 32 to 2048 rows, in multiples of 32: a number that doesn't
    depend on the data.
    """
    n_rows = min(2**27 // max(1, n_weights), BLOCK_VALUES // width)
    return min(2048, max(32, n_rows // 32 * 32))


def draws_at_once(n_rows: int, width: int) -> int:
    """Draws of noise for a block of `n_rows` rows that make about `BLOCK_VALUES` values."""
    return max(1, BLOCK_VALUES // (n_rows * width))


def to_block(rows: torch.Tensor, n_rows: int, device: torch.device) -> torch.Tensor:
    """`rows` on `device`, and rows of 0 that make them exactly `n_rows`."""
    n_missing = n_rows - len(rows)
    return (nn.functional.pad(rows, (0, 0, 0, n_missing)) if n_missing else rows).to(device)


def wait_for(futures: Iterable[Future[None]]) -> None:
    """Wait until all are done, or raise what one of them has raised, or Ctrl-C."""
    waiting = set(futures)
    while waiting:
        # A signal that comes just before a wait is seen after it only.
        done, waiting = wait(waiting, timeout=0.1, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()


def map_rows(
    function: Callable[[slice], Iterable[Array]],
    outputs: Sequence[Array],
    n_rows: int,
    device: torch.device,
    n_threads: int = 1,
) -> None:
    """Fill the rows of `outputs` with those of `function`, in up to `n_threads` threads.

    `function` gets a slice of `n_rows` rows, which may reach beyond the last one; so may
    what it returns for each output. Each call has the one thread that it runs in.
    """
    n_samples = len(outputs[0])
    starts = iter(range(0, n_samples, n_rows))  # shared: who is free takes the next block
    errors: dict[int, Exception] = {}

    def work() -> None:
        with computing(device, one_thread=True):
            for start in starts:
                rows = slice(start, start + n_rows)
                try:
                    for output, result in zip(outputs, function(rows), strict=True):
                        output[rows] = result[: n_samples - start]
                except Exception as error:
                    errors[start] = error
                    stop()

    def stop() -> None:
        deque(starts, maxlen=0)  # nobody finds another block

    n_others = min(n_threads, -(-n_samples // n_rows)) - 1
    with ThreadPoolExecutor(max(1, n_others)) as executor:  # which starts none before it is asked
        try:
            futures = [executor.submit(work) for _ in range(n_others)]
            work()
            wait_for(futures)
        finally:  # Ctrl-C, too, before all have begun or while they work
            stop()
    if errors:  # of the first rows, whichever thread was faster: all before them were begun
        raise errors[min(errors)]


# --- noise of the score -------------------------------------------------------------------


def n_score_draws(n_draws: int | str, n_components: int) -> int:
    """Number of the score's draws: at least the power of two >= 4 n_components.

    "auto" is the power of two >= 16 n_components, at least 256. The squared radius of 64 draws in
    16 dimensions has a quarter of its true variance. Of 22 hard models and six shifts, errors of
    the mean over rows were up to 0.35 nats with 64 draws and up to 0.10 with "auto", but for one
    model whose rows need many thousands (`benchmarks/bench_score_draws.py`).
    """
    if n_draws == "auto":
        return max(256, _power_of_two(16 * n_components))
    return max(int(n_draws), _power_of_two(4 * n_components))


def _power_of_two(n: int) -> int:
    """The smallest one that is at least n."""
    return 1 << (n - 1).bit_length()


def score_noise(n_draws: int | str, n_components: int) -> Array:
    """Fixed standard normals of shape (n_draws', n_components) to integrate over q(z|x).

    Their number is that of `n_score_draws`. They are a Sobol sequence with a fixed digital shift
    in each coordinate, mapped to normals, made antithetic and whitened by a Cholesky factor. Their
    mean is 0 and their covariance the identity, to rounding, so quadratic functions of z are
    integrated exactly. For one number of draws the first columns are the same whatever
    `n_components`: shift and Cholesky factor go coordinate by coordinate.

    References: Owen, Monte Carlo theory, methods and examples (2013), chapters 8.2
    (antithetic sampling) and 15-17 (digital nets and their randomisation).
    """
    n_draws = n_score_draws(n_draws, n_components)
    n_half = n_draws // 2
    points = qmc.Sobol(n_components, scramble=False).random_base2((n_half - 1).bit_length())
    shift = np.random.default_rng(0).integers(2**32, size=n_components, dtype=np.uint64)
    shifted = (points[:n_half] * 2**32).astype(np.uint64) ^ shift
    half = ndtri((shifted + 0.5) / 2**32)
    factor = np.linalg.cholesky(2 / n_draws * half.T @ half)
    half = np.linalg.solve(factor, half.T).T
    # An odd number of draws has the origin as its middle point.
    middle = np.zeros((n_draws - 2 * n_half, n_components))
    return np.concatenate([half, middle, -half])
