"""What the benchmarks share: the machine of a run, its JSON file, and tables of what came out."""

import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from skvae.likelihoods import Gaussian
from skvae.networks import MLP

# One path of hidden layers and one noise of each column, as the bare networks beside it have.
PLAIN = {
    "network": MLP(linear=False),
    "activation": "silu",
    "likelihood": Gaussian("per_feature"),
}
PEERS = ("skorch", "pythae", "pyod", "ctgan", "statsmodels")
PACKAGES = ("skvae", "torch", "numpy", "scipy", "scikit-learn", "joblib", *PEERS)


def describe() -> dict[str, Any]:
    """Machine, threads and versions, as they are now."""
    installed = {d.name.lower(): d.version for d in importlib.metadata.distributions()}
    cpu = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    return {
        "date": str(datetime.date.today()),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "os": f"{platform.system()} {platform.release()}",
        "load_average": [round(x, 1) for x in os.getloadavg()]
        if hasattr(os, "getloadavg")
        else None,
        "torch_threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()}
        | {package: installed[package] for package in PACKAGES if package in installed},
    }


def summarise(run: Mapping[str, Any]) -> str:
    """Two lines of what `describe` found."""
    load = (run["load_average"] or ["unknown"])[0]
    machine = "{cpu}, {cores} cores, {os}; torch threads: {torch_threads};".format(**run)
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return f"{machine} load average before: {load}\n{versions}"


def peak_memory() -> float:
    """MiB of the resident set at its peak."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        # Not getrusage, whose number counts the parent from before the program was loaded.
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def read(path: Path) -> dict[str, Any]:
    """What earlier runs left there, if they did."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, report: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that reads well in a terminal and is Markdown; the first column is words."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        [cell.rjust(n) if i else cell.ljust(n) for i, (cell, n) in enumerate(pairs)]
        for pairs in (zip(line, widths, strict=True) for line in lines)
    ]
    rule = ["-" * n + (":" if i else "-") for i, n in enumerate(widths)]
    head, *body = ("| " + " | ".join(text) + " |" for text in texts)
    return "\n".join([head, "|-" + "|-".join(rule) + "|", *body])


def number(x: float, digits: int = 3) -> str:
    """So many digits, without an exponent: 0.0120, 1.23, 1,230."""
    rounded = float(f"{x:.{digits - 1}e}")
    whole = math.floor(math.log10(abs(rounded))) + 1 if rounded else 1
    return f"{rounded:,.{max(0, digits - whole)}f}"


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median, and range if there is one: 1.23 (1.10-1.40)."""
    middle = number(median(values), digits)
    if len(values) == 1:
        return middle
    return f"{middle} ({number(min(values), digits)}-{number(max(values), digits)})"
