"""A conversion that is killed or interrupted leaves nothing that looks complete, and the same command continues it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.atomic import locked
from shards.convert import ConvertOptions, write_dataset
from shards.dataset import Dataset
from shards.errors import InputError
from tests.conftest import PROJECT

# What the command does except for the statistics, which import torch and DALI and come after the data set is complete
CONVERT = """
import sys
from pathlib import Path
from shards.errors import InputError
from shards.convert import ConvertOptions, write_dataset
if __name__ == "__main__":
    try:
        write_dataset(Path(sys.argv[1]), Path(sys.argv[2]), ConvertOptions(size=256, shard_size=500_000, workers=2))
    except InputError as error:
        sys.exit(str(error))
"""


@pytest.fixture(scope="module")
def many(images, tmp_path_factory):
    """The rendered images ten times over, under other names: some seconds of work. And a file that is not an image."""
    root = tmp_path_factory.mktemp("many")
    for image in sorted(images.glob("*/*/*.jpg")):
        for copy in range(10):
            context = root / image.relative_to(images).with_stem(f"{image.stem}_{copy}")
            context.parent.mkdir(parents=True, exist_ok=True)
            os.link(image, context)
    next(root.glob("train/*/*.jpg")).with_name("broken.jpg").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "convert.py"
    path.write_text(CONVERT)
    return path


@pytest.fixture(scope="module")
def uninterrupted(many, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted") / "set"
    write_dataset(many, out, ConvertOptions(size=256, shard_size=500_000, workers=1))
    return {path.name: path.read_bytes() for path in out.iterdir()}


def begin(script, many, out):
    """A conversion in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, script, many, out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )


def visible(out):
    return [path for path in out.iterdir() if not path.name.startswith(".")] if out.exists() else []


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def until_further(running, out):
    before = len(visible(out))
    until(lambda: len(visible(out)) > before or running.poll() is not None, seconds=120)


def children(process):
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


@pytest.mark.long
def test_kills_at_any_moment_change_nothing(script, many, uninterrupted, tmp_path):
    out, rng, kills, inodes = tmp_path / "set", random.Random(0), 0, {}
    while not (out / "dataset.json").exists():
        running = begin(script, many, out)
        if kills % 2:  # every other time not before a shard is finished, however slow the machine is
            until_further(running, out)
        try:
            running.wait(timeout=rng.uniform(0.2, 1.2) if kills < 15 else 60)
        except subprocess.TimeoutExpired:
            running.kill()
            running.communicate()
            kills += 1
        for path in visible(out):
            assert path.read_bytes() == uninterrupted[path.name], path
            # A shard that has its done marker is not written again
            if path.with_name(f".{path.stem}.done").exists():
                assert inodes.setdefault(path.name, path.stat().st_ino) == path.stat().st_ino
        if not (out / "dataset.json").exists():
            with pytest.raises(InputError):
                Dataset.load(out)
    assert kills > 3 and inodes
    # The last one may have been killed between writing dataset.json and removing the hidden files
    assert begin(script, many, out).wait(120) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == uninterrupted


def test_workers_end_with_their_parent(script, many, tmp_path):
    running = begin(script, many, tmp_path / "set")
    until(lambda: visible(tmp_path / "set"))
    workers = [pid for pid in children(running) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(workers) == 2
    running.kill()
    running.communicate()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_a_killed_worker_is_one_line_and_the_command_continues(script, many, uninterrupted, tmp_path):
    running = begin(script, many, tmp_path / "set")
    until(lambda: visible(tmp_path / "set"))
    worker = next(pid for pid in children(running) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(int(worker), signal.SIGKILL)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 1 and "was killed: run the same command again" in errors and "Traceback" not in errors
    assert begin(script, many, tmp_path / "set").wait(120) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()} == uninterrupted


def test_ctrl_c_is_one_line_and_the_command_continues(many, uninterrupted, tmp_path):
    out = tmp_path / "set"
    arguments = ["shard", "--imagenet-root", many, "--out", out, "--size", 256, "--shard-size", 500_000]
    command = [sys.executable, str(PROJECT / "cli.py"), *map(str, arguments)]
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Otherwise tests that a shell has started in the background pass on that Ctrl-C is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until(lambda: visible(out))
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to parent and workers alike
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 1 and "interrupted: the same command continues" in errors and "Traceback" not in errors
    assert not list(out.glob(".*.tmp-*")) and not (out / "dataset.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    written = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "stats.npz"}
    assert written == uninterrupted


def test_two_conversions_into_one_folder_are_refused(images, tmp_path):
    out = tmp_path / "set"
    out.mkdir()
    with locked(out), pytest.raises(InputError, match="another command is writing to"):
        write_dataset(images, out)
    write_dataset(images, out)


def test_a_done_marker_of_another_plan_or_without_its_tar_is_ignored(images, tmp_path):
    complete, out = tmp_path / "complete", tmp_path / "set"
    write_dataset(images, complete, ConvertOptions(shard_size=700_000))
    wanted = {path.name: path.read_bytes() for path in complete.iterdir()}
    shutil.copytree(complete, out)
    plan = Dataset.load(out).plan
    (out / "dataset.json").unlink()
    (out / ".plan").write_text(plan)
    (out / "train-000000.tar").write_bytes(b"another's")
    (out / ".train-000000.done").write_text(json.dumps({"plan": "another"}))
    (out / ".train-000001.done").write_text("{")
    (out / ".train-000002.tar.tmp-77").write_bytes(b"half")
    write_dataset(images, out, ConvertOptions(shard_size=700_000))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == wanted
