"""Fingerprints of drugs: equal for equal structures, and never made up."""

import sys

import numpy as np
import pandas as pd
import pytest

from multipert.embedding import fingerprints

rdkit = pytest.importorskip("rdkit", reason="needs multipert[rdkit]")

DRUGS = {"aspirin": "CC(=O)Oc1ccccc1C(=O)O", "ethanol": "CCO", "propanol": "CCCO", "benzene": "c1ccccc1"}


def test_one_structure_has_one_fingerprint_however_it_is_written():
    table = fingerprints({**DRUGS, "again": "OCC", "spaced": " CCO "})
    assert table.shape == (6, 2048)
    assert table.dtypes.unique().tolist() == [np.float32]
    for name in ("again", "spaced"):
        pd.testing.assert_series_equal(table.loc["ethanol"], table.loc[name], check_names=False)
    assert not table.loc["ethanol"].equals(table.loc["propanol"])
    assert set(np.unique(table)) == {0, 1}


def test_bits_are_those_of_rdkit():
    from rdkit import Chem
    from rdkit.Chem import AllChem

    table = fingerprints(DRUGS, n_bits=512)
    for name, text in DRUGS.items():
        bits = AllChem.GetMorganFingerprintAsBitVect(Chem.MolFromSmiles(text), 2, nBits=512).GetOnBits()
        assert np.flatnonzero(table.loc[name]).tolist() == list(bits)


def test_alike_drugs_share_more_and_counts_count():
    table = fingerprints(DRUGS)
    shared = table @ table.T
    assert shared.loc["ethanol", "propanol"] > shared.loc["ethanol", "benzene"]
    counts = fingerprints(DRUGS, counts=True)
    assert counts.loc["benzene"].max() == 6
    np.testing.assert_array_equal(counts > 0, table > 0)


def test_control_needs_no_structure_and_no_row_is_invented():
    assert fingerprints(pd.Series({**DRUGS, "control": None})).index.tolist() == list(DRUGS)
    with pytest.raises(ValueError, match=r"2 of 5 perturbations have no SMILES: a, b;"):
        fingerprints({"a": None, "b": "  ", "c": "C", "d": "CC", "e": "CCC"})
    with pytest.raises(ValueError, match=r"1 of 2 SMILES cannot be read: bad \(C1CC\);"):
        fingerprints({"good": "C", "bad": "C1CC"})
    with pytest.raises(ValueError, match="names 1 perturbation.* twice: a"):
        fingerprints(pd.Series(["C", "CC"], index=["a", "a"]))


@pytest.mark.parametrize(("argument", "value"), [("radius", -1), ("n_bits", 0)])
def test_numbers_out_of_range_are_named(argument, value):
    with pytest.raises(ValueError, match=f"{argument}={value} must be a whole number"):
        fingerprints(DRUGS, **{argument: value})


def test_without_rdkit_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ImportError, match=r"pip install multipert\[rdkit\]"):
        fingerprints(DRUGS)
