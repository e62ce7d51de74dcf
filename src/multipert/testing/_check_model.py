"""All checks, and the function that runs them."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from multipert.data._conditions import close_matches

from . import _declarations, _invariance, _learning, _prediction, _results
from ._case import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from multipert.model import PerturbationModel

_CHECKS: tuple[Callable[[Case], None], ...] = (
    _declarations.check_tags,
    _declarations.check_docstring,
    _declarations.check_init_arguments,
    _declarations.check_sealed_methods,
    _declarations.check_setup_typos,
    _declarations.check_setup_labels,
    _declarations.check_setup_expression,
    _declarations.check_setup_names,
    _declarations.check_setup_needs,
    _prediction.check_untrained,
    _prediction.check_predicted_cells,
    _prediction.check_label_spelling,
    _prediction.check_bad_targets,
    _prediction.check_unseen_perturbations,
    _prediction.check_samples,
    _prediction.check_bad_cells,
    _prediction.check_choice_of_cells,
    _prediction.check_context_tags,
    _invariance.check_input_unchanged,
    _invariance.check_batch_size,
    _invariance.check_cell_order,
    _invariance.check_mean,
    _invariance.check_dose_zero,
    _invariance.check_realise,
    _invariance.check_formats_in_predict,
    _invariance.check_formats_in_training,
    _learning.check_seed,
    _learning.check_held_out_cells,
    _learning.check_training_cells,
    _learning.check_two_setups,
    _learning.check_plain_plan,
    _learning.check_effect,
    _results.check_annotate,
    _results.check_annotate_leakage,
    _results.check_annotate_without_control,
    _results.check_latent_representation,
    _results.check_perturbation_embedding,
    _results.check_files,
    _results.check_files_of_another_class,
)

CHECKS: Final[dict[str, Callable[[Case], None]]] = {check.__name__.removeprefix("check_"): check for check in _CHECKS}
"""Name -> check, in the order in which they run; the docstring of a check says what it wants."""


def check_model(cls: type[PerturbationModel], *, checks: Sequence[str] | None = None) -> None:
    """Check that a model keeps the contract that all models share.

    The checks run on a small simulated screen with strong planted effects, made to fit the model's tags: with several
    perturbations, combinations, doses or embeddings only where they are legal. They need seconds, on the CPU.

    Parameters
    ----------
    cls
        The model class; `cls(adata)` must work with all other arguments at their defaults.
    checks
        Names out of `CHECKS`; None runs all.

    Raises
    ------
    AssertionError
        At the first check that fails; the message starts with its name and says what was found and what is wanted.
    ValueError
        If there is no check of a name.

    Examples
    --------
    >>> import multipert as mp
    >>> mp.testing.check_model(mp.model.NoPerturb, checks=["docstring", "predicted_cells"])
    """
    names = list(CHECKS) if checks is None else list(checks)
    for name in names:
        if name not in CHECKS:
            raise ValueError(f"There is no check {name!r}{close_matches(name, CHECKS)}")
    case = Case(cls)
    for name in names:
        run_check(name, case)


def run_check(name: str, case: Case) -> None:
    """Run one check; whatever goes wrong becomes an AssertionError that starts with its name.

    Parameters
    ----------
    name
        Name of the check.
    case
        The model class under test.

    Raises
    ------
    AssertionError
        If the check fails or cannot be run.
    """
    try:
        with _silent():
            CHECKS[name](case)
    except AssertionError as failure:
        raise AssertionError(f"{name}: {failure}") from failure
    except Exception as error:
        raise AssertionError(f"{name}: {case.cls.__name__} raised {type(error).__name__}: {error}") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Keep warnings and the trainer's notes out of the output: what a check wants to know, it catches itself."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
