"""`multipert benchmark` and `multipert report`, with the runs done in this process."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from multipert.benchmark import Results, _carryout, _run
from multipert.benchmark._slots import Ending
from multipert.benchmark._work import do
from multipert.cli import app
from multipert.datasets import simulate


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def inline(monkeypatch) -> list[str]:
    """Runs in this process; the ids of what was run."""
    done: list[str] = []

    class Inline:
        def do(self, run_id, timeout):
            done.append(run_id)
            do(self.root, run_id)
            return Ending(0)

        def kill(self): ...

    @contextlib.contextmanager
    def slots(executor, root, n, threads):
        slot = Inline()
        slot.root = Path(root)
        yield [slot]

    monkeypatch.setattr(_run, "slots", slots)
    return done


@pytest.fixture(scope="module")
def screen():
    adata = simulate(n_cells=360, n_vars=60, n_contexts=3, n_perturbations=2, seed=5)
    adata.uns.clear()
    adata.obsm.clear()
    return adata


@pytest.fixture(scope="module")
def source(screen, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    screen.write_h5ad(path)
    return path


def bench(source: Path, out: Path, *arguments: object):
    return invoke("benchmark", source, "--models", "NoPerturb,TwoFactor", "--out", out, *arguments)


def test_the_command_of_the_documentation(source, tmp_path, inline):
    out = tmp_path / "out"
    result = bench(source, out, "--split", "context", "--seeds", 1, 2, 3)
    assert result.exit_code == 0, result.output
    results = Results.load(out)
    models = results.runs[results.runs["kind"] == "model"]
    assert set(models["seed"]) == {1, 2, 3}
    assert set(models["split"]) == {"context_1", "context_2", "context_3"}
    assert set(models["status"]) == {"done"}
    assert len(inline) == 3 * (1 + 2 * 3)
    assert "No model beats" in result.stdout or "has the highest score" in result.stdout
    scores = pd.read_csv(out / "scores.csv", float_precision="round_trip")
    np.testing.assert_array_equal(scores["value"], results.frame["value"])
    assert "has the highest score" in (out / "report.html").read_text() or "No model beats" in result.stdout
    # again, nothing is run, and the page is the same
    page = (out / "report.html").read_bytes()
    n_done = len(inline)
    assert bench(source, out, "--seeds", "1,2,3").exit_code == 0
    assert len(inline) == n_done
    assert (out / "report.html").read_bytes() == page


@pytest.mark.parametrize("seeds", [["4"], ["4", "5"], ["4,5"], ["4", "--seeds", "5"]])
def test_ways_to_name_seeds(source, tmp_path, seeds):
    result = invoke("benchmark", "--models", "NoPerturb", "--seeds", *seeds, source, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert set(Results.load(tmp_path / "out").frame["seed"].dropna()) == {
        int(one) for one in "".join(seeds) if one in "45"
    }


def test_a_failure_is_exit_code_1_with_the_page_there(source, tmp_path, monkeypatch):
    from multipert.model import TwoFactor

    def train(self, *args, **kwargs):
        raise ArithmeticError("cannot add")

    monkeypatch.setattr(TwoFactor, "train", train)
    result = bench(source, tmp_path / "out")
    assert result.exit_code == 1
    assert "Failed: TwoFactor on context_1, seed 0: ArithmeticError: cannot add" in result.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert "cannot add" in page
    monkeypatch.undo()
    (tmp_path / "out" / "report.html").unlink()
    result = invoke("report", tmp_path / "out")
    assert result.exit_code == 1
    assert (tmp_path / "out" / "report.html").read_text() == page


def test_counts_are_normalised_on_cells_that_always_train(screen, tmp_path, inline):
    counts = screen.copy()
    counts.X, counts.layers = counts.layers["counts"], {}
    counts.obs["half"] = np.where(np.arange(counts.n_obs) % 2, "train", "test")
    control = counts.obs["perturbation"] == "control"
    counts.obs.loc[control, "half"] = "train"
    counts.write_h5ad(tmp_path / "counts.h5ad")
    refused = bench(tmp_path / "counts.h5ad", tmp_path / "a", "--split", "half")
    assert refused.exit_code == 2
    assert "--normalise --n-top-genes 5000" in refused.stderr
    options = ("--split", "half", "--normalise", "--n-top-genes", 30, "--realise", "plain")
    assert bench(tmp_path / "counts.h5ad", tmp_path / "b", *options).exit_code == 0
    import anndata

    made = anndata.read_h5ad(tmp_path / "b" / "data.h5ad")
    train = (counts.obs["half"] == "train").to_numpy()
    totals = np.asarray(counts.X.sum(axis=1)).ravel()
    expected = np.log1p(counts.X.toarray() / totals[:, None] * np.median(totals[train]))
    keep = np.sort(np.argsort(-expected[train].var(axis=0))[:30])
    assert list(made.var_names) == list(counts.var_names[keep])
    np.testing.assert_allclose(made.X.toarray(), expected[:, keep], rtol=1e-5)


def test_interruption_says_how_to_go_on(source, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(_carryout, "_settle", interrupt)
    result = bench(source, tmp_path / "out")
    assert result.exit_code == 130
    assert "the same command goes on with the rest" in result.stderr
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "MTAE"], "no model 'MTAE'; did you mean 'MTAe'"),
        (["--split", "halves"], "neither 'context' nor a column of obs"),
        (["--metrics", "defualt"], "did you mean 'default'"),
        (["--context-key", "cell_type"], "'cell_type' is not a column of obs"),
        (["--search", "3"], "Pass val_size=0.1"),
        (["--seeds", "1", "1"], "must be different numbers"),
        (["--layer", "logged"], "'logged' is not in layers"),
    ],
)
def test_bad_options(source, tmp_path, arguments, message, inline):
    result = bench(source, tmp_path / "out", *arguments)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert message in line
    assert "Traceback" not in result.output
    assert inline == []
    assert list(tmp_path.iterdir()) == []


def test_no_file_and_no_folder(tmp_path):
    assert "does not exist" in invoke("benchmark", tmp_path / "no.h5ad", "--out", tmp_path / "out").stderr
    result = invoke("report", tmp_path)
    assert result.exit_code == 2
    assert "holds no benchmark" in result.stderr


def test_record_names_the_realisation(source, tmp_path):
    bench(source, tmp_path / "out", "--realise", "plain")
    records = [json.loads(path.read_text()) for path in (tmp_path / "out" / "runs").iterdir()]
    assert {one["task"]["realise"] for one in records if one["task"]["kind"] == "model"} == {"plain"}
