"""scikit-learn's callbacks around a fit: none before scikit-learn 1.9."""

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
