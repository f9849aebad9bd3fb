"""Under torchrun, nodes train as one process would, and killed workers are started again and resume."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import PROJECT, free_port
from tests.support.training_runs import trained_by_command
from trainer import metrics


def torchrun(*arguments):
    """Starts torchrun, its output in one pipe."""
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def training(data, out, *more):
    command = (PROJECT / "cli.py", "train", "--data", data, "--out", out, "--device", "cpu", "--width", 0.05)
    return (*command, "--batch-size", 12, "--lr", 0.001, "--log-every", 1, "--eval-every", 100, *more)


def kill_a_worker(agent, out, step):
    """Kills a worker once training has reached a step; returns the time of the kill."""
    while not any(line["step"] >= step for line in metrics.read(out)):
        assert agent.poll() is None, agent.stdout.read()
        time.sleep(0.05)
    workers = subprocess.run(["pgrep", "-P", str(agent.pid), "-f", "cli.py"], capture_output=True, text=True).stdout
    os.kill(int(workers.split()[-1]), signal.SIGKILL)
    return time.monotonic()


def test_torchrun_starts_killed_workers_again_and_they_resume(data, tmp_path, run_here):
    more = ("--steps", 30, "--checkpoint-every", 4)
    run_here(*training(data, tmp_path / "unbroken", *more, "--gpus", 2)[1:])
    out = tmp_path / "run"
    agent = torchrun("--standalone", "--nproc-per-node", 2, "--max-restarts", 1, *training(data, out, *more))
    kill_a_worker(agent, out, step=9)
    output, _ = agent.communicate(timeout=240)
    assert agent.returncode == 0, output
    resumed = re.search(r"Resumed after step (\d+) of 30", output)
    # The checkpoint of step 8 may have been on its way to the disk
    assert resumed and int(resumed[1]) >= 4, output
    continued, unbroken = (
        [(line["step"], line["loss"]) for line in metrics.read(run, "train")] for run in (out, tmp_path / "unbroken")
    )
    assert continued == unbroken


def test_a_worker_that_is_killed_ends_both_nodes(data, tmp_path):
    endpoint = f"127.0.0.1:{free_port()}"
    rendezvous = ("--nnodes", 2, "--nproc-per-node", 1, "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint)
    out = tmp_path / "run"
    nodes = [torchrun(*rendezvous, *training(data, out, "--epochs", 1000)) for _ in range(2)]
    killed = kill_a_worker(nodes[1], out, step=3)
    output = [node.communicate(timeout=120)[0] for node in nodes]
    assert time.monotonic() - killed < 40
    assert all(node.returncode for node in nodes)
    assert "Signal 9 (SIGKILL)" in output[1], output[1]


def test_torchrun_ends_with_the_error_of_the_rank_that_failed_first(data, tmp_path):
    agent = torchrun("--standalone", "--nproc-per-node", 2, *training(data, tmp_path / "run", "--batch-size", 9))
    output, _ = agent.communicate(timeout=120)
    assert agent.returncode
    summary = output[output.index("Root Cause") :]
    assert "--batch-size 9 does not divide by 2 devices" in summary


def test_two_nodes_under_torchrun_are_one_process(data, tmp_path, run_here):
    losses, _ = trained_by_command(run_here, data, tmp_path / "one", "--parallel", "data")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "nodes"),
        *(PROJECT / "cli.py", "train", "--data", data, "--out", tmp_path / "nodes", "--device", "cpu"),
        *("--width", 0.05, "--batch-size", 12, "--steps", 4, "--log-every", 1, "--eval-every", 100, "--lr", 0.001),
    ]
    nodes = [
        subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)
    ]
    output = [node.communicate(timeout=240)[0].decode() for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], output
    lines = metrics.read(tmp_path / "nodes", "train")
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in losses], rel=1e-4)
