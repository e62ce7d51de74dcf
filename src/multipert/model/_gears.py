"""GEARS: a shift of every gene, from a graph of the genes that are measured and one of those that are perturbed."""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from scvi.module.base import LossOutput
from torch import nn

from multipert import _keys
from multipert.embedding._genegraph import Similarity, known_edges, nearest
from multipert.nn._graph import (
    BoundedTable,
    CellMLP,
    GraphConvolution,
    Norm,
    average_statistics,
    coexpression,
    norm_layer,
    normalised_adjacency,
    propagate,
)
from multipert.train import Stage

from ._arguments import check_share, check_switch, check_weight, check_width, checked, one_of
from ._base import PerturbationModel
from ._embedding import registered_embedding
from ._module import PerturbationModule, Tensors
from ._tags import ModelTags
from ._targets import read_targets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from anndata import AnnData

    from multipert.data._conditions import Condition
    from multipert.data._loaders import CellLoader

Direction = Literal["off", "tanh", "sign"]
# share of the co-expression graph in the base of a gene
_GRAPH_SHARE = 0.2
# steepness of the differentiable direction
_STEEPNESS = 10.0
# conditions computed at once in a prediction
_CHUNK = 16
# batches, and cells of each, that the statistics of batch norms are taken from in the end
_SETTLING = 50, 32
_SHOWN = 10


