"""The documents' figures are those of bench/results."""

import json
import shutil
from pathlib import Path

import pytest

from bench import tables

PROJECT = Path(__file__).parents[2]


def test_the_figures_are_as_measured_and_not_typed():
    for name, sections in tables.DOCUMENTS.items():
        text = (PROJECT / name).read_text()
        assert text == tables.with_figures(text, sections), "run `python -m bench.tables`"
        assert "Typed by hand" not in tables.with_figures(
            text.replace(tables.BEGIN, tables.BEGIN + "\n\nTyped by hand"), sections
        )


def test_a_missing_marker_is_an_error():
    with pytest.raises(ValueError):
        tables.with_figures("no markers here", ((tables.step,),))


def cells(markdown):
    """A table's rows by their first cell."""
    rows = [row.strip("| ").split(" | ") for row in markdown.splitlines() if row.startswith("|")]
    return {first: rest for first, *rest in rows}


def test_a_record_of_a_gpu_is_a_column_as_soon_as_it_is_there_and_the_fastest_leads(tmp_path, monkeypatch):
    shutil.copytree(tables.RESULTS, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("*-h200*"):
        path.unlink()
    recorded = json.loads((tables.RESULTS / "throughput-h200-at-256.json").read_text())
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for name, times in (("throughput-h200-eager", 1), ("throughput-h200-new", 3)):
        stages = [{**stage, "img_per_s": times * stage["img_per_s"]} for stage in recorded["stages"]]
        both = [{**stages[-1], "name": "pipeline beside"}] if times == 3 else []
        about = {"machine": {**recorded["machine"], "commit": name[-5:]}, "compile": times == 3}
        (tmp_path / f"{name}.json").write_text(json.dumps({**recorded, **about, "stages": [*both, *stages]}))
    first = tables.headline()
    train = recorded["stages"][-1]["img_per_s"]
    assert f"**{3 * train:,.0f}**" in first and "`--compile`, commit 0-new" in first
    assert cells(first)["FFCV"][0] == "not measured"
    columns = cells(tables.training_on_a_gpu())
    assert columns["stage"] == ["`throughput-h200-eager`", "`throughput-h200-new`"]
    assert [value.split(" (")[0] for value in columns["train"]] == [f"{train:,.0f}", f"{3 * train:,.0f}"]
    assert columns["pipeline beside"][0] == "" and columns["commit"] == ["eager", "0-new"]
    assert len(cells(tables.gpu_limits())["matmul"]) == 2

    peers = [{"name": "ours (DALI)", "img_per_s": 30_000.0, "ratio": 1.0}]
    peers += [{"name": "nvJPEG", "img_per_s": 9_000.0, "ratio": 3.3}, {"name": "FFCV", "absent": "not installed: ffcv"}]
    report = {"machine": recorded["machine"], "command": "python", "stored": 256, "peers": peers}
    (tmp_path / "peers-h200-at-256.json").write_text(json.dumps(report))
    rows = cells(tables.headline())
    assert rows["**the data path alone: ours (DALI)**"][0] == "**30,000**"
    assert rows["nvJPEG"] == ["9,000", "not measured"] and rows["FFCV"][0] == "not measured"
    assert cells(tables.loaders())["FFCV"][-1] == "not installed"
