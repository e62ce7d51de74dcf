"""Tables of embeddings that others have made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}


def read_table(path: str | Path, names: Sequence[str] | None = None) -> pd.DataFrame:
    r"""Read an embedding of genes or drugs, such as that of their descriptions, from a file of text or Parquet.

    Parameters
    ----------
    path
        `.csv`, `.tsv` or `.txt` (tabs), also as `.gz`, with names in the first column and a header; or `.parquet` with names
        as the index. Pickled files run whatever their maker put in, so they are refused.
    names
        Perturbations to keep, in this order; None keeps all.

    Returns
    -------
    Perturbations x dimensions, float32. Store it in `adata.uns` and name it with
    `setup_anndata(perturbation_embedding_key=)`.

    Raises
    ------
    TypeError
        If `names` is a single text.
    FileNotFoundError
        If there is no such file.
    ValueError
        If the kind of the file is unknown, names come twice or are absent, or values are no finite numbers; names and count
        are told.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name) / "genes.csv"
    >>> _ = path.write_text("gene,x,y\nA,1,2\nB,3,4\n")
    >>> read_table(path, ["B"]).to_numpy().tolist()
    [[3.0, 4.0]]
    >>> folder.cleanup()
    """
    if isinstance(names, str):
        raise TypeError(f"names={names!r} must be a list of names, such as {[names]}.")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    kinds = [suffix.lower() for suffix in path.suffixes]
    kind = kinds[-2] if kinds[-1:] == [".gz"] and len(kinds) > 1 else (kinds[-1] if kinds else "")
    if kind == ".parquet":
        table = pd.read_parquet(path)
    elif kind in _SEPARATORS:
        # a converter keeps names such as "NA" and "007" as they are
        table = pd.read_csv(path, sep=_SEPARATORS[kind], converters={0: str})
        table = table.set_index(table.columns[0])
    else:
        known = ", ".join([*_SEPARATORS, ".parquet"])
        raise ValueError(
            f"{path.name!r} is none of {known} (files of text also as .gz); write the table with `to_parquet` or `to_csv`. "
            "Pickled files are not read, since they run code."
        )
    table.index = table.index.astype(str)
    repeated = table.index[table.index.duplicated()].unique()
    if len(repeated):
        raise ValueError(f"{path.name!r} has {len(repeated)} name(s) twice: {', '.join(repeated[:5])}.")
    if names is not None:
        absent = [str(name) for name in names if str(name) not in table.index]
        if absent:
            raise ValueError(
                f"{path.name!r} lacks {len(absent)} of {len(names)} name(s): {', '.join(absent[:5])}; are they of the same kind "
                "(symbols, identifiers)? Leave out the absent ones and their cells."
            )
        table = table.loc[[str(name) for name in names]]
    not_numbers = [str(column) for column in table if not pd.api.types.is_numeric_dtype(table[column])]
    if not_numbers:
        raise ValueError(
            f"{path.name!r} has {len(not_numbers)} column(s) that are no numbers: {', '.join(not_numbers[:5])}."
        )
    table = table.astype(np.float32)
    bad = table.index[~np.isfinite(table.to_numpy()).all(axis=1)]
    if len(bad):
        raise ValueError(f"{path.name!r} has missing or infinite values in {len(bad)} row(s): {', '.join(bad[:5])}.")
    return table
