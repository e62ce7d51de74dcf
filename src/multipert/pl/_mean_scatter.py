from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._axes import GREY, GROUPS, SMALL, axes_or_new, font_size, ink
from ._checks import as_list, check_known, expression
from ._names import name_points

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from scipy import sparse


def mean_scatter(
    predicted: AnnData | np.ndarray | sparse.csr_matrix,
    observed: AnnData | np.ndarray | sparse.csr_matrix,
    control: AnnData | np.ndarray | sparse.csr_matrix | None = None,
    *,
    delta: bool = False,
    n_named: int = 10,
    genes: str | Sequence[str] | None = None,
    var_names: Sequence[str] | None = None,
    layer: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Mean expression of every gene, predicted against observed.

    In the corner are R², the share of the spread over genes that the prediction explains (1 on the dashed line, and what
    :func:`multipert.metrics.r2` gives), and the correlation r, which sees neither scale nor offset. Of mean expression
    both are high even if nothing is predicted; those of the change, `delta=True`, are not.

    Parameters
    ----------
    predicted
        Counterfactual cells: AnnData, dense or sparse matrix of shape `(n_cells, n_vars)`, or their mean, shape `(n_vars,)`.
    observed
        Perturbed cells that were measured, in one of the same forms.
    control
        Control cells of the same context, in one of the same forms.
    delta
        Whether to draw the change from control.
    n_named
        How many genes to name: those with the largest observed change of the mean, or, without `control`, those that are
        predicted worst.
    genes
        Genes to name in place of these.
    var_names
        Names of the genes, where neither group is an AnnData; None numbers them from 0.
    layer
        Layer to read in place of `X`; for `predicted`, if it has it.
    ax
        Axes to draw on; None makes a figure.

    Returns
    -------
    The axes.

    Raises
    ------
    KeyError
        If the layer is absent.
    ValueError
        If a group is empty or not finite, the genes differ, a gene is unknown, or `delta` has no `control`.

    Examples
    --------
    >>> import numpy as np
    >>> control, observed = np.zeros((3, 4)), np.array([[0.0, 1.0, 2.0, 0.1]])
    >>> ax = mean_scatter(0.9 * observed, observed, control, delta=True, n_named=1, var_names=["a", "b", "c", "d"])
    >>> [text.get_text() for text in ax.texts]
    ['R² = 0.981\nr = 1.000', 'c']
    """
    if delta and control is None:
        raise ValueError("`delta=True` needs `control`, the control cells that changes start from.")
    groups = {"predicted": predicted, "observed": observed} | ({} if control is None else {"control": control})
    means = {name: _mean(name, group, layer) for name, group in groups.items()}
    names = _names(groups, means, var_names)
    x, y = means["observed"], means["predicted"]
    if control is not None:
        change = x - means["control"]
        named = np.argsort(-np.abs(change), kind="stable")[:n_named]
        x, y = (change, y - means["control"]) if delta else (x, y)
    else:
        named = np.argsort(-np.abs(y - x), kind="stable")[:n_named]
    if genes is not None:
        genes = as_list(genes)
        check_known("genes", genes, names)
        named = np.array([names.index(gene) for gene in genes])

    ax = axes_or_new(ax, 4.4, 4.2)
    rest = np.setdiff1d(np.arange(len(x)), named)
    ax.scatter(x[rest], y[rest], s=8, color=GREY, alpha=0.5, linewidths=0, rasterized=True)
    ax.scatter(x[named], y[named], s=16, color=GROUPS["predicted"], linewidths=0, zorder=3)
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.06 * (high - low or 1.0)
    what = "change" if delta else "mean"
    ax.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin))
    ax.set(xlabel=f"observed {what}", ylabel=f"predicted {what}", aspect="equal")
    ax.axline((low, low), slope=1, color=ink(), linewidth=0.8, alpha=0.6, linestyle=(0, (4, 3)), zorder=1)
    ax.spines[["top", "right"]].set_visible(False)
    scores = ax.text(
        0.98, 0.03, _scores(x, y), transform=ax.transAxes, ha="right", va="bottom", fontsize=font_size(0.9)
    )
    points = np.column_stack([x, y])
    labels = [names[i] for i in named]
    name_points(ax, points[named], labels, size=font_size(SMALL), others=points[rest], avoid=[scores])
    return ax


def _mean(name: str, group: AnnData | np.ndarray | sparse.csr_matrix, layer: str | None) -> np.ndarray:
    from anndata import AnnData

    values = expression(name, group, layer) if isinstance(group, AnnData) else group
    if not hasattr(values, "toarray"):
        values = np.atleast_2d(np.asarray(values))
    if 0 in values.shape:
        raise ValueError(f"`{name}` has {values.shape[0]} cells and {values.shape[1]} genes; both must be at least 1.")
    mean = np.asarray(values.mean(axis=0, dtype=np.float64)).ravel()
    n_bad = int(np.sum(~np.isfinite(mean)))
    if n_bad:
        raise ValueError(f"`{name}` has NaN or infinite values in {n_bad} of {len(mean)} genes; leave them out.")
    return mean


def _names(
    groups: dict[str, AnnData | np.ndarray | sparse.csr_matrix],
    means: dict[str, np.ndarray],
    var_names: Sequence[str] | None,
) -> list[str]:
    """Names of the genes, which must be the same in all groups."""
    from anndata import AnnData

    sizes = {name: len(mean) for name, mean in means.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"The groups differ in their genes: {', '.join(f'`{k}` has {n}' for k, n in sizes.items())}.")
    given = {name: list(map(str, group.var_names)) for name, group in groups.items() if isinstance(group, AnnData)}
    if var_names is not None:
        given["var_names"] = list(map(str, var_names))
    if not given:
        return [str(i) for i in range(sizes["observed"])]
    first, *others = given
    for other in others:
        if given[other] != given[first]:
            raise ValueError(
                f"The genes of `{other}` are not those of `{first}` in its order; pass both with the same `var_names`."
            )
    if len(given[first]) != sizes["observed"]:
        raise ValueError(f"`var_names` holds {len(given[first])} names for {sizes['observed']} genes.")
    return given[first]


def _scores(x: np.ndarray, y: np.ndarray) -> str:
    """R² of the dashed line and correlation; nothing for what is not defined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = 1 - np.sum((y - x) ** 2) / np.sum((x - x.mean()) ** 2)
        r = np.corrcoef(x, y)[0, 1] if len(x) > 1 else np.nan
    return "\n".join(
        f"{name} = {value:.3f}".replace("-", "−") for name, value in (("R²", r2), ("r", r)) if np.isfinite(value)
    )
