from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._axes import SMALL, axes_or_new, font_size, ink, line_styles

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes


def precision_recall(labels: np.ndarray, scores: Mapping[str, np.ndarray], *, ax: Axes | None = None) -> Axes:
    """Precision against recall of calls of differential expression.

    The curves are steps, as the average precision in the legend sums them: between two thresholds there is nothing to
    interpolate. The dotted line is the prevalence, which a random order reaches; a precision says nothing without it.

    Parameters
    ----------
    labels
        Whether a gene is truly differentially expressed, shape `(n_genes,)`. All models are compared on the same genes;
        concatenate several perturbations.
    scores
        By model, how strongly each gene is called, shape `(n_genes,)`: higher is surer.
    ax
        Axes to draw on; None makes a figure.

    Returns
    -------
    The axes.

    Raises
    ------
    ValueError
        If labels are not true and false or all the same, there are no scores, lengths differ, or scores are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> ax = precision_recall(np.array([True, False, True, False]), {"A": np.array([0.9, 0.2, 0.8, 0.1])})
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['A: 1.000', 'prevalence: 0.500']
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    labels = _labels(labels)
    if not scores:
        raise ValueError("`scores` is empty; give the scores of at least one model by its name.")
    checked = {name: _scores(name, values, len(labels)) for name, values in scores.items()}

    average = {name: average_precision_score(labels, values) for name, values in checked.items()}
    ax = axes_or_new(ax, 5.0, 4.2)
    style = line_styles(checked)
    for name in sorted(checked, key=lambda name: -average[name]):
        precision, recall, _ = precision_recall_curve(labels, checked[name])
        # the last point, precision 1 at recall 0, belongs to no threshold
        precision[-1] = precision[-2]
        ax.plot(recall, precision, drawstyle="steps-post", label=f"{name}: {average[name]:.3f}", **style[name])
    prevalence = labels.mean()
    ax.axhline(prevalence, color=ink(), linewidth=0.9, linestyle=":", label=f"prevalence: {prevalence:.3f}")
    ax.set(xlim=(-0.01, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    ax.legend(title="average precision", fontsize=font_size(SMALL), title_fontsize=font_size(SMALL), frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _labels(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.isin(labels, (0, 1)).all():
        raise ValueError(f"`labels` must be one true or false per gene; it has shape {labels.shape}.")
    if len(np.unique(labels)) < 2:
        raise ValueError(
            f"`labels` are the same for all {len(labels)} genes; precision and recall need true and false ones."
        )
    return labels.astype(bool)


def _scores(name: str, values: np.ndarray, n_genes: int) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.shape != (n_genes,):
        raise ValueError(f"`scores[{name!r}]` has shape {values.shape}; it must hold one score per label, {n_genes}.")
    n_bad = int(np.sum(~np.isfinite(values)))
    if n_bad:
        raise ValueError(
            f"`scores[{name!r}]` holds {n_bad} NaN or infinite value(s); give genes that are not called a finite score "
            "below all others."
        )
    return values
