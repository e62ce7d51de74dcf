"""Cells of one modality predicted in another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData

from multipert import _keys
from multipert._progress import track
from multipert.data._checks import check_genes, check_names
from multipert.data._checks import expression as expression_of
from multipert.data._conditions import close_matches
from multipert.data._store import CellStore

from ._setup import check_same_cells
from ._training import PREDICT_BATCH, checked_batch_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ._base import PerturbationModel


@dataclass(frozen=True)
class CellChoice:
    """Which cells are translated, and how many at once.

    Parameters
    ----------
    context
        Contexts whose cells are used; None uses all.
    indices
        Row numbers among which cells are used; None uses all.
    batch_size
        Cells per batch; None takes the default.
    """

    context: str | Sequence[str] | None = None
    indices: Sequence[int] | np.ndarray | None = None
    batch_size: int | None = None


def refuse_options(**given: Any) -> None:
    """Refuse options of a prediction that mean nothing between modalities.

    Parameters
    ----------
    **given
        Values by the name of the argument; None is not given.

    Raises
    ------
    ValueError
        Naming the argument.
    """
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name}={value!r} has no meaning for a model that translates between modalities.")


def modality_names(model: PerturbationModel) -> tuple[str, str]:
    """Names of the modality of the expression and of the target, the sides 0 and 1 of the module.

    Parameters
    ----------
    model
        A model that was set up with a target modality.

    Returns
    -------
    Two names.
    """
    return str(model._setup.expression_modality), str(model._setup.target_modality)


def predict_modalities(
    model: PerturbationModel,
    data: AnnData | MuData | None,
    target: Any,
    choice: CellChoice,
    *,
    returns: str,
) -> AnnData | MuData:
    """Translate cells; see :meth:`multipert.model.PerturbationModel.predict`.

    Parameters
    ----------
    model
        A trained model.
    data
        A MuData with the modality that is read, or an AnnData of it; None takes the model's own.
    target
        Name of the modality to predict; None predicts both, from each other.
    choice
        Which cells.
    returns
        "cells" or "mean".

    Returns
    -------
    An AnnData with the features of the modality, or a MuData of both.
    """
    names = modality_names(model)
    data = _own(model, data)
    if target is None:
        if isinstance(data, AnnData):
            raise ValueError(
                f"An AnnData holds one modality; name the one to predict with perturbation={names[1]!r} (from {names[0]!r}) "
                f"or {names[0]!r} (from {names[1]!r})."
            )
        return MuData({name: _predict_one(model, data, side, choice, returns) for side, name in enumerate(names)})
    if not isinstance(target, str) or target not in names:
        raise ValueError(f"Modality {target!r} is unknown to this model{close_matches(str(target), names)}")
    return _predict_one(model, data, names.index(target), choice, returns)


def annotate_modalities(
    model: PerturbationModel, data: AnnData | MuData | None, key: str, *, latent: bool, prediction: bool
) -> None:
    """Write into each modality what is predicted from the other, and its own latent representation.

    Parameters
    ----------
    model
        A trained model.
    data
        A MuData with both modalities; None takes the model's own.
    key
        Name of the keys.
    latent
        Whether to write latent representations.
    prediction
        Whether to write predictions.

    Raises
    ------
    ValueError
        If a modality is absent, or the two do not hold the same cells in the same order.
    """
    names = modality_names(model)
    data = _own(model, data)
    absent = [name for name in names if isinstance(data, AnnData) or name not in data.mod]
    if absent:
        raise ValueError(
            f"annotate writes into both modalities, but {absent[0]!r} is not one of these data; predict needs one only "
            f"(predict(data, perturbation={absent[0]!r}))."
        )
    # what is predicted from a row of one is written into the same row of the other
    check_same_cells(data.mod, *names)
    written = []
    for side, name in enumerate(names):
        cells = _Cells.of(model, data, side)
        model._check_values(cells.x, cells.obs.index, side=side)
        rows = np.arange(cells.obs.shape[0])
        if latent:
            values = cells.collect(rows, lambda x, side=side: model.module.latent(x, side), PREDICT_BATCH)
            written.append((name, "obsm", f"X_{key}", values))
        if prediction:
            values = cells.collect(rows, lambda x, side=side: model.module.translated(x, side, 1 - side), PREDICT_BATCH)
            written.append((names[1 - side], "layers", f"{key}_predicted", values))
    for name, attribute, entry, values in written:
        getattr(data.mod[name], attribute)[entry] = values
    data.uns[key] = model._provenance("plain", 0)


@dataclass
class _Cells:
    """Cells of one modality, checked."""

    model: PerturbationModel
    x: Any
    obs: pd.DataFrame

    @classmethod
    def of(cls, model: PerturbationModel, data: AnnData | MuData, side: int) -> _Cells:
        """Read the modality of one side."""
        setup, name = model._setup, modality_names(model)[side]
        if not isinstance(data, AnnData) and name not in data.mod:
            raise KeyError(
                f"Modality {name!r} is not in these data, and the other is predicted from it{close_matches(name, data.mod)}"
            )
        cells = data if isinstance(data, AnnData) else setup.with_labels(data, name, everywhere=False)
        check_names(cells)
        check_genes(cells.var_names, feature_names(model, side))
        layer = setup.layer if side == 0 else setup.target_layer
        return cls(model, expression_of(cells, layer)[0], cells.obs)

    def collect(self, rows: np.ndarray, function: Callable, batch_size: int) -> np.ndarray:
        """What a function of expression gives for some cells, float32."""
        return np.concatenate([values for _, values in self.batches(rows, function, batch_size)])

    @torch.inference_mode()
    def batches(self, rows: np.ndarray, function: Callable, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions within `rows` and what a function of expression gives."""
        module, store = self.model.module, CellStore(self.x, {})
        module.eval()
        starts = range(0, len(rows), batch_size)
        for start in track(starts, "Translating cells", total=len(starts)):
            at = np.arange(start, min(start + batch_size, len(rows)))
            yield at, function(store.expression(rows[at]).to(module.device)).float().cpu().numpy()


