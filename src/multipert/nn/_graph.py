"""Graphs without a graph library: one sparse product per layer, and norms for rows that stand for several cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from multipert.embedding._genegraph import strongest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from multipert.embedding._genegraph import Edges

Norm = Literal["batch", "layer"]
_BLOCK_BYTES = 256 * 2**20


def normalised_adjacency(
    source: np.ndarray, target: np.ndarray, weight: np.ndarray, n_nodes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""The matrix that a graph convolution multiplies with, :math:`S = D^{-1/2} A D^{-1/2}` :cite:p:`Wu2019`.

    :math:`A_{ts}` is the weight of the edge from s to t; nodes without a loop get one of weight 1. :math:`D` holds the sums
    of incoming weights.

    Parameters
    ----------
    source
        Where each edge begins, shape `(n_edges,)`; no edge twice.
    target
        Where it ends, same shape.
    weight
        Its weight, not negative, same shape.
    n_nodes
        Number of nodes.

    Returns
    -------
    Targets over sources, shape `(2, n_entries)`, int64, in the order of a coalesced matrix; entries, float32.

    Examples
    --------
    >>> edges, entries = normalised_adjacency(np.array([0]), np.array([1]), np.array([1.0]), 2)
    >>> edges.tolist()
    [[0, 1, 1], [0, 0, 1]]
    >>> (entries**2).round(decimals=3).tolist()
    [1.0, 0.5, 0.25]
    """
    bare = np.setdiff1d(np.arange(n_nodes), source[source == target])
    source, target = np.concatenate([source, bare]), np.concatenate([target, bare])
    weight = np.concatenate([weight, np.ones(len(bare))]).astype(np.float64)
    degree = np.bincount(target, weights=weight, minlength=n_nodes)
    root = np.divide(1, np.sqrt(degree), out=np.zeros(n_nodes), where=degree > 0)
    order = np.lexsort((source, target))
    source, target = source[order], target[order]
    entries = root[target] * weight[order] * root[source]
    edges = torch.from_numpy(np.stack([target, source]).astype(np.int64))
    return edges, torch.from_numpy(entries.astype(np.float32))


def propagate(edges: torch.Tensor | None, entries: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """One step along a graph, as one sparse product.

    Parameters
    ----------
    edges
        What :func:`normalised_adjacency` returns; None is a graph without edges.
    entries
        Its entries.
    values
        Values of the nodes, shape `(n_nodes, n_features)`.

    Returns
    -------
    Weighted sums over the sources of each node, same shape.
    """
    if edges is None:
        return values
    return _Propagate.apply(values.to(entries.dtype), edges, entries)


class _Propagate(torch.autograd.Function):
    """The product, with nothing sparse kept for its gradient, of which torch cannot tell the size."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, edges: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(edges, entries)
        return _product(edges, entries, values)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        edges, entries = ctx.saved_tensors
        order = torch.argsort(edges[1], stable=True)
        return _product(edges.flip(0)[:, order], entries[order], gradient), None, None


def _product(edges: torch.Tensor, entries: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Product of a square sparse matrix, in the order of a coalesced one, with a dense one."""
    shape = (len(values), len(values))
    matrix = torch.sparse_coo_tensor(edges, entries, shape, is_coalesced=True, check_invariants=False)
    return torch.sparse.mm(matrix, values)


class GraphConvolution(nn.Module):
    r"""Simple graph convolutions :math:`H \leftarrow S H W + b`, one step each, with a ReLU between two :cite:p:`Wu2019`.

    Parameters
    ----------
    n_features
        Width of the values of the nodes.
    n_layers
        Number of convolutions.
    """

    def __init__(self, n_features: int, n_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n_features, n_features) for _ in range(n_layers))

    def forward(self, values: torch.Tensor, edges: torch.Tensor | None, entries: torch.Tensor) -> torch.Tensor:
        """Values of all nodes, shape `(n_nodes, n_features)`."""
        for number, layer in enumerate(self.layers):
            values = layer(propagate(edges, entries, torch.relu(values) if number else values))
        return values


class BoundedTable(nn.Module):
    """Learnt vectors whose norm is at most 1: in training longer ones are cut before they are read.

    Parameters
    ----------
    n_rows
        Number of vectors.
    n_features
        Their width.
    """

    def __init__(self, n_rows: int, n_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_rows, n_features))

    def forward(self) -> torch.Tensor:
        """All vectors, shape `(n_rows, n_features)`."""
        if not self.training:
            return torch.renorm(self.weight, 2, 0, 1.0)
        with torch.no_grad():
            self.weight.renorm_(2, 0, 1.0)
        return self.weight


