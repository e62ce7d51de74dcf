from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from multipert import _keys

from ._groups import GroupedCells, check_genes
from ._references import References

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData

    from ._cells import Cells
    from ._groups import Key

INFLATION = 3.0
MAX_CONTROL_CELLS = 1000


def adversaries(
    observed: AnnData,
    control: AnnData,
    training: AnnData,
    by: Sequence[str] = (_keys.PERTURBATION, _keys.CONTEXT),
    *,
    layer: str | None = None,
    control_label: str = _keys.CONTROL,
    delimiter: str | None = "+",
    seed: int = 0,
) -> dict[str, AnnData]:
    """Make predictions that know nothing worth knowing, to see which metrics they fool.

    Score each with :func:`evaluate` on your own cells: a metric that puts one of them above the baselines cannot be
    trusted there.

    - `constant`: the mean of all training cells, repeated;
    - `control copy`: the control cells of the context;
    - `context mean`: the mean of the perturbed training cells of the context, or of all contexts where there are none,
      repeated;
    - `log1p twice`: the observed cells with log1p taken again;
    - `variance inflated`: the mean shift of the other contexts (of the context's other perturbations where there is
      none), the spread of its cells tripled;
    - `permuted`: the observed cells of another perturbation of the context, for the contexts that have one;
    - `genes shuffled`: the observed cells with their genes in a random order.

    Parameters
    ----------
    observed
        Perturbed cells that were measured.
    control
        Control cells of the same contexts.
    training
        Training cells, control and perturbed.
    by
        obs columns: first the perturbation, then what makes the context.
    layer
        Layer to read in place of `X`; the predictions hold theirs in `X`.
    control_label
        The label of control cells.
    delimiter
        What separates the parts of a combination; None takes every label whole.
    seed
        Of the order of the genes, and of the control cells that are taken where a context has more than 1,000.

    Returns
    -------
    Predicted cells by name of the adversary, as many for each group as were observed (as control cells where these are
    moved), labelled like the observed ones.

    Raises
    ------
    KeyError
        If a column is absent.
    ValueError
        If genes differ, values are NaN or infinite, or a group has no control cells.

    Examples
    --------
    >>> import multipert as mp
    >>> cells = mp.datasets.screen("small")
    >>> test = (mp.splits.context_transfer(cells, "context_1") == "test").to_numpy()
    >>> control = (cells.obs["perturbation"] == "control").to_numpy()
    >>> made = adversaries(cells[test], cells[control], cells[~test])
    >>> made["control copy"].obs["perturbation"].nunique()
    4
    """
    by = [by] if isinstance(by, str) else list(by)
    check_genes(observed, control=control, training=training)
    groups = {
        name: GroupedCells(name, adata, by, layer=layer, control_label=control_label, delimiter=delimiter)
        for name, adata in (("observed", observed), ("control", control), ("training", training))
    }
    truth = groups["observed"]
    keys = [key for key in truth.rows if key[0] != control_label]
    lacking = [key for key in keys if (control_label, *key[1:]) not in groups["control"].rows]
    if lacking:
        raise ValueError(f"`control` has no cells labelled {control_label!r} for {len(lacking)} of {len(keys)} groups.")
    made = References(
        groups["training"],
        control_label=control_label,
        delimiter=delimiter,
        clip=not any(group.cells.is_signed for group in groups.values()),
    )
    perturbed = [key for key in groups["training"].rows if key[0] != control_label]
    everywhere = np.mean([groups["training"][key].mean for key in perturbed], axis=0)
    overall = groups["training"].cells.mean
    order = np.random.default_rng(seed).permutation(observed.n_vars)
    of_context: dict[Key, list[Key]] = {}
    for key in keys:
        of_context.setdefault(key[1:], []).append(key)

    def own_control(key: Key) -> Cells:
        return groups["control"][(control_label, *key[1:])].sample(MAX_CONTROL_CELLS, seed)

    def context_mean(key: Key) -> np.ndarray:
        centroid = made.perturbed_centroid(key)
        return np.tile(everywhere if centroid is None else centroid, (len(truth[key]), 1))

    def inflated(key: Key) -> np.ndarray:
        cells = own_control(key)
        moved = made.predict("mean_shift", key, cells) or made.predict("context_mean", key, cells) or cells
        return np.maximum(moved.mean + INFLATION * (moved.dense() - moved.mean), 0.0 if made.clip else -np.inf)

    def other(key: Key) -> np.ndarray:
        own = of_context[key[1:]]
        return truth[own[(own.index(key) + 1) % len(own)]].dense()

    makers: dict[str, Callable[[Key], np.ndarray]] = {
        "constant": lambda key: np.tile(overall, (len(truth[key]), 1)),
        "control copy": lambda key: own_control(key).dense(),
        "context mean": context_mean,
        "log1p twice": lambda key: np.log1p(truth[key].dense()),
        "variance inflated": inflated,
        "permuted": other,
        "genes shuffled": lambda key: truth[key].dense()[:, order],
    }
    exchangeable = [key for key in keys if len(of_context[key[1:]]) > 1]
    if not exchangeable:
        del makers["permuted"]
    if made.clip is False:
        del makers["log1p twice"]
    wanted = {name: exchangeable if name == "permuted" else keys for name in makers}
    return {name: _as_anndata({key: make(key) for key in wanted[name]}, by, observed) for name, make in makers.items()}


def _as_anndata(cells: dict[Key, np.ndarray], by: list[str], observed: AnnData) -> AnnData:
    import pandas as pd
    from anndata import AnnData

    keys = [key for key, values in cells.items() for _ in values]
    obs = pd.DataFrame(keys, columns=by, index=[f"{'|'.join(key)}|{i}" for i, key in enumerate(keys)])
    return AnnData(np.vstack(list(cells.values())).astype(np.float32), obs=obs, var=observed.var[[]])
