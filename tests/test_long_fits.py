"""Fits that take long: stopped and gone on with, block by block, saved on the way."""

import copy
import os
import signal
import subprocess
import sys

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn import config_context
from sklearn.datasets import load_wine
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import Checkpoint, VAETransformer
from skvae._backend import files
from skvae._fit.job import in_parts
from skvae._fit.preparation import prepare
from skvae.likelihoods import Categorical, Columns, Gaussian
from skvae.networks import Conv
from skvae.priors import Vamp

# --- stopped, and gone on with ----------------------------------------------------------------


class Stop:
    """Ends a fit after some epochs."""

    def __init__(self, n_epochs, error=None):
        pytest.importorskip("sklearn.callback")
        self.n_epochs, self.error = n_epochs, error

    def setup(self, estimator, context): ...

    def teardown(self, estimator, context): ...

    def on_fit_task_begin(self, estimator, context): ...

    def on_fit_task_end(self, estimator, context):
        if context.task_name != "epoch" or context.task_id + 1 != self.n_epochs:
            return False
        if self.error is not None:
            raise self.error
        return True


@pytest.fixture(scope="module")
def wine():
    return load_wine().data


def model(**params):
    params = {"hidden_layer_sizes": (16,), "max_iter": 6, "random_state": 0} | params
    return VAETransformer(3, warm_start=True, device="cpu", **params)


def assert_same_fit(left, right):
    assert left.n_iter_ == right.n_iter_
    for attribute in ("state_", "history_"):
        one, other = getattr(left, attribute), getattr(right, attribute)
        assert one.keys() == other.keys()
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name], err_msg=name)


WAYS = {
    "defaults": {},
    "warm-up and cycles": {"beta_warmup": 0.5, "n_beta_cycles": 2},
    "no rows held out": {"early_stopping": False},
    "patience": {"n_iter_no_change": 2, "max_iter": 12, "learning_rate": 0.1},
    "linear, where factor analysis is to be beaten": {"hidden_layer_sizes": ()},
    "rates that differ": {"weight_decay": 0.01, "max_grad_norm": 1.0},
    "float64": {"precision": "float64"},
    "importance": {"n_importance_samples": 3},
    "variances that are held back": {"likelihood": "student_t"},
    "another prior": {"prior": Vamp(4)},
    "a generator as seed": {"random_state": np.random.RandomState(3)},
}


@pytest.mark.parametrize("params", WAYS.values(), ids=WAYS)
def test_a_fit_that_was_stopped_ends_as_one_that_was_not(wine, params):
    whole, part = (model(**copy.deepcopy(params)) for _ in range(2))
    whole.fit(wine)
    for n_iter in (1, 3):
        part.set_callbacks(Stop(n_iter - getattr(part, "n_iter_", 0))).fit(wine)
        assert part.n_iter_ == n_iter
    assert_same_fit(part.set_callbacks().fit(wine), whole)


def test_rows_that_are_read_in_parts_go_on_where_they_were_stopped():
    X = np.random.default_rng(0).normal(size=(900, 5))
    with config_context(working_memory=0.02):
        whole = model().fit(X)
        part = model().set_callbacks(Stop(3)).fit(X)
        assert_same_fit(copy.deepcopy(part).set_callbacks().fit(X), whole)
        assert in_parts(prepare(part, X)[0])
    with pytest.warns(UserWarning, match="not what it was: working_memory"):
        part.set_callbacks().fit(X)


def test_a_fit_after_another_goes_on_where_it_was_stopped(wine):
    whole, part = model().fit(wine), model().fit(wine)
    whole.set_params(learning_rate=1e-3).fit(wine)
    part.set_params(learning_rate=1e-3).set_callbacks(Stop(2)).fit(wine)
    assert part.n_iter_ == 8
    part.set_callbacks().fit(wine)
    assert_same_fit(part, whole)
    assert part.n_iter_ == 12


