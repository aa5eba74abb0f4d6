"""ONNX: onnxruntime gives what the estimator gives."""

import functools
import logging
import os
import re
import sys
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import StandardScaler

import skvae.onnx
from skvae import VAETransformer
from skvae.likelihoods import (
    Columns,
    DiscretizedLogistic,
    Gaussian,
    NegativeBinomial,
    Poisson,
    ZeroInflated,
)
from skvae.networks import MLP, Conv
from skvae.posteriors import Flow

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
skl2onnx = pytest.importorskip("skl2onnx")

N_FIT, N_ROWS = 60, 300

# Of what varies, be it a column or a latent feature: float32 has 6e-8, and here a few dozen numbers
# are added up layer by layer, in another order than torch's.
TOLERANCE = 1e-5


def reals(dtype=np.float64):
    rng = np.random.default_rng(0)
    return (rng.normal(size=(N_ROWS, 5)) @ rng.normal(size=(5, 5)) + 3).astype(dtype)


def far():
    """A column that float32 would round to multiples of 128, and one that is constant."""
    return reals() * [1, 1e-3, 1, 1e3, 0] + [0, 0, 0, 1.7e9, 3]


def holes(X):
    return np.where(np.random.default_rng(1).random(X.shape) < 0.3, np.nan, X).astype(X.dtype)


def counts():
    return np.random.default_rng(0).poisson(np.exp(reals() / 3)).astype(float)


def images():
    return (np.random.default_rng(0).random((N_ROWS, 64)) < 0.4).astype(np.float32)


class Waves(torch.nn.Module):
    """A user's own network."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.first, self.last = torch.nn.Linear(n_in, 6), torch.nn.Linear(6, n_out)

    def forward(self, x):
        return self.last(torch.sin(self.first(x)))


class Hesitant(Waves):
    """A network that asks how many rows there are."""

    def forward(self, x):
        return super().forward(x.clone() if len(x) > 2 else x)


class Bessel(Waves):
    """A network with a function that ONNX doesn't have."""

    def forward(self, x):
        return self.last(torch.special.i0e(self.first(x)))


# Rows, the first of which are those of fit, and parameters.
MODELS = {
    "as it is": (far(), {}),
    "holes, full, residual, gelu, float32": (
        holes(reals(np.float32)),
        {
            "posterior": "full",
            "network": MLP(residual=True, layer_norm=True),
            "activation": "gelu",
        },
    ),
    "linear, in float64": (
        far(),
        {"hidden_layer_sizes": (), "likelihood": Gaussian("shared"), "precision": "float64"},
    ),
    "bernoulli, convolutions, float32": (
        images(),
        {"likelihood": "bernoulli", "network": Conv((1, 8, 8), channels=(3,))},
    ),
    "three likelihoods, holes, own networks": (
        holes(counts()),
        {
            "likelihood": Columns(
                [
                    (ZeroInflated(NegativeBinomial()), [3, 1]),
                    (Poisson(), [0]),
                    (Gaussian(), [2, 4]),
                ]
            ),
            "network": (Waves, Waves),
        },
    ),
    "levels, flow": (
        np.clip(counts(), 0, 9),
        {
            "likelihood": DiscretizedLogistic(10),
            "posterior": Flow(1, hidden_layer_sizes=(8,), n_context=2),
        },
    ),
}
# So that networks of few epochs are no constants.
LEARNING = {"learning_rate": 0.03, "max_iter": 8}


def open_session(graph):
    content = graph if isinstance(graph, bytes) else graph.SerializeToString()
    return runtime.InferenceSession(content, providers=["CPUExecutionProvider"])


def run(session, rows):
    (given,) = session.get_inputs()
    return session.run(None, {given.name: rows})[0]


def assert_near(actual, expected, scale):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    # And what rounds the result itself, which may be far from 0.
    atol = TOLERANCE * scale + 2 * np.finfo(expected.dtype).eps * np.abs(expected)
    assert (np.abs(actual.astype(float) - expected) <= atol).all()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="module", params=MODELS)
def model(request, files):
    """A fitted model, rows, and the bytes of both its parts."""
    X, params = MODELS[request.param]
    small = {"n_components": 2, "hidden_layer_sizes": (8,), "early_stopping": False}
    vae = VAETransformer(**small | LEARNING | {"random_state": 0} | params).fit(X[:N_FIT])
    parts = {}
    for part in ("encoder", "decoder"):
        skvae.onnx.export(vae, files / "part.onnx", part)
        parts[part] = (files / "part.onnx").read_bytes()
    return vae, X, parts


