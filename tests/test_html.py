"""Estimators in a notebook: scikit-learn's HTML, with links to this package's documentation."""

import re
import tomllib
from pathlib import Path

import pytest
import sklearn
from sklearn.utils.fixes import parse_version

from skvae import VAEGridSearchCV, VAEImputer, VAETransformer, _vae
from skvae._model import state
from skvae.likelihoods import Gaussian

SHOWS_ATTRIBUTES = parse_version(sklearn.__version__) >= parse_version("1.9")
small = {"hidden_layer_sizes": (8,), "max_iter": 2, "early_stopping": False, "random_state": 0}
ESTIMATORS = [
    VAETransformer(2, likelihood=Gaussian("per_feature"), **small),
    VAEImputer(VAETransformer(2, **small)),
    VAEGridSearchCV(VAETransformer(2, **small), {"beta": [1, 2]}, cv=2),
]
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)


def page(name):
    """The page of a class in the documentation that the package declares."""
    content = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    return f"{tomllib.loads(content)['project']['urls']['Documentation']}api/skvae.{name}.html"


@every_estimator
def test_html_links_the_page_of_the_estimator(estimator):
    links = re.findall('href="([^"#]*)["#]', estimator._repr_html_())
    assert page(type(estimator).__name__) in links
    # That of an inner estimator, too, and no page that is another package's.
    assert page("VAETransformer") in links
    assert {link for link in links if "skvae." in link} <= {
        page(name) for name in ("VAETransformer", "VAEImputer", "VAEGridSearchCV")
    }


@pytest.mark.skipif(not SHOWS_ATTRIBUTES, reason="scikit-learn < 1.9 shows parameters alone")
@every_estimator
def test_html_of_a_fitted_estimator_has_its_attributes(estimator, X):
    shown = sklearn.clone(estimator).fit(X)._repr_html_()
    assert "Fitted attributes" in shown
    public = [
        name for name in vars(sklearn.clone(estimator).fit(X)) if re.fullmatch("[a-z].*_", name)
    ]
    assert all(re.search(rf">\s*{name}\s*<", shown) for name in public)


@pytest.mark.skipif(not SHOWS_ATTRIBUTES, reason="scikit-learn < 1.9 shows parameters alone")
def test_html_has_properties_but_where_there_is_no_such_number(X):
    for noise, there in {"per_feature": True, "per_sample": False}.items():
        shown = VAETransformer(2, likelihood=Gaussian(noise), **small).fit(X)._repr_html_()
        assert ("noise_variance_" in shown) == there
        assert "likelihood_" in shown


@every_estimator
def test_html_makes_no_model(estimator, X, monkeypatch):
    fitted = sklearn.clone(estimator).fit(X)

    def fail(*args, **kwargs):
        raise AssertionError("a model was made")

    monkeypatch.setattr(state, "VAE", fail)
    assert "VAE" in fitted._repr_html_()
    with pytest.raises(AssertionError, match="a model was made"):
        getattr(fitted, "estimator_", getattr(fitted, "best_estimator_", fitted)).to_module()


def test_the_address_of_the_documentation_stands_in_one_place():
    package = Path(_vae.__file__).parent
    texts = {path.name: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    places = [name for name, text in texts.items() if page("")[:25] in text]
    assert places == ["_vae.py"]
