import importlib
import json
import subprocess
import sys

import pytest

import multipert

HEAVY = [
    "anndata",
    "lightning",
    "matplotlib",
    "mudata",
    "numpy",
    "ot",
    "pandas",
    "pertpy",
    "scanpy",
    "scipy",
    "scvi",
    "torch",
]
SUBMODULES = [name for name in multipert.__all__ if name != "__version__"]


def loaded_by(statement: str) -> set[str]:
    """Heavy packages in memory after a statement in a fresh interpreter."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.splitlines()[-1])) & set(HEAVY)


def test_the_probe_sees_what_is_loaded():
    assert loaded_by("import numpy") == {"numpy"}


def test_import_is_lazy():
    assert loaded_by("import multipert; multipert.__version__; dir(multipert)") == set()


@pytest.mark.parametrize("name", ["datasets", "metrics"])
def test_arrays_need_no_deep_learning(name):
    assert not loaded_by(f"import multipert.{name}") & {"lightning", "pertpy", "scvi", "torch"}


@pytest.mark.parametrize("name", SUBMODULES)
def test_submodules_resolve_as_attributes(name):
    assert getattr(multipert, name) is importlib.import_module(f"multipert.{name}")


def test_unknown_attribute_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"'modle'.*datasets, embedding, metrics, model"):
        _ = multipert.modle


def test_dir_lists_the_public_names():
    assert dir(multipert) == sorted(multipert.__all__)
