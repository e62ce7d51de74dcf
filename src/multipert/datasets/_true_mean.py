"""What every simulated cell is expected to show under any label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from multipert import _keys
from multipert.data._conditions import close_matches

from ._truth import Truth

if TYPE_CHECKING:
    from anndata import AnnData

_BLOCK = 128
_STEP = 0.7  # of the trapezoid rule in log t; its error falls as exp(-pi^2 / step), here below 1e-6
_LOWEST = 1e-6  # what the integral below the first node may amount to
_HIGHEST = 40.0  # last node; beyond it the integrand is below exp(-40)


def true_mean(
    adata: AnnData,
    perturbation: str,
    dose: float | str | None = None,
    space: Literal["counts", "log1p"] = "counts",
) -> np.ndarray:
    r"""Expected expression of every cell, had it been given this perturbation.

    The cell keeps its context, size, state, covariate and responsiveness; only the label changes. In `space="log1p"`
    the result is the expectation of what `X` holds, log1p of normalised counts, which is not log1p of the normalised
    expectation. With :math:`S = \sum_h Y_h` and the Laplace transforms :math:`L_h(t) = E e^{-t Y_h}` of independent
    negative binomial counts, Frullani's integral :math:`\log(b / a) = \int_0^\infty (e^{-ta} - e^{-tb}) \, dt / t`
    gives

    .. math::
        E \log\Bigl(1 + T \frac{Y_g}{S}\Bigr)
        = \int_0^\infty \prod_h L_h(t) \Bigl(1 - \frac{L_g((1 + T) t)}{L_g(t)}\Bigr) \frac{dt}{t},

    which is evaluated by the trapezoid rule in log t, to about 1e-5.

    Parameters
    ----------
    adata
        A simulated screen, or any subset of its cells and genes.
    perturbation
        Any label over the simulated perturbations, observed or not; "control" too.
    dose
        Dose of the label, as in `obs["dose"]`; needed if the screen has doses.
    space
        "counts", or "log1p" for the space of `X`.

    Returns
    -------
    Shape `(n_obs, n_vars)`, float32, rows and columns as in `adata`.

    Raises
    ------
    KeyError
        If `adata` is not a simulated screen, or has lost the columns that describe its cells.
    ValueError
        If the perturbation, context or gene is unknown, the dose is missing, negative or not finite, or there are no
        cells.

    Examples
    --------
    >>> from multipert.datasets import simulate
    >>> adata = simulate(n_cells=200, n_vars=50, n_contexts=2, n_perturbations=2)
    >>> true_mean(adata, "P1").shape
    (200, 50)
    """
    if space not in ("counts", "log1p"):
        raise ValueError(f"space={space!r} is unknown; use 'counts' or 'log1p'.")
    truth = Truth.of(adata)
    if adata.n_obs == 0:
        raise ValueError("adata has 0 cells; there is nothing to expect.")
    condition = truth.condition(perturbation, dose)
    levels_of = [_keys.CONTEXT] + ["covariate"] * (len(truth.covariates) > 0)
    if missing := [f"obs[{key!r}]" for key in levels_of if key not in adata.obs]:
        raise KeyError(f"adata lacks {', '.join(missing)}, which the simulation wrote; keep these columns.")
    if _keys.SIMULATION not in adata.obsm:
        raise KeyError(f"adata lacks obsm[{_keys.SIMULATION!r}], which the simulation wrote; keep it.")
    genes = codes(adata.var_names.to_numpy(), truth.var_names, "gene")
    context = codes(adata.obs[_keys.CONTEXT].to_numpy(), truth.contexts, "context")
    has_covariate = len(truth.covariates) > 0
    covariate = codes(adata.obs["covariate"].to_numpy(), truth.covariates, "covariate") if has_covariate else None
    cells = np.asarray(adata.obsm[_keys.SIMULATION])
    effect = truth.effect(condition)
    out = np.empty((adata.n_obs, len(genes)), dtype=np.float32)
    for start in range(0, adata.n_obs, _BLOCK):
        rows = slice(start, start + _BLOCK)
        levels = None if covariate is None else covariate[rows]
        mean = truth.expected_counts(cells[rows], context[rows], levels, effect[context[rows]])
        if space == "log1p":
            mean = expected_log1p(mean, truth.dispersion, truth.target_sum)
        out[rows] = mean[:, genes]
    return out


def codes(values: np.ndarray, known: np.ndarray, what: str) -> np.ndarray:
    """Positions of `values` in `known`; unknown ones are an error that names them."""
    position = {name: i for i, name in enumerate(known.tolist())}
    unknown = sorted({str(value) for value in values} - position.keys())
    if unknown:
        near = close_matches(unknown[0], known)
        raise ValueError(f"{len(unknown)} unknown {what}(s) in adata, first {unknown[0]!r}{near}")
    return np.array([position[str(value)] for value in values], dtype=np.int64)


def expected_log1p(mean: np.ndarray, dispersion: np.ndarray, target_sum: float) -> np.ndarray:
    """Expectation of log1p(target_sum * count / total) for independent negative binomial counts.

    Parameters
    ----------
    mean
        Expected counts, shape `(n_cells, n_vars)`.
    dispersion
        Variance is `mean + dispersion * mean**2`; shape `(n_vars,)`.
    target_sum
        What the counts of a cell are scaled to.

    Returns
    -------
    Shape `(n_cells, n_vars)`.
    """
    # a step that divides log(1 + target_sum) makes (1 + target_sum) * t_j the node t_(j + jump): one transform for both
    jump = int(np.ceil(np.log1p(target_sum) / _STEP))
    step = np.log1p(target_sum) / jump
    lowest = _LOWEST / (target_sum * mean.sum(axis=1).max())
    n_nodes = 1 + int(np.ceil(np.log(_HIGHEST / lowest) / step))
    odds = mean * dispersion
    recent: list[np.ndarray] = []
    result = np.zeros_like(mean)
    for j in range(n_nodes + jump - 1, -1, -1):
        t = _HIGHEST * np.exp(step * (j - n_nodes + 1))
        log_transform = np.log1p(-np.expm1(-t) * odds)
        log_transform /= -dispersion
        if len(recent) == jump:
            ahead = recent.pop(0)
            result -= np.exp(log_transform.sum(axis=1, keepdims=True)) * np.expm1(ahead - log_transform)
        recent.append(log_transform)
    return step * result
