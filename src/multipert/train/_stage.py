"""One pass of training: which cells meet which, and which parameters move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from multipert.data._pairing import Pairing

Trains = Literal["all", "module", "critic"]


@dataclass(frozen=True)
class Stage:
    """A training pass; each starts with fresh optimisers and a fresh warm-up.

    Parameters
    ----------
    pairing
        What a batch holds: "self" cells under their own label, "random" perturbed cells with a control cell of their
        context that is drawn anew each epoch, "ot" control cells with a transported partner of each condition, "any"
        perturbed cells with a control cell of any context that is drawn anew each epoch, "group" some cells of each of
        several contexts and conditions, with as many control cells of the context, "label" cells with the values of a target modality that they have themselves, and
        twice with those of cells of their own label.
    trains
        Which parameters move: "module" without its adversary, which then takes no part in the loss; "critic" the
        adversary alone; "all" both in turn.
    share
        Length of the pass, as a share of the epochs or updates asked for.
    name
        What the module finds in its `stage` during the pass, where it learns something else in each.
    itself
        Whether control cells of "random" and "ot" also meet themselves, under control.
    once
        Whether the pass is left out when a trained model is trained further.
    """

    pairing: Pairing = "self"
    trains: Trains = "all"
    share: float = 1.0
    name: str = ""
    itself: bool = True
    once: bool = False

    @classmethod
    def of(cls, stage: Stage | Pairing) -> Stage:
        """A stage, from one or from its pairing alone."""
        return stage if isinstance(stage, Stage) else cls(stage)

    def __post_init__(self) -> None:
        for name, known in (("pairing", get_args(Pairing)), ("trains", get_args(Trains))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; known: {', '.join(map(repr, known))}.")
        if not self.share > 0:
            raise ValueError(f"share={self.share} must be above 0.")
