import copy
import multiprocessing
import os
import pickle
import shutil
import threading

import anndata
import h5py
import numpy as np
import pytest
import zarr
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from multipert.data import DiskMatrix, _files
from multipert.data._disk import disk_rows

RNG = np.random.default_rng(0)
X = (RNG.random((60, 9)) * (RNG.random((60, 9)) < 0.4)).astype(np.float32)
X[[7, 8, 30]] = 0
CUTS = {"one": [], "several": [1, 20, 21]}


def write(folder, container, suffix, cuts=(), dtype=np.float32, **options):
    paths = []
    for i, part in enumerate(np.split(X.astype(dtype), cuts)):
        paths.append(folder / f"part{i}{suffix}")
        adata = AnnData(container(part), layers={"tenfold": container(10 * part)})
        adata.write_zarr(paths[-1]) if suffix == ".zarr" else adata.write_h5ad(paths[-1], **options)
    return paths


@pytest.fixture(
    scope="module", params=[f"{k} {n} {s}" for k in ("csr", "dense") for n in CUTS for s in ("h5ad", "zarr")]
)
def matrix(request, tmp_path_factory):
    kind, number, suffix = request.param.split()
    container = {"csr": sparse.csr_matrix, "dense": np.asarray}[kind]
    return DiskMatrix(write(tmp_path_factory.mktemp("files"), container, f".{suffix}", CUTS[number]))


@pytest.fixture
def path(tmp_path):
    return write(tmp_path, sparse.csr_matrix, ".h5ad")[0]


def same(found, expected):
    assert isinstance(found, sparse.csr_matrix)
    assert found.dtype == np.float32
    assert found.indices.dtype == np.int32
    np.testing.assert_array_equal(found.toarray(), expected)


def test_what_it_says_of_itself(matrix):
    assert matrix.shape == X.shape
    assert matrix.dtype == np.float32
    assert matrix.format == "csr"
    assert repr(matrix).startswith(f"DiskMatrix: 60 x 9, float32, {len(matrix.n_rows)} file")
    assert repr(matrix).endswith(matrix.backend)
    assert matrix.n_values() == (X.size if matrix.is_dense else (X != 0).sum())
    same(matrix.to_memory(), X)


@pytest.mark.parametrize("gap", [0, 30, 2**20])
@pytest.mark.parametrize("piece", [1, 100, 2**25])
def test_any_rows_in_any_order_however_they_are_merged(matrix, gap, piece, monkeypatch):
    monkeypatch.setattr(_files, "_GAP_BYTES", gap)
    monkeypatch.setattr(_files, "PIECE_BYTES", piece)
    rng = np.random.default_rng([gap, piece])
    for rows in (
        rng.integers(60, size=25),
        np.sort(rng.permutation(60)[:20]),
        np.arange(60),
        np.arange(59, -1, -1),
        np.array([7, 8]),
        np.array([30]),
    ):
        same(matrix[rows], X[rows])


@pytest.mark.parametrize(
    "index",
    [
        3,
        -1,
        np.int64(5),
        slice(None),
        slice(5, 50, 7),
        slice(50, 5, -7),
        slice(-5, None),
        slice(10, 10),
        [],
        [4, 4, 0],
        np.array([-1, 0]),
        X[:, 0] > 0,
        np.zeros(60, dtype=bool),
        Ellipsis,
    ],
    ids=str,
)
def test_every_index_of_rows(matrix, index):
    expected = (
        np.atleast_2d(X[np.asarray(index, dtype=int) if index == [] else index])
        if isinstance(index, list)
        else X[index]
    )
    same(matrix[index], np.atleast_2d(expected))
    same(matrix[index, :], np.atleast_2d(expected))


