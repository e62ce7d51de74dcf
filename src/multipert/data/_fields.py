"""scvi-tools fields: how setup maps an AnnData or MuData to the tensors of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi.data.fields import BaseAnnDataField

from multipert import _keys

from ._checks import check_genes
from ._codec import ConditionCodec, parse_column, tokens

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


class _Field(BaseAnnDataField):
    """One registered array; `mod_key` names the modality that holds it, `labels_key` the one whose obs is read."""

    is_empty = False

    def __init__(
        self,
        registry_key: str,
        attr_name: str,
        attr_key: str | None,
        mod_key: str | None,
        labels_key: str | None = None,
    ) -> None:
        super().__init__()
        self._labels_key = labels_key
        self._registry_key = registry_key
        self._attr_name = attr_name
        self._attr_key = attr_key
        self._mod_key = mod_key

    @property
    def registry_key(self) -> str:
        """Key of the tensor in a batch."""
        return self._registry_key

    @property
    def attr_name(self) -> str:
        """Attribute of the AnnData that holds the array."""
        return self._attr_name

    @property
    def attr_key(self) -> str | None:
        """Key within that attribute."""
        return self._attr_key

    @property
    def mod_key(self) -> str | None:
        """Modality of a MuData."""
        return self._mod_key

    def holder(self, data: AnnData | MuData) -> Any:
        """The AnnData, or the modality of a MuData, that this field reads and writes."""
        return data if self._mod_key is None else data.mod[self._mod_key]

    def obs(self, data: AnnData | MuData) -> pd.DataFrame:
        """Annotation of the cells, in the order of the array."""
        labels = data if self._labels_key is None else data.mod[self._labels_key]
        return labels.obs.loc[self.holder(data).obs_names]

    def validate_field(self, adata: AnnData | MuData) -> None:
        """Nothing here: the pre-flight checks ran before any field was made."""

    def view_state_registry(self, state_registry: dict) -> None:
        """No table beside scvi-tools' own summary."""

    def get_summary_stats(self, state_registry: dict) -> dict:
        """No sizes unless a field states some."""
        return {}


class ExpressionField(_Field):
    """Expression in `X` or a layer; refuses other genes and other orders of genes.

    Parameters
    ----------
    layer
        Name of the layer; None is `X`.
    mod_key
        Modality of a MuData.
    registry_key
        Key of the tensor in a batch.
    """

    def __init__(self, layer: str | None, mod_key: str | None = None, registry_key: str = _keys.X) -> None:
        super().__init__(registry_key, "X" if layer is None else "layers", layer, mod_key)

    def register_field(self, adata: AnnData | MuData) -> dict:
        """Note sizes and gene names."""
        holder = self.holder(adata)
        return {
            "n_obs": holder.n_obs,
            "n_vars": holder.n_vars,
            "column_names": holder.var_names.astype(str).to_numpy(dtype=object),
        }

    def transfer_field(self, state_registry: dict, adata_target: AnnData | MuData, **kwargs: Any) -> dict:
        """Register data that must hold the same genes in the same order."""
        check_genes(self.holder(adata_target).var_names, state_registry["column_names"])
        return self.register_field(adata_target)

    def get_summary_stats(self, state_registry: dict) -> dict:
        """Sizes of the data set."""
        return {"n_vars": state_registry["n_vars"], "n_cells": state_registry["n_obs"]}


