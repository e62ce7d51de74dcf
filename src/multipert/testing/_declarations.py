"""Checks of the class itself and of its setup."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from multipert import _keys
from multipert.data._pairing import Pairing
from multipert.model import ModelTags, PerturbationModel
from multipert.train import Stage

from ._case import refused, require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

    from ._case import Case

_OUTPUTS = ("cell", "sample", "mean")


def check_tags(case: Case) -> None:
    """`tags` is a ModelTags, and `stages` names passes that exist."""
    tags, stages = getattr(case.cls, "tags", None), case.cls.stages
    if not isinstance(tags, ModelTags):
        raise AssertionError(f"tags is {tags!r}; the contract wants a ModelTags")
    require(tags.output in _OUTPUTS, f"tags.output is {tags.output!r}; known: {_OUTPUTS}")
    unknown = [stage for stage in stages if not isinstance(stage, Stage) and stage not in get_args(Pairing)]
    require(not unknown, f"stages names {unknown}; known: {get_args(Pairing)}")


def check_docstring(case: Case) -> None:
    """The class has a docstring of its own."""
    require(bool(vars(case.cls).get("__doc__")), "the class has no docstring of its own; say what the model does")


def check_init_arguments(case: Case) -> None:
    """`__init__` names every argument, and each has a default."""
    arguments = [a for name, a in inspect.signature(case.cls.__init__).parameters.items() if name != "self"]
    variable = [str(a) for a in arguments if a.kind in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
    require(not variable, f"__init__ takes {', '.join(variable)}; the contract wants every argument named")
    bare = [a.name for a in arguments if a.default is a.empty]
    require(not bare, f"__init__ has no default for {', '.join(bare)}; the contract wants cls(adata) to work")


def check_sealed_methods(case: Case) -> None:
    """Public methods of the contract are not overridden."""
    sealed = {name for name, value in vars(PerturbationModel).items() if _is_method(value) and not name.startswith("_")}
    own = case.cls.__mro__[: case.cls.__mro__.index(PerturbationModel)]
    overridden = sorted({f"{cls.__name__}.{name}" for cls in own for name in sealed & set(vars(cls))})
    require(
        not overridden,
        f"{', '.join(overridden)} overrides the contract; put the model's own part into its module, or into "
        "_new_module and _perturbation_embedding",
    )


def _is_method(value: Any) -> bool:
    return inspect.isroutine(value) or isinstance(value, classmethod | staticmethod)


def check_setup_typos(case: Case) -> None:
    """`setup_anndata` refuses an argument that it does not know."""
    with _setup_refused(
        case, case.screen.adata(), TypeError, "an unknown argument of setup_anndata", "contxt_key"
    ) as run:
        run(contxt_key="line")


def check_setup_labels(case: Case) -> None:
    """`setup_anndata` refuses absent, incomplete and malformed labels, and data without control or perturbed cells."""
    adata = case.screen.adata
    for argument in ("perturbation_key", "context_key"):
        with _setup_refused(case, adata(), KeyError, f"an absent obs column as {argument}", "no_such_column") as run:
            run(**{argument: "no_such_column"})
    for column in ("label", "line", "replicate"):
        with _setup_refused(case, _with_label(adata(), column, None), ValueError, f"a missing {column}", column) as run:
            run()
    perturbed = adata()[~case.screen.is_control].copy()
    with _setup_refused(case, perturbed, ValueError, "data without a control cell", "untreated") as run:
        run()
    only_control = adata()[case.screen.is_control].copy()
    with _setup_refused(case, only_control, ValueError, "data with control cells only", "control") as run:
        run()
    for label in ("A+", "A+A"):
        with _setup_refused(
            case, _with_label(adata(), "label", label), ValueError, f"the label {label!r}", label
        ) as run:
            run()
    if case.cls.tags.doses:
        for dose in (-1.0, np.inf):
            with _setup_refused(
                case, _with_label(adata(), "amount", dose), ValueError, f"the dose {dose}", "ose"
            ) as run:
                run()


def check_setup_expression(case: Case) -> None:
    """`setup_anndata` refuses NaN, infinity, negative values, and counts where they do not belong."""
    for value in (np.nan, np.inf, -1.0):
        adata = case.screen.adata()
        adata.X[3, 2] = value
        with _setup_refused(case, adata, ValueError, f"X with the value {value}", "'cell3', gene 'g2'") as run:
            run()
    adata = case.screen.adata()
    adata.X = np.log1p(adata.X) if case.cls.tags.counts else adata.layers[_keys.COUNTS_LAYER]
    wrong = "X without raw counts" if case.cls.tags.counts else "X with raw counts"
    with _setup_refused(case, adata, ValueError, wrong, "counts") as run:
        run()


def check_setup_names(case: Case) -> None:
    """`setup_anndata` refuses duplicated names, no cells, and a view."""
    adata = case.screen.adata()
    adata.var_names = ["g0", "g0", *adata.var_names[2:]]
    with _setup_refused(case, adata, ValueError, "a duplicated gene", "var_names") as run:
        run()
    adata = case.screen.adata()
    adata.obs_names = ["cell0", "cell0", *adata.obs_names[2:]]
    with _setup_refused(case, adata, ValueError, "a duplicated cell", "obs_names") as run:
        run()
    with _setup_refused(case, case.screen.adata()[:0].copy(), ValueError, "an AnnData without cells", "0 cells") as run:
        run()
    with _setup_refused(case, case.screen.adata()[1:], ValueError, "a view", "view") as run:
        run()


def check_setup_needs(case: Case) -> None:
    """`setup_anndata` refuses data that the tags exclude and asks for what the tags need."""
    tags, screen = case.cls.tags, case.screen
    if not tags.combinations:
        adata = _with_label(screen.adata(), "label", "A+B" if tags.several_perturbations else "A+Z")
        with _setup_refused(case, adata, ValueError, "a combination, against the tag", "combinations") as run:
            run()
    if not tags.doses:
        with _setup_refused(case, screen.adata(), ValueError, "a dose_key, against the tag", "doses") as run:
            run(dose_key="amount")
    if not tags.several_perturbations:
        adata = _with_label(screen.adata(), "label", "Z")
        with _setup_refused(case, adata, ValueError, "a second perturbation, against the tag", "several") as run:
            run()
    needs = {
        "context_key": tags.needs_context,
        "perturbation_embedding_key": tags.needs_embedding,
        "cell_embedding_key": tags.needs_cell_embedding,
    }
    for argument, needed in needs.items():
        if needed:
            with _setup_refused(case, screen.adata(), ValueError, f"a setup without {argument}", argument) as run:
                run(**{argument: None})
    if tags.needs_counts:
        adata = screen.adata()
        del adata.layers[_keys.COUNTS_LAYER]
        with _setup_refused(case, adata, KeyError, "data without raw counts", _keys.COUNTS_LAYER) as run:
            run()


def _with_label(adata: AnnData, column: str, value: Any) -> AnnData:
    """The data with another value in an obs column, for the last cell."""
    values = adata.obs[column].astype(object).to_numpy()
    values[-1] = value
    adata.obs[column] = values.astype(float) if column == "amount" else pd.Categorical(values)
    return adata


@contextmanager
def _setup_refused(case: Case, adata: AnnData, error: type[Exception], what: str, mention: str) -> Iterator[Any]:
    """Fail unless the setup run in the block is refused and has written nothing."""
    before = {name: list(getattr(adata, name)) for name in ("obs", "obsm", "layers", "uns")}
    with refused(error, what, mention=mention):
        yield lambda **changes: case.cls.setup_anndata(adata, **{**case.screen.setup, **changes})
    for name, keys in before.items():
        new = [key for key in getattr(adata, name) if key not in keys]
        require(
            not new, f"{what} was refused, but {name} already has {new}; nothing may be written before all checks pass"
        )
