"""What `speed.py` measures beside training steps: arithmetic, equal losses, growth with cells, prediction, a GPU."""

from __future__ import annotations

import copy
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch
from _speed_variants import (
    EPS,
    LR,
    WARM_UP,
    _dense,
    _key,
    _model,
    made_up_cells,
    ours,
    scvi_default,
)
from _speed_worker import forget_peak, resident


def cuda() -> dict[str, Any]:
    """Whether there is a GPU, and its name."""
    return {
        "there": torch.cuda.is_available(),
        "name": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    }


def gradient_models() -> dict[str, Any]:
    """Registered models that are trained by gradient, and where the package lies."""
    import multipert as mp

    names = [name for name in mp.model.__all__ if getattr(mp.model, name).stages]
    return {"names": names, "file": mp.__file__}


def gemm(batch_size: int, n_in: int, n_out: int, dtype: str, seconds: float = 0.3) -> dict[str, Any]:
    """Operations per second of the first layer's product, the median of some."""
    a = torch.rand(batch_size, n_in).to(getattr(torch, dtype))
    b = torch.rand(n_in, n_out).to(a.dtype)
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < seconds:
        start = time.perf_counter()
        torch.matmul(a, b)
        taken.append(time.perf_counter() - start)
    return {"rate": 2 * batch_size * n_in * n_out / float(np.median(taken))}


def same_losses(case: dict[str, Any], batch_size: int, epochs: int, seed: int = 0) -> dict[str, Any]:
    """Losses per epoch of this package and of a plain loop with Adam's plain kernel: same start, batches and dropout."""
    from multipert.data._loaders import CellLoader

    model = _model(_key(case), "same losses")
    fixed = {"split_key": "split", "batch_size": batch_size, "seed": seed, "lr": LR, "accelerator": "cpu"}
    # without an epoch only the weights are drawn; a further call goes on from them
    model.train(max_epochs=0, enable_progress_bar=False, **fixed)
    module = copy.deepcopy(model.module).train()
    model.train(max_epochs=epochs, enable_progress_bar=False, **fixed)
    store = model._training_store(model.adata, seed)
    loader = CellLoader(store, model.train_indices, batch_size, shuffle=True, drop_last=True, seed=seed)
    optimizer = torch.optim.Adam(module.parameters(), lr=LR, eps=EPS, foreach=False, fused=False)
    losses, n_updates = [], 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(epochs):
            total = n_cells = 0.0
            for batch in loader:
                optimizer.param_groups[0]["lr"] = LR * min(1.0, n_updates / WARM_UP)
                n_updates += 1
                optimizer.zero_grad(set_to_none=True)
                loss = module(batch)[2].loss
                loss.backward()
                optimizer.step()
                total += float(loss) * len(batch["X"])
                n_cells += len(batch["X"])
            losses.append(total / n_cells)
    return {"ours": model.history["train_loss"].to_numpy(dtype=float).ravel()[-epochs:].tolist(), "plain": losses}


def write_cells(path: str, n_cells: int, n_vars: int, density: float) -> dict[str, Any]:
    """A file of made-up cells, unless it is there."""
    if not Path(path).exists():
        adata = made_up_cells(n_cells, n_vars, density, n_perturbations=50)
        unfinished = Path(path).with_suffix(".unfinished")
        adata.write_h5ad(unfinished)
        unfinished.replace(path)
    return {"bytes": Path(path).stat().st_size}


def _opened(path: str, where: str) -> ad.AnnData | None:
    """The cells of a file; None where this version cannot read them so."""
    if where == "memory":
        return ad.read_h5ad(path)
    if where == "disk":
        return ad.read_h5ad(path, backed="r")
    import multipert as mp

    return mp.data.read_backed(path) if hasattr(mp.data, "read_backed") else None


