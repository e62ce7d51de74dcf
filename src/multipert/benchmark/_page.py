"""The results of a benchmark as one HTML page that needs nothing beside itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from multipert._html import bullets, cell, page, pairs, text
from multipert._html import verdict as verdict_box
from multipert.metrics import METRICS
from multipert.metrics._references import REFERENCES

from ._compare import counted_metrics
from ._verdict import verdict

if TYPE_CHECKING:
    from ._results import Results

_ARROWS: Final = {"higher": "↑", "lower": "↓", "nearest": "→"}
_BETTER, _WORSE = "31, 111, 178", "200, 96, 40"
_MAX_SPLITS: Final = 40
_MAX_LISTED: Final = 60


def benchmark_page(results: Results) -> str:
    """Write the page.

    Parameters
    ----------
    results
        The results.

    Returns
    -------
    HTML.
    """
    runs, means = results.runs, results.mean()
    n_models = runs.loc[runs["kind"] == "model", "model"].nunique()
    n_splits, n_seeds = runs["split"].nunique(), runs.loc[runs["kind"] == "model", "seed"].dropna().nunique()
    title = f"Benchmark: {_count(n_models, 'model')} on {_count(n_splits, 'split')}"
    status = runs["status"].value_counts()
    counts = ", ".join(f"{n} {name}" for name, n in status.items())
    body = [
        f"<h1>{text(title)}</h1>",
        f"<p class=soft>{_count(n_seeds, 'seed')}, {_count(_n_groups(results), 'held-out group')} (a perturbation in a "
        f"context), runs: {text(counts)}.</p>",
        verdict_box(*verdict(results)),
    ]
    if len(means):
        counted = counted_metrics(means)
        body += [
            "<h2>Who is above the references</h2>",
            _heat_table(results, counted),
            _how_to_read(counted),
            "<h2>Raw values</h2>",
            _raw_table(means),
            "<details><summary>What the metrics and references mean</summary>",
            pairs({name: METRICS[name].meaning for name in results.scope.metrics}),
            pairs({name: REFERENCES[name] for name in dict.fromkeys(means["model"]) if name in REFERENCES}),
            "</details>",
            "<h2>Each split</h2>",
            _split_table(results, counted),
            "<h2>Against the best reference</h2>",
            _tests(results),
        ]
    body += ["<h2>Time and memory</h2>", _costs(runs), *_problems(runs), "<h2>Settings</h2>", _settings(results)]
    return page(title, body)


def _heat_table(results: Results, counted: list[str]) -> str:
    """Models by metrics, calibrated; references and the ceiling below."""
    board, means = results.leaderboard(), results.mean()
    sd = means.pivot(index="model", columns="metric", values="calibrated_sd")
    head = "".join(map(_heading, counted))
    rows = []
    for is_model in (True, False):
        part = board[(board["kind"] == "model") == is_model]
        for model, row in part.iterrows():
            star = "" if row["is_complete"] else " *"
            cells = [_heat(row["score"], row["score_sd"], strong=True)]
            cells += [_heat(row[name], sd.loc[model, name]) for name in counted]
            rows.append(f"<tr><th>{_name(str(model), is_model)}{star}</th>{''.join(cells)}")
        if is_model and len(part):
            rows.append(f'<tr><td colspan="{len(counted) + 2}"></td>')
    note = "" if board["is_complete"].all() else "<p class=soft>* not scored on every group; see below why.</p>"
    return (
        f"<div class=wide><table><thead><tr><th class=text>model</th>{cell('th', 'score', 'model')}{head}</thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def _how_to_read(counted: list[str]) -> str:
    return (
        "<p class=soft>Every number is calibrated: 0 is the better of <em>no_change</em> and the mean baselines, 1 is the "
        "<em>ceiling</em>, what one half of the observed cells says about the other. Blue is above the baseline, orange "
        "below. ± is the standard deviation over seeds. The score is the mean over the "
        f"{_count(len(counted), 'metric')} shown, each limited to -1 to 1; the others, below with their raw values, cannot "
        "tell the ceiling from the baselines here, or restate another metric. A model that is not above the references has "
        "learnt nothing that they do not know.</p>"
    )


def _raw_table(means: pd.DataFrame) -> str:
    wide = means.pivot(index="model", columns="metric", values="value")
    sd = means.pivot(index="model", columns="metric", values="value_sd")
    metrics = list(dict.fromkeys(means["metric"]))
    kinds = means.drop_duplicates("model").set_index("model")["kind"]
    head = "".join(_heading(name) for name in metrics)
    rows = []
    for model in kinds.index:
        cells = "".join(cell("td", _with_sd(wide.loc[model, name], sd.loc[model, name])) for name in metrics)
        rows.append(f"<tr><th>{_name(model, kinds[model] == 'model')}</th>{cells}")
    return (
        f"<div class=wide><table><thead><tr><th class=text>model</th>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
        "</div><p class=soft>Means over all groups that a predictor was scored on.</p>"
    )


def _split_table(results: Results, counted: list[str]) -> str:
    means = results.mean(per_split=True)
    names = list(dict.fromkeys(means["split"]))
    shown = names[:_MAX_SPLITS]
    clipped = means[means["metric"].isin(counted)].assign(score=lambda rows: rows["calibrated"].clip(-1, 1))
    wide = clipped.pivot_table(index="model", columns="split", values="score", aggfunc="mean")
    kinds = means.drop_duplicates("model").set_index("model")["kind"]
    head = "".join(cell("th", text(str(name))) for name in shown)
    rows = []
    for model in kinds.index:
        values = [wide.loc[model].get(name, np.nan) if model in wide.index else np.nan for name in shown]
        rows.append(f"<tr><th>{_name(model, kinds[model] == 'model')}</th>{''.join(_heat(value) for value in values)}")
    more = f" {len(names) - len(shown)} more are in results.mean(per_split=True)." if len(shown) < len(names) else ""
    return (
        f"<div class=wide><table><thead><tr><th class=text>model</th>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
        f"</div><p class=soft>The score of each split, calibrated with its own ceiling; a dash where it is not defined.{more}</p>"
    )


def _tests(results: Results) -> str:
    if not (results.frame["kind"] == "reference").any():
        return "<p>No reference was scored.</p>"
    tests = results.test()
    metrics = list(dict.fromkeys(tests["metric"]))
    head = "".join(_heading(name) for name in metrics)
    rows = []
    for model, part in tests.groupby("model", sort=False):
        of = part.set_index("metric")
        cells = "".join(_tested(of.loc[name]) for name in metrics)
        rows.append(f"<tr><th>{text(str(model))}</th>{cells}")
    return (
        f"<div class=wide><table><thead><tr><th class=text>model</th>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
        "</div><p class=soft>Groups where the model is better than the best reference of the metric (named when pointed "
        "at), out of all, and the p value of Wilcoxon's signed rank test over groups, each averaged over seeds, adjusted by "
        "Holm over the whole table. Bold: better and p below .05. Groups that share a context or a training are not quite "
        "independent, so p values are rather too small.</p>"
    )


def _tested(row: pd.Series) -> str:
    if not row["n"]:
        return cell("td", "–")
    wins = row["difference"] > 0 and row["p_adjusted"] < 0.05
    value = f"{row['n_better']}/{row['n']}, {_p(row['p_adjusted'])}"
    return f'<td class="{"best" if wins else ""}" title="{text(str(row["baseline"]))}">{value}</td>'


def _costs(runs: pd.DataFrame) -> str:
    known = runs[runs["kind"].isin(["model", "references", "search"])]
    if "seconds" not in known or known["seconds"].isna().all():
        return "<p>No run has ended yet.</p>"
    rows = []
    for (model, kind), part in known.groupby(["model", "kind"], sort=False):
        done = part[part["seconds"].notna()]
        name = f"{model} (search)" if kind == "search" else str(model)
        train = done["seconds_train"].mean() if "seconds_train" in done else np.nan
        values = [
            str(len(done)),
            _number(done["seconds"].mean(), 1),
            _number(train, 1),
            _number(done["seconds"].max(), 1),
            _number(done["peak_memory_mb"].max(), 0),
        ]
        rows.append(f"<tr><th>{text(name)}</th>{''.join(cell('td', value) for value in values)}")
    head = "".join(
        cell("th", name) for name in ("runs", "seconds, mean", "of which training", "seconds, most", "memory, MB")
    )
    return (
        f"<div class=wide><table><thead><tr><th class=text>model</th>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
        "</div><p class=soft>Seconds of reading, training, predicting and scoring; the most memory of a process, of which "
        "the loaded packages take some hundreds of MB. Runs done at once share the machine.</p>"
    )


def _problems(runs: pd.DataFrame) -> list[str]:
    """Failures, skips, groups left out and warnings, each with its reason."""
    parts: list[str] = []
    for status, heading in (("failed", "Failed"), ("skipped", "Skipped"), ("waiting", "Not run yet")):
        part = runs[runs["status"] == status]
        if not len(part):
            continue
        parts.append(f"<h2>{heading}</h2>")
        if status == "waiting":
            parts.append(f"<p>{_count(len(part), 'run')}; the same command goes on with them.</p>")
            continue
        for reason, same in list(part.groupby("reason", sort=False))[:_MAX_LISTED]:
            where = [_where(row) for _, row in same.iterrows()]
            traceback = next((one for one in same.get("traceback", []) if isinstance(one, str) and one), "")
            shown = f"<details><summary>Traceback</summary><pre class=wide>{text(traceback)}</pre></details>"
            parts.append(
                f"<p><strong>{text(_some(where))}</strong>: {text(str(reason))}</p>{shown if traceback else ''}"
            )
    for column, heading in (("dropped", "Groups left out"), ("notes", "Notes")):
        if column not in runs or runs[column].isna().all():
            continue
        items = [
            f"{_some([_where(row) for _, row in same.iterrows()])}: {one}"
            for one, same in runs[runs[column].notna()].groupby(column, sort=False)
        ]
        parts += [f"<h2>{heading}</h2>", bullets(items[:_MAX_LISTED])]
    return parts


def _where(row: pd.Series) -> str:
    kind = " (search)" if row["kind"] == "search" else ""
    seed = "" if pd.isna(row["seed"]) else f", seed {row['seed']}"
    return f"{row['model']}{kind} on {row['split']}{seed}"


def _settings(results: Results) -> str:
    scope, runs = results.scope, results.runs
    items = {
        "cells (digest)": scope.data,
        "metrics": ", ".join(scope.metrics),
        **{name.replace("_", " "): value for name, value in scope.setup.items() if value not in (None, False)},
    }
    models = {}
    if "settings" in runs:
        for model, part in runs[(runs["kind"] == "model") & runs["settings"].notna()].groupby("model", sort=False):
            found = [json.loads(one) for one in part["settings"].unique()]
            values = "; ".join(", ".join(f"{k}={v}" for k, v in one.items()) or "defaults" for one in found)
            models[model] = f"{values} (realise {', '.join(part['realise'].dropna().unique())})"
    devices = ", ".join(runs["device"].dropna().unique()) if "device" in runs else ""
    versions = {name: ", ".join(found) for name, found in results.versions.items()}
    return (
        pairs(items | ({"device": devices} if devices else {}))
        + "<h3>Models</h3>"
        + pairs(models)
        + "<h3>Versions</h3>"
        + pairs({"packages": ", ".join(f"{name} {one}" for name, one in versions.items())})
    )


def _heading(metric: str) -> str:
    one = METRICS[metric]
    return f'<th title="{text(one.meaning)}">{text(metric)} {_ARROWS[one.better]}</th>'


def _name(model: str, is_model: bool) -> str:
    return text(model) if is_model else f"<em>{text(model)}</em>"


def _heat(value: float, sd: float = np.nan, *, strong: bool = False) -> str:
    """A cell coloured by how far it is from 0; legible on light and dark grounds, since the colour is let through."""
    if np.isnan(value):
        return cell("td", "–")
    share = min(abs(value), 1.0)
    style = f"background: rgba({_BETTER if value > 0 else _WORSE}, {0.55 * share:.2f})"
    return cell("td", f"<b>{_with_sd(value, sd, 2)}</b>" if strong else _with_sd(value, sd, 2), style=style)


def _with_sd(value: float, sd: float, digits: int | None = None) -> str:
    shown = _number(value, digits)
    return shown if np.isnan(sd) or shown == "–" else f"{shown} <span class=soft>± {_number(sd, digits)}</span>"


def _number(value: float, digits: int | None = None) -> str:
    if value is None or np.isnan(value):
        return "–"
    if digits is None:
        digits = 3 if abs(value) < 10 else 1
    shown = f"{value:.{digits}f}"
    # a rounded zero has no sign
    return shown.removeprefix("-") if float(shown) == 0 else shown.replace("-", "−")


def _p(value: float) -> str:
    return "–" if np.isnan(value) else "p &lt; .001" if value < 0.001 else f"p = {value:.3f}".replace("0.", ".", 1)


def _some(items: list[str], n: int = 6) -> str:
    return ", ".join(items[:n]) + (f" and {len(items) - n} more" if len(items) > n else "")


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _n_groups(results: Results) -> int:
    return len(results.frame.drop_duplicates(["split", *results.by])) if len(results.frame) else 0
