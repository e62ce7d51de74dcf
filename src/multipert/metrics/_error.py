from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._cells import Matrix, as_cells

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def rmse(predicted: Matrix, observed: Matrix, *, genes: np.ndarray | None = None, per_cell: bool = False) -> float:
    """Root mean squared error between the two mean expression vectors.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    genes
        Genes to score: positions, or a mask of shape `(n_vars,)`; all of them if `None`.
    per_cell
        Compare cell with cell, row by row, and take the mean of the squares over cells and genes, instead of averaging
        the cells first. The two groups then have the same cells in the same order.

    Returns
    -------
    Error in the unit of the data; 0 is perfect.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ; if `genes` is empty, repeats
        a gene or names one that does not exist; with `per_cell`, if the numbers of cells differ.

    Examples
    --------
    >>> rmse(np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([[1.0, 4.0]]))
    2.1213203435596424
    """
    return float(np.sqrt(mse(predicted, observed, genes=genes, per_cell=per_cell)))


def mse(predicted: Matrix, observed: Matrix, *, genes: np.ndarray | None = None, per_cell: bool = False) -> float:
    """Mean squared error between the two mean expression vectors.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    genes
        Genes to score: positions, or a mask of shape `(n_vars,)`; all of them if `None`.
    per_cell
        Compare cell with cell, row by row, and take the mean over cells and genes, instead of averaging the cells
        first. The two groups then have the same cells in the same order.

    Returns
    -------
    Error in the squared unit of the data; 0 is perfect.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ; if `genes` is empty, repeats
        a gene or names one that does not exist; with `per_cell`, if the numbers of cells differ.

    Examples
    --------
    >>> predicted, observed = np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([[1.0, 4.0], [1.0, 4.0]])
    >>> mse(predicted, observed), mse(predicted, observed, genes=[0]), mse(predicted, observed, per_cell=True)
    (4.5, 0.0, 5.0)
    """
    return _mean_error(np.square, predicted, observed, genes, per_cell)


def mae(predicted: Matrix, observed: Matrix, *, genes: np.ndarray | None = None, per_cell: bool = False) -> float:
    """Mean absolute error between the two mean expression vectors.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    genes
        Genes to score: positions, or a mask of shape `(n_vars,)`; all of them if `None`.
    per_cell
        Compare cell with cell, row by row, and take the mean over cells and genes, instead of averaging the cells
        first. The two groups then have the same cells in the same order.

    Returns
    -------
    Error in the unit of the data; 0 is perfect.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ; if `genes` is empty, repeats
        a gene or names one that does not exist; with `per_cell`, if the numbers of cells differ.

    Examples
    --------
    >>> mae(np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([[1.0, 4.0]]))
    1.5
    """
    return _mean_error(np.abs, predicted, observed, genes, per_cell)


def r2(predicted: Matrix, observed: Matrix, *, genes: np.ndarray | None = None, per_cell: bool = False) -> float:
    """Coefficient of determination of the predicted mean vector.

    One minus the squared error over the spread of the observed means around their own average over genes. It is
    unbounded below, sees scale and offset, and is not the squared correlation; that one is :func:`r2_pearson`.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    genes
        Genes to score: positions, or a mask of shape `(n_vars,)`; all of them if `None`.
    per_cell
        Score every cell over its genes, row by row, and take the mean over those cells whose score is defined. The two
        groups then have the same cells in the same order.

    Returns
    -------
    At most 1; 0 for predicting every gene by the average over genes; `nan` if the observed means are all equal, as
    those of a single gene are.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ; if `genes` is empty, repeats
        a gene or names one that does not exist; with `per_cell`, if the numbers of cells differ.

    Examples
    --------
    >>> observed = np.array([[1.0, 2.0, 3.0]])
    >>> r2(2 * observed, observed)
    -6.0
    >>> round(r2_pearson(2 * observed, observed), 3)
    1.0
    """
    return _mean_score(_determination, predicted, observed, genes, per_cell)


