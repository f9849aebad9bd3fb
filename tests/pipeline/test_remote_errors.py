"""What is damaged, missing or fails to arrive from a URL is tried again and then reported by name."""

import base64
import http.server
import json
import shutil
import time
from pathlib import Path

import pytest
import torch

from pipeline.loader import BAD_LABEL
from shards.errors import InputError
from shards.index import components, read_index
from shards.remote import Remote
from tests.support.remote_sets import assert_same_batches, cached, loader_at

pytest.importorskip("aiohttp", reason="aiohttp is not installed: http is not tested")
pytestmark = pytest.mark.usefixtures("quick_retries")


def test_an_image_that_cannot_be_decoded_is_skipped_by_name(data, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    described = json.loads((copy / "dataset.json").read_text())
    shard = described["splits"]["train"]["shards"][1]
    entry = components(read_index(copy / "train-000001.idx")[2])
    with open(copy / shard["name"], "r+b") as file:
        file.seek(int(entry[0][1]))
        file.write(bytes(int(entry[0][2])))
    shard["sha256"] = ""  # as in a data set described without one
    (copy / "dataset.json").write_text(json.dumps(described))
    far = loader_at(Remote(copy.as_uri(), tmp_path / "cache"))
    bad = 0
    for wanted, got in zip(loader_at(data).epoch(0), far.epoch(0), strict=True):
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
def test_a_failed_fetch_is_tried_again_and_finally_reported(data, tmp_path, serve, fault):
    server = serve(data)
    name = "train-000002.tar"
    server.faults[name] = [2, fault]
    assert_same_batches(loader_at(data).epoch(0), loader_at(Remote(server.url, tmp_path / "a")).epoch(0))
    assert server.requested.count(name) == 3
    server.faults[name] = [10**6, fault]
    with pytest.raises(InputError, match=rf"{server.url}{name} cannot be fetched, tried 3 times: "):
        list(loader_at(Remote(server.url, tmp_path / "b")).epoch(0))
    assert name not in cached(tmp_path / "b")
    # A thread that fetches ahead may be at its own last try: it clears up too, when that fails
    deadline = time.monotonic() + 20
    while left := [path for path in (tmp_path / "b").glob("*/.*") if name in path.name]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_what_is_missing_or_does_not_fit_is_reported(data, tmp_path, serve):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    server = serve(copy)

    def refused(message, cache="cache"):
        with pytest.raises(InputError, match=message):
            list(loader_at(Remote(server.url, tmp_path / cache)).epoch(0))

    (copy / "train-000001.tar").unlink()
    refused("train-000001.tar is missing: copy a complete data set there")
    lines = (copy / "train-000003.idx").read_text().splitlines()
    beyond = [*lines[:-1], "jpg 99999999 5 x.jpg cls 512 1 x.cls"]
    for number, damaged in enumerate((lines[:1] + lines[2:], ["v1.2 1", lines[1]], beyond)):
        (copy / "train-000003.idx").write_text("\n".join([*damaged, ""]))
        # A cache of its own, so as not to wait for what is being fetched into the one before
        refused(r"train-000003.idx (does not fit its tar|is not a complete)", f"cache{number}")
    content = (copy / "dataset.json").read_text()
    (copy / "dataset.json").write_text('{"error": "log in"}')
    refused(rf"{server.url}dataset.json is damaged .*: look at what the server sends there")
    (copy / "dataset.json").write_text(content)
    (copy / "stats.npz").unlink()
    refused("stats.npz is missing")
    (copy / "dataset.json").unlink()
    refused(rf"{server.url}dataset.json is missing")


def login_page(handler):
    content = b"\n<!DOCTYPE html><title>Log in</title>"
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


@pytest.mark.parametrize("name", ["dataset.json", "stats.npz", "train-000001.idx", "train-000001.tar"])
def test_a_login_page_is_not_taken_for_the_file(data, tmp_path, serve, name):
    server = serve(data)
    server.faults[name] = [10**6, login_page]
    with pytest.raises(InputError, match=f"{server.url}{name}: the server sends a web page and not the file"):
        list(loader_at(Remote(server.url, tmp_path)).epoch(0))
    assert server.requested.count(name) <= 2  # by the thread that fetches ahead, and by the one that reads


def wants_credentials(status):
    def answer(handler):
        if handler.headers.get("Authorization") == "Basic " + base64.b64encode(b"me:sesame").decode():
            return http.server.SimpleHTTPRequestHandler.do_GET(handler)
        return handler.send_error(status)

    return answer


@pytest.mark.parametrize("status, message", [(401, "401 Unauthorized"), (403, "403 Forbidden"), (400, "answers 400")])
def test_what_is_refused_is_not_asked_for_again(data, tmp_path, serve, status, message):
    server = serve(data)
    server.faults["dataset.json"] = [10**6, wants_credentials(status)]
    with pytest.raises(InputError, match=message) as refusal:
        loader_at(Remote(server.url, tmp_path))
    assert server.requested == ["dataset.json"]
    assert ("~/.netrc" in str(refusal.value)) == (status != 400)


@pytest.mark.parametrize("file", [".netrc", "elsewhere"])
def test_credentials_come_from_netrc(data, tmp_path, serve, monkeypatch, file):
    server = serve(data)
    server.faults = {path.name: [10**6, wants_credentials(401)] for path in data.iterdir()}
    (tmp_path / file).write_text("machine 127.0.0.1 login me password sesame\n")
    (tmp_path / file).chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    if file != ".netrc":
        monkeypatch.setenv("NETRC", str(tmp_path / file))
    assert_same_batches(loader_at(data).epoch(0), loader_at(Remote(server.url, tmp_path / "cache")).epoch(0))


def for_any_host(handler):
    handler.path = "/" + handler.path.rpartition("/")[2]
    return http.server.SimpleHTTPRequestHandler.do_GET(handler)


@pytest.mark.parametrize("no_proxy", ["", "data.example"])
def test_a_proxy_is_asked_unless_it_is_not_to_be(data, tmp_path, serve, monkeypatch, no_proxy):
    proxy = serve(data)
    proxy.faults = {path.name: [10**6, for_any_host] for path in data.iterdir()}
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", no_proxy)
    far = Remote("http://data.example", tmp_path)
    if no_proxy:
        with pytest.raises(InputError, match="cannot be fetched, tried 3 times"):
            loader_at(far)
        assert not proxy.requested
    else:
        assert_same_batches(loader_at(data).epoch(0), loader_at(far).epoch(0))
