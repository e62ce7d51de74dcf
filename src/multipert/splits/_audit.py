"""What of the held-out cells training could know, said before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from multipert import _keys
from multipert.data._conditions import close_matches
from multipert.data._splithash import split_hash

from ._fingerprint import LEAST_VALUES, fingerprints
from ._screen import read_screen

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from anndata import AnnData

    from ._screen import Screen

Finding = tuple[str, Literal["error", "warning"], int, str, str]
_COLUMNS = ["kind", "severity", "count", "examples", "remedy"]
_MOST_COPIES = 10
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class AuditReport:
    """The findings of :func:`audit`.

    Parameters
    ----------
    split_key
        The obs column that was read.
    split_hash
        Name of the split, see :func:`split_hash`.
    findings
        One row per finding: `kind`, `severity` ("error" or "warning"), `count`, `examples`, `remedy`; errors first.
    """

    split_key: str
    split_hash: str
    findings: pd.DataFrame = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether no finding is an error."""
        return not (self.findings["severity"] == "error").any()

    def raise_if_leaking(self) -> None:
        """Stop where a finding is an error.

        Raises
        ------
        ValueError
            With all errors.
        """
        if not self.ok:
            raise ValueError("\n".join([f"obs[{self.split_key!r}] leaks or cannot be used.", *self._lines("error")]))

    def __repr__(self) -> str:
        n = {severity: int((self.findings["severity"] == severity).sum()) for severity in ("error", "warning")}
        head = f"AuditReport of obs[{self.split_key!r}] ({self.split_hash}): "
        head += f"{n['error']} error(s), {n['warning']} warning(s)"
        return "\n".join([head, *self._lines("error"), *self._lines("warning")])

    def _repr_html_(self) -> str:
        return f"<p>obs[{self.split_key!r}] ({self.split_hash})</p>{self.findings.to_html(index=False)}"

    def _lines(self, severity: str) -> list[str]:
        rows = self.findings[self.findings["severity"] == severity]
        return [
            f"{row.severity}: {row.kind} ({row.count_})"
            + (f": {row.examples}" if row.examples else "")
            + f". {row.remedy}"
            for row in rows.rename(columns={"count": "count_"}).itertuples()
        ]


def audit(
    adata: AnnData,
    split_key: str = _keys.SPLIT,
    *,
    layer: str | None = None,
    perturbation_key: str = _keys.PERTURBATION,
    context_key: str | Sequence[str] | None = _keys.CONTEXT,
    dose_key: str | None = None,
    control: str = _keys.CONTROL,
    delimiter: str | None = "+",
    random: bool = False,
) -> AuditReport:
    """Look for what training could know of held-out cells, and for what makes a split useless.

    These are errors:

    - `shared_condition`, between train and test: groups of one context, label and dose with cells on both sides.
    - `duplicated_cell`, between train and test: test cells with the very expression of a training cell.
    - `fitted_on_all_cells`: steps of preprocessing that read held-out cells. For the library size it is a warning.
    - `no_control`: contexts with held-out cells and without any control cell.
    - `unknown_level`: cells that are not "train", "val" or "test". `empty_level`: no cell is "train".

    These are warnings:

    - `shared_condition` and `duplicated_cell`, between train and val or val and test.
    - `shared_barcode`: held-out cells whose name differs from that of another level by an ending such as "-1" only.
    - `unseen_perturbation`: held-out perturbations that no training label contains.
    - `no_control_in_level`: contexts without control cells in a level where other contexts have some.
    - `fitted_on_other_split`: steps of preprocessing fitted on the training cells of another split.
    - `fit_not_recorded`: steps that left a mark of scanpy and no record of the cells that they read.
    - `missing_level`: cells without a level. `empty_level`: no cell is "val" or "test".

    Parameters
    ----------
    adata
        Annotated data; expression may be backed, it is read in blocks.
    split_key
        obs column with the split.
    layer
        Layer in which copies are looked for; None is `X`. Cells with fewer than five values other than zero are left out,
        because they are alike by chance.
    perturbation_key
        obs column of labels.
    context_key
        obs column of contexts, or several, whose values together are a context. None: all cells are of one context.
    dose_key
        obs column of doses. Name it for a split that holds out doses, whose labels train at other doses.
    control
        Label of the control cells.
    delimiter
        What separates the parts of a combination; None reads every label whole.
    random
        Whether the split draws cells at random on purpose, as :func:`random` does; groups on both sides are then no finding.

    Returns
    -------
    The report; `report.ok` says whether no finding is an error, `report.raise_if_leaking()` stops where one is.

    Raises
    ------
    KeyError
        If a column or layer is absent.
    ValueError
        If a label cannot be read, or a column other than the split has missing values.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> adata.obs["split"] = mp.splits.context_transfer(adata, "context_1")
    >>> mp.splits.audit(adata).ok
    True
    >>> adata.obs["split"] = mp.splits.random(adata)
    >>> mp.splits.audit(adata).findings["kind"].tolist()
    ['shared_condition', 'shared_condition', 'shared_condition']
    """
    if split_key not in adata.obs.columns:
        raise KeyError(f"split_key={split_key!r} is not a column of obs{close_matches(split_key, adata.obs.columns)}")
    if layer is not None and layer not in adata.layers:
        raise KeyError(f"layer={layer!r} is not in layers{close_matches(layer, adata.layers)}")
    screen = read_screen(
        adata,
        perturbation_key=perturbation_key,
        context_key=context_key,
        control=control,
        delimiter=delimiter,
        dose_key=dose_key,
        needs_control=False,
    )
    column = adata.obs[split_key]
    levels = column.astype(object).where(column.notna().to_numpy(), None).to_numpy()
    name = split_hash(column)
    x = adata.X if layer is None else adata.layers[layer]
    findings = [
        *_levels(screen, levels),
        *([] if random else _shared_conditions(screen, levels)),
        *([] if x is None else _duplicated_cells(screen, levels, x)),
        *_shared_barcodes(screen, levels),
        *_unseen_perturbations(screen, levels),
        *_controls(screen, levels),
        *_recorded(adata.uns.get(_keys.UNS, {}).get("preprocessing", {}), name),
        *_unrecorded(adata),
    ]
    frame = pd.DataFrame(findings, columns=_COLUMNS)
    return AuditReport(split_key, name, frame.sort_values("severity", kind="stable", ignore_index=True))


