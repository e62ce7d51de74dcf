"""Tables of the measurements of `speed.py`."""

from __future__ import annotations

import pandas as pd


def summary(rows: list[dict], by: list[str]) -> pd.DataFrame:
    """Medians over the turns; a variant that could not run leaves no figure."""
    frame = pd.DataFrame([{"seconds": float("nan"), "cells": 0, "steps": 0, "flops": 0, **row} for row in rows])
    # a difference of two times may vanish on a busy machine
    seconds = frame["seconds"].where(frame["seconds"] > 0)
    frame["cells_per_second"], frame["ms_per_step"] = frame["cells"] / seconds, 1000 * seconds / frame["steps"]
    groups = frame.groupby(by, sort=False)
    rate = groups["cells_per_second"]
    table = pd.DataFrame({"cells_per_second": rate.median(), "slowest": rate.min(), "fastest": rate.max()})
    table["ms_per_step"], table["flops"] = groups["ms_per_step"].median(), groups["flops"].max()
    table["others"] = groups["others"].max()
    if {"logged", "loading"} <= set(frame):
        # by the package's own history, which leaves out what an epoch costs between its batches
        frame["logged_rate"], frame["loading_share"] = (
            frame["cells"] / frame["logged"],
            frame["loading"] / frame["logged"],
        )
        table["logged"], table["loading_share"] = groups["logged_rate"].median(), groups["loading_share"].median()
    return table.reset_index()


def against(table: pd.DataFrame, variant: str, value: str = "cells_per_second") -> pd.Series:
    """Ratio to a variant at the same batch size."""
    reference = table[table["variant"] == variant].set_index("batch_size")[value]
    return table[value] / table["batch_size"].map(reference)
