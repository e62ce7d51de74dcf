"""Effect sizes, changed genes and network of a simulated screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from ._true_mean import codes
from ._truth import Truth

if TYPE_CHECKING:
    from anndata import AnnData


def true_effects(adata: AnnData, perturbation: str, dose: float | str | None = None) -> pd.DataFrame:
    """Natural-log fold change of expected counts in every context, for a cell of average responsiveness.

    Parameters
    ----------
    adata
        A simulated screen, or any subset of its cells and genes.
    perturbation
        Any label over the simulated perturbations.
    dose
        Dose of the label; needed if the screen has doses.

    Returns
    -------
    Contexts in rows, genes of `adata` in columns.

    Raises
    ------
    KeyError
        If `adata` is not a simulated screen.
    ValueError
        If the perturbation is unknown or the dose is missing, negative or not finite.

    Examples
    --------
    >>> from multipert.datasets import simulate
    >>> adata = simulate(n_cells=200, n_vars=50, n_contexts=2, n_perturbations=2)
    >>> true_effects(adata, "P1").shape
    (2, 50)
    """
    truth = Truth.of(adata)
    genes = codes(adata.var_names.to_numpy(), truth.var_names, "gene")
    effect = truth.effect(truth.condition(perturbation, dose))
    return pd.DataFrame(effect[:, genes], index=truth.contexts.astype(object), columns=adata.var_names)


def true_de_genes(
    adata: AnnData, perturbation: str, dose: float | str | None = None, *, min_effect: float = 0.25
) -> pd.DataFrame:
    """Genes that a perturbation truly changes, strongest first within each context.

    Parameters
    ----------
    adata
        A simulated screen, or any subset of its cells and genes.
    perturbation
        Any label over the simulated perturbations.
    dose
        Dose of the label; needed if the screen has doses.
    min_effect
        Smallest absolute natural-log fold change that counts as changed.

    Returns
    -------
    Columns `context`, `gene` and `effect`.

    Raises
    ------
    KeyError
        If `adata` is not a simulated screen.
    ValueError
        If the perturbation is unknown or the dose is missing, negative or not finite.

    Examples
    --------
    >>> from multipert.datasets import simulate
    >>> adata = simulate(n_cells=200, n_vars=50, n_contexts=2, n_perturbations=2)
    >>> list(true_de_genes(adata, "P1").columns)
    ['context', 'gene', 'effect']
    """
    effects = true_effects(adata, perturbation, dose).rename_axis(index="context", columns="gene")
    table = effects.stack().rename("effect").reset_index()
    table = table[table["effect"].abs() >= min_effect]
    order = table.assign(size=-table["effect"].abs()).sort_values(["context", "size"], kind="stable").index
    return table.loc[order].reset_index(drop=True)


def network_edges(adata: AnnData) -> pd.DataFrame:
    """Edges of the gene network along which effects travel.

    Parameters
    ----------
    adata
        A simulated screen.

    Returns
    -------
    Columns `source`, `target` and `weight`: a unit log change of the source adds `weight` to the log of the target,
    times the activity of the target in the context.

    Raises
    ------
    KeyError
        If `adata` is not a simulated screen.

    Examples
    --------
    >>> from multipert.datasets import simulate
    >>> adata = simulate(n_cells=200, n_vars=50, n_contexts=2, n_perturbations=2)
    >>> network_edges(adata).shape
    (10, 3)
    """
    truth = Truth.of(adata)
    return pd.DataFrame(
        {
            "source": truth.var_names[truth.edge_source].astype(object),
            "target": truth.var_names[truth.edge_target].astype(object),
            "weight": truth.edge_weight,
        }
    )
