"""Which control cell stands for each cell, and which perturbed cell for each control cell."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from multipert import _keys

from ._checks import check_column, check_control, check_expression, check_names, expression, row_blocks
from ._codec import parse_column
from ._conditions import canonical_dose, canonical_label
from ._noise import cell_key
from ._rows import split_rows
from ._transport import check_options, match

if TYPE_CHECKING:
    from anndata import AnnData

    from ._transport import Partner

logger = logging.getLogger(__name__)

Pairing = Literal["self", "random", "ot", "any", "group", "label"]

_FIT_CELLS = 10_000


def paired_controls(
    obs_names: pd.Index, contexts: np.ndarray, is_control: np.ndarray, rows: np.ndarray, *, seed: int = 0
) -> np.ndarray:
    """Draw for each cell a control cell of its own context.

    A control cell is paired with itself. The partner of a perturbed cell depends on the seed, its name and the names of
    the control cells among `rows` only, so batch size, the order of cells and the other perturbed cells change nothing.

    Parameters
    ----------
    obs_names
        Names of all cells, length `n_cells`.
    contexts
        Context code of each cell, shape `(n_cells,)`.
    is_control
        Whether each cell is a control cell, shape `(n_cells,)`.
    rows
        Row numbers to pair; partners are taken among these only.
    seed
        Seed of the draw.

    Returns
    -------
    Row number of each partner, shape `(len(rows),)`; -1 where the context has no control cell among `rows`.

    Examples
    --------
    >>> import pandas as pd
    >>> names = pd.Index(["a", "b", "c", "d"])
    >>> paired_controls(names, np.array([0, 0, 1, 1]), np.array([True, False, True, False]), np.arange(4))
    array([0, 0, 2, 2])
    """
    rows = np.asarray(rows)
    partners = np.where(is_control[rows], rows, -1)
    for context in np.unique(contexts[rows]):
        here = contexts[rows] == context
        pool = rows[here & is_control[rows]]
        pool = pool[np.argsort(obs_names[pool].to_numpy(dtype=object))]
        todo = np.flatnonzero(here & ~is_control[rows])
        if len(pool) and len(todo):
            draws = np.array([cell_key(seed, name) for name in obs_names[rows[todo]]], dtype=np.uint64)
            partners[todo] = pool[draws % np.uint64(len(pool))]
    return partners


def pair(
    adata: AnnData,
    perturbation_key: str = _keys.PERTURBATION,
    control: str = _keys.CONTROL,
    *,
    layer: str | None = None,
    context_key: str | None = None,
    dose_key: str | None = None,
    delimiter: str | None = "+",
    split_key: str | None = None,
    pairing_key: str | None = None,
    method: Literal["ot", "random"] = "ot",
    n_components: int = 50,
    exact_up_to: int = 2000,
    partner: Partner = "best",
    max_bytes: int = 2**30,
    seed: int = 0,
) -> pd.DataFrame:
    """Pair control cells with perturbed cells of the same context, as training does.

    By optimal transport every control cell has a partner under each condition of its context: the cells of a context are
    reduced to principal components, and for each condition the control cells are matched with that condition's cells at
    the least mean Euclidean distance, see the notes. At random every perturbed cell has a control cell of its context.
    All pairs are checked before they are returned.

    Parameters
    ----------
    adata
        Annotated data with log-normalised expression.
    perturbation_key
        obs column of labels.
    control
        Label of the control cells.
    layer
        Layer of expression; None is `X`.
    context_key
        obs column of contexts; None is one context.
    dose_key
        obs column of doses; each label and dose is a condition of its own.
    delimiter
        What separates the parts of a combination; None reads every label whole.
    split_key
        obs column with `"train"`, `"val"` and `"test"`: pairs of training cells only, and the expression of no other cell
        is read. None pairs all cells.
    pairing_key
        obs column with the obs name of each perturbed cell's control cell: those pairs instead of `method`'s.
    method
        `"ot"` or `"random"`.
    n_components
        Principal components, at most the cells and the genes of a context.
    exact_up_to
        Cells a side up to which the transport is exact: the two numbers of cells multiply to at most its square. Above,
        it is exact within blocks of about 256 cells a side and improved over further blocks.
    partner
        `"best"`: the cell that receives most of the control cell's mass; several control cells may share it. `"sample"`:
        drawn in proportion to the mass.
    max_bytes
        Bytes that one transport problem may take.
    seed
        Seed of the pairing.

    Returns
    -------
    A row for each pair with the row numbers `control` and `perturbed` in `adata`, the `context` if `context_key` is given,
    the canonical label `perturbation`, and the `dose` as text if `dose_key` is given. By transport, sorted by context,
    condition and control cell, with the number of cells, the method and the cost of each context and condition in
    `attrs["groups"]`; otherwise sorted by perturbed cell.

    Raises
    ------
    KeyError
        If a column or the layer is absent.
    ValueError
        If a column has missing values, names are duplicated, no cell of use is a control cell or none is perturbed, a
        cell of use has NaN, infinite or raw count expression, `pairing_key` names what is no control cell, an option is
        out of its range, or a pair leaves its context or the training cells.

    Notes
    -----
    Principal components are fitted per context on its control and perturbed cells together, on 10,000 of them, evenly
    spaced, where there are more. A context without control cells gives no pairs and a logged warning. The pairs of
    control cells with themselves, which training adds, are not listed.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.simulate(n_cells=120, n_vars=30, n_contexts=2, n_perturbations=1)
    >>> pairs = mp.data.pair(adata, context_key="context")
    >>> list(pairs.columns)
    ['control', 'perturbed', 'context', 'perturbation']
    >>> len(pairs), int((adata.obs["perturbation"] == "control").sum())
    (36, 36)
    """
    if method not in ("ot", "random"):
        raise ValueError(f"method={method!r} must be 'ot' or 'random'.")
    check_names(adata)
    labels = check_column(adata.obs, perturbation_key, "perturbation_key")
    doses = None if dose_key is None else check_column(adata.obs, dose_key, "dose_key")
    contexts = np.full(adata.n_obs, "", dtype=object)
    if context_key is not None:
        contexts = check_column(adata.obs, context_key, "context_key").astype(str).to_numpy(dtype=object)
    distinct, conditions = parse_column(labels, doses, control=control, delimiter=delimiter)
    is_control = np.array([not condition for condition in distinct])[conditions]
    check_control(labels, is_control, perturbation_key, control)
    rows = np.arange(adata.n_obs) if split_key is None else split_rows(adata.obs, split_key, 1.0, seed)[0]
    if is_control[rows].all() or not is_control[rows].any():
        kind = "a control cell" if is_control[rows].all() else "perturbed"
        of_use = "cell" if split_key is None else f"cell with obs[{split_key!r}] 'train'"
        raise ValueError(f"Every {of_use} is {kind}; pairs need cells of both kinds.")
    if method == "ot" and pairing_key is None:
        x, name = expression(adata, layer)
        check_expression(x, adata, name=name, rows=rows, signed=True)
        pairs = transport_pairs(
            x, conditions, contexts, is_control, rows,
            n_components=n_components, exact_up_to=exact_up_to, partner=partner, max_bytes=max_bytes, seed=seed,
        )  # fmt: skip
    else:
        if pairing_key is None:
            controls = paired_controls(adata.obs_names, contexts, is_control, rows, seed=seed)
        else:
            named = named_controls(adata.obs, is_control, pairing_key)[rows]
            controls = np.where(np.isin(named, rows), named, -1)
        pairs = _controls_as_pairs(controls, rows, is_control, conditions)
    check_pairs(pairs, contexts, is_control, conditions, rows)
    names = np.array([canonical_label(c, control=control, delimiter=delimiter) for c in distinct], dtype=object)
    texts = None if dose_key is None else np.array([canonical_dose(c, delimiter=delimiter) for c in distinct], object)
    made = pairs[["control", "perturbed"]].copy()
    if context_key is not None:
        made["context"] = contexts[made["control"]]
    made["perturbation"] = names[pairs["condition"]]
    if texts is not None:
        made["dose"] = texts[pairs["condition"]]
    if "groups" in pairs.attrs:
        made.attrs["groups"] = [_named(group, names, texts) for group in pairs.attrs["groups"]]
    return made


def _named(group: dict[str, Any], names: np.ndarray, texts: np.ndarray | None) -> dict[str, Any]:
    """A group with its condition as label and dose."""
    code = group["condition"]
    dose = {} if texts is None else {"dose": texts[code]}
    rest = {key: value for key, value in group.items() if key not in ("context", "condition")}
    return {"context": group["context"], "perturbation": names[code], **dose, **rest}


def _controls_as_pairs(
    controls: np.ndarray, rows: np.ndarray, is_control: np.ndarray, conditions: np.ndarray
) -> pd.DataFrame:
    """One row for each perturbed cell that has a control cell; a warning counts the others."""
    perturbed, found = rows[~is_control[rows]], controls[~is_control[rows]]
    dropped = int((found < 0).sum())
    if dropped:
        logger.warning("%d perturbed cell(s) have no control cell to be paired with and are left out.", dropped)
    perturbed, found = perturbed[found >= 0], found[found >= 0]
    return pd.DataFrame({"control": found, "perturbed": perturbed, "condition": conditions[perturbed]})


def label_pairs(
    labels: np.ndarray, rows: np.ndarray, *, n_copies: int = 3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Pair cells with themselves, and then with cells of their own label drawn without replacement.

    Parameters
    ----------
    labels
        Label of each cell, shape `(n_cells,)`.
    rows
        Row numbers to pair; partners are taken among these only.
    n_copies
        How often each cell comes on either side, the true pair counted.
    seed
        Seed of the draws.

    Returns
    -------
    Row numbers of both sides, each of shape `(n_copies * len(rows),)`; the first `len(rows)` pairs are the true ones.

    Examples
    --------
    >>> first, second = label_pairs(np.array(["a", "b", "a", "b"]), np.arange(4), n_copies=2)
    >>> first[:4].tolist(), second[:4].tolist()
    ([0, 1, 2, 3], [0, 1, 2, 3])
    >>> sorted(second[4:].tolist())
    [0, 1, 2, 3]
    """
    rows, rng = np.asarray(rows), np.random.default_rng(seed)
    of_label = labels[rows]
    sides = [[rows], [rows]]
    for _ in range(n_copies - 1):
        for label in np.unique(of_label):
            members = rows[of_label == label]
            for side in sides:
                side.append(rng.permutation(members))
    return np.concatenate(sides[0]), np.concatenate(sides[1])


