"""A fitted model: it reads rows, maps functions over blocks of them, and writes rows.

It joins the parts that a fit leaves: the architecture and the arrays of the model, and the schema
of the columns. The estimator, its metrics, the imputer and the displays all use it.
"""

import copy
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from sklearn import get_config
from sklearn.utils import check_random_state
from torch import nn

from skvae._backend import blocks, devices, quadrature, team
from skvae._backend.tensors import Array, can_share, to_array, to_tensor
from skvae._backend.warn import warn
from skvae._data import arrays, containers
from skvae._data.schema import Schema
from skvae._data.units import restore
from skvae._inference.unseen import Blocks
from skvae._model.architecture import Architecture
from skvae._model.state import (
    from_state,
    log_jacobian,
    log_scales,
    n_weights,
    observation,
    units_of,
)
from skvae._model.vae import VAE, State
from skvae._typing import RandomState
from skvae.likelihoods import Likelihood

# ``noise(n)`` draws n standard normals for each row and component of a block.
Noise = Callable[[int], torch.Tensor]


class FittedModel:
    """The result of a fit, and the functions of rows that use it.

    Parameters
    ----------
    architecture : dict
        The architecture of the model, in plain values: see `Architecture.to_dict`.
    state : dict of str to ndarray
        Weights and units. Arrays may be changed in place, or replaced.
    schema : Schema
        The columns of X.
    seen : dict or None
        Facts about the rows of `fit`: how many had a value in each column, and the relative
        difference up to which values are one constant. It is None for a model of an older version,
        which did not save this.
    knows_holes : bool or None
        Whether the encoder was trained on missing values. It is None for a model of an older
        version, which did not save this; the encoder was trained on them if it has inputs for them.
    device : str
        The device to compute on.
    """

    def __init__(
        self,
        architecture: Mapping[str, Any],
        state: State,
        schema: Schema,
        *,
        seen: Mapping[str, Any] | None,
        knows_holes: bool | None,
        device: str,
    ) -> None:
        self._values, self.state, self.schema = architecture, state, schema
        self.seen, self._knows_holes, self.device = seen, knows_holes, device
        self._architecture: Architecture | None = None
        # The arrays of the last call, and the model that was made of them.
        self._kept: tuple[list[Array], VAE] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # These two are made anew when they are needed.
        return {**vars(self), "_kept": None, "_architecture": None}

    def on(self, device: str) -> "FittedModel":
        """Return the same model, computed on another device."""
        if device == self.device:
            return self
        other = copy.copy(self)
        other.device, other._kept = device, None
        return other

    @property
    def architecture(self) -> Architecture:
        """Sizes and parts of the model."""
        if self._architecture is None:
            self._architecture = Architecture.of(self._values)
        return self._architecture

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood of the columns."""
        return self.architecture.likelihood

    @property
    def n_components(self) -> int:
        """Number of latent features."""
        return self._values["n_components"]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the model's values."""
        return self.state["varies"].dtype

    @property
    def dtype_out(self) -> str:
        """The dtype of latent rows."""
        return self.schema.dtype_out

    @property
    def knows_holes(self) -> bool:
        """Whether the encoder was trained on missing values."""
        return self._values["missing"] if self._knows_holes is None else self._knows_holes

    @property
    def log_jacobian(self) -> float:
        """log p(y) - log p(x) in nats: y is a row in the model's units."""
        return log_jacobian(self.state)

    @property
    def log_scales(self) -> Array:
        """The share of each feature in `log_jacobian`, (n_features,)."""
        return log_scales(self.state)

    @property
    def likelihood_module(self) -> nn.Module:
        """The module of the likelihood, with its learned values, without the rest of the model."""
        return observation(self.architecture, self.state)

    def to_module(self) -> VAE:
        """Make a new model, on the CPU, that shares nothing with others."""
        return from_state(self.architecture, self.state)

    # --- rows in and out ---

    def read(self, X: Any, *, accept_far: bool = False) -> Any:
        """Return X as numbers; each block checks later whether the likelihood supports them."""
        X = containers.to_validate(X, getattr(self.architecture.network, "image_shape", None))
        data = self.schema.read(X, self.likelihood, accept_far=accept_far)
        if not self.knows_holes:
            n_values = np.ones(data.shape[1]) if self.seen is None else self.seen["n_values"]
            self.warn_of_holes(arrays.count_incomplete(data, n_values == 0), data.shape[0])
        return data

    def warn_of_holes(self, n_incomplete: int, n_rows: int) -> None:
        """Warn of rows with missing values if the encoder was not trained on such rows."""
        if not n_incomplete:
            return
        warn(
            f"X has missing values in {n_incomplete} of {n_rows} rows, but the model was fitted "
            "to rows without any: its encoder takes each for the mean of its column. Latent "
            "features, scores and imputations of these rows are poor. Fit on rows of which some "
            "have missing values, or use VAEImputer, which hides values while it trains."
        )

    def blocks(self, data: Any, *, accept_far: bool = False, row_of: Array | None = None) -> Blocks:
        """Return the function that gives a model a block of rows of `data`, in the model's units.

        If `data` is a part of the user's rows, `row_of` has the number of each row there.
        """
        return Blocks(
            data,
            self.likelihood,
            units_of(self.state),
            self.seen,
            self.schema.labels,
            accept_far=accept_far,
            row_of=row_of,
        )

    def restore(self, model: VAE, y: torch.Tensor, *, drawn: bool = False) -> Array:
        """Turn rows y of the model, a tensor, into numbers in the columns and units of X."""
        X = restore(to_array(y), self.state["location"], self.state["scale"])
        return model.likelihood.give_back(X, drawn=drawn)

    # --- functions of blocks ---

    def module(self, device: torch.device) -> VAE:
        """Return the model, whose weights all calls share.

        It is kept for the next call if its tensors can share the memory of the arrays, and if there
        is no user's module, which could change them.
        """
        arrays_now = list(self.state.values())
        before, model = self._kept or ([], None)
        is_same = len(before) == len(arrays_now) and all(map(operator.is_, before, arrays_now))
        if model is not None and is_same:
            model.limit = float(self.state["bound"])  # a number, which is not shared
            return model
        shares = device.type == "cpu" and not self.architecture.is_foreign
        with devices.computing(device):
            model = from_state(self.architecture, self.state, device, shares=shares)
        # A copy of an array that may be written to would not change with it.
        if shares and not any(a.flags.writeable and not can_share(a) for a in arrays_now):
            self._kept = arrays_now, model
        return model

    def score_noise(self, n_draws: int | str) -> Array:
        """Return the fixed noise of the score, (n_draws', 1, n_components)."""
        noise = quadrature.score_noise(n_draws, self.n_components)
        return noise[:, None, :].astype(self.dtype)

    def map_rows(
        self,
        function: Callable[[VAE, slice], Iterable[Array]],
        *outputs: Array,
        n_draws: int = 1,
        whole_blocks: bool = False,
    ) -> None:
        """Fill `outputs` with `function(model, rows)`, block by block of rows.

        The number of threads is that of torch, or as many as fit into scikit-learn's working
        memory. With `whole_blocks`, a block has the same length for one row as for many. Functions
        need this if they draw noise for a block, or sum over as many draws at once as there is room
        for.
        """
        device = devices.device_or_cpu(self.device)
        model = self.module(device)
        # The elementwise work of a draw costs as much as 16 products per feature.
        n_products = n_draws * (n_weights(self.state) + 16 * self.schema.n_columns)
        n_rows = blocks.block_rows(n_products, model.width)
        parts = self.architecture
        rounds_alike = parts.posterior.factorises and not parts.is_foreign
        if rounds_alike and not whole_blocks:
            n_rows = min(n_rows, blocks.round_up(len(outputs[0])))
        n_at_once = min(n_draws, blocks.draws_at_once(n_rows, model.width))
        # About eight arrays of a layer's size exist at a time.
        n_bytes = 8 * n_rows * n_at_once * model.width * self.dtype.itemsize
        n_threads = 1 if len(outputs[0]) <= n_rows else team.n_threads(device)
        n_threads = min(n_threads, int(get_config()["working_memory"] * 2**20 // n_bytes))
        blocks.map_rows(
            lambda rows: function(model, rows),
            outputs,
            n_rows,
            device,
            max(1, n_threads),
        )

    def map_noise(
        self,
        function: Callable[[VAE, slice, Noise], Iterable[Array]],
        random_state: RandomState,
        *outputs: Array,
        n_draws: int = 1,
    ) -> None:
        """Do as `map_rows`; `function` also gets ``noise(n)``, which draws (n, rows, n_components).

        Each call of ``noise`` gives new draws.
        """
        seed = int(check_random_state(random_state).randint(np.iinfo(np.int32).max))

        def call(model: VAE, rows: slice) -> Iterable[Array]:
            # Each block has its own generator, so its noise depends on no other block or thread.
            rng = np.random.default_rng([seed, rows.start])
            shape = rows.stop - rows.start, self.n_components

            def noise(n: int) -> torch.Tensor:
                return to_tensor(rng.standard_normal((n, *shape), self.dtype), model.varies.device)

            return function(model, rows, noise)

        self.map_rows(call, *outputs, n_draws=n_draws, whole_blocks=True)