class TargetField(ExpressionField):
    """Values of a target modality, and the groups of its features.

    Parameters
    ----------
    layer
        Name of the layer; None is `X`.
    mod_key
        Modality of a MuData.
    chromosome_key
        var column with the chromosome of each feature; None for none.
    """

    def __init__(self, layer: str | None, mod_key: str, chromosome_key: str | None = None) -> None:
        super().__init__(layer, mod_key, _keys.X_TARGET)
        self.chromosome_key = chromosome_key

    def register_field(self, adata: AnnData | MuData) -> dict:
        """Note sizes, names and chromosomes."""
        state = super().register_field(adata)
        if self.chromosome_key is not None:
            names, codes = np.unique(self.holder(adata).var[self.chromosome_key].astype(str), return_inverse=True)
            state |= {"chromosomes": names.astype(object), "chromosome_codes": codes.astype(np.int16)}
        return state

    def transfer_field(self, state_registry: dict, adata_target: AnnData | MuData, **kwargs: Any) -> dict:
        """Register data that must hold the same features in the same order; their chromosomes are the saved ones."""
        check_genes(self.holder(adata_target).var_names, state_registry["column_names"])
        groups = {key: state_registry[key] for key in ("chromosomes", "chromosome_codes") if key in state_registry}
        return {**ExpressionField.register_field(self, adata_target), **groups}

    def get_summary_stats(self, state_registry: dict) -> dict:
        """Number of features."""
        return {"n_target_vars": state_registry["n_vars"]}


class ConditionField(_Field):
    """Perturbation codes, shape `(n_cells, n_slots)`, int32, control and padding -1.

    The vocabulary is the index of the embedding table where one is given, so that perturbations never measured are
    legal targets; else the perturbations seen.

    Parameters
    ----------
    perturbation_key
        obs column of labels.
    dose_key
        obs column of doses: a dose of 0 makes a cell a control cell.
    control
        Name of the control label.
    delimiter
        What separates the parts of a combination.
    vocabulary
        The legal perturbations; None takes those seen.
    n_embedding
        Width of their given embedding; 0 for none.
    mod_key
        Modality of a MuData that holds the expression.
    labels_key
        Modality of a MuData whose obs holds the labels; None is the obs of the MuData itself.
    """

    def __init__(
        self,
        perturbation_key: str,
        dose_key: str | None,
        control: str,
        delimiter: str | None,
        vocabulary: tuple[str, ...] | None = None,
        n_embedding: int = 0,
        mod_key: str | None = None,
        labels_key: str | None = None,
    ) -> None:
        super().__init__(_keys.PERTURBATION, "obsm", _keys.CODES_OBSM, mod_key, labels_key)
        self.n_embedding = n_embedding
        self.perturbation_key, self.dose_key = perturbation_key, dose_key
        self.control, self.delimiter, self.vocabulary = control, delimiter, vocabulary

    def _values(self, codes: np.ndarray, doses: np.ndarray) -> np.ndarray:
        return codes

    def _write(self, data: AnnData | MuData, vocabulary: tuple[str, ...] | None) -> dict:
        holder, obs = self.holder(data), self.obs(data)
        conditions, inverse = parse_column(
            obs[self.perturbation_key],
            None if self.dose_key is None else obs[self.dose_key],
            control=self.control,
            delimiter=self.delimiter,
        )
        codec = ConditionCodec(vocabulary or tokens(conditions), self.control, self.delimiter)
        holder.obsm[self._attr_key] = self._values(*codec.encode(conditions, inverse))
        return {
            "vocabulary": list(codec.vocabulary),
            "control": self.control,
            "delimiter": self.delimiter,
            "n_slots": int(holder.obsm[self._attr_key].shape[1]),
            "n_embedding": self.n_embedding,
        }

    def register_field(self, adata: AnnData | MuData) -> dict:
        """Write the codes and return the vocabulary."""
        return self._write(adata, self.vocabulary)

    def transfer_field(self, state_registry: dict, adata_target: AnnData | MuData, **kwargs: Any) -> dict:
        """Write the codes of new data in the saved vocabulary."""
        written = self._write(adata_target, tuple(state_registry["vocabulary"]))
        return {**written, "n_embedding": state_registry.get("n_embedding", 0)}

    def get_summary_stats(self, state_registry: dict) -> dict:
        """Size of the vocabulary."""
        return {"n_perturbations": len(state_registry["vocabulary"])}


