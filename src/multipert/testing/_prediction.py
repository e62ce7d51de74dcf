"""Checks of what `predict` returns and refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from multipert import _keys

from ._case import refused, require, require_equal
from ._screen import COMBINATION, HELD_OUT_CONTEXT, NEVER_MEASURED, NEVER_TRAINED

if TYPE_CHECKING:
    from ._case import Case


def check_untrained(case: Case) -> None:
    """Everything that needs a trained model says so."""
    model = case.set_up(case.screen.adata())
    for name in ("predict", "annotate", "get_latent_representation", "get_perturbation_embedding"):
        with refused(RuntimeError, f"{name} before train", mention="train"):
            getattr(model, name)()


def check_predicted_cells(case: Case) -> None:
    """Rows, columns, names, obs, var and uns of predicted cells are as documented; values are finite."""
    screen, found = case.screen, case.predicted
    source = screen.adata()[screen.control_rows]
    rows, wanted = found.obs, pd.DataFrame(screen.trained, columns=["label", "dose"])
    n = len(source)
    require(
        found.shape == (len(wanted) * n, source.n_vars),
        f"predict() has shape {found.shape}; wanted: {len(wanted)} labels x {n} control cells, {source.n_vars} genes",
    )
    require(isinstance(found.X, np.ndarray) and found.X.dtype == np.float32, "X is not a dense float32 array")
    require(bool(np.isfinite(found.X).all()), f"X has {int((~np.isfinite(found.X)).sum())} values that are not finite")
    require(not (found.X < 0).any(), f"X has {int((found.X < 0).sum())} negative values although the data are unsigned")
    barcodes = np.tile(source.obs_names, len(wanted))
    named = list(rows[_keys.SOURCE_CELL])
    require(named == list(barcodes), f"obs[{_keys.SOURCE_CELL!r}] does not name the control cells")
    pairs = list(zip(rows["label"], rows["amount"] if screen.tags.doses else wanted["dose"].repeat(n), strict=True))
    doses = {(label, "+".join([f"{d:g}"] * len(label.split("+"))) if d else None) for label, d in screen.trained}
    seen = {(label, _dose_text(dose) if screen.tags.doses else None) for label, dose in pairs}
    require(seen == doses, f"obs holds the conditions {sorted(map(str, seen))}; wanted: {sorted(map(str, doses))}")
    suffixes = [f"{label}@{_dose_text(dose)}" if screen.tags.doses else label for label, dose in pairs]
    names = [f"{barcode}:{suffix}" for barcode, suffix in zip(barcodes, suffixes, strict=True)]
    require(list(found.obs_names) == names, f"obs_names start with {found.obs_names[0]!r}; wanted: {names[0]!r}")
    for column in ("line", "replicate"):
        kept = list(rows[column]) == list(np.tile(source.obs[column], len(wanted)))
        require(kept, f"obs[{column!r}] is not that of the control cells")
    require(found.var.equals(source.var), "var is not that of the data")
    model = found.uns.get(_keys.UNS, {}).get("model")
    require(model == case.cls.__name__, f"uns[{_keys.UNS!r}]['model'] is {model!r}; wanted: {case.cls.__name__!r}")


def _dose_text(dose: float | str) -> str:
    return dose if isinstance(dose, str) else f"{dose:g}"


def check_label_spelling(case: Case) -> None:
    """Order and spaces in a label, and control tokens, change nothing."""
    groups = [["A", " A ", "A+untreated", "untreated + A"]]
    if case.cls.tags.combinations and case.cls.tags.several_perturbations:
        groups.append(["A+B", COMBINATION, " B + A", "A+untreated+B"])
    for first, *others in groups:
        dose = case.one_target(first)["dose"]
        expected = case.trained.predict(case.screen.adata(), first, dose=dose)
        for label in others:
            found = case.trained.predict(case.screen.adata(), label, dose=dose)
            require_equal(found.X, expected.X, f"predictions for {label!r} and {first!r}")
            same = list(found.obs_names) == list(expected.obs_names)
            require(same, f"{label!r} is written {found.obs_names[0]!r}; wanted: {expected.obs_names[0]!r}")


def check_bad_targets(case: Case) -> None:
    """`predict` refuses unknown labels, and doses and combinations that are malformed or excluded by the tags."""
    tags, model, adata = case.cls.tags, case.trained, case.screen.adata()
    with refused(ValueError, "an unknown perturbation", mention="Unheard"):
        model.predict(adata, "Unheard")
    with refused(ValueError, "a combination with a part twice", mention="A+A"):
        model.predict(adata, "A+A")
    for dose in (-1, np.nan, "1+2"):
        with refused(ValueError, f"the dose {dose!r} for 'A'"):
            model.predict(adata, "A", dose=dose)
    if not tags.doses:
        with refused(ValueError, "a dose, against the tag", mention="doses"):
            model.predict(adata, "A", dose=5)
    if not tags.combinations and tags.several_perturbations:
        with refused(ValueError, "a combination, against the tag", mention="combinations"):
            model.predict(adata, "A+B")


def check_unseen_perturbations(case: Case) -> None:
    """A perturbation without training cells is predicted, or refused, as the tag says."""
    tags = case.cls.tags
    names = [NEVER_TRAINED] if tags.several_perturbations else []
    names += [NEVER_MEASURED] if "perturbation_embedding_key" in case.screen.setup else []
    for name in names:
        target: dict[str, Any] = {**case.one_target(), "perturbation": name}
        if tags.unseen_perturbations:
            found = case.trained.predict(case.screen.adata(), **target)
            finite = bool(np.isfinite(found.X).all())
            require(finite, f"the prediction of {name!r}, without training cells, is not finite")
        else:
            what = f"{name!r}, without training cells, against the tag"
            with refused(ValueError, what, mention="unseen_perturbations"):
                case.trained.predict(case.screen.adata(), **target)
    if names and tags.unseen_perturbations and tags.unseen_needs_embedding:
        model = case.set_up(case.screen.adata(), perturbation_embedding_key=None)
        case.fit(model, max_epochs=1)
        what = f"{NEVER_TRAINED!r}, without training cells and without an embedding, against the tag"
        with refused(ValueError, what, mention="perturbation_embedding_key"):
            model.predict(case.screen.adata(), **{**case.one_target(), "perturbation": NEVER_TRAINED})


def check_samples(case: Case) -> None:
    """Samples of a cell differ, can be drawn again, and depend on no other cell, or are refused, as the tag says."""
    model, adata, target = case.trained, case.screen.adata(), case.one_target()
    if not case.cls.tags.samples:
        with refused(ValueError, "n_samples, against the tag", mention="samples"):
            model.predict(adata, **target, n_samples=2)
        return
    with refused(ValueError, "no sample", mention="n_samples=0"):
        model.predict(adata, **target, n_samples=0)
    found, cells = model.predict(adata, **target, n_samples=3), case.screen.adata()[case.screen.control_rows]
    n = cells.n_obs
    require(found.n_obs == 3 * n, f"three samples of {n} control cells are {found.n_obs} rows; wanted: {3 * n}")
    numbers = list(found.obs[_keys.SAMPLE])
    require(numbers == list(np.repeat([0, 1, 2], n)), f"obs[{_keys.SAMPLE!r}] does not number the samples")
    named = list(found.obs[_keys.SOURCE_CELL])
    require(named == list(np.tile(cells.obs_names, 3)), f"obs[{_keys.SOURCE_CELL!r}] does not name the control cells")
    require(found.obs_names.is_unique, "the names of sampled cells have repeats")
    require(bool(np.isfinite(found.X).all()), "sampled cells are not finite")
    samples = found.X.reshape(3, n, -1)
    require(not np.array_equal(samples[0], samples[1]), "two samples of the same cells are equal")
    again = model.predict(adata, **target, n_samples=2, batch_size=7)
    require_equal(
        again.X, np.concatenate(samples[:2]), "the first two samples, drawn again in batches of 7", tolerance=1e-5
    )
    some = model.predict(adata, **target, n_samples=1, indices=case.screen.control_rows[3:9])
    require_equal(some.X, samples[0][3:9], "samples of some cells alone and among all", tolerance=1e-5)
    other = model.predict(adata, **target, n_samples=1, seed=1)
    require(not np.array_equal(other.X, samples[0]), "another seed draws the same samples")
    mean = model.predict(adata, **target, n_samples=3, returns="mean")
    scale = max(1.0, float(np.abs(samples).max()))
    for i, context in enumerate(mean.obs["line"]):
        x = samples[:, (cells.obs["line"] == context).to_numpy()].astype(np.float64)
        require_equal(mean.X[i], x.mean((0, 1)), f"means over cells and samples of {context}", tolerance=1e-4 * scale)
        variance = mean.layers[_keys.VARIANCE_LAYER][i]
        what = f"variances over cells and samples of {context}"
        require_equal(variance, x.var((0, 1)), what, tolerance=1e-4 * scale**2)


def check_bad_cells(case: Case) -> None:
    """`predict` refuses other genes, other orders of genes, and data without control cells or without cells."""
    adata, model = case.screen.adata(), case.trained
    with refused(ValueError, "data that lack a gene", mention="g0"):
        model.predict(adata[:, 1:].copy())
    with refused(ValueError, "genes in another order", mention="get_var_names"):
        model.predict(adata[:, ::-1].copy())
    with refused(ValueError, "data without a control cell", mention="untreated"):
        model.predict(adata[~case.screen.is_control].copy())
    with refused(ValueError, "data without cells", mention="0 cells"):
        model.predict(adata[:0].copy())
    negative = adata.copy()
    negative.X[case.screen.control_rows[0], 0] = np.nan
    with refused(ValueError, "a control cell with NaN", mention="g0"):
        model.predict(negative)


def check_choice_of_cells(case: Case) -> None:
    """`context` and `indices` restrict the control cells and never relabel them."""
    screen, model = case.screen, case.trained
    everything = model.predict(screen.adata(), **case.one_target())
    is_held_out = screen.contexts[screen.control_rows] == HELD_OUT_CONTEXT
    choices: dict[str, tuple[dict[str, Any], np.ndarray]] = {
        f"context={HELD_OUT_CONTEXT!r}": ({"context": HELD_OUT_CONTEXT}, is_held_out),
        "indices": ({"indices": np.arange(5, 20)}, np.isin(screen.control_rows, np.arange(5, 20))),
    }
    for name, (arguments, kept) in choices.items():
        found = model.predict(screen.adata(), **case.one_target(), **arguments)
        same = list(found.obs_names) == list(everything.obs_names[kept])
        require(same, f"{name} gives {found.n_obs} cells; wanted: the {kept.sum()} control cells chosen")
        require(found.obs["line"].equals(everything.obs["line"][kept]), f"{name} relabels the context of cells")
        require_equal(found.X, everything.X[kept], f"predictions with and without {name}", tolerance=1e-5)
    with refused(ValueError, "a context that is not in the data", mention="no_such_line"):
        model.predict(screen.adata(), context="no_such_line")
    with refused(ValueError, "an index past the end", mention="indices"):
        model.predict(screen.adata(), indices=[10**6])
    with refused(ValueError, "indices of perturbed cells only", mention="control"):
        model.predict(screen.adata(), indices=np.flatnonzero(~screen.is_control))


def check_context_tags(case: Case) -> None:
    """Names of contexts, seen or not, matter only as far as the tags say."""
    tags, adata = case.cls.tags, case.screen.adata()
    adata.obs["line"] = adata.obs["line"].cat.rename_categories({name: f"new {name}" for name in case.screen.contexts})
    if tags.uses_context and not tags.unseen_context:
        with refused(ValueError, "an unseen context, against the tag", mention="unseen_context"):
            case.trained.predict(adata)
        return
    found = case.trained.predict(adata)
    require(bool(np.isfinite(found.X).all()), "predictions in unseen contexts are not finite")
    if not tags.uses_context:
        what = "predictions before and after contexts are renamed (uses_context is False)"
        require_equal(found.X, case.predicted.X, what)
