"""Predictions as AnnData."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from multipert import _keys

from ._targets import encode_targets, label_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multipert.data._codec import ConditionCodec
    from multipert.data._conditions import Condition

    from ._base import PerturbationModel
    from ._predict import Predictor
    from ._realise import Realise
    from ._setup import Setup


def cells_to_anndata(
    predictor: Predictor,
    groups: Sequence[tuple[np.ndarray, Sequence[Condition]]],
    source: AnnData,
    setup: Setup,
    codec: ConditionCodec,
    n_slots: int,
    provenance: dict[str, Any],
) -> AnnData:
    """Every chosen control cell under every target.

    Parameters
    ----------
    predictor
        The bound prediction.
    groups
        Row numbers of control cells, and the targets wanted for them.
    source
        The AnnData of the control cells.
    setup
        The model's setup.
    codec
        The model's vocabulary.
    n_slots
        The model's number of slots.
    provenance
        What goes into `uns`.

    Returns
    -------
    One row per control cell and target, targets in the order asked for within a group.
    """
    frames, names, matrices, drawn = [], [], [], []
    for rows, targets in groups:
        labels, suffixes = label_columns(targets, codec, setup.perturbation_key, setup.dose_key)
        obs = source.obs.iloc[np.tile(rows, len(targets))].copy()
        for column in labels:
            obs[column] = np.repeat(labels[column].to_numpy(), len(rows))
        barcodes = source.obs_names[rows].astype(str)
        obs[_keys.SOURCE_CELL] = np.tile(barcodes, len(targets))
        names += [f"{barcode}:{suffix}" for suffix in suffixes for barcode in barcodes]
        frames.append(obs)
        expression, counts = predictor.cells(rows, *encode_targets(targets, codec, n_slots))
        matrices.append(expression)
        drawn.append(counts)
    obs = pd.concat(frames) if len(frames) > 1 else frames[0]
    obs.index = pd.Index(names)
    obs[setup.perturbation_key] = obs[setup.perturbation_key].astype("category")
    _number_doses(obs, setup.dose_key)
    result = AnnData(X=_joined(matrices), obs=obs, var=source.var.copy(), uns={_keys.UNS: provenance})
    if drawn[0] is not None:
        result.layers[_keys.COUNTS_LAYER] = _joined([counts for counts in drawn if counts is not None])
    return result


def means_to_anndata(
    predictor: Predictor,
    groups: Sequence[tuple[np.ndarray, Sequence[Condition]]],
    source: AnnData,
    setup: Setup,
    codec: ConditionCodec,
    n_slots: int,
    provenance: dict[str, Any],
) -> AnnData:
    """One row per target and context; see :func:`cells_to_anndata` for the parameters.

    Parameters
    ----------
    predictor
        The bound prediction.
    groups
        Row numbers of control cells, and the targets wanted for them.
    source
        The AnnData of the control cells.
    setup
        The model's setup.
    codec
        The model's vocabulary.
    n_slots
        The model's number of slots.
    provenance
        What goes into `uns`.

    Returns
    -------
    Means in `X`, population variances in `layers["variance"]`, numbers of cells in `obs["n_cells"]`.
    """
    frames, matrices, spreads = [], [], []
    for rows, targets in groups:
        labels, suffixes = label_columns(targets, codec, setup.perturbation_key, setup.dose_key)
        means, variances, contexts, n_cells = predictor.moments(rows, *encode_targets(targets, codec, n_slots))
        obs = labels.loc[np.repeat(np.arange(len(targets)), len(contexts))]
        names = [f"{context}:{suffix}" if context else suffix for suffix in suffixes for context in contexts]
        obs.index = pd.Index(names)
        if setup.context_key is not None:
            obs[setup.context_key] = np.tile(contexts, len(targets))
        obs[_keys.N_CELLS] = np.tile(n_cells, len(targets))
        frames.append(obs)
        matrices.append(means.reshape(-1, means.shape[-1]))
        spreads.append(variances.reshape(-1, means.shape[-1]))
    obs = pd.concat(frames)
    _number_doses(obs, setup.dose_key)
    return AnnData(
        X=_joined(matrices),
        obs=obs,
        var=source.var.copy(),
        layers={_keys.VARIANCE_LAYER: _joined(spreads)},
        uns={_keys.UNS: provenance},
    )


def join_samples(samples: Sequence[AnnData]) -> AnnData:
    """Cells of several samples under one another.

    Parameters
    ----------
    samples
        What :func:`cells_to_anndata` made of each sample.

    Returns
    -------
    One AnnData, samples one after the other, numbered in `obs["draw"]`, with `#` and the number behind the names.
    """
    first = samples[0]
    obs = pd.concat([one.obs.assign(**{_keys.SAMPLE: number}) for number, one in enumerate(samples)])
    obs.index = pd.Index([f"{name}#{number}" for name, number in zip(obs.index, obs[_keys.SAMPLE], strict=True)])
    return AnnData(
        X=_joined([one.X for one in samples]),
        obs=obs,
        var=first.var,
        layers={key: _joined([one.layers[key] for one in samples]) for key in first.layers},
        uns=first.uns,
    )


def pool_samples(samples: Sequence[AnnData]) -> AnnData:
    """Means and variances over cells and samples; every sample has the same number of cells.

    Parameters
    ----------
    samples
        What :func:`means_to_anndata` made of each sample.

    Returns
    -------
    One AnnData of the same rows; `n_cells` stays the number of control cells.
    """
    result = samples[0]
    means = np.stack([one.X for one in samples]).astype(np.float64)
    within = np.stack([one.layers[_keys.VARIANCE_LAYER] for one in samples]).astype(np.float64)
    result.X = means.mean(axis=0).astype(np.float32)
    result.layers[_keys.VARIANCE_LAYER] = (within.mean(axis=0) + means.var(axis=0)).astype(np.float32)
    return result


def _number_doses(obs: pd.DataFrame, dose_key: str | None) -> None:
    """Make doses numbers, unless one of them is of a combination such as "1+5"."""
    if dose_key is not None:
        numbers = pd.to_numeric(obs[dose_key], errors="coerce")
        if numbers.notna().all():
            obs[dose_key] = numbers.astype(float)


def annotation(
    model: PerturbationModel,
    source: AnnData,
    name: str,
    latent: bool,
    prediction: bool,
    realise: Realise,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Everything that `annotate` writes, computed before any of it is written.

    Parameters
    ----------
    model
        A trained model.
    source
        The cells.
    name
        Name of the keys.
    latent
        Whether to encode the cells.
    prediction
        Whether to predict them.
    realise
        How decoded expression becomes cells.
    seed
        Seed of the pairing and of what is drawn.

    Returns
    -------
    Attribute of the AnnData -> key -> value.
    """
    written: dict[str, dict[str, Any]] = {"uns": {name: model._provenance(realise, seed)}}
    if latent:
        written["obsm"] = {f"X_{name}": model.get_latent_representation(source)}
        written["obsm"].update({f"X_{name}_{kind}": z for kind, z in model._further_latents(source).items()})
    if prediction:
        written["layers"] = {f"{name}_predicted": _own_labels(model, source, realise, seed)}
    return written


