"""A rank that fails ends the job within seconds, and what is told is its own error; torchrun starts it again."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist

from shards.errors import InputError
from tests.conftest import PROJECT, free_port
from trainer import metrics
from trainer.launch import GRACE, launch
from trainer.preemption import PreemptionHandler


def fail(context, how):
    """Ranks that meet again and again, as training's do, until rank 1 fails."""
    with PreemptionHandler(context.world_size):
        for number in range(10**6):
            dist.all_reduce(torch.ones(1))
            if number == 20 and context.rank == 1:
                if how == "raises":
                    raise ValueError("of its own")
                if how == "refuses":
                    raise InputError("--this is bad input")
                if how == "exits":
                    os._exit(3)
                os.kill(os.getpid(), signal.SIGKILL)


def fail_while_another_is_stuck(context, how):
    """Rank 0 answers no more, as in a call to a device that waits for a peer, and then rank 1 is killed."""
    pids = [None] * context.world_size
    dist.all_gather_object(pids, os.getpid())
    if context.rank == 0:
        subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -KILL {pids[1]}"])
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)


@pytest.mark.parametrize(
    "work, how, error, told",
    [
        (fail, "raises", RuntimeError, r"(?s)^rank 1 of 2 failed:.*line \d+, in fail\n.*ValueError: of its own"),
        (fail, "refuses", InputError, "^--this is bad input$"),
        (fail, "is killed", InputError, "^rank 1 of 2 was ended by SIGKILL, and so all were$"),
        (fail, "exits", RuntimeError, "^rank 1 of 2 ended with exit code 3 and reported no error$"),
        (fail_while_another_is_stuck, "is killed", InputError, "^rank 1 of 2 was ended by SIGKILL, and so all were$"),
    ],
)
def test_a_rank_that_fails_ends_all_and_is_the_one_named(work, how, error, told):
    began = time.monotonic()
    with pytest.raises(error, match=told):
        launch(work, 2, "cpu", how)
    assert time.monotonic() - began < GRACE + 25  # the processes' start included
    left = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "spawn_main"], capture_output=True, text=True)
    assert left.stdout == ""


def torchrun(*words):
    """A torchrun that is under way, its output in one pipe."""
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def training(data, out, *more):
    words = (PROJECT / "cli.py", "train", "--data", data, "--out", out, "--device", "cpu", "--width", 0.05)
    return (*words, "--batch-size", 12, "--lr", 0.001, "--log-every", 1, "--eval-every", 100, *more)


def kill_a_worker(agent, out, step):
    """Once training has come to a step; returns the time then."""
    while not any(line["step"] >= step for line in metrics.read(out)):
        assert agent.poll() is None, agent.stdout.read()
        time.sleep(0.05)
    workers = subprocess.run(["pgrep", "-P", str(agent.pid), "-f", "cli.py"], capture_output=True, text=True).stdout
    os.kill(int(workers.split()[-1]), signal.SIGKILL)
    return time.monotonic()


def test_torchrun_starts_killed_workers_again_and_they_resume(data, tmp_path, run_cli):
    more = ("--steps", 30, "--checkpoint-every", 4)
    run_cli(*training(data, tmp_path / "unbroken", *more, "--gpus", 2)[1:])
    out = tmp_path / "run"
    agent = torchrun("--standalone", "--nproc-per-node", 2, "--max-restarts", 1, *training(data, out, *more))
    kill_a_worker(agent, out, step=9)
    told, _ = agent.communicate(timeout=240)
    assert agent.returncode == 0, told
    resumed = re.search(r"Resumed after step (\d+) of 30", told)
    # The checkpoint of step 8 may have been on its way to the disk
    assert resumed and int(resumed[1]) >= 4, told
    seen, unbroken = (
        [(line["step"], line["loss"]) for line in metrics.read(run, "train")] for run in (out, tmp_path / "unbroken")
    )
    assert seen == unbroken


def test_a_worker_that_is_killed_ends_both_nodes(data, tmp_path):
    endpoint = f"127.0.0.1:{free_port()}"
    meeting = ("--nnodes", 2, "--nproc-per-node", 1, "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint)
    out = tmp_path / "run"
    nodes = [torchrun(*meeting, *training(data, out, "--epochs", 1000)) for _ in range(2)]
    killed = kill_a_worker(nodes[1], out, step=3)
    told = [node.communicate(timeout=120)[0] for node in nodes]
    assert time.monotonic() - killed < 40
    assert all(node.returncode for node in nodes)
    assert "Signal 9 (SIGKILL)" in told[1], told[1]


def test_torchrun_tells_at_last_what_the_first_rank_failed_of(data, tmp_path):
    agent = torchrun("--standalone", "--nproc-per-node", 2, *training(data, tmp_path / "run", "--batch-size", 9))
    told, _ = agent.communicate(timeout=120)
    assert agent.returncode
    summary = told[told.index("Root Cause") :]
    assert "--batch-size 9 does not divide by 2 devices" in summary
