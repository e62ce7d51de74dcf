import gc
import threading
import time
import traceback
import weakref

import numpy as np
import pytest
import torch
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from multipert import _keys
from multipert.data import DiskMatrix, _loaders, _store
from multipert.data._loaders import BLOCK_CELLS, CellLoader, GroupLoader, block_order, share
from multipert.data._store import CellStore

N = 300
NUMBERS = np.arange(1, N + 1, dtype=np.float32)
# a cell is known by its number
X = NUMBERS[:, None] * np.array([1, 0, 1], dtype=np.float32)
ROWS = np.random.default_rng(0).permutation(N)[:250]
HOMES = ["ndarray", "csr", "float64", "one file", "three files", "dense file", "zarr", "device csr", "device dense"]
ON_DISK = HOMES[3:7]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    paths = {name: folder / name for name in ("a.h5ad", "1.h5ad", "2.h5ad", "3.h5ad", "d.h5ad", "a.zarr")}
    csr = sparse.csr_matrix(X)
    AnnData(csr).write_h5ad(paths["a.h5ad"])
    for i, part in enumerate((csr[:50], csr[50:51], csr[51:])):
        AnnData(part).write_h5ad(folder / f"{i + 1}.h5ad")
    AnnData(X).write_h5ad(paths["d.h5ad"])
    AnnData(csr).write_zarr(paths["a.zarr"])
    columns = {"id": np.arange(N)}
    found = {
        "ndarray": CellStore(X, columns),
        "csr": CellStore(csr, columns),
        "float64": CellStore(sparse.csr_matrix(X.astype(np.float64)), columns),
        "device csr": CellStore(csr, columns)._moved(torch.device("cpu")),
        "device dense": CellStore(X, columns)._moved(torch.device("cpu")),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_store, "_SMALL_BYTES", 0)
        found["one file"] = CellStore(DiskMatrix(paths["a.h5ad"]), columns)
        found["three files"] = CellStore(DiskMatrix([folder / f"{i}.h5ad" for i in (1, 2, 3)]), columns)
        found["dense file"] = CellStore(DiskMatrix(paths["d.h5ad"]), columns)
        found["zarr"] = CellStore(DiskMatrix(paths["a.zarr"]), columns)
    return found


@pytest.fixture(autouse=True)
def disk_is_disk(monkeypatch):
    # also what a buffer holds
    monkeypatch.setattr(_store, "_SMALL_BYTES", 0)


def readers() -> list[str]:
    gc.collect()
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("multipert-read")]


def epochs(loader, n=2):
    return [list(loader) for _ in range(n)]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        for key in one:
            assert one[key].dtype == two[key].dtype
            assert torch.equal(one[key], two[key])


ARGUMENTS = {
    "in order": {},
    "full": {"shuffle": True},
    "blocks": {"shuffle": True, "block_size": 8},
    "paired": {"shuffle": True, "block_size": 8, "partners": ROWS[::-1].copy(), "drop_last": True},
    "groups": {"shuffle": True, "block_size": 8, "groups": ROWS % 5},
}


# unless blocks are asked for, cells on disk have them and cells in memory do not
@pytest.mark.parametrize(
    ("order", "home"),
    [(order, home) for order in ARGUMENTS for home in HOMES[1:] if order != "full" or home not in ON_DISK],
)
def test_batches_are_the_same_wherever_the_cells_are(stores, order, home):
    assert stores[home].on_disk == (home in ON_DISK)
    both = [
        epochs(CellLoader(stores[name], ROWS, 16, seed=3, buffer_size=64, **ARGUMENTS[order]))
        for name in ("ndarray", home)
    ]
    for first, second in zip(*both, strict=True):
        assert_same(first, second)
    assert readers() == []


@pytest.mark.parametrize("home", HOMES[1:])
@pytest.mark.parametrize("buffer_size", [1, 20, 10**6])
def test_batches_of_groups_are_the_same_wherever_the_cells_are(stores, home, buffer_size):
    groups = [(np.arange(i, N, 7), np.arange(3, 40)) for i in range(7)]
    both = [
        epochs(GroupLoader(stores[name], groups, 5, 2, shuffle=True, seed=1, buffer_size=buffer_size))
        for name in ("ndarray", home)
    ]
    for first, second in zip(*both, strict=True):
        assert_same(first, second)


