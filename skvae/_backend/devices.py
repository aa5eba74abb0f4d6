"""Devices, generators, and the modes in which torch computes."""

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from skvae._backend.warn import warn

PRECISIONS = ("float32", "bf16", "float64")


def available_devices() -> list[str]:
    """Return the names of the devices that torch can compute on here."""
    names = ["cpu"]
    if torch.cuda.is_available():
        names += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def resolve_device(name: str) -> torch.device:
    """Return the torch device called `name`; "auto" is the accelerator if there is one."""
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
    """Do as `resolve_device`, but return the CPU, with a warning, if the accelerator is absent.

    So a model that was fitted on an accelerator works on a machine without one.
    """
    try:
        return resolve_device(name)
    except ValueError as error:
        if not name.startswith(("cuda", "mps")):
            raise
        warn(f"{error} Computing on the CPU.", UserWarning)
        return torch.device("cpu")


def dtype_of(precision: str, device: torch.device) -> type[np.floating[Any]]:
    """Return the dtype of a model's values."""
    if precision != "float64":
        return np.float32
    if device.type == "mps":
        raise ValueError("device='mps' has no float64. Use precision='float32', or device='cpu'.")
    return np.float64


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a new generator, so that the global one is not used."""
    return torch.Generator(device=device).manual_seed(seed)


@functools.cache
def _openmp() -> ThreadpoolController:
    """Return the thread pools of OpenMP, torch's among them, which are looked up once."""
    return ThreadpoolController().select(user_api="openmp")


@functools.cache
def _limit_mkl() -> Callable[[int], int]:
    """Return a function that sets MKL's number of threads and returns the number before.

    It acts on the calling thread; 0 means the number of OpenMP. MKL multiplies torch's matrices.
    ``torch.set_num_threads`` gives MKL its own number, which a limit of OpenMP does not change. MKL
    is linked into torch, where threadpoolctl doesn't find it.
    """
    try:
        # A look-up in torch's loaded library also searches the libraries that it needs.
        return ctypes.CDLL(torch._C.__file__).MKL_Set_Num_Threads_Local
    except (OSError, AttributeError):  # no MKL, or Windows, which does not search those libraries
        return lambda n_threads: 0


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limit each operation of the calling thread to one thread.

    The limit holds for the calling thread alone and ends with the block. Operations on several
    threads wait for each other, which is slow on a busy machine. In a child process that was made
    by fork they may wait forever.
    """
    n_threads = torch.get_num_threads()  # first, since this sets a new thread's number
    limited = None
    of_mkl: list[int] = []
    try:
        # One step sets and notes the limit, so that Ctrl-C cannot come in between.
        of_mkl.extend(map(_limit_mkl(), [1]))
        limited = _openmp().limit(limits=1)
        yield
    finally:
        for n in of_mkl:
            _limit_mkl()(n)
        if limited is not None:
            limited.restore_original_limits()
        else:  # Ctrl-C came before the old limits were noted
            _openmp().limit(limits=n_threads)


@contextlib.contextmanager
def computing(device: torch.device) -> Iterator[None]:
    """Set the modes of torch and numpy, so that the modes of the caller have no effect.

    These are grad, inference, autocast and numpy's error mode. Gradients are written out (see
    `skvae.networks`), so autograd records nothing, which saves a sixth of a small training step.
    Each operation has one thread; see `one_thread`.
    """
    # CUDA captures and replays graphs on the current device.
    on = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    errors = np.errstate(all="warn", under="ignore")  # numpy's default
    autocast = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(), autocast, errors, on, one_thread():
        yield
