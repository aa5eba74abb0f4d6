"""Rows for training: all at once, or in parts from where they lie; and the precision of it."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn import config_context
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, FactorAnalysis

from skvae import VAETransformer
from skvae._backend import devices, team
from skvae._data.units import standardise
from skvae._fit import execution, loading, packing
from skvae._fit.job import has_known_optimum
from skvae._fit.preparation import prepare
from skvae._model import factor_analysis, loop
from skvae._model.rows import Batch
from skvae._model.stack import Stack
from skvae._model.state import units_of
from skvae.likelihoods import Gaussian
from skvae.priors import Mixture


def table(n_rows, n_features=10, seed=0):
    """Rows around a plane of 2 dimensions, told apart by their values."""
    rng = np.random.default_rng(seed)
    plane = rng.normal(size=(n_rows, 2)) @ rng.normal(size=(2, n_features))
    return plane + 0.5 * rng.normal(size=(n_rows, n_features))


def job_of(X, **params):
    """The job that fitting X is."""
    vae = VAETransformer(2, hidden_layer_sizes=(4,), batch_size=16, random_state=0)
    return prepare(vae.set_params(**params), X)[0]


def in_units(job, X):
    """X as the model sees it."""
    return standardise(X, units_of(job.state)).numpy()


# A row of 10 columns takes 40 bytes in float32, and 24 for its places.
SMALL = 0.0159  # MiB: room for 260 rows, so that 65 are read at once


@pytest.mark.parametrize("early_stopping", [True, False])
def test_every_training_row_is_read_once_an_epoch_and_no_held_out_row(early_stopping):
    X = table(1000)
    with config_context(working_memory=SMALL):
        job = job_of(X, early_stopping=early_stopping)
        assert job.n_at_once == 65
        read, judged, _ = loading.read_in_parts(job, lambda epoch, share: None)
        rows = {tuple(row): i for i, row in enumerate(in_units(job, X))}
        # A tenth would be 100: as many as a part has room for, with 4 draws of 2 components.
        n_held_out = 65 * 10 // (10 + 8 * 2) if early_stopping else 0
        assert job.plan.n_held_out == n_held_out
        held_out = {rows[tuple(row)] for row in judged.data.numpy()} if early_stopping else set()
        assert len(held_out) == n_held_out
        epochs = []
        for epoch in range(2):
            seen, shares = [], []
            for share, part in read(epoch):
                assert part.index.shape[1] <= len(part.data) <= 65
                shares.append(share)
                seen += [rows[tuple(row)] for row in part.take(part.index)[0].numpy()]
            assert sorted([*seen, *held_out]) == list(range(1000))
            np.testing.assert_allclose(sum(shares), 1, rtol=1e-12)
            epochs.append(seen)
        assert epochs[0] != epochs[1]


def test_parts_are_of_many_blocks_from_everywhere(monkeypatch):
    monkeypatch.setattr(loading, "READ_VALUES", 50)  # 5 rows
    X = table(4000)
    with config_context(working_memory=0.08):  # room for 1310 rows, 327 at once
        job = job_of(X, early_stopping=False)
        rows = {tuple(row): i for i, row in enumerate(in_units(job, X))}
        read, _, _ = loading.read_in_parts(job, lambda epoch, share: None)
        parts = [part.take(part.index)[0].numpy() for _, part in read(0)]
    for part in parts[:-1]:
        blocks = np.reshape([rows[tuple(row)] for row in part], (-1, 5))
        np.testing.assert_array_equal(np.diff(blocks), 1)  # neighbours are read together
        assert len(blocks) == 65
        assert np.ptp(blocks) > 3000  # the chance that 65 of 800 lie so close is 1e-7


def test_held_out_rows_are_spread_evenly():
    X = table(1000)
    with config_context(working_memory=SMALL):
        job = job_of(X)
        _, judged, _ = loading.read_in_parts(job, lambda epoch, share: None)
        rows = {tuple(row): i for i, row in enumerate(in_units(job, X))}
        held_out = sorted(rows[tuple(row)] for row in judged.data.numpy())
        stretch = 1000 / len(held_out)
        for i, row in enumerate(held_out):
            assert int(i * stretch) <= row < (i + 1) * stretch


def test_rows_that_are_read_in_parts_or_at_once_are_judged_by_those_held_out():
    X, group = table(1000), np.arange(1000) // 4
    weight = np.random.default_rng(3).exponential(size=1000)
    for working_memory in (SMALL, 1000):
        with config_context(working_memory=working_memory):
            vae = VAETransformer(2, hidden_layer_sizes=(4,), batch_size=16, random_state=0)
            job = prepare(vae, X, None, weight, group)[0]
            if working_memory == SMALL:
                _, judged, some = loading.read_in_parts(job, lambda epoch, share: None)
            else:
                _, judged, some = loading.read_once([job])
        rows = {tuple(row): i for i, row in enumerate(in_units(job, X))}
        places = [rows[tuple(row)] for row in judged.take(judged.index)[0].numpy()]
        assert set(places) <= set(job.held_out.tolist())
        assert len(places) == job.plan.n_held_out
        assert judged.group[0].tolist() == group[places].tolist()
        own = weight[places] / weight[places].mean()
        np.testing.assert_allclose(judged.weight[0], own, rtol=1e-6)
        for of_all in (False, True):
            chosen = some(of_all)
            found = [rows[tuple(row)] for row in chosen.take(chosen.index)[0].numpy()]
            assert len(found) == len(set(found)) > 100
            assert bool(set(found) & set(job.held_out.tolist())) == of_all
            assert chosen.group[0].tolist() == group[found].tolist()


def test_factor_analysis_of_the_same_rows_is_made_once_in_a_stack(monkeypatch):
    X, n_choices = table(100), []
    choose = factor_analysis.choose
    monkeypatch.setattr(
        factor_analysis, "choose", lambda *args: n_choices.append(1) or choose(*args)
    )
    vae = VAETransformer(2, hidden_layer_sizes=(4,), max_iter=2, random_state=0)
    known = {}
    jobs = [prepare(vae.set_params(beta=beta), X, known)[0] for beta in (0.5, 1, 2)]
    execution.train(jobs, lambda: None, lambda records, states: False)
    assert len(n_choices) == 1
    jobs.append(prepare(vae.set_params(random_state=1), X)[0])  # other rows are held out
    execution.train(jobs, lambda: None, lambda records, states: False)
    assert len(n_choices) == 3


@pytest.mark.parametrize(
    ("params", "known"),
    [
        ({}, True),
        ({"likelihood": Gaussian("per_feature")}, True),
        ({"beta": 2.0}, False),
        ({"n_importance_samples": 3}, False),
        ({"free_bits": 0.1}, False),
        ({"max_iter": 1}, False),
        ({"early_stopping": True}, False),
        ({"hidden_layer_sizes": (4,)}, False),
        ({"likelihood": "laplace"}, False),
        # The loss has a second term, and the prior may learn to be a better one.
        ({"weight_decay": 0.1}, False),
        ({"prior": Mixture(3)}, False),
    ],
    ids=str,
)
def test_factor_analysis_is_the_optimum_of_linear_gaussian_models_alone(params, known):
    plain = {"hidden_layer_sizes": (), "early_stopping": False}
    assert has_known_optimum(job_of(table(100), **plain | params)) == known


@pytest.mark.parametrize("noise", ["per_feature", "shared"])
def test_the_shortfall_of_a_linear_model_is_that_of_its_loss(noise, monkeypatch):
    monkeypatch.setattr(execution, "begins_as_factors", lambda job: False)  # or it has none
    X = table(300)
    plain = {"hidden_layer_sizes": (), "early_stopping": False, "likelihood": Gaussian(noise)}
    missed = {}
    for max_iter in (3, 200):
        vae = VAETransformer(2, max_iter=max_iter, learning_rate=0.02, random_state=0, **plain)
        job, _ = prepare(vae, X)
        (trained,) = execution.train([job], lambda: None, lambda records, states: False)
        missed[max_iter] = trained.shortfall
        Y = (X - job.state["location"]) / job.state["scale"]
        best = PCA(2).fit(Y).score(Y) if noise == "shared" else FactorAnalysis(2).fit(Y).score(Y)
        # In the units of X; inflation for new rows costs a few hundredths.
        best -= np.log(job.state["scale"]).sum()
        expected = trained.record.history["negative_elbo"][-1] + best
        assert trained.shortfall == pytest.approx(expected, abs=0.05)
    assert missed[3] > 0.5
    assert missed[200] < 0.3


def raise_as_torch(*args):
    """Factorise a matrix that has no Cholesky factor."""
    torch.linalg.cholesky(-torch.eye(2))


def test_a_choice_of_factors_that_cannot_be_made_leaves_independent_columns(monkeypatch):
    X, sizes, analyse = table(200), [], factor_analysis.analyse

    def watch(y, size, *args):
        sizes.append(size)
        return analyse(y, size, *args)

    monkeypatch.setattr(factor_analysis, "choose", raise_as_torch)
    monkeypatch.setattr(factor_analysis, "analyse", watch)
    vae = VAETransformer(2, max_iter=2, random_state=0).fit(X)
    assert sizes == [factor_analysis.ALONE] * 2  # of the rows trained on, and of all
    assert np.isfinite(vae.score(X))


def test_factors_that_cannot_be_analysed_leave_independent_columns(monkeypatch):
    X, analyse = table(200), factor_analysis.analyse

    def fail(y, size, *args):
        return analyse(y, size, *args) if size == factor_analysis.ALONE else raise_as_torch()

    monkeypatch.setattr(factor_analysis, "analyse", fail)
    vae = VAETransformer(2, max_iter=1, learning_rate=1e-9, random_state=0)
    with pytest.warns(UserWarning, match="columns that are independent"):
        vae.fit(X)
    assert vae.kept_iter_ == 0
    training = np.delete(X, prepare(vae, X)[0].held_out, axis=0)
    of_columns = scipy.stats.norm(training.mean(axis=0), training.std(axis=0)).logpdf(X).sum(axis=1)
    assert vae.score(X) == pytest.approx(of_columns.mean(), abs=0.1)


def test_factors_of_all_rows_that_cannot_be_analysed_leave_those_of_the_rows_trained_on(
    monkeypatch,
):
    X, analyse, found = table(200), factor_analysis.analyse, []

    def fail_later(y, *args):
        found.append(raise_as_torch() if found else analyse(y, *args))
        return found[-1]

    monkeypatch.setattr(factor_analysis, "analyse", fail_later)
    vae = VAETransformer(2, max_iter=1, learning_rate=1e-9, random_state=0).fit(X)
    assert vae.kept_iter_ == 0
    np.testing.assert_allclose(vae.state_["decoder.linear"][:10], found[0].loading, rtol=1e-5)


@pytest.mark.parametrize(("n", "n_trained_on"), [(10, 10), (19, 19), (60, 54)])
def test_factors_are_of_each_row_once(monkeypatch, n, n_trained_on):
    seen, analyse = [], factor_analysis.analyse

    def watch(y, *args):
        seen.append(y)
        return analyse(y, *args)

    monkeypatch.setattr(factor_analysis, "analyse", watch)
    VAETransformer(2, max_iter=1, random_state=0).fit(np.random.default_rng(0).normal(size=(n, 5)))
    # One analysis where nothing is held out: that of equal rows is made once.
    assert {len(y) for y in seen} == {n, n_trained_on}
    assert all(len(np.unique(y, axis=0)) == len(y) for y in seen)


@pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")
def test_constant_columns_are_no_shortfall():
    X = np.hstack([table(300), np.zeros((300, 20))])
    vae = VAETransformer(
        2,
        likelihood=Gaussian("shared"),
        hidden_layer_sizes=(),
        early_stopping=False,
        max_iter=300,
        learning_rate=0.05,
        random_state=0,
    )
    vae.fit(X)


@pytest.mark.parametrize("name", ["maximise", "log_likelihood"])
def test_a_shortfall_that_cannot_be_known_is_none(monkeypatch, name):
    job = job_of(table(100), hidden_layer_sizes=(), early_stopping=False, max_iter=3)
    monkeypatch.setattr(factor_analysis, name, raise_as_torch)
    (trained,) = execution.train([job], lambda: None, lambda records, states: False)
    assert trained.shortfall == 0


@pytest.fixture(params=["memory map", "Fortran order", "read-only", "float32"])
def same_rows(request, tmp_path):
    """The same rows as an array and in another way."""
    X = table(1000)
    if request.param == "memory map":
        np.save(tmp_path / "X.npy", X)
        return X, np.load(tmp_path / "X.npy", mmap_mode="r")
    if request.param == "Fortran order":
        return X, np.asfortranarray(X)
    if request.param == "read-only":
        Y = X.copy()
        Y.flags.writeable = False
        return X, Y
    return X.astype(np.float32).astype(np.float64), X.astype(np.float32)


def test_what_holds_the_rows_changes_no_bit(same_rows):
    for working_memory in (SMALL, 1024):
        with config_context(working_memory=working_memory):
            fitted = [VAETransformer(2, max_iter=3, random_state=0).fit(X) for X in same_rows]
        for name, array in fitted[0].state_.items():
            np.testing.assert_array_equal(fitted[1].state_[name], array)


def test_rows_that_fit_are_trained_on_as_ever():
    X = table(1000)
    with config_context(working_memory=0.064):  # 1048 rows
        few = VAETransformer(2, max_iter=3, random_state=0).fit(X)
    much = VAETransformer(2, max_iter=3, random_state=0).fit(X)
    for name, array in much.state_.items():
        np.testing.assert_array_equal(few.state_[name], array)


def test_a_model_read_in_parts_reaches_the_optimum():
    X = table(3000)
    vae = VAETransformer(
        2,
        likelihood=Gaussian("shared"),
        hidden_layer_sizes=(),
        batch_size=32,
        learning_rate=0.01,
        max_iter=120,
        random_state=0,
        early_stopping=False,
    )
    with config_context(working_memory=0.064):  # 262 rows at once
        score = vae.fit(X).score(X)
    best = PCA(2).fit(X).score(X)
    # Training on all rows at once is 5e-4 short of it after 150 epochs.
    assert best - 0.01 < score < best + 1e-3


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_whole_numbers_are_read_as_the_floats_they_are(dtype):
    X = load_digits().data[:300].astype(dtype)
    whole = VAETransformer(2, max_iter=3, random_state=0).fit(X)
    floats = VAETransformer(2, max_iter=3, random_state=0).fit(X.astype(np.float64))
    for name, array in floats.state_.items():
        np.testing.assert_array_equal(whole.state_[name], array)
    Z = whole.transform(X)
    assert Z.dtype == whole.sample(2).dtype == whole.inverse_transform(Z).dtype == np.float64
    np.testing.assert_array_equal(Z, floats.transform(X.astype(np.float64)))
    assert whole.score(X) == floats.score(X.astype(np.float64))


def test_verbose_tells_the_parts(capsys):
    with config_context(working_memory=SMALL):
        vae = VAETransformer(2, batch_size=16, max_iter=2, random_state=0, verbose=2)
        vae.fit(table(1000))
    shown = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Iteration 1, [5-8]% of the rows", shown[0])  # 65 of 975
    assert shown.count("Iteration 2, 100% of the rows") == 1
    assert sum(line.startswith("Iteration 1, loss = ") for line in shown) == 1


FIT_A_FILE = """
import sys
import threading
import numpy as np
from sklearn import config_context
from skvae import VAETransformer
from skvae.likelihoods import Gaussian