@pytest.mark.parametrize("columns", [slice(2, 7), [8, 0, 0], X[0] > 0, slice(0, 0)], ids=str)
@pytest.mark.parametrize("piece", [1, 2**25])
def test_columns_are_taken_after_the_rows(matrix, columns, piece, monkeypatch):
    monkeypatch.setattr("multipert.data._disk.PIECE_BYTES", piece)
    rows = np.array([40, 2, 2, 59])
    same(matrix[rows, columns], X[rows][:, columns])
    # as AnnData asks for rows and columns together
    chosen = np.arange(9)[columns]
    same(matrix[np.ix_(rows, chosen)], X[np.ix_(rows, chosen)])
    same(matrix[:0, columns], X[:0, columns])


def test_one_value(matrix):
    assert matrix[40, 3] == X[40, 3]
    assert matrix[np.int64(2), -1] == X[2, -1]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (60, "1 row number.* outside the 60 rows, first 60"),
        ([0, -61], "1 row number.* first -61"),
        (np.ones(59, dtype=bool), "mask has 59 entries for 60 rows"),
        ([0.5], "numbers, a slice or a boolean mask, not float64"),
        ((0, 9), "1 column number"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(matrix, index, message):
    with pytest.raises(IndexError, match=message):
        matrix[index]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_runs_cover_the_spans_in_order_and_stay_within_the_limits(data):
    lengths = data.draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20)), min_size=1, max_size=30))
    gap, longest = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 60))
    edges = np.cumsum(np.array(lengths).ravel())
    first, last = edges[0::2], edges[1::2]
    runs = list(_files._runs(first, last, gap, longest))
    assert [a for a, _ in runs] == [0, *(b for _, b in runs[:-1])]
    assert runs[-1][1] == len(first)
    for a, b in runs:
        assert b > a
        assert (first[a + 1 : b] - last[a : b - 1] <= gap).all()
        # the last span may reach beyond, as a single one may
        assert first[b - 1] - first[a] < longest
    # no cut without a reason
    for (a, b), (_, d) in zip(runs, runs[1:], strict=False):
        assert first[b] - last[b - 1] > gap or last[d - 1] - first[a] >= min(longest, last[d - 1] - first[a])


def test_floats_and_integers_of_other_widths_become_float32(tmp_path):
    for dtype in (np.float64, np.int64, np.uint16, bool):
        for container in (sparse.csr_matrix, np.asarray):
            found = DiskMatrix(write(tmp_path, container, ".h5ad", dtype=dtype))[[5, 3]]
            same(found, X.astype(dtype)[[5, 3]].astype(np.float32))


def test_files_of_different_kinds_stack(tmp_path):
    kinds = [(sparse.csr_matrix, ".h5ad"), (np.asarray, ".zarr"), (sparse.csr_matrix, ".zarr"), (np.asarray, ".h5ad")]
    paths = []
    for i, (container, suffix) in enumerate(kinds):
        (tmp_path / str(i)).mkdir()
        paths.append(write(tmp_path / str(i), container, suffix, CUTS["several"])[i])
    matrix = DiskMatrix(paths)
    assert not matrix.is_dense
    same(matrix[[59, 0, 1, 20, 20]], X[[59, 0, 1, 20, 20]])
    same(matrix[:], X)
    # where only the files of one kind are asked, too
    same(matrix[25:], X[25:])
    same(matrix[21:0:-1], X[21:0:-1])


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_layers_and_compressed_files(tmp_path, compression):
    paths = write(tmp_path, sparse.csr_matrix, ".h5ad", [30], compression=compression)
    same(DiskMatrix(paths, "tenfold")[[44, 2]], (10 * X)[[44, 2]])
    same(DiskMatrix(list(map(str, paths)))[[44, 2]], X[[44, 2]])


class Counted:
    """A dataset that notes how much of it is read."""

    def __init__(self, array, log):
        self._array, self._log = array, log

    def __getattr__(self, name):
        return getattr(self._array, name)

    def __getitem__(self, index):
        found = self._array[index]
        self._log.append(np.size(found))
        return found


