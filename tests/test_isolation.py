"""The settings, threads and processes around a call: it changes none, and none changes it."""

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
import torch
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.model_selection import GridSearchCV
from threadpoolctl import threadpool_limits

from skvae import (
    VAEGridSearchCV,
    VAEImputer,
    VAETransformer,
    likelihoods,
    metrics,
    posteriors,
    priors,
)
from skvae.likelihoods import Bernoulli, Gaussian
from skvae.networks import MLP

LIKELIHOODS = [*map(Gaussian, ("per_feature", "shared", "per_sample", 0.5)), Bernoulli()]


def suited(X, likelihood):
    """X, or zeros and ones where nothing else will do."""
    return (np.mean(X, axis=0) < X).astype(X.dtype) if likelihood == Bernoulli() else X


# --- nothing global is changed ----------------------------------------------------------------


def use(vae, X):
    vae.fit(X).inverse_transform(vae.transform(X))
    vae.score(X), vae.encode(X), vae.sample(3, random_state=0)
    vae.sample_posterior(X, random_state=0)
    metrics.log_likelihood(vae, X, random_state=0)
    vae.to_module()


def fail(vae, X):
    with pytest.raises(ValueError, match="learning rate"):
        vae.set_params(learning_rate=1e6).fit(X)


CALLS = {
    **{str(likelihood): (use, {"likelihood": likelihood}) for likelihood in LIKELIHOODS},
    "early stopping": (use, {"early_stopping": True}),
    "a fit that fails": (fail, {}),
    "partial_fit": (lambda vae, X: vae.partial_fit(X), {}),
    "a search": (lambda vae, X: VAEGridSearchCV(vae, {"beta": [1, 2]}, cv=2).fit(X), {}),
    "an imputer": (lambda vae, X: VAEImputer(vae).fit_transform(X), {}),
}


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("call", "params"), CALLS.values(), ids=CALLS)
def test_a_call_changes_nothing_global_and_prints_nothing(
    X, quick, global_state, capsys, call, params
):
    X = suited(X, params.get("likelihood"))
    call(quick(**params), X)  # late imports happen here
    before = global_state()
    call(quick(**params), X)
    assert global_state() == before
    assert capsys.readouterr() == ("", "")


@contextlib.contextmanager
def default_dtype_float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default_dtype": default_dtype_float64,
    "default_device": lambda: torch.device("meta"),
}


class Linear32(torch.nn.Linear):
    """Draws its weights in float32, whatever the default."""

    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out, dtype=torch.float32)


PARTS = [
    *({"likelihood": likelihood, "early_stopping": True} for likelihood in LIKELIHOODS),
    {"prior": priors.Mixture(3)},
    {"prior": priors.Vamp(3)},
    {"posterior": "full", "n_importance_samples": 2},
    {"posterior": posteriors.Flow(hidden_layer_sizes=(4,), n_context=2)},
    {"free_bits": 0.1, "beta_warmup": 0.5, "n_beta_cycles": 2},
    {"network": MLP(residual=True, dropout=0.2, layer_norm=True)},
    {"network": (Linear32, Linear32)},
    {"likelihood": "laplace"},
    {"likelihood": "student_t"},
    {"likelihood": "continuous_bernoulli"},
    {"likelihood": likelihoods.Bernoulli(resample=True)},
    {"likelihood": likelihoods.DiscretizedLogistic(4)},
    {"likelihood": likelihoods.ZeroInflated(likelihoods.NegativeBinomial())},
    {"likelihood": "poisson", "prior": priors.Vamp(3)},
]


def everything(parts):
    """The arrays that a fit with these parts leads to."""
    X = np.random.default_rng(0).random((60, 3))
    if any(word in str(parts).lower() for word in ("logistic", "poisson", "binomial")):
        X = np.floor(4 * X)
    X = suited(X, parts.get("likelihood"))
    small = {"hidden_layer_sizes": (8,), "max_iter": 2, "random_state": 0}
    vae = VAETransformer(2, **small, **parts).fit(X)
    return [
        *vae.state_.values(),
        *vae.history_.values(),
        *vae.encode(X),
        vae.transform(X),
        vae.inverse_transform(vae.transform(X)),
        vae.score_samples(X),
        vae.sample(5, random_state=0),
        vae.sample_posterior(X, 2, random_state=0),
        metrics.log_likelihood(vae, X, n_samples=3, per_sample=True, random_state=0),
        *(tensor.detach().numpy() for tensor in vae.to_module().state_dict().values()),
    ]