def anonymous():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

def watch():
    while not done.wait(0.002):
        sizes.append(anonymous())

vae = VAETransformer(2, likelihood=Gaussian("per_feature"), hidden_layer_sizes=())
vae.set_params(batch_size=8192, random_state=0)
vae.set_params(max_iter=1).fit(np.random.default_rng(0).normal(size=(1000, 64)))
X = np.load(sys.argv[1], mmap_mode="r")
sizes, done = [anonymous()], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
try:
    with config_context(working_memory=16):
        vae.fit(X)
finally:
    done.set()
    watcher.join()
print(max(sizes) - sizes[0], len(X))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_file_larger_than_working_memory_is_never_copied(tmp_path):
    X = np.lib.format.open_memmap(tmp_path / "X.npy", "w+", np.uint8, (1_000_000, 64))
    X[:] = np.random.default_rng(0).integers(256, size=(1, 64), dtype=np.uint8)
    X[::3] += np.uint8(1)
    X.flush()
    command = [sys.executable, "-c", FIT_A_FILE, str(tmp_path / "X.npy")]
    # What is freed goes back at once: the C library would keep an amount that no run repeats.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    grown, n_rows = map(float, run.stdout.splitlines()[-1].split())
    assert n_rows == 1e6
    # 16 MiB for rows, 8 for their order, 40 for factor analysis of 20,000 of them. A copy of the
    # file would take 61 MiB more, one in float32 244.
    assert grown < 90


