"""The ways of training that `speed.py` compares, each over the same cells, timed without looking inside.

A variant is prepared once per process and case and then trains on. Its time for some epochs is that of a call with these
epochs less that of a call with none, so what happens once per call does not count.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

if TYPE_CHECKING:
    from collections.abc import Callable

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")

LR, WARM_UP, EPS = 1e-3, 100, 1e-8
_PATTERNS = 2000


def made_up_cells(
    n_cells: int, n_vars: int, density: float, n_perturbations: int = 1, n_control: int | None = None, seed: int = 0
) -> ad.AnnData:
    """Random sparse expression with the same number of non-zero genes in each cell; only its size matters.

    Which genes are non-zero repeats after some thousand cells, the values do not.
    """
    rng = np.random.default_rng(seed)
    per_cell, n_patterns = max(1, round(density * n_vars)), min(_PATTERNS, n_cells)
    keys = rng.random((n_patterns, n_vars), dtype=np.float32)
    patterns = np.sort(np.argpartition(keys, per_cell - 1, axis=1)[:, :per_cell], axis=1).astype(np.int32)
    indices = np.tile(patterns, (-(-n_cells // n_patterns), 1))[:n_cells].ravel()
    data = rng.standard_gamma(2.0, size=n_cells * per_cell, dtype=np.float32)
    indptr = np.arange(0, n_cells * per_cell + 1, per_cell, dtype=np.int32)
    labels = np.array([f"P{i % n_perturbations}" for i in range(n_cells)], dtype=object)
    labels[: n_cells // 2 if n_control is None else n_control] = "control"
    contexts = rng.choice(["A", "B", "C", "D"], n_cells)
    obs = pd.DataFrame({"perturbation": labels, "context": contexts}, index=[f"cell{i}" for i in range(n_cells)])
    return ad.AnnData(sparse.csr_matrix((data, indices, indptr), shape=(n_cells, n_vars)), obs=obs)


@lru_cache(maxsize=4)
def _cells(case: str) -> ad.AnnData:
    """Cells of a case; the visited ones, spread evenly, are marked for training."""
    spec = json.loads(case)
    adata = made_up_cells(spec["n_cells"], spec["n_vars"], spec["density"])
    split = np.full(adata.n_obs, "test", dtype=object)
    split[_visited(spec)] = "train"
    adata.obs["split"] = split
    return adata


def _visited(spec: dict[str, Any]) -> np.ndarray:
    return np.linspace(0, spec["n_cells"] - 1, spec["visited"]).astype(int)


@lru_cache(maxsize=64)
def _model(case: str, role: str) -> Any:
    """A model of the case; roles share no weights."""
    import multipert as mp

    spec = json.loads(case)
    cls = getattr(mp.model, spec["model"])
    adata = _cells(json.dumps({key: spec[key] for key in ("n_cells", "n_vars", "density", "visited")})).copy()
    cls.setup_anndata(adata, context_key="context")
    return cls(adata, **spec.get("arguments", {}))


def _key(case: dict[str, Any]) -> str:
    return json.dumps(case, sort_keys=True)


class _Steps:
    """Counts the updates of any optimiser of torch, and the calls of a module for a loop that uses none."""

    def __init__(self, module: nn.Module) -> None:
        self.updates = self.calls = 0
        self._hooks = [
            register_optimizer_step_post_hook(lambda *_: self._count("updates")),
            module.register_forward_pre_hook(lambda *_: self._count("calls")),
        ]

    def _count(self, what: str) -> None:
        setattr(self, what, getattr(self, what) + 1)

    def stop(self) -> int:
        for hook in self._hooks:
            hook.remove()
        return self.updates or self.calls


def _timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _difference(train: Callable[[int], Any], epochs: int) -> dict[str, float]:
    """Seconds of some epochs, and of a call without any."""
    once = _timed(lambda: train(0))
    return {"seconds": _timed(lambda: train(epochs)) - once, "call": once}


_warm: set[tuple[str, str]] = set()


def _warmed(train: Callable[[int], Any], variant: str, case: dict[str, Any]) -> None:
    """One epoch that does not count, for what a process does once."""
    if (variant, _key(case)) not in _warm:
        train(1)
        _warm.add((variant, _key(case)))


def linear_flops(shapes: list[tuple[int, int]], n_vars: int) -> float:
    """Operations of a cell's forward and backward pass in linear layers, `(n_in, n_out)` each.

    Two per weight forward, two for its gradient, two for that of its input, which a layer that reads the data does not need.
    """
    return float(sum((4 if n_in == n_vars else 6) * n_in * n_out for n_in, n_out in shapes))


def _flops(module: nn.Module, n_vars: int) -> float:
    layers = [part for part in module.modules() if isinstance(part, nn.Linear)]
    return linear_flops([(part.in_features, part.out_features) for part in layers], n_vars)


def ours(
    case: dict[str, Any], batch_size: int, epochs: int, precision: str = "32-true", accelerator: str = "cpu"
) -> dict[str, Any]:
    """The network in this package, by its public call."""
    model = _model(_key(case), f"ours {precision}")

    def train(n: int) -> None:
        model.train(
            max_epochs=n,
            split_key="split",
            batch_size=batch_size,
            precision=precision,
            accelerator=accelerator,
            enable_progress_bar=False,
            seed=0,
        )

    _warmed(train, f"ours {precision}", case)
    before = {key: len(frame) for key, frame in model.history.items()}
    steps = _Steps(model.module)
    result: dict[str, Any] = _difference(train, epochs)
    result |= {"steps": steps.stop(), "cells": epochs * case["visited"], "flops": _flops(model.module, case["n_vars"])}
    for name, key in (("logged", "epoch_seconds"), ("loading", "loading_seconds")):
        if key in model.history:
            # what the package itself reports, beside what it took
            result[name] = float(model.history[key].iloc[before.get(key, 0) :].to_numpy(dtype=float).sum())
    parameters = sum(p.numel() for p in model.module.parameters())
    return {**result, "parameters": parameters, "single": not list(model.module.critic_parameters())}


def scvi_default(case: dict[str, Any], batch_size: int, epochs: int, accelerator: str = "cpu") -> dict[str, Any]:
    """The same network under scvi-tools' plan, data loader and trainer as they are."""
    from scvi.dataloaders import DataSplitter
    from scvi.train import TrainingPlan, TrainRunner

    model = _model(_key(case), "scvi")
    visited = _visited(case)
    rest = np.setdiff1d(np.arange(case["n_cells"]), visited)

    def train(n: int) -> None:
        # TrainRunner leaves the module in evaluation mode and Lightning keeps that, so a second call would be without dropout
        model.module.train()
        splitter = DataSplitter(
            model.adata_manager, batch_size=batch_size, external_indexing=[visited, np.array([], dtype=int), rest]
        )
        TrainRunner(
            model,
            training_plan=TrainingPlan(model.module, lr=LR),
            data_splitter=splitter,
            max_epochs=n,
            accelerator=accelerator,
            devices=1,
            enable_progress_bar=False,
        )()

    _warmed(train, "scvi", case)
    steps = _Steps(model.module)
    result = _difference(train, epochs)
    n_steps, flops = steps.stop(), _flops(model.module, case["n_vars"])
    return {**result, "steps": n_steps, "cells": epochs * case["visited"], "flops": flops}


