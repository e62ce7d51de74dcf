"""The scores of a job in a table and in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from multipert.metrics import METRICS, PRESETS
from multipert.metrics._delta import FLOAT32_RESOLUTION
from multipert.metrics._error import correlation

if TYPE_CHECKING:
    from multipert._jobs._job import Result

CEILING: Final = "ceiling"
OBSERVED: Final = "observed"
MEASURED: Final = (CEILING, OBSERVED)
"""Predictors made of the observed cells themselves, which none can be expected to surpass."""
DEFAULT: Final = list(PRESETS["default"])
JOINT: Final = list(PRESETS["thesis-joint"])
TRUTH: Final = ["rmse_to_truth", "pearson_delta_to_truth"]
MEASURES: Final = {
    "pearson_delta": "the change of the mean expression",
    "edistance_ratio": "the distribution of the cells",
    "de_overlap_absolute": "the 100 most changed genes",
}
"""What the verdict looks at."""
MEANING: Final = {name: metric.meaning for name, metric in METRICS.items()} | {
    "rmse_to_truth": "error of the mean expression",
    "pearson_delta_to_truth": "correlation of the change from control",
}
LOWER_IS_BETTER: Final = frozenset(
    {name for name, metric in METRICS.items() if metric.better == "lower"} | {"rmse_to_truth"}
)


def is_better(metric: str, value: float, other: float) -> bool:
    """Whether a value is better than another; an undefined one is never better, and any defined one is better than it.

    Parameters
    ----------
    metric
        Name of the metric.
    value
        The value.
    other
        The other value.

    Returns
    -------
    The answer.
    """
    if np.isnan(value) or np.isnan(other):
        return bool(np.isnan(other) and not np.isnan(value))
    return value < other if metric in LOWER_IS_BETTER else value > other


def table(scores: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """Metrics by predictors, averaged over the perturbations.

    Parameters
    ----------
    scores
        What :attr:`multipert._jobs._job.Result.scores` holds.
    metrics
        Names of the metrics, in order.

    Returns
    -------
    One row per metric, one column per predictor, in the order of `scores`.
    """
    wide = scores.pivot_table(index="metric", columns="predictor", values="value", aggfunc="mean", dropna=False)
    return wide.reindex(index=metrics, columns=list(dict.fromkeys(scores["predictor"])))


def best(row: pd.Series) -> list[str]:
    """Predictors with the best value of a metric, those made of the observed cells aside.

    Parameters
    ----------
    row
        A row of :func:`table`, shown with three digits.

    Returns
    -------
    Their names; several if they show the same value.
    """
    values = row.drop(list(MEASURED), errors="ignore").round(3).dropna()
    if values.empty:
        return []
    target = values.min() if row.name in LOWER_IS_BETTER else values.max()
    return list(values.index[values == target])


def verdict(result: Result) -> tuple[str, list[str]]:
    """Whether the model is above the references, from the numbers alone.

    Parameters
    ----------
    result
        What a job made.

    Returns
    -------
    One sentence, and one line for each measure it rests on.
    """
    name = result.job.model
    frame = table(result.scores, list(MEASURES))
    won, lines = [], []
    for metric, what in MEASURES.items():
        row = frame.loc[metric]
        others = row.drop([name, CEILING]).dropna().round(3)
        value = round(float(row[name]), 3)
        if others.empty:
            lines.append(f"For {what} ({metric}) no reference is defined; {name} has {number(value)}.")
            continue
        rival = str(others.idxmin() if metric in LOWER_IS_BETTER else others.idxmax())
        if np.isnan(value):
            relation = f"not defined for {name}; best reference {rival} {number(others[rival])}"
        elif is_better(metric, value, others[rival]):
            won.append(metric)
            relation = f"{name} {number(value)} is better than the best reference, {rival} {number(others[rival])}"
        elif value == others[rival]:
            relation = f"{name} {number(value)} equals the best reference, {rival}"
        else:
            relation = f"{name} {number(value)} is worse than {rival} {number(others[rival])}"
        which = "lower" if metric in LOWER_IS_BETTER else "higher"
        lines.append(
            f"{what[0].upper()}{what[1:]} ({metric}, {which} is better): {relation}; ceiling {number(row[CEILING])}."
        )
    if len(won) == len(MEASURES):
        sentence = f"{name} is above every reference on all {len(MEASURES)} measures."
    elif won:
        sentence = f"{name} is above every reference on {len(won)} of {len(MEASURES)} measures, and not on the others."
    else:
        sentence = f"{name} is above the references on none of {len(MEASURES)} measures: on each of them a reference does as well or better."
    return sentence, lines


def number(value: float) -> str:
    """A value with three digits after the point; a dash where it is not defined.

    Parameters
    ----------
    value
        Any number.

    Returns
    -------
    The text.
    """
    return "–" if np.isnan(value) else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def add_truth(result: Result) -> None:
    """Add the true means to the result of a job on a simulated screen.

    Parameters
    ----------
    result
        What a job made; changed.
    """
    from multipert.datasets import true_mean

    labels = [result.job.control, *result.means[result.job.model].index]
    means = [mean_of(true_mean(result.control, label, space="log1p")) for label in labels]
    result.truth = pd.DataFrame(means, index=labels, columns=result.control.var_names)


def truth_scores(result: Result) -> pd.DataFrame:
    """Every mean prediction against the true mean; the mean of the observed cells too, which has their noise.

    The true change is that of the true mean of the control cells, the predicted one starts from their measured mean.

    Parameters
    ----------
    result
        What a job made, with `truth`.

    Returns
    -------
    Rows like those of `result.scores`; none if the truth is not known.
    """
    job, truth, setup = result.job, result.truth, result.job.setup
    if truth is None:
        return result.scores.iloc[:0]
    perturbation = result.observed.obs[job.perturbation_key].astype(str).to_numpy()
    measured = {label: setup.expression(result.observed)[perturbation == label] for label in truth.index}
    means = {name: dict(frame.iterrows()) for name, frame in result.means.items()}
    means[OBSERVED] = {label: mean_of(cells) for label, cells in measured.items() if cells.shape[0]}
    control, true_control = mean_of(setup.expression(result.control)), truth.loc[job.control]
    records = []
    for name, by_label in means.items():
        for label, mean in by_label.items():
            change = np.asarray(mean) - control
            if np.linalg.norm(change) <= FLOAT32_RESOLUTION * np.linalg.norm(control):
                change = np.zeros_like(change)
            values = {
                "rmse_to_truth": np.sqrt(np.mean((np.asarray(mean) - truth.loc[label]) ** 2)),
                "pearson_delta_to_truth": correlation(change, truth.loc[label].to_numpy() - true_control.to_numpy()),
            }
            sizes = (result.control.n_obs, measured[label].shape[0], result.control.n_obs)
            records += [(label, job.hold_out, name, metric, float(value), *sizes) for metric, value in values.items()]
    columns = [
        job.perturbation_key,
        job.context_key,
        "predictor",
        "metric",
        "value",
        "n_predicted",
        "n_observed",
        "n_control",
    ]
    return pd.DataFrame.from_records(records, columns=columns).reindex(columns=result.scores.columns)


def mean_of(cells: Any) -> np.ndarray:
    """Mean of each gene in float64.

    Parameters
    ----------
    cells
        Dense or sparse, shape `(n_cells, n_vars)`.

    Returns
    -------
    Shape `(n_vars,)`.
    """
    return np.asarray(cells.mean(axis=0, dtype=np.float64)).ravel()
