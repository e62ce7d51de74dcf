"""An AnnData as groups of cells by perturbation and context."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from multipert.data._checks import is_on_disk
from multipert.data._conditions import canonical_label, parse_condition

from ._cells import Cells, as_cells

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from ._cells import Matrix

Key: TypeAlias = tuple[str, ...]
"""Values of the `by` columns: the canonical perturbation, then the context."""


class GroupedCells:
    """Checked expression of an AnnData and the rows of every group, in an order that does not depend on the file's."""

    def __init__(
        self,
        name: str,
        adata: AnnData,
        by: Sequence[str],
        *,
        layer: str | None,
        control_label: str,
        delimiter: str | None,
    ) -> None:
        missing = [column for column in by if column not in adata.obs]
        if missing:
            raise KeyError(f"`{name}.obs` has no column {', '.join(missing)}; it has {', '.join(adata.obs)}.")
        if is_on_disk(adata):
            adata = adata.to_memory()
        (self.cells,) = as_cells(**{name: _expression(name, adata, layer)})
        columns = []
        for column in by:
            n_missing = int(adata.obs[column].isna().sum())
            if n_missing:
                raise ValueError(f"`{name}.obs[{column!r}]` is missing for {n_missing} of {adata.n_obs} cells.")
            columns.append(adata.obs[column].astype(str).to_numpy(dtype=object))
        canonical = {
            label: canonical_label(
                parse_condition(label, control=control_label, delimiter=delimiter),
                control=control_label,
                delimiter=delimiter,
            )
            for label in set(columns[0])
        }
        columns[0] = [canonical[label] for label in columns[0]]
        rows: dict[Key, list[int]] = {}
        keys = list(zip(*columns, strict=True))
        # sums and random draws would otherwise depend on the order of the cells in the file
        for row in np.argsort(adata.obs_names.to_numpy(dtype=str), kind="stable"):
            rows.setdefault(keys[row], []).append(int(row))
        self.rows = {key: np.array(rows[key]) for key in sorted(rows)}

    def __getitem__(self, key: Key) -> Cells:
        return self.cells[self.rows[key]]


def _expression(name: str, adata: AnnData, layer: str | None) -> Matrix:
    if layer is not None and layer in adata.layers:
        return adata.layers[layer]
    # a model writes what it predicts for its layer into X
    if layer is not None and name != "predicted":
        raise KeyError(f"`{name}.layers` has no {layer!r}; it has {', '.join(adata.layers) or 'none'}.")
    if adata.X is None:
        raise ValueError(f"`{name}.X` is empty; name the `layer` that holds the expression.")
    return adata.X


def check_genes(observed: AnnData, **others: AnnData) -> None:
    """Raise a ValueError unless all AnnData have the genes of `observed` in its order."""
    for name, adata in others.items():
        if observed.var_names.equals(adata.var_names):
            continue
        lacking = observed.var_names.difference(adata.var_names, sort=False)
        extra = adata.var_names.difference(observed.var_names, sort=False)
        if len(lacking) or len(extra):
            raise ValueError(
                f"`{name}` lacks {_some(lacking)} and has {_some(extra)} that `observed` has not; "
                "restrict both to their common genes."
            )
        raise ValueError(
            f"`{name}` has the genes of `observed` in another order; pass `{name}[:, observed.var_names]`."
        )


def _some(genes: Sequence[str], n_shown: int = 5) -> str:
    shown = ", ".join(map(str, genes[:n_shown])) + (", ..." if len(genes) > n_shown else "")
    return f"{len(genes)} genes" + (f" ({shown})" if len(genes) else "")
