"""ONNX: encoder and decoder of a fitted model as graphs that other runtimes compute.

A graph takes and gives numbers in the units of X. As in `transform`, the location is subtracted and
the scale divided by in float64, in the graph itself, so that a column of 1.7e9 +- 1e3 keeps its
digits; what follows is in the precision of the model. A missing value is NaN, and is always looked
for: where none is there, what stands in for it stands in for nothing.

torch's exporter follows the Python code of the model and writes down its operators, whatever
network it has. `register` puts the same graph into what skl2onnx makes of a Pipeline.
"""

import contextlib
import importlib
import logging
import threading
import warnings
from typing import Literal

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skvae._backend import files
from skvae._model.rows import Batch
from skvae._typing import Path
from skvae._vae import VAETransformer

__all__ = ["export", "register"]

# Of the operators: what torch's exporter has without converting, since torch 2.6.
OPSET = 18

# Filters of warnings and of loggers are everybody's.
_borrowing = threading.Lock()


def export(
    vae: VAETransformer, file: Path, part: Literal["encoder", "decoder"] = "encoder"
) -> None:
    """Write the encoder or the decoder of a fitted model as an ONNX file.

    The encoder takes "X" and gives "Z", as `transform` does; the decoder takes "Z" and gives "X",
    as `inverse_transform` does. Both are of any number of rows, in the units of X, and of the dtype
    that results of the estimator have: float32 where the X of `fit` was, else float64. Numbers are
    the same up to rounding. Missing values are NaN.

    Parameters
    ----------
    vae : VAETransformer
        A fitted model of any likelihood, posterior and network, unless columns are categories.
    file : str or path-like
        Where to. A file that is there is replaced when the new one is complete.
    part : {"encoder", "decoder"}, default="encoder"
        "encoder" is from (n_samples, n_features) to (n_samples, n_components), "decoder" back.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the model is not fitted.
    ImportError
        If what the extra `onnx` brings is not installed.
    TypeError
        If `vae` is no VAETransformer.
    ValueError
        If there is no such part, if columns are categories, which are no numbers, or if a network
        of callables does what torch cannot export.

    See Also
    --------
    register : For whole Pipelines.

    Notes
    -----
    Operators are those of opset 18. Needs the packages of ``pip install "skvae[onnx]"``.

    A graph raises no errors: of values that `transform` refuses, such as a negative count or
    infinity, it makes what comes of them. Of a table it gives expected values also where
    `inverse_transform` gives whole numbers back. With ``precision="float64"`` its operators are in
    float64, of which a runtime may lack some: onnxruntime 1.31 has no "gelu" and no convolutions.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> import onnxruntime
    >>> from sklearn.datasets import load_iris
    >>> import skvae.onnx
    >>> X = load_iris().data
    >>> vae = skvae.VAETransformer(2, max_iter=5, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = os.path.join(folder, "encoder.onnx")
    ...     skvae.onnx.export(vae, file)
    ...     session = onnxruntime.InferenceSession(file)
    >>> (Z,) = session.run(None, {"X": X})
    >>> np.allclose(Z, vae.transform(X), atol=1e-5)
    True
    """
    if part not in PARTS:
        raise ValueError(f"part must be 'encoder' or 'decoder'. Got {part!r}.")
    if not isinstance(vae, VAETransformer):
        raise TypeError(
            f"export expects a VAETransformer. Got a {type(vae).__name__}: of a search take its "
            "best_estimator_, for a Pipeline call skvae.onnx.register() and skl2onnx.to_onnx."
        )
    check_is_fitted(vae)
    model = _graph(vae, part, getattr(torch, vae._fitted.dtype_out))
    with files.replacing(file) as opened:
        opened.write(model.SerializeToString(deterministic=True))


def register() -> None:
    """Teach skl2onnx what to make of a VAETransformer, alone or in a Pipeline.

    ``skl2onnx.to_onnx`` then exports a fitted Pipeline with a VAETransformer in it as a whole: each
    such step is the graph of its encoder, as `export` makes it. Once in a process is enough, and
    more do no harm.

    Raises
    ------
    ImportError
        If what the extra `onnx` brings is not installed.

    See Also
    --------
    export : One model, without skl2onnx.

    Notes
    -----
    Needs a `target_opset` of at least 18, which that of skl2onnx is by itself. Results have the
    dtype of what the step is given, float32 or float64, and digits that an earlier step loses are
    lost: give `to_onnx` rows of float64 where columns are such as 1.7e9 +- 1e3.

    Examples
    --------
    >>> import onnxruntime
    >>> import numpy as np
    >>> from skl2onnx import to_onnx
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> import skvae.onnx
    >>> X = load_iris().data
    >>> vae = skvae.VAETransformer(2, max_iter=5, random_state=0)
    >>> pipe = make_pipeline(StandardScaler(), vae).fit(X)
    >>> skvae.onnx.register()
    >>> session = onnxruntime.InferenceSession(to_onnx(pipe, X[:1]).SerializeToString())
    >>> (Z,) = session.run(None, {"X": X})
    >>> np.allclose(Z, pipe.transform(X), atol=1e-5)
    True
    """
    _need("skl2onnx").update_registered_converter(
        VAETransformer, "SkvaeVAETransformer", _set_output_type, _convert
    )


