"""Predictions without learning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multipert import _keys

from ._base import PerturbationModel
from ._module import PerturbationModule, Tensors
from ._tags import ModelTags

if TYPE_CHECKING:
    import torch
    from anndata import AnnData


class IdentityModule(PerturbationModule):
    """Hands every cell on."""

    fits_correction = False

    def counterfactual(self, tensors: Tensors, z: torch.Tensor | None = None) -> torch.Tensor:
        """The control cells themselves, shape `(B, n_vars)`."""
        return tensors[_keys.X]


class NoPerturb(PerturbationModel):
    r"""No change: the counterfactual is the control cell, :math:`\hat x = x`.

    The floor that every model must be shown beside. On raw means it looks good (R2 .745 on interferon-stimulated blood
    cells), which says how little such figures mean.

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
    >>> mp.model.NoPerturb.setup_anndata(adata, context_key="context")
    >>> model = mp.model.NoPerturb(adata)
    >>> model.train()
    >>> model.predict(returns="mean").n_vars == adata.n_vars
    True
    """

    tags = ModelTags(unseen_perturbations=True, combinations=True, doses=True)
    stages = ()

    def __init__(self, adata: AnnData | None = None, registry: dict | None = None) -> None:
        super().__init__(adata, registry)
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self) -> IdentityModule:
        return IdentityModule()
