"""The command `multipert`."""

from __future__ import annotations

import os
import re
from collections import deque
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anndata import AnnData
    from rich.console import Console

    from multipert._jobs._job import Job, Result
    from multipert.benchmark import Results

# Set before torch is imported: its idle threads give up the core soon instead of spinning, which leaves it to others on a
# machine that does other work too and makes no difference to the time on an idle one.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Predict how single cells respond to perturbations, and score the prediction on cells that were held out.",
)

_BAD_INPUT = 2
_INTERRUPTED = 130
_DEMO_HOLD_OUT = "context_1"


class Executor(StrEnum):
    """Where runs are done."""

    local = "local"
    ray = "ray"


class Realise(StrEnum):
    """How decoded expression becomes cells."""

    plain = "plain"
    residual = "residual"
    counts = "counts"


Seed = Annotated[int, typer.Option(min=0, help="Seed of training, prediction and evaluation.")]


def _print_version(value: bool) -> None:
    if value:
        from multipert import __version__

        typer.echo(f"multipert {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the result.")] = Path("multipert-demo"),
    seed: Seed = 0,
) -> None:
    """Hold out one context of a simulated screen, predict it with MTAe, and score it, also against the truth.

    Takes about a minute. Writes counterfactual.h5ad, metrics.csv and report.html.
    """

    def read() -> AnnData:
        from multipert.datasets import screen

        return screen("small")

    def job() -> Job:
        from multipert._jobs._job import Job

        return Job(hold_out=_DEMO_HOLD_OUT, seed=seed, realise="residual")

    _command(out, 'Simulated screen "small"', read, job, with_truth=True)


@app.command()
def run(
    file: Annotated[Path, typer.Argument(metavar="FILE.h5ad", help="The cells.", show_default=False)],
    hold_out: Annotated[
        str, typer.Option(metavar="CONTEXT", help="Context whose perturbed cells are held out.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the result.", show_default=False)],
    model: Annotated[str, typer.Option(metavar="NAME", help="A model of multipert.model.")] = "MTAe",
    perturbation_key: Annotated[str, typer.Option(metavar="KEY", help="obs column of perturbations.")] = "perturbation",
    control: Annotated[str, typer.Option(metavar="LABEL", help="Label of the control cells.")] = "control",
    context_key: Annotated[str, typer.Option(metavar="KEY", help="obs column of contexts.")] = "context",
    perturbation: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Hold out only this perturbation.  [default: all]")
    ] = None,
    seed: Seed = 0,
    realise: Annotated[Realise, typer.Option(help="How decoded expression becomes cells.")] = Realise.plain,
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="Preset of the model.")] = None,
    max_epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the training cells.  [default: the preset's]")
    ] = None,
    layer: Annotated[str | None, typer.Option(metavar="NAME", help="Layer of the expression.  [default: X]")] = None,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Take raw counts: scale each cell to one size, then log1p.")
    ] = False,
    n_top_genes: Annotated[
        int | None, typer.Option(min=1, help="Keep the genes that vary most over the training cells.")
    ] = None,
    signed: Annotated[bool, typer.Option("--signed", help="Allow negative values (z-scores, log ratios).")] = False,
    delimiter: Annotated[
        str, typer.Option(metavar="TEXT", help='What separates a combination; "" reads every label whole.')
    ] = "+",
) -> None:
    """Hold out a context of your data, train a model on the rest, predict the held-out cells and score them.

    Writes counterfactual.h5ad, metrics.csv and report.html; files of these names are replaced.
    """

    def read() -> AnnData:
        from multipert._jobs._preprocess import read as read_file

        return read_file(file)

    def job() -> Job:
        from multipert._jobs._job import Job

        return Job(
            hold_out=hold_out,
            model=model,
            perturbation_key=perturbation_key,
            control=control,
            context_key=context_key,
            perturbation=perturbation,
            layer=layer,
            signed=signed,
            delimiter=delimiter or None,
            normalise=normalise,
            n_top_genes=n_top_genes,
            realise=realise.value,
            preset=preset,
            max_epochs=max_epochs,
            seed=seed,
        )

    _command(out, file.name, read, job, source_file=file)


class _SeveralSeeds(TyperCommand):
    """Reads `--seeds 1 2 3` and `--seeds 1,2,3` as `--seeds 1 --seeds 2 --seeds 3`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option for each of the numbers that follow it."""
        spread: list[str] = []
        rest = deque(args)
        while rest:
            argument, numbers = rest.popleft(), []
            while argument == "--seeds" and rest and re.fullmatch(r"[\d,]+", rest[0]):
                numbers += rest.popleft().split(",")
            spread += [part for number in numbers for part in (argument, number)] or [argument]
        return super().parse_args(ctx, spread)