@lru_cache(maxsize=4)
def _dense(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Expression and codes of the visited cells."""
    spec = json.loads(case)
    adata = _cells(json.dumps({key: spec[key] for key in ("n_cells", "n_vars", "density", "visited")}))
    rows = _visited(spec)
    control = (adata.obs["perturbation"] == "control").to_numpy()[rows]
    return torch.from_numpy(adata.X[rows].toarray()), torch.from_numpy(np.where(control, -1, 0)[:, None])


def plain(case: dict[str, Any], batch_size: int, epochs: int, device: str = "cpu") -> dict[str, Any]:
    """The same network in a loop of a dozen lines: dense rows, fused Adam, nothing logged or checked."""
    model = _model(_key(case), "plain")
    x, codes = _dense(_key(case))
    doses = torch.ones(codes.shape)
    module = model.module.to(device).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=LR, fused=True)

    def train(n: int) -> None:
        for _ in range(n):
            for at in torch.randperm(len(x))[: len(x) // batch_size * batch_size].split(batch_size):
                batch = {"X": x[at], "perturbation": codes[at], "dose": doses[at]}
                optimizer.zero_grad(set_to_none=True)
                module({key: value.to(device) for key, value in batch.items()})[2].loss.backward()
                optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()

    _warmed(train, f"plain {device}", case)
    steps = _Steps(module)
    result = _difference(train, epochs)
    return {**result, "steps": steps.stop(), "cells": epochs * len(x), "flops": _flops(module, case["n_vars"])}


class _MLP(nn.Sequential):
    """Linear, then linear, layer norm without weights, ReLU and dropout, then linear."""

    def __init__(self, n_in: int, width: int, n_out: int, n_layers: int) -> None:
        parts: list[nn.Module] = [nn.Linear(n_in, width)]
        for _ in range(n_layers):
            norm = nn.LayerNorm(width, elementwise_affine=False)
            parts += [nn.Linear(width, width), norm, nn.ReLU(), nn.Dropout(0.1)]
        super().__init__(*parts, nn.Linear(width, n_out))


def latent_additive(case: dict[str, Any], batch_size: int, epochs: int, width: int, n_latent: int) -> dict[str, Any]:
    """PerturBench's LatentAdditive re-stated: control cell and perturbation encoded, added, decoded; dense tensors."""
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader, TensorDataset

    class LatentAdditive(pl.LightningModule):
        def __init__(self, n_vars: int) -> None:
            super().__init__()
            self.genes, self.perturbations = _MLP(n_vars, width, n_latent, 1), _MLP(1, width, n_latent, 1)
            self.decoder = _MLP(n_latent, width, n_vars, 1)

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            control, label, observed = batch
            decoded = nn.functional.softplus(self.decoder(self.genes(control) + self.perturbations(label)))
            loss = nn.functional.mse_loss(decoded, observed)
            self.log("train_loss", loss, prog_bar=True, batch_size=len(control))
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=LR)

    x, codes = _dense(_key(case))
    partners = torch.randint(0, len(x), (len(x),), generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x[partners], (codes >= 0).float(), x)
    module = LatentAdditive(x.shape[1])

    def train(n: int) -> None:
        loader = DataLoader(data, batch_size=batch_size, shuffle=True, drop_last=True)
        quiet: dict[str, Any] = {
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
        }
        pl.Trainer(max_epochs=n, accelerator="cpu", devices=1, logger=False, **quiet).fit(module, loader)

    _warmed(train, "additive", case)
    steps = _Steps(module)
    result = _difference(train, epochs)
    return {**result, "steps": steps.stop(), "cells": epochs * len(x), "flops": _flops(module, case["n_vars"])}


