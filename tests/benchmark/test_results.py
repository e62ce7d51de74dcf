"""Means, tests, the verdict and the page, from frames whose answers are known."""

import re
import subprocess
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from multipert.benchmark import ModelSpec, Results, _compare, run
from multipert.benchmark._page import benchmark_page
from multipert.benchmark._task import Scope
from multipert.benchmark._verdict import verdict

METRIC = "pearson_delta"
REFERENCES = {"no_change": 0.1, "mean_shift": 0.5, "ceiling": 0.9}


def made(models, n_groups=8, n_splits=2, metric=METRIC, references=REFERENCES, noise=0.0) -> Results:
    """Results of models given as lists of one value per seed."""
    rng = np.random.default_rng(0)
    rows = []
    for split in range(n_splits):
        for group in range(n_groups):
            base = noise * rng.normal()
            place = {"split": f"s{split}", "perturbation": f"p{group}", "context": f"s{split}", "metric": metric}
            for name, value in references.items():
                kind = "ceiling" if name == "ceiling" else "reference"
                rows.append({"model": name, "kind": kind, "seed": None, "value": value + base, **place})
            for name, values in models.items():
                for seed, value in enumerate(values):
                    rows.append({"model": name, "kind": "model", "seed": seed, "value": value + base, **place})
    frame = pd.DataFrame(rows).assign(n_predicted=10, n_observed=10, n_control=10)
    frame["seed"] = frame["seed"].astype("Int64")
    scope = Scope("digest", {"context_key": "context"}, [metric], "1")
    runs = pd.DataFrame({"model": list(models), "kind": "model", "split": "s0", "seed": 0, "status": "done"})
    return Results(frame, runs.assign(data="digest", metrics=metric, version="1", reason=None), scope, {})


def test_means_are_over_groups_then_seeds():
    means = made({"A": [0.6, 0.8]}).mean().set_index("model")
    assert means.loc["A", "value"] == pytest.approx(0.7)
    assert means.loc["A", "value_sd"] == pytest.approx(np.std([0.6, 0.8], ddof=1))
    # 0 is the better baseline, 1 the ceiling
    assert means.loc["A", "calibrated"] == pytest.approx((0.7 - 0.5) / 0.4)
    assert means.loc["no_change", "calibrated"] == pytest.approx(-1)
    assert means.loc["mean_shift", "calibrated"] == pytest.approx(0)
    assert np.isnan(means.loc["mean_shift", "value_sd"])
    assert means.loc["A", ["n_groups", "n_seeds"]].tolist() == [16, 2]


def test_lower_is_better_where_the_metric_says_so():
    references = {"no_change": 0.9, "mean_shift": 0.5, "ceiling": 0.1}
    means = made({"A": [0.2]}, metric="rmse", references=references).mean().set_index("model")
    assert means.loc["A", "calibrated"] == pytest.approx(0.75)


def test_means_per_split_and_incomplete_models():
    results = made({"A": [0.6], "B": [0.7]})
    lacking = (results.frame["model"] == "B") & (results.frame["split"] == "s1")
    part = replace(results, frame=results.frame[~lacking])
    per_split = part.mean(per_split=True).set_index(["model", "split"])
    assert per_split.loc[("B", "s0"), "is_complete"]
    assert ("B", "s1") not in per_split.index
    board = part.leaderboard()
    assert not board.loc["B", "is_complete"]
    sentence, _ = verdict(part)
    assert sentence.startswith("A has the highest score of 1 model(s)")


def test_scores_on_different_cells_are_not_averaged():
    results = made({"A": [0.6], "B": [0.6]})
    mixed = replace(results, runs=results.runs.assign(data=["digest", "other"]))
    for method in (mixed.mean, mixed.leaderboard, mixed.test, mixed.plot):
        with pytest.raises(ValueError, match="2 different values of data"):
            method()


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        ({"A": [0.7], "B": [0.6]}, "A has the highest score of 2 model\\(s\\), 0.50, above .* mean_shift \\(0.00\\)"),
        ({"A": [0.4], "B": [0.3]}, "No model beats mean_shift \\(0.00\\): the best, A, reaches -0.25"),
        ({"A": [0.5]}, "No model beats mean_shift \\(0.00\\): the best, A, equals it"),
        ({"A": [0.7, 0.74]}, "A has the highest score .* 0.55 ± 0.07 over seeds"),
    ],
)
def test_verdict_follows_the_numbers(models, sentence):
    assert re.search(sentence, verdict(made(models))[0])


