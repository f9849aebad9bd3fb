"""Data sets in object storage: the same batches as from a folder, a cache that is shared and bounded, clear errors.

Servers listen on loopback only, in processes of their own: DALI holds Python back while it opens an `s3://` shard.
"""

import fcntl
import functools
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from pipeline.loader import BAD, Loader
from pipeline.stats import Stats
from shards import remote
from shards.errors import InputError
from shards.index import components, read_index
from shards.manifest import Dataset
from shards.remote import Cache, Remote

pytest.importorskip("aiohttp", reason="aiohttp is not installed: http is not tested")
LARGEST = 420_000  # no shard of the rendered set is larger


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.01))


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files, notes what it was asked for, and does to a path's next answers what `faults` says."""

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.server.asked.append(name)
        fault = self.server.faults.get(name)
        if fault and fault[0]:
            fault[0] -= 1
            return fault[1](self)
        return super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """`serve(folder)`: a server whose `url` is that folder."""
    servers = []

    def start(folder):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        server.asked, server.faults, server.url = [], {}, f"http://127.0.0.1:{server.server_port}/"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def loader_of(where, view="train", batch_size=8, split="train", **more):
    dataset = Dataset.load(where)
    stats = Stats.load(dataset.root)
    return Loader(dataset, split, view, stats=stats, batch_size=batch_size, threads=1, seed=3, **more)


def assert_same(wanted, got):
    for one, other in zip(wanted, got, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        assert one.valid == other.valid and (one.light is None or torch.equal(one.light, other.light))


def cached(cache):
    return {path.name.removesuffix(".cached"): path for path in cache.glob("*/*.cached")}


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_batches_are_those_of_the_folder(data, tmp_path, serve, scheme):
    url = serve(data).url if scheme == "http" else data.as_uri()
    near, far = loader_of(data), loader_of(Remote(url, tmp_path))
    assert_same(near.epoch(1), far.epoch(1))
    assert_same(list(near.epoch(2))[5:], far.epoch(2, start=5))
    for view in ("centre", "ten", "patch"):
        words = (view, 5, "val")
        assert_same(loader_of(data, *words).epoch(0), loader_of(Remote(url, tmp_path), *words).epoch(0))
    assert near.jpeg(1, 2) == far.jpeg(1, 2)


def test_two_ranks_share_the_batches_of_one_and_fetch_nothing_twice(data, tmp_path, serve):
    server = serve(data)
    whole = list(loader_of(data, batch_size=12).epoch(0))
    ranks = [loader_of(Remote(server.url, tmp_path), batch_size=12, rank=rank, world=2) for rank in (0, 1)]
    for batch, *shares in zip(whole, *(rank.epoch(0) for rank in ranks), strict=True):
        assert torch.equal(batch.images, torch.cat([share.images for share in shares]))
    tars = [name for name in server.asked if name.endswith(".tar")]
    assert sorted(tars) == sorted(path.name for path in data.glob("train-*.tar"))


def test_a_cache_smaller_than_the_set_stays_within_its_bounds(data, tmp_path, serve):
    server, limit = serve(data), 4 * LARGEST
    assert sum(path.stat().st_size for path in data.glob("train-*.tar")) > 2 * limit
    largest, ends = [], threading.Event()

    def watch():
        while not ends.wait(0.002):
            largest.append(sum(path.stat().st_size for path in cached(tmp_path).values() if path.exists()))

    watching = threading.Thread(target=watch)
    watching.start()
    near, far = loader_of(data, batch_size=7), loader_of(Remote(server.url, tmp_path, limit), batch_size=7)
    for epoch in (0, 1):
        assert_same(near.epoch(epoch), far.epoch(epoch))
    ends.set()
    watching.join()
    assert 0 < max(largest) <= limit
    # The second epoch had to fetch some again; DALI runs ahead into the third, by a shard and the next
    tars = [name for name in server.asked if name.endswith(".tar")]
    assert len(near.tars) < len(tars) <= 2 * len(near.tars) + 2
