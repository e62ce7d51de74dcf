from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._axes import PALETTE, SMALL, axes_or_new, font_size, ink
from ._checks import check_frame

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def gene_scores(frame: pd.DataFrame, *, n_genes: int = 20, ax: Axes | None = None) -> Axes:
    """The genes with the largest scores of either sign, as bars from the highest score down.

    Bars are pale where the linear surrogate, from which a score is read, explains little of what the decoder does to that
    gene; what it explains over all genes stands below.

    Parameters
    ----------
    frame
        What :meth:`multipert.model.ScVIDR.gene_scores` returns: `score` and `r2` of every gene.
    n_genes
        How many genes to draw.
    ax
        Axes to draw on; None makes a figure.

    Returns
    -------
    The axes.

    Raises
    ------
    KeyError
        If a column is absent.
    ValueError
        If there are no rows, a score is not finite, or `n_genes` is below 1.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"score": [2.0, 0.1, -1.0], "r2": [0.9, 0.9, 0.2]}, index=["up", "same", "down"])
    >>> ax = gene_scores(frame, n_genes=2)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['up', 'down']
    """
    check_frame(frame, ["score", "r2"])
    if n_genes < 1:
        raise ValueError(f"`n_genes` is {n_genes}; it must be at least 1.")
    score = frame["score"].to_numpy(dtype=float)
    n_bad = int((~np.isfinite(score)).sum())
    if n_bad:
        raise ValueError(f"`frame` holds {n_bad} score(s) that are NaN or infinite; leave these genes out.")
    largest = np.argsort(-np.abs(score), kind="stable")[:n_genes]
    shown = largest[np.argsort(-score[largest], kind="stable")]
    r2 = frame["r2"].to_numpy(dtype=float)
    ax = axes_or_new(ax, 4.6, 1.2 + 0.21 * len(shown))
    place = np.arange(len(shown))
    bars = ax.barh(place, score[shown], height=0.75, color=[PALETTE[1] if x > 0 else PALETTE[0] for x in score[shown]])
    for bar, share in zip(bars, r2[shown], strict=True):
        bar.set_alpha(0.25 + 0.75 * float(np.clip(np.nan_to_num(share), 0, 1)))
    ax.axvline(0, color=ink(), linewidth=0.8)
    ax.set_yticks(place, [str(name) for name in frame.index[shown]], fontsize=font_size(SMALL))
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(
        f"score (pale: R² of the gene near 0; mean R² {np.nanmean(r2):.2f})" if np.isfinite(r2).any() else "score"
    )
    ax.spines[["top", "right", "left"]].set_visible(False)
    return ax
