"""Every study runs as a module, and its contestants do the work that they are compared by."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from bench.harness.machine import cpu_context
from bench.harness.model_step import ModelOptions, ModelStep
from bench.studies import public_loader, scale
from bench.studies.sharding.contestants import SIZE, decode, encode, square
from bench.studies.step import contestants
from bench.studies.step.contestants import MODELS, RATIOS, Grouped, PlainAlexNet, SideBySide, plain_sgd
from shards.synthetic import render_folders
from trainer.alexnet import AlexNet

PROJECT = Path(__file__).parents[2]
STUDIES = (
    "sharding.__main__",
    "data_path",
    "step.__main__",
    "parallel",
    "checkpoint",
    "loader",
    "public_loader",
    "busy",
    "memory",
    "quality",
    "scale",
)


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_says_what_it_measures_and_its_options(study):
    module = importlib.import_module(f"bench.studies.{study}")
    result = CliRunner().invoke(module.main, ["--help"])
    assert result.exit_code == 0 and len(result.output.splitlines()) > 5, result.output
    assert "--json FILE" in result.output


def test_the_plain_model_has_our_weights_and_the_same_first_layer():
    options = ModelOptions(width=0.05)
    ours = ModelStep(cpu_context(), 4, options)
    plain = ModelStep(cpu_context(), 4, options, PlainAlexNet, plain_sgd)
    assert isinstance(plain.optimizer, torch.optim.SGD)
    for name, parameter in ours.model.named_parameters():
        torch.testing.assert_close(plain.model.get_parameter(name), parameter)
    images, labels = torch.randn(2, 3, 224, 224), torch.tensor([0, 3])
    torch.testing.assert_close(plain.model.conv1(images), ours.model.conv1(images), rtol=1e-4, atol=1e-4)
    plain.update(images, labels)
    assert plain.forward(images).shape == (2, 4)


def test_the_towers_forms_are_the_same_model_in_one_tensor_and_in_two():
    images, labels = torch.randn(2, 3, 224, 224), torch.tensor([0, 3])
    gradients = {}
    for name, form in MODELS.items():
        step = ModelStep(cpu_context(), 4, ModelOptions(width=0.05), form)
        assert step.model._parts(images) == {"grouped": 1, "side by side": 2}[name]
        step.update(images, labels)
        gradients[name] = {name: parameter.grad for name, parameter in step.model.named_parameters()}
    torch.testing.assert_close(gradients["grouped"], gradients["side by side"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name, options, form",
    [
        ("ours", ModelOptions(), AlexNet),
        ("grouped", ModelOptions(), Grouped),
        ("side by side", ModelOptions(), SideBySide),
        ("bf16 compiled", ModelOptions(precision="bf16", compile=True), AlexNet),
        ("CUDA graphs", ModelOptions(cuda_graphs=True), AlexNet),
        ("compiled, CUDA graphs", ModelOptions(compile=True, cuda_graphs=True), AlexNet),
    ],
)
def test_a_contestant_of_the_step_study_is_what_its_name_says(monkeypatch, name, options, form):
    made = []
    step = SimpleNamespace(update=print)
    monkeypatch.setattr(contestants, "ModelStep", lambda *made_of: made.append(made_of) or step)
    context = cpu_context()
    contestants.training_step(name, context)
    assert made == [(context, 1000, options, form)]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_step_study_compares_what_there_is_on_the_device(monkeypatch, device):
    turn = {"img_per_s": 2.0, "products": 1.0}
    monkeypatch.setattr(contestants, "turn_in_a_process", lambda name, device, steps: turn)
    figures = contestants.measure_steps(device, rounds=1, steps=1)
    absent = {"cpu": {"grouped", "CUDA graphs", "compiled, CUDA graphs"}, "cuda": {"side by side"}}[device]
    assert {*figures["img_per_s"]} == {*contestants.STEPS} - absent
    assert {*figures["ratios"]} == {name for name, (over, under, _) in RATIOS.items() if not {over, under} & absent}


def test_the_bare_loop_makes_squares_of_256(tmp_path):
    render_folders(tmp_path, classes=2, train=2, val=0, seed=0)
    for path in (tmp_path / "train").rglob("*.jpg"):
        assert decode(encode(square(decode(path.read_bytes())))).shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("module", ["bench.studies.sharding.contestants", "bench.harness.jpeg_baseline"])
def test_processes_whose_start_is_timed_do_not_import_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, timeout=60).returncode == 0


def test_the_public_loaders_crops_are_those_that_it_is_compared_with(data):
    read = public_loader.readers(data, data, batch_size=12)
    pipeline, public = next(read["pipeline"]), next(read["public"])
    assert torch.equal(pipeline.images, public.images.movedim(1, -1)) and torch.equal(pipeline.labels, public.labels)
    assert {"float32", "resized"} < {*read}


def test_the_cost_of_a_start_and_an_order_is_measured_and_held_to_its_bounds(monkeypatch):
    result = CliRunner().invoke(scale.main, ["--shards", "3"])
    assert result.exit_code == 0 and "samples: 3843" in result.output, result.output
    monkeypatch.setitem(scale.BOUNDS, "order full", 0)
    result = CliRunner().invoke(scale.main, ["--shards", "3"])
    assert result.exit_code == 1 and "order full is 0.0, and at most 0" in result.output
