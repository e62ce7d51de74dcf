import numpy as np
import pytest
import torch

from multipert import _keys
from multipert.data._loaders import CellLoader, GroupLoader
from multipert.data._store import CellStore

N = 23
STORE = CellStore(np.arange(N, dtype=np.float32)[:, None] * np.ones((1, 3), dtype=np.float32), {"id": np.arange(N)})
ROWS = np.array([1, 2, 3, 5, 8, 13, 21, 22, 0, 4])


def visited(loader) -> list[list[int]]:
    return [batch["id"].tolist() for batch in loader]


def test_in_order_every_row_once():
    loader = CellLoader(STORE, ROWS, 4)
    assert visited(loader) == [[1, 2, 3, 5], [8, 13, 21, 22], [0, 4]]
    assert len(loader) == 3
    assert visited(loader) == visited(loader)


def test_shuffled_every_row_once_and_anew_each_epoch():
    loader = CellLoader(STORE, ROWS, 4, shuffle=True, seed=1)
    first, second = visited(loader), visited(loader)
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == sorted(ROWS)
    assert first != second
    again = CellLoader(STORE, ROWS, 4, shuffle=True, seed=1)
    assert [visited(again), visited(again)] == [first, second]
    assert visited(CellLoader(STORE, ROWS, 4, shuffle=True, seed=2)) != first


@pytest.mark.parametrize(("n", "batch_size", "n_batches"), [(10, 4, 2), (8, 4, 2), (3, 4, 1), (1, 4, 1), (9, 4, 2)])
def test_drop_last_leaves_out_an_incomplete_batch_unless_it_is_the_only_one(n, batch_size, n_batches):
    loader = CellLoader(STORE, ROWS[:n], batch_size, drop_last=True)
    batches = visited(loader)
    assert len(batches) == len(loader) == n_batches
    assert [len(batch) for batch in batches] == [min(n, batch_size)] * n_batches


def test_partners_stay_with_their_cells_when_shuffled():
    partners = ROWS[::-1].copy()
    partner_of = dict(zip(ROWS, partners, strict=True))
    for batch in CellLoader(STORE, ROWS, 3, shuffle=True, partners=partners):
        expected = [partner_of[i] for i in batch["id"].tolist()]
        assert batch[_keys.X_CONTROL][:, 0].tolist() == expected
        assert batch[_keys.X][:, 0].tolist() == batch["id"].tolist()


def test_a_batch_of_a_group_holds_that_group_only():
    groups = ROWS % 3
    loader = CellLoader(STORE, ROWS, 2, shuffle=True, groups=groups)
    batches = visited(loader)
    assert len(batches) == len(loader)
    assert sorted(sum(batches, [])) == sorted(ROWS)
    assert all(len({i % 3 for i in batch}) == 1 for batch in batches)
    orders = {tuple(batch[0] % 3 for batch in visited(loader)) for _ in range(10)}
    assert len(orders) > 1


def test_iterating_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    visited(CellLoader(STORE, ROWS, 2, shuffle=True))
    assert torch.equal(before, torch.get_rng_state())


def test_no_cells_and_no_batch_size_are_refused():
    with pytest.raises(ValueError, match="selection of cells is empty"):
        CellLoader(STORE, ROWS[:0], 2)
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        CellLoader(STORE, ROWS, 0)


GROUPS = [
    (np.arange(0, 3), np.arange(10, 20)),
    (np.arange(3, 9), np.arange(10, 20)),
    (np.arange(20, 23), np.array([9])),
]


def drawn(loader):
    """Cells and control cells of each group of each batch."""
    batches = []
    for batch in loader:
        cells, controls = batch["id"].numpy(), batch[_keys.X_CONTROL][:, 0].numpy()
        assert len(cells) == len(controls)
        batches.append([(cells[np.isin(cells, rows)], controls[np.isin(cells, rows)]) for rows, _ in GROUPS])
    return batches