def test_a_part_has_a_batch_at_least():
    with config_context(working_memory=0):
        job = job_of(table(1000), batch_size=100, early_stopping=False)
        assert job.n_at_once == 100
        assert {part.index.shape[1] for _, part in loading.read_in_parts(job, print)[0](0)} == {100}


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_room_is_counted_in_bytes(precision):
    X = table(1000)
    # 1146 rows of 10 float32 and 24 bytes, 705 of float64.
    with config_context(working_memory=0.07):
        assert (
            job_of(X, precision=precision).n_at_once == {"float32": 1000, "float64": 176}[precision]
        )


@pytest.mark.parametrize("n_components", [1, 20])
def test_rows_held_out_of_parts_fit_into_a_part_with_their_noise(n_components):
    X = table(1000)
    with config_context(working_memory=0.02):
        job = job_of(X, n_components=n_components, validation_fraction=0.5, early_stopping=True)
    n_held_out, n_features = job.plan.n_held_out, X.shape[1]
    assert job.n_at_once < len(X)
    # Four draws, and as much again while they are made.
    n_values = n_held_out * (n_features + 8 * n_components)
    assert n_values <= job.n_at_once * n_features < n_values + n_features + 8 * n_components


def test_a_stack_has_room_for_its_members_and_the_rows_of_their_folds():
    folds = [(table(200, seed=seed), {}) for seed in range(3)]
    vae = VAETransformer(2, hidden_layer_sizes=(8,), batch_size=16, device="cpu")
    jobs = {
        i: prepare(vae.set_params(random_state=i, n_components=1 + i % 2), *folds[i % 3])[0]
        for i in range(30)
    }
    own, rows = packing._n_bytes(jobs[1]), packing._row_bytes(jobs[1])
    n_threads = team.n_threads(torch.device("cpu"))
    for working_memory in (0.5, 1, 2):
        with config_context(working_memory=working_memory):
            stacks = packing.gather(jobs, "auto")
        assert sorted(i for stack in stacks for i in stack) == list(range(30))
        for stack in stacks:
            taken = own * len(stack) + rows * len({id(jobs[i].data) for i in stack})
            assert taken <= working_memory * 2**20 / n_threads or len(stack) == 1


