"""Missing values filled in by `VAEImputer` and by scikit-learn's imputers.

Of standardised columns, 20 and 50 % of the values are taken out at random; each imputer sees what
is left, and its root mean square error is that over the values that were taken out, in standard
deviations of a column. A mean over ``--repeats`` choices of values; all imputers see the same ones.
Nothing is set, but for the forests, of 10 trees each in 5 rounds. An imputer that takes longer than
``--budget`` seconds for a choice is not given another, which the table says. ``--imputers`` that
are not asked for stay in the file as an earlier run left them.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import machine
import numpy as np
import torch
from sklearn import datasets
from sklearn.ensemble import RandomForestRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.feature_selection import VarianceThreshold
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.preprocessing import StandardScaler

from skvae import VAEImputer

HERE = Path(__file__).parent
SHARES = (0.2, 0.5)
TABLES = {
    "iris": lambda: datasets.load_iris().data,
    "wine": lambda: datasets.load_wine().data,
    "diabetes": lambda: datasets.load_diabetes().data,
    "breast cancer": lambda: datasets.load_breast_cancer().data,
    "digits": lambda: VarianceThreshold(0.1).fit_transform(datasets.load_digits().data),
}
IMPUTERS = {
    "VAEImputer": lambda seed: VAEImputer(random_state=seed),
    "mean": lambda seed: SimpleImputer(keep_empty_features=True),
    "KNN": lambda seed: KNNImputer(keep_empty_features=True),
    "iterative": lambda seed: IterativeImputer(random_state=seed, keep_empty_features=True),
    "forests": lambda seed: IterativeImputer(
        RandomForestRegressor(n_estimators=10, n_jobs=1, random_state=seed),
        random_state=seed,
        max_iter=5,
        keep_empty_features=True,
    ),
}


def race(X, share, seed, names, budget, slow):
    """Root mean square error and seconds of each imputer that is not among the `slow`."""
    X = StandardScaler().fit_transform(X)
    taken = np.random.default_rng(seed).random(X.shape) < share
    holes = np.where(taken, np.nan, X)
    results = {}
    for name in [name for name in names if name not in slow]:
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            filled = IMPUTERS[name](seed).fit_transform(holes)
        seconds = time.perf_counter() - start
        results[name] = {
            "error": float(np.sqrt(np.square(filled - X)[taken].mean())),
            "seconds": seconds,
        }
        if seconds > budget:
            slow.add(name)
    return results


def print_results(report):
    header = ["table", "missing", *IMPUTERS]
    rows = []
    for key, repeats in report["tables"].items():
        cells = []
        for name in IMPUTERS:
            own = [r[name] for r in repeats if name in r]
            if not own:
                cells.append("")
                continue
            error, seconds = (np.mean([r[k] for r in own]) for k in ("error", "seconds"))
            once = "" if len(own) == len(repeats) else f", {len(own)} of {len(repeats)}"
            cells.append(f"{error:.3f} ({machine.number(seconds, 2)} s{once})")
        rows.append([*key.rsplit(" ", 1), *cells])
    print(f"\n{machine.summarise(report['run'])}\n")
    print(machine.table(header, rows))


def main():
    default = HERE / "results" / "imputation.json"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--imputers", nargs="+", choices=IMPUTERS, default=list(IMPUTERS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget", type=float, default=60, help="seconds, to be repeated")
    parser.add_argument("--markdown", action="store_true", help="only print what --json has")
    parser.add_argument("--threads", type=int, help="of torch (default: its own)")
    parser.add_argument("--json", type=Path, default=default, help=f"(default: {default.name})")
    args = parser.parse_args()
    report = machine.read(args.json)
    if args.markdown:
        print_results(report)
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    report = {"run": machine.describe(), "tables": report.get("tables", {})}
    for table in args.tables:
        X = TABLES[table]()
        for share in SHARES:
            print(f"{table} {share}", file=sys.stderr)
            before, slow = report["tables"].get(f"{table} {share:.0%}", []), set()
            kept = [{k: v for k, v in r.items() if k not in args.imputers} for r in before]
            repeats = report["tables"][f"{table} {share:.0%}"] = kept[: args.repeats]
            for seed in range(args.repeats):
                if seed == len(repeats):
                    repeats.append({})
                repeats[seed] |= race(X, share, seed, args.imputers, args.budget, slow)
                machine.write(args.json, report)
    print_results(report)


if __name__ == "__main__":
    main()
