from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from ._axes import SMALL, axes_or_new, colours, font_size, ink, root_figure
from ._checks import as_list, check_known, dense, expression

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

_FEWEST: Final = 8
"""Fewer values than this are drawn as points: a density would invent its shape."""
_N_GRID: Final = 128


def gene_distributions(
    groups: Mapping[str, AnnData], genes: str | Sequence[str], *, layer: str | None = None, ax: Axes | None = None
) -> Axes:
    """Expression of genes in several groups of cells: the zeros apart from the rest.

    Log-normalised expression is a mass at exactly zero and a density above it. A violin of both at once smears the zeros
    over values that no cell has. So each violin is the density of the values other than zero, and at its widest as wide
    as their share of the cells; the bars that hang below are the share of cells with exactly zero. The line across is
    the mean of all cells, zeros included. Fewer than eight values other than zero are drawn as points.

    Parameters
    ----------
    groups
        Cells by the name of the group. "control", "observed" and "predicted" have colours of their own.
    genes
        Genes to show, in order.
    layer
        Layer to read in place of `X`; for a group called "predicted", if it has it.
    ax
        Axes to draw on, which give part of their height to the bars; None makes a figure.

    Returns
    -------
    The axes of the violins.

    Raises
    ------
    KeyError
        If the layer is absent.
    ValueError
        If there are no groups, a group has no cells or values that are not finite, a gene is unknown, or `ax` stands in
        no grid of axes.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.simulate(n_cells=200, n_vars=50, n_contexts=2, n_perturbations=2)
    >>> is_control = (adata.obs["perturbation"] == "control").to_numpy()
    >>> groups = {"control": adata[is_control], "observed": adata[~is_control]}
    >>> ax = gene_distributions(groups, ["gene_01", "gene_02"])
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['control (60)', 'observed (140)']
    """
    if not groups:
        raise ValueError("`groups` is empty; give at least one group of cells by its name.")
    genes = as_list(genes)
    for adata in groups.values():
        check_known("genes", genes, adata.var_names)
    values = {name: dense(expression(name, adata, layer, genes)) for name, adata in groups.items()}

    ax = axes_or_new(ax, max(3.6, 1.2 + 0.42 * len(genes) * len(groups)), 3.6)
    zeros = _axes_below(ax)
    colour_of, slot = colours(groups), 0.86 / len(groups)
    for at in range(len(genes)):
        for i, name in enumerate(groups):
            column, colour = values[name][:, at], colour_of[name]
            x, rest = at + (i - (len(groups) - 1) / 2) * slot, column[column != 0]
            if len(rest) >= _FEWEST and np.ptp(rest) > 1e-6 * np.abs(rest).max():
                grid, density = _density(rest)
                half = 0.47 * slot * len(rest) / len(column) * density
                ax.fill_betweenx(grid, x - half, x + half, color=colour, alpha=0.55, linewidth=0)
            else:
                ax.plot([x] * len(rest), rest, ".", color=colour, alpha=0.7, markersize=4, markeredgewidth=0)
            ax.plot([x - 0.42 * slot, x + 0.42 * slot], [column.mean()] * 2, color=colour, linewidth=2, zorder=3)
            zeros.bar(x, np.mean(column == 0), 0.8 * slot, color=colour, alpha=0.8, linewidth=0)
    ax.set(xlim=(-0.5, len(genes) - 0.5), ylabel="expression, not zero")
    ax.tick_params(bottom=False, labelbottom=False)
    ax.spines[["top", "right", "bottom"]].set_visible(False)
    if all(column.min() >= 0 for column in values.values()):
        ax.set_ylim(bottom=0)
    zeros.set_xticks(range(len(genes)), genes)
    if 0.7 * font_size() * sum(map(len, genes)) > 72 * ax.get_window_extent().width / root_figure(ax).dpi:
        zeros.set_xticks(range(len(genes)), genes, rotation=35, ha="right", rotation_mode="anchor")
    for name, colour in colour_of.items():
        ax.plot([], [], "s", color=colour, markersize=6, markeredgewidth=0, label=f"{name} ({len(values[name])})")
    ax.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=min(len(groups), 4), frameon=False, fontsize=font_size(SMALL),
        handletextpad=0.2, columnspacing=1.2,
    )  # fmt: skip
    return ax


def _axes_below(ax: Axes) -> Axes:
    """Axes for the share of zeros, hanging from the zero line of the violins."""
    place = ax.get_subplotspec()
    if place is None:
        raise ValueError("`ax` has no place in a grid; make it with `subplots` or `add_subplot`.")
    grid = place.subgridspec(2, 1, height_ratios=(2.6, 1), hspace=0.04)
    ax.set_subplotspec(grid[0])
    zeros = ax.figure.add_subplot(grid[1], sharex=ax)
    zeros.set(ylim=(1, 0), ylabel="zeros")
    zeros.set_yticks([0.5, 1], ["50 %", "100 %"])
    zeros.grid(axis="y", color=ink(), alpha=0.15, linewidth=0.6)
    zeros.set_axisbelow(True)
    zeros.spines[["right", "bottom"]].set_visible(False)
    zeros.tick_params(axis="x", length=0)
    root_figure(ax).align_ylabels([ax, zeros])
    return zeros


def _density(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Grid from the lowest to the highest value, and the density there relative to its highest."""
    from scipy.stats import gaussian_kde

    grid = np.linspace(values.min(), values.max(), _N_GRID)
    density = gaussian_kde(values)(grid)
    return grid, density / density.max()
