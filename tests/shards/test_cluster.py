"""The workers of a Dask cluster write the bytes that this machine alone would, whichever of them are lost."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from shards import cluster
from shards.cluster import parse_cluster
from shards.convert import ConvertOptions, write_dataset
from shards.errors import InputError
from shards.sources.copy_url import RECORD, source_at
from shards.upload import target, upload_shard, uploading
from shards.write_shard import ImageOptions, ShardJob, library_versions, write_shard
from tests.conftest import free_port

distributed = pytest.importorskip("distributed", reason="distributed is not installed: clusters are not tested")

OPTIONS = {"size": 256, "shard_size": 150_000}


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def unbroken(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "set"
    write_dataset(images, out, ConvertOptions(workers=1, **OPTIONS))
    return files(out)


@pytest.fixture(scope="module")
def workers():
    """Two processes and their scheduler."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as running:
        yield running


def address(workers):
    return parse_cluster(workers.scheduler_address.replace("tcp", "dask"))


@pytest.mark.long
def test_the_bytes_are_those_of_a_local_run_though_a_worker_is_killed(images, unbroken, workers, tmp_path, capsys):
    out, killed = tmp_path / "set", []
    with distributed.Client(workers, set_as_default=False) as client:
        pids = [*client.run(os.getpid).values()]

    def kill():
        while not any(out.glob(".train-*.done")):
            time.sleep(0.001)
        os.kill(pids[0], signal.SIGKILL)
        killed.append(len([*out.glob(".train-*.done")]))

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    write_dataset(images, out, ConvertOptions(cluster=address(workers), **OPTIONS))
    thread.join(1)
    assert files(out) == unbroken and len([name for name in unbroken if name.startswith("train-")]) > 10
    assert killed and killed[0] < 10  # while there was much to do
    assert "shard train: 96/96 img" in capsys.readouterr().err


@pytest.mark.long
def test_the_workers_upload_what_they_write_to_a_url(images, unbroken, workers, tmp_path):
    pytest.importorskip("fsspec")
    cluster_options = ConvertOptions(cluster=address(workers), **OPTIONS)
    with uploading(images, target((tmp_path / "far").as_uri()), cluster_options, tmp_path / "cache"):
        pass
    assert files(tmp_path / "far") == unbroken


def test_the_workers_read_the_copy_of_what_is_at_a_url(images, unbroken, workers, tmp_path, in_this_process):
    files = pytest.importorskip("fsspec").filesystem("memory")
    for path in images.rglob("*.jpg"):
        files.pipe(f"/cluster/{images.name}/{path.relative_to(images)}", path.read_bytes())
    options = ConvertOptions(cluster=address(workers), **OPTIONS)
    write_dataset(source_at(f"memory://cluster/{images.name}"), tmp_path / "set", options)
    assert {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir() if path.name != RECORD} == unbroken


@pytest.mark.long
def test_a_worker_that_sees_other_folders_or_has_other_libraries_writes_nothing(images, workers, tmp_path, monkeypatch):
    options = ConvertOptions(cluster=address(workers), **OPTIONS)
    monkeypatch.setattr(cluster, "library_versions", lambda: library_versions() | {"numpy": "0.1"})
    with pytest.raises(InputError, match=r"the worker on .* has numpy .* instead of 0\.1: install the same there"):
        write_dataset(images, tmp_path / "set", options)
    assert not [*(tmp_path / "set").glob("*.tar")]


def test_a_worker_that_does_not_see_the_images_is_named(tmp_path):
    job = ShardJob(
        tmp_path / "x.tar", tmp_path / ".catalog", [1], tmp_path / "none", (), ImageOptions(None, 90, None), ""
    )
    with pytest.raises(InputError, match=r"the worker on .* does not see --out .*give a folder that all"):
        cluster._on_worker(write_shard, (job,), library_versions())
    with pytest.raises(InputError, match=r"the worker on .* does not see --cache .*give a folder that all"):
        cluster._on_worker(upload_shard, (job,), library_versions())
    (tmp_path / ".catalog").touch()
    with pytest.raises(InputError, match=r"the worker on .* does not see --imagenet-root .*give a folder that all"):
        cluster._on_worker(write_shard, (job,), library_versions())


def test_no_scheduler_and_no_worker_are_one_line(images, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    port = free_port()
    with pytest.raises(InputError, match=f"no Dask scheduler answers at 127.0.0.1:{port}: start one with `dask sch"):
        write_dataset(images, tmp_path / "set", ConvertOptions(cluster=f"tcp://127.0.0.1:{port}"))
    empty = distributed.LocalCluster(n_workers=0, processes=True, dashboard_address=None)
    with empty, pytest.raises(InputError, match="has no workers: start some with `dask worker tcp://127"):
        write_dataset(images, tmp_path / "set", ConvertOptions(cluster=address(empty)))


@pytest.mark.long
def test_a_scheduler_that_lacks_this_project_is_one_line(images, tmp_path):
    lacking = "import sys; sys.modules['shards'] = None; from distributed.cli.dask_{0} import main; main()"
    port, running = free_port(), []
    words = {"scheduler": ["--port", port, "--no-dashboard"], "worker": [f"tcp://127.0.0.1:{port}", "--no-dashboard"]}
    try:
        for part, options in words.items():
            command = [sys.executable, "-c", lacking.format(part), *map(str, options)]
            running.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=tmp_path))
        with distributed.Client(f"tcp://127.0.0.1:{port}", timeout=60, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
        with pytest.raises(
            InputError, match=r"the scheduler at 127.* cannot import this project .*: start it, and its"
        ):
            write_dataset(images, tmp_path / "set", ConvertOptions(cluster=f"tcp://127.0.0.1:{port}", **OPTIONS))
    finally:
        for process in running:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("dask://me:sesame@host:8786", "holds credentials"),
        ("dask://host", "is not a scheduler's address"),
        ("http://host:8786", "is not a scheduler's address"),
        ("dask://host:sesame", "is not a scheduler's address"),
        ("dask://host:1/sesame", "is not a scheduler's address"),
    ],
)
def test_an_address_that_is_none_is_refused_and_not_repeated(text, complaint):
    with pytest.raises(InputError, match=f"--cluster {complaint}") as caught:
        parse_cluster(text)
    assert "sesame" not in str(caught.value)
    assert parse_cluster("dask://host:8786") == "tcp://host:8786" and parse_cluster("dask://[::1]:1") == "tcp://[::1]:1"
