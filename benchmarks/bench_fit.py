"""Seconds an epoch of ``VAETransformer.fit``, side by side with what one would use instead.

Every contestant trains the same variational autoencoder on the same rows: ReLU encoder, diagonal
Gaussian posterior, mirrored decoder, Gaussian likelihood of variance 1. The loss is therefore
½‖x − x̂‖² + KL(q(z|x) ‖ N(0, I)), summed over features and components, mean over rows. Batch size,
epochs, shuffling, Adam, its rate and float32 on the CPU are the same too. Three rows are different:
``MLPRegressor`` is a deterministic autoencoder of the same layers, which is less work.
``matrix products`` trains nothing. It is the limit: the products that back-propagation needs for a
batch (forward, weight gradient and, but for the first layer, input gradient). ``bare steps`` are
about what torch takes for these among the operations without which no step moves a weight.

Rules:

- One process. After an untimed fit each, every contestant fits once briefly and once for longer in
  each of ``--repeats`` rounds, in an order drawn anew for each round.
- Seconds an epoch = (long fit − short fit) / (difference in epochs), so set-up is not in it.
  Set-up = short fit − its epochs, and holds all that a fit does once: validation, standardisation,
  building the network, PyOD's scores of the training rows, pythae's files.
- Medians over rounds. A ratio is taken within a round, as the machine may be slower in the next;
  its median and range are shown. Above 1: slower than skvae.
- The batch size divides the number of rows, since PyOD drops a smaller last batch.
- The last column is the loss after the longest fit, in nats per row without ½ D log 2π, by one
  formula with the same noise on the same 1,000 training rows. It shows that all train one
  objective; it differs a little, as starting weights do and as skvae standardises its inputs.
- Peers get their friendliest setting: no validation part, nothing printed, no checkpoints. What
  could not be made equal is said below the table.
- Threads: torch's default, or ``--threads``; set again before each fit. A contestant that chooses
  its own number during a fit may.

``--beside`` does something else. It fits a wide network (784-512-512-50, batches of 256 rows) with
one thread and with two, in turn, first on the machine as it is and then beside a process that keeps
one core busy. That process is started here, and ends by itself after ten minutes.
"""

import argparse
import contextlib
import functools
import gc
import io
import itertools
import logging
import math
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import machine
import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Workload:
    """A network, its data, and the lengths of the two timed fits in epochs."""

    n_rows: int
    n_features: int
    hidden: tuple[int, ...]
    n_components: int
    batch_size: int
    epochs: tuple[int, int]
    seed: int = 0

    @functools.cached_property
    def X(self):
        """Rows around a curved surface of 8 dimensions, as grey values or standardised columns."""
        rng = np.random.default_rng(self.seed)
        bent = np.tanh(rng.standard_normal((self.n_rows, 8)) @ rng.standard_normal((8, 64)) / 2)
        X = bent @ rng.standard_normal((64, self.n_features)) / 3
        if self.n_features == 784:
            return (1 / (1 + np.exp(3 - X))).astype(np.float32)
        X += 0.3 * rng.standard_normal(X.shape)
        return ((X - X.mean(axis=0)) / X.std(axis=0)).astype(np.float32)

    def layers(self):
        """Return (inputs, outputs) of every linear layer; mean and log-variance are one layer."""
        encoder = (self.n_features, *self.hidden, 2 * self.n_components)
        decoder = (self.n_components, *self.hidden[::-1], self.n_features)
        return [*itertools.pairwise(encoder), *itertools.pairwise(decoder)]


WORKLOADS = {
    "images": Workload(20_000, 784, (200, 200), 50, batch_size=100, epochs=(1, 3)),
    "table": Workload(5_120, 20, (64, 32), 4, batch_size=128, epochs=(1, 21)),
}


