"""ONNX: encoder and decoder of a fitted model as graphs that other runtimes compute.

A graph takes and returns numbers in the units of X. As in `transform`, it subtracts the location
and divides by the scale in float64, so that a column of 1.7e9 +- 1e3 keeps its digits. The rest is
in the precision of the model. A missing value is NaN. Every graph has the operators that replace
missing values, which change nothing if there are none.

torch's exporter follows the Python code of the model and writes down its operators, for any
network. `register` puts the same graph into the graph that skl2onnx makes of a Pipeline.
"""

import contextlib
import importlib
import logging
import threading
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skvae._backend import files
from skvae._backend.tensors import Array
from skvae._model.rows import Batch
from skvae._model.vae import VAE
from skvae._typing import Path
from skvae._vae import VAETransformer

__all__ = ["export", "register"]

# Version of the operators. torch's exporter writes it without conversion since torch 2.6.
OPSET = 18

# All threads share the filters of warnings and of loggers.
_borrowing = threading.Lock()


def export(
    vae: VAETransformer, file: Path, part: Literal["encoder", "decoder"] = "encoder"
) -> None:
    """Write the encoder or the decoder of a fitted model as an ONNX file.

    The encoder takes "X" and returns "Z", as `transform` does. The decoder takes "Z" and returns
    "X", as `inverse_transform` does. Both take any number of rows, in the units of X. The dtype is
    that of the estimator's results: float32 if the X of `fit` was float32, otherwise float64. The
    numbers are the same up to rounding. Missing values are NaN.

    Parameters
    ----------
    vae : VAETransformer
        A fitted model with any likelihood, posterior and network, but without categories.
    file : str or path-like
        Path of the file. An existing file is replaced when the new one is complete.
    part : {"encoder", "decoder"}, default="encoder"
        "encoder" maps (n_samples, n_features) to (n_samples, n_components), "decoder" maps back.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the model is not fitted.
    ImportError
        If a package of the extra `onnx` is not installed.
    TypeError
        If `vae` is not a VAETransformer.
    ValueError
        If `part` is neither, if columns are categories, which are not numbers, or if torch cannot
        export a network of callables.

    See Also
    --------
    register : For whole Pipelines.

    Notes
    -----
    Operators are those of opset 18. Needs the packages of ``pip install "skvae[onnx]"``.

    A graph raises no errors. It computes some number even for values for which `transform` raises
    an error, such as a negative count or infinity. For a column of whole numbers
    in a table the decoder returns expected values, while `inverse_transform` rounds them. With
    ``precision="float64"`` the operators are in float64, and a runtime may lack some of them:
    onnxruntime 1.31 has no "gelu" and no convolutions.

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
            f"export expects a VAETransformer. Got a {type(vae).__name__}: for a search pass its "
            "best_estimator_, for a Pipeline call skvae.onnx.register() and skl2onnx.to_onnx."
        )
    check_is_fitted(vae)
    model = _graph(vae, part, getattr(torch, vae._fitted.dtype_out))
    with files.replacing(file) as opened:
        opened.write(model.SerializeToString(deterministic=True))


def register() -> None:
    """Teach skl2onnx to convert a VAETransformer, alone or in a Pipeline.

    ``skl2onnx.to_onnx`` then exports a fitted Pipeline with a VAETransformer in it as a whole. Each
    such step becomes the graph of its encoder, as `export` makes it. One call in a process is
    enough; further calls change nothing.

    Raises
    ------
    ImportError
        If a package of the extra `onnx` is not installed.

    See Also
    --------
    export : One model, without skl2onnx.

    Notes
    -----
    Needs a `target_opset` of at least 18, as the default of skl2onnx is. Results have the dtype of
    the input of the step, float32 or float64. The step cannot restore digits that an earlier step
    loses: pass `to_onnx` rows of float64 if columns have values such as 1.7e9 +- 1e3.

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


def _need(name: str) -> Any:
    """Import a package of the extra."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"skvae.onnx needs the package {name}, which is not installed: "
            'pip install "skvae[onnx]".'
        ) from error


# --- graphs -------------------------------------------------------------------------------


class _Encoder(nn.Module):
    """Map rows of X, (n, D), to posterior means (n, L), as `transform` does."""

    varies: torch.Tensor
    unit: torch.Tensor

    def __init__(self, model: VAE, columns: Array) -> None:
        super().__init__()
        self.model, self.columns = model, columns
        varies = model.scale > 0
        self.register_buffer("varies", varies)
        self.register_buffer("unit", torch.where(varies, model.scale, 1.0))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the posterior means."""
        x = _take(rows.double(), self.columns)
        # A column that was constant in `fit` becomes 0 for any value, even NaN.
        y = torch.where(self.varies, (x - self.model.location) / self.unit, 0.0)
        return self.model.encode_mean(Batch(y.to(self.model.varies.dtype))).to(rows.dtype)


