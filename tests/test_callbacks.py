"""scikit-learn's callbacks: told of every epoch, able to stop it; absent where it has none."""

import pathlib
import subprocess
import sys

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skvae
from skvae.likelihoods import Gaussian

callback = pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 or newer")


def elbo(estimator, X, y=None):
    return estimator.score(X)


class Recorder:
    """Remembers what it is told, and scores the model of every epoch."""

    def __init__(self, stop_after=None, error=None, error_at="end"):
        self.stop_after = stop_after
        self.error = error
        self.error_at = error_at
        self.events = []
        self.scores = []

    def setup(self, estimator, context):
        self.events.append("setup")

    def teardown(self, estimator, context):
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.record("begin", context)

    def on_fit_task_end(self, estimator, context, *, X=None, y=None, fitted_estimator=None):
        if context.task_name == "epoch":
            self.scores.append(fitted_estimator.score(X))
        self.record("end", context)
        return context.task_name == "epoch" and context.task_id + 1 == self.stop_after

    def record(self, what, context):
        epoch = f" {context.task_id}" if context.task_name == "epoch" else ""
        self.events.append(f"{what} {context.task_name}{epoch}")
        if self.error is not None and what == self.error_at and context.task_id == 2:
            raise self.error


def epochs(n):
    return [f"{what} epoch {i}" for i in range(n) for what in ("begin", "end")]


@pytest.mark.parametrize(
    ("params", "stop_after", "n_epochs"),
    [
        ({}, None, 4),
        ({"max_iter": 10}, 2, 2),  # it returns True
        (
            {
                "likelihood": Gaussian("per_feature"),
                "early_stopping": True,
                "n_iter_no_change": 1,
                "tol": 1e9,
            },
            None,
            2,  # training stops by itself
        ),
        ({"warm_start": True, "max_iter": 3}, None, 3),
    ],
    ids=["all", "stopped", "patience", "warm start"],
)
def test_a_callback_sees_every_epoch_begin_and_end(X, quick, params, stop_after, n_epochs):
    recorder, vae = Recorder(stop_after=stop_after), quick(**params)
    n_before = vae.fit(X).n_iter_ if vae.warm_start else 0
    vae.set_callbacks(recorder).fit(X)
    assert recorder.events == ["setup", "begin fit", *epochs(n_epochs), "end fit", "teardown"]
    assert vae.n_iter_ == n_before + n_epochs
    assert all(len(values) == vae.n_iter_ for values in vae.history_.values())
    if not vae.early_stopping:
        assert recorder.scores[-1] == vae.score(X)


def test_the_model_of_an_epoch_is_the_one_that_training_ends_with_there(X, quick):
    recorder = Recorder()
    vae = quick(learning_rate_schedule="constant", max_iter=3).set_callbacks(recorder).fit(X)
    expected = [clone(vae).set_callbacks().set_params(max_iter=n).fit(X) for n in (1, 2, 3)]
    assert recorder.scores == [shorter.score(X) for shorter in expected]


def test_a_callback_changes_nothing(X, quick):
    vae = quick(early_stopping=True).fit(X)
    watched = quick(early_stopping=True).set_callbacks(Recorder()).fit(X)
    assert vars(watched).keys() - vars(vae).keys() == {"_skl_callbacks"}
    for name, array in vae.state_.items():
        np.testing.assert_array_equal(array, watched.state_[name])


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("error_at", ["begin", "end"])
def test_an_exception_in_a_callback_leaves_the_estimator_as_it_was(X, quick, fitted, error_at):
    recorder = Recorder(error=RuntimeError("of the callback"), error_at=error_at)
    vae = quick()
    if fitted:
        vae.fit(X)
    vae.set_callbacks(recorder)
    before = dict(vars(vae))
    with pytest.raises(RuntimeError, match="of the callback"):
        vae.fit(X + 1)
    assert recorder.events[-1] == "teardown"
    assert vars(vae).keys() == before.keys()
    assert all(value is before[name] for name, value in vars(vae).items())
    with pytest.raises(RuntimeError, match="of the callback"):
        vae.fit(X)  # nothing of the first try is in the way


@pytest.mark.parametrize(("error_at", "n_complete"), [("begin", 2), ("end", 3)])
def test_ctrl_c_within_a_callback_keeps_the_last_complete_epoch(X, quick, error_at, n_complete):
    recorder = Recorder(error=KeyboardInterrupt(), error_at=error_at)
    vae = quick(learning_rate_schedule="constant", max_iter=10)
    vae.set_params(likelihood=Gaussian("per_feature"))  # nothing waits for its share of max_iter
    expected = clone(vae).set_params(max_iter=n_complete).fit(X)
    with pytest.warns(UserWarning, match="Training interrupted: the weights of epoch"):
        vae.set_callbacks(recorder).fit(X)
    assert vae.n_iter_ == n_complete
    assert recorder.events[-1] == "teardown"
    np.testing.assert_array_equal(vae.score_samples(X), expected.score_samples(X))


