"""Graphs of perturbations: the nearest neighbours of each by what is known of them."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from scipy import sparse

from multipert.data._conditions import close_matches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Similarity = Literal["jaccard", "cosine", "correlation"]
Edges = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Sources, targets (positions) and weights, targets increasing, each target's strongest first; no loops."""

_COLUMNS = ("source", "target", "importance")
_BLOCK_BYTES = 64 * 2**20


def gene_graph(
    table: pd.DataFrame,
    *,
    similarity: Similarity | None = None,
    n_neighbors: int = 20,
    threshold: float = 0.1,
) -> pd.DataFrame:
    r"""Join each gene to the ones that are most like it.

    Of annotations (0 and 1) the similarity is Jaccard's, shared terms over all terms of either gene,

    .. math::

        J(a, b) = \frac{|T_a \cap T_b|}{|T_a \cup T_b|},

    of other features the cosine of the angle between rows, or their correlation over columns. Edges are directed: a gene
    may be among the nearest of another that is not among its own.

    Parameters
    ----------
    table
        Genes x terms, as :func:`annotation_table` makes it, or genes x features.
    similarity
        "jaccard", "cosine" or "correlation"; None is "jaccard" for a table of zeros and ones, else "cosine".
    n_neighbors
        Most neighbours of a gene, beside itself; of equally near ones those first in the table.
    threshold
        Neighbours must be more alike than this.

    Returns
    -------
    Columns `"source"` (the neighbour), `"target"` (the gene) and `"importance"` (similarity, above 0 and at most 1),
    targets in the order of the table, nearest first. Each gene's edge to itself goes without saying.

    Raises
    ------
    ValueError
        If the table repeats a gene or has values that are not finite, the similarity is unknown or does not fit it, or a
        number is out of range.

    Examples
    --------
    >>> from multipert.embedding import annotation_table
    >>> table = annotation_table({"A": ["x", "y"], "B": ["x", "y", "z"], "C": ["z"]})
    >>> gene_graph(table, n_neighbors=1).round(2).to_dict("records")[0]
    {'source': 'B', 'target': 'A', 'importance': 0.67}
    """
    names = pd.Index(table.index.astype(str))
    if names.has_duplicates:
        repeated = names[names.duplicated()].unique()
        raise ValueError(f"table repeats {len(repeated)} gene(s): {', '.join(repeated[:5])}; keep one row of each.")
    values = table.to_numpy()
    if not np.issubdtype(values.dtype, np.number) and values.dtype != bool:
        raise ValueError(f"table holds values of type {values.dtype}; give numbers.")
    bad = names[~np.isfinite(values).all(axis=1)]
    if len(bad):
        raise ValueError(f"table has NaN or infinite values in {len(bad)} row(s): {', '.join(bad[:5])}.")
    source, target, weight = nearest(values, similarity, n_neighbors, threshold)
    return pd.DataFrame({"source": names[source], "target": names[target], "importance": weight})


def nearest(values: np.ndarray, similarity: Similarity | None, n_neighbors: int, threshold: float) -> Edges:
    """Edges from the rows that are most like each; see :func:`gene_graph`.

    Parameters
    ----------
    values
        Features, shape `(n_genes, n_features)`, finite.
    similarity
        Which; None chooses.
    n_neighbors
        Most neighbours of a row.
    threshold
        Neighbours must be more alike than this.

    Returns
    -------
    The edges; memory grows with blocks of rows, not with `n_genes ** 2`.
    """
    check_limits(n_neighbors=n_neighbors, threshold=threshold)
    if similarity is None:
        similarity = "jaccard" if is_binary(values) else "cosine"
    parts: list[Edges] = []
    for rows, block in similarities(values, similarity):
        block[np.arange(len(rows)), rows] = -1
        at, source, weight = strongest(block, n_neighbors, threshold)
        parts.append((source, rows[at], weight))
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    source, target, weight = (np.concatenate(part) for part in zip(*parts, strict=True))
    return source, target, weight


def is_binary(values: np.ndarray) -> bool:
    """Whether a table holds zeros and ones only.

    Parameters
    ----------
    values
        Any numbers.

    Returns
    -------
    True also for an empty table.
    """
    return bool(((values == 0) | (values == 1)).all())


