"""scikit-learn's own checks: those for everybody, and those it keeps for its estimators."""

import unittest

import pytest
from sklearn.base import clone
from sklearn.utils import estimator_checks
from sklearn.utils._testing import ignore_warnings
from sklearn.utils.estimator_checks import parametrize_with_checks

from skvae import VAETransformer
from skvae.likelihoods import Gaussian

# Bernoulli is not among them: the checks' data are not within [0, 1].
QUICK = [
    VAETransformer(max_iter=5),
    VAETransformer(likelihood="auto", hidden_layer_sizes=(), max_iter=5),
    VAETransformer(likelihood=Gaussian("shared"), early_stopping=False, max_iter=5),
]

FURTHER = [
    "check_param_validation",
    "check_set_output_transform",
    "check_set_output_transform_pandas",
    "check_global_output_transform_pandas",
    "check_set_output_transform_polars",
    "check_global_set_output_transform_polars",
    "check_dataframe_column_names_consistency",
    "check_transformer_get_feature_names_out",
    "check_transformer_get_feature_names_out_pandas",
    "check_get_feature_names_out_error",
    "check_inplace_ensure_writeable",
    "check_estimators_partial_fit_n_features",
]


# Rows that are there twice are drawn into batches, and held out, one by one: a row of weight 2 is
# not. What is left of it, the units and the loss of the same rows, test_sample_weight.py holds.
NO_REPETITION = {
    f"check_sample_weight_equivalence_on_{kind}_data": (
        "sample_weight is not equivalent to repeating rows: their batches differ."
    )
    for kind in ("dense", "sparse")
}


def skip_array_api_alone(check, *args):
    """Run a check that must not be skipped, except for that of arrays of other libraries."""
    try:
        check(*args)
    except unittest.SkipTest:
        assert "array_api" in str(check)
        raise


@pytest.mark.filterwarnings("ignore:.* whole numbers of fewer than 20:UserWarning")
@parametrize_with_checks(QUICK, expected_failed_checks=lambda estimator: NO_REPETITION)
def test_common_check_passes(estimator, check):
    skip_array_api_alone(check, estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* whole numbers of fewer than 20:UserWarning")
@parametrize_with_checks([VAETransformer()], expected_failed_checks=lambda estimator: NO_REPETITION)
def test_common_check_of_the_defaults_passes(estimator, check):
    skip_array_api_alone(check, estimator)


@pytest.mark.parametrize("check", FURTHER)
@pytest.mark.parametrize(
    "estimator", [*QUICK[:2], pytest.param(VAETransformer(), marks=pytest.mark.slow)], ids=str
)
def test_check_that_scikit_learn_runs_on_its_own_estimators_passes(estimator, check):
    check = getattr(estimator_checks, check)
    # As scikit-learn's own tests do: its polars checks fit on names and transform without.
    with ignore_warnings(category=UserWarning):
        skip_array_api_alone(check, "VAETransformer", clone(estimator))


def test_no_check_is_switched_off_by_a_tag():
    tags = VAETransformer().__sklearn_tags__()
    assert not tags.non_deterministic
    assert not tags.no_validation
    assert not tags._skip_test
    assert tags.transformer_tags.preserves_dtype == ["float64", "float32"]
