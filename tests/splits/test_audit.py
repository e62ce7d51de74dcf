"""What the audit finds, and what it lets pass."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from multipert import datasets, pp, splits
from multipert.splits._fingerprint import fingerprints


@pytest.fixture(scope="module")
def screen() -> ad.AnnData:
    return datasets.simulate(n_cells=400, n_vars=60, n_contexts=3, n_perturbations=3, seed=2)


@pytest.fixture
def adata(screen) -> ad.AnnData:
    adata = screen.copy()
    adata.obs["split"] = splits.context_transfer(adata, "context_1")
    return adata


def kinds(report: splits.AuditReport) -> set[tuple[str, str]]:
    return set(zip(report.findings["kind"], report.findings["severity"], strict=True))


def finding(report: splits.AuditReport, kind: str) -> pd.Series:
    (row,) = (row for _, row in report.findings.iterrows() if row["kind"] == kind)
    return row


def test_a_clean_split_has_no_error(adata):
    report = splits.audit(adata)
    assert report.ok
    assert kinds(report) == {("empty_level", "warning")}
    assert report.raise_if_leaking() is None
    assert report.split_hash == splits.split_hash(adata.obs["split"])


@pytest.mark.parametrize(
    "split",
    [
        lambda adata: splits.partial_context_transfer(adata, share=0.9, max_held_out=2, seed=1),
        lambda adata: splits.manual(adata, {"context_1": 0.7}),
    ],
)
def test_splits_of_this_package_pass(adata, split):
    adata.obs["split"] = split(adata)
    assert splits.audit(adata).findings.empty
    assert "0 error(s), 0 warning(s)" in repr(splits.audit(adata))


def test_a_copied_cell_in_train_and_test_is_found(adata):
    test, train = (np.flatnonzero(adata.obs["split"] == level)[:2] for level in ("test", "train"))
    adata.X[test] = adata.X[train]
    for x in (adata.X, adata.X.toarray(), adata.X.tocsc(), adata.X.astype(np.float64)):
        adata.X = x
        report = splits.audit(adata)
        found = finding(report, "duplicated_cell")
        assert (found["severity"], found["count"]) == ("error", 2)
        assert adata.obs_names[test[0]] in found["examples"]
        assert not report.ok
    with pytest.raises(ValueError, match="duplicated_cell \\(2\\).*Drop one of the copies"):
        report.raise_if_leaking()
    assert splits.audit(adata, layer="counts").ok


def test_copies_within_a_level_and_empty_cells_are_no_finding(adata):
    train = np.flatnonzero(adata.obs["split"] == "train")[:2]
    adata.X[train[0]] = adata.X[train[1]]
    for level in ("train", "test"):
        adata.X[np.flatnonzero(adata.obs["split"] == level)[5]] = 0
    assert splits.audit(adata).ok


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["csr_matrix", "csc_matrix", "coo_matrix"]))
def test_equal_rows_and_only_those_share_a_fingerprint(seed, storage):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 3, (30, 6)).astype(np.float32)
    hashes, n_values = fingerprints(values)
    same = (values[:, None] == values[None]).all(axis=2)
    np.testing.assert_array_equal(hashes[:, None] == hashes[None], same)
    np.testing.assert_array_equal(n_values, (values != 0).sum(axis=1))
    stored = getattr(sparse, storage)(values)
    np.testing.assert_array_equal(fingerprints(stored)[0], hashes)
    with_zeros = sparse.csr_matrix(values + 1)
    with_zeros.data -= 1
    np.testing.assert_array_equal(fingerprints(with_zeros)[0], hashes)


def test_fingerprints_of_blocks_are_those_of_the_whole(monkeypatch):
    values = np.random.default_rng(0).random((50, 7))
    whole = fingerprints(values)[0]
    monkeypatch.setattr("multipert.splits._fingerprint._BLOCK_BYTES", 8 * 7 * 3)
    np.testing.assert_array_equal(fingerprints(values)[0], whole)


def test_a_group_on_both_sides_is_found_unless_cells_are_random_on_purpose(adata):
    test = adata.obs_names[adata.obs["split"] == "test"]
    adata.obs.loc[test[:3], "split"] = "train"
    report = splits.audit(adata)
    assert finding(report, "shared_condition")["severity"] == "error"
    assert not report.ok
    adata.obs["split"] = splits.random(adata)
    assert not splits.audit(adata).ok
    assert splits.audit(adata, random=True).ok


def test_groups_shared_by_train_and_val_only_are_a_warning(adata):
    adata.obs["split"] = splits.context_transfer(adata, "context_1", val_size=0.2)
    assert kinds(splits.audit(adata)) == {("shared_condition", "warning")}


def test_doses_make_groups_of_their_own():
    adata = datasets.simulate(n_cells=600, n_vars=40, n_contexts=2, n_perturbations=3, doses=(1, 2, 3), seed=0)
    adata.obs["split"] = splits.dose(adata, "highest")
    assert splits.audit(adata, dose_key="dose").findings.empty
    assert not splits.audit(adata).ok


@pytest.mark.parametrize(("suffixes", "n"), [(("-0", "-1"), 4), (("-1-0", "-1-1"), 4), (("_a", "_b"), 0)])
def test_names_that_differ_by_their_ending_only_are_counted(adata, suffixes, n):
    names = adata.obs_names.to_numpy().astype(object)
    test, train = (np.flatnonzero(adata.obs["split"] == level)[:4] for level in ("test", "train"))
    for i in range(4):
        names[test[i]], names[train[i]] = f"ACGT{i}{suffixes[0]}", f"ACGT{i}{suffixes[1]}"
    adata.obs_names = names
    report = splits.audit(adata)
    if n:
        assert (finding(report, "shared_barcode")["count"], report.ok) == (n, True)
    else:
        assert "shared_barcode" not in set(report.findings["kind"])


def test_a_numbering_is_no_shared_barcode(adata):
    adata.obs_names = [f"cell-{i}" for i in range(adata.n_obs)]
    assert "shared_barcode" not in set(splits.audit(adata).findings["kind"])


def test_unseen_perturbations_are_named(adata):
    adata.obs["split"] = splits.unseen_perturbation(adata, perturbation="P2")
    found = finding(splits.audit(adata), "unseen_perturbation")
    assert (found["count"], found["examples"], found["severity"]) == (1, "P2", "warning")


def test_missing_controls_are_found(adata):
    control, context = adata.obs["perturbation"] == "control", adata.obs["context"]
    bare = adata[~(control & (context == "context_1"))].copy()
    assert finding(splits.audit(bare), "no_control")["severity"] == "error"
    adata.obs["split"] = splits.partial_context_transfer(adata, val_share=0, max_held_out=2, share=0.9)
    assert "no_control_in_level" not in set(splits.audit(adata).findings["kind"])
    tested = context[(adata.obs["split"] == "test") & ~control].iloc[0]
    adata.obs.loc[control & (context == tested), "split"] = "train"
    found = finding(splits.audit(adata), "no_control_in_level")
    assert (found["count"], found["examples"]) == (1, f"test: {tested}")


def test_levels_are_read(adata):
    split = adata.obs["split"].copy()
    adata.obs["split"] = split.where(np.arange(len(split)) > 1, None)
    assert finding(splits.audit(adata), "missing_level")["count"] == 2
    adata.obs["split"] = split.replace("test", "held")
    report = splits.audit(adata)
    assert finding(report, "unknown_level")["examples"] == "held"
    assert not report.ok
    adata.obs["split"] = "test"
    assert ("empty_level", "error") in kinds(splits.audit(adata))


@pytest.mark.parametrize("through_file", [False, True])
def test_what_was_fitted_on_all_cells_is_an_error(adata, tmp_path, through_file):
    def audited() -> splits.AuditReport:
        if not through_file:
            return splits.audit(adata)
        adata.write_h5ad(tmp_path / "cells.h5ad")
        return splits.audit(ad.read_h5ad(tmp_path / "cells.h5ad"))

    pp.highly_variable_genes(adata, 40)
    assert audited().ok
    pp.highly_variable_genes(adata, 40, fit_on="all")
    report = audited()
    assert finding(report, "fitted_on_all_cells")["examples"] == "genes"
    assert not report.ok
    # the genes are only marked so far: a choice on training cells mends it
    pp.highly_variable_genes(adata, 40)
    assert audited().ok


def test_the_library_size_of_all_cells_is_a_warning(adata):
    pp.normalise(adata, layer="counts", fit_on="all")
    assert finding(splits.audit(adata), "fitted_on_all_cells")["severity"] == "warning"


def test_another_split_than_that_of_preprocessing_is_a_warning(adata):
    pp.highly_variable_genes(adata, 40)
    adata.obs["split"] = splits.context_transfer(adata, "context_2")
    found = finding(splits.audit(adata), "fitted_on_other_split")
    assert (found["severity"], found["examples"].split(":")[0]) == ("warning", "genes")


def test_marks_of_scanpy_without_a_record_are_a_warning(adata):
    import scanpy

    scanpy.pp.highly_variable_genes(adata, n_top_genes=20)
    adata.uns["log1p"] = {"base": None}
    scanpy.pp.scale(adata)
    found = splits.audit(adata).findings
    assert found["kind"].tolist().count("fit_not_recorded") == 3
    assert set(found["severity"]) == {"warning"}


def test_expression_may_stay_on_disk(adata, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    assert splits.audit(backed).findings.equals(splits.audit(adata).findings)
    backed.file.close()


def test_the_audit_changes_nothing(adata):
    before = adata.copy()
    splits.audit(adata)
    assert (adata.X != before.X).nnz == 0
    assert adata.obs.equals(before.obs)
    assert adata.uns.keys() == before.uns.keys()


def test_absent_columns_are_refused(adata):
    with pytest.raises(KeyError, match="split_key='splt'.*did you mean 'split'"):
        splits.audit(adata, "splt")
    with pytest.raises(KeyError, match="layer='count'"):
        splits.audit(adata, layer="count")
