"""MNIST, as papers count it: nats of binarised digits, by the public API alone.

``elbo``
    784-200-200-50 with tanh, N(0, I), 100 epochs: the ELBO.
``mlp``
    The best that fully connected layers and N(0, I) gave in about 20 minutes of a CPU core.
``vamp``
    A VampPrior and importance samples, in an hour of a CPU core.
``conv``
    Convolutions, in an hour of a CPU core.

Rules: 60,000 images train, whose grey values are probabilities, drawn afresh in each epoch
(``Bernoulli(resample=True)``); the 10,000 test images are binarised once, by seed 0. The ELBO
and the negative log-likelihood are those of `skvae.metrics`, the latter with 5,000 importance
samples a row or what ``--samples`` says; ``±`` is the standard error over the rows. Nothing is
chosen by the test images.

Data: MNIST by `fetch_openml`, or the file that the environment variable SKVAE_MNIST names, with
arrays X_train and X_test, one image of 784 grey values a row.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import joblib
import machine
import numpy as np
import torch

from skvae import VAETransformer, metrics
from skvae.likelihoods import Bernoulli
from skvae.networks import MLP, Conv
from skvae.priors import Vamp

HERE = Path(__file__).parent
SEED = 0

COMMON = {
    "likelihood": Bernoulli(resample=True),
    "early_stopping": False,
    "random_state": SEED,
    "verbose": 1,
}
PLAIN = MLP(linear=False)
WIDE = {"hidden_layer_sizes": (512, 512), "activation": "silu", "batch_size": 256}
# Each a list of fits, of which the later ones go on from where the earlier ones ended.
MODELS = {
    "elbo": [
        {
            "network": PLAIN,
            "n_components": 50,
            "hidden_layer_sizes": (200, 200),
            "activation": "tanh",
            "batch_size": 100,
            "learning_rate": 2e-3,
            "max_iter": 100,
        }
    ],
    "mlp": [
        WIDE
        | {
            "network": PLAIN,
            "n_components": 40,
            "posterior": "full",
            "beta_warmup": 0.2,
            "learning_rate": 2e-3,
            "max_iter": 55,
        },
        {
            "n_importance_samples": 5,
            "beta_warmup": 0.0,
            "learning_rate": 5e-4,
            "max_iter": 10,
        },
    ],
    "vamp": [
        WIDE
        | {
            "n_components": 40,
            "prior": Vamp(256),
            "beta_warmup": 0.2,
            "learning_rate": 2e-3,
            "max_iter": 120,
        },
        {
            "n_importance_samples": 5,
            "beta_warmup": 0.0,
            "learning_rate": 5e-4,
            "max_iter": 30,
        },
    ],
    "conv": [
        {
            "network": Conv((1, 28, 28), channels=(16, 32)),
            "n_components": 40,
            "hidden_layer_sizes": (256,),
            "activation": "silu",
            "batch_size": 256,
            "posterior": "full",
            "beta_warmup": 0.2,
            "learning_rate": 2e-3,
            "max_iter": 80,
        },
        {
            "n_importance_samples": 5,
            "beta_warmup": 0.0,
            "learning_rate": 5e-4,
            "max_iter": 10,
        },
    ],
}


def load():
    """Grey values in [0, 1], float32: 60,000 images to train on, 10,000 to judge by."""
    if path := os.environ.get("SKVAE_MNIST"):
        with np.load(path) as file:
            train, test = (file[name].reshape(-1, 784) for name in ("X_train", "X_test"))
    else:
        from sklearn.datasets import fetch_openml

        X = fetch_openml("mnist_784", version=1, as_frame=False, parser="liac-arff").data
        train, test = X[:60_000], X[60_000:]
    scale = 255 if train.max() > 1 else 1
    return tuple(np.asarray(X, np.float32) / np.float32(scale) for X in (train, test))


def train(stages, X):
    """The fitted model, where it was fitted, its seconds, and those of all processors together."""
    vae = VAETransformer(**COMMON)
    start, cpu = time.perf_counter(), time.process_time()
    for number, stage in enumerate(stages):
        vae.set_params(**stage, warm_start=number > 0).fit(X)
    return {
        "vae": vae,
        "run": machine.describe(),
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
    }


def judge(vae, X, n_samples):
    """ELBO and negative log-likelihood with their standard errors over the rows."""
    start = time.perf_counter()
    elbo = metrics.elbo(vae, X, n_samples=100, random_state=SEED, per_sample=True)
    log_p = metrics.log_likelihood(vae, X, n_samples=n_samples, random_state=SEED, per_sample=True)
    return {
        "elbo": float(elbo.mean()),
        "nll": float(-log_p.mean()),
        "elbo_std_error": float(elbo.std() / np.sqrt(len(X))),
        "nll_std_error": float(log_p.std() / np.sqrt(len(X))),
        "score": vae.score(X),
        "active_units": metrics.active_units(vae, X),
        "n_samples": n_samples,
        "judging_seconds": time.perf_counter() - start,
    }


def print_results(report):
    rows = []
    for name in MODELS:
        if name not in report:
            continue
        result = report[name]["result"]
        rows.append(
            [
                name,
                f"{result['elbo']:.2f}",
                f"{result['nll']:.2f} ± {result['nll_std_error']:.2f}",
                f"{result['n_samples']:,}",
                f"{result['active_units']}",
                machine.number(result["seconds"] / 60, 2),
                machine.number(result["cpu_seconds"] / 60, 2),
                machine.number(result["judging_seconds"] / 60, 2),
            ]
        )
        print(f"\n{name}: {machine.summarise(report[name]['run'])}")
    header = [
        "model",
        "ELBO",
        "-log p(x)",
        "samples",
        "active",
        "minutes",
        "of CPU",
        "and to judge",
    ]
    print("\n" + machine.table(header, rows))


def main():
    default = HERE / "results" / "mnist.json"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--samples", type=int, default=5000, help="importance samples (5,000)")
    parser.add_argument("--rows", type=int, default=10_000, help="of the test images (10,000)")
    parser.add_argument("--threads", type=int, help="of torch (default: its own)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, default=default, help=f"(default: {default.name})")
    parser.add_argument(
        "--models", type=Path, help="a folder that keeps fitted models; those there are only judged"
    )
    parser.add_argument("--markdown", action="store_true", help="only print what --json has")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    report = machine.read(args.json)
    if not args.markdown:
        X, grey = load()
        test = (np.random.default_rng(SEED).random(grey.shape) < grey)[: args.rows]
        for name in args.only:
            print(f"{name}:", file=sys.stderr)
            COMMON["device"] = args.device
            file = args.models and args.models / f"{name}.joblib"
            if file and file.exists():
                fitted = joblib.load(file)
            else:
                fitted = train(MODELS[name], X)
                if file:
                    joblib.dump(fitted, file)
            vae, run = fitted.pop("vae"), fitted.pop("run")
            stages = [{key: str(value) for key, value in stage.items()} for stage in MODELS[name]]
            result = judge(vae, test.astype(np.float32), args.samples)
            report[name] = {"run": run, "result": result | fitted | {"stages": stages}}
            machine.write(args.json, report)
    print_results(report)


if __name__ == "__main__":
    main()
