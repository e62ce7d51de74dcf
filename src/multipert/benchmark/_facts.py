"""What a split asks of a model, and why a model cannot answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from multipert import _keys
from multipert.data._codec import tokens
from multipert.data._conditions import canonical_dose, canonical_label

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from multipert.data._conditions import Condition
    from multipert.model import ModelTags
    from multipert.model._setup import Setup


@dataclass(frozen=True)
class Facts:
    """Conditions and contexts of the cells of a split.

    Parameters
    ----------
    conditions
        The distinct conditions of all cells.
    of_cell
        Position of each cell's condition, shape `(n_cells,)`.
    contexts
        Name of each cell's context, shape `(n_cells,)`.
    level
        "train", "val" or "test" for each cell, shape `(n_cells,)`.
    has_counts
        Whether there is a layer of raw counts.
    """

    conditions: list[Condition]
    of_cell: np.ndarray
    contexts: np.ndarray
    level: np.ndarray
    has_counts: bool

    @classmethod
    def of(cls, adata: AnnData, split: pd.Series, setup: Setup) -> Facts:
        """Read the labels of the cells that a split does not leave out.

        Parameters
        ----------
        adata
            The cells.
        split
            A level, or None, for every cell in their order.
        setup
            Arguments of `setup_anndata`.

        Returns
        -------
        The facts.
        """
        kept = split.notna().to_numpy()
        conditions, inverse = setup.conditions(adata)
        present, of_cell = np.unique(inverse[kept], return_inverse=True)
        return cls(
            [conditions[i] for i in present],
            of_cell,
            setup.contexts(adata)[kept],
            split.to_numpy()[kept].astype(str),
            _keys.COUNTS_LAYER in adata.layers,
        )

    @property
    def is_control(self) -> np.ndarray:
        """Whether each cell is a control cell."""
        return np.array([not condition for condition in self.conditions])[self.of_cell]

    def pairs(self, level: str) -> list[tuple[Condition, str]]:
        """The distinct (condition, context) of the perturbed cells of a level, sorted."""
        rows = (self.level == level) & ~self.is_control
        found = zip(self.of_cell[rows], self.contexts[rows], strict=True)
        return sorted({(self.conditions[condition], context) for condition, context in found})

    def controls(self, level: str) -> np.ndarray:
        """Row numbers of the control cells that a level is predicted from.

        In each context those that the split marks with the level; where it marks none, those that train.
        """
        is_control, rows = self.is_control, []
        for context in np.unique(self.contexts):
            here = is_control & (self.contexts == context)
            own = here & (self.level == level)
            rows.append(np.flatnonzero(own if own.any() else here & (self.level == "train")))
        return np.sort(np.concatenate(rows)).astype(np.int64)

    def without_controls(self, level: str) -> list[str]:
        """Contexts of a level that have no control cell to predict from."""
        known = set(self.contexts[self.controls(level)])
        return sorted({context for _, context in self.pairs(level)} - known)


def group_name(condition: Condition, setup: Setup) -> str:
    """How a condition reads in the table of scores, with its dose where there are doses."""
    label = canonical_label(condition, control=setup.control, delimiter=setup.delimiter)
    if setup.dose_key is None or not condition:
        return label
    return f"{label}@{canonical_dose(condition, delimiter=setup.delimiter)}"


def reason_to_skip(tags: ModelTags, setup: Setup, facts: Facts) -> str | None:
    """Why a model's tags exclude a split altogether.

    Parameters
    ----------
    tags
        Tags of the model.
    setup
        Arguments of `setup_anndata`.
    facts
        What the split holds.

    Returns
    -------
    The reason, naming the tag, or None.
    """
    for is_wrong, reason in (
        (tags.modalities > 1, f"translates between {tags.modalities} modalities (tag modalities) and needs a MuData"),
        (tags.counts, "its expression is raw counts (tag counts), the benchmark's is not"),
        (tags.needs_counts and not facts.has_counts, "no raw counts in layers['counts'] (tag needs_counts)"),
        (tags.needs_context and setup.context_key is None, "no context_key (tag needs_context)"),
        (
            tags.needs_embedding and setup.perturbation_embedding_key is None,
            "no perturbation_embedding_key (tag needs_embedding)",
        ),
        (
            tags.needs_cell_embedding and setup.cell_embedding_key is None,
            "no cell_embedding_key (tag needs_cell_embedding)",
        ),
        (setup.dose_key is not None and not tags.doses, "the data have doses (tag doses is False)"),
    ):
        if is_wrong:
            return reason
    tags = tags.given(setup.perturbation_embedding_key is not None)
    names = tokens(facts.conditions)
    if len(names) > 1 and not tags.several_perturbations:
        return f"the data have {len(names)} perturbations (tag several_perturbations is False)"
    if not tags.combinations and any(len(condition) > 1 for condition in facts.conditions):
        return "the data have combinations (tag combinations is False)"
    pairs = facts.pairs("test")
    if not tags.unseen_perturbations:
        seen = _trained(facts)
        if not any(_is_seen(condition, seen) for condition, _ in pairs):
            return "every held-out perturbation is unseen in training (tag unseen_perturbations is False)"
    if tags.uses_context and not tags.unseen_context:
        trained = set(facts.contexts[facts.level == "train"])
        if not any(context in trained for _, context in pairs):
            return "every held-out context is unseen in training (tag unseen_context is False)"
    return None


def predictable(
    tags: ModelTags, pairs: list[tuple[Condition, str]], facts: Facts
) -> tuple[list[tuple[Condition, str]], dict[str, int]]:
    """The pairs that a model's tags allow, and how many they do not, by reason.

    Parameters
    ----------
    tags
        Tags of the model.
    pairs
        (condition, context) pairs.
    facts
        What the split holds.

    Returns
    -------
    The pairs left, and the counts.
    """
    seen, trained = _trained(facts), set(facts.contexts[facts.level == "train"])
    left: list[tuple[Condition, str]] = []
    dropped: dict[str, int] = {}
    for condition, context in pairs:
        if not tags.unseen_perturbations and not _is_seen(condition, seen):
            reason = "perturbation unseen in training"
        elif tags.uses_context and not tags.unseen_context and context not in trained:
            reason = "context unseen in training"
        else:
            left.append((condition, context))
            continue
        dropped[reason] = dropped.get(reason, 0) + 1
    return left, dropped


def _trained(facts: Facts) -> set[str]:
    rows = np.unique(facts.of_cell[facts.level == "train"])
    return set(tokens(facts.conditions[i] for i in rows))


def _is_seen(condition: Condition, seen: set[str]) -> bool:
    return all(name in seen for name, _ in condition)
