"""The directive `model-table`: what each registered model can do, read from its tags."""

from dataclasses import fields

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import multipert
from multipert.model._tags import ModelTags

# A tag without a heading appears under its own name, so that a new tag is never lost.
HEADINGS = {
    "uses_context": "reads the context",
    "unseen_context": "unseen context",
    "several_perturbations": "several perturbations",
    "unseen_perturbations": "unseen perturbations",
    "combinations": "combinations",
    "doses": "doses",
    "counts": "models counts",
    "latent": "latent representation",
    "perturbation_embedding": "learnt perturbation embedding",
    "samples": "draws samples",
    "output": "a row is a",
    "modalities": "modalities",
}
NEEDS = {
    "needs_context": "context",
    "needs_embedding": "perturbation embedding",
    "needs_cell_embedding": "cell embedding",
    "needs_counts": "counts",
    "unseen_needs_embedding": "perturbation embedding for unseen perturbations",
}


def registered_models() -> dict[str, ModelTags]:
    """Names and tags of the models that can be used, in the order of the registry."""
    candidates = {name: getattr(getattr(multipert.model, name), "tags", None) for name in multipert.model.__all__}
    return {name: tags for name, tags in candidates.items() if isinstance(tags, ModelTags)}


def cell(value: object) -> str:
    """Write a tag's value as one cell of the table."""
    if isinstance(value, bool):
        return "✓" if value else ""
    return str(value)


def table(models: dict[str, ModelTags]) -> str:
    """Markdown table with one row per model."""
    tags = [field.name for field in fields(ModelTags) if field.name not in {*NEEDS, "reference"}]
    rows = [["model", *(HEADINGS.get(tag, tag) for tag in tags), "needs", "source"]]
    rows.append([":---", *[":---:"] * len(tags), ":---", ":---"])
    for name, values in models.items():
        needs = ", ".join(word for tag, word in NEEDS.items() if getattr(values, tag))
        source = f"{{cite:t}}`{values.reference}`" if values.reference else ""
        model = f"{{class}}`~multipert.model.{name}`"
        rows.append([model, *(cell(getattr(values, tag)) for tag in tags), needs, source])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


class ModelTable(SphinxDirective):
    """Insert the table of the registered models."""

    def run(self) -> list[nodes.Node]:
        """Parse the generated markdown in place."""
        return self.parse_text_to_nodes(table(registered_models()))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("model-table", ModelTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
