from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from multipert import _keys
from multipert.data._conditions import close_matches

from ._axes import SMALL, axes_or_new, font_size, ink, point_styles
from ._checks import dense

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_MOST: Final = 25
_MISSING: Final = "missing"


def latent(
    adata: AnnData,
    basis: str,
    color: str = _keys.PERTURBATION,
    *,
    centres: bool = False,
    size: float | None = None,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Map of cells in a latent space.

    Two columns are drawn as they are. Of more, the first two principal components are drawn, and the axes say so with
    the share of the variance that they hold; nothing is embedded further, so distances mean what they seem to.

    Parameters
    ----------
    adata
        Cells.
    basis
        Key of `obsm`, such as "X_MTAe" after `model.annotate()`.
    color
        obs column. Numbers get a colour bar; anything else a legend with the number of cells, the category "control"
        and cells without a value in grey.
    centres
        Whether to mark the mean of every category with a cross.
    size
        Area of a point in square points; None chooses it from the number of cells.
    seed
        Of the order in which cells are drawn, so that no category hides another, and of the components.
    ax
        Axes to draw on; None makes a figure.

    Returns
    -------
    The axes.

    Raises
    ------
    KeyError
        If `basis` or `color` is absent.
    ValueError
        If there are fewer than two columns, fewer than three cells, or more categories than can be told apart (25).

    Warns
    -----
    UserWarning
        If cells have no finite place and are left out.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.simulate(n_cells=200, n_vars=50, n_contexts=2, n_perturbations=2)
    >>> adata.obsm["X_latent"] = adata.X[:, :6].toarray()
    >>> ax = latent(adata, "X_latent", color="context")
    >>> ax.get_xlabel()[:16]
    'PC1 of X_latent '
    """
    if basis not in adata.obsm:
        raise KeyError(f"`basis` {basis!r} is not in obsm{close_matches(basis, adata.obsm)}")
    if color not in adata.obs:
        raise KeyError(f"`color` {color!r} is not a column of obs{close_matches(color, adata.obs)}")
    space = dense(adata.obsm[basis])
    if space.ndim != 2 or space.shape[1] < 2:
        raise ValueError(f"obsm[{basis!r}] has shape {space.shape}; a map needs at least two columns.")
    column, is_finite = adata.obs[color], np.isfinite(space).all(axis=1)
    if not is_finite.all():
        n_lost = int(np.sum(~is_finite))
        warnings.warn(
            f"{n_lost} of {len(space)} cells have no finite place in obsm[{basis!r}] and are left out.", stacklevel=2
        )
        space, column = space[is_finite], column[is_finite]
    if len(space) < 3 or not np.ptp(space, axis=0).any():
        raise ValueError(
            f"{len(space)} cells have a finite place in obsm[{basis!r}]; a map needs three, not all the same."
        )
    is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    names = None if is_number else column.astype(object).where(column.notna(), _MISSING).astype(str).to_numpy()
    if names is not None and len(set(names)) > _MOST:
        raise ValueError(
            f"obs[{color!r}] has {len(set(names))} categories; {_MOST} can be told apart. Draw some of them, or a column "
            "with fewer."
        )

    points, labels = _plane(space, basis, seed)
    order = np.random.default_rng(seed).permutation(len(points))
    size = float(np.clip(6000 / len(points), 3, 18)) if size is None else size
    ax = axes_or_new(ax, 5.6, 4.2)
    if names is None:
        values = column.to_numpy(dtype=float)[order]
        style: dict[str, Any] = {"s": size, "alpha": 0.8, "linewidths": 0, "rasterized": True}
        drawn = ax.scatter(points[order, 0], points[order, 1], c=values, cmap="viridis", **style)
        ax.figure.colorbar(drawn, ax=ax, label=color)
    else:
        levels = _levels(column, names)
        _categories(ax, points, names, order, size, levels, title=color)
        if centres:
            _mark_centres(ax, points, names, levels)
    ax.set(xlabel=labels[0], ylabel=labels[1], xticks=[], yticks=[])
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _plane(space: np.ndarray, basis: str, seed: int) -> tuple[np.ndarray, list[str]]:
    """Two coordinates of every cell, and what they are."""
    if space.shape[1] == 2:
        return space, [f"{basis} {i}" for i in (1, 2)]
    from sklearn.decomposition import PCA

    pca = PCA(n_components=2, random_state=seed)
    points = pca.fit_transform(space)
    shares = zip((1, 2), pca.explained_variance_ratio_, strict=True)
    return points, [f"PC{i} of {basis} ({share:.0%})" for i, share in shares]


def _levels(column: pd.Series, names: np.ndarray) -> list[str]:
    """Categories that are there: in their own order if they have one, cells without a value last."""
    is_categorical = isinstance(column.dtype, pd.CategoricalDtype)
    known = map(str, column.cat.categories) if is_categorical else sorted(set(names) - {_MISSING})
    return [name for name in dict.fromkeys([*known, _MISSING]) if name in set(names)]


def _categories(
    ax: Axes, points: np.ndarray, names: np.ndarray, order: np.ndarray, size: float, levels: list[str], title: str
) -> None:
    style = point_styles(levels, grey=[_MISSING])
    of_cell = np.array([style[name][0] for name in names])
    markers = np.array([style[name][1] for name in names])
    for marker in dict.fromkeys(markers):
        rows = order[markers[order] == marker]
        ax.scatter(
            points[rows, 0],
            points[rows, 1],
            c=of_cell[rows],
            s=size,
            marker=marker,
            alpha=0.65,
            linewidths=0,
            rasterized=True,
        )
    for name in levels:
        colour, marker = style[name]
        label = f"{name} ({int(np.sum(names == name))})"
        ax.plot([], [], marker, color=colour, markersize=5.5, markeredgewidth=0, label=label)
    ax.legend(
        title=title, loc="upper left", bbox_to_anchor=(1, 1), frameon=False, handletextpad=0.2,
        ncols=1 + len(levels) // 15, fontsize=font_size(SMALL), title_fontsize=font_size(SMALL), alignment="left",
    )  # fmt: skip


def _mark_centres(ax: Axes, points: np.ndarray, names: np.ndarray, levels: list[str]) -> None:
    style = point_styles(levels, grey=[_MISSING])
    for name in levels:
        centre = points[names == name].mean(axis=0)
        ax.plot(*centre, "P", color=style[name][0], markersize=10, markeredgecolor=ink(), zorder=4)
