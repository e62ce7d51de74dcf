import anndata
import numpy as np
import pytest
import torch
import zarr
from anndata import AnnData
from scipy import sparse

from multipert import _keys
from multipert.data import _store
from multipert.data._checks import row_blocks
from multipert.data._disk import DiskMatrix
from multipert.data._store import CellStore

RNG = np.random.default_rng(0)
X = (RNG.random((40, 7)) * (RNG.random((40, 7)) < 0.5)).astype(np.float32)
ROWS = np.array([5, 3, 3, 39, 0, 12])


def backed(container, folder):
    path = folder / "x.h5ad"
    AnnData(container(X)).write_h5ad(path)
    return anndata.read_h5ad(path, backed="r").X


def written(container, folder, *cuts, suffix=".h5ad"):
    """The cells as a matrix on disk, in one file or cut into several."""
    paths = []
    for i, part in enumerate(np.split(X, cuts)):
        paths.append(folder / f"part{i}{suffix}")
        write = AnnData(container(part)).write_zarr if suffix == ".zarr" else AnnData(container(part)).write_h5ad
        write(paths[-1])
    return DiskMatrix(paths)


def zarr_node(container, folder):
    written(container, folder, suffix=".zarr")
    x = zarr.open_group(str(folder / "part0.zarr"), mode="r")["X"]
    return x if hasattr(x, "shape") else anndata.io.sparse_dataset(x)


MEMORY = {
    "ndarray": lambda folder: X,
    "fortran": lambda folder: np.asfortranarray(X),
    "strided": lambda folder: np.repeat(X, 2, axis=0)[::2],
    "float64": lambda folder: X.astype(np.float64),
    "csr": lambda folder: sparse.csr_matrix(X),
    "csc": lambda folder: sparse.csc_matrix(X),
    "csr_array": lambda folder: sparse.csr_array(X.astype(np.float64)),
    "unsorted": lambda folder: sparse.csc_matrix(X)[:, ::-1].tocsr()[:, ::-1],
}
DISK = {
    "backed ndarray": lambda folder: backed(np.asarray, folder),
    "backed float64": lambda folder: backed(lambda x: x.astype(np.float64), folder),
    "backed csr": lambda folder: backed(sparse.csr_matrix, folder),
    "zarr ndarray": lambda folder: zarr_node(np.asarray, folder),
    "zarr csr": lambda folder: zarr_node(sparse.csr_matrix, folder),
    "one file": lambda folder: written(sparse.csr_matrix, folder),
    "one zarr": lambda folder: written(sparse.csr_matrix, folder, suffix=".zarr"),
    "three files": lambda folder: written(sparse.csr_matrix, folder, 4, 5),
    "two dense files": lambda folder: written(np.asarray, folder, 30),
}
KINDS = {**MEMORY, **DISK, "backed csc": lambda folder: backed(sparse.csc_matrix, folder)}


@pytest.mark.parametrize("limit", [0, 2**20], ids=["as it is", "at once"])
@pytest.mark.parametrize("kind", [*MEMORY, *DISK])
def test_every_container_gives_the_same_numbers(kind, limit, tmp_path, monkeypatch):
    monkeypatch.setattr(_store, "_SMALL_BYTES", limit)
    store = CellStore(KINDS[kind](tmp_path), {})
    assert (store.n_cells, store.n_vars) == X.shape
    assert store.on_disk == (kind in DISK and limit == 0)
    # a part of the cells that was read before, and the cells on a device
    for held in (store, store.read(np.unique(ROWS)), store._moved(torch.device("cpu"))):
        found = held.expression(ROWS)
        assert found.dtype == torch.float32
        assert found.is_contiguous()
        np.testing.assert_array_equal(found.numpy(), X[ROWS])
        assert held.expression(ROWS[:0]).shape == (0, 7)


def test_columns_on_disk_are_read_at_once_or_refused(tmp_path, monkeypatch):
    x = backed(sparse.csc_matrix, tmp_path)
    np.testing.assert_array_equal(CellStore(x, {}).expression(ROWS), X[ROWS])
    monkeypatch.setattr(_store, "_SMALL_BYTES", 0)
    with pytest.raises(ValueError, match=r"x.h5ad \(X\) is stored by columns.*tocsr"):
        CellStore(x, {})


def test_values_of_one_place_are_added_up_wherever_they_are(tmp_path):
    twice = sparse.csr_matrix((np.arange(1.0, 6), [1, 1, 0, 2, 1], [0, 3, 3, 5]), shape=(3, 3))
    for x in (twice, twice.astype(np.float32)):
        before = x.copy()
        for store in (CellStore(x, {}), CellStore(x, {})._moved(torch.device("cpu"))):
            np.testing.assert_array_equal(
                store.expression(np.array([2, 1, 0, 0])), twice.toarray()[[2, 1, 0, 0]].astype(np.float32)
            )
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(x, part), getattr(before, part))