@pytest.mark.parametrize("order", ARGUMENTS)
def test_every_row_once_with_its_own_expression_and_partner(stores, order):
    arguments = {**ARGUMENTS[order], "drop_last": False}
    loader = CellLoader(stores["one file"], ROWS, 16, buffer_size=48, **arguments)
    for batches in epochs(loader):
        assert len(batches) == len(loader)
        seen = torch.cat([batch["id"] for batch in batches])
        assert sorted(seen.tolist()) == sorted(ROWS)
        for batch in batches:
            np.testing.assert_array_equal(batch[_keys.X], X[batch["id"].numpy()])
            if "partners" in arguments:
                partner_of = dict(zip(ROWS, arguments["partners"], strict=True))
                np.testing.assert_array_equal(batch[_keys.X_CONTROL], X[[partner_of[i] for i in batch["id"].tolist()]])


def test_in_memory_the_order_is_a_full_shuffle_unless_blocks_are_asked_for(stores):
    loader = CellLoader(stores["csr"], ROWS, 16, shuffle=True, seed=5)
    assert loader.block_size is None
    rng = np.random.default_rng([5, 0])
    np.testing.assert_array_equal(np.concatenate(loader.positions()), rng.permutation(np.arange(len(ROWS))))
    on_disk = CellLoader(stores["one file"], ROWS, 16, shuffle=True, seed=5)
    assert on_disk.block_size == BLOCK_CELLS
    moved = CellLoader(stores["one file"]._moved(torch.device("cpu")), ROWS, 16, shuffle=True, seed=5)
    assert not moved.store.on_disk
    in_blocks = CellLoader(stores["csr"], ROWS, 16, shuffle=True, seed=5, block_size=BLOCK_CELLS)
    for loader in (on_disk, moved):
        np.testing.assert_array_equal(np.concatenate(loader.positions()), np.concatenate(in_blocks.positions()))


