"""Faults in the middle: whatever is raised wherever, nothing is lost.

A fault strikes before a line of the package that a seed has chosen, of all the lines that a call
runs. An estimator is then as it was before the call or, after Ctrl-C, complete; nothing global has
moved; and the next call does what it would have done.
"""

import copy
import errno
import inspect
import itertools
import linecache
import math
import os
import signal
import sys
import warnings
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from threadpoolctl import threadpool_limits

import skvae
from skvae import Checkpoint, VAEGridSearchCV, VAEImputer
from skvae._backend import devices, files
from skvae._fit import job
from skvae._model.adam import Adam
from skvae._model.member import Best, Run

PACKAGE = str(Path(skvae.__file__).parent)


def first_line_after_yield(function):
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if line.strip().startswith("yield")) + 1


# From these lines on they put things back, where Python may be interrupted as well: no library can
# promise anything there.
CLEANUP = {
    function.__name__: first_line_after_yield(function)
    for function in (devices.one_thread, files.replacing)
}
N_FAULTS = 15  # of each kind of call
ERRORS = [RuntimeError("x"), MemoryError("x"), OSError("x"), torch.OutOfMemoryError("x")]


class Fault:
    """Raises `error` before the line of the package that is the n-th of a block."""

    def __init__(self, n=None, error=None):
        self.n, self.error, self.count, self.where = n, error, 0, None
        self.inside = set()  # frames and their lines "with …:", whose blocks have not ended

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.enter_function)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)

    def enter_function(self, frame, event, arg):
        code = frame.f_code
        return self.enter_line if code.co_filename.startswith(PACKAGE) else None

    def enter_line(self, frame, event, arg):
        cleans = frame.f_lineno >= CLEANUP.get(frame.f_code.co_name, math.inf)
        if linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with "):
            # Python comes to the line again where the block ends: that puts things back, too.
            cleans = cleans or (frame, frame.f_lineno) in self.inside
            self.inside ^= {(frame, frame.f_lineno)}
        if event == "line" and not cleans:
            self.count += 1
            if self.count == self.n:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise self.error
        return self.enter_line


def strike(call, n, error):
    """What a call raises that is struck at its n-th line, and where that is."""
    with Fault(n, error) as fault, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        filters, outcome = list(warnings.filters), None
        try:
            call()
        except BaseException as raised:
            outcome = raised
        assert warnings.filters == filters, fault.where
    return outcome, fault.where


def lines_of(call, seed=0):
    """Numbers of the lines to strike, of those that a call runs."""
    with Fault() as fault:
        call()
    assert fault.count > 5 * N_FAULTS
    return np.random.default_rng(seed).choice(fault.count, N_FAULTS, replace=False) + 1


@pytest.fixture(autouse=True)
def threads():
    """Numbers of threads that differ from all that the package sets."""
    torch.get_num_threads()  # which sets a thread's own at its first call
    before = devices._limit_mkl()(3)
    with threadpool_limits(2, user_api="openmp"):
        yield
    devices._limit_mkl()(before)


def content(estimator):
    # Without what is joined of the rest: the hash of objects that share others is no use.
    return joblib.hash({k: v for k, v in vars(estimator).items() if k != "_fitted_model"})


@pytest.mark.parametrize(
    ("method", "fitted", "in_shares"),
    [
        ("fit", False, False),
        ("fit", True, False),
        ("fit", True, True),
        ("partial_fit", False, False),
        ("partial_fit", True, False),
    ],
)
def test_an_exception_anywhere_in_a_fit_leaves_everything_as_it_was(
    X, quick, global_state, monkeypatch, method, fitted, in_shares
):
    if in_shares:
        monkeypatch.setattr(job, "SHARE_PRODUCTS", 1)
        monkeypatch.setattr(job, "HALF_ROWS", 1)
    before = global_state()
    vae = quick(early_stopping=True, warm_start=True, device="cpu")
    if fitted:
        getattr(vae, method)(X)
    other, fresh = 2 * X[::-1], copy.deepcopy(vae)
    expected = content(getattr(copy.deepcopy(vae), method)(other))
    hashed = content(vae)
    for i, n in enumerate(lines_of(lambda: getattr(fresh, method)(other), seed=fitted)):
        error = ERRORS[i % len(ERRORS)]
        raised, where = strike(lambda: getattr(vae, method)(other), n, error)
        assert raised is error, where
        assert content(vae) == hashed, where
        assert global_state() == before, where
    assert content(getattr(vae, method)(other)) == expected


@pytest.fixture
def complete(monkeypatch):
    """How many lines have run at the end of each epoch that is complete, in a `Fault`."""
    lines, end_epoch = [], Run.end_epoch

    def end(*args):
        end_epoch(*args)
        fault = getattr(sys.gettrace(), "__self__", None)  # else coverage may be watching
        lines.append(fault.count if isinstance(fault, Fault) else 0)

    monkeypatch.setattr(Run, "end_epoch", end)
    return lines


