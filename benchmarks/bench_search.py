"""What ``VAEGridSearchCV`` gains by training its models as stacks, and whether it changes them.

Three parts, each with a table:

``step``
    Milliseconds per member and training step of a stack of M models, beside its limit (the
    matrix products that back-propagation needs for it: forward, weight gradient and, but for the
    first layer, input gradient, by ``torch.bmm`` on tensors that exist before) and beside one
    eager single step: autograd, fused Adam, rows in memory, the same model, by hand.
    Once on one thread. Once on all of them, as skvae uses them: stacks train side by side, one
    thread each, and so do the products of the limit; there are as many stacks of M as threads,
    and time is wall time / (members of all stacks · steps). "in 4" are the stacks that a search
    makes of the last number of members itself. The eager step has one thread: more would wait
    for each other.
``search``
    Seconds of a whole search, refit included, by ``VAEGridSearchCV`` and by ``GridSearchCV``.
    The workers of ``n_jobs=2`` are alive, and have imported and fitted, before the clock starts.
``agreement``
    Largest difference of a split's test score between both searches on one grid, in nats per
    row, and whether all other columns but the times are equal.

Rules of ``step`` and ``search``, as in ``bench_fit.py``:

- One process. After an untimed run each, all take their turn in each of ``--repeats`` rounds, in
  an order drawn anew for each. Medians over rounds, and ranges.
- A ratio is taken within a round. A stack, its limit and the eager step run one after the other.
- Times of a step are differences of a long run and a short one, so set-up is not in them; all
  that an epoch does is (permutations, noise, watching the loss), of the eager step too.
"""

import argparse
import contextlib
import gc
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import joblib
import machine
import numpy as np
import torch
from bench_fit import Workload
from sklearn.model_selection import GridSearchCV
from torch import nn

from skvae import VAEGridSearchCV, VAETransformer
from skvae._backend import devices
from skvae._fit import execution, packing
from skvae._fit.preparation import prepare

CPU = torch.device("cpu")
N_FOLDS = 5  # of `step` and `search`
LEARNING_RATE = 5e-3


STEP = Workload(5_120, 20, (64, 32), 4, batch_size=128, epochs=(1, 9))


@dataclass(frozen=True)
class Step:
    """Sizes of the part `step`."""

    workload: Workload = STEP
    members: tuple[int, ...] = (1, 8, 32, 100)
    one_member_epochs: int = 40  # in the long run of one member; fewer for more members
    repeats: int = 5


@dataclass(frozen=True)
class Search:
    """Sizes of the part `search`."""

    n_rows: int = 2_000
    grid: dict[str, list[Any]] = field(
        default_factory=lambda: {"beta": [0.25, 0.5, 1, 2, 4], "n_components": [2, 4, 8, 16]}
    )
    params: dict[str, Any] = field(
        default_factory=lambda: {"hidden_layer_sizes": (64, 32), "batch_size": 128}
    )
    repeats: int = 3


@dataclass(frozen=True)
class Agreement:
    """Sizes of the part `agreement`: three folds, one comparison each for `cases`."""

    n_rows: int = 1_000
    grid: dict[str, list[Any]] = field(
        default_factory=lambda: {"beta": [0.5, 1, 2], "n_components": [2, 4, 8]}
    )
    cases: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {
            "float64, default fit": {"precision": "float64"},
            "float32, 20 epochs": {"max_iter": 20},
            "float32, 150 epochs": {"max_iter": 150, "early_stopping": False},
        }
    )


FULL = {"step": Step(), "search": Search(), "agreement": Agreement()}
QUICK = {
    "step": Step(replace(STEP, n_rows=640, epochs=(1, 3)), (1, 4), 5, repeats=2),
    "search": Search(300, {"beta": [0.5, 2], "n_components": [2, 4]}, repeats=1),
    "agreement": Agreement(150, {"beta": [0.5, 2], "n_components": [2, 4]}),
}