def named_controls(obs: pd.DataFrame, is_control: np.ndarray, pairing_key: str) -> np.ndarray:
    """Row numbers of the control cells that a column names.

    Parameters
    ----------
    obs
        Annotation of the cells.
    is_control
        Whether each cell is a control cell, shape `(n_cells,)`.
    pairing_key
        obs column with the obs name of each perturbed cell's control cell; what it holds for control cells is not read.

    Returns
    -------
    Row number of each cell's control cell, shape `(n_cells,)`; a control cell is its own.

    Raises
    ------
    KeyError
        If the column is absent.
    ValueError
        If a perturbed cell has a missing value or a name that is no control cell.
    """
    column = check_column(obs.loc[~is_control], pairing_key, "pairing_key").astype(str)
    partners = np.arange(len(obs))
    partners[~is_control] = obs.index.astype(str).get_indexer(pd.Index(column))
    wrong = (partners < 0) | ~is_control[partners]
    if wrong.any():
        shown = ", ".join(map(repr, column[wrong[~is_control]][:3]))
        raise ValueError(
            f"obs[{pairing_key!r}] names {int(wrong.sum())} partner(s) that are no control cells of this data: {shown}; "
            "give the obs name of a control cell for each perturbed cell."
        )
    return partners


def transport_pairs(
    x: Any,
    conditions: np.ndarray,
    contexts: np.ndarray,
    is_control: np.ndarray,
    rows: np.ndarray,
    *,
    n_components: int = 50,
    exact_up_to: int = 2000,
    partner: Partner = "best",
    max_bytes: int = 2**30,
    seed: int = 0,
) -> pd.DataFrame:
    """Pair control cells with perturbed cells of their own context by optimal transport.

    In each context the cells are reduced to principal components, fitted on that context's control and perturbed cells
    together (on 10,000 of them, evenly spaced, where there are more, so that cost stays linear). Then, for each condition
    of the context, the control cells are matched to that condition's cells; see :func:`multipert.data._transport.match`.
    The pair of a control cell with itself is no row here; training adds it.

    Parameters
    ----------
    x
        Expression, shape `(n_cells, n_vars)`: ndarray, scipy sparse or a backed array. Only `rows` are read.
    conditions
        Code of each cell's condition, shape `(n_cells,)`.
    contexts
        Name or code of each cell's context, shape `(n_cells,)`.
    is_control
        Whether each cell is a control cell, shape `(n_cells,)`.
    rows
        Row numbers of the cells to pair.
    n_components
        Principal components, at most the cells and the genes of a context.
    exact_up_to
        Cells a side up to which the transport is exact.
    partner
        `"best"`: the cell that receives most of the control cell's mass. `"sample"`: drawn in proportion to the mass.
    max_bytes
        Bytes that one transport problem may take.
    seed
        Seed of the components, of the blocks of a large problem and of `"sample"`.

    Returns
    -------
    A row for each control cell and each condition of its context, sorted by context, condition and control cell, with
    the row numbers `control` and `perturbed`, the `context` and the code `condition`. `attrs["groups"]` lists for each
    context and condition the numbers of cells, the method and the cost.

    Raises
    ------
    ValueError
        If an option is out of its range, or a cell of `rows` has a NaN or infinite value.

    Examples
    --------
    >>> x = np.array([[0.0, 1.0], [4.0, 0.0], [4.5, 0.0], [0.5, 1.0]])
    >>> is_control = np.array([True, True, False, False])
    >>> transport_pairs(x, np.array([0, 0, 1, 1]), np.zeros(4, dtype=int), is_control, np.arange(4))
       control  perturbed  context  condition
    0        0          3        0          1
    1        1          2        0          1
    """
    check_options(exact_up_to, partner, max_bytes)
    if n_components < 1:
        raise ValueError(f"n_components={n_components} must be at least 1.")
    if sparse.issparse(x) and x.format != "csr":
        x = x.tocsr()
    rows, contexts, conditions = np.unique(rows), np.asarray(contexts), np.asarray(conditions)
    parts: list[pd.DataFrame] = []
    groups: list[dict[str, Any]] = []
    uncontrolled: dict[Any, int] = {}
    for context in np.unique(contexts[rows]):
        here = rows[contexts[rows] == context]
        pool = np.flatnonzero(is_control[here])
        others = np.flatnonzero(~is_control[here])
        if len(others) == 0:
            continue
        if len(pool) == 0:
            uncontrolled[context] = len(others)
            continue
        scores = _principal_components(x, here, n_components, seed)
        others = others[np.argsort(conditions[here[others]], kind="stable")]
        codes, starts = np.unique(conditions[here[others]], return_index=True)
        for condition, members in zip(codes, np.split(others, starts[1:]), strict=True):
            found = match(
                scores[pool],
                scores[members],
                exact_up_to=exact_up_to,
                partner=partner,
                max_bytes=max_bytes,
                seed=seed,
            )
            pairs = {"control": here[pool], "perturbed": here[members[found.partner]]}
            parts.append(pd.DataFrame({**pairs, "context": context, "condition": condition}))
            groups.append(
                {
                    "context": context,
                    "condition": int(condition),
                    "n_control": len(pool),
                    "n_perturbed": len(members),
                    "method": found.method,
                    "cost": found.cost,
                }
            )
    _report(groups, uncontrolled)
    none = {"control": rows[:0], "perturbed": rows[:0], "context": contexts[:0], "condition": conditions[:0]}
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(none)
    table.attrs["groups"] = groups
    return table