@pytest.mark.parametrize(
    "change",
    [{"learning_rate": 1e-4}, {"max_iter": 7}, {"beta": 2.0}, {"precision": "float64"}],
    ids=str,
)
def test_with_other_numbers_a_stopped_fit_begins_anew_from_its_weights(wine, change):
    part = model(early_stopping=False).set_callbacks(Stop(3)).fit(wine)
    part.set_callbacks().set_params(**change)
    (name,) = change
    with pytest.warns(UserWarning, match=f"stopped after 3 of 6 epochs does not go on, .*{name}"):
        part.fit(wine)
    assert part.n_iter_ == 3 + part.max_iter


WEIGHT = np.arange(1.0, 179.0)
# Rows and weights of a fit that goes on, and of the fit before it.
CHANGES = {
    "units": ((lambda X: X * 100, None), None),
    "columns": ((lambda X: np.roll(X, 1, axis=1), None), None),
    "order": ((lambda X: X[::-1], None), None),
    "dtype": ((lambda X: X.astype(np.float32), None), None),
    "number": ((lambda X: X[:-1], None), None),
    "weights": ((np.copy, WEIGHT), None),
    "no weights": ((np.copy, None), WEIGHT),
}


@pytest.mark.filterwarnings("ignore:X leaves the units")
@pytest.mark.parametrize(("now", "weight_before"), CHANGES.values(), ids=CHANGES)
def test_on_other_rows_a_stopped_fit_begins_anew(wine, now, weight_before):
    part = model(early_stopping=False).set_callbacks(Stop(3))
    part.fit(wine, sample_weight=weight_before).set_callbacks()
    change, weight = now
    with pytest.warns(UserWarning, match="something is not what it was: rows"):
        part.fit(change(wine), sample_weight=weight)
    assert part.n_iter_ == 9


def test_a_fit_that_is_stopped_where_it_converges_has_ended(wine):
    numbers = {"n_iter_no_change": 2, "max_iter": 40, "learning_rate": 0.1}
    whole = model(**numbers).fit(wine)
    assert whole.n_iter_ < 40
    part = model(**numbers).set_callbacks(Stop(whole.n_iter_)).fit(wine)
    assert_same_fit(part, whole)
    assert part._progress is None


def test_a_fit_that_ended_keeps_no_optimiser_nor_one_without_warm_start(wine):
    assert model().fit(wine)._progress is None
    assert model().set_callbacks(Stop(6)).fit(wine)._progress is None
    cold = model().set_params(warm_start=False).set_callbacks(Stop(3)).fit(wine)
    assert cold._progress is None
    assert model().set_callbacks(Stop(3)).fit(wine)._progress is not None


# --- in another process -------------------------------------------------------------------

GO_ON = """
import sys, joblib
from sklearn.datasets import load_wine
vae = joblib.load(sys.argv[1])
joblib.dump(vae.fit(load_wine().data), sys.argv[2])
"""


@pytest.mark.slow
def test_a_stopped_fit_goes_on_from_a_file_in_another_process(wine, tmp_path):
    part = model().set_callbacks(Stop(3)).fit(wine).set_callbacks()
    joblib.dump(part, tmp_path / "part.joblib")
    files = [str(tmp_path / name) for name in ("part.joblib", "whole.joblib")]
    subprocess.run([sys.executable, "-c", GO_ON, *files], check=True, timeout=100)
    assert_same_fit(joblib.load(files[1]), model().fit(wine))


# --- checkpoints --------------------------------------------------------------------------


def test_a_checkpoint_holds_the_latest_epoch_and_then_the_end(wine, tmp_path):
    path = tmp_path / "vae.joblib"
    crash = Stop(5, RuntimeError("crash"))
    with pytest.raises(RuntimeError, match="crash"):
        model().set_callbacks(Checkpoint(path, every=2), crash).fit(wine)
    saved = joblib.load(path)
    assert saved.n_iter_ == 4
    assert "_skl_callbacks" not in vars(saved)
    whole = model().fit(wine)
    assert_same_fit(saved.set_callbacks(Checkpoint(path)).fit(wine), whole)
    assert_same_fit(joblib.load(path), whole)
    assert os.listdir(tmp_path) == ["vae.joblib"]