def r2_pearson(
    predicted: Matrix, observed: Matrix, *, genes: np.ndarray | None = None, per_cell: bool = False
) -> float:
    """Squared Pearson correlation of the two mean expression vectors.

    The "R2" of much of the literature. Baseline expression dominates it: on real cells the control alone often passes
    0.7. It does not see scale and offset; :func:`r2` does.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    genes
        Genes to score: positions, or a mask of shape `(n_vars,)`; all of them if `None`.
    per_cell
        Score every cell over its genes, row by row, and take the mean over those cells whose score is defined. The two
        groups then have the same cells in the same order.

    Returns
    -------
    Between 0 and 1; `nan` if either mean vector is constant, as that of a single gene is.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ; if `genes` is empty, repeats
        a gene or names one that does not exist; with `per_cell`, if the numbers of cells differ.

    Examples
    --------
    >>> round(r2_pearson(np.array([[1.0, 2.0, 4.0]]), np.array([[1.0, 2.0, 3.0]])), 3)
    0.964
    """
    return _mean_score(lambda first, second: correlation(first, second) ** 2, predicted, observed, genes, per_cell)


def select_genes(genes: np.ndarray | None, n_vars: int) -> np.ndarray | slice:
    """An index of the genes to score from positions or a mask, checked; all genes for `None`."""
    if genes is None:
        return slice(None)
    genes = np.asarray(genes)
    if genes.dtype == bool and genes.shape != (n_vars,):
        raise ValueError(f"`genes` is a mask of shape {genes.shape} but there are {n_vars} genes.")
    positions = np.flatnonzero(genes) if genes.dtype == bool else genes
    if positions.size == 0:
        raise ValueError("`genes` names no gene to score; it must name at least 1.")
    if positions.ndim != 1 or positions.dtype.kind not in "iu":
        raise ValueError(
            "`genes` must be positions (integers, one dimension) or a boolean mask; "
            f"it has dtype {positions.dtype} and shape {positions.shape}."
        )
    outside = positions[(positions < 0) | (positions >= n_vars)]
    if outside.size:
        raise ValueError(
            f"`genes` holds {outside.size} positions that do not exist, such as {outside[0]}; "
            f"there are {n_vars} genes, from 0 to {n_vars - 1}."
        )
    n_repeated = positions.size - np.unique(positions).size
    if n_repeated:
        raise ValueError(f"`genes` repeats {n_repeated} of {positions.size} positions; name each gene once.")
    return positions


def _mean_error(
    error: Callable[[np.ndarray], np.ndarray],
    predicted: Matrix,
    observed: Matrix,
    genes: np.ndarray | None,
    per_cell: bool,
) -> float:
    total, size = 0.0, 0
    for first, second in _compared(predicted, observed, genes, per_cell):
        total += error(first - second).sum()
        size += first.size
    return float(total / size)


def _mean_score(
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    predicted: Matrix,
    observed: Matrix,
    genes: np.ndarray | None,
    per_cell: bool,
) -> float:
    pairs = _compared(predicted, observed, genes, per_cell)
    scores = np.concatenate([score(first, second) for first, second in pairs])
    defined = scores[~np.isnan(scores)]
    return float(defined.mean()) if defined.size else np.nan


def _compared(
    predicted: Matrix, observed: Matrix, genes: np.ndarray | None, per_cell: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of predicted and observed values to compare: blocks of cells, or the one pair of mean vectors."""
    predicted, observed = as_cells(predicted=predicted, observed=observed)
    selected = select_genes(genes, observed.n_vars)
    if not per_cell:
        yield predicted.mean[None, selected], observed.mean[None, selected]
        return
    if len(predicted) != len(observed):
        raise ValueError(
            f"`predicted` has {len(predicted)} cells but `observed` has {len(observed)}; "
            "`per_cell` compares them row by row, so give both the same cells in the same order."
        )
    for first, second in zip(predicted.blocks(), observed.blocks(), strict=True):
        yield first[:, selected], second[:, selected]


def _determination(predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:
    spread = np.sum(_centred(observed) ** 2, axis=-1)
    error = np.sum((observed - predicted) ** 2, axis=-1)
    return 1 - error / np.where(spread == 0, np.nan, spread)


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson correlation along the last axis; `nan` where a vector is constant but for rounding."""
    return cosine(_centred(first), _centred(second))


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine along the last axis; `nan` where a vector is zero."""
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(np.sum(first * second, axis=-1) / norms, -1, 1)


def _centred(vector: np.ndarray) -> np.ndarray:
    centred = vector - vector.mean(axis=-1, keepdims=True)
    noise = 1e-12 * np.linalg.norm(vector, axis=-1, keepdims=True)
    return np.where(np.linalg.norm(centred, axis=-1, keepdims=True) <= noise, 0.0, centred)
