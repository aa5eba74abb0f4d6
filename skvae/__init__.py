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

# Modules that need further packages. Each is imported at its first use.
_LATE = ("onnx", "safetensors")


def __getattr__(name: str) -> ModuleType:
    """Import the module of `_LATE` with this name."""
    if name in _LATE:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return all names, with the modules of `_LATE`."""
    return sorted({*globals(), *_LATE})