class CellBatchNorm(nn.BatchNorm1d):
    """Batch norm of rows that stand for several equal cells: the statistics are those of the cells."""

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float | None

    def forward(self, input: torch.Tensor, n_cells: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise the last axis.

        Parameters
        ----------
        input
            Shape `(n_rows, n_features)` or `(n_rows, n_genes, n_features)`.
        n_cells
            Cells of each row, shape `(n_rows,)`; None is one each.

        Returns
        -------
        The shape of the input, in the type of the weights.
        """
        rows = input.to(self.weight.dtype).reshape(-1, input.shape[-1])
        if n_cells is None or not self.training:
            return super().forward(rows).reshape(input.shape)
        repeats = len(rows) // len(n_cells)
        share = (n_cells.to(rows) / (n_cells.sum() * repeats)).repeat_interleave(repeats)
        # products would be rounded to half precision
        with torch.autocast(rows.device.type, enabled=False):
            mean = share @ rows
            centred = rows - mean
            variance = share @ centred.square()
        self._keep(mean.detach(), variance.detach(), n_cells.sum() * repeats)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias, centred, scale).reshape(input.shape)

    @torch.no_grad()
    def _keep(self, mean: torch.Tensor, variance: torch.Tensor, n: torch.Tensor) -> None:
        """Move the running statistics towards those of the batch."""
        self.num_batches_tracked += 1
        step = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, step)
        self.running_var.lerp_(variance * n / (n - 1).clamp(min=1), step)


def average_statistics(norms: Sequence[nn.BatchNorm1d], batches: Iterable[Callable[[], object]]) -> None:
    """Put the plain averages over some batches in the place of running statistics, which lag behind the weights.

    Parameters
    ----------
    norms
        Batch norms.
    batches
        Each runs the network, in training mode, on one batch.
    """
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for run in batches:
        run()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


class CellLayerNorm(nn.LayerNorm):
    """Layer norm in the place of :class:`CellBatchNorm`: each row by itself."""

    def forward(self, input: torch.Tensor, n_cells: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise the last axis; the number of cells has no part in it."""
        return super().forward(input)


def norm_layer(norm: Norm, n_features: int) -> CellBatchNorm | CellLayerNorm:
    """The norm of a width.

    Parameters
    ----------
    norm
        Which.
    n_features
        The width.

    Returns
    -------
    A layer that is called with values and the number of cells of each row.
    """
    return CellBatchNorm(n_features) if norm == "batch" else CellLayerNorm(n_features)


class CellMLP(nn.Module):
    """Linear layer, norm and ReLU, several times; the last one without the ReLU.

    Parameters
    ----------
    widths
        Width of the input, then of each layer.
    norm
        Which norm; the last layer of width 1 has none of "layer", which would leave nothing of it.
    """

    def __init__(self, widths: Sequence[int], norm: Norm) -> None:
        super().__init__()
        pairs = list(zip(widths, widths[1:], strict=False))
        self.linear = nn.ModuleList(nn.Linear(*pair) for pair in pairs)
        self.norm = nn.ModuleList(norm_layer(norm, n_out) for _, n_out in pairs if norm == "batch" or n_out > 1)

    def forward(self, x: torch.Tensor, n_cells: torch.Tensor | None = None) -> torch.Tensor:
        """Output, shape of the input with the last width; see :class:`CellBatchNorm`."""
        last = len(self.linear) - 1
        for number, linear in enumerate(self.linear):
            x = linear(x)
            if number < len(self.norm):
                x = self.norm[number](x, n_cells)
            if number < last:
                x = torch.relu(x)
        return x


def coexpression(
    batches: Callable[[], Iterable[torch.Tensor]],
    mean: torch.Tensor,
    n_neighbors: int,
    threshold: float,
    block_bytes: int = _BLOCK_BYTES,
) -> Edges:
    """Edges from the genes that each gene correlates with most, by the absolute Pearson correlation.

    Parameters
    ----------
    batches
        Gives the cells anew at each call, as batches of shape `(n, n_vars)`; they are read once for every block of genes.
    mean
        Their mean, shape `(n_vars,)`.
    n_neighbors
        Most neighbours of a gene.
    threshold
        Correlations must be larger.
    block_bytes
        About how many bytes of cross-products, and so how many genes, are summed at once.

    Returns
    -------
    Sources, targets and weights; a gene that is constant has none.
    """
    n_vars = len(mean)
    step = max(1, block_bytes // (8 * n_vars))
    centre = mean.float()
    parts: list[Edges] = []
    for first in range(0, n_vars, step):
        some = slice(first, min(first + step, n_vars))
        products = torch.zeros(some.stop - first, n_vars, dtype=torch.float64)
        squares = torch.zeros(n_vars, dtype=torch.float64)
        for x in batches():
            centred = x - centre
            products += centred[:, some].T @ centred
            squares += centred.square().sum(0)
        norm = squares.sqrt().numpy()
        scale = np.outer(norm[some], norm)
        block = np.divide(np.abs(products.numpy()), scale, out=np.zeros(scale.shape), where=scale > 0).clip(max=1)
        at = np.arange(first, some.stop)
        block[at - first, at] = -1
        rows, source, weight = strongest(block, n_neighbors, threshold)
        parts.append((source, rows + first, weight))
    source, target, weight = (np.concatenate(part) for part in zip(*parts, strict=True))
    return source, target, weight