def table(n_rows, seed):
    """Rows around a curved surface in 20 standardised columns."""
    return Workload(n_rows, 20, (), 1, batch_size=1, epochs=(0, 0), seed=seed).X


def milliseconds(run, epochs, n_steps):
    """Of one of the `n_steps` of an epoch, from a short run and a long one."""
    seconds = []
    for n_epochs in epochs:
        gc.collect()
        start = time.perf_counter()
        run(n_epochs)
        seconds.append(time.perf_counter() - start)
    return 1e3 * (seconds[1] - seconds[0]) / ((epochs[1] - epochs[0]) * n_steps)


# --- a step ---------------------------------------------------------------------------------


def make_jobs(w, n_jobs):
    """Jobs as a search has them: neighbours share a fold, and its rows."""
    folds = [(w.X.copy(), {}) for _ in range(N_FOLDS)]
    jobs = []
    for m in range(n_jobs):
        X, known = folds[m * N_FOLDS // n_jobs]
        vae = VAETransformer(
            n_components=w.n_components,
            **machine.PLAIN,
            hidden_layer_sizes=w.hidden,
            batch_size=w.batch_size,
            learning_rate=LEARNING_RATE,
            early_stopping=False,
            random_state=m,
            device="cpu",
        )
        jobs.append(prepare(vae, X, known)[0])
    return jobs


def train_stacks(jobs, stacks, n_epochs):
    """What a search does between preparing and scoring."""
    jobs = [job._replace(plan=replace(job.plan, max_iter=n_epochs)) for job in jobs]
    packing.run_all(
        dict(enumerate(jobs)), stacks, lambda number, n: contextlib.nullcontext(lambda: False)
    )


def make_products(w, n_members):
    """The products of a step of a stack: (a, b, where the result goes)."""
    products, B, M = [], w.batch_size, n_members
    for n_in, n_out in w.layers():
        x, weight, g = torch.rand(M, B, n_in), torch.rand(M, n_out, n_in), torch.rand(M, B, n_out)
        products.append((x, weight.mT, torch.empty(M, B, n_out)))
        products.append((g.mT, x, torch.empty(M, n_out, n_in)))
        products.append((g, weight, torch.empty(M, B, n_in)))
    del products[2]  # the first layer needs no input gradient
    return products


def multiply_stacks(products, n_steps):
    """The limit: the products of stacks, and nothing else, in as many threads as torch has."""

    def multiply(of_stack):
        with devices.computing(CPU):
            for _ in range(n_steps):
                for a, b, out in of_stack:
                    torch.bmm(a, b, out=out)

    n_threads = torch.get_num_threads()
    if n_threads == 1:
        for of_stack in products:
            multiply(of_stack)
        return
    with ThreadPoolExecutor(n_threads) as threads:
        list(threads.map(multiply, products))


class Eager(nn.Module):
    """The model of a member in plain PyTorch, and its loss."""

    def __init__(self, w):
        super().__init__()
        parts = [part for shape in w.layers() for part in (nn.Linear(*shape), nn.SiLU())]
        half = len(parts) // 2
        self.encoder = nn.Sequential(*parts[: half - 1])
        self.decoder = nn.Sequential(*parts[half:-1])
        self.raw_variance = nn.Parameter(torch.full((w.n_features,), -1.2))

    def forward(self, x):
        mean, log_std = self.encoder(x).chunk(2, dim=1)
        std = log_std.exp()
        x_hat = self.decoder(mean + std * torch.randn_like(mean))
        variance = 1e-4 + self.raw_variance.exp()
        squares = ((x - x_hat).square() / variance).sum(dim=1) + variance.log().sum()
        kl = 0.5 * (mean.square() + std.square() - 1).sum(dim=1) - log_std.sum(dim=1)
        return (0.5 * squares + kl).mean()


def train_eagerly(w, n_epochs):
    """One model, as an expert would write it: a permuted index, fused Adam, loss never read."""
    torch.manual_seed(w.seed)
    X, model = torch.from_numpy(w.X), Eager(w)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    for _ in range(n_epochs):
        for index in torch.randperm(len(X)).split(w.batch_size):
            optimizer.zero_grad()
            model(X[index]).backward()
            optimizer.step()


def time_step(sizes, args):
    """All rounds of the part `step`."""
    w = replace(sizes.workload, seed=args.seed)
    n_threads, n_steps = torch.get_num_threads(), w.n_rows // w.batch_size
    order = np.random.default_rng(args.seed)
    most = sizes.members[-1]
    shapes = {}  # by threads and name: jobs, and stacks of them
    for n in sorted({1, n_threads}):
        torch.set_num_threads(n)
        for M in sizes.members:
            jobs = [job for _ in range(n) for job in make_jobs(w, M)]
            shapes[n, str(M)] = jobs, [range(i * M, (i + 1) * M) for i in range(n)]
        jobs = make_jobs(w, most)
        stacks = packing.gather(dict(enumerate(jobs)), "auto")
        shapes[n, f"{most} in {len(stacks)}"] = jobs, stacks

    def runners(n, name):
        """What is measured side by side: each a function of epochs, threads, epochs, steps."""
        jobs, stacks = shapes[n, name]
        products = [make_products(w, len(stack)) for stack in stacks]
        few, more = w.epochs[0], max(2, sizes.one_member_epochs // max(map(len, stacks)))
        long, steps = (few, few + more), n_steps * len(jobs)
        result = {
            "stack": (lambda e: train_stacks(jobs, stacks, e), n, long, steps),
            "limit": (lambda e: multiply_stacks(products, e * n_steps), n, (0, 2 * more), steps),
        }
        # Two threads would wait for each other in every operation of a step this small.
        result["eager"] = (lambda e: train_eagerly(w, e), 1, w.epochs, n_steps)
        return result

    raw = {}
    for i in range(-1, args.repeats or sizes.repeats):  # round -1 warms up
        print(f"step: {f'round {i + 1}' if i >= 0 else 'warming up'}", file=sys.stderr)
        for place in order.permutation(len(shapes)):
            n, name = list(shapes)[place]
            entries = runners(n, name)
            for kind in order.permutation(list(entries)):
                run, k, epochs, steps = entries[kind]
                torch.set_num_threads(k)
                if i < 0:
                    run(1)
                else:
                    ms = milliseconds(run, epochs, steps)
                    raw.setdefault(f"{n} {name}", {}).setdefault(kind, []).append(ms)
    torch.set_num_threads(n_threads)
    rows = []
    for n, name in shapes:
        times = raw[f"{n} {name}"]
        single = raw[f"{n} {sizes.members[0]}"]["stack"]
        rows.append(
            {
                "threads": n,
                "members": name,
                "stacks": list(map(len, shapes[n, name][1])),
                "milliseconds": times,  # per member and step, of each round
                "to_limit": divide(times["stack"], times["limit"]),
                "to_eager": divide(times["stack"], times["eager"]),
                "to_single": divide(times["stack"], single),
            }
        )
    return {"workload": asdict(w), "rows": rows}


def divide(a, b):
    return [x / y for x, y in zip(a, b, strict=True)]


def print_step(result):
    w, rows = result["workload"], result["rows"]
    layers = "-".join(map(str, (w["n_features"], *w["hidden"], w["n_components"])))
    print(f"Milliseconds per member and step, {layers}, batch {w['batch_size']}.")
    for n in sorted({row["threads"] for row in rows}):
        lines, eager = [], []
        for row in (row for row in rows if row["threads"] == n):
            times = row["milliseconds"]
            eager += times["eager"]
            ratios = (machine.spread(row[f"to_{name}"]) for name in ("limit", "eager", "single"))
            stack = machine.spread(times["stack"])
            lines.append([row["members"], stack, machine.number(median(times["limit"])), *ratios])
        title = "one thread" if n == 1 else f"{n} threads"
        header = [title, "ms (range)", "limit", "/ limit", "/ eager step", "/ M = 1"]
        print(f"\n{machine.table([f'M, {header[0]}', *header[1:]], lines)}\n")
        print(f"One eager step on one thread: {machine.spread(eager)} ms.")


# --- a search -------------------------------------------------------------------------------


def fit_and_wait(X):
    """Be a warm worker, for long enough that each one gets a task."""
    VAETransformer(hidden_layer_sizes=(8,), max_iter=2, device="cpu").fit(X).score(X)
    time.sleep(0.5)
    return os.getpid()


def warm_up(search, X):
    """Have all workers alive, and a small search done with the same settings."""
    n_jobs = search.n_jobs or 1
    tasks = [joblib.delayed(fit_and_wait)(X[:100]) for _ in range(2 * n_jobs)]
    while n_jobs > 1 and len(set(joblib.Parallel(n_jobs, batch_size=1)(tasks))) < n_jobs:
        pass
    grid = {"beta": [0.5, 1.0], "max_iter": [2]}
    type(search)(search.estimator, grid, cv=2, n_jobs=search.n_jobs).fit(X[:200])


def time_search(sizes, args):
    """All rounds of the part `search`."""
    X, order = table(sizes.n_rows, args.seed), np.random.default_rng(args.seed)
    params = dict(sizes.params)
    if args.max_iter:
        params["max_iter"] = args.max_iter
    vae = VAETransformer(**machine.PLAIN, **params, random_state=args.seed, device="cpu")
    searches = {
        "VAEGridSearchCV": VAEGridSearchCV(vae, sizes.grid, cv=N_FOLDS),
        "VAEGridSearchCV, n_jobs=2": VAEGridSearchCV(vae, sizes.grid, cv=N_FOLDS, n_jobs=2),
        "GridSearchCV, n_jobs=1": GridSearchCV(vae, sizes.grid, cv=N_FOLDS, n_jobs=1),
        "GridSearchCV, n_jobs=2": GridSearchCV(vae, sizes.grid, cv=N_FOLDS, n_jobs=2),
    }
    rows = {name: {"seconds": [], "refit_seconds": []} for name in searches}
    for i in range(args.repeats or sizes.repeats):
        for name in order.permutation(list(searches)):
            print(f"search: round {i + 1}, {name}", file=sys.stderr)
            search, row = searches[name], rows[name]
            warm_up(search, X)
            gc.collect()
            start = time.perf_counter()
            search.fit(X)
            row["seconds"].append(time.perf_counter() - start)
            row["refit_seconds"].append(search.refit_time_)
            scores = np.sort(search.cv_results_["mean_test_score"])
            row["best_params"], row["best_score"] = search.best_params_, search.best_score_
            row["lead"] = float(scores[-1] - scores[-2])  # of the best over the second
    ours = rows["VAEGridSearchCV"]["seconds"]
    for row in rows.values():
        row["ratios"] = divide(row["seconds"], ours)
    n_candidates = int(np.prod([len(values) for values in sizes.grid.values()]))
    return {
        "n_rows": sizes.n_rows,
        "n_features": X.shape[1],
        "grid": sizes.grid,
        "n_candidates": n_candidates,
        "n_folds": N_FOLDS,
        "params": params,
        "contestants": rows,
    }


def print_search(result):
    r = result
    params = ", ".join(f"{name}={value}" for name, value in r["params"].items())
    print("Seconds of a search: {n_candidates} candidates, {n_folds} folds,".format(**r), end=" ")
    print(f"{r['n_rows']:,} x {r['n_features']} rows, {params}.\n")
    lines = []
    for name, row in r["contestants"].items():
        best = ", ".join(f"{key}={value}" for key, value in row["best_params"].items())
        ratio, refit = machine.spread(row["ratios"]), machine.number(median(row["refit_seconds"]))
        score = f"{row['best_score']:.4f}"
        lines.append([name, machine.spread(row["seconds"]), ratio, refit, best, score])
    header = [
        "",
        "seconds (range)",
        "/ VAEGridSearchCV",
        "of it refit",
        "best_params_",
        "best_score_",
    ]
    print(machine.table(header, lines))
    equal = len({str(row["best_params"]) for row in r["contestants"].values()}) == 1
    lead = min(row["lead"] for row in r["contestants"].values())
    print(f"\nThe best parameters {'are equal' if equal else 'DIFFER'};", end=" ")
    print(f"the best candidate leads by {lead:.4f} nats.")


# --- agreement ------------------------------------------------------------------------------


KINDS = (VAEGridSearchCV, GridSearchCV)


def compare(sizes, args):
    """The part `agreement`: nothing is timed, so nothing is repeated."""
    X, rows = table(sizes.n_rows, args.seed), {}
    for name, params in sizes.cases.items():
        print(f"agreement: {name}", file=sys.stderr)
        vae = VAETransformer(**machine.PLAIN, **params, random_state=args.seed, device="cpu")
        searches = (kind(vae, sizes.grid, cv=3, refit=False) for kind in KINDS)
        with mock.patch.object(execution, "train", wraps=execution.train) as run:
            ours = next(searches).fit(X).cv_results_
        theirs = next(searches).fit(X).cv_results_
        unequal, differences = sorted(ours.keys() ^ theirs.keys()), []
        for column in ours.keys() & theirs.keys():
            if column.startswith("split"):
                differences.append(float(np.abs(ours[column] - theirs[column]).max()))
            elif column in ("params", "rank_test_score") or column.startswith("param_"):
                unequal += [column] * (list(ours[column]) != list(theirs[column]))
        rows[name] = {
            "params": params,
            "stacks": [len(call.args[0]) for call in run.call_args_list],
            "largest_difference": max(differences),
            "unequal": sorted(unequal),
            "best_equal": bool(
                np.argmax(ours["mean_test_score"]) == np.argmax(theirs["mean_test_score"])
            ),
        }
    return {"n_rows": sizes.n_rows, "n_features": X.shape[1], "grid": sizes.grid, "cases": rows}


def print_agreement(result):
    values = " x ".join(str(len(values)) for values in result["grid"].values())
    print(f"Largest difference of a split's test score: {values} candidates, 3 folds,", end=" ")
    print("{n_rows:,} x {n_features} rows.\n".format(**result))
    lines = []
    for name, row in result["cases"].items():
        other = ", ".join(row["unequal"]) or "none"
        best = "yes" if row["best_equal"] else "no"
        stacks = ", ".join(map(str, row["stacks"]))
        lines.append([name, f"{row['largest_difference']:.1e}", other, best, stacks])
    header = ["", "nats per row", "other columns that differ", "same best", "stacks of"]
    print(machine.table(header, lines))


PARTS = {
    "step": (time_step, print_step),
    "search": (time_search, print_search),
    "agreement": (compare, print_agreement),
}


def print_part(name, part):
    print(f"\n{machine.summarise(part['run'])}\n")
    PARTS[name][1](part["result"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parent / "results/search.json"
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, help="rounds (default: 5 of step, 3 of search)")
    parser.add_argument("--max-iter", type=int, help="epochs of the fits of search (default: 300)")
    parser.add_argument("--threads", type=int, help="of torch (default: its own)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="tiny sizes; keeps no file")
    parser.add_argument("--json", type=Path, help=f"(default: {default.name} in results/)")
    parser.add_argument("--markdown", action="store_true", help="only print the tables of --json")
    args = parser.parse_args()

    path = args.json or (None if args.quick else default)
    report = machine.read(path or default) if path or args.markdown else {}
    if args.markdown:
        for name in [name for name in PARTS if name in report and name in args.only]:
            print_part(name, report[name])
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    for name in args.only:
        sizes = (QUICK if args.quick else FULL)[name]
        run = machine.describe() | {"seed": args.seed}
        # The parts that this run leaves out stay in the file.
        report[name] = {"run": run, "result": PARTS[name][0](sizes, args)}
        print_part(name, report[name])
        if path:
            machine.write(path, report)
            print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
