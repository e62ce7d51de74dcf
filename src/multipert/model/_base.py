"""The contract: what every model does with an AnnData, once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import scvi
import torch
from scvi.data import AnnDataManager
from scvi.model.base import BaseModelClass

from multipert import _keys
from multipert.data._checks import check_column, check_expression, check_genes, check_names
from multipert.data._codec import ConditionCodec
from multipert.data._conditions import Condition, as_list, close_matches
from multipert.data._loaders import check_block_size
from multipert.data._noise import cell_keys
from multipert.data._pairing import Pairing, paired_controls
from multipert.data._rows import split_rows
from multipert.data._store import CellStore
from multipert.train._fit import check_train_kwargs, checked_precision

from . import _persistence
from ._estimate import estimate_training
from ._predict import ContextMeans, Predictor
from ._realise import Realise, check_realise, size_factors_of
from ._results import annotation, cells_to_anndata, join_samples, means_to_anndata, pool_samples
from ._setup import Setup
from ._targets import Target, check_known, check_samples, encode_targets, label_columns, names_of, read_targets
from ._training import PREDICT_BATCH, checked_batch_size, fit_model
from ._translation import CellChoice, annotate_modalities, predict_modalities, refuse_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from anndata import AnnData
    from mudata import MuData

    from multipert.data._transport import Partner
    from multipert.train import Stage, TrainingEstimate

    from ._module import PerturbationModule
    from ._tags import ModelTags


class PerturbationModel(BaseModelClass):
    """Base of all models: setup, training, prediction, annotation and files, the same for each.

    A model states its `tags`, makes its module in `_new_module`, and stores its arguments; it overrides nothing else.
    """

    tags: ClassVar[ModelTags]
    stages: tuple[Stage | Pairing, ...] = ("self",)
    """Training passes; none for a model fitted in closed form. A model may choose them by its setup."""
    parts: ClassVar[dict[str, Any]] = {}
    """Keyword arguments of the module that make a variant."""
    _partner: Partner = "best"
    """Which cell of a row of the transport plan a control cell is paired with."""
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {}}
    """Widths and training defaults by name; explicit arguments win."""
    search_space: ClassVar[dict[str, tuple]] = {}
    """Hyper-parameters worth searching: name -> ("int" | "float" | "log" | "choice", ...)."""

    module: PerturbationModule
    is_trained_: bool

    # ---------------------------------------------------------------- setup

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        perturbation_key: str = _keys.PERTURBATION,
        control: str = _keys.CONTROL,
        *,
        layer: str | None = None,
        context_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        dose_key: str | None = None,
        perturbation_embedding_key: str | None = None,
        cell_embedding_key: str | None = None,
        pairing_key: str | None = None,
        signed: bool = False,
        delimiter: str | None = "+",
        **kwargs: Any,
    ) -> None:
        """Check an AnnData and register what the model reads.

        Nothing is written before every check has passed; then codes are put into `obsm` under keys that start with
        `_multipert`.

        Parameters
        ----------
        adata
            Cells x genes, log-normalised and non-negative (raw counts for models whose tag `counts` is True).
        perturbation_key
            obs column of labels, such as "IFNB" or "A+B".
        control
            Label of the control cells.
        layer
            Layer of the expression; None is `X`.
        context_key
            obs column of contexts, such as cell types.
        categorical_covariate_keys
            obs columns of technical covariates.
        dose_key
            obs column of doses: numbers, or "1+5" in the label's order. Where the model has no doses, write the pair
            as the label (`TCDD@30`).
        perturbation_embedding_key
            Key in `uns` of a DataFrame with one row per perturbation; its index is the vocabulary.
        cell_embedding_key
            Key in `obsm` of a given embedding of the cells.
        pairing_key
            obs column with the name of the control cell that is paired with each perturbed cell; None draws one.
        signed
            Whether values may be negative (z-scores, log ratios).
        delimiter
            What separates the parts of a combination; None reads every label whole.
        **kwargs
            `source_registry`, used when a saved model is loaded.

        Raises
        ------
        KeyError
            If a column, layer or key is absent.
        ValueError
            If values are missing, not finite, negative or of the wrong kind, names are duplicated, there is no control
            cell, or the model's tags exclude what the data hold.
        TypeError
            If an argument is unknown.
        """
        cls._register(adata, cls._get_setup_method_args(**locals()), kwargs)

    @classmethod
    def setup_mudata(
        cls,
        mdata: MuData,
        perturbation_key: str = _keys.PERTURBATION,
        control: str = _keys.CONTROL,
        *,
        modalities: Mapping[str, str],
        layer: str | None = None,
        target_layer: str | None = None,
        chromosome_key: str | None = None,
        context_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        dose_key: str | None = None,
        perturbation_embedding_key: str | None = None,
        cell_embedding_key: str | None = None,
        pairing_key: str | None = None,
        signed: bool = False,
        delimiter: str | None = "+",
        **kwargs: Any,
    ) -> None:
        """Check a MuData and register what the model reads; see :meth:`setup_anndata`.

        Parameters
        ----------
        mdata
            Paired modalities.
        perturbation_key
            obs column of labels.
        control
            Label of the control cells.
        modalities
            `{"expression": name, "labels": name}`: the modality of the expression, its layers and embeddings, and the
            one whose obs holds the labels; without `"labels"` they are in the obs of the MuData itself. For a model whose
            tag `translates` is True also `"target"`: the modality that cells are translated into. Every cell must then be
            in both, in the same order; there are no perturbations and no control cells.
        layer
            Layer of the expression.
        target_layer
            Layer of the target modality.
        chromosome_key
            var column of the target modality with the chromosome of each peak.
        context_key
            obs column of contexts.
        categorical_covariate_keys
            obs columns of technical covariates.
        dose_key
            obs column of doses.
        perturbation_embedding_key
            Key in `uns` of a DataFrame with one row per perturbation.
        cell_embedding_key
            Key in `obsm` of a given embedding of the cells.
        pairing_key
            obs column with the name of the paired control cell; with a target modality one of labels (types or clusters),
            within which cells are also paired at random.
        signed
            Whether values may be negative.
        delimiter
            What separates the parts of a combination.
        **kwargs
            `source_registry`, used when a saved model is loaded.
        """
        cls._register(mdata, cls._get_setup_method_args(**locals()), kwargs)

    @classmethod
    def _register(cls, data: AnnData | MuData, setup_args: dict[str, Any], kwargs: dict[str, Any]) -> None:
        source_registry = kwargs.pop("source_registry", None)
        if kwargs:
            known = setup_args["setup_args"]
            name = next(iter(kwargs))
            raise TypeError(
                f"{setup_args['setup_method_name']}() got an unexpected argument {name!r}{close_matches(name, known)}"
            )
        setup = Setup.from_registry(setup_args)
        adata = setup.as_anndata(data)
        if adata is data and setup.modalities is not None:
            raise TypeError("AnnData was given where a MuData (setup_mudata) is needed; use setup_anndata.")
        setup.check(adata, cls.tags, cls.__name__)
        setup.check_target(data)
        if data.is_view:
            raise ValueError("The data are a view of another object; run `adata = adata.copy()` first.")
        manager = AnnDataManager(fields=setup.fields(adata), setup_method_args=setup_args)
        manager.register_fields(data, source_registry)
        cls.register_manager(manager)

    def __init__(self, adata: AnnData | None = None, registry: dict | None = None, preset: str | None = None) -> None:
        super().__init__(adata, registry)
        name = "default" if preset is None else preset
        if name not in self.presets:
            raise ValueError(f"preset={preset!r} is unknown{close_matches(name, self.presets)}")
        self._preset = {**self.presets["default"], **self.presets[name]}
        self._setup = Setup.from_registry(self.registry_)
        state = self._label_state()
        self._codec = ConditionCodec(tuple(state["vocabulary"]), state["control"], state["delimiter"])
        self._n_slots = int(state["n_slots"])
        self._n_embedding = int(state.get("n_embedding", 0)) or None
        self.trained_conditions_: list[Condition] = []
        self.trained_contexts_: list[str] = []
        self.trained_covariates_: dict[str, list[str]] = {}
        self.history_: dict[str, pd.DataFrame] = {}
        self._model_summary_string = (
            f"{type(self).__name__}: {len(self._codec.vocabulary)} perturbation(s), {self.summary_stats.n_vars} genes"
        )

    def _label_state(self) -> dict[str, Any]:
        """What the registry holds of the labels; between two modalities their names stand for control and perturbation."""
        if self._setup.translates:
            names = {"vocabulary": [self._setup.target_modality], "control": self._setup.expression_modality}
            return {**names, "delimiter": None, "n_slots": 1}
        return self.registry_["field_registries"][_keys.PERTURBATION]["state_registry"]

    def _new_module(self) -> PerturbationModule:
        """Make the module from the model's arguments; called again at the first training, under its seed."""
        raise NotImplementedError(f"{type(self).__name__} must define _new_module.")

    def _start_module(self, seed: int | None = None) -> None:
        """Make the module with weights drawn from a seed, leaving torch's own random state alone."""
        with torch.random.fork_rng():
            torch.manual_seed(_seed(seed))
            self.module = self._new_module()
        if self.module.reads_counts:
            if self._setup.signed:
                raise ValueError(
                    "The likelihood is of counts, but the data were set up with signed=True; take one of log-normalised "
                    "expression."
                )
            if self.adata is not None:
                self._counts(self._setup.as_anndata(self.adata), type(self).__name__)

    def _value(self, name: str, given: Any) -> Any:
        """An explicit argument, or the preset's."""
        return self._preset[name] if given is None else given

    # ---------------------------------------------------------------- training

    def train(
        self,
        max_epochs: int | None = None,
        *,
        split_key: str | None = None,
        train_size: float = 0.9,
        batch_size: int | None = None,
        block_size: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        precision: str = "32-true",
        early_stopping: bool = False,
        lr: float | None = None,
        weight_decay: float | None = None,
        seed: int | None = None,
        plan_kwargs: dict[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Fit the model on the training cells; cells marked as test are never read.

        The first call draws the initial weights from `seed`; further calls continue from the weights reached. `history` holds
        per epoch the losses, `cells_per_second`, `epoch_seconds`, of these the `loading_seconds` that batches were waited
        for, and the `peak_memory` in bytes: of the process, or of the tensors on a GPU.

        Parameters
        ----------
        max_epochs
            Passes over the training cells per stage; None takes the preset's, which may be a number of updates. Models
            fitted in closed form accept and ignore it.
        split_key
            obs column with "train", "val" and "test" for every cell; None draws `train_size` at random.
        train_size
            Share of training cells where there is no `split_key`.
        batch_size
            Cells per update, over all devices together.
        block_size
            Cells that follow each other in the data and that the shuffling keeps together until a buffer of 16,384 cells
            is shuffled; None shuffles cells in memory fully, and those on disk in blocks of 64. Of no use to models in
            closed form and to those that draw cells of each condition.
        accelerator
            As in Lightning: "cpu", "gpu", "auto".
        devices
            How many, or which; "auto" takes one. Several are trained on in a process each, which runs the script anew.
        precision
            "32-true"; "bf16-mixed", which is faster where the processor has bfloat16 and rounds to about three digits; or
            "16-mixed" on a GPU. Weights stay in float32.
        early_stopping
            Whether to stop when the loss of the validation cells no longer falls.
        lr
            Learning rate.
        weight_decay
            L2 penalty.
        seed
            Seed of the weights, batches and dropout; None takes `scvi.settings.seed`, else 0.
        plan_kwargs
            Further arguments of :class:`multipert.train.PerturbationTrainingPlan`.
        **trainer_kwargs
            Further arguments of scvi-tools' `Trainer`, such as `enable_progress_bar`.

        Raises
        ------
        ValueError
            If the split is incomplete, or there is no control or no perturbed training cell.
        FloatingPointError
            If the loss is not finite; the last finite weights are kept.
        """
        check_train_kwargs(trainer_kwargs, plan_kwargs)
        _checked_epochs(max_epochs)
        precision = checked_precision(precision)
        check_block_size(block_size)
        if self.adata is None:
            raise ValueError("The model was loaded without data; pass `adata` to load to train it further.")
        seed = _seed(seed)
        self.adata_manager.validate()
        # the data may have been changed since the setup
        adata = self._source(None)
        self._setup.check(adata, self.tags, type(self).__name__)
        train, val, test = split_rows(adata.obs, split_key, train_size, seed)
        if early_stopping and not len(val):
            raise ValueError("early_stopping needs validation cells: mark some as 'val', or set train_size below 1.")
        if not self.is_trained_:
            self._start_module(seed)
        fit_model(
            self,
            adata,
            (train, val),
            seed=seed,
            max_epochs=max_epochs,
            batch_size=batch_size,
            block_size=block_size,
            lr=lr,
            weight_decay=weight_decay,
            plan_kwargs=plan_kwargs or {},
            accelerator=accelerator,
            devices=devices,
            precision=precision,
            early_stopping=early_stopping,
            **trainer_kwargs,
        )
        self.train_indices, self.validation_indices, self.test_indices = train, val, test
        self.is_trained_ = True

    def estimate(
        self,
        adata: AnnData | MuData | None = None,
        max_epochs: int | None = None,
        *,
        split_key: str | None = None,
        train_size: float = 0.9,
        batch_size: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        precision: str = "32-true",
        seed: int | None = None,
    ) -> TrainingEstimate:
        """Tell the time and memory of a training from a few updates of a fresh module; the model is not changed.

        Parameters
        ----------
        adata
            What the training would read, set up as the model's own; None takes the model's own data.
        max_epochs
            As in :meth:`train`.
        split_key
            As in :meth:`train`.
        train_size
            As in :meth:`train`.
        batch_size
            As in :meth:`train`.
        accelerator
            As in :meth:`train`.
        devices
            As in :meth:`train`; one of them is used.
        precision
            As in :meth:`train`.
        seed
            As in :meth:`train`.

        Returns
        -------
        Updates, seconds, cells per second and bytes. Seconds are those of the updates: pairing by transport and what a
        model fits before or after them come on top. A model fitted in closed form has no updates, and NaN cells per second.

        Raises
        ------
        ValueError
            As in :meth:`train`.
        """
        seed = _seed(seed)
        source = self._source(adata)
        self._setup.check(source, self.tags, type(self).__name__)
        train, _, _ = split_rows(source.obs, split_key, train_size, seed)
        return estimate_training(
            self,
            source,
            train,
            seed=seed,
            max_epochs=_checked_epochs(max_epochs),
            batch_size=batch_size,
            accelerator=accelerator,
            devices=devices,
            precision=checked_precision(precision),
        )

    def _training_store(self, adata: AnnData, seed: int) -> CellStore:
        """The model's own cells, codes made anew from obs."""
        conditions, inverse = self._setup.conditions(adata)
        codes, doses = encode_targets(conditions, self._codec, self._n_slots)
        columns = self._extra_columns(adata, self._setup.contexts(adata))
        for key in (_keys.CONTEXT, _keys.CATEGORICAL_COVARIATES):
            n_new = int((columns[key] < 0).any(axis=1).sum()) if key in columns else 0
            if n_new:
                raise ValueError(
                    f"{n_new} cell(s) have a category of {key} that the model was not set up with; set up the data again "
                    "and make a new model."
                )
        columns.update({_keys.PERTURBATION: codes[inverse], _keys.DOSE: doses[inverse]})
        if self.module.indexed_training:
            columns[_keys.ROW] = np.arange(adata.n_obs)
        if self.module.keyed_training:
            columns[_keys.CELL_KEY] = cell_keys(seed, adata.obs_names)
        target = None
        if self._setup.translates:
            target = self._setup.target_expression(adata)
            self._check_values(target, adata.obs_names, side=1)
        return CellStore(self._setup.expression(adata), columns, target)

    def _with_size_factors(self, store: CellStore, adata: AnnData, rows: np.ndarray) -> CellStore:
        """The training store with the size factors of some cells, increasing row numbers, where the module reads counts."""
        if not self.module.reads_counts:
            return store
        counts = self._counts(adata, type(self).__name__)
        factors = size_factors_of(self._setup.expression(adata), counts, adata.obs_names, rows)
        return store.with_columns({_keys.SIZE_FACTOR: factors})

    def _check_values(self, x: Any, obs_names: pd.Index, *, side: int, rows: np.ndarray | None = None) -> None:
        """Refuse values of one of two modalities, the expression (0) or the target (1), that are not of its kind."""
        raise NotImplementedError(f"{type(self).__name__} must define _check_values.")

    def _partners(self, adata: AnnData, rows: np.ndarray, seed: int) -> np.ndarray:
        if self._setup.pairing_key is not None:
            return self._setup.partners(adata, rows)
        contexts = pd.factorize(self._setup.contexts(adata))[0]
        return paired_controls(adata.obs_names, contexts, self._setup.is_control(adata), rows, seed=seed)

    # ---------------------------------------------------------------- prediction

    def predict(
        self,
        adata: AnnData | MuData | None = None,
        perturbation: str | Sequence[str] | pd.DataFrame | None = None,
        *,
        dose: Any = None,
        context: str | Sequence[str] | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        returns: Literal["cells", "mean"] = "cells",
        realise: Realise = "plain",
        clip: bool | None = None,
        n_samples: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> AnnData:
        """Predict control cells under other labels; the input is never changed.

        Cost is linear in targets x control cells; each control cell is encoded once. A model that was set up with a target
        modality translates all cells, and a modality stands for a label.

        Parameters
        ----------
        adata
            Data with control cells, set up or not; None takes the model's own.
        perturbation
            A label, several, a DataFrame with the columns perturbation, dose and context, or None for every trained
            label but control. Of two modalities the name of that to predict, from cells that need to have the other only;
            None predicts both, as a MuData.
        dose
            A dose for all labels, or one for each, in the units of the training data.
        context
            Which contexts' control cells to use; None uses all.
        indices
            Row numbers among which control cells are used; None uses all.
        returns
            "cells" gives every control cell under every target; "mean" gives one row per target and context, streamed.
        realise
            How decoded expression becomes cells: "plain" as decoded, "residual" as a change of the control cell,
            "counts" by thinning and adding to its raw counts in `layers["counts"]`.
        clip
            Whether negative values are set to 0; None does so unless the data are signed.
        n_samples
            Counterfactuals drawn of each control cell, for models whose tag `samples` is True; None gives one, from the
            mean of the cell's latent distribution where there is one.
        batch_size
            Cells per batch.
        seed
            Seed of what is drawn, keyed by cell, so that order and batch size change nothing.

        Returns
        -------
        For "cells" `n_targets * n_control` rows with `X` in the space of the training layer, the control cell's obs
        with perturbation and dose replaced, and `source_cell`; for "mean" one row per target and context with
        `layers["variance"]` (over cells, population variance) and `obs["n_cells"]`. With `n_samples` there are as many
        times the rows of "cells", numbered in `obs["draw"]`; means and variances are over cells and samples. Translated
        cells keep their names and obs.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If a label is unknown, genes differ, there are no control cells, or a tag excludes what was asked for.
        KeyError
            If an obs column or layer is absent.
        """
        self._require_trained()
        if returns not in ("cells", "mean"):
            raise ValueError(f"returns={returns!r} is unknown; known: 'cells', 'mean'.")
        if self._setup.translates:
            refuse_options(dose=dose, n_samples=n_samples, clip=clip, realise=None if realise == "plain" else realise)
            cells = CellChoice(context, indices, batch_size)
            return predict_modalities(self, adata, perturbation, cells, returns=returns)
        check_realise(realise, self._setup.signed, self.tags.output)
        batch_size = checked_batch_size(batch_size, PREDICT_BATCH)
        check_samples(n_samples, self.tags, type(self).__name__)
        targets = read_targets(
            perturbation,
            dose,
            codec=self._codec,
            trained=self.trained_conditions_,
            tags=self.tags.given(self._n_embedding is not None),
            model=type(self).__name__,
            dose_key=self._setup.dose_key,
        )
        for condition, _ in targets:
            self._check_target(condition)
        source = self._source(adata)
        rows = self._control_rows(source, context, indices)
        groups = self._target_rows(source, targets, rows)
        # the mean of a context is taken over all its control cells
        needs_all = self.module.context_means or self.module.context_latents
        read = self._setup.is_control(source) if needs_all else np.isin(np.arange(source.n_obs), rows)
        self._check_rows(source, np.flatnonzero(read))
        predictor = self._predictor(source, realise, clip, seed, batch_size)
        provenance = self._provenance(realise, seed)
        if n_samples is not None:
            provenance["n_samples"] = int(n_samples)
        collect, join = (cells_to_anndata, join_samples) if returns == "cells" else (means_to_anndata, pool_samples)
        drawn = [predictor] if n_samples is None else map(predictor.sampling, range(int(n_samples)))
        results = (collect(one, groups, source, self._setup, self._codec, self._n_slots, provenance) for one in drawn)
        return next(results) if n_samples is None else join(list(results))

    def annotate(
        self,
        adata: AnnData | MuData | None = None,
        *,
        latent: bool = True,
        prediction: bool = True,
        realise: Realise = "plain",
        key: str | None = None,
        seed: int = 0,
    ) -> None:
        """Write the latent representation and predictions into the AnnData.

        Row i of the predicted layer is the counterfactual, under cell i's own label, of the control cell paired with
        cell i; a perturbed cell's own expression is never an input, so the layer can be scored. Cells that cannot be
        predicted, for want of control cells in their context or of training, get NaN and a warning. Of two modalities each
        gets the prediction from the other, and its own latent representation.

        Parameters
        ----------
        adata
            What to annotate; None takes the model's own data.
        latent
            Whether to write `obsm["X_<key>"]`, shape `(n_cells, n_latent)`.
        prediction
            Whether to write `layers["<key>_predicted"]`, shape `(n_cells, n_vars)`.
        realise
            As in :meth:`predict`.
        key
            Name in place of the model's.
        seed
            Seed of the pairing and of what is drawn.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            As in :meth:`predict`.
        """
        self._require_trained()
        if self._setup.translates:
            refuse_options(realise=None if realise == "plain" else realise)
            annotate_modalities(self, adata, key or type(self).__name__, latent=latent, prediction=prediction)
            return
        check_realise(realise, self._setup.signed, self.tags.output)
        source = self._source(adata)
        self._check_rows(source, None)
        name = key or type(self).__name__
        written = annotation(self, source, name, latent and self.tags.latent, prediction, realise, seed)
        data = self.adata if adata is None else adata
        modality = self._setup.expression_modality
        target = data if source is data or modality is None else data.mod[modality]
        for attribute, values in written.items():
            getattr(target, attribute).update(values)

    def get_latent_representation(
        self,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Encode cells.

        Parameters
        ----------
        adata
            Cells; None takes the model's own data.
        indices
            Row numbers; None takes all.
        batch_size
            Cells per batch.

        Returns
        -------
        Shape `(n_cells, n_latent)`, float32.

        Raises
        ------
        ValueError
            If the model has no latent representation, or genes differ.
        """
        self._require_trained()
        if not self.tags.latent:
            raise ValueError(f"{type(self).__name__} has no latent representation (tag latent is False).")
        source = self._source(adata, needs_control=False)
        rows = np.arange(source.n_obs) if indices is None else _row_numbers(source, indices)
        self._check_rows(source, np.unique(rows))
        self._check_contexts(source, rows)
        predictor = self._predictor(source, "plain", None, 0, batch_size, needs_means=False)
        with torch.inference_mode():
            self.module.eval()
            parts = [
                self.module.inference(tensors)["z"].float().cpu().numpy() for _, tensors in predictor.batches(rows)
            ]
        return np.concatenate(parts)

    def _further_latents(self, source: AnnData) -> dict[str, np.ndarray]:
        """Latent representations that only this model has, by the end of their key in `obsm`; NaN where a cell has none.

        A public `get_latents` returns them by the same names, of some cells, beside that of :meth:`get_latent_representation`.
        """
        return {}

    def get_perturbation_embedding(self) -> pd.DataFrame:
        """What the model learnt of each perturbation.

        Returns
        -------
        One row per perturbation of the vocabulary (trained condition for closed-form models).

        Raises
        ------
        ValueError
            If the model has none.
        """
        self._require_trained()
        if not self.tags.perturbation_embedding:
            raise ValueError(
                f"{type(self).__name__} has no perturbation embedding (tag perturbation_embedding is False)."
            )
        with torch.inference_mode():
            return self._perturbation_embedding()

    def _check_target(self, condition: Condition) -> None:
        """Refuse a target that the tags allow but this fit cannot give."""

    def _refusals(self, conditions: Sequence[Condition], *, suggests: bool = False) -> list[str | None]:
        """Why each condition cannot be predicted, or None; linear in the conditions unless near names are asked for."""
        seen, tags = names_of(self.trained_conditions_), self.tags.given(self._n_embedding is not None)
        reasons: list[str | None] = []
        for condition in conditions:
            try:
                check_known(condition, self._codec, seen, tags, type(self).__name__, suggests=suggests)
                self._check_target(condition)
            except ValueError as error:
                reasons.append(str(error))
            else:
                reasons.append(None)
        return reasons

    def _labels(self, conditions: Sequence[Condition]) -> pd.Index:
        """Labels of some conditions, with doses where the model was set up with any."""
        labels = label_columns(conditions, self._codec, self._setup.perturbation_key, self._setup.dose_key)[1]
        named = [
            label if condition else self._codec.control for condition, label in zip(conditions, labels, strict=True)
        ]
        return pd.Index(named, name=self._setup.perturbation_key)

    def _label_tensors(self, conditions: Sequence[Condition]) -> dict[str, torch.Tensor]:
        """What a batch holds of some conditions, without cells."""
        codes, doses = encode_targets(conditions, self._codec, self._n_slots)
        arrays = {
            _keys.X: np.zeros((len(codes), 0), dtype=np.float32),
            _keys.PERTURBATION: codes,
            _keys.DOSE: doses,
        }
        return {key: torch.from_numpy(value).to(self.module.device) for key, value in arrays.items()}

    def _perturbation_embedding(self) -> pd.DataFrame:
        raise NotImplementedError(f"{type(self).__name__} must define _perturbation_embedding.")

    def _require_trained(self) -> None:
        if not self.is_trained_:
            raise RuntimeError(f"This {type(self).__name__} is not trained; call train() first.")

    def _source(self, adata: AnnData | MuData | None, *, needs_control: bool = True) -> AnnData:
        """The AnnData to read, its names and genes checked."""
        if adata is None:
            if self.adata is None:
                raise ValueError("The model was loaded without data; pass `adata`.")
            adata = self.adata
        source = self._setup.as_anndata(adata)
        check_names(source)
        check_genes(source.var_names, self.get_var_names())
        if needs_control:
            self._setup.is_control(source)
        return source

    def _check_rows(self, source: AnnData, rows: np.ndarray | None) -> None:
        """Refuse bad expression in the cells that will be read; None is all."""
        check_expression(
            self._setup.expression(source),
            source,
            name=self._setup.matrix,
            rows=rows,
            signed=self._setup.signed,
            counts=self.tags.counts,
        )

    def _is_unseen_context(self, names: np.ndarray) -> np.ndarray:
        """Whether each context is one that this model cannot predict."""
        if not self.tags.uses_context or self.tags.unseen_context:
            return np.zeros(len(names), dtype=bool)
        return ~np.isin(names.astype(str), self.trained_contexts_)

    def _check_contexts(self, source: AnnData, rows: np.ndarray) -> None:
        self._check_covariates(source, rows)
        if not self.tags.uses_context or self.tags.unseen_context:
            return
        names = self._setup.contexts(source)[rows]
        unseen = sorted(set(names[self._is_unseen_context(names)]))
        if unseen:
            raise ValueError(
                f"{type(self).__name__} cannot predict unseen contexts (tag unseen_context is False): "
                f"{', '.join(unseen[:5])}{close_matches(unseen[0], self.trained_contexts_)}"
            )

    def _check_covariates(self, source: AnnData, rows: np.ndarray) -> None:
        """Refuse values of categorical covariates that no training cell had."""
        for key, (values, unseen) in self._unseen_covariates(source).items():
            if unseen[rows].any():
                unknown, known = sorted(set(values[rows][unseen[rows]])), self.trained_covariates_[key]
                raise ValueError(
                    f"{int(unseen[rows].sum())} cell(s) have values of obs[{key!r}] that {type(self).__name__} was not "
                    f"trained on: {', '.join(unknown[:5])}{close_matches(unknown[0], known)}"
                )

    def _has_unseen_covariate(self, source: AnnData) -> np.ndarray:
        """Whether each cell has a value of a covariate that this model reads and was not trained on."""
        found = [unseen for _, unseen in self._unseen_covariates(source).values()]
        return np.logical_or.reduce([np.zeros(source.n_obs, dtype=bool), *found])

    def _unseen_covariates(self, source: AnnData) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Values of the covariates that this model reads, as text, and which of them no training cell had."""
        found = {}
        for key, known in self.trained_covariates_.items() if self.tags.uses_covariates else ():
            values = check_column(source.obs, key, "categorical_covariate_keys").astype(str)
            found[key] = values.to_numpy(dtype=object), ~values.isin(known).to_numpy()
        return found

    def get_var_names(self, legacy_mudata_format: bool = False) -> np.ndarray:
        """Genes that the model was set up with, in their order.

        Parameters
        ----------
        legacy_mudata_format
            For scvi-tools; not used.

        Returns
        -------
        Names, shape `(n_vars,)`.
        """
        return np.asarray(self.registry_["field_registries"][_keys.X]["state_registry"]["column_names"], dtype=str)

    def _control_rows(
        self, source: AnnData, context: str | Sequence[str] | None, indices: Sequence[int] | np.ndarray | None
    ) -> np.ndarray:
        chosen = self._setup.is_control(source)
        if indices is not None:
            mask = np.zeros(source.n_obs, dtype=bool)
            mask[_row_numbers(source, indices)] = True
            chosen = chosen & mask
        if context is not None:
            chosen = chosen & self._in_contexts(source, context)
        if not chosen.any():
            raise ValueError("No control cell is left after `context` and `indices`; widen the choice.")
        rows = np.flatnonzero(chosen)
        self._check_contexts(source, rows)
        return rows

    def _in_contexts(self, source: AnnData, names: str | Sequence[str]) -> np.ndarray:
        if self._setup.context_key is None:
            raise ValueError("context was given but the model was set up without context_key.")
        contexts = self._setup.contexts(source)
        wanted = [str(name) for name in as_list(names)]
        for name in wanted:
            if name not in set(contexts):
                raise ValueError(f"Context {name!r} is not in the data{close_matches(name, set(contexts))}")
        return np.isin(contexts, wanted)

    def _target_rows(
        self, source: AnnData, targets: Sequence[Target], rows: np.ndarray
    ) -> list[tuple[np.ndarray, list[Condition]]]:
        """Targets grouped by the control cells that they are predicted for."""
        grouped: dict[str | None, list[Condition]] = {}
        for condition, context in targets:
            grouped.setdefault(context, []).append(condition)
        result = []
        for context, conditions in grouped.items():
            here = rows if context is None else rows[self._in_contexts(source, [context])[rows]]
            if not len(here):
                raise ValueError(f"Context {context!r} has no control cell among those chosen.")
            result.append((here, conditions))
        return result

    def _predictor(
        self,
        source: AnnData,
        realise: Realise,
        clip: bool | None,
        seed: int,
        batch_size: int | None,
        *,
        needs_means: bool = True,
    ) -> Predictor:
        expression, contexts = self._setup.expression(source), self._setup.contexts(source)
        reader = "realise='counts'" if realise == "counts" else type(self).__name__
        counts = self._counts(source, reader) if realise == "counts" or self.module.reads_counts else None
        slots = np.full((source.n_obs, self._n_slots), _keys.PAD, dtype=np.int32)
        columns = {_keys.PERTURBATION: slots, _keys.DOSE: np.zeros(slots.shape, dtype=np.float32)}
        columns.update(self._extra_columns(source, contexts))
        if self.module.draws:
            columns[_keys.CELL_KEY] = cell_keys(seed, source.obs_names)
        means = None
        if self.module.context_means and needs_means:
            means = ContextMeans.of(expression, contexts, self._setup.is_control(source))
        predictor = Predictor(
            module=self.module,
            store=CellStore(expression, columns),
            obs_names=source.obs_names,
            realise=realise,
            clip=not self._setup.signed if clip is None else clip,
            seed=seed,
            batch_size=checked_batch_size(batch_size, PREDICT_BATCH),
            contexts=contexts,
            means=means,
            counts=counts,
        )
        if self.module.context_latents and needs_means:
            predictor.latents = ContextMeans.of_latents(predictor, self._setup.is_control(source))
        return predictor

    def _extra_columns(self, source: AnnData, contexts: np.ndarray) -> dict[str, np.ndarray]:
        """Context, covariates and embedding of the cells, in the saved codes."""
        registries = self.registry_["field_registries"]
        columns: dict[str, np.ndarray] = {}
        if _keys.CONTEXT in registries:
            known = registries[_keys.CONTEXT]["state_registry"]["categories"][0]
            columns[_keys.CONTEXT] = pd.Index(known).get_indexer(contexts)[:, None].astype(np.int32)
        if _keys.CATEGORICAL_COVARIATES in registries:
            state = registries[_keys.CATEGORICAL_COVARIATES]["state_registry"]
            codes = [
                pd.Index(known).get_indexer(check_column(source.obs, key, "categorical_covariate_keys").astype(str))
                for key, known in zip(state["keys"], state["categories"], strict=True)
            ]
            columns[_keys.CATEGORICAL_COVARIATES] = np.stack(codes, axis=1).astype(np.int32)
        if self._setup.cell_embedding_key is not None:
            state = registries[_keys.CELL_EMBEDDING]["state_registry"]
            columns[_keys.CELL_EMBEDDING] = self._setup.cell_embedding(source, state["n_dimensions"])
        return columns

    @staticmethod
    def _counts(source: AnnData, reader: str) -> Any:
        """Raw counts of the cells."""
        if _keys.COUNTS_LAYER not in source.layers:
            raise ValueError(
                f"{reader} needs raw counts in layers[{_keys.COUNTS_LAYER!r}] of the cells' AnnData"
                f"{close_matches(_keys.COUNTS_LAYER, source.layers)}"
            )
        return source.layers[_keys.COUNTS_LAYER]

    @property
    def _covariate_sizes(self) -> tuple[int, ...]:
        """Number of values of the context, where there is one, and of each categorical covariate."""
        registries = self.registry_["field_registries"]
        return tuple(
            len(known)
            for key in (_keys.CONTEXT, _keys.CATEGORICAL_COVARIATES)
            if key in registries
            for known in registries[key]["state_registry"]["categories"]
        )

    def _provenance(self, realise: str, seed: int) -> dict[str, Any]:
        """Where a result comes from, in plain strings and numbers."""
        from multipert import __version__

        used = {key: value for key, value in self.registry_["setup_args"].items() if isinstance(value, str | bool)}
        return {
            "model": type(self).__name__,
            "version": __version__,
            "scvi_tools": scvi.__version__,
            "setup": used,
            "realise": realise,
            "seed": int(seed),
        }

    # ---------------------------------------------------------------- files

    def save(
        self,
        dir_path: str | PathLike,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
    ) -> None:
        """Write `model.safetensors` and `model.json` into a folder.

        Parameters
        ----------
        dir_path
            The folder; made when absent.
        prefix
            Put before the names of the files.
        overwrite
            Whether files of that name may be replaced.
        save_anndata
            Whether to write the model's data beside them as `adata.h5ad` (`mdata.h5mu`).

        Raises
        ------
        ValueError
            If the files exist and `overwrite` is False.
        """
        _persistence.save(self, dir_path, prefix or "", overwrite=overwrite, save_anndata=save_anndata)

    @classmethod
    def load(
        cls,
        dir_path: str | PathLike,
        adata: AnnData | MuData | Literal[False] | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
        trusted: bool = False,
    ) -> PerturbationModel:
        """Read a saved model; nothing is unpickled.

        Parameters
        ----------
        dir_path
            The folder.
        adata
            Data to bind, genes as at the setup; None takes the data saved with the model if there are any; False binds
            none, which is enough to predict for data given to `predict`.
        accelerator
            As in Lightning.
        device
            As in scvi-tools.
        prefix
            What stands before the names of the files.
        trusted
            Whether a pickle written by scvi-tools' own `save` may be unpickled; only for files that you made.

        Returns
        -------
        The model, as it was saved.

        Raises
        ------
        FileNotFoundError
            If there is no model in the folder.
        ModelFileError
            If a file is truncated, altered, of another class or of a newer format.
        """
        if trusted and _persistence.is_pickle(dir_path, prefix or ""):
            return super().load(dir_path, adata, accelerator, device, prefix)
        return _persistence.load(cls, dir_path, adata, accelerator, device, prefix or "")

    @staticmethod
    def load_registry(dir_path: str | PathLike, prefix: str | None = None) -> dict:
        """Read the registry of a saved model.

        Parameters
        ----------
        dir_path
            The folder.
        prefix
            What stands before the names of the files.

        Returns
        -------
        The registry, as scvi-tools lays it out.
        """
        return _persistence.registry(dir_path, prefix or "")

    @classmethod
    def convert_legacy_save(cls, *args: Any, **kwargs: Any) -> None:
        """Not offered: files older than scvi-tools 0.15 are pickles and never held a model of this package."""
        raise NotImplementedError(f"{cls.__name__} has no legacy files.")


def _row_numbers(source: AnnData, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Row numbers 0..n_obs - 1 from row numbers, negative ones too, or a mask."""
    index, n_obs = np.asarray(indices), source.n_obs
    if index.dtype == bool and index.shape == (n_obs,):
        return np.flatnonzero(index)
    if index.ndim != 1 or not len(index) or not np.issubdtype(index.dtype, np.integer):
        raise ValueError(
            f"indices must be row numbers, or a mask of length {n_obs}; found shape {index.shape}, dtype {index.dtype}."
        )
    if index.min() < -n_obs or index.max() >= n_obs:
        raise ValueError(f"indices must lie in 0..{n_obs - 1}; found {index.min()}..{index.max()}.")
    return index % n_obs


def _checked_epochs(max_epochs: int | None) -> int | None:
    if max_epochs is not None and max_epochs < 0:
        raise ValueError(f"max_epochs={max_epochs} must not be negative.")
    return max_epochs


def _seed(seed: int | None) -> int:
    if seed is not None:
        return seed
    return scvi.settings.seed if scvi.settings.seed is not None else 0
