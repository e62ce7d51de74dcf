import anndata
import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import sparse

from multipert import _keys
from multipert.data import _store
from multipert.data._checks import row_blocks
from multipert.data._store import CellStore

RNG = np.random.default_rng(0)
X = (RNG.random((40, 7)) * (RNG.random((40, 7)) < 0.5)).astype(np.float32)
ROWS = np.array([5, 3, 3, 39, 0, 12])


def backed(container, folder):
    path = folder / "x.h5ad"
    AnnData(container(X)).write_h5ad(path)
    return anndata.read_h5ad(path, backed="r").X


KINDS = {
    "ndarray": lambda folder: X,
    "fortran": lambda folder: np.asfortranarray(X),
    "strided": lambda folder: np.repeat(X, 2, axis=0)[::2],
    "float64": lambda folder: X.astype(np.float64),
    "csr": lambda folder: sparse.csr_matrix(X),
    "csc": lambda folder: sparse.csc_matrix(X),
    "csr_array": lambda folder: sparse.csr_array(X.astype(np.float64)),
    "unsorted": lambda folder: sparse.csc_matrix(X)[:, ::-1].tocsr()[:, ::-1],
    "backed ndarray": lambda folder: backed(np.asarray, folder),
    "backed csr": lambda folder: backed(sparse.csr_matrix, folder),
    "backed csc": lambda folder: backed(sparse.csc_matrix, folder),
}


@pytest.mark.parametrize("limit", [0, 2**20], ids=["as it is", "dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_container_gives_the_same_numbers(kind, limit, tmp_path, monkeypatch):
    monkeypatch.setattr(_store, "_DENSE_BYTES", limit)
    store = CellStore(KINDS[kind](tmp_path), {})
    assert (store.n_cells, store.n_vars) == X.shape
    found = store.expression(ROWS)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    np.testing.assert_array_equal(found.numpy(), X[ROWS])


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
