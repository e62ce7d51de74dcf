from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from scipy import sparse

from multipert import _keys

from ._cells import Cells, Matrix, as_cells
from ._de import check_log_scale, log2_fold_change
from ._groups import GroupedCells, check_genes
from ._rank import rank
from ._rank_genes import GeneRanking, rank_sum_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

Distance = Literal["l1", "l2", "cosine"]
METRIC_OF_SCIPY = {"l1": "cityblock", "l2": "euclidean", "cosine": "cosine"}


def evaluate_challenge(
    predicted: AnnData,
    observed: AnnData,
    control: AnnData,
    perturbation_key: str = _keys.PERTURBATION,
    *,
    layer: str | None = None,
    control_label: str = _keys.CONTROL,
    delimiter: str | None = "+",
    alpha: float = 0.05,
    distance: Distance = "l1",
    pseudocount: float = 0.0,
) -> pd.DataFrame:
    """The three scores of the Virtual Cell Challenge for every perturbation :cite:p:`Roohani2025`.

    Every test and every change is against the control cells given here, never against control cells that come with the
    prediction, which could be altered. There is one context: call it once for each.

    Parameters
    ----------
    predicted
        Counterfactual cells of the same perturbations as `observed`. Cells labelled control are left out.
    observed
        Perturbed cells that were measured. Cells labelled control are left out.
    control
        Control cells. Cells with another label than `control_label` are left out.
    perturbation_key
        obs column of all AnnData with the perturbation.
    layer
        Layer to read in place of `X`, as in :func:`evaluate`.
    control_label
        The label of control cells.
    delimiter
        What separates the parts of a combination; None takes every label whole.
    alpha
        Bound of the false discovery rate for the sets of `des`.
    distance
        Distance of changes for `pds`.
    pseudocount
        Of the fold changes that order the genes for `des`.

    Returns
    -------
    One row per perturbation: its label, `des` (:func:`de_overlap_at_n`), `pds`
    (:func:`perturbation_discrimination`; a gene with the name of the perturbation or of one of its parts is left out),
    `mae` (mean absolute error of the mean expression over genes), `n_de` and `n_de_predicted` (sizes of the two sets
    of differentially expressed genes). The scores of a prediction are the means of the columns;
    :func:`challenge_score` joins them.

    Raises
    ------
    KeyError
        If the column or the layer is absent.
    ValueError
        If genes or perturbations differ, there are no control cells, or a value cannot be `log1p` of normalised
        counts: not finite, negative, or 12 and more.

    Examples
    --------
    >>> import anndata as ad
    >>> rng = np.random.default_rng(0)
    >>> obs = pd.DataFrame({"perturbation": np.repeat(["control", "A", "B"], 30)}).set_index(np.arange(90).astype(str))
    >>> mean = np.full((90, 20), 2.0)
    >>> mean[30:60, :4], mean[60:, 4:8] = 6, 7
    >>> cells = ad.AnnData(np.log1p(rng.poisson(mean)).astype("float32"), obs)
    >>> print(evaluate_challenge(cells[30:], cells[30:], cells[:30]).to_string(index=False))
    perturbation  des  pds  mae  n_de  n_de_predicted
               A  1.0  1.0  0.0     4               4
               B  1.0  1.0  0.0     4               4
    """
    check_genes(observed, predicted=predicted, control=control)
    groups = {
        name: GroupedCells(
            name, adata, [perturbation_key], layer=layer, control_label=control_label, delimiter=delimiter
        )
        for name, adata in (("predicted", predicted), ("observed", observed), ("control", control))
    }
    labels = _common_labels(groups, control_label)
    control_cells = groups["control"][(control_label,)]
    of_predicted, of_observed = (
        {label: groups[name][(label,)] for label in labels} for name in ("predicted", "observed")
    )
    for name, cells in (("predicted", of_predicted), ("observed", of_observed), ("control", {"": control_cells})):
        for each in cells.values():
            check_log_scale(**{name: each})

    predicted_sets, observed_sets = (
        _de_sets(list(cells.values()), control_cells, alpha, pseudocount) for cells in (of_predicted, of_observed)
    )
    means, observed_means = (
        np.array([cells.mean for cells in by_label.values()]) for by_label in (of_predicted, of_observed)
    )
    position = {gene: place for place, gene in enumerate(observed.var_names)}
    parts = [[label] if delimiter is None else [label, *label.split(delimiter)] for label in labels]
    frame = pd.DataFrame({perturbation_key: labels})
    frame["des"] = [_overlap(*sets, empty=0.0) for sets in zip(predicted_sets, observed_sets, strict=True)]
    frame["pds"] = perturbation_discrimination(
        means - control_cells.mean,
        observed_means - control_cells.mean,
        exclude=[sorted({position[part] for part in names if part in position}) for names in parts],
        distance=distance,
    )
    frame["mae"] = np.abs(means - observed_means).mean(axis=1)
    frame["n_de"] = [len(genes) for genes in observed_sets]
    frame["n_de_predicted"] = [len(genes) for genes in predicted_sets]
    return frame


