"""Additive: a combination does what its parts do, added up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from multipert.data._conditions import canonical_dose, close_matches

from ._base import PerturbationModel
from ._shift import MeasuredShiftModule, mean_shift_table
from ._tags import ModelTags

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from multipert.data._conditions import Condition

    from ._module import Tensors


class AdditiveModule(MeasuredShiftModule):
    """Sum of the changes of the parts."""

    def condition_shift(self, codes: torch.Tensor, doses: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """Shift of cells that share one condition; see :class:`ShiftModule`."""
        parts = [self.position(code[None], dose[None]) for code, dose in zip(codes, doses, strict=True) if code >= 0]
        return torch.stack([self.measured_shift(part, tensors) for part in parts]).sum(0)


class Additive(PerturbationModel):
    r"""A combination moves control cells by the sum of its parts' changes :cite:p:`AhlmannEltze2025`.

    .. math::

        \hat x_{c, A+B} = x_{c0} + D_{cA} + D_{cB}, \qquad D_{ca} = \bar x_{ca} - \bar x_{c0}

    with :math:`D_{ca}` the change that the part :math:`a` alone made in the cell's own context :math:`c`, or its mean over
    training contexts (equal weight each) where it was not measured there beside control. Any number of parts; one part is
    its own change. Fitted in closed form in one pass.

    The expectation without interaction: what a model of combinations must beat, and what an observed combination is
    compared with to find interactions. A combination is always the sum of its parts, also where it was itself measured;
    :class:`TwoFactor` then takes the change that was measured. It needs every part alone, at the dose asked for, in a
    training context with control cells.

    Tags: reads the context, combinations, doses, perturbation embedding (mean changes).

    Parameters
    ----------
    adata
        Data that :meth:`setup_anndata` was run on.
    registry
        Registry of a saved model, in place of data.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.Additive.setup_anndata(adata, context_key="context")
    >>> model = mp.model.Additive(adata)
    >>> model.train()
    >>> first, second = model.get_perturbation_embedding().index[:2]
    >>> model.predict(perturbation=f"{first}+{second}", returns="mean").n_vars == adata.n_vars
    True
    """

    tags = ModelTags(
        uses_context=True, combinations=True, doses=True, perturbation_embedding=True, reference="AhlmannEltze2025"
    )
    stages = ()

    def __init__(self, adata: AnnData | None = None, registry: dict | None = None) -> None:
        super().__init__(adata, registry)
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self) -> AdditiveModule:
        return AdditiveModule()

    def _check_target(self, condition: Condition) -> None:
        """Refuse a combination of which a part was not measured alone, at its dose, beside control cells."""
        measured = [self.trained_conditions_[i] for i in self.module.measured().tolist()]
        for name, dose in condition:
            alone = [other for other in measured if len(other) == 1 and other[0][0] == name]
            if not alone:
                names = [other[0][0] for other in measured if len(other) == 1]
                raise ValueError(
                    f"The change of {name!r} alone is not known: no training context has it, uncombined, beside control "
                    f"cells{close_matches(name, names)}"
                )
            if ((name, dose),) not in alone:
                doses = ", ".join(canonical_dose(other) for other in alone)
                raise ValueError(
                    f"{name!r} alone at dose {dose:g} is in no training context that has control cells (doses that are: "
                    f"{doses})."
                )

    def _perturbation_embedding(self) -> pd.DataFrame:
        """Mean change over training contexts of every trained condition."""
        return mean_shift_table(self)
