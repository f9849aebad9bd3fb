"""throughput-bench: what it measures, what it concludes, and that the conclusion follows what is measured."""

import json
import mmap
import os
import re
import time
from pathlib import Path

import pytest
import torch

from bench import bottleneck, command, limits
from bench.compare import compare, read_report
from bench.config import BenchConfig
from bench.harness.datasets import read_jpegs
from bench.harness.jpeg_baseline import decoders
from bench.harness.model_step import ModelOptions, ModelStep
from bench.harness.timing import timed
from bench.model_stages import flop_counts
from pipeline.loader import Loader
from shards.errors import InputError
from trainer.alexnet import AlexNet
from trainer.model_parallel import whole
from trainer.rank import RankContext
from trainer.train_step import TrainStep

PROJECT = Path(__file__).parents[2]
RECORDED = sorted((PROJECT / "bench" / "results").glob("throughput-2core*.json"))
RATES = {"read": 9e4, "decode": 1000, "pipeline": 800, "feed": 2e4, "model": 100, "train": 88}
HERE = RankContext(torch.device("cpu"), 0, 1, whole(), 2)


@pytest.fixture
def bench(data, tmp_path):
    """The report of a short run in this process."""

    def run():
        out, model = tmp_path / "bench.json", ModelOptions(width=0.05)
        command.run(BenchConfig(data, 16, model, gpus=1, device="cpu", seconds=0.2, json_path=out))
        return json.loads(out.read_text())

    return run


# What is concluded, from rates alone


@pytest.mark.parametrize(
    "changed, bound",
    [
        ({}, "model"),
        ({"model": 5000}, "decode"),
        ({"model": 5000, "decode": 4000}, "pipeline"),
        ({"model": 5000, "read": 500, "decode": 450, "pipeline": 501}, "read"),
        ({"read": 50}, "read"),
        ({"feed": 60}, "feed"),
        ({"exchange": 1000}, "model"),
        ({"exchange": 150}, "exchange"),
    ],
)
def test_the_bottleneck_is_the_stage_that_costs_most(changed, bound):
    assert bottleneck.bottleneck({**RATES, **changed}) == bound


def test_shared_cores_add_times_up_and_a_gpu_runs_at_the_slowest_parts_pace():
    assert bottleneck.predicted({**RATES, "feed": 1e9, "pipeline": 100}, shared_cores=True) == pytest.approx(50)
    assert bottleneck.predicted({**RATES, "pipeline": 99}, shared_cores=False) == 99
    assert bottleneck.predicted({**RATES, "read": 7}, shared_cores=True) == 7


def test_the_verdict_names_both_bounds_what_would_help_and_the_papers_hours():
    told = bottleneck.diagnose(RATES, {}, shared_cores=True, cores=2)
    assert "bound by the model at 100 img/s; the next bound is the pipeline at 800; with 4 cores" in told["verdict"]
    assert told["would_be"] == [{"change": "4 cores", "img_per_s": pytest.approx(2 * told["predicted_img_per_s"])}]
    assert told["paper_hours"] == pytest.approx(90 * 1_281_167 / 88 / 3600) and "five to six days" in told["verdict"]

    starved = bottleneck.diagnose(
        {**RATES, "model": 3900, "train": 790}, {"256-shards": 3000}, shared_cores=False, cores=16
    )
    assert "bound by the pipeline at 800 img/s; the next bound is the model at 3,900" in starved["verdict"]
    assert [change["change"] for change in starved["would_be"]] == ["78 cores", "256-shards"]
    assert [change["img_per_s"] for change in starved["would_be"]] == [3900, 3000]