def _own_labels(model: PerturbationModel, source: AnnData, realise: Realise, seed: int) -> np.ndarray:
    rows = np.arange(source.n_obs)
    contexts = model._setup.contexts(source)
    conditions, inverse = model._setup.conditions(source)
    codes, doses = encode_targets(conditions, model._codec, model._n_slots)
    refused = np.array([reason is not None for reason in model._refusals(conditions)])[inverse]
    partners = model._partners(source, rows, seed)
    reasons = {
        "are in contexts without control cells": (partners < 0, contexts),
        "are in contexts that the model was not trained on": (model._is_unseen_context(contexts), contexts),
        "have covariates that the model was not trained on": (model._has_unseen_covariate(source), source.obs_names),
        "have labels that the model cannot predict": (refused, source.obs[model._setup.perturbation_key].to_numpy()),
    }
    left_out = np.zeros(len(rows), dtype=bool)
    for reason, (mask, names) in reasons.items():
        if mask.any():
            shown = ", ".join(sorted(set(np.asarray(names)[mask].astype(str)))[:5])
            warnings.warn(
                f"{int(mask.sum())} cell(s) {reason} ({shown}); their predicted rows are NaN.",
                UserWarning,
                stacklevel=4,
            )
        left_out |= mask
    paired = np.flatnonzero(~left_out)
    predicted = np.empty(source.shape, dtype=np.float32)
    predicted[left_out] = np.nan
    predictor = model._predictor(source, realise, None, seed, None)
    labels = codes[inverse[paired]], doses[inverse[paired]]
    for at, values in predictor.own_labels(partners[paired], *labels, "Predicting cells"):
        predicted[paired[at]] = values
    return predicted


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if len(parts) > 1 else parts[0]
