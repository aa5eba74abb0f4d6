"""Time and memory of inference with ``VAETransformer``, beside the bare network in torch.

Time. ``transform`` against the encoder alone, ``score_samples`` against the model alone, as one
would write it: encoder, z = mean + std·eps, decoder, summed Gaussian log-density and its constants,
KL divergence, mean over the same draws. The bare sides get standardised float32 tensors and compute
on torch's own threads, in each of a few batch sizes, of which the fastest counts. With the default
activation, "tanh", and with "silu", which skvae computes as torch does.

- One process. Each side runs once untimed, then once in each of ``--repeats`` rounds.
- A ratio is taken within a round, as the machine may be slower in the next; its median and range
  are shown. Above 1: skvae is slower. ``cpu`` is the ratio of processor times, summed over threads,
  which another process on the machine disturbs less.

Memory. Each method runs once in a process of its own on ``--memory-rows`` rows of 20 float32
columns, with 2 components and, so that it doesn't take long, 8 draws of the score. What is beyond
input and output is the peak of the resident memory less both: all imports, torch's libraries among
them, are in it.
"""

import argparse
import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import machine
import numpy as np
import torch
from bench_fit import Workload
from torch import nn

from skvae import VAETransformer
from skvae._backend.quadrature import score_noise

WORKLOADS = {
    "table": Workload(100_000, 20, (128, 64), 8, batch_size=256, epochs=(1, 1)),
    "images": Workload(10_000, 784, (200, 200), 50, batch_size=256, epochs=(1, 1)),
}
BATCHES = {"table": (64, 128, 256), "images": (8, 16, 32, 64)}  # rows, each with all draws
ACTIVATIONS = ("tanh", "silu")
CALLS = {"transform": 10, "score_samples": 1}  # in a round, of which each takes long enough
ENCODED = (512, 2048, 8192, 100_000)  # rows
SCORED = {"table": 1, "images": 10}  # one row in so many
METHODS = ("transform", "inverse_transform", "score_samples", "sample")
MIB = 2**20


def fitted(w, **params):
    params = (
        machine.PLAIN | {"n_components": w.n_components, "hidden_layer_sizes": w.hidden} | params
    )
    vae = VAETransformer(max_iter=1, random_state=w.seed, device="cpu", **params)
    return vae.fit(w.X[:1000])  # what was learned doesn't matter


class Bare:
    """The network of a fitted estimator in torch alone."""

    def __init__(self, vae, X):
        module = vae.to_module()
        self.encoder, self.decoder = map(self._plain, (module.encoder, module.decoder))
        self.variance = module.likelihood.variance(module.observation).detach()
        y = (X.astype(np.float64) - vae.state_["location"]) / vae.state_["scale"]
        self.y = torch.from_numpy(y.astype(np.float32))
        noise = score_noise(vae.n_score_draws, vae.n_components)
        self.eps = torch.from_numpy(noise.astype(np.float32))[:, None, :]

    @staticmethod
    def _plain(network):
        layers = list(network)
        for i, layer in enumerate(layers):
            if isinstance(layer, nn.Linear):
                layers[i] = nn.Linear(layer.in_features, layer.out_features)
                layers[i].load_state_dict(layer.state_dict())
            elif isinstance(layer, nn.Tanh):
                layers[i] = nn.Tanh()
        return nn.Sequential(*layers)

    @torch.inference_mode()
    def encode(self, n_rows):
        return torch.cat([self.encoder(y) for y in self.y.split(n_rows)])

    @torch.inference_mode()
    def score(self, n_rows):
        precision = 1 / self.variance
        constant = (self.variance.log() + math.log(2 * math.pi)).sum()
        elbo = []
        for y in self.y.split(n_rows):
            mean, log_std = self.encoder(y).chunk(2, dim=-1)
            log_std = 15 * torch.tanh(log_std / 15)
            std = log_std.exp()
            square = (y - self.decoder(mean + std * self.eps)).square_()
            log_likelihood = -0.5 * (square @ precision + constant)
            kl = 0.5 * (mean.square() + std.square() - 1 - 2 * log_std).sum(-1)
            elbo.append(log_likelihood.mean(0) - kl)
        return torch.cat(elbo)


def race(sides, repeats, n_calls):
    """Seconds and processor seconds of a call of each side in each round."""
    times = {name: [] for name in sides}
    for i in range(-1, repeats):
        for name, run in sides.items():
            start, cpu = time.perf_counter(), time.process_time()
            for _ in range(n_calls):
                run()
            spent = time.perf_counter() - start, time.process_time() - cpu
            if i >= 0:
                times[name].append([seconds / n_calls for seconds in spent])
    return times


