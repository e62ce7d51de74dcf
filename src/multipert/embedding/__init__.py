"""Perturbations as tables of numbers and as graphs, from what is known of them."""

from ._annotationtable import annotation_table
from ._coverage import coverage
from ._fingerprints import fingerprints
from ._genegraph import gene_graph
from ._readtable import read_table

__all__ = ["annotation_table", "coverage", "fingerprints", "gene_graph", "read_table"]
