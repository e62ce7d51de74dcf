"""A simulated screen whose counterfactuals are known."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from multipert import _keys

from ._cells import assign_labels, draw_cells, observed_conditions
from ._parameters import draw_parameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from ._truth import Truth


def simulate(
    n_cells: int = 2000,
    n_vars: int = 1000,
    n_contexts: int = 4,
    n_perturbations: int = 5,
    *,
    doses: Sequence[float] | None = None,
    combinations: int = 0,
    features: int = 0,
    feature_density: float = 1.0,
    covariates: int = 0,
    control_fraction: float = 0.3,
    seed: int = 0,
) -> AnnData:
    """Simulate a perturbation screen with known counterfactuals.

    Counts are negative binomial around `size * exp(log rate of the context + cell state + covariate + r * effect)`.
    Perturbations push a few direct targets; the push travels along a sparse gene network, in each context only through
    genes that are active there. The abundance of genes and the dispersion follow blood cells under interferon
    :cite:p:`Kang2018`; zeros come from sampling alone.

    Parameters
    ----------
    n_cells
        Cells. Controls and conditions are spread evenly over the contexts.
    n_vars
        Genes, at least 20; as abundant as every second of the `2 * n_vars` most expressed genes of the reference.
    n_contexts
        Contexts, with shared and own gene programmes.
    n_perturbations
        Perturbations that are observed.
    doses
        Positive doses, in any unit. Each perturbation has a Hill curve whose half-maximal dose lies in their middle
        range. None: no dose column, full effect.
    combinations
        Number of observed pairs, labelled "A+B": in turn additive, synergistic (both effects times 1.5) and masking
        (one effect times 0.1), all on the log scale. With doses, each pair is seen at as many pairs of doses.
    features
        Length of the feature vectors in `uns["perturbation_embedding"]`. Effects are linear in them, and the table also
        names perturbations that are never observed. 0: none.
    feature_density
        Probability that a value of a feature vector is not 0, one value at least. A feature is a gene programme, so below 1 a
        perturbation acts through few of them: sparse mechanisms.
    covariates
        Levels of a technical covariate, at least 2. 0: none.
    control_fraction
        Share of control cells.
    seed
        Same seed, same screen, on any number of cores.

    Returns
    -------
    AnnData with log1p of counts scaled to the median total (`uns["simulation"]["target_sum"]`) in `X`, counts in
    `layers["counts"]` (both CSR, float32), `obs` columns `perturbation`, `context` and, if asked for, `dose` (a number;
    text such as "1+5" where there are combinations) and `covariate`. What each cell is, whatever happens to it, is in
    `obsm["simulation"]`; the parameters are in `uns["simulation"]`.

    Raises
    ------
    ValueError
        If a size is not positive, a dose is not positive and finite, or the cells are too few for every group to have
        one.

    See Also
    --------
    true_mean : expected expression of every cell under any label.

    Examples
    --------
    >>> adata = simulate(n_cells=200, n_vars=50, n_contexts=2, n_perturbations=2)
    >>> adata.shape, sorted(adata.obs["perturbation"].unique())
    ((200, 50), ['P1', 'P2', 'control'])
    """
    from anndata import AnnData

    if doses is not None and not len(doses):
        raise ValueError("doses is empty; name at least one dose, or pass None for a screen without doses.")
    doses = [] if doses is None else [float(dose) for dose in doses]
    _check(
        n_cells,
        n_vars,
        n_contexts,
        n_perturbations,
        doses,
        combinations,
        features,
        feature_density,
        covariates,
        control_fraction,
    )
    of_parameters, of_labels, of_cells = np.random.SeedSequence(seed).spawn(3)
    truth = draw_parameters(
        n_vars, n_contexts, n_perturbations, doses, combinations, features, feature_density, covariates, seed,
        np.random.default_rng(of_parameters),
    )  # fmt: skip
    conditions = observed_conditions(truth, n_perturbations)
    rng = np.random.default_rng(of_labels)
    context, condition = assign_labels(n_cells, n_contexts, len(conditions), control_fraction, rng)
    covariate = rng.integers(covariates, size=n_cells) if covariates else None
    cells, counts = draw_cells(truth, conditions, context, condition, covariate, of_cells)
    total = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    truth = replace(truth, target_sum=float(np.median(total)))
    adata = AnnData(
        _log_normalise(counts, total, truth.target_sum),
        obs=_obs(truth, conditions, context, condition, covariate),
        var=pd.DataFrame(index=truth.var_names.astype(object)),
        obsm={_keys.SIMULATION: cells},
        layers={_keys.COUNTS_LAYER: counts},
        uns={_keys.SIMULATION: truth.to_uns()},
    )
    if features:
        adata.uns["perturbation_embedding"] = pd.DataFrame(
            truth.features,
            index=truth.perturbations.astype(object),
            columns=[f"feature_{i}" for i in range(1, features + 1)],
        )
    return adata


def _check(
    n_cells: int,
    n_vars: int,
    n_contexts: int,
    n_perturbations: int,
    doses: Sequence[float],
    combinations: int,
    features: int,
    feature_density: float,
    covariates: int,
    control_fraction: float,
) -> None:
    for name, value, least in [
        ("n_cells", n_cells, 1),
        ("n_vars", n_vars, 20),
        ("n_contexts", n_contexts, 1),
        ("n_perturbations", n_perturbations, 1),
        ("combinations", combinations, 0),
        ("features", features, 0),
        ("covariates", covariates, 0),
    ]:
        if value < least:
            raise ValueError(f"{name}={value} is too small; it must be at least {least}.")
    if covariates == 1:
        raise ValueError("covariates=1 is a covariate with one level, which explains nothing; use 0 or at least 2.")
    if not 0 < feature_density <= 1:
        raise ValueError(f"feature_density={feature_density} must be above 0 and at most 1.")
    if feature_density < 1 and not features:
        raise ValueError(f"feature_density={feature_density} needs features; name how many.")
    bad = [dose for dose in doses if not (np.isfinite(dose) and dose > 0)]
    if bad or len(set(doses)) < len(doses):
        raise ValueError(f"doses={list(doses)} must be positive, finite and distinct; control cells get dose 0.")
    if not 0 < control_fraction < 1:
        raise ValueError(f"control_fraction={control_fraction} must lie between 0 and 1.")
    n_pairs = n_perturbations * (n_perturbations - 1) // 2
    if combinations > n_pairs:
        raise ValueError(f"combinations={combinations}, but {n_perturbations} perturbations form only {n_pairs} pairs.")
    n_control = round(control_fraction * n_cells)
    n_groups = n_contexts * (n_perturbations + combinations) * max(1, len(doses))
    if n_control < n_contexts or n_cells - n_control < n_groups:
        raise ValueError(
            f"n_cells={n_cells} gives {n_control} control cells for {n_contexts} contexts and "
            f"{n_cells - n_control} others for {n_groups} groups; every group needs one: raise n_cells."
        )


def _log_normalise(counts: sparse.csr_matrix, total: np.ndarray, target_sum: float) -> sparse.csr_matrix:
    scale = np.repeat(target_sum / np.maximum(total, 1), np.diff(counts.indptr))
    data = np.log1p(counts.data * scale).astype(np.float32)
    return sparse.csr_matrix((data, counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)


def _obs(
    truth: Truth,
    conditions: list[tuple[str, str]],
    context: np.ndarray,
    condition: np.ndarray,
    covariate: np.ndarray | None,
) -> pd.DataFrame:
    width = len(str(len(context)))
    labels = np.array([label for label, _ in conditions], dtype=object)[condition]
    obs = pd.DataFrame(
        {
            _keys.PERTURBATION: pd.Categorical(labels),
            _keys.CONTEXT: pd.Categorical(truth.contexts.astype(object)[context]),
        },
        index=[f"cell_{i:0{width}d}" for i in range(1, len(context) + 1)],
    )
    if len(truth.doses):
        doses = np.array([dose for _, dose in conditions], dtype=object)[condition]
        obs[_keys.DOSE] = pd.Categorical(doses) if len(truth.pairs) else doses.astype(float)
    if covariate is not None:
        obs["covariate"] = pd.Categorical(truth.covariates.astype(object)[covariate])
    return obs
