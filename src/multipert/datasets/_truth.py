"""The parameters of a simulated screen, and what follows from them without a random number."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from multipert import _keys
from multipert.data._conditions import close_matches, parse_condition

if TYPE_CHECKING:
    from anndata import AnnData

    from multipert.data._conditions import Condition

N_HOPS = 2
"""How many edges an effect travels beyond the direct targets."""

LOG_SIZE, RESPONSIVENESS, STATE = 0, 1, 2
"""Columns of `obsm["simulation"]`: log size factor, responsiveness, then the cell-state scores."""


@dataclass(frozen=True)
class Truth:
    """Parameters of a simulated screen; plain arrays and numbers, so that they live in `uns["simulation"]`.

    The expected count of gene g in cell i of context c under condition S is

    `mu_ig = size_i * exp(log_rate_cg + state_i @ state_loadings_g + covariate_effects_kg + r_i * effect_cg(S))`

    and counts are negative binomial with variance `mu + dispersion_g * mu**2`.
    """

    seed: int
    target_sum: float
    var_names: np.ndarray
    contexts: np.ndarray
    perturbations: np.ndarray
    doses: np.ndarray
    covariates: np.ndarray
    log_rate: np.ndarray
    """Log expected counts of a cell of unit size, (n_contexts, n_vars)."""
    dispersion: np.ndarray
    state_loadings: np.ndarray
    covariate_effects: np.ndarray
    activity: np.ndarray
    """How strongly a gene answers in a context, in (0, 1.5), (n_contexts, n_vars)."""
    strength: np.ndarray
    """How strongly a perturbation acts in a context, (n_contexts, n_perturbations)."""
    features: np.ndarray
    """(n_perturbations, n_features); without features, each perturbation is its own programme."""
    target_programme: np.ndarray
    target_gene: np.ndarray
    target_weight: np.ndarray
    edge_source: np.ndarray
    edge_target: np.ndarray
    edge_weight: np.ndarray
    half_dose: np.ndarray
    hill: np.ndarray
    pairs: np.ndarray
    """Perturbation indices of each combination, (n_pairs, 2)."""
    pair_kind: np.ndarray
    pair_weight: np.ndarray
    """Factors on the effects of the two parts, (n_pairs, 2)."""

    @classmethod
    def of(cls, adata: AnnData) -> Truth:
        """Read the truth that `simulate` stored."""
        stored = adata.uns.get(_keys.SIMULATION)
        names = [field.name for field in fields(cls)]
        if stored is None or not set(names) <= set(stored):
            raise KeyError(
                f"adata.uns[{_keys.SIMULATION!r}] holds no simulated screen; only AnnData made by "
                "`datasets.simulate` or `datasets.screen` know their truth."
            )
        texts = ("var_names", "contexts", "perturbations", "covariates", "pair_kind")
        arrays: dict[str, Any] = {
            name: np.asarray(stored[name], dtype=str if name in texts else None) for name in names
        }
        return cls(**{**arrays, "seed": int(arrays["seed"]), "target_sum": float(arrays["target_sum"])})

    def to_uns(self) -> dict[str, object]:
        """Give the parameters as what h5ad can hold."""
        return {
            k: v.astype(object) if getattr(v, "dtype", None) and v.dtype.kind == "U" else v
            for k, v in asdict(self).items()
        }

    def condition(self, perturbation: str, dose: float | str | None) -> Condition:
        """Read a requested label and refuse what the screen cannot answer."""
        if len(self.doses) and dose is None and parse_condition(perturbation):
            raise ValueError(
                f"This screen has doses; name the `dose` of {perturbation!r} (simulated: {self._dose_text()})."
            )
        if not len(self.doses) and dose is not None:
            raise ValueError(f"This screen was simulated without doses; got dose={dose!r}, pass None.")
        condition = parse_condition(perturbation, dose)
        for token, _ in condition:
            if token not in self.perturbations:
                raise ValueError(f"Unknown perturbation {token!r}{close_matches(token, self.perturbations)}")
        return condition

    def _dose_text(self) -> str:
        return ", ".join(f"{dose:g}" for dose in self.doses)

    def network(self) -> sparse.csr_array:
        """Weights of the gene network, source in rows, target in columns."""
        n_vars = len(self.var_names)
        return sparse.csr_array((self.edge_weight, (self.edge_source, self.edge_target)), shape=(n_vars, n_vars))

    def direct(self, perturbation: int) -> np.ndarray:
        """Push of one perturbation on its direct targets, `(n_vars,)`, before context."""
        push = np.zeros(len(self.var_names))
        if self.features.shape[1]:
            np.add.at(push, self.target_gene, self.target_weight * self.features[perturbation, self.target_programme])
        else:
            own = self.target_programme == perturbation
            push[self.target_gene[own]] = self.target_weight[own]
        return push

    def full_effect(self, perturbation: int, network: sparse.csr_array) -> np.ndarray:
        """Log fold change at a saturating dose in every context, `(n_contexts, n_vars)`.

        The direct push travels along the edges; in each context a gene passes on and shows only as much as its activity
        there allows.
        """
        step = self.activity * self.direct(perturbation)
        total = step.copy()
        for _ in range(N_HOPS):
            step = self.activity * (step @ network)
            total += step
        return total * self.strength[:, [perturbation]]

    def response(self, perturbation: int, dose: float) -> float:
        """Hill response in [0, 1); 1 in a screen without doses."""
        if not len(self.doses):
            return 1.0
        power = dose ** self.hill[perturbation]
        return float(power / (power + self.half_dose[perturbation] ** self.hill[perturbation]))

    def effect(self, condition: Condition, network: sparse.csr_array | None = None) -> np.ndarray:
        """Log fold change of a condition in every context, `(n_contexts, n_vars)`.

        A part's effect is multiplied by the pair weight it has with every other part, raised to the other part's
        response, so that interactions vanish with the dose. Pairs that were not simulated are additive.
        """
        network = self.network() if network is None else network
        index = [int(np.flatnonzero(self.perturbations == token)[0]) for token, _ in condition]
        response = [self.response(p, dose) for p, (_, dose) in zip(index, condition, strict=True)]
        weight = {}
        for (first, second), factors in zip(self.pairs.tolist(), self.pair_weight.tolist(), strict=True):
            weight[first, second], weight[second, first] = factors
        total = np.zeros_like(self.log_rate)
        for p, own in zip(index, response, strict=True):
            factor = own
            for q, other in zip(index, response, strict=True):
                factor *= weight.get((p, q), 1.0) ** other
            total += factor * self.full_effect(p, network)
        return total

    def expected_counts(
        self, cells: np.ndarray, context: np.ndarray, covariate: np.ndarray | None, effect: np.ndarray
    ) -> np.ndarray:
        """Expected counts given each cell's own parameters.

        Parameters
        ----------
        cells
            Rows of `obsm["simulation"]`.
        context
            Context code of each cell.
        covariate
            Covariate code of each cell, if the screen has one.
        effect
            Log fold change of each cell's target condition, shape `(n_cells, n_vars)`.

        Returns
        -------
        Expected counts, shape `(n_cells, n_vars)`.
        """
        log_mean = cells[:, [RESPONSIVENESS]] * effect
        log_mean += self.log_rate[context]
        log_mean += cells[:, STATE:] @ self.state_loadings
        log_mean += cells[:, [LOG_SIZE]]
        if covariate is not None:
            log_mean += self.covariate_effects[covariate]
        return np.exp(log_mean, out=log_mean)
