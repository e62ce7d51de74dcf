"""Tables of embeddings that others have made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_MISSING = ("", "NA")


def read_table(
    path: str | Path, names: Sequence[str] | None = None, *, header: Literal["infer", 0] | None = "infer"
) -> pd.DataFrame:
    r"""Read an embedding of genes or drugs, such as that of their descriptions, from a file of text or Parquet.

    Parameters
    ----------
    path
        `.csv`, `.tsv` or `.txt` (tabs), also as `.gz`, with names in the first column and a header; or `.parquet` with names
        as the index. Pickled files run whatever their maker put in, so they are refused.
    names
        Perturbations to keep, in this order; None keeps all.
    header
        For files of text, as in :func:`pandas.read_csv`: 0, the first row holds the names of the dimensions; None, it is a
        perturbation, and dimensions are numbered from 0. "infer" is 0, but refuses a first row that is a name and numbers,
        unless these count three dimensions or more from 0 or 1, as `to_csv` names those without names.

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
        If the kind of the file is unknown, the first row looks like values, names come twice or are absent, or values are
        no finite numbers; names and count are told.

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
    if isinstance(header, bool) or header not in ("infer", 0, None):
        raise ValueError(f"header={header!r} must be 'infer', 0 (the first row) or None (there is none).")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    kinds = [suffix.lower() for suffix in path.suffixes]
    kind = kinds[-2] if kinds[-1:] == [".gz"] and len(kinds) > 1 else (kinds[-1] if kinds else "")
    if kind == ".parquet":
        table = pd.read_parquet(path)
    elif kind in _SEPARATORS:
        table = _read_text(path, _SEPARATORS[kind], header)
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


def _read_text(path: Path, separator: str, header: Literal["infer", 0] | None) -> pd.DataFrame:
    """A table with names in the first column, as text."""
    if header == "infer":
        _refuse_values(path, separator)
    # a converter keeps names such as "NA" and "007" as they are
    table = pd.read_csv(path, sep=separator, converters={0: str}, header=None if header is None else 0)
    table = table.set_index(table.columns[0])
    if header is None:
        # names are text, which AnnData can write
        table = table.set_axis([str(i) for i in range(table.shape[1])], axis=1).rename_axis(index=None)
    return table


def _refuse_values(path: Path, separator: str) -> None:
    """An error where the first row holds numbers that do not count the dimensions."""
    row = pd.read_csv(path, sep=separator, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0].tolist()
    cells = [cell.strip() for cell in row[1:]]
    values = [cell for cell in cells if cell not in _MISSING]
    if not row[0].strip() or not values or not all(map(_is_number, values)):
        return
    # one or two dimensions may as well hold 0 and 1 as be counted
    if len(cells) > 2 and cells in [[str(i) for i in range(first, first + len(cells))] for first in (0, 1)]:
        return
    shown = separator.join(row[:4]) + (separator + "..." if len(row) > 4 else "")
    raise ValueError(
        f"Row 1 of {path.name!r} is {shown!r}, numbers where the names of the dimensions are expected. Pass header=None if "
        "the file has no header and this row is a perturbation, or header=0 if these are names."
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
