"""Columns in which most rows have one value: what the noise floor of such columns changes.

    python benchmarks/bench_rare_columns.py [--seeds 2] [--low-floor]

Two tables. "dummies": 10 numbers with three factors in common, and 150 columns of zeros and ones of
a category whose levels have Zipf frequencies, 800 rows to fit and 200 new ones. Printed are R² of
the true factors by a linear regression on `transform` of new rows, beside that on `PCA` of
standardised columns. "rare": 300 columns, each 1 in 0.3 % of 1,000 rows, and as many new ones.
Printed is by how many nats a row the default, and the model without hidden layers, are above
independent normal columns on new rows. ``--low-floor`` gives such columns the floor of all others.
"""

import argparse
import warnings

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from skvae import VAETransformer
from skvae.likelihoods import _reals


def dummies(seed):
    """Standard numbers, zeros and ones, and the factors that the numbers have in common."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((1000, 3))
    numbers = factors @ rng.standard_normal((3, 10)) + 0.5 * rng.standard_normal((1000, 10))
    share = 1 / np.arange(1, 151)
    level = rng.choice(150, 1000, p=share / share.sum())
    return np.hstack([numbers, level[:, None] == np.unique(level)]), factors


def rare(seed):
    """Training and new rows of columns that vary in the former."""
    rng = np.random.default_rng(seed)
    X = (rng.random((2000, 300)) < 0.003).astype(float)
    X = X[:, X[:1000].std(axis=0) > 0]
    return X[:1000], X[1000:]


def explained(model, X, factors):
    """R² of the factors of the last 200 rows."""
    Z = model.fit(X[:800]).transform(X)
    return LinearRegression().fit(Z[:800], factors[:800]).score(Z[800:], factors[800:])


def above_independent(model, X, new):
    """Nats a row above normal columns that have nothing in common."""
    mean, std = X.mean(axis=0), X.std(axis=0)
    terms = ((new - mean) / std) ** 2 + 2 * np.log(std) + np.log(2 * np.pi)
    return model.fit(X).score(new) + 0.5 * terms.sum(axis=1).mean()


def main():
    """Print a line for each seed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--low-floor", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.low_floor:
        _reals._floor_of_few = lambda columns: np.zeros(len(columns.std))
    print("seed  R2 of factors  (PCA)   rare: default  no hidden layers")
    for seed in range(arguments.seeds):
        X, factors = dummies(seed)
        scale = np.where(X[:800].std(axis=0) > 0, X[:800].std(axis=0), 1.0)
        standard = (X - X[:800].mean(axis=0)) / scale
        vae = VAETransformer(random_state=seed, max_iter=100)
        linear = VAETransformer(hidden_layer_sizes=(), random_state=seed, max_iter=100)
        of_factors = explained(vae, X, factors), explained(PCA(8), standard, factors)
        above = [above_independent(model, *rare(seed)) for model in (vae, linear)]
        print(
            f"{seed:4} {of_factors[0]:14.2f} {of_factors[1]:7.2f} {above[0]:15.1f} {above[1]:17.1f}"
        )


if __name__ == "__main__":
    main()