def test_no_verdict_where_the_ceiling_is_no_better_than_the_baselines():
    sentence, _ = verdict(made({"A": [0.9]}, references={"no_change": 0.1, "mean_shift": 0.9, "ceiling": 0.89}))
    assert sentence.startswith("No verdict")


def test_verdict_names_what_is_lacking():
    results = made({"A": [0.7], "B": [0.6]})
    failed = replace(results, runs=results.runs.assign(status=["done", "failed"]))
    assert any("1 run(s) failed (B)" in line for line in verdict(failed)[1])


def test_paired_test_is_scipys_over_groups():
    results = made({"A": [0.6, 0.7]}, n_groups=10)
    rng = np.random.default_rng(1)
    frame = results.frame.copy()
    frame["value"] += 0.1 * rng.normal(size=len(frame))
    results = replace(results, frame=frame)
    keys = ["split", "perturbation"]
    units = frame.groupby([*keys, "model"])["value"].mean().unstack()
    gain = units["A"] - units["mean_shift"]
    for test, expected in (("wilcoxon", stats.wilcoxon(gain)), ("t", stats.ttest_1samp(gain, 0))):
        (row,) = results.test(test=test).to_dict("records")
        assert row["baseline"] == "mean_shift"
        assert row["n"] == 20
        assert row["n_better"] == (gain > 0).sum()
        assert row["difference"] == pytest.approx(gain.mean())
        assert row["p"] == pytest.approx(expected.pvalue)
    (other,) = results.test("no_change").to_dict("records")
    assert other["difference"] == pytest.approx((units["A"] - units["no_change"]).mean())
    with pytest.raises(ValueError, match="baseline='no_chnge' was not scored; did you mean 'no_change'"):
        results.test("no_chnge")
    with pytest.raises(ValueError, match="test='sign' is unknown"):
        results.test(test="sign")


def test_equal_but_for_rounding_is_a_tie():
    (row,) = made({"A": [0.5 + 1e-9]}).test().to_dict("records")
    assert (row["n_better"], row["difference"], row["p"]) == (0, 0.0, 1.0)


def test_adjusted_p_values():
    p = np.array([0.01, np.nan, 0.04, 0.03])
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="compares with statsmodels")
    for ours, theirs in (("holm", "holm"), ("bh", "fdr_bh")):
        found = _compare.adjusted(p, ours)
        assert np.isnan(found[1])
        np.testing.assert_allclose(found[[0, 2, 3]], multitest.multipletests(p[[0, 2, 3]], method=theirs)[1])


def test_plot_has_a_row_for_every_model_and_reference():
    ax = made({"A": [0.6, 0.7]}).plot()
    assert {label.get_text() for label in ax.get_yticklabels()} == {"A", *REFERENCES}
    plt.close(ax.figure)


def test_page_of_a_grid(screen, tmp_path, inline, toys):
    results = run(
        screen, [toys.Raises, toys.NeedsEmbedding, "TwoFactor", ModelSpec("NoPerturb", "<b>none</b>")],
        out=tmp_path / "out", metrics=["rmse", "pearson_delta", "edistance"], seeds=(0, 1),
    )  # fmt: skip
    path = results.report(tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|@import|url\(|(?:src|href)=", page)
    assert "prefers-color-scheme: dark" in page
    assert "<b>none</b>" not in page
    assert "&lt;b&gt;none&lt;/b&gt;" in page
    for word in (
        "mean_shift",
        "ceiling",
        "the toy cannot add",
        "tag needs_embedding",
        "scvi-tools",
        "context_2",
        "Holm",
    ):
        assert word in page
    # the verdict comes before every table
    assert page.index("class=verdict") < page.index("<table")
    sentence, _ = verdict(results)
    assert sentence in page
    results.to_csv(tmp_path / "scores.csv")
    again = pd.read_csv(tmp_path / "scores.csv", float_precision="round_trip")
    np.testing.assert_array_equal(again["value"], results.frame["value"])
    assert [one.name for one in tmp_path.iterdir() if one.name.endswith("tmp")] == []


def test_page_before_anything_is_scored():
    results = made({"A": [0.6]})
    empty = replace(results, frame=results.frame.iloc[:0], runs=results.runs.assign(status="waiting"))
    page = benchmark_page(empty)
    assert "Nothing has been scored yet" in page
    assert "Not run yet" in page


def test_importing_the_package_loads_no_benchmark():
    code = "import multipert, sys; print('torch' in sys.modules, 'optuna' in sys.modules, 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False False\n"