def similarities(
    values: np.ndarray, similarity: Similarity, block_bytes: int = _BLOCK_BYTES
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Similarity of some rows to all, block by block.

    Parameters
    ----------
    values
        Features, shape `(n_genes, n_features)`.
    similarity
        Which.
    block_bytes
        About how large a block may be.

    Yields
    ------
    Row numbers and similarities, shape `(len(rows), n_genes)`, float64; 0 to and from rows without any term, of zeros, or
    constant ones where they are correlated.
    """
    if similarity not in get_args(Similarity):
        raise ValueError(f"similarity={similarity!r} is unknown{close_matches(str(similarity), get_args(Similarity))}")
    n_genes = len(values)
    step = max(1, block_bytes // (8 * max(1, n_genes)))
    blocks = (np.arange(first, min(first + step, n_genes)) for first in range(0, n_genes, step))
    if similarity == "jaccard":
        if not is_binary(values):
            n_other = int(((values != 0) & (values != 1)).sum())
            raise ValueError(
                f"similarity='jaccard' needs zeros and ones, but {n_other} value(s) are neither; take 'cosine'."
            )
        terms = sparse.csr_matrix(values.astype(np.float64))
        n_terms = np.asarray(terms.sum(axis=1)).ravel()
        for rows in blocks:
            shared = (terms[rows] @ terms.T).toarray()
            either = n_terms[rows, None] + n_terms - shared
            yield rows, np.divide(shared, either, out=np.zeros_like(shared), where=either > 0)
        return
    scaled = values.astype(np.float64)
    if similarity == "correlation":
        scaled = scaled - scaled.mean(axis=1, keepdims=True)
        # what rounding leaves of a constant row says nothing
        scaled[np.ptp(values, axis=1) == 0] = 0
    norm = np.sqrt(np.square(scaled).sum(axis=1, keepdims=True))
    scaled = np.divide(scaled, norm, out=np.zeros_like(scaled), where=norm > 0)
    for rows in blocks:
        yield rows, np.clip(scaled[rows] @ scaled.T, -1, 1)


def strongest(block: np.ndarray, k: int, threshold: float) -> Edges:
    """The largest entries of each row.

    Parameters
    ----------
    block
        Shape `(n_rows, n_columns)`.
    k
        Most entries of a row; of equal ones those of the first columns.
    threshold
        Entries must be larger.

    Returns
    -------
    Rows, columns and values, rows increasing, the largest value of a row first.

    Examples
    --------
    >>> rows, columns, values = strongest(np.array([[0.3, 0.9, 0.9, 0.1]]), 2, 0.2)
    >>> columns.tolist()
    [1, 2]
    """
    kept = block > threshold
    if k < block.shape[1]:
        kept &= block >= np.partition(block, -k, axis=1)[:, [-k]]
    rows, columns = np.nonzero(kept)
    values = block[rows, columns]
    order = np.lexsort((columns, -values, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    # equal to the k-th largest may be more than k
    first = np.searchsorted(rows, rows)
    some = np.arange(len(rows)) - first < k
    return rows[some], columns[some], values[some]


def known_edges(edges: pd.DataFrame, names: Sequence[str], n_neighbors: int) -> pd.DataFrame:
    """The strongest edges of a ready graph between some genes.

    Parameters
    ----------
    edges
        Columns source, target and importance.
    names
        The genes.
    n_neighbors
        Most edges into a gene, loops not counted.

    Returns
    -------
    The edges, targets in the order of `names`, strongest first, loops among them.

    Raises
    ------
    TypeError
        If the edges are no frame.
    ValueError
        If a column is absent, an edge comes twice, an importance is negative or not finite, or none is between the genes.
    """
    check_limits(n_neighbors=n_neighbors)
    if not isinstance(edges, pd.DataFrame):
        raise TypeError(f"edges is a {type(edges).__name__}; give a DataFrame with the columns {', '.join(_COLUMNS)}.")
    absent = [column for column in _COLUMNS if column not in edges.columns]
    if absent:
        raise ValueError(
            f"edges lacks the column(s) {', '.join(map(repr, absent))}{close_matches(absent[0], edges.columns)}"
        )
    frame = pd.DataFrame(
        {
            "source": edges["source"].astype(str).to_numpy(dtype=object),
            "target": edges["target"].astype(str).to_numpy(dtype=object),
            "importance": pd.to_numeric(edges["importance"]).to_numpy(dtype=np.float64),
        }
    )
    bad = ~(np.isfinite(frame["importance"]) & (frame["importance"] >= 0)).to_numpy()
    if bad.any():
        raise ValueError(
            f"edges has {int(bad.sum())} importance(s) that are negative or not finite, first in row "
            f"{int(np.flatnonzero(bad)[0])}."
        )
    repeated = frame.duplicated(["source", "target"])
    if repeated.any():
        pair = frame.loc[repeated.idxmax(), ["source", "target"]].tolist()
        raise ValueError(f"edges holds {int(repeated.sum())} edge(s) more than once, first {pair[0]!r} to {pair[1]!r}.")
    index = pd.Index(names)
    frame["_target"], frame["_source"] = index.get_indexer(frame["target"]), index.get_indexer(frame["source"])
    frame = frame[(frame["_target"] >= 0) & (frame["_source"] >= 0)]
    loops = frame["_target"] == frame["_source"]
    if loops.all():
        raise ValueError(
            f"edges joins none of the {len(index)} perturbations to another; are names of the same kind (symbols, "
            f"identifiers)? Perturbations: {', '.join(index[:5])}; edges: {', '.join(edges['source'].astype(str)[:5])}."
        )
    frame = frame.sort_values(["_target", "importance", "_source"], ascending=[True, False, True], kind="stable")
    loops = frame["_target"] == frame["_source"]
    rank = (~loops).groupby(frame["_target"]).cumsum()
    return frame.loc[loops | (rank <= n_neighbors), list(_COLUMNS)].reset_index(drop=True)


def check_limits(**limits: Any) -> None:
    """Refuse numbers of neighbours below 1, and thresholds outside 0..1.

    Parameters
    ----------
    **limits
        Values by the name of the argument; those that end in "neighbors" are numbers, the others thresholds.

    Raises
    ------
    ValueError
        Naming the argument and the value.
    """
    for name, value in limits.items():
        if name.endswith("neighbors"):
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name}={value} must be a whole number of at least 1.")
        elif not isinstance(value, Real) or not 0 <= float(value) <= 1:
            raise ValueError(f"{name}={value} must lie in 0..1.")
