"""Raw values put between a null and a ceiling, and tables of them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._catalogue import METRICS
from ._references import BASELINES, REFERENCES

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
    One row per predictor and metric with `value` and `median` over the groups where it is defined, `calibrated` (from the
    means, so that a group with hardly any effect cannot dominate; over all groups with a ceiling, where a predictor without
    a value earns what `no_change` earns), `dynamic_range` (which share of the way from the baseline to a perfect score
    a second sample of as many cells goes: the ceiling, corrected for halving where a rule is known), `n_groups` and
    `n_undefined`.

    Raises
    ------
    ValueError
        If a group has two values of one predictor and metric, as when the frames of two models are joined as they are.

    Examples
    --------
    >>> rows = [("prediction", 0.8), ("no_change", 0.2), ("mean_shift", 0.6), ("ceiling", 0.9)]
    >>> frame = pd.DataFrame(rows, columns=["predictor", "value"]).assign(metric="pearson_delta", perturbation="A")
    >>> summarise(frame).set_index("predictor")["calibrated"].round(2).to_dict()
    {'prediction': 0.67, 'no_change': -1.33, 'mean_shift': 0.0, 'ceiling': 1.0}
    """
    _check(frame)
    by = list(by)
    group = [column for column in frame if column not in _NOT_GROUP]
    _check_repeats(frame, group)
    frame = frame[has_enough_cells(frame)]
    frame = frame.assign(loss=losses(frame), whole=_unhalved(frame))
    keys = [*by, "metric", "predictor"]
    table = frame.groupby(keys, sort=False, observed=True, dropna=False).agg(
        value=("value", "mean"),
        median=("value", "median"),
        n_groups=("value", "size"),
        n_undefined=("value", lambda values: int(values.isna().sum())),
    )
    index = list(dict.fromkeys([*by, "metric", *group]))
    wide = frame.set_index([*index, "predictor"])["loss"].unstack("predictor")
    whole = frame[frame["predictor"] == "ceiling"].set_index(index)["whole"].reindex(wide.index)
    if "ceiling" in wide:
        # one set of groups for all: those whose ceiling is known
        known = wide["ceiling"].notna()
        wide, whole = wide[known], whole[known]
    if "no_change" in wide:
        # what is not defined, or could not be made for a group, earns what doing nothing earns
        fill = [name for name in wide if name != "ceiling" and name not in _never_made(frame)]
        wide[fill] = wide[fill].apply(lambda column: column.fillna(wide["no_change"]))
    levels = [*by, "metric"]
    means = wide.groupby(level=levels, sort=False, observed=True, dropna=False).mean()
    baselines = [name for name in BASELINES if name in means]
    base = means[baselines].min(axis=1) if baselines else pd.Series(np.nan, index=means.index)
    top = means["ceiling"] if "ceiling" in means else pd.Series(np.nan, index=means.index)
    names = means.index.get_level_values("metric")
    best = np.array([float(METRICS[name].loss(METRICS[name].best)) for name in names])
    top_of_whole = whole.groupby(level=levels, sort=False, observed=True, dropna=False).mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        reach = np.where(base > best, (base - top_of_whole.reindex(means.index)) / (base - best), np.nan)
    calibrated = means.apply(
        lambda column: pd.Series(_between(column, base.to_numpy(), top.to_numpy()), index=means.index)
    )
    table["calibrated"] = calibrated.stack().reindex(table.index) if len(calibrated) else np.nan
    table = table.reset_index()
    spread = pd.Series(reach, index=means.index, name="dynamic_range").reset_index()
    table = table.merge(spread, on=levels, how="left")
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
        Column that names what is ranked, such as "model" in the joined frames of several models: it takes the place of
        "prediction" and stands before the names of several predictions ("model: name"); the references, which are the
        same in all of them, are taken once.

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
        frame = _renamed(frame, predictor)
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


def _renamed(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Joined frames with the predictions named by a column, and the references once."""
    if column not in frame:
        raise KeyError(f"`frame` has no column {column!r}; it has {', '.join(map(str, frame))}.")
    if "predictor" not in frame:
        return frame.rename(columns={column: "predictor"})
    is_prediction = ~frame["predictor"].isin(REFERENCES)
    of_column = frame[column].astype(str)
    both = of_column.where(frame["predictor"] == "prediction", of_column + ": " + frame["predictor"].astype(str))
    named = frame.assign(predictor=frame["predictor"].where(~is_prediction, both)).drop(columns=column)
    group = [name for name in named if name not in _NOT_GROUP]
    references = named[~is_prediction].drop_duplicates([*group, "predictor", "metric"])
    return pd.concat([named[is_prediction], references], ignore_index=True)


def _check_repeats(frame: pd.DataFrame, group: list[str]) -> None:
    n_repeats = int(frame.duplicated([*group, "predictor", "metric"]).sum())
    if n_repeats:
        raise ValueError(
            f"`frame` has {n_repeats} rows with a group, predictor and metric that an earlier row has; keep models apart "
            "by a column of their own and name it with `leaderboard(frame, predictor=...)`, or drop the repeats."
        )


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


def _never_made(frame: pd.DataFrame) -> set[str]:
    """Predictors that exist for no group, such as a reference for which the training cells do not suffice."""
    if "n_predicted" not in frame:
        return set()
    most = frame.groupby("predictor")["n_predicted"].max()
    return set(most.index[most == 0])


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
