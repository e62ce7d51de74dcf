from __future__ import annotations

import numpy as np

from ._cells import BLOCK_ROWS, Matrix, as_cells
from ._delta import delta
from ._error import correlation, select_genes

TIE_RESOLUTION = 1e-12


def pearson_centroid(
    predicted: Matrix, observed: Matrix, centroid: np.ndarray, *, genes: np.ndarray | None = None
) -> float:
    """Correlation of predicted and observed mean difference from the average perturbed state.

    As :func:`pearson_delta`, with the average over perturbations in the place of the control cells: what all
    perturbations share, such as the stress of being perturbed at all, earns nothing, only what is particular to this
    one does :cite:p:`VinasTorne2025`.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    centroid
        Average of the mean vectors of the training perturbations, each counting once and the control left out, shape
        `(n_vars,)`. Held-out perturbations do not belong in it.
    genes
        Genes to score: positions, or a mask of shape `(n_vars,)`; all of them if `None`.

    Returns
    -------
    Pearson correlation over genes; `nan` if either difference is constant, or no larger than the rounding of float32,
    as for predicting the centroid itself.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ; if `genes` is empty, repeats
        a gene or names one that does not exist.

    Examples
    --------
    >>> training_means = np.array([[2.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
    >>> observed, predicted = np.array([[3.0, 1.0, 0.0]]), np.array([[2.0, 1.0, 0.0]])
    >>> round(pearson_centroid(predicted, observed, training_means.mean(axis=0)), 3)
    0.982
    """
    predicted, observed = as_cells(predicted=predicted, observed=observed)
    centroid = as_vector("centroid", centroid, observed.n_vars)
    selected = select_genes(genes, observed.n_vars)
    changes = [delta(group.mean[selected], centroid[selected]) for group in (predicted, observed)]
    return float(correlation(*changes))


def centroid_accuracy(predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Share of the other perturbations whose observed mean is farther from the prediction than that of its own.

    Distances are Euclidean, and one as far as its own counts half :cite:p:`VinasTorne2025`. A prediction that is the
    same for all perturbations scores one half on average. The P x P distances cost P^2 x n_vars operations, done as
    matrix products, and are never held all at once.

    Parameters
    ----------
    predicted
        Predicted means, one row for each perturbation, shape `(n_perturbations, n_vars)`.
    observed
        Observed means in the same order, shape `(n_perturbations, n_vars)`.

    Returns
    -------
    Between 0 and 1 for each perturbation, shape `(n_perturbations,)`; `nan` if there is only one.

    Raises
    ------
    ValueError
        If an array is not perturbations x genes, is empty, holds NaN or infinite values, or the shapes differ.

    Examples
    --------
    >>> observed = np.array([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
    >>> centroid_accuracy(np.array([[0.1, 0.0], [3.0, 0.0], [2.9, 0.0]]), observed)
    array([1.  , 0.75, 0.5 ])
    """
    predicted, observed = as_means(predicted=predicted, observed=observed)
    n_perturbations = len(observed)
    if n_perturbations == 1:
        return np.array([np.nan])
    # a common shift leaves the distances as they are and takes away the digits that they have in common
    middle = observed.mean(axis=0)
    predicted, observed = predicted - middle, observed - middle
    squares = np.sum(observed**2, axis=1)
    accuracy = np.empty(n_perturbations)
    for start in range(0, n_perturbations, BLOCK_ROWS):
        block = predicted[start : start + BLOCK_ROWS]
        own = start + np.arange(len(block))
        # squared distance less the squared norm of the prediction, which all of its distances contain
        distance = squares - 2 * block @ observed.T
        farther = distance - distance[np.arange(len(block)), own][:, None]
        size = squares + squares[own][:, None] + np.sum(block**2, axis=1)[:, None]
        farther[np.abs(farther) <= TIE_RESOLUTION * size] = 0
        # its own is a tie of each row with itself, which is not to be counted
        wins = np.sum(np.sign(farther) + 1, axis=1) / 2 - 0.5
        accuracy[own] = wins / (n_perturbations - 1)
    return accuracy


def as_means(**means: np.ndarray) -> list[np.ndarray]:
    """Check mean vectors given by argument name: perturbations x genes, not empty, finite, all of one shape."""
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in means.items()}
    first = next(iter(arrays))
    for name, values in arrays.items():
        if values.ndim != 2 or values.size == 0:
            raise ValueError(f"`{name}` must be perturbations x genes and not empty; it has shape {values.shape}.")
        if values.shape != arrays[first].shape:
            raise ValueError(
                f"`{name}` has shape {values.shape} but `{first}` has {arrays[first].shape}; "
                "give both the same perturbations and genes in the same order."
            )
        _check_finite(name, values)
    return list(arrays.values())


def as_vector(name: str, values: np.ndarray, n_vars: int) -> np.ndarray:
    """Check one finite value for each gene, given by argument name."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.shape != (n_vars,):
        raise ValueError(f"`{name}` must have one value for each of {n_vars} genes; it has shape {vector.shape}.")
    _check_finite(name, vector)
    return vector


def _check_finite(name: str, values: np.ndarray) -> None:
    n_bad = values.size - int(np.isfinite(values).sum())
    if n_bad:
        raise ValueError(
            f"`{name}` holds {n_bad} values that are NaN or infinite, of {values.size}; remove them first."
        )
