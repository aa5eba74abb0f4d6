"""Write files completely or not at all, and check that a loaded model is the saved one."""

import contextlib
import dataclasses
import os
import shutil
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

# The format of a saved estimator. Each version of skvae reads all earlier formats.
# 0: without a format number and a checksum; 1: with both.
FORMAT = 1


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a new file that replaces `path` when the block ends without an error.

    Until then, or if the block or the machine fails, `path` stays as it was before.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no file, and cannot be replaced by one.")
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # so that the data are on the disk before the rename
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def seal(state: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Add the format, and a checksum of the attributes `names`, to an estimator's state."""
    return {**state, "_skvae_format": FORMAT, "_skvae_checksum": _checksum_of(state, names)}


def unseal(state: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Check the format and the checksum, and remove both; a ValueError says what is wrong."""
    state = dict(state)
    written, sealed = state.pop("_skvae_format", 0), state.pop("_skvae_checksum", None)
    if not isinstance(written, int) or written > FORMAT:
        raise ValueError(
            f"The file holds a model in format {written!r} of skvae, and this version reads "
            f"formats up to {FORMAT}. Update skvae, or save the model with this version."
        )
    if written > 0 and sealed != _checksum_of(state, names):
        raise ValueError(
            "The file is damaged: the numbers of its model are not those that were saved. Load "
            "another copy, or fit anew."
        )
    return state


def _checksum_of(state: dict[str, Any], names: Iterable[str]) -> int:
    return checksum({name: state[name] for name in names if name in state})


def checksum(value: Any) -> int:
    """Return a number that depends on all numbers, strings and arrays of numbers in `value`.

    It protects from damage, but not from forgery. Other objects, such as functions, are skipped.
    """
    total = 0
    for path, leaf in sorted(_leaves(value), key=lambda pair: pair[0]):
        if isinstance(leaf, np.ndarray):
            what = f"{path} {leaf.dtype.kind}{leaf.dtype.itemsize} {leaf.shape}"
            # Arrays from a machine of another byte order get the byte order of this one.
            content = np.ascontiguousarray(leaf, leaf.dtype.newbyteorder("="))
            total = zlib.crc32(what.encode(), total)
            total = zlib.crc32(content.view(np.uint8).data if leaf.size else b"", total)
        else:
            total = zlib.crc32(f"{path} {leaf!r}".encode(errors="surrogatepass"), total)
    return total


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield numbers, strings and arrays of numbers in nested containers, with their paths."""
    if type(value) is dict:
        for key, item in value.items():
            yield from _leaves(item, f"{path}/{key!r}")
    elif type(value) in (list, tuple):
        for place, item in enumerate(value):
            yield from _leaves(item, f"{path}/{place}")
    elif dataclasses.is_dataclass(value):
        yield path, type(value).__name__
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            # Defaults are skipped, so that a new field of a later version changes nothing.
            if item != field.default:
                yield from _leaves(item, f"{path}.{field.name}")
    elif isinstance(value, np.ndarray) and value.dtype.kind == "O":
        yield from _leaves(value.tolist(), path)
    elif isinstance(value, np.ndarray | np.bool_ | np.number):
        if value.dtype.kind in "biuf":
            yield path, np.asarray(value)
    elif isinstance(value, str):
        yield path, str(value)
    elif type(value) in (bool, int, float, type(None)):
        yield path, value
