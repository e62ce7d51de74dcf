"""The layout that docs/contributing.md describes."""

import functools
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import multipert

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "multipert"
SUBPACKAGES = [name for name in multipert.__all__ if name != "__version__"]
TEXT = {".bib", ".cfg", ".ipynb", ".md", ".py", ".rst", ".toml", ".txt", ".yaml", ".yml"}
WRITTEN = ["benchmarks", "docs", "src", "tests", "tutorials", ".ci", ".github"]
BUILT = {"__pycache__", "_build", "generated"}


def public_names(name: str) -> list[str]:
    """Names in `__all__` and those that are re-exported beside it, `import X as X`."""
    module = importlib.import_module(f"multipert.{name}")
    source = Path(module.__file__).read_text(encoding="utf-8")
    return [*module.__all__, *re.findall(r"^from \.\w+ import (\w+) as \1$", source, flags=re.MULTILINE)]


def documented_names(page: str) -> list[str]:
    """Rows of the autosummaries of a page, as `subpackage.name`."""
    names = []
    for block in re.findall(r"^```{eval-rst}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL):
        head, _, rows = block.partition(".. autosummary::")
        package = re.search(r"^\.\. (?:current)?module:: multipert\.(\w+)$", head, flags=re.MULTILINE)
        names += [f"{package.group(1)}.{row}" for row in re.findall(r"^ +(\w+)$", rows, flags=re.MULTILINE)]
    return names


def written_files() -> list[Path]:
    files = [path for path in ROOT.iterdir() if path.is_file()]
    files += [path for folder in WRITTEN for path in (ROOT / folder).rglob("*") if path.is_file()]
    copied = ROOT / "docs" / "tutorials"
    return [path for path in files if not BUILT & set(path.parts) and copied not in path.parents]


def methods_in(cls: type) -> list[str]:
    """Names in the class's own body that are behaviour and not data."""
    kinds = (classmethod, staticmethod, property, functools.cached_property)
    return [name for name, value in vars(cls).items() if inspect.isroutine(value) or isinstance(value, kinds)]


def is_concrete(cls: type) -> bool:
    from multipert.model._tags import ModelTags

    return isinstance(getattr(cls, "tags", None), ModelTags)


@pytest.mark.parametrize("name", SUBPACKAGES)
def test_public_names_are_sorted_and_exist(name):
    module = importlib.import_module(f"multipert.{name}")
    assert module.__all__ == sorted(set(module.__all__))
    assert [public for public in module.__all__ if not hasattr(module, public)] == []


@pytest.mark.parametrize("name", SUBPACKAGES)
def test_files_of_a_subpackage_are_private(name):
    public = [path.name for path in (PACKAGE / name).glob("*.py") if not path.name.startswith("_")]
    assert public == []


def test_documented_names_reads_rows_under_their_module():
    rows = "\n.. autosummary::\n   :toctree: generated\n\n"
    page = f"r2\n\n```{{eval-rst}}\n.. module:: multipert.model\n{rows}   MTAe\n   ModelTags\n```\n\n   rmse\n\n"
    page += f"```{{eval-rst}}\n.. currentmodule:: multipert.data\n{rows}   Condition\n```\n"
    assert documented_names(page) == ["model.MTAe", "model.ModelTags", "data.Condition"]


def test_every_public_name_has_one_row_in_the_reference():
    public = sorted(f"{package}.{name}" for package in SUBPACKAGES for name in public_names(package))
    assert sorted(documented_names((ROOT / "docs" / "api.md").read_text(encoding="utf-8"))) == public


def test_methods_in_sees_every_kind_of_behaviour():
    class Variant:
        tags = None
        parts = {"a": 1}

        def method(self): ...

        @property
        def attribute(self): ...

        @classmethod
        def of_class(cls): ...

        @staticmethod
        def static(): ...

    assert methods_in(Variant) == ["method", "attribute", "of_class", "static"]


@pytest.mark.skipif("model" not in SUBPACKAGES, reason="multipert.model does not exist yet")
def test_variants_set_class_attributes_only():
    models = [getattr(multipert.model, name) for name in multipert.model.__all__]
    models = [model for model in models if inspect.isclass(model) and is_concrete(model)]
    assert models
    variants = [model for model in models if any(map(is_concrete, model.__mro__[1:]))]
    assert {model.__name__: methods_in(model) for model in variants if methods_in(model)} == {}


def test_imports_point_one_way():
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_file_names_a_place_on_one_machine():
    place = re.compile(r"(?<![\w.$}>/])/(?:home|root|tmp|Users|work)/\w")
    found = {
        str(path.relative_to(ROOT)): places
        for path in written_files()
        if (path.suffix in TEXT or not path.suffix)
        and (places := place.findall(path.read_text(encoding="utf-8", errors="replace")))
    }
    assert found == {}