def scaling(path: str, where: str, batch_size: int, visit: int) -> dict[str, Any]:
    """Setup and one epoch of MTAe by default: seconds and peak memory above imports and the data as they were opened.

    All cells are set up; where they are more than `visit`, the epoch takes as many neighbours, half of them control.
    """
    import multipert as mp

    small = made_up_cells(200, 50, 0.1)
    _set_up(small).train(max_epochs=1, train_size=1.0, accelerator="cpu", enable_progress_bar=False, seed=0)
    adata = _opened(path, where)
    if adata is None:
        return {"error": "multipert.data.read_backed is not there"}
    n_cells, n_vars = adata.shape
    visited = min(visit, n_cells) if visit else n_cells
    far = np.abs(np.arange(n_cells) - n_cells // 2 + 0.5)
    adata.obs["split"] = np.where(far < visited / 2, "train", "test")
    held = forget_peak()
    start = time.perf_counter()
    mp.model.MTAe.setup_anndata(adata, context_key="context")
    setup = time.perf_counter() - start
    model = mp.model.MTAe(adata)

    def train(n: int) -> float:
        start = time.perf_counter()
        model.train(
            max_epochs=n,
            split_key="split",
            batch_size=batch_size,
            accelerator="cpu",
            enable_progress_bar=False,
            seed=0,
        )
        return time.perf_counter() - start

    call = train(1)
    peak = resident("VmHWM") - held
    if "epoch_seconds" in model.history:
        epoch = float(model.history["epoch_seconds"].to_numpy().sum())
    else:
        epoch = call - train(0)
    n_nonzero = n_cells * round(0.1 * n_vars)
    parameters = sum(p.numel() * p.element_size() for p in model.module.parameters())
    sizes = {"peak": peak, "csr": 8 * n_nonzero + 4 * (n_cells + 1), "parameters": parameters}
    return {"setup": setup, "epoch": epoch, "call": call, "visited": len(model.train_indices), **sizes}


def _set_up(adata: ad.AnnData, **arguments: Any) -> Any:
    import multipert as mp

    mp.model.MTAe.setup_anndata(adata, context_key="context")
    return mp.model.MTAe(adata, **arguments)


def predict_cells(case: dict[str, Any], what: str) -> dict[str, Any]:
    """Cells predicted, or annotated, per second of processor time."""
    model = _model(_key(case), "predict")
    if not model.is_trained:
        model.train(max_epochs=0, split_key="split", accelerator="cpu", enable_progress_bar=False, seed=0)
    start, wall = time.process_time(), time.perf_counter()
    if what.startswith("annotate"):
        model.annotate(latent=what == "annotate")
        n = model.adata.n_obs
    else:
        n = model.predict(perturbation="P0", realise="plain").n_obs
    return {"cells": n, "cpu_seconds": time.process_time() - start, "seconds": time.perf_counter() - wall}


def predict_means(n_targets: int, n_control: int, n_vars: int) -> dict[str, Any]:
    """Means of many targets: seconds, and peak memory above imports and data."""
    import multipert as mp

    adata = made_up_cells(n_control + n_targets, n_vars, 0.1, n_targets, n_control)
    mp.model.MTAe.setup_anndata(adata)
    model = mp.model.MTAe(adata)
    model.train(max_epochs=0, train_size=1.0, accelerator="cpu", enable_progress_bar=False, seed=0)
    held = forget_peak()
    start, wall = time.process_time(), time.perf_counter()
    means = model.predict(returns="mean")
    result = {"cpu_seconds": time.process_time() - start, "seconds": time.perf_counter() - wall}
    return {**result, "cells": means.n_obs * n_control, "targets": means.n_obs, "peak": resident("VmHWM") - held}


def predict_labels(
    model: str, n_perturbations: int, n_control: int = 2000, n_vars: int = 2000, n_targets: int = 40
) -> dict[str, Any]:
    """Cells per second of processor time of a model with so many perturbations: means of some targets, and a layer."""
    trained = _trained(model, n_perturbations, n_control, n_vars)
    targets = [f"P{i}" for i in range(min(n_targets, n_perturbations))]
    start = time.process_time()
    trained.predict(perturbation=targets, returns="mean")
    predicted = time.process_time()
    trained.annotate(latent=False)
    annotated = time.process_time()
    return {
        "counterfactuals": len(targets) * n_control / (predicted - start),
        "annotated": trained.adata.n_obs / (annotated - predicted),
    }


@lru_cache(maxsize=1)
def _trained(model: str, n_perturbations: int, n_control: int, n_vars: int) -> Any:
    """A model that was set up with so many perturbations, as its training begins."""
    import multipert as mp

    adata = made_up_cells(n_control + 2 * n_perturbations, n_vars, 0.1, n_perturbations, n_control)
    cls = getattr(mp.model, model)
    cls.setup_anndata(adata, context_key="context")
    trained = cls(adata)
    trained.train(max_epochs=0, train_size=1.0, accelerator="cpu", enable_progress_bar=False, seed=0)
    # what is compiled, or read from disk, at the first call
    trained.predict(perturbation="P0", returns="mean")
    return trained


def gpu(case: dict[str, Any], variant: str, batch_size: int, epochs: int) -> dict[str, Any]:
    """Training on the GPU: this package, scvi-tools' plan, or one batch that stays there, which waits for no data."""
    if variant != "resident":
        train = scvi_default if variant == "scvi" else ours
        precision = {"precision": "bf16-mixed"} if variant == "ours bf16" else {}
        return train(case, batch_size, epochs, accelerator="gpu", **precision)
    x, codes = (values[:batch_size].cuda() for values in _dense(_key(case)))
    batch = {"X": x, "perturbation": codes, "dose": torch.ones(codes.shape, device="cuda")}
    module = _model(_key(case), "resident").module.cuda().train()
    optimizer = torch.optim.Adam(module.parameters(), lr=LR, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        module(batch)[2].loss.backward()
        optimizer.step()

    for _ in range(20):
        step()
    torch.cuda.synchronize()
    start, n = time.perf_counter(), max(50, epochs * case["visited"] // batch_size)
    for _ in range(n):
        step()
    torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - start, "steps": n, "cells": n * batch_size}
