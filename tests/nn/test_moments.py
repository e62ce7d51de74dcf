"""Means of groups: what batches, order and contexts may and may not change."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multipert import _keys
from multipert.data._loaders import CellLoader
from multipert.data._store import CellStore
from multipert.nn import group_means

FIELDS = ("mean", "variance", "mean_expm1")


def measure(x, condition, context=None, *, rows=None, batch_size=4):
    columns: dict[str, np.ndarray] = {"condition": np.asarray(condition, dtype=np.int64)}
    if context is not None:
        columns[_keys.CONTEXT] = np.asarray(context, dtype=np.int32)[:, None]
    rows = np.arange(len(x)) if rows is None else rows
    loader = CellLoader(CellStore(np.asarray(x, dtype=np.float32), columns), rows, batch_size)
    return group_means(loader, lambda batch: batch["condition"])


def assert_same(one, other):
    for name in ("context", "condition", "n_cells"):
        assert getattr(one, name).tolist() == getattr(other, name).tolist()
    for name in FIELDS:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-10, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), batch_size=st.integers(1, 50))
def test_neither_the_batches_nor_the_order_of_the_cells_matter(seed, n, batch_size):
    rng = np.random.default_rng(seed)
    x, condition, context = rng.gamma(1.0, 1.0, (n, 3)), rng.integers(0, 3, n), rng.integers(0, 2, n)
    once = measure(x, condition, context, batch_size=n)
    assert_same(once, measure(x, condition, context, batch_size=batch_size))
    assert_same(once, measure(x, condition, context, rows=rng.permutation(n), batch_size=batch_size))
    assert int(once.n_cells.sum()) == n


def test_only_the_rows_of_the_loader_are_read():
    rng = np.random.default_rng(0)
    x, condition = rng.gamma(1.0, 1.0, (20, 3)), np.arange(20) % 2
    rows = np.array([3, 4, 8, 11])
    spoiled = np.full_like(x, np.nan)
    spoiled[rows] = x[rows]
    assert_same(measure(spoiled, condition, rows=rows), measure(x[rows], condition[rows]))


def test_pairs_are_sorted_by_context_then_condition_and_absent_ones_take_no_row():
    context, condition = [2, 0, 2, 0, 0], [0, 3, 1, 1, 3]
    means = measure(np.arange(5.0)[:, None], condition, context, batch_size=2)
    pairs = list(zip(means.context.tolist(), means.condition.tolist(), strict=True))
    assert pairs == [(0, 1), (0, 3), (2, 0), (2, 1)]
    assert means.n_cells.tolist() == [1, 2, 1, 1]
    np.testing.assert_array_equal(means.mean[:, 0], [3, 2.5, 0, 2])
    np.testing.assert_array_equal(means.variance[:, 0], [0, 2.25, 0, 0])


def test_without_contexts_all_cells_share_one():
    x, condition = np.random.default_rng(0).gamma(1.0, 1.0, (12, 3)), np.arange(12) % 3
    assert_same(measure(x, condition), measure(x, condition, np.zeros(12)))


@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_sums_are_kept_in_double_precision(offset):
    # 20,000 float32 additions of values near 50 would lose more than three digits
    x = (np.random.default_rng(0).gamma(1.0, 1.0, (20_000, 2)) + offset).astype(np.float32)
    means = measure(x, np.zeros(len(x)), batch_size=512)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(means.mean[0], exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(means.variance[0], exact.var(0), rtol=1e-8)
    np.testing.assert_allclose(means.mean_expm1[0], np.expm1(exact).mean(0), rtol=1e-12)
    assert means.mean.dtype == torch.float64


def test_variance_of_equal_cells_is_not_negative():
    x = np.full((7, 4), 0.1, dtype=np.float32)
    variance = measure(x, np.zeros(7)).variance
    assert (variance >= 0).all()
    assert variance.max() < 1e-15
