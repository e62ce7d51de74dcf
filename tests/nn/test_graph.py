"""Graph layers against dense matrices, norms of counted rows against repeated rows, co-expression against corrcoef."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from multipert.nn._graph import (
    BoundedTable,
    CellBatchNorm,
    CellMLP,
    GraphConvolution,
    coexpression,
    normalised_adjacency,
    propagate,
)


def assert_close(found, expected):
    tolerance = 1e-9 if found.dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(found.detach(), expected.detach(), rtol=tolerance, atol=tolerance)


def dense(edges, entries, n):
    matrix = np.zeros((n, n))
    matrix[tuple(edges.numpy())] = entries.numpy()
    return matrix


def random_graph(n=12, n_edges=40, seed=0):
    rng = np.random.default_rng(seed)
    at = rng.choice(n * n, n_edges, replace=False)
    return at // n, at % n, rng.uniform(0.1, 1, n_edges)


# ------------------------------------------------------------------ adjacency and convolution


def test_adjacency_of_four_nodes_by_hand():
    # 0 -> 1 (0.5), 2 -> 1 (0.25), 1 -> 2 (1), 2 -> 2 (2); 3 alone
    source, target, weight = np.array([0, 2, 1, 2]), np.array([1, 1, 2, 2]), np.array([0.5, 0.25, 1.0, 2.0])
    degree = np.array([1.0, 0.5 + 0.25 + 1, 1 + 2, 1])
    expected = np.zeros((4, 4))
    expected[0, 0] = 1
    expected[1] = [0.5 / np.sqrt(1.75), 1 / 1.75, 0.25 / np.sqrt(1.75 * 3), 0]
    expected[2] = [0, 1 / np.sqrt(3 * 1.75), 2 / 3, 0]
    expected[3, 3] = 1
    edges, entries = normalised_adjacency(source, target, weight, 4)
    np.testing.assert_allclose(dense(edges, entries, 4), expected, rtol=1e-6)
    assert degree[1] == 1.75


def test_every_node_keeps_a_loop_and_a_given_one_its_weight():
    source, target, weight = random_graph()
    edges, entries = normalised_adjacency(source, target, weight, 12)
    matrix = dense(edges, entries, 12)
    given = np.ones(12)
    loops = source == target
    assert loops.any()
    given[source[loops]] = weight[loops]
    degree = np.bincount(target, weights=weight, minlength=12)
    degree[np.setdiff1d(np.arange(12), source[loops])] += 1
    np.testing.assert_allclose(np.diag(matrix), given / degree, rtol=1e-6)


def test_entries_are_in_the_order_of_a_coalesced_matrix():
    edges, entries = normalised_adjacency(*random_graph(), 12)
    matrix = torch.sparse_coo_tensor(edges, entries, (12, 12), check_invariants=True).coalesce()
    assert torch.equal(matrix.indices(), edges)
    assert torch.equal(matrix.values(), entries)


def test_a_node_without_any_weight_gives_zeros_and_no_nan():
    edges, entries = normalised_adjacency(np.array([0]), np.array([0]), np.array([0.0]), 2)
    assert dense(edges, entries, 2).tolist() == [[0, 0], [0, 1]]


def test_the_sparse_product_and_its_gradient_are_those_of_the_dense_one():
    edges, entries = normalised_adjacency(*random_graph(), 12)
    matrix = torch.from_numpy(dense(edges, entries, 12)).float()
    values, weights = torch.randn(2, 12, 5)
    one, other = (values.clone().requires_grad_() for _ in range(2))
    (propagate(edges, entries, one) * weights).sum().backward()
    (matrix @ other * weights).sum().backward()
    assert_close(propagate(edges, entries, values), matrix @ values)
    assert_close(one.grad, other.grad)


def test_a_convolution_along_loops_alone_is_a_linear_layer():
    layer, values = GraphConvolution(5, 1), torch.randn(7, 5)
    none = normalised_adjacency(np.zeros(0, int), np.zeros(0, int), np.zeros(0), 7)
    assert_close(layer(values, *none), layer.layers[0](values))
    assert torch.equal(layer(values, None, None), layer.layers[0](values))


def test_two_convolutions_have_a_relu_between_and_none_behind():
    layer, values = GraphConvolution(5, 2), torch.randn(12, 5)
    edges, entries = normalised_adjacency(*random_graph(), 12)
    matrix = torch.from_numpy(dense(edges, entries, 12)).float()
    first, second = layer.layers
    expected = second(matrix @ torch.relu(first(matrix @ values)))
    assert_close(layer(values, edges, entries), expected)
    assert (expected < 0).any()


def test_a_bounded_table_reads_like_an_embedding_with_a_greatest_norm():
    table, other = BoundedTable(6, 4), nn.Embedding(6, 4, max_norm=1.0)
    with torch.no_grad():
        table.weight[0] *= 0.01
        other.weight.copy_(table.weight)
    before = table.weight.detach().clone()
    expected = other(torch.arange(6)).detach()
    assert_close(table.eval()(), expected)
    assert torch.equal(table.weight, before)
    assert_close(table.train()(), expected)
    assert_close(table.weight.detach(), expected)
    assert (expected.norm(dim=1) < 1 + 1e-6).all()
    assert torch.equal(expected[0], before[0])


# ------------------------------------------------------------------ norms


@settings(max_examples=25, deadline=None)
@given(cells=st.lists(st.integers(1, 5), min_size=1, max_size=6), genes=st.integers(0, 4), seed=st.integers(0, 99))
def test_a_counted_row_is_as_many_rows(cells, genes, seed):
    torch.manual_seed(seed)
    n_cells = torch.tensor(cells)
    if n_cells.sum() * max(genes, 1) < 2:
        return
    x = torch.randn(len(cells), *([genes] if genes else []), 3, dtype=torch.float64)
    counted, repeated = CellBatchNorm(3).double(), nn.BatchNorm1d(3).double()
    for norm in (counted, repeated):
        nn.init.uniform_(norm.weight.data.copy_(torch.tensor([1.5, 0.5, -1])), 0.5, 0.5)
        nn.init.constant_(norm.bias, 0.3)
    found = counted(x, n_cells).repeat_interleave(n_cells, dim=0)
    expected = repeated(x.repeat_interleave(n_cells, dim=0).reshape(-1, 3)).reshape(found.shape)
    assert_close(found, expected)
    assert_close(counted.running_mean, repeated.running_mean)
    assert_close(counted.running_var, repeated.running_var)
    assert_close(counted.eval()(x, n_cells), repeated.eval()(x.reshape(-1, 3)).reshape(x.shape))


def test_gradients_are_those_of_repeated_rows():
    x, n_cells = torch.randn(3, 4, 2, dtype=torch.float64), torch.tensor([1, 5, 2])
    weights = torch.randn(8, 4, 2, dtype=torch.float64)
    one, other = (x.clone().requires_grad_() for _ in range(2))
    norm, plain = CellBatchNorm(2).double(), nn.BatchNorm1d(2).double()
    (norm(one, n_cells).repeat_interleave(n_cells, dim=0) * weights).sum().backward()
    (plain(other.repeat_interleave(n_cells, dim=0).reshape(-1, 2)).reshape(8, 4, 2) * weights).sum().backward()
    assert_close(one.grad, other.grad)


def test_one_cell_alone_is_normalised_to_the_offset():
    norm = CellBatchNorm(3)
    assert torch.equal(norm(torch.randn(1, 3), torch.tensor([1])), torch.zeros(1, 3))
    assert torch.isfinite(norm.running_var).all()


def test_the_last_norm_is_kept_and_the_last_relu_is_not():
    mlp = CellMLP((4, 6, 3), "batch")
    a, b = mlp.linear
    x = torch.randn(20, 4)
    expected = nn.functional.batch_norm(
        b(torch.relu(nn.functional.batch_norm(a(x), None, None, training=True))), None, None, training=True
    )
    assert_close(mlp(x), expected)
    assert (expected < 0).any()


def test_layer_norm_leaves_something_of_a_last_layer_of_width_one():
    assert CellMLP((4, 6, 1), "layer")(torch.randn(9, 4)).std() > 0


# ------------------------------------------------------------------ co-expression


def expected_edges(x, k, threshold):
    with np.errstate(invalid="ignore"):
        r = np.abs(np.nan_to_num(np.corrcoef(x.T)))
    np.fill_diagonal(r, 0)
    pairs = {}
    for target in range(len(r)):
        for source in np.argsort(-r[target], kind="stable")[:k]:
            if r[target, source] > threshold:
                pairs[int(source), target] = r[target, source]
    return pairs


@pytest.mark.parametrize("block_bytes", [1, 3 * 8 * 15, 2**20])
@pytest.mark.parametrize("batch_size", [7, 50])
def test_coexpression_is_that_of_all_cells_in_any_blocks(block_bytes, batch_size):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(50, 4)) @ rng.normal(size=(4, 15)) + 0.5 * rng.normal(size=(50, 15)) + 3).astype(np.float32)
    x[:, 3] = 0.1
    batches = [torch.from_numpy(x[i : i + batch_size]) for i in range(0, 50, batch_size)]
    source, target, weight = coexpression(
        lambda: iter(batches), torch.from_numpy(x.astype(np.float64).mean(0)), 3, 0.4, block_bytes
    )
    expected = expected_edges(x.astype(np.float64), 3, 0.4)
    assert set(zip(source.tolist(), target.tolist(), strict=True)) == set(expected)
    np.testing.assert_allclose(weight, [expected[pair] for pair in zip(source, target, strict=True)], rtol=1e-5)
    assert 3 not in source
    assert 3 not in target
    assert np.bincount(target).max() <= 3


def test_opposite_genes_are_as_near_as_equal_ones():
    x = torch.randn(30, 1) * torch.tensor([[1.0, -2.0]]) + 5
    source, target, weight = coexpression(lambda: iter([x]), x.double().mean(0), 5, 0.4)
    assert (source.tolist(), target.tolist()) == ([1, 0], [0, 1])
    np.testing.assert_allclose(weight, 1, rtol=1e-6)
