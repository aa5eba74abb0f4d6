"""Held-out densities of skvae beside those of scikit-learn's PCA, FactorAnalysis, GaussianMixture.

Two parts:

``score``
    ``VAETransformer(random_state=0)``, nothing set, against the best PCA and the best
    FactorAnalysis of any number of components. Each row is held out once, in 5 folds; the
    best is chosen by its held-out score itself, which flatters it. Differences of rows are
    paired. Beside it, how far ``score`` is from `skvae.metrics.elbo` on the last fold.
``density``
    A search over beta, n_components and noise of models that are trained for the likelihood (32
    importance samples, a mixture of 8 normals as prior), against the best GaussianMixture over
    its number of components and kinds of covariance. Both are chosen by cross-validated
    log-likelihood on the training part of one split, and judged by it on the rest; that of skvae
    is `skvae.metrics.log_likelihood`, with 100 draws a row in the search and 500 at the end.

Rules: data as they are, in their own units, but for columns that are constant, or nearly so in
the digits, where no two densities compare; noise and folds by seeds; float32 on the CPU. In
tables whose name says Gaussian, PCA or FactorAnalysis is the truth, and none can do better.
"""

import argparse
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import machine
import numpy as np
import torch
from sklearn import datasets
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import VarianceThreshold
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold, train_test_split
from sklearn.preprocessing import StandardScaler

from skvae import VAEGridSearchCV, VAETransformer, metrics
from skvae.likelihoods import Gaussian
from skvae.priors import Mixture

HERE = Path(__file__).parent
SEED = 0


# --- tables ---------------------------------------------------------------------------------


def ring(n_features, n_rows=1000):
    """Eight normal clouds on a ring, by a random linear map in so many dimensions."""
    rng = np.random.default_rng(SEED)
    angle = rng.integers(8, size=n_rows) * np.pi / 4
    Z = np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.1 * rng.standard_normal((n_rows, 2))
    turn = np.eye(2) if n_features == 2 else rng.standard_normal((2, n_features))
    noise = 0.0 if n_features == 2 else 0.1
    return Z @ turn + noise * rng.standard_normal((n_rows, n_features))


def factors(n_rows=1000, n_features=20, n_components=5):
    """Factor analysis is the truth."""
    rng = np.random.default_rng(SEED)
    W = rng.standard_normal((n_components, n_features))
    noise = rng.uniform(0.3, 1.5, n_features) * rng.standard_normal((n_rows, n_features))
    return rng.standard_normal((n_rows, n_components)) @ W + noise


TABLES = {
    "iris": lambda: datasets.load_iris().data,
    "wine": lambda: datasets.load_wine().data,
    "diabetes": lambda: datasets.load_diabetes().data,
    "breast cancer": lambda: datasets.load_breast_cancer().data,
    "digits": lambda: VarianceThreshold(0.1).fit_transform(datasets.load_digits().data),
    "two moons": lambda: datasets.make_moons(1000, noise=0.1, random_state=SEED)[0],
    "S curve": lambda: datasets.make_s_curve(1000, noise=0.1, random_state=SEED)[0],
    "Swiss roll": lambda: datasets.make_swiss_roll(1000, noise=0.5, random_state=SEED)[0],
    "ring in 2-D": lambda: ring(2),
    "ring in 10-D": lambda: ring(10),
    "ring in 30-D": lambda: ring(30),
    "Gaussian factors": factors,
}


# --- score ----------------------------------------------------------------------------------


def classic_scores(kind, train, test):
    """Held-out log-densities (k, n) of all sizes."""
    # FactorAnalysis stops early in raw units: in standard ones, moved to those of the table.
    scaler = StandardScaler().fit(train) if kind is FactorAnalysis else None
    move = -np.log(scaler.scale_).sum() if scaler else 0.0
    if scaler:
        train, test = scaler.transform(train), scaler.transform(test)
    n_most = min(train.shape[1] - (kind is PCA), 30)
    scores = []
    for k in range(1, max(2, n_most + 1)):
        k = min(k, train.shape[1])
        model = kind(k).fit(train)
        with np.errstate(divide="ignore"):
            scores.append(model.score_samples(test) + move)
    return np.array(scores)


def fit_quietly(estimator, X):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(X)


def compare_scores(X, make=lambda: VAETransformer(random_state=SEED)):
    """Held-out scores of every row, and of the best classic models."""
    own, classic, spent = np.empty(len(X)), {}, 0.0
    folds = list(KFold(5, shuffle=True, random_state=SEED).split(X))
    held = {kind: [] for kind in (PCA, FactorAnalysis)}
    for train, test in folds:
        start = time.perf_counter()
        vae = fit_quietly(make(), X[train])
        spent += time.perf_counter() - start
        own[test] = vae.score_samples(X[test])
        for kind, scores in held.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scores.append(classic_scores(kind, X[train], X[test]))
    elbos = metrics.elbo(vae, X[test], n_samples=2000, random_state=SEED, per_sample=True)
    off = vae.score(X[test]) - elbos.mean()
    order = np.concatenate([test for _, test in folds])
    for kind, scores in held.items():
        rows = np.empty((len(scores[0]), len(X)))
        rows[:, order] = np.concatenate(scores, axis=1)
        if not np.isfinite(rows).all(axis=1).any():
            rows[:] = np.nan_to_num(rows, neginf=-1e300)
        k = int(rows.mean(axis=1).argmax())
        classic[kind.__name__] = {"n_components": k + 1, **paired(own, rows[k])}
    return {"score": own.mean(), "seconds": spent / 5, "off": off, "classic": classic}


