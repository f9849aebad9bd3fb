"""README's figures are those of benchmarks/results."""

import importlib.util
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("readme", PROJECT / "benchmarks" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_figures_are_as_measured_and_not_typed(script):
    readme = (PROJECT / "README.md").read_text()
    assert readme == script.written(readme), "run `python benchmarks/readme.py`"
    assert "Typed by hand" not in script.written(readme.replace(script.BEGIN, script.BEGIN + "\n\nTyped by hand"))


def test_a_missing_marker_is_an_error(script):
    with pytest.raises(ValueError):
        script.written("no markers here")
