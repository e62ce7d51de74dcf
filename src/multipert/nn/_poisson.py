"""Between means of log-normalised Poisson counts and their rates."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.stats import poisson

_GRID, _LARGEST_MEAN = 600, 1e4


def rate_of_mean(mean: np.ndarray, unit: float) -> np.ndarray:
    r"""Rate of normalised counts whose logarithms have a given mean.

    Inverts :math:`\psi(\lambda) = E \log(1 + s K)`, :math:`K \sim \mathrm{Poisson}(\lambda / s)`, by interpolation.

    Parameters
    ----------
    mean
        Means of log-normalised expression, any shape, non-negative.
    unit
        The size factor s.

    Returns
    -------
    Rates of the shape of `mean`; 0 where it is 0.

    Examples
    --------
    >>> rate = rate_of_mean(np.array([0.0, 0.7]), 0.5)
    >>> counts = np.random.default_rng(0).poisson(rate[1] / 0.5, 100_000)
    >>> float(rate[0]), bool(abs(np.log1p(0.5 * counts).mean() - 0.7) < 0.01)
    (0.0, True)
    """
    rates, means = _table(float(unit))
    return np.interp(mean, means, rates)


@lru_cache(maxsize=256)
def _table(unit: float) -> tuple[np.ndarray, np.ndarray]:
    """Rates and the means of their logarithms, both increasing."""
    rates = np.concatenate([[0.0], unit * np.geomspace(1e-5, max(_LARGEST_MEAN, _LARGEST_MEAN / unit), _GRID)])
    means = np.zeros(len(rates))
    for i, expected in enumerate(rates / unit):
        if expected > 1000:
            # the second-order expansion is exact to 1e-6 here
            means[i] = np.log1p(unit * expected) - unit**2 * expected / (2 * (1 + unit * expected) ** 2)
            continue
        counts = np.arange(int(expected + 12 * np.sqrt(expected) + 20))
        means[i] = poisson.pmf(counts, expected) @ np.log1p(unit * counts)
    return rates, means