def _levels(screen: Screen, levels: np.ndarray) -> Iterator[Finding]:
    missing = pd.isna(levels)
    unknown = ~missing & ~np.isin(levels.astype(str), _keys.SPLIT_LEVELS)
    if unknown.any():
        shown = _examples(sorted(set(levels[unknown].astype(str))))
        yield "unknown_level", "error", int(unknown.sum()), shown, "Levels are 'train', 'val' and 'test'."
    if missing.any():
        remedy = (
            f"Models refuse them: adata = adata[adata.obs[split_key].notna()].copy(); {int((~missing).sum())} remain."
        )
        yield "missing_level", "warning", int(missing.sum()), _examples(screen.names[missing]), remedy
    for level in _keys.SPLIT_LEVELS:
        if not (levels == level).any():
            severity: Literal["error", "warning"] = "error" if level == "train" else "warning"
            remedy = {
                "train": "No model can be trained.",
                "val": "Nothing can be chosen without looking at test cells.",
                "test": "Nothing can be scored.",
            }[level]
            yield "empty_level", severity, 1, level, remedy


def _shared_conditions(screen: Screen, levels: np.ndarray) -> Iterator[Finding]:
    group = screen.context * len(screen.conditions) + screen.condition
    perturbed = ~screen.is_control
    of = {level: set(group[perturbed & (levels == level)].tolist()) for level in _keys.SPLIT_LEVELS}
    for seen, held in (("train", "test"), ("train", "val"), ("val", "test")):
        both = sorted(of[seen] & of[held])
        if both:
            shown = []
            for pair in both[:_SHOWN]:
                context, condition = divmod(pair, len(screen.conditions))
                shown.append(f"{screen.label(condition)} in {screen.context_label(context) or 'the only context'}")
            severity: Literal["error", "warning"] = "error" if (seen, held) == ("train", "test") else "warning"
            yield (
                "shared_condition",
                severity,
                len(both),
                f"{seen} and {held}: " + _examples(shown, len(both)),
                "Such a score is interpolation between cells of one group; hold groups out whole, name dose_key if doses are "
                "held out, or pass random=True if it is meant.",
            )


def _duplicated_cells(screen: Screen, levels: np.ndarray, x: Any) -> Iterator[Finding]:
    hashes, n_values = fingerprints(x)
    informative = n_values >= LEAST_VALUES
    remedy = "Drop one of the copies, or give both the same level."
    for seen, held, rows, partners in _pairs_across(levels, hashes, informative):
        shown = [
            f"{screen.names[a]} = {screen.names[b]}" for a, b in zip(rows[:_SHOWN], partners[:_SHOWN], strict=True)
        ]
        severity: Literal["error", "warning"] = "error" if (seen, held) == ("train", "test") else "warning"
        yield "duplicated_cell", severity, len(rows), f"{held} = {seen}: " + _examples(shown, len(rows)), remedy


