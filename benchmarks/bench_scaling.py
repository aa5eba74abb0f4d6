"""Seconds and peak memory of skvae against the size of its problem, from small to large.

Three parts, each with two tables and a picture:

``rows``
    1,000 to 10,000,000 rows of 20 features.
``features``
    10 to 10,000 features in 10,000 rows.
``candidates``
    1 to 300 candidates of a search with 5 folds, by ``VAEGridSearchCV`` and ``GridSearchCV``.

Rules:

- float32, the CPU, torch's default threads or ``--threads``. Hidden layers of 128 and 64 and
  nothing beside them, one noise of each column, and batches of 4,096 rows, so that the work for a
  row is the same in each point; in ``candidates`` small models, hidden layers of 64 and 32 and
  batches of 128, of which a search has many. Nothing is held out.
- Every point is a process of its own, which makes its rows in blocks. It runs once on little,
  untimed, then until a second is over, at most five times; the median counts.
- ``fit``: seconds of an epoch, the difference of a fit of several epochs and one of a single one
  over the difference in epochs, which is 1 where an epoch is long. The other methods belong to a
  model that was fitted to few rows.
- Memory: the peak of the resident set of the process, less what it was after ``import skvae``. In
  it are what the libraries load for the first computation (some 50 MiB), the rows, which are
  listed beside it (X, or for ``inverse_transform`` the latent Z), and the result.
- A point that would take longer than ``--budget`` seconds, in proportion to the one before, is
  left out, and so are all beyond it; the table says so.
- The slope is that of a straight line through the logarithms of the larger half of the points, by
  least squares: 1 is proportional.
"""

import argparse
import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import machine
import numpy as np
import torch

HERE = Path(__file__).parent
BATCH_SIZE = 4_096
SEED = 0

METHODS = ("fit", "transform", "score_samples", "sample", "inverse_transform")
SEARCHES = ("VAEGridSearchCV", "GridSearchCV")
PARTS = {
    "rows": {
        "title": "20 features, against the number of rows",
        "sizes": [n * 10**k for k in range(3, 7) for n in (1, 3)] + [10**7],
        "point": lambda n: {"n_rows": n, "n_features": 20},
        "contestants": METHODS,
    },
    "features": {
        "title": "10,000 rows, against the number of features",
        "sizes": [n * 10**k for k in range(1, 4) for n in (1, 3)] + [10**4],
        "point": lambda n: {"n_rows": 10_000, "n_features": n},
        "contestants": METHODS,
    },
    "candidates": {
        "title": "searches, 5 folds of 1,000 x 20 and fits of 20 epochs, "
        "against the number of candidates",
        "sizes": [1, 3, 10, 30, 100, 300],
        "point": lambda n: {"n_rows": 1_000, "n_features": 20, "n_candidates": n},
        "contestants": SEARCHES,
    },
}
QUICK_SIZES = {"rows": [1_000, 3_000, 10_000], "features": [10, 30, 100], "candidates": [1, 3]}


# --- a point, in a process of its own -------------------------------------------------------