def test_a_measurement_that_the_model_does_not_explain_is_called_so():
    told = bottleneck.diagnose({**RATES, "train": 40}, {}, shared_cores=True, cores=2)
    assert told["prediction_error"] < -0.1 and "which the model does not explain" in told["verdict"]
    assert "does not explain" not in bottleneck.diagnose(RATES, {}, shared_cores=True, cores=2)["verdict"]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_training_as_recorded_is_within_a_tenth_of_the_prediction(path):
    report = read_report(path)
    rates = {stage["name"]: stage["img_per_s"] for stage in report["stages"]}
    assert bottleneck.predicted(rates, shared_cores=True) == pytest.approx(rates["train"], rel=0.1)
    assert report["predicted_img_per_s"] == pytest.approx(bottleneck.predicted(rates, shared_cores=True))
    assert abs(report["prediction_error"]) < 0.1 and report["bottleneck"] == bottleneck.bottleneck(rates)


def test_figures_are_recorded():
    assert len(RECORDED) >= 2


# What is measured


@pytest.mark.long
def test_a_stage_that_is_slowed_down_or_costs_nothing_changes_the_verdict(bench, monkeypatch):
    def slow_step(*_, **__):
        time.sleep(0.2)
        return torch.zeros(())

    monkeypatch.setattr(TrainStep, "__call__", slow_step)
    slow = bench()
    assert slow["bottleneck"] == "model" and "bound by the model at" in slow["verdict"]
    model = next(stage for stage in slow["stages"] if stage["name"] == "model")
    assert model["img_per_s"] == pytest.approx(16 / 0.2, rel=0.1)

    monkeypatch.setattr(TrainStep, "__call__", lambda *_, **__: torch.zeros(()))
    draws = Loader.draws

    def slow_draws(self, *where):
        time.sleep(0.05)
        return draws(self, *where)

    monkeypatch.setattr(Loader, "draws", slow_draws)
    fast = bench()
    assert fast["bottleneck"] == "pipeline" and "bound by the pipeline at" in fast["verdict"]


@pytest.mark.long
def test_two_ranks_report_their_exchange_and_each_stage_has_its_limit(data, tmp_path, run_cli):
    out = tmp_path / "bench.json"
    words = ["--batch-size", 8, "--width", 0.05, "--seconds", 0.1, "--device", "cpu", "--gpus", 2, "--cold"]
    done = run_cli("throughput-bench", "--data", data, "--json", out, *words)
    told, lines = done.stdout, done.stderr.splitlines()
    assert lines[-1].startswith("model on one device: ") and lines[-1].endswith(", 0 min 0 s left")
    report = json.loads(out.read_text())
    assert report["schema"] == 3 and report["machine"]["cores"] == len(os.sched_getaffinity(0))
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert list(stages) == [
        *("read", "decode", "patch", "pipeline", "eval", "feed"),
        *("exchange", "forward", "forward+backward", "model", "train"),
    ]
    for name, stage in stages.items():
        assert 0 < stage["p10"] <= stage["img_per_s"] <= stage["p90"], name
        assert len(stage["per_device"]) == 2 and stage["cpu_use"] > 0 and stage["memory_peak_bytes"] > 2**20
        assert stage["of_limit"] == pytest.approx(stage["img_per_s"] / stage["limit_img_per_s"])
        assert stage["limit"] in {*report["limits"], "predicted"}
    assert set(report["limits"]) == {"storage", "libjpeg-turbo", "matmul", "memory", "between ranks"}
    assert report["limits"]["storage"]["what"].endswith("cold")
    assert {"split decode / decoding twice", "256-shards / originals", "LRN tax"} <= set(report["ratios"])
    assert all(one["ratio"] == pytest.approx(one["over"] / one["under"]) for one in report["ratios"].values())
    assert report["verdict"] in told and report["peers"] == []


@pytest.mark.long
def test_without_data_it_renders_its_own(run_cli):
    words = ["--batch-size", 8, "--width", 0.05, "--seconds", 0.1, "--device", "cpu"]
    assert "512 rendered images" in run_cli("throughput-bench", *words).stdout


def test_the_document_lists_every_field_of_the_schema(bench):
    documented = set(re.findall(r"`(\w+)`", (PROJECT / "docs" / "throughput.md").read_text()))
    report = bench()
    assert report.keys() <= documented and report["stages"][0].keys() <= documented


