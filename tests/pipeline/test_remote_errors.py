"""What is damaged, missing or fails to arrive from a URL is tried again and then reported by name."""

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
    (copy / "dataset.json").write_text("<html>")
    refused(rf"{server.url}dataset.json is damaged")
    (copy / "dataset.json").write_text(content)
    (copy / "stats.npz").unlink()
    refused("stats.npz is missing")
    (copy / "dataset.json").unlink()
    refused(rf"{server.url}dataset.json is missing")
