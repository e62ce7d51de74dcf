"""Scores of predicted cells and of the references, as rows that a record can hold."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from multipert import _keys
from multipert.metrics import evaluate

from ._facts import group_name

if TYPE_CHECKING:
    from multipert.model._setup import Setup

    from ._facts import Facts

SEED = 0
"""The same for all runs, so that seeds differ in the models alone."""
PREDICTION = "prediction"


def score(
    predicted: AnnData | None, adata: AnnData, facts: Facts, setup: Setup, metrics: list[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Score a prediction of the test cells, or the references where there is none.

    Parameters
    ----------
    predicted
        What `predict` returned; None scores the references.
    adata
        All cells of the split.
    facts
        Their labels and levels.
    setup
        Arguments of `setup_anndata`.
    metrics
        Names of the metrics.

    Returns
    -------
    Columns of :func:`multipert.metrics.evaluate` without `calibrated`, and the warnings.
    """
    everything = _named(adata, setup)
    test, train = (facts.level == "test") & ~facts.is_control, facts.level == "train"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        frame = evaluate(
            None if predicted is None else _named(predicted, setup, in_x=True),
            everything[test],
            everything[facts.controls("test")],
            by=[_keys.PERTURBATION] if setup.context_key is None else [_keys.PERTURBATION, _keys.CONTEXT],
            metrics=metrics,
            training=everything[train],
            references=() if predicted is not None else None,
            embedding=setup.embedding(adata),
            control_label=setup.control,
            # a name with doses, "A+B@1+5", is no label to take apart
            delimiter=setup.delimiter if setup.dose_key is None else None,
            seed=SEED,
        )
    notes = list(dict.fromkeys(str(warning.message) for warning in caught))
    return frame.drop(columns="calibrated", errors="ignore"), notes


def _named(adata: AnnData, setup: Setup, *, in_x: bool = False) -> AnnData:
    """The expression, with groups named as the table of scores names them."""
    conditions, inverse = setup.conditions(adata)
    names = np.array([group_name(condition, setup) for condition in conditions], dtype=object)[inverse]
    obs = pd.DataFrame({_keys.PERTURBATION: names, _keys.CONTEXT: setup.contexts(adata)}, index=adata.obs_names)
    return AnnData(adata.X if in_x else setup.expression(adata), obs=obs, var=pd.DataFrame(index=adata.var_names))


def as_rows(frame: pd.DataFrame) -> dict[str, Any]:
    """A frame as plain lists, `nan` as None."""
    return {
        "columns": list(frame.columns),
        "rows": [[_plain(value) for value in row] for row in frame.itertuples(index=False, name=None)],
    }


def as_frame(rows: dict[str, Any]) -> pd.DataFrame:
    """What :func:`as_rows` wrote, as a frame."""
    frame = pd.DataFrame.from_records(rows["rows"], columns=rows["columns"])
    frame["value"] = frame["value"].astype(float)
    return frame


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value
