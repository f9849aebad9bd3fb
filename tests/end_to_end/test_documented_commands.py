"""Every line of the pages' blocks: what two cores can do is run, in order; the rest is parsed as click would."""

import re
import shlex
import shutil
import tarfile

import pytest

from cli import main
from shards.synthetic import render_folders
from tests.conftest import PROJECT

# Pages that are read one after another: each list begins with images alone
READ_IN_ORDER = (["docs/guide.md"], ["README.md", "docs/training.md", "docs/using.md"], ["docs/shards.md"])
PAGES = [page for pages in READ_IN_ORDER for page in pages]
# Lines that are not ours: the shell's, make's (tests/end_to_end/test_demo.py), and a batch script's for Slurm
SHELL = re.compile(
    r"#!/bin/bash|#SBATCH --|export MASTER_ADDR=|if \[ \$\? = 75 \]; then scontrol|make |\. \.venv/|eval \""
)
# A command for more devices than this machine has, or one that something else starts
MANY = re.compile(r"--gpus 8|^torchrun |^srun ")
# The pages' words in a folder of a test
INSTEAD = {"/data/": "data/", "--epochs 20 --lr-steps 10,15 ": "", " RUN": " runs/paper", " DIR": " data/shards"}
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
    "study": "--device cpu --seeds 1",
}


def lines_of(page):
    text = (PROJECT / page).read_text()
    return [line for block in re.findall(r"^```\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]


def is_run(line):
    return line.startswith("python cli.py ") and not MANY.search(line)


def command_in(line):
    """The words after cli.py; srun has them within its last argument."""
    text = shlex.split(line)[-1] if line.startswith("srun ") else line
    return shlex.split(text.partition("cli.py ")[2], comments=True)


def small(line):
    for old, new in INSTEAD.items():
        line = line.replace(old, new)
    words = command_in(line)
    words += SMALL.get(words[0], "").split()
    return words + (SMALL["train --resume"].split() if "--resume" in words else [])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the pages take for granted: ImageNet, a set in a tar, photos of one's own, some more; and an empty cache."""
    imagenet = tmp_path / "data" / "imagenet"
    render_folders(imagenet, classes=6, train=48, val=12)
    with tarfile.open(tmp_path / "tiny-imagenet.tar", "w") as tar:
        for split in ("train", "val"):
            tar.add(imagenet / split, split)
    render_folders(tmp_path / "own", classes=3, train=36, val=0)
    (tmp_path / "own" / "train").rename(tmp_path / "photos")
    (tmp_path / "more").mkdir()
    for copy in ("photo.jpg", "more/photo.png"):  # what it is, is seen by its content
        shutil.copy(next((tmp_path / "photos").rglob("*.jpg")), tmp_path / copy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("pages", READ_IN_ORDER, ids="+".join)
def test_the_commands_of_a_page_lead_from_images_to_a_model(pages, folder, run_here):
    for page in pages:
        ran = [line for line in lines_of(page) if is_run(line)]
        assert ran
        for line in ran:
            done = run_here(*small(line))
            if "--resume" in line:
                assert "Resumed after step 3 of 5" in done.stdout + done.stderr
            for written in re.findall(r"(?:--out|--json|--report) (\S+\.\w+)", line):
                assert (folder / written).stat().st_size > 0


@pytest.mark.parametrize("line", [line for page in PAGES for line in lines_of(page) if MANY.search(line)])
def test_a_command_for_many_devices_has_options_that_exist(line):
    name, *words = command_in(line)
    # Unknown options, missing ones and values of the wrong kind raise
    main.commands[name].make_context(name, words)


@pytest.mark.parametrize("page", PAGES)
def test_every_line_of_a_page_is_run_or_parsed(page):
    assert re.findall(r"^```(.+)", (PROJECT / page).read_text(), re.M) == [], "a block that this test does not see"
    assert [line for line in lines_of(page) if not (SHELL.match(line) or MANY.search(line) or is_run(line))] == []


def test_no_other_page_has_commands():
    others = {str(page.relative_to(PROJECT)) for page in (PROJECT / "docs").glob("*.md")} - set(PAGES)
    assert [page for page in others if any(is_run(line) or MANY.search(line) for line in lines_of(page))] == []
