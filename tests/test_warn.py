"""Warnings name the user's line; a thread or a process without one names a line of skvae."""

import os
import pathlib
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
from sklearn.model_selection import cross_val_score

import skvae
from skvae import VAEGridSearchCV

PACKAGE = pathlib.Path(skvae.__file__).parent


@pytest.fixture
def holed(X):
    return np.where(np.arange(X.size).reshape(X.shape) == 0, np.nan, X)


def in_pool(function, X):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, X).result()


def in_thread(function, X):
    thread = threading.Thread(target=function, args=(X,))
    thread.start()
    thread.join()


def in_joblib(function, X):
    return joblib.Parallel(2, backend="threading")([joblib.delayed(function)(X)])


THREADS = [in_pool, in_thread, in_joblib]


@pytest.mark.parametrize("run", THREADS)
@pytest.mark.parametrize("method", ["transform", "score_samples"])
def test_a_thread_without_a_line_of_the_user_names_the_method(run, method, X, holed, quick):
    vae = quick().fit(X)
    with pytest.warns(UserWarning, match="X has missing values in 1 of 60 rows") as caught:
        run(getattr(vae, method), holed)
    assert {pathlib.Path(one.filename) for one in caught} == {PACKAGE / "_vae.py"}


@pytest.mark.parametrize("run", THREADS)
def test_a_thread_with_a_function_of_the_user_names_its_line(run, X, holed, quick):
    vae = quick().fit(X)
    with pytest.warns(UserWarning, match="X has missing values in 1 of 60 rows") as caught:
        run(lambda X: vae.transform(X), holed)
    assert {one.filename for one in caught} == {__file__}


def test_folds_in_threads_name_the_method(X, quick):
    X[:, 1] = np.nan
    with joblib.parallel_backend("threading"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cross_val_score(quick(), X, cv=2, n_jobs=2)
        found = {pathlib.Path(one.filename) for one in caught}
        VAEGridSearchCV(quick(), {"beta": [1.0, 2.0]}, cv=2, n_jobs=2).fit(X)
    assert found == {PACKAGE / "_vae.py"}
    later = {pathlib.Path(one.filename) for one in caught} - found
    assert later <= {pathlib.Path(__file__), PACKAGE / "_search.py"}
    assert pathlib.Path(__file__) in later


# The commands with which processes begin are different.
PROCESSES = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
import joblib
import numpy as np
from skvae import VAETransformer

if __name__ == "__main__":
    X = np.random.default_rng(0).normal(size=(30, 3)) * [1.0, 1.0, 0.0] + np.ones((30, 1))
    how = {"hidden_layer_sizes": 4, "max_iter": 1, "early_stopping": False, "random_state": 0}
    vae = VAETransformer(1, **how).fit(X)
    X[0, 0] = np.nan
    if sys.argv[1] == "loky":
        joblib.Parallel(2)(joblib.delayed(vae.transform)(X) for _ in range(2))
    else:
        context = multiprocessing.get_context(sys.argv[1])
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            pool.submit(vae.transform, X).result()
"""


@pytest.mark.parametrize("how", ["loky", "spawn", "forkserver"])
def test_a_process_without_a_line_of_the_user_names_the_method(how, tmp_path):
    if how == "forkserver" and sys.platform == "win32":
        pytest.skip("Windows has no forkserver")
    script = tmp_path / "script.py"
    script.write_text(PROCESSES)
    command = [sys.executable, str(script), how]
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stderr.splitlines() if "X has missing values in 1" in line]
    assert lines
    for line in lines:
        assert line.startswith(str(PACKAGE / "_vae.py"))
