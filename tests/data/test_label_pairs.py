"""Pairs within labels, and a store with a target modality."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from multipert.data._loaders import CellLoader
from multipert.data._pairing import label_pairs
from multipert.data._store import CellStore


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.integers(1, 4), st.integers(0, 5), st.data())
def test_every_cell_comes_as_often_on_either_side_and_meets_its_own_label(labels, n_copies, seed, data):
    labels = np.array(labels, dtype=object)
    rows = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels))))
    first, second = label_pairs(labels, rows, n_copies=n_copies, seed=seed)
    assert len(first) == n_copies * len(rows)
    np.testing.assert_array_equal(first[: len(rows)], rows)
    np.testing.assert_array_equal(second[: len(rows)], rows)
    for side in (first, second):
        np.testing.assert_array_equal(np.sort(side), np.sort(np.repeat(rows, n_copies)))
    assert (labels[first] == labels[second]).all()
    again = label_pairs(labels, rows, n_copies=n_copies, seed=seed)
    np.testing.assert_array_equal(again, (first, second))


def test_false_pairs_are_mixed_on_both_sides():
    first, second = label_pairs(np.zeros(200), np.arange(200), seed=0)
    for copy in (1, 2):
        at = slice(copy * 200, (copy + 1) * 200)
        assert (first[at] == second[at]).mean() < 0.05
        assert (first[at] == np.arange(200)).mean() < 0.05


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_matrix])
def test_a_batch_holds_the_target_of_each_cell_or_of_its_partner(container):
    rng = np.random.default_rng(0)
    x, y = rng.random((8, 3)).astype(np.float32), rng.random((8, 5)).astype(np.float32)
    store = CellStore(container(x), {"context": np.arange(8)[:, None]}, container(y))
    rows, partners = np.array([3, 1, 6]), np.array([0, 7, 7])
    own, paired = store.batch(rows), store.batch(rows, partners)
    for batch, target in ((own, rows), (paired, partners)):
        np.testing.assert_array_equal(batch["X"], x[rows])
        np.testing.assert_array_equal(batch["X_target"], y[target])
        assert "X_control" not in batch
    assert "X_target" not in CellStore(container(x), {}).batch(rows)
    assert store.nbytes > CellStore(container(x), {"context": np.arange(8)[:, None]}).nbytes
    np.testing.assert_array_equal(store.to("cpu").batch(rows)["X_target"], y[rows])
    loader = CellLoader(store, rows, 2, partners=partners)
    np.testing.assert_array_equal(np.concatenate([batch["X_target"] for batch in loader]), y[partners])