class GEARSModule(PerturbationModule):
    """Prediction = control cell + shift of its condition, which depends on nothing else of the cell.

    The shifts of a batch are computed once for each distinct condition. All statistics of batch norms are those of the
    cells: a condition counts as often as it has cells.

    Parameters
    ----------
    n_vars
        Number of genes.
    n_perturbations
        Size of the vocabulary.
    n_hidden
        Width of all hidden layers.
    n_perturbation_layers
        Steps along the graph of perturbations.
    n_gene_layers
        Steps along the graph of genes.
    n_gene_neighbors
        Most neighbours of a gene.
    gene_threshold
        Absolute correlation that neighbours must exceed.
    gamma
        The error is raised to the power of 2 + gamma.
    direction_loss
        Whether, and how, the direction of change is in the loss.
    direction_weight
        Weight of that term.
    norm
        Batch norm, or layer norm.
    uncertainty
        Whether a log variance is predicted beside the shift.
    uncertainty_weight
        Weight of the error that is scaled by it.
    """

    fitted = (
        *PerturbationModule.fitted,
        "perturbation_edges",
        "perturbation_entries",
        "gene_edges",
        "gene_entries",
        "informed",
    )
    fits_correction = False
    perturbation_edges: torch.Tensor | None
    perturbation_entries: torch.Tensor
    gene_edges: torch.Tensor | None
    gene_entries: torch.Tensor
    informed: torch.Tensor
    expressed: torch.Tensor | None
    control_mean: torch.Tensor | None
    condition_cells: torch.Tensor

    def __init__(
        self,
        n_vars: int,
        n_perturbations: int,
        n_hidden: int,
        n_perturbation_layers: int,
        n_gene_layers: int,
        n_gene_neighbors: int,
        gene_threshold: float,
        *,
        gamma: float,
        direction_loss: Direction,
        direction_weight: float,
        norm: Norm,
        uncertainty: bool,
        uncertainty_weight: float,
    ) -> None:
        super().__init__()
        self.n_gene_neighbors, self.gene_threshold = n_gene_neighbors, gene_threshold
        self.gamma, self.direction_loss, self.direction_weight = gamma, direction_loss, direction_weight
        self.uncertainty_weight = uncertainty_weight
        self.gene_table = BoundedTable(n_vars, n_hidden)
        self.gene_norm = norm_layer(norm, n_hidden)
        self.position_table = BoundedTable(n_vars, n_hidden)
        self.gene_graph = GraphConvolution(n_hidden, n_gene_layers)
        self.gene_mlp = CellMLP((n_hidden, n_hidden, n_hidden), norm)
        self.perturbation_table = BoundedTable(n_perturbations, n_hidden)
        self.perturbation_graph = GraphConvolution(n_hidden, n_perturbation_layers)
        self.perturbation_mlp = CellMLP((n_hidden, n_hidden, n_hidden), norm)
        self.joint_norm = norm_layer(norm, n_hidden)
        self.shared_mlp = CellMLP((n_hidden, 2 * n_hidden, n_hidden), norm)
        self.state_mlp = CellMLP((n_vars, n_hidden, n_hidden), norm)
        self.first_weight = _normal(2 / (n_vars + n_hidden), n_vars, n_hidden)
        self.first_bias = _normal(2 / (n_vars + 1), n_vars)
        self.second_weight = _normal(2 / ((n_vars + 1) * (n_hidden + 1)), n_vars, n_hidden + 1)
        self.second_bias = _normal(2 / (n_vars + 1), n_vars)
        self.uncertainty_mlp = CellMLP((n_hidden, 2 * n_hidden, n_hidden, 1), norm) if uncertainty else None
        # of use to the loss only, and made anew for each training
        self.register_buffer("expressed", None, persistent=False)
        self.register_buffer("control_mean", None, persistent=False)

    def prepare(self, loader: CellLoader) -> None:
        """Note which genes each condition expresses, and make the graph of genes from control and single perturbations.

        A module that is trained further keeps its graph.
        """
        n_vars = len(self.first_bias)
        expressed = torch.zeros(len(self.known_codes), n_vars, dtype=torch.bool)
        self.condition_cells = torch.zeros(len(self.known_codes))
        sums, n_cells = torch.zeros(2, n_vars, dtype=torch.float64), [0, 0]
        for batch in loader:
            x, position = batch[_keys.X].cpu(), self.lookup(batch).cpu()
            n_parts = (batch[_keys.PERTURBATION] >= 0).sum(1).cpu()
            self.condition_cells += torch.bincount(position, minlength=len(self.known_codes))
            for condition in position.unique():
                expressed[condition] |= (x[position == condition] != 0).any(0)
            for most, use in enumerate((n_parts == 0, n_parts <= 1)):
                sums[most] += x[use].sum(0, dtype=torch.float64)
                n_cells[most] += int(use.sum())
        expressed[(self.known_codes < 0).all(1).cpu()] = True
        self.expressed = expressed.to(self.device)
        self.control_mean = (sums[0] / n_cells[0]).to(self.first_bias)
        if self.gene_edges is not None:
            return

        def single() -> Iterator[torch.Tensor]:
            for batch in loader:
                yield batch[_keys.X].cpu()[(batch[_keys.PERTURBATION] >= 0).sum(1).cpu() <= 1]

        edges = coexpression(single, sums[1] / n_cells[1], self.n_gene_neighbors, self.gene_threshold)
        self.gene_edges, self.gene_entries = (part.to(self.device) for part in normalised_adjacency(*edges, n_vars))

    def conclude(self, loader: CellLoader) -> None:
        """Take the statistics of batch norms anew, and find the perturbations whose vector took part in the training."""
        norms = [part for part in self.modules() if isinstance(part, nn.BatchNorm1d)]
        if norms:
            self.train()
            average_statistics(norms, self._runs())
            self.eval()
        n_layers, n = len(self.perturbation_graph.layers), len(self.perturbation_table.weight)
        reached = torch.zeros(n, 1, device=self.device)
        reached[self.known_codes[self.known_codes >= 0].long()] = 1
        edges = self.perturbation_edges
        if edges is not None:
            entries = torch.ones(edges.shape[1], device=self.device)
            transposed = edges.flip(0)[:, torch.argsort(edges[1], stable=True)]
            # backwards to the vectors that the trained ones are made of, forwards to all that are made of any such
            for way in (*[transposed] * n_layers, *[edges] * n_layers):
                reached = (propagate(way, entries, reached) > 0).float()
        self.informed = reached[:, 0] > 0

    def _runs(self) -> Iterator[Callable[[], object]]:
        """Batches of conditions as training has them, drawn alike each time."""
        n_batches, n_cells = _SETTLING
        generator = torch.Generator().manual_seed(0)
        drawn = torch.multinomial(self.condition_cells, n_batches * n_cells, replacement=True, generator=generator)
        for some in drawn.to(self.device).split(n_cells):
            at, counts = some.unique(return_counts=True)
            yield partial(self.shifts, self.known_codes[at].long(), counts)

    def perturbation_vectors(self) -> torch.Tensor:
        """Vectors of all perturbations, mixed along their graph, shape `(n_perturbations, n_hidden)`."""
        return self.perturbation_graph(self.perturbation_table(), self.perturbation_edges, self.perturbation_entries)

    def shifts(self, codes: torch.Tensor, n_cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Shift of every gene under some conditions.

        Parameters
        ----------
        codes
            Codes of the conditions, shape `(n_conditions, n_slots)`, -1 for control and padding.
        n_cells
            Cells of each in the batch, shape `(n_conditions,)`; of use in training only.

        Returns
        -------
        Shifts, shape `(n_conditions, n_vars)`, and log variances of the same shape where they are predicted.
        """
        base = torch.relu(self.gene_norm(self.gene_table()))
        base = base + _GRAPH_SHARE * self.gene_graph(self.position_table(), self.gene_edges, self.gene_entries)
        base = self.gene_mlp(base)
        vectors = self.perturbation_vectors()
        if self.training:
            return self._decode(base, self._fused(vectors, codes, n_cells), n_cells)
        fused = self._fused(vectors, codes, n_cells)
        parts = [self._decode(base, some, n_cells) for some in fused.split(_CHUNK)]
        log_variances = [part[1] for part in parts if part[1] is not None]
        return torch.cat([part[0] for part in parts]), torch.cat(log_variances) if log_variances else None

    def _fused(self, vectors: torch.Tensor, codes: torch.Tensor, n_cells: torch.Tensor) -> torch.Tensor:
        """What is added to every gene of a condition, shape `(n_conditions, n_hidden)`; nothing under control."""
        is_perturbed = (codes >= 0).any(1)
        fused = vectors.new_zeros(len(codes), vectors.shape[1])
        if not is_perturbed.any():
            return fused
        some = codes[is_perturbed]
        total = (vectors[some.clamp(min=0)] * (some >= 0)[..., None]).sum(1)
        rows = torch.nonzero(is_perturbed)[:, 0]
        return fused.index_copy(0, rows, self.perturbation_mlp(total, n_cells[is_perturbed]).to(fused))

    def _decode(
        self, base: torch.Tensor, fused: torch.Tensor, n_cells: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        joint = torch.relu(self.joint_norm(base + fused[:, None], n_cells))
        own = (self.shared_mlp(joint, n_cells) * self.first_weight).sum(2) + self.first_bias
        state = self.state_mlp(own, n_cells)
        shift = own * self.second_weight[:, 0] + state @ self.second_weight[:, 1:].T + self.second_bias
        if self.uncertainty_mlp is None:
            return shift, None
        return shift, self.uncertainty_mlp(joint, n_cells)[..., 0]

    def generative(self, z: torch.Tensor, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Control cells, which are `z`, plus the shifts of their conditions."""
        codes, inverse, n_cells = torch.unique(
            tensors[_keys.PERTURBATION].long(), dim=0, return_inverse=True, return_counts=True
        )
        shift, log_variance = self.shifts(codes, n_cells)
        outputs = {"px": z + shift[inverse].to(z), "codes": codes, "inverse": inverse, "n_cells": n_cells}
        return outputs if log_variance is None else {**outputs, "log_variance": log_variance}

    def loss(self, tensors: Tensors, inference_outputs: Mapping, generative_outputs: Mapping) -> LossOutput:
        """Error to the power of 2 + gamma, with the terms of direction and uncertainty.

        The mean is taken over the cells of a condition and the genes that it expresses, then over conditions.
        """
        x, px, inverse = tensors[_keys.X], generative_outputs["px"], generative_outputs["inverse"]
        error = (px - x).abs() ** (2 + self.gamma)
        if "log_variance" in generative_outputs:
            error = error * (1 + self.uncertainty_weight * torch.exp(-generative_outputs["log_variance"])[inverse])
        if self.direction_loss != "off":
            change = self._direction(x) - self._direction(px)
            error = error + self.direction_weight * change.square()
        kept = self._kept(generative_outputs["codes"]).to(error)
        per_cell = (error * kept[inverse]).sum(1) / kept.sum(1).clamp(min=1)[inverse]
        loss = (per_cell / generative_outputs["n_cells"][inverse]).sum() / len(kept)
        return LossOutput(loss=loss, reconstruction_loss=per_cell)

    def _direction(self, x: torch.Tensor) -> torch.Tensor:
        """Where each gene went from the control mean."""
        change = x if self.control_mean is None else x - self.control_mean
        return torch.sign(change) if self.direction_loss == "sign" else torch.tanh(_STEEPNESS * change)

    def _kept(self, codes: torch.Tensor) -> torch.Tensor:
        """Genes that count in the loss of each condition: all of control and of conditions that were not trained."""
        if self.expressed is None:
            return codes.new_ones(len(codes), len(self.first_bias), dtype=torch.bool)
        position = self.lookup({_keys.PERTURBATION: codes, _keys.DOSE: (codes >= 0).to(self.known_doses)})
        return self.expressed[position.clamp(min=0)] | (position < 0)[:, None]


def _normal(variance: float, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * math.sqrt(variance))


_WIDTHS = "n_hidden", "n_perturbation_layers", "n_gene_layers", "n_perturbation_neighbors", "n_gene_neighbors"
_CHECKS = {
    **dict.fromkeys(_WIDTHS, check_width),
    **dict.fromkeys(("perturbation_threshold", "gene_threshold"), check_share),
    **dict.fromkeys(("gamma", "direction_weight", "uncertainty_weight"), check_weight),
    "direction_loss": one_of(Direction),
    "norm": one_of(Norm),
    "uncertainty": check_switch,
}


class GEARS(PerturbationModel):
    r"""A shift of every gene for a set of perturbed genes, from two graphs :cite:p:`Roohani2024`.

    Genes that are co-expressed, and perturbations that are alike, share what they learn. With :math:`S` the normalised
    graph of perturbations, :math:`E` their learnt vectors, :math:`b_g` the vector of gene g mixed along the graph of
    co-expression, and :math:`f, h, k` perceptrons,

    .. math::

        \hat x = x_0 + \delta, \qquad
        u_g = h\Bigl(b_g + f\bigl(\textstyle\sum_{p} (S E W)_p\bigr)\Bigr), \qquad
        o_g = \langle w_g, u_g \rangle, \qquad
        \delta_g = v_g\, o_g + \langle v'_g, k(o) \rangle

    (offsets left out). The error is raised to the fourth power, so that large changes count.

    Use it for genetic screens with many perturbations in one context, for genes and combinations without cells of their
    own. Not for doses, for chemicals without a table of features, for distributions (all cells of a condition move alike)
    or for transfer between contexts (the shift is the same in all). Alike are perturbations whose rows of the table
    registered with `perturbation_embedding_key` are: annotations
    (:func:`multipert.embedding.annotation_table`) or any features. The index of the table says which genes may be asked for;
    without one only trained genes may, and each learns for itself.

    Tags: unseen perturbations (given a table), combinations, perturbation embedding (vectors after the graph).

    Parameters
    ----------
    adata
        Data that :meth:`setup_anndata` was run on.
    registry
        Registry of a saved model, in place of data.
    preset
        "default"; "published"; "norman19" (the best of a search by PerturBench :cite:p:`Wu2024`).
    edges
        A ready graph of perturbations in the place of the table's: columns "source", "target" and "importance", of which
        edges between perturbations of the vocabulary are used.
    similarity
        "jaccard", "cosine" or "correlation" of the table's rows; None is "jaccard" for a table of zeros and ones, else
        "cosine".
    n_perturbation_neighbors
        Most neighbours of a perturbation, beside itself.
    perturbation_threshold
        Neighbours by the table must be more alike than this.
    n_perturbation_layers
        Steps along the graph of perturbations.
    n_gene_neighbors
        Most neighbours of a gene, beside itself.
    gene_threshold
        Absolute correlation, over training cells of control and single perturbations, that neighbours must exceed.
    n_gene_layers
        Steps along the graph of genes.
    n_hidden
        Width of all hidden layers.
    gamma
        The error is raised to the power of 2 + gamma.
    direction_loss
        "off"; "tanh" also compares the direction of change; "sign" does so without a gradient, as published, and changes
        nothing but the number that is logged.
    direction_weight
        Weight of that term.
    norm
        "batch" (published) or "layer".
    uncertainty
        Whether :meth:`uncertainty` is to be had.
    uncertainty_weight
        Weight of the error that is divided by the predicted variance.

    Examples
    --------
    >>> import multipert as mp
    >>> adata = mp.datasets.screen("combinations")
    >>> mp.model.GEARS.setup_anndata(adata, perturbation_embedding_key="perturbation_embedding")
    >>> model = mp.model.GEARS(adata, n_hidden=8)
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> unseen = adata.uns["perturbation_embedding"].index[-1]
    >>> model.predict(perturbation=unseen, returns="mean").n_vars == adata.n_vars
    True
    """

    tags = ModelTags(
        unseen_perturbations=True,
        unseen_needs_embedding=True,
        combinations=True,
        perturbation_embedding=True,
        reference="Roohani2024",
    )
    stages = (Stage("random"),)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {
            "n_hidden": 64,
            "n_perturbation_neighbors": 20,
            "perturbation_threshold": 0.1,
            "n_perturbation_layers": 1,
            "n_gene_neighbors": 20,
            "gene_threshold": 0.4,
            "n_gene_layers": 1,
            "gamma": 0.0,
            "direction_loss": "off",
            "direction_weight": 0.1,
            "norm": "batch",
            "uncertainty": False,
            "uncertainty_weight": 1.0,
            "lr": 1e-3,
            "weight_decay": 5e-4,
            "batch_size": 128,
            "n_updates": 500,
            "plan_kwargs": {"n_warmup_steps": 0, "decay_every": 125, "decay_factor": 0.5},
        },
        "published": {
            "gamma": 2.0,
            "direction_loss": "sign",
            "batch_size": 32,
            "max_epochs": 20,
            "plan_kwargs": {"n_warmup_steps": 0},
        },
        "norman19": {
            "gamma": 2.0,
            "n_hidden": 384,
            "n_perturbation_neighbors": 25,
            "n_gene_neighbors": 15,
            "gene_threshold": 0.31,
            "n_gene_layers": 2,
            "lr": 3.863e-5,
            "weight_decay": 9.97e-4,
            "batch_size": 32,
            "max_epochs": 10,
            "plan_kwargs": {"n_warmup_steps": 0},
        },
    }
    search_space: ClassVar[dict[str, tuple]] = {
        "n_hidden": ("choice", (32, 64, 128, 256)),
        "n_perturbation_neighbors": ("int", 5, 30),
        "n_perturbation_layers": ("int", 1, 3),
        "n_gene_neighbors": ("int", 5, 30),
        "gene_threshold": ("float", 0.1, 0.5),
        "n_gene_layers": ("int", 1, 3),
        "lr": ("log", 1e-5, 1e-2),
        "weight_decay": ("log", 1e-8, 1e-3),
    }

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        *,
        preset: str | None = None,
        edges: pd.DataFrame | None = None,
        similarity: Similarity | None = None,
        n_perturbation_neighbors: int | None = None,
        perturbation_threshold: float | None = None,
        n_perturbation_layers: int | None = None,
        n_gene_neighbors: int | None = None,
        gene_threshold: float | None = None,
        n_gene_layers: int | None = None,
        n_hidden: int | None = None,
        gamma: float | None = None,
        direction_loss: Direction | None = None,
        direction_weight: float | None = None,
        norm: Norm | None = None,
        uncertainty: bool | None = None,
        uncertainty_weight: float | None = None,
    ) -> None:
        super().__init__(adata, registry, preset)
        args = checked(self, _CHECKS, locals())
        n_neighbors, threshold = args.pop("n_perturbation_neighbors"), args.pop("perturbation_threshold")
        if similarity is not None:
            one_of(Similarity)("similarity", similarity)
        sizes = self.summary_stats
        self._module_args = {"n_vars": sizes.n_vars, "n_perturbations": sizes.n_perturbations, **args}
        if edges is not None:
            # what is kept of the graph is all that the model, and its files, need
            edges = known_edges(edges, self._codec.vocabulary, n_neighbors)
        self._graph = edges, similarity, n_neighbors, threshold
        self._start_module()
        self._warn_of_isolated()
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self) -> GEARSModule:
        module = GEARSModule(**self._module_args)
        edges, similarity, n_neighbors, threshold = self._graph
        names = pd.Index(self._codec.vocabulary)
        if edges is not None:
            source, target = names.get_indexer(edges["source"]), names.get_indexer(edges["target"])
            found = source, target, edges["importance"].to_numpy(np.float64)
        else:
            table = registered_embedding(self)
            if table is None:
                return module
            found = nearest(table.numpy(), similarity, n_neighbors, threshold)
        module.perturbation_edges, module.perturbation_entries = normalised_adjacency(*found, len(names))
        return module

    def _warn_of_isolated(self) -> None:
        """Name the perturbations that the graph joins to nothing."""
        if self.adata is None or self.module.perturbation_edges is None:
            return
        alone = self._n_neighbors() == 0
        if alone.any():
            names = alone.index[alone]
            shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            warnings.warn(
                f"{len(names)} of {len(alone)} perturbation(s) have no neighbour in the graph: {shown}. They learn for "
                "themselves if they are trained, and cannot be predicted if not.",
                stacklevel=3,
            )

    def _n_neighbors(self) -> pd.Series:
        """Number of neighbours of each perturbation of the vocabulary."""
        n_neighbors = np.zeros(len(self._codec.vocabulary), dtype=np.int64)
        if self.module.perturbation_edges is not None:
            target, source = self.module.perturbation_edges.cpu().numpy()
            np.add.at(n_neighbors, target[target != source], 1)
        return pd.Series(n_neighbors, index=pd.Index(self._codec.vocabulary, name=self._setup.perturbation_key))

    def coverage(self) -> pd.DataFrame:
        """Which perturbations can be predicted, alone or in combinations, and why.

        Returns
        -------
        One row per perturbation of the vocabulary: `"trained"`, `"n_neighbors"` in the graph, and `"predictable"`, which an
        untrained one is where its vector is made of any that took part in the training.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        """
        self._require_trained()
        n_neighbors = self._n_neighbors()
        trained = {name for condition in self.trained_conditions_ for name, _ in condition}
        informed = self.module.informed.cpu().numpy()
        return pd.DataFrame(
            {"trained": n_neighbors.index.isin(trained), "n_neighbors": n_neighbors, "predictable": informed}
        )

    def uncertainty(self, perturbation: str | Sequence[str] | None = None) -> pd.DataFrame:
        """Log variance of each gene under some conditions, as the model predicts it.

        It orders perturbations by how far predictions may be off, and is no calibrated variance. `exp` of minus its mean over
        genes is the published confidence.

        Parameters
        ----------
        perturbation
            A label, several, or None for every trained label.

        Returns
        -------
        Labels x genes.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If it was made without `uncertainty=True`, or a label cannot be predicted.
        """
        self._require_trained()
        if self.module.uncertainty_mlp is None:
            raise ValueError("The model predicts no uncertainty; make it with uncertainty=True and train it.")
        targets = read_targets(
            perturbation,
            None,
            codec=self._codec,
            trained=self.trained_conditions_,
            tags=self.tags.given(self._n_embedding is not None),
            model=type(self).__name__,
            dose_key=None,
        )
        conditions = [condition for condition, _ in targets]
        for condition in conditions:
            self._check_target(condition)
        codes = self._label_tensors(conditions)[_keys.PERTURBATION].long()
        self.module.eval()
        with torch.inference_mode():
            log_variance = self.module.shifts(codes, torch.ones(len(codes), device=codes.device))[1]
        return pd.DataFrame(
            log_variance.float().cpu().numpy(), index=self._labels(conditions), columns=self.get_var_names()
        )

    def _check_target(self, condition: Condition) -> None:
        """Refuse perturbations whose vector took no part in the training."""
        informed = self.module.informed
        lost = [name for name, _ in condition if not informed[self._codec.encode_one(((name, 1.0),), 1)[0][0]]]
        if lost:
            without = [self._codec.vocabulary[i] for i in torch.nonzero(~informed)[:, 0].tolist()]
            shown = ", ".join(without[:_SHOWN]) + (", ..." if len(without) > _SHOWN else "")
            raise ValueError(
                f"Perturbation {lost[0]!r} has no training cells, and nothing in the graph joins it to a trained one; so it is "
                f"for {len(without)} of {len(informed)} perturbations ({shown}; see `coverage()`). Give it annotations or "
                "features, more neighbours (n_perturbation_neighbors, perturbation_threshold), or edges."
            )

    def _perturbation_embedding(self) -> pd.DataFrame:
        """Vectors after the graph, of every perturbation that can be predicted."""
        kept = self.module.informed.cpu().numpy()
        index = pd.Index(np.array(self._codec.vocabulary, dtype=object)[kept], name=self._setup.perturbation_key)
        return pd.DataFrame(self.module.perturbation_vectors().float().cpu().numpy()[kept], index=index)
