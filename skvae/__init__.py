"""A variational autoencoder that behaves like scikit-learn's PCA."""

import importlib
from types import ModuleType

from skvae import inspection, metrics
from skvae._callbacks import Checkpoint
from skvae._imputer import VAEImputer
from skvae._pipeline import sample
from skvae._search import VAEGridSearchCV
from skvae._vae import VAETransformer

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "VAEGridSearchCV",
    "VAEImputer",
    "VAETransformer",
    "__version__",
    "inspection",
    "metrics",
    "sample",
]

# Modules that need packages of their own, and are imported when they are first asked for.
_LATE = ("onnx", "safetensors")


def __getattr__(name: str) -> ModuleType:
    """The module of `_LATE` called `name`."""
    if name in _LATE:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """All names, those of `_LATE` too."""
    return sorted({*globals(), *_LATE})
