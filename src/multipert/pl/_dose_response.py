from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np
import pandas as pd

from multipert import _keys
from multipert.data._checks import check_column

from ._axes import GROUPS, SMALL, axes_or_new, colours, font_size, ink
from ._checks import as_list, check_known, dense, expression

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

Spread = Literal["confidence", "quartiles"]

_CONFIDENCE: Final = 0.95
_SPREADS: Final = {"confidence": "95 % interval of the mean", "quartiles": "middle half of the cells"}


def dose_response(
    predicted: AnnData,
    observed: AnnData,
    genes: str | Sequence[str],
    *,
    dose_key: str = _keys.DOSE,
    perturbation_key: str = _keys.PERTURBATION,
    spread: Spread = "confidence",
    layer: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Mean expression of genes over dose: observed with its spread, predicted as a curve.

    The axis of doses is logarithmic. Control, dose 0, has no place on it and stands at its left, behind a dotted line.

    Parameters
    ----------
    predicted
        Counterfactual cells, or their means, of one perturbation at several doses.
    observed
        Measured cells of the same perturbation and of the same context, control cells (dose 0) included if there are any.
    genes
        One gene or several, each with its colour.
    dose_key
        obs column of the doses of both, numbers.
    perturbation_key
        obs column of the perturbation of both.
    spread
        What the bars of the observed cells show: "confidence", the 95 % interval of the mean from Student's t
        distribution, or "quartiles", from the first to the third.
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
        If a column or the layer is absent.
    ValueError
        If a group has no cells, values are missing or not finite, a gene or `spread` is unknown, a dose is no number or
        negative, no dose is positive, or cells of several perturbations are given.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("doses")
    >>> observed = adata[adata.obs["perturbation"].isin(["P1", "control"]) & (adata.obs["context"] == "context_1")]
    >>> ax = dose_response(observed[observed.obs["dose"] > 0], observed, "gene_001")
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['control', '0.1', '0.5', '2', '10', '50']
    """
    if spread not in get_args(Spread):
        raise ValueError(f"`spread` is {spread!r}; it must be one of {', '.join(get_args(Spread))}.")
    genes = as_list(genes)
    groups = {"predicted": predicted, "observed": observed}
    for adata in groups.values():
        check_known("genes", genes, adata.var_names)
    values = {name: dense(expression(name, adata, layer, genes)) for name, adata in groups.items()}
    doses = {name: _doses(name, adata, dose_key) for name, adata in groups.items()}
    _check_one_perturbation(groups, doses, perturbation_key)

    shown = np.unique(np.concatenate(list(doses.values())))
    place = _places(shown)
    ax = axes_or_new(ax, 5.2, 3.8)
    colour_of = colours(genes) if len(genes) > 1 else {}
    for at, gene in enumerate(genes):
        colour = colour_of.get(gene, GROUPS["observed"])
        for dose in np.unique(doses["observed"]):
            cells = values["observed"][doses["observed"] == dose, at]
            ax.vlines(place[dose], *_interval(cells, spread), color=colour, linewidth=1.5, alpha=0.8)
            ax.plot(place[dose], cells.mean(), "o", color=colour, markersize=6, markeredgewidth=0, zorder=3)
        given = np.unique(doses["predicted"])
        curve = [values["predicted"][doses["predicted"] == dose, at].mean() for dose in given]
        ax.plot(
            [place[dose] for dose in given], curve, "-s", color=colour_of.get(gene, GROUPS["predicted"]), linewidth=1.6,
            markersize=4, markeredgewidth=0, zorder=2, alpha=0.9,
        )  # fmt: skip
    _axis_of_doses(ax, shown, place, dose_key)
    ax.set_ylabel("mean expression" if len(genes) > 1 else f"mean of {genes[0]}")
    ax.spines[["top", "right"]].set_visible(False)
    _legend(ax, colour_of, spread)
    return ax


def _doses(name: str, adata: AnnData, dose_key: str) -> np.ndarray:
    column = check_column(adata.obs, dose_key, "dose_key").astype(str)
    doses = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)
    wrong = ~(np.isfinite(doses) & (doses >= 0))
    if wrong.any():
        raise ValueError(
            f"`{name}.obs[{dose_key!r}]` holds {int(wrong.sum())} value(s) that are no dose, first {column[wrong].iloc[0]!r}; "
            "give cells of one perturbation at doses >= 0, no combinations."
        )
    return doses


def _check_one_perturbation(groups: dict[str, AnnData], doses: dict[str, np.ndarray], perturbation_key: str) -> None:
    labels: set[str] = set()
    for name, adata in groups.items():
        column = check_column(adata.obs, perturbation_key, "perturbation_key").astype(str).to_numpy()
        labels |= set(column[doses[name] > 0])
    if not labels:
        raise ValueError("No cell has a positive dose, so there is no response to draw.")
    if len(labels) > 1:
        raise ValueError(
            f"The cells are of {len(labels)} perturbations ({', '.join(sorted(labels)[:5])}); give those of one, beside "
            "control cells with dose 0."
        )


def _places(doses: np.ndarray) -> dict[float, float]:
    """Where a dose stands on the logarithmic axis; 0 as far to the left as doses are apart, at least half a decade."""
    positive = doses[doses > 0]
    step = float(np.median(np.diff(np.log10(positive)))) if len(positive) > 1 else 0.5
    return {dose: dose if dose > 0 else positive[0] / 10 ** max(step, 0.5) for dose in doses.tolist()}


def _interval(cells: np.ndarray, spread: Spread) -> tuple[float, float]:
    if spread == "quartiles":
        low, high = np.quantile(cells, [0.25, 0.75])
        return float(low), float(high)
    if len(cells) < 2:
        return np.nan, np.nan
    from scipy.stats import t

    half = t.ppf((1 + _CONFIDENCE) / 2, len(cells) - 1) * cells.std(ddof=1) / np.sqrt(len(cells))
    return cells.mean() - half, cells.mean() + half


def _axis_of_doses(ax: Axes, doses: np.ndarray, place: dict[float, float], dose_key: str) -> None:
    from matplotlib.ticker import NullLocator

    ax.set_xscale("log")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks([place[dose] for dose in doses], [f"{dose:g}" if dose > 0 else "control" for dose in doses])
    if len(doses) > 8:
        ax.tick_params(axis="x", labelrotation=35)
    ax.set_xlabel(dose_key)
    if doses[0] == 0:
        ax.axvline(np.sqrt(place[0.0] * doses[1]), color=ink(), linestyle=":", linewidth=0.8, alpha=0.6)


def _legend(ax: Axes, colour_of: dict[str, str], spread: Spread) -> None:
    for gene, colour in colour_of.items():
        ax.plot([], [], color=colour, linewidth=4, label=gene)
    own = dict.fromkeys(GROUPS, ink()) if colour_of else GROUPS
    ax.plot([], [], "o", color=own["observed"], markersize=6, label=f"observed, {_SPREADS[spread]}")
    ax.plot([], [], "-s", color=own["predicted"], markersize=4, label="predicted")
    ax.legend(frameon=False, fontsize=font_size(SMALL), loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2)
