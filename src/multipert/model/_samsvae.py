"""SAMSVAE: every perturbation moves a few latent dimensions, and combinations add up."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import pandas as pd
import torch
from scvi.module.base import LossOutput
from torch import nn

from multipert import _keys
from multipert.data._conditions import close_matches
from multipert.nn import CovariateVector, Perceptron, multi_hot, noise_of_cells
from multipert.nn._likelihood import counts_of, library_of, log_normalised, nb_log_prob, normal_log_prob

from ._base import PerturbationModel
from ._module import PerturbationModule, Tensors
from ._mtae import check_widths
from ._tags import ModelTags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from multipert.data._loaders import CellLoader

Network = Literal["residual", "perceptron"]
Observation = Literal["normal", "mse", "nb"]
Divergence = Literal["analytic", "mc"]
Mode = Literal["posterior_control", "prior", "reference_posterior"]

_SLOPE = 0.01
_LEAST_VARIANCE = 1e-4
_LEAST_MEAN = 1e-4
_LEAST_SHARE = 1e-6
# added to the standard deviation of a gene, which is 0 for one without counts
_SPREAD_EPS = 1e-2
_ROWS = 512
# odd, so that products with codes differ in all bits (2^64 divided by the golden ratio, as a signed number)
_MIX = -7046029254386353131


class ResidualPerceptron(nn.Module):
    """Linear layers with leaky ReLU, the second and later ones added to what they read, then a linear layer.

    Parameters
    ----------
    n_in
        Width of the input.
    n_hidden
        Width of the hidden layers.
    n_layers
        Number of hidden layers.
    n_out
        Width of the output.
    dropout_rate
        Dropout after each hidden layer.
    """

    def __init__(self, n_in: int, n_hidden: int, n_layers: int, n_out: int, dropout_rate: float) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(n_hidden if layer else n_in, n_hidden) for layer in range(n_layers))
        self.dropout = nn.Dropout(dropout_rate)
        self.output = nn.Linear(n_hidden, n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Output of the last layer, shape `(..., n_out)`."""
        for number, layer in enumerate(self.hidden):
            added = self.dropout(nn.functional.leaky_relu(layer(x), _SLOPE))
            x = x + added if number else added
        return self.output(x)


def bernoulli_divergence(mask: torch.Tensor, logits: torch.Tensor, prior_logit: float) -> torch.Tensor:
    """Log-ratio of two Bernoulli distributions at a mask; at the first one's probabilities, its mean: the divergence.

    Parameters
    ----------
    mask
        Zeros and ones, or probabilities.
    logits
        Of the first distribution, a shape that broadcasts to that of the mask.
    prior_logit
        Of the second.

    Returns
    -------
    Shape of the mask, in nats.
    """
    softplus = nn.functional.softplus
    return mask * (logits - prior_logit) - softplus(logits) + math.log1p(math.exp(prior_logit))


def normal_divergence(
    mean: torch.Tensor, variance: torch.Tensor, scale: float, value: torch.Tensor | None = None
) -> torch.Tensor:
    """Divergence of normal distributions from a centred one, or the log-ratio of both densities at some values.

    Parameters
    ----------
    mean
        Means.
    variance
        Variances, same shape.
    scale
        Standard deviation of the centred distribution.
    value
        Where the log-ratio is taken; None gives its mean, the divergence.

    Returns
    -------
    Shape of the means (of the values), in nats.
    """
    ratio = variance / scale**2
    if value is None:
        return 0.5 * (ratio + (mean / scale).square() - 1 - ratio.log())
    return 0.5 * ((value / scale).square() - (value - mean).square() / variance - ratio.log())


@dataclass
class Draw:
    """Masks and embeddings of some perturbations.

    Parameters
    ----------
    codes
        Codes of the perturbations, shape `(..., U)`.
    mask
        Zeros and ones, shape `(..., U, n_latent)`.
    mean
        Means of the embeddings, same shape.
    variance
        Their variances; None where embeddings are not random.
    embedding
        The embeddings.
    """

    codes: torch.Tensor
    mask: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor | None
    embedding: torch.Tensor

    @property
    def shift(self) -> torch.Tensor:
        """What each perturbation adds to the basal state at dose 1, shape `(..., U, n_latent)`."""
        return self.mask * self.embedding


