import shutil
import warnings

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from multipert.data import DiskMatrix, read_backed
from multipert.data._checks import check_expression, row_blocks

RNG = np.random.default_rng(0)
X = sparse.csr_matrix((RNG.random((30, 7)) * (RNG.random((30, 7)) < 0.5)).astype(np.float32))


def cells(rows=slice(None), prefix="c"):
    numbers = np.arange(30)[rows]
    obs = pd.DataFrame(
        {"perturbation": pd.Categorical([f"p{i // 10}" for i in numbers]), "depth": numbers / 2},
        index=[f"{prefix}{i}" for i in numbers],
    )
    adata = AnnData(
        X[rows],
        obs=obs,
        var=pd.DataFrame({"chromosome": pd.Categorical(list("aabbccd"))}, index=[f"g{i}" for i in range(7)]),
        obsm={"embedding": np.stack([numbers, -numbers], axis=1).astype(float)},
        varm={"loadings": np.ones((7, 2))},
        uns={"source": {"study": "one"}},
        layers={"counts": sparse.csr_matrix(X[rows] * 3)},
    )
    adata.obsp["distances"] = sparse.eye_array(len(numbers), format="csr")
    return adata


@pytest.fixture(params=[".h5ad", ".zarr"])
def suffix(request):
    return request.param


def write(adata, path):
    adata.write_zarr(path) if path.suffix == ".zarr" else adata.write_h5ad(path)
    return path


@pytest.fixture
def paths(tmp_path, suffix):
    return [write(cells(rows), tmp_path / f"plate{i}{suffix}") for i, rows in enumerate((slice(0, 12), slice(12, 30)))]


@pytest.fixture
def adata(paths):
    return read_backed(paths)


def test_one_file_is_read_as_anndata_reads_it_but_for_expression(tmp_path, suffix):
    path = write(cells(), tmp_path / f"all{suffix}")
    found = read_backed(path)
    assert isinstance(found.X, DiskMatrix)
    assert not found.isbacked
    pd.testing.assert_frame_equal(found.obs, cells().obs)
    pd.testing.assert_frame_equal(found.var, cells().var)
    np.testing.assert_array_equal(found.obsm["embedding"], cells().obsm["embedding"])
    np.testing.assert_array_equal(found.varm["loadings"], cells().varm["loadings"])
    assert found.uns["source"]["study"] == "one"
    assert len(found.layers) == 0
    assert len(found.obsp) == 0
    assert (found.X[:] != X).nnz == 0


def test_several_files_are_stacked(paths, adata):
    assert adata.shape == (30, 7)
    pd.testing.assert_frame_equal(adata.obs, cells().obs)
    pd.testing.assert_frame_equal(adata.var, cells().var)
    np.testing.assert_array_equal(adata.obsm["embedding"], cells().obsm["embedding"])
    assert adata.uns["source"]["study"] == "one"
    # one category is in the first file only, one in the second only
    assert list(adata.obs["perturbation"].cat.categories) == ["p0", "p1", "p2"]
    assert (adata.X[:] != X).nnz == 0
    turned = read_backed(paths[::-1])
    assert list(turned.obs_names) == [*adata.obs_names[12:], *adata.obs_names[:12]]
    assert (turned.X[:] != sparse.vstack([X[12:], X[:12]])).nnz == 0


def test_a_layer_can_be_the_expression_or_be_added(paths):
    adata = read_backed(paths, "counts")
    assert (adata.X[:] != 3 * X).nnz == 0
    adata.layers["lognorm"] = DiskMatrix(paths)
    assert (adata[[20, 3]].layers["lognorm"] != X[[20, 3]]).nnz == 0


def test_the_file_of_each_cell(paths, tmp_path, suffix):
    adata = read_backed(paths, label="plate")
    assert adata.obs["plate"].tolist() == ["plate0"] * 12 + ["plate1"] * 18
    assert read_backed(paths[1], label="plate").obs["plate"].unique().tolist() == ["plate1"]
    (tmp_path / "other").mkdir()
    twin = write(cells(slice(12, 30)), tmp_path / "other" / f"plate0{suffix}")
    assert read_backed([paths[0], twin], label="plate").obs["plate"].cat.categories.tolist() == [
        str(paths[0]),
        str(twin),
    ]
    with pytest.raises(ValueError, match=r"label='depth', but obs of .*plate0.* has a column of that name"):
        read_backed(paths, label="depth")


def test_what_not_all_files_have_is_left_out_with_a_warning(tmp_path, suffix):
    first, second = cells(slice(0, 12)), cells(slice(12, 30))
    first.obs["donor"], second.obs["batch"] = "d1", "b1"
    second.obsm["embedding"] = np.ones((18, 3))
    second.var["chromosome"] = "z"
    second.uns["source"]["study"] = "two"
    paths = [write(part, tmp_path / f"{i}{suffix}") for i, part in enumerate((first, second))]
    with pytest.warns(UserWarning, match="all 2 files.* obs columns 'batch', 'donor'; obsm entries 'embedding'"):
        adata = read_backed(paths)
    assert list(adata.obs) == ["perturbation", "depth"]
    assert list(adata.obsm) == []
    assert list(adata.var) == []
    assert "study" not in adata.uns.get("source", {})


def test_files_that_agree_give_no_warning(paths):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_backed(paths)


def test_names_of_cells_must_be_unique_over_all_files(paths, tmp_path, suffix):
    third = write(cells(slice(10, 15)), tmp_path / f"third{suffix}")
    with pytest.raises(
        ValueError, match=r"5 cell name\(s\) come twice, such as 'c10', 'c11', 'c12', \.\.\.; give each"
    ):
        read_backed([*paths, third])