@lru_cache(maxsize=8)
def _scgen(case: str, width: int, n_latent: int, batch_size: int) -> Any:
    """One model for each batch size, so that each compiles once."""
    from pertpy.tools import Scgen

    spec = json.loads(case)
    adata = _cells(json.dumps({key: spec[key] for key in ("n_cells", "n_vars", "density", "visited")})).copy()
    Scgen.setup_anndata(adata, batch_key="perturbation", labels_key="context")
    return Scgen(adata, n_hidden=width, n_latent=n_latent, n_layers=2)


def scgen(case: dict[str, Any], batch_size: int, epochs: int, width: int, n_latent: int) -> dict[str, Any]:
    """Scgen of pertpy by its public call, which trains with jax; the first epoch, which compiles, does not count."""
    import jax
    import lightning.pytorch as pl

    model, starts = _scgen(_key(case), width, n_latent, batch_size), []

    class Clock(pl.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            starts.append(time.perf_counter())

        def on_train_end(self, *_: Any) -> None:
            starts.append(time.perf_counter())

    visited = _visited(case)
    rest = np.setdiff1d(np.arange(case["n_cells"]), visited)
    model.train(
        max_epochs=epochs + 1,
        accelerator="cpu",
        batch_size=batch_size,
        datasplitter_kwargs={"external_indexing": [visited, np.array([], dtype=int), rest]},
        callbacks=[Clock()],
        enable_progress_bar=False,
    )
    shapes = [leaf.shape for leaf in jax.tree_util.tree_leaves(model.module.train_state.params) if leaf.ndim == 2]
    cells = epochs * case["visited"]
    steps = epochs * -(-case["visited"] // batch_size)
    flops = linear_flops(shapes, case["n_vars"])
    return {"seconds": starts[-1] - starts[1], "steps": steps, "cells": cells, "flops": flops}
