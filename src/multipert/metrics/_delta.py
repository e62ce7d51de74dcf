from __future__ import annotations

import numpy as np
from scipy import sparse

from ._cells import Cells, Matrix, as_cells, stored_values
from ._error import correlation, cosine, select_genes

FLOAT32_RESOLUTION = 1e-6
LARGEST_LOG = 30.0
"""No count has a larger natural logarithm; what is above cannot be log1p of counts."""


def pearson_delta(
    predicted: Matrix,
    observed: Matrix,
    control: Matrix,
    *,
    genes: np.ndarray | None = None,
    control_split: bool = False,
    seed: int = 0,
) -> float:
    """Correlation of predicted and observed mean change.

    Both means are taken relative to the mean of the control cells, so a method that only repeats the control earns
    nothing from baseline expression. It does earn from the noise of that mean, which both changes contain: three
    groups of equally many cells without any effect correlate by about one half. `control_split` takes this away by
    giving each change its own half of the control cells. That is fair to a prediction whose noise is independent of
    `control`, such as measured cells of another replicate. A prediction made out of these very control cells, which
    are control plus a shift, has no such noise in its change from all of them, and splitting them adds some of the
    opposite sign.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    control
        Control cells of the same context, shape `(n_control, n_vars)`.
    genes
        Genes to score: positions, or a mask of shape `(n_vars,)`; all of them if `None`.
    control_split
        Take the observed change from a random half of the control cells and the predicted change from the others.
    seed
        Which halves.

    Returns
    -------
    Pearson correlation over genes; `nan` if either change is constant, or no larger than the rounding of float32, or if
    a single control cell is to be split.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ; if `genes` is empty, repeats
        a gene or names one that does not exist.

    Examples
    --------
    >>> control = np.zeros((2, 3))
    >>> round(pearson_delta(control + [1, 2, 3], control + [2, 4, 6], control), 3)
    1.0
    """
    predicted, observed, control = as_cells(predicted=predicted, observed=observed, control=control)
    selected = select_genes(genes, control.n_vars)
    if control_split and len(control) < 2:
        return np.nan
    of_observed, of_predicted = _halves(control, seed) if control_split else (control, control)
    return float(
        correlation(
            delta(predicted.mean[selected], of_predicted.mean[selected]),
            delta(observed.mean[selected], of_observed.mean[selected]),
        )
    )


def cosine_logfc(
    predicted: Matrix,
    observed: Matrix,
    control: Matrix,
    *,
    pseudocount: float = 0.1,
    genes: np.ndarray | None = None,
) -> float:
    """Cosine of predicted and observed log fold change.

    The log fold change of a gene is `log2(mean + pseudocount) - log2(control mean + pseudocount)` with means of the
    values as given, as in PerturBench :cite:p:`Wu2024`. On log-normalised values it is thus not the fold change of
    counts, which is :func:`cosine_fold_change`, and genes near zero weigh more than in :func:`pearson_delta`. A gene
    whose mean is below `-pseudocount` counts as unchanged.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    control
        Control cells of the same context, shape `(n_control, n_vars)`.
    pseudocount
        Added to every mean, in the unit of the data.
    genes
        Genes to score: positions, or a mask of shape `(n_vars,)`; all of them if `None`.

    Returns
    -------
    Cosine over genes; `nan` if either group shows no change.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ; if `genes` is empty, repeats
        a gene or names one that does not exist; if `pseudocount` is negative or not finite.

    Examples
    --------
    >>> control = np.array([[1.0, 1.0]])
    >>> round(cosine_logfc(np.array([[2.0, 1.0]]), np.array([[3.0, 1.0]]), control), 3)
    1.0
    >>> round(cosine_logfc(np.array([[1.0, 2.0]]), np.array([[3.0, 1.0]]), control), 3)
    0.0
    """
    check_pseudocount(pseudocount)
    predicted, observed, control = as_cells(predicted=predicted, observed=observed, control=control)
    selected = select_genes(genes, control.n_vars)
    means = [group.mean[selected] for group in (predicted, observed, control)]
    return float(cosine(*(_log_ratio(mean, means[-1], pseudocount) for mean in means[:2])))


