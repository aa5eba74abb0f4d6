"""What README.md shows runs, and what it says of it is so."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def readme(tmp_path_factory):
    """The names that the README's code leaves, run from top to bottom."""
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        for block in BLOCKS:
            exec(compile(block, "README.md", "exec"), names)
    return names


def test_readme_opens_with_fifteen_lines_of_code():
    lines = [line for line in BLOCKS[0].splitlines() if line]
    assert len(lines) <= 15
    assert README.index(BLOCKS[0]) < README.index("## ")


def test_search_picks_the_smallest_negative_elbo(readme):
    search = readme["search"]
    negative_elbo = -search.cv_results_["mean_test_score"]
    assert np.isfinite(negative_elbo).all()
    assert negative_elbo[search.best_index_] == negative_elbo.min() == -search.best_score_


def test_score_is_the_mean_elbo_of_the_rows(readme):
    assert readme["elbo"].shape == (len(readme["X_test"]),)
    assert readme["search"].score(readme["X_test"]) == np.mean(readme["elbo"])


def test_results_have_the_shapes_and_units_of_the_data(readme):
    X_train, X_test = readme["X_train"], readme["X_test"]
    n_components = readme["search"].best_params_["n_components"]
    assert readme["Z"].shape == (len(X_test), n_components)
    assert readme["X_hat"].shape == X_test.shape
    assert readme["X_new"].shape == (100, X_test.shape[1])
    spread = X_train.std(axis=0)
    # Columns differ a thousandfold in scale. Means of 45 reconstructions and of 100 draws
    # stray by 0.15 and 0.1 of a column's standard deviation: half of it is beyond chance.
    for rows in (readme["X_hat"], readme["X_new"]):
        assert (abs(rows.mean(axis=0) - X_train.mean(axis=0)) < 0.5 * spread).all()


def test_loaded_search_gives_the_same_numbers(readme):
    search, loaded, X_test = readme["search"], readme["loaded"], readme["X_test"]
    np.testing.assert_array_equal(loaded.transform(X_test), readme["Z"])
    np.testing.assert_array_equal(loaded.score_samples(X_test), readme["elbo"])
    np.testing.assert_array_equal(
        loaded.best_estimator_.sample(100, random_state=0), readme["X_new"]
    )
    assert loaded.best_params_ == search.best_params_


# --- what is around -----------------------------------------------------------------------


def test_sdist_has_the_files_that_readme_and_contributing_call_for():
    text = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text += (ROOT / "Makefile").read_text(encoding="utf-8")
    called = {"Makefile", ".pre-commit-config.yaml", *re.findall(r"constraints\S*\.txt", text)}
    called = {name for name in called if (ROOT / name).exists()}  # my-constraints.txt is the user's
    assert called > {"Makefile", "constraints.txt", "constraints-oldest.txt"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {f"/{name}" for name in called} | {"/.ci", "/docs", "/tests"} <= set(included)
