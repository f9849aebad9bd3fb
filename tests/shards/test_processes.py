"""Worker processes serve every caller: a script with or without a main guard, a module, standard input."""

import errno
import os
import signal
import subprocess
import sys
from multiprocessing.synchronize import SemLock

import pytest

from shards.dataset import Dataset
from shards.errors import InputError
from shards.processes import interrupts_noted, run_jobs
from tests.conftest import PROJECT
from tests.support.image_kinds import encoded, noise
from trainer.launch import launch

# What a first script of a user's looks like. It counts how often it runs
CALLS = """
import os
from pathlib import Path

from shards.convert import ConvertOptions, write_dataset
from shards.describe import describe_tars
from shards.verify import verify

with open("runs", "a") as file:
    file.write("once ")
write_dataset(Path("images"), Path("set"), ConvertOptions(workers=2))
assert verify(Path("set"), workers=2).intact
os.remove("set/dataset.json")
describe_tars(Path("set"), workers=2)
"""


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "val"):
        (tmp_path / "images" / split / "a").mkdir(parents=True)
        (tmp_path / "images" / split / "a" / "0.jpg").write_bytes(encoded(noise()))
    (tmp_path / "calls.py").write_text(CALLS)
    return tmp_path


@pytest.mark.parametrize("arguments", [["calls.py"], ["-m", "calls"], ["-"]], ids=["script", "module", "stdin"])
def test_a_call_needs_no_main_guard(folder, arguments):
    done = subprocess.run(
        [sys.executable, *arguments],
        input=CALLS,
        cwd=folder,
        env={"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (folder / "runs").read_text() == "once "  # no worker runs the script again
    assert Dataset.load(folder / "set").split("train").samples == 1


# Ctrl-C comes while the wait holds a future's lock, as it does now and then
INTERRUPTED = """
import os, signal
from shards import processes

wait = processes.wait

def interrupted(futures, **options):
    condition = next(iter(futures))._condition
    condition.acquire()
    os.kill(os.getpid(), signal.SIGINT)
    condition.release()
    return wait(futures, **options)

processes.wait = interrupted
processes.run_jobs(__import__("time").sleep, [(0.01,)] * 50, 1, "sleep", None)
"""


def test_a_full_dev_shm_is_named(monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SemLock, "__init__", full)
    for start in (lambda: run_jobs(os.getpid, [()], 1, "jobs", 1), lambda: launch(print, 2, "cpu")):
        with pytest.raises(InputError, match=r"/dev/shm or the folder for temporary files cannot be written: No space"):
            start()


def test_ctrl_c_within_a_wait_ends_the_jobs():
    command = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.stderr.rstrip().endswith("KeyboardInterrupt") and done.returncode != 0


def test_a_script_of_ones_own_handles_ctrl_c_itself():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_noted() as interrupts:
            os.kill(os.getpid(), signal.SIGINT)
        assert interrupts == [] and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(KeyboardInterrupt), interrupts_noted() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
