"""One job of the command line: hold out a context, train, predict its cells, score them."""

from __future__ import annotations

import inspect
import sys
import time
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from multipert import _keys
from multipert._jobs._job import Job, Result
from multipert._jobs._preprocess import InputError, input_errors, is_counts, normalise, top_genes
from multipert.data._conditions import close_matches, parse_condition
from multipert.metrics import PRESETS, calibrate, evaluate
from multipert.model._realise import check_realise, size_factors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from anndata import AnnData

    from multipert._jobs._preprocess import Record
    from multipert.data._conditions import Condition
    from multipert.model import PerturbationModel

    Step = Callable[..., AbstractContextManager[None]]

REFERENCES = ("NoPerturb", "TwoFactor", "ContextShift")
"""Closed-form models that every prediction stands beside."""
_METRICS = list(dict.fromkeys([*PRESETS["default"], *PRESETS["thesis-joint"]]))
_WITHOUT_MODEL = ("no_change", "mean_shift", "ceiling")


def model_class(name: str) -> type[PerturbationModel]:
    """A model of the registry.

    Parameters
    ----------
    name
        Name of the class.

    Returns
    -------
    The class.

    Raises
    ------
    InputError
        If there is no model of this name.
    """
    from multipert import model

    if name not in model.__all__ or not issubclass(getattr(model, name), model.PerturbationModel):
        raise InputError(f"--model {name!r} is unknown{close_matches(name, model.__all__)}")
    return getattr(model, name)


def execute(job: Job, adata: AnnData, step: Step) -> Result:
    """Do a job.

    Parameters
    ----------
    job
        What to do.
    adata
        The cells; changed.
    step
        Called with what is about to be done; shows it while it is done. `bar=True` where the work has a bar of its own.

    Returns
    -------
    What was made; nothing is written.

    Raises
    ------
    InputError
        If the data and the job do not fit, before any model is trained.
    """
    cls = model_class(job.model)
    notes: list[str] = []
    with step("Checking and preparing the data"), input_errors():
        adata, targets = prepare(job, adata, notes)
        targets = _predictable(cls, job, adata, targets, notes)
        _check_prediction(cls, job, adata)
        model = _set_up(cls, job, adata, job.preset)
    seconds: dict[str, float] = {}
    with step(f"Training {job.model}", bar=True), _timed(seconds, f"training {job.model}"):
        _train(model, job)
    with step(f"Predicting {job.hold_out}", bar=True), _timed(seconds, f"predicting with {job.model}"):
        predicted = _predict(model, job, targets, job.realise)
    observed, control, training = _groups(job, adata)
    with step(f"Scoring {job.model}"):
        scores = [_score(job, predicted, observed, control, training, notes, _WITHOUT_MODEL)]
    means = {job.model: _means(job, predicted)}
    for name in REFERENCES:
        if name != job.model:
            with step(f"Fitting and scoring {name}"):
                _add_reference(name, job, adata, targets, (observed, control, training), scores, means, notes)
    return Result(job, adata, predicted, observed, control, _joined(scores, job.model), means, notes, seconds)


def prepare(job: Job, adata: AnnData, notes: list[str]) -> tuple[AnnData, list[Condition]]:
    """Mark the held-out cells in obs["split"], then normalise and choose genes where the job asks for it.

    What is fitted (the size that counts are scaled to, the variances of the genes) is fitted on training cells.

    Parameters
    ----------
    job
        What to do.
    adata
        The cells; changed.
    notes
        What the reader should know is appended.

    Returns
    -------
    The cells, and the conditions held out.
    """
    is_held_out, targets = _held_out(job, adata)
    adata.obs[_keys.SPLIT] = pd.Categorical(np.where(is_held_out, "test", "train"), categories=["train", "test"])
    done: Record = {}
    if job.normalise:
        done |= normalise(adata, ~is_held_out, layer=job.layer)
    if job.n_top_genes is not None:
        if job.n_top_genes > adata.n_vars:
            notes.append(f"--n-top-genes {job.n_top_genes} keeps all {adata.n_vars} genes.")
        keep, found = top_genes(adata, ~is_held_out, job.n_top_genes, layer=job.setup.layer)
        adata, done = adata[:, keep].copy(), done | found
    if done:
        adata.uns[_keys.UNS] = {"preprocessing": done}
    return adata, targets


