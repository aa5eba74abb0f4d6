"""The documentation is whole, and what it says runs: docstrings, pages, links.

Of the pages that sphinx makes, `make docs` tests the rest.
"""

import ast
import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from numpydoc.docscrape import ClassDoc, FunctionDoc
from numpydoc.validate import validate

import skvae
from skvae.likelihoods import Likelihood

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
MODULES = [
    "skvae",
    *(
        f"skvae.{module.name}"
        for module in pkgutil.iter_modules(skvae.__path__)
        if not module.name.startswith("_")
    ),
]
# What numpydoc asks for and this package doesn't: an extended summary, See Also and Examples in
# everything (each public object has Examples, which another test holds), and no names of returns.
NOT_ASKED = {"ES01", "SA01", "EX01", "RT02"}
# Python that no test runs has this comment before it. These are all the places.
NOT_RUN = "<!-- not run: "
NOT_RUN_PLACES = {"guide/scaling.md": 2}

# Where the files of this repository are on the web: as pages, and as they are.
OWN_ADDRESSES = [
    "https://github.com/skvae/skvae/blob/main/",
    "https://raw.githubusercontent.com/skvae/skvae/main/",
]

# Modules of what a model is made of.
PARTS = {f"skvae.{name}" for name in ("likelihoods", "networks", "posteriors", "priors")}


def public_objects():
    """All public classes and functions by name."""
    objects = {}
    for name in MODULES:
        module = importlib.import_module(name)
        for own in module.__all__:
            if callable(getattr(module, own)):
                objects[f"{name}.{own}"] = getattr(module, own)
    return objects


PUBLIC = public_objects()


def said_by_a_likelihood():
    """What a likelihood of one's own says, by the first column of the guide's table."""
    page = (DOCS / "guide" / "own-likelihood.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `(\w+)", page, flags=re.MULTILINE))


def methods(cls):
    """The public methods of a class that this package writes, by name.

    Not those of the model's parts, which are values: they are called by the model, with tensors.
    Of `Likelihood`, which is to be inherited from, those that the guide has a table of.
    """
    if cls is Likelihood:
        named = sorted(said_by_a_likelihood() - {"is_mass"})  # of processes that share the tests
        return {name: getattr(cls, name) for name in named}
    if cls.__module__ in PARTS:
        return {}
    return {
        name: getattr(cls, name)
        for base in cls.__mro__
        if base.__module__.startswith("skvae")
        for name, method in vars(base).items()
        if not name.startswith("_") and inspect.isfunction(inspect.unwrap(method))
    }


CALLABLES = PUBLIC | {
    f"{name}.{own}": method
    for name, cls in PUBLIC.items()
    if inspect.isclass(cls)
    for own, method in methods(cls).items()
}


# --- docstrings ---------------------------------------------------------------------------


def test_the_reference_lists_everything_that_is_public_and_nothing_else():
    listed, module = set(), None
    for line in (DOCS / "api.rst").read_text(encoding="utf-8").splitlines():
        module = line.removeprefix(".. module:: ") if line.startswith(".. module::") else module
        if re.fullmatch(r"   \w+", line):
            listed.add(f"{module}.{line.strip()}")
    assert listed == set(PUBLIC)


def test_the_reference_of_a_likelihood_lists_what_the_guide_says_of_one():
    template = DOCS / "_templates" / "autosummary" / "likelihood.rst"
    listed = set(re.findall(r'"(\w+)"', template.read_text(encoding="utf-8")))
    attributes = {name for name, *_ in ClassDoc(Likelihood)["Attributes"]}
    assert listed | attributes == said_by_a_likelihood()


@pytest.mark.parametrize("name", PUBLIC)
def test_public_object_has_examples_that_are_run(name):
    thing = PUBLIC[name]
    # Where `pytest --doctest-modules` finds it: with the code of functions, and with the name
    # of classes.
    module = importlib.import_module(thing.__module__)
    found = {test.name: test.examples for test in doctest.DocTestFinder().find(module)}
    assert found.get(f"{thing.__module__}.{thing.__name__}")