def test_a_callback_may_use_torch_and_fit_models_of_its_own(X, quick):
    class Nested(Recorder):
        def on_fit_task_end(self, estimator, context, *, X=None, fitted_estimator=None):
            self.scores.append(quick(max_iter=2).fit(X).score(X))
            if fitted_estimator is not None:
                module = fitted_estimator.to_module()
                module.decode(module.encode(torch.tensor(X))[0]).sum().backward()

    import torch

    nested = Nested()
    vae = quick().set_callbacks(nested).fit(X)
    assert set(nested.scores) == {quick(max_iter=2).fit(X).score(X)}
    assert vae.score(X) == quick().fit(X).score(X)


def test_what_was_fitted_can_be_saved_without_its_callbacks(X, quick):
    vae = quick().set_callbacks(Recorder()).fit(X)
    assert "_skl_callbacks" not in vars(vae.set_callbacks())


# --- those of scikit-learn ----------------------------------------------------------------


def logged(monitor):
    """Scores of the epochs in a monitor's log, by the path of their fit."""
    scores = {}
    for row in monitor.get_logs().data:
        if row["task_name"] == "epoch":
            scores.setdefault(row["parent_task_id_path"], []).append(row["elbo"])
    return scores


def test_the_scoring_monitor_works_in_a_pipeline(X, quick):
    monitor, recorder = callback.ScoringMonitor(scoring={"elbo": elbo}), Recorder()
    vae = quick().set_callbacks(monitor, recorder)
    pipe = make_pipeline(StandardScaler(), vae).fit(X)
    (scores,) = logged(monitor).values()
    assert scores == recorder.scores
    assert len(scores) == 4
    assert scores[-1] == pipe.score(X)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_the_scoring_monitor_works_through_a_search(X, quick, n_jobs):
    monitor = callback.ScoringMonitor(scoring={"elbo": elbo})
    vae = quick(max_iter=3).set_callbacks(monitor)
    search = GridSearchCV(vae, {"beta": [0.5, 4]}, cv=2, n_jobs=n_jobs)
    with joblib.parallel_config("loky"):
        search.fit(X)
    fits = logged(monitor)
    assert len(fits) == 2 * 2 + 1  # and the refit
    assert all(len(scores) == 3 for scores in fits.values())
    finals = {scores[-1] for scores in fits.values()}
    assert search.best_estimator_.score(X) in finals
    for beta in (0.5, 4):
        for rows in (X[30:], X[:30]):
            assert quick(max_iter=3, beta=beta).fit(rows).score(rows) in finals


@pytest.fixture
def progress_bar():
    pytest.importorskip("rich")
    return callback.ProgressBar(max_propagation_depth=None)


def test_the_progress_bar_works_in_a_pipeline(X, quick, progress_bar, capsys):
    make_pipeline(StandardScaler(), quick()).set_callbacks(progress_bar).fit(X)
    out, _ = capsys.readouterr()
    assert "Pipeline" in out
    assert "VAETransformer" in out
    assert "100%" in out


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_the_progress_bar_works_through_a_search(X, quick, progress_bar, capsys, n_jobs):
    search = GridSearchCV(quick(), {"beta": [0.5, 4]}, cv=2, n_jobs=n_jobs)
    with joblib.parallel_config("loky"):
        search.set_callbacks(progress_bar).fit(X)
    out, _ = capsys.readouterr()
    assert "GridSearchCV" in out
    assert out.count("VAETransformer") >= 5
    plain = GridSearchCV(quick(), {"beta": [0.5, 4]}, cv=2).fit(X)
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"]
    )


# --- before scikit-learn 1.9 --------------------------------------------------------------

WITHOUT_CALLBACKS = """
import sys
import numpy as np
import sklearn.base, sklearn.impute, sklearn.model_selection, sklearn.pipeline
sys.modules["sklearn.callback"] = None  # importing it raises ImportError from here on
from skvae import VAETransformer

rng = np.random.default_rng(0)
X = rng.normal(size=(60, 1)) + 0.5 * rng.normal(size=(60, 4))  # a factor in common
vae = VAETransformer(2, hidden_layer_sizes=(8,), max_iter=4, random_state=0).fit(X)
assert not hasattr(vae, "set_callbacks")
assert not hasattr(vae, "_init_callback_context")
print(vae.n_iter_, vae.score(X).hex())
"""


def test_without_callbacks_in_scikit_learn_fit_works_and_has_none(quick):
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_CALLBACKS],
        cwd=pathlib.Path(skvae.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 1)) + 0.5 * rng.normal(size=(60, 4))
    score = quick(early_stopping="auto").fit(X).score(X)
    assert finished.stdout.split() == ["4", score.hex()]
