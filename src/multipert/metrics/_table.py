from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from multipert import _keys

from ._comparison import Comparison, Truth
from ._de import de_overlap
from ._delta import cosine_logfc, pearson_delta
from ._distribution import low_variance_share
from ._error import r2, r2_pearson, rmse
from ._groups import GroupedCells, check_genes
from ._references import MeanShift, ceiling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from anndata import AnnData

    from ._groups import Key

N_KEYS_SHOWN = 10

METRICS: dict[str, Callable[[Comparison], float]] = {
    "rmse": lambda c: rmse(c.predicted, c.observed),
    "r2": lambda c: r2(c.predicted, c.observed),
    "r2_pearson": lambda c: r2_pearson(c.predicted, c.observed),
    "r2_pearson_bootstrap": lambda c: c.r2_pearson_bootstrap(),
    "r2_pearson_bootstrap_top20": lambda c: c.r2_pearson_bootstrap(20),
    "r2_pearson_bootstrap_top100": lambda c: c.r2_pearson_bootstrap(100),
    "pearson_delta": lambda c: pearson_delta(c.predicted, c.observed, c.control),
    "cosine_logfc": lambda c: cosine_logfc(c.predicted, c.observed, c.control),
    "edistance_ratio": lambda c: c.edistance_ratio(),
    "edistance_ratio_joint": lambda c: c.edistance_ratio_joint(),
    "mean_distance_ratio_joint": lambda c: c.mean_distance_ratio_joint(),
    "de_overlap_absolute": lambda c: de_overlap(c.predicted, c.observed, c.control),
    "de_overlap_up": lambda c: de_overlap(c.predicted, c.observed, c.control, direction="up"),
    "de_overlap_down": lambda c: de_overlap(c.predicted, c.observed, c.control, direction="down"),
    "low_variance_share": lambda c: low_variance_share(c.predicted, c.observed),
}
"""Every metric that :func:`evaluate` knows, by name."""

PRESETS: dict[str, tuple[str, ...]] = {
    "default": (
        "rmse",
        "r2",
        "r2_pearson",
        "pearson_delta",
        "cosine_logfc",
        "edistance_ratio",
        "de_overlap_absolute",
        "de_overlap_up",
        "de_overlap_down",
        "low_variance_share",
    ),
    "thesis-joint": (
        "r2_pearson_bootstrap",
        "r2_pearson_bootstrap_top20",
        "r2_pearson_bootstrap_top100",
        "pearson_delta",
        "edistance_ratio_joint",
        "mean_distance_ratio_joint",
        "de_overlap_up",
        "de_overlap_absolute",
    ),
}
"""Named lists of metrics."""