@pytest.fixture(scope="module")
def fitted():
    """A small model of real values, and rows."""
    X = reals()
    vae = VAETransformer(2, hidden_layer_sizes=(8,), early_stopping=False, random_state=0)
    return vae.set_params(**LEARNING).fit(X[:N_FIT]), X


@pytest.fixture
def quick_export(monkeypatch, fitted):
    """Exports of `fitted` that take no time: torch's exporter is asked once."""
    vae, _ = fitted
    monkeypatch.setattr(skvae.onnx, "_graph", lambda *args: copy_of(graph_of(vae)))


def copy_of(graph):
    return onnx.ModelProto.FromString(graph.SerializeToString())


make_graph = skvae.onnx._graph


@functools.cache
def graph_of(vae):
    return make_graph(vae, "encoder", torch.float64)


# --- the same numbers ---------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, N_ROWS])
def test_exported_encoder_gives_what_transform_gives(model, n):
    vae, X, parts = model
    Z = vae.transform(X)
    assert np.ptp(Z, axis=0).max() > 0.1  # or there is nothing to compare
    assert_near(run(open_session(parts["encoder"]), X[:n]), Z[:n], max(1, Z.std()))


@pytest.mark.parametrize("n", [1, 3, N_ROWS])
def test_exported_decoder_gives_what_inverse_transform_gives(model, n):
    vae, X, parts = model
    Z = 2 * vae.transform(X)
    expected = vae.inverse_transform(Z)
    assert np.ptp(expected, axis=0).max() > 0.1
    actual = run(open_session(parts["decoder"]), Z[:n])
    assert_near(actual, expected[:n], np.nanstd(X[:N_FIT], axis=0))


@pytest.mark.filterwarnings("ignore:X has missing values")  # fitted to complete rows
def test_missing_values_are_what_they_are_to_transform(model):
    vae, X, parts = model
    H = holes(X)
    assert np.isnan(H).any()
    Z = vae.transform(H)
    assert not np.allclose(Z, vae.transform(np.nan_to_num(X)))
    assert_near(run(open_session(parts["encoder"]), H), Z, max(1, Z.std()))


@pytest.mark.parametrize("model", ["as it is", "linear, in float64"], indirect=True)
def test_a_constant_column_is_as_in_the_estimator_whatever_comes(model):
    vae, X, parts = model
    (constant,) = np.nonzero(vae.state_["scale"] == 0)
    assert constant.tolist() == [4]
    encoder, decoder = open_session(parts["encoder"]), open_session(parts["decoder"])
    Z = run(encoder, X)
    for value in (7.0, np.nan):
        other = X.copy()
        other[:, constant] = value
        np.testing.assert_array_equal(run(encoder, other), Z)
    back = run(decoder, Z)[:, constant]
    np.testing.assert_array_equal(back, np.broadcast_to(X[:1, constant], back.shape))


# --- what is in a file --------------------------------------------------------------------


def test_graphs_are_valid_and_say_what_they_take(model):
    _, X, parts = model
    for part, (names, widths) in {
        "encoder": (["X", "Z"], [X.shape[1], 2]),
        "decoder": (["Z", "X"], [2, X.shape[1]]),
    }.items():
        graph = onnx.ModelProto.FromString(parts[part])
        onnx.checker.check_model(graph, full_check=True)
        assert [(o.domain, o.version) for o in graph.opset_import] == [("", skvae.onnx.OPSET)]
        session = open_session(parts[part])
        ends = [*session.get_inputs(), *session.get_outputs()]
        assert [end.name for end in ends] == names
        assert [end.shape for end in ends] == [["n_samples", width] for width in widths]
        dtype = "float" if X.dtype == np.float32 else "double"
        assert {end.type for end in ends} == {f"tensor({dtype})"}


def test_a_file_says_nothing_of_the_code_that_wrote_it(model):
    for content in model[2].values():
        assert b".py" not in content
        assert b"site-packages" not in content


def test_export_is_repeatable_quiet_and_moves_nothing_global(fitted, tmp_path, capfd):
    vae, _ = fitted
    log = logging.getLogger("torch.onnx._internal.exporter._registration")

    def settings():
        return (
            list(warnings.filters),
            dict(os.environ),
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),
            torch.get_default_dtype(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            (log.level, list(log.filters), log.disabled),
            os.listdir(),
        )

    capfd.readouterr()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autocast("cpu"):
            before = settings()
            skvae.onnx.export(vae, tmp_path / "encoder.onnx")
            assert settings() == before
    finally:
        torch.set_default_dtype(torch.float32)
    assert capfd.readouterr() == ("", "")
    expected = graph_of(vae).SerializeToString(deterministic=True)
    assert (tmp_path / "encoder.onnx").read_bytes() == expected


