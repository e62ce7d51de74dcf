"""Every model of the package passes every shared check."""

import inspect
import time

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
    """One trained model, shared by its checks, which together take less than ten seconds of one core."""
    start = time.thread_time()
    yield Case(getattr(multipert.model, request.param))
    assert time.thread_time() - start < 10


@pytest.mark.parametrize("check", CHECKS)
def test_model_passes(case, check):
    run_check(check, case)


def test_models_are_found():
    assert {"ContextShift", "MTAe", "NoPerturb", "TwoFactor"} <= set(MODELS)
