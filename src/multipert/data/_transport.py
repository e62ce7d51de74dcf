"""Optimal transport between two sets of points, exact or in blocks."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Partner = Literal["best", "sample"]

# Peak of the network simplex per distance, rounded up: distances, plan and its own arcs.
_BYTES_PER_ENTRY = 64
# Points a side of a block, and passes over regrouped pairs: more of either costs more time for a smaller cost.
_BLOCK = 256
_PASSES = 4
_DIRECTIONS = 16
_NEVER = 10**9

# Points of the side kept whole, points of the other side, and the mass of each: what these have in the block, or, in a
# plan, what a pair moves.
_Triples = tuple[np.ndarray, np.ndarray, np.ndarray]


class Match(NamedTuple):
    """What :func:`match` returns.

    Parameters
    ----------
    partner
        Position among the perturbed points of each control point's partner, shape `(n,)`.
    cost
        Mean distance that the plan moves the control points' mass.
    method
        `"exact"` or `"minibatch-exact"`.
    """

    partner: np.ndarray
    cost: float
    method: str


def match(
    control: np.ndarray,
    perturbed: np.ndarray,
    *,
    exact_up_to: int = 2000,
    partner: Partner = "best",
    max_bytes: int = 2**30,
    seed: int = 0,
) -> Match:
    """Pair each control point with a perturbed point by optimal transport.

    The plan moves uniform mass on the control points to uniform mass on the perturbed points at the least mean Euclidean
    distance. Up to `exact_up_to` times `exact_up_to` distances it is solved exactly. Above, both sides are halved
    together at their own quantiles, along the coordinate of largest variance, down to blocks of equal mass and about 256
    points a side; each is solved exactly. Four passes then regroup the pairs along random directions and solve each
    group exactly, which never raises the cost. Every point is in a block; one that lies at a quantile has parts of its mass
    in several.

    Time is about `k**2` to `k**3` for `k` points a side when exact, and `(n + m) * (d + 256)` times a constant and the
    logarithm of the number of blocks above. Memory is at most `max_bytes` for distances and plan of one block, beside
    some copies of the points; never `n * m`.

    Parameters
    ----------
    control
        Control points, shape `(n, d)`.
    perturbed
        Perturbed points, shape `(m, d)`.
    exact_up_to
        Points a side up to which the plan is exact: `n * m` at most its square.
    partner
        `"best"`: the perturbed point that receives most of the control point's mass, the first among equals; several
        control points may share it. `"sample"`: drawn in proportion to the mass.
    max_bytes
        Bytes that the distances and the plan of one problem may take.
    seed
        Seed of the random directions and of `"sample"`.

    Returns
    -------
    Partners, cost and method.

    Raises
    ------
    ValueError
        If a side is empty, the sides differ in dimensions, a value is not finite, or an argument is out of its range.

    Examples
    --------
    >>> match(np.array([[0.0], [10.0]]), np.array([[11.0], [1.0]]))
    Match(partner=array([1, 0]), cost=1.0, method='exact')
    """
    control, perturbed = np.asarray(control, dtype=np.float64), np.asarray(perturbed, dtype=np.float64)
    _check(control, perturbed, exact_up_to, partner, max_bytes)
    n, m = len(control), len(perturbed)
    # whole numbers keep the mass of split points exact: each control point has m / g units, each perturbed n / g
    units, part = m // gcd(n, m), n // gcd(n, m)
    affordable = max_bytes // _BYTES_PER_ENTRY
    if n * m <= min(exact_up_to**2, affordable):
        method = "exact"
        plan = _as_matrix(_solve(control, perturbed, units, np.full(m, part)), (n, m))
    else:
        method = "minibatch-exact"
        entries = min(exact_up_to**2, _BLOCK**2, affordable)
        # the side of fewer points stays whole, so that the plan has few more entries than there are points
        if n <= m:
            plan = _in_blocks(control, perturbed, units, part, entries, seed)
        else:
            plan = _in_blocks(perturbed, control, part, units, entries, seed).T.tocsr()
    rows = np.repeat(np.arange(n), np.diff(plan.indptr))
    distance = np.sqrt(((control[rows] - perturbed[plan.indices]) ** 2).sum(axis=1))
    cost = float(distance @ plan.data / (n * units))
    return Match(_best(plan) if partner == "best" else _sampled(plan, units, seed), cost, method)


def _check(control: np.ndarray, perturbed: np.ndarray, exact_up_to: int, partner: str, max_bytes: int) -> None:
    for name, points in (("control", control), ("perturbed", perturbed)):
        if points.ndim != 2 or len(points) == 0:
            raise ValueError(f"{name} has shape {points.shape}; give at least one point, as a row.")
        bad = ~np.isfinite(points).all(axis=1)
        if bad.any():
            raise ValueError(
                f"{name} has NaN or infinite values in {int(bad.sum())} point(s), first in row {int(bad.argmax())}; "
                "replace them or drop these points."
            )
    if control.shape[1] != perturbed.shape[1]:
        raise ValueError(
            f"control has {control.shape[1]} dimension(s) and perturbed {perturbed.shape[1]}; give both in one space."
        )
    check_options(exact_up_to, partner, max_bytes)


def check_options(exact_up_to: int, partner: str, max_bytes: int) -> None:
    """Refuse options of :func:`match` that are out of their range.

    Parameters
    ----------
    exact_up_to
        Points a side up to which the plan is exact.
    partner
        `"best"` or `"sample"`.
    max_bytes
        Bytes that the distances and the plan of one problem may take.

    Raises
    ------
    ValueError
        Naming the argument.
    """
    if exact_up_to < 1:
        raise ValueError(f"exact_up_to={exact_up_to} must be at least 1.")
    if partner not in ("best", "sample"):
        raise ValueError(f"partner={partner!r} must be 'best' or 'sample'.")
    if max_bytes < _BYTES_PER_ENTRY:
        raise ValueError(f"max_bytes={max_bytes} must be at least {_BYTES_PER_ENTRY}.")


def _solve(whole: np.ndarray, other: np.ndarray, units: int, mass: np.ndarray) -> _Triples:
    """The optimal plan from points of `units` each to points of the given masses."""
    if len(whole) == 1 or len(other) == 1:
        first = np.repeat(np.arange(len(whole)), len(other))
        second = np.tile(np.arange(len(other)), len(whole))
        return first, second, mass if len(whole) == 1 else np.full(len(whole), units)
    distance = cdist(whole, other)
    if len(whole) == len(other) and (mass == units).all():
        # subtracting a number from a row or a column changes no solution; the zeros shorten the solver's search
        distance -= distance.min(axis=0)
        distance -= distance.min(axis=1, keepdims=True)
        return *linear_sum_assignment(distance), mass
    from ot import emd

    # the solver takes differences below about 1e-12 for none
    distance /= distance.max() or 1.0
    plan = emd(np.full(len(whole), float(units)), mass.astype(np.float64), distance, numItermax=_NEVER)
    first, second = np.nonzero(plan > 0.5)
    return first, second, np.rint(plan[first, second]).astype(np.int64)


def _in_blocks(
    whole: np.ndarray, other: np.ndarray, units: int, part: int, entries: int, seed: int
) -> sparse.csr_array:
    """A plan solved exactly within blocks of at most `entries` distances, improved by passes over other blocks."""
    plan = _solved(whole, other, units, _blocks(whole, other, units, part, entries))
    rng = np.random.default_rng(seed)
    for _ in range(_PASSES):
        # a pair is where its points meet; pairs that meet far apart have nothing to exchange
        meeting = whole + (plan @ other) / units
        directions = rng.normal(size=(whole.shape[1], min(_DIRECTIONS, whole.shape[1])))
        plan = _solved(whole, other, units, _regrouped(plan, meeting @ directions, entries))
    return plan


def _solved(whole: np.ndarray, other: np.ndarray, units: int, blocks: Iterator[_Triples]) -> sparse.csr_array:
    """The plan that is optimal within each block."""
    plans = []
    for rows, columns, mass in blocks:
        first, second, moved = _solve(whole[rows], other[columns], units, mass)
        plans.append((rows[first], columns[second], moved))
    return _as_matrix([np.concatenate(parts) for parts in zip(*plans, strict=True)], (len(whole), len(other)))


def _as_matrix(plan: Sequence[np.ndarray], shape: tuple[int, int]) -> sparse.csr_array:
    first, second, mass = plan
    matrix = sparse.coo_array((mass, (first, second)), shape=shape).tocsr()
    matrix.sum_duplicates()
    return matrix


def _blocks(whole: np.ndarray, other: np.ndarray, units: int, part: int, entries: int) -> Iterator[_Triples]:
    """Halve both sides at equal mass until the distances of a block are few enough."""
    todo: list[_Triples] = [(np.arange(len(whole)), np.arange(len(other)), np.full(len(other), part))]
    while todo:
        rows, columns, mass = todo.pop()
        if len(rows) == 1 or len(rows) * len(columns) <= entries:
            yield rows, columns, mass
            continue
        axis = (whole[rows].var(axis=0) + other[columns].var(axis=0)).argmax()
        rows = rows[np.argsort(whole[rows, axis], kind="stable")]
        order = np.argsort(other[columns, axis], kind="stable")
        columns, mass = columns[order], mass[order]
        half = len(rows) // 2
        below = np.clip(half * units - (np.cumsum(mass) - mass), 0, mass)
        for some, share in ((rows[:half], below), (rows[half:], mass - below)):
            todo.append((some, columns[share > 0], share[share > 0]))


def _regrouped(plan: sparse.csr_array, places: np.ndarray, entries: int) -> Iterator[_Triples]:
    """Blocks of points of the whole side whose pairs are near each other, each with the points that it is paired with."""
    n_partners = np.diff(plan.indptr)
    todo = [np.arange(plan.shape[0])]
    while todo:
        rows = todo.pop()
        if len(rows) == 1 or len(rows) * n_partners[rows].sum() <= entries:
            pairs = plan[rows]
            columns, position = np.unique(pairs.indices, return_inverse=True)
            mass = np.zeros(len(columns), dtype=np.int64)
            np.add.at(mass, position, pairs.data)
            yield rows, columns, mass
            continue
        axis = places[rows].var(axis=0).argmax()
        rows = rows[np.argsort(places[rows, axis], kind="stable")]
        todo += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]


def _best(plan: sparse.csr_array) -> np.ndarray:
    """Column of the largest entry of each row, the first among equals."""
    rows = np.repeat(np.arange(plan.shape[0]), np.diff(plan.indptr))
    order = np.lexsort((plan.indices, -plan.data, rows))
    return plan.indices[order[plan.indptr[:-1]]].astype(np.int64)


def _sampled(plan: sparse.csr_array, units: int, seed: int) -> np.ndarray:
    """A column of each row, drawn in proportion to its entries."""
    n = plan.shape[0]
    drawn = np.arange(n) * units + np.random.default_rng(seed).integers(units, size=n)
    return plan.indices[np.searchsorted(np.cumsum(plan.data), drawn, side="right")].astype(np.int64)