def _principal_components(x: Any, rows: np.ndarray, n_components: int, seed: int) -> np.ndarray:
    """Scores of some cells, fitted on at most `_FIT_CELLS` of them, shape `(len(rows), n_components or fewer)`."""
    # takes long to import, and most uses of this module need none of it
    from sklearn.utils.extmath import randomized_svd

    fitted = rows if len(rows) <= _FIT_CELLS else rows[np.linspace(0, len(rows) - 1, _FIT_CELLS).astype(np.int64)]
    cells = np.concatenate([_dense(block) for _, block in row_blocks(x, fitted)])
    mean = cells.mean(axis=0, dtype=np.float64).astype(np.float32)
    cells -= mean
    # the random start lies among the genes, so the order of cells changes nothing
    _, _, axes = randomized_svd(cells, min(n_components, *cells.shape), transpose=False, random_state=seed)
    if fitted is rows:
        scores = cells @ axes.T
    else:
        del cells
        scores = np.concatenate([(_dense(block) - mean) @ axes.T for _, block in row_blocks(x, rows)])
    return scores.astype(np.float64)


def _dense(block: Any) -> np.ndarray:
    """A float32 array of its own."""
    return np.array(block.toarray() if sparse.issparse(block) else block, dtype=np.float32)


def _report(groups: list[dict[str, Any]], uncontrolled: dict[Any, int]) -> None:
    if uncontrolled:
        logger.warning(
            "%d context(s) have perturbed cells but no control cell and give no pairs: %s.",
            len(uncontrolled),
            ", ".join(f"{str(name)!r} ({n} cells)" for name, n in uncontrolled.items()),
        )
    for method in sorted({group["method"] for group in groups}):
        here = [group for group in groups if group["method"] == method]
        largest = max(here, key=lambda group: group["n_control"] * group["n_perturbed"])
        logger.info(
            "Optimal transport, %s: %d group(s), the largest of %d control and %d perturbed cells.",
            method,
            len(here),
            largest["n_control"],
            largest["n_perturbed"],
        )