def names_in(code):
    """What code imports and what it takes of modules: "skvae.metrics.kl", "metrics.kl"."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


@pytest.fixture(scope="module")
def shown():
    """All names in the code of the guide, the tutorial, the questions and the gallery."""
    pages = [*(DOCS / "guide").glob("*.md"), DOCS / "tutorial.md", DOCS / "questions.md"]
    codes = [code for page in pages for code, *_ in blocks(page)]
    codes += [path.read_text(encoding="utf-8") for path in (DOCS / "examples").glob("*.py")]
    return {name for code in codes for name in names_in(code)}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_object_is_shown_in_code_of_the_guide_or_the_gallery(name, shown):
    assert any(f".{name}".endswith(f".{own}") for own in shown)


@pytest.mark.parametrize("name", CALLABLES)
def test_docstring_is_what_numpydoc_asks_for(name):
    errors = {code: text for code, text in validate(name)["errors"] if code not in NOT_ASKED}
    assert not errors


@pytest.mark.parametrize("name", CALLABLES)
def test_docstring_says_the_defaults_of_the_signature(name):
    thing = CALLABLES[name]
    documented = {
        own: type
        for names, type, _ in FunctionDoc(thing)["Parameters"]
        for own in names.split(", ")
        if type != "Ignored"
    }
    signature = inspect.signature(thing).parameters
    known = {"np": np} | vars(importlib.import_module(thing.__module__))
    for own, type in documented.items():
        if own.startswith("*"):
            continue
        default = signature[own].default
        _, given, text = type.partition("default=")
        assert bool(given) == (default is not inspect.Parameter.empty), own
        assert not given or repr(eval(text, known)) == repr(default), own


# --- pages --------------------------------------------------------------------------------


def blocks(page):
    """The Python of a page: code, its line, and why it is not run, if it isn't."""
    text = page.read_text(encoding="utf-8")
    pattern = rf"(?:^{NOT_RUN}(.*?) -->\n+)?^```python\n(.*?)^```"
    for match in re.finditer(pattern, text, flags=re.DOTALL | re.MULTILINE):
        yield match[2], text[: match.start(2)].count("\n"), match[1]


SLOW = {
    *("beta-and-components", "held-out", "images", "likelihood", "missing-and-mixed", "parts"),
    *("questions", "saving", "scores", "tutorial"),
}
PAGES_WITH_CODE = [
    pytest.param(
        page,
        marks=[pytest.mark.slow] if page.stem in SLOW else [],
        id=str(page.relative_to(DOCS)),
    )
    for page in PAGES
    if any(not why for _, _, why in blocks(page))
]


@pytest.mark.parametrize("page", PAGES_WITH_CODE)
def test_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    names = {"__name__": "__main__"}
    for code, line, why in blocks(page):
        if not why:
            # Line numbers of the page.
            exec(compile("\n" * line + code, str(page), "exec"), names)
    plt.close("all")


def test_code_that_is_not_run_is_counted():
    places = [str(page.relative_to(DOCS)) for page in PAGES for *_, why in blocks(page) if why]
    assert {page: places.count(page) for page in places} == NOT_RUN_PLACES


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *PAGES], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_of_a_page_lead_to_files(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    links = re.findall(r"\]\(([^):#\s]+)(?:#[^)\s]*)?\)", text)
    # What sphinx makes of the examples is there when it has run.
    made = {"auto_examples/index.rst"}
    lost = [link for link in links if link not in made and not (page.parent / link).is_file()]
    lost += [path for path in own_paths(text) if not (ROOT / path).exists()]
    assert not lost


def own_paths(text):
    """What the absolute links of a text to the files of this repository lead to."""
    return re.findall(rf"(?:{'|'.join(map(re.escape, OWN_ADDRESSES))})([^)>#\s]*)", text)


@pytest.mark.parametrize("address", OWN_ADDRESSES)
def test_absolute_link_to_the_repository_is_followed_into_the_checkout(address):
    text = f"[one]({address}README.md#more), <{address}docs/gone.md>\n\n[two]: {address}gone.png\n"
    assert own_paths(text) == ["README.md", "docs/gone.md", "gone.png"]


def test_links_of_the_readme_work_on_a_page_of_another_site():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```|`[^`]*`", "", text, flags=re.DOTALL | re.M)
    named = dict(re.findall(r"^\[([^]]+)\]: (\S+)", text, flags=re.M))
    links = [*named.values(), *re.findall(r"\]\(([^)\s]+)\)", text)]
    assert len(own_paths(text)) > 10
    assert not [link for link in links if not link.startswith("https://")]
    # Such a page shows a picture as it is, not the page that this repository shows it on.
    assert not [link for link in links if link.endswith(".png") and "/blob/" in link]
    body = re.sub(r"^\[[^]]+\]: https.*", "", text, flags=re.M)
    used = re.findall(r"\[([\w./-]+)\](?![(\[])", body)
    assert set(used) == set(named)


# --- links of built pages -----------------------------------------------------------------


@pytest.fixture
def check_links():
    """The module docs/check_links.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("check_links", DOCS / "check_links.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "link",
    ["gone.html", "other.html#gone", "#gone", "gone.png", "../outside.html", "https://a.b/c.png"],
)
def test_link_that_leads_nowhere_is_found(check_links, tmp_path, link):
    (tmp_path / "outside.html").write_text("")
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "other.html").write_text('<p id="here">')
    good = '<a href="other.html#here"> <a href="other.html"> <a href="https://a.b/c"> <a id="top">'
    (pages / "index.html").write_text(good + '<a href="#top">')
    assert check_links.broken_links(pages) == ([], 4)
    tag = f'<img src="{link}">' if link.endswith("png") else f'<a href="{link}">'
    (pages / "index.html").write_text(good + tag)
    assert check_links.broken_links(pages) == ([("index.html", link)], 4)
