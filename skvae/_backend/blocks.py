"""Inference in blocks of rows.

Inference goes in blocks of one fixed number of rows, the last one padded, each computed on
one thread. A matrix product takes another path through the BLAS for another number of rows
and then rounds differently, and so do the last elements of a thread's share that don't fill
a vector; with one fixed shape, a multiple of 32, a row has the same result, bit for bit,
whatever rows come with it. Several threads take a block each; nothing larger than a block is
made but the result.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

import torch
from torch import nn

from skvae._backend.devices import computing
from skvae._backend.tensors import Array

# Values of the widest layer that inference makes at once: what a core keeps in its cache,
# and what malloc doesn't return to the system each time, to be cleared for the next use.
BLOCK_VALUES = 2**18


def block_rows(n_weights: int, width: int) -> int:
    """Rows of an inference block of a model with `n_weights` multiplications a row.

    A block costs about 2**27 of them and has `BLOCK_VALUES` values in the widest layer, of
    `width` values a row, within 32 to 2048 rows, in multiples of 32: a number that doesn't
    depend on the data.
    """
    n_rows = min(2**27 // max(1, n_weights), BLOCK_VALUES // width)
    return min(2048, max(32, n_rows // 32 * 32))


def round_up(n_rows: int) -> int:
    """The least number of rows of a block that holds so many."""
    return max(32, -(-n_rows // 32) * 32)


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
    if n_others == 0:
        work()
    else:
        with ThreadPoolExecutor(n_others) as executor:  # which starts none before it is asked
            try:
                futures = [executor.submit(work) for _ in range(n_others)]
                work()
                wait_for(futures)
            finally:  # Ctrl-C, too, before all have begun or while they work
                stop()
    if errors:  # of the first rows, whichever thread was faster: all before them were begun
        raise errors[min(errors)]
