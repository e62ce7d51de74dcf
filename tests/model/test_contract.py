"""Every model of the package passes every shared check."""

import inspect

import pytest

import multipert
from multipert.model import PerturbationModel
from multipert.testing import CHECKS
from multipert.testing._case import Case
from multipert.testing._check_model import run_check

MODELS = [
    name
    for name in multipert.model.__all__
    if inspect.isclass(cls := getattr(multipert.model, name))
    and issubclass(cls, PerturbationModel)
    and cls is not PerturbationModel
]


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    """One trained model, shared by its checks."""
    return Case(getattr(multipert.model, request.param))


@pytest.mark.parametrize("check", CHECKS)
def test_model_passes(case, check):
    run_check(check, case)


def test_models_are_found():
    assert {"ContextShift", "MTAe", "NoPerturb", "TwoFactor"} <= set(MODELS)