class _Decoder(nn.Module):
    """Map latent rows, (n, L), to expected rows (n, D), as `inverse_transform` does."""

    def __init__(self, model: VAE, columns: Array) -> None:
        super().__init__()
        self.model, self.index = model, np.argsort(columns)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the expected rows."""
        y = self.model.decode_mean(rows.to(self.model.varies.dtype))
        x = self.model.location + self.model.scale * y.double()
        return _take(x, self.index).to(rows.dtype)


def _take(x: torch.Tensor, index: Array) -> torch.Tensor:
    """Return the columns of x at `index`; x itself if that changes nothing."""
    return x if (np.diff(index) == 1).all() else x[:, index.tolist()]


# The module of each part, and the names of its input and its output.
PARTS: dict[str, tuple[type[_Encoder] | type[_Decoder], str, str]] = {
    "encoder": (_Encoder, "X", "Z"),
    "decoder": (_Decoder, "Z", "X"),
}


def _graph(vae: VAETransformer, part: str, dtype: torch.dtype) -> Any:
    """Make the ONNX model of a part of a fitted model, with input and output of this dtype."""
    schema = vae._fitted.schema
    if schema.categories:
        columns = ", ".join(map(str, sorted(schema.categories)))
        raise ValueError(
            f"An ONNX graph takes numbers only. Got a model with categories in columns {columns}. "
            "Fit on numbers, such as those of a OneHotEncoder with Bernoulli(), or save the model "
            "with joblib.dump."
        )
    _need("onnx")
    _need("onnxscript")
    make, name_in, name_out = PARTS[part]
    with _tracing():
        model: Any = vae.to_module()
        columns = model.likelihood.columns_of(vae.n_features_in_)
        module = make(model, columns).eval()
        n_columns = vae.n_features_in_ if part == "encoder" else vae._fitted.n_components
        rows = torch.zeros(3, n_columns, dtype=dtype, device="cpu")
        label = f"{part} of network={model.network!r}"
        written = _write(_trace(module, rows, label), name_in, name_out, label)
    return _anonymous(written)


def _trace(module: nn.Module, rows: torch.Tensor, label: str) -> torch.export.ExportedProgram:
    """Follow the module's Python code for any number of rows; `label` names it in errors."""
    n_rows = torch.export.Dim("n_samples", min=1)
    try:
        return torch.export.export(module, (rows,), dynamic_shapes=({0: n_rows},), strict=False)
    except Exception as error:  # a user's module may raise anything
        raise ValueError(
            f"torch cannot export the {label}. Got {_reason(error)} A forward must consist of "
            "torch's operations, and must depend neither on values nor on the number of rows: "
            "change it, or save the model with joblib.dump."
        ) from error


def _write(program: Any, name_in: str, name_out: str, label: str) -> Any:
    """Write the operators of a traced module as an ONNX model."""
    try:
        written: Any = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[name_in],
            output_names=[name_out],
        )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(
            f"torch has no operators of ONNX for the {label}. Got {_reason(error)} Use other "
            "operations, or save the model with joblib.dump."
        ) from error
    return written.model_proto


def _reason(error: BaseException) -> str:
    """Return the first line of the error at the start of a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line}"


def _anonymous(model: Any) -> Any:
    """Remove torch's notes on the code, which contain paths, and its own symbols."""
    graph = model.graph
    for proto in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        proto.ClearField("metadata_props")
    graph.ClearField("value_info")
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n_samples"
    return model


@contextlib.contextmanager
def _tracing() -> Iterator[None]:
    """Set the modes that torch's exporter needs, and silence its own messages."""
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
        # torch 2.13 uses a class that it has deprecated itself.
        warnings.filterwarnings(
            "ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning
        )
        # torch logs that torchvision is not installed, which is not needed here.
        log.addFilter(_is_relevant)
        stack.callback(log.removeFilter, _is_relevant)
        yield


def _is_relevant(record: logging.LogRecord) -> bool:
    return "torchvision is not installed" not in record.getMessage()


# --- skl2onnx -----------------------------------------------------------------------------


def _set_output_type(operator: Any) -> None:
    """Set the shape and type of a step's output: the rows of its input, float32 or float64."""
    types = importlib.import_module("skl2onnx.common.data_types")
    (first, *_) = operator.inputs
    double = isinstance(first.type, types.DoubleTensorType)
    make = types.DoubleTensorType if double else types.FloatTensorType
    shape = [first.get_first_dimension(), operator.raw_operator._n_features_out]
    operator.outputs[0].type = make(shape)


def _convert(scope: Any, operator: Any, container: Any) -> None:
    """Add the encoder's graph, with casts from and to the dtypes of the neighbouring steps."""
    onnx = _need("onnx")
    types = importlib.import_module("skl2onnx.common.data_types")
    double, single = onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT
    prefix = scope.get_unique_variable_name("vae") + "_"
    model = _graph(operator.raw_operator, "encoder", torch.float64)
    graph = onnx.compose.add_prefix(model, prefix).graph

    def node(*args: Any, **attributes: Any) -> Any:
        return onnx.helper.make_node(*args, name=f"{prefix}{args[2][0]}_node", **attributes)

    # The step may have one input for each column.
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
