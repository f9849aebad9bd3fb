"""The demo learns, in one command."""

import json

import pytest
import torch

import demo
from trainer import metrics

needs_gpu = pytest.mark.skipif(torch.cuda.device_count() != 1, reason="there is not one CUDA device here")


@pytest.mark.long
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
def test_the_demo_learns(tmp_path, run_here, device):
    out = tmp_path / "demo"
    output = run_here("demo", "--short", "--out", out, "--device", device).stdout
    assert json.loads((out / "run" / "config.json").read_text())["cuda_graphs"] is (device == "cuda")
    result = metrics.read(out / "run", "eval")[-1]
    # Chance is 0.9 on 400 images, spread 0.015: a model which learned nothing is six spreads away
    assert result["samples"] == 400 and result["top1_error"] < 0.81
    assert f"top-1 {result['top1_error']:.1%}" in output and "images per second" in output
    for name in ("batch.png", "conv1.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_the_demo_does_not_compile_wherever_it_runs(tmp_path, monkeypatch):
    class Enough(Exception):
        pass

    def train(config):
        assert config.compile is False and config.cuda_graphs is None
        raise Enough

    monkeypatch.setattr(demo, "train", train)
    for name in ("render_folders", "write_dataset", "complete"):
        monkeypatch.setattr(demo, name, lambda *_, **__: None)
    with pytest.raises(Enough):
        demo.run(tmp_path, short=True, device="auto", seed=0)
