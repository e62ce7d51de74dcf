"""Setup arguments: checked against the data and the model's tags, then turned into fields."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from multipert import _keys
from multipert.data._checks import check_column, check_control, check_expression, check_names, expression
from multipert.data._codec import ConditionCodec, parse_column, tokens
from multipert.data._conditions import Condition, canonical_label, close_matches
from multipert.data._fields import (
    CategoryField,
    CellEmbeddingField,
    ConditionField,
    DoseField,
    ExpressionField,
    TargetField,
)
from multipert.data._pairing import named_controls

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mudata import MuData
    from scvi.data.fields import BaseAnnDataField

    from ._tags import ModelTags

OF_MUDATA = ("modalities", "target_layer", "chromosome_key")
"""Arguments of `setup_mudata` that `setup_anndata` has not."""

PEAKS_REMEDY = "bring peaks to 0..1 first (multipert.pp.tfidf)."
"""What to do about raw counts of accessibility."""

_MODALITIES = ("expression", "labels", "target")
# what a target without chromosomes holds is said after the setup
_TARGET_REMEDY = (
    "bring proteins to centred log ratios (multipert.pp.clr), expression to log-normalised values "
    "(multipert.pp.normalise); peaks need chromosome_key and values in 0..1 (multipert.pp.tfidf)."
)


@dataclass(frozen=True)
class Setup:
    """The arguments of `setup_anndata` or `setup_mudata`, and what they mean for a data set.

    Parameters are those of :meth:`multipert.model.PerturbationModel.setup_mudata`; `modalities` names the modality of
    `"expression"`, of `"labels"` (None: the obs of the MuData itself) and, for a model that translates, the `"target"`.
    Where there is a target, every cell is a source of it, as control cells are of perturbed ones elsewhere.
    """

    perturbation_key: str = _keys.PERTURBATION
    control: str = _keys.CONTROL
    layer: str | None = None
    context_key: str | None = None
    categorical_covariate_keys: Sequence[str] | None = None
    dose_key: str | None = None
    perturbation_embedding_key: str | None = None
    cell_embedding_key: str | None = None
    pairing_key: str | None = None
    signed: bool = False
    delimiter: str | None = "+"
    modalities: Mapping[str, str] | None = None
    target_layer: str | None = None
    chromosome_key: str | None = None

    @classmethod
    def from_registry(cls, registry: Mapping[str, Any]) -> Setup:
        """The arguments that a registry recorded."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in registry["setup_args"].items() if key in known})

    @property
    def matrix(self) -> str:
        """What to call the expression matrix in messages."""
        return "X" if self.layer is None else f"layers[{self.layer!r}]"

    @property
    def expression_modality(self) -> str | None:
        """Modality of a MuData that holds the expression."""
        return None if self.modalities is None else self.modalities["expression"]

    @property
    def target_modality(self) -> str | None:
        """Modality of a MuData that cells are translated into."""
        return None if self.modalities is None else self.modalities.get("target")

    @property
    def translates(self) -> bool:
        """Whether cells are translated between two modalities."""
        return self.target_modality is not None

    @property
    def labels_modality(self) -> str | None:
        """Modality of a MuData whose obs holds the labels."""
        return None if self.modalities is None else self.modalities.get("labels")

    def as_anndata(self, data: AnnData | MuData) -> AnnData:
        """One AnnData with the expression and the labels; a MuData's arrays are shared, not copied."""
        if isinstance(data, AnnData):
            return data
        if self.modalities is None or not hasattr(data, "mod"):
            needed = "an AnnData (setup_anndata)" if self.modalities is None else "a MuData (setup_mudata)"
            raise TypeError(f"{type(data).__name__} was given where {needed} is needed.")
        if "expression" not in self.modalities:
            raise ValueError(
                f"modalities={dict(self.modalities)} must name the modality of 'expression', such as "
                f"{{'expression': {next(iter(data.mod), 'rna')!r}}}."
            )
        for role, name in self.modalities.items():
            if role not in _MODALITIES:
                raise ValueError(f"modalities names {role!r}{close_matches(role, _MODALITIES)}")
            if name not in data.mod and role != "target":
                raise KeyError(f"modalities[{role!r}]={name!r} is not a modality{close_matches(name, data.mod)}")
        if self.target_modality not in data.mod:
            return self.with_labels(data, str(self.expression_modality))
        check_same_cells(data.mod, str(self.expression_modality), str(self.target_modality))
        adata = self.with_labels(data, str(self.expression_modality))
        adata.obsm[_keys.TARGET_OBSM] = expression(data.mod[self.target_modality], self.target_layer)[0]
        return adata

    def with_labels(self, data: MuData, modality: str, *, everywhere: bool = True) -> AnnData:
        """One modality with the labels of its cells, all of them unless `everywhere` is off; arrays are shared."""
        source = data.mod[modality]
        labels = data if self.labels_modality is None else data.mod.get(self.labels_modality, source)
        if not source.obs_names.isin(labels.obs_names).all() or (everywhere and labels.n_obs != source.n_obs):
            raise ValueError(
                f"Modality {modality!r} has {source.n_obs} cells and the labels "
                f"{labels.n_obs}; every cell must be in both (mudata.pp.intersect_obs)."
            )
        obs = labels.obs.loc[source.obs_names]
        uns = {**source.uns, **data.uns, **labels.uns}
        return AnnData(X=source.X, obs=obs, var=source.var, layers=dict(source.layers), obsm=dict(source.obsm), uns=uns)

    def expression(self, adata: AnnData) -> Any:
        """The expression matrix, shape `(n_cells, n_vars)`, as it is held."""
        return expression(adata, self.layer)[0]

    def target_expression(self, adata: AnnData) -> Any:
        """Values of the target modality, which :meth:`as_anndata` puts beside the expression; an error without them."""
        if _keys.TARGET_OBSM not in adata.obsm:
            raise KeyError(
                f"modalities['target']={self.target_modality!r} is not a modality of these data, which training needs."
            )
        return adata.obsm[_keys.TARGET_OBSM]

    def conditions(self, adata: AnnData) -> tuple[list[Condition], np.ndarray]:
        """The distinct conditions of a data set and each cell's position among them."""
        if self.translates:
            return [()], np.zeros(adata.n_obs, dtype=np.int64)
        labels = check_column(adata.obs, self.perturbation_key, "perturbation_key")
        doses = None if self.dose_key is None else check_column(adata.obs, self.dose_key, "dose_key")
        return parse_column(labels, doses, control=self.control, delimiter=self.delimiter)

    def is_control(self, adata: AnnData) -> np.ndarray:
        """Whether each cell is a control cell, shape `(n_cells,)`; an error if none is."""
        conditions, inverse = self.conditions(adata)
        mask = np.array([not condition for condition in conditions])[inverse]
        if self.translates:
            return mask
        check_control(adata.obs[self.perturbation_key], mask, self.perturbation_key, self.control)
        return mask

    def contexts(self, adata: AnnData) -> np.ndarray:
        """Name of each cell's context, shape `(n_cells,)`; the empty name where no context is set up."""
        if self.context_key is None:
            return np.full(adata.n_obs, "", dtype=object)
        return check_column(adata.obs, self.context_key, "context_key").astype(str).to_numpy(dtype=object)

    def embedding(self, adata: AnnData) -> pd.DataFrame | None:
        """The table of perturbation embeddings without the control row, or None."""
        key = self.perturbation_embedding_key
        if key is None:
            return None
        if key not in adata.uns:
            raise KeyError(f"perturbation_embedding_key={key!r} is not in uns{close_matches(key, adata.uns)}")
        table = adata.uns[key]
        if not isinstance(table, pd.DataFrame):
            raise TypeError(f"uns[{key!r}] is a {type(table).__name__}; store a DataFrame with perturbations as index.")
        table = table.set_axis(table.index.astype(str), axis=0)
        table = table[table.index != self.control].astype(float)
        repeated = table.index[table.index.duplicated()]
        if len(repeated):
            raise ValueError(f"uns[{key!r}] has {len(repeated)} repeated row(s): {', '.join(repeated[:5])}.")
        bad = table.index[~np.isfinite(table.to_numpy()).all(axis=1)]
        if len(bad):
            raise ValueError(f"uns[{key!r}] has NaN or infinite values in {len(bad)} row(s): {', '.join(bad[:5])}.")
        return table

    def cell_embedding(self, adata: AnnData, n_dimensions: int | None = None) -> np.ndarray:
        """The given embedding of the cells, shape `(n_cells, n_dimensions)`, float32."""
        key = self.cell_embedding_key
        if key not in adata.obsm:
            raise KeyError(f"cell_embedding_key={key!r} is not in obsm{close_matches(str(key), adata.obsm)}")
        values = adata.obsm[key]
        values = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
        if n_dimensions not in (None, values.shape[1]):
            raise ValueError(
                f"obsm[{key!r}] has {values.shape[1]} columns, the model was set up with {n_dimensions}; pass the "
                "embedding made by the same encoder."
            )
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            shown = ", ".join(map(repr, adata.obs_names[bad][:3]))
            raise ValueError(f"obsm[{key!r}] has NaN or infinite values in {int(bad.sum())} cell(s), first {shown}.")
        return values.astype(np.float32)

    def codec(self, adata: AnnData) -> ConditionCodec:
        """The vocabulary of a data set that is being set up."""
        table = self.embedding(adata)
        names = tokens(self.conditions(adata)[0]) if table is None else tuple(table.index)
        return ConditionCodec(names, self.control, self.delimiter)

    def check(self, adata: AnnData, tags: ModelTags, model: str) -> None:
        """The pre-flight report: raises before anything is computed or written."""
        check_names(adata)
        self._check_types()
        self._check_tags(tags, model)
        if self.translates:
            self._check_translation(adata)
            return
        conditions, _ = self.conditions(adata)
        self.is_control(adata)
        self.contexts(adata)
        for key in self.categorical_covariate_keys or ():
            check_column(adata.obs, key, "categorical_covariate_keys")
        for condition in conditions:
            check_condition(condition, tags, model)
        if not tokens(conditions):
            raise ValueError(
                f"obs[{self.perturbation_key!r}] holds control cells only; there is nothing to learn from."
            )
        codec = self.codec(adata)
        absent = sorted(set(tokens(conditions)) - set(codec.vocabulary))
        if absent:
            raise ValueError(
                f"uns[{self.perturbation_embedding_key!r}] lacks {len(absent)} perturbation(s) of "
                f"obs[{self.perturbation_key!r}]: {', '.join(absent[:5])}; add their rows or drop their cells."
            )
        table = self.embedding(adata)
        blank = [] if table is None else table.index[~table.to_numpy().any(axis=1)].tolist()
        if blank:
            warnings.warn(
                f"{len(blank)} perturbation(s) have a row of zeros in uns[{self.perturbation_embedding_key!r}]: "
                f"{', '.join(map(str, blank[:5]))}; such rows tell nothing of a perturbation, so that a model takes them for "
                "one and the same, and some models for control. Complete them, or leave these perturbations and their cells "
                "out.",
                UserWarning,
                stacklevel=2,
            )
        if not tags.several_perturbations and len(tokens(conditions)) > 1:
            raise ValueError(
                f"{model} holds one perturbation (tag several_perturbations is False) but "
                f"obs[{self.perturbation_key!r}] has {len(tokens(conditions))}; keep one of them and control."
            )
        if self.cell_embedding_key is not None:
            self.cell_embedding(adata)
        if self.pairing_key is not None:
            self.partners(adata, np.arange(adata.n_obs))
        if tags.needs_counts and _keys.COUNTS_LAYER not in adata.layers:
            raise KeyError(f"{model} needs raw counts in layers[{_keys.COUNTS_LAYER!r}] (tag needs_counts).")
        check_expression(self.expression(adata), adata, name=self.matrix, signed=self.signed, counts=tags.counts)

    def _check_translation(self, adata: AnnData) -> None:
        """What holds where cells are translated between two modalities; what the values may be depends on their kind."""
        unused = {
            "perturbation_key": self.perturbation_key not in (None, _keys.PERTURBATION),
            "dose_key": self.dose_key is not None,
            "perturbation_embedding_key": self.perturbation_embedding_key is not None,
            "cell_embedding_key": self.cell_embedding_key is not None,
        }
        for argument, is_given in unused.items():
            if is_given:
                raise ValueError(
                    f"{argument}={getattr(self, argument)!r} has no meaning beside modalities['target'], into which all "
                    "cells are translated; leave one of them out."
                )
        self.target_expression(adata)
        self.contexts(adata)
        for key in self.categorical_covariate_keys or ():
            check_column(adata.obs, key, "categorical_covariate_keys")
        if self.pairing_key is not None:
            check_column(adata.obs, self.pairing_key, "pairing_key")
        check_expression(self.expression(adata), adata, name=self.matrix, signed=self.signed)

    def check_target(self, data: AnnData | MuData) -> None:
        """Refuse a target modality with names or chromosomes that are missing or come twice, or with raw counts."""
        if self.target_modality is None:
            return
        target = data.mod[self.target_modality]
        check_names(target)
        if self.chromosome_key is not None:
            check_column(target.var, self.chromosome_key, "chromosome_key")
        is_peaks = self.chromosome_key is not None
        check_expression(
            expression(target, self.target_layer)[0],
            target,
            name=f"Modality {self.target_modality!r}",
            signed=not is_peaks,
            remedy=PEAKS_REMEDY if is_peaks else _TARGET_REMEDY,
        )

    def _check_types(self) -> None:
        if not isinstance(self.control, str):
            raise TypeError(f"control={self.control!r} must be the text of a label, such as {str(self.control)!r}.")
        if isinstance(self.categorical_covariate_keys, str):
            key = self.categorical_covariate_keys
            raise TypeError(f"categorical_covariate_keys={key!r} must be a list of columns, such as {[key]}.")

    def _check_tags(self, tags: ModelTags, model: str) -> None:
        if self.translates and not tags.translates:
            raise ValueError(
                f"{model} does not translate between modalities (tag translates is False); leave 'target' out of modalities."
            )
        for argument in ("target_layer", "chromosome_key"):
            if getattr(self, argument) is not None and not self.translates:
                raise ValueError(
                    f"{argument}={getattr(self, argument)!r} needs a target modality; name it in modalities['target']."
                )
        if self.dose_key is not None and not tags.doses:
            raise ValueError(
                f"{model} does not use doses (tag doses is False), so dose_key={self.dose_key!r} cannot be used; write "
                "the pair as the label, such as 'TCDD@30'."
            )
        needs = {
            "context_key": tags.needs_context,
            "perturbation_embedding_key": tags.needs_embedding,
            "cell_embedding_key": tags.needs_cell_embedding,
        }
        for argument, needed in needs.items():
            if needed and getattr(self, argument) is None:
                tag = argument.removesuffix("_key").removeprefix("perturbation_")
                raise ValueError(f"{model} needs `{argument}` (tag needs_{tag}); name it in the setup.")

    def partners(self, adata: AnnData, rows: np.ndarray) -> np.ndarray:
        """Row numbers of the partners that `pairing_key` names; control cells are their own."""
        return named_controls(adata.obs, self.is_control(adata), str(self.pairing_key))[rows]

    def fields(self, adata: AnnData) -> list[BaseAnnDataField]:
        """The scvi-tools fields of this setup."""
        labels, expression = self.labels_modality, self.expression_modality
        if self.translates:
            return [
                ExpressionField(self.layer, expression),
                TargetField(self.target_layer, str(self.target_modality), self.chromosome_key),
                *self._fields_of_obs(),
            ]
        table = self.embedding(adata)
        condition = (
            self.perturbation_key,
            self.dose_key,
            self.control,
            self.delimiter,
            None if table is None else tuple(table.index),
            0 if table is None else table.shape[1],
            expression,
            labels,
        )
        made: list[BaseAnnDataField] = [
            ExpressionField(self.layer, expression),
            ConditionField(*condition),
            DoseField(*condition),
            *self._fields_of_obs(),
        ]
        if self.cell_embedding_key is not None:
            made.append(CellEmbeddingField(self.cell_embedding_key, expression))
        return made

    def _fields_of_obs(self) -> list[BaseAnnDataField]:
        """The fields of contexts and covariates."""
        labels, expression = self.labels_modality, self.expression_modality
        made: list[BaseAnnDataField] = []
        if self.context_key is not None:
            made.append(CategoryField(_keys.CONTEXT, [self.context_key], expression, labels))
        if self.categorical_covariate_keys:
            made.append(
                CategoryField(_keys.CATEGORICAL_COVARIATES, list(self.categorical_covariate_keys), expression, labels)
            )
        return made


