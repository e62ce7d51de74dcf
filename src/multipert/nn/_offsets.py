"""What perturbations add to a latent space where all their cells share random masks and embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from ._variational import bernoulli_divergence, normal_divergence

LEAST_VARIANCE = 1e-4


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
            return mean, (self.log_scale[codes].exp() + LEAST_VARIANCE).square() if self.stochastic else None
        unit = nn.functional.one_hot(codes, self.shape[0]).to(mask)
        out = self.network(joined(mask, unit) if self.sparsity else unit)
        if not self.stochastic:
            return out, None
        mean, log_variance = out.chunk(2, dim=-1)
        return mean, log_variance.exp() + LEAST_VARIANCE

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


def joined(*parts: torch.Tensor) -> torch.Tensor:
    """Vectors side by side; the dimensions before are broadcast.

    Parameters
    ----------
    *parts
        Vectors, each of shape `(..., width)`.

    Returns
    -------
    Shape `(..., sum of the widths)`.

    Examples
    --------
    >>> joined(torch.zeros(4, 1, 2), torch.zeros(3, 5)).shape
    torch.Size([4, 3, 7])
    """
    lead = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*lead, part.shape[-1]) for part in parts], dim=-1)
