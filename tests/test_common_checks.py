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
        for noise in ("shared", "per_feature", "per_sample")
    ),
    VAETransformer(likelihood=Gaussian(0.5), early_stopping=False, max_iter=5),
    VAETransformer(likelihood="auto", max_iter=5),
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


# Rows that are there twice are drawn into batches, and held out, one by one: a row of weight 2 is
# not. What is left of it, the units and the loss of the same rows, test_sample_weight.py holds.
NO_REPETITION = {
    f"check_sample_weight_equivalence_on_{kind}_data": (
        "sample_weight is not equivalent to repeating rows: their batches differ."
    )
    for kind in ("dense", "sparse")
}


@pytest.mark.filterwarnings("ignore:.* whole numbers of fewer than 20:UserWarning")
@parametrize_with_checks(
    [*QUICK, VAETransformer()], expected_failed_checks=lambda estimator: NO_REPETITION
)
def test_common_check_passes(estimator, check):
    check(estimator)


@pytest.mark.parametrize("check", FURTHER)
@pytest.mark.parametrize("estimator", [*QUICK, VAETransformer()], ids=str)
def test_check_that_scikit_learn_runs_on_its_own_estimators_passes(estimator, check):
    check = getattr(estimator_checks, check)
    # As scikit-learn's own tests do: its polars checks fit on names and transform without.
    with ignore_warnings(category=UserWarning):
        check("VAETransformer", clone(estimator))


def test_only_the_array_api_check_is_skipped_and_only_that_of_repeated_rows_fails(monkeypatch):
    monkeypatch.delenv("SCIPY_ARRAY_API", raising=False)
    results = check_estimator(
        QUICK[-1], on_skip=None, on_fail=None, expected_failed_checks=NO_REPETITION
    )
    others = {(r["check_name"], r["status"]) for r in results if r["status"] != "passed"}
    others.discard(("check_array_api_input", "skipped"))  # scikit-learn 1.6 doesn't have it
    assert others == {(name, "xfail") for name in NO_REPETITION}
    assert {r["check_name"] for r in results if r["expected_to_fail"]} == {*NO_REPETITION}


def test_no_check_is_switched_off_by_a_tag():
    tags = VAETransformer().__sklearn_tags__()
    assert not tags.non_deterministic
    assert not tags.no_validation
    assert not tags._skip_test
    assert tags.transformer_tags.preserves_dtype == ["float64", "float32"]
