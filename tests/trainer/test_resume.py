"""A run that is killed, asked to stop, or handed broken files, against one that nothing happened to."""

import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline.compute_stats import complete
from shards.atomic import locked
from shards.convert import ConvertOptions, write_dataset
from shards.errors import InputError
from shards.synthetic import render_folders
from tests.conftest import PROJECT
from trainer import checkpoint, metrics
from trainer import train as training
from trainer.config import TrainConfig
from trainer.preemption import EXIT_PREEMPTED, SIGNALS, Preempted
from trainer.train_step import TrainStep

STEPS = 20  # two epochs of 8 and a half
RUN = {"device": "cpu", "width": 0.05, "batch_size": 4, "lr": 0.001, "steps": STEPS}
RUN |= {"log_every": 3, "checkpoint_every": 5, "final_crops": 10, "resume": "auto"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """32 images to train with and 8 to evaluate, in two classes."""
    root = tmp_path_factory.mktemp("resume")
    render_folders(root / "images", classes=2, train=32, val=8, seed=3)
    complete(write_dataset(root / "images", root / "shards", ConvertOptions(shard_size=200_000, workers=1)))
    return root / "shards"


def run(data, out, **more):
    """Trains in this process."""
    training.train(TrainConfig(data, out, **{**RUN, **more}))


def start(data, out, **more):
    """Trains as the command in a process of its own."""
    words = [sys.executable, PROJECT / "cli.py", "train", "--data", data, "--out", out]
    for name, value in {**RUN, "log_every": 1, **more}.items():
        words += ["--" + name.replace("_", "-"), value]
    return subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process, status=0) -> str:
    told, _ = process.communicate(timeout=200)
    assert process.returncode == status and "Traceback" not in told, told
    return told


def reach(process, out, step):
    while process.poll() is None and not any(line["step"] >= step for line in metrics.read(out)):
        time.sleep(0.01)


def told_lines(out):
    """A run's metrics without what its clock said."""
    return [{k: v for k, v in line.items() if k not in ("img_per_s", "data_wait")} for line in metrics.read(out)]


def newest(out):
    return checkpoint.load(checkpoint.list_checkpoints(out)[0])


def assert_same(out, other):
    assert told_lines(out) == told_lines(other)
    ours, theirs = newest(out), newest(other)
    assert ours["errors"] == theirs["errors"] and ours["step"] == theirs["step"]
    for kind in ("parameters", "velocity"):
        for name, value in theirs[kind].items():
            assert torch.equal(ours[kind][name], value), name
    assert checkpoint.load(out / checkpoint.BEST)["step"] == checkpoint.load(other / checkpoint.BEST)["step"]


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    run(data, out)
    lines = metrics.read(out)
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 3, 6, 9, 12, 15, 18, 20]
    assert [(line["step"], line["crops"]) for line in lines if line["kind"] == "eval"] == [
        *((8, 1), (16, 1), (20, 1), (20, 10))
    ]
    return out


def test_killed_many_times_at_random_a_run_ends_as_the_unbroken_one(data, unbroken, tmp_path):
    context, rng, kills, number = multiprocessing.get_context("forkserver"), random.Random(), 0, 0
    context.set_forkserver_preload(["trainer.train"])
    while kills < 3:  # one run may come to its end before
        number += 1
        out = tmp_path / f"run{number}"
        while True:
            seen = [path.name for path in checkpoint.list_checkpoints(out)]
            running = context.Process(target=run, args=(data, out))
            running.start()
            # Mostly after some progress, so that it ends; now and then at once
            while running.is_alive() and rng.random() < 0.999:
                if [path.name for path in checkpoint.list_checkpoints(out)] != seen:
                    break
                time.sleep(0.005)
            running.join(rng.random() * 0.2)
            running.kill()
            running.join()
            kills += running.exitcode == -signal.SIGKILL
            if running.exitcode == 0:
                break
            assert running.exitcode == -signal.SIGKILL
        assert_same(out, unbroken)
        assert not list(out.glob(".*.tmp-*"))  # what kills had left


STEP = (TrainStep, "__call__")


def raising(monkeypatch, where, number, at):
    """Has this process get a signal as the loop calls a function, (what it is of, its name), for the `at`th time."""
    function, calls = getattr(*where), iter(range(1, 10**6))

    def called(*arguments, **keywords):
        if next(calls) == at:
            os.kill(os.getpid(), number)
        return function(*arguments, **keywords)

    monkeypatch.setattr(*where, called)


