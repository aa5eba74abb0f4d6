"""Threads of one core each, which take the items of a list in turn.

If torch splits an operation among threads, they wait for the slowest of them in every operation.
Beside another busy process, a training step then took up to 90 times as long as in one thread. Here
one thread computes an item and then takes the next, so threads wait for each other once, at the end
of the list. A thread that gets no core takes no items.
"""

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import joblib
import torch

from skvae._backend.devices import computing

Item = TypeVar("Item")
Result = TypeVar("Result")


def n_threads(device: torch.device) -> int:
    """Return how many threads compute side by side on a device.

    On a CPU this is torch's number of threads (``torch.set_num_threads``, ``OMP_NUM_THREADS``), but
    at most the number of cores that this process may use: CPU affinity and quotas of containers
    count, as in ``joblib.cpu_count``. A search in worker processes limits both.
    """
    if device.type != "cpu":
        return 1
    n = torch.get_num_threads()
    return n if n == 1 else min(n, joblib.cpu_count())


class _Work(Generic[Item, Result]):
    """The items of one map, and their results."""

    def __init__(self, function: Callable[[Item], Result], items: Sequence[Item]) -> None:
        self.function, self.items = function, items
        self.results: list[Any] = [None] * len(items)
        self.errors: dict[int, BaseException] = {}
        # All threads share it, so each place is taken once.
        self.places = iter(range(len(items)))
        self.ended: SimpleQueue[int] = SimpleQueue()

    def take(self) -> None:
        """Compute items until none is left."""
        for place in self.places:
            try:
                self.results[place] = self.function(self.items[place])
            except BaseException as error:  # the calling thread raises it
                self.errors[place] = error
                self.drop()
            finally:
                self.ended.put(place)

    def drop(self) -> None:
        """Leave all items that no thread has taken."""
        for place in self.places:
            self.ended.put(place)

    def wait(self) -> None:
        """Wait until every item is computed or dropped."""
        for _ in self.items:
            self.ended.get()


class Team:
    """A context with `n_threads` threads: the calling thread, and others that start when needed.

    The others compute in the modes of `skvae._backend.devices.computing`. The calling thread is
    expected to be in them already.
    """

    def __init__(self, device: torch.device, n_threads: int) -> None:
        self.device, self.n_threads = device, n_threads
        self._others: list[threading.Thread] = []
        self._work: SimpleQueue[_Work[Any, Any] | None] = SimpleQueue()  # None: the end

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, *error: object) -> None:
        self._work.put(None)
        for thread in self._others:
            thread.join()

    def _serve(self) -> None:
        with computing(self.device):
            while (work := self._work.get()) is not None:
                work.take()
                del work  # otherwise its results would stay until the next map
        self._work.put(None)  # for the next thread

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return ``[function(item) for item in items]``, computed by all threads of the team.

        Raises
        ------
        BaseException
            The error of the first item that failed; one that is no ``Exception`` comes first. No
            item is begun after an error.
        """
        n_others = min(self.n_threads, len(items)) - 1
        if n_others < 1:
            return [function(item) for item in items]
        while len(self._others) < n_others:
            thread = threading.Thread(target=self._serve, name="skvae", daemon=True)
            thread.start()
            self._others.append(thread)
        work = _Work(function, items)
        try:
            for _ in range(n_others):
                self._work.put(work)
            work.take()
            work.wait()
        except BaseException:  # Ctrl-C
            work.drop()
            raise
        if work.errors:
            raise min(work.errors.items(), key=lambda own: (isinstance(own[1], Exception), own[0]))[
                1
            ]
        return work.results
