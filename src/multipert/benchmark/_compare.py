"""Means over groups, splits and seeds, and tests of models against references."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np
import pandas as pd

from multipert.data._conditions import close_matches
from multipert.metrics import METRICS, summarise
from multipert.metrics._calibrate import LEAST_RANGE, has_enough_cells, losses

if TYPE_CHECKING:
    from collections.abc import Sequence

Test = Literal["wilcoxon", "t"]
Correction = Literal["holm", "bh"]
_MODEL: Final = "model"
_TIE: Final = 1e-6
_PREDICTION: Final = "prediction"
_AVERAGED: Final = ("value", "calibrated", "dynamic_range")


def per_seed(frame: pd.DataFrame, by: Sequence[str], *, per_split: bool = False) -> pd.DataFrame:
    """Means over groups, for every model and seed.

    Parameters
    ----------
    frame
        :attr:`Results.frame`.
    by
        Columns that make a group of a split.
    per_split
        Whether splits are kept apart.

    Returns
    -------
    Columns `model`, `kind`, `seed`, `metric`, `value`, `calibrated`, `dynamic_range`, `n_groups`, `n_undefined` (and
    `split`); a model is calibrated against the references on the groups that it was scored on.
    """
    keep = ["split"] if per_split else []
    frame = frame[has_enough_cells(frame, _MODEL)]
    references = frame[frame["kind"] != _MODEL].assign(predictor=lambda rows: rows[_MODEL])
    tables = []
    for (model, seed), rows in frame.groupby([_MODEL, "seed"], sort=False, dropna=False):
        beside = references.merge(rows[["split", *by]].drop_duplicates())
        is_model = rows["kind"].iloc[0] == _MODEL
        both = pd.concat([rows.assign(predictor=_PREDICTION), beside], ignore_index=True) if is_model else beside
        columns = ["split", *by, "predictor", "metric", "value", "n_predicted", "n_observed"]
        table = summarise(both[columns], keep)
        own = table[table["predictor"] == (_PREDICTION if is_model else model)].drop(columns="predictor")
        tables.append(own.assign(**{_MODEL: model, "kind": rows["kind"].iloc[0], "seed": seed}))
    columns = [_MODEL, "kind", *keep, "seed", "metric", *_AVERAGED, "n_groups", "n_undefined"]
    if not tables:
        return pd.DataFrame(columns=columns)
    made = pd.concat(tables, ignore_index=True)
    made["seed"] = made["seed"].astype("Int64")
    return made[columns]


def mean(frame: pd.DataFrame, by: Sequence[str], *, per_split: bool) -> pd.DataFrame:
    """See :meth:`Results.mean`."""
    keys = [_MODEL, "kind", "metric", *(["split"] if per_split else [])]
    # groupby leaves rows without a seed out
    table = per_seed(frame, by, per_split=per_split).fillna({"seed": -1})
    over = table.groupby(keys, sort=False)
    made = over.agg(
        value=("value", "mean"),
        value_sd=("value", "std"),
        calibrated=("calibrated", "mean"),
        calibrated_sd=("calibrated", "std"),
        dynamic_range=("dynamic_range", "mean"),
        n_groups=("n_groups", "min"),
        n_undefined=("n_undefined", "max"),
        n_seeds=("seed", "nunique"),
    ).reset_index()
    scored = frame[has_enough_cells(frame, _MODEL)].drop_duplicates(["split", *by])
    made["is_complete"] = made["n_groups"] == (
        made["split"].map(scored.groupby("split").size()) if per_split else len(scored)
    )
    return made


def leaderboard(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """See :meth:`Results.leaderboard`."""
    means = mean(frame, by, per_split=False)
    counted = counted_metrics(means)
    by_seed = per_seed(frame, by).fillna({"seed": -1})
    of_seed = by_seed.pivot(index=[_MODEL, "seed"], columns="metric", values="calibrated")
    scores = of_seed.reindex(columns=counted).clip(-1, 1).mean(axis=1, skipna=False)
    wide = means.pivot(index=_MODEL, columns="metric", values="calibrated")
    wide = wide[list(dict.fromkeys(means["metric"]))]
    wide.columns.name = None
    first = means.drop_duplicates(_MODEL).set_index(_MODEL)
    over = scores.groupby(level=_MODEL)
    wide.insert(0, "kind", first["kind"])
    wide.insert(1, "score", over.mean())
    wide.insert(2, "score_sd", over.std())
    wide.insert(3, "is_complete", means.groupby(_MODEL)["is_complete"].all())
    return wide.sort_values("score", ascending=False, kind="stable", na_position="last")


def counted_metrics(means: pd.DataFrame) -> list[str]:
    """Metrics that the score counts: those that can tell the ceiling from the baselines.

    Parameters
    ----------
    means
        What :func:`mean` made.

    Returns
    -------
    Their names, in order.
    """
    ceiling = means[means["kind"] == "ceiling"].set_index("metric")
    # without a calibrated ceiling, which is 1, nothing is calibrated: a baseline is as good as the ceiling
    tells = ceiling.index[(ceiling["dynamic_range"] >= LEAST_RANGE) & ceiling["calibrated"].notna()]
    return [str(name) for name in tells if METRICS[name].is_score]


def compare(frame: pd.DataFrame, by: Sequence[str], baseline: str, test: Test, correction: Correction) -> pd.DataFrame:
    """See :meth:`Results.test`."""
    for name, value, known in (("test", test, get_args(Test)), ("correction", correction, get_args(Correction))):
        if value not in known:
            raise ValueError(f"{name}={value!r} is unknown{close_matches(value, known)}")
    units = _losses_of_groups(frame, by)
    references = list(dict.fromkeys(frame.loc[frame["kind"] == "reference", _MODEL]))
    if baseline == "best":
        if not references:
            raise ValueError("No reference was scored, so there is no best one; name a model as `baseline`.")
    elif baseline not in units.columns:
        raise ValueError(f"baseline={baseline!r} was not scored{close_matches(baseline, units.columns)}")
    models = [name for name in dict.fromkeys(frame.loc[frame["kind"] == _MODEL, _MODEL]) if name != baseline]
    rows = []
    for metric in dict.fromkeys(frame["metric"]):
        wide = units.xs(metric, level="metric")
        for model in models:
            mine = wide[model].dropna()
            against = _best_reference(wide.loc[mine.index], references) if baseline == "best" else baseline
            rows.append((model, metric, against, *_paired(mine, wide, against, test)))
    columns = [_MODEL, "metric", "baseline", "n", "difference", "n_better", "statistic", "p"]
    made = pd.DataFrame.from_records(rows, columns=columns)
    made["p_adjusted"] = adjusted(made["p"].to_numpy(dtype=float), correction)
    return made


def _losses_of_groups(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Loss of every group, averaged over seeds: (metric, split, group) by models."""
    frame = frame.assign(predictor=frame[_MODEL])
    frame["loss"] = losses(frame)
    keys = ["metric", "split", *by]
    return frame.groupby([*keys, _MODEL], sort=False)["loss"].mean().unstack(_MODEL)


