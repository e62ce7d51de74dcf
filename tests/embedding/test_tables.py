"""Tables from files, and what they cover of the data."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from multipert.embedding import coverage, read_table


@pytest.fixture
def adata() -> AnnData:
    labels = ["control"] * 4 + ["A"] * 3 + ["A+B"] * 2 + ["C"]
    return AnnData(obs=pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(10)]))


def test_coverage_takes_combinations_apart_and_counts_cells(adata):
    table = pd.DataFrame(np.eye(3), index=["A", "D", "control"])
    found = coverage(table, adata)
    assert found["covered"].to_dict() == {"A": True, "B": False, "C": False}
    assert found["n_cells"].to_dict() == {"A": 5, "B": 2, "C": 1}
    assert found.attrs == {"covered": 1 / 3, "cells": 3 / 6, "unused": 1}
    assert coverage(["A+B"], adata, delimiter=None)["covered"].to_dict() == {"A": False, "A+B": True, "C": False}


def test_an_absent_column_is_named(adata):
    with pytest.raises(KeyError, match="drug"):
        coverage(["A"], adata, "drug")


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz"])
def test_tables_come_back_as_they_were_written(name, tmp_path):
    table = pd.DataFrame(
        np.arange(6, dtype=np.float32).reshape(3, 2), index=pd.Index(["1", "B", "C"], name="gene"), columns=["x", "y"]
    )
    table.to_csv(tmp_path / name, sep="\t" if ".tsv" in name else ",")
    pd.testing.assert_frame_equal(read_table(tmp_path / name), table)
    pd.testing.assert_frame_equal(read_table(tmp_path / name, ["C", 1]), table.loc[["C", "1"]])
    with pytest.raises(ValueError, match=r"lacks 2 of 3 name\(s\): D, E"):
        read_table(tmp_path / name, ["D", "B", "E"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gene,x\nA,1\nA,2\n", r"1 name\(s\) twice: A"),
        ("gene,x\nA,1\nB,\n", r"missing or infinite values in 1 row\(s\): B"),
        ("gene,x,y\nA,1,u\nB,2,v\n", r"1 column\(s\) that are no numbers: y"),
    ],
)
def test_bad_tables_are_refused(text, message, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.txt.gz"])
@pytest.mark.parametrize(
    "rows",
    [[("A", 0.5, 1), ("B", 0.5, 3)], [("A", 0, 1), ("B", 1, 0)], [("A", "", 2.5), ("B", 1, 2)], [("A", 7), ("B", 8)]],
)
def test_a_file_without_header_is_refused_unless_that_is_said(name, rows, tmp_path):
    separator = "," if ".csv" in name else "\t"
    pd.DataFrame(rows).to_csv(tmp_path / name, sep=separator, header=False, index=False)
    first = separator.join(map(str, rows[0]))
    with pytest.raises(
        ValueError, match="Row 1 of '" + name.replace(".", r"\.") + ".*header=None.*header=0"
    ) as refused:
        read_table(tmp_path / name)
    assert repr(first) in str(refused.value)
    if "" not in rows[0]:
        found = read_table(tmp_path / name, header=None)
        assert found.index.tolist() == [row[0] for row in rows]
        assert found.columns.tolist() == [str(i) for i in range(len(rows[0]) - 1)]
        np.testing.assert_array_equal(found, [row[1:] for row in rows])
    named = read_table(tmp_path / name, header=0)
    assert named.index.tolist() == [row[0] for row in rows[1:]]


@pytest.mark.parametrize("index_name", [None, "gene"])
@pytest.mark.parametrize("columns", [[0, 1, 2], [1, 2, 3], ["0", "x", "2"]])
def test_dimensions_that_are_counted_are_a_header(index_name, columns, tmp_path):
    table = pd.DataFrame(np.eye(3, dtype=np.float32), pd.Index(["A", "B", "C"], name=index_name), columns)
    table.to_csv(tmp_path / "t.csv")
    found = read_table(tmp_path / "t.csv")
    assert found.index.tolist() == ["A", "B", "C"]
    np.testing.assert_array_equal(found, table)
    if index_name is None:
        table.iloc[:, :1].to_csv(tmp_path / "one.csv")
        assert read_table(tmp_path / "one.csv").index.tolist() == ["A", "B", "C"]


@pytest.mark.parametrize("header", [1, True, False, "0", "no"])
def test_an_unknown_header_is_refused(header, tmp_path):
    (tmp_path / "t.csv").write_text("gene,x\nA,1\n")
    with pytest.raises(ValueError, match="header=.* must be 'infer', 0 .* or None"):
        read_table(tmp_path / "t.csv", header=header)


def test_names_stay_as_they_are(tmp_path):
    (tmp_path / "t.csv").write_text("gene,x\nNA,1\n007,2\n")
    assert read_table(tmp_path / "t.csv").index.tolist() == ["NA", "007"]


def test_pickles_are_never_read(tmp_path):
    pd.DataFrame({"x": [1.0]}, index=["A"]).to_pickle(tmp_path / "t.pickle")
    with pytest.raises(ValueError, match="Pickled files are not read"):
        read_table(tmp_path / "t.pickle")
    with pytest.raises(FileNotFoundError, match=r"no\.csv"):
        read_table(tmp_path / "no.csv")
