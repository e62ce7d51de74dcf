from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._cells import Cells, Matrix, as_cells

if TYPE_CHECKING:
    from collections.abc import Callable


def bootstrap(
    metric: Callable[..., float],
    predicted: Matrix,
    observed: Matrix,
    *others: Matrix,
    n_draws: int = 100,
    share: float = 0.8,
    seed: int = 0,
) -> np.ndarray:
    """Scores of random draws of the predicted and the observed cells, to see how much a score depends on the cells.

    Each draw takes `share` of the cells of both groups without replacement. Their spread therefore understates that of
    new samples of the same size; it compares predictions scored on the same draws. Where both groups have equally many
    cells a draw takes the same rows of both, so cells that belong together stay together.

    Parameters
    ----------
    metric
        Called as `metric(predicted, observed, *others)` with arrays or CSR matrices, such as :func:`r2_pearson`. Use a
        lambda to set its other arguments.
    predicted
        Counterfactual cells, shape `(n_predicted, n_vars)`.
    observed
        Perturbed cells that were measured, shape `(n_observed, n_vars)`.
    others
        Further groups that stay whole, as the control cells for :func:`pearson_delta`.
    n_draws
        Number of draws.
    share
        Share of the cells of each group in a draw, above 0 and at most 1; at least one cell is drawn.
    seed
        Draw `i` uses generator `seed + i` for both groups.

    Returns
    -------
    One score for each draw, shape `(n_draws,)`.

    Raises
    ------
    ValueError
        If a group is empty, holds NaN or infinite values, or the numbers of genes differ; if `n_draws` is below 1 or
        `share` not in (0, 1].

    Examples
    --------
    >>> from multipert.metrics import r2_pearson
    >>> observed = np.random.default_rng(0).poisson([1.0, 3.0, 5.0], (50, 3))
    >>> bootstrap(r2_pearson, observed, observed, n_draws=3).round(6)
    array([1., 1., 1.])
    """
    if n_draws < 1:
        raise ValueError(f"`n_draws` is {n_draws}; it must be at least 1.")
    if not 0 < share <= 1:
        raise ValueError(f"`share` is {share}; it must be above 0 and at most 1.")
    predicted, observed = as_cells(predicted=predicted, observed=observed)
    scores = [
        metric(*(_draw(cells, share, seed + i).values for cells in (predicted, observed)), *others)
        for i in range(n_draws)
    ]
    return np.array(scores, dtype=np.float64)


def _draw(cells: Cells, share: float, seed: int) -> Cells:
    n_drawn = max(1, round(share * len(cells)))
    return cells[np.random.default_rng(seed).choice(len(cells), n_drawn, replace=False)]
