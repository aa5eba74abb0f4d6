"""What 30 small models compute, to the last bit: recorded before a change, compared after it.

    python benchmarks/record_scores.py scores.json            # write
    python benchmarks/record_scores.py scores.json --compare  # say what differs

All fits are in float64 on the CPU. Libraries round differently on other machines, so that a record
is for one machine and one set of versions. For each model there are the mean score and a checksum
of latent features, scores, expected rows, draws and losses.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn import config_context
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skvae
from skvae import VAEGridSearchCV, VAEImputer, VAETransformer, metrics
from skvae.likelihoods import (
    Bernoulli,
    Categorical,
    Columns,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    Laplace,
    NegativeBinomial,
    Poisson,
    StudentT,
    ZeroInflated,
)
from skvae.networks import MLP, Conv
from skvae.posteriors import Flow
from skvae.priors import Mixture, Vamp

QUICK = {"max_iter": 12, "hidden_layer_sizes": (16, 8), "precision": "float64"}
QUICK |= {"random_state": 0, "device": "cpu"}


def quick(n_components=3, **params):
    return VAETransformer(n_components, **QUICK | params)


def tables():
    rng = np.random.default_rng(0)
    wine, digits = load_wine().data, load_digits().data[:300]
    holes = np.where(rng.random(wine.shape) < 0.1, np.nan, wine)
    counts = rng.poisson(np.exp(rng.normal(size=(200, 2)) @ rng.normal(size=(2, 6))), (200, 6))
    frame = pd.DataFrame(load_iris().data, columns=["a", "b", "c", "d"])
    frame["kind"] = pd.Categorical(np.array(["x", "y", "z"])[load_iris().target])
    frame["flag"] = frame["a"] > 5.8
    frame["level"] = rng.choice(["low", "mid", "high"], len(frame))
    gone = frame.copy()
    gone.loc[::7, "b"] = np.nan
    gone.loc[::5, "level"] = None
    return {
        "wine": wine,
        "iris": load_iris().data,
        "diabetes": load_diabetes().data,
        "cancer": load_breast_cancer().data[:250],
        "digits": digits,
        "grey": digits / 16,
        "black": (digits > 8).astype(float),
        "holes": holes,
        "counts": counts.astype(float),
        "frame": frame,
        "gone": gone,
        "narrow": wine.astype(np.float32),
        "few": load_iris().data[::10],
    }


def models(X):
    """For each name, the table and the fitted model."""
    groups = np.repeat(np.arange(60), 3)[:178]
    weight = np.random.default_rng(1).integers(0, 4, 178).astype(float)
    columns = [(Gaussian(), ["a", "b"]), (Laplace(), ["c"]), (StudentT(), ["d"])]
    columns += [(Categorical(), ["kind", "level"]), (Bernoulli(), ["flag"])]
    plain = {
        "default": ("wine", quick()),
        "float32 rows": ("narrow", quick()),
        "few rows": ("few", quick(2)),
        "linear": ("iris", quick(2, hidden_layer_sizes=(), early_stopping=False)),
        "shared": ("iris", quick(2, likelihood=Gaussian("shared"))),
        "per feature": ("cancer", quick(likelihood=Gaussian("per_feature"))),
        "fixed noise": ("iris", quick(2, likelihood=Gaussian(0.5))),
        "laplace": ("diabetes", quick(likelihood="laplace")),
        "student": ("diabetes", quick(likelihood=StudentT(df=3.0))),
        "bernoulli": ("black", quick(likelihood="bernoulli")),
        "resampled": ("grey", quick(likelihood=Bernoulli(resample=True))),
        "continuous bernoulli": ("grey", quick(likelihood=ContinuousBernoulli())),
        "levels": ("digits", quick(likelihood=DiscretizedLogistic(17), max_iter=4)),
        "poisson": ("counts", quick(likelihood=Poisson())),
        "negative binomial": ("counts", quick(likelihood=NegativeBinomial())),
        "zero inflated": ("counts", quick(likelihood=ZeroInflated(Poisson()))),
        "auto": ("frame", quick(likelihood="auto")),
        "auto, holes": ("gone", quick(likelihood="auto")),
        "columns": ("frame", quick(likelihood=Columns(columns))),
        "holes": ("holes", quick()),
        "mixture": ("wine", quick(prior=Mixture(4))),
        "vamp": ("wine", quick(prior=Vamp(6))),
        "full": ("wine", quick(posterior="full")),
        "full, vamp": ("wine", quick(posterior="full", prior=Vamp(6))),
        "flow": ("iris", quick(2, posterior=Flow(hidden_layer_sizes=(8,)), max_iter=4)),
        "layers": ("wine", quick(network=MLP(residual=True, dropout=0.1, layer_norm=True))),
        "conv": ("digits", quick(network=Conv((1, 8, 8), (4, 8)), max_iter=3)),
        "importance": ("wine", quick(n_importance_samples=3, beta=2.0)),
        "annealed": ("wine", quick(free_bits=0.1, beta_warmup=0.5, n_beta_cycles=2)),
        "clipped": ("wine", quick(max_grad_norm=1.0, weight_decay=0.1, activation="silu")),
    }
    for name, (table, vae) in plain.items():
        yield name, table, vae.fit(X[table])
    yield "groups, weights", "wine", quick().fit(X["wine"], sample_weight=weight, groups=groups)
    with config_context(working_memory=0.02):
        yield "in parts", "diabetes", quick().fit(X["diabetes"])
    going = quick(warm_start=True).fit(X["wine"])
    yield "warm start", "wine", going.set_params(max_iter=5).fit(X["wine"])
    blocks = quick()
    for start in range(0, 178, 60):
        blocks.partial_fit(X["wine"][start : start + 60])
    yield "partial fit", "wine", blocks
    grid = {"beta": [0.5, 2.0], "n_components": [1, 3]}
    search = VAEGridSearchCV(quick(), grid, cv=3).fit(X["wine"])
    yield "search", "wine", search.best_estimator_
    yield "pipeline", "wine", make_pipeline(StandardScaler(), quick()).fit(X["wine"])


def checksum(*values):
    digest = hashlib.sha256()
    for value in values:
        if hasattr(value, "columns"):
            value = value.to_csv(float_format="%.17g").encode()
        digest.update(value if isinstance(value, bytes) else np.ascontiguousarray(value))
    return digest.hexdigest()[:16]


def describe(model, X):
    """What a fitted model computes: the mean score, and checksums."""
    vae = model[-1] if hasattr(model, "steps") else model
    rows = X if vae is model else model[:-1].transform(X)
    latent = vae.transform(rows)
    return {
        "score": repr(float(vae.score(rows))),
        "latent": checksum(latent, *vae.encode(rows), vae.sample_posterior(rows[:20], 3, 0)),
        "scores": checksum(vae.score_samples(rows)),
        "likelihood": checksum(
            metrics.log_likelihood(vae, rows[:40], n_samples=50, random_state=0, per_sample=True)
        ),
        "expected": checksum(vae.inverse_transform(latent)),
        "drawn": checksum(vae.sample(30, 0), vae.sample(5, 1, mean=True)),
        "losses": checksum(*vae.history_.values()),
        "epochs": [vae.n_iter_, vae.kept_iter_],
    }


def record():
    X, found = tables(), {}
    for name, table, model in models(X):
        found[name] = describe(model, X[table])
    imputer = VAEImputer(quick()).fit(X["holes"])
    found["imputed"] = {"filled": checksum(imputer.transform(X["holes"]))}
    imputer = VAEImputer(quick(likelihood="auto"), sample_posterior=True, random_state=0)
    found["imputed frame"] = {"filled": checksum(imputer.fit(X["gone"]).transform(X["gone"]))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "X.npy"
        np.save(path, X["diabetes"])
        model = quick().fit(np.load(path, mmap_mode="r"))
    found["memory map"] = describe(model, X["diabetes"])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--compare", action="store_true", help="with what is at PATH")
    arguments = parser.parse_args()
    print(f"skvae in {Path(skvae.__file__).parent}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = record()
    if not arguments.compare:
        arguments.path.write_text(json.dumps(found, indent=1) + "\n")
        return
    before, n_different = json.loads(arguments.path.read_text()), 0
    for name in before.keys() | found.keys():
        of_both = before.get(name, {}), found.get(name, {})
        different = [
            key for key in of_both[0] | of_both[1] if of_both[0].get(key) != of_both[1].get(key)
        ]
        n_different += bool(different)
        if different:
            print(
                f"{name}: {', '.join(different)} differ; score", *(o.get("score") for o in of_both)
            )
    print(f"{len(found)} models, {n_different} differ")
    sys.exit(bool(n_different))


if __name__ == "__main__":
    main()
