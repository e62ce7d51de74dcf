"""How docstrings become pages: types come from annotations, foreign members are left out, private modules hidden."""

import re
import sys

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import NumpyDocstring
from sphinx.pycode import ModuleAnalyzer


def attribute_as_prose(docstring: NumpyDocstring) -> list[str]:
    """Take an attribute's docstring as text; napoleon would read what stands before a colon as its type."""
    return docstring._consume_to_end()


def returns_as_prose(docstring: NumpyDocstring, section: str) -> list[str]:
    """Take a Returns section as text; napoleon would read its first line as a type."""
    lines = docstring._dedent(docstring._consume_to_next_section())
    # sphinx_autodoc_typehints puts a colon above the text to the same end, which only works on one line
    if lines and lines[0].strip() == ":":
        lines = lines[1:]
    return [*docstring._format_block(":returns: ", lines), ""]


def skip_foreign(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out what a class inherits from another package, whose docstrings follow other rules."""
    owner = getattr(obj, "fget", None) or getattr(obj, "__func__", None) or obj
    module = getattr(owner, "__module__", None)
    return True if module is not None and not module.startswith("multipert") else None


def find_attribute_docs(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Give a public constant the docstring below its definition in a private module, not that of its type."""
    package, _, attribute = name.rpartition(".")
    if what != "data":
        return
    for module in [key for key in sys.modules if key.startswith(f"{package}._")]:
        docs = ModuleAnalyzer.for_module(module).find_attr_docs()
        if getattr(sys.modules[module], attribute, None) is obj and ("", attribute) in docs:
            lines[:] = docs["", attribute]


def resolve_private(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Node | None:
    """Link `multipert.model._mtae.MTAe`, as annotations name it, to `multipert.model.MTAe`; leave helpers unlinked."""
    target = node.get("reftarget", "")
    public = re.sub(r"\._\w+(?=\.)", "", target)
    if node.get("refdomain") != "py" or public == target or not target.startswith("multipert."):
        return None
    domain = env.domains["py"]
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, content) or content


def setup(app: Sphinx) -> dict[str, bool]:
    """Register them."""
    NumpyDocstring._parse_attribute_docstring = attribute_as_prose
    NumpyDocstring._parse_returns_section = returns_as_prose
    app.connect("autodoc-process-docstring", find_attribute_docs)
    app.connect("autodoc-skip-member", skip_foreign)
    app.connect("missing-reference", resolve_private)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
