"""Drugs as fingerprints of their structure."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral

import numpy as np
import pandas as pd

from multipert._keys import CONTROL


def fingerprints(
    smiles: Mapping[str, str] | pd.Series,
    *,
    radius: int = 2,
    n_bits: int = 2048,
    counts: bool = False,
    control: str = CONTROL,
) -> pd.DataFrame:
    """Morgan fingerprints of drugs :cite:p:`Rogers2010`, from RDKit.

    Each column stands for the surroundings of an atom, up to `radius` bonds wide, folded into `n_bits` columns. Drugs without
    a structure, or with one that cannot be read, are an error: a row of zeros would be a drug like any other.

    Needs `pip install multipert[rdkit]`.

    Parameters
    ----------
    smiles
        Structure (SMILES) by the name of the perturbation. A row of control is left out.
    radius
        Bonds from the atom in the middle; 2 gives what is also called ECFP4.
    n_bits
        Number of columns.
    counts
        Whether to count surroundings; otherwise 1 where there are any.
    control
        Name of control.

    Returns
    -------
    Perturbations x columns, float32, in the order given. Store it in `adata.uns` and name it with
    `setup_anndata(perturbation_embedding_key=)`.

    Raises
    ------
    TypeError
        If `smiles` names no perturbations.
    ImportError
        If RDKit is not installed.
    ValueError
        If a number is below 1, a name comes twice, or structures are missing or cannot be read; names and count are told.

    Examples
    --------
    >>> table = fingerprints({"aspirin": "CC(=O)Oc1ccccc1C(=O)O", "ethanol": "CCO"}, n_bits=64)
    >>> table.shape, table.index.tolist(), set(table.to_numpy().ravel().tolist()) == {0.0, 1.0}
    ((2, 64), ['aspirin', 'ethanol'], True)
    """
    for name, value, least in (("radius", radius, 0), ("n_bits", n_bits, 1)):
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name}={value} must be a whole number of at least {least}.")
    if not isinstance(smiles, Mapping | pd.Series):
        raise TypeError(f"smiles is a {type(smiles).__name__}; give a dict or a Series of SMILES by name.")
    given = pd.Series(smiles, dtype=object)
    given.index = given.index.astype(str)
    given = given[given.index != control]
    repeated = given.index[given.index.duplicated()].unique()
    if len(repeated):
        raise ValueError(f"smiles names {len(repeated)} perturbation(s) twice: {_some(repeated)}; keep one of each.")
    is_missing = given.isna() | (given.astype(str).str.strip() == "")
    if is_missing.any():
        raise ValueError(
            f"{int(is_missing.sum())} of {len(given)} perturbations have no SMILES: {_some(given.index[is_missing])}; look "
            "them up, or leave out these perturbations and their cells."
        )
    try:
        from rdkit import Chem, RDLogger
        from rdkit.Chem import rdFingerprintGenerator
    except ImportError as error:
        raise ImportError("fingerprints needs RDKit: pip install multipert[rdkit]") from error
    # what cannot be read is told below, all at once
    with _Quiet(RDLogger):
        molecules = [Chem.MolFromSmiles(str(text).strip()) for text in given]
    unread = [f"{name} ({text})" for name, text, mol in zip(given.index, given, molecules, strict=True) if mol is None]
    if unread:
        raise ValueError(
            f"{len(unread)} of {len(given)} SMILES cannot be read: {_some(unread)}; correct them, or leave out these "
            "perturbations and their cells."
        )
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=n_bits)
    read = generator.GetCountFingerprintAsNumPy if counts else generator.GetFingerprintAsNumPy
    rows = [np.asarray(read(molecule), dtype=np.float32) for molecule in molecules]
    values = np.stack(rows) if rows else np.zeros((0, n_bits), dtype=np.float32)
    return pd.DataFrame(values, index=given.index, columns=[f"bit_{i}" for i in range(n_bits)])


class _Quiet:
    """RDKit's messages off, and on again."""

    def __init__(self, logger) -> None:
        self.logger = logger

    def __enter__(self) -> None:
        self.logger.DisableLog("rdApp.*")

    def __exit__(self, *error: object) -> None:
        self.logger.EnableLog("rdApp.*")


def _some(names) -> str:
    """The first names."""
    shown = ", ".join(map(str, names[:5]))
    return f"{shown}, ..." if len(names) > 5 else shown
