"""The default model on few rows, beside the better of PCA and FactorAnalysis.

    python benchmarks/bench_small_tables.py [--seeds 20] [--rows 20 30 49 60 120 300] [--save]

For each table, number of rows and seed: so many random rows are trained on, and up to 1,000 others
scored. PCA and FactorAnalysis (on standardised rows, moved back) have the number of components, up
to 8, that five folds of the training rows choose; of the two, the one with the higher score on the
*new* rows is the reference, which is one choice more than a user has. Printed are the median and
the mean over seeds of the difference in nats a row, the smallest one, and the share of seeds in
which the default is worse by more than two standard errors of the difference of the rows. The
columns under "choice" say the same of a choice that a user can make: the one of the two with the
higher score in five folds of the training rows, which are other folds than those of the reference.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
from machine import describe
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.model_selection import GridSearchCV, KFold

from skvae import VAETransformer

N_COMPONENTS = 8
MOST_NEW = 1000


def linear(rng):
    """A linear model of 3 factors in 12 columns whose noise differs."""
    noise = np.exp(0.5 * rng.standard_normal(12)) * rng.standard_normal((3000, 12))
    return rng.standard_normal((3000, 3)) @ rng.standard_normal((3, 12)) + noise


def equal_noise(rng):
    """The same with one noise variance, which is what PCA assumes."""
    factors = rng.standard_normal((3000, 3)) @ rng.standard_normal((3, 12))
    return factors + rng.standard_normal((3000, 12))


def independent(rng):
    """Ten columns that have nothing in common."""
    return 3 * rng.standard_normal((3000, 10))


def curve(rng):
    """Five functions of one number."""
    t = rng.uniform(0, 4, 3000)
    columns = np.stack([np.cos(t), np.sin(t), t, t**2 / 4, np.exp(-t)], axis=1)
    return columns + 0.1 * rng.standard_normal((3000, 5))


def clusters(rng):
    """Four clusters in 8 columns."""
    return 3 * rng.standard_normal((4, 8))[rng.integers(4, size=3000)] + rng.standard_normal(
        (3000, 8)
    )


def heavy_tails(rng):
    """A linear model of 2 factors in 10 columns, with noise of Student's t distribution."""
    factors = rng.standard_normal((3000, 2)) @ rng.standard_normal((2, 10))
    return factors + rng.standard_t(3, (3000, 10))


LOADED = {f.__name__[5:]: f for f in (load_iris, load_wine, load_diabetes, load_breast_cancer)}
MADE = {f.__name__: f for f in (linear, equal_noise, independent, curve, clusters, heavy_tails)}


def split(table, n_rows, seed):
    """So many training rows, and new ones."""
    rng = np.random.default_rng(100 + seed)
    X = LOADED[table]().data if table in LOADED else MADE[table](rng)
    order = np.random.default_rng(seed).permutation(len(X))
    n_rows = min(n_rows, len(X) - 30)
    return X[order[:n_rows]], X[order[n_rows : n_rows + MOST_NEW]]


def classics(X, new, seed):
    """Scores of new rows under PCA and FactorAnalysis, and those that folds by `seed` give."""
    folds = KFold(5, shuffle=True, random_state=seed)
    most = min(N_COMPONENTS, X.shape[1] - 1, int(0.8 * len(X)) - 1)
    grid = {"n_components": list(range(1, most + 1))}
    pca = GridSearchCV(PCA(svd_solver="full"), grid, cv=folds).fit(X)
    mean, scale = X.mean(axis=0), X.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    log_units = np.log(scale).sum()
    grid = {"n_components": list(range(1, min(N_COMPONENTS, X.shape[1]) + 1))}
    factors = GridSearchCV(FactorAnalysis(), grid, cv=folds).fit((X - mean) / scale)
    scores = [
        pca.best_estimator_.score_samples(new),
        factors.best_estimator_.score_samples((new - mean) / scale) - log_units,
    ]
    return scores, [pca.best_score_, factors.best_score_ - log_units]


def is_worse(difference):
    """Whether the mean of the differences of rows is below 0 by two standard errors."""
    return bool(difference.mean() < -2 * difference.std(ddof=1) / np.sqrt(len(difference)))


def compare(table, n_rows, seeds):
    """Differences of all seeds, and what to print of them."""
    differences, of_choice, n_networks, seconds = [], [], 0, 0.0
    n_worse = n_choice_worse = 0
    for seed in range(seeds):
        X, new = split(table, n_rows, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start = time.perf_counter()
            vae = VAETransformer(N_COMPONENTS, random_state=seed).fit(X)
            seconds += time.perf_counter() - start
            best = max(classics(X, new, 0)[0], key=np.mean)
            scores, of_folds = classics(X, new, 1)
            chosen = scores[int(np.argmax(of_folds))]
        difference = vae.score_samples(new) - best
        n_worse += is_worse(difference)
        n_choice_worse += is_worse(chosen - best)
        n_networks += bool(vae.kept_iter_)
        differences.append(float(difference.mean()))
        of_choice.append(float((chosen - best).mean()))
    return {
        "table": table,
        "rows": len(X),
        "median": float(np.median(differences)),
        "mean": float(np.mean(differences)),
        "least": min(differences),
        "worse": n_worse / seeds,
        "choice_mean": float(np.mean(of_choice)),
        "choice_least": min(of_choice),
        "choice_worse": n_choice_worse / seeds,
        "networks": n_networks / seeds,
        "seconds": seconds / seeds,
        "differences": differences,
    }


def main():
    """Print a line for each table and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", nargs="+", default=[*LOADED, *MADE])
    parser.add_argument("--rows", nargs="+", type=int, default=[20, 30, 49, 60, 120, 300])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--save", action="store_true", help="write results/small_tables.json")
    arguments = parser.parse_args()
    print(
        f"{'table':14} rows  median    mean   least  worse  "
        "choice: mean   least  worse  networks  seconds"
    )
    results = []
    for table in arguments.tables:
        for n_rows in arguments.rows:
            result = compare(table, n_rows, arguments.seeds)
            results.append(result)
            print(
                f"{table:14} {result['rows']:4} {result['median']:+7.2f} {result['mean']:+7.2f} "
                f"{result['least']:+7.2f} {result['worse']:6.0%} "
                f"{result['choice_mean']:+13.2f} {result['choice_least']:+7.2f} "
                f"{result['choice_worse']:6.0%} {result['networks']:9.0%} "
                f"{result['seconds']:8.2f}",
                flush=True,
            )
    if arguments.save:
        path = Path(__file__).parent / "results" / "small_tables.json"
        path.write_text(json.dumps({"machine": describe(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
