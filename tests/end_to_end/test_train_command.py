"""`train` as a user types it: what it writes, resuming, two processes as one, torchrun."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.conftest import PROJECT
from tests.end_to_end.conftest import SMALL
from trainer import checkpoint, metrics
from trainer.alexnet import AlexNet

CLI = PROJECT / "cli.py"


def parameters(run):
    return checkpoint.load(checkpoint.list_checkpoints(run)[0])["parameters"]


def without_speed(run):
    clocked = ("img_per_s", "data_wait")
    return [{key: value for key, value in line.items() if key not in clocked} for line in metrics.read(run)]


def test_a_run_writes_its_config_metrics_and_checkpoints(unbroken):
    lines = metrics.read(unbroken)
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in trained] == [1, 3, 6, 9, 12, 15, 16]
    assert all(line.keys() == {"kind", "step", "epoch", "loss", "lr", "img_per_s", "data_wait"} for line in trained)
    assert [line["epoch"] for line in trained] == [0, 0, 0, 0, 0, 1, 1]
    evaluated = [line for line in lines if line["kind"] == "eval"]
    assert [(line["step"], line["epoch"], line["samples"]) for line in evaluated] == [(12, 0, 22), (16, 1, 22)]
    names = {"kind", "step", "epoch", "crops", "top1_error", "top5_error", "samples"}
    assert all(line.keys() == names and 0 <= line["top1_error"] <= 1 for line in evaluated)
    assert json.loads((unbroken / "config.json").read_text())["batch_size"] == 8
    # The newest three, of which the one of the first epoch's end is kept for being the best so far
    kept = [path.name for path in checkpoint.list_checkpoints(unbroken)]
    assert kept == [f"checkpoint-000000{step}.safetensors" for step in (16, 15, 12)]
    assert checkpoint.load(unbroken / "best.safetensors")["step"] in (12, 16)


def test_a_killed_run_resumes_bit_for_bit(data, unbroken, tmp_path, run_here):
    out = tmp_path / "run"
    command = [sys.executable, CLI, "train", "--data", data, "--out", out, "--steps", 16, *SMALL, "--resume", "auto"]
    command = list(map(str, command))
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None and not any(line["step"] >= 6 for line in metrics.read(out)):
        time.sleep(0.02)
    running.kill()
    assert (
        running.wait() == -signal.SIGKILL
        and checkpoint.list_checkpoints(out)[0].name < "checkpoint-00000016.safetensors"
    )
    done = run_here(*command[2:])
    assert "Resumed after step" in done.stderr
    for name, value in parameters(unbroken).items():
        assert torch.equal(value, parameters(out)[name]), name
    assert without_speed(out) == without_speed(unbroken)
    # Once more: there is nothing to do, and it says so
    again = run_here(*command[2:])
    assert "nothing is left to do" in again.stderr and without_speed(out) == without_speed(unbroken)


def test_two_processes_train_as_one_and_resume_as_one(data, unbroken, tmp_path, run_cli, run_here):
    out = tmp_path / "run"
    done = run_cli("train", "--data", data, "--out", out, "--gpus", 2, "--steps", 10, *SMALL)
    assert "Warning" not in done.stderr
    # ... and one device carries on with the two towers' checkpoint
    run_here("train", "--data", data, "--out", out, "--gpus", 1, "--steps", 16, *SMALL, "--resume", "auto")
    fresh = AlexNet(4, width=0.05)
    fresh.init_weights(seed=0)
    for name, start in fresh.unsharded_state_dict().items():
        # What 16 updates changed is the same, but for rounding, which they amplify; a lost velocity would halve it
        moved, theirs = parameters(out)[name] - start, parameters(unbroken)[name] - start
        assert (moved - theirs).norm() < 0.05 * theirs.norm(), name
    for ours, theirs in zip(metrics.read(out, "train"), metrics.read(unbroken, "train"), strict=False):
        if ours["step"] == theirs["step"]:
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


def test_torchrun_starts_it_too(data, unbroken, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, CLI, "train", "--data", data, "--out", tmp_path / "run", "--steps", 3, *SMALL]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    ours, theirs = (metrics.read(run, "train")[1] for run in (tmp_path / "run", unbroken))
    assert ours["step"] == 3 and ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    command[command.index(tmp_path / "run")] = tmp_path / "other"
    command += ["--gpus", 1]
    refused = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert refused.returncode != 0 and "--gpus 1 but torchrun started 2" in refused.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_devices_that_are_not_there(data, tmp_path, run_cli, run_here):
    words = ["train", "--data", data, "--out", tmp_path / "a", "--batch-size", 8]
    refused = run_here(*words, "--device", "cuda", check=False)
    assert refused.returncode != 0 and "torch finds no CUDA device" in refused.stderr
    words = ["train", "--data", data, "--out", tmp_path / "b", "--gpus", 2, "--steps", 1]
    output = run_cli(*words, "--width", 0.05, "--batch-size", 8).stderr
    assert output.count("No CUDA device here: this runs on the CPU, in 2 processes.") == 1
