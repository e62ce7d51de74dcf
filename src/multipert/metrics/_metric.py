"""What a metric of the table is: how it is computed, which way is better, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

Better = Literal["higher", "lower", "nearest"]
Needs = Literal["means", "variances", "cells"]


@dataclass(frozen=True)
class Metric:
    """One metric of the table.

    Parameters
    ----------
    compute
        Function of what one predictor gave for a group (a float), or of all its groups of one context (one per group).
    meaning
        What the number is, in a few words.
    better
        "higher" and "lower" say which way is better, "nearest" that the best value lies between worse ones.
    best
        Value of a perfect prediction.
    null
        What an undefined value of a prediction is worth in :func:`calibrate`: a correlation is undefined where nothing
        changes, which deserves 0. None if an undefined value stays undefined.
    by_context
        Whether all groups of one context are needed.
    needs
        What a metric of all groups needs of them: "means", "variances" or "cells".
    is_rank
        Whether the value depends on the number of competitors.
    unhalve
        Turns what one half of the observed cells says about the other into what a second sample as large as the whole
        would say about it. None where no rule is known.
    is_score
        Whether :func:`leaderboard` counts it; False for diagnostics and for restatements of another metric.
    published
        Heading under which it was published, where that differs.

    Examples
    --------
    >>> from multipert.metrics import METRICS
    >>> METRICS["rmse"].better, METRICS["rmse"].best
    ('lower', 0.0)
    """

    compute: Callable[[Any], Any]
    meaning: str
    better: Better = "higher"
    best: float = 1.0
    null: float | None = None
    by_context: bool = False
    needs: Needs = "means"
    is_rank: bool = False
    unhalve: Callable[[float], float] | None = None
    is_score: bool = True
    published: str = ""

    def loss(self, value: np.ndarray | float) -> np.ndarray:
        """The value turned so that lower is better.

        Parameters
        ----------
        value
            Values of the metric.

        Returns
        -------
        Losses; `nan` stays.
        """
        value = np.asarray(value, dtype=float)
        if self.better == "nearest":
            return np.abs(value - self.best)
        return value if self.better == "lower" else -value


def of_distance(value: float) -> float:
    """A distance of means, which falls with the root of the number of cells."""
    return value / np.sqrt(2)


def of_square(value: float) -> float:
    """A squared or energy distance, which between equal distributions falls with the number of cells."""
    return value / 2


def of_explained(value: float) -> float:
    """A share explained, whose unexplained part falls and whose spread holds less noise; unchanged below -1."""
    # with signal S and noise N of the whole, halves leave 4 N of S + 2 N unexplained, wholes 2 N of S + N
    unexplained = 1 - value
    return 1 - 2 * unexplained / (4 - unexplained) if unexplained < 2 else value


def of_correlation(value: float) -> float:
    """A correlation of halves, by the Spearman-Brown formula; unchanged where it is negative."""
    return 2 * value / (1 + value) if value > 0 else value


def of_squared_correlation(value: float) -> float:
    """The square of a correlation."""
    return of_correlation(float(np.sqrt(value))) ** 2