def _held_out(job: Job, adata: AnnData) -> tuple[np.ndarray, list[Condition]]:
    """Whether each cell is held out, and the conditions held out."""
    setup = job.setup
    conditions, inverse = setup.conditions(adata)
    contexts, is_control = setup.contexts(adata), setup.is_control(adata)
    here = contexts == job.hold_out
    if not here.any():
        raise InputError(
            f"--hold-out {job.hold_out!r} is not a context of obs[{job.context_key!r}]"
            f"{close_matches(job.hold_out, set(contexts))}"
        )
    if not (here & is_control).any():
        raise InputError(
            f"Context {job.hold_out!r} has {int(here.sum())} cell(s) but no control cell (label {job.control!r}); hold "
            "out a context with control cells, they are what is predicted from."
        )
    present = {conditions[i] for i in np.unique(inverse[here])} - {()}
    if job.perturbation is None:
        if not present:
            raise InputError(f"Context {job.hold_out!r} has control cells only; there is nothing to hold out.")
        wanted = sorted(present)
    else:
        one = parse_condition(job.perturbation, control=job.control, delimiter=job.delimiter)
        if not one:
            raise InputError(f"--perturbation {job.perturbation!r} is the control label; name a perturbation.")
        if one not in present:
            labels = [job.label(condition) for condition in sorted(present)]
            raise InputError(
                f"--perturbation {job.perturbation!r} has no cells in context {job.hold_out!r}"
                f"{close_matches(job.perturbation, labels) if labels else ', which has control cells only.'}"
            )
        wanted = [one]
    return here & np.array([condition in wanted for condition in conditions])[inverse], wanted


def _predictable(
    cls: type[PerturbationModel], job: Job, adata: AnnData, targets: list[Condition], notes: list[str]
) -> list[Condition]:
    """The held-out conditions that the model can be asked for; an error if there is none."""
    tags = cls.tags.given(job.setup.perturbation_embedding_key is not None)
    if tags.unseen_perturbations:
        return targets
    conditions, inverse = job.setup.conditions(adata)
    train = (adata.obs[_keys.SPLIT] == "train").to_numpy()
    seen = {name for i in np.unique(inverse[train]) for name, _ in conditions[i]}
    possible = [condition for condition in targets if all(name in seen for name, _ in condition)]
    unseen = [job.label(condition) for condition in targets if condition not in possible]
    if unseen:
        message = (
            f"{len(unseen)} perturbation(s) of context {job.hold_out!r} have no cells in the other contexts "
            f"({', '.join(unseen[:5])}{', ...' if len(unseen) > 5 else ''}), and {job.model} cannot predict unseen "
            "perturbations (tag unseen_perturbations is False)"
        )
        if not possible:
            raise InputError(f"{message}; hold out another context or perturbation.")
        notes.append(f"{message}; they are held out and not predicted.")
    return possible


def _check_prediction(cls: type[PerturbationModel], job: Job, adata: AnnData) -> None:
    """Refuse before training what `predict` would refuse after it."""
    if cls.tags.modalities > 1:
        raise InputError(f"{job.model} translates between {cls.tags.modalities} modalities and needs a MuData.")
    if job.preset is not None and "preset" not in inspect.signature(cls.__init__).parameters:
        raise InputError(f"{job.model} has no presets; leave --preset {job.preset!r} out.")
    check_realise(job.realise, job.signed, cls.tags.output)
    if job.realise == "counts":
        if _keys.COUNTS_LAYER not in adata.layers:
            raise InputError(
                f"--realise counts needs raw counts in layers[{_keys.COUNTS_LAYER!r}]"
                f"{close_matches(_keys.COUNTS_LAYER, adata.layers)} --normalise puts them there."
            )
        rows = job.setup.is_control(adata) & (job.setup.contexts(adata) == job.hold_out)
        size_factors(
            job.setup.expression(adata)[rows], adata.layers[_keys.COUNTS_LAYER][rows], adata.obs_names[rows],
            _keys.COUNTS_LAYER,
        )  # fmt: skip


