"""LatentAdditive: latent representations of a control cell and of a label, added and decoded."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import torch

from multipert import _keys
from multipert.nn import (
    CovariateVector,
    LabelVector,
    Perceptron,
    output_activation,
    shared_label,
)
from multipert.nn._perceptron import OutputActivation, PerceptronVariant
from multipert.train import Stage

from ._arguments import check_rate, check_switch, check_width, checked, one_of
from ._base import PerturbationModel
from ._module import PerturbationModule, Tensors
from ._perturbench import (
    REFERENCE,
    blind_to_covariates,
    checked_output,
    equip,
    label_sizes,
    single_conditions,
    squared_error,
)
from ._tags import ModelTags

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from scvi.module.base import LossOutput

    from multipert.data._conditions import Condition

_TEMPERATURE = 0.5
# the network of the reference before May 2025, and the one for data of one context
_FIRST = {"mlp_variant": "standard"}
_ONE_CONTEXT = {"inject_covariates_encoder": False, "inject_covariates_decoder": False}
_SWITCHES = "inject_covariates_encoder", "inject_covariates_decoder", "sparse", "control_targets"
_CHECKS = {
    **dict.fromkeys(("n_hidden", "n_latent", "n_layers"), check_width),
    "dropout_rate": check_rate,
    "mlp_variant": one_of(PerceptronVariant),
    **dict.fromkeys(_SWITCHES, check_switch),
}


def _best(
    n_layers: int,
    n_hidden: int,
    n_latent: int,
    dropout_rate: float,
    lr: float,
    weight_decay: float,
    **others: Any,
) -> dict[str, Any]:
    """A preset after the reference, which trains on perturbed cells only."""
    sizes = {"n_layers": n_layers, "n_hidden": n_hidden, "n_latent": n_latent, "dropout_rate": dropout_rate}
    return {**REFERENCE, "control_targets": False, **sizes, "lr": lr, "weight_decay": weight_decay, **others}


class LatentAdditiveModule(PerturbationModule):
    """Three perceptrons: of the control cell, of the label, and of the sum of both.

    Parameters
    ----------
    n_vars
        Number of genes.
    n_perturbations
        Size of the vocabulary.
    n_hidden
        Width of the hidden layers.
    n_latent
        Width of the latent representation.
    n_layers
        Number of hidden layers of each network.
    dropout_rate
        Dropout after each hidden layer.
    variant
        Which perceptron; see :class:`multipert.nn.Perceptron`.
    output
        Activation of the output.
    n_embedding
        Width of the given perturbation embedding; None takes unit vectors.
    doses
        Whether labels are scaled by their doses.
    n_cell_embedding
        Width of the given embedding of the cells, which is then read in place of their expression.
    encoder_covariates
        Number of values of each covariate that the encoder reads.
    decoder_covariates
        The same of the decoder.
    sparse
        Whether a fourth perceptron switches latent dimensions of the label off.
    """

    fits_correction = False

    def __init__(
        self,
        n_vars: int,
        n_perturbations: int,
        n_hidden: int,
        n_latent: int,
        n_layers: int,
        dropout_rate: float,
        *,
        variant: PerceptronVariant = "linear_first",
        output: OutputActivation = "softplus",
        n_embedding: int | None = None,
        doses: bool = False,
        n_cell_embedding: int | None = None,
        encoder_covariates: Sequence[int] = (),
        decoder_covariates: Sequence[int] = (),
        sparse: bool = False,
    ) -> None:
        super().__init__()
        block = partial(Perceptron, n_hidden=n_hidden, n_layers=n_layers, variant=variant)
        of_labels = partial(block, n_out=n_latent, reads_labels=True)
        self.perturbation = LabelVector(n_perturbations, n_embedding, doses)
        self.encoder_covariates = CovariateVector(encoder_covariates)
        self.decoder_covariates = CovariateVector(decoder_covariates)
        self.reads_embedding = n_cell_embedding is not None
        n_cell = (n_cell_embedding or n_vars) + self.encoder_covariates.width
        self.cell_encoder = block(n_cell, n_out=n_latent, dropout_rate=dropout_rate)
        self.perturbation_encoder = of_labels(self.perturbation.width, dropout_rate=dropout_rate)
        n_decoded = n_latent + self.decoder_covariates.width
        self.decoder = block(n_decoded, n_out=n_vars, dropout_rate=dropout_rate)
        self.activation = output_activation(output)
        self.mask = of_labels(self.perturbation.width, dropout_rate=0.0) if sparse else None

    def inference(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Latent representation of the cells, or of their paired controls where the batch has them."""
        paired = _keys.X_CONTROL in tensors
        if self.reads_embedding:
            cell = tensors[_keys.CELL_EMBEDDING_CONTROL if paired else _keys.CELL_EMBEDDING]
        else:
            cell = tensors[_keys.X_CONTROL if paired else _keys.X]
        return {"z": self.cell_encoder(torch.cat([cell, self.encoder_covariates(tensors)], dim=1))}

    def effect(self, tensors: Tensors) -> torch.Tensor:
        """What the batch's labels add to the latent representation, shape `(B, n_latent)` or of one label `(1, n_latent)`."""
        vectors = self.perturbation(shared_label(tensors))
        effect = self.perturbation_encoder(vectors)
        return effect if self.mask is None else effect * self._switch(self.mask(vectors))

    def _switch(self, logits: torch.Tensor) -> torch.Tensor:
        """0 or 1 for each dimension: drawn in training, with the gradient of a relaxed draw; else the likelier one."""
        if not self.training:
            return (logits > 0).to(logits.dtype)
        # the logit of a uniform number; away from 0 and 1, where it is infinite
        noise = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6).logit()
        relaxed = torch.sigmoid((logits + noise) / _TEMPERATURE)
        return (relaxed > 0.5).to(logits.dtype) + relaxed - relaxed.detach()

    def generative(self, z: torch.Tensor, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Expression under the batch's labels."""
        latent = torch.cat([z + self.effect(tensors), self.decoder_covariates(tensors)], dim=1)
        return {"px": self.activation(self.decoder(latent))}

    def loss(self, tensors: Tensors, inference_outputs: Mapping, generative_outputs: Mapping) -> LossOutput:
        """Squared error, mean over cells and genes."""
        return squared_error(generative_outputs["px"], tensors[_keys.X])


class LatentAdditive(PerturbationModel):
    r"""A label moves the latent representation of a control cell, wherever it lies :cite:p:`Wu2024`.

    A perceptron encodes a control cell, another the label, and a third decodes their sum:

    .. math::

        \hat x = \phi\bigl(D[E(x_0, c) + m \odot F(p),\; c]\bigr), \qquad \mathrm{MSE}(\hat x, x)

    with x a perturbed cell and :math:`x_0` a control cell of its context, drawn anew in each epoch; p the sum of the unit
    vectors of the label's parts, c the unit vectors of the context and of the covariates, :math:`\phi` the softplus, and m
    a vector of ones. For perturbations seen in other contexts and unseen combinations of seen perturbations; F is no linear
    map, so parts do not add up.

    The best that can be said of a cell whose control cell was drawn at random is its mean, and that is what the network
    learns: predicted cells vary much less than cells do. Do not read distances of distributions or tests from them; take
    `predict(realise="residual")` or `"counts"`. With `cell_embedding_key` the given embedding of the control cell is
    encoded in place of its expression. With `perturbation_embedding_key` the given vectors, summed, take the place of p
    and unseen perturbations are legal; with `dose_key` each part is scaled by `log1p` of its dose.

    Tags: reads contexts and covariates, none of them unseen; combinations; doses; unseen perturbations with an embedding;
    latent representation (of the cell alone); perturbation embedding (F, control first).

    Parameters
    ----------
    adata
        Data that :meth:`setup_anndata` was run on.
    registry
        Registry of a saved model, in place of data.
    preset
        "default"; "published" (the reference's configuration); or the reference's best for a data set: "srivatsan20",
        "norman19", "frangieh21", "jiang24", "op3", "mcfaline_small", "mcfaline_medium", "mcfaline_full"; with a cell
        embedding "srivatsan20_scgpt", "norman19_scgpt", "frangieh21_scgpt"; of its first version "srivatsan20_2024",
        "norman19_2024".
    n_hidden
        Width of the hidden layers of all three networks.
    n_latent
        Width of the latent representation.
    n_layers
        Number of hidden layers of each network.
    dropout_rate
        Dropout after each hidden layer.
    mlp_variant
        "linear_first" has a linear layer before the hidden ones, as the reference since May 2025; "standard" has not.
    inject_covariates_encoder
        Whether the context and the covariates are an input of E.
    inject_covariates_decoder
        Whether they are one of D. With neither, control cells of any context can be predicted.
    sparse
        Whether a fourth perceptron of p gives m, of zeros and ones: drawn in training, the likelier ones in a prediction.
    output_activation
        "softplus", "relu" or "identity"; None is the preset's, or "identity" for signed data.
    control_targets
        Whether control cells are targets too, each with itself as its control cell; the reference leaves them out. The
        network is then never told what F of control is to be, so that `realise="residual"` and `"counts"` have nothing to
        compare with.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.LatentAdditive.setup_anndata(adata, context_key="context")
    >>> model = mp.model.LatentAdditive(adata, n_hidden=32, n_latent=8)
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
        latent=True,
        perturbation_embedding=True,
        reference="Wu2024",
    )
    stages: tuple[Stage, ...] = (Stage("random"),)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {
            "n_hidden": 512,
            "n_latent": 64,
            "n_layers": 1,
            "dropout_rate": 0.3,
            "mlp_variant": "linear_first",
            "inject_covariates_encoder": True,
            "inject_covariates_decoder": True,
            "output_activation": "softplus",
            "control_targets": True,
            "lr": 1e-3,
            "weight_decay": 1e-7,
            "batch_size": 64,
            "n_updates": 500,
        },
        "published": _best(3, 3072, 160, 0.1, 6.721e-5, 7.90e-9),
        "srivatsan20": _best(2, 5376, 192, 0.3, 3.411e-5, 6.1e-11),
        "srivatsan20_2024": _best(1, 3328, 64, 0.6, 1.320e-3, 9.37e-7, **_FIRST),
        "srivatsan20_scgpt": _best(3, 2304, 128, 0.1, 1.205e-5, 2.70e-7, **_FIRST),
        "norman19": _best(1, 4352, 512, 0.1, 9.260e-5, 2.18e-8, **_ONE_CONTEXT),
        "norman19_2024": _best(1, 5376, 64, 0.1, 6.780e-5, 1.04e-8, **_FIRST, **_ONE_CONTEXT),
        "norman19_scgpt": _best(1, 5376, 512, 0.4, 8.965e-5, 1.97e-5, **_FIRST, **_ONE_CONTEXT),
        "frangieh21": _best(1, 2304, 256, 0.3, 5.231e-4, 1.56e-7, batch_size=8000),
        "frangieh21_scgpt": _best(1, 3328, 192, 0.3, 4.036e-4, 2.1e-8, batch_size=8000),
        "jiang24": _best(4, 2304, 64, 0.3, 5.651e-5, 5.8e-10, batch_size=2000),
        "op3": _best(1, 2304, 128, 0.2, 1.594e-4, 3.5e-9, batch_size=8000),
        "mcfaline_small": _best(1, 1280, 512, 0.0, 2.123e-4, 1.4e-7, **_FIRST, batch_size=8000),
        "mcfaline_medium": _best(1, 3328, 256, 0.0, 2.075e-5, 9.4e-8, **_FIRST, batch_size=8000),
        "mcfaline_full": _best(1, 4352, 256, 0.1, 4.695e-4, 3.3e-8, **_FIRST, batch_size=8000),
    }
    search_space: ClassVar[dict[str, tuple]] = {
        "n_hidden": ("choice", (64, 128, 256, 512, 1024)),
        "n_latent": ("choice", (64, 128, 192, 256, 512)),
        "n_layers": ("choice", (1, 3, 5)),
        "dropout_rate": ("float", 0.0, 0.8),
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
        n_latent: int | None = None,
        n_layers: int | None = None,
        dropout_rate: float | None = None,
        mlp_variant: PerceptronVariant | None = None,
        inject_covariates_encoder: bool | None = None,
        inject_covariates_decoder: bool | None = None,
        sparse: bool = False,
        output_activation: OutputActivation | None = None,
        control_targets: bool | None = None,
    ) -> None:
        super().__init__(adata, registry, preset)
        args = checked(self, _CHECKS, locals())
        reads = {part: args.pop(f"inject_covariates_{part}") for part in ("encoder", "decoder")}
        if not any(reads.values()):
            self.tags = blind_to_covariates(self.tags)  # type: ignore[misc]
        itself = args.pop("control_targets")
        self.stages = tuple(replace(stage, itself=itself) for stage in type(self).stages)
        self._module_args = {
            **label_sizes(self),
            "variant": args.pop("mlp_variant"),
            "output": checked_output(self, output_activation, default=self._preset["output_activation"]),
            "n_cell_embedding": self.summary_stats.get("n_cell_embedding"),
            **{f"{part}_covariates": self._covariate_sizes if read else () for part, read in reads.items()},
            **args,
        }
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self) -> LatentAdditiveModule:
        module = LatentAdditiveModule(**self._module_args)
        equip(self, module, module.perturbation)
        return module

    def _perturbation_embedding(self) -> pd.DataFrame:
        """What the labels add to latent representations, control first."""
        conditions: list[Condition] = [(), *single_conditions(self)]
        effects = self.module.effect(self._label_tensors(conditions))
        return pd.DataFrame(effects.cpu().numpy(), index=self._labels(conditions))


class LatentAdditiveOT(LatentAdditive):
    """LatentAdditive trained on transported pairs :cite:p:`Wu2024`.

    Each control cell is paired, by optimal transport within its context, with a cell of every condition measured there, in
    place of control cells drawn at random: what varies alike in both is then no noise, and predicted cells vary more.
    Contexts without perturbed training cells take no part. :func:`multipert.data.pair` gives the pairs. Arguments are those
    of :class:`LatentAdditive`.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.LatentAdditiveOT.setup_anndata(adata, context_key="context")
    >>> model = mp.model.LatentAdditiveOT(adata, n_hidden=32, n_latent=8)
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> model.is_trained
    True
    """

    stages = (Stage("ot"),)
