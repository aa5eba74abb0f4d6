"""Pipelines and fitted searches that end in a `VAETransformer`, used as one model."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from skvae._typing import Estimator, RandomState
from skvae._vae import VAETransformer


def sample(
    estimator: Estimator,
    n_samples: int = 1,
    random_state: RandomState = None,
    *,
    mean: bool = False,
) -> Any:
    """Draw new rows from a fitted VAETransformer, or a Pipeline or search that ends in one.

    A Pipeline has no `sample`. This function draws from its last step and inverts the earlier
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
    before, vae = split(estimator, "sample expects")
    _check_invertible(before)
    return invert(before, vae.sample(n_samples, random_state, mean=mean))


def _check_invertible(before: Iterable[tuple[str, Any]]) -> None:
    """Raise an error if one of these steps has no inverse."""
    for name, step in before:
        if not has_inverse(step):
            raise TypeError(
                f"Step {name!r} of the Pipeline has no inverse, so samples cannot "
                "be brought to the units of its input. Draw them in those of the last step "
                "with estimator[-1].sample(...)."
            )


def split(estimator: Any, who: str) -> tuple[list[Any], Any]:
    """Return the steps before the last, with their names, and the VAETransformer at the end.

    The steps of a Pipeline within the Pipeline are steps like others. Steps that only pass rows on
    are left out. `who` begins the message of the TypeError for any other estimator.
    """
    estimator = getattr(estimator, "best_estimator_", estimator)
    before: list[Any] = []
    while isinstance(estimator, Pipeline):
        before += _flatten(estimator.steps[:-1])
        estimator = estimator.steps[-1][1]
    if not isinstance(estimator, VAETransformer):
        raise TypeError(
            f"{who} a VAETransformer, a Pipeline that ends in one or a search over either that "
            f"was fitted, with refit=True. Got {estimator!r}."
        )
    return before, estimator


def _flatten(steps: Iterable[Any]) -> Iterator[Any]:
    for name, step in steps:
        if isinstance(step, Pipeline):
            yield from _flatten(step.steps)
        elif step is not None and not isinstance(step, str):  # "passthrough"
            yield name, step


def transform(before: Sequence[Any], X: Any) -> Any:
    """Return X transformed by these steps."""
    for _, step in before:
        X = step.transform(X)
    return X


def invert(before: Sequence[Any], X: Any) -> Any:
    """Return rows X in the units before these steps."""
    for _, step in reversed(before):
        X = step.inverse_transform(X)
    return X


def has_inverse(step: Any) -> bool:
    """Return whether a step of a Pipeline can be inverted."""
    if isinstance(step, FunctionTransformer):  # its inverse is the identity by default
        return step.func is None or step.inverse_func is not None
    # The inverse of SimpleImputer needs exact zeros in its indicator columns. A model gives none.
    return hasattr(step, "inverse_transform") and not isinstance(step, SimpleImputer)