def test_a_checkpoint_needs_a_warm_start(wine, tmp_path):
    pytest.importorskip("sklearn.callback")
    vae = model().set_params(warm_start=False)
    with pytest.raises(ValueError, match="Got warm_start=False"):
        vae.set_callbacks(Checkpoint(tmp_path / "vae.joblib")).fit(wine)
    assert os.listdir(tmp_path) == []


def ends(early):
    """Numbers of a fit whose best epoch is not its last, by patience or not."""
    return (
        {"n_iter_no_change": 3, "max_iter": 40, "learning_rate": 0.1}
        if early
        else {"learning_rate": 0.3}
    )


@pytest.mark.parametrize("early", [False, True])
def test_a_checkpoint_of_the_last_epoch_ends_as_the_fit_would_have(wine, tmp_path, early):
    path, whole = tmp_path / "vae.joblib", model(**ends(early)).fit(wine)
    crash = Stop(whole.n_iter_, RuntimeError("crash"))
    with pytest.raises(RuntimeError, match="crash"):
        model(**ends(early)).set_callbacks(Checkpoint(path), crash).fit(wine)
    saved = joblib.load(path)
    assert saved.n_iter_ == whole.n_iter_
    assert_same_fit(saved.fit(wine), whole)


def test_a_checkpoint_is_refused_where_it_can_save_nothing(wine, tmp_path):
    pytest.importorskip("sklearn.callback")
    pipe = make_pipeline(StandardScaler(), model())
    with pytest.raises(TypeError, match="Got a Pipeline: set it on the VAETransformer within"):
        pipe.set_callbacks(Checkpoint(tmp_path / "vae.joblib")).fit(wine)
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        model().set_callbacks(Checkpoint(tmp_path / "nowhere" / "vae.joblib")).fit(wine)


@pytest.mark.parametrize(("every", "error"), [(0, ValueError), (1.5, TypeError)])
def test_a_checkpoint_is_every_so_many_epochs(every, error):
    with pytest.raises(error, match="every"):
        Checkpoint("vae.joblib", every=every)