@pytest.mark.parametrize("part", ["anywhere", "after the last epoch"])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_ctrl_c_in_a_fit_loses_one_epoch_at_most(
    X, quick, global_state, complete, early_stopping, part
):
    def make():
        return quick(early_stopping=early_stopping, warm_start=True, device="cpu", max_iter=6)

    before, whole = global_state(), make().fit(X)
    lines = lines_of(lambda: make().fit(X))
    if part == "after the last epoch":
        with Fault() as fault:
            make().fit(X)
        lines = np.linspace(complete[-1] + 1, fault.count, N_FAULTS).round().astype(int)
    ends = set()
    for n in lines:
        vae = make()
        unfitted = content(vae)
        complete.clear()
        raised, where = strike(partial(vae.fit, X), n, KeyboardInterrupt())
        assert global_state() == before, where
        ends.add((type(raised), getattr(vae, "n_iter_", 0)))
        if raised is not None:
            assert not complete, where
            assert content(vae) == unfitted, where
            vae.fit(X)
        else:
            assert len(vae.history_["loss"]) == vae.n_iter_, where
            assert np.isfinite(vae.score(X)), where
            if vae.n_iter_ < 6:  # and the rest is not another fit
                vae.fit(X)
        assert content(vae) == content(whole), where
    # Struck in many epochs, or after them.
    assert len(ends) > 4 if part == "anywhere" else ends == {(type(None), whole.n_iter_)}


def test_ctrl_c_in_the_last_callback_leaves_a_fit_that_is_complete(X, quick):
    pytest.importorskip("sklearn.callback")

    class Slow(Checkpoint):
        def on_fit_task_end(self, estimator, context, *, fitted_estimator):
            if context.task_name != "epoch":
                raise KeyboardInterrupt

    vae = quick(warm_start=True, device="cpu")
    whole = clone(vae).fit(X)
    with pytest.warns(UserWarning, match="Training interrupted"):
        vae.set_callbacks(Slow("vae.joblib")).fit(X)
    assert content(vae.set_callbacks()) == content(whole)


# Where Ctrl-C is pressed: before the n-th call of a method. An epoch has 4 steps.
FIRST_EPOCH = Adam, "step", 3
THIRD_EPOCH = Adam, "step", 2 * 4 + 3
END_OF_FOURTH_EPOCH = Best, "judge", 4
AFTER_LAST_EPOCH = Run, "finish", 1


def press_ctrl_c(patch, owner, name, n_calls):
    method, calls = getattr(owner, name), itertools.count(1)

    def press(*args):
        if next(calls) == n_calls:
            signal.raise_signal(signal.SIGINT)
        return method(*args)

    patch.setattr(owner, name, press)


def stop(vae, X):
    """Begin a fit that Ctrl-C ends in its third epoch."""
    with pytest.MonkeyPatch.context() as patch:
        press_ctrl_c(patch, *THIRD_EPOCH)
        with pytest.warns(UserWarning, match="Training interrupted"):
            vae.fit(X)


BEGINNINGS = {
    "unfitted": lambda vae, X: None,
    "fitted": lambda vae, X: vae.fit(X),
    "fitted to a block": lambda vae, X: vae.partial_fit(X),
    "stopped": stop,
}


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize(
    ("begin", "method", "place", "kept"),
    [
        # Raised, since no epoch of this call is complete, and nothing has changed.
        ("unfitted", "fit", FIRST_EPOCH, None),
        ("fitted", "fit", FIRST_EPOCH, None),
        ("stopped", "fit", FIRST_EPOCH, None),
        ("unfitted", "partial_fit", FIRST_EPOCH, None),
        ("fitted to a block", "partial_fit", FIRST_EPOCH, None),
        ("fitted to a block", "partial_fit", AFTER_LAST_EPOCH, None),
        # The last complete epoch is kept with a warning.
        ("unfitted", "fit", THIRD_EPOCH, 2),
        ("unfitted", "fit", END_OF_FOURTH_EPOCH, 3),
        ("stopped", "fit", THIRD_EPOCH, 4),
        ("unfitted", "fit", AFTER_LAST_EPOCH, 6),
    ],
)
def test_ctrl_c_loses_the_epoch_in_which_it_is_pressed_and_the_next_call_goes_on(
    X, quick, begin, method, place, kept, early_stopping
):
    vae = quick(batch_size=16, max_iter=6, warm_start=True, device="cpu")
    BEGINNINGS[begin](vae.set_params(early_stopping=early_stopping), X)
    before = content(vae)
    whole = getattr(copy.deepcopy(vae), method)(X)
    with pytest.MonkeyPatch.context() as patch:
        press_ctrl_c(patch, *place)
        if kept is None:
            with pytest.raises(KeyboardInterrupt):
                getattr(vae, method)(X)
            assert content(vae) == before
        else:
            ended = kept == 6 and early_stopping  # held-out rows have chosen
            what = "factor analysis was" if ended else f"the weights of epoch {kept} were"
            match = f"Training interrupted: {what} kept"
            with pytest.warns(UserWarning, match=match):
                getattr(vae, method)(X)
            assert vae.n_iter_ == kept
            for name, values in vae.history_.items():
                np.testing.assert_array_equal(values, whole.history_[name][:kept])
            assert np.isfinite(vae.score_samples(X)).all()
    if kept != 6:
        getattr(vae, method)(X)
    assert content(vae) == content(whole)


