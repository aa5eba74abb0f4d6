"""Devices, generators and the modes that torch computes in."""

import contextlib
import ctypes
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

# Multiplications in a training step below which one thread takes it: about a millisecond.
# Two that wait for each other in every operation were up to 90 times slower while another
# process was running.
FEW_PRODUCTS = 2**24

PRECISIONS = ("float32", "bf16", "float64")


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
