from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
from scipy.spatial.distance import cdist

from ._cells import as_cells
from ._centroid import as_vector
from ._delta import _log_ratio, delta
from ._error import _centred

PairMetric: TypeAlias = Literal[
    "cosine",
    "cosine_delta",
    "cosine_logfc",
    "euclidean",
    "mae",
    "mse",
    "pearson",
    "pearson_delta",
    "r2",
    "r2_pearson",
    "rmse",
]
NEEDS_CONTROL = ("cosine_delta", "cosine_logfc", "pearson_delta")
PSEUDOCOUNT = 0.1
# below this share of the squared lengths a squared distance is computed anew from the difference of the vectors
CANCELLATION = 1e-3


def pairwise(
    predicted: np.ndarray,
    observed: np.ndarray,
    metric: PairMetric = "rmse",
    *,
    control: np.ndarray | None = None,
) -> np.ndarray:
    """Score every predicted mean against every observed mean.

    Errors and similarities come from one matrix product of centred vectors; where that would lose digits, because two
    vectors nearly agree, the pair is computed from its difference. Only "mae" has no such form and visits every pair.
    The numbers are those of the functions of the same names on the two means.

    Parameters
    ----------
    predicted
        Predicted mean expression of each perturbation, shape `(n_predicted, n_vars)`.
    observed
        Observed mean expression of each perturbation, shape `(n_observed, n_vars)`.
    metric
        Errors, lower is better: "rmse", "mse", "mae" (mean absolute difference over genes), "euclidean" (length of the
        difference). Similarities, higher is better: "r2", "pearson", "r2_pearson" (its square) and "cosine" of the
        means; "pearson_delta" and "cosine_delta" of their changes from control; "cosine_logfc" of log2 fold changes
        with a pseudocount of 0.1, as in PerturBench :cite:p:`Wu2024`.
    control
        Mean expression of the control cells, shape `(n_vars,)`; used by the last three alone.

    Returns
    -------
    Matrix of shape `(n_observed, n_predicted)`: row `i`, column `j` scores prediction `j` against observation `i`.
    `nan` where the metric of the pair is not defined, as for a correlation with a constant vector.

    Raises
    ------
    ValueError
        If `metric` is unknown, a matrix is empty or holds NaN or infinite values, the numbers of genes differ, or the
        metric needs `control` and none is given.

    See Also
    --------
    rank : where the right pair stands in such a matrix.

    Examples
    --------
    >>> predicted = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    >>> observed = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> pairwise(predicted, observed, "euclidean").round(2)
    array([[0.  , 2.24, 1.  ],
           [1.41, 1.  , 1.  ]])
    >>> pairwise(predicted, observed, "cosine_delta", control=np.array([0.0, 0.0])).round(2)
    array([[1.  , 0.  , 0.71],
           [0.  , 1.  , 0.71]])
    """
    if metric not in get_args(PairMetric):
        raise ValueError(f"`metric` is {metric!r}; it must be one of {', '.join(get_args(PairMetric))}.")
    first, second = (means.dense() for means in as_cells(predicted=predicted, observed=observed))
    if metric in NEEDS_CONTROL:
        if control is None:
            raise ValueError(f"`metric` {metric!r} needs `control`, the mean expression of the control cells.")
        baseline = as_vector("control", control, second.shape[1])
        change = _log_fold_changes if metric == "cosine_logfc" else deltas
        first, second = change(first, baseline), change(second, baseline)

    match metric:
        case "mae":
            return cdist(second, first, "cityblock") / first.shape[1]
        case "mse":
            return _squares(first, second) / first.shape[1]
        case "rmse":
            return np.sqrt(_squares(first, second) / first.shape[1])
        case "euclidean":
            return np.sqrt(_squares(first, second))
        case "r2":
            spread = np.sum(_centred(second) ** 2, axis=1, keepdims=True)
            return 1 - _squares(first, second) / np.where(spread == 0, np.nan, spread)
        case "r2_pearson":
            return correlations(first, second) ** 2
        case "pearson" | "pearson_delta":
            return correlations(first, second)
        case "cosine" | "cosine_delta" | "cosine_logfc":
            return _cosines(first, second)


def deltas(means: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Mean - control mean for each row; all zero where that could be the rounding of float32 cells."""
    return np.array([delta(mean, control) for mean in means])


def correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson correlation over genes of every row of `second` with every row of `first`; `nan` for constant rows."""
    return _cosines(_centred(first), _centred(second))


def _log_fold_changes(means: np.ndarray, control: np.ndarray) -> np.ndarray:
    return np.array([_log_ratio(mean, control, PSEUDOCOUNT) for mean in means])


def _cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        first, second = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (first, second))
    return np.clip(second @ first.T, -1, 1)


def _squares(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squared Euclidean distance of every row of `second` to every row of `first`."""
    # a common shift changes no distance but makes the products, whose difference is taken, small
    centre = second.mean(axis=0)
    first, second = first - centre, second - centre
    of_first, of_second = (np.einsum("ij,ij->i", vectors, vectors) for vectors in (first, second))
    squares = second @ first.T
    for row, square in enumerate(squares):
        size = of_first + of_second[row]
        square *= -2
        square += size
        near = np.flatnonzero(square <= CANCELLATION * size)
        square[near] = np.sum((first[near] - second[row]) ** 2, axis=1)
    return squares