def de_overlap_at_n(
    predicted: Matrix,
    observed: Matrix,
    control: Matrix,
    *,
    alpha: float = 0.05,
    pseudocount: float = 0.0,
    empty: float = 0.0,
) -> float:
    """Differential expression score of the Virtual Cell Challenge :cite:p:`Roohani2025`.

    The genes of either group with a Benjamini-Hochberg `q < alpha` against control (Wilcoxon rank-sum test with
    corrections for ties and continuity) are ordered by the size of :func:`log2_fold_change`. Where `n` genes of the
    observed cells are differentially expressed, the score is the share of them among the first `n` of the predicted
    cells. Equal fold changes are taken in the order of the genes.

    Parameters
    ----------
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    control
        Control cells of the same context, shape `(n_control, n_vars)`.
    alpha
        Bound of the false discovery rate.
    pseudocount
        Added to the averages of the fold change. With 0, as in the challenge, a gene that only one group expresses has
        an infinite fold change and comes first.
    empty
        Value if no gene of the observed cells is differentially expressed, for which the challenge takes 0 whatever is
        predicted; `nan` leaves such perturbations out of a mean.

    Returns
    -------
    Between 0 and 1; 0 if no gene of the predicted cells is differentially expressed.

    Raises
    ------
    ValueError
        If a group is empty, holds values that cannot be `log1p` of normalised counts (not finite, negative, or 12 and
        more), or the numbers of genes differ; if `alpha` is not in 0 to 1.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> control = np.log1p(rng.poisson(2.0, (40, 20)))
    >>> observed = np.log1p(rng.poisson(2.0 + 4.0 * (np.arange(20) < 4), (40, 20)))
    >>> predicted = np.log1p(rng.poisson(2.0 + 4.0 * (np.arange(20) < 3), (40, 20)))
    >>> de_overlap_at_n(predicted, observed, control)
    0.75
    """
    predicted, observed, control = as_cells(predicted=predicted, observed=observed, control=control)
    check_log_scale(predicted=predicted, observed=observed, control=control)
    sets = (_de_sets([group], control, alpha, pseudocount)[0] for group in (predicted, observed))
    return _overlap(*sets, empty=empty)


def perturbation_discrimination(
    predicted: np.ndarray,
    observed: np.ndarray,
    *,
    exclude: Sequence[Sequence[int]] | None = None,
    distance: Distance = "l1",
) -> np.ndarray:
    """Perturbation discrimination score of the Virtual Cell Challenge :cite:p:`Roohani2025`.

    Is a predicted change nearer to the observed change of its own perturbation than to those of the `n - 1` others?
    The score is `1 - r / n`, where `r` others are nearer, those equally near counting one half. It compares signed
    changes: one of the right size and the wrong sign does not pass.

    Parameters
    ----------
    predicted
        Predicted mean change of each perturbation relative to control, shape `(n_perturbations, n_vars)`.
    observed
        Observed mean change of the same perturbations, shape `(n_perturbations, n_vars)`.
    exclude
        For each perturbation, positions of the genes to leave out when its prediction is compared: the perturbed gene
        itself, whose change needs no model. None leaves out nothing.
    distance
        "l1", "l2" or "cosine"; for the last, a change of 0 has the distance 1 to all.

    Returns
    -------
    Score of each perturbation, shape `(n_perturbations,)`: 1 is perfect, 1 / n worst. The expectation of a prediction
    that knows nothing is `(n + 1) / (2 n)`, a little above one half. `nan` for a single perturbation.

    Raises
    ------
    ValueError
        If shapes differ, values are NaN or infinite, `exclude` does not fit, or `distance` is unknown.

    See Also
    --------
    rank : the same comparison on the scale 0 to 1, for other distances and similarities, also among predictions.

    Examples
    --------
    >>> observed = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> perturbation_discrimination(observed, observed)
    array([1., 1., 1.])
    >>> perturbation_discrimination(observed[[0, 2, 1]], observed)
    array([1. , 0.5, 0.5])
    """
    if distance not in get_args(Distance):
        raise ValueError(f"`distance` is {distance!r}; it must be one of {', '.join(get_args(Distance))}.")
    predicted, observed = (
        _changes(name, values) for name, values in (("predicted", predicted), ("observed", observed))
    )
    if predicted.shape != observed.shape:
        raise ValueError(
            f"`predicted` has shape {predicted.shape} but `observed` {observed.shape}; give the same perturbations and "
            "genes in the same order."
        )
    n, n_vars = observed.shape
    left_out = (
        [np.asarray(genes, dtype=np.int64) for genes in exclude] if exclude is not None else [np.array([], int)] * n
    )
    if len(left_out) != n or any(((genes < 0) | (genes >= n_vars)).any() for genes in left_out):
        raise ValueError(
            f"`exclude` must hold, for each of the {n} perturbations, a list of positions of genes from 0 to "
            f"{n_vars - 1}."
        )
    distances = np.column_stack(
        [_distances(observed, row, genes, distance) for row, genes in zip(predicted, left_out, strict=True)]
    )
    return 1 - rank(distances, of="observations") * (n - 1) / n