def test_genes_must_be_the_same_in_the_same_order(paths, tmp_path, suffix):
    part = cells(slice(0, 5), prefix="other")
    third = write(part[:, [0, 2, 1, 3, 4, 5, 6]].copy(), tmp_path / f"third{suffix}")
    with pytest.raises(ValueError, match=r"third.* another order: 2 places differ, first 'g2' for 'g1', 'g1' for 'g2'"):
        read_backed([*paths, third])
    part.var_names = ["g0", "g1", "h2", "h3", "g4", "g5", "g6"]
    third = write(part, tmp_path / f"renamed{suffix}")
    with pytest.raises(ValueError, match=r"renamed.* lacks 2 \('g2', 'g3'\) and has 2 \('h2', 'h3'\) beside them"):
        read_backed([*paths, third])


def test_files_that_contradict_themselves_are_refused(tmp_path):
    path = write(cells(), tmp_path / "a.h5ad")
    short = shutil.copy(path, tmp_path / "short.h5ad")
    with h5py.File(short, "a") as file, h5py.File(write(cells(slice(3)), tmp_path / "b.h5ad")) as other:
        del file["obs"]
        other.copy("obs", file)
    with pytest.raises(ValueError, match=r"short\.h5ad names 3 cells in obs but its matrix has 30"):
        read_backed(short)
    narrow = shutil.copy(path, tmp_path / "narrow.h5ad")
    with h5py.File(narrow, "a") as file, h5py.File(write(cells()[:, :2].copy(), tmp_path / "c.h5ad")) as other:
        for name in ("var", "varm"):
            del file[name]
        other.copy("var", file)
    with pytest.raises(ValueError, match=r"narrow\.h5ad names 2 genes in var but its matrix has 7"):
        read_backed(narrow)
    with h5py.File(path, "a") as file:
        del file["obs"], file["var"]
    with pytest.raises(ValueError, match=r"a\.h5ad has no obs and no var"):
        read_backed(path)


def test_missing_matrices_are_refused(tmp_path, paths, suffix):
    bare = cells()
    bare.X = None
    path = write(bare, tmp_path / f"bare{suffix}")
    with pytest.raises((KeyError, ValueError), match=r"bare.*name (one|a layer) with `layer`"):
        read_backed(path)
    assert (read_backed(path, "counts").X[:] != 3 * X).nnz == 0
    with pytest.raises(KeyError, match="has no layers/raw; it has the layer"):
        read_backed(paths, "raw")
    with pytest.raises(FileNotFoundError, match=r"gone\.h5ad does not exist"):
        read_backed(tmp_path / "gone.h5ad")


def test_views_read_their_cells(adata):
    expected = cells()
    chosen = adata.obs["perturbation"] == "p1"
    for index in (slice(3, 6), [25, 0], chosen.to_numpy(), chosen, ["c3", "c29"]):
        view = adata[index]
        assert (view.X != expected[index].X).nnz == 0
        for whole in (view.copy(), view.to_memory()):
            assert sparse.issparse(whole.X)
            assert (whole.X != expected[index].X).nnz == 0
    both = adata[[25, 0], ["g5", "g1"]]
    assert (both.X != expected[[25, 0], ["g5", "g1"]].X).nnz == 0
    assert (adata[:, chosen.to_numpy()[:7]].X != expected[:, chosen.to_numpy()[:7]].X).nnz == 0
    assert (adata[chosen][2:4].X != expected[chosen.to_numpy()][2:4].X).nnz == 0


def test_copies_stay_on_disk_and_memory_is_memory(adata):
    twin = adata.copy()
    assert isinstance(twin.X, DiskMatrix)
    twin.obs["depth"] = 0
    assert adata.obs["depth"].max() > 0
    whole = adata.to_memory()
    assert isinstance(whole.X, sparse.csr_matrix)
    assert (whole.X != X).nnz == 0


def test_it_prints_and_tells_its_size(adata):
    assert repr(adata).startswith("AnnData object with n_obs × n_vars = 30 × 7")
    assert adata.__sizeof__() > 0


def test_it_is_written_from_memory(adata, tmp_path):
    with pytest.raises(Exception, match="No method registered for writing.*DiskMatrix"):
        adata.write_h5ad(tmp_path / "out.h5ad")
    for some, rows in ((adata.to_memory(), slice(None)), (adata[5:9], slice(5, 9))):
        some.write_h5ad(tmp_path / "out.h5ad")
        assert (anndata.read_h5ad(tmp_path / "out.h5ad").X != X[rows]).nnz == 0


def test_blocks_and_checks_read_it(adata, monkeypatch):
    for rows in (None, np.array([1, 11, 12, 29])):
        numbers, blocks = zip(*row_blocks(adata.X, rows, 8 * 7 * 4), strict=True)
        np.testing.assert_array_equal(np.concatenate(numbers), np.arange(30) if rows is None else rows)
        assert (sparse.vstack(blocks) != X[np.concatenate(numbers)]).nnz == 0
    check_expression(adata.X, adata, name="X")


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_matrix])
def test_missing_values_are_found_where_they_are(tmp_path, container, suffix):
    adata = cells()
    x = X.toarray()
    x[20, 3] = np.nan
    adata.X = container(x)
    found = read_backed(write(adata, tmp_path / f"nan{suffix}"))
    with pytest.raises(ValueError, match="X has 1 NaN or infinite value.* cell 'c20', gene 'g3'"):
        check_expression(found.X, found, name="X")