def evaluate(
    predicted: AnnData,
    observed: AnnData,
    control: AnnData,
    by: Sequence[str] = (_keys.PERTURBATION, _keys.CONTEXT),
    *,
    preset: str = "default",
    metrics: Sequence[str] | None = None,
    training: AnnData | None = None,
    layer: str | None = None,
    control_label: str = _keys.CONTROL,
    delimiter: str | None = "+",
    seed: int = 0,
) -> pd.DataFrame:
    """Score predicted cells, always beside three references computed from the data.

    For every group of `by` found in `predicted`, the metrics are computed for four predictors:

    - `prediction`: the cells of `predicted`;
    - `no_change`: the control cells of the context;
    - `mean_shift`: these control cells plus the mean, over the other contexts of `training`, of (perturbed mean -
      control mean), each context weighing the same; clipped at 0 if no value of the data is negative;
    - `ceiling`: one random half of the observed cells predicts the other, averaged over 10 halvings.

    A prediction that is not above the first two has learnt nothing, and none can be expected above the last.

    Parameters
    ----------
    predicted
        Counterfactual cells, as `model.predict` returns them. Cells labelled control are left out.
    observed
        Perturbed cells that were measured. Groups that `predicted` does not have are left out.
    control
        Control cells. Those with the same values of `by[1:]` serve a group; all of them if `by` has one column. Cells
        with another label than `control_label` are left out.
    by
        obs columns of all AnnData: first the perturbation, then what makes the context (none, one or several). A dose
        is no context, since control cells have none: join it to the label ("TCDD@30").
        Labels of combinations are compared in their canonical form, so "B + A" and "A+B" are one perturbation, which
        is reported as "A+B".
    preset
        Name of a list of metrics, a key of `PRESETS`.
    metrics
        Names of metrics, keys of `METRICS`, in place of the preset.
    training
        Training cells, control and perturbed, for `mean_shift`. Cells of the group's own context are not used.
    layer
        Layer to read in place of `X`. For `predicted` it is read where it exists, else `X`, which holds the prediction
        in the space of the layer that the model was set up with.
    control_label
        The label of control cells in the first column of `by`.
    delimiter
        What separates the parts of a combination; None takes every label whole.
    seed
        Of the halvings and of the bootstrap draws, which use `seed` to `seed + 99`. The order of the cells in the
        AnnData changes nothing as long as their names are unique.

    Returns
    -------
    One row per group, predictor and metric, with the columns of `by`, `predictor`, `metric`, `value` and the numbers
    of cells compared `n_predicted`, `n_observed`, `n_control`. A value that is not defined is `nan`.

    Raises
    ------
    KeyError
        If a column or the layer is absent.
    ValueError
        If genes differ, values are NaN or infinite, a name of a preset or metric is unknown, a group has no control
        cells, or `predicted` and `observed` share no group.

    Warns
    -----
    UserWarning
        Once for all predicted groups without observed cells, which are left out, and once for all groups without
        `mean_shift`.

    Examples
    --------
    >>> import anndata as ad
    >>> rng = np.random.default_rng(0)
    >>> obs = pd.DataFrame({"perturbation": ["control"] * 20 + ["A"] * 20, "context": ["x", "y"] * 20})
    >>> cells = ad.AnnData(rng.poisson(3.0, (40, 30)).astype("float32"), obs.set_index(obs.index.astype(str)))
    >>> cells.X[20:, :5] += 4
    >>> is_control, is_held_out = obs.perturbation.eq("control"), obs.context.eq("y")
    >>> control, observed = cells[is_control.values], cells[(~is_control & is_held_out).values]
    >>> training = cells[(is_control | ~is_held_out).values]
    >>> frame = evaluate(observed, observed, control, metrics=["pearson_delta"], training=training)
    >>> print(frame[["perturbation", "context", "predictor", "value"]].round(2).to_string(index=False))
    perturbation context  predictor  value
               A       y prediction   1.00
               A       y  no_change    NaN
               A       y mean_shift   0.86
               A       y    ceiling   0.78
    """
    by = [by] if isinstance(by, str) else list(by)
    names = _metric_names(preset, metrics)
    others = {"predicted": predicted, "control": control} | ({} if training is None else {"training": training})
    check_genes(observed, **others)
    groups = {
        name: GroupedCells(name, adata, by, layer=layer, control_label=control_label, delimiter=delimiter)
        for name, adata in (others | {"observed": observed}).items()
    }
    keys = _shared_keys(groups, control_label)
    mean_shift = MeanShift(groups["training"], control_label) if training is not None else None
    clip = not any(group.cells.is_signed for name, group in groups.items() if name != "predicted")

    records, n_unshifted = [], 0
    for key in _tracked(keys):
        control_cells = groups["control"][(control_label, *key[1:])]
        truth = Truth(groups["observed"][key], control_cells, seed)
        shifted = mean_shift.predict(key, control_cells, clip=clip) if mean_shift is not None else None
        n_unshifted += shifted is None
        comparisons = {
            "prediction": [Comparison(groups["predicted"][key], truth)],
            "no_change": [Comparison(control_cells, truth)],
            "mean_shift": [Comparison(shifted, truth)] if shifted is not None else [],
            "ceiling": ceiling(truth),
        }
        for predictor, repeats in comparisons.items():
            sizes = [len(repeats[0].predicted), len(repeats[0].observed)] if repeats else [0, len(truth.observed)]
            for name in names:
                value = float(np.mean([METRICS[name](repeat) for repeat in repeats])) if repeats else np.nan
                records.append((*key, predictor, name, value, *sizes, len(control_cells)))
    if n_unshifted:
        warnings.warn(
            f"`mean_shift` is nan for {n_unshifted} of {len(keys)} groups: pass as `training` an AnnData with control "
            "and perturbed cells of at least one other context that has the perturbation.",
            stacklevel=2,
        )
    columns = [*by, "predictor", "metric", "value", "n_predicted", "n_observed", "n_control"]
    return pd.DataFrame.from_records(records, columns=columns)


def _metric_names(preset: str, metrics: Sequence[str] | None) -> list[str]:
    if metrics is None:
        if preset not in PRESETS:
            raise ValueError(f"`preset` is {preset!r}; it must be one of {', '.join(PRESETS)}.")
        return list(PRESETS[preset])
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or isinstance(metrics, str):
        raise ValueError(f"`metrics` is {metrics!r}; it must be a list of names among {', '.join(METRICS)}.")
    return list(metrics)


def _shared_keys(groups: dict[str, GroupedCells], control_label: str) -> list[Key]:
    """Groups to score: predicted and observed; an error if one of them has no control cells."""
    wanted = [key for key in groups["predicted"].rows if key[0] != control_label]
    keys = [key for key in wanted if key in groups["observed"].rows]
    if not keys:
        raise ValueError(
            f"`predicted` and `observed` share no group: predicted {_some(wanted)}, observed "
            f"{_some(list(groups['observed'].rows))}."
        )
    without_control = [key for key in keys if (control_label, *key[1:]) not in groups["control"].rows]
    if without_control:
        raise ValueError(
            f"`control` has no cells labelled {control_label!r} for {len(without_control)} of {len(keys)} groups "
            f"({_some(without_control)}); it has {_some(list(groups['control'].rows))}."
        )
    if len(keys) < len(wanted):
        lacking = [key for key in wanted if key not in groups["observed"].rows]
        warnings.warn(
            f"{len(lacking)} of {len(wanted)} predicted groups have no observed cells and are left out: "
            f"{_some(lacking)}.",
            stacklevel=3,
        )
    return keys


def _some(keys: list[Key], n_shown: int = 5) -> str:
    return "; ".join(", ".join(key) for key in keys[:n_shown]) + ("; ..." if len(keys) > n_shown else "") or "none"


def _tracked(keys: list[Key]) -> Iterable[Key]:
    """The keys, behind a progress bar when there are many."""
    if len(keys) < N_KEYS_SHOWN:
        return keys
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    is_seen = console.is_terminal or console.is_jupyter
    return track(keys, description="Evaluating", console=console, disable=not is_seen)
