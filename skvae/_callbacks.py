"""scikit-learn's callbacks around a fit: none before scikit-learn 1.9."""

from numbers import Integral

import joblib
from sklearn.base import clone
from sklearn.utils import check_scalar

from skvae import _files

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # scikit-learn < 1.9 has no callbacks

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """No callbacks."""


class Callbacks:
    """scikit-learn's callbacks around a fit and its epochs; does nothing before 1.9.

    A callback that scores needs y: the target of an autoencoder is X.
    """

    def __init__(self, estimator, X, y, sample_weight):
        self.data = {"estimator": estimator, "X": X, "y": X if y is None else y}
        if sample_weight is not None:
            self.data["metadata"] = {"sample_weight": sample_weight}
        # A callback gets a copy of the estimator, where an earlier fit may have left names.
        self.stale = {"feature_names_in_": None} if hasattr(estimator, "feature_names_in_") else {}
        self.task = None
        if hasattr(estimator, "_init_callback_context"):
            self.task = estimator._init_callback_context(max_subtasks=estimator.max_iter)
            self.task.call_on_fit_task_begin(**self.data)

    def begin_epoch(self):
        if self.task is not None:
            self.epoch = self.task.subcontext(task_name="epoch")
            self.epoch.call_on_fit_task_begin(**self.data)

    def end_epoch(self, fitted):
        """True if a callback asks to stop; `fitted` makes the attributes if one needs them."""
        return self.task is not None and self.epoch.call_on_fit_task_end(
            **self.data, reconstruction_attributes=lambda: {**self.stale, **fitted()}
        )

    def end(self, attributes):
        if self.task is not None:
            attributes = {**self.stale, **attributes}
            self.task.call_on_fit_task_end(**self.data, reconstruction_attributes=attributes)


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
    ValueError
        In `fit`, if the estimator has no ``warm_start=True``, without which a fit can't go on.

    Notes
    -----
    After a crash, ``joblib.load(path).fit(X)`` goes on after the last epoch that was saved, up to
    the same `max_iter`, and ends with the model that one uninterrupted fit ends with: on a CPU, to
    the last bit.

    Examples
    --------
    >>> import joblib
    >>> from sklearn.datasets import load_iris
    >>> from skvae import Checkpoint, VAETransformer
    >>> X = load_iris().data
    >>> vae = VAETransformer(2, max_iter=4, warm_start=True, random_state=0)
    >>> vae = vae.set_callbacks(Checkpoint("vae.joblib", every=2)).fit(X)  # doctest: +SKIP
    >>> joblib.load("vae.joblib").n_iter_  # doctest: +SKIP
    4
    """

    # A name for pickles and links that survives when files move.
    __module__ = "skvae"

    def __init__(self, path, *, every=1):
        self.path, self.every = path, check_scalar(every, "every", Integral, min_val=1)

    def setup(self, estimator, context):
        """Check, before anything is trained, that the fit can go on."""
        if not getattr(estimator, "warm_start", True):
            raise ValueError(
                "Checkpoint saves what a fit needs to go on, which is kept with warm_start=True "
                "only. Got warm_start=False."
            )

    def teardown(self, estimator, context):
        """Nothing is left to do."""

    def on_fit_task_begin(self, estimator, context):
        """Nothing has been learned yet."""

    def on_fit_task_end(self, estimator, context, *, fitted_estimator):
        """Save the model, at the end of an epoch or of the fit."""
        if context.task_name == "epoch" and (context.task_id + 1) % self.every:
            return
        saved = clone(estimator).set_callbacks()
        for name, value in vars(fitted_estimator).items():
            if name not in vars(saved) and "callback" not in name:
                setattr(saved, name, value)
        with _files.replacing(self.path) as file:
            joblib.dump(saved, file)
