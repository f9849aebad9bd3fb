"""A URL is refused when it holds credentials or parameters, and a data set there when its names may lead elsewhere."""

import json
import shutil
import sys

import pytest

from shards.dataset import Dataset
from shards.errors import InputError
from shards.remote import Remote

pytest.importorskip("aiohttp", reason="aiohttp is not installed: http is not tested")


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
    "url, message",
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
def test_urls_that_are_refused(url, message):
    with pytest.raises(InputError, match=message) as refusal:
        Remote(url)
    assert "sesame" not in str(refusal.value)


def test_without_its_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(InputError, match=r"pip install 'alexnet-dali\[remote\]'"):
        Remote("https://host/set")
