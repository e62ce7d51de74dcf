"""CPA: a basal state that an adversary empties of labels, plus embeddings of perturbations and covariates."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from scvi.module.base import LossOutput
from torch import nn

from multipert import _keys
from multipert.data._conditions import close_matches
from multipert.nn import Perceptron, covariate_codes, kl_to_standard_normal, noise_of_cells
from multipert.nn._adversary import LabelAdversary, gradient_penalty
from multipert.nn._blocks import BlockNorm, blocks
from multipert.nn._dose import DoseCurveKind, PerturbationEncoder
from multipert.nn._likelihood import HEADS, Likelihood, NormalHead, counts_of
from multipert.train import Stage

from ._arguments import (
    check_count,
    check_hidden,
    check_positive,
    check_rate,
    check_switch,
    check_weight,
    check_width,
    check_widths,
    checked,
    hidden_widths,
    is_list,
    one_of,
)
from ._base import PerturbationModel, _row_numbers
from ._embedding import registered_embedding, scaled
from ._module import PerturbationModule, Tensors
from ._perturbench import single_conditions
from ._tags import ModelTags
from ._targets import encode_targets

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from anndata import AnnData
    from mudata import MuData

    from multipert.data._loaders import CellLoader
    from multipert.data._pairing import Pairing

_RATES = "dropout_rate", "decoder_dropout_rate", "adversary_dropout_rate", "pretraining"
_CHECKS = {
    "n_hidden": check_hidden,
    **dict.fromkeys(("n_latent", "n_layers", "adversary_steps"), check_width),
    **dict.fromkeys(("perturbation_layers", "adversary_warmup"), check_count),
    "adversary_hidden": check_widths,
    **dict.fromkeys(("embedding_start", "embedding_lr_factor"), check_positive),
    **dict.fromkeys(_RATES, check_rate),
    **dict.fromkeys(("norm", "decoder_norm"), one_of(BlockNorm)),
    "likelihood": one_of(Likelihood),
    "dose_curve": one_of(DoseCurveKind),
    **dict.fromkeys(("variational", "adversary"), check_switch),
    **dict.fromkeys(("kl_weight", "adversary_weight", "penalty_weight"), check_weight),
}


class CPAModule(PerturbationModule):
    """Autoencoder whose latent representation is the basal state plus vectors of the perturbation and of the covariates.

    Parameters
    ----------
    n_vars
        Number of genes.
    n_perturbations
        Size of the vocabulary.
    covariate_sizes
        Number of values of the context, where there is one, and of each categorical covariate; those with one value add
        nothing.
    hidden
        Widths of the encoder's hidden layers.
    decoder_hidden
        Widths of the decoder's, in its order.
    n_latent
        Width of the latent representation.
    dropout_rate
        Dropout after each hidden layer of the encoder.
    decoder_dropout_rate
        Dropout after each hidden layer of the decoder.
    norm
        What normalises the encoder's and the adversary's hidden layers.
    decoder_norm
        What normalises the decoder's.
    likelihood
        Of the expression; see :class:`CPA`.
    variational
        Whether each cell's basal state is a normal distribution.
    kl_weight
        Weight of its divergence from the standard normal.
    dose_curve
        Kind of the curves of dose, or None where there are no doses.
    perturbation_hidden
        Widths of the hidden layers of the perturbation network, all equal; none takes embeddings, which add.
    embedding_start
        Standard deviation of learnt embeddings of perturbations at the start.
    embedding_lr_factor
        Their learning rate, in units of that of the networks.
    adversary
        Whether there is an adversary.
    adversary_hidden
        Widths of the hidden layers of its classifiers.
    adversary_dropout_rate
        Dropout after each.
    adversary_weight
        Weight of the adversary in the loss.
    adversary_warmup
        Epochs over which this weight grows from 0.
    alternates
        Whether the adversary has batches of its own; else every batch trains both.
    penalty_weight
        Weight of the adversary's gradient penalty.
    n_embedding
        Width of the given perturbation embedding; None learns one.
    n_cell_embedding
        Width of a given embedding of the cells, which is then encoded in place of the expression.
    technical
        Positions of the covariates that the corrected latent representation leaves out.
    """

    fitted = (*PerturbationModule.fitted, "labels", "label_weights")

    def __init__(
        self,
        n_vars: int,
        n_perturbations: int,
        covariate_sizes: Sequence[int],
        *,
        hidden: Sequence[int],
        decoder_hidden: Sequence[int],
        n_latent: int,
        dropout_rate: float = 0.0,
        decoder_dropout_rate: float = 0.0,
        norm: BlockNorm = "batch",
        decoder_norm: BlockNorm = "batch",
        likelihood: Likelihood = "normal",
        variational: bool = False,
        kl_weight: float = 1.0,
        dose_curve: DoseCurveKind | None = None,
        perturbation_hidden: Sequence[int] = (),
        embedding_start: float = 1.0,
        embedding_lr_factor: float = 1.0,
        adversary: bool = True,
        adversary_hidden: Sequence[int] = (64, 64),
        adversary_dropout_rate: float = 0.1,
        adversary_weight: float = 1.0,
        adversary_warmup: int = 0,
        alternates: bool = False,
        penalty_weight: float = 1.0,
        n_embedding: int | None = None,
        n_cell_embedding: int | None = None,
        technical: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.encodes_embedding = n_cell_embedding is not None
        encoder_widths = [n_cell_embedding or n_vars, *hidden]
        self.encoder = blocks(encoder_widths, dropout_rate, norm=norm)
        self.mean = nn.Linear(encoder_widths[-1], n_latent)
        self.log_variance = nn.Linear(encoder_widths[-1], n_latent) if variational else None
        decoder_widths = [n_latent, *decoder_hidden]
        self.decoder = blocks(decoder_widths, decoder_dropout_rate, norm=decoder_norm)
        self.head = HEADS[likelihood](decoder_widths[-1], n_vars)
        self.reads_counts = self.head.reads_counts
        network = None
        if perturbation_hidden:
            n_in, n_layers = n_embedding or n_perturbations, len(perturbation_hidden)
            network = Perceptron(n_in, perturbation_hidden[0], n_layers, n_latent, dropout_rate, reads_labels=True)
        self.perturbation = PerturbationEncoder(n_perturbations, n_latent, n_embedding, dose_curve, network)
        self.embedding_lr_factor = embedding_lr_factor
        for vectors in self.perturbation.learnt:
            nn.init.normal_(vectors, std=embedding_start)
        self.columns = tuple(i for i, size in enumerate(covariate_sizes) if size > 1)
        self.technical = frozenset(technical)
        self.covariates = nn.ModuleList(nn.Embedding(covariate_sizes[i], n_latent) for i in self.columns)
        self.kl_weight, self.adversary_weight, self.penalty_weight = kl_weight, adversary_weight, penalty_weight
        self.adversary_warmup = adversary_warmup
        if alternates:
            self.critic_turn = "alone"

        def classifier(n_classes: int) -> nn.Sequential:
            widths = [n_latent, *adversary_hidden]
            return nn.Sequential(*blocks(widths, adversary_dropout_rate, norm=norm), nn.Linear(widths[-1], n_classes))

        # last, so that all other weights start the same without it
        self.adversary = None
        if adversary:
            of_covariates = {i: classifier(covariate_sizes[i]) for i in self.columns}
            self.adversary = LabelAdversary(classifier(1 + n_perturbations), of_covariates)

    def prepare(self, loader: CellLoader) -> None:
        """Measure the genes; note the trained labels, whatever their doses, and how much each weighs for the adversary."""
        if isinstance(self.head, NormalHead):
            self.head.scale.measure(loader)
        if self.adversary is None:
            return
        codes = torch.cat([batch[_keys.PERTURBATION].long().cpu() for batch in loader])
        labels, n = torch.unique(codes, dim=0, return_counts=True)
        self.labels = labels.to(self.device)
        self.label_weights = (len(codes) / n - 1).float().to(self.device)

    def inference(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Basal state of the cells; drawn in training and in a prediction of samples where it is variational."""
        if self.encodes_embedding:
            x = tensors[_keys.CELL_EMBEDDING].to(tensors[_keys.X].dtype)
        else:
            x = torch.log1p(counts_of(tensors)) if self.reads_counts else tensors[_keys.X]
        hidden = self.encoder(x)
        mean = self.mean(hidden)
        if self.log_variance is None:
            return {"z": mean}
        log_variance, z = self.log_variance(hidden), mean
        if self.training:
            z = mean + torch.randn_like(mean) * torch.exp(log_variance / 2)
        elif _keys.CELL_KEY in tensors:
            noise = noise_of_cells(tensors[_keys.CELL_KEY], mean.shape[1])
            z = mean + noise.to(mean) * torch.exp(log_variance / 2)
        return {"z": z, "mean": mean, "log_variance": log_variance}

    def latents(self, tensors: Tensors, z: torch.Tensor) -> dict[str, torch.Tensor]:
        """The basal state with what is added to it.

        Parameters
        ----------
        tensors
            A batch.
        z
            Basal states, shape `(B, n_latent)`.

        Returns
        -------
        "basal"; "full", with the perturbation's vector and all covariates'; and "corrected", the same without technical
        covariates. Each has shape `(B, n_latent)`.
        """
        codes = covariate_codes(tensors)
        full = corrected = z + self.perturbation(tensors)
        for column, table in zip(self.columns, self.covariates, strict=True):
            added = table(codes[:, column])
            full = full + added
            if column not in self.technical:
                corrected = corrected + added
        return {"basal": z, "corrected": corrected, "full": full}

    def generative(self, z: torch.Tensor, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Expression under the batch's labels and covariates, and what else the likelihood needs."""
        return self.head(self.decoder(self.latents(tensors, z)["full"]), tensors)

    def loss(self, tensors: Tensors, inference_outputs: Mapping, generative_outputs: Mapping) -> LossOutput:
        """Minus the log-likelihood, summed over genes, with the divergence and minus the adversary's cross-entropy."""
        per_cell = -self.head.log_prob(tensors, generative_outputs).sum(dim=1)
        loss = per_cell.mean()
        if self.log_variance is not None:
            divergence = kl_to_standard_normal(inference_outputs["mean"], inference_outputs["log_variance"])
            loss = loss + self.kl_weight * divergence.mean()
        weight = self.adversary_weight * min(1.0, self.epoch / self.adversary_warmup if self.adversary_warmup else 1.0)
        # held-out cells are scored without it: it jumps when the adversary starts, and their labels may be new
        if self.adversary is not None and self.adversarial and self.training and weight:
            logits = self.adversary(inference_outputs["z"], self.labels)
            loss = loss - weight * self.adversary.entropy(logits, tensors, self.labels, self.label_weights)
        return LossOutput(loss=loss, reconstruction_loss=per_cell)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Networks, and learnt embeddings of perturbations, which each see few cells and move faster."""
        learnt = self.perturbation.learnt
        own = {id(vectors) for vectors in learnt}
        (networks,) = super().parameter_groups()
        networks["params"] = [parameter for parameter in networks["params"] if id(parameter) not in own]
        return [networks, {"params": learnt, "factor": self.embedding_lr_factor}] if learnt else [networks]

    def critic_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters of the adversary."""
        return () if self.adversary is None else self.adversary.parameters()

    def critic_loss(self, tensors: Tensors) -> torch.Tensor:
        """Cross-entropies of the adversary and its gradient penalty, on basal states that send no gradient back."""
        if self.adversary is None:
            return super().critic_loss(tensors)
        with torch.no_grad():
            z = self.inference(tensors)["z"]
        z.requires_grad_()
        logits = self.adversary(z, self.labels)
        loss = self.adversary.entropy(logits, tensors, self.labels, self.label_weights)
        return loss + self.penalty_weight * gradient_penalty(logits, z) if self.penalty_weight else loss


_PUBLISHED: dict[str, Any] = {
    "norm": "batch",
    "decoder_norm": "batch",
    "embedding_start": 1.0,
    "embedding_lr_factor": 1.0,
}


def _perturbench(
    n_hidden: int,
    n_latent: int,
    n_layers: int,
    perturbation_layers: int,
    dropout_rate: float,
    lr: float,
    weight_decay: float,
    kl_weight: float,
    adversary_weight: float,
    penalty_weight: float,
    adversary_steps: int,
    adversary_hidden: tuple[int, ...],
    warmup: int,
    batch_size: int = 4000,
) -> dict[str, Any]:
    """A preset from a configuration of PerturBench, in its own terms."""
    max_epochs = 500
    return {
        "n_hidden": n_hidden,
        "n_latent": n_latent,
        # one layer comes before those that it counts
        "n_layers": n_layers + 1,
        "decoder_hidden": None,
        "dropout_rate": dropout_rate,
        "decoder_dropout_rate": dropout_rate,
        "norm": "layer",
        "decoder_norm": "layer",
        "embedding_start": 1.0,
        "embedding_lr_factor": 1.0,
        "likelihood": "mse",
        "variational": True,
        "kl_weight": kl_weight,
        "perturbation_layers": perturbation_layers,
        "adversary_weight": adversary_weight,
        # there the adversary minimises weight * entropy + penalty, and Adam does not see the scale
        "penalty_weight": penalty_weight / adversary_weight,
        "adversary_steps": adversary_steps,
        "adversary_hidden": adversary_hidden,
        "adversary_dropout_rate": dropout_rate,
        "adversary_warmup": 0,
        "pretraining": warmup / max_epochs,
        "lr": lr,
        "weight_decay": weight_decay,
        "batch_size": batch_size,
        "max_epochs": max_epochs,
        "plan_kwargs": {"n_warmup_steps": 0},
    }


class CPA(PerturbationModel):
    r"""Compositional perturbation autoencoder: effects of perturbations and covariates add up :cite:p:`Lotfollahi2023`.

    A cell's latent representation is a basal state, which an adversary keeps free of the label and the covariates, plus a
    vector for each of these; exchanging a vector gives a counterfactual:

    .. math::

        \hat x = g\Bigl(f(x) + \sum_k s_k(d_k)\, e_k + \sum_j v_j\Bigr)

    with :math:`e_k` the vector of part k of a combination, :math:`s_k` a curve of its dose and :math:`v_j` the vectors of the
    context and of the categorical covariates. Encoder and decoder minimise :math:`-\log p(x) - \lambda\, H`, classifiers on
    :math:`f(x)` minimise their cross-entropy :math:`H` and a penalty on their gradients.

    Use it for combinations of trained perturbations, doses between the measured ones, perturbations seen in other contexts,
    and with `perturbation_embedding_key` for unseen ones. Contexts and values of covariates must have been trained. One
    control cell gives one conditional mean: use `predict(realise="residual")` for distances and `"counts"` for differential
    expression. `adversary=False` gives a plain conditional autoencoder, in which nothing keeps the label out of the basal
    state.

    Parameters
    ----------
    adata
        Data that :meth:`setup_anndata` was run on.
    registry
        Registry of a saved model, in place of data.
    preset
        "default"; "published" (the published package), "norman" and "kang" (its tutorials), the three with counts;
        "perturbench" and, tuned there for a data set, "srivatsan20", "norman19", "frangieh21", "jiang24", "op3",
        "mcfaline_small", "mcfaline_medium" and "mcfaline_full" :cite:p:`Wu2024`.
    n_hidden
        Width of the encoder's hidden layers: a number (then `n_layers` of them) or one per layer.
    n_latent
        Width of the latent representation.
    n_layers
        Number of hidden layers where `n_hidden` is a number.
    decoder_hidden
        Widths of the decoder's hidden layers, in its order; None mirrors the encoder.
    dropout_rate
        Dropout after each hidden layer of the encoder and of the perturbation network.
    decoder_dropout_rate
        Dropout after each hidden layer of the decoder.
    norm
        What normalises the hidden layers of encoder and adversary: "batch", "layer" or "none".
    decoder_norm
        What normalises those of the decoder.
    likelihood
        "normal", with mean and variance of log-normalised expression; "mse", with squared errors in its place; "nb" or
        "zinb" of the counts, which then must be in `layers["counts"]`.
    variational
        Whether each cell's basal state is a normal distribution; `predict(n_samples=)` then draws.
    kl_weight
        Weight of its divergence from the standard normal.
    dose_curve
        Curves of dose, where `dose_key` is set up: "logsigm" rises with the logarithm of the dose until it saturates, "sigm"
        with the dose, "linear" is the dose itself.
    perturbation_layers
        Hidden layers, of the encoder's first width, of a network from the sum of the parts' vectors; 0 takes embeddings,
        which add up in the latent space.
    embedding_start
        Standard deviation of learnt embeddings at the start. Large ones tell perturbations apart from the beginning, which the
        decoder learns by heart; from small ones the sum of two is a place that it knows.
    embedding_lr_factor
        Learning rate of learnt embeddings, in units of `lr`.
    adversary
        Whether there is an adversary.
    adversary_weight
        Its weight :math:`\lambda` in the loss of encoder and decoder.
    penalty_weight
        Weight of the penalty on its gradients.
    adversary_steps
        Of so many batches the first trains the autoencoder and the others the adversary; 1 trains both on every batch.
    adversary_hidden
        Widths of the hidden layers of its classifiers.
    adversary_dropout_rate
        Dropout after each.
    adversary_warmup
        Epochs over which its weight grows from 0.
    pretraining
        Share of the training, at least 0 and below 1, that passes before the adversary takes part.
    technical_covariates
        Those of `categorical_covariate_keys` that the corrected latent representation leaves out, such as batches.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.CPA.setup_anndata(adata, context_key="context")
    >>> model = mp.model.CPA(adata, n_hidden=32, n_latent=8)
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> model.predict(context=model.trained_contexts_[0], returns="mean").n_vars == adata.n_vars
    True
    >>> sorted(model.get_latents())
    ['basal', 'corrected', 'full']
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
        reference="Lotfollahi2023",
    )
    stages: tuple[Stage | Pairing, ...] = (Stage(trains="module", share=0.2), Stage(share=0.8))
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {
            "n_hidden": 256,
            "n_latent": 64,
            "n_layers": 2,
            "decoder_hidden": None,
            "dropout_rate": 0.1,
            "decoder_dropout_rate": 0.0,
            "norm": "none",
            "decoder_norm": "none",
            "likelihood": "normal",
            "variational": False,
            "kl_weight": 1.0,
            "dose_curve": "logsigm",
            "perturbation_layers": 0,
            "embedding_start": 0.1,
            "embedding_lr_factor": 10.0,
            "adversary": True,
            "adversary_weight": 10.0,
            "penalty_weight": 10.0,
            "adversary_steps": 1,
            "adversary_hidden": (64, 64),
            "adversary_dropout_rate": 0.1,
            "adversary_warmup": 0,
            "pretraining": 0.2,
            "lr": 1e-3,
            "batch_size": 64,
            "n_updates": 2000,
        },
        "published": {
            **_PUBLISHED,
            "n_hidden": 256,
            "n_latent": 128,
            "n_layers": 3,
            "dropout_rate": 0.0,
            "likelihood": "nb",
            "adversary_weight": 1.0,
            "penalty_weight": 1.0,
            "adversary_steps": 3,
            "adversary_hidden": (64, 64, 64),
            "pretraining": 0.0,
            "lr": 5e-4,
            "weight_decay": 1e-6,
            "batch_size": 128,
            "max_epochs": 400,
            "plan_kwargs": {"critic_lr": 3e-4, "n_warmup_steps": 0},
        },
        "norman": {
            **_PUBLISHED,
            "n_hidden": 256,
            "n_latent": 32,
            "n_layers": 4,
            "decoder_hidden": (256, 256),
            "dropout_rate": 0.2,
            "decoder_norm": "none",
            "likelihood": "nb",
            "dose_curve": "linear",
            "adversary_weight": 10.0,
            "penalty_weight": 20.0,
            "adversary_steps": 3,
            "adversary_hidden": (128, 128),
            "adversary_dropout_rate": 0.3,
            "adversary_warmup": 50,
            "pretraining": 10 / 2000,
            "lr": 1e-4,
            "weight_decay": 3.2170178270865573e-06,
            "batch_size": 2048,
            "max_epochs": 2000,
            "plan_kwargs": {"n_warmup_steps": 0},
        },
        "kang": {
            **_PUBLISHED,
            "n_hidden": 128,
            "n_latent": 64,
            "n_layers": 2,
            "decoder_hidden": (512, 512),
            "dropout_rate": 0.0,
            "decoder_dropout_rate": 0.1,
            "decoder_norm": "layer",
            "likelihood": "nb",
            "dose_curve": "linear",
            "adversary_weight": 20.0,
            "penalty_weight": 5.0,
            "adversary_hidden": (64, 64, 64),
            "adversary_dropout_rate": 0.3,
            "adversary_warmup": 50,
            "pretraining": 30 / 2000,
            "lr": 3e-4,
            "weight_decay": 4e-7,
            "batch_size": 512,
            "max_epochs": 2000,
            "plan_kwargs": {"n_warmup_steps": 0},
        },
        "perturbench": _perturbench(256, 128, 3, 2, 0.1, 1e-5, 1e-8, 1.0, 1.0, 10.0, 2, (128,) * 2, 5),
        "srivatsan20": _perturbench(1280, 512, 3, 2, 0.1, 2.689e-4, 2.99e-6, 0.264, 0.210, 10.21, 3, (383,) * 2, 5),
        "norman19": _perturbench(3328, 128, 1, 2, 0.2, 6.844e-5, 1.66e-7, 19.76, 3.80, 1.90, 2, (776,) * 2, 15),
        "frangieh21": _perturbench(
            4352, 128, 1, 1, 0.1, 3.681e-5, 1.90e-5, 0.219, 0.185, 7.61, 5, (559,) * 4, 20, 8000
        ),
        "jiang24": _perturbench(3328, 512, 7, 2, 0.3, 2.630e-5, 3.69e-7, 6.90, 1.49, 2.82, 7, (537,), 5, 2000),
        "op3": _perturbench(5376, 256, 3, 3, 0.1, 4.294e-5, 3.03e-7, 0.653, 3.74, 0.279, 2, (233,) * 3, 20),
        "mcfaline_small": _perturbench(
            2304, 256, 7, 3, 0.1, 1.931e-5, 1.96e-8, 1.18, 6.66, 9.39, 3, (446,) * 3, 10, 8000
        ),
        "mcfaline_medium": _perturbench(4352, 64, 7, 2, 0.2, 6.169e-5, 3.2e-7, 8.58, 0.973, 12.27, 3, (205,), 15, 8000),
        "mcfaline_full": _perturbench(4352, 64, 1, 2, 0.3, 1.734e-5, 2.35e-6, 0.419, 3.33, 0.612, 3, (281,), 10, 8000),
    }
    search_space: ClassVar[dict[str, tuple]] = {
        "n_hidden": ("choice", (64, 128, 256, 512, 1024)),
        "n_latent": ("choice", (32, 64, 128, 256)),
        "n_layers": ("int", 1, 5),
        "perturbation_layers": ("int", 0, 3),
        "dropout_rate": ("float", 0.0, 0.8),
        "adversary_steps": ("choice", (1, 2, 3, 5, 10)),
        "adversary_weight": ("log", 0.1, 20.0),
        "penalty_weight": ("log", 0.1, 20.0),
        "lr": ("log", 1e-5, 1e-2),
        "weight_decay": ("log", 1e-8, 1e-3),
    }

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        *,
        preset: str | None = None,
        n_hidden: int | Sequence[int] | None = None,
        n_latent: int | None = None,
        n_layers: int | None = None,
        decoder_hidden: Sequence[int] | None = None,
        dropout_rate: float | None = None,
        decoder_dropout_rate: float | None = None,
        norm: BlockNorm | None = None,
        decoder_norm: BlockNorm | None = None,
        likelihood: Likelihood | None = None,
        variational: bool | None = None,
        kl_weight: float | None = None,
        dose_curve: DoseCurveKind | None = None,
        perturbation_layers: int | None = None,
        embedding_start: float | None = None,
        embedding_lr_factor: float | None = None,
        adversary: bool | None = None,
        adversary_weight: float | None = None,
        penalty_weight: float | None = None,
        adversary_steps: int | None = None,
        adversary_hidden: Sequence[int] | None = None,
        adversary_dropout_rate: float | None = None,
        adversary_warmup: int | None = None,
        pretraining: float | None = None,
        technical_covariates: Sequence[str] = (),
    ) -> None:
        super().__init__(adata, registry, preset)
        args = checked(self, _CHECKS, locals())
        if HEADS[args["likelihood"]].reads_counts and self._setup.signed:
            raise ValueError(
                f"likelihood={args['likelihood']!r} is of counts, but the data were set up with signed=True; take "
                "'normal' or 'mse'."
            )
        if self._setup.dose_key is None:
            if dose_curve is not None:
                raise ValueError(f"dose_curve={dose_curve!r} needs doses; name their column in the setup (dose_key).")
            args["dose_curve"] = None
        hidden = hidden_widths(args.pop("n_hidden"), args.pop("n_layers"), n_layers)
        # a preset's decoder goes with its encoder
        preset_decoder = self._preset["decoder_hidden"] if n_hidden is None else None
        decoder = preset_decoder if decoder_hidden is None else decoder_hidden
        decoder = hidden[::-1] if decoder is None else decoder
        check_widths("decoder_hidden", decoder)
        if not len(decoder):
            raise ValueError(f"decoder_hidden={decoder} must hold a width; leave it out to mirror the encoder.")
        steps = int(args.pop("adversary_steps"))
        self._schedule(args["adversary"], args.pop("pretraining"), steps)
        self._module_args = {
            "n_vars": self.summary_stats.n_vars,
            "n_perturbations": self.summary_stats.n_perturbations,
            "covariate_sizes": self._covariate_sizes,
            "hidden": hidden,
            "decoder_hidden": tuple(decoder),
            "perturbation_hidden": (hidden[0],) * args.pop("perturbation_layers"),
            "n_embedding": self._n_embedding,
            "n_cell_embedding": self.summary_stats.get("n_cell_embedding"),
            "technical": self._technical(technical_covariates),
            "alternates": steps > 1,
            **args,
        }
        if args["variational"]:
            self.tags = replace(self.tags, samples=True)  # type: ignore[misc]
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _technical(self, names: Sequence[str]) -> tuple[int, ...]:
        """Positions of the technical covariates among the context and the categorical covariates."""
        known = list(self._setup.categorical_covariate_keys or ())
        if not is_list(names):
            example = names if isinstance(names, str) else "batch"
            raise TypeError(f"technical_covariates={names!r} must be a list of columns, such as {[example]}.")
        for name in names:
            if name not in known:
                raise ValueError(
                    f"technical_covariates names {name!r}, which is not in categorical_covariate_keys"
                    f"{close_matches(name, known)}"
                )
        return tuple(known.index(name) + (self._setup.context_key is not None) for name in names)

    def _schedule(self, adversary: bool, pretraining: float, steps: int) -> None:
        """Passes, and how often the adversary moves; without one all of the training is the autoencoder's."""
        self.stages = (Stage(),)
        if adversary and pretraining:
            first = Stage(trains="module", share=pretraining)
            self.stages = (first, Stage(share=1 - pretraining))
        if steps > 1:
            plan = {**self._preset.get("plan_kwargs", {}), "critic_every": steps - 1}
            self._preset = {**self._preset, "plan_kwargs": plan}

    def _new_module(self) -> CPAModule:
        module = CPAModule(**self._module_args)
        table = registered_embedding(self)
        if table is not None:
            module.perturbation.embedding = scaled(table)
        return module

    def get_latents(
        self,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Encode cells, and add the vectors of their own labels and covariates.

        Parameters
        ----------
        adata
            Cells with labels; None takes the model's own data.
        indices
            Row numbers; None takes all.
        batch_size
            Cells per batch.

        Returns
        -------
        Each of shape `(n_cells, n_latent)`, float32: "basal", the state that :meth:`get_latent_representation` gives;
        "full", with the vectors of the perturbation and of all covariates, which is decoded; "corrected", without those of
        technical covariates.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If genes differ, or a label, a context or the value of a covariate is unknown.

        Examples
        --------
        >>> import multipert as mp
        >>> adata = mp.datasets.screen("small")
        >>> mp.model.CPA.setup_anndata(adata, context_key="context")
        >>> model = mp.model.CPA(adata, n_hidden=32, n_latent=8)
        >>> model.train(max_epochs=1, enable_progress_bar=False)
        >>> adata.obsm["X_CPA_basal"] = model.get_latents()["basal"]
        >>> adata.obsm["X_CPA_basal"].shape
        (2500, 8)
        """
        self._require_trained()
        source = self._source(adata, needs_control=False)
        rows = np.arange(source.n_obs) if indices is None else _row_numbers(source, indices)
        self._check_rows(source, np.unique(rows))
        self._check_contexts(source, rows)
        conditions, inverse = self._setup.conditions(source)
        asked = np.unique(inverse[rows])
        reasons = self._refusals([conditions[i] for i in asked])
        refused = [conditions[i] for i, reason in zip(asked, reasons, strict=True) if reason is not None]
        if refused:
            raise ValueError(*self._refusals(refused[:1], suggests=True))
        codes, doses = encode_targets([conditions[i] for i in asked], self._codec, self._n_slots)
        own = np.searchsorted(asked, inverse[rows])
        predictor = self._predictor(source, "plain", None, 0, batch_size, needs_means=False)
        parts: dict[str, list[np.ndarray]] = {}
        with torch.inference_mode():
            self.module.eval()
            for at, tensors in predictor.batches(rows):
                labels = {_keys.PERTURBATION: codes[own[at]], _keys.DOSE: doses[own[at]]}
                tensors.update({key: torch.from_numpy(value).to(self.module.device) for key, value in labels.items()})
                found = self.module.latents(tensors, self.module.inference(tensors)["z"])
                for name, values in found.items():
                    parts.setdefault(name, []).append(values.float().cpu().numpy())
        return {name: np.concatenate(values) for name, values in parts.items()}

    def _further_latents(self, source: AnnData) -> dict[str, np.ndarray]:
        """The latent representations with labels and covariates, of cells whose labels and contexts are known."""
        conditions, inverse = self._setup.conditions(source)
        known = np.array([reason is None for reason in self._refusals(conditions)])[inverse]
        known &= ~self._is_unseen_context(self._setup.contexts(source)) & ~self._has_unseen_covariate(source)
        rows = np.flatnonzero(known)
        found = {}
        for kind, z in self.get_latents(source, rows).items() if len(rows) else ():
            if kind != "basal":
                found[kind] = np.full((source.n_obs, z.shape[1]), np.nan, dtype=np.float32)
                found[kind][rows] = z
        return found

    def _perturbation_embedding(self) -> pd.DataFrame:
        """The vector that each perturbation adds; with doses, that each trained condition adds."""
        conditions = single_conditions(self)
        vectors = self.module.perturbation(self._label_tensors(conditions)).cpu().numpy()
        columns = [f"latent_{i}" for i in range(vectors.shape[1])]
        return pd.DataFrame(vectors, index=self._labels(conditions), columns=columns)
