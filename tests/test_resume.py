"""A run that is killed, asked to stop, or handed broken files, against one that nothing happened to."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import PROJECT

from trainer import checkpoint, metrics
from trainer.stopping import STOPPED

STEPS = 40
WORDS = ["--device", "cpu", "--width", 0.05, "--batch-size", 8, "--lr", 0.001, "--steps", STEPS]
WORDS += ["--log-every", 1, "--checkpoint-every", 3, "--eval-every", 1]


def start(data, out, *more, **keywords):
    words = [
        sys.executable,
        PROJECT / "cli.py",
        "train",
        "--data",
        data,
        "--out",
        out,
        *WORDS,
        "--resume",
        "auto",
        *more,
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(list(map(str, words)), **(pipes | keywords))


def finish(process) -> str:
    told, _ = process.communicate(timeout=200)
    assert process.returncode == 0, told
    return told


def wait_for_step(process, out, step):
    while process.poll() is None and not any(line["step"] >= step for line in metrics.read(out)):
        time.sleep(0.01)


def told_lines(run):
    """A run's metrics without what its clock said."""
    return [{k: v for k, v in line.items() if k not in ("img_per_s", "data_wait")} for line in metrics.read(run)]


def weights(run):
    return checkpoint.read(checkpoint.all_of(run)[0])["parameters"]


def assert_same(run, other):
    assert told_lines(run) == told_lines(other)
    for name, value in weights(other).items():
        assert torch.equal(weights(run)[name], value), name


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    finish(start(data, out))
    return out


@pytest.mark.long
def test_killed_many_times_at_random_a_run_ends_as_the_unbroken_one(data, unbroken, tmp_path):
    out, rng, reached, kills = tmp_path / "run", random.Random(1), 0, 0
    while reached < STEPS - 8:
        running = start(data, out, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_step(running, out, reached + rng.randrange(2, 9))
        time.sleep(rng.random() * 0.1)
        running.kill()
        kills += running.wait() == -signal.SIGKILL
        reached = max((line["step"] for line in metrics.read(out)), default=0)
    finish(start(data, out))
    assert kills >= 4
    assert_same(out, unbroken)


@pytest.mark.parametrize("number, gpus", [(signal.SIGTERM, 1), (signal.SIGUSR1, 2), (signal.SIGINT, 2)])
def test_asked_to_stop_it_finishes_the_step_saves_and_goes_on_later(data, unbroken, tmp_path, number, gpus):
    out, layout = tmp_path / "run", ("--gpus", gpus)
    running = start(data, out, *layout)
    wait_for_step(running, out, 5)
    os.kill(running.pid, number)
    told, _ = running.communicate(timeout=60)
    assert running.returncode == STOPPED == 75, told
    step = metrics.read(out, "train")[-1]["step"]
    assert f"stopped after step {step} of {STEPS} as asked" in told and "Traceback" not in told
    assert checkpoint.read(checkpoint.all_of(out)[0])["step"] == step
    assert f"Resumed after step {step}" in finish(start(data, out, *layout))
    if gpus == 1:
        assert_same(out, unbroken)


def test_one_of_the_ranks_asked_to_stop_stops_all(data, tmp_path):
    running = start(data, tmp_path / "run", "--gpus", 2)
    wait_for_step(running, tmp_path / "run", 5)
    children = map(int, os.popen(f"pgrep -P {running.pid} -f spawn_main").read().split())
    os.kill(max(children), signal.SIGUSR1)
    told, _ = running.communicate(timeout=60)
    assert running.returncode == STOPPED, told


def test_a_broken_newest_checkpoint_is_named_and_the_one_before_is_taken(data, unbroken, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    newest = checkpoint.all_of(out)[0]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    told = finish(start(data, out))
    before = checkpoint.read(checkpoint.all_of(unbroken)[1])["step"]
    assert f"{newest.name} is no readable checkpoint (its digest is not that of what it holds)" in told
    assert f"Resumed after step {before}" in told
    assert_same(out, unbroken)
    for path in checkpoint.all_of(out):
        path.write_bytes(b"nothing")
    refused = start(data, out)
    assert "none of its 3 checkpoints can be read" in refused.communicate(timeout=60)[0] and refused.returncode == 1


def test_a_loss_that_is_no_number_ends_the_run_and_names_pictures_and_checkpoint(data, tmp_path):
    run = start(data, tmp_path / "run", "--lr", "1e4", "--checkpoint-every", 1)
    told, _ = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "the loss is nan at step" in told or "the loss is inf at step" in told
    assert "of the pictures train-00000" in told and "lower --lr" in told and "Traceback" not in told
    assert "checkpoint" in told
    for path in checkpoint.all_of(tmp_path / "run"):
        assert all(tensor.isfinite().all() for tensor in checkpoint.read(path)["parameters"].values())


def test_a_plateau_drops_the_rate_and_resuming_keeps_it(data, tmp_path):
    # At a rate this small nothing improves: the error of the first evaluation stays the best
    words = ("--lr", "1e-12", "--lr-steps", "plateau", "--patience", 1, "--dropout", 0)
    finish(start(data, tmp_path / "whole", *words))
    rates = [line["lr"] for line in metrics.read(tmp_path / "whole", "train")]
    assert rates[:24] == [1e-12] * 24 and rates[24:36] == [1e-13] * 12 and rates[36] == pytest.approx(1e-14)
    out = tmp_path / "run"
    running = start(data, out, *words)
    wait_for_step(running, out, 27)
    running.kill()
    running.wait()
    finish(start(data, out, *words))
    assert_same(out, tmp_path / "whole")


def test_final_crops_tensorboard_and_profile(data, tmp_path):
    out = tmp_path / "run"
    finish(start(data, out, "--steps", 3, "--final-crops", 10, "--tensorboard", "--profile", "2-3"))
    one, ten = metrics.read(out, "eval")
    assert (one["crops"], ten["crops"]) == (1, 10) and one["samples"] == ten["samples"] == 22
    assert "traceEvents" in json.loads((out / "trace-2-3.json").read_text())
    assert list((out / "tensorboard").glob("events*"))
