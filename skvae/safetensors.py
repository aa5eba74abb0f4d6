"""Files of fitted models that run no code when they are read.

A file of safetensors has the arrays as tensors, with names such as ``state_.decoder.0.weight``, and
everything else as JSON in its metadata. Needs the extra ``skvae[safetensors]``.
"""

import dataclasses
import json
from typing import Any

import numpy as np

from skvae import likelihoods
from skvae._backend import files
from skvae._backend.tensors import Array
from skvae._typing import Path
from skvae._vae import FITTED, VAETransformer
from skvae.networks import MLP, Conv
from skvae.posteriors import Diagonal, Flow, Full
from skvae.priors import Mixture, StandardNormal, Vamp

__all__ = ["load", "save"]

# The classes that a file may build, by name.
_LIKELIHOODS = [getattr(likelihoods, name) for name in likelihoods.__all__]
_PARTS = {
    part.__name__: part
    for part in (*_LIKELIHOODS, Mixture, StandardNormal, Vamp, Diagonal, Flow, Full, MLP, Conv)
}
_PLAIN = (bool, int, float, str, type(None))
_SEALED = {"_skvae_format", "_skvae_checksum"}
# The attributes that a file may set.
_NAMES = {*VAETransformer._get_param_names(), *FITTED, *_SEALED, "_sklearn_output_config"}


def save(vae: VAETransformer, file: Path) -> None:
    """Save a model in a file that is safe to read.

    Parameters
    ----------
    vae : VAETransformer
        The model, with all of its parameters and fitted attributes.
    file : str or path-like
        Path of the file. An existing file is replaced when the new one is complete.

    Raises
    ------
    ImportError
        If safetensors is not installed.
    TypeError
        If `vae` is not a VAETransformer. Save a Pipeline, for example, with joblib or skops.
    ValueError
        If the model has a value that only code can rebuild, such as a likelihood or a network of
        your own, a random generator, a callback, or a category that is neither string nor number.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_iris
    >>> import skvae.safetensors
    >>> from skvae import VAETransformer
    >>> X = load_iris().data
    >>> vae = VAETransformer(2, max_iter=3, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = os.path.join(folder, "vae.safetensors")
    ...     skvae.safetensors.save(vae, file)
    ...     bool((skvae.safetensors.load(file).transform(X) == vae.transform(X)).all())
    True
    """
    _, to_bytes = _library()
    if type(vae) is not VAETransformer:
        raise TypeError(f"save takes a VAETransformer. Got {vae!r}: use joblib or skops for it.")
    arrays: dict[str, Array] = {}
    attributes = {name: _encode(value, name, arrays) for name, value in vae.__getstate__().items()}
    content = to_bytes(arrays, {"skvae": json.dumps(attributes)})
    with files.replacing(file) as opened:
        opened.write(content)


def load(file: Path) -> VAETransformer:
    """Load a model from a file that `save` wrote.

    Parameters
    ----------
    file : str or path-like
        Path of the file. Reading it runs no code from the file.

    Returns
    -------
    vae : VAETransformer
        The model, with the parameters and fitted attributes that were saved.

    Raises
    ------
    ImportError
        If safetensors is not installed.
    ValueError
        If the file is damaged, holds something else, or has a newer format.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_iris
    >>> import skvae.safetensors
    >>> from skvae import VAETransformer
    >>> vae = VAETransformer(2, max_iter=3, random_state=0).fit(load_iris().data)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = os.path.join(folder, "vae.safetensors")
    ...     skvae.safetensors.save(vae, file)
    ...     skvae.safetensors.load(file).n_iter_
    3
    """
    safe_open, _ = _library()
    with open(file, "rb"):  # errors of the system, such as a missing file, go to the caller
        pass
    try:
        with safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            if "skvae" not in metadata:
                raise ValueError("it holds tensors of something else")
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        attributes = json.loads(metadata["skvae"])
        strange = attributes.keys() - _NAMES
        if strange or not attributes.keys() >= _SEALED:
            raise ValueError(f"it has other attributes than a model: {sorted(strange)}")
        state = {name: _decode(value, arrays) for name, value in attributes.items()}
    except Exception as error:  # a hostile file may raise any error
        raise ValueError(
            f"{file} is damaged, or no model of this version of skvae. Got {type(error).__name__}: "
            f"{error}. Expected a file that skvae.safetensors.save wrote: save the model again."
        ) from None
    vae = VAETransformer()
    vae.__setstate__(state)
    return vae


def _library() -> tuple[Any, Any]:
    """Import the functions that open a file, and that turn arrays into bytes."""
    try:
        from safetensors import safe_open
        from safetensors.numpy import save
    except ImportError:
        raise ImportError(
            "skvae.safetensors needs safetensors: pip install 'skvae[safetensors]'."
        ) from None
    return safe_open, save


# --- values as JSON -----------------------------------------------------------------------


def _encode(value: Any, path: str, arrays: dict[str, Array]) -> Any:
    """Return a value as JSON has it; put arrays of numbers into `arrays`, by their paths."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, str):  # also a string of numpy
        return str(value)
    if type(value) in (list, tuple):
        kind = type(value).__name__
        return {kind: [_encode(v, f"{path}.{i}", arrays) for i, v in enumerate(value)]}
    if type(value) is dict:
        items = [
            [_encode(key, path, arrays), _encode(item, f"{path}.{key}", arrays)]
            for key, item in value.items()
        ]
        return {"dict": items}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        arrays[path] = value.copy(order="C")
        return {"array": path}
    if isinstance(value, np.ndarray) and value.ndim == 1:
        values = [_encode(v, f"{path}.{i}", arrays) for i, v in enumerate(value.tolist())]
        return {"objects": values}
    if isinstance(value, np.bool_ | np.number):
        return {"number": value.item(), "dtype": value.dtype.str}
    if _PARTS.get(type(value).__name__) is type(value):
        names = [field.name for field in dataclasses.fields(value)]
        values = [[n, _encode(getattr(value, n), f"{path}.{n}", arrays)] for n in names]
        return {"part": type(value).__name__, "values": values}
    raise ValueError(
        f"{path} is {value!r}, which only code can make again. Use a number or a value of skvae "
        "there, or the default, or save the model with joblib or skops."
    )


def _decode(value: Any, arrays: dict[str, Array]) -> Any:
    """Invert `_encode`."""
    if not isinstance(value, dict):
        return value
    if "list" in value:
        return [_decode(item, arrays) for item in value["list"]]
    if "tuple" in value:
        return tuple(_decode(item, arrays) for item in value["tuple"])
    if "dict" in value:
        return {_decode(k, arrays): _decode(item, arrays) for k, item in value["dict"]}
    if "array" in value:
        return arrays[value["array"]]
    if "objects" in value:
        array = np.empty(len(value["objects"]), object)
        array[:] = [_decode(item, arrays) for item in value["objects"]]
        return array
    if "number" in value:
        dtype = np.dtype(value["dtype"])
        if dtype.kind not in "biuf":
            raise ValueError(f"{dtype} is no dtype of a number")
        return dtype.type(value["number"])
    return _PARTS[value["part"]](**{name: _decode(v, arrays) for name, v in value["values"]})