def modes():
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        str(torch.get_default_device()),
    )


@pytest.mark.parametrize(
    ("parts", "names"), [*((parts, [*MODES]) for parts in PARTS), *(({}, [own]) for own in MODES)]
)
def test_the_mode_of_the_caller_changes_no_result_and_is_not_changed(parts, names):
    outside, state = everything(parts), torch.get_rng_state()
    with contextlib.ExitStack() as stack:  # all at once, and one by one
        for name in names:
            stack.enter_context(MODES[name]())
        before = modes()
        inside = everything(parts)
        assert modes() == before
    for left, right in zip(inside, outside, strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("two_threads")
def test_other_threads_keep_their_number_of_threads(X, quick, monkeypatch):
    counts = {"running": set(), "started during fit": set(), "started after": set()}
    started, done = threading.Event(), threading.Event()

    def watch():
        torch.get_num_threads()
        with threadpool_limits(3, user_api="openmp"):
            while not done.wait(0.001):
                counts["running"].add(torch.get_num_threads())
                started.set()

    def count_in_new_thread(when):
        new = threading.Thread(target=lambda: counts[when].add(torch.get_num_threads()))
        new.start()
        new.join()

    count_in_new_thread("started after")  # and before: one set, one number
    watcher = threading.Thread(target=watch)
    watcher.start()
    assert started.wait(10)
    monkeypatch.setattr("builtins.print", lambda *args: count_in_new_thread("started during fit"))
    try:
        for action in (lambda vae: vae.fit(X), lambda vae: vae.score(X)):
            action(quick(verbose=1).fit(X))
    finally:
        done.set()
        watcher.join()
    count_in_new_thread("started after")
    assert counts["running"] == {3}
    assert len(counts["started after"]) == 1
    assert counts["started during fit"] == counts["started after"]


# --- threads ----------------------------------------------------------------------------------


def test_64_threads_transform_one_model_while_8_fit_its_clones(X, quick):
    vae = quick(max_iter=5).fit(X)
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


def in_a_new_process(code, **environment):
    """The output of code in an interpreter of its own, where warnings are errors."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return run.stdout


WITH_ARRAY_API = """
import numpy as np, sklearn, torch
from skvae import VAETransformer

X = torch.tensor(np.random.default_rng(0).normal(size=(60, 4)), dtype=torch.float32)
vae = VAETransformer(2, hidden_layer_sizes=(8,), max_iter=4, early_stopping=False, random_state=0)
expected = vae.fit(X).transform(X)
with sklearn.config_context(array_api_dispatch=True):
    Z = vae.fit(X).transform(X)
    back, scores = vae.inverse_transform(Z), vae.score_samples(X)
for array in (Z, back, scores):
    assert type(array) is np.ndarray
np.testing.assert_array_equal(Z, expected)
"""


def test_tensors_come_back_as_arrays_where_scikit_learn_would_keep_tensors():
    # Only where the variable is set before anything is imported.
    assert in_a_new_process(WITH_ARRAY_API, SCIPY_ARRAY_API="1") == ""


# In the child the first operation on two threads can wait forever; a fit has none, even a wide one.
FORK = """
import os
import torch
from sklearn.datasets import load_wine
from skvae import VAETransformer

assert torch.get_num_threads() == 2
X = load_wine().data
vae = VAETransformer(
    2, hidden_layer_sizes=(600, 600), batch_size=128, max_iter=2, random_state=0, device="cpu"
).fit(X)
torch.mm(torch.ones(2000, 2000), torch.ones(2000, 2000))
child = os.fork()
if not child:
    vae.fit(X).transform(X), vae.score_samples(X)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks as Linux does")
def test_a_wide_fit_ends_in_a_child_that_is_forked_after_computing_on_several_threads():
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
    assert not np.array_equal(scores(3), scores(4))
    np.random.seed(3)
    np.testing.assert_array_equal(scores(None), scores(3))
    assert not np.array_equal(scores(None), scores(3))
