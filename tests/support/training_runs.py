"""Training runs of a small model on a small data set: start them, stop them, and compare what they leave."""

import os
import subprocess
import sys
import time

import torch

from tests.conftest import PROJECT
from trainer import checkpoint, metrics
from trainer import train as training
from trainer.config import TrainConfig
from trainer.train_step import TrainStep

STEPS = 20  # two epochs of 8 and a half
RUN = {"device": "cpu", "width": 0.05, "batch_size": 4, "lr": 0.001, "steps": STEPS}
RUN |= {"log_every": 3, "checkpoint_every": 5, "final_crops": 10, "resume": "auto"}
STEP = (TrainStep, "__call__")


def run(data, out, **options):
    """Trains in this process."""
    training.train(TrainConfig(data, out, **{**RUN, **options}))


def start(data, out, **options):
    """Trains as the command in a process of its own."""
    command = [sys.executable, PROJECT / "cli.py", "train", "--data", data, "--out", out]
    for name, value in {**RUN, "log_every": 1, **options}.items():
        command += ["--" + name.replace("_", "-"), value]
    return subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process, status=0) -> str:
    """Waits for a process that `start` returned; its output."""
    output, _ = process.communicate(timeout=200)
    assert process.returncode == status and "Traceback" not in output, output
    return output


def reach(process, out, step):
    """Waits until a run has logged a step."""
    while process.poll() is None and not any(line["step"] >= step for line in metrics.read(out)):
        time.sleep(0.01)


def ranks_of(process) -> list[int]:
    """The process ids of a command's ranks."""
    return [*map(int, os.popen(f"pgrep -P {process.pid} -f spawn_main").read().split())]


def signal_at_call(monkeypatch, where, number, at):
    """Sends this process a signal when the loop calls a function, (its owner, its name), for the `at`th time."""
    function, calls = getattr(*where), iter(range(1, 10**6))

    def called(*arguments, **keywords):
        if next(calls) == at:
            os.kill(os.getpid(), number)
        return function(*arguments, **keywords)

    monkeypatch.setattr(*where, called)


def newest(out):
    return checkpoint.load(checkpoint.list_checkpoints(out)[0])


def logged_lines(out):
    """A run's metrics without the measured times."""
    return [{k: v for k, v in line.items() if k not in ("img_per_s", "data_wait")} for line in metrics.read(out)]


def assert_same_run(out, other):
    """Two runs logged the same and ended with the same weights."""
    assert logged_lines(out) == logged_lines(other)
    ours, theirs = newest(out), newest(other)
    assert ours["errors"] == theirs["errors"] and ours["step"] == theirs["step"]
    for kind in ("parameters", "velocity"):
        for name, value in theirs[kind].items():
            assert torch.equal(ours[kind][name], value), name
    assert checkpoint.load(out / checkpoint.BEST)["step"] == checkpoint.load(other / checkpoint.BEST)["step"]


def trained_by_command(run_cli, data, out, *more, steps=4):
    """The lines and the unsharded weights of a run by the command."""
    run_cli(
        *("train", "--data", data, "--out", out, "--device", "cpu", "--width", 0.05, "--batch-size", 12),
        *("--steps", steps, "--log-every", 1, "--eval-every", 100, "--lr", 0.001, *more),
    )
    return metrics.read(out, "train"), checkpoint.load(checkpoint.list_checkpoints(out)[0])["parameters"]
