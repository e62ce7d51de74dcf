"""DecoderOnly: mean expression from labels alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from multipert import _keys
from multipert.nn import (
    CovariateVector,
    LabelVector,
    Perceptron,
    covariate_codes,
    distinct_rows,
    group_means,
    output_activation,
)
from multipert.nn._perceptron import OutputActivation, PerceptronVariant

from ._arguments import check_switch, check_width, checked, one_of
from ._base import PerturbationModel
from ._module import PerturbationModule, Tensors
from ._perturbench import REFERENCE, blind_to_covariates, checked_output, equip, label_sizes, squared_error
from ._shift import context_codes
from ._tags import ModelTags
from ._targets import encode_targets, label_columns, read_targets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from anndata import AnnData
    from scvi.module.base import LossOutput

    from multipert.data._loaders import CellLoader

TrainOn = Literal["pseudobulk", "cells"]
Residuals = Literal["none", "control"]
# the network of the reference before May 2025, and the one for data of one context
_FIRST = {"mlp_variant": "standard"}
_ONE_CONTEXT = {"use_covariates": False}
_CHECKS = {
    **dict.fromkeys(("n_hidden", "n_layers"), check_width),
    "mlp_variant": one_of(PerceptronVariant),
    **dict.fromkeys(("use_perturbations", "use_covariates"), check_switch),
    "train_on": one_of(TrainOn),
    "residuals": one_of(Residuals),
}


class DecoderOnlyModule(PerturbationModule):
    """A perceptron of the label and the covariates.

    Parameters
    ----------
    n_vars
        Number of genes.
    n_perturbations
        Size of the vocabulary; None reads no label.
    covariate_sizes
        Number of values of each covariate that is read.
    n_hidden
        Width of the hidden layers.
    n_layers
        Number of hidden layers.
    variant
        Which perceptron; see :class:`multipert.nn.Perceptron`.
    output
        Activation of the output.
    n_embedding
        Width of the given perturbation embedding; None takes unit vectors.
    doses
        Whether labels are scaled by their doses.
    train_on
        "pseudobulk" replaces every training cell by the mean of those with the same label and covariates.
    residuals
        "control" adds to a prediction what the control cell differs by from the mean control cell of its context.
    """

    fitted = (*PerturbationModule.fitted, "known_pairs")
    group_mean: torch.Tensor | None
    group_of_row: torch.Tensor | None

    def __init__(
        self,
        n_vars: int,
        n_perturbations: int | None,
        covariate_sizes: Sequence[int],
        n_hidden: int,
        n_layers: int,
        *,
        variant: PerceptronVariant = "linear_first",
        output: OutputActivation = "softplus",
        n_embedding: int | None = None,
        doses: bool = False,
        train_on: TrainOn = "pseudobulk",
        residuals: Residuals = "none",
    ) -> None:
        super().__init__()
        self.perturbation = None if n_perturbations is None else LabelVector(n_perturbations, n_embedding, doses)
        self.covariates = CovariateVector(covariate_sizes)
        n_in = self.covariates.width + (0 if self.perturbation is None else self.perturbation.width)
        self.decoder = Perceptron(n_in, n_hidden, n_layers, n_vars, 0.0, variant, reads_labels=True)
        self.activation = output_activation(output)
        self.indexed_training = train_on == "pseudobulk"
        self.context_means = residuals == "control"
        # of the present training: known without it, and as large as the data, so in no file
        self.register_buffer("group_mean", None, persistent=False)
        self.register_buffer("group_of_row", None, persistent=False)

    def label_keys(self, tensors: Tensors) -> torch.Tensor:
        """Numbers that say what the network is told of each cell, shape `(B, n_keys)`."""
        keys = [] if self.perturbation is None else [tensors[_keys.PERTURBATION].double(), tensors[_keys.DOSE].double()]
        covariates = covariate_codes(tensors).double()
        return torch.cat([*keys, covariates if self.covariates.width else covariates[:, :0]], dim=1)

    def mean(self, tensors: Tensors) -> torch.Tensor:
        """Mean expression of each cell's label and covariates, shape `(B, n_vars)`."""
        label = [] if self.perturbation is None else [self.perturbation(tensors)]
        return self.activation(self.decoder(torch.cat([*label, self.covariates(tensors)], dim=1)))

    def generative(self, z: torch.Tensor, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Mean expression of the batch's labels, each of them decoded once; `z` is not read."""
        rows, kind = distinct_rows(self.label_keys(tensors))
        return {"px": self.mean({key: value[rows] for key, value in tensors.items()})[kind]}

    def counterfactual(self, tensors: Tensors, z: torch.Tensor | None = None) -> torch.Tensor:
        """Mean expression of the target, for every control cell alike, shape `(B, n_vars)`.

        Labels are decoded one by one: in a matrix product the last bits depend on the number of rows, and so would a
        prediction on the other cells of its batch.
        """
        rows, kind = distinct_rows(self.label_keys(tensors))
        means = [self.mean({key: value[row : row + 1] for key, value in tensors.items()}) for row in rows.tolist()]
        decoded = torch.cat(means)[kind]
        return decoded + (tensors[_keys.X] - tensors["context_mean"]) if self.context_means else decoded

    def loss(self, tensors: Tensors, inference_outputs: Mapping, generative_outputs: Mapping) -> LossOutput:
        """Squared error, mean over cells and genes, against the cells or the means of their groups."""
        x = tensors[_keys.X]
        if self.training and self.group_mean is not None and self.group_of_row is not None and _keys.ROW in tensors:
            x = self.group_mean[self.group_of_row[tensors[_keys.ROW]]]
        return squared_error(generative_outputs["px"], x)

    def prepare(self, loader: CellLoader) -> None:
        """Note the pairs of context and condition in training and, where they are needed, the means of all groups."""
        numbers: dict[tuple[float, ...], int] = {}
        group_of_row = torch.full((loader.store.n_cells,), -1)
        pairs: set[tuple[int, int]] = set()

        def group_of(batch: Tensors) -> torch.Tensor:
            keys = self.label_keys(batch)
            rows, kind = distinct_rows(keys)
            group = torch.tensor([numbers.setdefault(tuple(key), len(numbers)) for key in keys[rows].tolist()])[kind]
            group_of_row[batch[_keys.ROW]] = group
            return group

        def noted(batch: Tensors) -> Tensors:
            found = torch.stack([context_codes(batch), self.lookup(batch).cpu()], dim=1)
            pairs.update(map(tuple, torch.unique(found, dim=0).tolist()))
            return batch

        if self.indexed_training:
            means = group_means(map(noted, loader), group_of)
            # a group whose context is not read has cells of several
            n_cells = means.n_cells.double()
            total = torch.zeros(len(numbers), means.mean.shape[1], dtype=torch.float64)
            total.index_add_(0, means.condition, n_cells[:, None] * means.mean)
            n_cells = torch.zeros(len(numbers), dtype=torch.float64).index_add_(0, means.condition, n_cells)
            self.group_mean = (total / n_cells[:, None]).float().to(self.device)
            self.group_of_row = group_of_row.to(self.device)
        else:
            for batch in loader:
                noted(batch)
        self.known_pairs = torch.tensor(sorted(pairs)).to(self.device)

    def conclude(self, loader: CellLoader) -> None:
        """Let go of the means."""
        self.group_mean = self.group_of_row = None


def _best(n_layers: int, n_hidden: int, lr: float, weight_decay: float, **others: Any) -> dict[str, Any]:
    """A preset after the reference, which trains on cells."""
    sizes = {"n_layers": n_layers, "n_hidden": n_hidden}
    return {**REFERENCE, "train_on": "cells", **sizes, "lr": lr, "weight_decay": weight_decay, **others}


class DecoderOnly(PerturbationModel):
    r"""Mean expression of a label in a context, from their names alone :cite:p:`Wu2024`.

    .. math::

        \hat x = \phi\bigl(D[p,\, c]\bigr), \qquad \mathrm{MSE}(\hat x, x)

    with p the sum of the unit vectors of the label's parts, c the unit vectors of the context and of the covariates, D a
    perceptron and :math:`\phi` the softplus. No cell is an input: all control cells of a context get the same prediction,
    bit for bit, whatever they are. Other models should be shown beside it, since one that does no better has made no use
    of the cells. With `use_perturbations=False` it is the mean of the context whatever the perturbation, the floor of
    measures that rank predictions.

    What was never measured is predicted without a word from what was: :meth:`is_seen` tells. With
    `perturbation_embedding_key` the given vectors, summed, take the place of p and unseen perturbations are legal; with
    `dose_key` each part is scaled by `log1p` of its dose.

    Tags: reads contexts and covariates, none of them unseen; combinations; doses; unseen perturbations with an embedding;
    the same mean for all cells, so there is nothing to realise, and tests and distances of distributions say nothing.

    Parameters
    ----------
    adata
        Data that :meth:`setup_anndata` was run on.
    registry
        Registry of a saved model, in place of data.
    preset
        "default"; "published" (the reference's configuration); or the reference's best for a data set: "srivatsan20",
        "norman19", "frangieh21", "jiang24", "op3", "mcfaline_small", "mcfaline_medium", "mcfaline_full"; without labels
        "srivatsan20_cov", "frangieh21_cov".
    n_hidden
        Width of the hidden layers.
    n_layers
        Number of hidden layers.
    mlp_variant
        "linear_first" has a linear layer before the hidden ones, as the reference since May 2025; "standard" has not.
    use_perturbations
        Whether the label is an input.
    use_covariates
        Whether the context and the covariates are. Without them control cells of any context can be predicted.
    train_on
        "pseudobulk" compares with the mean of the training cells of the same inputs, "cells" with each of them: the
        gradient is the same in the mean, but noisier.
    residuals
        "none" repeats the mean; "control" adds to it what each control cell differs by from the mean of those of its
        context, which is not published.
    output_activation
        "softplus", "relu" or "identity"; None is the preset's, or "identity" for signed data.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.DecoderOnly.setup_anndata(adata, context_key="context")
    >>> model = mp.model.DecoderOnly(adata, n_hidden=32)
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> model.predict(perturbation="P1", returns="mean").n_vars == adata.n_vars
    True
    """

    tags = ModelTags(
        uses_context=True,
        unseen_context=False,
        uses_covariates=True,
        unseen_perturbations=True,
        unseen_needs_embedding=True,
        combinations=True,
        doses=True,
        output="mean",
        reference="Wu2024",
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {
            "n_hidden": 512,
            "n_layers": 2,
            "mlp_variant": "linear_first",
            "use_perturbations": True,
            "use_covariates": True,
            "train_on": "pseudobulk",
            "output_activation": "softplus",
            "lr": 1e-3,
            "weight_decay": 1e-6,
            "batch_size": 128,
            "n_updates": 1000,
        },
        "published": _best(3, 3072, 6.721e-5, 7.90e-9),
        "srivatsan20": _best(5, 4352, 6.798e-5, 7.60e-6, **_FIRST),
        "srivatsan20_cov": _best(5, 4352, 5.331e-6, 1.06e-8, **_FIRST, use_perturbations=False),
        "norman19": _best(3, 3328, 1.375e-4, 4.42e-5, **_FIRST, **_ONE_CONTEXT, output_activation="identity"),
        "frangieh21": _best(1, 3328, 1.489e-3, 4.79e-6, batch_size=8000),
        "frangieh21_cov": _best(
            5, 4352, 3.079e-4, 9.6e-7, batch_size=8000, use_perturbations=False, output_activation="identity"
        ),
        "jiang24": _best(3, 5376, 9.426e-5, 8.5e-8, batch_size=2000),
        "op3": _best(1, 4352, 1.861e-4, 1.14e-6, batch_size=8000, output_activation="identity"),
        "mcfaline_small": _best(1, 4352, 7.135e-4, 6.9e-7, **_FIRST, batch_size=8000),
        "mcfaline_medium": _best(1, 4352, 2.341e-4, 7.5e-7, **_FIRST, batch_size=8000),
        "mcfaline_full": _best(1, 3328, 1.901e-4, 5.7e-7, **_FIRST, batch_size=8000),
    }
    search_space: ClassVar[dict[str, tuple]] = {
        "n_hidden": ("choice", (64, 128, 256, 512, 1024)),
        "n_layers": ("choice", (1, 3, 5)),
        "output_activation": ("choice", ("softplus", "identity")),
        "lr": ("log", 1e-5, 5e-3),
        "weight_decay": ("log", 1e-8, 1e-3),
    }

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        *,
        preset: str | None = None,
        n_hidden: int | None = None,
        n_layers: int | None = None,
        mlp_variant: PerceptronVariant | None = None,
        use_perturbations: bool | None = None,
        use_covariates: bool | None = None,
        train_on: TrainOn | None = None,
        residuals: Residuals = "none",
        output_activation: OutputActivation | None = None,
    ) -> None:
        super().__init__(adata, registry, preset)
        args = checked(self, _CHECKS, locals())
        labels = args.pop("use_perturbations")
        read = self._covariate_sizes if args.pop("use_covariates") else ()
        if not labels and not read:
            raise ValueError(
                "use_perturbations is False and there is no covariate to read, so nothing is left to predict from; set the "
                "data up with context_key or categorical_covariate_keys, and leave use_covariates on."
            )
        if not read:
            self.tags = blind_to_covariates(self.tags)  # type: ignore[misc]
        self._module_args = {
            **label_sizes(self),
            "covariate_sizes": read,
            "variant": args.pop("mlp_variant"),
            "output": checked_output(self, output_activation, default=self._preset["output_activation"]),
            **args,
        }
        if not labels:
            self._module_args["n_perturbations"] = None
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self) -> DecoderOnlyModule:
        module = DecoderOnlyModule(**self._module_args)
        equip(self, module, module.perturbation)
        return module

    def is_seen(
        self,
        perturbation: str | Sequence[str] | pd.DataFrame | None = None,
        *,
        dose: Any = None,
        context: str | Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Tell which targets had training cells; predictions of the others are extrapolated.

        Parameters
        ----------
        perturbation
            As in :meth:`predict`.
        dose
            As in :meth:`predict`.
        context
            Contexts of the targets that name none, any names; None takes all that were there at the setup.

        Returns
        -------
        One row per target and context: the label, the dose and the context where they were set up, and whether training had
        cells of the label in any context (`label_seen`), of the context under any label (`context_seen`), and of both
        together (`pair_seen`).

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If a label is unknown, or contexts are given where none were set up.
        """
        self._require_trained()
        tags = self.tags.given(self._n_embedding is not None)
        rules: dict[str, Any] = {"tags": tags, "model": type(self).__name__, "dose_key": self._setup.dose_key}
        asked = read_targets(perturbation, dose, codec=self._codec, trained=self.trained_conditions_, **rules)
        key = self._setup.context_key
        if key is None and (context is not None or any(name is not None for _, name in asked)):
            raise ValueError("context was given but the model was set up without context_key.")
        known = (
            [""]
            if key is None
            else list(self.registry_["field_registries"][_keys.CONTEXT]["state_registry"]["categories"][0])
        )
        names = known if context is None else [context] if isinstance(context, str) else list(map(str, context))
        targets = [(c, name) for c, own in asked for name in (names if own is None else [own])]
        conditions = [condition for condition, _ in targets]
        table = label_columns(conditions, self._codec, self._setup.perturbation_key, self._setup.dose_key)[0]
        if key is not None:
            table[key] = [name for _, name in targets]
        codes, doses = (torch.from_numpy(x).to(self.module.device) for x in encode_targets(conditions, self._codec, 1))
        found = self.module.lookup({_keys.PERTURBATION: codes, _keys.DOSE: doses}).tolist()
        pairs = set(map(tuple, self.module.known_pairs.tolist()))
        at = [known.index(name) if name in known else -1 for _, name in targets]
        table["label_seen"] = [position >= 0 for position in found]
        table["context_seen"] = [code in {context for context, _ in pairs} for code in at]
        table["pair_seen"] = [pair in pairs for pair in zip(at, found, strict=True)]
        return table
