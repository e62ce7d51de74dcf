"""One run of a grid, and the digest that names it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from multipert.model._setup import Setup

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multipert.model._realise import Realise

Kind = Literal["model", "references", "search"]


@dataclass(frozen=True)
class Scope:
    """What all runs of one folder share, so that their scores may stand in one table.

    Parameters
    ----------
    data
        Digest of the cells.
    setup
        Arguments of `setup_anndata`.
    metrics
        Names of the metrics.
    version
        Version of this package.
    """

    data: str
    setup: dict[str, Any]
    metrics: list[str]
    version: str

    @property
    def as_setup(self) -> Setup:
        """The arguments of `setup_anndata` as one object."""
        return Setup(**self.setup)

    @property
    def by(self) -> list[str]:
        """Columns that make a group in the table of scores."""
        return ["perturbation"] if self.setup.get("context_key") is None else ["perturbation", "context"]


@dataclass(frozen=True)
class Task:
    """One run: everything that, with the scope, decides its result.

    Parameters
    ----------
    kind
        "model" trains and scores, "references" scores what needs no training, "search" looks for arguments.
    model
        Name in tables; "references" for the references.
    split
        Name of the split.
    split_id
        Digest of the split.
    seed
        Seed of training and prediction.
    cls
        The class as "module:name"; None for the references.
    source
        Digest of the file of a class of another package.
    arguments
        Arguments of `__init__`.
    training
        Arguments of `train`.
    realise
        How decoded expression becomes cells.
    search
        Of a "search" `{"n_trials": n}`; of a "model" `{"id": its search}`; None where nothing is searched.
    """

    kind: Kind
    model: str
    split: str
    split_id: str
    seed: int
    cls: str | None = None
    source: str | None = None
    arguments: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    realise: Realise = "plain"
    search: dict[str, Any] | None = None

    @property
    def place(self) -> tuple[str, str, str, int]:
        """Where the run stands in the grid."""
        return (self.kind, self.model, self.split, self.seed)

    def id(self, scope: Scope) -> str:
        """A digest of all that decides the result.

        Parameters
        ----------
        scope
            What all runs share.

        Returns
        -------
        16 hexadecimal digits.
        """
        text = json.dumps([asdict(scope), asdict(self)], sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Task:
        """A task from what `asdict` made of one."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})