class ChallengeScore(NamedTuple):
    """How far a prediction is above a baseline: 0 as the baseline, 1 perfect, negative below the baseline."""

    des: float
    pds: float
    mae: float
    score: float
    """Mean of the three, each negative one taken as 0: the score of the challenge."""
    unclipped: float
    """Mean of the three as they are."""


def challenge_score(
    *, des: float, pds: float, mae: float, baseline_des: float, baseline_pds: float, baseline_mae: float
) -> ChallengeScore:
    """Join the three scores of the Virtual Cell Challenge, each relative to a baseline :cite:p:`Roohani2025`.

    `(x - baseline) / (1 - baseline)` for the scores that are best at 1 and `1 - mae / baseline` for the error. The
    challenge replaces what is below the baseline by 0, so that a prediction may give up one part, such as the error,
    for nothing; the unclipped values show it.

    Parameters
    ----------
    des
        Mean of :func:`de_overlap_at_n` over perturbations.
    pds
        Mean of :func:`perturbation_discrimination`.
    mae
        Mean absolute error of the mean expression, averaged over genes and perturbations.
    baseline_des
        The same of the baseline, which in the challenge predicts the mean of the perturbed training cells for all.
    baseline_pds
        The same of the baseline.
    baseline_mae
        The same of the baseline.

    Returns
    -------
    The three relative to the baseline, and their mean with and without clipping at 0; `nan` where a baseline is
    perfect, which leaves nothing to gain.

    Examples
    --------
    >>> score = challenge_score(des=0.55, pds=0.75, mae=0.06, baseline_des=0.1, baseline_pds=0.5, baseline_mae=0.03)
    >>> [round(value, 3) for value in score]
    [0.5, 0.5, -1.0, 0.333, 0.0]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        gained = np.array([des - baseline_des, pds - baseline_pds, baseline_mae - mae], dtype=np.float64)
        possible = np.array([1 - baseline_des, 1 - baseline_pds, baseline_mae], dtype=np.float64)
        relative = np.where(possible > 0, gained / possible, np.nan)
    des, pds, mae = relative.tolist()
    return ChallengeScore(des, pds, mae, float(np.maximum(relative, 0).mean()), float(relative.mean()))


def _common_labels(groups: dict[str, GroupedCells], control_label: str) -> list[str]:
    if (control_label,) not in groups["control"].rows:
        raise ValueError(f"`control` has no cells labelled {control_label!r}.")
    predicted, observed = (
        [label for (label,) in groups[name].rows if label != control_label] for name in ("predicted", "observed")
    )
    if predicted != observed or not observed:
        lacking, extra = sorted(set(observed) - set(predicted)), sorted(set(predicted) - set(observed))
        raise ValueError(
            f"`predicted` and `observed` must have the same perturbations, at least one: `predicted` lacks "
            f"{len(lacking)} of {len(observed)} ({', '.join(lacking[:5])}) and has {len(extra)} more "
            f"({', '.join(extra[:5])})."
        )
    return observed


def _de_sets(groups: list[Cells], control: Cells, alpha: float, pseudocount: float) -> list[np.ndarray]:
    """Positions of the differentially expressed genes of each group, the largest fold change first."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` is {alpha}; it must be between 0 and 1.")
    parts = [control, *groups]
    stacked = Cells(sparse.vstack([sparse.csr_matrix(part.values) for part in parts], format="csr"))
    codes = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    ranking = rank_sum_scores(stacked, codes, len(parts), 0, tie_correct=True, continuity=True)
    q_values = GeneRanking((), ranking.scores[1:]).q_values
    sets = []
    for group, q in zip(groups, q_values, strict=True):
        genes = np.flatnonzero(q < alpha)
        change = np.abs(log2_fold_change(group, control, pseudocount=pseudocount))[genes]
        sets.append(genes[np.argsort(-change, kind="stable")])
    return sets


def _overlap(predicted: np.ndarray, observed: np.ndarray, *, empty: float) -> float:
    if not observed.size:
        return float(empty)
    return np.intersect1d(predicted[: observed.size], observed, assume_unique=True).size / observed.size


def _changes(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2 or 0 in values.shape or values.dtype.kind not in "fiub":
        raise ValueError(
            f"`{name}` must hold numbers, one row per perturbation and one column per gene; its shape is "
            f"{values.shape} and its dtype {values.dtype}."
        )
    values = values.astype(np.float64)
    n_bad = int((~np.isfinite(values)).sum())
    if n_bad:
        raise ValueError(f"`{name}` holds {n_bad} values that are NaN or infinite, of {values.size}.")
    return values


def _distances(observed: np.ndarray, predicted: np.ndarray, exclude: np.ndarray, distance: Distance) -> np.ndarray:
    """Distance of every observed change to one predicted change, without the excluded genes."""
    from scipy.spatial.distance import cdist

    if exclude.size:
        # a gene that is 0 on both sides adds to none of the distances
        observed, predicted = observed.copy(), predicted.copy()
        observed[:, exclude], predicted[exclude] = 0, 0
    distances = cdist(observed, predicted[None], METRIC_OF_SCIPY[distance])[:, 0]
    return np.nan_to_num(distances, nan=1.0) if distance == "cosine" else distances
