"""How far the score's fixed draws are from the expectation that they stand for.

`VAETransformer.score_samples` averages log p(x|z) over one fixed set of draws of z. Here each model
is fitted on two thirds of a table. Its scores of up to 200 rows of the rest are compared with
`skvae.metrics.elbo` with 10,000 draws of each row's own, and 100,000 for up to 25 rows whose
standard error is then above 0.3. Rules for the draws are those of `RULES`. The columns, in nats:

``mean``
    The error of the mean over rows, score minus reference, with the fixed digital shift.
``rms``, ``most``
    The root mean square and the largest of that error over six shifts, the fixed one among them:
    what one may expect of a model that is not among these.
``row``
    The median, the 0.95 quantile and the largest absolute error of a row, over rows and shifts. The
    reference has errors of its own.
``se``
    The standard error of the mean of the reference.

The models are chosen to be hard: many components, large or small beta, several importance samples,
counts. ``--models`` and ``--rules`` choose some. Fits and references stay in ``--cache`` for the
next run. ``--time`` measures the seconds of `score_samples` with 64 draws and with the default
number of them instead, in rounds that take both in turn.
"""

import argparse
import math
import sys
import time
import warnings
from pathlib import Path

import joblib
import machine
import numpy as np
import pandas as pd
from scipy.special import ndtri
from scipy.stats import chi, qmc
from sklearn import datasets
from sklearn.model_selection import train_test_split

from skvae import VAETransformer, metrics, priors
from skvae._backend import quadrature
from skvae._backend.tensors import to_array, to_tensor
from skvae._model import objective
from skvae._model.state import log_jacobian
from skvae.likelihoods import StudentT

SEED = 0
N_REFERENCE = 10_000
MOST_ROWS = 200
LARGEST_ERROR, MOST_AGAIN = 0.3, 25  # of rows whose reference is taken again
N_SHIFTS = 6


# --- tables and models ----------------------------------------------------------------------


def counts(n_rows=1000, n_features=40, n_latent=6):
    """Counts whose rates are a nonlinear function of few latent variables."""
    rng = np.random.default_rng(SEED)
    Z = rng.standard_normal((n_rows, n_latent))
    hidden = np.tanh(Z @ rng.standard_normal((n_latent, 16)))
    log_rate = 1.5 + hidden @ rng.standard_normal((16, n_features)) / 2
    return rng.poisson(np.exp(log_rate)).astype(float)


def mixed(n_rows=1500):
    """Reals, counts and categories by turns, from five latent variables."""
    rng = np.random.default_rng(SEED)
    Z = rng.standard_normal((n_rows, 5))
    H = np.tanh(Z @ rng.standard_normal((5, 12)))
    frame = {}
    for i in range(8):
        w = rng.standard_normal(12) / 2
        frame[f"real{i}"] = H @ w + 0.2 * rng.standard_normal(n_rows)
        frame[f"count{i}"] = rng.poisson(np.exp(1.0 + H @ w)).astype("int64")
        level = np.digitize(H @ w + 0.3 * rng.standard_normal(n_rows), [-1, -0.3, 0.3, 1])
        frame[f"level{i}"] = pd.Categorical.from_codes(level, list("abcde"))
    return pd.DataFrame(frame)


def cancer():
    return datasets.load_breast_cancer().data


def digits():
    return datasets.load_digits().data


def binary():
    return (digits() > 7).astype(float)


def swiss():
    return datasets.make_swiss_roll(1000, noise=0.5, random_state=SEED)[0]


def moons():
    return datasets.make_moons(1000, noise=0.1, random_state=SEED)[0]