def feature_names(model: PerturbationModel, side: int) -> np.ndarray:
    """Names of the features of one side, as the model was set up.

    Parameters
    ----------
    model
        The model.
    side
        0 for the expression, 1 for the target.

    Returns
    -------
    Names.
    """
    key = (_keys.X, _keys.X_TARGET)[side]
    return np.asarray(model.registry_["field_registries"][key]["state_registry"]["column_names"], dtype=str)


def _own(model: PerturbationModel, data: AnnData | MuData | None) -> AnnData | MuData:
    if data is None and model.adata is None:
        raise ValueError("The model was loaded without data; pass `adata`.")
    return model.adata if data is None else data


def _predict_one(
    model: PerturbationModel, data: AnnData | MuData, side: int, choice: CellChoice, returns: str
) -> AnnData:
    """Cells of the other side on this one."""
    cells = _Cells.of(model, data, 1 - side)
    source = AnnData(obs=cells.obs)
    rows = model._control_rows(source, choice.context, choice.indices)
    model._check_values(cells.x, cells.obs.index, side=1 - side, rows=rows)
    batch_size = checked_batch_size(choice.batch_size, PREDICT_BATCH)
    var, uns = _var(model, data, side), {_keys.UNS: model._provenance("plain", 0)}

    def translated(x: torch.Tensor) -> torch.Tensor:
        return model.module.translated(x, 1 - side, side)

    if returns == "cells":
        return AnnData(cells.collect(rows, translated, batch_size), obs=cells.obs.iloc[rows].copy(), var=var, uns=uns)
    contexts = model._setup.contexts(source)[rows]
    names, codes, n_cells = np.unique(contexts.astype(str), return_inverse=True, return_counts=True)
    sums = np.zeros((2, len(names), len(var)))
    for at, values in cells.batches(rows, translated, batch_size):
        for code in np.unique(codes[at]):
            here = values[codes[at] == code].astype(np.float64)
            sums[:, code] += here.sum(axis=0), np.square(here).sum(axis=0)
    mean, square = sums / n_cells[:, None]
    obs = pd.DataFrame({_keys.N_CELLS: n_cells}, index=pd.Index(names))
    if model._setup.context_key is not None:
        obs.insert(0, model._setup.context_key, names)
    variance = np.maximum(square - np.square(mean), 0).astype(np.float32)
    return AnnData(mean.astype(np.float32), obs=obs, var=var, layers={_keys.VARIANCE_LAYER: variance}, uns=uns)


def _var(model: PerturbationModel, data: AnnData | MuData, side: int) -> pd.DataFrame:
    """Annotation of the features of one side, from the data or the model's own where they have it; else the names."""
    name, names = modality_names(model)[side], feature_names(model, side)
    for held in (data, model.adata):
        if isinstance(held, MuData) and name in held.mod and list(held.mod[name].var_names) == list(names):
            return held.mod[name].var.copy()
    return pd.DataFrame(index=pd.Index(names.astype(object)))