def forget_peak():
    """Let the peak begin anew, where Linux can: importing has peaks of its own."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("the peak of memory includes that of the imports", file=sys.stderr)


def make_rows(n_rows, n_features):
    """Rows around a curved surface of 8 dimensions, float32, made in blocks."""
    rng = np.random.default_rng(SEED)
    bend, spread = rng.standard_normal((8, 64)), rng.standard_normal((64, n_features)) / 3
    X, n_block = np.empty((n_rows, n_features), np.float32), max(1, 2**20 // n_features)
    for start in range(0, n_rows, n_block):
        block = X[start : start + n_block]
        block[:] = np.tanh(rng.standard_normal((len(block), 8)) @ bend / 2) @ spread
        block += 0.3 * rng.standard_normal(block.shape, dtype=np.float32)
    return X


def prepare_method(name, n_rows, n_features):
    """The data of a method, and what gives its seconds."""
    from skvae import VAETransformer

    params = machine.PLAIN | {"batch_size": BATCH_SIZE, "early_stopping": False, "device": "cpu"}
    vae = VAETransformer(**params, max_iter=1, random_state=SEED)
    few = make_rows(min(n_rows, 200), n_features)
    vae.fit(few)
    if name == "fit":
        X, more = make_rows(n_rows, n_features), max(1, 4_000_000 // (n_rows * n_features))

        def time_epoch():
            short = seconds(vae.set_params(max_iter=1).fit, X)
            return (seconds(vae.set_params(max_iter=1 + more).fit, X) - short) / more

        return X, time_epoch
    if name == "sample":
        vae.sample(100, random_state=SEED)
        return np.empty(0), lambda: seconds(vae.sample, n_rows, random_state=SEED)
    if name == "inverse_transform":
        rng = np.random.default_rng(SEED)
        X = rng.standard_normal((n_rows, vae.n_components), dtype=np.float32)
    else:
        X = make_rows(n_rows, n_features)
    method = getattr(vae, name)
    method(X[:100])
    return X, lambda: seconds(method, X)


def prepare_search(name, n_rows, n_features, n_candidates):
    """The data of a search, and what gives its seconds."""
    from sklearn.model_selection import GridSearchCV

    from skvae import VAEGridSearchCV, VAETransformer

    kind = {"VAEGridSearchCV": VAEGridSearchCV, "GridSearchCV": GridSearchCV}[name]
    params = machine.PLAIN | {"hidden_layer_sizes": (64, 32), "batch_size": 128}
    params |= {"early_stopping": False}
    vae = VAETransformer(**params, max_iter=20, random_state=SEED, device="cpu")
    X, grid = make_rows(n_rows, n_features), {"beta": np.geomspace(0.1, 10, n_candidates)}
    kind(vae, {"beta": [1], "max_iter": [1]}, cv=2, refit=False).fit(X[:100])
    return X, lambda: seconds(kind(vae, grid, cv=5, refit=False).fit, X)


def seconds(function, *args, **params):
    start = time.perf_counter()
    function(*args, **params)
    return time.perf_counter() - start


def measure(point):
    """Print what a point takes."""
    import skvae  # noqa: F401

    if threads := point.pop("threads"):
        torch.set_num_threads(threads)
    name = point.pop("name")
    forget_peak()
    before = machine.peak_memory()
    prepare = prepare_search if name in SEARCHES else prepare_method
    X, run = prepare(name, **point)
    timings, whole = [], []
    while len(timings) < 5 and sum(whole) < 1:
        gc.collect()
        start = time.perf_counter()
        timings.append(run())
        whole.append(time.perf_counter() - start)
    result = {
        "seconds": timings,
        "run_seconds": max(whole),  # with a fit's short fit
        "peak_mib": machine.peak_memory() - before,
        "import_mib": before,
        "data_mib": X.nbytes / 2**20,
    }
    print(json.dumps(result))


# --- all points -----------------------------------------------------------------------------


def run_point(point, budget):
    """What a process says of a point."""
    command = [sys.executable, __file__, "--point", json.dumps(point)]
    try:
        process = subprocess.run(
            command, stdout=subprocess.PIPE, check=False, timeout=10 * budget + 60
        )
    except subprocess.TimeoutExpired:
        return {"left_out": f"stopped after {10 * budget + 60:.0f} s"}
    if process.returncode:
        return {"left_out": f"failed, exit status {process.returncode}"}
    return json.loads(process.stdout.splitlines()[-1])


def run_part(part, sizes, points, args):
    """All points of a part, from small to large; yields after each size."""
    for size in sizes:
        for name in part["contestants"]:
            results = points.setdefault(name, [])
            point = {"name": name, "threads": args.threads, **part["point"](size)}
            result, last = None, next((r for r in results[::-1] if "left_out" not in r), None)
            if last:
                expected = last["run_seconds"] * size / last["size"]
                if expected > args.budget:
                    result = {"left_out": f"left out, about {machine.number(expected, 2)} s"}
            if results and "left_out" in results[-1]:
                result = result or {"left_out": "left out"}
            if result is None:
                print(f"{name}, {size:,}", file=sys.stderr)
                result = run_point(point, args.budget)
            results.append({"size": size, **result})
        yield


def slope(sizes, values):
    """Of log value against log size, over the larger half of the points."""
    n = len(sizes)
    if n < 3:
        return None
    x, y = (np.log(np.array(a[n // 2 :])) for a in (sizes, values))
    return float(np.polyfit(x, y, 1)[0]) if len(x) > 1 and np.isfinite(y).all() else None


def curve(results, value):
    """Sizes and values of the points that were measured."""
    measured = [result for result in results if "left_out" not in result]
    return [result["size"] for result in measured], [value(result) for result in measured]


VALUES = {
    "seconds": lambda result: median(result["seconds"]),
    "MiB": lambda result: max(result["peak_mib"], 0.1),
}


def label(name, unit):
    return "fit, an epoch" if name == "fit" and unit == "seconds" else name


def print_part(name, report):
    part, points = PARTS[name], report["points"]
    sizes = [result["size"] for result in next(iter(points.values()))]
    print(f"\n{machine.summarise(report['run'])}\n")
    for unit, value in VALUES.items():
        print(f"{'Seconds' if unit == 'seconds' else 'Peak memory in MiB'}: {part['title']}.\n")
        header, rows = [name, *(label(c, unit) for c in points)], []
        for i, size in enumerate(sizes):
            results = [results[i] for results in points.values()]
            cells = [r.get("left_out") or machine.number(value(r)) for r in results]
            if unit == "MiB":
                point = part["point"](size)
                cells.append(machine.number(4 * point["n_rows"] * point["n_features"] / 2**20))
                if part["contestants"] is METHODS:
                    cells.append(machine.number(4 * point["n_rows"] * 8 / 2**20))
            elif part["contestants"] is SEARCHES:
                measured = all("left_out" not in r for r in results)
                cells.append(
                    machine.number(value(results[1]) / value(results[0])) if measured else "-"
                )
            rows.append([f"{size:,}", *cells])
        slopes = [slope(*curve(results, value)) for results in points.values()]
        slopes = ["-" if s is None else f"{s:.2f}" for s in slopes]
        if unit == "MiB":
            header += ["of it X", "or Z"][: len(rows[0]) - len(header)]
        elif part["contestants"] is SEARCHES:
            header.append("/ VAEGridSearchCV")
        rows.append(["slope", *slopes, *[""] * (len(header) - 1 - len(slopes))])
        print(f"{machine.table(header, rows)}\n")


# Okabe & Ito's colours that are told apart by everybody and on white, each with its own marker.
STYLES = list(zip(["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"], "osD^v", strict=True))


def draw(name, report, folder):
    """The picture of a part: seconds on the left, memory on the right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "svg.hashsalt": "skvae"})
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 4.4), layout="constrained")
    for axis, (unit, value) in zip(axes, VALUES.items(), strict=True):
        ends = []
        for (contestant, results), (colour, marker) in zip(
            report["points"].items(), STYLES, strict=False
        ):
            sizes, values = curve(results, value)
            if not sizes:
                continue
            axis.loglog(sizes, values, color=colour, marker=marker, markersize=4.5, linewidth=1.6)
            ends.append((values[-1], sizes[-1], label(contestant, unit), colour))
        title = "seconds" if unit == "seconds" else "peak memory, MiB"
        axis.set(xlabel=name)
        axis.set_title(title, loc="left")
        axis.grid(which="major", color="#dddddd", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
        write_labels(axis, sorted(ends))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"performance_{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    print(f"drawn: {path}")


def write_labels(axis, ends):
    """Write each name to the right of its line, one above the other where they would meet."""
    lowest, highest = axis.dataLim.intervaly
    axis.set_ylim(10 ** np.floor(np.log10(lowest)), 10 ** np.ceil(np.log10(highest)))
    low, high = np.log(axis.get_ylim())
    heights = np.array([(np.log(value) - low) / (high - low) for value, *_ in ends])
    for _ in range(200):  # names that are too near move apart by a half each
        overlap = np.maximum(0.06 - np.diff(heights), 0) / 2
        heights[:-1] -= overlap
        heights[1:] += overlap
    largest = max(size for _, size, *_ in ends)
    for (value, size, text, colour), height in zip(ends, heights, strict=True):
        if size < largest:  # the line ends before: lead on to its name
            axis.plot([size, largest], [value, value], color=colour, linewidth=0.8, linestyle=":")
        axis.annotate(
            text,
            (largest, np.exp(low + height * (high - low))),
            xytext=(8, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            annotation_clip=False,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = HERE / "results/scaling.json"
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--budget", type=float, default=600, help="seconds of a point (600)")
    parser.add_argument("--threads", type=int, help="of torch (default: its own)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; keeps no file")
    parser.add_argument("--json", type=Path, help=f"(default: {default.name} in results/)")
    parser.add_argument("--pictures", type=Path, help="where they go (default: docs/)")
    parser.add_argument(
        "--markdown",
        action="store_true",
        help="only print and draw what --json has",
    )
    parser.add_argument("--point", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        measure(json.loads(args.point))
        return

    path = args.json or (None if args.quick else default)
    folder = args.pictures or (None if args.quick else HERE.parent / "docs")
    report = machine.read(path) if path else {}
    if args.threads:
        torch.set_num_threads(args.threads)
    for name in args.only:
        if not args.markdown:
            part = PARTS[name]
            sizes = QUICK_SIZES[name] if args.quick else part["sizes"]
            run = machine.describe() | {"threads": args.threads, "budget": args.budget}
            # The parts that this run leaves out stay in the file.
            report[name] = {"run": run, "points": {}}
            for _ in run_part(part, sizes, report[name]["points"], args):
                if path:
                    machine.write(path, report)
        if name in report:
            print_part(name, report[name])
            if folder:
                draw(name, report[name], folder)


if __name__ == "__main__":
    main()
