"""Threads, processes and settings of the user's: they change nothing, and are not changed."""

import concurrent.futures
import contextlib
import hashlib
import inspect
import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.model_selection import GridSearchCV
from threadpoolctl import threadpool_limits

from skvae import VAEGridSearchCV, VAETransformer

# --- threads ----------------------------------------------------------------------------------


def test_64_threads_transform_one_model_while_8_fit_its_clones(X, quick):
    vae = quick(max_iter=20).fit(X)
    expected = vae.transform(X), vae.score_samples(X), vae.sample(9, 0)
    begin = threading.Barrier(72, timeout=60)

    def infer(_):
        begin.wait()
        return [(vae.transform(X), vae.score_samples(X), vae.sample(9, 0)) for _ in range(3)]

    def fit(_):
        begin.wait()
        return clone(vae).fit(X)

    with concurrent.futures.ThreadPoolExecutor(72) as threads:
        inferred = [threads.submit(infer, i) for i in range(64)]
        fitted = [threads.submit(fit, i) for i in range(8)]
        for future in inferred:
            for results in future.result():
                for left, right in zip(results, expected, strict=True):
                    np.testing.assert_array_equal(left, right)
        for future in fitted:
            assert joblib.hash(future.result().state_) == joblib.hash(vae.state_)


@pytest.mark.parametrize(
    ("hidden_layer_sizes", "batch_size", "same_bits"),
    [
        ((64, 32), 128, True),
        pytest.param((600, 600), 64, False, marks=pytest.mark.slow),
    ],
)
def test_a_fit_has_the_same_bits_on_any_number_of_threads_if_its_steps_are_short(
    hidden_layer_sizes, batch_size, same_bits
):
    X = load_wine().data
    vae = VAETransformer(
        4, hidden_layer_sizes=hidden_layer_sizes, batch_size=batch_size, max_iter=3, random_state=0
    )
    fits = []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads, user_api="openmp"):
            fits.append(clone(vae).fit(X).score_samples(X))
    if same_bits:  # one thread takes them
        np.testing.assert_array_equal(*fits)
    # Else sums of products of matrices are cut at other places: 3 epochs make little of it.
    np.testing.assert_allclose(*fits, rtol=0, atol=1e-3)


# --- processes --------------------------------------------------------------------------------

IMPORTS = """
import hashlib
from sklearn.datasets import load_wine
from skvae import VAETransformer
"""


def digest():
    """What a fit, its results and its samples are, in a few letters."""
    X = load_wine().data
    vae = VAETransformer(2, hidden_layer_sizes=(8,), max_iter=4, random_state=0, device="cpu")
    results = vae.fit(X).transform(X), vae.score_samples(X), vae.sample(9, 0)
    return hashlib.sha256(b"".join(array.tobytes() for array in results)).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_child_process_computes_the_same_bits(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as processes:
        assert processes.submit(digest).result(timeout=100) == digest()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "environment"),
    [
        (["-W", "error"], {}),
        ([], {"SCIPY_ARRAY_API": "1"}),
        ([], {"OMP_NUM_THREADS": "3", "PYTHONHASHSEED": "7"}),
    ],
    ids=str,
)
def test_a_fresh_process_computes_the_same_bits_in_any_setting(options, environment):
    done = subprocess.run(
        [sys.executable, *options, "-c", f"{IMPORTS}{inspect.getsource(digest)}print(digest())"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stdout.strip() == digest()


# In the child the first operation on two threads can wait forever; a small fit has none.
FORK = """
import os
import torch
from sklearn.datasets import load_wine
from skvae import VAETransformer

assert torch.get_num_threads() == 2
X = load_wine().data
vae = VAETransformer(2, max_iter=3, random_state=0, device="cpu").fit(X)
torch.mm(torch.ones(2000, 2000), torch.ones(2000, 2000))
child = os.fork()
if not child:
    vae.fit(X).transform(X), vae.score_samples(X)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks as Linux does")
def test_a_small_fit_ends_in_a_child_that_is_forked_after_computing_on_several_threads():
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    with subprocess.Popen(
        [sys.executable, "-c", FORK], env=environment, start_new_session=True
    ) as parent:
        try:
            assert parent.wait(timeout=60) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)  # the child too, if it hangs


@pytest.mark.parametrize("backend", [pytest.param("loky", marks=pytest.mark.slow), "threading"])
@pytest.mark.parametrize("kind", [GridSearchCV, VAEGridSearchCV])
def test_a_search_scores_the_same_in_several_jobs_as_in_one(X, quick, kind, backend):
    vae = quick(early_stopping=True, device="cpu", precision="float64")
    grid = {"beta": [0.5, 2.0], "n_components": [1, 2]}
    expected = GridSearchCV(vae, grid, cv=2).fit(X).cv_results_["mean_test_score"]
    with joblib.parallel_config(backend):
        scores = kind(vae, grid, cv=2, n_jobs=2).fit(X).cv_results_["mean_test_score"]
    if kind is GridSearchCV:
        np.testing.assert_array_equal(scores, expected)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)  # a stack rounds otherwise


# --- seeds ------------------------------------------------------------------------------------


def test_a_seed_means_what_it_means_in_scikit_learn(X, quick):
    def scores(random_state):
        return quick(random_state=random_state).fit(X).score_samples(X)

    np.testing.assert_array_equal(scores(3), scores(3))
    np.testing.assert_array_equal(scores(3), scores(np.random.RandomState(3)))
    generator = np.random.RandomState(3)
    assert not np.array_equal(scores(generator), scores(generator))
    np.random.seed(3)
    np.testing.assert_array_equal(scores(None), scores(3))
    assert not np.array_equal(scores(None), scores(3))
