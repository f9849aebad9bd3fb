"""`eval` evaluates any checkpoint in what the device has, and its messages name only options that it has."""

import json
from pathlib import Path

import pytest

from shards.dataset import Dataset
from shards.errors import InputError
from trainer import checkpoint
from trainer.alexnet import model_from_config
from trainer.config import TrainConfig
from trainer.evaluate import EvalOptions, evaluate_run
from trainer.launch import launch
from trainer.model_parallel import unsharded_layout
from trainer.optimizer import build_optimizer


def write_checkpoint(data: Path, run: Path, **options) -> Path:
    """A checkpoint of a narrow model with initial weights, as a run with these options would write it."""
    classes = Dataset.load(data).classes
    config = TrainConfig(str(data), run, width=0.05, **options)
    model = model_from_config(config, len(classes), unsharded_layout())
    model.init_weights(seed=0)
    run.mkdir()
    writer = checkpoint.CheckpointWriter(run, writes=True, keep=1)
    record = {"classes": list(classes), **config.recorded()}
    writer.save(1, model, build_optimizer("paper", model, 0.01), {"config": record, "errors": []})
    writer.wait()
    return checkpoint.list_checkpoints(run)[0]


def options(path: Path) -> EvalOptions:
    return EvalOptions(path, split="val", crops=1, batch_size=8, decoding={}, as_json=True)


def evaluated(data: Path, path: Path, capfd) -> tuple[dict, list[str]]:
    """The result, and the lines on stderr."""
    launch(evaluate_run, 1, "cpu", data, options(path))
    output = capfd.readouterr()
    result = json.loads(output.out)
    return {name: result[name] for name in ("top1_error", "top5_error", "samples")}, output.err.splitlines()


def test_a_tf32_checkpoint_is_evaluated_in_fp32_on_a_cpu_and_this_is_reported_in_one_line(data, tmp_path, capfd):
    path = write_checkpoint(data, tmp_path / "tf32", precision="tf32")
    result, lines = evaluated(data, path, capfd)
    assert [line for line in lines if "tf32" in line] == [
        "trained in tf32, which needs a CUDA device: evaluating in fp32"
    ]
    plain, lines = evaluated(data, write_checkpoint(data, tmp_path / "fp32"), capfd)
    assert result["top5_error"] is None  # of four classes
    assert result == plain and result["samples"] == 22 and not [line for line in lines if "fp32" in line]


def test_a_one_tower_checkpoint_on_two_devices_is_refused_with_a_remedy_that_eval_has(data, tmp_path):
    path = write_checkpoint(data, tmp_path / "run", variant="one-tower")
    with pytest.raises(InputError, match=r"^a model of one tower cannot be split into two: choose --gpus 1$"):
        launch(evaluate_run, 2, "cpu", data, options(path))


def test_the_number_of_devices_is_refused_with_the_options_that_the_command_has():
    number = r"--gpus 3: AlexNet has two towers, so it takes 1 \(both on one device\) or an even number"
    with pytest.raises(InputError, match=f"^{number}$"):
        launch(evaluate_run, 3, "cpu")
    with pytest.raises(InputError, match=f"^{number}, or --parallel data$"):
        launch(evaluate_run, 3, "cpu", parallel="towers")
