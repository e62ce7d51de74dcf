"""Search for a model's arguments on the validation cells of a split; test cells are not even loaded."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from multipert.metrics._pairwise import pairwise
from multipert.metrics._rank import rank
from multipert.model import PerturbationModel

from ._facts import group_name
from ._fit import NothingToPredictError, Stopwatch, fit, predict
from ._release import release
from ._spec import as_arguments, as_plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

    from multipert.model._realise import Realise
    from multipert.model._setup import Setup

    from ._facts import Facts

RANK_WEIGHT: Final = 0.1
_KINDS: Final = ("int", "float", "log", "choice")
_HINT: Final = "searching needs the package optuna: pip install 'multipert[optuna]'"


@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    Parameters
    ----------
    number
        0 is the model as it stands.
    settings
        Arguments of `__init__` and `train`.
    objective
        Lower is better; None if the model failed.
    error
        Why it failed.
    """

    number: int
    settings: dict[str, Any]
    objective: float | None
    error: str | None = None


def best_of(trials: list[Trial]) -> Trial:
    """The trial with the lowest objective, the earliest of equal ones.

    Parameters
    ----------
    trials
        What was tried.

    Returns
    -------
    The trial.

    Raises
    ------
    RuntimeError
        If every trial failed.
    """
    done = [trial for trial in trials if trial.objective is not None]
    if not done:
        raise RuntimeError(f"All {len(trials)} trials of the search failed, the last with: {trials[-1].error}")
    return min(done, key=lambda trial: (trial.objective, trial.number))


def search(
    space: dict[str, tuple],
    objective: Callable[[dict[str, Any]], float],
    n_trials: int,
    seed: int,
    trials: list[Trial],
    keep: Callable[[list[Trial]], object],
) -> list[Trial]:
    """Try settings with Optuna's tree-structured Parzen estimator.

    Trial 0 is the model as it stands. Each later trial draws from a generator of its own, keyed by the seed and the number
    of the trial, so that a search that was killed goes on as if it had not been.

    Parameters
    ----------
    space
        Name -> ("int", low, high), ("float", low, high), ("log", low, high) or ("choice", values).
    objective
        Takes settings, gives a number to be small.
    n_trials
        How many to try, trial 0 included.
    seed
        Seed of the draws.
    trials
        What was tried before.
    keep
        Called with all trials after each.

    Returns
    -------
    All trials.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError(_HINT) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trials = list(trials)
    distributions = {name: _distribution(optuna, name, one) for name, one in space.items()}
    while len(trials) < n_trials:
        number, settings = len(trials), {}
        if number:
            # made anew each time from what was tried, so that a search that went on is the same as one that was not cut
            study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=_seed(seed, number)))
            study.add_trials([_as_frozen(optuna, trial, distributions, space) for trial in trials])
            drawn = study.ask(distributions).params
            settings = {name: _value(space[name], drawn[name]) for name in space}
        trials.append(_tried(objective, number, settings))
        keep(trials)
    return trials


def _tried(objective: Callable[[dict[str, Any]], float], number: int, settings: dict[str, Any]) -> Trial:
    try:
        value = float(objective(settings))
    except (NothingToPredictError, ImportError):
        raise
    except Exception as error:  # noqa: BLE001 - a setting that a model cannot bear is an answer, not the end
        return Trial(number, settings, None, f"{type(error).__name__}: {error}")
    if not np.isfinite(value):
        return Trial(number, settings, None, f"the objective is {value}")
    return Trial(number, settings, value)


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4], "big")


def _distribution(optuna: Any, name: str, one: tuple) -> Any:
    kind, *rest = one
    match kind:
        case "int":
            return optuna.distributions.IntDistribution(*rest)
        case "float":
            return optuna.distributions.FloatDistribution(*rest)
        case "log":
            if all(isinstance(end, int) for end in rest):
                return optuna.distributions.IntDistribution(*rest, log=True)
            return optuna.distributions.FloatDistribution(*rest, log=True)
        case "choice":
            # positions, since a choice may be a tuple
            return optuna.distributions.CategoricalDistribution(range(len(rest[0])))
    raise ValueError(f"search_space[{name!r}] is {one!r}; its kind must be one of {', '.join(_KINDS)}.")


def _value(one: tuple, drawn: Any) -> Any:
    return as_plain(one[1][drawn], "search_space") if one[0] == "choice" else drawn


def _drawn(one: tuple, value: Any) -> Any:
    return [as_plain(choice, "search_space") for choice in one[1]].index(value) if one[0] == "choice" else value


def _as_frozen(optuna: Any, trial: Trial, distributions: dict[str, Any], space: dict[str, tuple]) -> Any:
    state = optuna.trial.TrialState.FAIL if trial.objective is None else optuna.trial.TrialState.COMPLETE
    return optuna.trial.create_trial(
        state=state,
        value=trial.objective,
        params={name: _drawn(space[name], value) for name, value in trial.settings.items()},
        distributions={name: distributions[name] for name in trial.settings},
    )


def searched_space(
    cls: type[PerturbationModel], arguments: dict[str, Any], training: dict[str, Any]
) -> dict[str, tuple]:
    """The part of a model's `search_space` that is not fixed already.

    Parameters
    ----------
    cls
        The class.
    arguments
        Arguments of `__init__` that are fixed.
    training
        Arguments of `train` that are fixed.

    Returns
    -------
    Name -> what may be drawn.

    Raises
    ------
    ValueError
        If a name is an argument of neither.
    """
    space = {name: one for name, one in cls.search_space.items() if name not in {*arguments, *training}}
    divide(cls, space)
    return space


def divide(cls: type[PerturbationModel], settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings as arguments of `__init__` and of `train`.

    Parameters
    ----------
    cls
        The class.
    settings
        Values by name.

    Returns
    -------
    Both.

    Raises
    ------
    ValueError
        If a name is an argument of neither.
    """
    own, of_train = (inspect.signature(function).parameters for function in (cls.__init__, PerturbationModel.train))
    unknown = [name for name in settings if name not in own and name not in of_train]
    if unknown:
        raise ValueError(
            f"search_space of {cls.__name__} names {unknown[0]!r}, which is an argument neither of __init__ nor of train."
        )
    return (
        {name: value for name, value in settings.items() if name in own},
        {name: value for name, value in settings.items() if name not in own},
    )


