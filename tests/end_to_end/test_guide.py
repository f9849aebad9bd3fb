"""Every line of docs/guide.md's blocks: what two cores can do is run, in order; the rest is parsed as click would."""

import re
import shlex
import shutil

import pytest

from cli import main
from shards.synthetic import render_folders
from tests.conftest import PROJECT

GUIDE = (PROJECT / "docs" / "guide.md").read_text()
LINES = [line for block in re.findall(r"^```\n(.*?)^```", GUIDE, re.M | re.S) for line in block.splitlines()]
# The lines of the batch script that are not ours: the shell's, and Slurm's options
SHELL = re.compile(r"#!/bin/bash|#SBATCH --|export MASTER_ADDR=|if \[ \$\? = 75 \]; then scontrol")
# A command for more devices than this machine has, or one that something else starts
MANY = re.compile(r"--gpus 8|^torchrun |^srun ")
# The page's words in a folder of a test
INSTEAD = {"/data/": "data/", "--epochs 20 --lr-steps 10,15 ": ""}
# What makes a command small, or takes two CPU processes for two GPUs; the last value of an option counts
SMALL = {
    "shard": "--workers 1",
    "train": "--device cpu --width 0.05 --batch-size 8 --lr 0.001 --steps 3",
    "train --resume": "--steps 5",
    "throughput-bench": "--device cpu --width 0.05 --batch-size 8 --seconds 0.02",
    "eval": "--device cpu --batch-size 8",
    "predict": "--device cpu",
    "figures": "--device cpu",
    "report": "--device cpu",
}


def command_in(line):
    """The words after cli.py; srun has them within its last argument."""
    text = shlex.split(line)[-1] if line.startswith("srun ") else line
    return shlex.split(text.partition("cli.py ")[2])


def small(line):
    for old, new in INSTEAD.items():
        line = line.replace(old, new)
    words = command_in(line)
    words += SMALL.get(words[0], "").split()
    return words + (SMALL["train --resume"].split() if "--resume" in words else [])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the page takes for granted: ImageNet, photos of one's own, one more; and an empty cache."""
    render_folders(tmp_path / "data" / "imagenet", classes=6, train=48, val=12)
    render_folders(tmp_path / "own", classes=3, train=36, val=0)
    (tmp_path / "own" / "train").rename(tmp_path / "photos")
    shutil.copy(next((tmp_path / "photos").rglob("*.jpg")), tmp_path / "photo.jpg")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_of_the_guide_lead_from_images_to_a_model(folder, run_here):
    done = {
        line: run_here(*small(line)) for line in LINES if line.startswith("python cli.py ") and not MANY.search(line)
    }
    assert len(done) > 15
    resumed = next(result for line, result in done.items() if "--resume" in line)
    assert "Resumed after step 3 of 5" in resumed.stdout + resumed.stderr
    for name in ("grid.png", "bench.json", "bench.html", "runs.html", "drawn/guesses.png", "alexnet.safetensors"):
        assert (folder / name).stat().st_size > 0


@pytest.mark.parametrize("line", [line for line in LINES if MANY.search(line)])
def test_a_command_for_many_devices_has_options_that_exist(line):
    name, *words = command_in(line)
    # Unknown options, missing ones and values of the wrong kind raise
    main.commands[name].make_context(name, words)


def test_every_line_of_the_guide_is_run_or_parsed():
    assert re.findall(r"^```(.+)", GUIDE, re.M) == [], "a block that this test does not see"
    assert [
        line for line in LINES if not (SHELL.match(line) or MANY.search(line) or line.startswith("python cli.py "))
    ] == []
