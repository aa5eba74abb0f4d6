"""What ends in a `VAETransformer`: a Pipeline or a fitted search, used as one model."""

from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from skvae._vae import VAETransformer


def sample(estimator, n_samples=1, random_state=None, *, mean=False):
    """Draw new rows from a fitted VAETransformer, or from what ends in one.

    A Pipeline forwards no `sample`: this draws from its last step and inverts the earlier
    ones, so that the rows come back in the units of the Pipeline's input.

    Parameters
    ----------
    estimator : VAETransformer, Pipeline or fitted search
        A search, such as GridSearchCV, stands for its `best_estimator_`.
    n_samples : int, default=1
        Number of rows.
    random_state : int, RandomState instance or None, default=None
        Decides the draws; None uses numpy's global generator.
    mean : bool, default=False
        If True, return E[x|z] of the drawn z, without observation noise.

    Returns
    -------
    X : ndarray or DataFrame of shape (n_samples, n_features)
        New rows.

    Raises
    ------
    TypeError
        If `estimator` doesn't end in a VAETransformer, or an earlier step has no inverse.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import RobustScaler
    >>> import skvae
    >>> X = load_iris().data
    >>> pipe = make_pipeline(RobustScaler(), skvae.VAETransformer(max_iter=5, random_state=0))
    >>> skvae.sample(pipe.fit(X), 3, random_state=0).shape
    (3, 4)
    """
    estimator = getattr(estimator, "best_estimator_", estimator)
    if isinstance(estimator, VAETransformer):
        return estimator.sample(n_samples, random_state, mean=mean)
    if not isinstance(estimator, Pipeline):
        raise TypeError(
            "sample expects a VAETransformer, a Pipeline that ends in one or a fitted search "
            f"over either. Got {estimator!r}."
        )
    for name, step in estimator.steps[:-1]:
        if not _has_inverse(step):
            raise TypeError(
                f"Step {name!r} of the Pipeline has no inverse_transform, so samples cannot "
                "be brought to the units of its input. Draw them in those of the last step "
                "with estimator[-1].sample(...)."
            )
    X = sample(estimator[-1], n_samples, random_state, mean=mean)
    return estimator[:-1].inverse_transform(X) if len(estimator) > 1 else X


def _has_inverse(step):
    if isinstance(step, FunctionTransformer):  # its inverse is the identity by default
        return step.func is None or step.inverse_func is not None
    return step in ("passthrough", None) or hasattr(step, "inverse_transform")
