"""How modules are trained."""

from ._plan import PerturbationTrainingPlan
from ._probe import TrainingEstimate
from ._stage import Stage

__all__ = ["PerturbationTrainingPlan", "Stage", "TrainingEstimate"]
