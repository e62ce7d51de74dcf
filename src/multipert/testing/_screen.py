"""The screen that the checks run on: small, fixed, and no richer than a model's tags allow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from multipert import _keys

if TYPE_CHECKING:
    from multipert.model import ModelTags

CONTEXTS = ("c1", "c2", "c3")
HELD_OUT_CONTEXT = "c3"
COMBINATION = "B+A"
NEVER_TRAINED = "C"
NEVER_MEASURED = "D"
DOSES = (1.0, 4.0)
_N_CONTROL, _N_PERTURBED, _N_VARS = 24, 14, 36
# coordinates of each perturbation's log fold changes on two axes; also its embedding
_EFFECTS = {"A": (1.0, 0.0), "B": (0.0, 1.0), NEVER_TRAINED: (0.6, 0.6), NEVER_MEASURED: (1.0, -0.5)}


class Screen:
    """A simulated screen with strong planted effects, and the setup arguments that fit a model's tags.

    Three contexts, counts with Poisson noise, the same log fold changes in every context. All perturbed cells of the
    last context, and where there are several perturbations all cells of one of them, are marked as test.

    Parameters
    ----------
    tags
        They decide whether there are several perturbations, combinations, doses, embeddings, and whether `X` holds raw
        counts.
    """

    def __init__(self, tags: ModelTags) -> None:
        if tags.modalities != 1:
            raise NotImplementedError(f"The checks have no screen of {tags.modalities} modalities.")
        self.tags = tags
        self.conditions = _conditions(tags)
        self._adata = _simulate(tags, self.conditions)
        self.setup: dict[str, Any] = {
            "perturbation_key": "label",
            "control": "untreated",
            "context_key": "line",
            "categorical_covariate_keys": ["replicate"],
        }
        if tags.doses:
            self.setup["dose_key"] = "amount"
        if tags.needs_embedding or tags.unseen_perturbations:
            self.setup["perturbation_embedding_key"] = "features"
        if tags.needs_cell_embedding:
            self.setup["cell_embedding_key"] = "X_given"
        self.is_control = (self._adata.obs["label"] == "untreated").to_numpy()
        self.is_test = (self._adata.obs["split"] == "test").to_numpy()
        never = (self._adata.obs["label"] == NEVER_TRAINED).to_numpy()
        self.is_predictable = ~never | tags.unseen_perturbations
        self.contexts = self._adata.obs["line"].astype(str).to_numpy()
        self.control_rows = np.flatnonzero(self.is_control)
        self.x = self._adata.X

    def adata(self) -> AnnData:
        """A copy that no model has touched."""
        return self._adata.copy()

    @property
    def trained(self) -> list[tuple[str, float | None]]:
        """Canonical label and dose of every condition with training cells, control left out."""
        return [("+".join(sorted(x.split("+"))), dose) for x, dose in self.conditions if x != NEVER_TRAINED]

    def delta(self, label: str, dose: float | None) -> np.ndarray:
        """Mean change that was measured in the contexts that train.

        Parameters
        ----------
        label
            Canonical label.
        dose
            Its dose, None in a screen without doses.

        Returns
        -------
        Shape `(n_vars,)`, mean over contexts of perturbed mean minus control mean.
        """
        obs = self._adata.obs
        at = np.array(["+".join(sorted(x.split("+"))) == label for x in obs["label"].astype(str)])
        at &= True if dose is None else obs["amount"].to_numpy() == dose
        changes = []
        for context in CONTEXTS:
            here = self.contexts == context
            if context != HELD_OUT_CONTEXT:
                changes.append(self.x[at & here].mean(axis=0) - self.x[self.is_control & here].mean(axis=0))
        return np.mean(changes, axis=0)


def log_fold_changes(label: str, dose: float | None = None) -> np.ndarray:
    """Planted log fold changes of a label: parts add up, doses follow a Hill curve.

    Parameters
    ----------
    label
        One perturbation or a combination.
    dose
        Dose of each part; None is the full effect.

    Returns
    -------
    Shape `(n_vars,)`.
    """
    axes = np.zeros((2, _N_VARS))
    axes[0, :10] = 1.5 * np.resize([1, 1, -1], 10)
    axes[1, 8:20] = 1.5 * np.resize([1, -1, 1, -1, -1], 12)
    strength = 1.0 if dose is None else dose / (dose + 1)
    return strength * np.sum([np.array(_EFFECTS[part]) @ axes for part in label.split("+")], axis=0)


def _conditions(tags: ModelTags) -> list[tuple[str, float | None]]:
    labels = ["A", "B", NEVER_TRAINED] if tags.several_perturbations else ["A"]
    if tags.combinations and tags.several_perturbations:
        labels.append(COMBINATION)
    return [(label, dose) for label in labels for dose in (DOSES if tags.doses else (None,))]


def _simulate(tags: ModelTags, conditions: list[tuple[str, float | None]]) -> AnnData:
    rng = np.random.default_rng(20)
    cells = [("untreated", 0.0)] * _N_CONTROL + [pair for pair in conditions for _ in range(_N_PERTURBED)]
    labels = [label for label, _ in cells] * len(CONTEXTS)
    doses = [1.0 if dose is None else dose for _, dose in cells] * len(CONTEXTS)
    contexts = np.repeat(CONTEXTS, len(cells))
    base = rng.normal(1.6, 0.7, _N_VARS) + rng.normal(0, 0.6, (len(CONTEXTS), _N_VARS))
    changes = [
        np.zeros(_N_VARS) if label == "untreated" else log_fold_changes(label, dose) for label, dose in cells
    ] * len(CONTEXTS)
    size = rng.lognormal(0, 0.3, len(labels))
    counts = rng.poisson(size[:, None] * np.exp(np.repeat(base, len(cells), axis=0) + changes)).astype(np.float32)
    total = counts.sum(axis=1, keepdims=True)
    expression = np.log1p(counts * (np.median(total) / total)).astype(np.float32)
    obs = pd.DataFrame(
        {
            "label": pd.Categorical(labels),
            "line": pd.Categorical(contexts),
            "amount": doses,
            "replicate": pd.Categorical(rng.choice(["r1", "r2"], len(labels))),
        },
        index=[f"cell{i}" for i in range(len(labels))],
    )
    test = (obs["line"] == HELD_OUT_CONTEXT) & (obs["label"] != "untreated") | (obs["label"] == NEVER_TRAINED)
    split = np.where(np.arange(len(obs)) % 10 == 0, "val", "train")
    obs["split"] = np.where(test, "test", split)
    return AnnData(
        X=counts.copy() if tags.counts else expression,
        obs=obs,
        var=pd.DataFrame({"chromosome": "1"}, index=[f"g{i}" for i in range(_N_VARS)]),
        layers={_keys.COUNTS_LAYER: counts},
        obsm={"X_given": (expression @ rng.normal(size=(_N_VARS, 4))).astype(np.float32)},
        uns={"features": pd.DataFrame.from_dict(_EFFECTS, orient="index", columns=["f1", "f2"]), "note": "kept"},
    )
