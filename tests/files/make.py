"""Makes the files of fitted models that later versions have to read, and what they compute.

    python tests/files/make.py

writes those of the format of the skvae that is installed. A new format gets new files; those of
the earlier ones stay as they were written.
"""

import importlib
from pathlib import Path

import joblib
import numpy as np
from sklearn.datasets import load_wine
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import VAETransformer
from skvae.likelihoods import Gaussian
from skvae.networks import MLP
from skvae.priors import Mixture

SMALL = {"hidden_layer_sizes": (8,), "max_iter": 3, "random_state": 0, "device": "cpu"}


def tables():
    """Rows of numbers, with holes, and of numbers and categories."""
    X = load_wine().data[::3, :5]
    holes = np.where(np.random.default_rng(0).random(X.shape) < 0.2, np.nan, X)
    mixed = X.astype(object)
    mixed[:, 2] = np.where(X[:, 2] > np.median(X[:, 2]), "high", "low")
    return {"numbers": X, "holes": holes, "mixed": mixed}


def models():
    """Fitted models, each with the name of its table."""
    X = tables()
    values = {"likelihood": Gaussian("shared"), "network": MLP(residual=True), "prior": Mixture(3)}
    return {
        "names": ("numbers", VAETransformer(2, **SMALL).fit(X["numbers"])),
        "values": ("numbers", VAETransformer(2, **SMALL, **values).fit(X["numbers"])),
        "holes": ("holes", VAETransformer(2, **SMALL, warm_start=True).fit(X["holes"])),
        "mixed": ("mixed", VAETransformer(2, **SMALL, likelihood="auto").fit(X["mixed"])),
        "pipeline": (
            "numbers",
            make_pipeline(StandardScaler(), VAETransformer(2, **SMALL)).fit(X["numbers"]),
        ),
    }


def main():
    try:
        written = importlib.import_module("skvae._backend.files").FORMAT
    except ImportError:  # before there were formats
        written = 0
    fitted, X = models(), tables()
    path = Path(__file__).with_name(f"format_{written}.joblib")
    joblib.dump(fitted, path, compress=9)
    results = {}
    for name, (table, model) in fitted.items():
        results[f"{name} transform"] = model.transform(X[table])
        results[f"{name} score_samples"] = model.score_samples(X[table])
    np.savez_compressed(path.with_suffix(".npz"), **results)
    print(path)


if __name__ == "__main__":
    main()
