"""The command refuses options that cannot be met before it measures, and writes the files that are asked for."""

import re
from pathlib import Path

import pytest

from bench import command
from bench.config import BenchConfig
from bench.tune import tune_rank
from shards.errors import InputError

DOCUMENT = Path(command.__file__).parents[1] / "docs" / "throughput.md"


@pytest.fixture
def no_launch(monkeypatch):
    """Fails when measuring begins."""
    monkeypatch.setattr(command, "launch", lambda *_, **__: pytest.fail("it has begun to measure"))


def test_the_document_lists_every_field_of_the_schema(short_report):
    documented = set(re.findall(r"`(\w+)`", DOCUMENT.read_text()))
    assert short_report.keys() <= documented and short_report["stages"][0].keys() <= documented


def test_a_report_is_written_where_it_was_asked_for(data, tmp_path, run_here):
    out = tmp_path / "page.html"
    options = ["--batch-size", 8, "--width", 0.05, "--seconds", 0.05, "--device", "cpu"]
    run_here("throughput-bench", "--data", data, "--report", out, *options)
    assert "What bounds training" in out.read_text()
    done = run_here("throughput-bench", "--report", tmp_path / "none" / "page.html", check=False)
    assert done.returncode and "--report" in done.stderr and "there is no such folder" in done.stderr


def test_torchrun_is_told_at_once_that_scaling_starts_ranks_itself(data, monkeypatch, no_launch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(InputError, match="leave torchrun out"):
        command.run(BenchConfig(data, with_scaling=True))


@pytest.mark.parametrize(
    "option, given",
    [
        ("--json", {"json_path": Path("out.json")}),
        ("--report", {"report_path": Path("out.html")}),
        ("--peers", {"with_peers": True}),
        ("--scaling", {"with_scaling": True}),
        ("--cold", {"cold": True}),
    ],
)
def test_an_option_that_has_no_effect_on_tuning_is_named(data, no_launch, option, given):
    with pytest.raises(InputError, match=f"{option} has no effect with --tune.*: leave one of the two out"):
        command.run(BenchConfig(data, tune=True, **given))


def test_tuning_passes_on_how_devices_share_the_model(data, monkeypatch):
    calls = []
    monkeypatch.setattr(command, "launch", lambda *args, **options: calls.append((args, options)))
    command.run(BenchConfig(data, 12, gpus=3, parallel="data", device="cpu", tune=True))
    ((work, gpus, *_), options) = calls[0]
    assert len(calls) == 1 and work is tune_rank and gpus == 3 and options == {"parallel": "data"}