def test_stacks_share_a_number_of_components_or_rows_where_both_have_no_room():
    folds = [(table(2000, seed=seed), {}) for seed in range(3)]
    # One seed, so that the same rows of a fold are held out: its units are one.
    vae = VAETransformer(hidden_layer_sizes=(2,), batch_size=2, device="cpu", random_state=0)
    sizes = [2, 16, 4, 8]  # in another order than that of their costs
    pairs = itertools.product(sizes, folds)
    jobs = dict(enumerate(prepare(vae.set_params(n_components=n), *fold)[0] for n, fold in pairs))

    def parts_of(stacks):
        return [
            ([jobs[i].plan.n_components for i in stack], {id(jobs[i].data) for i in stack})
            for stack in stacks
        ]

    of_components = parts_of(packing.gather(jobs, 6))
    assert [n_components for n_components, _ in of_components] == [
        [16, 16, 16, 8, 8, 8],
        [4, 4, 4, 2, 2, 2],
    ]
    own, rows = max(map(packing._n_bytes, jobs.values())), packing._row_bytes(jobs[0])
    with config_context(
        working_memory=(4 * own + 2 * rows) * team.n_threads(torch.device("cpu")) / 2**20
    ):
        of_rows = parts_of(packing.gather(jobs, 4))
    assert [(n_components, len(sources)) for n_components, sources in of_rows] == [
        ([16, 8, 4, 2], 1)
    ] * 3