class Offsets(nn.Module):
    """Posterior of the masks and embeddings of all perturbations, which their cells share.

    Parameters
    ----------
    n_perturbations
        Size of the vocabulary.
    n_latent
        Width of the latent representation.
    network
        Gives an embedding's mean and log variance from its mask and unit vector; None has free ones.
    sparsity
        Whether there are masks.
    stochastic
        Whether embeddings are random.
    mask_prior
        Prior probability that a dimension is moved.
    mask_logit
        Logit at which masks start.
    temperature
        Of the relaxed masks.
    embedding_scale
        Prior standard deviation of embeddings.
    """

    def __init__(
        self,
        n_perturbations: int,
        n_latent: int,
        network: nn.Module | None,
        *,
        sparsity: bool,
        stochastic: bool,
        mask_prior: float,
        mask_logit: float,
        temperature: float,
        embedding_scale: float,
    ) -> None:
        super().__init__()
        shape = n_perturbations, n_latent
        self.shape, self.sparsity, self.stochastic, self.network = shape, sparsity, stochastic, network
        self.prior_logit = math.log(mask_prior) - math.log1p(-mask_prior)
        self.temperature, self.embedding_scale = temperature, embedding_scale
        if sparsity:
            self.logits = nn.Parameter(torch.full(shape, float(mask_logit)))
        if network is None:
            self.mean = nn.Parameter(torch.zeros(shape))
            if stochastic:
                self.log_scale = nn.Parameter(torch.zeros(shape))

    @property
    def is_random(self) -> bool:
        """Whether there is anything to draw."""
        return self.sparsity or self.stochastic

    def probabilities(self, codes: torch.Tensor) -> torch.Tensor:
        """Probability that each dimension is moved, shape `(..., U, n_latent)`; 1 without masks."""
        if not self.sparsity:
            return torch.ones(*codes.shape, self.shape[1], device=codes.device)
        return torch.sigmoid(self.logits[codes])

    def forward(self, codes: torch.Tensor, noise: tuple[torch.Tensor, torch.Tensor] | None = None) -> Draw:
        """Masks and embeddings of some perturbations.

        Parameters
        ----------
        codes
            Codes, shape `(..., U)`.
        noise
            Logistic noise of the masks and standard normal noise of the embeddings, shape `(..., U, n_latent)`, dimensions
            before those of the codes allowed. None takes masks at the threshold 0.5 and mean embeddings.

        Returns
        -------
        What was drawn.
        """
        logistic, normal = (None, None) if noise is None else noise
        mask = self._mask(codes, logistic)
        mean, variance = self._moments(codes, mask)
        embedding = mean if variance is None or normal is None else mean + variance.sqrt() * normal
        return Draw(codes, mask, mean, variance, embedding)

    def _mask(self, codes: torch.Tensor, logistic: torch.Tensor | None) -> torch.Tensor:
        if not self.sparsity:
            return self.probabilities(codes)
        logits = self.logits[codes]
        if logistic is None:
            return (logits > 0).to(logits)
        soft = torch.sigmoid((logits + logistic) / self.temperature)
        # exactly 0 or 1, with the gradient of the relaxed mask
        return (soft > 0.5).to(soft) + (soft - soft.detach())

    def _moments(self, codes: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.network is None:
            mean = self.mean[codes]
            return mean, (self.log_scale[codes].exp() + _LEAST_VARIANCE).square() if self.stochastic else None
        unit = nn.functional.one_hot(codes, self.shape[0]).to(mask)
        out = self.network(_joined(mask, unit) if self.sparsity else unit)
        if not self.stochastic:
            return out, None
        mean, log_variance = out.chunk(2, dim=-1)
        return mean, log_variance.exp() + _LEAST_VARIANCE

    def divergence(self, draw: Draw, *, analytic: bool) -> torch.Tensor:
        """Divergence from the prior of the masks, and of the embeddings given the masks drawn.

        Parameters
        ----------
        draw
            What was drawn.
        analytic
            Whether in closed form; else the log-ratio at what was drawn.

        Returns
        -------
        Shape `(..., U)`, sums over dimensions, in nats.
        """
        total = torch.zeros_like(draw.shift)
        if self.sparsity:
            logits = self.logits[draw.codes]
            mask = torch.sigmoid(logits) if analytic else draw.mask
            total = total + bernoulli_divergence(mask, logits, self.prior_logit)
        if draw.variance is not None:
            value = None if analytic else draw.embedding
            total = total + normal_divergence(draw.mean, draw.variance, self.embedding_scale, value)
        return total.sum(dim=-1)


def _joined(*parts: torch.Tensor) -> torch.Tensor:
    """Vectors side by side; the dimensions before are broadcast."""
    lead = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*lead, part.shape[-1]) for part in parts], dim=-1)


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
    center: torch.Tensor
    spread: torch.Tensor
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
        for name, value in {
            "center": torch.zeros(n_vars),
            "spread": torch.ones(n_vars),
            "n_cells": torch.zeros(n_perturbations),
            "dose_unit": torch.ones(n_perturbations),
        }.items():
            self.register_buffer(name, value)

    def prepare(self, loader: CellLoader) -> None:
        """Count the training cells of each perturbation; at the first training also start from the genes' means."""
        n_cells, largest = torch.zeros_like(self.n_cells).cpu(), torch.zeros_like(self.dose_unit).cpu()
        n, sums = 0, torch.zeros(3, len(self.center), dtype=torch.float64)
        for batch in loader:
            codes, x = batch[_keys.PERTURBATION].long().cpu(), batch[_keys.X].double().cpu()
            present, doses = codes >= 0, batch[_keys.DOSE].cpu()
            n_cells += torch.bincount(codes[present], minlength=len(n_cells))
            largest.scatter_reduce_(0, codes[present], doses[present].to(largest), "amax")
            n, sums = n + len(x), sums + torch.stack([x.sum(0), x.square().sum(0), x.expm1().sum(0)])
        is_first, is_new = not self.n_cells.any(), (self.n_cells == 0).cpu()
        # offsets that were learnt in one unit keep it
        self.dose_unit.copy_(torch.where(is_new & (largest > 0), largest, self.dose_unit.cpu()))
        self.n_cells.copy_(n_cells)
        if not is_first:
            return
        mean, share = sums[0] / n, sums[2] / sums[2].sum()
        variance = (sums[1] / n - mean.square()).clamp(min=0)
        self.center.copy_(mean)
        self.spread.copy_(variance.sqrt() + _SPREAD_EPS)
        self.decoder.output.bias.copy_(share.clamp(min=_LEAST_SHARE).log() if self.reads_counts else mean)
        if self.likelihood == "normal":
            self.log_spread.copy_((variance + _LEAST_VARIANCE).log())

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
        x = (tensors[_keys.X] - self.center) / self.spread
        hidden = self.encoder(_joined(x, *told, *([] if self.mean_field_encoder else [offset])))
        mean, log_variance = hidden.chunk(2, dim=-1)
        return mean.expand_as(offset), (log_variance.exp() + _LEAST_VARIANCE).expand_as(offset)

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
        decoded = self.decoder(_joined(state, *told))
        if not self.reads_counts:
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
        return normal_log_prob(x, px, self.log_spread.exp() + _LEAST_VARIANCE).sum(dim=-1)

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
            z = noise_of_cells(tensors[_keys.CELL_KEY], self.n_latent).to(self.center)
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
        given = {
            "n_latent": n_latent,
            "n_hidden": n_hidden,
            "n_layers_encoder": n_layers_encoder,
            "n_layers_embedding": n_layers_embedding,
            "n_layers_decoder": n_layers_decoder,
            "dropout_rate": dropout_rate,
            "network": network,
            "likelihood": likelihood,
            "sparsity": sparsity,
            "stochastic_embedding": stochastic_embedding,
            "correlated_embedding": correlated_embedding,
            "mean_field_encoder": mean_field_encoder,
            "mask_prior": mask_prior,
            "mask_logit": mask_logit,
            "temperature": temperature,
            "embedding_scale": embedding_scale,
            "kl": kl,
            "n_particles": n_particles,
            "mode": mode,
            "offset_lr_factor": offset_lr_factor,
        }
        self._module_args = {name: self._value(name, value) for name, value in given.items()}
        _check(self._module_args)
        injects = self._value("inject_covariates", inject_covariates)
        if not injects:
            self.tags = replace(self.tags, uses_context=False, uses_covariates=False, unseen_context=True)  # type: ignore[misc]
        self._module_args["covariate_sizes"] = self._covariate_sizes if injects else ()
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


