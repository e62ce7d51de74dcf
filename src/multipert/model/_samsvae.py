"""SAMSVAE: every perturbation moves a few latent dimensions, and combinations add up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pandas as pd
import torch
from scvi.module.base import LossOutput
from torch import nn

from multipert import _keys
from multipert.nn import CovariateVector, Perceptron, multi_hot, noise_of_cells
from multipert.nn._genescale import GeneScale
from multipert.nn._likelihood import counts_of, library_of, log_normalised, nb_log_prob, normal_log_prob
from multipert.nn._offsets import LEAST_VARIANCE, Draw, Offsets, joined
from multipert.nn._perceptron import ResidualPerceptron
from multipert.nn._variational import normal_divergence

from ._arguments import check_number, check_positive, check_rate, check_switch, check_width, checked, one_of
from ._base import PerturbationModel
from ._module import PerturbationModule, Tensors
from ._perturbench import blind_to_covariates
from ._tags import ModelTags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from multipert.data._loaders import CellLoader

Network = Literal["residual", "perceptron"]
Observation = Literal["normal", "mse", "nb"]
Divergence = Literal["analytic", "mc"]
Mode = Literal["posterior_control", "prior", "reference_posterior"]

_LEAST_MEAN = 1e-4
_LEAST_SHARE = 1e-6
_ROWS = 512
# odd, so that products with codes differ in all bits (2^64 divided by the golden ratio, as a signed number)
_MIX = -7046029254386353131


class SAMSVAEModule(PerturbationModule):
    """Variational autoencoder with `z = basal state + sum of dose * mask * embedding` over the perturbations of a cell.

    Parameters
    ----------
    n_vars
        Number of genes.
    n_perturbations
        Size of the vocabulary.
    covariate_sizes
        Number of values of each covariate that encoder and decoder are told.
    n_latent
        Width of the latent representation.
    n_hidden
        Width of hidden layers.
    n_layers_encoder
        Hidden layers of the encoder.
    n_layers_embedding
        Hidden layers of the network of the embeddings.
    n_layers_decoder
        Hidden layers of the decoder.
    dropout_rate
        Dropout after each hidden layer.
    network
        Kind of all networks.
    likelihood
        Of the expression.
    sparsity
        Whether there are masks.
    stochastic_embedding
        Whether embeddings are random.
    correlated_embedding
        Whether a network gives embeddings from masks.
    mean_field_encoder
        Whether the encoder is not told the offset.
    mask_prior
        Prior probability that a dimension is moved.
    mask_logit
        Logit at which masks start.
    temperature
        Of the relaxed masks.
    embedding_scale
        Prior standard deviation of embeddings.
    kl
        Divergences in closed form, or estimated from the draws.
    n_particles
        Draws per cell and update.
    mode
        Where the basal state of a prediction comes from.
    offset_lr_factor
        Learning rate of masks and free embeddings, in units of that of the networks.
    """

    log_spread: torch.Tensor
    n_cells: torch.Tensor
    dose_unit: torch.Tensor

    def __init__(
        self,
        n_vars: int,
        n_perturbations: int,
        covariate_sizes: tuple[int, ...],
        *,
        n_latent: int,
        n_hidden: int,
        n_layers_encoder: int,
        n_layers_embedding: int,
        n_layers_decoder: int,
        dropout_rate: float,
        network: Network,
        likelihood: Observation,
        sparsity: bool,
        stochastic_embedding: bool,
        correlated_embedding: bool,
        mean_field_encoder: bool,
        mask_prior: float,
        mask_logit: float,
        temperature: float,
        embedding_scale: float,
        kl: Divergence,
        n_particles: int,
        mode: Mode,
        offset_lr_factor: float,
    ) -> None:
        super().__init__()
        made = ResidualPerceptron if network == "residual" else Perceptron
        self.covariates = CovariateVector(covariate_sizes) if covariate_sizes else None
        n_told = sum(covariate_sizes)
        embedder = None
        if correlated_embedding:
            n_in, n_out = n_perturbations + sparsity * n_latent, n_latent * (1 + stochastic_embedding)
            embedder = made(n_in, n_hidden, n_layers_embedding, n_out, dropout_rate)
        self.offsets = Offsets(
            n_perturbations,
            n_latent,
            embedder,
            sparsity=sparsity,
            stochastic=stochastic_embedding,
            mask_prior=mask_prior,
            mask_logit=mask_logit,
            temperature=temperature,
            embedding_scale=embedding_scale,
        )
        n_in = n_vars + n_told + (0 if mean_field_encoder else n_latent)
        self.encoder = made(n_in, n_hidden, n_layers_encoder, 2 * n_latent, dropout_rate)
        self.decoder = made(n_latent + n_told, n_hidden, n_layers_decoder, n_vars, dropout_rate)
        # log variances, or log dispersions, of the genes
        self.register_parameter("log_spread", None if likelihood == "mse" else nn.Parameter(torch.zeros(n_vars)))
        self.likelihood, self.mean_field_encoder, self.n_latent = likelihood, mean_field_encoder, n_latent
        self.kl, self.n_particles, self.mode, self.offset_lr_factor = kl, n_particles, mode, offset_lr_factor
        self.reads_counts, self.draws = likelihood == "nb", mode == "prior"
        self.scale = GeneScale(n_vars)
        self.register_buffer("n_cells", torch.zeros(n_perturbations))
        self.register_buffer("dose_unit", torch.ones(n_perturbations))

    def prepare(self, loader: CellLoader) -> None:
        """Count the training cells of each perturbation; at the first training also start from the genes' means."""
        n_cells, largest = torch.zeros_like(self.n_cells).cpu(), torch.zeros_like(self.dose_unit).cpu()
        counts = torch.zeros_like(self.scale.center, dtype=torch.float64).cpu()
        for batch in loader:
            codes, x = batch[_keys.PERTURBATION].long().cpu(), batch[_keys.X].double().cpu()
            present, doses = codes >= 0, batch[_keys.DOSE].cpu()
            n_cells += torch.bincount(codes[present], minlength=len(n_cells))
            largest.scatter_reduce_(0, codes[present], doses[present].to(largest), "amax")
            counts += x.expm1().sum(0)
        is_first, is_new = not self.n_cells.any(), (self.n_cells == 0).cpu()
        # offsets that were learnt in one unit keep it
        self.dose_unit.copy_(torch.where(is_new & (largest > 0), largest, self.dose_unit.cpu()))
        self.n_cells.copy_(n_cells)
        if not is_first:
            return
        self.scale.measure(loader)
        if self.likelihood == "normal":
            self.log_spread.copy_(2 * self.scale.spread.log())
        else:
            start = (counts / counts.sum()).clamp(min=_LEAST_SHARE).log() if self.reads_counts else self.scale.center
            self.decoder.output.bias.copy_(start)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Networks, and masks and free embeddings, which each see few cells and move faster."""
        shared = list(self.offsets.parameters(recurse=False))
        own = {id(parameter) for parameter in shared}
        of_networks = {"params": [parameter for parameter in self.parameters() if id(parameter) not in own]}
        return [of_networks, {"params": shared, "factor": self.offset_lr_factor}] if shared else [of_networks]

    def _dosage(self, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes of a batch and their doses in units of the largest trained one, 0 for control and padding."""
        codes = tensors[_keys.PERTURBATION].long()
        doses = tensors[_keys.DOSE].to(self.dose_unit) / self.dose_unit[codes.clamp(min=0)]
        return codes, torch.where(codes < 0, 0, doses)

    def draw(self, tensors: Tensors) -> tuple[Draw, torch.Tensor]:
        """Masks and embeddings of a batch's perturbations, which its cells share, and the doses of its cells.

        Parameters
        ----------
        tensors
            A batch.

        Returns
        -------
        What was drawn for U perturbations, `n_particles` times in training if that is above 1 and as it is most likely
        otherwise; and the doses, shape `(B, U)`.
        """
        codes, doses = self._dosage(tensors)
        n_perturbations = self.offsets.shape[0]
        if n_perturbations <= codes.numel():
            used, at = torch.arange(n_perturbations, device=codes.device), codes
        else:
            used = torch.unique(codes[codes >= 0])
            at = torch.where(codes < 0, _keys.PAD, torch.searchsorted(used, codes))
        noise = None
        if self.training:
            lead = (self.n_particles,) if self.n_particles > 1 else ()
            shape = (*lead, len(used), self.n_latent)
            uniform = torch.rand(shape, device=codes.device)
            noise = torch.logit(uniform, eps=1e-6), torch.randn(shape, device=codes.device)
        return self.offsets(used, noise), multi_hot(at, doses, len(used))

    def offset(self, tensors: Tensors) -> torch.Tensor:
        """What the perturbations of each cell add to its basal state; drawn where the batch has keys.

        Parameters
        ----------
        tensors
            A batch.

        Returns
        -------
        Shape `(B, n_latent)`; exactly 0 for control.
        """
        codes, doses = self._dosage(tensors)
        noise = None
        if _keys.CELL_KEY in tensors and self.offsets.is_random:
            # every perturbation of a cell has noise of its own, the same in all combinations
            keys = tensors[_keys.CELL_KEY][:, None] ^ (codes + 1) * _MIX
            normal = noise_of_cells(keys.reshape(-1), 2 * self.n_latent).to(doses)
            of_mask, of_embedding = normal.reshape(*codes.shape, -1).chunk(2, dim=-1)
            noise = torch.special.log_ndtr(of_mask) - torch.special.log_ndtr(-of_mask), of_embedding
        return (self.offsets(codes.clamp(min=0), noise).shift * doses[..., None]).sum(dim=1)

    def encode(self, tensors: Tensors, offset: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of the basal state of cells whose perturbations add an offset.

        Parameters
        ----------
        tensors
            A batch.
        offset
            Shape `(..., B, n_latent)`.

        Returns
        -------
        Both of the shape of the offset.
        """
        told = [] if self.covariates is None else [self.covariates(tensors)]
        x = self.scale.standardised(tensors[_keys.X])
        hidden = self.encoder(joined(x, *told, *([] if self.mean_field_encoder else [offset])))
        mean, log_variance = hidden.chunk(2, dim=-1)
        return mean.expand_as(offset), (log_variance.exp() + LEAST_VARIANCE).expand_as(offset)

    def inference(self, tensors: Tensors) -> dict[str, Any]:
        """Basal state of cells under the labels of the batch; control cells have no offset.

        Drawn in training, and in a prediction of samples; else its mean.
        """
        if self.training:
            drawn, dosage = self.draw(tensors)
            offset, shared = dosage @ drawn.shift, (drawn, dosage)
        else:
            offset, shared = self.offset(tensors), None
        mean, variance = self.encode(tensors, offset)
        z = mean
        if self.training:
            z = mean + variance.sqrt() * torch.randn_like(offset)
        elif _keys.CELL_KEY in tensors and self.mode != "prior":
            z = mean + variance.sqrt() * noise_of_cells(tensors[_keys.CELL_KEY], self.n_latent).to(mean)
        return {"z": z, "mean": mean, "variance": variance, "offset": offset, "shared": shared}

    def _get_generative_input(self, tensors: Tensors, inference_outputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"z": inference_outputs["z"], "tensors": tensors, "offset": inference_outputs["offset"]}

    def generative(
        self, z: torch.Tensor, tensors: Tensors, offset: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Expression of basal states; the offset, if it is not given, is that of the batch's labels."""
        state = z + (self.offset(tensors) if offset is None else offset)
        told = [] if self.covariates is None else [self.covariates(tensors)]
        decoded = self.decoder(joined(state, *told))
        if self.likelihood == "normal":
            return {"px": self.scale(decoded)}
        if self.likelihood == "mse":
            return {"px": decoded}
        mean = decoded.softmax(dim=-1) * library_of(tensors)[:, None]
        return {"px": log_normalised(mean, tensors), "mean": mean}

    def log_prob(self, tensors: Tensors, generative_outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Log-probability of the batch's cells, shape `(..., B)`; for "mse" minus the squared error."""
        x, px = tensors[_keys.X], generative_outputs["px"]
        if self.likelihood == "nb":
            return nb_log_prob(counts_of(tensors), generative_outputs["mean"] + _LEAST_MEAN, self.log_spread).sum(-1)
        if self.likelihood == "mse":
            return -(x - px).square().sum(dim=-1)
        return normal_log_prob(x, px, self.log_spread.exp() + LEAST_VARIANCE).sum(dim=-1)

    def loss(
        self, tensors: Tensors, inference_outputs: Mapping[str, Any], generative_outputs: Mapping[str, torch.Tensor]
    ) -> LossOutput:
        """Negative evidence bound per cell; the divergence of what cells of a perturbation share is split among them."""
        analytic = self.kl == "analytic" or not self.training
        error = -self.log_prob(tensors, generative_outputs)
        value = None if analytic else inference_outputs["z"]
        local = normal_divergence(inference_outputs["mean"], inference_outputs["variance"], 1.0, value).sum(dim=-1)
        drawn, dosage = inference_outputs["shared"] or self.draw(tensors)
        weights = (dosage != 0).to(dosage) / self.n_cells[drawn.codes].clamp(min=1)
        of_shared = (weights @ self.offsets.divergence(drawn, analytic=analytic)[..., None]).squeeze(-1)
        n = len(tensors[_keys.X])
        return LossOutput(
            loss=(error + local + of_shared).mean(),
            reconstruction_loss=error.reshape(-1, n).mean(dim=0),
            kl_local=local.reshape(-1, n).mean(dim=0),
            kl_global=of_shared.mean(),
        )

    def counterfactual(self, tensors: Tensors, z: torch.Tensor | None = None) -> torch.Tensor:
        """Expression of control cells under the labels of the batch, their basal state as `mode` says."""
        if self.mode == "reference_posterior":
            return self.reconstruction(tensors)
        if self.mode == "prior" and _keys.CELL_KEY in tensors:
            z = noise_of_cells(tensors[_keys.CELL_KEY], self.n_latent).to(self.scale.center)
        if z is None:
            codes, doses = tensors[_keys.PERTURBATION], tensors[_keys.DOSE]
            control = {_keys.PERTURBATION: torch.full_like(codes, _keys.PAD), _keys.DOSE: torch.zeros_like(doses)}
            z = self.inference({**tensors, **control})["z"]
        return self.generative(z, tensors)["px"]

    def reconstruction(self, tensors: Tensors) -> torch.Tensor:
        """Cells encoded and decoded under the labels of the batch, shape `(B, n_vars)`."""
        inferred = self.inference(tensors)
        return self.generative(inferred["z"], tensors, inferred["offset"])["px"]


def _benchmarked(
    n_hidden: int,
    n_latent: int,
    n_layers: tuple[int, int, int],
    dropout_rate: float,
    lr: float,
    weight_decay: float,
    *,
    covariates: bool,
    mask_prior: float | None = None,
    mode: Mode = "prior",
) -> dict[str, Any]:
    """Preset of a configuration of PerturBench; without a prior of masks one of the simplified form."""
    sparse = mask_prior is not None
    return {
        "network": "perceptron",
        "likelihood": "mse",
        "n_hidden": n_hidden,
        "n_latent": n_latent,
        **dict(zip(("n_layers_encoder", "n_layers_embedding", "n_layers_decoder"), n_layers, strict=True)),
        "dropout_rate": dropout_rate,
        "sparsity": sparse,
        "stochastic_embedding": sparse,
        "correlated_embedding": True,
        "inject_covariates": covariates,
        **({"mask_prior": mask_prior} if sparse else {}),
        "mask_logit": -1.0,
        "temperature": 0.5,
        "mode": mode,
        "offset_lr_factor": 1.0,
        "lr": lr,
        "weight_decay": weight_decay,
        "batch_size": 256,
        "max_epochs": 500,
        "plan_kwargs": {"n_warmup_steps": 0},
    }


_CONTROL: Mode = "posterior_control"


def _check_prior(name: str, value: Any) -> None:
    """Refuse a probability that would leave nothing to learn of the masks."""
    check_number(name, value)
    if not 0 < value < 1:
        raise ValueError(f"{name}={value} must be above 0 and below 1; sparsity=False moves every dimension.")


_WIDTHS = "n_latent", "n_hidden", "n_layers_encoder", "n_layers_embedding", "n_layers_decoder", "n_particles"
_SWITCHES = "sparsity", "stochastic_embedding", "correlated_embedding", "mean_field_encoder", "inject_covariates"
_CHECKS = {
    **dict.fromkeys(_WIDTHS, check_width),
    "dropout_rate": check_rate,
    "network": one_of(Network),
    "likelihood": one_of(Observation),
    **dict.fromkeys(_SWITCHES, check_switch),
    "mask_prior": _check_prior,
    "mask_logit": check_number,
    **dict.fromkeys(("temperature", "embedding_scale", "offset_lr_factor"), check_positive),
    "kl": one_of(Divergence),
    "mode": one_of(Mode),
}


class SAMSVAE(PerturbationModel):
    r"""Sparse additive mechanism shifts :cite:p:`Bereket2023`: a perturbation moves few dimensions of a latent space.

    A cell is decoded from its basal state plus the offsets of its perturbations. The offset of a perturbation is an
    embedding times a mask of zeros and ones, both random and shared by all its cells:

    .. math::

        x \sim p(x \mid g(z)), \qquad z = z_b + \sum_t d_t\, m_t \odot e_t, \qquad
        z_b \sim \mathcal N(0, I),\quad e_t \sim \mathcal N(0, s^2 I),\quad m_{tk} \sim \mathrm{Bernoulli}(\pi)

    with :math:`d_t` the dose, 1 without `dose_key`. Use it for combinations of perturbations seen alone or in other
    combinations, for contexts that have control cells only, and to read which perturbations share a mechanism
    (:meth:`mask_probabilities`). Perturbations without training cells are out of reach, and a dose only scales the offset.
    The expression is log-normalised; with `likelihood="nb"` raw counts must be in `layers["counts"]` beside it.

    Parameters
    ----------
    adata
        Data that :meth:`setup_anndata` was run on.
    registry
        Registry of a saved model, in place of data.
    preset
        "default"; "simplified" (no masks, embeddings not random, as PerturBench :cite:p:`Wu2024` found best); "published"
        (the authors' example, on counts); or a configuration of PerturBench by its data set, such as "norman19" or
        "simplified_norman19".
    n_latent
        Width of the latent representation.
    n_hidden
        Width of all hidden layers.
    n_layers_encoder
        Hidden layers of the encoder of the basal state.
    n_layers_embedding
        Hidden layers of the network of embeddings, of no use unless `correlated_embedding`.
    n_layers_decoder
        Hidden layers of the decoder.
    dropout_rate
        Dropout after each hidden layer.
    network
        "residual" (leaky ReLU, later layers added to what they read) or "perceptron" (layer norm and ReLU, PerturBench's).
    likelihood
        "normal" (one variance per gene), "mse" (squared error, so a variance of 1/2), or "nb" (negative binomial counts, shares
        of the cell's library, one dispersion per gene).
    sparsity
        Whether there are masks; without them every dimension is moved.
    stochastic_embedding
        Whether embeddings are random; else they have no prior.
    correlated_embedding
        Whether a network gives each embedding from its mask and unit vector; else each is free, independent of its mask.
    mean_field_encoder
        Whether the encoder is not told the offset of a cell.
    inject_covariates
        Whether encoder and decoder are told context and categorical covariates, where they are set up. Contexts without
        training cells are then refused.
    mask_prior
        Prior probability that a perturbation moves a dimension, above 0 and below 1.
    mask_logit
        Logit of the posterior probability at the start.
    temperature
        Of the relaxed masks that training draws.
    embedding_scale
        Prior standard deviation of embeddings.
    kl
        "analytic" or "mc": divergences in closed form, or estimated from the draws as published.
    n_particles
        Draws of masks, embeddings and basal states per update.
    mode
        Basal state of a predicted cell: "posterior_control" is that of the control cell, encoded without an offset;
        "reference_posterior" (PerturBench's) encodes the control cell as if it had the target's offset, which takes part of
        the effect away; "prior" (the published one) draws it, masks and embeddings too, and ignores the control cell but for
        its covariates and library.
    offset_lr_factor
        Learning rate of masks and free embeddings, in units of `lr`.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.SAMSVAE.setup_anndata(adata, context_key="context")
    >>> model = mp.model.SAMSVAE(adata, n_hidden=16, n_latent=4)
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> model.mask_probabilities().shape[1]
    4
    """

    tags: ClassVar[ModelTags] = ModelTags(
        uses_context=True,
        uses_covariates=True,
        unseen_context=False,
        combinations=True,
        doses=True,
        latent=True,
        perturbation_embedding=True,
        samples=True,
        reference="Bereket2023",
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {
            "n_latent": 64,
            "n_hidden": 256,
            "n_layers_encoder": 1,
            "n_layers_embedding": 2,
            "n_layers_decoder": 1,
            "dropout_rate": 0.0,
            "network": "residual",
            "likelihood": "normal",
            "sparsity": True,
            "stochastic_embedding": True,
            "correlated_embedding": False,
            "mean_field_encoder": False,
            "inject_covariates": True,
            "mask_prior": 0.01,
            "mask_logit": 2.0,
            "temperature": 1.0,
            "embedding_scale": 1.0,
            "kl": "analytic",
            "n_particles": 1,
            "mode": "posterior_control",
            "offset_lr_factor": 10.0,
            "lr": 1e-3,
            "weight_decay": 1e-6,
            "batch_size": 64,
            "n_updates": 2000,
        },
        "simplified": {"sparsity": False, "stochastic_embedding": False},
        "published": {
            "mask_logit": 0.0,
            "n_latent": 100,
            "n_hidden": 350,
            "likelihood": "nb",
            "inject_covariates": False,
            "kl": "mc",
            "n_particles": 5,
            "mode": "prior",
            "offset_lr_factor": 1.0,
            "lr": 1e-3,
            "batch_size": 512,
            "max_epochs": 1000,
            "plan_kwargs": {"n_warmup_steps": 0},
        },
        "srivatsan20": _benchmarked(
            1536, 64, (4, 2, 1), 0.3, 4.002e-4, 1.7e-6, covariates=False, mask_prior=0.0115, mode=_CONTROL
        ),
        "norman19": _benchmarked(
            3584, 128, (1, 3, 2), 0.4, 3.026e-5, 4.2e-9, covariates=False, mask_prior=0.114, mode=_CONTROL
        ),
        "frangieh21": _benchmarked(
            4096, 24, (1, 5, 3), 0.1, 5.18e-7, 7e-10, covariates=False, mask_prior=0.0126, mode=_CONTROL
        ),
        "jiang24": _benchmarked(3328, 64, (3, 5, 3), 0.5, 7.595e-6, 1.6e-8, covariates=True, mask_prior=0.207),
        "op3": _benchmarked(1792, 128, (3, 2, 1), 0.3, 9.611e-4, 4e-7, covariates=True, mask_prior=0.030),
        "mcfaline_small": _benchmarked(2304, 24, (3, 2, 1), 0.3, 6.950e-6, 8e-9, covariates=True, mask_prior=0.035),
        "mcfaline_medium": _benchmarked(1536, 128, (4, 3, 2), 0.3, 6.422e-6, 3e-9, covariates=True, mask_prior=0.0217),
        "mcfaline_full": _benchmarked(3328, 128, (5, 4, 3), 0.1, 3.672e-6, 2.6e-7, covariates=True, mask_prior=0.0184),
        "simplified_srivatsan20": _benchmarked(2560, 32, (4, 2, 3), 0.4, 3.418e-4, 7e-8, covariates=True),
        "simplified_norman19": _benchmarked(2048, 32, (1, 1, 3), 0.3, 1.598e-5, 6.6e-5, covariates=False),
        "simplified_frangieh21": _benchmarked(2560, 128, (4, 4, 1), 0.0, 5.580e-6, 2e-8, covariates=True),
        "simplified_jiang24": _benchmarked(1536, 32, (5, 2, 3), 0.6, 3.892e-4, 1e-6, covariates=True),
        "simplified_op3": _benchmarked(1536, 64, (2, 4, 2), 0.1, 4.206e-5, 2.9e-5, covariates=True),
        "simplified_mcfaline_small": _benchmarked(3328, 32, (1, 4, 1), 0.3, 3.432e-5, 1e-8, covariates=True),
        "simplified_mcfaline_medium": _benchmarked(3584, 128, (1, 1, 2), 0.3, 2.979e-5, 1e-5, covariates=True),
        "simplified_mcfaline_full": _benchmarked(3584, 24, (1, 3, 3), 0.1, 3.953e-5, 6e-6, covariates=True),
    }
    search_space: ClassVar[dict[str, tuple]] = {
        "n_latent": ("choice", (16, 32, 64, 128)),
        "n_hidden": ("choice", (64, 128, 256, 512, 1024)),
        "n_layers_encoder": ("int", 1, 4),
        "n_layers_embedding": ("int", 1, 4),
        "n_layers_decoder": ("int", 1, 4),
        "dropout_rate": ("float", 0.0, 0.8),
        "mask_prior": ("log", 1e-4, 0.99),
        "sparsity": ("choice", (True, False)),
        "stochastic_embedding": ("choice", (True, False)),
        "mean_field_encoder": ("choice", (True, False)),
        "lr": ("log", 5e-6, 5e-3),
        "weight_decay": ("log", 1e-8, 1e-3),
    }

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        *,
        preset: str | None = None,
        n_latent: int | None = None,
        n_hidden: int | None = None,
        n_layers_encoder: int | None = None,
        n_layers_embedding: int | None = None,
        n_layers_decoder: int | None = None,
        dropout_rate: float | None = None,
        network: Network | None = None,
        likelihood: Observation | None = None,
        sparsity: bool | None = None,
        stochastic_embedding: bool | None = None,
        correlated_embedding: bool | None = None,
        mean_field_encoder: bool | None = None,
        inject_covariates: bool | None = None,
        mask_prior: float | None = None,
        mask_logit: float | None = None,
        temperature: float | None = None,
        embedding_scale: float | None = None,
        kl: Divergence | None = None,
        n_particles: int | None = None,
        mode: Mode | None = None,
        offset_lr_factor: float | None = None,
    ) -> None:
        super().__init__(adata, registry, preset)
        args = checked(self, _CHECKS, locals())
        injects = args.pop("inject_covariates")
        if not injects:
            self.tags = blind_to_covariates(self.tags)  # type: ignore[misc]
        self._module_args = {**args, "covariate_sizes": self._covariate_sizes if injects else ()}
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self) -> SAMSVAEModule:
        sizes = self.summary_stats
        return SAMSVAEModule(sizes.n_vars, sizes.n_perturbations, **self._module_args)

    def mask_probabilities(self) -> pd.DataFrame:
        """Posterior probability that each trained perturbation moves each latent dimension.

        Returns
        -------
        One row per perturbation with training cells, one column per latent dimension; 1 without masks.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        """
        self._require_trained()
        with torch.inference_mode():
            return self._table(self.module.offsets.probabilities(self._trained_codes()))

    def effective_sparsity(self) -> pd.DataFrame:
        """How many latent dimensions each trained perturbation moves.

        Returns
        -------
        One row per perturbation with training cells: `expected`, the sum of its mask probabilities; `active`, how many are
        above 0.5; `undecided`, how many are between 0.1 and 0.9; `share`, `active` over all dimensions; and `n_cells`, its
        training cells. Masks of perturbations with few cells stay near the prior or, in a short training, undecided.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        """
        probabilities = self.mask_probabilities()
        active = (probabilities > 0.5).sum(axis=1)
        return pd.DataFrame(
            {
                "expected": probabilities.sum(axis=1),
                "active": active,
                "undecided": ((probabilities > 0.1) & (probabilities < 0.9)).sum(axis=1),
                "share": active / probabilities.shape[1],
                "n_cells": self.module.n_cells[self._trained_codes()].long().cpu().numpy(),
            }
        )

    def _trained_codes(self) -> torch.Tensor:
        return torch.nonzero(self.module.n_cells).reshape(-1)

    def _perturbation_embedding(self) -> pd.DataFrame:
        """Offsets at the largest trained dose: mean embeddings times masks at the threshold 0.5."""
        self.module.eval()
        return self._table(
            torch.cat([self.module.offsets(codes).shift for codes in self._trained_codes().split(_ROWS)])
        )

    def _table(self, values: torch.Tensor) -> pd.DataFrame:
        names = [self._codec.vocabulary[code] for code in self._trained_codes().tolist()]
        return pd.DataFrame(values.float().cpu().numpy(), index=pd.Index(names, name=self._setup.perturbation_key))
