"""Short runs of throughput-bench, in this process: every measurement for a fraction of a second."""

import json

import pytest

from bench import command
from bench.config import BenchConfig
from bench.harness.model_step import ModelOptions


@pytest.fixture(scope="session")
def short_run(data, tmp_path_factory):
    """Makes a run and returns its report."""

    def run():
        out = tmp_path_factory.mktemp("bench") / "bench.json"
        model = ModelOptions(width=0.05)
        command.run(BenchConfig(data, 16, model, gpus=1, device="cpu", seconds=0.2, json_path=out))
        return json.loads(out.read_text())

    return run


@pytest.fixture(scope="session")
def short_report(short_run):
    """The report of one run, for tests that only read it."""
    return short_run()
