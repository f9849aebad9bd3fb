"""Data sets that many tests read, created once a session and never written to."""

import signal
import socket
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.forkserver import fork_server
from tests.support.http_server import http_servers
from tests.support.s3_server import s3_server

# A test run that was started in the background or under nohup has these ignored, and so would all that it starts
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

PROJECT = Path(__file__).parents[1]
SHARED = PROJECT.parent / "shared" / "data"


def free_port():
    """A port on loopback that nobody listened on just now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Rendered class folders: 4 classes, 96 train and 22 val images."""
    from shards.synthetic import render_folders

    root = tmp_path_factory.mktemp("images")
    render_folders(root, classes=4, train=96, val=22, seed=3)
    return root


@pytest.fixture(scope="session")
def data(images, tmp_path_factory):
    """The rendered images as a data set of several shards, with indices and statistics."""
    from pipeline.compute_stats import complete
    from shards.convert import ConvertOptions, write_dataset

    out = tmp_path_factory.mktemp("sets") / "rendered"
    dataset = write_dataset(images, out, ConvertOptions(shard_size=400_000, workers=1))
    complete(dataset)
    return out


@pytest.fixture(scope="session")
def run(data, tmp_path_factory):
    """The folder of a run of 14 steps on that data set, evaluated after 12 and at the end."""
    from trainer.config import TrainConfig
    from trainer.train import train

    out = tmp_path_factory.mktemp("runs") / "run"
    train(TrainConfig(data, out, device="cpu", width=0.05, batch_size=8, lr=0.001, steps=14))
    return out


@pytest.fixture(scope="session")
def real_images(tmp_path_factory):
    """Some of the real ImageNet images as class folders; skips where the shared data is absent."""
    path = SHARED / "imagenet-sample.tar"
    if not path.exists():
        pytest.skip(f"{path} is absent: real images are not tested")
    root = tmp_path_factory.mktemp("real")
    with tarfile.open(path) as tar:
        members = [member for member in tar if member.isfile()][::10]
        tar.extractall(root, members, filter="data")
    return root


@pytest.fixture
def quick_retries(monkeypatch):
    """A fetch from a URL is tried again at once."""
    from shards import storage

    monkeypatch.setattr(storage, "RETRY_DELAYS", (0.01, 0.01))


@pytest.fixture
def serve(quick_retries):
    """`serve(folder)`: an HTTP server whose `url` is that folder."""
    with http_servers() as start:
        yield start


@pytest.fixture(scope="session")
def s3():
    """boto3's client of an S3 server, which s3:// means from now on."""
    with s3_server(free_port()) as client:
        yield client


@pytest.fixture
def run_cli():
    """`run_cli("train", ...)`: the command as a user types it; returns the finished process with its text."""

    def run(*words, check=True, **keywords):
        command = [sys.executable, str(PROJECT / "cli.py"), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, **keywords)
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def quick_ranks(monkeypatch):
    """Ranks start from a process that has imported torch and DALI already, which each would need five seconds for. For
    tests of what ranks compute; how they start and end is tested without this."""
    from torch.multiprocessing.spawn import start_processes

    from trainer import launch

    fork_server()
    monkeypatch.setattr(launch, "spawn", partial(start_processes, start_method="forkserver"))


@pytest.fixture
def run_here(quick_ranks):
    """`run_here("train", ...)` is `run_cli` in this process, where all is imported already. The text is what this
    process printed, not what further ranks did."""
    from cli import main

    def run(*words, check=True):
        done = CliRunner().invoke(main, [*map(str, words)])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        if check:
            assert done.exit_code == 0, done.output
        return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)

    return run
