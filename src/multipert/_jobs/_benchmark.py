"""The command `multipert benchmark`: read, hold out, run the grid, write the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from multipert import _keys
from multipert._jobs._preprocess import InputError, input_errors, is_counts, normalise, top_genes
from multipert.benchmark._cells import as_splits
from multipert.model._setup import Setup

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from rich.console import Console

    from multipert.benchmark import Results

REPORT, SCORES = "report.html", "scores.csv"
_SHOWN = 12


@dataclass(frozen=True)
class Grid:
    """What to run; the options of `multipert benchmark`.

    Parameters
    ----------
    out
        Folder of the records.
    models
        "all", or names.
    split
        "context", or an obs column.
    seeds
        Seeds of training.
    metrics
        A preset.
    perturbation_key
        obs column of labels.
    context_key
        obs column of contexts.
    control
        Label of the control cells.
    layer
        Layer of the expression; None is `X`.
    signed
        Whether values may be negative.
    delimiter
        What separates the parts of a combination; None reads every label whole.
    normalise
        Whether the expression is raw counts, to be normalised and log-transformed.
    n_top_genes
        How many genes to keep; None keeps all.
    val_size
        Share of the training cells that `split="context"` marks "val".
    realise
        How decoded expression becomes cells.
    how
        Further arguments of :func:`multipert.benchmark.run`.
    """

    out: Path
    models: list[str]
    split: str
    seeds: list[int]
    metrics: str
    perturbation_key: str
    context_key: str
    control: str
    layer: str | None
    signed: bool
    delimiter: str | None
    normalise: bool
    n_top_genes: int | None
    val_size: float
    realise: str
    how: dict[str, Any] = field(default_factory=dict)


def execute(grid: Grid, adata: AnnData) -> Results:
    """Prepare the cells, run the grid and write its table and page into the folder.

    Parameters
    ----------
    grid
        What to do.
    adata
        The cells; changed.

    Returns
    -------
    The results.

    Raises
    ------
    InputError
        If the data and the options do not fit, before anything is run.
    """
    from multipert.benchmark import run

    setup = Setup(
        grid.perturbation_key, grid.control, grid.layer, grid.context_key, signed=grid.signed, delimiter=grid.delimiter
    )
    with input_errors():
        splits = as_splits(adata, grid.split, setup, grid.val_size)
        adata, layer = _prepared(grid, adata, splits)
        try:
            results = run(
                adata,
                "all" if grid.models == ["all"] else grid.models,
                split=splits,
                out=grid.out,
                metrics=grid.metrics,
                seeds=grid.seeds,
                perturbation_key=grid.perturbation_key,
                context_key=grid.context_key,
                control=grid.control,
                setup={"layer": layer, "signed": grid.signed, "delimiter": grid.delimiter},
                realise=grid.realise,  # type: ignore[arg-type]
                **grid.how,
            )
        except ValueError as error:
            if not grid.normalise and is_counts(setup.expression(adata), adata):
                raise InputError(f"{error} Or add --normalise --n-top-genes 5000, which does both.") from error
            raise
    write(results, grid.out)
    return results


def write(results: Results, out: Path) -> None:
    """Write the table of scores and the page into the folder of a benchmark.

    Parameters
    ----------
    results
        The results.
    out
        The folder.
    """
    results.to_csv(out / SCORES)
    results.report(out / REPORT)


def _prepared(grid: Grid, adata: AnnData, splits: dict[str, pd.Series]) -> tuple[AnnData, str | None]:
    """The cells, normalised and with genes chosen where the options ask for it, and the layer of their expression.

    One set of cells serves all splits, so what is fitted is fitted on cells that train in every one of them.
    """
    if not grid.normalise and grid.n_top_genes is None:
        return adata, grid.layer
    always = np.all([split.eq("train").to_numpy() for split in splits.values()], axis=0)
    if not always.any():
        raise InputError(
            f"--normalise and --n-top-genes are fitted on cells that train in every split, and of {len(splits)} splits none "
            "is left; prepare the cells yourself, or run the splits one by one."
        )
    adata.obs[_keys.SPLIT] = np.where(always, "train", "test")
    layer = grid.layer
    if grid.normalise:
        normalise(adata, always, layer=layer)
        layer = None
    if grid.n_top_genes is not None:
        keep, _ = top_genes(adata, always, grid.n_top_genes, layer=layer)
        adata = adata[:, keep].copy()
    return adata, layer


def show(results: Results, out: Path, console: Console) -> None:
    """The scores, the verdict and the names of the files.

    Parameters
    ----------
    results
        The results.
    out
        The folder.
    console
        Where to.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from multipert.benchmark._verdict import verdict

    if len(results.frame):
        board = results.leaderboard()
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("model")
        table.add_column("score (0 baseline, 1 ceiling)", justify="right")
        for name, row in board.iterrows():
            is_model = row["kind"] == "model"
            score = "–" if np.isnan(row["score"]) else f"{row['score']:.2f}"
            sd = "" if np.isnan(row["score_sd"]) else f" ± {row['score_sd']:.2f}"
            star = "" if row["is_complete"] else " *"
            table.add_row(Text(f"{name}{star}", style="bold" if is_model else "dim"), Text(score + sd))
        console.print(table)
        if not board["is_complete"].all():
            console.print(Text("* not on every held-out group"))
    sentence, lines = verdict(results)
    console.print(Text(sentence, style="bold"))
    for line in lines:
        console.print(Text(f"- {line}"))
    for _, row in results.failed.head(_SHOWN).iterrows():
        console.print(Text(f"Failed: {row['model']} on {row['split']}, seed {row['seed']}: {row['reason']}"))
    for _, row in results.skipped.drop_duplicates(["model", "reason"]).head(_SHOWN).iterrows():
        console.print(Text(f"Skipped: {row['model']} on {row['split']}: {row['reason']}"))
    console.print()
    for name in (SCORES, REPORT):
        console.print(Text(str(out / name)), soft_wrap=True)
