"""The table of scores: one prediction beside the references."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from multipert import _keys
from multipert.data._conditions import close_matches, parse_condition

from ._calibrate import calibrate
from ._catalogue import METRICS, PRESETS
from ._cells import Cells, stored_values
from ._collapse import collapse
from ._comparison import Bases, Comparison, Truth
from ._de import check_log_scale
from ._groups import GroupedCells, check_genes
from ._panel import Entry, Panel, entry
from ._references import DEFAULT_REFERENCES, REFERENCES, References, ceiling

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData

    from ._groups import Key

N_KEYS_SHOWN = 10
N_PANEL_CELLS = 200
# moving all control cells of a large screen for every perturbation would cost more than all else together
N_MOVED_CELLS = 1000
# each halving keeps the means of all groups, which for thousands of groups is most of the memory
N_PANEL_HALVINGS = 3
PREDICTION = "prediction"


def evaluate(
    predicted: AnnData | Mapping[str, AnnData] | None,
    observed: AnnData,
    control: AnnData,
    by: Sequence[str] = (_keys.PERTURBATION, _keys.CONTEXT),
    *,
    preset: str = "default",
    metrics: Sequence[str] | None = None,
    training: AnnData | None = None,
    references: Sequence[str] | None = None,
    embedding: pd.DataFrame | None = None,
    layer: str | None = None,
    control_label: str = _keys.CONTROL,
    delimiter: str | None = "+",
    seed: int = 0,
) -> pd.DataFrame:
    """Score predicted cells, always beside references computed from the data.

    For every group of `by` found in `predicted`, the metrics are computed for these predictors:

    - `prediction`: the cells of `predicted`;
    - `no_change`: the control cells of the context;
    - `mean_shift`: these control cells plus the mean, over the other contexts of `training`, of (perturbed mean -
      control mean), each context weighing the same;
    - `similarity_shift` and `ridge_shift`: the same with contexts weighted by how their control cells resemble those of
      the group; the strength of both is chosen by leaving out one training context at a time;
    - `context_mean`: control cells plus the mean change over the other training perturbations of the same context;
    - `additive`: control cells plus the changes of the parts of a combination;
    - `nearest` and `knn`: the training perturbation, or cells of the five perturbations, nearest in `embedding`;
    - `ceiling`: one random half of the observed cells predicts the other, averaged over 10 halvings.

    Shifted cells are clipped at 0 if no value of the data is negative. A prediction that is not above the baselines has
    learnt nothing, and none can be expected above the ceiling: the column `calibrated` says where in between it stands.

    Distances are measured in 50 principal components of `training`, fitted once (of at most 2,500 cells, drawn evenly
    from the groups; without `training` of control and observed cells) and never on a prediction. In them at most 1,000
    cells of a group are used, drawn by `seed`, and the references move as many control cells, so that the cost of the
    default preset does not grow with the square of the control cells. Distances in all genes or in components of one
    group use all cells.

    Parameters
    ----------
    predicted
        Counterfactual cells, as `model.predict` returns them. Cells labelled control are left out. Several predictions
        of the same groups by their names, which take the place of `prediction` in the frame, share the references and
        all else that depends on the data alone: that is much faster than one call for each. None scores the references
        alone, for all groups of `observed`.
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
        Training cells, control and perturbed, for the references and the principal components. Cells of the group's own
        perturbation in its own context are not used by them, except for the choice of the strengths. Give exactly what
        the model has seen.
    references
        Which of them stand beside the prediction, keys of `REFERENCES`. None takes all but `control_mean` for which the
        data suffice.
    embedding
        Vector of each perturbation, index = perturbation, for `nearest` and `knn`. A combination is the sum of its parts.
    layer
        Layer to read in place of `X`. For `predicted` it is read where it exists, else `X`, which holds the prediction
        in the space of the layer that the model was set up with.
    control_label
        The label of control cells in the first column of `by`.
    delimiter
        What separates the parts of a combination; None takes every label whole.
    seed
        Of the halvings, of the choice of cells and of the bootstrap draws, which use `seed` to `seed + 99`. The order of
        the cells in the AnnData changes nothing as long as their names are unique.

    Returns
    -------
    One row per group, predictor and metric, with the columns of `by`, `predictor`, `metric`, `value`, `calibrated` (see
    :func:`calibrate`), the numbers of cells compared `n_predicted`, `n_observed`, `n_control`, and `n_competitors`, the
    number of other perturbations among which a rank was taken (0 for other metrics). A value that is not defined is
    `nan`; so are metrics that compare perturbations for a predictor that lacks some groups of the context.

    Raises
    ------
    KeyError
        If a column or the layer is absent.
    ValueError
        If genes differ, values are NaN or infinite, a name of a preset, metric or reference is unknown, a group has no
        control cells, `predicted` and `observed` share no group, or several predictions are not of the same groups or
        have the name of a reference.

    Warns
    -----
    UserWarning
        If observed cells are also training cells, if predictions are not integers but the observed cells are, or if
        groups pool several doses. Once for all predicted groups without observed cells, which are left out; once for all groups without
        `mean_shift`; and for every context in which the predictions of different perturbations resemble each other more
        than nearly all observed ones do, as those of a collapsed model.

    See Also
    --------
    leaderboard : the predictors in order.
    summarise : means over groups.

    Examples
    --------
    >>> import anndata as ad
    >>> rng = np.random.default_rng(0)
    >>> obs = pd.DataFrame({"perturbation": ["control"] * 20 + ["A"] * 20, "context": ["x", "y"] * 20})
    >>> cells = ad.AnnData(rng.poisson(3.0, (40, 30)).astype("float32"), obs.set_index(obs.index.astype(str)))
    >>> cells.X[20::2, :5] += 4
    >>> cells.X[21::2, :5] += 8
    >>> is_control, is_held_out = obs.perturbation.eq("control"), obs.context.eq("y")
    >>> control, observed = cells[is_control.values], cells[(~is_control & is_held_out).values]
    >>> training = cells[(is_control | ~is_held_out).values]
    >>> frame = evaluate(observed, observed, control, metrics=["rmse"], training=training, references=["mean_shift", "ceiling"])
    >>> print(frame[["perturbation", "context", "predictor", "value", "calibrated"]].round(2).to_string(index=False))
    perturbation context  predictor  value  calibrated
               A       y prediction   0.00        2.71
               A       y mean_shift   1.83        0.00
               A       y    ceiling   1.15        1.00
    """
    by = [by] if isinstance(by, str) else list(by)
    names, wanted = _metric_names(preset, metrics), _reference_names(references)
    predictions = _named_predictions(predicted)
    others = {"control": control} | ({} if training is None else {"training": training})
    check_genes(observed, **{_argument(name): adata for name, adata in predictions.items()}, **others)

    def grouped(name: str, adata: AnnData) -> GroupedCells:
        return GroupedCells(name, adata, by, layer=layer, control_label=control_label, delimiter=delimiter)

    predicted_groups = {name: grouped("predicted", adata) for name, adata in predictions.items()}
    groups = {name: grouped(name, adata) for name, adata in (others | {"observed": observed}).items()}
    keys = _shared_keys(predicted_groups, groups, control_label)
    clip = not any(group.cells.is_signed for group in groups.values())
    made = _references(
        groups, control_label=control_label, delimiter=delimiter, clip=clip, embedding=embedding, seed=seed
    )
    bases = _bases(groups, keys, control_label, seed)
    control_cells = {
        context: groups["control"][(control_label, *context)] for context in dict.fromkeys(k[1:] for k in keys)
    }
    moved_cells = {context: cells.sample(N_MOVED_CELLS, seed) for context, cells in control_cells.items()}
    genes = {name: i for i, name in enumerate(observed.var_names)}

    if "des" in names and predictions:
        # refused now, and not by the metric after the work on other groups
        log_scale = {_argument(name): group for name, group in predicted_groups.items()} | groups
        check_log_scale(**{name: group.cells for name, group in log_scale.items() if name != "training"})
    if training is not None and predictions:
        _warn_of_training(groups["observed"], observed, training)
    for name, adata in predictions.items():
        _warn_of_prediction(name, predicted_groups[name], groups["observed"], adata, observed)
    of_group = [name for name in names if not METRICS[name].by_context]
    of_context = [name for name in names if METRICS[name].by_context]
    needs = {METRICS[name].needs for name in of_context}
    values: dict[tuple[Key, str, str], list[float]] = {}
    sizes: dict[tuple[Key, str], tuple[int, int, int]] = {}
    kept: dict[tuple[Key, str, int], dict[Key, Entry]] = {}
    for key in _tracked(keys):
        parts = parse_condition(key[0], control=control_label, delimiter=delimiter)
        truth = Truth(
            groups["observed"][key],
            control_cells[key[1:]],
            seed,
            bases=bases,
            centroid=made.perturbed_centroid(key) if made is not None else None,
            target_genes=np.array([genes[name] for name, _ in parts if name in genes], dtype=int),
        )
        for predictor, repeats in _predictors(key, predicted_groups, truth, moved_cells[key[1:]], made, wanted):
            first = repeats[0] if repeats else None
            n_compared = (len(first.predicted), len(first.observed)) if first is not None else (0, len(truth.observed))
            sizes[key, predictor] = (*n_compared, len(truth.control))
            for name in of_group:
                values[key, predictor, name] = [METRICS[name].compute(repeat) for repeat in repeats]
            if of_context or predictor in predictions:
                for i, repeat in enumerate(repeats[:N_PANEL_HALVINGS]):
                    kept.setdefault((key[1:], predictor, i), {})[key] = entry(repeat, needs, N_PANEL_CELLS)
    of_panel = Counter(key[1:] for key in keys)
    n_competitors = {}
    for (context, predictor, _), entries in kept.items():
        panel = Panel(list(entries.values()))
        if predictor in predictions:
            _warn_of_collapse(predictor, context, panel)
        if len(panel) < of_panel[context]:
            # among fewer perturbations a rank is easier; such a predictor is not comparable with the others
            continue
        for name in of_context:
            n_competitors[predictor, context, name] = len(panel) - 1 if METRICS[name].is_rank else 0
            for key, value in zip(entries, METRICS[name].compute(panel), strict=True):
                values.setdefault((key, predictor, name), []).append(float(value))

    records = []
    for (key, predictor), n_cells in sizes.items():
        for name in names:
            found = values.get((key, predictor, name)) or [np.nan]
            n_others = n_competitors.get((predictor, key[1:], name), 0)
            records.append((*key, predictor, name, float(np.mean(found)), *n_cells, n_others))
    columns = [*by, "predictor", "metric", "value", "n_predicted", "n_observed", "n_control", "n_competitors"]
    frame = pd.DataFrame.from_records(records, columns=columns)
    frame = calibrate(frame if references is not None else _without_empty(frame, predictions), by)
    n_unshifted = sum(predictor == "mean_shift" and not n_cells[0] for (_, predictor), n_cells in sizes.items())
    if n_unshifted:
        warnings.warn(
            f"`mean_shift` is nan for {n_unshifted} of {len(keys)} groups: pass as `training` an AnnData with control "
            "and perturbed cells of at least one other context that has the perturbation.",
            stacklevel=2,
        )
    return frame[[*columns[: len(by) + 3], "calibrated", *columns[len(by) + 3 :]]]


def _named_predictions(predicted: AnnData | Mapping[str, AnnData] | None) -> dict[str, AnnData]:
    if predicted is None:
        return {}
    if not isinstance(predicted, Mapping):
        return {PREDICTION: predicted}
    if not predicted:
        raise ValueError(
            "`predicted` is empty; give at least one prediction by its name, or None for the references alone."
        )
    taken = [name for name in predicted if name in REFERENCES]
    if taken:
        raise ValueError(f"`predicted` has the name of a reference, {taken[0]!r}; give the prediction another name.")
    return dict(predicted)


def _argument(name: str) -> str:
    """What a prediction is called in an error."""
    return "predicted" if name == PREDICTION else f"predicted[{name!r}]"


def _predictors(
    key: Key, predicted: dict[str, GroupedCells], truth: Truth, moved: Cells, made: References | None, wanted: list[str]
) -> Iterable[tuple[str, list[Comparison]]]:
    """Every predictor with its comparisons: one, the repeats of the ceiling, or none where it is not defined."""
    for name, group in predicted.items():
        yield name, [Comparison(group[key], truth)]
    for name in wanted:
        if name == "ceiling":
            yield name, ceiling(truth)
        elif name in ("no_change", "control_mean"):
            yield name, [Comparison(truth.control if name == "no_change" else _repeated(truth.control), truth)]
        else:
            cells = made.predict(name, key, truth.control, moved) if made is not None else None
            yield name, [] if cells is None else [Comparison(cells, truth)]


def _repeated(cells: Cells) -> Cells:
    return Cells(np.tile(cells.mean, (len(cells), 1)))


def _warn_of_training(groups: GroupedCells, observed: AnnData, training: AnnData) -> None:
    """Warn if all observed cells are training cells."""
    held_out = [name for rows in groups.rows.values() for name in observed.obs_names[rows]]
    n_both = len(np.intersect1d(held_out, training.obs_names.to_numpy(dtype=str)))
    if n_both and n_both == len(np.unique(held_out)):
        warnings.warn(
            f"All {n_both} observed cells are in `training` too, so the references and the principal components have "
            "seen them; pass as `training` only what the model was trained on.",
            stacklevel=3,
        )


def _warn_of_prediction(
    name: str, groups: GroupedCells, observed_groups: GroupedCells, predicted: AnnData, observed: AnnData
) -> None:
    """Warn of what is legal and hardly ever meant."""
    if _is_integral(observed_groups.cells) and not _is_integral(groups.cells):
        warnings.warn(
            f"`observed` holds integers only and `{_argument(name)}` does not; if the prediction is log-normalised, name the "
            "layer of the same kind with `layer`.",
            stacklevel=3,
        )
    if all(_keys.DOSE in adata.obs for adata in (predicted, observed)):
        doses = observed.obs[_keys.DOSE].to_numpy()
        n_pooled = sum(
            len(set(doses[observed_groups.rows[key]])) > 1 for key in groups.rows if key in observed_groups.rows
        )
        if n_pooled:
            warnings.warn(
                f"{n_pooled} groups pool cells of several doses (obs[{_keys.DOSE!r}]); to score doses apart, join them to "
                "the label, such as 'TCDD@30', in all AnnData.",
                stacklevel=3,
            )


def _is_integral(cells: Cells) -> bool:
    some = stored_values(cells[slice(0, 200)].values)
    return bool(some.size and (some == np.rint(some)).all() and some.any())


def _references(
    groups: dict[str, GroupedCells],
    *,
    control_label: str,
    delimiter: str | None,
    clip: bool,
    embedding: pd.DataFrame | None,
    seed: int,
) -> References | None:
    if "training" not in groups:
        return None
    return References(
        groups["training"],
        control_label=control_label,
        delimiter=delimiter,
        clip=clip,
        embedding=embedding,
        seed=seed,
    )


def _bases(groups: dict[str, GroupedCells], keys: list[Key], control_label: str, seed: int) -> Bases:
    contexts = dict.fromkeys(key[1:] for key in keys)
    observed = [(groups["observed"].cells, groups["observed"].rows[key]) for key in keys]
    observed += [(groups["control"].cells, groups["control"].rows[(control_label, *context)]) for context in contexts]
    if "training" not in groups:
        return Bases(observed, observed, seed)
    held_out = set(keys)
    rows = groups["training"].rows
    training = [(groups["training"].cells, rows[key]) for key in rows if key not in held_out]
    return Bases(training or observed, observed, seed)


def _without_empty(frame: pd.DataFrame, predictions: Iterable[str]) -> pd.DataFrame:
    """Without the references that no group has."""
    has_any = frame.groupby("predictor")["n_predicted"].max() > 0
    always = {*predictions, "no_change", "mean_shift", "ceiling"}
    return frame[[name in always or has_any[name] for name in frame["predictor"]]].reset_index(drop=True)


def _warn_of_collapse(predictor: str, context: Key, panel: Panel) -> None:
    found = collapse(panel.predicted, panel.observed, panel.control)
    if found.is_collapsed:
        by = "" if predictor == PREDICTION else f" by {predictor!r}"
        warnings.warn(
            f"The predictions of {len(panel)} perturbations{' in ' + ', '.join(context) if context else ''}{by} have collapsed: "
            f"their changes correlate by {found.predicted:.2f} (median over pairs), those observed by {found.observed:.2f}, "
            f"95 % of them by less than {found.observed_upper:.2f}. Such predictions hardly tell perturbations apart.",
            stacklevel=3,
        )


def _reference_names(references: Sequence[str] | None) -> list[str]:
    if references is None:
        return list(DEFAULT_REFERENCES)
    if isinstance(references, str) or not set(references) <= set(REFERENCES):
        raise ValueError(f"`references` is {references!r}; it must be a list of names among {', '.join(REFERENCES)}.")
    return list(references)


def _metric_names(preset: str, metrics: Sequence[str] | None) -> list[str]:
    if metrics is None:
        if preset not in PRESETS:
            raise ValueError(f"`preset` is {preset!r}; it must be one of {', '.join(PRESETS)}.")
        return list(PRESETS[preset])
    if isinstance(metrics, str):
        raise ValueError(f"`metrics` is {metrics!r}; it must be a list of names, or give a `preset`.")
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"`metrics` names {name!r}, which is not in METRICS{close_matches(name, METRICS)}")
    return list(dict.fromkeys(metrics))


def _shared_keys(predicted: dict[str, GroupedCells], groups: dict[str, GroupedCells], control_label: str) -> list[Key]:
    """Groups to score: predicted and observed; an error if one of them has no control cells."""
    first, *others = [*predicted.items()] or [("observed", groups["observed"])]
    wanted = [key for key in first[1].rows if key[0] != control_label]
    for name, group in others:
        differ = sorted({key for key in group.rows if key[0] != control_label} ^ set(wanted))
        if differ:
            raise ValueError(
                f"`predicted[{name!r}]` and `predicted[{first[0]!r}]` differ in {len(differ)} groups ({_some(differ)}); give "
                "predictions of the same groups, or call once for each."
            )
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
