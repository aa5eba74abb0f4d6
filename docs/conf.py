"""How sphinx makes the documentation: without a network, when it is built and when it is read."""

import importlib.util
import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

import skvae

LOGGER = logging.getLogger(__name__)
ROOT = Path(__file__).parents[1]
FORGE = "https://github.com/skvae/skvae"

project = "skvae"
author = "The skvae developers"
copyright = author
version = release = skvae.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autosummary",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "examples"]
templates_path = ["_templates"]
nitpicky = True

# --- text -----------------------------------------------------------------------------------------

default_role = "name"  # of what stands in `backquotes`
smartquotes = False  # they are code as often as not
toc_object_entries_show_parents = "hide"
autodoc_typehints = "none"  # the docstrings say more
numpydoc_class_members_toctree = False
numpydoc_show_class_members = False  # the templates list them
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"
numpydoc_xref_aliases = {
    "VAETransformer": "skvae.VAETransformer",
    "Pipeline": "sklearn.pipeline.Pipeline",
    "GridSearchCV": "sklearn.model_selection.GridSearchCV",
}
myst_enable_extensions = ["dollarmath", "attrs_inline"]
myst_heading_anchors = 3

# --- gallery --------------------------------------------------------------------------------------

# From what everybody needs to what some do.
EXAMPLES = (
    "plot_quickstart",
    "plot_linear_is_pca",
    "plot_beta",
    "plot_search",
    "plot_mixture",
    "plot_table",
    "plot_imputation",
    "plot_anomaly",
    "plot_classifier",
    "plot_conv",
    "plot_collapse",
    "plot_elbo_gap",
)


class Order:
    """The order of the examples, by the names of their files."""

    def __init__(self, folder):
        pass

    def __call__(self, name):
        """The place of an example."""
        return EXAMPLES.index(Path(name).stem)


sys.path.append(str(Path(__file__).parent))  # where the gallery finds it

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "auto_examples",
    "backreferences_dir": "auto_examples/backreferences",
    "doc_module": ("skvae",),
    "reference_url": {"skvae": None},
    "within_subsection_order": "conf.Order",
    "download_all_examples": False,
    "write_computation_times": False,  # a page that fetches scripts
    "show_memory": False,
    "show_signature": False,
}

# --- look -----------------------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = "skvae"
html_static_path = ["_static"]
if (ziamath := importlib.util.find_spec("ziamath")) is not None:
    # Its font alone: a browser needs one for mathematics, which not all readers have.
    html_static_path.append(
        str(Path(ziamath.origin).with_name("fonts") / "STIXTwoMath-Regular.ttf")
    )
html_css_files = ["skvae.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_theme_options = {
    "github_url": FORGE,
    "logo": {"text": "skvae"},
    "header_links_before_dropdown": 6,
    "navbar_align": "left",
    "show_prev_next": False,
    "footer_start": ["copyright"],
    "footer_end": [],
}
# A page without pages below it needs no sidebar to list them; the gallery has pictures for that.
html_sidebars = {
    page: []
    for page in (
        "auto_examples/*",
        "install",
        "tutorial",
        "questions",
        "mathematics",
        "architecture",
        "performance",
        "quality",
        "reliability",
        "contributing",
        "changelog",
    )
}


def write_math(translator, node):
    """Write a formula as MathML, which browsers show without a script of anybody's."""
    try:
        formula = tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block))
    except MathError as error:  # of LaTeX, it knows what formulas need, and not all
        LOGGER.warning("%s in the formula %s", error, node.astext(), location=node)
        raise nodes.SkipNode from None
    # A thin space after a function's name, but before a bracket.
    formula = re.sub(r"<mo>(&ApplyFunction;</mo>)(?!\s*<mo)", r'<mo rspace="0.17em">\1', formula)
    translator.body.append(formula)
    raise nodes.SkipNode


class RepositoryLinks(SphinxTransform):
    """Links to files that are no page here; Markdown has them as paths, so that a forge finds them.

    An example is its page in the gallery; all else is where the repository is.
    """

    default_priority = 400
    pages = {"CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog"}

    def apply(self):
        """Replace the links of one page."""
        links = [*self.document.findall(addnodes.download_reference)]
        links += self.document.findall(addnodes.pending_xref)
        for link in links:
            if link.get("reftype") != "myst":
                continue
            path = self.find(link)
            if path is not None:
                link.replace_self(self.link_to(path, link))

    def find(self, link):
        """The file that a link leads to, by its path in the repository; None: a page, or none."""
        target = link["reftarget"]
        if link.get("refdomain") == "doc":  # without its suffix
            if not target.startswith("/"):
                return None
            target += ".md"
        # Paths of a page that includes one from the root begin there.
        for base in (Path(self.env.doc2path(self.env.docname)).parent, ROOT):
            path = (base / target).resolve()
            if path.exists() and path.is_relative_to(ROOT):
                return path.relative_to(ROOT)
        return None

    def link_to(self, path, link):
        """A link to a file, with the text of another."""
        page = self.pages.get(str(path))
        if path.parts[:2] == ("docs", "examples"):
            page = f"auto_examples/{path.stem}"
        elif path.parts[0] == "docs" and path.suffix == ".md":
            page = str(path.relative_to("docs").with_suffix(""))
        if page is None:
            return nodes.reference("", "", *link.children, refuri=f"{FORGE}/blob/main/{path}")
        return addnodes.pending_xref(
            "",
            *link.children,
            refdomain="std",
            reftype="doc",
            reftarget=f"/{page}",
            refexplicit=True,
            refdoc=self.env.docname,
        )


def link_name(role, rawtext, text, lineno, inliner, options=None, content=()):
    """A link from `Name` to what is called so, in whatever module; else only a word of code."""
    env = inliner.document.settings.env
    name = text.partition("(")[0]
    scope = {key: env.ref_context.get(key) for key in ("py:module", "py:class")}
    if name[:1].isupper():  # a class, of any module; many have a method `fit`
        scope["refspecific"] = True
    link = addnodes.pending_xref(
        rawtext,
        nodes.literal(rawtext, text),
        refdomain="py",
        reftype="obj",
        reftarget=name,
        refdoc=env.docname,
        may_fail=True,
        **scope,
    )
    return [link], []


def resolve_elsewhere(app, env, node, content):
    """Link a name of scikit-learn's, whose address its name says; leave some others as words."""
    name = node["reftarget"]
    if name.startswith("sklearn."):
        address = f"https://scikit-learn.org/stable/modules/generated/{name}.html"
        return nodes.reference("", "", content, refuri=address)
    if name.startswith(("python:", "numpy:", "numpy.")):
        return nodes.inline("", content.astext().rpartition(":")[2])
    # Inherited docstrings lead to places in scikit-learn's guide and glossary.
    inherited = node["refdoc"].startswith("api/") and node["reftype"] in ("ref", "term")
    fitted = name.endswith("_")  # an attribute, which its class describes
    return content if inherited or fitted or node.get("may_fail") else None


def setup(app):
    """Add what is written above."""
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
    app.add_role("name", link_name)
    app.add_transform(RepositoryLinks)
    app.connect("missing-reference", resolve_elsewhere)
