"""What several test files share: a small table, a quick estimator, the ELBO in numpy."""

import os
import random
import re
import signal
import threading
import warnings

import joblib
import numpy as np
import pytest
import sklearn
import torch
from threadpoolctl import threadpool_limits

from skvae import VAETransformer

pytest.register_assert_rewrite("likelihood_laws", "prior_laws", "posterior_laws", "network_laws")

# A shell lets what runs in the background ignore Ctrl-C, of which some tests are.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Apple's device has no float64, and torch finds it in virtual machines, where it cannot be used.
torch.backends.mps.is_available = lambda: False


@pytest.fixture
def X():
    """60 rows of 4 correlated columns, off centre and of several scales, float64."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4)) * [1, 2, 0.5, 4] + [3, -1, 0, 9]


@pytest.fixture
def quick():
    """Make estimators that fit `X` in milliseconds and keep no rows back."""

    def make(**params):
        small = {"n_components": 2, "hidden_layer_sizes": (8,), "max_iter": 4}
        return VAETransformer(**small | {"early_stopping": False, "random_state": 0} | params)

    return make


@pytest.fixture
def numpy_elbo():
    """ELBO of each row of a Gaussian model with one noise, without the code of the score.

    Only what a user sees is used: `encode`, `inverse_transform`, `noise_variance_` and the
    textbook's formula. The expectation over q(z|x) is exact for a linear decoder, which
    passes through E[x|0] and E[x|e_j]; else the mean over `n_draws` draws of each row's own.
    """

    def elbo(vae, X, n_draws=None, columns=slice(None)):
        mean, std = (moment.astype(np.float64) for moment in vae.encode(X))
        X = np.asarray(X, dtype=np.float64)[:, columns]
        variance = np.broadcast_to(vae.noise_variance_, vae.n_features_in_)[columns]

        def decode(z):
            rows = vae.inverse_transform(z.reshape(-1, z.shape[-1])).astype(np.float64)
            return rows.reshape(*z.shape[:-1], -1)[..., columns]

        if n_draws is None:
            origin = decode(np.zeros((1, mean.shape[1])))
            slopes = decode(np.eye(mean.shape[1])) - origin
            square = (X - decode(mean)) ** 2 + std**2 @ slopes**2
        else:
            eps = np.random.default_rng(0).normal(size=(n_draws, *mean.shape))
            square = ((X - decode(mean + std * eps)) ** 2).mean(axis=0)
        log_likelihood = -0.5 * (square / variance + np.log(2 * np.pi * variance)).sum(axis=1)
        kl = (0.5 * (mean**2 + std**2 - 1) - np.log(std)).sum(axis=1)
        return log_likelihood - kl

    return elbo


@pytest.fixture
def threads_of_products():
    """What gives the number of threads of matrix products: MKL, where there is one, has its own."""

    def count():
        of_mkl = re.search(r"mkl_get_max_threads\(\) : (\d+)", torch.__config__.parallel_info())
        return torch.get_num_threads() if of_mkl is None else int(of_mkl[1])

    return count


@pytest.fixture
def global_state(threads_of_products):
    """What gives all that a library could change behind the back of its caller."""

    def state():
        return {
            "numpy": joblib.hash(np.random.get_state()),
            "torch": torch.get_rng_state().tolist(),
            "random": random.getstate(),
            "threads": torch.get_num_threads(),
            "threads of products": threads_of_products(),
            "interop threads": torch.get_num_interop_threads(),
            "dtype": torch.get_default_dtype(),
            "device": str(torch.get_default_device()),
            "grad": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "precision": torch.get_float32_matmul_precision(),
            "environment": dict(os.environ),
            "filters": list(warnings.filters),
            "errors": np.geterr(),
            "sklearn": sklearn.get_config(),
            "ctrl-c": signal.getsignal(signal.SIGINT),
            "live threads": threading.enumerate(),
        }

    return state


@pytest.fixture
def two_threads():
    """Two threads of torch, however many this run was given."""
    torch.get_num_threads()  # at its first use in a thread torch sets the number itself
    with threadpool_limits(2, user_api="openmp"):
        assert torch.get_num_threads() == 2
        yield