def _set_up(cls: type[PerturbationModel], job: Job, adata: AnnData, preset: str | None = None) -> PerturbationModel:
    setup = job.setup
    try:
        cls.setup_anndata(
            adata,
            setup.perturbation_key,
            setup.control,
            layer=setup.layer,
            context_key=setup.context_key,
            signed=setup.signed,
            delimiter=setup.delimiter,
        )
    except ValueError as error:
        if not cls.tags.counts and is_counts(setup.expression(adata), adata):
            raise InputError(f"{error} Or add --normalise --n-top-genes 5000, which does both.") from error
        raise
    return cls(adata) if preset is None else cls(adata, preset=preset)  # type: ignore[call-arg]


def _train(model: PerturbationModel, job: Job) -> None:
    model.train(
        max_epochs=job.max_epochs,
        split_key=_keys.SPLIT,
        seed=job.seed,
        enable_progress_bar=sys.stderr.isatty(),
        enable_checkpointing=False,
    )


def _predict(model: PerturbationModel, job: Job, targets: list[Condition], realise: str) -> AnnData:
    labels = [job.label(condition) for condition in targets]
    predicted = model.predict(perturbation=labels, context=job.hold_out, realise=realise, seed=job.seed)  # type: ignore[arg-type]
    # it says where the control cells were, which a reader of the file could take for the predicted cells
    del predicted.obs[_keys.SPLIT]
    preprocessing = model.adata.uns.get(_keys.UNS, {}).get("preprocessing")
    predicted.uns[_keys.UNS] |= {"hold_out": job.hold_out} | ({"preprocessing": preprocessing} if preprocessing else {})
    return predicted


def _groups(job: Job, adata: AnnData) -> tuple[AnnData, AnnData, AnnData]:
    """Observed cells, control cells of the held-out context, training cells."""
    is_train = (adata.obs[_keys.SPLIT] == "train").to_numpy()
    is_control = job.setup.is_control(adata) & (job.setup.contexts(adata) == job.hold_out)
    return adata[~is_train].copy(), adata[is_control].copy(), adata[is_train]


def _score(
    job: Job,
    predicted: AnnData,
    observed: AnnData,
    control: AnnData,
    training: AnnData,
    notes: list[str],
    references: Sequence[str] = (),
) -> pd.DataFrame:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        frame = evaluate(
            predicted,
            observed,
            control,
            by=[job.perturbation_key, job.context_key],
            metrics=_METRICS,
            training=training,
            references=references,
            layer=job.setup.layer,
            control_label=job.control,
            delimiter=job.delimiter,
            seed=job.seed,
        )
    notes.extend(str(warning.message) for warning in caught if str(warning.message) not in notes)
    return frame


def _means(job: Job, predicted: AnnData) -> pd.DataFrame:
    groups = predicted.obs.groupby(job.perturbation_key, observed=True, sort=True).indices
    means = [predicted.X[rows].mean(axis=0, dtype=np.float64) for rows in groups.values()]
    return pd.DataFrame(means, index=[str(label) for label in groups], columns=predicted.var_names)


def _add_reference(
    name: str,
    job: Job,
    adata: AnnData,
    targets: list[Condition],
    groups: tuple[AnnData, AnnData, AnnData],
    scores: list[pd.DataFrame],
    means: dict[str, pd.DataFrame],
    notes: list[str],
) -> None:
    """Fit, predict and score a closed-form model; a note says why where it cannot be done."""
    cls = model_class(name)
    try:
        possible = _predictable(cls, job, adata, targets, [])
        model = _set_up(cls, job, adata)
        _train(model, job)
        predicted = _predict(model, job, possible, job.realise if cls.tags.output == "cell" else "plain")
    except (KeyError, ValueError) as error:
        notes.append(f"{name} is left out: {error.args[0]}")
        return
    frame = _score(job, predicted, *groups, notes)
    scores.append(frame[frame["predictor"] == "prediction"].replace({"predictor": {"prediction": name}}))
    means[name] = _means(job, predicted)


def _joined(scores: list[pd.DataFrame], name: str) -> pd.DataFrame:
    """All scores, models first, then what is computed without a model."""
    first, *others = scores
    with_model = first["predictor"] == "prediction"
    named = first[with_model].replace({"predictor": {"prediction": name}})
    references = first[first["predictor"].isin(_WITHOUT_MODEL)]
    return calibrate(pd.concat([named, *others, references], ignore_index=True))


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
