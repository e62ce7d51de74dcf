"""KNN: real cells of the perturbations whose embeddings are near."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from scipy import sparse

from multipert import _keys
from multipert.data._conditions import close_matches
from multipert.nn import group_means

from ._base import PerturbationModel
from ._embedding import embed, registered_embedding
from ._module import PerturbationModule, Tensors
from ._nearestperturbation import nearest_rows
from ._shift import by_condition, context_codes
from ._tags import ModelTags

if TYPE_CHECKING:
    from anndata import AnnData

    from multipert.data._loaders import CellLoader

Mode = Literal["sample", "mean"]


class KNNModule(PerturbationModule):
    """Perturbed training cells, or their means, grouped by condition and context.

    Cells are kept sparse: the bank's rows are stored one after the other as values and gene numbers.

    Parameters
    ----------
    embedding
        Embedding of the perturbations, shape `(n_perturbations, n_dimensions)`; None before the files are read.
    k
        Number of neighbours.
    mode
        Whether rows are drawn cells or weighted means.
    """

    fitted = (
        *PerturbationModule.fitted,
        "embedding",
        "known_embedding",
        "group_condition",
        "group_context",
        "group_size",
        "bank_value",
        "bank_gene",
        "bank_start",
        "group_mean",
    )
    draws = True
    fits_correction = False
    embedding: torch.Tensor

    def __init__(self, embedding: torch.Tensor | None, k: int, mode: Mode) -> None:
        super().__init__()
        self.register_buffer("embedding", embedding)
        self.k, self.mode = k, mode

    def conclude(self, loader: CellLoader) -> None:
        """Keep the perturbed training cells, or their means, in the order of conditions, then contexts."""
        pairs, n_cells = self._keep_means(loader) if self.mode == "mean" else self._keep_cells(loader)
        device = self.known_codes.device
        self.group_condition, self.group_context = torch.from_numpy(np.ascontiguousarray(pairs.T)).to(device)
        self.group_size = torch.from_numpy(n_cells).to(device)
        self.known_embedding = embed(self.embedding, self.known_codes[torch.unique(self.group_condition)])

    def _keep_means(self, loader: CellLoader) -> tuple[np.ndarray, np.ndarray]:
        """Fill the means; (condition, context) and number of cells of each group."""
        means = group_means(loader, self.lookup)
        kept = torch.nonzero(self._is_perturbed[means.condition]).reshape(-1)
        pairs = torch.stack([means.condition, means.context], dim=1)[kept].numpy()
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        self.group_mean = means.mean[kept[order]].float().to(self.known_codes.device)
        return pairs[order], means.n_cells[kept[order]].numpy()

    def _keep_cells(self, loader: CellLoader) -> tuple[np.ndarray, np.ndarray]:
        """Fill the bank; (condition, context) and number of cells of each group."""
        blocks, labels, digests = [], [], []
        for batch in loader:
            condition = self.lookup(batch).cpu()
            kept = self._is_perturbed[condition]
            x = batch[_keys.X][kept].cpu().numpy()
            blocks.append(sparse.csr_matrix(x))
            labels.append(torch.stack([condition, context_codes(batch).cpu()], dim=1)[kept].numpy())
            digests += [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in x]
        pairs = np.concatenate(labels)
        # by content within a group, so that the order of the training cells changes no draw
        order = np.lexsort((np.frombuffer(b"".join(digests), dtype="<u8"), pairs[:, 1], pairs[:, 0]))
        bank, device = sparse.vstack(blocks, format="csr")[order], self.known_codes.device
        self.bank_value = torch.from_numpy(bank.data).to(device)
        self.bank_gene = torch.from_numpy(bank.indices.astype(np.int32)).to(device)
        self.bank_start = torch.from_numpy(bank.indptr.astype(np.int64)).to(device)
        return np.unique(pairs, axis=0, return_counts=True)

    @property
    def _is_perturbed(self) -> torch.Tensor:
        """Whether each trained condition is another than control, shape `(n_conditions,)`, on the CPU."""
        return (self.known_codes >= 0).any(1).cpu()

    def neighbours(self, codes: torch.Tensor, doses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The trained conditions that a condition is predicted from.

        Parameters
        ----------
        codes
            Codes of the condition, shape `(n_slots,)`.
        doses
            Its doses, same shape.

        Returns
        -------
        Their positions, nearest first, and weights that sum to 1.
        """
        known = torch.unique(self.group_condition)
        position = self.lookup({_keys.PERTURBATION: codes[None], _keys.DOSE: doses[None]})
        own = torch.nonzero(known == position).reshape(-1)
        order, distance = nearest_rows(
            self.known_embedding, embed(self.embedding, codes[None])[0], int(own[0]) if len(own) else -1
        )
        # softmax subtracts the smallest distance, so that far neighbours do not vanish all together
        return known[order[: self.k]], torch.softmax(-distance[: self.k], dim=0)

    def counterfactual(self, tensors: Tensors, z: torch.Tensor | None = None) -> torch.Tensor:
        """Drawn cells or weighted means, shape `(B, n_vars)`; a control cell under control is itself."""
        x = tensors[_keys.X].clone()
        for codes, doses, rows in by_condition(tensors):
            some = {key: value[rows] for key, value in tensors.items()}
            positions, weights = self.neighbours(codes, doses)
            x[rows] = (self._mean if self.mode == "mean" else self._draw)(positions, weights, some).to(x.dtype)
        return x

    def _eligible(self, position: torch.Tensor, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """Groups of a condition, and for each cell which of them count: the one of its own context, else all.

        Shapes `(n_groups,)` and `(B, n_groups)`.
        """
        groups = torch.nonzero(self.group_condition == position).reshape(-1)
        own = self.group_context[groups] == context_codes(tensors)[:, None]
        return groups, own | ~own.any(1, keepdim=True)

    def _mean(self, positions: torch.Tensor, weights: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """Weighted mean of the neighbours' means: what :meth:`_draw` gives on average."""
        total = torch.zeros_like(tensors[_keys.X], dtype=torch.float64)
        for position, weight in zip(positions, weights, strict=True):
            groups, eligible = self._eligible(position, tensors)
            n_cells = eligible * self.group_size[groups]
            shares = n_cells / n_cells.sum(1, keepdim=True).double()
            total += weight * (shares.double() @ self.group_mean[groups].double())
        return total

    def _draw(self, positions: torch.Tensor, weights: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """A cell of the bank for each cell: first the neighbour, then one of its cells."""
        # the two halves of a cell's key are two independent 32-bit numbers
        key = tensors[_keys.CELL_KEY]
        high, low = (key >> 32) & 0xFFFFFFFF, key & 0xFFFFFFFF
        chosen = torch.searchsorted(weights.cumsum(0), high.double() / 2**32, right=True).clamp(max=len(weights) - 1)
        first = self.group_size.cumsum(0) - self.group_size
        at = torch.zeros_like(key)
        for i, position in enumerate(positions):
            here = chosen == i
            groups, eligible = self._eligible(position, {name: value[here] for name, value in tensors.items()})
            n_cells = (eligible * self.group_size[groups]).sum(1)
            # eligible groups lie one after the other
            at[here] = first[groups][eligible.int().argmax(1)] + ((low[here] * n_cells) >> 32)
        return self._rows(at, tensors[_keys.X].shape[1])

    def _rows(self, at: torch.Tensor, n_vars: int) -> torch.Tensor:
        """Rows of the bank, dense."""
        start, length = self.bank_start[at], self.bank_start[at + 1] - self.bank_start[at]
        row = torch.repeat_interleave(torch.arange(len(at), device=at.device), length)
        within = torch.arange(len(row), device=at.device) - (length.cumsum(0) - length)[row]
        source = start[row] + within
        cells = torch.zeros(len(at), n_vars, device=at.device)
        cells[row, self.bank_gene[source].long()] = self.bank_value[source]
        return cells


class KNN(PerturbationModel):
    r"""Real cells of the trained perturbations whose embeddings are near :cite:p:`Yu2025`.

    For each control cell one of the `k` nearest trained conditions :math:`b_1 \dots b_k` is drawn, then one of its cells:

    .. math::

        P(b_i) = \frac{\exp(-d_i)}{\sum_j \exp(-d_j)}, \qquad d_i = \lVert e_{b_i} - e_a \rVert_2, \qquad
        e_{A+B} = e_A + e_B

    Cells come from the context of the control cell where the neighbour was measured in it, else from all contexts of the
    neighbour alike. A trained condition is its own first neighbour. The draw depends on the seed and the control cell's
    name only. `mode="mean"` gives the expectation of the draw, the same row for all cells of a context.

    Use it as the reference for distributions under unseen perturbations: its cells are real ones, with real spread and
    real library sizes. A row has nothing of its control cell but the context, so it is not for context transfer: cells
    drawn from other contexts keep those contexts' baseline; :class:`NearestPerturbation` moves control cells instead. The
    distances are used as they are: an embedding with large distances makes it a nearest neighbour, one with small
    distances an average, so choose the embedding's scale. The fitted model holds all perturbed training cells
    (`mode="sample"`). Doses are not used; write the pair as the label.

    Tags: reads the context, unseen perturbations, combinations; needs an embedding; a row is a sample.

    Parameters
    ----------
    adata
        Data that :meth:`setup_anndata` was run on, with `perturbation_embedding_key`.
    registry
        Registry of a saved model, in place of data.
    k
        Number of neighbours; all trained conditions where there are fewer.
    mode
        "sample" (drawn cells) or "mean" (their expectation).

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("combinations")
    >>> mp.model.KNN.setup_anndata(
    ...     adata, context_key="context", perturbation_embedding_key="perturbation_embedding"
    ... )
    >>> model = mp.model.KNN(adata, k=3)
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
        samples=True,
        output="sample",
        reference="Yu2025",
    )
    stages = ()
    search_space = {"k": ("int", 1, 20)}

    def __init__(
        self, adata: AnnData | None = None, registry: dict | None = None, *, k: int = 5, mode: Mode = "sample"
    ) -> None:
        super().__init__(adata, registry)
        if k < 1 or int(k) != k:
            raise ValueError(f"k={k} must be a whole number of at least 1.")
        if mode not in get_args(Mode):
            raise ValueError(f"mode={mode!r} is unknown{close_matches(mode, get_args(Mode))}")
        self._module_args = (k, mode)
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self) -> KNNModule:
        return KNNModule(registered_embedding(self), *self._module_args)
