"""A variational autoencoder that behaves like scikit-learn's PCA."""

from skvae._vae import VAETransformer, sample

__version__ = "0.1.0"

__all__ = ["VAETransformer", "__version__", "sample"]
