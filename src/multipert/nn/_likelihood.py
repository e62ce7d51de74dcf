"""Log-likelihoods of expression, and the layers that give their parameters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import nn

from multipert import _keys

from ._genescale import GeneScale

if TYPE_CHECKING:
    from collections.abc import Mapping

Likelihood = Literal["normal", "mse", "nb", "zinb"]

_LEAST_VARIANCE = 1e-4
_LEAST_MEAN = 1e-8
# the widest range in which float32 still tells a dispersion's effect from that of none
_LARGEST_LOG = 12.0
_STIRLING = 200.0


def nb_log_prob(counts: torch.Tensor, mean: torch.Tensor, log_dispersion: torch.Tensor) -> torch.Tensor:
    r"""Log-probability of counts under negative binomial distributions.

    Variance :math:`\mu + \mu^2 / \theta`: the larger :math:`\theta`, the nearer to Poisson.

    Parameters
    ----------
    counts
        Counts, shape `(B, n_vars)`.
    mean
        Means :math:`\mu`, same shape; 1e-8 is the least that is used.
    log_dispersion
        :math:`\log \theta`, shape `(n_vars,)` or that of the counts; used within -12..12.

    Returns
    -------
    Per gene, shape `(B, n_vars)`.

    Examples
    --------
    >>> nb_log_prob(torch.tensor([[0.0, 1.0]]), torch.ones(1, 2), torch.zeros(2)).exp()
    tensor([[0.5000, 0.2500]])
    """
    log_dispersion = log_dispersion.clamp(-_LARGEST_LOG, _LARGEST_LOG)
    dispersion, odds = log_dispersion.exp(), mean.clamp(min=_LEAST_MEAN).log() - log_dispersion
    counted = counts * odds - (counts + dispersion) * nn.functional.softplus(odds)
    return counted + _log_gamma_ratio(counts, dispersion) - torch.lgamma(counts + 1)


def _log_gamma_ratio(counts: torch.Tensor, dispersion: torch.Tensor) -> torch.Tensor:
    """`log(gamma(counts + dispersion) / gamma(dispersion))`."""
    small = dispersion.clamp(max=_STIRLING)
    ratio = torch.lgamma(counts + small) - torch.lgamma(small)
    # seldom needed, and as costly as all the rest
    if dispersion.max() <= _STIRLING:
        return ratio
    # the difference of two large numbers is lost in float32, Stirling's series of it is not
    large = dispersion.clamp(min=_STIRLING)
    series = (
        (large + counts - 0.5) * torch.log1p(counts / large)
        + counts * (large.log() - 1)
        + 1 / (12 * (large + counts))
        - 1 / (12 * large)
    )
    return torch.where(dispersion > _STIRLING, series, ratio)


def zinb_log_prob(
    counts: torch.Tensor, mean: torch.Tensor, log_dispersion: torch.Tensor, dropout_logits: torch.Tensor
) -> torch.Tensor:
    """Log-probability of counts under negative binomial distributions with further zeros.

    Parameters
    ----------
    counts
        Counts, shape `(B, n_vars)`.
    mean
        Means of the negative binomial part, same shape.
    log_dispersion
        As in :func:`nb_log_prob`.
    dropout_logits
        Logits of the share of further zeros, same shape as the counts.

    Returns
    -------
    Per gene, shape `(B, n_vars)`.

    Examples
    --------
    >>> zinb_log_prob(torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1), torch.zeros(1, 1)).exp()
    tensor([[0.7500]])
    """
    log_dropout, log_rest = nn.functional.logsigmoid(dropout_logits), nn.functional.logsigmoid(-dropout_logits)
    counted = log_rest + nb_log_prob(counts, mean, log_dispersion)
    return torch.where(counts > 0, counted, torch.logaddexp(log_dropout, counted))


def poisson_log_prob(counts: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Log-probability of counts under Poisson distributions.

    Parameters
    ----------
    counts
        Counts, shape `(B, n_vars)`.
    mean
        Means, same shape; 1e-8 is the least that is used.

    Returns
    -------
    Per gene, shape `(B, n_vars)`.

    Examples
    --------
    >>> poisson_log_prob(torch.zeros(1, 1), torch.ones(1, 1))
    tensor([[-1.]])
    """
    mean = mean.clamp(min=_LEAST_MEAN)
    return counts * mean.log() - mean - torch.lgamma(counts + 1)


