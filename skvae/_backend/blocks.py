"""Inference in blocks of rows.

All blocks have one fixed number of rows; the last one is padded. One thread computes a block. The
shape is fixed since a matrix product of another number of rows may take another path through the
BLAS, and then rounds differently. So do the last elements of a thread's share that don't fill a
vector. With one shape, a multiple of 32, a row has the same result, bit for bit, with any other
rows beside it. Several threads take a block each. Only the result is larger than a block.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait

import torch
from torch import nn

from skvae._backend.devices import computing
from skvae._backend.team import Team
from skvae._backend.tensors import Array

# Values of the widest layer that inference makes at once. They fit into a core's cache, and malloc
# does not return so few to the system, which would have to clear them for the next use.
BLOCK_VALUES = 2**18


def block_rows(n_weights: int, width: int) -> int:
    """Return the number of rows of a block, for a model with `n_weights` multiplications a row.

    A block costs at most about 2**27 multiplications, and its widest layer, of `width` values a
    row, has at most about `BLOCK_VALUES` values. The number is a multiple of 32 from 32 to 2048,
    and does not depend on the data.
    """
    n_rows = min(2**27 // max(1, n_weights), BLOCK_VALUES // width)
    return min(2048, max(32, n_rows // 32 * 32))


def round_up(n_rows: int) -> int:
    """Return the least number of rows of a block that holds `n_rows` rows."""
    return max(32, -(-n_rows // 32) * 32)


def draws_at_once(n_rows: int, width: int) -> int:
    """Return how many draws of noise for `n_rows` rows make about `BLOCK_VALUES` values."""
    return max(1, BLOCK_VALUES // (n_rows * width))


def to_block(rows: torch.Tensor, n_rows: int, device: torch.device) -> torch.Tensor:
    """Move `rows` to `device`, and pad them with rows of 0 to exactly `n_rows`."""
    n_missing = n_rows - len(rows)
    return (nn.functional.pad(rows, (0, 0, 0, n_missing)) if n_missing else rows).to(device)


def wait_for(futures: Iterable[Future[None]]) -> None:
    """Wait until all futures are done; raise the error of one of them, or KeyboardInterrupt."""
    waiting = set(futures)
    while waiting:
        # A signal that comes just before the wait is handled after it, so the timeout is short.
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
    """Fill the rows of `outputs` with the results of `function`, in up to `n_threads` threads.

    `function` gets a slice of `n_rows` rows. The slice may reach beyond the last row, and so may
    the result for each output. Each call computes in one thread.
    """
    n_samples = len(outputs[0])

    def fill(start: int) -> None:
        rows = slice(start, start + n_rows)
        for output, result in zip(outputs, function(rows), strict=True):
            output[rows] = result[: n_samples - start]

    with Team(device, n_threads) as team, computing(device):
        team.map(fill, range(0, n_samples, n_rows))
