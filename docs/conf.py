"""Configuration of the documentation, built by `make docs`."""

import builtins
import os
import shutil
import sys
from importlib.metadata import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "multipert"
author = metadata(project)["Author"]
copyright = author
release = version = metadata(project)["Version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinxcontrib.bibtex",
    "docstrings",
    "model_table",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

# Single backticks in docstrings hold code.
default_role = "literal"
autosummary_generate = True
autodoc_member_order = "bysource"
napoleon_google_docstring = False
typehints_defaults = "comma"
always_use_bars_union = True
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Every name must resolve. Those of other projects do so where their inventories can be fetched, and are let through
# elsewhere, so that the documentation builds without a network.
nitpicky = True
INVENTORIES = {
    "anndata": "https://anndata.readthedocs.io/en/stable/",
    "lightning": "https://lightning.ai/docs/pytorch/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
    "mudata": "https://mudata.readthedocs.io/en/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "pandas": "https://pandas.pydata.org/docs/",
    "python": "https://docs.python.org/3/",
    "scanpy": "https://scanpy.readthedocs.io/en/stable/",
    "scipy": "https://docs.scipy.org/doc/scipy/",
    "scvi": "https://docs.scvi-tools.org/en/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
}
if os.environ.get("READTHEDOCS"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {name: (address, None) for name, address in INVENTORIES.items()}
OTHERS = [*INVENTORIES, *sys.stdlib_module_names]
nitpick_ignore_regex = [(r"py:.*", rf"({'|'.join(OTHERS)})\..*"), (r"py:.*", "|".join(dir(builtins)))]

# Notebooks are run by `make tutorials`, which keeps their output in them.
nb_execution_mode = "off"
nb_output_stderr = "remove"
shutil.rmtree(HERE / "tutorials", ignore_errors=True)
shutil.copytree(HERE.parent / "tutorials", HERE / "tutorials", ignore=shutil.ignore_patterns(".*"))

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_theme_options = {"show_navbar_depth": 1}
