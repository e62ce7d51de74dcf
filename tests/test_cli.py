"""The command line: whole jobs on a small simulated screen."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from typer.testing import CliRunner

import multipert
from multipert._jobs import _output, _report, _run, _summary
from multipert._jobs._job import Job, Result
from multipert._jobs._preprocess import InputError
from multipert.cli import app
from multipert.datasets import simulate
from multipert.metrics import METRICS, PRESETS

FILES = ["counterfactual.h5ad", "metrics.csv", "report.html"]
HOLD_OUT = "context_2"


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(source: Path, out: Path, *arguments: object):
    return invoke("run", source, "--hold-out", HOLD_OUT, "--out", out, "--max-epochs", 2, *arguments)


@pytest.fixture(scope="module")
def screen() -> ad.AnnData:
    adata = simulate(n_cells=360, n_vars=60, n_contexts=3, n_perturbations=2, seed=5)
    adata.uns.clear()
    adata.obsm.clear()
    return adata


@pytest.fixture(scope="module")
def source(screen, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    screen.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def counts_source(screen, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("counts") / "counts.h5ad"
    ad.AnnData(screen.layers["counts"].copy(), obs=screen.obs, var=screen.var).write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def done(source, tmp_path_factory) -> Path:
    """The result of one run."""
    out = tmp_path_factory.mktemp("done") / "new" / "result"
    result = run(source, out)
    assert result.exit_code == 0, result.output
    assert "pearson_delta" in result.stdout
    assert "MTAe is above" in result.stdout
    return out


def held_out(adata: ad.AnnData) -> np.ndarray:
    return (adata.obs["context"].eq(HOLD_OUT) & adata.obs["perturbation"].ne("control")).to_numpy()


def no_steps(what, *, bar=False):
    return contextlib.nullcontext()


# ---------------------------------------------------------------- results


def test_three_files_and_nothing_else(done):
    assert sorted(path.name for path in done.iterdir()) == FILES
    assert [path.name for path in done.parent.iterdir()] == [done.name]


def test_counterfactual_is_the_control_cells_of_the_context(done, screen):
    predicted = ad.read_h5ad(done / "counterfactual.h5ad")
    control = screen[screen.obs["context"].eq(HOLD_OUT) & screen.obs["perturbation"].eq("control")]
    assert set(predicted.obs["perturbation"]) == {"P1", "P2"}
    assert set(predicted.obs["context"]) == {HOLD_OUT}
    for label in ("P1", "P2"):
        assert list(predicted.obs.loc[predicted.obs["perturbation"] == label, "source_cell"]) == list(control.obs_names)
    assert predicted.var_names.equals(screen.var_names)
    assert np.isfinite(predicted.X).all()
    assert not np.allclose(predicted.X[: control.n_obs], control.X.toarray())
    assert "split" not in predicted.obs
    assert predicted.uns["multipert"]["hold_out"] == HOLD_OUT


def test_metrics_hold_models_references_and_ceiling(done, screen):
    frame = pd.read_csv(done / "metrics.csv")
    assert list(frame) == [
        *("perturbation", "context", "predictor", "metric", "value", "calibrated"),
        *("n_predicted", "n_observed", "n_control", "n_competitors"),
    ]
    predictors = ["MTAe", "NoPerturb", "TwoFactor", "ContextShift", "no_change", "mean_shift", "ceiling"]
    assert list(frame["predictor"].unique()) == predictors
    assert set(frame["metric"]) == {*PRESETS["default"], *PRESETS["thesis-joint"]}
    assert len(frame) == len(frame[["perturbation", "predictor", "metric"]].drop_duplicates())
    n_observed = screen.obs[held_out(screen)]["perturbation"].value_counts()
    mine = frame[frame["predictor"] == "MTAe"]
    assert (mine["n_observed"].to_numpy() == n_observed[mine["perturbation"]].to_numpy()).all()


def test_metrics_are_those_of_the_written_cells(done, screen):
    predicted, test = ad.read_h5ad(done / "counterfactual.h5ad"), held_out(screen)
    control = screen[(screen.obs["context"].eq(HOLD_OUT) & screen.obs["perturbation"].eq("control")).to_numpy()]
    again = multipert.metrics.evaluate(predicted, screen[test], control, training=screen[~test])
    again = again[again["predictor"] == "prediction"].set_index(["perturbation", "metric"])["value"]
    frame = pd.read_csv(done / "metrics.csv")
    mine = frame[frame["predictor"] == "MTAe"].set_index(["perturbation", "metric"])["value"].loc[again.index]
    np.testing.assert_allclose(mine, again, rtol=1e-5)


def test_noperturb_is_no_change(done):
    wide = pd.read_csv(done / "metrics.csv").pivot_table(
        index=["perturbation", "metric"], columns="predictor", values="value"
    )
    np.testing.assert_allclose(wide["NoPerturb"], wide["no_change"], rtol=1e-5)


def test_report_stands_alone_and_shows_what_it_should(done):
    page = (done / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="?(?!#|data:|\w*#)[a-z]+:', page.replace("xlink:href", "href"))
    assert not re.search(r"<script|<link|@import|url\((?!#)", page)
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") == 2 * 4
    assert "#010203" not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for word in ["MTAe is above", "ceiling", "mean_shift", "scvi-tools", "held out", "edistance_ratio_joint", "gene_"]:
        assert word in page


def test_same_seed_same_metrics_byte_for_byte(done, source, tmp_path):
    assert run(source, tmp_path / "again").exit_code == 0
    assert (tmp_path / "again" / "metrics.csv").read_bytes() == (done / "metrics.csv").read_bytes()


def test_other_seed_other_training(done, screen):
    other = _run.execute(Job(HOLD_OUT, max_epochs=2, seed=1), screen.copy(), no_steps).scores
    first = pd.read_csv(done / "metrics.csv")
    assert not np.allclose(*(f.loc[f["predictor"] == "MTAe", "value"] for f in (first, other)), rtol=1e-3)


def test_one_perturbation_leaves_the_other_in_training(screen):
    adata, targets = _run.prepare(Job(HOLD_OUT, perturbation="P2"), screen.copy(), [])
    here = adata.obs["context"].eq(HOLD_OUT)
    assert targets == [(("P2", 1.0),)]
    assert (adata.obs["split"].eq("test") == (here & adata.obs["perturbation"].eq("P2"))).all()


# ---------------------------------------------------------------- preprocessing


def test_raw_counts_are_refused_with_the_remedy(counts_source, tmp_path):
    result = run(counts_source, tmp_path / "out")
    assert result.exit_code == 2
    assert "raw counts" in result.stderr
    assert "--normalise --n-top-genes 5000" in result.stderr
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def by_hand(counts: ad.AnnData, n: int) -> ad.AnnData:
    """What --normalise --n-top-genes does, written with dense arrays."""
    values, train = counts.X.toarray().astype(float), ~held_out(counts)
    totals = values.sum(axis=1)
    logged = np.log1p(values / totals[:, None] * np.median(totals[train]))
    keep = np.sort(np.argsort(-logged[train].var(axis=0))[:n])
    made = ad.AnnData(sparse.csr_matrix(logged[:, keep].astype(np.float32)), counts.obs.copy(), counts.var.iloc[keep])
    made.layers["counts"] = counts.X[:, keep]
    return made


def test_normalise_equals_preprocessing_by_hand(counts_source, tmp_path):
    counts = ad.read_h5ad(counts_source)
    manual = by_hand(counts, 30)
    adata, _ = _run.prepare(Job(HOLD_OUT, normalise=True, n_top_genes=30), counts, [])
    assert list(adata.var_names) == list(manual.var_names)
    np.testing.assert_allclose(adata.X.toarray(), manual.X.toarray(), rtol=1e-6)
    assert (adata.layers["counts"] != manual.layers["counts"]).nnz == 0
    record = adata.uns["multipert"]["preprocessing"]
    totals = np.asarray(ad.read_h5ad(counts_source).X.sum(axis=1)).ravel()
    assert record["target_sum"] == np.median(totals[~held_out(manual)])
    result = run(counts_source, tmp_path / "out", "--normalise", "--n-top-genes", 30)
    assert result.exit_code == 0, result.output
    by_command = pd.read_csv(tmp_path / "out" / "metrics.csv")
    by_python = _run.execute(Job(HOLD_OUT, max_epochs=2), manual, no_steps).scores
    pd.testing.assert_frame_equal(by_command, by_python, rtol=1e-3, check_dtype=False)
    written = ad.read_h5ad(tmp_path / "out" / "counterfactual.h5ad").uns["multipert"]["preprocessing"]
    assert written == record


def test_held_out_cells_choose_no_gene_and_no_size(counts_source):
    job = Job(HOLD_OUT, normalise=True, n_top_genes=20)
    original = ad.read_h5ad(counts_source)
    test = held_out(original)
    plain, _ = _run.prepare(job, original.copy(), [])
    outside = np.flatnonzero(~original.var_names.isin(plain.var_names))[0]

    def with_spikes(rows: np.ndarray) -> ad.AnnData:
        values = original.X.toarray()
        values[rows, outside] += np.where(np.arange(rows.sum()) % 2, 5000, 0)
        return ad.AnnData(sparse.csr_matrix(values), original.obs.copy(), original.var.copy())

    spiked, _ = _run.prepare(job, with_spikes(test), [])
    assert list(spiked.var_names) == list(plain.var_names)
    assert (spiked.X[~test] != plain.X[~test]).nnz == 0
    # the same spike in training cells does choose the gene
    chosen, _ = _run.prepare(job, with_spikes(~test), [])
    assert original.var_names[outside] in chosen.var_names


def test_counts_layer_serves_normalise_and_realise(source, tmp_path):
    result = run(source, tmp_path / "a", "--normalise", "--layer", "counts", "--realise", "counts")
    assert result.exit_code == 0, result.output
    predicted = ad.read_h5ad(tmp_path / "a" / "counterfactual.h5ad")
    counts = predicted.layers["counts"]
    assert (counts == np.rint(counts)).all()
    refused = run(source, tmp_path / "b", "--normalise")
    assert refused.exit_code == 2
    assert "--normalise needs raw counts" in refused.stderr


# ---------------------------------------------------------------- interruption


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def write_new(path: Path) -> None:
    path.write_text("new")


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("where", ["half-way", "move"])
def test_interrupted_writing_leaves_things_as_they_were(tmp_path, monkeypatch, existing, where):
    def half(path: Path) -> None:
        path.write_text("ne")
        raise KeyboardInterrupt

    out = tmp_path / "out"
    if existing:
        out.mkdir()
        (out / "metrics.csv").write_text("old")
    if where == "move":
        monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _output.write(out, {"metrics.csv": write_new, "report.html": half if where == "half-way" else write_new})
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if existing else [])
    if existing:
        assert [(path.name, path.read_text()) for path in out.iterdir()] == [("metrics.csv", "old")]


def test_writing_replaces_its_own_files_only(tmp_path):
    for name in ("mine.txt", "metrics.csv"):
        (tmp_path / name).write_text("old")
    _output.write(tmp_path, {"metrics.csv": write_new, "report.html": write_new})
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {"mine.txt": "old", "metrics.csv": "new", "report.html": "new"}


def test_interrupted_report_writes_nothing(source, tmp_path, monkeypatch):
    monkeypatch.setattr(_report, "report", interrupt)
    result = run(source, tmp_path / "out", "--model", "NoPerturb")
    assert result.exit_code == 130
    assert "Interrupted; nothing was written." in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_interrupted_training_is_no_traceback(source, tmp_path, monkeypatch):
    monkeypatch.setattr(_run, "_train", interrupt)
    result = run(source, tmp_path / "out")
    assert result.exit_code == 130
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hold-out", "context_9"], "'context_9' is not a context .*did you mean.*context_1"),
        (["--model", "MTAE"], "--model 'MTAE' is unknown; did you mean 'MTAe'"),
        (["--model", "PerturbationModel"], "--model 'PerturbationModel' is unknown"),
        (["--perturbation", "P3"], "'P3' has no cells in context 'context_2'; known: 'P1', 'P2'"),
        (["--perturbation", "control"], "is the control label"),
        (["--perturbation-key", "drug"], "perturbation_key='drug' is not a column of obs"),
        (["--context-key", "cell_type"], "context_key='cell_type' is not a column of obs"),
        (["--control", "ctrl"], "No control cell.*'ctrl'.*Labels seen"),
        (["--layer", "logged"], "'logged' is not in layers"),
        (["--layer", "logged", "--normalise"], "'logged' is not in layers"),
        (["--preset", "defualt"], "preset='defualt' is unknown; did you mean 'default'"),
        (["--preset", "default", "--model", "NoPerturb"], "NoPerturb has no presets"),
        (["--realise", "counts", "--signed"], "signed"),
    ],
)
def test_bad_options(source, tmp_path, arguments, message):
    result = run(source, tmp_path / "out", *arguments)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert re.search(message, line)
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_bad_choice_of_realise(source, tmp_path):
    result = run(source, tmp_path / "out", "--realise", "plane")
    assert result.exit_code == 2
    assert "residual" in result.stderr
    assert list(tmp_path.iterdir()) == []


def changed(screen, tmp_path, change) -> Path:
    adata = screen.copy()
    adata.obs = adata.obs.astype(str)
    adata = change(adata)
    adata.write_h5ad(tmp_path / "changed.h5ad")
    return tmp_path / "changed.h5ad"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: a[~(a.obs["context"].eq(HOLD_OUT) & a.obs["perturbation"].eq("control"))].copy(),
            "'context_2' has .* no control cell",
        ),
        (
            lambda a: a[~(a.obs["context"].eq(HOLD_OUT) & a.obs["perturbation"].ne("control"))].copy(),
            "'context_2' has control cells only",
        ),
        (
            lambda a: a[a.obs["context"].eq(HOLD_OUT) | a.obs["perturbation"].eq("control")].copy(),
            r"2 perturbation\(s\) .* no cells in the other contexts .*unseen_perturbations",
        ),
    ],
)
def test_contexts_that_cannot_be_held_out(screen, tmp_path, change, message):
    path = changed(screen, tmp_path, change)
    result = run(path, tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert re.search(message, result.stderr)
    assert not (tmp_path / "out").exists()


def test_tag_that_excludes_the_data_is_named(screen, tmp_path):
    def combine(adata):
        adata.obs.loc[adata.obs["perturbation"] == "P2", "perturbation"] = "P1+P2"
        return adata

    path = changed(screen, tmp_path, combine)
    result = run(path, tmp_path / "out", "--model", "ContextShift")
    assert result.exit_code == 2
    assert "tag combinations is False" in result.stderr
    job = Job(HOLD_OUT, model="ContextShift", delimiter=None)
    assert set(_run.execute(job, ad.read_h5ad(path), no_steps).scores["perturbation"]) == {"P1", "P1+P2"}


def test_reference_that_cannot_predict_is_left_out_with_a_note(screen):
    """A model that can predict what a closed-form model cannot still gets its table."""
    adata = screen.copy()
    only_here = adata.obs["perturbation"].eq("P2") & adata.obs["context"].ne(HOLD_OUT)
    adata = adata[~only_here].copy()
    result = _run.execute(Job(HOLD_OUT, model="NoPerturb", perturbation="P2"), adata, no_steps)
    assert list(result.scores["predictor"].unique()) == ["NoPerturb", "no_change", "mean_shift", "ceiling"]
    assert [note.split()[0] for note in result.notes if "is left out" in note] == ["TwoFactor", "ContextShift"]


def test_unpredictable_perturbation_is_held_out_and_noted(screen):
    only_here = screen.obs["perturbation"].eq("P2") & screen.obs["context"].ne(HOLD_OUT)
    result = _run.execute(Job(HOLD_OUT, model="TwoFactor"), screen[~only_here].copy(), no_steps)
    assert set(result.scores["perturbation"]) == {"P1"}
    assert any("P2" in note and "not predicted" in note for note in result.notes)
    test = result.adata.obs["split"].eq("test")
    assert set(result.adata.obs.loc[test, "perturbation"]) == {"P1", "P2"}


def test_files_that_are_no_anndata(tmp_path):
    import h5py

    text, foreign = tmp_path / "text.h5ad", tmp_path / "foreign.h5ad"
    text.write_text("no cells")
    with h5py.File(foreign, "w") as file:
        file["numbers"] = [1, 2]
    for path, message in [
        (tmp_path / "absent.h5ad", "does not exist"),
        (tmp_path, "is a folder"),
        (text, "not HDF5"),
        (foreign, "cannot be read as an AnnData"),
    ]:
        result = run(path, tmp_path / "out")
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_written(source, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "taken" / "metrics.csv").mkdir(parents=True)
    for out, message in [
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "below", "is a file"),
        (tmp_path / "taken", "is a folder"),
    ]:
        result = run(source, out)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_folder_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(_output.os, "access", lambda *args: False)
    with pytest.raises(InputError, match="not writable"):
        _output.check_folder(tmp_path / "out")


def test_the_input_is_never_replaced(screen, tmp_path):
    path = tmp_path / "counterfactual.h5ad"
    screen.write_h5ad(path)
    before = path.read_bytes()
    result = run(path, tmp_path)
    assert result.exit_code == 2
    assert "would replace" in result.stderr
    assert path.read_bytes() == before


# ---------------------------------------------------------------- summary


def scores(**by_predictor: dict[str, float]) -> pd.DataFrame:
    records = [
        ("P", "c", predictor, metric, value, 1, 1, 1)
        for predictor, values in by_predictor.items()
        for metric, value in values.items()
    ]
    columns = ["perturbation", "context", "predictor", "metric", "value", "n_predicted", "n_observed", "n_control"]
    return pd.DataFrame.from_records(records, columns=columns)


def verdict_of(**by_predictor: dict[str, float]) -> tuple[str, list[str]]:
    frame = scores(**{name: dict(zip(_summary.MEASURES, values, strict=True)) for name, values in by_predictor.items()})
    result = Result(Job("c"), *[None] * 4, frame, {})
    return _summary.verdict(result)


@pytest.mark.parametrize(
    ("mine", "sentence"),
    [
        ((0.9, 0.1, 60), "above every reference on all 3"),
        ((0.9, 0.3, 60), "above every reference on 2 of 3"),
        ((0.7, 0.3, 40), "none of 3"),
        ((0.8, 0.2, 50), "none of 3"),
        ((np.nan, 0.3, 40), "none of 3"),
    ],
)
def test_verdict_follows_the_numbers(mine, sentence):
    # the ceiling is no rival, lower is better for the distance, a tie is no win
    rivals = {"no_change": (np.nan, 1.0, 0), "mean_shift": (0.8, 0.2, 50), "ceiling": (0.99, 0.01, 99)}
    found, lines = verdict_of(MTAe=mine, **rivals)
    assert sentence in found
    assert len(lines) == 3
    assert all("mean_shift" in line and "no_change" not in line for line in lines)


def test_every_metric_is_explained_and_its_direction_right(screen):
    """The observed cells themselves are better than the control cells, constant cells worse in their variance."""
    assert {*METRICS, *_summary.TRUTH} == set(_summary.MEANING)
    reported = list(dict.fromkeys([*_summary.DEFAULT, *_summary.JOINT]))
    test = held_out(screen)
    control = screen[(screen.obs["context"].eq(HOLD_OUT) & screen.obs["perturbation"].eq("control")).to_numpy()]
    frame = multipert.metrics.evaluate(screen[test], screen[test], control, metrics=reported, training=screen[~test])
    wide = _summary.table(frame, reported)
    for metric in set(reported) - {"low_variance_share"}:
        assert _summary.is_better(metric, wide.loc[metric, "prediction"], wide.loc[metric, "no_change"]), metric
    constant = screen[test].copy()
    constant.X = np.ones(constant.shape, dtype=np.float32)
    share = multipert.metrics.evaluate(
        constant, screen[test], control, metrics=["low_variance_share"], training=screen[~test]
    )
    worse = _summary.table(share, ["low_variance_share"]).loc["low_variance_share", "prediction"]
    assert _summary.is_better("low_variance_share", wide.loc["low_variance_share", "prediction"], worse)


# ---------------------------------------------------------------- demo and entry


def test_demo_compares_with_the_truth(tmp_path, monkeypatch):
    small = simulate(n_cells=360, n_vars=60, n_contexts=3, n_perturbations=2, seed=5)
    monkeypatch.setattr(multipert.datasets, "screen", lambda name: small)
    original = Job.__init__

    def short(self, **kwargs):
        original(self, **kwargs, max_epochs=2)

    monkeypatch.setattr(Job, "__init__", short)
    result = invoke("demo", "--out", tmp_path / "out", "--seed", 3)
    assert result.exit_code == 0, result.output
    frame = pd.read_csv(tmp_path / "out" / "metrics.csv")
    wide = _summary.table(frame, _summary.TRUTH)
    assert list(wide.dropna(axis=1, how="all")) == ["MTAe", "NoPerturb", "TwoFactor", "ContextShift", "observed"]
    # 30 cells measured under the perturbation are nearer to the truth than control cells are
    assert wide.loc["rmse_to_truth", "observed"] < wide.loc["rmse_to_truth", "NoPerturb"]
    assert wide.loc["pearson_delta_to_truth", "observed"] > 0.5
    assert np.isnan(wide.loc["pearson_delta_to_truth", "NoPerturb"])
    assert "Against the truth" in (tmp_path / "out" / "report.html").read_text()


def test_version_and_help():
    assert invoke("--version").stdout == f"multipert {multipert.__version__}\n"
    helped = invoke("run", "--help")
    assert helped.exit_code == 0
    assert "hold-out" in helped.stdout


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from typer.testing import CliRunner; from multipert.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print(sorted({'anndata', 'numpy', 'pandas', 'scanpy', 'scvi', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