def compare(times):
    """What goes into the JSON file; the first side is skvae's, the fastest other one is bare."""
    ours, *others = times
    bare = min(others, key=lambda name: median(t for t, _ in times[name]))
    pairs = list(zip(times[ours], times[bare], strict=True))
    return {
        "against": bare,
        "ratios": [a[0] / b[0] for a, b in pairs],
        "cpu_ratios": [a[1] / b[1] for a, b in pairs],
        "seconds": times,  # [elapsed, processor] of each round
    }


def race_all(title, activation, repeats):
    w = WORKLOADS[title]
    vae, scored = fitted(w, activation=activation), w.X[:: SCORED[title]].copy()
    bare, bare_scored = Bare(vae, w.X), Bare(vae, scored)
    expected = bare_scored.score(32).numpy() - np.log(vae.state_["scale"]).sum()
    # One model: sums of hundreds, of which some come near 0.
    np.testing.assert_allclose(vae.score_samples(scored), expected, rtol=1e-3, atol=1e-2)
    sides: dict[str, dict[str, Callable]] = {
        "transform": {"skvae": lambda: vae.transform(w.X)}
        | {f"batches of {n}": lambda n=n: bare.encode(n) for n in ENCODED},
        "score_samples": {"skvae": lambda: vae.score_samples(scored)}
        | {f"batches of {n}": lambda n=n: bare_scored.score(n) for n in BATCHES[title]},
    }
    return {name: compare(race(runs, repeats, CALLS[name])) for name, runs in sides.items()}


def measure_peak(method, n_rows):
    """Peak of this process in MiB, and what input and output take of it."""
    w = replace(WORKLOADS["table"], n_rows=1000)
    vae = fitted(w, n_components=2, n_score_draws=1)
    shape = (n_rows, vae.n_components if method == "inverse_transform" else w.n_features)
    X = np.empty((0, 0), np.float32)
    if method == "sample":
        output = vae.sample(n_rows, random_state=0)
    else:
        X = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        output = getattr(vae, method)(X)
    return {"peak": machine.peak_memory(), "input": X.nbytes / MIB, "output": output.nbytes / MIB}


def measure_peaks(n_rows):
    peaks = {}
    for method in METHODS:
        command = [sys.executable, __file__, "--peak-of", method, "--memory-rows", str(n_rows)]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        peaks[method] = peak = json.loads(out)
        peak["beyond"] = peak["peak"] - peak["input"] - peak["output"]
    return peaks


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=[*WORKLOADS, "all", "none"], default="all")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--threads", type=int, help="of torch (default: its own number)")
    parser.add_argument("--memory-rows", type=int, default=10_000_000, help="0: no memory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true", help="write results/inference.json")
    parser.add_argument("--peak-of", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()

    if args.threads:
        torch.set_num_threads(args.threads)
    if args.peak_of:
        print(json.dumps(measure_peak(args.peak_of, args.memory_rows)))
        return
    report = machine.describe() | {"seed": args.seed, "repeats": args.repeats}
    print(machine.summarise(report))
    if args.memory_rows:
        report["memory_rows"] = args.memory_rows
        report["memory"] = measure_peaks(args.memory_rows)
        print(f"\n{args.memory_rows:,} x 20, MiB:  peak   input  output  beyond")
        for method, peak in report["memory"].items():
            print(f"{method:20}" + "".join(f"{peak[k]:8.0f}" for k in peak))
    report["time"] = {}
    titles = {"all": list(WORKLOADS), "none": []}.get(args.workload, [args.workload])
    for title, activation in itertools.product(titles, ACTIVATIONS):
        name = f"{title}, {activation}"
        report["time"][name] = race_all(title, activation, args.repeats)
        print(f"\n{name:20} ms  / bare     (range)   cpu  against")
        for method, result in report["time"][name].items():
            r, ms = result["ratios"], 1e3 * median(t for t, _ in result["seconds"]["skvae"])
            print(
                f"{method:16}{ms:7.0f}{median(r):8.2f}{f'({min(r):.2f}-{max(r):.2f})':>12}", end=""
            )
            print(f"{median(result['cpu_ratios']):6.2f}  {result['against']}")
    if args.save:
        path = Path(__file__).parent / "results/inference.json"
        machine.write(path, report)
        print(f"written to {path}")


if __name__ == "__main__":
    main()
