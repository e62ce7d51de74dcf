from __future__ import annotations

from typing import get_args

import numpy as np

from ._cells import Matrix, as_cells
from ._de import Direction, _top_genes, welch_t
from ._delta import check_pseudocount, mean_count


def top_de_genes(observed: Matrix, control: Matrix, k: int = 50, *, direction: Direction = "absolute") -> np.ndarray:
    """Positions of the genes that differ most between observed and control cells, by Welch's t.

    The argument `genes` of the metrics takes them. They are chosen with the cells that the prediction is then scored
    on, which is right for an evaluation and wrong for anything that is trained or tuned.

    Parameters
    ----------
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    control
        Control cells of the same context, shape `(n_control, n_vars)`.
    k
        Number of genes; fewer where fewer genes change in the direction asked for.
    direction
        "absolute" ranks by the size of the statistic, "up" by its value, "down" by its negative.

    Returns
    -------
    Positions, the strongest first, shape `(<= k,)`; none if a group has a single cell.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ; if `k` is below 1 or
        `direction` unknown.

    Examples
    --------
    >>> control = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    >>> top_de_genes(control + [3.0, 0.5, -9.0], control, k=2)
    array([2, 0])
    >>> top_de_genes(control + [3.0, 0.5, -9.0], control, k=2, direction="up")
    array([0, 1])
    """
    if k < 1:
        raise ValueError(f"`k` is {k}; it must be at least 1.")
    if direction not in get_args(Direction):
        raise ValueError(f"`direction` is {direction!r}; it must be one of {', '.join(get_args(Direction))}.")
    return _top_genes(welch_t(observed, control), k, direction)


def large_effect_genes(
    observed: Matrix, control: Matrix, *, k: int = 50, min_logfc: float = 1.0, pseudocount: float = 0.1
) -> np.ndarray:
    """Those of the top differentially expressed genes whose expression at least doubles or halves.

    The gene set of PerturbNet's evaluation :cite:p:`Yu2025`: of the `k` largest Welch statistics, up or down, those
    with a log2 fold change of at least `min_logfc`. The fold change is that of normalised counts,
    `(mean(expm1(x)) + pseudocount) / (mean(expm1(control)) + pseudocount)`; the pseudocount keeps genes that are silent
    in one group from passing on a single count. A prediction is scored on two genes or more, so with fewer its score is
    `nan`.

    Parameters
    ----------
    observed
        Perturbed cells that were measured, log1p-normalised, shape `(n_observed, n_vars)`.
    control
        Control cells of the same context, log1p-normalised, shape `(n_control, n_vars)`.
    k
        Number of genes to choose from.
    min_logfc
        Least size of the log2 fold change, itself included.
    pseudocount
        Added to both means, in normalised counts.

    Returns
    -------
    Positions, the largest statistic first, shape `(<= k,)`; possibly none.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or values too large for logarithms, or the numbers of genes
        differ; if `k` is below 1, `min_logfc` negative, or `pseudocount` negative or not finite.

    Examples
    --------
    >>> control = np.log1p([[2.0, 20.0, 9.0], [4.0, 20.2, 9.0]])
    >>> observed = np.log1p([[9.0, 22.0, 9.0], [11.0, 22.2, 9.0]])
    >>> top_de_genes(observed, control), large_effect_genes(observed, control)
    (array([1, 0]), array([0]))
    """
    if not min_logfc >= 0:
        raise ValueError(f"`min_logfc` is {min_logfc}; it must not be negative.")
    check_pseudocount(pseudocount)
    observed, control = as_cells(observed=observed, control=control)
    top = top_de_genes(observed, control, k)
    means = (mean_count("observed", observed)[top], mean_count("control", control)[top])
    with np.errstate(divide="ignore", invalid="ignore"):
        of_observed, of_control = (np.log2(mean + pseudocount) for mean in means)
        return top[np.abs(of_observed - of_control) >= min_logfc]
