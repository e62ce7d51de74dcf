"""NearestPerturbation: what is not known does what its nearest neighbour does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from ._base import PerturbationModel
from ._embedding import embed, registered_embedding
from ._shift import MeasuredShiftModule, mean_shift_table
from ._tags import ModelTags

if TYPE_CHECKING:
    from anndata import AnnData

    from multipert.data._conditions import Condition
    from multipert.data._loaders import CellLoader

    from ._module import Tensors


def nearest_rows(candidates: torch.Tensor, wanted: torch.Tensor, own: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates by Euclidean distance, equals in their given order.

    Parameters
    ----------
    candidates
        Embedding of each candidate, shape `(n_candidates, n_dimensions)`.
    wanted
        Embedding to be near to, shape `(n_dimensions,)`.
    own
        The candidate that is the wanted one itself, which comes first; -1 where none is.

    Returns
    -------
    Positions of the candidates and their distances, each of shape `(n_candidates,)`.
    """
    distance = (candidates - wanted).square().sum(1).sqrt()
    order = torch.argsort(distance, stable=True)
    if own >= 0:
        order = torch.cat([order[order == own], order[order != own]])
    return order, distance[order]


class NearestPerturbationModule(MeasuredShiftModule):
    """Changes of the training contexts, and the embedding that says whose change to take.

    Parameters
    ----------
    embedding
        Embedding of the perturbations, shape `(n_perturbations, n_dimensions)`; None before the files are read.
    """

    fitted = (*MeasuredShiftModule.fitted, "embedding", "known_embedding")

    embedding: torch.Tensor

    def __init__(self, embedding: torch.Tensor | None) -> None:
        super().__init__()
        self.register_buffer("embedding", embedding)

    def conclude(self, loader: CellLoader) -> None:
        """Compute all changes, and the embedding of the conditions that have one."""
        super().conclude(loader)
        self.known_embedding = embed(self.embedding, self.known_codes[self.measured()])

    def condition_shift(self, codes: torch.Tensor, doses: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """Shift of cells that share one condition; see :class:`ShiftModule`."""
        measured = self.measured()
        own = torch.nonzero(measured == self.position(codes, doses)).reshape(-1)
        order, _ = nearest_rows(
            self.known_embedding, embed(self.embedding, codes[None])[0], int(own[0]) if len(own) else -1
        )
        return self.measured_shift(int(measured[order[0]]), tensors)


class NearestPerturbation(PerturbationModel):
    r"""The change of the trained perturbation whose embedding is nearest.

    .. math::

        \hat x_{ca} = x_{c0} + D_{cb}, \qquad b = \arg\min_{b \in T} \lVert e_b - e_a \rVert_2, \qquad
        e_{A+B} = e_A + e_B

    with :math:`T` the trained conditions, combinations among them, :math:`e` the registered embedding, and
    :math:`D_{cb}` the change of :math:`b` in the cell's own context, or its mean over training contexts (equal weight
    each) where :math:`b` was not measured there beside control. Of equally near ones the first by label is taken; a
    trained condition is its own nearest. Fitted in closed form in one pass.

    Use it as the reference for unseen perturbations: a model that does not beat it has learnt nothing from the embedding
    but who resembles whom. The embedding decides everything, its scale included: put features on one scale first. It
    never interpolates; :class:`KNN` averages over several neighbours. Doses are not used; write the pair as the label.

    Tags: reads the context, unseen perturbations, combinations, perturbation embedding (mean changes); needs an
    embedding.

    Parameters
    ----------
    adata
        Data that :meth:`setup_anndata` was run on, with `perturbation_embedding_key`.
    registry
        Registry of a saved model, in place of data.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("combinations")
    >>> mp.model.NearestPerturbation.setup_anndata(
    ...     adata, context_key="context", perturbation_embedding_key="perturbation_embedding"
    ... )
    >>> model = mp.model.NearestPerturbation(adata)
    >>> model.train()
    >>> unseen = adata.uns["perturbation_embedding"].index[-1]
    >>> model.predict(perturbation=unseen, returns="mean").n_vars == adata.n_vars
    True
    """

    tags = ModelTags(
        uses_context=True,
        unseen_perturbations=True,
        combinations=True,
        needs_embedding=True,
        perturbation_embedding=True,
    )
    stages = ()

    def __init__(self, adata: AnnData | None = None, registry: dict | None = None) -> None:
        super().__init__(adata, registry)
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self) -> NearestPerturbationModule:
        return NearestPerturbationModule(registered_embedding(self))

    def nearest(self, delta: np.ndarray) -> pd.Series:
        """Trained conditions by the distance of their mean change to a given one.

        For a target that is described by its effect and not by an embedding: which perturbation did this?

        Parameters
        ----------
        delta
            A change of mean expression, shape `(n_vars,)`, genes in the order of :meth:`get_var_names`.

        Returns
        -------
        Euclidean distances, smallest first, equals by label; the index holds the labels.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If `delta` has another shape or is not finite.

        Examples
        --------
        >>> import multipert as mp
        >>> adata = mp.datasets.screen("combinations")
        >>> mp.model.NearestPerturbation.setup_anndata(
        ...     adata, context_key="context", perturbation_embedding_key="perturbation_embedding"
        ... )
        >>> model = mp.model.NearestPerturbation(adata)
        >>> model.train()
        >>> table = model.get_perturbation_embedding()
        >>> model.nearest(table.iloc[2].to_numpy()).index[0] == table.index[2]
        True
        """
        self._require_trained()
        delta, n_vars = np.asarray(delta, dtype=np.float64), self.summary_stats.n_vars
        if delta.shape != (n_vars,):
            raise ValueError(f"delta has shape {delta.shape}; give one value for each of the {n_vars} genes.")
        if not np.isfinite(delta).all():
            raise ValueError(
                f"delta has {int((~np.isfinite(delta)).sum())} NaN or infinite value(s); a gene that is not known cannot "
                "be compared, so put 0 for no change."
            )
        table = self.get_perturbation_embedding()
        distance = np.sqrt(np.square(table.to_numpy(np.float64) - delta).sum(axis=1))
        return pd.Series(distance, index=table.index, name="distance").sort_values(kind="stable")

    def _check_target(self, condition: Condition) -> None:
        """Refuse everything where no training context has perturbed cells beside control cells."""
        if condition and not len(self.module.delta):
            raise ValueError(
                "No training context has both perturbed and control cells, so no change is known; mark control cells of "
                "a context with perturbed training cells as 'train'."
            )

    def _perturbation_embedding(self) -> pd.DataFrame:
        """Mean change over training contexts of every trained condition."""
        return mean_shift_table(self)
