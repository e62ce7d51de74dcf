"""TwoFactor: mean response = context effect + perturbation effect."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
import torch

from multipert import _keys
from multipert.data._conditions import canonical_dose, close_matches

from ._base import PerturbationModel
from ._shift import Deltas, ShiftModule
from ._tags import ModelTags

if TYPE_CHECKING:
    from anndata import AnnData

    from multipert.data._conditions import Condition
    from multipert.data._loaders import CellLoader
    from multipert.nn import GroupMeans

    from ._module import Tensors

Estimator = Literal[
    "additive_control", "additive_ols", "multiplicative", "context_mean", "perturbation_mean", "two_way_mean"
]
Weights = Literal["equal", "cells", "inverse_variance"]
DoseRule = Literal["exact", "interpolate"]
_COMPANIONS = ("context_mean", "perturbation_mean", "two_way_mean")


class TwoFactorModule(ShiftModule):
    """Tables of shifts or of means, filled from the means of the training cells.

    Parameters
    ----------
    estimator
        How the response is composed; see :class:`TwoFactor`.
    weights
        Weights of the contexts.
    dose_rule
        What happens between measured doses.
    pseudocount
        Added to mean normalised counts before ratios are taken.
    """

    fitted = (*ShiftModule.fitted, "shift", "deviation", "context_target", "condition_target")

    def __init__(self, estimator: Estimator, weights: Weights, dose_rule: DoseRule, pseudocount: float) -> None:
        super().__init__()
        self.estimator, self.weights, self.dose_rule, self.pseudocount = estimator, weights, dose_rule, pseudocount

    def conclude(self, loader: CellLoader) -> None:
        """Fit all tables in one pass over the training cells."""
        means = self.means(loader)
        n_conditions, n_vars = len(self.known_codes), means.mean.shape[1]
        deltas = Deltas(means, self.control_position)
        # NaN where no context has the condition beside control
        shift, deviation = torch.full((2, n_conditions, n_vars), torch.nan, dtype=torch.float64)
        shift[self.control_position] = 0
        for condition in torch.unique(deltas.condition):
            here = deltas.condition == condition
            values = deltas.delta[here]
            if self.estimator == "multiplicative":
                values = torch.log(
                    (deltas.mean_expm1[here] + self.pseudocount) / (deltas.control_expm1[here] + self.pseudocount)
                )
            shift[condition] = (self._weights(deltas, here) * values).sum(0)
            if int(here.sum()) > 1:
                deviation[condition] = values.std(0)
        if self.estimator == "additive_ols":
            shift = self._least_squares(means, n_conditions)
        contexts = int(means.context.max()) + 1
        by_context = _averages(means, means.context, contexts, means.condition != self.control_position)
        by_condition = _averages(means, means.condition, n_conditions)
        tables = (shift, deviation, by_context, by_condition)
        for name, table in zip(self.fitted[len(ShiftModule.fitted) :], tables, strict=True):
            setattr(self, name, table.float().to(self.known_codes.device))

    def _weights(self, deltas: Deltas, here: torch.Tensor) -> torch.Tensor:
        """Weights of the contexts, shape `(n_contexts, 1)` or per gene, summing to 1."""
        if self.weights == "equal":
            raw = torch.ones(int(here.sum()), 1, dtype=torch.float64)
        elif self.weights == "cells":
            raw = deltas.n_cells[here].double()[:, None]
        else:
            # a gene without any variance weighs its contexts equally
            raw = 1 / deltas.error[here].clamp(min=1e-12)
        return raw / raw.sum(0)

    def _least_squares(self, means: GroupMeans, n_conditions: int) -> torch.Tensor:
        """Condition effects of the two-way fit, control 0."""
        contexts, context = torch.unique(means.context, return_inverse=True)
        design = torch.zeros(len(context), len(contexts) + n_conditions, dtype=torch.float64)
        design[torch.arange(len(context)), context] = 1
        design[torch.arange(len(context)), len(contexts) + means.condition] = 1
        free = [i for i in range(design.shape[1]) if i != len(contexts) + self.control_position]
        design = design[:, free]
        root = (means.n_cells.double() if self.weights == "cells" else torch.ones(len(context))).sqrt()[:, None]
        # numpy: torch's least squares depends, in the last bits, on where the arrays happen to lie in memory
        solution, _, rank, _ = np.linalg.lstsq((root * design).numpy(), (root * means.mean).numpy(), rcond=None)
        if rank < design.shape[1]:
            raise ValueError(
                f"The {len(contexts)} contexts and {n_conditions} conditions of the training cells fall into groups "
                "without a condition in common, so estimator='additive_ols' has no unique solution; use "
                "'additive_control', or keep one connected group."
            )
        table = torch.zeros(n_conditions, means.mean.shape[1], dtype=torch.float64)
        table[[i for i in range(n_conditions) if i != self.control_position]] = torch.from_numpy(
            solution[len(contexts) :]
        )
        return table

    def condition_shift(self, codes: torch.Tensor, doses: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """Shift of cells that share one condition; see :class:`ShiftModule`."""
        if self.estimator in ("additive_control", "additive_ols"):
            return self._sum_of_parts(codes, doses)
        if self.estimator == "multiplicative":
            x = tensors[_keys.X]
            return torch.log1p(torch.expm1(x) * torch.exp(self._sum_of_parts(codes, doses))) - x
        return self._target_mean(codes, doses, tensors) - tensors["context_mean"]

    def _sum_of_parts(self, codes: torch.Tensor, doses: torch.Tensor) -> torch.Tensor:
        found = self.position(codes, doses)
        if found >= 0 and self.has_shift[found]:
            return self.shift[found]
        parts = [self._part(code, dose) for code, dose in zip(codes, doses, strict=True) if code >= 0]
        return torch.stack([(weights[:, None] * self.shift[at]).sum(0) for at, weights in parts]).sum(0)

    @property
    def has_shift(self) -> torch.Tensor:
        """Whether each trained condition has a shift of its own, shape `(n_conditions,)`."""
        return ~torch.isnan(self.shift).any(1)

    def _part(self, code: torch.Tensor, dose: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Trained conditions of one perturbation and their weights at a dose, linear in log dose."""
        single = ((self.known_codes >= 0).sum(1) == 1) & self.has_shift
        rows = torch.nonzero(single & (self.known_codes == code).any(1)).reshape(-1)
        known = self.known_doses[rows].sum(1)
        order = torch.argsort(known)
        rows, known = rows[order], known[order]
        exact = torch.nonzero(known == dose).reshape(-1)
        if len(exact):
            return rows[exact], torch.ones(1, device=rows.device)
        if dose <= known[0] or dose >= known[-1]:
            return rows[[0 if dose <= known[0] else -1]], torch.ones(1, device=rows.device)
        above = int(torch.searchsorted(known, dose))
        low, high = torch.log(known[above - 1]), torch.log(known[above])
        share = (torch.log(dose) - low) / (high - low)
        return rows[above - 1 : above + 1], torch.stack([1 - share, share])

    def _target_mean(self, codes: torch.Tensor, doses: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """Mean that a companion predicts, shape `(B, n_vars)`."""
        control = tensors["context_mean"]
        context = tensors[_keys.CONTEXT].reshape(-1).long() if _keys.CONTEXT in tensors else 0 * control[:, 0].long()
        inside = (context >= 0) & (context < len(self.context_target))
        by_context = self.context_target[torch.where(inside, context, 0)]
        usable = inside & torch.isfinite(by_context).all(1)
        by_context = torch.where(usable[:, None], by_context, control)
        by_condition = self.condition_target[self.position(codes, doses)].expand_as(control)
        return {
            "context_mean": by_context,
            "perturbation_mean": by_condition,
            "two_way_mean": (by_context + by_condition) / 2,
        }[self.estimator]


def _averages(means: GroupMeans, by: torch.Tensor, size: int, use: torch.Tensor | None = None) -> torch.Tensor:
    """Equal-weight averages of pair means, shape `(size, n_vars)`; NaN where there is none."""
    table = torch.full((size, means.mean.shape[1]), torch.nan, dtype=torch.float64)
    for i in range(size):
        here = (by == i) if use is None else (by == i) & use
        if here.any():
            table[i] = means.mean[here].mean(0)
    return table


class TwoFactor(PerturbationModel):
    r"""Additive benchmark: mean response = context effect + perturbation effect :cite:p:`Zhu2025`.

    .. math::

        \hat x_{ca} = x_{c0} + \beta_a, \qquad
        \beta_a = \frac{1}{|T(a)|} \sum_{c' \in T(a)} (\bar x_{c'a} - \bar x_{c'0})

    with `T(a)` the training contexts that have both the perturbation `a` and control. Fitted in closed form in one pass.
    A benchmark that every context-transfer model must beat; it knows no interaction of context and perturbation. A
    combination that no training context has beside control is moved by the sum of the shifts of its parts.

    Parameters
    ----------
    adata
        Data that :meth:`setup_anndata` was run on.
    registry
        Registry of a saved model, in place of data.
    estimator
        "additive_control"; "additive_ols" (two-way least squares on all means, control effect 0); "multiplicative"
        (additive in the log of mean normalised counts); and the companions "context_mean" (mean of the context's
        perturbed training conditions, control where there are none), "perturbation_mean" (mean over the contexts that
        have the perturbation) and "two_way_mean" (half of each; not the additive model).
    weights
        Weights of the contexts: "equal", "cells" or "inverse_variance" (of the change, per gene; not for
        "additive_ols"). The companions weigh equally.
    dose_rule
        "exact": only measured doses are legal; "interpolate": linear in log dose between measured doses, the nearest one
        outside.
    pseudocount
        Added to mean normalised counts, for "multiplicative".

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.TwoFactor.setup_anndata(adata, context_key="context")
    >>> model = mp.model.TwoFactor(adata)
    >>> model.train()
    >>> model.get_perturbation_embedding().shape[1] == adata.n_vars
    True
    """

    tags = ModelTags(combinations=True, doses=True, perturbation_embedding=True, reference="Zhu2025")
    stages = ()
    search_space = {"weights": ("choice", get_args(Weights))}

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        *,
        estimator: Estimator = "additive_control",
        weights: Weights = "equal",
        dose_rule: DoseRule = "exact",
        pseudocount: float = 0.01,
    ) -> None:
        super().__init__(adata, registry)
        choices = {
            "estimator": (estimator, Estimator),
            "weights": (weights, Weights),
            "dose_rule": (dose_rule, DoseRule),
        }
        for name, (value, kind) in choices.items():
            if value not in get_args(kind):
                raise ValueError(f"{name}={value!r} is unknown{close_matches(value, get_args(kind))}")
        if not 0 < pseudocount < math.inf:
            raise ValueError(f"pseudocount={pseudocount} must be positive and finite.")
        allowed = {"additive_ols": ("equal", "cells"), **dict.fromkeys(_COMPANIONS, ("equal",))}
        if weights not in allowed.get(estimator, get_args(Weights)):
            raise ValueError(f"weights={weights!r} is not offered for estimator={estimator!r}; use weights='equal'.")
        if estimator == "multiplicative" and self._setup.signed:
            raise ValueError(
                "estimator='multiplicative' needs log-normalised expression, but the data were set up with signed=True; "
                "use 'additive_control'."
            )
        self._module_args = (estimator, weights, dose_rule, pseudocount)
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self) -> TwoFactorModule:
        return TwoFactorModule(*self._module_args)

    def _check_target(self, condition: Condition) -> None:
        """Refuse doses and combinations that the fitted tables cannot give."""
        if self.module.estimator in _COMPANIONS:
            if condition and condition not in self.trained_conditions_:
                raise ValueError(
                    f"estimator={self.module.estimator!r} predicts trained conditions only, not {condition}."
                )
            return
        known = [self.trained_conditions_[i] for i in torch.nonzero(self.module.has_shift).reshape(-1).tolist()]
        if not condition or condition in known:
            return
        for name, dose in condition:
            doses = [c[0][1] for c in known if len(c) == 1 and c[0][0] == name]
            if not doses:
                raise ValueError(
                    f"The shift of {name!r} alone is not known: no training context has it, uncombined, beside control "
                    "cells (estimator='additive_ols' needs no control cells beside it)."
                )
            if dose not in doses and self.module.dose_rule == "exact":
                measured = ", ".join(canonical_dose(((name, d),)) for d in sorted(doses))
                raise ValueError(
                    f"Dose {dose:g} of {name!r} was not measured (measured: {measured}); pass dose_rule='interpolate'."
                )

    def _perturbation_embedding(self) -> pd.DataFrame:
        """Shift of every trained condition."""
        return self._table(self.module.shift)

    def get_context_deviation(self) -> pd.DataFrame:
        """Standard deviation between training contexts of each condition's change.

        Returns
        -------
        Shape `(n_conditions, n_vars)`, in units of log-normalised expression; NaN with fewer than two contexts.
        """
        self._require_trained()
        return self._table(self.module.deviation)

    def _table(self, values: torch.Tensor) -> pd.DataFrame:
        kept = [i for i, condition in enumerate(self.trained_conditions_) if condition]
        index = self._labels([self.trained_conditions_[i] for i in kept])
        return pd.DataFrame(values[kept].cpu().numpy(), index=index, columns=self.get_var_names())
