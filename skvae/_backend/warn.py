"""Warn at the line of the user's code that called the package."""

import sys
import warnings

# A warning names the line that called one of these. scikit-learn calls skvae in a Pipeline.
INSIDE = ("skvae", "sklearn", "joblib", "contextlib")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning that names the nearest line outside of skvae and scikit-learn."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
