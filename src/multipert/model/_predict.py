"""Counterfactual cells, streamed: control cells are encoded once and decoded once per target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from multipert import _keys
from multipert._progress import track
from multipert.data._checks import row_blocks
from multipert.data._noise import cell_keys, sample_seed

from ._realise import draw_counts, residual, size_factors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pandas as pd

    from multipert.data._store import CellStore

    from ._module import PerturbationModule, Tensors
    from ._realise import Realise

_ACCUMULATOR_BYTES = 256 * 2**20


@dataclass
class ContextMeans:
    """Mean expression, or latent representation, of the control cells of each context.

    Parameters
    ----------
    names
        Names of the contexts, sorted.
    mean
        Their means, shape `(n_contexts, n_vars)` or `(n_contexts, n_latent)`, float32.
    """

    names: list[str]
    mean: torch.Tensor

    @classmethod
    def of(cls, x: Any, contexts: np.ndarray, is_control: np.ndarray) -> ContextMeans:
        """Compute the means in one pass over the control cells, in float64.

        Parameters
        ----------
        x
            Expression, shape `(n_cells, n_vars)`.
        contexts
            Name of each cell's context.
        is_control
            Whether each cell is a control cell.

        Returns
        -------
        The means of the contexts that have control cells.
        """
        rows = np.flatnonzero(is_control)
        blocks = (
            (at, (block.toarray() if hasattr(block, "toarray") else np.asarray(block)).astype(np.float32))
            for at, block in row_blocks(x, rows)
        )
        return cls._of_blocks(blocks, contexts, rows)

    @classmethod
    @torch.inference_mode()
    def of_latents(cls, predictor: Predictor, is_control: np.ndarray) -> ContextMeans:
        """Compute the means of the latent representation, all control cells encoded once.

        Parameters
        ----------
        predictor
            The prediction that needs them.
        is_control
            Whether each of its cells is a control cell.

        Returns
        -------
        The means of the contexts that have control cells, shape `(n_contexts, n_latent)`.
        """
        predictor.module.eval()
        rows = np.flatnonzero(is_control)
        blocks = (
            (rows[at], predictor.module.inference(tensors)["z"].float().cpu().numpy())
            for at, tensors in predictor.batches(rows)
        )
        return cls._of_blocks(blocks, predictor.contexts, rows)

    @classmethod
    def _of_blocks(
        cls, blocks: Iterable[tuple[np.ndarray, np.ndarray]], contexts: np.ndarray, rows: np.ndarray
    ) -> ContextMeans:
        """Means of the contexts of `rows`, from row numbers and values of parts that together are all of them."""
        sums: dict[str, Any] = dict.fromkeys(sorted(set(contexts[rows])), 0.0)
        for at, block in blocks:
            for name in set(contexts[at]):
                sums[name] = sums[name] + block[contexts[at] == name].sum(axis=0, dtype=np.float64)
        means = [total / (contexts[rows] == name).sum() for name, total in sums.items()]
        return cls(list(sums), torch.from_numpy(np.stack(means).astype(np.float32)))


@dataclass
class Predictor:
    """Everything that a prediction needs, bound together for one call.

    Parameters
    ----------
    module
        The trained module.
    store
        The cells.
    obs_names
        Names of the cells of the store.
    realise
        How decoded expression becomes cells.
    clip
        Whether negative values are set to 0.
    seed
        Seed of what is drawn.
    batch_size
        Cells per batch.
    contexts
        Context of each cell.
    means
        Means of the contexts, where the module needs them.
    counts
        Raw counts of the cells, for `realise="counts"` and for modules that read counts.
    latents
        Mean latent representations of the contexts, where the module needs them.
    """

    module: PerturbationModule
    store: CellStore
    obs_names: pd.Index
    realise: Realise
    clip: bool
    seed: int
    batch_size: int
    contexts: np.ndarray
    means: ContextMeans | None = None
    counts: Any = None
    latents: ContextMeans | None = None

    @cached_property
    def device(self) -> torch.device:
        """Where the module is; asked once, since a module looks through all its parameters to tell."""
        return self.module.device

    def sampling(self, sample: int) -> Predictor:
        """The same prediction, drawn under the numbers of one sample.

        Parameters
        ----------
        sample
            Number of the sample.

        Returns
        -------
        A predictor whose batches hold the cells' keys.
        """
        seed = sample_seed(self.seed, sample)
        store = self.store.with_columns({_keys.CELL_KEY: cell_keys(seed, self.obs_names)})
        return replace(self, seed=seed, store=store)

    def batches(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Tensors]]:
        """Positions within `rows` and the batch of each step."""
        for start in range(0, len(rows), self.batch_size):
            at = np.arange(start, min(start + self.batch_size, len(rows)))
            yield at, self.batch(rows[at])

    def batch(self, rows: np.ndarray) -> Tensors:
        """Some cells, on the device of the module, with the means of their context that are needed."""
        tensors = self.store.batch(rows)
        for key, means in (("context_mean", self.means), ("context_latent", self.latents)):
            if means is not None:
                codes = np.searchsorted(means.names, self.contexts[rows].astype(str))
                tensors[key] = means.mean[torch.from_numpy(codes)]
        if self.module.reads_counts:
            tensors[_keys.SIZE_FACTOR] = torch.from_numpy(self._counts_and_factors(rows, tensors)[1]).float()
        return {key: value.to(self.device) for key, value in tensors.items()}

    def _counts_and_factors(self, rows: np.ndarray, tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
        """Raw counts, dense, and size factors of the cells of a batch; an error where its expression is not made of them."""
        # a matrix on disk takes increasing row numbers only
        distinct, at = np.unique(rows, return_inverse=True)
        counts = self.counts[distinct]
        counts = (counts.toarray() if hasattr(counts, "toarray") else np.asarray(counts))[at]
        x = tensors[_keys.X].cpu().numpy()
        return counts, size_factors(x, counts, list(self.obs_names[rows]), _keys.COUNTS_LAYER)

    @torch.inference_mode()
    def stream(
        self, rows: np.ndarray, codes: np.ndarray, doses: np.ndarray, description: str
    ) -> Iterator[tuple[int, np.ndarray, torch.Tensor, np.ndarray | None]]:
        """Predict all targets for some control cells, before negative values are set to 0.

        Parameters
        ----------
        rows
            Row numbers of the control cells.
        codes
            Codes of the targets, shape `(n_targets, n_slots)`.
        doses
            Doses of the targets, same shape.
        description
            Text of the progress bar.

        Yields
        ------
        Number of the target, positions within `rows`, predicted expression and, for `realise="counts"`, counts.
        """
        self.module.eval()
        steps = -(-len(rows) // self.batch_size) * len(codes)
        yield from track(self._stream(rows, codes, doses), description, total=steps)

    def _stream(self, rows: np.ndarray, codes: np.ndarray, doses: np.ndarray) -> Iterator:
        for at, tensors in self.batches(rows):
            encoded = self._encode(rows[at], tensors)
            for target in range(len(codes)):
                yield target, at, *self._one(rows[at], tensors, encoded, codes[target], doses[target])

    @torch.inference_mode()
    def own_labels(
        self, rows: np.ndarray, codes: np.ndarray, doses: np.ndarray, description: str
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Predict each control cell under a label of its own.

        Parameters
        ----------
        rows
            Row numbers of the control cells, repeats allowed.
        codes
            Codes, shape `(len(rows), n_slots)`.
        doses
            Doses, same shape.
        description
            Text of the progress bar.

        Yields
        ------
        Positions within `rows` and predicted expression.
        """
        self.module.eval()
        # cells of one control cell side by side, so that it is read and encoded once
        order = np.argsort(rows, kind="stable")
        starts = range(0, len(rows), self.batch_size)
        for start in track(starts, description, total=len(starts)):
            at = order[start : start + self.batch_size]
            controls, of_control = np.unique(rows[at], return_inverse=True)
            tensors = self.batch(controls)
            encoded = self._encode(controls, tensors)
            if len(controls) < len(at):
                index = torch.from_numpy(of_control).to(self.device)
                tensors = {key: value[index] for key, value in tensors.items()}
                encoded = {
                    key: value[index] if isinstance(value, torch.Tensor) else value[of_control]
                    for key, value in encoded.items()
                }
            decoded, _ = self._one(rows[at], tensors, encoded, codes[at], doses[at])
            yield at, self._clipped(decoded)

    def _encode(self, rows: np.ndarray, tensors: Tensors) -> dict[str, Any]:
        """What is the same for all targets: latent representation, decoded control, counts."""
        z = self.module.inference(tensors)["z"]
        encoded: dict[str, Any] = {"z": z}
        if self.realise != "plain":
            n_slots = tensors[_keys.PERTURBATION].shape[1]
            codes, doses = np.full(n_slots, _keys.PAD, dtype=np.int32), np.zeros(n_slots, dtype=np.float32)
            control = {**tensors, **self._labels(len(rows), codes, doses)}
            encoded["control"] = self.module.counterfactual(control, z)
        if self.realise == "counts":
            encoded["x"] = tensors[_keys.X].cpu().numpy()
            encoded["counts"], encoded["factors"] = self._counts_and_factors(rows, tensors)
        return encoded

    def _labels(self, n: int, codes: np.ndarray, doses: np.ndarray) -> Tensors:
        """Labels of some cells: one for each, shape `(n, n_slots)`, or one row for all, shape `(n_slots,)`, not copied."""
        values = {_keys.PERTURBATION: codes, _keys.DOSE: doses}
        return {key: torch.tensor(value, device=self.device).expand(n, -1) for key, value in values.items()}

    def _one(
        self, rows: np.ndarray, tensors: Tensors, encoded: dict[str, Any], codes: np.ndarray, doses: np.ndarray
    ) -> tuple[torch.Tensor, np.ndarray | None]:
        """Expression before :meth:`_clipped`, and for `realise="counts"` the counts."""
        target = {**tensors, **self._labels(len(rows), codes, doses)}
        decoded = self.module.counterfactual(target, encoded["z"])
        if "control" in encoded:
            # decoded in another batch the last bits may be others, and what is under control must be as it was
            is_control = (target[_keys.PERTURBATION] < 0).all(dim=1, keepdim=True)
            if is_control.any():
                decoded = torch.where(is_control, encoded["control"], decoded)
        if self.realise == "counts":
            target[_keys.SIZE_FACTOR] = torch.from_numpy(encoded["factors"]).to(self.device)
            control_rates, rates = self.module.rates(target, decoded, encoded["control"])
            correction = self._correction(target)
            expression, counts = draw_counts(
                encoded["x"],
                encoded["counts"],
                encoded["factors"],
                control_rates.double().cpu().numpy(),
                rates.double().cpu().numpy(),
                correction,
                list(self.obs_names[rows]),
                self.seed,
            )
            return torch.from_numpy(expression), counts
        if self.realise == "residual":
            decoded = residual(tensors[_keys.X], decoded, encoded["control"])
        return decoded.float().cpu(), None

    def _clipped(self, decoded: torch.Tensor, out: np.ndarray | None = None) -> np.ndarray:
        """Negative values set to 0 where that was asked for, and written to `out` in the same pass."""
        to = None if out is None else torch.from_numpy(out)
        if self.clip:
            return torch.clamp(decoded, min=0, out=to).numpy()
        return (decoded if to is None else to.copy_(decoded)).numpy()

    def _correction(self, target: Tensors) -> np.ndarray:
        """Factor on added counts per cell and gene; 1 for conditions never trained."""
        if self.module.count_correction is None:
            return np.ones(1)
        found = self.module.lookup(target)
        factors = self.module.count_correction[found]
        return torch.where((found < 0)[:, None], torch.ones_like(factors), factors).double().cpu().numpy()

    def cells(self, rows: np.ndarray, codes: np.ndarray, doses: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Predicted cells of all targets.

        Parameters
        ----------
        rows
            Row numbers of the control cells.
        codes
            Codes of the targets, shape `(n_targets, n_slots)`.
        doses
            Doses of the targets, same shape.

        Returns
        -------
        Expression of shape `(n_targets * len(rows), n_vars)`, float32, one target after the other, and counts or None.
        """
        shape = (len(codes) * len(rows), self.store.n_vars)
        expression = np.empty(shape, dtype=np.float32)
        counts = np.empty(shape, dtype=np.float32) if self.realise == "counts" else None
        for target, at, decoded, drawn in self.stream(rows, codes, doses, "Predicting cells"):
            first = target * len(rows) + at[0]
            self._clipped(decoded, out=expression[first : first + len(at)])
            if counts is not None:
                counts[first : first + len(at)] = drawn
        return expression, counts

    def moments(
        self, rows: np.ndarray, codes: np.ndarray, doses: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
        """Mean and variance over cells of all targets, by context; memory grows with targets x contexts x genes only.

        Parameters
        ----------
        rows
            Row numbers of the control cells.
        codes
            Codes of the targets, shape `(n_targets, n_slots)`.
        doses
            Doses of the targets, same shape.

        Returns
        -------
        Means and (population) variances of shape `(n_targets, n_contexts, n_vars)`, float32; names of the contexts;
        and number of cells per context.
        """
        names = sorted(set(self.contexts[rows]))
        position = {name: i for i, name in enumerate(names)}
        of_row = np.array([position[name] for name in self.contexts[rows]])
        n_cells = np.bincount(of_row, minlength=len(names))
        n_vars = self.store.n_vars
        shape = (len(codes), len(names), n_vars)
        means, variances = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
        block = max(1, _ACCUMULATOR_BYTES // (16 * len(names) * n_vars))
        buffer = np.empty((min(self.batch_size, len(rows)), n_vars), dtype=np.float32)
        for first in range(0, len(codes), block):
            some = slice(first, first + block)
            sums = np.zeros((2, len(codes[some]), len(names), n_vars))
            for target, at, decoded, _ in self.stream(rows, codes[some], doses[some], "Predicting means"):
                predicted = self._clipped(decoded, out=buffer[: len(at)])
                contexts = np.unique(of_row[at])
                for context in contexts:
                    here = predicted if len(contexts) == 1 else predicted[of_row[at] == context]
                    sums[0, target, context] += here.sum(axis=0, dtype=np.float64)
                    sums[1, target, context] += np.einsum("ij,ij->j", here, here, dtype=np.float64)
            sums /= n_cells[:, None]
            means[some] = sums[0]
            variances[some] = np.maximum(sums[1] - sums[0] ** 2, 0)
        return means, variances, names, n_cells
