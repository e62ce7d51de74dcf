"""How modules are trained."""

from ._plan import PerturbationTrainingPlan
from ._stage import Stage

__all__ = ["PerturbationTrainingPlan", "Stage"]