def test_the_clock_covers_the_windows_alone():
    calls = []

    def step():
        calls.append(time.perf_counter())
        time.sleep(0.2 if len(calls) == 1 else 0.01)  # the first call is slow, as first calls are

    found = timed(step, 5, 0.5, HERE)
    assert found.median == pytest.approx(500, rel=0.15) and len(found.rates) == 5
    assert found.cpu < 0.5 and found.gpu is None and found.memory > 2**20


def test_a_batch_that_is_repeated_is_not_learned():
    resident = ModelStep(HERE, 4, ModelOptions(width=0.05))
    before = [parameter.detach().clone() for parameter in resident.model.parameters()]
    images, labels = torch.randn(8, 3, 224, 224) * 50, torch.randint(4, (8,))
    for _ in range(20):
        resident.update(images, labels)
    for one, other in zip(before, resident.model.parameters(), strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-4, atol=1e-6)


def test_a_peak_of_memory_is_of_its_own_stage():
    def take():
        with mmap.mmap(-1, 2**28) as memory:  # which goes back to the kernel at once
            for page in range(0, 2**28, 4096):
                memory[page] = 1

    take()
    quiet = timed(lambda: time.sleep(0.01), 1, 0.1, HERE).memory
    assert timed(take, 1, 0.1, HERE).memory > quiet + 2**27


def test_a_images_flop_is_the_papers_nets():
    model = AlexNet()
    model.initialize(seed=0)
    forward, backward = flop_counts(model, torch.zeros(1, 3, 224, 224), torch.Generator())
    conv1 = 96 * 55 * 55 * 3 * 11 * 11
    assert forward == 2 * 724_406_816 and backward == 2 * forward - 2 * conv1


def test_processes_decode_at_once(data):
    from shards.dataset import Dataset

    images = read_jpegs(Dataset.load(data), 5)
    assert len(images) == 5 and all(image.startswith(b"\xff\xd8") for image in images)
    with decoders(images, 2) as decode:
        found = decode(0.2)
    assert found.rate > 10 and 0 < found.cpu < 0.1


def test_dropped_files_are_read_from_the_disk(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(2**20))

    def cached():
        with open(path, "rb") as file:
            try:
                return os.preadv(file.fileno(), [bytearray(4096)], 0, os.RWF_NOWAIT) > 0
            except BlockingIOError:
                return False
            except OSError as error:
                pytest.skip(f"this file system does not tell what is cached: {error}")

    if not cached():
        pytest.skip("this file system keeps nothing cached")
    limits.drop([path])
    assert not cached()


# Two runs side by side


def report_file(path, **rates):
    stages = [{"name": name, "img_per_s": rate, "p10": 0.9 * rate, "p90": 1.1 * rate} for name, rate in rates.items()]
    report = {"schema": 3, "stages": stages, "bottleneck": "model", "data": {"name": path.stem}, "width": 1.0}
    path.write_text(json.dumps(report))
    return path


def test_compare_tells_a_difference_from_noise(tmp_path, run_cli):
    one = report_file(tmp_path / "one.json", read=100, model=50, train=40)
    two = report_file(tmp_path / "two.json", read=110, model=100)
    told = run_cli("throughput-bench", "--compare", one, two).stdout
    assert re.search(r"read +100 +110 +1.10 +no", told) and re.search(r"model +50 +100 +2.00 +yes", told)
    assert "train" not in told and "data: {'name': 'one'} in A, {'name': 'two'} in B" in told


@pytest.mark.parametrize(
    "content, complaint",
    [
        ("{", "does not hold a run's figures"),
        ('{"schema": 1, "stages": []}', "is of schema 1, and this version's is 3: measure again"),
        ('{"schema": 3, "stages": [{}]}', "does not hold a run's figures"),
    ],
)
def test_a_file_that_cannot_be_compared_is_named(tmp_path, content, complaint):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(InputError, match=complaint):
        compare(path, path)
