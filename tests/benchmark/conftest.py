"""A small screen, models that misbehave, and runs in this process where a process of their own is not the point."""

import contextlib
import importlib
import textwrap
from pathlib import Path

import pytest
from anndata import AnnData

from multipert.benchmark import _run
from multipert.benchmark._slots import Ending
from multipert.benchmark._work import do
from multipert.datasets import simulate

TOYS = """
import os, signal, sys, time
import torch
from multipert.model import ModelTags, NoPerturb, PerturbationModel
from multipert.model._baselines import IdentityModule
from dataclasses import replace


class Raises(NoPerturb):
    def train(self, *args, **kwargs):
        raise ArithmeticError("the toy cannot add")


class Dies(NoPerturb):
    def train(self, *args, **kwargs):
        print("last words", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


class Exits(NoPerturb):
    def train(self, *args, **kwargs):
        sys.exit(0)


class Hangs(NoPerturb):
    def train(self, *args, **kwargs):
        time.sleep(300)


class Refuses(NoPerturb):
    def _check_target(self, condition):
        raise ValueError("the toy predicts nothing")


class NeedsEmbedding(NoPerturb):
    tags = replace(NoPerturb.tags, needs_embedding=True)


class SeesOnly(NoPerturb):
    tags = replace(NoPerturb.tags, unseen_perturbations=False)


class NoCombinations(NoPerturb):
    tags = replace(NoPerturb.tags, combinations=False, unseen_perturbations=False)


class NoDoses(NoPerturb):
    tags = replace(NoPerturb.tags, doses=False)


class NeedsTable(NoPerturb):
    tags = replace(NoPerturb.tags, unseen_needs_embedding=True)


class Scaling(IdentityModule):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def counterfactual(self, tensors, z=None):
        return super().counterfactual(tensors) * self.factor


class Scaled(PerturbationModel):
    tags = NoPerturb.tags
    stages = ()
    search_space = {"factor": ("float", 0.5, 1.5), "power": ("choice", ((1, 2), (0,)))}

    def __init__(self, adata=None, registry=None, *, factor=1.0, power=(0,)):
        super().__init__(adata, registry)
        self.factor, self.power = factor, power
        self._start_module()
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self):
        if self.factor > 1.4:
            raise ValueError("too large for the toy")
        return Scaling(self.factor)
"""


@pytest.fixture(scope="session")
def screen() -> AnnData:
    adata = simulate(n_cells=360, n_vars=60, n_contexts=3, n_perturbations=2, seed=5)
    adata.uns.clear()
    adata.obsm.clear()
    return adata


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """A module that another process can import."""
    folder = tmp_path / "modules"
    folder.mkdir()
    name = f"toy_models_{abs(hash(str(tmp_path)))}"
    (folder / f"{name}.py").write_text(textwrap.dedent(TOYS))
    monkeypatch.syspath_prepend(folder)
    return importlib.import_module(name)


class InlineSlot:
    """Does runs in this process and keeps count of them."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def do(self, run_id: str, timeout: float | None) -> Ending:
        self.done.append(run_id)
        do(Path(self.root), run_id)
        return Ending(0)

    def kill(self) -> None:
        pass


@pytest.fixture
def inline(monkeypatch) -> InlineSlot:
    """Runs in this process, which has loaded the models already."""
    slot = InlineSlot()

    @contextlib.contextmanager
    def slots(executor, root, n, threads):
        slot.root = root
        yield [slot]

    monkeypatch.setattr(_run, "slots", slots)
    return slot