def paired(own, other):
    difference = own - other
    return {
        "score": float(other.mean()),
        "difference": float(difference.mean()),
        "std_error": float(difference.std(ddof=1) / np.sqrt(len(own))),
    }


# --- density --------------------------------------------------------------------------------

FOR_LIKELIHOOD = {"n_importance_samples": 32, "prior": Mixture(8), "random_state": SEED}
GRID = {
    "beta": [0.5, 1.0],
    "n_components": [2, 4, 16],
    "likelihood": [Gaussian("per_feature"), Gaussian("per_sample")],
}
N_FOLDS = 3
MIXTURES = {
    "n_components": [1, 2, 4, 8, 16, 32],
    "covariance_type": ["full", "tied", "diag", "spherical"],
}


def compare_densities(X):
    """Held-out log-likelihoods of both searches' choices."""
    train, test = train_test_split(X, test_size=0.3, random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        scoring = partial(metrics.log_likelihood, n_samples=100, random_state=SEED)
        vae = VAETransformer(**FOR_LIKELIHOOD)
        search = VAEGridSearchCV(vae, GRID, scoring=scoring, cv=N_FOLDS).fit(train)
        spent = time.perf_counter() - start
        mixtures = GridSearchCV(
            GaussianMixture(random_state=SEED, n_init=3, reg_covar=1e-6), MIXTURES, cv=N_FOLDS
        ).fit(train)
    own = metrics.log_likelihood(
        search.best_estimator_, test, n_samples=500, random_state=SEED, per_sample=True
    )
    return {
        "log_likelihood": float(own.mean()),
        "seconds": spent,
        "chosen": {name: str(value) for name, value in search.best_params_.items()},
        "mixture": mixtures.best_params_,
        **{f"mixture_{k}": v for k, v in paired(own, mixtures.score_samples(test)).items()},
    }


# --- all tables -----------------------------------------------------------------------------

PARTS = {"score": compare_scores, "density": compare_densities}


def verdict(difference, std_error):
    """A word for a difference of means: beyond two standard errors, or none."""
    if abs(difference) <= 2 * std_error:
        return "equal"
    return "better" if difference > 0 else "worse"


def print_score(results):
    header = ["table", "skvae", "PCA (size)", "FactorAnalysis (size)", "difference", "", "s", "off"]
    rows = []
    for name, result in results.items():
        classic = result["classic"]
        cells = [f"{c['score']:.2f} ({c['n_components']})" for c in classic.values()]
        least = min(classic.values(), key=lambda c: c["difference"])
        difference, error = least["difference"], least["std_error"]
        rows.append(
            [
                name,
                f"{result['score']:.2f}",
                *cells,
                f"{difference:+.2f} ± {error:.2f}",
                verdict(difference, error),
                machine.number(result["seconds"], 2),
                f"{result['off']:+.3f}",
            ]
        )
    print(machine.table(header, rows))


def print_density(results):
    header = ["table", "skvae", "GaussianMixture", "difference", "", "s", "chosen"]
    rows = []
    for name, result in results.items():
        difference, error = result["mixture_difference"], result["mixture_std_error"]
        rows.append(
            [
                name,
                f"{result['log_likelihood']:.2f}",
                f"{result['mixture_score']:.2f}",
                f"{difference:+.2f} ± {error:.2f}",
                verdict(difference, error),
                machine.number(result["seconds"], 2),
                ", ".join(result["chosen"].values()),
            ]
        )
    print(machine.table(header, rows))


def print_part(part, report):
    print(f"\n{machine.summarise(report['run'])}\n")
    {"score": print_score, "density": print_density}[part](report["tables"])


def main():
    default = HERE / "results" / "quality.json"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--threads", type=int, help="of torch (default: its own)")
    parser.add_argument("--json", type=Path, default=default, help=f"(default: {default.name})")
    parser.add_argument("--markdown", action="store_true", help="only print what --json has")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    report = machine.read(args.json)
    for part in args.only:
        if not args.markdown:
            tables = report.get(part, {}).get("tables", {})  # those not asked for stay
            report[part] = {"run": machine.describe(), "tables": tables}
            for name in args.tables:
                print(f"{part}: {name}", file=sys.stderr)
                tables[name] = PARTS[part](TABLES[name]())
                machine.write(args.json, report)
        if part in report:
            print_part(part, report[part])


if __name__ == "__main__":
    main()