class Network(nn.Module):
    """The VAE that the hand-written loops, skorch and pythae train."""

    def __init__(self, workload):
        super().__init__()
        layers = [nn.Linear(*shape) for shape in workload.layers()]
        half = len(layers) // 2
        self.encoder = nn.Sequential(*self._with_relu(layers[:half]))
        self.decoder = nn.Sequential(*self._with_relu(layers[half:]))

    @staticmethod
    def _with_relu(layers):
        return [part for layer in layers for part in (layer, nn.ReLU())][:-1]

    def encode(self, x):
        return self.encoder(x).chunk(2, dim=1)

    def forward(self, x):
        mean, log_var = self.encode(x)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        return self.decoder(z), mean, log_var


def negative_elbo(x, x_hat, mean, log_var):
    """½‖x − x̂‖² + KL, nats per row, without ½ D log 2π."""
    squares = 0.5 * (x - x_hat).square().sum(dim=1)
    kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(dim=1)
    return (squares + kl).mean()


@torch.no_grad()
def final_loss(workload, encode, decode):
    x = torch.from_numpy(workload.X[:1000])
    mean, log_var = encode(x)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(workload.seed))
    z = mean + torch.exp(0.5 * log_var) * noise
    return float(negative_elbo(x, decode(z), mean, log_var))


# The contestants. Each fits a workload for some epochs and returns encode (x -> mean, log-variance)
# and decode (z -> x̂) of what it fitted, if that is a VAE. Its docstring is its footnote.
# fmt: off


def fit_skvae(w, n_epochs):
    from skvae import VAETransformer
    from skvae.likelihoods import Gaussian
    from skvae.networks import MLP

    vae = VAETransformer(
        n_components=w.n_components, likelihood=Gaussian(noise=1.0), hidden_layer_sizes=w.hidden,
        network=MLP(linear=False), activation="relu", batch_size=w.batch_size, max_iter=n_epochs,
        early_stopping=False,
        learning_rate=LEARNING_RATE, learning_rate_schedule="constant", random_state=w.seed,
        device="cpu",
    ).fit(w.X)

    def encode(x):
        mean, std = map(torch.from_numpy, vae.encode(x.numpy()))
        return mean, 2 * std.log()

    return encode, lambda z: torch.from_numpy(vae.inverse_transform(z.numpy()))


def fit_dataloader_loop(w, n_epochs):
    """The loop of the tutorials, by hand, loss.item() included."""
    torch.manual_seed(w.seed)
    data = TensorDataset(torch.from_numpy(w.X))
    loader = DataLoader(data, batch_size=w.batch_size, shuffle=True)
    model = Network(w)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for _ in range(n_epochs):
        total = 0.0
        for (x,) in loader:
            optimizer.zero_grad()
            loss = negative_elbo(x, *model(x))
            loss.backward()
            optimizer.step()
            total += loss.item()
    return model.encode, model.decoder


def fit_in_memory_loop(w, n_epochs):
    """The eager loop of an expert, by hand: a permuted index, fused Adam, loss never read."""
    torch.manual_seed(w.seed)
    X, model = torch.from_numpy(w.X), Network(w)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    for _ in range(n_epochs):
        for index in torch.randperm(len(X)).split(w.batch_size):
            x = X[index]
            optimizer.zero_grad()
            negative_elbo(x, *model(x)).backward()
            optimizer.step()
    return model.encode, model.decoder


def fit_skorch(w, n_epochs):
    """A NeuralNet of the module of the loops, with the loss in get_loss."""
    from skorch import NeuralNet

    class Net(NeuralNet):
        def get_loss(self, y_pred, y_true, X=None, training=False):
            return negative_elbo(X, *y_pred)

    torch.manual_seed(w.seed)
    net = Net(
        Network, module__workload=w, criterion=nn.MSELoss,  # which must be given and is not used
        optimizer=torch.optim.Adam, lr=LEARNING_RATE, max_epochs=n_epochs, batch_size=w.batch_size,
        iterator_train__shuffle=True, train_split=None, verbose=0,
    ).fit(w.X)
    return net.module_.encode, net.module_.decoder


