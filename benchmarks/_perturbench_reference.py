"""The networks of altoslabs/perturbench from a checkout, without its data modules and configuration."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from multipert.nn._perceptron import PerceptronVariant


class Base(nn.Module):
    """In place of the reference's base class, which needs its data modules to know the sizes."""

    n_genes: int
    n_perts: int
    n_input_features: int

    def __init__(self, datamodule: Any = None, **_: Any) -> None:
        super().__init__()
        self.n_genes, self.n_perts, self.n_input_features = datamodule.sizes

    def save_hyperparameters(self, **_: Any) -> None:
        """Nothing is saved."""


def reference_class(folder: str | None, module: str, name: str) -> type | None:
    """A model of the reference, or None where it is not there."""
    if folder is None:
        return None
    root = Path(folder) / "src" / "perturbench"
    if not (root / "modelcore" / "models" / f"{module}.py").exists():
        return None
    # the packages' own __init__ would import everything that the reference needs elsewhere
    for package in ("", ".modelcore", ".modelcore.models", ".modelcore.nn", ".data"):
        made = ModuleType(f"perturbench{package}")
        made.__path__ = [str(root.joinpath(*package.split(".")))]
        sys.modules[made.__name__] = made
    for full, contents in (
        ("perturbench.modelcore.models.base", {"PerturbationModel": Base}),
        ("perturbench.data.types", {"Batch": object}),
    ):
        stub = ModuleType(full)
        vars(stub).update(contents)
        sys.modules[full] = stub
    return getattr(importlib.import_module(f"perturbench.modelcore.models.{module}"), name)


def datamodule(n_genes: int, n_perturbations: int, n_cell: int, covariates: tuple[int, ...]) -> SimpleNamespace:
    """What the reference asks of a data module."""
    uniques = {f"covariate_{i}": list(range(size)) for i, size in enumerate(covariates)}
    return SimpleNamespace(sizes=(n_genes, n_perturbations, n_cell), train_context={"covariate_uniques": uniques})


def variant_of(network: nn.Module, n_layers: int) -> PerceptronVariant:
    """Which of the two perceptrons a checkout has."""
    n_linear = sum(isinstance(part, nn.Linear) for part in network.modules())
    return "linear_first" if n_linear == n_layers + 2 else "standard"


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Weights in the order in which both define their layers."""
    theirs, own = source.state_dict(), target.state_dict()
    if [value.shape for value in theirs.values()] != [value.shape for value in own.values()]:
        raise ValueError("The two networks do not have the same layers.")
    target.load_state_dict(dict(zip(own, theirs.values(), strict=True)))


def labels(n_cells: int, n_vars: int, n_perturbations: int, covariates: tuple[int, ...]) -> tuple[dict, Any, dict]:
    """A batch of random cells and labels of no, one or two parts: ours, the multi-hot, and one-hot covariates."""
    parts = torch.stack([torch.randperm(n_perturbations)[:2] for _ in range(n_cells)])
    present = torch.arange(2) < torch.randint(0, 3, (n_cells, 1))
    codes = torch.where(present, parts, -1)
    x = torch.rand(n_cells, n_vars, dtype=torch.float64) * 4
    values = torch.stack([torch.randint(size, (n_cells,)) for size in covariates], dim=1)
    tensors = {"X": x, "perturbation": codes, "dose": present.double(), "context": values[:, :1]}
    tensors["extra_categorical_covs"] = values[:, 1:]
    hot = torch.zeros(n_cells, n_perturbations, dtype=torch.float64)
    hot.scatter_(1, parts, present.double())
    one_hot = {
        f"covariate_{i}": nn.functional.one_hot(values[:, i], size).double() for i, size in enumerate(covariates)
    }
    return tensors, hot, one_hot


def largest(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """The largest difference of any pair."""
    return max(float((one - other).abs().max()) for one, other in pairs)
