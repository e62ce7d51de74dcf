"""Shifts of a context from those of other contexts, by closeness of their control means."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

Kind = Literal["similarity", "ridge", "gene_ridge"]

GRIDS: dict[str, np.ndarray] = {
    "similarity": np.geomspace(0.02, 3, 13),
    "ridge": np.geomspace(1e-3, 100, 16),
    "gene_ridge": np.geomspace(1e-3, 100, 16),
}
FALLBACK: dict[str, float] = {"similarity": 0.4, "ridge": 1.0, "gene_ridge": 1.0}
LEAST_CONTEXTS = 3
# differences below the rounding of single precision are none
_RESOLUTION = 1e-6


def context_weights(
    kind: Literal["similarity", "ridge"], strength: float, control: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """Weights of training contexts such that `weights @ delta` are the shifts of target contexts.

    Equal weights where all control means, or the target's and their average, differ by rounding alone. Cost is
    O((C + T)^2 G + C^3) for C training and T target contexts of G genes.

    Parameters
    ----------
    kind
        "similarity": softmax of the correlations of centred control means; "ridge": kernel ridge on them.
    strength
        Temperature of the softmax, or penalty in units of the mean squared norm of the centred control means.
    control
        Control means of the training contexts, shape `(n_contexts, n_vars)`.
    target
        Control means of the target contexts, shape `(n_targets, n_vars)`.

    Returns
    -------
    Shape `(n_targets, n_contexts)`; rows sum to 1, entries of "ridge" may be negative.

    Examples
    --------
    >>> control = np.array([[1.0, 2.0, 4.0], [4.0, 1.0, 2.0], [2.0, 4.0, 1.0]])
    >>> context_weights("similarity", 0.1, control, control[:1]).argmax()
    np.int64(0)
    """
    n_contexts = len(control)
    products = _Products.of(np.concatenate([control, target]), n_contexts)
    known, wanted = np.arange(n_contexts), np.arange(n_contexts, n_contexts + len(target))
    return _weights(kind, np.array([strength]), products, known, wanted)[0]


def gene_ridge_shift(strength: float, control: np.ndarray, target: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """Shifts of target contexts by a ridge of each gene's change on its own control mean.

    Parameters
    ----------
    strength
        Penalty in units of the mean over genes of the summed squares of centred control means.
    control
        Control means of the training contexts, shape `(n_contexts, n_vars)`.
    target
        Control means of the target contexts, shape `(n_targets, n_vars)`.
    delta
        Changes of the training contexts, shape `(n_contexts, n_vars)`.

    Returns
    -------
    Shape `(n_targets, n_vars)`; the mean change where all control means are equal.

    Examples
    --------
    >>> control = np.array([[1.0], [2.0], [3.0]])
    >>> gene_ridge_shift(1e-12, control, np.array([[4.0]]), 2 * control).round(6)
    array([[8.]])
    """
    return _gene_ridge(np.array([strength]), control, target, delta)[0]


def context_shift(
    kind: Kind, strength: float, control: np.ndarray, target: np.ndarray, delta: np.ndarray
) -> np.ndarray:
    """Shifts of target contexts, by any of the kinds.

    Parameters
    ----------
    kind
        "similarity", "ridge" or "gene_ridge".
    strength
        Temperature or penalty; see :func:`context_weights` and :func:`gene_ridge_shift`.
    control
        Control means of the training contexts, shape `(n_contexts, n_vars)`.
    target
        Control means of the target contexts, shape `(n_targets, n_vars)`.
    delta
        Changes of the training contexts, shape `(n_contexts, n_vars)`.

    Returns
    -------
    Shape `(n_targets, n_vars)`.

    Examples
    --------
    >>> control, delta = np.eye(3), np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> context_shift("similarity", 0.01, control, control[:1], delta).round(3)
    array([[1., 0.]])
    """
    if kind == "gene_ridge":
        return gene_ridge_shift(strength, control, target, delta)
    return context_weights(kind, strength, control, target) @ delta


def choose_strength(kind: Kind, problems: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """The strength with the least squared error when each context in turn is predicted from the others.

    Weights of "similarity" and "ridge" depend on the control means alone, so perturbations with the same contexts share
    them, and their errors follow from the products of the changes: O(C^2 G) for a perturbation with C contexts and G
    genes, and once for every distinct set of contexts O(C^2 G + C^4) and C^2 per strength. "gene_ridge" takes
    O(C^2 G) and C G per strength for every perturbation.

    Parameters
    ----------
    kind
        "similarity", "ridge" or "gene_ridge".
    problems
        For each perturbation the control means and the changes of its contexts, both of shape `(n_contexts, n_vars)`;
        those with fewer than three contexts are passed over.

    Returns
    -------
    A value of `GRIDS[kind]`; `FALLBACK[kind]` where no perturbation has three contexts.

    Examples
    --------
    >>> control = np.array([[1.0], [2.0], [3.0], [4.0]])
    >>> choose_strength("gene_ridge", [(control, 2 * control)])
    0.001
    >>> choose_strength("ridge", [(control[:2], control[:2])])
    1.0
    """
    usable = (problem for problem in problems if len(problem[0]) >= LEAST_CONTEXTS)
    errors = _gene_ridge_errors(usable) if kind == "gene_ridge" else _weighted_errors(kind, usable)
    return FALLBACK[kind] if errors is None else float(GRIDS[kind][errors.argmin()])


class _Products(NamedTuple):
    """Inner products of control means around a common centre.

    All that the weights need of `n_vars`-long rows; the centre of any subset of them follows.
    """

    centred: np.ndarray
    """Products of the rows, shape `(n, n)`."""
    across_genes: np.ndarray
    """The same after each row's own mean over genes is subtracted."""
    square: np.ndarray
    """Squared norms of the rows as given, shape `(n,)`."""

    @classmethod
    def of(cls, values: np.ndarray, n_centre: int) -> _Products:
        """Products around the mean of the first `n_centre` rows."""
        values = np.asarray(values, dtype=np.float64)
        rows = values - values[:n_centre].mean(axis=0)
        flat = rows - rows.mean(axis=1, keepdims=True)
        return cls(rows @ rows.T, flat @ flat.T, np.einsum("ij,ij->i", values, values))


