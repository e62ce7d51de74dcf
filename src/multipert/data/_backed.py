"""AnnData whose expression stays in one or several files."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd

from ._disk import DiskMatrix
from ._files import open_root, path_list

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

_SHOWN = 3


def read_backed(
    paths: str | os.PathLike | Sequence[str | os.PathLike], layer: str | None = None, *, label: str | None = None
) -> anndata.AnnData:
    """Open cells whose expression stays on disk, from one file or several.

    `obs`, `var`, `obsm`, `varm` and `uns` are read; `X` is a :class:`DiskMatrix`, of which training and prediction read
    what they need. Layers, `obsp`, `varp` and `raw` are not read; `adata.layers[name] = DiskMatrix(paths, name)` adds a
    layer.

    Several files are stacked by cells. They must hold the same genes in the same order. Columns of `obs` and entries of
    `obsm` are those that all files have, categories are united; columns of `var` and entries of `varm` and `uns` are
    those that are equal in all.

    Parameters
    ----------
    paths
        One or several `.h5ad` files or zarr folders, with expression in CSR or dense.
    layer
        Name of the layer to take as `X`; None takes `X`.
    label
        Name of an obs column to add, with the name of each cell's file without its ending (its whole path where names
        repeat); None adds none.

    Returns
    -------
    Annotated data; nothing is written to its files.

    Raises
    ------
    FileNotFoundError
        If a file does not exist.
    KeyError
        If a file has no such layer, or no `X`.
    ValueError
        If a file has another format, stores expression by columns or for another number of cells or genes than it names,
        genes differ between files, a name of a cell appears twice, or obs has a column named as `label` already.
    OSError
        If a file is damaged.

    Warns
    -----
    UserWarning
        Naming what is left out because not all files have it.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from anndata import AnnData
    >>> folder = Path(tempfile.mkdtemp())
    >>> for plate in ("a", "b"):
    ...     obs = pd.DataFrame({"perturbation": ["control", plate]}, index=[f"{plate}1", f"{plate}2"])
    ...     AnnData(np.ones((2, 3), dtype=np.float32), obs=obs).write_h5ad(folder / f"plate_{plate}.h5ad")
    >>> adata = read_backed([folder / "plate_a.h5ad", folder / "plate_b.h5ad"], label="plate")
    >>> adata.X
    DiskMatrix: 4 x 3, float32, 2 files, hdf5
    >>> adata.obs["plate"].tolist()
    ['plate_a', 'plate_a', 'plate_b', 'plate_b']
    """
    files = path_list(paths)
    matrix = DiskMatrix(files, layer)
    parts = [_annotation(path, n) for path, n in zip(files, matrix.n_rows, strict=True)]
    for path, part in zip(files, parts, strict=True):
        if part.n_vars != matrix.shape[1]:
            raise ValueError(f"{path} names {part.n_vars} genes in var but its matrix has {matrix.shape[1]}.")
        _check_genes(path, part.var_names, files[0], parts[0].var_names)
        if label is not None and label in part.obs:
            raise ValueError(f"label={label!r}, but obs of {path} has a column of that name; take another.")
    _check_cells(parts)
    if len(parts) == 1:
        adata = parts[0]
    else:
        _drop_unequal(parts)
        adata = anndata.concat(parts, join="inner", merge="same", uns_merge="same")
    if label is not None:
        stems = [path.stem for path in files]
        names = stems if len(set(stems)) == len(stems) else list(map(str, files))
        adata.obs[label] = pd.Categorical.from_codes(np.repeat(np.arange(len(files)), matrix.n_rows), names)
    adata.X = matrix
    return adata


def _annotation(path: Path, n_cells: int) -> anndata.AnnData:
    """Everything of a file that is read, without expression."""
    root = open_root(path)
    try:
        read: dict[str, Any] = {
            name: anndata.io.read_elem(root[name]) for name in ("obs", "var", "obsm", "varm", "uns") if name in root
        }
    except (OSError, RuntimeError, KeyError) as error:
        raise OSError(f"{path} is damaged: its annotation cannot be read ({error}).") from error
    finally:
        if hasattr(root, "close"):
            root.close()
    lacking = [name for name in ("obs", "var") if name not in read]
    if lacking:
        raise ValueError(f"{path} has no {' and no '.join(lacking)}; it was not written by AnnData.")
    if len(read["obs"]) != n_cells:
        raise ValueError(f"{path} names {len(read['obs'])} cells in obs but its matrix has {n_cells}.")
    return anndata.AnnData(**read)


def _check_genes(path: Path, genes: pd.Index, first_path: Path, first: pd.Index) -> None:
    if genes.equals(first):
        return
    if len(genes) != len(first) or set(genes) != set(first):
        lacks, has = first.difference(genes, sort=False), genes.difference(first, sort=False)
        raise ValueError(
            f"{path} has other genes than {first_path}: it lacks {_some(lacks)} and has {_some(has)} beside them; write "
            "files with the same genes (adata[:, genes].write_h5ad(path))."
        )
    places = np.flatnonzero(genes.to_numpy() != first.to_numpy())
    shown = ", ".join(f"{genes[i]!r} for {first[i]!r}" for i in places[:_SHOWN])
    raise ValueError(
        f"{path} has the genes of {first_path} in another order: {len(places)} places differ, first {shown}; write the "
        "file anew in that order (adata[:, genes].write_h5ad(path))."
    )


def _check_cells(parts: list[anndata.AnnData]) -> None:
    names = parts[0].obs_names.append([part.obs_names for part in parts[1:]])
    repeated = names[names.duplicated()]
    if len(repeated):
        raise ValueError(
            f"{len(repeated)} cell name(s) come twice, such as {_some(repeated, count=False)}; give each file names of its "
            "own (adata.obs_names = 'plate1_' + adata.obs_names, or adata.obs_names_make_unique() within one) and write it "
            "again."
        )


def _drop_unequal(parts: list[anndata.AnnData]) -> None:
    """Drop entries of obs and obsm that not all files have alike, with a warning."""
    columns = {name for part in parts for name in part.obs}
    left_out = sorted(map(str, (name for name in columns if not all(name in part.obs for part in parts))))
    arrays = {name for part in parts for name in part.obsm}
    unequal = {
        name
        for name in arrays
        if not all(name in part.obsm for part in parts) or len({part.obsm[name].shape[1:] for part in parts}) > 1
    }
    for part in parts:
        for name in unequal & set(part.obsm):
            del part.obsm[name]
    if left_out or unequal:
        what = [f"obs columns {', '.join(map(repr, left_out))}"] if left_out else []
        what += [f"obsm entries {', '.join(map(repr, sorted(unequal)))}"] if unequal else []
        warnings.warn(f"Left out, as not all {len(parts)} files have them alike: {'; '.join(what)}.", stacklevel=3)


def _some(names: pd.Index, *, count: bool = True) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN].astype(str))) + (", ..." if len(names) > _SHOWN else "")
    return shown if not count else f"{len(names)} ({shown})" if len(names) else "none"
