"""What `export` writes gives our logits in programs that do not have our code, and holds the mean and the classes."""

import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors
import torch
from click.testing import CliRunner

import cli
from inference.export import PlainAlexNet, plain
from trainer.alexnet import VARIANTS, AlexNet


@pytest.fixture(scope="module")
def crops():
    return np.random.default_rng(1).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected(trained, crops):
    """Our own logits."""
    with torch.inference_mode():
        return trained.model(trained.preprocess()(torch.from_numpy(crops), None))[:, :4].numpy()


def export(run, kind, out):
    words = ["export", "--checkpoint", run, "--format", kind, "--out", out]
    return CliRunner().invoke(cli.main, [*map(str, words)])


def as_input(crops):
    return np.ascontiguousarray(crops.transpose(0, 3, 1, 2), np.float32)


def test_onnxruntime_gives_our_logits(run, trained, crops, expected, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    done = export(run, "onnx", tmp_path / "model.onnx")
    assert done.exit_code == 0, done.output
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for count in (3, 1):
        (logits,) = session.run(None, {"images": as_input(crops[:count])})
        np.testing.assert_allclose(logits, expected[:count], rtol=1e-4, atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(trained.classes)


def test_a_process_without_our_code_runs_the_torchscript_file(run, trained, crops, expected, tmp_path):
    assert export(run, "torchscript", tmp_path / "model.pt").exit_code == 0
    np.save(tmp_path / "images.npy", as_input(crops))
    code = """
import json, sys, numpy as np, torch
extra = {"alexnet.json": ""}
module = torch.jit.load("model.pt", _extra_files=extra)
np.save("logits.npy", module(torch.from_numpy(np.load("images.npy"))).detach().numpy())
print(json.loads(extra["alexnet.json"])["classes"], any(name.split(".")[0] == "trainer" for name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.stdout == f"{list(trained.classes)} False\n", done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=1e-4, atol=1e-4)


def test_safetensors_hold_the_model_the_mean_and_the_classes(run, trained, tmp_path):
    assert export(run, "safetensors", tmp_path / "model.safetensors").exit_code == 0
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["classes"]) == list(trained.classes)
        assert torch.equal(file.get_tensor("fc7.weight"), trained.model.fc7.weight)
        mean = trained.stats.mean_crop().transpose(2, 0, 1)
        np.testing.assert_allclose(file.get_tensor("mean").numpy(), mean, rtol=1e-6)


def test_torchvision_is_an_error_that_says_what_does_not_map(run, tmp_path):
    done = export(run, "torchvision", tmp_path / "model.pth")
    assert done.exit_code == 1 and not (tmp_path / "model.pth").exists()
    for part in ("conv1 4 kernels, not 64", "own tower only", "local response normalization", "--format torchscript"):
        assert part in done.output


@pytest.mark.parametrize(
    "variant",
    [
        VARIANTS["release-2012"],
        VARIANTS["one-tower"],
        VARIANTS["paper"]._replace(activation="tanh", norm=False, pool="2/2"),
    ],
    ids=["release-2012", "one-tower", "tanh"],
)
def test_the_plain_form_of_every_variant_gives_its_logits(variant):
    model = AlexNet(5, width=0.05, variant=variant).eval()
    model.init_weights(0)
    images = torch.rand(2, 3, 224, 224) * 255
    with torch.inference_mode():
        ours = model(images)[:, :5]
        theirs = PlainAlexNet(model, torch.zeros(3, 1, 1)).eval()(images)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_exporting_leaves_the_model_as_it_is(trained, crops, expected):
    plain(trained)
    with torch.inference_mode():
        again = trained.model(trained.preprocess()(torch.from_numpy(crops), None))[:, :4].numpy()
    assert np.array_equal(again, expected)