@pytest.mark.parametrize("kind", ["csr", "dense"])
def test_a_batch_reads_its_own_rows_and_no_more(tmp_path, monkeypatch, kind):
    matrix = DiskMatrix(write(tmp_path, {"csr": sparse.csr_matrix, "dense": np.asarray}[kind], ".h5ad"))
    monkeypatch.setattr(_files, "_GAP_BYTES", 0)
    (part,) = matrix._parts
    log: list[int] = []
    if kind == "csr":
        assert len(part.starts) == 61
        node = {name: Counted(part.node._find()[name], log) for name in ("data", "indices")}
    else:
        node = Counted(part.node._find(), log)
    part.node._opened = node
    rows = np.array([41, 3, 4, 5, 3, 20])
    matrix[rows]
    unique = np.unique(rows)
    if kind == "csr":
        # 3 runs of neighbours, from two arrays
        assert len(log) == 6
        assert sum(log) == 2 * (X[unique] != 0).sum()
    else:
        assert len(log) == 3
        assert sum(log) == X[unique].size


def test_pickles_hold_paths_and_copies_read_the_same_files(matrix):
    matrix[:2]
    text = pickle.dumps(matrix)
    assert len(text) < 3000
    for twin in (pickle.loads(text), copy.deepcopy(matrix), copy.copy(matrix), matrix.copy()):
        same(twin[[50, 1]], X[[50, 1]])


def test_closed_files_are_opened_again(path):
    matrix = DiskMatrix(path)
    same(matrix[:3], X[:3])
    matrix.close()
    with h5py.File(path, "r+"):
        pass
    same(matrix[:3], X[:3])


def _child(matrix, queue):
    queue.put((os.getpid(), matrix[[50, 1]].toarray()))


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_forked_process_opens_the_file_itself(path):
    matrix = DiskMatrix(path)
    same(matrix[:3], X[:3])
    opened = matrix._parts[0].node._opened
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with matrix._parts[0].node._lock:
        # the lock is held here; the child must not wait for it
        child = context.Process(target=_child, args=(matrix, queue))
        child.start()
        process, found = queue.get(timeout=60)
    child.join()
    assert process != os.getpid()
    np.testing.assert_array_equal(found, X[[50, 1]])
    assert matrix._parts[0].node._opened is opened
    same(matrix[:3], X[:3])


def test_threads_read_the_same_numbers(matrix):
    wrong = []

    def read(seed):
        rng = np.random.default_rng(seed)
        for _ in range(10):
            rows = rng.integers(60, size=12)
            if not np.array_equal(matrix[rows].toarray(), X[rows]):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("container", [sparse.csr_matrix, np.asarray])
def test_backed_matrices_of_anndata_are_read_through_it(tmp_path, container):
    (path,) = write(tmp_path, container, ".h5ad")
    (folder,) = write(tmp_path, container, ".zarr")
    backed = anndata.read_h5ad(path, backed="r")
    stored = zarr.open_group(str(folder), mode="r")["X"]
    for x in (backed.X, stored if container is np.asarray else anndata.io.sparse_dataset(stored)):
        matrix = disk_rows(x)
        same(matrix[[50, 1, 1]], X[[50, 1, 1]])
        same(pickle.loads(pickle.dumps(matrix))[[50, 1, 1]], X[[50, 1, 1]])
    matrix = disk_rows(backed.X)
    assert disk_rows(matrix) is matrix
    backed.file.close()
    same(matrix[[50, 1, 1]], X[[50, 1, 1]])


def test_matrices_in_memory_have_no_reader():
    assert [disk_rows(x) for x in (X, sparse.csr_matrix(X), sparse.csc_array(X))] == [None] * 3