def test_each_pass_visits_every_group_once_with_its_own_controls():
    loader = GroupLoader(STORE, GROUPS, 4, 2, shuffle=True, seed=3)
    assert len(loader) == 2
    for _ in range(3):
        batches = drawn(loader)
        assert sorted(sum(len(cells) > 0 for cells, _ in batch) for batch in batches) == [1, 2]
        for group, (rows, controls) in enumerate(GROUPS):
            ((cells, partners),) = [batch[group] for batch in batches if len(batch[group][0])]
            # each cell once, all of a small group
            assert len(set(cells)) == len(cells) == min(4, len(rows))
            assert set(partners) <= set(controls)
            assert len(set(partners)) == min(len(cells), len(controls))


def test_groups_are_drawn_anew_each_pass_by_seed_and_alike_for_validation():
    def passes(**arguments):
        loader = GroupLoader(STORE, GROUPS, 4, 2, **arguments)
        return [[batch["id"].tolist() for batch in loader] for _ in range(2)]

    first, second = passes(shuffle=True, seed=3)
    assert first != second
    assert passes(shuffle=True, seed=3) == [first, second]
    assert passes(shuffle=True, seed=4) != [first, second]
    one, two = passes()
    assert one == two


def test_no_group_is_refused():
    with pytest.raises(ValueError, match="at least one group"):
        GroupLoader(STORE, [], 4, 2)


def test_partners_from_a_pool_are_drawn_anew_each_epoch_and_evenly():
    n = 20
    store = CellStore(np.arange(n, dtype=np.float32)[:, None], {_keys.CONTEXT: np.arange(n)[:, None] % 3})
    rows, pool = np.arange(12), np.arange(15, 20)
    pools = [(np.arange(12), pool)]
    loader = CellLoader(store, rows, 5, shuffle=True, pools=pools, seed=4)
    epochs = []
    for _ in range(2):
        batches = list(loader)
        drawn = np.concatenate([batch[_keys.X_CONTROL].numpy().ravel() for batch in batches]).astype(int)
        contexts = np.concatenate([batch[_keys.CONTEXT_CONTROL].numpy().ravel() for batch in batches])
        np.testing.assert_array_equal(contexts, drawn % 3)
        # twelve of five: each two or three times
        assert set(np.bincount(drawn, minlength=n)[pool]) == {2, 3}
        assert set(drawn) == set(pool)
        epochs.append(dict(zip(np.concatenate([batch[_keys.X] for batch in batches]).ravel(), drawn, strict=True)))
    assert epochs[0] != epochs[1]
    again = CellLoader(store, rows, 5, shuffle=True, pools=pools, seed=4)
    drawn = np.concatenate([batch[_keys.X_CONTROL].numpy().ravel() for batch in again]).astype(int)
    x = np.concatenate([batch[_keys.X] for batch in CellLoader(store, rows, 5, shuffle=True, pools=pools, seed=4)])
    assert dict(zip(x.ravel(), drawn, strict=True)) == epochs[0]


def test_rows_of_each_pool_draw_from_it_and_the_others_keep_their_partner():
    store = CellStore(np.arange(20, dtype=np.float32)[:, None], {_keys.CELL_EMBEDDING: np.arange(20.0)[:, None]})
    rows = np.arange(9)
    pools = [(np.array([0, 2, 4]), np.array([10, 11])), (np.array([1, 3]), np.array([12]))]
    loader = CellLoader(store, rows, 4, shuffle=True, pools=pools, partners=rows, seed=1)
    for _ in range(3):
        for batch in loader:
            x, control = (batch[key].ravel().long().tolist() for key in (_keys.X, _keys.X_CONTROL))
            # whatever is read of a partner is read of the same one
            assert batch[_keys.CELL_EMBEDDING_CONTROL].ravel().long().tolist() == control
            assert batch[_keys.CELL_EMBEDDING].ravel().long().tolist() == x
            for cell, partner in zip(x, control, strict=True):
                assert partner in ({10, 11} if cell in (0, 2, 4) else {12} if cell in (1, 3) else {cell})


@pytest.mark.parametrize("pools", [[(np.arange(4), np.arange(0))], [(np.arange(3), np.arange(4))]])
def test_rows_without_partner_are_refused(pools):
    store = CellStore(np.zeros((4, 1), dtype=np.float32), {})
    with pytest.raises(ValueError, match=rf"pools give {len(pools[0][0])} of 4 rows"):
        CellLoader(store, np.arange(4), 2, pools=pools)