def validation_objective(
    cls: type[PerturbationModel],
    adata: AnnData,
    facts: Facts,
    setup: Setup,
    arguments: dict[str, Any],
    training: dict[str, Any],
    realise: Realise,
    seed: int,
) -> Callable[[dict[str, Any]], float]:
    """Error of the predicted means of the validation groups plus a tenth of its rank :cite:p:`Wu2024`.

    Parameters
    ----------
    cls
        The class.
    adata
        The cells that train and validate, no others, with their levels.
    facts
        Their labels and levels.
    setup
        Arguments of `setup_anndata`.
    arguments
        Arguments of `__init__` that are fixed.
    training
        Arguments of `train` that are fixed.
    realise
        How decoded expression becomes cells.
    seed
        Seed of training and prediction.

    Returns
    -------
    Takes settings, gives the number to be small.
    """
    observed = _observed_means(adata, facts, setup)

    def objective(settings: dict[str, Any]) -> float:
        own, of_train = divide(cls, as_arguments(settings))
        model = fit(cls, adata, setup, {**arguments, **own}, {**training, **of_train}, seed, Stopwatch())
        try:
            predicted, _ = predict(model, adata, facts, setup, "val", realise, seed, returns="mean")
        finally:
            release(model)
        conditions, inverse = setup.conditions(predicted)
        names = [group_name(conditions[i], setup) for i in inverse]
        keys = list(zip(names, setup.contexts(predicted), strict=True))
        return error_and_rank(dict(zip(keys, np.asarray(predicted.X, dtype=float), strict=True)), observed)

    return objective


def error_and_rank(predicted: dict[tuple[str, str], np.ndarray], observed: dict[tuple[str, str], np.ndarray]) -> float:
    """Mean RMSE over groups, plus a tenth of the mean rank of the right prediction among those of its context.

    Parameters
    ----------
    predicted
        Mean expression by (perturbation, context).
    observed
        The same of the validation cells; groups that are not predicted are left out.

    Returns
    -------
    The number; without the rank where no context has two perturbations.
    """
    errors, ranks = [], []
    for context in sorted({context for _, context in predicted}):
        keys = [key for key in sorted(observed) if key[1] == context and key in predicted]
        if not keys:
            continue
        values = pairwise(np.stack([predicted[key] for key in keys]), np.stack([observed[key] for key in keys]), "rmse")
        errors += list(np.diagonal(values))
        ranks += list(rank(values))
    known = [one for one in ranks if not np.isnan(one)]
    return float(np.mean(errors)) + (RANK_WEIGHT * float(np.mean(known)) if known else 0.0)


def _observed_means(adata: AnnData, facts: Facts, setup: Setup) -> dict[tuple[str, str], np.ndarray]:
    x, means = setup.expression(adata), {}
    for condition, context in facts.pairs("val"):
        at = facts.conditions.index(condition)
        rows = np.flatnonzero((facts.of_cell == at) & (facts.contexts == context) & (facts.level == "val"))
        means[group_name(condition, setup), context] = np.asarray(x[rows].mean(axis=0, dtype=np.float64)).ravel()
    return means