def check_pairs(
    pairs: pd.DataFrame, contexts: np.ndarray, is_control: np.ndarray, conditions: np.ndarray, rows: np.ndarray
) -> None:
    """Refuse pairs that leave their context, their condition or the rows that may be used.

    Parameters
    ----------
    pairs
        Columns `control`, `perturbed` and `condition`, as :func:`transport_pairs` returns them.
    contexts
        Name or code of each cell's context, shape `(n_cells,)`.
    is_control
        Whether each cell is a control cell, shape `(n_cells,)`.
    conditions
        Code of each cell's condition, shape `(n_cells,)`.
    rows
        Row numbers that may be used.

    Raises
    ------
    ValueError
        Naming what is wrong, the number of such pairs and the first.

    Examples
    --------
    >>> pairs = pd.DataFrame({"control": [0], "perturbed": [3], "condition": [1]})
    >>> is_control, conditions = np.array([True, False, True, False]), np.array([0, 1, 0, 1])
    >>> check_pairs(pairs, np.array([0, 0, 1, 1]), is_control, conditions, np.arange(4))
    Traceback (most recent call last):
    ValueError: 1 of 1 pair(s) leave their context, first control row 0 with perturbed row 3.
    """
    control, perturbed = pairs["control"].to_numpy(), pairs["perturbed"].to_numpy()
    usable = np.zeros(len(contexts), dtype=bool)
    usable[rows] = True
    _refuse(
        pairs,
        (np.minimum(control, perturbed) < 0) | (np.maximum(control, perturbed) >= len(contexts)),
        "use a row number that is no cell",
    )
    _refuse(pairs, ~usable[control] | ~usable[perturbed], "use a cell outside the rows that may be used")
    _refuse(pairs, ~is_control[control], "have a perturbed cell as control")
    _refuse(pairs, is_control[perturbed], "have a control cell as perturbed cell")
    _refuse(pairs, contexts[control] != contexts[perturbed], "leave their context")
    _refuse(pairs, conditions[perturbed] != pairs["condition"].to_numpy(), "have a perturbed cell of another condition")


def _refuse(pairs: pd.DataFrame, wrong: np.ndarray, what: str) -> None:
    if wrong.any():
        first = pairs.iloc[int(wrong.argmax())]
        raise ValueError(
            f"{int(wrong.sum())} of {len(pairs)} pair(s) {what}, first control row {first['control']} with perturbed row "
            f"{first['perturbed']}."
        )