def fit_pythae(w, n_epochs):
    """Own encoder and decoder, as its decoder ends in a sigmoid. Its log is off; its progress bar
    has no switch and goes nowhere; it copies the best model once an epoch."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig

    class Encoder(BaseEncoder):
        def forward(self, x):
            mean, log_var = self.layers(x).chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def forward(self, z):
            return ModelOutput(reconstruction=self.layers(z))

    torch.manual_seed(w.seed)
    network, encoder, decoder = Network(w), Encoder(), Decoder()
    encoder.layers, decoder.layers = network.encoder, network.decoder
    config = VAEConfig((w.n_features,), w.n_components, reconstruction_loss="mse")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        logging.disable(logging.INFO)
        trainer = BaseTrainerConfig(
            output_dir=folder, num_epochs=n_epochs, learning_rate=LEARNING_RATE,
            per_device_train_batch_size=w.batch_size, seed=w.seed, no_cuda=True,
        )
        TrainingPipeline(VAE(config, encoder, decoder), trainer)(train_data=w.X)
        logging.disable(logging.NOTSET)
    return network.encode, network.decoder


def fit_pyod(w, n_epochs):
    """With beta = 2/D, capacity = inf its loss is ours times 2/D, a factor that Adam does not see.
    Weight decay, dropout, clipping and its row-by-row standardisation are off."""
    from pyod.models.vae import VAE

    model = VAE(
        preprocessing=False, lr=LEARNING_RATE, epoch_num=n_epochs, batch_size=w.batch_size,
        optimizer_params={"weight_decay": 0.0}, beta=2 / w.n_features, capacity=math.inf,
        encoder_neuron_list=list(w.hidden), decoder_neuron_list=list(w.hidden[::-1]),
        latent_dim=w.n_components, dropout_rate=0.0, logvar_clip=None, device="cpu",
        random_state=w.seed, verbose=0,
    ).fit(w.X).model
    return model.encode, model.decode


def fit_mlp_regressor(w, n_epochs):
    """Less work: no noise, no KL, half the outputs of the encoder. Its loss does not compare."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        MLPRegressor(
            hidden_layer_sizes=(*w.hidden, w.n_components, *w.hidden[::-1]), alpha=0.0,
            batch_size=w.batch_size, learning_rate_init=LEARNING_RATE, max_iter=n_epochs,
            n_iter_no_change=n_epochs + 1, random_state=w.seed,
        ).fit(w.X, w.X)