@pytest.mark.parametrize("container", [sparse.csr_matrix, np.asarray])
def test_cells_in_memory_are_shared_and_counted(container):
    x = container(X.copy())
    values = x.data if sparse.issparse(x) else x
    store = CellStore(x, {"codes": np.zeros(40, dtype=np.int32)})
    values[:] = 7
    assert set(np.unique(store.expression(np.arange(40)))) <= {0.0, 7.0}
    assert store.expression(np.arange(40)).max() == 7
    held = x.data.nbytes + x.indices.nbytes + x.indptr.nbytes if sparse.issparse(x) else x.nbytes
    assert store.nbytes == held + 160


def test_a_file_takes_eight_bytes_a_cell_or_none(tmp_path, monkeypatch):
    monkeypatch.setattr(_store, "_SMALL_BYTES", 0)
    assert CellStore(written(sparse.csr_matrix, tmp_path), {}).nbytes == 8 * 41
    assert CellStore(written(np.asarray, tmp_path), {}).nbytes == 0


def test_integers_become_float32():
    store = CellStore(sparse.csr_matrix(np.arange(6).reshape(3, 2)), {})
    np.testing.assert_array_equal(store.expression(np.array([2, 0])), [[4, 5], [0, 1]])
    assert store.expression(np.array([0])).dtype == torch.float32


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_matrix])
def test_a_batch_is_a_copy(container):
    x = container(X.copy())
    CellStore(x, {}).batch(ROWS)[_keys.X].fill_(-1)
    np.testing.assert_array_equal(x.toarray() if sparse.issparse(x) else x, X)


def test_columns_and_partners_are_read_by_row():
    codes = np.arange(40, dtype=np.int32)[:, None]
    batch = CellStore(X, {"codes": codes}).batch(ROWS, partners=ROWS[::-1].copy())
    np.testing.assert_array_equal(batch["codes"], codes[ROWS])
    np.testing.assert_array_equal(batch[_keys.X], X[ROWS])
    np.testing.assert_array_equal(batch[_keys.X_CONTROL], X[ROWS[::-1]])


@pytest.mark.parametrize("rows", [[-1], [40], [3, 99]])
@pytest.mark.parametrize("container", [np.asarray, sparse.csr_matrix])
def test_a_row_that_is_no_cell_is_refused(container, rows):
    with pytest.raises(IndexError, match="must be from 0 to 39"):
        CellStore(container(X), {}).expression(np.array(rows))


def test_a_row_that_was_not_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(_store, "_SMALL_BYTES", 0)
    some = CellStore(written(sparse.csr_matrix, tmp_path), {}).read(np.array([3, 5, 8]))
    with pytest.raises(IndexError, match="2 of 3 row"):
        some.expression(np.array([4, 5, 39]))


@pytest.mark.parametrize("kind", ["ndarray", "csr", "one file", "two dense files"])
def test_cells_move_where_they_take_at_most_a_share_of_the_free_memory(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(_store, "_SMALL_BYTES", 0)
    codes = np.arange(40, dtype=np.int32)
    store = CellStore(KINDS[kind](tmp_path), {"codes": codes})
    assert store.to("cpu") is store
    is_dense = kind in ("ndarray", "two dense files")
    need = 160 + (4 * X.size if is_dense else 8 * int((X != 0).sum()) + 8 * 41)
    # "meta" stands for a device: tensors say where they are, and hold nothing
    monkeypatch.setattr(_store, "_free_bytes", lambda device: 2 * need)
    moved = store.to("meta")
    assert not moved.on_disk
    assert {value.device.type for value in moved.batch(ROWS).values()} == {"meta"}
    assert moved._columns["codes"].device.type == "meta"
    monkeypatch.setattr(_store, "_free_bytes", lambda device: 2 * need - 1)
    sent = store.to("meta")
    assert sent.on_disk == store.on_disk
    assert sent._columns["codes"].device.type == "cpu"
    assert {value.device.type for value in sent.batch(ROWS).values()} == {"meta"}
    assert {value.device.type for value in store.batch(ROWS).values()} == {"cpu"}
    with pytest.raises(ValueError, match="share=1.5 must be from 0 to 1"):
        store.to("meta", share=1.5)


def test_columns_added_to_cells_on_a_device_are_there_too(monkeypatch):
    monkeypatch.setattr(_store, "_free_bytes", lambda device: 2**30)
    store = CellStore(sparse.csr_matrix(X), {}).to("meta").with_columns({"key": np.arange(40)})
    assert store.batch(ROWS)["key"].device.type == "meta"


@pytest.mark.parametrize("block_bytes", [1, 8 * 7 * 9, 2**26])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [None, np.array([1, 4, 5, 39])])
def test_blocks_cover_the_rows_in_order(kind, rows, block_bytes, tmp_path):
    numbers, blocks = zip(*row_blocks(KINDS[kind](tmp_path), rows, block_bytes), strict=True)
    wanted = np.arange(40) if rows is None else rows
    np.testing.assert_array_equal(np.concatenate(numbers), wanted)
    assert all(isinstance(block, np.ndarray) or block.format == "csr" for block in blocks)
    dense = [block.toarray() if sparse.issparse(block) else np.asarray(block) for block in blocks]
    np.testing.assert_array_equal(np.concatenate(dense).astype(np.float32), X[wanted])
    assert (len(blocks) == len(wanted)) == (block_bytes == 1)
