from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ._cells import Matrix, as_cells
from ._de import Average, check_labels, check_log_scale, de_genes, linear_mean, log2_fold_change

if TYPE_CHECKING:
    from collections.abc import Sequence

MIN_GENES = 5


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the curve of precision against recall, as a sum of steps.

    The sum over distinct scores, from high to low, of the precision among the genes that reach the score times the
    gain in recall. Equal scores enter together, so their order does not matter and a constant score gives the
    prevalence. Joining the points by lines would flatter a bad ranking.

    Parameters
    ----------
    labels
        Which genes are to be found, boolean of shape `(n_vars,)`.
    scores
        Shape `(n_vars,)`, higher for genes that are found first; may be infinite.

    Returns
    -------
    Between 0 and 1; `nan` if no gene is to be found.

    Raises
    ------
    ValueError
        If `labels` is not boolean, `scores` holds NaN, or their shapes differ.

    Examples
    --------
    >>> round(average_precision(np.array([True, False, True, False]), np.array([4.0, 3.0, 2.0, 1.0])), 3)
    0.833
    """
    return _area(*_curve(labels, scores), int(np.sum(labels)))


def precision_at_recall(labels: np.ndarray, scores: np.ndarray, recall: float, *, interpolated: bool = False) -> float:
    """Precision at the highest score whose recall reaches a level.

    Parameters
    ----------
    labels
        Which genes are to be found, boolean of shape `(n_vars,)`.
    scores
        Shape `(n_vars,)`, higher for genes that are found first; may be infinite.
    recall
        Level to reach, above 0 and at most 1.
    interpolated
        Take the highest precision at that or any higher recall.

    Returns
    -------
    Between 0 and 1; `nan` if no gene is to be found.

    Raises
    ------
    ValueError
        If `labels` is not boolean, `scores` holds NaN, their shapes differ, or `recall` is not in 0 to 1.

    Examples
    --------
    >>> labels, scores = np.array([True, False, False, True, True]), np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    >>> precision_at_recall(labels, scores, 0.6), precision_at_recall(labels, scores, 0.6, interpolated=True)
    (0.5, 0.6)
    """
    n_wanted = int(np.sum(labels))
    return _precision_at(*_curve(labels, scores), n_wanted, recall=recall, interpolated=interpolated)


def prevalence(labels: np.ndarray) -> float:
    """Share of genes to be found: the average precision of a score that tells nothing.

    Parameters
    ----------
    labels
        Which genes are to be found, boolean of shape `(n_vars,)`.

    Returns
    -------
    Between 0 and 1; `nan` for no genes.

    Raises
    ------
    ValueError
        If `labels` is not boolean.

    Examples
    --------
    >>> prevalence(np.array([True, False, False, False]))
    0.25
    """
    labels = check_labels(labels, np.size(labels))
    return float(labels.mean()) if labels.size else np.nan


def auprc_de(
    predicted: Matrix,
    observed: Matrix,
    control: Matrix,
    *,
    labels: np.ndarray | None = None,
    signed: bool = False,
    exclude: Sequence[int] = (),
) -> float:
    """Does the size of the predicted fold change find the differentially expressed genes? Average precision.

    In-silico differential expression :cite:p:`Zhu2025`: the :meth:`~DERetrieval.average_precision` of
    :func:`retrieve_de` with its defaults. A ranking by chance reaches the :func:`prevalence` of the genes to be found,
    which differs between perturbations.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`; a single row of means will do.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`. All cells are `log1p` of 10,000 counts per
        cell.
    control
        Control cells of the same context, shape `(n_control, n_vars)`.
    labels
        Which genes are differentially expressed, boolean of shape `(n_vars,)`; None takes :func:`de_genes`.
    signed
        A gene counts as found only if it is predicted to move in the observed direction.
    exclude
        Positions of genes to leave out, such as the perturbed gene itself.

    Returns
    -------
    Between 0 and 1; `nan` if fewer than 5 genes are to be found.

    Raises
    ------
    ValueError
        As :func:`retrieve_de`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> control = np.log1p(rng.poisson(3.0, (40, 50)))
    >>> observed = np.log1p(rng.poisson(3.0 + 4.0 * (np.arange(50) < 8), (40, 50)))
    >>> auprc_de(observed, observed, control), auprc_de(control, observed, control)
    (1.0, 0.16)
    """
    retrieval = retrieve_de(predicted, observed, control, labels=labels, signed=signed, exclude=exclude)
    return retrieval.average_precision()


@dataclass(frozen=True, eq=False)
class DERetrieval:
    """Differentially expressed genes found by a ranking of predicted fold changes, as :func:`retrieve_de` returns it."""

    hits: np.ndarray
    """Whether a gene is one to be found, boolean of shape `(n_ranked,)`."""
    scores: np.ndarray
    """Size of the predicted log2 fold change, shape `(n_ranked,)`."""
    n_de: int
    """How many genes are to be found; more than there are hits if some are predicted in the wrong direction."""

    def average_precision(self) -> float:
        """As :func:`average_precision`; `nan` if fewer than 5 genes are to be found."""
        return _area(*_curve(self.hits, self.scores), self.n_de) if self.n_de >= MIN_GENES else np.nan

    def precision_at_recall(self, recall: float, *, interpolated: bool = False) -> float:
        """As :func:`precision_at_recall`; 0 for a recall that is never reached, `nan` if fewer than 5 are to be found."""
        curve = _curve(self.hits, self.scores)
        precision = _precision_at(*curve, self.n_de, recall=recall, interpolated=interpolated)
        return precision if self.n_de >= MIN_GENES else np.nan

    def prevalence(self) -> float:
        """Share of the ranked genes that are to be found."""
        return self.n_de / len(self.hits) if len(self.hits) else np.nan


def retrieve_de(
    predicted: Matrix,
    observed: Matrix,
    control: Matrix,
    *,
    labels: np.ndarray | None = None,
    signed: bool = False,
    exclude: Sequence[int] = (),
    pseudocount: float = 0.1,
    average: Average = "log",
    min_mean: float = 0.05,
) -> DERetrieval:
    """Rank the genes by predicted fold change and mark those that are differentially expressed.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`; a single row of means will do.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`. All cells are `log1p` of 10,000 counts per
        cell, or `pseudocount` and `min_mean` are to be changed.
    control
        Control cells of the same context, shape `(n_control, n_vars)`.
    labels
        Which genes are differentially expressed, boolean of shape `(n_vars,)`; None takes :func:`de_genes`. Give it for
        another test, or to test once for many predictions.
    signed
        A gene counts as found only if it is predicted to move in the observed direction. One that is not can never be
        found, so that a prediction with all signs wrong has an average precision of 0.
    exclude
        Positions of genes to leave out, such as the perturbed gene itself.
    pseudocount
        Added to every average, on the scale of the counts.
    average
        How cells are averaged on the scale of the counts, as in :func:`log2_fold_change`.
    min_mean
        A gene is left out if its average is below this in control, observed and predicted cells alike, because the
        ratio of such averages is noise. A gene that any of the three expresses stays: neither a response that is missed
        nor one that is made up can be hidden.

    Returns
    -------
    The ranking; its methods give average precision, precision at a recall, and prevalence.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ; if values of `control` or
        `observed` cannot be `log1p` of normalised counts; if an option is out of its range.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> control = np.log1p(rng.poisson(3.0, (40, 50)))
    >>> observed = np.log1p(rng.poisson(3.0 + 4.0 * (np.arange(50) < 8), (40, 50)))
    >>> retrieval = retrieve_de(observed, observed, control)
    >>> retrieval.precision_at_recall(0.5), retrieval.prevalence()
    (1.0, 0.16)
    """
    predicted, observed, control = as_cells(predicted=predicted, observed=observed, control=control)
    kept = _kept_genes(exclude, observed.n_vars)
    check_log_scale(observed=observed, control=control)
    labels = check_labels(labels, observed.n_vars) if labels is not None else de_genes(observed, control)
    change = log2_fold_change(predicted, control, pseudocount=pseudocount, average=average)
    kept &= np.max([linear_mean(cells, average) for cells in (predicted, observed, control)], axis=0) >= min_mean
    hits = labels & (np.sign(change) * (observed.mean - control.mean) > 0) if signed else labels
    return DERetrieval(hits[kept], np.abs(change[kept]), int(labels[kept].sum()))


def _kept_genes(exclude: Sequence[int], n_vars: int) -> np.ndarray:
    """Boolean mask of the genes that `exclude` does not name."""
    positions = np.asarray(exclude)
    is_position = positions.dtype.kind in "iu" or positions.size == 0
    if not is_position or positions.ndim != 1 or not ((positions >= 0) & (positions < n_vars)).all():
        raise ValueError(f"`exclude` is {exclude!r}; it must list positions of genes from 0 to {n_vars - 1}.")
    kept = np.ones(n_vars, dtype=bool)
    kept[positions.astype(np.int64)] = False
    return kept


def _curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of genes that reach each distinct score, from the highest on, and how many of them are to be found."""
    scores = np.asarray(scores, dtype=np.float64)
    labels = check_labels(labels, len(scores))
    n_nan = int(np.isnan(scores).sum())
    if n_nan:
        raise ValueError(f"`scores` is NaN for {n_nan} of {scores.size} genes.")
    order = np.argsort(-scores, kind="stable")
    is_last = np.ones(len(scores), dtype=bool)
    is_last[:-1] = scores[order][1:] != scores[order][:-1]
    return np.flatnonzero(is_last) + 1, np.cumsum(labels[order])[is_last]


def _area(n_reached: np.ndarray, n_found: np.ndarray, n_wanted: int) -> float:
    # counts are divided last, so that a perfect ranking has an area of exactly 1
    return float(np.sum(n_found / n_reached * np.diff(n_found, prepend=0)) / n_wanted) if n_wanted else np.nan


def _precision_at(
    n_reached: np.ndarray, n_found: np.ndarray, n_wanted: int, *, recall: float, interpolated: bool
) -> float:
    if not 0 < recall <= 1:
        raise ValueError(f"`recall` is {recall}; it must be above 0 and at most 1.")
    if not n_wanted:
        return np.nan
    # 3 of 10 genes reach a level of 0.1 * 3, which is a little above 0.3
    precision = (n_found / n_reached)[n_found >= recall * n_wanted - 1e-9]
    if not precision.size:
        return 0.0
    return float(precision.max() if interpolated else precision[0])