# fmt: on
def multiply_matrices(w, n_epochs):
    """The limit: the products of the linear layers, and nothing else."""
    products, B = [], w.batch_size
    for n_in, n_out in w.layers():
        x, weight, gradient = torch.rand(B, n_in), torch.rand(n_out, n_in), torch.rand(B, n_out)
        products.append((x, weight.T, torch.empty(B, n_out)))
        products.append((gradient.T, x, torch.empty(n_out, n_in)))
        products.append((gradient, weight, torch.empty(B, n_in)))
    del products[2]  # the first layer needs no input gradient
    for _ in range(n_epochs * (w.n_rows // B)):
        for a, b, out in products:
            torch.mm(a, b, out=out)


@torch.inference_mode()
def take_bare_steps(w, n_epochs):
    """About the least that a step in torch consists of: the products on tensors as a step has
    them, a gather of the batch, Adam's fused update, and for each layer one operation forwards and
    two backwards. It draws no noise, and has neither variances nor a divergence nor a loss."""
    shapes, B, middle = w.layers(), w.batch_size, w.n_components
    sizes = [n for n_in, n_out in shapes for n in (n_in * n_out, n_out)]
    weights, gradients, mean, square = (torch.zeros(sum(sizes)) for _ in range(4))
    weights.uniform_(-0.05, 0.05)
    views = [list(flat.split(sizes)) for flat in (weights, gradients)]  # weights, then biases
    for parts in views:
        parts[::2] = [
            part.view(n_out, -1) for part, (_, n_out) in zip(parts[::2], shapes, strict=True)
        ]
    X, step = torch.from_numpy(w.X), torch.ones(())
    last, half = len(shapes) - 1, len(shapes) // 2 - 1
    for _ in range(n_epochs):
        for rows in torch.randperm(len(X)).split(B):
            y = x = X.index_select(0, rows)
            step += 1
            inputs, outputs = [], []
            for i in range(len(shapes)):
                inputs.append(x)
                x = torch.addmm(views[0][2 * i + 1], x, views[0][2 * i].T)
                outputs.append(x)
                x = x[:, :middle] if i == half else torch.relu(x) if i < last else x
            g = x - y
            for i in reversed(range(len(shapes))):
                if i == half:
                    g = torch.cat([g, g], dim=1)
                elif i < last:
                    g = torch.ops.aten.threshold_backward(g, outputs[i], 0)
                torch.mm(g.T, inputs[i], out=views[1][2 * i])
                torch.sum(g, 0, out=views[1][2 * i + 1])
                g = g @ views[0][2 * i] if i else None
            torch._fused_adamw_(
                [weights],
                [gradients],
                [mean],
                [square],
                [],
                [step],
                lr=LEARNING_RATE,
                beta1=0.9,
                beta2=0.999,
                weight_decay=0.0,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )


CONTESTANTS: dict[str, Callable] = {
    "skvae": fit_skvae,
    "DataLoader loop": fit_dataloader_loop,
    "in-memory loop": fit_in_memory_loop,
    "skorch": fit_skorch,
    "pythae": fit_pythae,
    "PyOD": fit_pyod,
    "MLPRegressor": fit_mlp_regressor,
    "bare steps": take_bare_steps,
    "matrix products": multiply_matrices,
}
NOTES = {name: " ".join(f.__doc__.split()) for name, f in CONTESTANTS.items() if f.__doc__}


def enter(workload, names):
    """Let each contestant fit once, untimed; return who can, and why the others cannot."""
    entered, left_out = [], {}
    for name in names:
        try:
            CONTESTANTS[name](workload, 1)
            entered.append(name)
        except ImportError as error:
            left_out[name] = f"not installed ({error})"
        except Exception as error:
            if name == "skvae":
                raise
            left_out[name] = f"failed ({type(error).__name__}: {error})".splitlines()[0]
    return entered, left_out


def race(workload, names, repeats):
    """Run all rounds of a workload; return what goes into the JSON file."""
    n_threads, order = torch.get_num_threads(), np.random.default_rng(workload.seed)
    entered, left_out = enter(workload, names)
    raw, fitted = {name: [] for name in entered}, {}
    for i in range(repeats):
        print(f"round {i + 1} of {repeats}", file=sys.stderr)
        for name in order.permutation(entered):
            raw[name].append([])
            for n_epochs in workload.epochs:
                gc.collect()
                torch.set_num_threads(n_threads)
                start = time.perf_counter()
                fitted[name] = CONTESTANTS[name](workload, n_epochs)
                raw[name][-1].append(time.perf_counter() - start)
    few, many = workload.epochs
    epoch = {name: [(b - a) / (many - few) for a, b in raw[name]] for name in entered}
    rows = {}
    for name, t in epoch.items():
        rows[name] = {
            "seconds_per_epoch": median(t),
            "milliseconds_per_step": 1e3 * median(t) * workload.batch_size / workload.n_rows,
            "setup_seconds": median(a - few * e for (a, _), e in zip(raw[name], t, strict=True)),
            "loss": final_loss(workload, *fitted[name]) if fitted[name] else None,
            "fit_seconds": raw[name],  # [short, long] of each round
        }
        if "skvae" in epoch:
            rows[name]["ratios"] = [a / b for a, b in zip(t, epoch["skvae"], strict=True)]
    return {"workload": asdict(workload), "contestants": rows, "left_out": left_out}


BUSY = "import time\nend = time.time() + 600\nwhile time.time() < end:\n    pass"


def race_threads(repeats):
    """Seconds an epoch of one thread and of two, alone and beside a busy process."""
    w = Workload(5_120, 784, (512, 512), 50, batch_size=256, epochs=(1, 3))
    few, many = w.epochs
    seconds = {}
    for title in ("quiet", "busy"):
        busy = subprocess.Popen([sys.executable, "-c", BUSY]) if title == "busy" else None
        try:
            for i in range(repeats + 1):
                for n_threads in (1, 2):
                    torch.set_num_threads(n_threads)
                    fits = []
                    for n_epochs in w.epochs:
                        start = time.perf_counter()
                        fit_skvae(w, n_epochs)
                        fits.append(time.perf_counter() - start)
                    if i:  # the first round is a warm-up
                        own = seconds.setdefault(title, {}).setdefault(str(n_threads), [])
                        own.append((fits[1] - fits[0]) / (many - few))
        finally:
            if busy is not None:
                busy.kill()
                busy.wait()
        pairs = zip(seconds[title]["2"], seconds[title]["1"], strict=True)
        ratios = [two / one for two, one in pairs]
        seconds[title]["ratios"] = ratios
        print(f"{title}: two threads take {machine.spread(ratios)} of the time of one")
    return {"workload": asdict(w), "seconds_per_epoch": seconds}


def print_table(title, result):
    w = result["workload"]
    layers = "-".join(map(str, (w["n_features"], *w["hidden"], w["n_components"])))
    print(f"\n{title}: {layers}, {w['n_rows']:,} rows, batch {w['batch_size']},", end=" ")
    print("fits of {} and {} epochs\n".format(*w["epochs"]))
    print(f"{'':20}  s/epoch  ms/step  / skvae     (range)  set-up s     loss")
    for i, name in enumerate(CONTESTANTS):
        label = f"{name} [{i}]" if name in NOTES else name
        if name in result["left_out"]:
            print(f"{label:20}  {result['left_out'][name]}")
        if row := result["contestants"].get(name):
            r, loss = row.get("ratios"), row["loss"]
            ratio = f"{median(r):.2f}{f'({min(r):.2f}-{max(r):.2f})':>12}" if r else f"-{'':12}"
            loss = "-" if loss is None else f"{loss:.2f}"
            print(f"{label:20}{row['seconds_per_epoch']:9.3f}{row['milliseconds_per_step']:9.3f}"
                  f"{ratio:>21}{row['setup_seconds']:10.3f}{loss:>9}")  # fmt: skip


def markdown(report):
    """The tables as they go into a page."""
    for title, result in report["results"].items():
        rows = []
        for name, row in result["contestants"].items():
            ratio = machine.spread(row["ratios"]) if "ratios" in row else "-"
            loss = "-" if row["loss"] is None else f"{row['loss']:.2f}"
            times = row["seconds_per_epoch"], row["milliseconds_per_step"], row["setup_seconds"]
            seconds, step, setup = map(machine.number, times)
            rows.append([name, seconds, step, ratio, setup, loss])
        header = [title, "s/epoch", "ms/step", "/ skvae (range)", "set-up s", "loss"]
        print(f"\n{machine.table(header, rows)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=[*WORKLOADS, "all"], default="all")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--threads", type=int, help="of torch and of BLAS (default: theirs)")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results/fit.json")
    parser.add_argument("--markdown", action="store_true", help="only print the tables of --json")
    parser.add_argument("--beside", action="store_true", help="threads beside a busy process")
    args = parser.parse_args()

    if args.beside:
        report = machine.describe() | {"repeats": args.repeats}
        print(machine.summarise(report))
        report["results"] = race_threads(args.repeats)
        path = Path(__file__).parent / "results/threads.json"
        machine.write(path, report)
        print(f"written to {path}")
        return
    if args.markdown:
        markdown(machine.read(args.json))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    report = machine.describe() | {"seed": args.seed, "repeats": args.repeats, "notes": NOTES}
    print(machine.summarise(report))
    report["results"] = {}
    with threadpool_limits(args.threads):
        for title in WORKLOADS if args.workload == "all" else [args.workload]:
            workload = replace(WORKLOADS[title], seed=args.seed)
            report["results"][title] = race(workload, args.only, args.repeats)
            print_table(title, report["results"][title])
    print("\nloss: nats per row without ½ D log 2π, 1,000 training rows, after the longer fit")
    for i, name in enumerate(CONTESTANTS):
        if name in NOTES:
            print(f"[{i}] {NOTES[name]}")
    machine.write(args.json, report)
    print(f"written to {args.json}")


if __name__ == "__main__":
    main()