MODELS = {
    # Those that were reported.
    "cancer 16, k=10": (cancer, {"n_components": 16, "n_importance_samples": 10}),
    "cancer 16, beta=4": (cancer, {"n_components": 16, "beta": 4}),
    "counts 16": (counts, {"n_components": 16, "likelihood": "poisson"}),
    "digits 32, beta=8": (digits, {"n_components": 32, "beta": 8}),
    # Others.
    "cancer 2, beta=0.1": (cancer, {"n_components": 2, "beta": 0.1}),
    "cancer 8, k=10": (cancer, {"n_components": 8, "n_importance_samples": 10}),
    "cancer 32": (cancer, {"n_components": 32}),
    "cancer 16, full": (cancer, {"n_components": 16, "posterior": "full"}),
    "cancer 8, student": (cancer, {"n_components": 8, "likelihood": StudentT(), "beta": 2}),
    "counts 2": (counts, {"n_components": 2, "likelihood": "poisson"}),
    "counts 16, beta=4": (counts, {"n_components": 16, "likelihood": "poisson", "beta": 4}),
    "counts 8, nb, k=10": (
        counts,
        {"n_components": 8, "likelihood": "negative_binomial", "n_importance_samples": 10},
    ),
    "binary 16": (binary, {"n_components": 16, "likelihood": "bernoulli"}),
    "binary 32, beta=4": (binary, {"n_components": 32, "likelihood": "bernoulli", "beta": 4}),
    "mixed 8": (mixed, {"n_components": 8, "likelihood": "auto"}),
    "mixed 16, beta=4": (mixed, {"n_components": 16, "likelihood": "auto", "beta": 4}),
    "digits 16, mixture": (digits, {"n_components": 16, "prior": priors.Mixture(8)}),
    "digits 16, beta=0.1": (digits, {"n_components": 16, "beta": 0.1}),
    "swiss 2, beta=4": (swiss, {"n_components": 2, "beta": 4}),
    "swiss 8, k=10": (swiss, {"n_components": 8, "n_importance_samples": 10}),
    "moons 2, beta=0.05": (moons, {"n_components": 2, "beta": 0.05}),
    "moons 2, k=10": (moons, {"n_components": 2, "n_importance_samples": 10}),
}


