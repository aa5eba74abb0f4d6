"""A variational autoencoder that behaves like scikit-learn's PCA."""

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
