from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from scipy import sparse

from ._cells import VARIANCE_FLOOR, Cells, Matrix, as_cells, stored_values
from ._rank_genes import GeneRanking, rank_sum_scores, t_statistic

Direction = Literal["absolute", "up", "down"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
Average = Literal["log", "linear"]
MAX_LOG1P = 12


def welch_t(group: Matrix, control: Matrix) -> np.ndarray:
    """Welch's t statistic of every gene, group against control.

    Means and variances are accumulated in float64. A variance below `1e-12 (1 + mean^2)` counts as 0 and a statistic
    that is not finite as 0: a shift added to a gene that no control cell expresses gives a column that is constant up
    to rounding, and without this floor its statistic would be nothing or astronomical depending on the dtype.

    Parameters
    ----------
    group
        Predicted or observed cells, shape `(n_group, n_vars)`.
    control
        Control cells of the same context, shape `(n_control, n_vars)`.

    Returns
    -------
    Statistics, shape `(n_vars,)`, positive where the group is higher; all 0 if a group has a single cell.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ.

    Examples
    --------
    >>> control = np.array([[0.0, 0.0], [1.0, 0.0]])
    >>> welch_t(control + [3.0, 0.7], control)
    array([4.24264069, 0.        ])
    """
    group, control = as_cells(group=group, control=control)
    return _t(group, control, n_control=len(control))


def _t(group: Cells, control: Cells, n_control: int) -> np.ndarray:
    return t_statistic(group.mean, group.variance, len(group), control.mean, control.variance, n_control)[0]


def t_undefined_share(group: Matrix, control: Matrix) -> float:
    """Share of genes whose mean differs from control though neither group varies, so that t is no number.

    The rankings by t leave such genes out, in the way of PerturBench, which sets an infinite t to 0 :cite:p:`Wu2024`.
    Models that predict one and the same cell for all make many of them: read this share beside :func:`de_recall`.

    Parameters
    ----------
    group
        Predicted or observed cells, shape `(n_group, n_vars)`.
    control
        Control cells of the same context, shape `(n_control, n_vars)`.

    Returns
    -------
    Between 0 and 1, over genes; `nan` if a group has a single cell. A variance below `1e-12 (1 + mean^2)` is none.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ.

    Examples
    --------
    >>> control = np.array([[0.0, 0.0], [1.0, 0.0]])
    >>> t_undefined_share(control + [3.0, 0.7], control)
    0.5
    """
    group, control = as_cells(group=group, control=control)
    if min(len(group), len(control)) < 2:
        return np.nan
    differs = (group.mean - control.mean) ** 2 > VARIANCE_FLOOR * (1 + control.mean**2)
    return float(np.mean(differs & (group.variance == 0) & (control.variance == 0)))


def wilcoxon(group: Matrix, control: Matrix, *, tie_correct: bool = False) -> np.ndarray:
    """Wilcoxon rank-sum z score of every gene, group against control.

    The normal approximation without continuity correction, tied values sharing their average rank, as in scanpy's
    `rank_genes_groups(method="wilcoxon")` :cite:p:`Wolf2018`. Only non-zero values are sorted.

    Parameters
    ----------
    group
        Predicted or observed cells, shape `(n_group, n_vars)`.
    control
        Control cells of the same context, shape `(n_control, n_vars)`.
    tie_correct
        Shrink the variance of the rank sum for ties.

    Returns
    -------
    Scores, shape `(n_vars,)`, positive where the group is higher; 0 for a gene that is constant.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ.

    Examples
    --------
    >>> wilcoxon(np.array([[2.0, 0.0], [3.0, 0.0]]), np.array([[0.0, 0.0], [1.0, 0.0]])).round(3)
    array([1.549, 0.   ])
    """
    group, control = as_cells(group=group, control=control)
    return _wilcoxon(group, control, tie_correct=tie_correct).scores[0]


def _wilcoxon(group: Cells, control: Cells, *, tie_correct: bool, continuity: bool = False) -> GeneRanking:
    both = Cells(sparse.vstack([sparse.csr_matrix(group.values), sparse.csr_matrix(control.values)], format="csr"))
    codes = np.repeat([0, 1], [len(group), len(control)])
    ranking = rank_sum_scores(both, codes, 2, 1, tie_correct=tie_correct, continuity=continuity)
    return GeneRanking(("group",), ranking.scores[:1])


def de_overlap(
    predicted: Matrix, observed: Matrix, control: Matrix, k: int = 100, direction: Direction = "absolute"
) -> float:
    """Number of genes among the top `k` by Welch's t of both predicted and observed cells.

    Both groups are tested against the same control cells. A gene whose statistic is 0, or has the sign that
    `direction` does not ask for, is in no top set: a prediction that changes nothing shares nothing. Equal statistics
    are taken in the order of the genes.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    control
        Control cells of the same context, shape `(n_control, n_vars)`.
    k
        Size of the two sets; fewer where fewer genes change.
    direction
        "absolute" ranks by the size of the statistic, "up" by its value, "down" by its negative.

    Returns
    -------
    Between 0 and `k`; `nan` if a group has a single cell, which has no variance.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ; if `k` is below 1 or
        `direction` unknown.

    Examples
    --------
    >>> control = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    >>> observed, predicted = control + [3.0, 2.0, -9.0], control + [4.0, 3.0, 0.1]
    >>> de_overlap(predicted, observed, control, k=2), de_overlap(predicted, observed, control, k=2, direction="up")
    (1.0, 2.0)
    """
    if k < 1:
        raise ValueError(f"`k` is {k}; it must be at least 1.")
    if direction not in DIRECTIONS:
        raise ValueError(f"`direction` is {direction!r}; it must be one of {', '.join(DIRECTIONS)}.")
    predicted, observed, control = as_cells(predicted=predicted, observed=observed, control=control)
    if min(len(predicted), len(observed), len(control)) < 2:
        return np.nan
    return float(_n_common(*(_top_genes(welch_t(group, control), k, direction) for group in (predicted, observed))))


def _top_genes(statistic: np.ndarray, k: int, direction: Direction) -> np.ndarray:
    score = {"absolute": np.abs, "up": np.positive, "down": np.negative}[direction](statistic)
    top = np.argsort(-score, kind="stable")[:k]
    return top[score[top] > 0]


def _n_common(first: np.ndarray, second: np.ndarray) -> int:
    return np.intersect1d(first, second, assume_unique=True).size


def de_recall(predicted: Matrix, observed: Matrix, control: Matrix, k: int = 20) -> float:
    """Share of the top `k` genes of the observed cells that are among the top `k` of the predicted cells.

    Genes are ranked by the size of t with overestimated variance, both groups against the same control cells, as in
    PerturBench :cite:p:`Wu2024`: the number of control cells is replaced by that of the group. A statistic that is 0
    or not defined (:func:`t_undefined_share`) is in no top set. By chance the recall is `k / n_vars`.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    control
        Control cells of the same context, shape `(n_control, n_vars)`.
    k
        Size of the two sets.

    Returns
    -------
    Between 0 and 1; `nan` if a group has a single cell or there are fewer than `k` genes.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ; if `k` is below 1.

    See Also
    --------
    de_overlap : the number of genes in common by Welch's t, also by direction.

    Examples
    --------
    >>> control = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    >>> de_recall(control + [4.0, -3.0, 0.1], control + [3.0, 2.0, -9.0], control, k=2)
    0.5
    """
    if k < 1:
        raise ValueError(f"`k` is {k}; it must be at least 1.")
    predicted, observed, control = as_cells(predicted=predicted, observed=observed, control=control)
    if min(len(predicted), len(observed), len(control)) < 2 or observed.n_vars < k:
        return np.nan
    tops = (_top_genes(_t(group, control, n_control=len(group)), k, "absolute") for group in (predicted, observed))
    return _n_common(*tops) / k


def de_genes(
    observed: Matrix,
    control: Matrix,
    *,
    alpha: float = 0.05,
    min_log2_fold_change: float = 0.0,
    tie_correct: bool = True,
    continuity: bool = False,
) -> np.ndarray:
    """Which genes are differentially expressed: Wilcoxon rank-sum test, Benjamini-Hochberg `q < alpha`.

    Parameters
    ----------
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    control
        Control cells of the same context, shape `(n_control, n_vars)`.
    alpha
        Bound of the false discovery rate.
    min_log2_fold_change
        Least size of :func:`log2_fold_change`, for data that are `log1p` of 10,000 counts per cell; 0 asks for none
        and takes values of any scale.
    tie_correct
        Shrink the variance of the rank sum for ties. Without it the p values of genes that most cells do not express
        are too large, and few of these are found.
    continuity
        Move each rank sum by one half towards its expectation.

    Returns
    -------
    Boolean, shape `(n_vars,)`.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ; if `alpha` is not in 0 to 1
        or `min_log2_fold_change` is negative.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> control = np.log1p(rng.poisson(2.0, (30, 4)))
    >>> de_genes(np.log1p(rng.poisson([8.0, 2.0, 2.0, 0.3], (30, 4))), control)
    array([ True, False, False,  True])
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` is {alpha}; it must be between 0 and 1.")
    if not min_log2_fold_change >= 0:
        raise ValueError(f"`min_log2_fold_change` is {min_log2_fold_change}; it must be 0 or more.")
    observed, control = as_cells(observed=observed, control=control)
    is_de = _wilcoxon(observed, control, tie_correct=tie_correct, continuity=continuity).q_values[0] < alpha
    if min_log2_fold_change > 0:
        is_de &= np.abs(log2_fold_change(observed, control)) >= min_log2_fold_change
    return is_de


def de_direction_match(
    predicted: Matrix, observed: Matrix, control: Matrix, *, labels: np.ndarray | None = None
) -> float:
    """Share of the differentially expressed genes whose predicted mean moves in the observed direction.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    control
        Control cells of the same context, shape `(n_control, n_vars)`.
    labels
        Which genes are differentially expressed, boolean of shape `(n_vars,)`; None takes :func:`de_genes`.

    Returns
    -------
    Between 0 and 1, over the differentially expressed genes whose observed mean moves; a predicted mean that does not
    move is wrong. `nan` if there is no such gene.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ; if `labels` is not boolean
        or has another number of genes.

    Examples
    --------
    >>> control = np.zeros((2, 3))
    >>> labels = np.array([True, True, False])
    >>> de_direction_match(control + [1, 1, -1], control + [2, -1, 1], control, labels=labels)
    0.5
    """
    predicted, observed, control = as_cells(predicted=predicted, observed=observed, control=control)
    labels = check_labels(labels, observed.n_vars) if labels is not None else de_genes(observed, control)
    direction = np.sign(observed.mean - control.mean)
    is_counted = labels & (direction != 0)
    if not is_counted.any():
        return np.nan
    return float(np.mean((np.sign(predicted.mean - control.mean) == direction)[is_counted]))


def check_labels(labels: np.ndarray, n_vars: int) -> np.ndarray:
    """The labels as an array, known to be one truth value per gene."""
    labels = np.asarray(labels)
    if labels.dtype != bool or labels.shape != (n_vars,):
        raise ValueError(
            f"`labels` must be boolean, one value for each of the {n_vars} genes; its shape is {labels.shape} and its "
            f"dtype {labels.dtype}."
        )
    return labels


def log2_fold_change(
    group: Matrix, control: Matrix, *, pseudocount: float = 0.1, average: Average = "log"
) -> np.ndarray:
    """Fold change of expression, from values that are `log1p` of counts normalised to one total, on the log2 scale.

    `log2((m + pseudocount) / (m0 + pseudocount))`, where `m` and `m0` are the averages of group and control back on
    the scale of the counts. :func:`cosine_logfc` uses means of log values instead, which is no fold change of counts.

    Parameters
    ----------
    group
        Predicted or observed cells, shape `(n_group, n_vars)`. A negative average, which a prediction may have, counts
        as 0.
    control
        Control cells of the same context, shape `(n_control, n_vars)`.
    pseudocount
        Added to every average, on the scale of the counts; the default is meant for 10,000 counts per cell. With 0, a
        gene that one group does not express has an infinite fold change, and one that neither expresses has 0.
    average
        "log" takes `expm1` of the mean of the values, which single cells with huge counts do not sway and for which
        mean vectors suffice; "linear" takes the mean of `expm1` of the values.

    Returns
    -------
    Shape `(n_vars,)`, positive where the group is higher.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ; if a value of `control` is
        negative or 12 and more, so that it cannot be `log1p` of such counts; if `pseudocount` is negative or `average`
        unknown.

    Examples
    --------
    >>> control = np.log1p(np.array([[1.9, 0.0], [1.9, 0.0]]))
    >>> log2_fold_change(np.log1p(np.array([[3.9, 0.3]])), control).round(3)
    array([1., 2.])
    """
    group, control = as_cells(group=group, control=control)
    if not 0 <= pseudocount < np.inf:
        raise ValueError(f"`pseudocount` is {pseudocount}; it must be 0 or more.")
    check_log_scale(control=control)
    mean, control_mean = (linear_mean(cells, average) + pseudocount for cells in (group, control))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(mean == control_mean, 0.0, np.log2(mean) - np.log2(control_mean))


def linear_mean(cells: Cells, average: Average = "log") -> np.ndarray:
    """Average of each gene on the scale of the counts, not below 0, from `log1p` values."""
    if average not in get_args(Average):
        raise ValueError(f"`average` is {average!r}; it must be one of {', '.join(get_args(Average))}.")
    with np.errstate(over="ignore"):
        if average == "log":
            return np.maximum(np.expm1(cells.mean), 0.0)
        total = np.sum([np.expm1(block).sum(axis=0) for block in cells.blocks()], axis=0)
    return np.maximum(total / len(cells), 0.0)


def check_log_scale(**groups: Cells) -> None:
    """Raise a ValueError unless all values can be `log1p` of counts normalised to one total."""
    for name, cells in groups.items():
        stored = stored_values(cells.values)
        if not stored.size:
            continue
        n_bad = int(((stored < 0) | (stored >= MAX_LOG1P)).sum())
        if n_bad:
            raise ValueError(
                f"`{name}` holds {n_bad} values below 0 or not below {MAX_LOG1P} ({stored.min():.3g} to "
                f"{stored.max():.3g}); give log1p of counts normalised to one total per cell, such as 10,000."
            )