def _best_reference(wide: pd.DataFrame, references: Sequence[str]) -> str | None:
    """The reference with the lowest mean loss among those that are defined for most groups."""
    known = wide.reindex(columns=list(references))
    defined = known.notna().sum()
    if not len(known) or not defined.max():
        return None
    return str(known.loc[:, defined == defined.max()].mean().idxmin())


def _paired(
    mine: pd.Series, wide: pd.DataFrame, against: str | None, test: Test
) -> tuple[int, float, int, float, float]:
    """Number of groups, mean difference, groups where the model is better, statistic and p value."""
    from scipy import stats

    if against is None:
        return 0, np.nan, 0, np.nan, np.nan
    pairs = pd.concat([wide.loc[mine.index, against], mine], axis=1).dropna().to_numpy(dtype=float)
    gain = pairs[:, 0] - pairs[:, 1]
    # the same prediction in float32 and float64 is a tie
    gain[np.abs(gain) <= _TIE * np.abs(pairs).max(axis=1)] = 0.0
    if not len(gain):
        return 0, np.nan, 0, np.nan, np.nan
    summary = len(gain), float(gain.mean()), int((gain > 0).sum())
    if len(gain) < 2:
        return *summary, np.nan, np.nan
    if not gain.any():
        return *summary, 0.0, 1.0
    found = stats.wilcoxon(gain) if test == "wilcoxon" else stats.ttest_1samp(gain, 0.0)
    return *summary, float(found.statistic), float(found.pvalue)


def adjusted(p: np.ndarray, correction: Correction) -> np.ndarray:
    """P values for many tests at once; `nan` stays and is not counted.

    Parameters
    ----------
    p
        P values.
    correction
        "holm" :cite:p:`Holm1979` or "bh" :cite:p:`Benjamini1995`.

    Returns
    -------
    Adjusted p values.

    Examples
    --------
    >>> adjusted(np.array([0.01, 0.04, 0.03]), "holm").tolist()
    [0.03, 0.06, 0.06]
    """
    from scipy import stats

    made, known = np.full(len(p), np.nan), np.flatnonzero(~np.isnan(p))
    if not len(known):
        return made
    if correction == "bh":
        made[known] = stats.false_discovery_control(p[known])
        return made
    order = known[np.argsort(p[known], kind="stable")]
    made[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return made
