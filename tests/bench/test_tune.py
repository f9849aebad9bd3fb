"""Tuning finds DALI's fastest settings, and training takes them from where it wrote them."""

import json

import pytest
import torch

from bench import tune
from bench.config import BenchConfig
from bench.harness.machine import cpu_context
from bench.rank_setup import RankSetup
from bench.tune import choices, find_fastest
from pipeline.settings import Settings
from trainer.precision import Precision


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
    fastest = find_fastest(planted, Settings(threads=2), choices(4, gpu=True), log=lines.append)
    assert fastest == Settings(threads=3, hw_decoder_load=0.3)
    assert len(lines) == len(choices(4, gpu=True)) and "threads: 2 900" in lines[-2]
    assert "hw_decoder_load" not in choices(4, gpu=False)


def test_on_a_gpu_settings_are_chosen_by_trainings_rate_and_on_a_cpu_by_the_pipelines(data, monkeypatch):
    made = []

    class Step:
        precision = Precision("fp32", torch.device("cpu"))

        def __init__(self, context, classes, options):
            made.append(classes)

        def update(self, images, labels):
            made.append(tuple(images.shape))

    monkeypatch.setattr(tune, "ModelStep", Step)
    config = BenchConfig(data, 16, device="cpu", seconds=0.05)
    setup = RankSetup.load(cpu_context(), config, data)
    assert tune.measure_pipeline(setup)(setup.settings) > 0 and made == []
    assert tune.measure_training(setup)(setup.settings._replace(prefetch=1)) > 0
    assert made[0] == 4 and set(made[1:]) == {(16, 3, 224, 224)}


def test_train_takes_what_throughput_bench_tuned_and_records_it(data, tmp_path, run_here, cache):
    tuned = run_here(
        *("throughput-bench", "--tune", "--data", data, "--device", "cpu"),
        *("--batch-size", 16, "--seconds", 0.1, "--prefetch", 3),
    )
    assert "threads: " in tuned.stdout and "tuned.json" in tuned.stdout
    kept = next(iter(json.loads((cache / "alexnet-dali" / "tuned.json").read_text()).values()))
    run_here(
        *("train", "--data", data, "--out", tmp_path / "run", "--device", "cpu", "--width", 0.05),
        *("--batch-size", 16, "--steps", 1, "--threads", 1),
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["decoding"] == {**kept, "threads": 1}