def fit(name):
    """The model of that name, and rows that it hasn't seen."""
    make, params = MODELS[name]
    train, test = train_test_split(make(), test_size=1 / 3, random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vae = VAETransformer(**params, random_state=SEED, device="cpu").fit(train)
    return vae, test[:MOST_ROWS]


def prepare(name, cache):
    """A model, rows, and their reference with its standard errors."""
    path = None if cache is None else cache / (name.replace(" ", "_") + ".joblib")
    if path is not None and path.exists():
        return joblib.load(path)
    vae, X = fit(name)
    options = {"per_sample": True, "return_std_error": True}
    value, error = metrics.elbo(vae, X, n_samples=N_REFERENCE, random_state=1, **options)
    worst = np.argsort(-error)[:MOST_AGAIN]
    worst = worst[error[worst] > LARGEST_ERROR]
    if len(worst):
        again = X.iloc[worst] if hasattr(X, "iloc") else X[worst]
        value[worst], error[worst] = metrics.elbo(
            vae, again, n_samples=10 * N_REFERENCE, random_state=2, **options
        )
    made = vae, X, value, error
    if path is not None:
        cache.mkdir(parents=True, exist_ok=True)
        joblib.dump(made, path)
    return made


# --- rules ----------------------------------------------------------------------------------


def score(vae, X, noise):
    """`score_samples` by the draws `noise`."""
    data, result = vae._fitted.read(X), np.empty(len(X))
    noise, block = noise[:, None, :].astype(vae._fitted.dtype), vae._fitted.blocks(data)

    def measure(model, rows):
        eps = to_tensor(noise, model.varies.device)
        return [to_array(objective.elbo(model, block(model, rows), eps))]

    vae._fitted.map_rows(measure, result, n_draws=len(noise))
    return result - log_jacobian(vae.state_)


def sobol_half(n_half, n_components, shift):
    """Half of the draws before they are whitened, as in `skvae._backend.quadrature.score_noise`."""
    points = qmc.Sobol(n_components, scramble=False).random_base2((n_half - 1).bit_length())
    digits = np.random.default_rng(shift).integers(2**32, size=n_components, dtype=np.uint64)
    shifted = (points[:n_half] * 2**32).astype(np.uint64) ^ digits
    return ndtri((shifted + 0.5) / 2**32)


def whiten(half):
    factor = np.linalg.cholesky(half.T @ half / len(half))
    return np.linalg.solve(factor, half.T).T


def both(half):
    return np.concatenate([half, -half])


def sobol(n_draws, n_components, shift):
    """A Sobol sequence with a digital shift, mapped to normals, antithetic and whitened."""
    return both(whiten(sobol_half(n_draws // 2, n_components, shift)))


def chi_radii(n_radii, n_components):
    """Quantiles of the chi distribution, whose mean square is that of normals."""
    radii = chi.ppf((np.arange(n_radii) + 0.5) / n_radii, n_components)
    return radii * math.sqrt(n_components / np.mean(radii**2))


def corrected(n_draws, n_components, shift):
    """As `sobol`, with the radii of normals: whitened and corrected by turns."""
    half = sobol_half(n_draws // 2, n_components, shift)
    radii = chi_radii(len(half), n_components)
    for _ in range(30):
        half = whiten(half)
        norm = np.linalg.norm(half, axis=1)
        half *= (radii[np.argsort(np.argsort(norm))] / norm)[:, None]
    return both(whiten(half))


def frames(n_draws, n_components, shift):
    """Antithetic orthogonal frames in random directions, each of one radius."""
    n_frames = max(1, n_draws // (2 * n_components))
    rng = np.random.default_rng(shift)
    turns = np.linalg.qr(rng.standard_normal((n_frames, n_components, n_components)))[0]
    radii = chi_radii(n_frames, n_components)
    return both((radii[:, None, None] * turns).reshape(-1, n_components))


def of(kind, n):
    """That many draws of a kind, or the power of two from 4 for each component on."""
    return lambda n_components, shift: kind(
        quadrature.n_score_draws(n, n_components), n_components, shift
    )


RULES = {
    "old": of(sobol, 64),
    "sobol 128": of(sobol, 128),
    "default": of(sobol, "auto"),
    "corrected 256": of(corrected, 256),
    "frames 256": of(frames, 256),
    "sobol 512": of(sobol, 512),
}


# --- comparisons ----------------------------------------------------------------------------


def compare(names, rules, cache):
    """Lines of the table."""
    for name in names:
        vae, X, reference, errors = prepare(name, cache)
        se = math.sqrt(np.square(errors).sum()) / len(X)
        for rule in rules:
            sets = [RULES[rule](vae._n_features_out, shift) for shift in range(N_SHIFTS)]
            error = np.array([score(vae, X, noise) for noise in sets]) - reference
            mean, row = error.mean(axis=1), np.abs(error)
            yield [
                name,
                rule,
                str(len(sets[0])),
                f"{mean[0]:+.3f}",
                f"{np.sqrt(np.square(mean).mean()):.3f}",
                f"{np.abs(mean).max():.3f}",
                f"{np.median(row):.2f}",
                f"{np.quantile(row, 0.95):.2f}",
                f"{row.max():.1f}",
                f"{se:.3f}",
            ]


def clock(names, cache, n_rounds):
    """Lines of seconds of `score_samples`."""
    for name in names:
        vae, X, *_ = prepare(name, cache)
        many = pd.concat([X] * 10) if hasattr(X, "iloc") else np.tile(X, (10, 1))
        spent = {64: [], "auto": []}
        for n_draws in spent:
            vae.set_params(n_score_draws=n_draws).score_samples(many)  # untimed
        for _ in range(n_rounds):
            for n_draws, seconds in spent.items():
                vae.set_params(n_score_draws=n_draws)
                start = time.perf_counter()
                vae.score_samples(many)
                seconds.append(time.perf_counter() - start)
        ratios = [new / old for old, new in zip(*spent.values(), strict=True)]
        draws = [quadrature.n_score_draws(n, vae._n_features_out) for n in spent]
        yield [
            name,
            f"{len(many)}",
            "{} to {}".format(*draws),
            *map(machine.spread, (*spent.values(), ratios)),
        ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS), metavar="NAME")
    parser.add_argument("--rules", nargs="*", default=list(RULES), metavar="NAME")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(machine.summarise(machine.describe()))
    if args.time:
        header = ["model", "rows", "draws", "seconds before", "seconds now", "ratio"]
        print(machine.table(header, list(clock(args.models, args.cache, args.rounds))))
        return
    header = ["model", "rule", "draws", "mean", "rms", "most", "row: median", "0.95", "most", "se"]
    lines = []
    for line in compare(args.models, args.rules, args.cache):
        print(*line, sep=" | ", file=sys.stderr, flush=True)
        lines.append(line)
    print(machine.table(header, lines))


if __name__ == "__main__":
    main()