# In mid-epoch, at the first epoch's end, at the last step; in an evaluation, and in the last one of ten crops
@pytest.mark.parametrize(
    "where, at, step", [(STEP, 6, 6), (STEP, 8, 8), (STEP, 20, 20), ((training, "evaluate"), 1, 8)]
)
def test_asked_to_stop_anywhere_it_loses_nothing(data, unbroken, tmp_path, monkeypatch, where, at, step):
    out, number = tmp_path / "run", SIGNALS[at % 3]
    before = [signal.getsignal(each) for each in SIGNALS]
    with monkeypatch.context() as patch:
        raising(patch, where, number, at)
        with pytest.raises(Preempted):
            run(data, out)
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert newest(out)["step"] == step and not any(line["step"] >= step for line in metrics.read(out, "eval"))
    run(data, out)
    assert_same(out, unbroken)


def test_asked_to_stop_in_the_last_evaluation_it_makes_that_anew(data, unbroken, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        raising(patch, (training, "evaluate"), signal.SIGTERM, 4)  # the one of ten crops
        with pytest.raises(Preempted):
            run(data, out)
    assert newest(out)["step"] == STEPS and "nothing is left to do" not in capsys.readouterr().out
    run(data, out)
    assert_same(out, unbroken)
    run(data, out)
    assert "nothing is left to do" in capsys.readouterr().out
    assert_same(out, unbroken)


@pytest.mark.parametrize("number, gpus", [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_the_command_ends_with_its_code_and_goes_on_later(data, tmp_path, number, gpus):
    out = tmp_path / "run"
    running = start(data, out, gpus=gpus)
    reach(running, out, 5)
    os.kill(running.pid, number)
    told = finish(running, EXIT_PREEMPTED)
    step = metrics.read(out, "train")[-1]["step"]
    assert (
        EXIT_PREEMPTED == 75
        and f"stopped after step {step} of {STEPS} as asked" in told
        and newest(out)["step"] == step
    )
    assert f"Resumed after step {step} of {step + 2}" in finish(start(data, out, gpus=1, steps=step + 2))


def ranks_of(process) -> list[int]:
    return [*map(int, os.popen(f"pgrep -P {process.pid} -f spawn_main").read().split())]


def test_one_of_the_ranks_asked_to_stop_stops_all(data, tmp_path):
    running = start(data, tmp_path / "run", gpus=2)
    reach(running, tmp_path / "run", 5)
    os.kill(max(ranks_of(running)), signal.SIGUSR1)
    finish(running, EXIT_PREEMPTED)


@pytest.mark.long
def test_killed_without_its_ranks_a_run_goes_on_when_they_have_ended(data, unbroken, tmp_path):
    out = tmp_path / "run"
    running = start(data, out, gpus=2)
    reach(running, out, 5)
    ranks = ranks_of(running)
    running.kill()
    finish(start(data, out, gpus=2))  # at once: it waits for what is left of the one before
    assert len(ranks) == 2 and not any(os.path.exists(f"/proc/{rank}") for rank in ranks)
    ours, theirs = metrics.read(out, "train"), {line["step"]: line["loss"] for line in metrics.read(unbroken, "train")}
    assert [line["step"] for line in ours] == [*range(1, STEPS + 1)]
    for line in ours:
        assert line["loss"] == pytest.approx(theirs.get(line["step"], line["loss"]), rel=1e-3)


def test_two_commands_do_not_write_to_one_run(data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "locked", lambda out, wait: locked(out, 0.2))
    with (
        pytest.raises(InputError, match="another command is writing to"),
        locked(tmp_path),
    ):
        run(data, tmp_path)


def test_a_broken_newest_checkpoint_is_named_and_the_one_before_is_taken(data, unbroken, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    last, before = checkpoint.list_checkpoints(out)[:2]
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    step = checkpoint.load(before)["step"]
    run(data, out)
    told = capsys.readouterr()
    assert f"{last} is not a readable checkpoint (its digest does not match its content)" in told.err
    assert f"Resumed after step {step}" in told.out
    assert_same(out, unbroken)
    for path in checkpoint.list_checkpoints(out):
        path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="none of its 3 checkpoints can be read"):
        run(data, out)


@pytest.mark.parametrize("at", [8, 9])  # between checkpoints, and where one is due
def test_a_loss_that_is_no_number_ends_the_run_and_names_images_and_checkpoint(data, tmp_path, monkeypatch, at):
    real, calls = TrainStep.__call__, iter(range(1, 100))

    def planted(*arguments):
        loss = real(*arguments)
        return loss * math.nan if next(calls) == at else loss

    monkeypatch.setattr(*STEP, planted)
    with pytest.raises(InputError) as raised:
        run(data, tmp_path / "run", batch_size=10, checkpoint_every=3)
    told = str(raised.value)
    assert f"the loss is nan at step {at}, on the images train-00000" in told and "lower --lr (now 0.001)" in told
    assert "the last good checkpoint is" in told and "checkpoint-00000006.safetensors" in told
    listed = re.search(r"and 2 more, see (\S+): ", told).group(1)
    assert len(Path(listed).read_text().splitlines()) == 10
    assert [checkpoint.load(path)["step"] for path in checkpoint.list_checkpoints(tmp_path / "run")] == [6, 3]


def test_a_rate_that_is_too_high_ends_the_run_with_no_checkpoint_of_it(data, tmp_path):
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step|is not finite after step"):
        run(data, tmp_path / "run", lr=1e4, checkpoint_every=1)
    for path in checkpoint.list_checkpoints(tmp_path / "run"):
        assert all(tensor.isfinite().all() for tensor in checkpoint.load(path)["parameters"].values())


def test_a_full_disk_is_told_at_the_next_step(data, tmp_path, monkeypatch):
    written = []

    def full(path, tensors, state):
        written.append(state["step"])
        raise InputError(f"cannot write {path}: No space left on device; make room, or choose another folder")

    monkeypatch.setattr(checkpoint, "write", full)
    monkeypatch.setattr(training, "lr_at", lambda *_: time.sleep(0.05) or 0.001)  # the thread has time to fail
    with pytest.raises(InputError, match=r"checkpoint-00000005.*No space left.*there is no checkpoint before it"):
        run(data, tmp_path / "run")
    assert written == [5]


def test_a_plateau_drops_the_rate_and_resuming_keeps_it(data, tmp_path, monkeypatch):
    # At a rate this small nothing improves: the error of the first evaluation stays the best
    words = {"lr": 1e-12, "lr_steps": "plateau", "patience": 1, "dropout": 0, "log_every": 1, "steps": 26}
    run(data, tmp_path / "whole", **words)
    rates = [line["lr"] for line in metrics.read(tmp_path / "whole", "train")]
    assert rates[:16] == [1e-12] * 16 and rates[16:24] == [1e-13] * 8 and rates[24] == pytest.approx(1e-14)
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        raising(patch, STEP, signal.SIGTERM, 19)
        with pytest.raises(Preempted):
            run(data, out, **words)
    run(data, out, **words)
    assert_same(out, tmp_path / "whole")
    with pytest.raises(InputError, match="eval_every was 1, now 2"):
        run(data, out, **words, eval_every=2)


def test_tensorboard_and_profile(data, tmp_path):
    out = tmp_path / "run"
    run(data, out, steps=3, tensorboard=True, profile=(1, 2))
    assert "traceEvents" in json.loads((out / "trace-1-2.json").read_text())
    assert list((out / "tensorboard").glob("events*"))
    # The last step comes before the last one to trace: what there is of it is written
    run(data, out, steps=5, profile=(5, 9))
    assert "traceEvents" in json.loads((out / "trace-5-9.json").read_text())


def test_the_clock_tells_waiting_from_working(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])

    def slow():
        for _ in range(4):
            now[0] += 3.0
            yield "batch"

    clock = metrics.StepTimer(torch.device("cpu"))
    for _ in clock.time_waiting(slow()):
        now[0] += 1.0
        clock.images += 8
    with clock.paused():
        now[0] += 100.0
    assert clock.lap() == {"img_per_s": 2.0, "data_wait": 0.75}
    now[0] += 1.0
    assert clock.lap() == {"img_per_s": 0.0, "data_wait": 0.0}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
def test_on_a_gpu_waiting_is_when_the_device_stands_idle():
    device, slept = torch.device("cuda", 0), 0.05
    work = torch.randn(4096, 4096, device=device)

    def batches():
        for _ in range(5):
            time.sleep(slept)
            yield None

    clock = metrics.StepTimer(device)
    for _ in clock.time_waiting(batches()):
        pass
    torch.cuda.synchronize()
    assert clock.lap()["data_wait"] > 0.9
    for _ in clock.time_waiting(batches()):
        for _ in range(200):  # far longer than the next batch takes
            work = work @ work
    torch.cuda.synchronize()
    assert clock.lap()["data_wait"] < 0.5