def test_members_that_have_left_keep_their_own_weights_alone():
    X = table(200)
    vae = VAETransformer(2, hidden_layer_sizes=(8,), random_state=0, early_stopping=False)
    jobs = [prepare(vae.set_params(max_iter=n), X, {})[0] for n in range(1, 17)]
    jobs = [job._replace(data=jobs[0].data) for job in jobs]
    kept, train = [], loop.train

    def watched(*args, **more):
        records = train(*args, **more)
        storages = {
            r.weights.untyped_storage().data_ptr(): r.weights.untyped_storage() for r in records
        }
        kept.append(sum(storage.nbytes() for storage in storages.values()))
        kept.append(sum(r.weights.nbytes for r in records))
        return records

    with mock.patch.object(loop, "train", watched):
        execution.train(jobs, lambda: None, lambda records, states: False)
    assert kept[0] == kept[1]


def test_states_are_those_of_the_members_in_training():
    X = table(200)
    vae = VAETransformer(2, hidden_layer_sizes=(8,), random_state=0, early_stopping=False)
    jobs = [prepare(vae.set_params(max_iter=n, n_components=n), X, {})[0] for n in (1, 3, 2)]
    seen = []

    def end_epoch(records, states):
        seen.append([state["decoder.0.weight"].shape[1] for state in states()])
        return False

    execution.train(jobs, lambda: None, end_epoch)
    assert seen == [[1, 3, 2], [3, 2], [3]]


