"""The documents' figures are those of bench/results."""

from pathlib import Path

import pytest

from bench import tables

PROJECT = Path(__file__).parents[2]


def test_the_figures_are_as_measured_and_not_typed():
    for name, parts in tables.DOCUMENTS.items():
        text = (PROJECT / name).read_text()
        assert text == tables.with_figures(text, parts), "run `python -m bench.tables`"
        assert "Typed by hand" not in tables.with_figures(
            text.replace(tables.BEGIN, tables.BEGIN + "\n\nTyped by hand"), parts
        )


def test_a_missing_marker_is_an_error():
    with pytest.raises(ValueError):
        tables.with_figures("no markers here", ())
