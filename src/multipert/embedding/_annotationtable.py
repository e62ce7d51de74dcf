"""Annotations of genes as a table of zeros and ones."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_COLUMNS = ("gene", "term")
_SHOWN = 10
# columns of an annotation file in the GAF 2 format
_SYMBOL, _QUALIFIER, _TERM = 2, 3, 4


def annotation_table(
    annotations: Mapping[str, Iterable[str]] | pd.DataFrame | str | PathLike,
    genes: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Write down which gene has which term, such as those of the Gene Ontology.

    The table can be the perturbation embedding of a screen of genes, `adata.uns[...]`, and what :func:`gene_graph` makes a
    graph of. Annotations are taken as they are: terms that a term implies are not added. Files of AnnData are slow with
    tables of thousands of columns and may refuse them; make the graph of such a one, and keep that.

    Parameters
    ----------
    annotations
        Terms of each gene as a mapping, a frame with the columns "gene" and "term" and one row per pair, or a file: gene
        sets (`.gmt`: term, description, then genes, tab-separated) or annotations of the Gene Ontology Consortium
        (`.gaf`, version 2: symbols are read, and rows with the qualifier NOT left out), each also as `.gz`.
    genes
        Genes to have a row, in this order, annotated or not; None takes all annotated ones, sorted. Give all that may
        be a target, also those that no cell was perturbed for.

    Returns
    -------
    Genes x terms, int8, 1 where the gene has the term; terms that none of the genes has are left out.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    TypeError
        If the annotations are of another kind, or terms are a single text.
    ValueError
        If the file is of another format or malformed, names are missing, `genes` repeats one, or none is annotated.

    Examples
    --------
    >>> table = annotation_table({"KLF1": ["erythroid", "nucleus"], "GATA1": ["erythroid"]})
    >>> table.loc["GATA1"].to_dict()
    {'erythroid': 1, 'nucleus': 0}
    """
    pairs = _pairs(annotations)
    if pairs.isna().to_numpy().any():
        raise ValueError(
            f"annotations has {int(pairs.isna().any(axis=1).sum())} pair(s) without gene or term; drop them."
        )
    pairs = pairs.astype(str).drop_duplicates()
    if genes is None:
        names = pd.Index(sorted(set(pairs["gene"])))
    elif isinstance(genes, str):
        raise TypeError(f"genes={genes!r} must be a list of genes, such as {[genes]}.")
    else:
        names = pd.Index([str(gene) for gene in genes])
        if names.has_duplicates:
            repeated = names[names.duplicated()].unique()
            raise ValueError(f"genes names {len(repeated)} gene(s) more than once: {', '.join(repeated[:5])}.")
    pairs = pairs[pairs["gene"].isin(names)]
    if not len(pairs):
        raise ValueError(
            f"annotations has no term of any of {len(names)} gene(s); are names of the same kind (symbols, identifiers)?"
        )
    bare = names.difference(pairs["gene"], sort=False)
    if len(bare):
        shown = ", ".join(bare[:_SHOWN]) + (", ..." if len(bare) > _SHOWN else "")
        warnings.warn(
            f"{len(bare)} of {len(names)} gene(s) have no annotation, and so no neighbour: {shown}.", stacklevel=2
        )
    terms = pd.Index(sorted(set(pairs["term"])))
    values = np.zeros((len(names), len(terms)), dtype=np.int8)
    values[names.get_indexer(pairs["gene"]), terms.get_indexer(pairs["term"])] = 1
    return pd.DataFrame(values, index=names, columns=terms)


def _pairs(annotations: Mapping[str, Iterable[str]] | pd.DataFrame | str | PathLike) -> pd.DataFrame:
    """A frame with the columns gene and term."""
    if isinstance(annotations, pd.DataFrame):
        if not set(_COLUMNS) <= set(annotations.columns):
            raise ValueError(
                f"annotations has the columns {', '.join(map(repr, annotations.columns[:5]))}; it needs 'gene' and 'term', "
                "one row per pair. A table of genes x terms is one already."
            )
        return annotations[list(_COLUMNS)]
    if isinstance(annotations, Mapping):
        for gene, terms in annotations.items():
            if isinstance(terms, str):
                raise TypeError(f"annotations[{gene!r}]={terms!r} must be several terms, such as {[terms]}.")
        return pd.DataFrame(
            [(gene, term) for gene, terms in annotations.items() for term in terms], columns=list(_COLUMNS)
        )
    if not isinstance(annotations, str | PathLike):
        raise TypeError(
            f"annotations is a {type(annotations).__name__}; give a mapping of genes to terms, a frame with the columns "
            "'gene' and 'term', or the path of a .gmt or .gaf file."
        )
    return pd.DataFrame(_read(Path(annotations)), columns=list(_COLUMNS))


def _read(path: Path) -> list[tuple[str, str]]:
    """Pairs of a file, by the format that its name tells."""
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind not in (".gmt", ".gaf"):
        raise ValueError(f"annotations={str(path)!r} must be a .gmt or .gaf file, or one of these with .gz behind.")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        lines = [line.rstrip("\r\n").split("\t") for line in file]
    pairs = []
    for number, fields in enumerate(lines, 1):
        if fields == [""] or (kind == ".gaf" and fields[0].startswith("!")):
            continue
        if len(fields) < (3 if kind == ".gmt" else _TERM + 1):
            raise ValueError(f"{str(path)!r}, line {number}, has {len(fields)} field(s); it is no {kind} file.")
        if kind == ".gmt":
            pairs += [(gene.strip(), fields[0]) for gene in fields[2:] if gene.strip()]
        elif "NOT" not in fields[_QUALIFIER].split("|"):
            pairs.append((fields[_SYMBOL], fields[_TERM]))
    return pairs
