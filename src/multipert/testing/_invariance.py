"""Checks of what must change nothing, and of what is exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
from scipy import sparse

from multipert import _keys

from ._case import refused, require, require_equal, scratch

if TYPE_CHECKING:
    from anndata import AnnData

    from multipert.model._realise import Realise

    from ._case import Case


def check_input_unchanged(case: Case) -> None:
    """`predict` changes nothing in the AnnData that it is given."""
    adata = case.screen.adata()
    before = adata.copy()
    for returns in ("cells", "mean"):
        case.trained.predict(adata, returns=returns)
    for name in ("obs", "var"):
        require(getattr(adata, name).equals(getattr(before, name)), f"predict changed {name}")
    require_equal(adata.X, before.X, "values of X before and after predict")
    for name in ("layers", "obsm", "uns"):
        found, wanted = getattr(adata, name), getattr(before, name)
        require(list(found) == list(wanted), f"predict left {name} with {list(found)}; wanted: {list(wanted)}")
    for name in ("layers", "obsm"):
        for key, values in getattr(before, name).items():
            require_equal(getattr(adata, name)[key], values, f"values of {name}[{key!r}] before and after predict")


def check_batch_size(case: Case) -> None:
    """The batch size of `predict` changes nothing."""
    found = case.trained.predict(case.screen.adata(), batch_size=7)
    require_equal(found.X, case.predicted.X, "predictions in batches of 7 and of 512", tolerance=1e-5)


def check_cell_order(case: Case) -> None:
    """The order of the cells changes nothing."""
    order = np.random.default_rng(1).permutation(len(case.screen.is_control))
    found = case.trained.predict(case.screen.adata()[order].copy())
    at = found.obs_names.get_indexer(case.predicted.obs_names)
    require((at >= 0).all(), "the same cells in another order give other names of predicted cells")
    require_equal(found.X[at], case.predicted.X, "predictions of cells in two orders", tolerance=1e-5)


def check_mean(case: Case) -> None:
    """`returns="mean"` gives the moments of the predicted cells by context."""
    found, cells = case.trained.predict(case.screen.adata(), returns="mean"), case.predicted
    columns = ["label", "line", *(["amount"] if case.screen.tags.doses else [])]
    groups = cells.obs.groupby(columns, observed=True, sort=False).indices
    rows = [row if isinstance(row, tuple) else (row,) for row in found.obs[columns].itertuples(index=False, name=None)]
    require(sorted(rows) == sorted(groups), f"rows are {rows[:3]}, ...; wanted: one per perturbation, dose and context")
    for i, row in enumerate(rows):
        x = cells.X[groups[row]].astype(np.float64)
        require(
            found.obs[_keys.N_CELLS].iloc[i] == len(x), f"obs[{_keys.N_CELLS!r}] is not the number of cells of {row}"
        )
        scale = max(1.0, float(np.abs(x).max()))
        require_equal(found.X[i], x.mean(0), f"means of {row}", tolerance=1e-4 * scale)
        variance = found.layers[_keys.VARIANCE_LAYER][i]
        require_equal(variance, x.var(0), f"variances of {row}", tolerance=1e-4 * scale**2)


def check_dose_zero(case: Case) -> None:
    """A perturbation at dose 0 is control."""
    control = case.trained.predict(case.screen.adata(), "untreated")
    found = case.trained.predict(case.screen.adata(), "A", dose=0)
    require_equal(found.X, control.X, "predictions for 'A' at dose 0 and for control")
    require(list(found.obs["label"]) == list(control.obs["label"]), "a prediction at dose 0 is not labelled as control")


def check_realise(case: Case) -> None:
    """Realised under control, a cell is exactly itself; models that map no cells refuse to realise."""
    tags, screen = case.cls.tags, case.screen
    if tags.output != "cell":
        with refused(ValueError, "realise='residual', against the tag", mention="output"):
            case.trained.predict(screen.adata(), realise="residual")
        return
    ways: tuple[Realise, ...] = ("residual",) if tags.counts else ("residual", "counts")
    for realise in ways:
        found = case.trained.predict(screen.adata(), "untreated", realise=realise)
        require_equal(found.X, screen.x[screen.control_rows], f"control cells and their prediction by {realise!r}")
        found = case.trained.predict(screen.adata(), **case.one_target(), realise=realise)
        require(bool(np.isfinite(found.X).all()), f"predictions by {realise!r} are not finite")


def check_formats_in_predict(case: Case) -> None:
    """Sparse, double, viewed and backed input give the predictions of dense float32 input, bit for bit."""
    adata = case.screen.adata()
    for name, x in _formats(adata.X).items():
        adata.X = x
        require_equal(case.trained.predict(adata).X, case.predicted.X, f"predictions from {name} and from dense input")
    view = case.screen.adata()[np.arange(adata.n_obs)]
    require_equal(case.trained.predict(view).X, case.predicted.X, "predictions from a view and from the whole")
    with scratch() as folder:
        case.screen.adata().write_h5ad(folder / "screen.h5ad")
        backed = anndata.read_h5ad(folder / "screen.h5ad", backed="r")
        try:
            require_equal(
                case.trained.predict(backed).X, case.predicted.X, "predictions from a backed file and from memory"
            )
        finally:
            backed.file.close()


def check_formats_in_training(case: Case) -> None:
    """Training on sparse input gives the model of dense input bit for bit, on double precision to 1e-6."""
    for name, x in _formats(case.screen.x).items():
        adata = case.screen.adata()
        adata.X = x
        situation = f"after training on {name} and on dense float32 input"
        tolerance = 1e-6 if x.dtype == np.float64 else 0
        case.require_same_predictions(case.train(adata), case.predicted, situation, tolerance=tolerance)


def _formats(x: np.ndarray) -> dict[str, Any]:
    return {"CSR": sparse.csr_matrix(x), "CSC": sparse.csc_matrix(x), "float64": x.astype(np.float64)}


def changed(adata: AnnData, rows: np.ndarray) -> AnnData:
    """The data with quite other expression, counts and embeddings in some cells.

    Parameters
    ----------
    adata
        Data, changed in place.
    rows
        Row numbers or mask of the cells.

    Returns
    -------
    The same object.
    """
    for values in (adata.X, adata.layers[_keys.COUNTS_LAYER], adata.obsm["X_given"]):
        values[rows] = 7 * values[rows][:, ::-1] + 3
    return adata