def cosine_fold_change(
    predicted: Matrix,
    observed: Matrix,
    control: Matrix,
    *,
    pseudocount: float = 0.1,
    genes: np.ndarray | None = None,
) -> float:
    """Cosine of predicted and observed log fold change of counts.

    The values are taken back from `log1p` cell by cell before they are averaged, so that the log fold change of a gene,
    `log2(mean(expm1(x)) + pseudocount) - log2(mean(expm1(control)) + pseudocount)`, is that of normalised counts.
    :func:`cosine_logfc` averages first and stays in log space. Scanpy's `logfoldchanges` lie between the two: they take
    `expm1` of the averaged logarithms.

    Parameters
    ----------
    predicted
        Counterfactual cells, log1p-normalised, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, log1p-normalised, shape `(n_observed, n_vars)`.
    control
        Control cells of the same context, log1p-normalised, shape `(n_control, n_vars)`.
    pseudocount
        Added to every mean, in normalised counts.
    genes
        Genes to score: positions, or a mask of shape `(n_vars,)`; all of them if `None`.

    Returns
    -------
    Cosine over genes; `nan` if either group shows no change.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or values too large for logarithms, or the numbers of genes
        differ; if `genes` is empty, repeats a gene or names one that does not exist; if `pseudocount` is negative or
        not finite.

    Examples
    --------
    >>> control = np.log1p([[1.0, 1.0, 4.0]])
    >>> observed, predicted = np.log1p([[2.0, 1.0, 4.0], [4.0, 1.0, 4.0]]), np.log1p([[3.0, 1.0, 4.0]])
    >>> round(cosine_fold_change(predicted, observed, control), 3)
    1.0
    """
    check_pseudocount(pseudocount)
    predicted, observed, control = as_cells(predicted=predicted, observed=observed, control=control)
    selected = select_genes(genes, control.n_vars)
    groups = {"predicted": predicted, "observed": observed, "control": control}
    means = [mean_count(name, group)[selected] for name, group in groups.items()]
    return float(cosine(*(_log_ratio(mean, means[-1], pseudocount) for mean in means[:2])))


def sign_accuracy(predicted: Matrix, observed: Matrix, control: Matrix, *, genes: np.ndarray | None = None) -> float:
    """Share of the changed genes that are predicted to change in the direction in which they do.

    A gene has changed if its observed mean differs from that of the control cells by more than the rounding of float32
    could make it, so that over all genes most signs are those of noise: select the genes that respond, for instance
    with :func:`top_de_genes`. A predicted change of zero has no direction and counts as wrong. A coin scores one half.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    control
        Control cells of the same context, shape `(n_control, n_vars)`.
    genes
        Genes to score: positions, or a mask of shape `(n_vars,)`; all of them if `None`.

    Returns
    -------
    Between 0 and 1; `nan` if no gene changes.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ; if `genes` is empty, repeats
        a gene or names one that does not exist.

    Examples
    --------
    >>> control = np.ones((2, 4))
    >>> sign_accuracy(control + [2, 0, 1, 1], control + [1, 1, -1, 0], control)
    0.3333333333333333
    """
    predicted, observed, control = as_cells(predicted=predicted, observed=observed, control=control)
    selected = select_genes(genes, control.n_vars)
    of_predicted, of_observed = (_direction(group, control)[selected] for group in (predicted, observed))
    changed = of_observed != 0
    return float(np.mean(of_predicted[changed] == of_observed[changed])) if changed.any() else np.nan


def delta(group: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Perturbed mean - control mean; all zero if it could be the rounding of float32 cells."""
    change = group - control
    noise = FLOAT32_RESOLUTION * np.linalg.norm(control)
    return np.zeros_like(change) if np.linalg.norm(change) <= noise else change


def mean_count(name: str, cells: Cells) -> np.ndarray:
    """Mean of `expm1` of each gene, of the group with this argument name."""
    stored = stored_values(cells.values)
    largest = float(stored.max()) if stored.size else 0.0
    if largest > LARGEST_LOG:
        raise ValueError(
            f"`{name}` holds values up to {largest:g}, which cannot be log1p of counts; "
            "normalise the counts and take log1p first."
        )
    if isinstance(cells.values, np.ndarray):
        return np.sum([np.expm1(block).sum(axis=0) for block in cells.blocks()], axis=0) / len(cells)
    counts = np.expm1(cells.values.data, dtype=np.float64)
    return Cells(sparse.csr_matrix((counts, cells.values.indices, cells.values.indptr), cells.values.shape)).mean


def check_pseudocount(pseudocount: float) -> None:
    """Refuse what cannot be added to a mean before its logarithm."""
    if not 0 <= pseudocount < np.inf:
        raise ValueError(f"`pseudocount` is {pseudocount}; it must be finite and not negative.")


def _log_ratio(group: np.ndarray, control: np.ndarray, pseudocount: float) -> np.ndarray:
    """Log2 fold change of mean vectors, 0 where it is not finite."""
    with np.errstate(invalid="ignore", divide="ignore"):
        change = np.log2(control + delta(group, control) + pseudocount) - np.log2(control + pseudocount)
    return np.where(np.isfinite(change), change, 0.0)


def _direction(group: Cells, control: Cells) -> np.ndarray:
    """Sign of the change of each gene, 0 where it could be the rounding of float32 cells."""
    change = group.mean - control.mean
    noise = FLOAT32_RESOLUTION * np.maximum(np.abs(group.mean), np.abs(control.mean))
    return np.where(np.abs(change) <= noise, 0.0, np.sign(change))


def _halves(cells: Cells, seed: int) -> tuple[Cells, Cells]:
    order = np.random.default_rng(seed).permutation(len(cells))
    first, second = np.split(order, [len(cells) // 2])
    return cells[np.sort(first)], cells[np.sort(second)]