def test_the_order_depends_on_seed_and_epoch_only(stores):
    def orders(seed):
        loader = CellLoader(stores["csr"], ROWS, 16, shuffle=True, seed=seed, block_size=8, buffer_size=64)
        return [[batch["id"].tolist() for batch in loader] for _ in range(2)]

    assert orders(1) == orders(1)
    first, second = orders(1)
    assert first != second
    assert orders(2)[0] != first


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 80), st.integers(0, 5))
def test_block_order_visits_each_cell_once_and_keeps_runs_within_a_buffer_or_two(n, block_size, buffer_size, seed):
    order = block_order(n, block_size, buffer_size, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(n))
    # whatever the first cut was, neighbours of one run lie in adjacent buffers
    cut = int(np.random.default_rng(seed).integers(block_size))
    buffer_of = np.empty(n, dtype=int)
    buffer_of[order] = np.arange(n) // buffer_size
    for run in np.unique((np.arange(n) + cut) // block_size):
        here = buffer_of[(np.arange(n) + cut) // block_size == run]
        assert here.max() - here.min() <= -(-block_size // buffer_size)


def test_runs_are_neighbours_among_the_rows_visited_in_whatever_order_they_are_given(stores):
    rows = np.arange(0, N, 3)
    np.random.default_rng(1).shuffle(rows)
    loader = CellLoader(stores["csr"], rows, 10, shuffle=True, block_size=10, buffer_size=10, seed=2)
    (at, *_) = loader.positions()
    places = np.searchsorted(np.sort(rows), rows[at])
    # a buffer of one block holds the ends of two runs at most
    assert np.sum(np.diff(np.sort(places)) > 1) <= 1


@pytest.mark.parametrize(("block_size", "buffer_size"), [(16, 1024), (64, 1024), (1, 1024)])
def test_the_variance_of_batch_means_is_as_stated(block_size, buffer_size):
    n, batch_size = 40_000, 32
    # sorted by condition: the cells of a run are alike
    condition = np.repeat(np.random.default_rng(0).standard_normal(20), n // 20)
    rows = np.arange(n)

    def variance(**arguments):
        loader = CellLoader(CellStore(np.zeros((n, 0), np.float32), {}), rows, batch_size, shuffle=True, **arguments)
        means = []
        for _ in range(30):
            means += [condition[at].mean() for at in loader.positions()]
            loader.epoch += 1
        return np.var(means)

    ratio = variance(block_size=block_size, buffer_size=buffer_size) / variance()
    stated = 1 + (batch_size - 1) / (buffer_size / block_size)
    assert ratio == pytest.approx(stated, rel=0.12)


def test_a_batch_mixes_as_many_runs_as_stated():
    n, block_size, buffer_size = 40_000, 16, 1024
    store = CellStore(np.zeros((n, 0), np.float32), {})
    for batch_size in (16, 64, 256):
        loader = CellLoader(
            store, np.arange(n), batch_size, shuffle=True, block_size=block_size, buffer_size=buffer_size
        )
        cut = int(np.random.default_rng([0, 0]).integers(block_size))
        found = np.mean([len(np.unique((at + cut) // block_size)) for at in loader.positions()])
        runs = buffer_size / block_size
        assert found == pytest.approx(runs * (1 - (1 - 1 / runs) ** batch_size), rel=0.06)


class Tracked:
    """Counts the buffers that are in memory at once, and what each read asked for."""

    def __init__(self, monkeypatch):
        self.alive, self.most, self.rows, self.threads = weakref.WeakSet(), 0, [], set()
        read = CellStore.read

        def tracked(store, rows):
            self.threads.add(threading.current_thread().name)
            held = read(store, rows)
            self.alive.add(held)
            self.most = max(self.most, len(self.alive))
            self.rows.append(rows)
            return held

        monkeypatch.setattr(CellStore, "read", tracked)


@pytest.mark.parametrize("partners", [None, ROWS[::-1].copy()], ids=["alone", "paired"])
def test_two_buffers_at_most_are_in_memory_and_rows_are_read_once(stores, monkeypatch, partners):
    tracked = Tracked(monkeypatch)
    loader = CellLoader(stores["one file"], ROWS, 8, shuffle=True, block_size=4, buffer_size=32, partners=partners)
    n_reads = -(-len(ROWS) // 32)
    for i, _ in enumerate(loader):
        # a reader that runs ahead is given the time to do so
        until = time.monotonic() + 30
        while len(tracked.rows) < min(i // 4 + 2, n_reads) and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(0.002)
    assert tracked.most == 2
    assert len(tracked.rows) == n_reads
    assert all((np.diff(rows) > 0).all() for rows in tracked.rows)
    assert max(map(len, tracked.rows)) <= 32 * (1 if partners is None else 2)
    if partners is None:
        assert sorted(np.concatenate(tracked.rows)) == sorted(ROWS)
    assert all(name.startswith("multipert-read") for name in tracked.threads)


def test_cells_in_memory_need_no_thread(stores, monkeypatch):
    tracked = Tracked(monkeypatch)
    list(CellLoader(stores["csr"], ROWS, 8, shuffle=True, block_size=4))
    assert tracked.rows == []


def test_the_next_buffer_is_read_while_the_present_one_is_used(stores, monkeypatch):
    read, second = CellStore.read, threading.Event()
    count = iter(range(100))

    def noted(store, rows):
        if next(count) == 1:
            second.set()
        return read(store, rows)

    monkeypatch.setattr(CellStore, "read", noted)
    batches = iter(CellLoader(stores["one file"], ROWS, 8, buffer_size=32))
    next(batches)
    assert second.wait(timeout=30)
    batches.close()


def leave_by_break(loader):
    for _ in loader:
        break


def fail_at_the_first(loader, error):
    for _ in loader:
        raise error


def leave_by_error(loader):
    with pytest.raises(ZeroDivisionError):
        fail_at_the_first(loader, ZeroDivisionError)


def leave_by_interrupt(loader):
    with pytest.raises(KeyboardInterrupt):
        fail_at_the_first(loader, KeyboardInterrupt)


def leave_by_close(loader):
    batches = iter(loader)
    next(batches)
    assert len(readers()) == 1
    batches.close()


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_error, leave_by_interrupt, leave_by_close])
def test_the_thread_ends_when_the_pass_is_left(stores, leave):
    loader = CellLoader(stores["one file"], ROWS, 8, shuffle=True, buffer_size=32)
    leave(loader)
    assert readers() == []
    assert len(list(loader)) == len(loader)
    assert readers() == []


def test_an_interrupt_while_waiting_ends_the_thread_too(stores, monkeypatch):
    def interrupted(future, timeout=None):
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.Future.result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(iter(CellLoader(stores["one file"], ROWS, 8, buffer_size=32)))
    assert readers() == []


def test_what_goes_wrong_in_the_thread_is_raised_with_its_traceback(stores, monkeypatch):
    read, count = CellStore.read, iter(range(100))

    def fails_at_the_third(store, rows):
        if next(count) == 2:
            raise OSError("the disk is gone")
        return read(store, rows)

    monkeypatch.setattr(CellStore, "read", fails_at_the_third)
    seen = []
    with pytest.raises(OSError, match="the disk is gone") as error:
        seen.extend(CellLoader(stores["one file"], ROWS, 8, buffer_size=32))
    assert "fails_at_the_third" in "".join(traceback.format_tb(error.tb))
    # the two buffers before it were whole
    assert len(seen) == 8
    assert readers() == []


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("home", ["ndarray", "one file"])
@pytest.mark.parametrize("order", ["in order", "blocks", "paired", "groups"])
def test_ranks_share_each_batch(stores, home, order, n_ranks):
    def loader(rank, n_ranks):
        made = CellLoader(stores[home], ROWS, 16, seed=3, buffer_size=64, **ARGUMENTS[order])
        made.rank, made.n_ranks = rank, n_ranks
        return made

    whole = list(loader(0, 1))
    parts = [list(loader(rank, n_ranks)) for rank in range(n_ranks)]
    assert {len(part) for part in parts} == {len(whole)} == {len(loader(0, n_ranks))}
    for batch, *own in zip(whole, *parts, strict=True):
        n = len(batch["id"])
        assert {len(part["id"]) for part in own} == {-(-n // n_ranks)}
        together = np.concatenate([part["id"] for part in own])
        assert set(together) == set(batch["id"].tolist())
        # only as many twice as are missing to a multiple
        assert len(together) - len(set(together)) == -n % n_ranks
        for part in own:
            np.testing.assert_array_equal(part[_keys.X], X[part["id"].numpy()])
            if _keys.X_CONTROL in batch:
                control_of = dict(zip(batch["id"].tolist(), batch[_keys.X_CONTROL][:, 0].tolist(), strict=True))
                assert [control_of[i] for i in part["id"].tolist()] == part[_keys.X_CONTROL][:, 0].tolist()


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_a_rank_reads_its_own_cells_only(stores, monkeypatch, n_ranks):
    tracked = Tracked(monkeypatch)
    for rank in range(n_ranks):
        loader = CellLoader(stores["one file"], ROWS[:240], 24, shuffle=True, buffer_size=48)
        loader.rank, loader.n_ranks = rank, n_ranks
        list(loader)
    assert sorted(np.concatenate(tracked.rows)) == sorted(ROWS[:240])


@pytest.mark.parametrize("n_ranks", [2, 3, 4])
def test_ranks_share_the_groups_of_each_batch(stores, n_ranks):
    groups = [(np.arange(i, N, 8), np.arange(3, 40)) for i in range(8)]

    def loader(rank, n_ranks):
        made = GroupLoader(stores["one file"], groups, 5, 3, shuffle=True, seed=1)
        made.rank, made.n_ranks = rank, n_ranks
        return made

    whole = list(loader(0, 1))
    parts = [list(loader(rank, n_ranks)) for rank in range(n_ranks)]
    assert {len(part) for part in parts} == {len(whole)} == {3}
    for batch, *own in zip(whole, *parts, strict=True):
        pairs = set(zip(batch["id"].tolist(), batch[_keys.X_CONTROL][:, 0].tolist(), strict=True))
        shared = [set(zip(part["id"].tolist(), part[_keys.X_CONTROL][:, 0].tolist(), strict=True)) for part in own]
        # the same draw as of one process, whole groups
        assert set().union(*shared) == pairs
        n_groups = len({i % 8 for i in batch["id"].tolist()})
        assert {len({i % 8 for i in part["id"].tolist()}) for part in own} == {-(-n_groups // n_ranks)}


def test_share_repeats_the_first_positions_and_refuses_a_rank_that_is_none():
    assert [share(5, rank, 3).tolist() for rank in range(3)] == [[0, 3], [1, 4], [2, 0]]
    assert [share(1, rank, 3).tolist() for rank in range(3)] == [[0], [0], [0]]
    with pytest.raises(ValueError, match="rank=3 must be from 0 to n_ranks - 1, and n_ranks is 3"):
        share(5, 3, 3)


@pytest.mark.parametrize("argument", ["block_size", "buffer_size"])
def test_sizes_below_one_are_refused(stores, argument):
    expected = {"block_size": "a whole number of at least 1, or None", "buffer_size": "at least 1"}[argument]
    with pytest.raises(ValueError, match=f"{argument}=0 must be {expected}"):
        CellLoader(stores["csr"], ROWS, 8, **{argument: 0})
    with pytest.raises(ValueError, match="buffer_size=0 must be at least 1"):
        GroupLoader(stores["csr"], [(ROWS, ROWS)], 8, 1, buffer_size=0)


def test_a_buffer_is_whole_batches(stores):
    assert CellLoader(stores["csr"], ROWS, 100, buffer_size=330).batches_per_buffer == 3
    assert CellLoader(stores["csr"], ROWS, 100, buffer_size=1).batches_per_buffer == 1
    assert CellLoader(stores["csr"], ROWS, 64).batches_per_buffer * 64 == _loaders.BUFFER_CELLS
