"""Biolord: known attributes have vectors of their own, what they leave unexplained has a penalised code."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from scvi.module.base import LossOutput
from torch import nn

from multipert import _keys
from multipert.nn import ConditionVector, Perceptron, covariate_codes, noise_of_cells
from multipert.nn._attributevector import AttributeVector
from multipert.nn._blocks import blocks
from multipert.nn._likelihood import NegativeBinomialHead, NormalHead, counts_of, nb_log_prob

from ._arguments import (
    check_hidden,
    check_rate,
    check_switch,
    check_weight,
    check_width,
    check_widths,
    checked,
    hidden_widths,
    one_of,
)
from ._base import PerturbationModel
from ._embedding import registered_embedding, scaled
from ._module import PerturbationModule, Tensors
from ._perturbench import single_conditions
from ._tags import ModelTags
from ._targets import encode_targets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from multipert.data._conditions import Condition
    from multipert.data._loaders import CellLoader
    from multipert.data._store import CellStore
    from multipert.nn._blocks import BlockNorm

    from ._predict import Predictor

Unknown = Literal["amortised", "free", "none"]
Likelihood = Literal["normal", "nb"]
Variant = Literal["original", "perturbench"]

_LEAST_VARIANCE = 1e-6
_CODE_LR = 0.05
# what the benchmark's re-implementation does not have
_OF_ORIGINAL = (
    "unknown",
    "n_latent_categorical",
    "n_latent_ordered",
    "attribute_hidden",
    "batch_norm",
    "likelihood",
    "standardise",
    "reconstruction_penalty",
    "attribute_lr_factor",
    "n_code_steps",
)
_WIDTHS = "n_latent", "n_latent_categorical", "n_latent_ordered", "n_layers", "n_code_steps"
_WEIGHTS = "noise", "code_penalty", "reconstruction_penalty", "attribute_lr_factor"
_CHECKS = {
    "variant": one_of(Variant),
    "unknown": one_of(Unknown),
    "likelihood": one_of(Likelihood),
    **dict.fromkeys(_WIDTHS, check_width),
    "n_hidden": check_hidden,
    "attribute_hidden": check_widths,
    "dropout_rate": check_rate,
    **dict.fromkeys(("batch_norm", "standardise"), check_switch),
    **dict.fromkeys(_WEIGHTS, check_weight),
}


class BiolordModule(PerturbationModule):
    """`decoder(code, covariates, perturbation)`, the code being all that the attributes leave unexplained.

    Parameters
    ----------
    n_vars
        Number of genes.
    covariates
        Number of values of the context and of each categorical covariate.
    perturbation
        Vectors of the conditions.
    hidden
        Widths of the decoder's hidden layers; the encoder mirrors them.
    n_latent
        Width of the code.
    n_categorical
        Width of the vector of a covariate's value.
    unknown
        Where codes come from; see :class:`Biolord`.
    likelihood
        "normal" or "nb".
    standardise
        Whether a normal likelihood has its means and variances in units of each gene's spread.
    batch_norm
        Whether decoder and encoder normalise over the cells of a batch.
    dropout_rate
        Dropout after each hidden layer of the encoder.
    noise
        Standard deviation of the noise that codes have in training.
    code_penalty
        Weight of the squared norm of the code.
    reconstruction_penalty
        Weight of the squared error beside the likelihood.
    attribute_lr_factor
        Learning rate of the perturbation's network, relative to the rest.
    n_code_steps
        Updates that fit the code of a new cell.
    """

    fitted = (*PerturbationModule.fitted, "codes", "code_rows")

    def __init__(
        self,
        n_vars: int,
        covariates: Sequence[int],
        perturbation: AttributeVector,
        hidden: Sequence[int],
        n_latent: int,
        *,
        n_categorical: int,
        unknown: Unknown,
        likelihood: Likelihood,
        standardise: bool,
        batch_norm: bool,
        dropout_rate: float,
        noise: float,
        code_penalty: float,
        reconstruction_penalty: float,
        attribute_lr_factor: float,
        n_code_steps: int,
    ) -> None:
        super().__init__()
        # free codes are trained, and there are as many as training cells
        del self.codes
        self.codes: nn.Parameter | None
        self.code_rows: torch.Tensor | None
        self.register_parameter("codes", None)
        self.unknown, self.n_latent = unknown, 0 if unknown == "none" else n_latent
        self.indexed_training, self.reads_counts = unknown == "free", likelihood == "nb"
        self.noise, self.code_penalty, self.reconstruction_penalty = noise, code_penalty, reconstruction_penalty
        self.attribute_lr_factor, self.n_code_steps = attribute_lr_factor, n_code_steps
        self.standardise = standardise
        self.perturbation = perturbation
        self.covariates = nn.ModuleList(nn.Embedding(size, n_categorical) for size in covariates)
        width = self.n_latent + n_categorical * len(self.covariates) + perturbation.width
        norm: BlockNorm = "batch" if batch_norm else "none"
        self.decoder = blocks([width, *hidden], norm=norm)
        self.head: NegativeBinomialHead | NormalHead
        if self.reads_counts:
            self.head = NegativeBinomialHead(hidden[-1], n_vars)
        else:
            self.head = NormalHead(hidden[-1], n_vars, least_variance=0.0)
        self.encoder = None
        if unknown == "amortised":
            encoder = blocks([n_vars, *hidden[::-1]], dropout_rate, norm=norm)
            self.encoder = nn.Sequential(encoder, nn.Linear(hidden[0], n_latent))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Free codes have the shape that they have in the state, and stay trainable."""
        if f"{prefix}codes" not in state_dict:
            super()._load_from_state_dict(state_dict, prefix, *args)
            return
        del self.codes
        self.register_buffer("codes", None)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.codes = nn.Parameter(self.get_buffer("codes"))

    def prepare(self, loader: CellLoader) -> None:
        """Scale doses and genes; draw a free code for each training cell, unless these cells have theirs already."""
        self.perturbation.start(self.known_doses)
        if self.standardise and isinstance(self.head, NormalHead):
            self.head.scale.measure(loader)
        if self.unknown != "free":
            return
        rows = torch.from_numpy(np.sort(loader.rows)).to(self.device)
        if self.codes is None or self.code_rows is None or not torch.equal(rows, self.code_rows):
            self.code_rows = rows
            self.codes = nn.Parameter(torch.randn(len(rows), self.n_latent, device=self.device))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters; those of the perturbation's network at a rate of their own and without L2 penalty."""
        network = list(self.perturbation.network.parameters())
        known = {id(parameter) for parameter in network}
        groups: list[dict[str, Any]] = [{"params": [p for p in self.parameters() if id(p) not in known]}]
        if network:
            groups.append({"params": network, "factor": self.attribute_lr_factor, "weight_decay": 0.0})
        return groups

    def inference(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Codes of the cells: encoded, or free.

        A free code is that of the training cell, 0 for other cells of a training pass, and else fitted to the cell.
        """
        x = tensors.get(_keys.X_CONTROL, tensors[_keys.X])
        if self.encoder is not None:
            z = self.encoder(x)
        elif self.unknown == "none":
            z = x.new_zeros(len(x), 0)
        elif _keys.ROW in tensors:
            z = self._own_codes(tensors[_keys.ROW])
        else:
            z = self.fit_codes(tensors)
        if self.training and self.noise:
            z = z + self.noise * torch.randn_like(z)
        return {"z": z}

    def _own_codes(self, rows: torch.Tensor) -> torch.Tensor:
        if self.codes is None or self.code_rows is None:
            raise RuntimeError("unknown='free' has no codes before train() has drawn one for each training cell.")
        at = torch.searchsorted(self.code_rows, rows).clamp(max=len(self.code_rows) - 1)
        return self.codes[at] * (self.code_rows[at] == rows)[:, None]

    def fit_codes(self, tensors: Tensors) -> torch.Tensor:
        """Codes that fit some cells best under the labels of the batch, all else frozen.

        Adam from 0, with a rate that falls to 0, on the loss of the cells without noise; nothing is drawn.

        Parameters
        ----------
        tensors
            A batch.

        Returns
        -------
        Shape `(B, n_latent)`.

        Raises
        ------
        RuntimeError
            In training mode, where a batch must tell which training cell is which.
        """
        if self.training:
            raise RuntimeError(f"unknown='free' trains with batches that hold {_keys.ROW!r}; call the model's train().")
        # a prediction records no gradients, and its tensors could not be part of any
        with torch.inference_mode(False), torch.enable_grad():
            tensors = {key: value.clone() for key, value in tensors.items()}
            attributes = self.attributes(tensors).detach()
            codes = attributes.new_zeros(len(attributes), self.n_latent).requires_grad_()
            adam = torch.optim.Adam([codes])
            for step in range(self.n_code_steps):
                decoded = self.decode(codes, attributes, tensors)
                loss = self.error(tensors, decoded) + self.code_penalty * codes.square().sum(dim=1)
                (codes.grad,) = torch.autograd.grad(loss.sum(), [codes])
                adam.param_groups[0]["lr"] = _CODE_LR / 2 * (1 + math.cos(math.pi * step / self.n_code_steps))
                adam.step()
            return codes.detach()

    def attributes(self, tensors: Tensors) -> torch.Tensor:
        """Vectors of the covariates and of the perturbation, one after the other."""
        known = covariate_codes(tensors).T
        vectors = [table(codes) for table, codes in zip(self.covariates, known, strict=True)]
        return torch.cat([*vectors, self.perturbation(tensors)], dim=1)

    def decode(self, z: torch.Tensor, attributes: torch.Tensor, tensors: Tensors) -> Tensors:
        """Parameters of the likelihood; `"px"` is expression."""
        return self.head(self.decoder(torch.cat([z, attributes], dim=1)), tensors)

    def generative(self, z: torch.Tensor, tensors: Tensors) -> Tensors:
        """Expression under the batch's labels."""
        return self.decode(z, self.attributes(tensors), tensors)

    def error(self, tensors: Tensors, decoded: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Negative log-likelihood and weighted squared error of each cell, shape `(B,)`.

        "normal" takes the mean over genes of both; "nb" the sum of the log-likelihood, and the squared error of counts.
        """
        if isinstance(self.head, NegativeBinomialHead):
            x, mean = counts_of(tensors), decoded["mean"]
            likelihood = -nb_log_prob(x, mean, self.head.log_dispersion).sum(dim=1)
        else:
            x, mean, variance = tensors[_keys.X], decoded["px"], decoded["variance"]
            # below the floor the variance can still be learnt
            variance = variance + (_LEAST_VARIANCE - variance).clamp(min=0).detach()
            likelihood = 0.5 * (variance.log() + (x - mean).square() / variance).mean(dim=1)
        return likelihood + self.reconstruction_penalty * (x - mean).square().mean(dim=1)

    def loss(self, tensors: Tensors, inference_outputs: Mapping, generative_outputs: Mapping) -> LossOutput:
        """Mean over cells of the error and of the weighted squared norm of the code."""
        error = self.error(tensors, generative_outputs)
        penalty = inference_outputs["z"].square().sum(dim=1)
        return LossOutput(loss=(error + self.code_penalty * penalty).mean(), reconstruction_loss=error)


class BiolordStarModule(PerturbationModule):
    """PerturBench's Biolord*: an encoder that nothing restrains, and a penalty on the vectors of the covariates.

    Parameters
    ----------
    n_vars
        Number of genes.
    covariates
        Number of values of the context and of each categorical covariate.
    condition
        Input of the perturbation's network.
    n_hidden
        Width of the hidden layers of all three networks.
    n_layers
        Number of hidden layers.
    n_latent
        Width of the latent representation, and of the vectors of the perturbation and of each covariate.
    dropout_rate
        Dropout after each hidden layer.
    noise
        Standard deviation of the noise that latent representations have, in predictions too.
    code_penalty
        Weight of the squared norms of the covariates' vectors, summed over the batch.
    softplus
        Whether expression is kept above 0.
    """

    draws = True

    def __init__(
        self,
        n_vars: int,
        covariates: Sequence[int],
        condition: ConditionVector,
        n_hidden: int,
        n_layers: int,
        n_latent: int,
        *,
        dropout_rate: float,
        noise: float,
        code_penalty: float,
        softplus: bool,
    ) -> None:
        super().__init__()
        self.noise, self.code_penalty = noise, code_penalty
        self.covariates = nn.ModuleList(nn.Embedding(size, n_latent) for size in covariates)
        self.condition = condition

        def network(n_in: int, n_out: int) -> Perceptron:
            return Perceptron(n_in, n_hidden, n_layers, n_out, dropout_rate, "standard")

        self.encoder = network(n_vars, n_latent)
        self.decoder = network((2 + len(self.covariates)) * n_latent, n_vars)
        self.perturbation = network(condition.width, n_latent)
        self.activation = nn.Softplus() if softplus else nn.Identity()

    def prepare(self, loader: CellLoader) -> None:
        """Put the midpoints of the dose curves where the trained doses are."""
        self.condition.start(self.known_codes, self.known_doses)

    def inference(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Latent representation of the cells, with noise: drawn in training, else that of the cell's key."""
        z = self.encoder(tensors.get(_keys.X_CONTROL, tensors[_keys.X]))
        if self.training:
            z = z + self.noise * torch.randn_like(z)
        elif _keys.CELL_KEY in tensors:
            z = z + self.noise * noise_of_cells(tensors[_keys.CELL_KEY], z.shape[1]).to(z)
        return {"z": z}

    def generative(self, z: torch.Tensor, tensors: Tensors) -> Tensors:
        """Expression under the batch's labels, and the squared norm of the covariates' vectors of each cell."""
        known = covariate_codes(tensors).T
        covariates = [table(codes) for table, codes in zip(self.covariates, known, strict=True)]
        decoded = self.decoder(torch.cat([z, self.perturbation(self.condition(tensors)), *covariates], dim=1))
        norm = torch.stack([z.new_zeros(len(z)), *(vector.square().sum(dim=1) for vector in covariates)]).sum(dim=0)
        return {"px": self.activation(decoded), "norm": norm}

    def loss(self, tensors: Tensors, inference_outputs: Mapping, generative_outputs: Mapping) -> LossOutput:
        """Squared error, summed over genes, mean over cells; and the penalty, summed over cells."""
        error = (generative_outputs["px"] - tensors[_keys.X]).square().sum(dim=1)
        loss = error.mean() + self.code_penalty * generative_outputs["norm"].sum()
        return LossOutput(loss=loss, reconstruction_loss=error)


class Biolord(PerturbationModel):
    r"""Known attributes disentangled from an unknown one :cite:p:`Piran2024`.

    Contexts, categorical covariates and the perturbation have learnt vectors; what they leave unexplained of a cell goes
    through a code that is noisy and penalised, so that it holds nothing that the attributes tell already. A decoder joins
    them, and a counterfactual swaps the perturbation's vector while the cell keeps its code:

    .. math::

        \hat x = g\bigl(w,\, u_\mathrm{context},\, v_c\bigr), \qquad
        v_{A+B} = v_A + v_B - v_\mathrm{control}, \qquad
        \mathcal L = -\log p(x \mid \hat x) + \lambda \lVert x - \hat x \rVert^2 + \tau \lVert w \rVert^2

    Use it where much is known of the cells, for perturbations seen in other contexts and, with
    `perturbation_embedding_key`, for unseen ones; doses between the measured ones are legal with `dose_key`. An unseen
    context has no vector and is refused. Where attributes are few, all differences between cells of one context have to pass
    the code, and predictions are nearer to means than those of :class:`MTAe`. The decoder gives conditional means: use
    `predict(realise="residual")` for distances and `"counts"` for differential expression.

    Parameters
    ----------
    adata
        Data that :meth:`setup_anndata` was run on.
    registry
        Registry of a saved model, in place of data.
    preset
        "default"; "published" (the published code's: free codes, 512 x 4); "norman" (the authors' choice for Norman et al.,
        which they trained on one mean cell per condition); "perturbench", and by data set "srivatsan20" and "norman19",
        which is one choice (:cite:t:`Wu2024`'s Biolord*, see `variant`).
    unknown
        Where codes come from: "amortised" by an encoder of expression; "free", as published, one for each training cell,
        and for any other cell, or the same one in a prediction, what fits it best under its own label; "none" without.
    n_latent
        Width of the code.
    n_latent_categorical
        Width of the vectors of contexts and covariates, and of perturbations without embedding.
    n_latent_ordered
        Width of the perturbation's vector where there is an embedding or a dose.
    n_hidden
        Width of the decoder's hidden layers: a number (then `n_layers` of them) or one per layer. The encoder mirrors them.
    n_layers
        Number of hidden layers where `n_hidden` is a number.
    attribute_hidden
        Widths of the hidden layers of the network that reads embedding and dose.
    dropout_rate
        Dropout after each layer of that network and after each hidden layer of the encoder; the decoder has none.
    batch_norm
        Whether decoder and encoder have batch norm; the network that reads the embedding always has.
    likelihood
        "normal" of expression, or "nb" of the counts in `layers["counts"]`.
    standardise
        Whether a normal likelihood has its means and variances in units of each gene's spread, so that rare genes do not have
        the largest errors at the start.
    noise
        Standard deviation of the noise that codes have in training.
    code_penalty
        Weight of the squared norm of the code.
    reconstruction_penalty
        Weight of the squared error, mean over genes, beside the likelihood.
    attribute_lr_factor
        Learning rate of the network that reads the embedding, relative to `lr`.
    n_code_steps
        Updates that fit a cell's code where codes are free; a prediction costs as many passes through the decoder and back.
    variant
        "original"; "perturbench" for the benchmark's re-implementation: an encoder without penalty, a network that reads the
        perturbation, and a penalty on the covariates' vectors. It has its own meaning of `code_penalty`, and none of
        `unknown`, `n_latent_categorical`, `n_latent_ordered`, `attribute_hidden`, `batch_norm`, `likelihood`,
        `reconstruction_penalty`, `attribute_lr_factor` and `n_code_steps`.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.Biolord.setup_anndata(adata, context_key="context")
    >>> model = mp.model.Biolord(adata, n_hidden=32, n_latent=8)
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> model.predict(perturbation="P1", returns="mean").n_vars == adata.n_vars
    True
    """

    tags = ModelTags(
        uses_context=True,
        uses_covariates=True,
        unseen_context=False,
        unseen_perturbations=True,
        unseen_needs_embedding=True,
        combinations=True,
        doses=True,
        latent=True,
        perturbation_embedding=True,
        reference="Piran2024",
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {
            "variant": "original",
            "unknown": "amortised",
            "n_latent": 32,
            "n_latent_categorical": 16,
            "n_latent_ordered": 16,
            "n_hidden": 256,
            "n_layers": 2,
            "attribute_hidden": (128,),
            "dropout_rate": 0.1,
            "batch_norm": True,
            "likelihood": "normal",
            "standardise": True,
            "noise": 0.1,
            "code_penalty": 10.0,
            "reconstruction_penalty": 100.0,
            "attribute_lr_factor": 1.0,
            "n_code_steps": 200,
            "lr": 1e-3,
            "batch_size": 64,
            "n_updates": 2000,
        },
        "published": {
            "unknown": "free",
            "standardise": False,
            "n_latent": 128,
            "n_latent_categorical": 4,
            "n_hidden": 512,
            "n_layers": 4,
            "attribute_hidden": (256,),
            "lr": 1e-4,
            "weight_decay": 1e-4,
            "batch_size": 128,
            "max_epochs": 400,
            "plan_kwargs": {"n_warmup_steps": 0},
        },
        "norman": {
            "unknown": "none",
            "standardise": False,
            "n_latent_ordered": 32,
            "n_hidden": 32,
            "attribute_hidden": (64,),
            "dropout_rate": 0.0,
            "batch_norm": False,
            "reconstruction_penalty": 1e4,
            "attribute_lr_factor": 0.1,
            "lr": 1e-2,
            "weight_decay": 1e-2,
            "batch_size": 32,
            "max_epochs": 200,
            "plan_kwargs": {"n_warmup_steps": 0},
        },
        "perturbench": {
            "variant": "perturbench",
            "n_hidden": 3072,
            "n_layers": 3,
            "code_penalty": 1.0,
            "lr": 6.72e-5,
            "weight_decay": 7.9e-9,
            "batch_size": 1000,
            "max_epochs": 500,
            "plan_kwargs": {"n_warmup_steps": 0},
        },
        **dict.fromkeys(
            ("norman19", "srivatsan20"),
            {
                "variant": "perturbench",
                "n_hidden": 2304,
                "n_layers": 1,
                "n_latent": 512,
                "dropout_rate": 0.4,
                "code_penalty": 2621.0,
                "lr": 1.67e-4,
                "weight_decay": 4.6e-4,
                "batch_size": 1000,
                "max_epochs": 500,
                "plan_kwargs": {"n_warmup_steps": 0},
            },
        ),
    }
    search_space: ClassVar[dict[str, tuple]] = {
        "n_hidden": ("choice", (64, 256, 512, 1024)),
        "n_layers": ("int", 1, 4),
        "n_latent": ("choice", (16, 32, 64, 128)),
        "n_latent_categorical": ("choice", (4, 8, 16, 32)),
        "dropout_rate": ("float", 0.0, 0.6),
        "noise": ("log", 0.05, 2.0),
        "code_penalty": ("log", 0.1, 200.0),
        "reconstruction_penalty": ("log", 1e-2, 1e4),
        "lr": ("log", 1e-5, 5e-3),
        "weight_decay": ("log", 1e-8, 1e-3),
    }

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        *,
        preset: str | None = None,
        unknown: Unknown | None = None,
        n_latent: int | None = None,
        n_latent_categorical: int | None = None,
        n_latent_ordered: int | None = None,
        n_hidden: int | Sequence[int] | None = None,
        n_layers: int | None = None,
        attribute_hidden: Sequence[int] | None = None,
        dropout_rate: float | None = None,
        batch_norm: bool | None = None,
        likelihood: Likelihood | None = None,
        standardise: bool | None = None,
        noise: float | None = None,
        code_penalty: float | None = None,
        reconstruction_penalty: float | None = None,
        attribute_lr_factor: float | None = None,
        n_code_steps: int | None = None,
        variant: Variant | None = None,
    ) -> None:
        super().__init__(adata, registry, preset)
        given = dict(locals())
        self._arguments = args = checked(self, _CHECKS, given)
        meaningless = [name for name in _OF_ORIGINAL if given[name] is not None]
        if meaningless and args["variant"] == "perturbench":
            name = meaningless[0]
            raise ValueError(f"{name}={given[name]!r} has no meaning for variant='perturbench'; leave it out.")
        hidden = hidden_widths(args["n_hidden"], args["n_layers"], n_layers)
        if args["variant"] == "perturbench" and len(set(hidden)) > 1:
            raise ValueError(
                f"n_hidden={args['n_hidden']} must be one width for variant='perturbench', whose layers are all alike."
            )
        args["n_hidden"] = hidden
        self.code_cells_ = ""
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _training_store(self, adata: AnnData, seed: int) -> CellStore:
        """The model's own cells; free codes are of these and no others, whatever their row numbers."""
        cells = hashlib.sha256("\n".join(map(str, adata.obs_names)).encode()).hexdigest()
        if self.module.indexed_training and cells != self.code_cells_:
            self.module.code_rows = None
        self.code_cells_ = cells
        return super()._training_store(adata, seed)

    def _new_module(self) -> BiolordModule | BiolordStarModule:
        args, table = self._arguments, registered_embedding(self)
        n_vars, n_perturbations = self.summary_stats.n_vars, self.summary_stats.n_perturbations
        doses = self._setup.dose_key is not None
        penalised = {name: args[name] for name in ("dropout_rate", "noise", "code_penalty")}
        if args["variant"] == "perturbench":
            condition = ConditionVector(n_perturbations, self._n_embedding, doses)
            if table is not None:
                condition.embedding = scaled(table)
            hidden = args["n_hidden"]
            sizes = hidden[0], len(hidden), args["n_latent"]
            return BiolordStarModule(
                n_vars, self._covariate_sizes, condition, *sizes, **penalised, softplus=not self._setup.signed
            )
        perturbation = AttributeVector(
            n_perturbations,
            self._n_embedding,
            doses,
            n_categorical=args["n_latent_categorical"],
            n_ordered=args["n_latent_ordered"],
            hidden=args["attribute_hidden"],
            dropout_rate=args["dropout_rate"],
        )
        if table is not None:
            perturbation.give(scaled(table))
        own = (
            "unknown",
            "likelihood",
            "standardise",
            "batch_norm",
            "reconstruction_penalty",
            "attribute_lr_factor",
            "n_code_steps",
        )
        return BiolordModule(
            n_vars,
            self._covariate_sizes,
            perturbation,
            args["n_hidden"],
            args["n_latent"],
            n_categorical=args["n_latent_categorical"],
            **{name: args[name] for name in own},
            **penalised,
        )

    def _predictor(self, source: AnnData, *args: Any, **kwargs: Any) -> Predictor:
        """Free codes are fitted under a cell's own label, which other encoders need not know."""
        predictor = super()._predictor(source, *args, **kwargs)
        if not self.module.indexed_training:
            return predictor
        conditions, of_cell = self._setup.conditions(source)
        reasons = self._refusals(conditions)
        known = [() if reason else condition for condition, reason in zip(conditions, reasons, strict=True)]
        codes, doses = encode_targets(known, self._codec, self._n_slots)
        columns = {_keys.PERTURBATION: codes[of_cell], _keys.DOSE: doses[of_cell]}
        predictor.store = predictor.store.with_columns(columns)
        return predictor

    def _perturbation_embedding(self) -> pd.DataFrame:
        """The vectors that the decoder reads, control first.

        One row for each perturbation that was trained or has a given embedding; with doses one for each trained condition.
        """
        conditions: list[Condition] = [(), *single_conditions(self)]
        tensors, module = self._label_tensors(conditions), self.module.eval()
        of_star = isinstance(module, BiolordStarModule)
        vectors = module.perturbation(module.condition(tensors) if of_star else tensors)
        return pd.DataFrame(vectors.cpu().numpy(), index=self._labels(conditions))
