"""The batches of training passes: which cells meet which."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from multipert.data._checks import check_column
from multipert.data._loaders import CellLoader, GroupLoader
from multipert.data._pairing import check_pairs, label_pairs, transport_pairs

if TYPE_CHECKING:
    from anndata import AnnData

    from multipert.data._pairing import Pairing
    from multipert.data._store import CellStore

    from ._base import PerturbationModel

logger = logging.getLogger(__name__)

# cells of one context and condition in a batch of groups
_GROUP_CELLS = 32


@dataclass
class Pass:
    """Loaders of one training pass."""

    model: PerturbationModel
    adata: AnnData
    store: CellStore
    pairing: Pairing
    batch_size: int
    seed: int
    block_size: int | None = None
    itself: bool = True

    def training(self, rows: np.ndarray, seed: int) -> CellLoader | GroupLoader:
        """Shuffled batches of the training cells."""
        kept, partners, groups, pools = rows[:0], None, [], []
        is_control = self.model._setup.is_control(self.adata)
        if self.pairing == "any":
            kept = rows[~is_control[rows]]
            pools = [(np.arange(len(kept)), rows[is_control[rows]])]
        elif self.pairing == "group":
            groups = self._groups(rows, rows)
            kept = np.concatenate([rows[:0], *(cells for cells, _ in groups if not is_control[cells[0]])])
        elif self.pairing == "label":
            labels = check_column(self.adata.obs, str(self.model._setup.pairing_key), "pairing_key").astype(str)
            kept, partners = label_pairs(labels.to_numpy(dtype=object), rows, seed=self.seed)
        else:
            kept, partners = self._paired(rows, rows)
            if self.pairing == "random" and self.model._setup.pairing_key is None:
                pools = self._pools(kept, rows)
        if not len(kept):
            raise ValueError(
                f"None of the {len(rows)} training cells can be paired: no context has both control and perturbed cells "
                "in training. Mark such cells as 'train', or take a model that pairs none."
            )
        if groups:
            return self._group_loader(groups, shuffle=True, seed=seed)
        return CellLoader(
            self.store,
            kept,
            self.batch_size,
            shuffle=True,
            drop_last=True,
            partners=partners,
            pools=pools,
            seed=seed,
            block_size=self.block_size,
        )

    def validation(self, rows: np.ndarray, pool: np.ndarray) -> CellLoader | GroupLoader | None:
        """Batches of the validation cells, their control cells among the increasing rows of the pool; None without."""
        if self.pairing == "group":
            groups = self._groups(rows, pool)
            return self._group_loader(groups) if groups else None
        if self.pairing == "any":
            is_control = self.model._setup.is_control(self.adata)
            kept, controls = rows[~is_control[rows]], pool[is_control[pool]]
            if not len(kept) or not len(controls):
                return None
            # the same partners each time
            drawn = np.random.default_rng(self.seed).choice(controls, len(kept), replace=len(controls) < len(kept))
            return CellLoader(self.store, kept, self.batch_size, partners=drawn)
        kept, partners = self._paired(rows, pool)
        return CellLoader(self.store, kept, self.batch_size, partners=partners) if len(kept) else None

    def _paired(self, rows: np.ndarray, pool: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Cells of the pass, and their paired controls."""
        # cells that are held out meet nobody but themselves
        if self.pairing in ("self", "label") or not len(rows):
            return rows, None
        if self.pairing == "ot" and self.model._setup.pairing_key is None:
            return transported_rows(self.model, self.adata, rows, pool, self.seed, itself=self.itself)
        partners = self.model._partners(self.adata, pool, self.seed)[np.searchsorted(pool, rows)]
        if not self.itself:
            is_perturbed = ~self.model._setup.is_control(self.adata)[rows]
            rows, partners = rows[is_perturbed], partners[is_perturbed]
        partners = np.where(np.isin(partners, pool), partners, -1)
        dropped = int((partners < 0).sum())
        if dropped:
            logger.warning("%d cell(s) have no control cell in their context and are left out.", dropped)
        return rows[partners >= 0], partners[partners >= 0]

    def _pools(self, kept: np.ndarray, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Positions of the perturbed cells of every context, and the control cells there."""
        contexts, is_control = self.model._setup.contexts(self.adata), self.model._setup.is_control(self.adata)
        perturbed, controls = np.flatnonzero(~is_control[kept]), rows[is_control[rows]]
        of_perturbed, of_controls = contexts[kept[perturbed]], contexts[controls]
        return [(perturbed[of_perturbed == name], controls[of_controls == name]) for name in np.unique(of_perturbed)]

    def _groups(self, rows: np.ndarray, pool: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """The cells of every context and condition, and the control cells of the context."""
        setup = self.model._setup
        contexts, conditions = setup.contexts(self.adata), setup.conditions(self.adata)[1]
        controls = pool[setup.is_control(self.adata)[pool]]
        control_rows = {name: controls[contexts[controls] == name] for name in np.unique(contexts[controls])}
        groups = []
        for context in np.unique(contexts[rows]):
            here = rows[contexts[rows] == context]
            if context not in control_rows:
                logger.warning("%d cell(s) of %s have no control cell and are left out.", len(here), repr(context))
                continue
            groups += [
                (here[conditions[here] == condition], control_rows[context])
                for condition in np.unique(conditions[here])
            ]
        return groups

    def _group_loader(
        self, groups: list[tuple[np.ndarray, np.ndarray]], *, shuffle: bool = False, seed: int = 0
    ) -> GroupLoader:
        per_batch = max(1, self.batch_size // _GROUP_CELLS)
        return GroupLoader(
            self.store, groups, min(_GROUP_CELLS, self.batch_size), per_batch, shuffle=shuffle, seed=seed
        )


def transported_rows(
    model: PerturbationModel, adata: AnnData, rows: np.ndarray, pool: np.ndarray, seed: int, *, itself: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """For each control cell its partner of every condition, and maybe itself; the partners and the control cells.

    Contexts whose perturbed cells have no control cell among the rows take those of the pool.
    """
    setup = model._setup
    conditions, contexts, is_control = setup.conditions(adata)[1], setup.contexts(adata), setup.is_control(adata)
    bare = np.setdiff1d(contexts[rows].astype(str), contexts[rows[is_control[rows]]].astype(str))
    lent = pool[is_control[pool] & np.isin(contexts[pool].astype(str), bare)]
    used = np.union1d(rows, lent)
    cells = conditions, contexts, is_control
    pairs = transport_pairs(setup.expression(adata), *cells, used, partner=model._partner, seed=seed)
    check_pairs(pairs, contexts, is_control, conditions, used)
    controls = np.setdiff1d(pairs["control"].to_numpy(), lent) if itself else rows[:0]
    return (
        np.concatenate([controls, pairs["perturbed"].to_numpy()]),
        np.concatenate([controls, pairs["control"].to_numpy()]),
    )


def n_transported(model: PerturbationModel, adata: AnnData, rows: np.ndarray, *, itself: bool = True) -> int:
    """How many pairs :func:`transported_rows` makes of some cells, without making them.

    Parameters
    ----------
    model
        The model, for its setup.
    adata
        The cells.
    rows
        Row numbers.
    itself
        Whether control cells also meet themselves.

    Returns
    -------
    Control cells with themselves, unless that is off, and with a cell of every condition of their context.
    """
    setup = model._setup
    contexts, conditions = setup.contexts(adata)[rows], setup.conditions(adata)[1][rows]
    is_control = setup.is_control(adata)[rows]
    n = 0
    for context in np.unique(contexts.astype(str)):
        here = contexts.astype(str) == context
        n += int((here & is_control).sum()) * (itself + len(np.unique(conditions[here & ~is_control])))
    return n
