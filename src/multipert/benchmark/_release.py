"""Let go of what scvi-tools keeps of a model for as long as the process lives."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multipert.model import PerturbationModel


def release(model: PerturbationModel) -> None:
    """Take a model's data out of the stores of its class, so that deleting it frees the memory.

    scvi-tools keeps the manager of every AnnData that was set up, and of every model made of it, in dictionaries of the
    class. Without this a loop over models keeps each of their data sets.

    Parameters
    ----------
    model
        A model that will not be used again.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("small")
    >>> mp.model.NoPerturb.setup_anndata(adata)
    >>> model = mp.model.NoPerturb(adata)
    >>> release(model)
    >>> len(type(model)._per_instance_manager_store.get(model.id, {}))
    0
    """
    managers = type(model)._per_instance_manager_store.pop(model.id, {})
    own = {manager.adata_uuid for manager in managers.values()} | set(managers)
    if model.adata is not None:
        own.add(model.adata_manager.adata_uuid)
    for uuid in own:
        type(model)._setup_adata_manager_store.pop(uuid, None)
    model.trainer = None