class DoseField(ConditionField):
    """Doses, shape `(n_cells, n_slots)`, float32, in the user's units; control and padding 0.

    Parameters are those of :class:`ConditionField`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._registry_key, self._attr_key = _keys.DOSE, _keys.DOSES_OBSM

    def _values(self, codes: np.ndarray, doses: np.ndarray) -> np.ndarray:
        return doses

    def get_summary_stats(self, state_registry: dict) -> dict:
        """The vocabulary is counted once, by the codes."""
        return {}


class CategoryField(_Field):
    """Codes of one or several categorical obs columns, shape `(n_cells, n_columns)`, int32.

    Categories are compared as text, so that 0 and "0" are one. Categories of new data that were never seen get codes
    past the known ones; a model that depends on them refuses them before.

    Parameters
    ----------
    registry_key
        Key of the tensor in a batch.
    obs_keys
        Names of the obs columns.
    mod_key
        Modality of a MuData that holds the expression.
    labels_key
        Modality of a MuData whose obs holds the columns; None is the obs of the MuData itself.
    """

    def __init__(
        self, registry_key: str, obs_keys: list[str], mod_key: str | None = None, labels_key: str | None = None
    ) -> None:
        super().__init__(registry_key, "obsm", f"_multipert_{registry_key}", mod_key, labels_key)
        self.obs_keys = obs_keys

    def _write(self, data: AnnData | MuData, known: list[list[str]]) -> dict:
        holder, obs = self.holder(data), self.obs(data)
        codes, categories = [], []
        for key, old in zip(self.obs_keys, known, strict=True):
            values = obs[key].astype(str)
            names = [*old, *sorted(set(values) - set(old))]
            codes.append(pd.Categorical(values, categories=names).codes.astype(np.int32))
            categories.append(names)
        holder.obsm[self._attr_key] = np.stack(codes, axis=1)
        return {"keys": list(self.obs_keys), "categories": categories}

    def register_field(self, adata: AnnData | MuData) -> dict:
        """Write the codes and return the categories."""
        return self._write(adata, [[] for _ in self.obs_keys])

    def transfer_field(self, state_registry: dict, adata_target: AnnData | MuData, **kwargs: Any) -> dict:
        """Write the codes of new data, saved categories first."""
        return self._write(adata_target, state_registry["categories"])

    def get_summary_stats(self, state_registry: dict) -> dict:
        """Number of categories of the first column, and of columns."""
        if self.registry_key == _keys.CONTEXT:
            return {"n_contexts": len(state_registry["categories"][0])}
        return {"n_covariates": len(state_registry["keys"])}


class CellEmbeddingField(_Field):
    """A given embedding of the cells in `obsm`, shape `(n_cells, n_dimensions)`.

    Parameters
    ----------
    obsm_key
        Key in `obsm`.
    mod_key
        Modality of a MuData.
    """

    def __init__(self, obsm_key: str, mod_key: str | None = None) -> None:
        super().__init__(_keys.CELL_EMBEDDING, "obsm", obsm_key, mod_key)

    def register_field(self, adata: AnnData | MuData) -> dict:
        """Note the number of dimensions."""
        return {"n_dimensions": int(self.holder(adata).obsm[self._attr_key].shape[1])}

    def transfer_field(self, state_registry: dict, adata_target: AnnData | MuData, **kwargs: Any) -> dict:
        """Register an embedding that must have the same number of dimensions."""
        new = self.register_field(adata_target)
        if new != state_registry:
            raise ValueError(
                f"obsm[{self._attr_key!r}] has {new['n_dimensions']} columns, the model was set up with "
                f"{state_registry['n_dimensions']}; pass the embedding made by the same encoder."
            )
        return new

    def get_summary_stats(self, state_registry: dict) -> dict:
        """Size of the embedding."""
        return {"n_cell_embedding": state_registry["n_dimensions"]}
