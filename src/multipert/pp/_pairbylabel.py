"""Pairs of cells that were measured in one modality each."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from multipert import _keys
from multipert.data._checks import check_column, check_names

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

logger = logging.getLogger(__name__)


def pair_by_label(
    rna: AnnData,
    other: AnnData,
    key: str,
    *,
    names: tuple[str, str] = ("rna", "other"),
    n_pairs: int | None = None,
    split_key: str | None = None,
    seed: int = 0,
) -> MuData:
    """Draw pairs of cells of the same label from two AnnData, with replacement.

    The share of pairs of a label is the mean of its shares among the cells of either side, both taken over the labels
    that the two sides share. Cells of other labels are left out: they are the ones to predict. Give training cells only, or
    name their split: cells are drawn again and again, so pairs that are split afterwards share cells.

    Parameters
    ----------
    rna
        Cells of the first modality.
    other
        Cells of the second.
    key
        obs column of labels of both, such as the cell type.
    names
        Names of the modalities in the MuData; those of the arguments unless others are given, whatever was measured.
    n_pairs
        Pairs to draw, for each part of the split; None draws as many as the larger side has cells. A label has at least one.
    split_key
        obs column of both with "train" and "val" (and "test"): pairs are drawn within each part, which the MuData's obs
        then holds; None draws from all cells alike.
    seed
        Seed of the draws.

    Returns
    -------
    A MuData of the pairs, with the label in `obs[key]` of both modalities and of the whole and the names of the drawn cells
    in `obs["source_cell"]` of each modality.

    Raises
    ------
    KeyError
        If the column is absent.
    ValueError
        If the two share no label (in a part of the split), the names are equal, or `n_pairs` is below 1.

    Examples
    --------
    >>> import multipert as mp
    >>> mdata = mp.datasets.simulate_multimodal(n_cells=60, target="atac")
    >>> rna, atac = mdata["rna"][:30].copy(), mdata["atac"][30:].copy()
    >>> pairs = pair_by_label(rna, atac, "context", names=("rna", "atac"))
    >>> bool((pairs["rna"].obs["context"] == pairs["atac"].obs["context"]).all())
    True
    """
    from anndata import AnnData
    from mudata import MuData

    if names[0] == names[1]:
        raise ValueError(f"names={names} must differ.")
    if n_pairs is not None and n_pairs < 1:
        raise ValueError(f"n_pairs={n_pairs} must be at least 1.")
    sides = (rna, other)
    for adata in sides:
        check_names(adata)
    labels = [check_column(adata.obs, key, "key").astype(str).to_numpy(dtype=object) for adata in sides]
    for name, of_side, others in zip(names, labels, reversed(labels), strict=True):
        n_alone = int((~np.isin(of_side.astype(str), others.astype(str))).sum())
        if n_alone:
            logger.info("%d cell(s) of %s have labels that the other side lacks, and are left out.", n_alone, name)
    everywhere = [np.full(adata.n_obs, "", dtype=object) for adata in sides]
    parts = everywhere if split_key is None else [_parts(adata, split_key) for adata in sides]
    total = max(adata.n_obs for adata in sides) if n_pairs is None else n_pairs
    rng, of_pair = np.random.default_rng(seed), []
    drawn: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for part in sorted(set(parts[0]) | set(parts[1])):
        here = [np.flatnonzero(of_side == part) for of_side in parts]
        share = (
            max(len(rows) / len(of_side) for rows, of_side in zip(here, parts, strict=True)) if n_pairs is None else 1
        )
        found = _draw(rng, [of_side[rows] for of_side, rows in zip(labels, here, strict=True)], share * total, key)
        for rows, chosen, at in zip(here, drawn, found, strict=True):
            chosen.append(rows[at])
        of_pair += [part] * len(found[0])
    modalities = {}
    for name, adata, chosen in zip(names, sides, drawn, strict=True):
        rows = np.concatenate(chosen)
        obs = adata.obs.iloc[rows].assign(**{_keys.SOURCE_CELL: adata.obs_names[rows].astype(str)})
        obs.index = pd.Index([f"pair_{i + 1}" for i in range(len(rows))])
        layers = {layer: values[rows] for layer, values in adata.layers.items()}
        modalities[name] = AnnData(adata.X[rows], obs=obs, var=adata.var.copy(), layers=layers)
    mdata = MuData(modalities)
    mdata.obs[key] = pd.Categorical(labels[0][np.concatenate(drawn[0])])
    if split_key is not None:
        mdata.obs[split_key] = of_pair
    return mdata


def _parts(adata: AnnData, split_key: str) -> np.ndarray:
    """Part of the split of each cell."""
    found = check_column(adata.obs, split_key, "split_key").astype(str).to_numpy(dtype=object)
    unknown = sorted(set(found) - set(_keys.SPLIT_LEVELS))
    if unknown:
        raise ValueError(f"obs[{split_key!r}] holds {unknown[0]!r}; it must hold {', '.join(_keys.SPLIT_LEVELS)} only.")
    return found


def _draw(rng: np.random.Generator, labels: list[np.ndarray], total: float, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the drawn cells of either side, label by label."""
    shared = sorted(set(labels[0]) & set(labels[1]))
    if not shared:
        seen = " and ".join(", ".join(map(repr, sorted(set(of_side))[:5])) or "no cell" for of_side in labels)
        raise ValueError(f"obs[{key!r}] of the two sides share no label: {seen}.")
    n_cells = np.array([[(of_side == label).sum() for label in shared] for of_side in labels])
    shares = (n_cells / n_cells.sum(axis=1, keepdims=True)).mean(axis=0)
    n_of_label = np.maximum(1, np.round(shares * total).astype(int))
    first, second = (
        np.concatenate(
            [rng.choice(np.flatnonzero(of_side == label), n) for label, n in zip(shared, n_of_label, strict=True)]
        )
        for of_side in labels
    )
    return first, second
