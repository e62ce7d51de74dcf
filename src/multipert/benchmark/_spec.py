from __future__ import annotations

import hashlib
import importlib
import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multipert import model as registry
from multipert.data._conditions import close_matches
from multipert.metrics._references import REFERENCES
from multipert.train._fit import check_train_kwargs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from multipert.model import PerturbationModel
    from multipert.model._realise import Realise


@dataclass(frozen=True)
class ModelSpec:
    """A model of a benchmark, and what it is called with.

    Parameters
    ----------
    model
        Name of a model of :mod:`multipert.model`, or a class that can be imported by its module and name.
    name
        What to call it in tables; None takes the name of the class. Two specifications of one class need two names.
    arguments
        Arguments of its `__init__`, numbers, text, and lists of them.
    training
        Arguments of its `train`.
    realise
        How decoded expression becomes cells; None takes the benchmark's.

    Examples
    --------
    >>> ModelSpec("ContextShift", "ridge", {"kind": "ridge"}).name
    'ridge'
    """

    model: str | type[PerturbationModel]
    name: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    realise: Realise | None = None


def as_specs(models: str | type | ModelSpec | Sequence[str | type | ModelSpec]) -> list[ModelSpec]:
    """Models as specifications with names of their own.

    Parameters
    ----------
    models
        "all", or names, classes and specifications, one or several.

    Returns
    -------
    One specification per model, all named.

    Raises
    ------
    ValueError
        If there is no model of a name, a class cannot be imported by name, two models have one name, or an argument is
        unknown or cannot be written down.
    """
    if isinstance(models, str) and models == "all":
        models = [name for name in registry.__all__ if _is_model(getattr(registry, name))]
    given = [models] if isinstance(models, str | type | ModelSpec) else list(models)
    if not given:
        raise ValueError("`models` is empty; name at least one model, or 'all'.")
    specs = [_named(one if isinstance(one, ModelSpec) else ModelSpec(one)) for one in given]
    names = [str(spec.name) for spec in specs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"`models` has several called {', '.join(repeated)}; give each ModelSpec a `name` of its own.")
    taken = sorted(set(names) & set(REFERENCES))
    if taken:
        raise ValueError(f"`models` has one called {taken[0]!r}, the name of a reference; give it another `name`.")
    return specs


def _named(spec: ModelSpec) -> ModelSpec:
    cls = model_class(spec.model)
    for argument, values, function in (
        ("arguments", spec.arguments, cls.__init__),
        ("training", spec.training, registry.PerturbationModel.train),
    ):
        known = _parameters(function)
        for key in values:
            if key in _SET_BY_RUN:
                raise ValueError(f"`{argument}` of {cls.__name__} has {key!r}, which the benchmark sets itself.")
        unknown = {key: value for key, value in values.items() if key not in known}
        if argument == "training":
            check_train_kwargs(unknown, None)
        elif unknown:
            key = next(iter(unknown))
            raise ValueError(f"`{argument}` of {cls.__name__} has {key!r}{close_matches(key, known)}")
    plain = {
        name: {key: as_plain(value, f"{name}[{key!r}] of {cls.__name__}") for key, value in values.items()}
        for name, values in (("arguments", spec.arguments), ("training", spec.training))
    }
    return ModelSpec(cls, spec.name or cls.__name__, plain["arguments"], plain["training"], spec.realise)


_SET_BY_RUN = ("self", "adata", "registry", "split_key", "train_size", "seed")


def _parameters(function: Any) -> list[str]:
    return [
        name
        for name, one in inspect.signature(function).parameters.items()
        if one.kind is not one.VAR_KEYWORD and name not in _SET_BY_RUN
    ]


def model_class(model: str | type) -> type[PerturbationModel]:
    """The class of a model, checked to be one that another process can import.

    Parameters
    ----------
    model
        A name of the registry, "module:name", or a class.

    Returns
    -------
    The class.

    Raises
    ------
    ValueError
        If there is none.
    """
    if isinstance(model, str):
        if ":" in model:
            return imported(model)
        known = [name for name in registry.__all__ if _is_model(getattr(registry, name))]
        if model not in known:
            raise ValueError(f"There is no model {model!r}{close_matches(model, known)}")
        return getattr(registry, model)
    if not _is_model(model):
        raise ValueError(f"`models` holds {model!r}, which is no subclass of PerturbationModel.")
    path = import_path(model)
    try:
        found = imported(path)
    except (ImportError, AttributeError, ValueError):
        found = None
    if found is not model or model.__module__ == "__main__":
        raise ValueError(
            f"The class {model.__qualname__} cannot be imported as {path!r}, and every run is a process of its own that "
            "must import it; define it at the top level of a module (a .py file on the path) and import it from there."
        )
    return model


def import_path(cls: type) -> str:
    """Where a class is, as "module:name"."""
    return f"{cls.__module__}:{cls.__qualname__}"


def imported(path: str) -> type[PerturbationModel]:
    """The class at "module:name".

    Parameters
    ----------
    path
        As :func:`import_path` writes it.

    Returns
    -------
    The class.

    Raises
    ------
    ValueError
        If that is no model.
    """
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if not _is_model(found):
        raise ValueError(f"{path!r} is no subclass of PerturbationModel.")
    return found


def source_digest(cls: type) -> str | None:
    """A digest of the file that a class of another package is defined in; None for this package's own."""
    if cls.__module__.split(".")[0] == __name__.split(".")[0]:
        return None
    file = inspect.getsourcefile(cls)
    return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def as_plain(value: Any, what: str) -> Any:
    """A value as JSON holds it: numbers, text, booleans, None, and lists and dictionaries of them.

    Parameters
    ----------
    value
        The value.
    what
        What to call it in messages.

    Returns
    -------
    The plain value.

    Raises
    ------
    ValueError
        If it cannot be written down.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and np.isfinite(value):
        return value
    if isinstance(value, list | tuple):
        return [as_plain(one, what) for one in value]
    if isinstance(value, dict):
        return {str(key): as_plain(one, what) for key, one in value.items()}
    raise ValueError(
        f"{what} is {value!r}, which cannot be written into a record; use numbers, text, and lists of them."
    )


def as_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments read from JSON, lists as tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _is_model(found: Any) -> bool:
    return inspect.isclass(found) and issubclass(found, registry.PerturbationModel) and hasattr(found, "tags")
