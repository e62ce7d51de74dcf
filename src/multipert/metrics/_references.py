"""The predictors that stand beside every prediction, made from training cells without a network."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from multipert.data._conditions import parse_condition
from multipert.data._shifts import choose_strength, context_weights

from ._cells import Cells
from ._comparison import Comparison, Truth

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from ._groups import GroupedCells, Key

N_HALVINGS = 10
N_NEIGHBOURS = 5
BASELINES = ("no_change", "mean_shift", "context_mean")
"""The references of which the best is the zero of the calibrated scale."""


class References:
    """Predictions from the means of training cells.

    Parameters
    ----------
    training
        Training cells by (perturbation, *context).
    control_label
        Label of control.
    delimiter
        What separates the parts of a combination.
    clip
        Whether predictions below 0 are set to 0.
    embedding
        Vector of each perturbation, for `nearest` and `knn`.
    seed
        Of the cells that `knn` draws.
    """

    def __init__(
        self,
        training: GroupedCells,
        *,
        control_label: str,
        delimiter: str | None,
        clip: bool,
        embedding: pd.DataFrame | None = None,
        seed: int = 0,
    ) -> None:
        self.training, self.control_label, self.delimiter = training, control_label, delimiter
        self.clip, self.embedding, self.seed = clip, embedding, seed
        self.contexts: dict[str, list[Key]] = {}
        for perturbation, *context in training.rows:
            self.contexts.setdefault(perturbation, []).append(tuple(context))
        self.with_control = self.contexts.pop(control_label, [])
        # keys come sorted by perturbation, so that few perturbations are needed at a time
        self.deltas = lru_cache(maxsize=64)(self._deltas)
        self.context_sum = lru_cache(maxsize=None)(self._context_sum)
        self.strength = lru_cache(maxsize=None)(self._strength)

    def predict(self, name: str, key: Key, control: Cells, moved: Cells | None = None) -> Cells | None:
        """Cells of one reference for one group.

        Parameters
        ----------
        name
            One of those that need training cells.
        key
            Perturbation and context of the group.
        control
            Control cells of the group.
        moved
            Those of them that are moved; None moves all.

        Returns
        -------
        As many cells as are moved; None if the training cells do not suffice.
        """
        moved = control if moved is None else moved
        if name == "knn":
            return self._knn(key, len(moved))
        shift = getattr(self, f"_{name}")(key, control)
        if shift is None:
            return None
        # what the moved cells differ from all control cells by chance must not count against the reference
        cells = moved.dense() + (shift + control.mean - moved.mean)
        return Cells(np.maximum(cells, 0.0, out=cells) if self.clip else cells)

    def perturbed_centroid(self, key: Key) -> np.ndarray | None:
        """Mean over the other training perturbations of the context of their mean vectors; None if there is none."""
        n, total = self.context_sum(key[1:])
        if key in self.training.rows:
            n, total = n - 1, total - self.training[key].mean
        return total / n if n else None

    @cached_property
    def control_means(self) -> dict[Key, np.ndarray]:
        """Control mean of every training context that has control cells."""
        return {context: self.training[(self.control_label, *context)].mean for context in self.with_control}

    def _deltas(self, perturbation: str) -> dict[Key, np.ndarray]:
        """Perturbed mean - control mean in every training context that has both."""
        return {
            context: self.training[(perturbation, *context)].mean - self.control_means[context]
            for context in self.contexts.get(perturbation, [])
            if context in self.control_means
        }

    def _other_deltas(self, key: Key) -> dict[Key, np.ndarray]:
        return {context: delta for context, delta in self.deltas(key[0]).items() if context != key[1:]}

    def _context_sum(self, context: Key) -> tuple[int, np.ndarray]:
        """Number of training perturbations of a context, and the sum of their mean vectors."""
        n, total = 0, np.zeros(self.training.cells.n_vars)
        for perturbation, contexts in self.contexts.items():
            if context in contexts:
                n += 1
                total += self.training[(perturbation, *context)].mean
        return n, total

    def _problems(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for perturbation in self.contexts:
            deltas = self._deltas(perturbation)
            if deltas:
                yield np.stack([self.control_means[context] for context in deltas]), np.stack(list(deltas.values()))

    def _strength(self, kind: str) -> float:
        return choose_strength(kind, self._problems())  # type: ignore[arg-type]

    def _mean_shift(self, key: Key, control: Cells) -> np.ndarray | None:
        deltas = self._other_deltas(key)
        return np.mean(list(deltas.values()), axis=0) if deltas else None

    def _weighted_shift(self, kind: str, key: Key, control: Cells) -> np.ndarray | None:
        deltas = self._other_deltas(key)
        if not deltas:
            return None
        known = np.stack([self.control_means[context] for context in deltas])
        weights = context_weights(kind, self.strength(kind), known, control.mean[None])  # type: ignore[arg-type]
        return weights[0] @ np.stack(list(deltas.values()))

    def _similarity_shift(self, key: Key, control: Cells) -> np.ndarray | None:
        return self._weighted_shift("similarity", key, control)

    def _ridge_shift(self, key: Key, control: Cells) -> np.ndarray | None:
        return self._weighted_shift("ridge", key, control)

    def _context_mean(self, key: Key, control: Cells) -> np.ndarray | None:
        centroid = self.perturbed_centroid(key)
        if centroid is None or key[1:] not in self.control_means:
            return None
        return centroid - self.control_means[key[1:]]

    def _additive(self, key: Key, control: Cells) -> np.ndarray | None:
        parts = parse_condition(key[0], control=self.control_label, delimiter=self.delimiter)
        if len(parts) < 2:
            return None
        shifts = [shift for name, _ in parts if (shift := self._known_shift(name, key[1:])) is not None]
        return np.sum(shifts, axis=0) if len(shifts) == len(parts) else None

    def _known_shift(self, perturbation: str, context: Key) -> np.ndarray | None:
        """Delta of a training perturbation in the context if it was measured there, else its mean over contexts."""
        deltas = self.deltas(perturbation)
        if context in deltas:
            return deltas[context]
        return np.mean(list(deltas.values()), axis=0) if deltas else None

    def _neighbours(self, key: Key, n: int) -> tuple[list[str], np.ndarray]:
        """Training perturbations nearest in the embedding, and their distances; the own label needs other contexts."""
        if self.embedding is None:
            return [], np.zeros(0)
        vectors = {label: self._vector(label) for label in self.contexts if label != key[0] or self._other_deltas(key)}
        known = {label: vector for label, vector in vectors.items() if vector is not None}
        own = self._vector(key[0])
        if own is None or not known:
            return [], np.zeros(0)
        labels = sorted(known)
        distances = np.linalg.norm(np.stack([known[label] for label in labels]) - own, axis=1)
        order = np.argsort(distances, kind="stable")[:n]
        return [labels[i] for i in order], distances[order]

    def _vector(self, label: str) -> np.ndarray | None:
        """Sum of the embeddings of the parts of a label; None if one is missing."""
        assert self.embedding is not None
        parts = parse_condition(label, control=self.control_label, delimiter=self.delimiter)
        names = [name for name, _ in parts]
        if not names or not all(name in self.embedding.index for name in names):
            return None
        return self.embedding.loc[names].to_numpy(dtype=float).sum(axis=0)

    def _nearest(self, key: Key, control: Cells) -> np.ndarray | None:
        labels, _ = self._neighbours(key, 1)
        if labels == [key[0]]:
            return self._mean_shift(key, control)
        return self._known_shift(labels[0], key[1:]) if labels else None

    def _knn(self, key: Key, n_cells: int) -> Cells | None:
        labels, distances = self._neighbours(key, N_NEIGHBOURS)
        if not labels:
            return None
        weights = np.exp(distances.min() - distances)
        rng = np.random.default_rng([self.seed, *"\0".join(key).encode()])
        counts = rng.multinomial(n_cells, weights / weights.sum())
        rows = []
        for label, count in zip(labels, counts, strict=True):
            contexts = [context for context in self.contexts[label] if (label, *context) != key]
            here = [key[1:]] if key[1:] in contexts else contexts
            rows.append(rng.choice(np.concatenate([self.training.rows[(label, *context)] for context in here]), count))
        return self.training.cells[np.concatenate(rows)]


REFERENCES: dict[str, str] = {
    "no_change": "the control cells of the context",
    "control_mean": "the mean of these control cells, repeated",
    "mean_shift": "control cells + mean change of the perturbation over the other training contexts",
    "similarity_shift": "the same, contexts weighted by the similarity of their control means",
    "ridge_shift": "control cells + change by kernel ridge over the training contexts' control means",
    "context_mean": "control cells + mean change over the training perturbations of the context",
    "additive": "control cells + sum of the changes of the parts of a combination",
    "nearest": "control cells + change of the training perturbation nearest in the embedding",
    "knn": "training cells of the five perturbations nearest in the embedding",
    "ceiling": "one random half of the observed cells predicts the other",
}
"""What stands beside a prediction, by name."""

DEFAULT_REFERENCES = tuple(name for name in REFERENCES if name != "control_mean")


def ceiling(truth: Truth) -> list[Comparison]:
    """Comparisons of random halves of the observed cells, one predicting the other; empty for a single cell."""
    n_observed = len(truth.observed)
    if n_observed < 2:
        return []
    comparisons = []
    for repeat in range(N_HALVINGS):
        order = np.random.default_rng([truth.seed, repeat]).permutation(n_observed)
        half, other = np.sort(order[: n_observed // 2]), np.sort(order[n_observed // 2 :])
        half_truth = truth.half(truth.observed[other])
        comparisons.append(Comparison(truth.observed[half], half_truth))
    return comparisons
