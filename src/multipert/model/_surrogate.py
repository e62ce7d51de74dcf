"""A linear surrogate of a decoder: what each latent dimension does to each gene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

Regressor = Literal["ridge", "elasticnet"]
_BATCH = 1024
# keeps the weight of a latent representation parallel to the shift finite
_LEAST_DISTANCE = 1e-6


@dataclass
class Surrogate:
    """A linear map from latent representations to expression.

    Parameters
    ----------
    weights
        Change of each gene per unit of each latent dimension, shape `(n_vars, n_latent)`.
    offset
        Expression at the origin, shape `(n_vars,)`.
    """

    weights: np.ndarray
    offset: np.ndarray

    @classmethod
    def fit(
        cls,
        decode: Callable[[np.ndarray], np.ndarray],
        z: np.ndarray,
        sample_weights: np.ndarray,
        *,
        regressor: Regressor,
        alpha: float,
        l1_ratio: float,
    ) -> Surrogate:
        """Fit the map to decoded latent representations, streamed.

        Parameters
        ----------
        decode
            Gives the expression of latent representations.
        z
            Latent representations, shape `(n_samples, n_latent)`.
        sample_weights
            Weights of their squared errors, shape `(n_samples,)`.
        regressor
            "ridge", with the penalty `alpha` on the squared weights of a gene, or "elasticnet", as scikit-learn defines it.
        alpha
            Strength of the penalty.
        l1_ratio
            Share of the absolute weights in the penalty of the elastic net.

        Returns
        -------
        The surrogate; its offset is not penalised.
        """
        total = sample_weights.sum()
        centre = sample_weights @ z / total
        gram = (sample_weights[:, None] * (z - centre)).T @ (z - centre)
        cross: Any = 0.0
        mean: Any = 0.0
        for at in _batches(len(z)):
            x = decode(z[at]).astype(np.float64)
            mean = mean + sample_weights[at] @ x
            cross = cross + (sample_weights[at, None] * (z[at] - centre)).T @ x
        if regressor == "ridge":
            weights = np.linalg.solve(gram + alpha * np.eye(len(gram)), cross).T
        else:
            weights = _elastic_net(gram / total, cross / total, alpha, l1_ratio)
        return cls(weights, mean / total - weights @ centre)

    def r2(self, decode: Callable[[np.ndarray], np.ndarray], z: np.ndarray) -> np.ndarray:
        """Share of the variance of each gene that the map explains.

        Parameters
        ----------
        decode
            Gives the expression of latent representations.
        z
            Latent representations that it was not fitted to, shape `(n_samples, n_latent)`.

        Returns
        -------
        Shape `(n_vars,)`; NaN for genes that do not vary.
        """
        error: Any = 0.0
        total: Any = 0.0
        square: Any = 0.0
        for at in _batches(len(z)):
            # less the offset, which is near the mean: the variance is then no difference of large numbers
            x = decode(z[at]).astype(np.float64) - self.offset
            error = error + np.square(x - z[at] @ self.weights.T).sum(axis=0)
            total, square = total + x.sum(axis=0), square + np.square(x).sum(axis=0)
        variance = square - np.square(total) / len(z)
        return 1 - np.divide(error, variance, out=np.full_like(variance, np.nan), where=variance > 1e-12 * square)

    def scores(self, delta: np.ndarray) -> np.ndarray:
        """How much each gene is moved by a shift, latent dimensions scaled to the same effect on all genes together.

        Parameters
        ----------
        delta
            A latent shift, shape `(n_latent,)`.

        Returns
        -------
        Signed scores, shape `(n_vars,)`; a dimension without effect adds nothing.
        """
        norm = np.linalg.norm(self.weights, axis=0)
        return np.divide(self.weights, norm, out=np.zeros_like(self.weights), where=norm > 0) @ delta


def nearness(z: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """Inverse of the cosine distance of latent representations from the direction of a shift.

    Parameters
    ----------
    z
        Latent representations, shape `(n_samples, n_latent)`.
    delta
        A latent shift, shape `(n_latent,)`.

    Returns
    -------
    Positive and finite, shape `(n_samples,)`.
    """
    norms = np.linalg.norm(z, axis=1) * np.linalg.norm(delta)
    cosine = np.divide(z @ delta, norms, out=np.zeros(len(z)), where=norms > 0)
    return 1 / (np.maximum(1 - cosine, 0) + _LEAST_DISTANCE)


def _elastic_net(gram: np.ndarray, cross: np.ndarray, alpha: float, l1_ratio: float) -> np.ndarray:
    """Elastic net of every gene from mean products, shape `(n_vars, n_latent)`."""
    from sklearn.linear_model import ElasticNet

    # as many rows as dimensions, with the same products as all samples have
    values, axes = np.linalg.eigh(gram)
    kept = values > values.max() * 1e-12
    root = np.sqrt(values[kept])
    n_rows = int(kept.sum())
    design = np.sqrt(n_rows) * root[:, None] * axes[:, kept].T
    targets = np.sqrt(n_rows) * (axes[:, kept].T @ cross) / root[:, None]
    model = ElasticNet(alpha=alpha, l1_ratio=l1_ratio, fit_intercept=False, max_iter=10_000)
    return np.atleast_2d(model.fit(design, targets).coef_)


def _batches(n: int) -> list[slice]:
    return [slice(start, start + _BATCH) for start in range(0, n, _BATCH)]