def _check(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that make no model."""
    widths = "n_latent", "n_hidden", "n_layers_encoder", "n_layers_embedding", "n_layers_decoder", "n_particles"
    for name in widths:
        if not isinstance(arguments[name], Integral):
            raise TypeError(f"{name}={arguments[name]!r} must be a whole number.")
    check_widths(**{name: arguments[name] for name in widths})
    for name, kind in {"network": Network, "likelihood": Observation, "kl": Divergence, "mode": Mode}.items():
        if arguments[name] not in get_args(kind):
            raise ValueError(
                f"{name}={arguments[name]!r} is unknown{close_matches(str(arguments[name]), get_args(kind))}"
            )
    if not 0 <= arguments["dropout_rate"] < 1:
        raise ValueError(f"dropout_rate={arguments['dropout_rate']} must be at least 0 and below 1.")
    if not 0 < arguments["mask_prior"] < 1:
        raise ValueError(
            f"mask_prior={arguments['mask_prior']} must be above 0 and below 1; sparsity=False moves every dimension."
        )
    if not math.isfinite(arguments["mask_logit"]):
        raise ValueError(f"mask_logit={arguments['mask_logit']} must be a finite number.")
    for name in ("temperature", "embedding_scale", "offset_lr_factor"):
        if not 0 < arguments[name] < math.inf:
            raise ValueError(f"{name}={arguments[name]} must be positive and finite.")