def check_same_cells(modalities: Mapping[str, AnnData], first: str, second: str) -> None:
    """Refuse two modalities that do not hold the same cells in the same order.

    Parameters
    ----------
    modalities
        AnnData by name.
    first
        Name of one.
    second
        Name of the other.

    Raises
    ------
    ValueError
        With the number of cells on one side only, or the indexing that mends the order.
    """
    ours, theirs = modalities[first].obs_names, modalities[second].obs_names
    if ours.equals(theirs):
        return
    alone = len(ours.difference(theirs)), len(theirs.difference(ours))
    if any(alone):
        raise ValueError(
            f"{alone[0]} cell(s) are in modality {first!r} only and {alone[1]} in {second!r} only; keep the shared ones "
            "(mudata.pp.intersect_obs(mdata), then mdata = mdata.copy())."
        )
    raise ValueError(
        f"Modalities {first!r} and {second!r} hold the same cells in different orders; take "
        f"mdata[{second!r}][mdata[{first!r}].obs_names]."
    )


def check_condition(condition: Condition, tags: ModelTags, model: str) -> None:
    """Refuse a combination where the model's tags exclude it.

    Parameters
    ----------
    condition
        The condition.
    tags
        Tags of the model.
    model
        Its name.

    Raises
    ------
    ValueError
        Naming the tag.
    """
    if len(condition) > 1 and not tags.combinations:
        raise ValueError(
            f"{model} cannot use the combination {canonical_label(condition)!r} (tag combinations is False); drop these "
            "cells, or pass another `delimiter` (None reads every label whole)."
        )
