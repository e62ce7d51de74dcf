"""Preprocessing that is fitted on training cells."""

from ._clr import clr
from ._highlyvariablegenes import highly_variable_genes
from ._normalise import normalise
from ._pairbylabel import pair_by_label
from ._selectgenes import select_genes
from ._tfidf import inverse_tfidf, tfidf

__all__ = [
    "clr",
    "highly_variable_genes",
    "inverse_tfidf",
    "normalise",
    "pair_by_label",
    "select_genes",
    "tfidf",
]