def test_files_that_are_no_matrix_are_refused(tmp_path, path):
    with pytest.raises(FileNotFoundError, match=r"gone\.h5ad does not exist"):
        DiskMatrix(tmp_path / "gone.h5ad")
    (tmp_path / "text.h5ad").write_text("cells")
    with pytest.raises(ValueError, match="neither an HDF5 file"):
        DiskMatrix(tmp_path / "text.h5ad")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="a folder but not a zarr store"):
        DiskMatrix(tmp_path / "empty")
    with pytest.raises(KeyError, match="has no layers/counts; it has the layer.s. 'tenfold'"):
        DiskMatrix(path, "counts")
    with pytest.raises(ValueError, match="paths is empty"):
        DiskMatrix([])
    with h5py.File(path, "a") as file:
        file["layers/words"] = np.array([[b"a", b"b"]])
        file["layers/vector"] = np.zeros(60)
    for layer in ("words", "vector"):
        with pytest.raises(ValueError, match=f"layers/{layer}.* holds no cells x genes matrix"):
            DiskMatrix(path, layer)


def test_columns_and_other_genes_are_refused(tmp_path, path):
    for suffix in (".h5ad", ".zarr"):
        (stored,) = write(tmp_path, sparse.csc_matrix, suffix)
        with pytest.raises(ValueError, match=r"stored by columns \(CSC\).*adata\.X\.tocsr\(\)"):
            DiskMatrix(stored)
    AnnData(X[:, :5]).write_h5ad(tmp_path / "fewer.h5ad")
    (tmp_path / "first").mkdir()
    (first,) = write(tmp_path / "first", sparse.csr_matrix, ".h5ad")
    with pytest.raises(ValueError, match=r"fewer\.h5ad \(X\) has 5 genes but .* has 9"):
        DiskMatrix([first, tmp_path / "fewer.h5ad"])


def test_a_file_cut_short_is_named(path):
    size = path.stat().st_size
    os.truncate(path, size // 2)
    with pytest.raises(OSError, match=r"part0\.h5ad cannot be opened; it is damaged, cut short"):
        DiskMatrix(path)


def test_a_file_cut_short_while_it_is_open_is_named(tmp_path):
    x = sparse.random(4000, 200, 0.2, format="csr", dtype=np.float32, random_state=0)
    path = tmp_path / "large.h5ad"
    AnnData(x).write_h5ad(path)
    matrix = DiskMatrix(path)
    same(matrix[:3], x[:3].toarray())
    os.truncate(path, 20_000)
    with pytest.raises(OSError, match=r"large\.h5ad \(X\) cannot be read: the file is damaged, or was cut short"):
        matrix[:]


def test_a_file_that_was_deleted_is_named(path):
    twin = pickle.loads(pickle.dumps(DiskMatrix(path)))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"part0\.h5ad does not exist"):
        twin[:3]


def test_lost_parts_of_a_zarr_store_are_found(tmp_path):
    (folder,) = write(tmp_path, sparse.csr_matrix, ".zarr")
    shutil.copytree(folder, tmp_path / "damaged.zarr")
    for chunk in (tmp_path / "damaged.zarr" / "X" / "data").iterdir():
        if not chunk.name.startswith((".z", "zarr")):
            shutil.rmtree(chunk) if chunk.is_dir() else chunk.unlink()
    with pytest.raises(OSError, match="is damaged: parts of data are missing"):
        DiskMatrix(tmp_path / "damaged.zarr")[:3]


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("indptr", -1, 10**6, "row starts do not fit its values"),
        ("indptr", 5, 10**6, "row starts do not fit its values"),
        ("indptr", 0, 1, "row starts do not fit its values"),
        ("indices", 3, 9, "gene numbers outside 0 to 8"),
        ("indices", 3, -1, "gene numbers outside 0 to 8"),
    ],
)
def test_numbers_that_contradict_each_other_are_found(path, name, place, value, message):
    with h5py.File(path, "r+") as file:
        places = file[f"X/{name}"]
        places[place if place >= 0 else len(places) - 1] = value
    with pytest.raises(OSError, match=message):
        DiskMatrix(path)[:]


def test_it_cannot_be_written_or_taken_for_an_array(matrix):
    with pytest.raises(TypeError, match="read-only"):
        matrix[0, 0] = 1
    with pytest.raises(TypeError, match=r"adata\.to_memory\(\)"):
        np.asarray(matrix)