def normal_log_prob(x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Log-density of expression under normal distributions.

    Parameters
    ----------
    x
        Expression, shape `(B, n_vars)`.
    mean
        Means, same shape.
    variance
        Variances, positive, of a shape that broadcasts to it.

    Returns
    -------
    Per gene, shape `(B, n_vars)`.

    Examples
    --------
    >>> normal_log_prob(torch.ones(1, 1), torch.zeros(1, 1), torch.ones(1, 1))
    tensor([[-1.4189]])
    """
    return -0.5 * (math.log(2 * math.pi) + variance.log() + (x - mean).square() / variance)


def counts_of(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Counts of a batch's cells, from their log-normalised expression and size factors.

    Parameters
    ----------
    tensors
        A batch with `"size_factor"` (B,): X is `log1p(size_factor * counts)`.

    Returns
    -------
    Whole numbers, shape `(B, n_vars)`.

    Examples
    --------
    >>> size_factor = torch.tensor([0.5])
    >>> counts_of({"X": torch.log1p(size_factor * torch.tensor([[0.0, 7.0]])), "size_factor": size_factor})
    tensor([[0., 7.]])
    """
    return torch.round(torch.expm1(tensors[_keys.X]) / tensors[_keys.SIZE_FACTOR][:, None])


def library_of(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Number of counts of each cell of a batch.

    Parameters
    ----------
    tensors
        A batch with `"size_factor"`; see :func:`counts_of`.

    Returns
    -------
    Shape `(B,)`; 1 for a cell without counts, whose logarithm would be infinite.

    Examples
    --------
    >>> library_of({"X": torch.log1p(torch.tensor([[2.0, 3.0], [0.0, 0.0]])), "size_factor": torch.ones(2)})
    tensor([5., 1.])
    """
    return counts_of(tensors).sum(dim=1).clamp(min=1)


def log_normalised(mean_counts: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mean counts in the space of the expression, `log1p(size_factor * mean_counts)`.

    Parameters
    ----------
    mean_counts
        Mean counts, shape `(B, n_vars)`.
    tensors
        A batch with `"size_factor"`; see :func:`counts_of`.

    Returns
    -------
    Shape `(B, n_vars)`.

    Examples
    --------
    >>> log_normalised(torch.ones(1, 1), {"size_factor": torch.tensor([2.0])})
    tensor([[1.0986]])
    """
    return torch.log1p(mean_counts * tensors[_keys.SIZE_FACTOR][:, None])


class NormalHead(nn.Module):
    """Mean and variance of log-normalised expression, each from a linear layer, in units of :class:`GeneScale`.

    Parameters
    ----------
    n_in
        Width of the decoder's last hidden layer.
    n_vars
        Number of genes.
    least_variance
        What is added to every variance; at 0 a loss has to keep a floor of its own.

    Examples
    --------
    >>> out = NormalHead(2, 3)(torch.ones(1, 2), {})
    >>> out["px"].shape, bool((out["variance"] > 1e-4).all())
    (torch.Size([1, 3]), True)
    """

    reads_counts: ClassVar[bool] = False

    def __init__(self, n_in: int, n_vars: int, least_variance: float = _LEAST_VARIANCE) -> None:
        super().__init__()
        self.mean, self.log_variance = nn.Linear(n_in, n_vars), nn.Linear(n_in, n_vars)
        self.scale, self.least_variance = GeneScale(n_vars), least_variance

    def forward(self, hidden: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`"px"` and `"variance"`, each of shape `(B, n_vars)`."""
        unit = self.log_variance(hidden).clamp(max=_LARGEST_LOG).exp()
        variance = self.scale.spread.square() * unit + self.least_variance
        return {"px": self.scale(self.mean(hidden)), "variance": variance}

    def log_prob(self, tensors: Mapping[str, torch.Tensor], decoded: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Log-density of the batch's expression per gene, shape `(B, n_vars)`."""
        return normal_log_prob(tensors[_keys.X], decoded["px"], decoded["variance"])


class SquaredErrorHead(nn.Module):
    """Mean of log-normalised expression, whose log-density is taken as minus the squared error.

    Parameters
    ----------
    n_in
        Width of the decoder's last hidden layer.
    n_vars
        Number of genes.

    Examples
    --------
    >>> SquaredErrorHead(2, 3)(torch.ones(1, 2), {})["px"].shape
    torch.Size([1, 3])
    """

    reads_counts: ClassVar[bool] = False

    def __init__(self, n_in: int, n_vars: int) -> None:
        super().__init__()
        self.mean = nn.Linear(n_in, n_vars)

    def forward(self, hidden: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`"px"` of shape `(B, n_vars)`."""
        return {"px": self.mean(hidden)}

    def log_prob(self, tensors: Mapping[str, torch.Tensor], decoded: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Minus the squared error of the batch's expression per gene, shape `(B, n_vars)`."""
        return -(tensors[_keys.X] - decoded["px"]).square()


class NegativeBinomialHead(nn.Module):
    """Mean counts, shares of the cell's own library, with one dispersion per gene.

    Parameters
    ----------
    n_in
        Width of the decoder's last hidden layer.
    n_vars
        Number of genes.

    Examples
    --------
    >>> tensors = {"X": torch.log1p(torch.tensor([[1.0, 3.0]])), "size_factor": torch.ones(1)}
    >>> NegativeBinomialHead(2, 2)(torch.ones(1, 2), tensors)["mean"].sum().round()
    tensor(4., grad_fn=<RoundBackward0>)
    """

    reads_counts: ClassVar[bool] = True

    def __init__(self, n_in: int, n_vars: int) -> None:
        super().__init__()
        self.share = nn.Linear(n_in, n_vars)
        self.log_dispersion = nn.Parameter(torch.randn(n_vars))

    def forward(self, hidden: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`"mean"` counts and their log-normalised `"px"`, each of shape `(B, n_vars)`."""
        mean = self.share(hidden).softmax(dim=1) * library_of(tensors)[:, None]
        return {"px": log_normalised(mean, tensors), "mean": mean}

    def log_prob(self, tensors: Mapping[str, torch.Tensor], decoded: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Log-probability of the batch's counts per gene, shape `(B, n_vars)`."""
        return nb_log_prob(counts_of(tensors), decoded["mean"], self.log_dispersion)


class ZeroInflatedHead(NegativeBinomialHead):
    """:class:`NegativeBinomialHead` with further zeros, whose logits come from a linear layer.

    Parameters
    ----------
    n_in
        Width of the decoder's last hidden layer.
    n_vars
        Number of genes.

    Examples
    --------
    >>> tensors = {"X": torch.log1p(torch.tensor([[1.0, 3.0]])), "size_factor": torch.ones(1)}
    >>> sorted(ZeroInflatedHead(2, 2)(torch.ones(1, 2), tensors))
    ['dropout_logits', 'mean', 'px']
    """

    def __init__(self, n_in: int, n_vars: int) -> None:
        super().__init__(n_in, n_vars)
        self.dropout_logits = nn.Linear(n_in, n_vars)

    def forward(self, hidden: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`"mean"` of the negative binomial part, `"dropout_logits"`, and `"px"` of the mean with its zeros."""
        decoded = super().forward(hidden, tensors)
        logits = self.dropout_logits(hidden)
        counted = decoded["mean"] * torch.sigmoid(-logits)
        return {**decoded, "px": log_normalised(counted, tensors), "dropout_logits": logits}

    def log_prob(self, tensors: Mapping[str, torch.Tensor], decoded: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Log-probability of the batch's counts per gene, shape `(B, n_vars)`."""
        return zinb_log_prob(counts_of(tensors), decoded["mean"], self.log_dispersion, decoded["dropout_logits"])


HEADS: dict[str, type[NormalHead | SquaredErrorHead | NegativeBinomialHead]] = {
    "normal": NormalHead,
    "mse": SquaredErrorHead,
    "nb": NegativeBinomialHead,
    "zinb": ZeroInflatedHead,
}
"""Output layers by the name of the likelihood."""
