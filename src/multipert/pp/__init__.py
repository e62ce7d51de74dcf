"""Preprocessing that is fitted on training cells."""

from ._highlyvariablegenes import highly_variable_genes
from ._normalise import normalise
from ._selectgenes import select_genes

__all__ = ["highly_variable_genes", "normalise", "select_genes"]
