"""The report of a job: one HTML page that needs nothing beside itself."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import pandas as pd

from multipert import _keys
from multipert._html import bullets, cell, page, pairs, text
from multipert._html import verdict as verdict_box
from multipert._jobs import _figures
from multipert._jobs._summary import (
    DEFAULT,
    JOINT,
    LOWER_IS_BETTER,
    MEANING,
    MEASURED,
    TRUTH,
    best,
    number,
    table,
    truth_scores,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from multipert._jobs._job import Result

_PACKAGES: Final = ("multipert", "scvi-tools", "torch", "lightning", "anndata", "scanpy", "numpy", "scipy", "pandas")
_MAX_FIGURES: Final = 6
_MAX_GROUPS: Final = 40


def report(result: Result, source: str, track: Callable[[list[str], str], Iterable[str]]) -> str:
    """Write the page.

    Parameters
    ----------
    result
        What a job made.
    source
        What the cells are, such as the name of the file.
    track
        Iterates over labels and shows how far it is.

    Returns
    -------
    HTML, figures and style included.
    """
    job = result.job
    labels = _figures.labels_of(result)
    shown = labels[:_MAX_FIGURES]
    what = job.perturbation or (labels[0] if len(labels) == 1 else f"{len(labels)} perturbations")
    title = f"{job.model}: {what} in {job.hold_out}"
    body = [
        f"<h1>{text(title)}</h1>",
        f"<p class=soft>{text(source)}. The perturbed cells of {text(job.context_key)} {text(job.hold_out)} were held "
        "out: no model saw them. Its control cells were predicted under each perturbation and are compared with them.</p>",
        _verdict(result),
        "<h2>Beside the references and the ceiling</h2>",
        _scores(result.scores, DEFAULT, job.model),
        _footnote(result, labels),
        "<details><summary>A second set of metrics, in components that see the prediction</summary>",
        _scores(result.scores, JOINT, job.model),
        "</details>",
        "<details><summary>What the metrics mean</summary>",
        pairs({metric: MEANING[metric] for metric in dict.fromkeys([*DEFAULT, *JOINT])}),
        "</details>",
        _truth(result),
        "<h2>Figures</h2>",
        "<p class=soft>Named and orange: the ten genes with the largest observed change. Bars in the distributions and "
        "crosses in the components are means.</p>",
    ]
    for label in track(shown, "Drawing"):
        body += _figures_of(result, label, single=len(labels) == 1)
    if len(shown) < len(labels):
        body.append(
            f"<p class=soft>{len(labels) - len(shown)} more perturbation(s) with fewer observed cells are scored in "
            "metrics.csv and not drawn.</p>"
        )
    body += ["<h2>Data</h2>", _data(result), "<h2>Settings</h2>", _settings(result)]
    if result.notes:
        body += ["<h2>Notes</h2>", bullets(result.notes)]
    return page(title, body)


def _verdict(result: Result) -> str:
    return verdict_box(*verdict(result))


def _footnote(result: Result, labels: list[str]) -> str:
    mean = f"Means over {len(labels)} perturbations. " if len(labels) > 1 else ""
    return (
        f"<p class=soft>{mean}Bold: best, the ceiling aside. <em>no_change</em> is the control cells as they are, "
        "<em>mean_shift</em> adds the mean change of the other contexts, the <em>ceiling</em> is one half of the observed "
        "cells predicting the other: half as many cells, so its noise is larger than that of the full group. One held-out "
        "context and one seed: differences in the last digit mean nothing.</p>"
    )


def _scores(scores: pd.DataFrame, metrics: list[str], model: str) -> str:
    frame = table(scores, metrics)
    classes = {name: "model" if name == model else "ceiling" if name in MEASURED else "" for name in frame.columns}
    head = "".join(cell("th", text(name), classes[name]) for name in frame.columns)
    rows = []
    for metric, row in frame.iterrows():
        leaders = best(row)
        arrow = "↓" if metric in LOWER_IS_BETTER else "↑"
        cells = "".join(
            cell("td", number(value), f"{classes[name]} {'best' if name in leaders else ''}".strip())
            for name, value in row.items()
        )
        rows.append(f'<tr><th title="{text(MEANING[str(metric)])}">{text(str(metric))} {arrow}</th>{cells}')
    return (
        f"<div class=wide><table><thead><tr><th class=text>metric</th>{head}</thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _truth(result: Result) -> str:
    scores = truth_scores(result)
    if scores.empty:
        return ""
    return (
        "<h2>Against the truth</h2><p class=soft>The cells are simulated, so the expected expression of the very control "
        "cells under each perturbation is known. <em>observed</em> is the mean of the observed cells, other cells of the "
        "same context, with their sampling noise.</p>" + _scores(scores, TRUTH, result.job.model)
    )


def _figures_of(result: Result, label: str, *, single: bool) -> list[str]:
    panel = _figures.Panel.of(result, label)
    drawn = [_figures.mean_scatter(panel), _figures.delta_scatter(panel)]
    drawn.append(_figures.joint_components(panel, result.job.seed))
    if panel.true_mean is not None:
        drawn.append(_figures.truth_scatter(panel))
    parts = [f"<figure>{svg}</figure>" for svg in drawn if svg]
    grid = f"<div class=figures>{''.join(parts)}</div><figure>{_figures.distributions(panel)}</figure>"
    if single:
        return [grid]
    own = result.scores[result.scores[result.job.perturbation_key] == label]
    heading = f"<h3>{text(label)}: {len(panel.observed)} observed cells</h3>"
    own_scores = _scores(own, DEFAULT, result.job.model)
    return [heading, grid, f"<details><summary>Scores of {text(label)}</summary>{own_scores}</details>"]


def _data(result: Result) -> str:
    job, adata = result.job, result.adata
    conditions, inverse = job.setup.conditions(adata)
    names = pd.Series([job.label(condition) for condition in conditions]).to_numpy()[inverse]
    contexts = job.setup.contexts(adata)
    is_test = (adata.obs[_keys.SPLIT] == "test").to_numpy()
    counts = pd.crosstab(names, contexts)
    held = set(names[is_test])
    order = [job.control, *sorted(held), *sorted(set(counts.index) - held - {job.control})]
    shown = order[:_MAX_GROUPS]
    head = "".join(cell("th", text(str(name)), "") for name in counts.columns)
    rows = []
    for name in shown:
        cells = "".join(
            cell("td", str(n) if n else "–", "held" if name in held and context == job.hold_out else "")
            for context, n in counts.loc[name].items()
        )
        rows.append(f"<tr><th>{text(name)}</th>{cells}")
    more = f" {len(order) - len(shown)} more perturbation(s) are not listed." if len(shown) < len(order) else ""
    return (
        f"<p>{adata.n_obs:,} cells, {adata.n_vars:,} genes; {int((~is_test).sum()):,} cells for training, "
        f"{int(is_test.sum()):,} held out.</p><div class=wide><table><thead><tr><th class=text>"
        f"{text(job.perturbation_key)} \\ {text(job.context_key)}</th>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
        f"</div><p class=soft>Cells per group; shaded: held out.{more}</p>"
    )


def _settings(result: Result) -> str:
    import torch

    job = result.job
    options = {
        name.replace("_", " "): value for name, value in vars(job).items() if value is not None and value is not False
    }
    options |= {
        name.replace("_", " "): v for name, v in result.adata.uns.get(_keys.UNS, {}).get("preprocessing", {}).items()
    }
    options |= {name: f"{seconds:.1f} s" for name, seconds in result.seconds.items()}
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} thread(s)"
    options["device"] = device
    versions = {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}
    return (
        pairs(options) + "<h3>Versions</h3>" + pairs({"packages": ", ".join(f"{k} {v}" for k, v in versions.items())})
    )
