from __future__ import annotations

from typing import Literal

import numpy as np

TIE_TOLERANCE = 1e-7


def rank(
    values: np.ndarray,
    *,
    better: Literal["lower", "higher"] = "lower",
    of: Literal["predictions", "observations"] = "predictions",
    ties: Literal["mid", "le"] = "mid",
) -> np.ndarray:
    r"""Where the right pair stands among the wrong ones: does a prediction know which perturbation it is of?

    The entry on the diagonal is compared with the `p - 1` others of its row, or of its column:

    - `of="predictions"`: for one observation, is its own prediction nearer than those of the other perturbations? This
      is the rank of PerturBench :cite:p:`Wu2024`.
    - `of="observations"`: for one prediction, is its own observation nearer than the others? One minus this rank is a
      discrimination score. It equals the first rank of the transposed matrix.

    .. math:: \text{rank} = \frac{\#\{\text{better than the right one}\} + \frac{1}{2} \#\{\text{equal}\}}{p - 1}

    A model that predicts the same for every perturbation thus gets 0.5, whatever the order of the perturbations. Two
    values count as equal if they differ by at most 1e-7 of the right one or of the median size of all values, whichever
    is larger, which covers the rounding of float32 cells.

    Parameters
    ----------
    values
        Square matrix as from :func:`pairwise`, observations in rows and predictions in columns in the same order of
        perturbations, shape `(p, p)`. The rank depends on `p`: compare only ranks among the same perturbations.
    better
        "lower" for an error or distance, "higher" for a similarity.
    of
        What is ranked.
    ties
        "mid" counts an equal value as half; "le" counts it fully against the prediction, as the formula printed in
        PerturBench does, so that a model with the same prediction for all gets 1.

    Returns
    -------
    Rank of each perturbation, shape `(p,)`: 0 is perfect, 0.5 expected by chance, 1 worst. `nan` where the right pair
    is `nan` or nothing is left to compare it with, so for every perturbation if `p` is 1; wrong pairs that are `nan`
    are left out of the count.

    Raises
    ------
    ValueError
        If `values` is not a square matrix of numbers, or an option is unknown.

    See Also
    --------
    pairwise : the matrix of all pairs.

    Examples
    --------
    >>> values = np.array([[0.1, 0.5, 0.5], [0.3, 0.2, 0.1], [0.7, 0.4, 0.4]])
    >>> rank(values)
    array([0.  , 0.5 , 0.25])
    >>> rank(values, of="observations")
    array([0. , 0. , 0.5])
    """
    errors = _checked(values, better, of, ties)
    if better == "higher":
        errors = -errors
    if of == "observations":
        errors = errors.T
    own = np.diagonal(errors)[:, None]
    tolerance = _tolerance(errors, own)
    # comparisons with nan are False, so undefined pairs are in none of the counts
    n_better = np.count_nonzero(errors < own - tolerance, axis=1)
    n_equal = np.count_nonzero(errors <= own + tolerance, axis=1) - n_better - 1
    n_others = np.count_nonzero(~np.isnan(errors), axis=1) - 1
    n_ahead = n_better + n_equal * (0.5 if ties == "mid" else 1.0)
    is_defined = ~np.isnan(own[:, 0]) & (n_others > 0)
    return np.divide(n_ahead, n_others, out=np.full(len(own), np.nan), where=is_defined)


def _checked(values: np.ndarray, better: str, of: str, ties: str) -> np.ndarray:
    for name, value, known in (
        ("better", better, ("lower", "higher")),
        ("of", of, ("predictions", "observations")),
        ("ties", ties, ("mid", "le")),
    ):
        if value not in known:
            raise ValueError(f"`{name}` is {value!r}; it must be one of {', '.join(known)}.")
    values = np.asarray(values)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or values.dtype.kind not in "fiub":
        raise ValueError(
            "`values` must be a square matrix of numbers, with a row and a column for each perturbation; "
            f"it has shape {values.shape} and dtype {values.dtype}."
        )
    return np.asarray(values, dtype=np.float64)


def _tolerance(errors: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Difference from the own value up to which another one is equal; the usual size carries values near zero."""
    sizes = np.abs(errors[np.isfinite(errors)])
    usual = np.median(sizes) if sizes.size else 0.0
    return TIE_TOLERANCE * np.maximum(np.where(np.isfinite(own), np.abs(own), 0.0), usual)