@app.command(cls=_SeveralSeeds)
def benchmark(
    file: Annotated[Path, typer.Argument(metavar="FILE.h5ad", help="The cells.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the records and the report.", show_default=False)],
    models: Annotated[str, typer.Option(metavar="NAMES", help='"all", or models separated by commas.')] = "all",
    split: Annotated[
        str, typer.Option(metavar="NAME", help='"context" holds out each in turn; else an obs column.')
    ] = "context",
    seeds: Annotated[
        list[int], typer.Option(min=0, metavar="N ...", help="Seeds of training and prediction, one or several.")
    ] = [0],  # noqa: B006 - typer reads it and never changes it
    metrics: Annotated[str, typer.Option(metavar="PRESET", help="A preset of multipert.metrics.")] = "default",
    n_jobs: Annotated[int, typer.Option(min=1, help="Runs done at once; they share the CPUs.")] = 1,
    search: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Try N settings per model on the validation cells.")
    ] = None,
    val_size: Annotated[
        float, typer.Option(min=0.0, help="Share of the training cells for validation, with --split context.")
    ] = 0.0,
    timeout: Annotated[
        float | None, typer.Option(min=0.0, metavar="S", help="End a run after so many seconds.")
    ] = None,
    executor: Annotated[Executor, typer.Option(help="Where runs are done.")] = Executor.local,
    perturbation_key: Annotated[str, typer.Option(metavar="KEY", help="obs column of perturbations.")] = "perturbation",
    control: Annotated[str, typer.Option(metavar="LABEL", help="Label of the control cells.")] = "control",
    context_key: Annotated[str, typer.Option(metavar="KEY", help="obs column of contexts.")] = "context",
    realise: Annotated[Realise, typer.Option(help="How decoded expression becomes cells.")] = Realise.residual,
    layer: Annotated[str | None, typer.Option(metavar="NAME", help="Layer of the expression.  [default: X]")] = None,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Take raw counts: scale each cell to one size, then log1p.")
    ] = False,
    n_top_genes: Annotated[
        int | None, typer.Option(min=1, help="Keep the genes that vary most over cells that always train.")
    ] = None,
    signed: Annotated[bool, typer.Option("--signed", help="Allow negative values (z-scores, log ratios).")] = False,
    delimiter: Annotated[
        str, typer.Option(metavar="TEXT", help='What separates a combination; "" reads every label whole.')
    ] = "+",
) -> None:
    """Score every model on every split with every seed, beside the references; interrupted, it goes on where it was.

    Writes a record of every run, scores.csv and report.html. Exit code 1 if a run failed; the report is there then too.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    with _tidy(f"Interrupted. What is done is kept in {out}; the same command goes on with the rest."):
        from multipert._jobs._preprocess import read
        from multipert._jobs._terminal import steps

        step = steps(console)
        with step("Reading the cells"):
            adata = read(file)
        with step("Loading the models"):
            from multipert._jobs import _benchmark
        grid = _benchmark.Grid(
            out=out,
            models=[name.strip() for name in models.split(",")],
            split=split,
            seeds=seeds,
            metrics=metrics,
            perturbation_key=perturbation_key,
            context_key=context_key,
            control=control,
            layer=layer,
            signed=signed,
            delimiter=delimiter or None,
            normalise=normalise,
            n_top_genes=n_top_genes,
            val_size=val_size,
            realise=realise.value,
            how={"n_jobs": n_jobs, "search": search, "timeout": timeout or None, "executor": executor.value},
        )
        with step("Running the grid", bar=True):
            results = _benchmark.execute(grid, adata)
    _show(results, out)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a benchmark.", show_default=False)],
) -> None:
    """Write scores.csv and report.html of a benchmark from its records, also while it is running.

    Exit code 1 if a run failed.
    """
    with _tidy("Interrupted; nothing was written."):
        from multipert._jobs import _benchmark
        from multipert._jobs._preprocess import input_errors
        from multipert.benchmark import Results

        with input_errors():
            results = Results.load(folder)
        _benchmark.write(results, folder)
    _show(results, folder)


def _show(results: Results, out: Path) -> None:
    from rich.console import Console

    from multipert._jobs import _benchmark

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120  # a pipe or file has no edge to wrap at
    _benchmark.show(results, out, console)
    if len(results.failed):
        raise typer.Exit(1)


@contextmanager
def _tidy(interrupted: str) -> Iterator[None]:
    """No warnings of libraries; bad input is one line on stderr and exit code 2, Ctrl-C a line that says what is kept."""
    from multipert._jobs._preprocess import InputError
    from multipert._jobs._terminal import quiet

    try:
        with quiet():
            yield
    except (InputError, FileNotFoundError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(_BAD_INPUT) from error
    except (FloatingPointError, ImportError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        typer.echo(interrupted, err=True)
        raise typer.Exit(_INTERRUPTED) from error


def _command(
    out: Path,
    source: str,
    read: Callable[[], AnnData],
    make_job: Callable[[], Job],
    *,
    source_file: Path | None = None,
    with_truth: bool = False,
) -> None:
    """Do a job, write its files, print its table; bad input is one line on stderr and exit code 2."""
    from rich.console import Console

    from multipert._jobs._terminal import show

    console = Console(stderr=True, highlight=False)
    with _tidy("Interrupted; nothing was written."):
        result = _work(out, source, read, make_job, console, source_file, with_truth)
    show(result, out)


def _work(
    out: Path,
    source: str,
    read: Callable[[], AnnData],
    make_job: Callable[[], Job],
    console: Console,
    source_file: Path | None,
    with_truth: bool,
) -> Result:
    from rich.progress import track

    from multipert._jobs import _output
    from multipert._jobs._terminal import hush_training, steps

    step = steps(console)
    _output.check_folder(out, source_file)
    with step("Reading the cells"):
        adata = read()
    with step("Loading the models"):
        import pandas as pd

        from multipert._jobs._report import report
        from multipert._jobs._run import execute
        from multipert._jobs._summary import add_truth, truth_scores

        hush_training()
    result = execute(make_job(), adata, step)
    if with_truth:
        with step("Computing the truth"):
            add_truth(result)
    with step("Drawing the report", bar=True):
        page = report(
            result,
            source,
            lambda items, what: track(items, what, console=console, transient=True, disable=not console.is_terminal),
        )
    scores = pd.concat([result.scores, truth_scores(result)], ignore_index=True) if with_truth else result.scores
    with step(f"Writing {out}"):
        _output.write(
            out,
            {
                "counterfactual.h5ad": result.predicted.write_h5ad,
                "metrics.csv": lambda path: scores.to_csv(path, index=False, lineterminator="\n"),
                "report.html": lambda path: path.write_text(page, encoding="utf-8"),
            },
        )
    return result
