"""Draw the parameters of a simulated screen."""

from __future__ import annotations

from itertools import combinations as all_pairs
from typing import TYPE_CHECKING

import numpy as np

from ._truth import Truth

if TYPE_CHECKING:
    from collections.abc import Sequence

# Mean count of the gene at a given expression rank among blood cells under interferon (2,800 cells of Kang et al. 2018,
# Nat. Biotechnol. 36:89; 14,053 genes). Between the knots the log mean is linear in the log rank.
_RANK = [1, 2, 5, 10, 20, 50, 100, 200, 300, 500, 1000, 2000, 3000, 5000, 7000, 10000, 12000]
_MEAN = [163, 103, 52, 12.9, 10.3, 5.36, 3.25, 1.42, 0.776, 0.473, 0.231, 0.103, 0.0593, 0.0254, 0.0125, 0.0032, 0.0011]

PAIR_KINDS = ("additive", "synergistic", "masking")
N_STATES = 4
N_SHARED_PROGRAMMES = 4
MARKER_SHARE = 0.54
OWN_SHARE = 0.1
CONTEXT_SPREAD = 0.33
"""Median over genes of the spread of log expression between contexts that no programme explains."""


def draw_parameters(
    n_vars: int,
    n_contexts: int,
    n_perturbations: int,
    doses: Sequence[float],
    combinations: int,
    features: int,
    feature_density: float,
    covariates: int,
    seed: int,
    rng: np.random.Generator,
) -> Truth:
    """Draw everything but the cells; the last names of `perturbations` beyond `n_perturbations` are never observed."""
    # unseen perturbations can be predicted only where features explain the effects
    n_unseen = max(2, n_perturbations // 4) if features else 0
    n_named = n_perturbations + n_unseen
    # every second gene, without the top ones: two genes would make up a fifth of a panel's counts
    rank = 4.0 + 2 * rng.permutation(n_vars)
    mean = np.exp(np.interp(np.log(rank), np.log(_RANK), np.log(_MEAN)))
    shift = _context_shift(mean, n_contexts, rng)
    # the most abundant genes carry the library size of all others; effects on them would be read as effects on all
    movable = np.flatnonzero(rank > 4 + 0.1 * n_vars)
    regulators = rng.choice(movable, size=max(2, n_vars // 10), replace=False)
    targets = _draw_targets(features or n_named, n_vars, movable, regulators, rng)
    edges = _draw_network(n_vars, movable, regulators, rng)
    pairs = _draw_pairs(n_perturbations, combinations, rng)
    kinds = np.array([PAIR_KINDS[i % len(PAIR_KINDS)] for i in range(combinations)], dtype=str)
    return Truth(
        seed=seed,
        target_sum=float("nan"),
        var_names=_names("gene_", n_vars),
        contexts=_names("context_", n_contexts),
        perturbations=_names("P", n_named),
        doses=np.asarray(doses, dtype=float),
        covariates=_names("covariate_", covariates),
        log_rate=np.log(mean) + shift,
        dispersion=_dispersion(mean, rng),
        state_loadings=0.18 * rng.normal(size=(N_STATES, n_vars)) * (rng.random((N_STATES, n_vars)) < 0.3),
        covariate_effects=0.15 * rng.normal(size=(covariates, n_vars)),
        activity=1.5 / (1 + 0.5 * np.exp(-shift)),
        strength=np.exp(0.2 * rng.normal(size=(n_contexts, n_named))),
        features=_draw_features(n_named, features, feature_density, rng),
        target_programme=targets[0],
        target_gene=targets[1],
        target_weight=targets[2],
        edge_source=edges[0],
        edge_target=edges[1],
        edge_weight=edges[2],
        half_dose=_draw_half_doses(doses, n_named, rng),
        hill=rng.uniform(1, 2.5, size=n_named),
        pairs=pairs,
        pair_kind=kinds,
        pair_weight=_pair_weights(kinds, rng),
    )


def _names(prefix: str, n: int) -> np.ndarray:
    width = len(str(n))
    return np.array([f"{prefix}{i:0{width}d}" for i in range(1, n + 1)], dtype=str)


def _context_shift(mean: np.ndarray, n_contexts: int, rng: np.random.Generator) -> np.ndarray:
    """Log expression of each context relative to the mean of all, `(n_contexts, n_vars)`.

    A gene programme is on in one context (own) or in half of them (shared). A marker gene belongs to one programme;
    genes of one or a few counts per cell are markers most often. All genes scatter a little besides.
    """
    if n_contexts == 1:
        return np.zeros((1, len(mean)))
    own = np.eye(n_contexts)
    shared = np.array([rng.permutation(n_contexts) < n_contexts // 2 for _ in range(N_SHARED_PROGRAMMES)])
    is_own = rng.random(len(mean)) < OWN_SHARE
    member = np.where(
        is_own, rng.integers(n_contexts, size=len(mean)), n_contexts + rng.integers(len(shared), size=len(mean))
    )
    share = MARKER_SHARE * np.clip(mean, 0.1, 1) * np.clip(mean, 1, None) ** -0.1
    is_marker = _spread_over_ranks(mean, rng) < share
    shift = np.vstack([own, shared])[member].T * is_marker * rng.gamma(6, 0.55, size=len(mean))
    spread = CONTEXT_SPREAD * np.exp(0.6 * rng.normal(size=len(mean)))
    shift += spread * rng.normal(size=shift.shape)
    shift -= np.log(np.exp(shift).mean(axis=0))
    # larger cells carry more of everything
    return shift + 0.2 * rng.normal(size=(n_contexts, 1))


def _spread_over_ranks(mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Uniform numbers, even along the ranks of expression: steps of the golden ratio, which fill (0, 1) evenly."""
    rank = np.argsort(np.argsort(-mean))
    return (rng.random() + rank * (np.sqrt(5) - 1) / 2) % 1


def _dispersion(mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Falls with the mean, with scatter between genes, as within one cell type of the reference."""
    return np.clip(0.29 * mean**-0.63 * np.exp(0.5 * rng.normal(size=len(mean))), 0.02, 5)


def _draw_features(n_named: int, features: int, density: float, rng: np.random.Generator) -> np.ndarray:
    """Vectors of the same length; with a density below 1 some values are 0, never all, and the others are not small."""
    values = rng.normal(size=(n_named, features))
    if features and density < 1:
        kept = rng.random(values.shape) < density
        kept[np.arange(n_named), rng.integers(features, size=n_named)] = True
        values = np.sign(values) * rng.uniform(0.5, 1.5, size=values.shape) * kept
    return 1.5 * values / np.linalg.norm(values, axis=1, keepdims=True) if features else values


def _draw_targets(
    n_programmes: int, n_vars: int, movable: np.ndarray, regulators: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Direct targets of each programme, half of them regulators: (programme, gene, weight)."""
    n_targets = max(4, n_vars // 40)
    genes = []
    for _ in range(n_programmes):
        passing = rng.choice(regulators, size=min(n_targets // 2, len(regulators)), replace=False)
        others = np.setdiff1d(movable, passing)
        genes.append(np.append(passing, rng.choice(others, size=n_targets - len(passing), replace=False)))
    gene = np.concatenate(genes)
    sign = np.where(rng.random(len(gene)) < 0.7, 1.0, -1.0)
    return np.repeat(np.arange(n_programmes), n_targets), gene, sign * rng.uniform(0.6, 1.8, size=len(gene))


def _draw_network(
    n_vars: int, movable: np.ndarray, regulators: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges from each regulator to a few genes: (source, target, weight)."""
    n_out = max(2, n_vars // 33)
    target = np.concatenate([rng.choice(movable[movable != r], size=n_out, replace=False) for r in regulators])
    sign = np.where(rng.random(len(target)) < 0.75, 1.0, -1.0)
    return np.repeat(regulators, n_out), target, sign * rng.uniform(0.15, 0.5, size=len(target))


def _draw_half_doses(doses: Sequence[float], n_named: int, rng: np.random.Generator) -> np.ndarray:
    """Half-maximal doses, log-uniform in the middle half of the range of doses."""
    if not len(doses):
        return np.ones(n_named)
    low, high = np.log(min(doses)), np.log(max(doses))
    return np.exp(low + (high - low) * rng.uniform(0.25, 0.75, size=n_named))


def _draw_pairs(n_perturbations: int, combinations: int, rng: np.random.Generator) -> np.ndarray:
    pairs = np.array(list(all_pairs(range(n_perturbations), 2)), dtype=np.int64).reshape(-1, 2)
    return rng.permutation(pairs)[:combinations]


def _pair_weights(kinds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    weights = np.ones((len(kinds), 2))
    weights[kinds == "synergistic"] = 1.5
    masked = rng.integers(2, size=len(kinds))
    masking = np.flatnonzero(kinds == "masking")
    weights[masking, masked[masking]] = 0.1
    return weights
