"""Tuning finds DALI's fastest settings, and training takes them from where it wrote them."""

import json

import pytest

from bench.tune import candidates, find_fastest
from pipeline.settings import Settings


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache folder is an empty one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_tuning_finds_the_fastest_value_and_keeps_one_that_is_as_good():
    def planted(trial: Settings) -> float:
        # Most by 3 threads and by a hardware share of 0.3; one per cent, which is noise, by a longer queue
        return 1000 - 100 * abs(trial.threads - 3) - 200 * abs(trial.hw_decoder_load - 0.3) + 10 * (trial.prefetch > 2)

    lines = []
    fastest = find_fastest(planted, Settings(threads=2), cores=4, gpu=True, log=lines.append)
    assert fastest == Settings(threads=3, hw_decoder_load=0.3)
    assert len(lines) == len(candidates(4, gpu=True)) and "threads: 2 900" in lines[-2]
    assert "hw_decoder_load" not in candidates(4, gpu=False)


def test_train_takes_what_throughput_bench_tuned_and_records_it(data, tmp_path, run_cli, cache):
    where = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(cache)}
    tuned = run_cli(
        *("throughput-bench", "--tune", "--data", data, "--device", "cpu"),
        *("--batch-size", 16, "--seconds", 0.1, "--prefetch", 3),
        env=where,
    )
    assert "threads: " in tuned.stdout and "tuned.json" in tuned.stdout
    kept = next(iter(json.loads((cache / "alexnet-dali" / "tuned.json").read_text()).values()))
    run_cli(
        *("train", "--data", data, "--out", tmp_path / "run", "--device", "cpu", "--width", 0.05),
        *("--batch-size", 16, "--steps", 1, "--threads", 1),
        env=where,
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["decoding"] == {**kept, "threads": 1}
