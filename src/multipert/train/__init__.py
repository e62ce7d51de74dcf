"""How modules are trained."""

from ._plan import PerturbationTrainingPlan

__all__ = ["PerturbationTrainingPlan"]