def test_ctrl_c_after_the_last_epoch_of_a_stack_ends_the_search(X, quick, monkeypatch):
    search = VAEGridSearchCV(quick(device="cpu"), {"beta": [1, 2]}, cv=2)
    press_ctrl_c(monkeypatch, *AFTER_LAST_EPOCH)
    with pytest.raises(KeyboardInterrupt):
        search.fit(X)
    assert not hasattr(search, "cv_results_")


@pytest.mark.parametrize("error", [*ERRORS, KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("method", ["transform", "score_samples", "inverse_transform", "sample"])
def test_a_fault_in_inference_changes_nothing(X, quick, global_state, method, error):
    before, vae = global_state(), quick(device="cpu").fit(X)
    given = {"inverse_transform": (vae.transform(X),), "sample": (60, 0)}.get(method, (X,))
    expected, hashed = getattr(vae, method)(*given), content(vae)
    with Fault() as fault:
        getattr(vae, method)(*given)
    seed = len(repr(error))  # other lines for each error
    for n in np.random.default_rng(seed).choice(fault.count, 6, replace=False) + 1:
        raised, where = strike(lambda: getattr(vae, method)(*given), n, error)
        assert raised is error, where
        assert content(vae) == hashed, where
        assert global_state() == before, where
    np.testing.assert_array_equal(getattr(vae, method)(*given), expected)


@pytest.mark.parametrize("kind", ["imputer", "search"])
def test_a_fault_in_what_fits_models_leaves_it_as_it_was(X, quick, global_state, kind):
    before, vae = global_state(), quick(device="cpu")
    kinds = {"imputer": VAEImputer(vae), "search": VAEGridSearchCV(vae, {"beta": [1, 2]}, cv=2)}
    holes = np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, X)
    rows = holes if kind == "imputer" else X
    hashed = content(kinds[kind])
    for i, n in enumerate(lines_of(partial(clone(kinds[kind]).fit, rows))):
        error, estimator = [*ERRORS, KeyboardInterrupt()][i % 5], clone(kinds[kind])
        raised, where = strike(partial(estimator.fit, rows), n, error)
        assert global_state() == before, where
        if raised is None:  # fits one by one stood in for a stack, or the last one was complete
            assert np.isfinite(estimator.transform(rows)).all(), where
        else:
            assert type(raised) is type(error), where
            assert content(estimator) == hashed, where


# --- files ------------------------------------------------------------------------------------


class Disk:
    """A file that is full after so many bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        self.room -= len(content)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(content)


@pytest.mark.parametrize("share", np.random.default_rng(0).random(10).round(2))
def test_a_disk_that_is_full_leaves_the_last_checkpoint_whole(
    X, quick, tmp_path, monkeypatch, share
):
    pytest.importorskip("sklearn.callback")
    path = tmp_path / "vae.joblib"
    vae = quick(warm_start=True, device="cpu").set_callbacks(Checkpoint(path))
    unfitted = content(vae)
    opened = itertools.count()

    def open_on_disk(name, mode):
        room = share * path.stat().st_size if next(opened) == 2 else np.inf
        return Disk(open(name, mode), room)

    monkeypatch.setattr(files, "open", open_on_disk, raising=False)
    with pytest.raises(OSError, match="No space left"):
        vae.fit(X)
    assert content(vae) == unfitted
    assert os.listdir(tmp_path) == ["vae.joblib"]
    saved = joblib.load(path)
    assert saved.n_iter_ == 2
    assert content(saved.fit(X)) == content(quick(warm_start=True, device="cpu").fit(X))


# --- processes ----------------------------------------------------------------------------


def kill_worker(estimator, X, y=None):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("kind", [GridSearchCV, VAEGridSearchCV])
def test_a_worker_that_is_killed_ends_the_search_and_leaves_it_as_it_was(X, quick, kind):
    search = kind(quick(device="cpu"), {"beta": [1, 2]}, scoring=kill_worker, cv=2, n_jobs=2)
    before = content(search.estimator)
    with pytest.raises(TerminatedWorkerError):
        search.fit(X)
    assert not hasattr(search, "cv_results_")
    assert content(search.estimator) == before
    search.set_params(scoring=None, n_jobs=1).fit(X)
    assert np.isfinite(search.best_score_)
