"""Raw values put between a null and a ceiling, and tables of them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._catalogue import METRICS
from ._references import BASELINES

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAST_RANGE = 0.2
LEAST_CELLS = 10
_NOT_GROUP = ("predictor", "metric", "value", "calibrated", "n_predicted", "n_observed", "n_control", "n_competitors")


def calibrate(frame: pd.DataFrame, by: Sequence[str] | None = None) -> pd.DataFrame:
    """Put every value on a scale where 0 is a baseline and 1 the ceiling.

    0 is the better of `no_change` and the mean baselines (`mean_shift`, `context_mean`) of the same group and metric, 1
    is the `ceiling`: what one half of the observed cells says about the other. A raw score that a constant prediction
    reaches is thus 0 or less. Values above 1 are possible, because halves are noisier than the whole.

    Parameters
    ----------
    frame
        Frame of :func:`evaluate`, or several of them with columns that tell them apart.
    by
        Columns that make a group; None takes all that :func:`evaluate` does not write itself.

    Returns
    -------
    A copy with the column `calibrated`: `nan` where the ceiling is not better than the baseline, or either is missing.
    An undefined value of a metric with a `null` is taken as that, so that a prediction without any change is not spared.

    Raises
    ------
    KeyError
        If the frame lacks `predictor`, `metric` or `value`.

    Examples
    --------
    >>> rows = [("prediction", 0.8), ("no_change", 0.2), ("mean_shift", 0.6), ("ceiling", 0.9)]
    >>> frame = pd.DataFrame(rows, columns=["predictor", "value"]).assign(metric="pearson_delta", perturbation="A")
    >>> calibrate(frame)["calibrated"].round(2).tolist()
    [0.67, -1.33, 0.0, 1.0]
    """
    _check(frame)
    frame = frame.copy()
    by = [column for column in frame if column not in _NOT_GROUP] if by is None else list(by)
    loss = losses(frame)
    base, top = _ends(frame, loss, [*by, "metric"])
    frame["calibrated"] = _between(loss, base, top)
    return frame


def summarise(frame: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Mean over groups of every predictor and metric, raw and calibrated.

    Groups of fewer than 10 observed cells are left out, unless there are no others: half of so few says nothing about
    the other half, and one such group can outweigh all others in a mean.

    Parameters
    ----------
    frame
        Frame of :func:`evaluate`, or several of them with columns that tell them apart.
    by
        Columns to keep apart, such as the context.

    Returns
    -------
    One row per predictor and metric with `value` and `median` over groups, `calibrated` (from the means, so that a group
    with hardly any effect cannot dominate), `dynamic_range` (which share of the way from the baseline to a perfect score
    a second sample of as many cells goes: the ceiling, corrected for halving where a rule is known), `n_groups` and
    `n_undefined`.

    Examples
    --------
    >>> rows = [("prediction", 0.8), ("no_change", 0.2), ("mean_shift", 0.6), ("ceiling", 0.9)]
    >>> frame = pd.DataFrame(rows, columns=["predictor", "value"]).assign(metric="pearson_delta", perturbation="A")
    >>> summarise(frame).set_index("predictor")["calibrated"].round(2).to_dict()
    {'prediction': 0.67, 'no_change': -1.33, 'mean_shift': 0.0, 'ceiling': 1.0}
    """
    _check(frame)
    by = list(by)
    frame = frame[has_enough_cells(frame)]
    frame = frame.assign(loss=losses(frame), whole=_unhalved(frame))
    groups = frame.groupby([*by, "predictor", "metric"], sort=False, observed=True)
    table = groups.agg(
        value=("value", "mean"),
        median=("value", "median"),
        loss=("loss", "mean"),
        whole=("whole", "mean"),
        n_groups=("value", "size"),
        n_undefined=("value", lambda values: int(values.isna().sum())),
    ).reset_index()
    base, top = _ends(table, table["loss"], [*by, "metric"])
    table["calibrated"] = _between(table["loss"], base, top)
    _, top = _ends(table, table["whole"], [*by, "metric"])
    best = table["metric"].map(lambda name: float(METRICS[name].loss(METRICS[name].best)))
    with np.errstate(invalid="ignore", divide="ignore"):
        table["dynamic_range"] = np.where(base > best, (base - top) / (base - best), np.nan)
    columns = ["value", "median", "calibrated", "dynamic_range", "n_groups", "n_undefined"]
    return table[[*by, "predictor", "metric", *columns]]