def _recentred(products: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Products of rows after the mean of the known rows is subtracted."""
    of_mean = products[:, known].mean(axis=1)
    return products - of_mean[:, None] - of_mean + of_mean[known].mean()


def _weights(
    kind: Literal["similarity", "ridge"],
    strengths: np.ndarray,
    products: _Products,
    known: np.ndarray,
    wanted: np.ndarray,
) -> np.ndarray:
    """Weights of the known rows for the wanted ones, shape `(n_strengths, n_wanted, n_known)`."""
    centred = _recentred(products.centred, known)
    square = centred.diagonal()
    differs = square > _RESOLUTION**2 * products.square
    if kind == "ridge":
        centred = np.where(differs[:, None] & differs, centred, 0.0)
        return _ridge(strengths, centred[np.ix_(known, known)], centred[np.ix_(wanted, known)])
    flat = _recentred(products.across_genes, known)
    power = flat.diagonal()
    # a row that is constant over genes correlates with none
    inverse = np.zeros(len(power))
    np.divide(1, np.sqrt(np.maximum(power, 0)), out=inverse, where=differs & (power > _RESOLUTION**2 * square))
    correlation = flat[np.ix_(wanted, known)] * inverse[wanted, None] * inverse[known]
    scores = correlation / strengths[:, None, None]
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    return weights / weights.sum(axis=2, keepdims=True)


def _ridge(strengths: np.ndarray, gram: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Kernel ridge around the mean as weights, shape `(n_strengths, n_wanted, n_known)`."""
    values, vectors = np.linalg.eigh(gram)
    # directions without variance carry nothing, whatever the penalty
    real = values > len(gram) * np.finfo(np.float64).eps * values.max(initial=0.0)
    shrunk = np.zeros((len(strengths), len(values)))
    np.divide(
        1, values + strengths[:, None] * gram.diagonal().mean(), out=shrunk, where=np.broadcast_to(real, shrunk.shape)
    )
    slopes = (cross @ vectors * shrunk[:, None]) @ vectors.T
    return slopes + (1 - slopes.sum(axis=2, keepdims=True)) / len(gram)


def _left_out_weights(kind: Literal["similarity", "ridge"], control: np.ndarray) -> np.ndarray:
    """Weights of the other contexts for each one, minus its own truth; shape `(n_strengths, n_contexts, n_contexts)`."""
    n_contexts = len(control)
    products = _Products.of(control, n_contexts)
    residual = np.broadcast_to(-np.eye(n_contexts), (len(GRIDS[kind]), n_contexts, n_contexts)).copy()
    for out in range(n_contexts):
        rest = np.delete(np.arange(n_contexts), out)
        residual[:, out, rest] = _weights(kind, GRIDS[kind], products, rest, np.array([out]))[:, 0]
    return residual


def _weighted_errors(
    kind: Literal["similarity", "ridge"], problems: Iterable[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray | None:
    """Summed squared errors of each strength, shape `(n_strengths,)`; None without any problem."""
    residuals: dict[bytes, np.ndarray] = {}
    products: dict[bytes, np.ndarray] = {}
    for control, delta in problems:
        control = np.ascontiguousarray(control, dtype=np.float64)
        key = hashlib.blake2b(control.data, digest_size=16).digest() + len(control).to_bytes(8, "little")
        if key not in residuals:
            residuals[key] = _left_out_weights(kind, control)
            products[key] = np.zeros((len(control), len(control)))
        # the weights of a context sum to 1, so a change that all contexts share leaves no error
        rows = delta - np.mean(delta, axis=0, dtype=np.float64)
        products[key] += rows @ rows.T / control.shape[1]
    if not residuals:
        return None
    return np.sum([np.einsum("sij,sij->s", m @ products[key], m) for key, m in residuals.items()], axis=0)


def _differences(values: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Rows minus their centre; exactly 0 for a row that differs from it by rounding alone."""
    difference = values - centre
    real = np.linalg.norm(difference, axis=1) > _RESOLUTION * np.linalg.norm(values, axis=1)
    return np.where(real[:, None], difference, 0.0)


def _gene_ridge(strengths: np.ndarray, control: np.ndarray, target: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """Shape `(n_strengths, n_targets, n_vars)`."""
    control, target, delta = (np.asarray(x, dtype=np.float64) for x in (control, target, delta))
    centre, average = control.mean(axis=0), delta.mean(axis=0)
    rows, wanted = _differences(control, centre), _differences(target, centre)
    power = np.einsum("ij,ij->j", rows, rows)
    penalised = power + strengths[:, None] * power.mean()
    slope = np.zeros(penalised.shape)
    np.divide(np.einsum("ij,ij->j", rows, delta - average), penalised, out=slope, where=penalised > 0)
    return average + slope[:, None] * wanted


def _gene_ridge_errors(problems: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray | None:
    """Summed squared errors of each strength, shape `(n_strengths,)`; None without any problem."""
    errors, used = np.zeros(len(GRIDS["gene_ridge"])), False
    for control, delta in problems:
        used = True
        for out in range(len(control)):
            rest = np.delete(np.arange(len(control)), out)
            shift = _gene_ridge(GRIDS["gene_ridge"], control[rest], control[[out]], delta[rest])[:, 0]
            errors += np.square(shift - delta[out]).mean(axis=1)
    return errors if used else None
