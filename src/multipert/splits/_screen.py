"""Labels and contexts of all cells, each distinct one read once; splits are then made of (context, condition) pairs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from multipert.data._checks import check_column, check_control
from multipert.data._codec import parse_column, tokens
from multipert.data._conditions import as_list, parse_condition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from multipert.data._conditions import Condition

Context = tuple[str, ...]
"""One value of each context column, in the order of the columns."""


@dataclass(frozen=True)
class Screen:
    """What a split needs to know of an AnnData.

    Parameters
    ----------
    names
        Names of the cells.
    conditions
        The distinct conditions, sorted; control, where there is any, is the empty one and comes first.
    condition
        Position of each cell's condition, shape `(n_cells,)`.
    contexts
        The distinct contexts, sorted.
    context
        Position of each cell's context, shape `(n_cells,)`.
    control
        Label of the control cells.
    delimiter
        What separates the parts of a combination.
    """

    names: pd.Index
    conditions: list[Condition]
    condition: np.ndarray
    contexts: list[Context]
    context: np.ndarray
    control: str
    delimiter: str | None

    @cached_property
    def parts(self) -> list[tuple[str, ...]]:
        """Names of the perturbations of each condition, sorted."""
        return [tuple(name for name, _ in condition) for condition in self.conditions]

    @cached_property
    def perturbations(self) -> list[str]:
        """All perturbations, alone or in combinations, sorted."""
        return list(tokens(self.conditions))

    @cached_property
    def n_parts(self) -> np.ndarray:
        """Number of perturbations of each condition, shape `(n_conditions,)`."""
        return np.array([len(parts) for parts in self.parts], dtype=np.int64)

    @cached_property
    def has(self) -> np.ndarray:
        """Whether a condition has the perturbation, shape `(n_conditions, n_perturbations)`."""
        position = {name: i for i, name in enumerate(self.perturbations)}
        has = np.zeros((len(self.conditions), len(position)), dtype=bool)
        for i, parts in enumerate(self.parts):
            has[i, [position[name] for name in parts]] = True
        return has

    @cached_property
    def is_control(self) -> np.ndarray:
        """Whether each cell is a control cell, shape `(n_cells,)`."""
        return (self.n_parts == 0)[self.condition]

    @cached_property
    def n_cells(self) -> np.ndarray:
        """Number of cells, shape `(n_contexts, n_conditions)`."""
        shape = (len(self.contexts), len(self.conditions))
        flat = self.context * shape[1] + self.condition
        return np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape)

    @cached_property
    def present(self) -> np.ndarray:
        """Whether a perturbed condition was measured in a context, shape `(n_contexts, n_conditions)`."""
        return np.logical_and(self.n_cells > 0, self.n_parts > 0)

    @cached_property
    def n_controls(self) -> np.ndarray:
        """Number of control cells, shape `(n_contexts,)`."""
        return self.n_cells[:, self.n_parts == 0].sum(axis=1)

    def find(self, label: str) -> int | None:
        """Position of a perturbed condition, however its label is written, at dose 1; None where there is none."""
        condition = parse_condition(label, control=self.control, delimiter=self.delimiter)
        return self.conditions.index(condition) if condition and condition in self.conditions else None

    def label(self, condition: int | np.integer) -> str:
        """How a condition reads in a message, without its doses."""
        return (self.delimiter or "+").join(self.parts[condition])

    def context_label(self, context: int | np.integer) -> str:
        """How a context reads in a message."""
        return ", ".join(self.contexts[context])


def read_screen(
    adata: AnnData,
    *,
    perturbation_key: str,
    context_key: str | Sequence[str] | None,
    control: str,
    delimiter: str | None,
    dose_key: str | None = None,
    needs_control: bool = True,
) -> Screen:
    """Read the labels and contexts of all cells.

    Parameters
    ----------
    adata
        Annotated data; only `obs` is read.
    perturbation_key
        obs column of labels.
    context_key
        obs column of contexts, or several, whose values together are a context. None: one context.
    control
        Label of the control cells.
    delimiter
        What separates the parts of a combination; None reads every label whole.
    dose_key
        obs column of doses; None reads every label at dose 1.
    needs_control
        Whether data without any control cell are refused.

    Returns
    -------
    The screen.

    Raises
    ------
    KeyError
        If a column is absent.
    ValueError
        If there is no cell, a name of a cell appears twice, a column has missing values, a label or dose cannot be read,
        or there is no control cell and one is needed.
    """
    if adata.n_obs == 0:
        raise ValueError("adata has no cells; there is nothing to split.")
    repeated = adata.obs_names[adata.obs_names.duplicated()]
    if len(repeated):
        raise ValueError(
            f"obs_names holds {len(repeated)} duplicate(s), first {repeated[0]!r}; run adata.obs_names_make_unique()."
        )
    labels = check_column(adata.obs, perturbation_key, "perturbation_key")
    doses = None if dose_key is None else check_column(adata.obs, dose_key, "dose_key")
    conditions, condition = parse_column(labels, doses, control=control, delimiter=delimiter)
    contexts, context = _read_contexts(adata.obs, context_key)
    screen = Screen(adata.obs_names, conditions, condition, contexts, context, control, delimiter)
    if needs_control:
        check_control(labels, screen.is_control, perturbation_key, control)
    return screen


def _read_contexts(obs: pd.DataFrame, context_key: str | Sequence[str] | None) -> tuple[list[Context], np.ndarray]:
    if context_key is None:
        return [()], np.zeros(len(obs), dtype=np.int64)
    keys = context_keys(context_key)
    columns = [check_column(obs, key, "context_key").astype(str).to_numpy() for key in keys]
    codes, found = pd.factorize(pd.MultiIndex.from_arrays(columns))
    found = [tuple(context) for context in found]
    contexts = sorted(found)
    position = {context: i for i, context in enumerate(contexts)}
    return contexts, np.array([position[context] for context in found], dtype=np.int64)[codes]


def context_keys(context_key: str | Sequence[str] | None) -> list[str]:
    """The obs columns of contexts, as a list."""
    if context_key is None:
        return []
    keys = as_list(context_key)
    if not keys:
        raise ValueError("context_key=[] names no column; pass None if all cells share one context.")
    return keys
