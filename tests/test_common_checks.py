"""scikit-learn's own checks: those for everybody, and those it keeps for its estimators."""

import pytest
from sklearn.base import clone
from sklearn.utils import estimator_checks
from sklearn.utils._testing import ignore_warnings
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from skvae import VAETransformer
from skvae.likelihoods import Gaussian

# Bernoulli is not among them: the checks' data are not within [0, 1].
QUICK = [
    *(
        VAETransformer(likelihood=Gaussian(noise), max_iter=5)
        for noise in ("shared", "per_feature", "per_sample", 0.5)
    ),
    VAETransformer(hidden_layer_sizes=(), max_iter=5),
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


@parametrize_with_checks([*QUICK, VAETransformer()])
def test_common_check_passes(estimator, check):
    check(estimator)


@pytest.mark.parametrize("check", FURTHER)
@pytest.mark.parametrize("estimator", [*QUICK, VAETransformer()], ids=str)
def test_check_that_scikit_learn_runs_on_its_own_estimators_passes(estimator, check):
    check = getattr(estimator_checks, check)
    # As scikit-learn's own tests do: its polars checks fit on names and transform without.
    with ignore_warnings(category=UserWarning):
        check("VAETransformer", clone(estimator))


def test_only_the_array_api_check_is_skipped_and_none_is_expected_to_fail(monkeypatch):
    monkeypatch.delenv("SCIPY_ARRAY_API", raising=False)
    results = check_estimator(QUICK[-1], on_skip=None, on_fail=None)
    assert {r["check_name"] for r in results if r["status"] != "passed"} == {
        "check_array_api_input"
    }
    assert {r["status"] for r in results} == {"passed", "skipped"}
    assert not any(r["expected_to_fail"] for r in results)


def test_no_check_is_switched_off_by_a_tag():
    tags = VAETransformer().__sklearn_tags__()
    assert not tags.non_deterministic
    assert not tags.no_validation
    assert not tags._skip_test
    assert tags.transformer_tags.preserves_dtype == ["float64", "float32"]
