"""Tuning finds DALI's fastest settings, and training takes them from where it wrote them."""

import json
from dataclasses import replace

import pytest
import torch

from bench import tune
from bench.config import BenchConfig
from bench.harness.fresh_process import run_in_fresh_process
from bench.harness.machine import cpu_context
from bench.harness.model_step import ModelOptions
from bench.rank_setup import RankSetup
from bench.tune import Choice, choices, find_fastest, measure_alone
from pipeline.settings import Settings
from trainer.precision import Precision
from trainer.rank import RankContext


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache folder is an empty one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_tuning_finds_the_fastest_value_and_keeps_one_that_is_as_good():
    def planted(trial: Settings, at_start: bool) -> float:
        assert not at_start
        # Most by 3 threads and by a hardware share of 0.3; one per cent, which is noise, by a longer queue
        return 1000 - 100 * abs(trial.threads - 3) - 200 * abs(trial.hw_decoder_load - 0.3) + 10 * (trial.prefetch > 2)

    lines = []
    fastest = find_fastest(planted, Settings(threads=2), choices(4, gpu=True), log=lines.append)
    assert fastest == Settings(threads=3, hw_decoder_load=0.3)
    assert len(lines) == len(choices(4, gpu=True)) and "threads: 2 900" in lines[-2]
    assert "hw_decoder_load" not in choices(4, gpu=False)


def test_settings_that_are_read_when_cuda_starts_come_last_and_are_tried_with_what_was_found():
    def rate(trial: Settings, at_start: bool) -> float:
        calls.append((trial.prefetch, trial.threads, at_start))
        return 100.0 * trial.threads * trial.prefetch

    calls: list[tuple[int, int, bool]] = []
    possible = {"prefetch": Choice((2, 3), at_start=True), "threads": Choice((1, 2))}
    assert find_fastest(rate, Settings(1), possible, lambda _: None) == Settings(2, 3)
    assert [at_start for *_, at_start in calls] == [False] * 6 + [True] * 6
    assert {threads for _, threads, at_start in calls if at_start} == {2}


def test_a_setting_that_is_read_when_cuda_starts_is_tried_in_processes_of_its_own(data, monkeypatch, capsys):
    def fresh(timeout, function, config, where, trial):
        assert function is measure_alone and where == data
        tried.append(trial.prefetch)
        return {1: 100.0, 2: 50.0}[trial.prefetch]

    tried: list[int] = []
    monkeypatch.setattr(tune, "run_in_fresh_process", fresh)
    monkeypatch.setattr(tune, "choices", lambda cores, gpu: {"prefetch": Choice((1, 2), at_start=True)})
    config = BenchConfig(data, 16, device="cpu", seconds=0.05)
    tune.tune_rank(cpu_context(), config, data)
    assert sorted(tried) == [1, 1, 1, 2, 2, 2] and "prefetch 1, affinity" in capsys.readouterr().out
    two = replace(cpu_context(), world_size=2)
    monkeypatch.setattr(RankContext, "barrier", lambda self: None)
    tune.tune_rank(two, config, data)
    assert len(tried) == 6 and "is found with one device alone" in capsys.readouterr().out


def test_a_process_of_its_own_measures_with_the_settings_that_it_is_given(data):
    config = BenchConfig(data, 16, ModelOptions(width=0.05), device="cpu", seconds=0.05)
    assert run_in_fresh_process(120, measure_alone, config, data, Settings(threads=1, prefetch=3)) > 0


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
