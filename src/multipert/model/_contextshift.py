"""ContextShift: the change of a context, learnt from contexts that resemble it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, get_args

import pandas as pd
import torch

from multipert.data._conditions import canonical_dose, close_matches
from multipert.data._shifts import Kind, choose_strength, context_shift

from ._base import PerturbationModel
from ._shift import Deltas, ShiftModule
from ._tags import ModelTags

if TYPE_CHECKING:
    from anndata import AnnData

    from multipert.data._conditions import Condition
    from multipert.data._loaders import CellLoader

    from ._module import Tensors


def weigh(
    kind: Kind, strength: float, control: torch.Tensor, target: torch.Tensor, delta: torch.Tensor
) -> torch.Tensor:
    """Shifts of target contexts; :func:`multipert.data._shifts.context_shift` for tensors.

    Parameters
    ----------
    kind
        How training contexts are weighted.
    strength
        Temperature of the similarity, or penalty of the ridge.
    control
        Control means of the training contexts, shape `(n_contexts, n_vars)`.
    target
        Control means of the target contexts, shape `(n_targets, n_vars)`.
    delta
        Changes of the training contexts, shape `(n_contexts, n_vars)`.

    Returns
    -------
    Shifts of the targets, shape `(n_targets, n_vars)`, float64.
    """
    shift = context_shift(kind, strength, *(values.cpu().numpy() for values in (control, target, delta)))
    return torch.from_numpy(shift).to(delta.device)


class ContextShiftModule(ShiftModule):
    """Control means and changes of the training contexts.

    Parameters
    ----------
    kind
        How training contexts are weighted.
    strength
        Temperature or penalty; None chooses it by leaving one training context out.
    """

    fitted = (
        *ShiftModule.fitted,
        "control_mean",
        "context_row",
        "pair_condition",
        "delta",
        "chosen_strength",
    )

    def __init__(self, kind: Kind, strength: float | None) -> None:
        super().__init__()
        self.kind, self.strength = kind, strength

    def conclude(self, loader: CellLoader) -> None:
        """Compute all means in one pass, then choose the strength on training contexts only."""
        deltas = Deltas(self.means(loader), self.control_position)
        strength = self.strength if self.strength is not None else self._choose(deltas)
        device = self.known_codes.device
        self.control_mean = deltas.control_mean.to(device)
        self.context_row, self.pair_condition = deltas.context_row.to(device), deltas.condition.to(device)
        self.delta = deltas.delta.float().to(device)
        self.chosen_strength = torch.tensor(float(strength), dtype=torch.float64, device=device)

    def _choose(self, deltas: Deltas) -> float:
        """The strength with the least squared error over left-out training contexts."""
        of_condition = [deltas.condition == condition for condition in torch.unique(deltas.condition)]
        return choose_strength(
            self.kind,
            ((deltas.control_mean[deltas.context_row[at]].numpy(), deltas.delta[at].numpy()) for at in of_condition),
        )

    def condition_shift(self, codes: torch.Tensor, doses: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """Shift of cells that share one condition; see :class:`ShiftModule`."""
        at = torch.nonzero(self.pair_condition == self.position(codes, doses)).reshape(-1)
        # cells of one context share their mean, so each distinct mean is solved once
        target, inverse = torch.unique(tensors["context_mean"], dim=0, return_inverse=True)
        control = self.control_mean[self.context_row[at]]
        return weigh(self.kind, float(self.chosen_strength), control, target, self.delta[at])[inverse]


class ContextShift(PerturbationModel):
    r"""Change of a context, predicted from the control means of the training contexts.

    Every control cell of the context :math:`t` is moved by a weighted change of the training contexts that have the
    perturbation, with :math:`D_c` the change and :math:`m_c` the control mean of context :math:`c`, bars for means over
    contexts, and :math:`A` the centred control means:

    .. math::

        \text{similarity:}\quad & \textstyle\sum_c w_c D_c,\qquad
            w = \mathrm{softmax}_c\bigl(\mathrm{cor}(m_t - \bar m,\, m_c - \bar m) / \tau\bigr) \\
        \text{ridge:}\quad & \bar D + (m_t - \bar m) A^\top (A A^\top + \lambda s I)^{-1} (D - \bar D),\qquad
            s = \mathrm{tr}(A A^\top) / n \\
        \text{gene\_ridge:}\quad & \bar D_g + b_g (m_t - \bar m)_g

    Fitted in closed form in one pass. Among the strongest predictors of means under context transfer; it moves cells
    and leaves their spread as it is. With one training context every kind is that context's change.

    Parameters
    ----------
    adata
        Data that :meth:`setup_anndata` was run on, with `context_key`.
    registry
        Registry of a saved model, in place of data.
    kind
        "similarity", "ridge" or "gene_ridge" (a ridge of each gene on its own control mean).
    strength
        Temperature of the softmax or penalty of the ridge. None chooses it by leaving one training context out (.4 and 1
        with fewer than three training contexts).

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.ContextShift.setup_anndata(adata, context_key="context")
    >>> model = mp.model.ContextShift(adata, kind="ridge")
    >>> model.train()
    >>> model.predict(returns="mean").n_vars == adata.n_vars
    True
    """

    tags = ModelTags(uses_context=True, doses=True, perturbation_embedding=True)
    stages = ()
    search_space = {"kind": ("choice", get_args(Kind))}

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        *,
        kind: Kind = "similarity",
        strength: float | None = None,
    ) -> None:
        super().__init__(adata, registry)
        if kind not in get_args(Kind):
            raise ValueError(f"kind={kind!r} is unknown{close_matches(kind, get_args(Kind))}")
        if strength is not None and not 0 < strength < math.inf:
            raise ValueError(f"strength={strength} must be positive and finite.")
        self._module_args = (kind, strength)
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self) -> ContextShiftModule:
        return ContextShiftModule(*self._module_args)

    def _check_target(self, condition: Condition) -> None:
        """Refuse conditions without a training context that also has control cells."""
        if not condition:
            return
        known = [self.trained_conditions_[i] for i in self.module.pair_condition.unique().tolist()]
        if condition not in known:
            doses = ", ".join(canonical_dose(other) for other in known if other[0][0] == condition[0][0]) or "none"
            raise ValueError(
                f"{condition[0][0]!r} at dose {condition[0][1]:g} is in no training context that has control cells "
                f"(doses that are: {doses})."
            )

    def _perturbation_embedding(self) -> pd.DataFrame:
        """Mean change over training contexts of every trained condition."""
        positions = self.module.pair_condition.unique()
        rows = [self.module.delta[self.module.pair_condition == i].mean(0) for i in positions]
        index = self._labels([self.trained_conditions_[int(i)] for i in positions])
        return pd.DataFrame(torch.stack(rows).cpu().numpy(), index=index, columns=self.get_var_names())