KILLED = """
import os, signal, sys
from sklearn.datasets import load_wine
from skvae import Checkpoint, VAETransformer

class Kill:
    def setup(self, estimator, context): ...
    def teardown(self, estimator, context): ...
    def on_fit_task_begin(self, estimator, context): ...
    def on_fit_task_end(self, estimator, context):
        if context.task_name == "epoch" and context.task_id == 3:
            os.kill(os.getpid(), signal.SIGKILL)

vae = VAETransformer(3, hidden_layer_sizes=(16,), max_iter=6, random_state=0, warm_start=True,
                     device="cpu")
vae.set_callbacks(Checkpoint(sys.argv[1]), Kill()).fit(load_wine().data)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_fit_whose_process_is_killed_goes_on_from_its_checkpoint(wine, tmp_path):
    pytest.importorskip("sklearn.callback")
    path = tmp_path / "vae.joblib"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path)], timeout=100)
    assert ended.returncode == -signal.SIGKILL
    saved = joblib.load(path)
    assert saved.n_iter_ == 4
    assert_same_fit(saved.fit(wine), model().fit(wine))


# --- files that are whole or absent -------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("where", [None, "fsync", "replace"])
def test_a_file_that_could_not_be_written_is_as_it_was(tmp_path, monkeypatch, where, error):
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def fail(*args):
        assert len(os.listdir(tmp_path)) == 2  # the new one is beside it
        raise error

    def write():
        with files.replacing(path) as file:
            file.write(b"half")
            if where is None:
                fail()

    with monkeypatch.context() as patch:
        if where is not None:
            patch.setattr(os, where, fail)
        with pytest.raises(error):
            write()
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no such mode")
def test_a_file_keeps_its_mode_and_nothing_else_is_replaced(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    path.chmod(0o600)
    with files.replacing(path) as file:
        file.write(b"after")
    assert path.stat().st_mode & 0o777 == 0o600

    def replace_folder():
        with files.replacing(tmp_path):
            pass

    with pytest.raises(OSError, match="is no file"):
        replace_folder()


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_file_takes_its_place_where_a_link_points(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"before")
    link.symlink_to(path)
    with files.replacing(link) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
    assert link.is_symlink()
    assert path.read_bytes() == b"after"


# --- block by block -----------------------------------------------------------------------


def blocks(X, n=4):
    return [X[i::n] for i in range(n)]


@pytest.mark.slow
def test_partial_fits_learn_as_the_optimiser_goes_on(wine):
    vae = model(learning_rate=0.01)
    for _ in range(40):
        for block in blocks(wine):
            vae.partial_fit(block)
    assert vae.n_iter_ == 160
    assert vae.history_["loss"].shape == (160,)
    fitted = model(learning_rate=0.01, max_iter=40, early_stopping=False).fit(wine)
    # As many steps on the same rows, at a constant rate: a nat is a tenth of what is learned.
    assert vae.score(wine) > fitted.score(wine) - 1
    assert vae.history_["loss"][-1] < vae.history_["loss"][0] - 5


def test_partial_fits_of_one_block_are_epochs_of_a_fit_at_a_constant_rate(wine):
    # With a hole, since the encoder of a partial fit has inputs for such in any case.
    numbers = {"early_stopping": False, "learning_rate_schedule": "constant"}
    X = wine.copy()
    X[3, 3] = np.nan
    vae = model(likelihood=Gaussian("per_feature"))
    for _ in range(6):
        vae.partial_fit(X)
    whole = model(likelihood=Gaussian("per_feature"), **numbers).fit(X)
    assert_same_fit(vae, whole)


def test_the_first_block_decides_the_units(wine):
    vae = model().partial_fit(wine[:60])
    location, scale = vae.state_["location"], vae.state_["scale"]
    with pytest.warns(UserWarning, match="X leaves the units of the model"):
        vae.partial_fit(10 * wine + 3)
    np.testing.assert_array_equal(vae.state_["location"], location)
    np.testing.assert_array_equal(vae.state_["scale"], scale)
    np.testing.assert_allclose(location, wine[:60].mean(axis=0), rtol=1e-12)


def test_a_rate_may_be_set_between_partial_fits(wine):
    vae = model().partial_fit(wine)
    before = {name: values.copy() for name, values in vae.state_.items()}
    vae.set_params(learning_rate=1e-30).partial_fit(wine)
    for name, values in before.items():
        np.testing.assert_allclose(vae.state_[name], values, rtol=0, atol=1e-25)


def test_a_partial_fit_goes_on_after_a_fit_and_a_fit_after_a_partial_fit(wine):
    vae = model().fit(wine).partial_fit(wine)
    assert vae.n_iter_ == 7
    assert np.isnan(vae.history_["validation_loss"][-1])
    assert vae.fit(wine).n_iter_ == 13
    assert vae.set_params(warm_start=False).fit(wine).n_iter_ == 6
    assert_same_fit(vae, model().fit(wine))


def test_a_partial_fit_weighs_its_rows(wine):
    weight = np.r_[np.ones(100), np.zeros(78)]
    assert_same_fit(
        model().partial_fit(wine, sample_weight=weight), model().partial_fit(wine[:100])
    )


def test_the_first_block_decides_what_comes_back(wine):
    names = [f"c{i}" for i in range(13)]
    vae = model().partial_fit(pd.DataFrame(wine, columns=names))
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        vae.partial_fit(wine.astype(np.float32))
    assert list(vae.sample(2, 0).columns) == names
    assert vae.transform(pd.DataFrame(wine, columns=names)).dtype == np.float64


@pytest.mark.parametrize("spoil", ["columns", "holes", "rate", "infinity"])
def test_a_partial_fit_that_fails_leaves_the_estimator_as_it_was(wine, spoil):
    vae, X = model(), wine.copy()
    vae = vae.fit(wine) if spoil == "holes" else vae.partial_fit(wine)
    message = {
        "columns": "X has 12 features, but VAETransformer is expecting 13",
        "holes": "with rows of which some have missing values, or by partial_fit from the first",
        "rate": "The loss was not finite in epoch 1, at learning rate 1e[+]30",
        "infinity": "infinity",
    }[spoil]
    if spoil == "columns":
        X = X[:, 1:]
    elif spoil == "holes":
        X[3, 3] = np.nan
    elif spoil == "infinity":
        X[3, 3] = np.inf
    else:
        vae.set_params(learning_rate=1e30)
    before = joblib.hash(vars(vae))
    with pytest.raises(ValueError, match=message):
        vae.partial_fit(X)
    assert joblib.hash(vars(vae)) == before


def test_categories_are_those_of_the_first_block():
    rng = np.random.default_rng(0)
    X = np.c_[rng.normal(size=(40, 2)), rng.choice(["a", "b"], 40)].astype(object)
    X[:, :2] = X[:, :2].astype(float)
    vae = model(
        likelihood=Columns([(Gaussian(), [0, 1]), (Categorical(handle_unknown="error"), [2])])
    )
    vae.partial_fit(X[:20]).partial_fit(X[20:])
    assert vae.n_iter_ == 2
    X[3, 2] = "c"
    with pytest.raises(ValueError, match="category 'c' in column 2, which was not in"):
        vae.partial_fit(X)


def test_later_blocks_may_have_holes_though_the_first_had_none(wine):
    rng = np.random.default_rng(0)
    vae = model(learning_rate=0.01).set_params(n_components=2).partial_fit(wine)
    for _ in range(30):
        holes = np.where(rng.random(wine.shape) < 0.3, np.nan, wine)
        holes[: len(holes) // 2] = wine[: len(holes) // 2]
        vae.partial_fit(holes)
    holes = wine.copy()
    holes[:, 9] = np.nan
    # The encoder has learned what to do without: nearly what it does with.
    correlation = np.corrcoef(vae.transform(holes).T, vae.transform(wine).T)[:2, 2:]
    assert correlation.diagonal().min() > 0.8


def test_a_column_may_be_missing_from_a_whole_block(wine):
    X = wine.copy()
    X[:, 4] = np.nan
    vae = model().partial_fit(wine).partial_fit(X)
    assert vae.n_iter_ == 2


@pytest.mark.parametrize("likelihood", ["gaussian", "auto"])
def test_a_first_block_without_a_value_in_a_column_is_refused(wine, likelihood):
    first = pd.DataFrame(wine).rename(columns=str)
    first["4"] = np.nan
    if likelihood == "auto":  # categories that are announced need a row, too
        first["4"] = pd.Series([None] * len(wine), dtype=pd.CategoricalDtype(["a", "b"]))
    vae = model(likelihood=likelihood)
    what = r"X has no value in column 4 \('4'\): .* first block .* Begin with rows that have values"
    with pytest.raises(ValueError, match=what):
        vae.partial_fit(first)
    assert not hasattr(vae, "state_")


def test_values_in_a_column_that_had_none_in_fit_are_told_where_the_fit_goes_on(wine):
    X = wine.copy()
    X[:, 4] = np.nan
    vae = model(max_iter=2)
    with pytest.warns(UserWarning, match="X has no value in column 4"):
        vae.fit(X)
    vae.fit(X)  # no warning: the column is still empty
    X[:, 4] = 1.0  # one value in all rows, too
    with pytest.warns(UserWarning, match=r"had none .*: column 4\. The model learns nothing"):
        vae.fit(X)
    with pytest.warns(UserWarning, match=r"had none .*: column 4\. The model learns nothing"):
        vae.partial_fit(wine)
    assert np.isnan(vae.sample(5, 0)[:, 4]).all()


def test_a_stream_without_holes_so_far_says_that_its_encoder_knows_none(wine):
    holes = wine.copy()
    holes[::2, 3] = np.nan
    vae = model().partial_fit(wine)
    with pytest.warns(UserWarning, match="X has missing values in 89 of 178 rows"):
        vae.transform(holes)
    vae.partial_fit(holes).partial_fit(wine).transform(holes)  # no warning


@pytest.mark.parametrize("announced", [True, False])
def test_later_blocks_may_have_categories_that_the_first_had_not(announced):
    rng = np.random.default_rng(0)

    def block(kinds, dtype="category"):
        kind = pd.Series(rng.choice(kinds, 60), dtype=dtype)
        return pd.DataFrame({"x": rng.normal(size=60), "kind": kind})

    vae = model(likelihood="auto")
    dtype = pd.CategoricalDtype(["a", "b", "c"] if announced else ["a", "b"])
    vae.partial_fit(block(["a", "b"], dtype))
    later = block(["a", "b", "c"])
    if announced:
        vae.partial_fit(later)
    else:
        with pytest.warns(UserWarning, match="taken as missing: 'c' in column 1 .'kind'."):
            vae.partial_fit(later)
        only_new = block(["c"])
        with pytest.warns(UserWarning, match="taken as missing: 'c'"):
            vae.partial_fit(only_new)
    assert ("c" in set(vae.sample(2000, 0)["kind"])) == announced


@pytest.mark.filterwarnings("ignore:All 3 components are inactive")
def test_a_first_block_in_other_units_is_told_and_the_remedy_mends_it(wine):
    rng = np.random.default_rng(0)
    X = wine[rng.permutation(len(wine))]
    names = [f"c{i}" for i in range(13)]
    unlike, like = model(learning_rate=0.01), model(learning_rate=0.01)
    unlike.partial_fit(pd.DataFrame(X[:50] / 1000, columns=names))
    with pytest.warns(UserWarning, match=r"column 0 \('c0'\): 13 .*, at first 0.0127 .*8 more"):
        unlike.partial_fit(pd.DataFrame(X, columns=names))
    # The remedy: a first block that is a random sample of all.
    like.partial_fit(X[:50]).partial_fit(X)
    assert like.score(X) > unlike.score(pd.DataFrame(X, columns=names)) + 100


def test_a_column_that_was_constant_in_the_first_block_is_told_and_the_remedy_mends_it(wine):
    X, Y = wine.copy(), wine.copy()
    X[:60, 5] = Y[:60, 5] = 0.5
    vae = model().partial_fit(X[:60])
    with pytest.warns(UserWarning, match="constant in the first rows .*: column 5.*learns nothing"):
        vae.partial_fit(X)
    assert (vae.sample(20, 0)[:, 5] == 0.5).all()
    sample = X[np.random.default_rng(0).permutation(len(X))[:60]]
    vae = model().partial_fit(sample).partial_fit(X)
    assert np.ptp(vae.sample(20, 0)[:, 5]) > 0


def test_a_fit_that_goes_on_says_that_its_rows_are_in_other_units(wine):
    vae = model(early_stopping=False).fit(wine)
    with pytest.warns(UserWarning, match="X leaves the units"):
        vae.fit(1000 * wine)


@pytest.mark.parametrize("likelihood", [Gaussian("shared"), "poisson", "student_t"], ids=str)
def test_blocks_like_the_first_raise_no_warning_whatever_the_units(wine, likelihood):
    X = np.round(wine * np.logspace(0, 3, 13))
    vae = model(likelihood=likelihood)
    for block in blocks(X):
        vae.partial_fit(block)
    assert vae.n_iter_ == 4
    with pytest.warns(UserWarning, match="X leaves the units"):
        vae.partial_fit(1000 * X)


def test_of_a_model_of_an_earlier_version_constant_columns_are_compared_and_no_others(wine):
    X = wine.copy()
    X[:60, 5] = 0.5
    vae = model().partial_fit(X[:60])
    del vae._first_seen, vae._has_seen_holes
    with pytest.warns(UserWarning, match="constant in the first rows") as caught:
        vae.partial_fit(10 * X)
    assert not any("leaves the units" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("network", ["mlp", Conv((1, 8, 8))], ids=str)
@pytest.mark.parametrize("prior", ["standard_normal", Vamp(3)], ids=str)
def test_every_network_and_prior_goes_on_with_holes(network, prior):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 64))
    H = np.where(rng.random(X.shape) < 0.2, np.nan, X)
    vae = model(network=network, prior=prior).partial_fit(X).partial_fit(H)
    assert np.isfinite(vae.score_samples(H)).all()