# --- Pipelines ----------------------------------------------------------------------------


@pytest.fixture
def pipe(fitted, quick_export):
    """A scaler that moves little, and a model that was fitted to the numbers before it."""
    vae, X = fitted
    skvae.onnx.register()
    skvae.onnx.register()  # more than once does no harm
    return make_pipeline(StandardScaler().fit(X[:N_FIT]), vae), X


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_pipeline_is_exported_as_a_whole(pipe, dtype):
    pipe, X = pipe
    X = X.astype(dtype)
    graph = skl2onnx.to_onnx(pipe, X[:1])
    onnx.checker.check_model(graph, full_check=True)
    session = open_session(graph)
    Z = pipe.transform(X).astype(dtype)
    for n in (1, 3, N_ROWS):
        # Of float32 rows, the scaler's own rounding comes before.
        assert_near(run(session, X[:n]), Z[:n], max(1, Z.std()))


def test_a_step_takes_columns_that_come_one_by_one(pipe):
    pipe, X = pipe
    types = [(name, skl2onnx.common.data_types.DoubleTensorType([None, 1])) for name in "abcde"]
    session = open_session(skl2onnx.to_onnx(pipe[-1], initial_types=types))
    Z = session.run(None, {name: X[:, [i]] for i, name in enumerate("abcde")})[0]
    assert_near(Z, pipe[-1].transform(X), 1)


def test_a_step_may_come_twice_and_before_others(pipe):
    pipe, X = pipe
    vae = pipe[-1]
    union = make_union(vae, vae)
    scaled = make_pipeline(union, StandardScaler().fit(union.transform(X)))
    Z = scaled.transform(X)
    assert_near(run(open_session(skl2onnx.to_onnx(scaled, X[:1])), X), Z, 1)


def test_an_opset_that_is_too_low_is_refused(pipe):
    pipe, X = pipe
    with pytest.raises(RuntimeError, match="requires at least opset 18"):
        skl2onnx.to_onnx(pipe, X[:1], target_opset=17)


# --- what cannot be -----------------------------------------------------------------------


def test_a_model_that_is_not_fitted_is_refused(quick, tmp_path):
    with pytest.raises(NotFittedError):
        skvae.onnx.export(quick(), tmp_path / "encoder.onnx")


def test_a_part_that_there_is_not_is_refused(fitted, tmp_path):
    with pytest.raises(ValueError, match=r"'encoder' or 'decoder'\. Got 'prior'"):
        skvae.onnx.export(fitted[0], tmp_path / "prior.onnx", "prior")


def test_a_pipeline_to_export_is_referred_to_skl2onnx(fitted, tmp_path):
    pipe = make_pipeline(StandardScaler(), fitted[0])
    with pytest.raises(TypeError, match=r"Got a Pipeline: .* call skvae.onnx.register\(\)"):
        skvae.onnx.export(pipe, tmp_path / "encoder.onnx")


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_categories_are_refused(quick, tmp_path, part):
    X = np.array([["a", "b"], ["c", "b"], ["a", "d"]] * 5, dtype=object)
    vae = quick(likelihood="categorical").fit(X)
    with pytest.raises(ValueError, match=r"categories in columns 0, 1.*OneHotEncoder"):
        skvae.onnx.export(vae, tmp_path / "part.onnx", part)
    assert os.listdir(tmp_path) == []


def test_a_network_that_torch_cannot_export_is_refused_with_why(X, quick, tmp_path):
    vae = quick(network=(Hesitant, Waves)).fit(X)
    with pytest.raises(ValueError, match=r"encoder of network=Own\(.*number of rows: change it"):
        skvae.onnx.export(vae, tmp_path / "encoder.onnx")
    assert os.listdir(tmp_path) == []


def test_a_function_that_onnx_does_not_have_is_refused(X, quick, tmp_path):
    vae = quick(network=(Waves, Bessel)).fit(X)
    with pytest.raises(ValueError, match=r"no operators of ONNX for the decoder.*i0e"):
        skvae.onnx.export(vae, tmp_path / "decoder.onnx", "decoder")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["onnx", "onnxscript"])
def test_export_without_the_extra_says_how_to_install_it(fitted, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"{name}.*pip install " + re.escape('"skvae[onnx]"')):
        skvae.onnx.export(fitted[0], tmp_path / "encoder.onnx")


def test_register_without_the_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(ImportError, match=r'pip install "skvae\[onnx\]"'):
        skvae.onnx.register()
