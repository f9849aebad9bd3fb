"""A rank that fails ends all within seconds, and the error that is reported is its own."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from shards.errors import InputError
from tests.conftest import PROJECT
from trainer import metrics
from trainer.launch import GRACE, choose_device, launch
from trainer.preemption import PreemptionHandler


def fail(context, how):
    """Ranks that synchronize again and again, as training's do, until rank 1 fails."""
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
    """Rank 0 hangs, as in a call to a device that waits for another, and then rank 1 is killed."""
    pids = [None] * context.world_size
    dist.all_gather_object(pids, os.getpid())
    if context.rank == 0:
        subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -KILL {pids[1]}"])
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)


@pytest.mark.parametrize(
    "work, how, error, output",
    [
        (fail, "raises", RuntimeError, r"(?s)^rank 1 of 2 failed:.*line \d+, in fail\n.*ValueError: of its own"),
        (fail, "refuses", InputError, "^--this is bad input$"),
        (fail, "is killed", InputError, "^rank 1 of 2 was ended by SIGKILL, and so all were$"),
        (fail, "exits", RuntimeError, "^rank 1 of 2 ended with exit code 3 and reported no error$"),
        (fail_while_another_is_stuck, "is killed", InputError, "^rank 1 of 2 was ended by SIGKILL, and so all were$"),
    ],
)
def test_a_rank_that_fails_ends_all_and_is_the_one_named(work, how, error, output):
    began = time.monotonic()
    with pytest.raises(error, match=output):
        launch(work, 2, "cpu", how)
    assert time.monotonic() - began < GRACE + 25  # the processes' start included
    left = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "spawn_main"], capture_output=True, text=True)
    assert left.stdout == ""


def test_a_rank_that_is_killed_takes_the_others_down_and_is_named(data, tmp_path):
    command = [
        *(sys.executable, PROJECT / "cli.py", "train", "--data", data, "--out", tmp_path / "run", "--device", "cpu"),
        *("--gpus", 2, "--width", 0.05, "--batch-size", 12, "--epochs", 1000, "--log-every", 1),
    ]
    run = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not metrics.read(tmp_path / "run"):
        assert run.poll() is None
        time.sleep(0.1)
    children = [int(pid) for pid in os.popen(f"pgrep -P {run.pid}").read().split()]
    ranks = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    began = time.monotonic()
    os.kill(ranks[-1], signal.SIGKILL)
    _, errors = run.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert run.returncode == 1
    assert re.search(r"Error: rank \d of 2 was ended by SIGKILL", errors), errors
    assert not any(os.path.exists(f"/proc/{pid}") for pid in ranks)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_cpu_is_announced_whatever_the_layout(capsys):
    """Not as so many towers: with --parallel data each process has both."""
    for processes, counted in ((1, "1 process"), (3, "3 processes")):
        assert choose_device("auto", processes) == "cpu"
        assert capsys.readouterr().err == f"No CUDA device here: this runs on the CPU, in {counted}.\n"


@pytest.mark.parametrize("user, set", [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")])
@pytest.mark.parametrize("module", ["cli", "trainer", "bench.studies"])
def test_openmp_threads_sleep_as_they_wait_unless_the_user_has_it_otherwise(module, user, set):
    """Before torch brings OpenMP, which reads it once: the modules are those that any command imports first."""
    code = f"import os, sys, {module}; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=PROJECT, env=environment | user, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [set, "False"], done.stderr
