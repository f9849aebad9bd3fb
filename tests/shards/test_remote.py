"""Data sets in object storage: the same batches as from a folder, a cache that is shared and bounded, clear errors.

Servers listen on loopback only, in processes of their own: DALI holds Python back while it opens an `s3://` shard.
"""

import contextlib
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

from pipeline.loader import BAD_LABEL, Loader
from pipeline.order import Augmentation, RankSlice
from pipeline.settings import Settings
from pipeline.stats import Stats
from shards import cache as cache_module
from shards import remote
from shards.cache import Cache
from shards.dataset import Dataset
from shards.errors import InputError
from shards.index import components, read_index
from shards.remote import Remote
from tests.conftest import free_port

pytest.importorskip("aiohttp", reason="aiohttp is not installed: http is not tested")
LARGEST = 420_000  # no shard of the rendered set is larger


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "RETRY_DELAYS", (0.01, 0.01))


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
    options = {"settings": Settings(threads=1), "augmentation": Augmentation(Stats.load(dataset.root), seed=3), **more}
    return Loader(dataset, split, view, batch_size=batch_size, **options)


def assert_same(wanted, got):
    for one, other in zip(wanted, got, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        assert one.valid == other.valid and (one.color_shift is None or torch.equal(one.color_shift, other.color_shift))


def cached(cache):
    return {path.name.removesuffix(".cached"): path for path in cache.glob("*/*.cached")}


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_batches_are_those_of_the_folder(data, tmp_path, serve, scheme):
    url = serve(data).url if scheme == "http" else data.as_uri()
    near, far = loader_of(data), loader_of(Remote(url, tmp_path))
    assert_same(near.epoch(1), far.epoch(1))
    assert near.keys(1, 0) == far.keys(1, 0)
    assert_same(list(near.epoch(2))[5:], far.epoch(2, start=5))
    for view in ("center", "ten", "patch"):
        words = (view, 5, "val")
        assert_same(loader_of(data, *words).epoch(0), loader_of(Remote(url, tmp_path), *words).epoch(0))
    assert near.samples.jpeg((1, 2)) == far.samples.jpeg((1, 2))


def test_two_ranks_share_the_batches_of_one_and_fetch_nothing_twice(data, tmp_path, serve):
    server = serve(data)
    whole = list(loader_of(data, batch_size=12).epoch(0))
    ranks = [loader_of(Remote(server.url, tmp_path), batch_size=12, rank_slice=RankSlice(rank, 2)) for rank in (0, 1)]
    for batch, *shares in zip(whole, *(rank.epoch(0) for rank in ranks), strict=True):
        assert torch.equal(batch.images, torch.cat([share.images for share in shares]))
    tars = [name for name in server.asked if name.endswith(".tar")]
    assert sorted(tars) == sorted(path.name for path in data.glob("train-*.tar"))


@pytest.mark.long
def test_throughput_bench_measures_a_set_at_a_url(data, tmp_path, serve, run_cli):
    words = [
        "--data",
        serve(data).url,
        "--cache",
        tmp_path / "cache",
        "--json",
        tmp_path / "bench.json",
        "--seconds",
        0.1,
    ]
    run_cli("throughput-bench", *words, "--batch-size", 16, "--width", 0.05, "--device", "cpu", "--precision", "bf16")
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["limits"]["storage"]["what"].endswith("cache of a URL's") and report["precision"] == "bf16"
    assert report["limits"]["matmul"]["what"].endswith("products in bf16")
    cold = run_cli("throughput-bench", *words, "--cold", check=False)
    assert cold.returncode == 1 and "leave it out with a URL" in cold.stderr


def test_a_cache_smaller_than_the_set_stays_within_its_bounds(data, tmp_path, serve):
    server, limit = serve(data), 4 * LARGEST
    assert sum(path.stat().st_size for path in data.glob("train-*.tar")) > 2 * limit
    largest, ends = [], threading.Event()

    def watch():
        while not ends.wait(0.002):
            with contextlib.suppress(FileNotFoundError):  # one was thrown out as they were being counted
                largest.append(sum(path.stat().st_size for path in cached(tmp_path).values()))

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


def test_a_image_that_cannot_be_decoded_is_left_out_by_name(data, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    described = json.loads((copy / "dataset.json").read_text())
    shard = described["splits"]["train"]["shards"][1]
    entry = components(read_index(copy / "train-000001.idx")[2])
    with open(copy / shard["name"], "r+b") as file:
        file.seek(int(entry[0][1]))
        file.write(bytes(int(entry[0][2])))
    shard["sha256"] = ""  # as a set that was described without one
    (copy / "dataset.json").write_text(json.dumps(described))
    far = loader_of(Remote(copy.as_uri(), tmp_path / "cache"))
    bad = 0
    for wanted, got in zip(loader_of(data).epoch(0), far.epoch(0), strict=True):
        good = got.labels != BAD_LABEL
        bad += int((~good).sum())
        assert torch.equal(wanted.images[good], got.images[good])
    url = f"{copy.as_uri()}/{shard['name']}"
    assert bad == 1 and f"{url}: {entry[0][3]} cannot be decoded (not an image)" in capsys.readouterr().err


def cut_short(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b"half")
    handler.close_connection = True


def other_bytes(handler):
    content = Path(handler.translate_path(handler.path)).read_bytes()[:-1] + b"?"
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def refuse(handler):
    handler.send_error(503)


@pytest.mark.parametrize("fault", [cut_short, other_bytes, refuse])
def test_a_failed_fetch_is_tried_again_and_at_last_named(data, tmp_path, serve, fault):
    server = serve(data)
    name = "train-000002.tar"
    server.faults[name] = [2, fault]
    assert_same(loader_of(data).epoch(0), loader_of(Remote(server.url, tmp_path / "a")).epoch(0))
    assert server.asked.count(name) == 3
    server.faults[name] = [10**6, fault]
    with pytest.raises(InputError, match=rf"{server.url}{name} cannot be fetched, tried 3 times: "):
        list(loader_of(Remote(server.url, tmp_path / "b")).epoch(0))
    assert name not in cached(tmp_path / "b")
    assert not [path for path in (tmp_path / "b").glob("*/.*") if name in path.name]


def test_what_is_missing_or_does_not_fit_is_named(data, tmp_path, serve):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    server = serve(copy)

    def refused(words, cache="cache"):
        with pytest.raises(InputError, match=words):
            list(loader_of(Remote(server.url, tmp_path / cache)).epoch(0))

    (copy / "train-000001.tar").unlink()
    refused("train-000001.tar is missing: copy a complete data set there")
    lines = (copy / "train-000003.idx").read_text().splitlines()
    beyond = [*lines[:-1], "jpg 99999999 5 x.jpg cls 512 1 x.cls"]
    for number, spoilt in enumerate((lines[:1] + lines[2:], ["v1.2 1", lines[1]], beyond)):
        (copy / "train-000003.idx").write_text("\n".join([*spoilt, ""]))
        # A cache of its own: what is on its way into the one before is not waited for
        refused(r"train-000003.idx (does not fit its tar|is not a whole)", f"cache{number}")
    whole = (copy / "dataset.json").read_text()
    (copy / "dataset.json").write_text("<html>")
    refused(rf"{server.url}dataset.json is damaged")
    (copy / "dataset.json").write_text(whole)
    (copy / "stats.npz").unlink()
    refused("stats.npz is missing")
    (copy / "dataset.json").unlink()
    refused(rf"{server.url}dataset.json is missing")


@pytest.mark.parametrize("name", ["..", "../x.tar", "/x.tar", "a/b.tar", "x.tar?a", ".x.tar", "x.idx", "%2e%2e.tar"])
def test_names_never_lead_out_of_the_cache(data, tmp_path, serve, name):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    described = json.loads((copy / "dataset.json").read_text())
    described["splits"]["train"]["shards"][0]["name"] = name
    (copy / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"dataset\.json names a shard"):
        Dataset.load(Remote(serve(copy).url, tmp_path / "cache"))


@pytest.mark.parametrize(
    "url, words",
    [
        ("https://me:sesame@host/set", "holds credentials"),
        ("https://sesame@host/set", "holds credentials"),
        ("s3://key:sesame@bucket/set", "holds credentials"),
        ("https://host/set?sig=sesame", "without parameters"),
        ("simplecache::https://host/set", "without parameters"),
        ("memory://", "give the plain URL"),
        ("nosuch://host/set", "not a URL that fsspec reads"),
    ],
)
def test_urls_that_are_refused(url, words):
    with pytest.raises(InputError, match=words) as refusal:
        Remote(url)
    assert "sesame" not in str(refusal.value)


def test_without_its_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(InputError, match=r"pip install 'alexnet-dali\[remote\]'"):
        Remote("https://host/set")


def test_a_data_set_that_changed_does_not_meet_the_old_shards(data, tmp_path, serve, images):
    from pipeline.compute_stats import complete
    from shards.convert import ConvertOptions, write_dataset

    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    server = serve(copy)
    list(loader_of(Remote(server.url, tmp_path / "cache")).epoch(0))
    shutil.rmtree(copy)
    complete(write_dataset(images, copy, ConvertOptions(shard_size=400_000, seed=9, workers=1)))
    assert_same(loader_of(copy).epoch(0), loader_of(Remote(server.url, tmp_path / "cache")).epoch(0))


# The cache alone, on files of ten bytes


def ten(letter, calls, pause=0.0):
    def download(part):
        calls.append(letter)
        time.sleep(pause)
        part.write_bytes(letter.encode() * 10)

    return download


def names(cache):
    return "".join(sorted(cached(cache.root)))


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "set").mkdir()
    return Cache(tmp_path, 30)


def test_the_least_recently_used_goes_and_never_one_in_use(cache, monkeypatch):
    def get(letter):
        return cache.open(cache.root / "set" / f"{letter}.cached", 10, ten(letter, calls))

    calls = []
    for letter in "abcad":
        file = get(letter)
        assert file.read() == letter.encode() * 10
        file.close()
    assert names(cache) == "acd" and "".join(calls) == "abcd"
    with get("a"), get("c"), get("d"):
        monkeypatch.setattr(cache_module, "LOCK_TIMEOUT", 0.3)
        with pytest.raises(InputError, match="every file in the cache is in use: raise --cache-size"):
            get("e")
        assert names(cache) == "acd" and not list(cache.root.glob("*/.*"))
    get("e").close()
    assert names(cache) == "cde"


def test_a_killed_fetch_is_begun_anew_and_its_rest_makes_room(cache):
    calls = []
    (cache.root / "set" / ".a.cached.part-10").write_bytes(b"a")
    (cache.root / "set" / ".b.cached.part-25").write_bytes(b"b")
    for letter in "acd":
        cache.open(cache.root / "set" / f"{letter}.cached", 10, ten(letter, calls)).close()
    assert names(cache) == "acd" and not list(cache.root.glob("*/.*"))


def test_other_files_in_the_folder_are_let_alone(cache):
    (cache.root / "set" / "mine.tar").write_bytes(bytes(1000))
    for letter in "abcde":
        cache.open(cache.root / "set" / f"{letter}.cached", 10, ten(letter, [])).close()
    assert (cache.root / "set" / "mine.tar").exists() and names(cache) == "cde"


def fetch_all(root, log, seed):
    """A process that opens forty files of six in a cache for three."""
    import random

    rng, cache = random.Random(seed), Cache(root, 30)
    for _ in range(40):
        letter = rng.choice("abcdef")
        calls = []
        with cache.open(root / "set" / f"{letter}.cached", 10, ten(letter, calls, 0.001)) as file:
            assert file.read() == letter.encode() * 10
            total = 10 * len(list(root.glob("*/*.cached")))
        with open(log, "a") as lines:
            lines.write(f"{total}\n")


def test_processes_share_a_cache(cache, tmp_path):
    log = tmp_path / "log"
    workers = [get_context("spawn").Process(target=fetch_all, args=(tmp_path, log, seed)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    totals = list(map(int, log.read_text().split()))
    assert len(totals) == 120 and max(totals) <= 30


def test_readers_fetch_the_same_once_and_hold_it_together(cache):
    calls, path, together = [], cache.root / "set" / "a.cached", threading.Barrier(8, timeout=20)

    def hold():
        with cache.open(path, 10, ten("a", calls, 0.2)):
            together.wait()  # ranks wait for one another with a shard in their hands

    threads = [threading.Thread(target=hold, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == ["a"] and not together.broken


# Amazon's protocol, by moto


@pytest.fixture(scope="module")
def bucket(data):
    """The rendered set in a bucket of moto's server; its URL, and what the environment has to say for it."""
    pytest.importorskip("moto.server", reason="moto[server] is not installed: s3:// is not tested")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs", reason="s3fs is not installed: s3:// is not tested")
    port = free_port()
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    old = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)  # for the module, as DALI looks at it once in a process
    try:
        end = time.monotonic() + 60
        while True:
            with socket.socket() as waiting:
                if waiting.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < end and server.poll() is None
            time.sleep(0.05)
        client = boto3.client("s3")
        client.create_bucket(Bucket="alexnet")
        for path in data.iterdir():
            client.upload_file(str(path), "alexnet", f"some/set/{path.name}")
        yield "s3://alexnet/some/set"
    finally:
        server.kill()
        server.wait()
        for name, value in old.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.mark.parametrize("through", ["DALI", "the cache"])
def test_s3_gives_the_batches_of_the_folder(data, bucket, tmp_path, monkeypatch, through):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    where = Remote(bucket) if through == "DALI" else Remote(bucket, tmp_path)
    assert where.read_by_dali == (through == "DALI")
    near, far = loader_of(data), loader_of(where)
    assert_same(near.epoch(1), far.epoch(1))
    assert_same(list(near.epoch(2))[5:], far.epoch(2, start=5))
    assert_same(loader_of(data, "ten", 5, "val").epoch(0), loader_of(where, "ten", 5, "val").epoch(0))
    assert near.samples.jpeg((1, 2)) == far.samples.jpeg((1, 2))
    assert bool(cached(tmp_path)) != (through == "DALI")


def test_s3_shards_that_are_not_there_are_named(data, bucket, tmp_path, monkeypatch):
    import boto3

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    client = boto3.client("s3")
    for path in data.iterdir():
        client.upload_file(str(path), "alexnet", f"half/{path.name}")
    client.put_object(Bucket="alexnet", Key="half/train-000001.tar", Body=b"short")
    with pytest.raises(InputError, match=r"half/train-000001\.tar has 5 bytes, and dataset\.json says"):
        loader_of(Remote("s3://alexnet/half"))
    good = loader_of(Remote("s3://alexnet/some/set"))
    client.delete_object(Bucket="alexnet", Key="half/train-000001.tar")
    monkeypatch.setattr(good, "tars", [tar.replace("some/set", "half") for tar in good.tars])
    with pytest.raises(InputError, match=r"DALI cannot read s3://.*train-000001\.tar.*set AWS_ENDPOINT_URL"):
        next(good.epoch(0))  # it went after it was looked for
    with pytest.raises(InputError, match=r"s3://alexnet/none/dataset\.json is missing"):
        Dataset.load(Remote("s3://alexnet/none"))


# The commands


@pytest.mark.long
def test_a_run_from_a_url_is_the_run_from_the_folder(data, tmp_path, serve, run_cli):
    server = serve(data)
    small = ["--device", "cpu", "--width", 0.05, "--batch-size", 8, "--lr", 0.001, "--steps", 14, "--log-every", 1]
    from trainer import metrics

    runs = []
    for where in ([data], [server.url, "--cache", tmp_path / "cache", "--cache-size", "2MB"]):
        out = tmp_path / str(len(runs))
        run_cli("train", "--data", *where, "--out", out, *small, "--gpus", 2)
        told = run_cli("eval", "--data", *where, "--checkpoint", out, "--device", "cpu", "--json").stdout
        lines = [
            {key: value for key, value in line.items() if key not in ("img_per_s", "data_wait")}
            for line in metrics.read(out)
        ]
        runs.append((lines, {key: value for key, value in json.loads(told).items() if key != "checkpoint"}))
    assert runs[0] == runs[1]
    assert json.loads((tmp_path / "1" / "config.json").read_text())["data"] == server.url.rstrip("/")
    about = json.loads(run_cli("info", server.url, "--json", "--cache", tmp_path / "cache").stdout)
    assert about["root"] == server.url.rstrip("/") and about["splits"]["train"]["samples"] == 96
    run_cli("preview", server.url, "--cache", tmp_path / "cache", "--out", tmp_path / "far.png", "--pictures", 2)
    run_cli("preview", data, "--out", tmp_path / "near.png", "--pictures", 2)
    assert (tmp_path / "far.png").read_bytes() == (tmp_path / "near.png").read_bytes()


def test_options_that_do_not_fit_are_one_line(data, tmp_path, run_cli):
    for words, complaint in (
        (["info", data, "--cache", tmp_path], "are for a data set at a URL"),
        (["info", "https://a:sesame@host/set"], "the URL holds credentials"),
        (
            ["preview", data.as_uri(), "--cache", tmp_path, "--cache-size", "1MB", "--out", tmp_path / "x.png"],
            "raise --cache-size",
        ),
    ):
        done = run_cli(*words, check=False)
        assert done.returncode == 1 and complaint in done.stderr and "Traceback" not in done.stderr
        assert "sesame" not in done.stderr