# --- precision --------------------------------------------------------------------------------


def test_float64_is_float64_throughout():
    X = table(300)
    vae = VAETransformer(
        2, hidden_layer_sizes=(8,), max_iter=5, early_stopping=False, precision="float64"
    ).fit(X)
    assert {array.dtype for array in vae.state_.values()} == {np.dtype(np.float64)}
    state = vae.state_
    y = (X - state["location"]) / state["scale"]
    hidden = y @ state["encoder.0.weight"].T + state["encoder.0.bias"]
    raw = np.tanh(hidden) @ state["encoder.2.weight"].T + state["encoder.2.bias"]
    raw += y @ state["encoder.linear"].T
    # To float64's rounding: float32's is 1e-7.
    np.testing.assert_allclose(vae.transform(X), raw[:, :2], rtol=1e-12, atol=1e-13)


def test_precisions_start_from_the_same_weights_and_noise():
    X = table(300)
    fits = {
        precision: VAETransformer(2, max_iter=2, precision=precision, random_state=0).fit(X)
        for precision in ("float32", "bf16", "float64")
    }
    exact = fits["float64"]
    # A product's terms are rounded at 6e-8 and at 4e-3; two epochs are 16 steps.
    for precision, tolerance in [("float32", 1e-4), ("bf16", 0.1)]:
        loss = fits[precision].history_["loss"]
        np.testing.assert_allclose(loss, exact.history_["loss"], atol=tolerance)
        assert fits[precision].state_["encoder.0.weight"].dtype == np.float32
    assert fits["bf16"].history_["loss"][0] != fits["float32"].history_["loss"][0]


def test_the_score_of_a_bf16_model_is_computed_in_float32():
    X = table(300)
    vae = VAETransformer(2, max_iter=2, precision="bf16", random_state=0).fit(X)
    scores = vae.score_samples(X)
    np.testing.assert_array_equal(vae.set_params(precision="float32").score_samples(X), scores)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_only_the_products_of_the_networks_are_in_bfloat16(likelihood):
    X = (table(300) > 0).astype(np.float64)
    fitted = VAETransformer(
        2, likelihood=likelihood, max_iter=40, precision="bf16", random_state=0, early_stopping=True
    ).fit(X)
    # In bfloat16 a sum of 3 to 8 nats would have steps of 0.016 to 0.03 nats.
    assert len(np.unique(fitted.history_["validation_reconstruction"])) == 40
    job = job_of(X, likelihood=likelihood, precision="bf16")
    stack = Stack([job.architecture], [job.state], job.device)
    stack.low_precision = True
    y, eps = torch.from_numpy(in_units(job, X))[None], torch.zeros(1, 1, 300, 2)
    with torch.inference_mode():
        (terms, kl), pull = stack.vjp(Batch(y, eps, y[..., :0]), by_draw=False)
        gradients = pull(torch.ones_like(terms), torch.ones_like(kl))
    assert terms.dtype == kl.dtype == torch.float32
    # As many values as rows: bfloat16 has 8 bits.
    assert len(terms.unique()) == len(np.unique(X, axis=0)) > 100
    assert len(gradients) == len(list(stack.parameters()))


def test_bf16_reaches_about_the_same_score():
    X = table(1000)
    scores = [
        VAETransformer(2, max_iter=15, precision=precision, random_state=0).fit(X).score(X)
        for precision in ("float32", "bf16")
    ]
    # Rounding to 8 bits is noise of 0.4% in every product of a step: a few hundredths of a nat.
    np.testing.assert_allclose(*scores, atol=0.15)


def test_a_warm_start_goes_on_in_the_precision_that_is_asked_for():
    X = table(300)
    vae = VAETransformer(2, max_iter=2, random_state=0, warm_start=True).fit(X)
    vae.set_params(precision="float64").fit(X)
    assert {array.dtype for array in vae.state_.values()} == {np.dtype(np.float64)}
    assert vae.n_iter_ == 4


def test_a_device_without_float64_is_named():
    with pytest.raises(ValueError, match=r"device='mps' has no float64\. Use precision='float32'"):
        devices.dtype_of("float64", torch.device("mps"))


def test_a_precision_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="'precision' parameter of VAETransformer must be"):
        VAETransformer(precision="float16").fit(table(100))