def _need(name):
    """A package of the extra."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"skvae.onnx needs the package {name}, which is not installed: "
            'pip install "skvae[onnx]".'
        ) from error


# --- graphs -------------------------------------------------------------------------------


class _Encoder(nn.Module):
    """Rows of X, (n, D), to posterior means (n, L), as `transform` has them."""

    def __init__(self, model, columns):
        super().__init__()
        self.model, self.columns = model, columns
        self.register_buffer("varies", model.scale > 0)
        self.register_buffer("unit", torch.where(self.varies, model.scale, 1.0))

    def forward(self, rows):
        x = _take(rows.double(), self.columns)
        # A column that was constant in `fit` is 0, whatever comes, NaN too.
        y = torch.where(self.varies, (x - self.model.location) / self.unit, 0.0)
        return self.model.encode_mean(Batch(y.to(self.model.varies.dtype))).to(rows.dtype)


class _Decoder(nn.Module):
    """Latent rows, (n, L), to expected rows (n, D), as `inverse_transform` has them."""

    def __init__(self, model, columns):
        super().__init__()
        self.model, self.places = model, np.argsort(columns)

    def forward(self, rows):
        y = self.model.decode_mean(rows.to(self.model.varies.dtype))
        x = self.model.location + self.model.scale * y.double()
        return _take(x, self.places).to(rows.dtype)


def _take(x, places):
    """Columns of x in the order of `places`, if that is another one."""
    return x if (np.diff(places) == 1).all() else x[:, places.tolist()]


# Each with the names of its input and its output.
PARTS: dict[str, tuple[type[nn.Module], str, str]] = {
    "encoder": (_Encoder, "X", "Z"),
    "decoder": (_Decoder, "Z", "X"),
}


def _graph(vae, part, dtype):
    """The ONNX model of a part of a fitted model, from numbers of a dtype to the same."""
    schema = vae._fitted.schema
    if schema.categories:
        columns = ", ".join(map(str, sorted(schema.categories)))
        raise ValueError(
            f"The model has categories in columns {columns}, and an ONNX graph of it would take "
            "numbers only. Fit on numbers, such as those of a OneHotEncoder with Bernoulli(), or "
            "save the model with joblib.dump."
        )
    _need("onnx")
    _need("onnxscript")
    make, name_in, name_out = PARTS[part]
    with _tracing():
        model = vae.to_module()
        columns = model.likelihood.columns_of(vae.n_features_in_)
        module = make(model, columns).eval()
        n_columns = vae.n_features_in_ if part == "encoder" else vae._fitted.n_components
        rows = torch.zeros(3, n_columns, dtype=dtype, device="cpu")
        n_rows = torch.export.Dim("n_samples", min=1)
        try:
            program = torch.export.export(
                module, (rows,), dynamic_shapes=({0: n_rows},), strict=False
            )
        except Exception as error:  # of whatever a user's own module does
            raise ValueError(
                f"torch cannot export the {part} of network={model.network!r}. Got "
                f"{_reason(error)} A forward must consist of torch's operations, and neither look "
                "at values nor at the number of rows: change it, or save the model with "
                "joblib.dump."
            ) from error
        try:
            written = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[name_in],
                output_names=[name_out],
            )
        except torch.onnx.OnnxExporterError as error:
            raise ValueError(
                f"torch has no operators of ONNX for the {part} of network={model.network!r}. Got "
                f"{_reason(error)} Take other operations, or save the model with joblib.dump."
            ) from error
    return _anonymous(written.model_proto)


def _reason(error):
    """The first line of what an error came from."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line}"


def _anonymous(model):
    """The model without what torch tells of the code, with paths, and of its own symbols."""
    graph = model.graph
    for proto in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        proto.ClearField("metadata_props")
    graph.ClearField("value_info")
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n_samples"
    return model


@contextlib.contextmanager
def _tracing():
    """The modes that torch's exporter needs, and nothing of what it says of itself."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    plain = (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        warnings.catch_warnings(),
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(_borrowing)
        for mode in plain:
            stack.enter_context(mode)
        # torch 2.13 copies trees whose class it has deprecated itself.
        warnings.filterwarnings(
            "ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning
        )
        # That a package which nobody asked for is not installed.
        log.addFilter(_is_news)
        stack.callback(log.removeFilter, _is_news)
        yield


def _is_news(record):
    return "torchvision is not installed" not in record.getMessage()


# --- skl2onnx -----------------------------------------------------------------------------


def _set_output_type(operator):
    """Tell skl2onnx what a step gives: as many rows as it takes, of float32 or float64."""
    types = importlib.import_module("skl2onnx.common.data_types")
    (first, *_) = operator.inputs
    double = isinstance(first.type, types.DoubleTensorType)
    make = types.DoubleTensorType if double else types.FloatTensorType
    shape = [first.get_first_dimension(), operator.raw_operator._n_features_out]
    operator.outputs[0].type = make(shape)


def _convert(scope, operator, container):
    """Give skl2onnx the encoder's graph, from and to whatever numbers the neighbours have."""
    onnx = _need("onnx")
    types = importlib.import_module("skl2onnx.common.data_types")
    double, single = onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT
    prefix = scope.get_unique_variable_name("vae") + "_"
    model = _graph(operator.raw_operator, "encoder", torch.float64)
    graph = onnx.compose.add_prefix(model, prefix).graph

    def node(*args, **attributes):
        return onnx.helper.make_node(*args, name=f"{prefix}{args[2][0]}_node", **attributes)

    # Columns may come one by one.
    pieces = [f"{prefix}piece_{i}" for i in range(len(operator.inputs))]
    given = [variable.full_name for variable in operator.inputs]
    casts = [
        node("Cast", [name], [piece], to=double) for name, piece in zip(given, pieces, strict=True)
    ]
    whole = node("Concat", pieces, [graph.input[0].name], axis=1)
    (out,) = operator.outputs
    dtype = double if isinstance(out.type, types.DoubleTensorType) else single
    last = node("Cast", [graph.output[0].name], [out.full_name], to=dtype)
    container.nodes.extend([*casts, whole, *graph.node, last])
    container.initializers.extend(graph.initializer)
    container.node_domain_version_pair_sets.add(("", OPSET))
