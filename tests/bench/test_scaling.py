"""Scaling measures the speed along every axis: threads, ranks, batch, and how images are stored."""

import json

import pytest

from bench import rank_setup, scaling
from bench.config import BenchConfig
from bench.harness.datasets import stream
from bench.harness.machine import cpu_context
from bench.harness.model_step import ModelOptions
from bench.harness.timing import Timed
from trainer.launch import launch


@pytest.mark.long
def test_scaling_measures_every_axis(data, tmp_path, monkeypatch, quick_ranks):
    used = []

    def recorded(dataset, *, settings, **options):
        used.append((settings.threads, settings.prefetch))
        return stream(dataset, settings=settings, **options)

    monkeypatch.setattr(rank_setup, "stream", recorded)
    chosen = {"threads": None, "prefetch": 3, "affinity": None, "decode_on": None, "hw_decoder_load": None}
    model = ModelOptions(width=0.05)
    config = BenchConfig(data, 4, model, device="cpu", decoding=chosen, seconds=0.1, with_scaling=True)
    axes = scaling.measure(config, data, tmp_path)
    assert {prefetch for _, prefetch in used} == {3} and used[0][0] == 1  # as chosen, but for what is changed
    assert [axis["axis"] for axis in axes] == ["threads", "ranks", "batch", "pictures"]
    points = {axis["axis"]: [point["x"] for point in axis["points"]] for axis in axes}
    assert points["threads"][0] == 1 and points["ranks"][0] == 1 and points["batch"] == [1, 2, 4]
    assert points["pictures"] == ["256", "384", "512", "originals"]
    assert all(point["img_per_s"] > 0 for axis in axes for point in axis["points"])
    assert scaling.table(axes).count("img/s by") == 4


@pytest.mark.long
@pytest.mark.parametrize("parallel", ["towers", "data", "hybrid"])
def test_ranks_can_share_the_model_in_every_way(tmp_path, parallel, quick_ranks):
    config = BenchConfig(None, 4, ModelOptions(width=0.05), seconds=0.1)
    launch(scaling.measure_shared, 2, "cpu", config, 4, tmp_path / "result.json", parallel=parallel)
    assert json.loads((tmp_path / "result.json").read_text())["rates"][0] > 0


def test_models_are_compiled_and_recorded_as_training_would_have_them(data, tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(rank_setup, "choose_compilation", lambda compile, graphs, kind, ranks: (True, False))
    monkeypatch.setattr(scaling, "ModelStep", lambda context, classes, options: measured.append(options))
    monkeypatch.setattr(scaling, "timed", lambda *_: Timed([1.0], [1.0], 0.0, None, 0))
    config = BenchConfig(data, 4, ModelOptions(compile=None, cuda_graphs=None), device="cpu")
    only_a_batch = scaling.AxisValues(threads=[], ranks=[], batch=[4], pictures=[])
    result_path = tmp_path / "result.json"
    scaling.measure_alone(cpu_context(), config, data, tmp_path, only_a_batch, lambda axis, x, result: {}, result_path)
    scaling.measure_shared(cpu_context(), config, 4, result_path)
    assert measured == 2 * [ModelOptions(compile=True, cuda_graphs=False)]


def test_powers_of_two_end_at_the_most():
    assert [scaling.powers(most) for most in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2], [1, 2, 4, 8]]


def test_a_point_is_named_with_the_right_plural():
    names = [scaling.point_name(*point) for point in (("threads", 1), ("ranks", 2), ("batch", 1), ("pictures", "256"))]
    assert names == ["1 thread", "2 ranks", "1 image a batch", "256 stored"]
