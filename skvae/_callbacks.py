"""Callbacks of scikit-learn, which scikit-learn has from version 1.9 on."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from numbers import Integral
from pathlib import Path
from typing import Any

import joblib
from sklearn.base import clone
from sklearn.utils import check_scalar

from skvae import _typing
from skvae._backend import files

try:
    from sklearn.callback import CallbackSupportMixin as CallbackSupportMixin
except ImportError:  # scikit-learn < 1.9 has no callbacks

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """No callbacks."""


class Callbacks:
    """The calls of scikit-learn's callbacks around a fit and its epochs.

    They do nothing before scikit-learn 1.9. A callback that scores needs y: the target of an
    autoencoder is X.
    """

    def __init__(self, estimator: Any, X: Any, y: Any, sample_weight: Any) -> None:
        self.data = {"estimator": estimator, "X": X, "y": X if y is None else y}
        if sample_weight is not None:
            self.data["metadata"] = {"sample_weight": sample_weight}
        # A callback gets a copy of the estimator, where an earlier fit may have left names.
        self.stale = {"feature_names_in_": None} if hasattr(estimator, "feature_names_in_") else {}
        self.task = None
        if hasattr(estimator, "_init_callback_context"):
            self.task = estimator._init_callback_context(max_subtasks=estimator.max_iter)
            self.task.call_on_fit_task_begin(**self.data)

    def begin_epoch(self) -> None:
        if self.task is not None:
            self.epoch = self.task.subcontext(task_name="epoch")
            self.epoch.call_on_fit_task_begin(**self.data)

    def end_epoch(self, fitted: Callable[[], dict[str, Any]]) -> bool:
        """Return whether a callback asks to stop; `fitted` gives the attributes that it needs."""
        return self.task is not None and self.epoch.call_on_fit_task_end(
            **self.data, reconstruction_attributes=lambda: {**self.stale, **fitted()}
        )

    def end(self, attributes: dict[str, Any]) -> None:
        if self.task is not None:
            attributes = {**self.stale, **attributes}
            self.task.call_on_fit_task_end(**self.data, reconstruction_attributes=attributes)


# --- a search -----------------------------------------------------------------------------

# Callbacks are not safe in threads, and the stacks of a search run in threads.
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def task(
    search: Any,
    parent: Any,
    name: str,
    task_id: int | None = None,
    *,
    n_subtasks: int = 0,
    in_order: bool = True,
) -> Iterator[Any]:
    """Run a task within a parent task, and yield it; without a parent, yield None."""
    if parent is None:
        yield None
        return
    with _one_at_a_time:
        begun = parent.subcontext(name, task_id, n_subtasks, in_order)
        begun.call_on_fit_task_begin(estimator=search)
    yield begun
    with _one_at_a_time:
        begun.call_on_fit_task_end(estimator=search)


@contextlib.contextmanager
def watch_stack(
    search: Any, training: Any, number: int, n_epochs: int
) -> Iterator[Callable[[], bool]]:
    """Run the task of a stack, and yield the function to call after each of its epochs.

    The function returns True if a callback asks to stop.
    """
    with task(search, training, "stack", number, n_subtasks=n_epochs) as stack:

        def end_epoch() -> bool:
            if stack is None:
                return False
            with _one_at_a_time:
                epoch = stack.subcontext("epoch").call_on_fit_task_begin(estimator=search)
                return bool(epoch.call_on_fit_task_end(estimator=search))

        yield end_epoch


# --- a callback ---------------------------------------------------------------------------


class Checkpoint:
    """Callback that saves a model while it is fitted, so that a crash loses some epochs at most.

    For `VAETransformer.set_callbacks`, with scikit-learn 1.9 or later. The file is written under
    another name and then takes its place, so that it is whole whenever it is there. It is a
    joblib file; the model that it holds has no callbacks.

    Parameters
    ----------
    path : str or path-like
        The file. One for each fit: the models of a search would overwrite each other's.
    every : int, default=1
        Epochs from one time to the next. The end of the fit is saved in any case.

    Raises
    ------
    TypeError, FileNotFoundError, ValueError
        In `fit`, before it begins: if the estimator is no VAETransformer, if there is no such
        folder, or if it has no ``warm_start=True``, without which a fit can't go on.

    Notes
    -----
    After a crash, ``joblib.load(path).fit(X)`` goes on after the last epoch that was saved, up to
    the same `max_iter`, and ends with the model that one uninterrupted fit ends with: on a CPU, to
    the last bit. Once the fit has ended, the file holds what it ended with: a further `fit` trains
    that anew, as after any fit.

    Examples
    --------
    >>> import os, tempfile
    >>> import joblib
    >>> from sklearn.datasets import load_iris
    >>> from skvae import Checkpoint, VAETransformer
    >>> X = load_iris().data
    >>> vae = VAETransformer(2, max_iter=4, warm_start=True, random_state=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "vae.joblib")
    ...     vae = vae.set_callbacks(Checkpoint(path, every=2)).fit(X)
    ...     joblib.load(path).n_iter_
    4
    """

    # A name for pickles and links that survives when files move.
    __module__ = "skvae"

    def __init__(self, path: _typing.Path, *, every: int = 1) -> None:
        self.path: Path = Path(path).absolute()
        self.every: int = check_scalar(every, "every", Integral, min_val=1)

    def setup(self, estimator: Any, context: Any) -> None:
        """Check, before anything is trained, that the fit can go on.

        Parameters
        ----------
        estimator : VAETransformer
            The estimator that is being fitted.
        context : sklearn.callback.CallbackContext
            The task of the fit that the call belongs to.
        """
        if not hasattr(estimator, "_progress"):
            raise TypeError(
                f"Checkpoint is for a VAETransformer. Got a {type(estimator).__name__}: set it on "
                "the VAETransformer within, and for one fit at a time."
            )
        if not os.access(self.path.parent, os.W_OK):
            raise FileNotFoundError(
                f"{self.path.parent} is no folder that can be written to. Make it first."
            )
        if not estimator.warm_start:
            raise ValueError(
                "Checkpoint saves what a fit needs to go on, which is kept with warm_start=True "
                "only. Got warm_start=False."
            )

    def teardown(self, estimator: Any, context: Any) -> None:
        """Do nothing, since no file is open.

        Parameters
        ----------
        estimator : VAETransformer
            The estimator that is being fitted.
        context : sklearn.callback.CallbackContext
            The task of the fit that the call belongs to.
        """

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        """Do nothing, since there is no model to save yet.

        Parameters
        ----------
        estimator : VAETransformer
            The estimator that is being fitted.
        context : sklearn.callback.CallbackContext
            The task of the fit that the call belongs to.
        """

    def on_fit_task_end(self, estimator: Any, context: Any, *, fitted_estimator: Any) -> None:
        """Save the model, at the end of an epoch or of the fit.

        Parameters
        ----------
        estimator : VAETransformer
            The estimator that is being fitted.
        context : sklearn.callback.CallbackContext
            The task of the fit that the call belongs to.
        fitted_estimator : VAETransformer
            The model that the fit would end with if it ended here.
        """
        if context.task_name == "epoch" and (context.task_id + 1) % self.every:
            return
        saved = clone(estimator).set_callbacks()
        for name, value in vars(fitted_estimator).items():
            if name not in vars(saved) and "callback" not in name:
                setattr(saved, name, value)
        with files.replacing(self.path) as file:
            joblib.dump(saved, file)
