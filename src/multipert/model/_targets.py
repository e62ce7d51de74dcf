"""What `predict` was asked for: conditions, and the contexts that each is wanted in."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from multipert.data._conditions import Condition, as_list, canonical_dose, canonical_label, close_matches

from ._setup import check_condition

if TYPE_CHECKING:
    from collections.abc import Sequence, Set

    from multipert.data._codec import ConditionCodec

    from ._tags import ModelTags

Target = tuple[Condition, str | None]
_COLUMNS = ("perturbation", "dose", "context")


def read_targets(
    perturbation: str | Sequence[str] | pd.DataFrame | None,
    dose: Any,
    *,
    codec: ConditionCodec,
    trained: Sequence[Condition],
    tags: ModelTags,
    model: str,
    dose_key: str | None,
) -> list[Target]:
    """Read and check the targets of a prediction.

    Parameters
    ----------
    perturbation
        A label, several, a frame with the columns perturbation, dose and context, or None for every trained label.
    dose
        A dose for all labels, or one for each; several doses for one label are several targets.
    codec
        The model's vocabulary.
    trained
        Conditions that the model was trained on.
    tags
        The model's tags.
    model
        The model's name.
    dose_key
        obs column of doses that the model was set up with.

    Returns
    -------
    Distinct (condition, context) pairs in the order asked for; context None is every context.

    Raises
    ------
    ValueError
        If a label is unknown or not trained, is a combination or has a dose that the tags exclude, or the numbers of
        labels and doses differ.
    """
    if perturbation is None:
        if dose is not None:
            raise ValueError("dose was given without perturbation; name the perturbation as well.")
        return [(condition, None) for condition in trained if condition]
    contexts: Sequence[str | None]
    if isinstance(perturbation, pd.DataFrame):
        unknown = [str(column) for column in perturbation.columns if column not in _COLUMNS]
        if unknown or "perturbation" not in perturbation:
            raise ValueError(
                f"The frame of targets has the columns {', '.join(map(repr, perturbation.columns))}; it needs "
                "'perturbation' and may have 'dose' and 'context'."
            )
        if dose is not None:
            raise ValueError("dose was given beside a frame of targets; put the doses into its column 'dose'.")
        labels = list(perturbation["perturbation"].astype(str))
        doses = list(perturbation["dose"]) if "dose" in perturbation else [None] * len(labels)
        contexts = list(perturbation["context"].astype(str)) if "context" in perturbation else [None] * len(labels)
    else:
        labels = [str(label) for label in as_list(perturbation)]
        doses = [dose] if dose is None or isinstance(dose, str) or np.isscalar(dose) else list(dose)
        if len(doses) == 1:
            doses = doses * len(labels)
        elif len(labels) == 1:
            labels = labels * len(doses)
        elif len(labels) != len(doses):
            raise ValueError(f"{len(labels)} perturbations but {len(doses)} doses; give one dose, or one for each.")
        contexts = [None] * len(labels)
    if not labels:
        raise ValueError("perturbation is empty; name at least one label, or None for every trained label.")
    targets: dict[Target, None] = {}
    seen = names_of(trained)
    for label, one_dose, context in zip(labels, doses, contexts, strict=True):
        if one_dose is not None and dose_key is None and not _is_unit(one_dose):
            raise ValueError(_no_dose(model, one_dose, tags))
        condition = codec.parse(label, one_dose)
        check_known(condition, codec, seen, tags, model)
        targets[condition, context] = None
    return list(targets)


def _is_unit(dose: Any) -> bool:
    """A dose of 0 (control) or 1 (the dose of a label without one) needs no dose column."""
    try:
        return float(dose) in (0.0, 1.0)
    except ValueError:
        return False


def _no_dose(model: str, dose: Any, tags: ModelTags) -> str:
    if not tags.doses:
        return f"{model} does not use doses (tag doses is False), so dose={dose!r} cannot be predicted."
    return (
        f"dose={dose!r} was asked for, but the model was set up without dose_key; set it up with the column of doses."
    )


def names_of(trained: Sequence[Condition]) -> set[str]:
    """Names of the perturbations of some conditions.

    Parameters
    ----------
    trained
        Conditions that the model was trained on.

    Returns
    -------
    The names, each once.
    """
    return {name for known in trained for name, _ in known}


def check_known(
    condition: Condition, codec: ConditionCodec, seen: Set[str], tags: ModelTags, model: str, *, suggests: bool = True
) -> None:
    """Refuse a condition that the model's tags, vocabulary or training exclude.

    Parameters
    ----------
    condition
        The condition.
    codec
        The model's vocabulary.
    seen
        Names of the perturbations that the model was trained on.
    tags
        Tags of the model.
    model
        Its name.
    suggests
        Whether the error has the nearest legal names, which takes time for each condition and known name.

    Raises
    ------
    ValueError
        With the nearest legal names, or the tag.
    """
    check_condition(condition, tags, model)
    for name, _ in condition:
        if name not in codec:
            matches = close_matches(name, codec.vocabulary) if suggests else "."
            raise ValueError(f"Perturbation {name!r} is unknown to this model{matches}")
        if name not in seen and not tags.unseen_perturbations:
            why = (
                "without perturbation_embedding_key (tag unseen_needs_embedding)"
                if tags.unseen_needs_embedding
                else "(tag unseen_perturbations is False)"
            )
            raise ValueError(
                f"Perturbation {name!r} has no training cells and {model} cannot predict unseen perturbations {why}"
                f"{close_matches(name, seen) if suggests else '.'}"
            )


def check_samples(n_samples: int | None, tags: ModelTags, model: str) -> None:
    """Refuse samples of a model that draws none, and numbers below 1.

    Parameters
    ----------
    n_samples
        What was asked for.
    tags
        Tags of the model.
    model
        Its name.

    Raises
    ------
    ValueError
        Naming the tag or the number.
    """
    if n_samples is None:
        return
    if not tags.samples:
        raise ValueError(f"{model} draws no samples (tag samples is False), so n_samples={n_samples} has no meaning.")
    if not isinstance(n_samples, Real) or n_samples < 1 or int(n_samples) != n_samples:
        raise ValueError(f"n_samples={n_samples!r} must be a whole number of at least 1.")


def encode_targets(targets: Sequence[Condition], codec: ConditionCodec, n_slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and doses of some conditions.

    Parameters
    ----------
    targets
        The conditions.
    codec
        The model's vocabulary.
    n_slots
        Least width of the result.

    Returns
    -------
    Codes and doses, each of shape `(n_targets, width)`.
    """
    width = max([n_slots, *(len(condition) for condition in targets)])
    pairs = [codec.encode_one(condition, width) for condition in targets]
    return np.stack([codes for codes, _ in pairs]), np.stack([doses for _, doses in pairs])


def label_columns(
    targets: Sequence[Condition], codec: ConditionCodec, perturbation_key: str, dose_key: str | None
) -> tuple[pd.DataFrame, list[str]]:
    """Obs columns of some targets, and what to add to the names of their cells.

    Parameters
    ----------
    targets
        The conditions.
    codec
        The model's vocabulary.
    perturbation_key
        obs column of labels.
    dose_key
        obs column of doses.

    Returns
    -------
    A frame with one row per target, doses as text, and one suffix per target such as "A+B@1+5".
    """
    labels = [canonical_label(t, control=codec.control, delimiter=codec.delimiter) for t in targets]
    frame = pd.DataFrame({perturbation_key: labels})
    if dose_key is None:
        return frame, labels
    doses = [canonical_dose(t, delimiter=codec.delimiter) for t in targets]
    frame[dose_key] = doses
    return frame, [f"{label}@{dose}" for label, dose in zip(labels, doses, strict=True)]