def _shared_barcodes(screen: Screen, levels: np.ndarray) -> Iterator[Finding]:
    names = screen.names.astype(str).to_series(index=range(len(screen.names)))
    bases = names.str.replace(r"(?:-\d+)+$", "", regex=True)
    codes, _ = pd.factorize(bases)
    # "cell-1" to "cell-900" are a numbering and not copies of "cell"
    few = (np.bincount(codes) <= _MOST_COPIES)[codes]
    remedy = "By chance where lanes share a set of barcodes; if the data were joined from overlapping files, drop the copies."
    for seen, held, rows, partners in _pairs_across(levels, codes, few):
        shown = [
            f"{screen.names[a]} ~ {screen.names[b]}" for a, b in zip(rows[:_SHOWN], partners[:_SHOWN], strict=True)
        ]
        yield "shared_barcode", "warning", len(rows), f"{held} ~ {seen}: " + _examples(shown, len(rows)), remedy


def _pairs_across(
    levels: np.ndarray, key: np.ndarray, considered: np.ndarray
) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Held-out rows whose key occurs in an earlier level, and the first row there with this key."""
    for seen, held in (("train", "test"), ("train", "val"), ("val", "test")):
        sources = np.flatnonzero(considered & (levels == seen))
        rows = np.flatnonzero(considered & (levels == held))
        values, first = np.unique(key[sources], return_index=True)
        if not len(values):
            continue
        at = np.searchsorted(values, key[rows]).clip(max=len(values) - 1)
        found = values[at] == key[rows]
        if found.any():
            yield seen, held, rows[found], sources[first[at[found]]]


def _unseen_perturbations(screen: Screen, levels: np.ndarray) -> Iterator[Finding]:
    train, held = (
        screen.has[np.unique(screen.condition[np.isin(levels, wanted)])].any(axis=0)
        for wanted in (["train"], ["val", "test"])
    )
    unseen = [screen.perturbations[i] for i in np.flatnonzero(held & ~train)]
    if unseen:
        yield (
            "unseen_perturbation",
            "warning",
            len(unseen),
            _examples(unseen),
            "Only models with the tag unseen_perturbations can predict them; for others, keep each perturbation in train "
            "somewhere.",
        )


def _controls(screen: Screen, levels: np.ndarray) -> Iterator[Finding]:
    contexts = range(len(screen.contexts))
    held = np.isin(levels, ("val", "test")) & ~screen.is_control
    asked = np.isin(contexts, screen.context[held])
    bare = np.flatnonzero(asked & (screen.n_controls == 0))
    if len(bare):
        shown = _examples([screen.context_label(context) or "the only context" for context in bare])
        remedy = "There is nothing to predict from; drop these contexts, or name the control label with `control`."
        yield "no_control", "error", len(bare), shown, remedy
    for level in _keys.SPLIT_LEVELS:
        here = levels == level
        controls = np.isin(contexts, screen.context[here & screen.is_control])
        lacking = np.flatnonzero(
            np.isin(contexts, screen.context[here & ~screen.is_control]) & ~controls & (screen.n_controls > 0)
        )
        # where no context has any, control cells stand in train on purpose
        if controls.any() and len(lacking):
            shown = f"{level}: " + _examples([screen.context_label(context) for context in lacking])
            remedy = "Divide control cells within contexts (controls='stratified')."
            yield "no_control_in_level", "warning", len(lacking), shown, remedy


def _recorded(record: Mapping[str, Any], name: str) -> Iterator[Finding]:
    for key, fit_on in record.items():
        what, _, suffix = str(key).rpartition("_fit_on")
        if not what or suffix:
            continue
        if fit_on == "all":
            severity: Literal["error", "warning"] = "warning" if what == "target_sum" else "error"
            remedy = "Fit on training cells: fit_on='train' in multipert.pp."
            yield "fitted_on_all_cells", severity, 1, what, remedy
        elif fit_on == "train" and record.get(f"{what}_split") != name:
            remedy = "Held-out cells of this split may have been read; preprocess again after splitting."
            yield "fitted_on_other_split", "warning", 1, f"{what}: {record.get(f'{what}_split')}", remedy


def _unrecorded(adata: AnnData) -> Iterator[Finding]:
    record = adata.uns.get(_keys.UNS, {}).get("preprocessing", {})
    marks = [
        ("genes", "hvg" in adata.uns or "highly_variable" in adata.var, "choice of genes", "highly_variable_genes"),
        ("target_sum", "log1p" in adata.uns, "normalisation", "normalise"),
        ("scaling", {"mean", "std"} <= set(adata.var.columns), "scaling of genes", None),
    ]
    for what, is_marked, words, remedy in marks:
        if is_marked and f"{what}_fit_on" not in record:
            how = f"use multipert.pp.{remedy}, which records it" if remedy else "fit it on training cells"
            yield "fit_not_recorded", "warning", 1, words, f"It may have read held-out cells; {how}."


def _examples(names: Iterable[Any], n: int | None = None) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:_SHOWN]) + (", ..." if (n or len(names)) > _SHOWN else "")