def leaderboard(frame: pd.DataFrame, *, predictor: str = "predictor") -> pd.DataFrame:
    """Predictors, the best first, with their calibrated means.

    The score is the mean over metrics of the calibrated values, each limited to -1 to 1 so that no metric decides alone.
    A metric counts if it is a score (`METRICS[name].is_score`) and its dynamic range is at least 0.2: where half of the
    cells predicts the other half hardly better than a baseline does, the metric cannot tell good from trivial.

    Parameters
    ----------
    frame
        Frame of :func:`evaluate`, or several of them with columns that tell them apart.
    predictor
        Column that names what is ranked.

    Returns
    -------
    One row per predictor: `score`, then the calibrated mean of every metric; index `predictor`.

    Warns
    -----
    UserWarning
        If no metric can tell the ceiling from the baselines; the scores are then `nan`.

    Examples
    --------
    >>> rows = [("prediction", 0.8), ("no_change", 0.2), ("mean_shift", 0.6), ("ceiling", 0.9)]
    >>> frame = pd.DataFrame(rows, columns=["predictor", "value"]).assign(metric="pearson_delta", perturbation="A")
    >>> leaderboard(frame)["score"].round(2).to_dict()
    {'ceiling': 1.0, 'prediction': 0.67, 'mean_shift': 0.0, 'no_change': -1.0}
    """
    if predictor != "predictor":
        frame = frame.drop(columns="predictor", errors="ignore").rename(columns={predictor: "predictor"})
    table = summarise(frame)
    wide = table.pivot(index="predictor", columns="metric", values="calibrated")
    wide = wide[list(dict.fromkeys(table["metric"]))]
    ranges = table.groupby("metric")["dynamic_range"].max()
    counted = [name for name in wide if METRICS[name].is_score and ranges[name] >= LEAST_RANGE]
    if not counted:
        warnings.warn(
            f"None of {len(wide.columns)} metrics separates the ceiling from the baselines (dynamic range below "
            f"{LEAST_RANGE}), so there is no score: the effects are too small for the number of cells.",
            stacklevel=2,
        )
    score = wide[counted].clip(-1, 1).mean(axis=1) if counted else pd.Series(np.nan, index=wide.index)
    wide.insert(0, "score", score)
    wide.columns.name = None
    return wide.sort_values("score", ascending=False, kind="stable")


def has_enough_cells(frame: pd.DataFrame, predictor: str = "predictor") -> np.ndarray:
    """Which rows are of groups of at least `LEAST_CELLS` observed cells; all of them if none is, or numbers are missing."""
    if "n_observed" not in frame or "n_predicted" not in frame:
        return np.ones(len(frame), dtype=bool)
    # the ceiling's prediction is the other half of the observed cells
    n_cells = frame["n_observed"] + frame["n_predicted"].where(frame[predictor] == "ceiling", 0)
    enough = (n_cells >= LEAST_CELLS).to_numpy()
    return enough if enough.any() else ~enough


def losses(frame: pd.DataFrame) -> pd.Series:
    """Values turned so that lower is better, undefined ones of a prediction or baseline replaced by the metric's null."""
    values = frame["value"].to_numpy(dtype=float, copy=True)
    is_made = (frame["predictor"] != "ceiling").to_numpy()
    if "n_predicted" in frame:
        is_made &= (frame["n_predicted"] > 0).to_numpy()
    for name, rows in frame.groupby("metric", sort=False).indices.items():
        one, some = METRICS[name], values[rows]
        if one.null is not None:
            some[np.isnan(some) & is_made[rows]] = one.null
        values[rows] = one.loss(some)
    return pd.Series(values, index=frame.index)


def _unhalved(frame: pd.DataFrame) -> pd.Series:
    """Losses of the ceiling, corrected to the whole number of observed cells where the metric has a rule."""
    values = frame["value"].where(frame["predictor"] == "ceiling").to_numpy(dtype=float, copy=True)
    for name, rows in frame.groupby("metric", sort=False).indices.items():
        one = METRICS[name]
        whole = values[rows] if one.unhalve is None else np.array([one.unhalve(value) for value in values[rows]])
        values[rows] = one.loss(whole)
    return pd.Series(values, index=frame.index)


def _ends(frame: pd.DataFrame, loss: pd.Series, by: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Loss of the best baseline and of the ceiling of the group and metric of every row."""
    group = frame.groupby(by, sort=False, observed=True, dropna=False).ngroup().to_numpy()
    predictor, values = frame["predictor"].to_numpy(), loss.to_numpy()
    is_base, is_top = np.isin(predictor, BASELINES), predictor == "ceiling"
    base = pd.Series(values[is_base]).groupby(group[is_base]).min()
    top = pd.Series(values[is_top]).groupby(group[is_top]).mean()
    return base.reindex(group).to_numpy(dtype=float), top.reindex(group).to_numpy(dtype=float)


def _between(loss: pd.Series, base: np.ndarray, top: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(
            base - top > 1e-9 * (np.abs(base) + np.abs(top)), (base - loss.to_numpy()) / (base - top), np.nan
        )


def _check(frame: pd.DataFrame) -> None:
    missing = [column for column in ("predictor", "metric", "value") if column not in frame]
    if missing:
        raise KeyError(f"`frame` has no column {', '.join(missing)}; it has {', '.join(map(str, frame))}.")
    unknown = sorted(set(frame["metric"]) - set(METRICS))
    if unknown:
        raise ValueError(f"`frame` holds {len(unknown)} unknown metrics ({', '.join(unknown[:5])}).")
