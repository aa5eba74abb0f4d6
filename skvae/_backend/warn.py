"""Warn at the line of the user's code that called the package."""

import multiprocessing
import sys
import warnings
from types import FrameType

# Packages that call skvae for the user: scikit-learn in a Pipeline, and the standard library and
# joblib in their threads and processes.
CALLERS = {"sklearn", "joblib", *sys.stdlib_module_names}


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning that names the nearest line of the user's code.

    The stack of a thread or a process may have no such line, since the line that started it belongs
    to another stack. Then the warning names the line of skvae that was called first.
    """
    level = of_skvae = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        package = _package(frame)
        if package == "skvae":
            of_skvae = level
        elif package not in CALLERS and not _starts_process(frame):
            break
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=of_skvae if frame is None else level)


def _package(frame: FrameType) -> str:
    """Return the package that the code of a frame belongs to."""
    # A module that `python -m` runs has its own name in the spec only.
    spec = frame.f_globals.get("__spec__")
    name: str = frame.f_globals.get("__name__", "") if spec is None else spec.name
    return name.partition(".")[0]


def _starts_process(frame: FrameType) -> bool:
    """Whether a frame is the command with which multiprocessing starts a new Python."""
    is_child = multiprocessing.parent_process() is not None
    return is_child and frame.f_back is None and frame.f_code.co_filename == "<string>"
