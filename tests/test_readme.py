"""The documents' figures are those of benchmarks/results."""

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
    for name, parts in script.PLACES.items():
        text = (PROJECT / name).read_text()
        assert text == script.written(text, parts), "run `python benchmarks/readme.py`"
        assert "Typed by hand" not in script.written(
            text.replace(script.BEGIN, script.BEGIN + "\n\nTyped by hand"), parts
        )


def test_a_missing_marker_is_an_error(script):
    with pytest.raises(ValueError):
        script.written("no markers here", ())
