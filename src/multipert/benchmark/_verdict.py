"""Who wins, in words, from the numbers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from multipert.metrics import METRICS
from multipert.metrics._calibrate import LEAST_CELLS, has_enough_cells

from ._compare import counted_metrics

if TYPE_CHECKING:
    import pandas as pd

    from ._results import Results


def verdict(results: Results) -> tuple[str, list[str]]:
    """Which model is best, and whether it is above the references.

    Parameters
    ----------
    results
        The results.

    Returns
    -------
    One sentence, and one line for each thing it rests on.
    """
    lines = _shortfalls(results.runs)
    if not len(results.frame):
        return "Nothing has been scored yet.", lines
    board, means = results.leaderboard(), results.mean()
    counted = counted_metrics(means)
    if not counted:
        return (
            "No verdict: no metric tells the ceiling from the baselines here, so the effects are too small for the number "
            "of cells, or the references are missing.",
            lines,
        )
    scored = board[board["is_complete"] & board["score"].notna()]
    models, rivals = scored[scored["kind"] == "model"], scored[scored["kind"] == "reference"]
    if not len(models):
        return "No model was scored on every held-out group, so none is ranked.", lines
    best = models.iloc[0]
    name = str(models.index[0])
    score = f"{name} has the highest score of {len(models)} model(s), {_with_sd(best)}"
    if not len(rivals):
        return f"{score}; no reference stands beside it.", lines
    rival = rivals.iloc[0]
    if round(best["score"], 2) > round(rival["score"], 2):
        sentence = f"{score}, above the best reference, {rivals.index[0]} ({rival['score']:.2f})."
    elif round(best["score"], 2) == round(rival["score"], 2):
        sentence = f"No model beats {rivals.index[0]} ({rival['score']:.2f}): the best, {name}, equals it."
    else:
        sentence = (
            f"No model beats {rivals.index[0]} ({rival['score']:.2f}): the best, {name}, reaches {_with_sd(best)}."
        )
    above = [str(one) for one in models.index if round(models.loc[one, "score"], 2) > round(rival["score"], 2)]
    if len(above) > 1:
        lines.insert(0, f"Above every reference: {', '.join(above)}.")
    below = [str(one) for one in models.index if models.loc[one, "score"] < -0.005]
    if below:
        lines.append(f"Below the baselines (score under 0), so worse than doing almost nothing: {', '.join(below)}.")
    return sentence, [*_metric_lines(results, means, counted, list(map(str, models.index))), *lines]


def _metric_lines(results: Results, means: pd.DataFrame, counted: list[str], complete: list[str]) -> list[str]:
    """How many metrics each model wins, and which of these by more than chance."""
    tests = results.test()
    lines = []
    for model in complete[:3]:
        of = tests[(tests["model"] == model) & tests["metric"].isin(counted)]
        better = of[of["difference"] > 0]
        sure = better[better["p_adjusted"] < 0.05]
        n = f"{len(better)} of {len(counted)} counted metrics"
        groups = int(of["n"].max()) if len(of) else 0
        lines.append(
            f"{model} is better than the best reference on {n}, beyond chance on {len(sure)} (Wilcoxon over {groups} groups, "
            "Holm, p < .05)."
        )
    few = results.frame[~has_enough_cells(results.frame, "model")].drop_duplicates(["split", *results.by])
    if len(few):
        lines.append(f"{len(few)} group(s) of fewer than {LEAST_CELLS} observed cells are left out of all means.")
    unsure = [name for name in results.scope.metrics if name not in counted and METRICS[name].is_score]
    if unsure:
        lines.append(f"Not counted, since they cannot tell the ceiling from the baselines here: {', '.join(unsure)}.")
    return lines


def _shortfalls(runs: pd.DataFrame) -> list[str]:
    lines = []
    for status, what in (("failed", "failed"), ("skipped", "were skipped"), ("waiting", "have not been run yet")):
        part = runs[runs["status"] == status]
        if len(part):
            names = ", ".join(dict.fromkeys(part["model"].astype(str)))
            lines.append(f"{len(part)} run(s) {what} ({names}); the reasons are below.")
    return lines


def _with_sd(row: pd.Series) -> str:
    return f"{row['score']:.2f}" + ("" if np.isnan(row["score_sd"]) else f" ± {row['score_sd']:.2f} over seeds")
