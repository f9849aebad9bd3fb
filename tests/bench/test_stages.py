"""Every stage is measured beside its limit, and a stage that slows down becomes the bottleneck."""

import json
import os
import time
from pathlib import Path

import pytest
import torch

from bench import command
from bench.bottleneck import CORES, predicted
from bench.config import BenchConfig
from bench.harness.model_step import ModelOptions
from bench.model_stages import flop_counts
from pipeline.loader import Loader
from trainer.alexnet import AlexNet
from trainer.train_step import TrainStep

BESIDE = ("pipeline beside", "model beside")  # which the recorded runs on CPUs are too old for
RECORDED = Path(command.__file__).parent / "results" / "throughput-2core-originals.json"


@pytest.mark.long
def test_a_stage_that_is_slowed_down_or_costs_nothing_changes_the_bottleneck(short_run, monkeypatch):
    def slow_step(*_, **__):
        time.sleep(0.2)
        return torch.zeros(())

    monkeypatch.setattr(TrainStep, "__call__", slow_step)
    slow = short_run()
    assert slow["bottleneck"] == "model" and "bound by the model at" in slow["verdict"]
    model = next(stage for stage in slow["stages"] if stage["name"] == "model")
    assert 0.5 * 16 / 0.2 < model["img_per_s"] <= 16 / 0.2

    monkeypatch.setattr(TrainStep, "__call__", lambda *_, **__: torch.zeros(()))
    draws = Loader.draws

    def slow_draws(self, *where):
        time.sleep(0.1)
        return draws(self, *where)

    monkeypatch.setattr(Loader, "draws", slow_draws)
    fast = short_run()
    assert fast["bottleneck"] == "pipeline" and "bound by the pipeline at" in fast["verdict"]


@pytest.mark.long
def test_two_ranks_report_their_exchange_and_each_stage_has_its_limit(data, tmp_path, run_cli):
    out = tmp_path / "bench.json"
    options = ["--batch-size", 8, "--width", 0.05, "--seconds", 0.1, "--device", "cpu", "--gpus", 2, "--cold"]
    done = run_cli("throughput-bench", "--data", data, "--json", out, *options)
    text, lines = done.stdout, done.stderr.splitlines()
    assert lines[-1].startswith("model on one device: ") and " left" not in lines[-1]
    report = json.loads(out.read_text())
    assert report["schema"] == 3 and report["machine"]["cores"] == len(os.sched_getaffinity(0))
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert list(stages) == [
        *("read", "decode", "patch", "pipeline", "eval", "feed"),
        *("exchange", "forward", "forward+backward", "model", *BESIDE, "train"),
    ]
    for name, stage in stages.items():
        assert 0 < stage["p10"] <= stage["img_per_s"] <= stage["p90"], name
        assert len(stage["per_device"]) == 2 and stage["cpu_use"] > 0 and stage["memory_peak_bytes"] > 2**20
        assert stage["of_limit"] == pytest.approx(stage["img_per_s"] / stage["limit_img_per_s"])
        alone = {name.removesuffix(" beside")} if name in BESIDE else set()
        assert stage["limit"] in {*report["limits"], "predicted"} | alone
    assert set(report["limits"]) == {"storage", "libjpeg-turbo", "matmul", "memory", "between ranks"}
    assert report["limits"]["storage"]["what"].endswith("cold")
    assert {"split decode / decoding twice", "256-shards / originals", "LRN tax"} <= set(report["ratios"])
    assert all(one["ratio"] == pytest.approx(one["over"] / one["under"]) for one in report["ratios"].values())
    assert report["verdict"] in text and report["peers"] == []


@pytest.mark.long
def test_without_data_it_renders_its_own(run_here):
    options = ["--batch-size", 8, "--width", 0.05, "--seconds", 0.1, "--device", "cpu"]
    done = run_here("throughput-bench", *options)
    assert "512 rendered images" in done.stdout
    last = done.stderr.splitlines()[-1]
    assert last.startswith("model without LRN: ") and " left" not in last  # all that was planned


def test_the_report_names_its_stages_limits_and_ratios_as_the_recorded_runs_do(short_report):
    report, recorded = short_report, json.loads(RECORDED.read_text())
    assert report.keys() >= recorded.keys() and report["limits"].keys() == recorded["limits"].keys()
    names = [stage["name"] for stage in report["stages"]]
    assert [name for name in names if name not in BESIDE] == [stage["name"] for stage in recorded["stages"]]
    assert list(report["ratios"]) == list(recorded["ratios"])
    units = {name: limit["unit"] for name, limit in recorded["limits"].items()}
    assert {name: limit["unit"] for name, limit in report["limits"].items()} == units


def test_the_pipeline_and_the_model_are_measured_at_the_same_time_and_that_is_their_prediction(short_report):
    rates = {stage["name"]: stage["img_per_s"] for stage in short_report["stages"]}
    for stage in short_report["stages"]:
        if stage["name"] in BESIDE:
            assert stage["limit"] == stage["name"].removesuffix(" beside")
            assert stage["limit_img_per_s"] == rates[stage["limit"]] and 0 < stage["of_limit"] < 1.5
    assert short_report["predicted_img_per_s"] == pytest.approx(predicted(rates, CORES))
    assert "Decoding and training share the cores: at the same time" in short_report["verdict"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("decode_on", ["device", "cpu"])
def test_on_a_gpu_the_decoders_limit_is_the_sum_of_its_parts_and_both_stages_run_beside_each_other(
    data, tmp_path, decode_on
):
    out = tmp_path / "bench.json"
    model = ModelOptions(width=0.05)
    decoding = {"decode_on": decode_on}
    command.run(BenchConfig(data, 16, model, gpus=1, device="cuda", decoding=decoding, seconds=0.2, json_path=out))
    report = json.loads(out.read_text())
    rates = {name: limit["rate"] for name, limit in report["limits"].items()}
    cores = max(rates["libjpeg-turbo"], rates["hybrid decoder"])
    assert rates["all decoders"] == rates["JPEG engine"] + cores and rates["nvImageCodec"] > 0
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert stages["decode"]["limit"] == ("all decoders" if decode_on == "device" else "libjpeg-turbo")
    assert all(stages[name]["img_per_s"] > 0 for name in BESIDE)
    assert ("share the card" in report["verdict"]) == (decode_on == "device")


def test_an_images_flop_is_the_papers_models():
    model = AlexNet()
    model.init_weights(seed=0)
    forward, backward = flop_counts(model, torch.zeros(1, 3, 224, 224), torch.Generator())
    conv1 = 96 * 55 * 55 * 3 * 11 * 11
    assert forward == 2 * 724_406_816 and backward == 2 * forward - 2 * conv1
