"""Other loaders beside ours: the same work is checked, and whoever is not there or does other work has no figure."""

import json
import os
import sys

import numpy as np
import pytest
import torch

from bench import loaders
from bench.loaders import OURS, PEERS, Peer, Round
from shards.dataset import Dataset


@pytest.fixture(scope="module")
def images(data, tmp_path_factory):
    return loaders.images_of(Dataset.load(data), tmp_path_factory.mktemp("peers"))


def short(images, *rivals):
    return {one["name"]: one for one in loaders.compare(images, 16, 0.05, 1, rivals)}


# Loaders that go wrong, each in its way; at the top level, for they go to another process


def brighter(images, batch, workers):
    return (one.clamp(max=245) + 10 for one in loaders.ours(images, batch, workers))


def floats(images, batch, workers):
    return (one.float() for one in loaders.ours(images, batch, workers))


def crash(images, batch, workers):
    print("first words\nlast words", file=sys.stderr, flush=True)
    os._exit(7)


def test_a_peer_has_its_ratio_and_whoever_is_missing_crashes_or_does_other_work_a_reason_and_no_figure(images):
    told = short(
        images,
        Peer("the same", "webdataset", ("webdataset",), loaders.ours),
        Peer("missing", "none", ("no_such_module",), crash),
        Peer("crashing", "none", (), crash),
        Peer("brighter", "none", (), brighter),
        Peer("floats", "none", (), floats),
    )
    own, same = told[OURS.name], told["the same"]
    assert next(iter(told)) == OURS.name and same["version"]
    assert same["ratio"] == pytest.approx(own["img_per_s"] / same["img_per_s"])
    assert told["missing"] == {
        "name": "missing",
        "absent": "no_such_module cannot be imported: No module named 'no_such_module'",
    }
    assert told["crashing"]["absent"] == "its process ended with 7: last words"
    assert told["brighter"]["absent"].startswith("does other work: the mean of its pixels is")
    assert "and should be N x 224 x 224 x 3 uint8" in told["floats"]["absent"]
    assert loaders.table(list(told.values())).count("absent: ") == 4


def test_levels_are_each_colors_mean_and_spread_in_either_layout():
    rng = np.random.default_rng(0)
    batch = torch.from_numpy(rng.integers(0, 256, (4, 224, 224, 3), np.uint8))
    mean, spread = loaders.levels([batch[:2], batch[2:].movedim(-1, 1)])
    assert np.allclose(mean, batch.numpy().mean((0, 1, 2))) and np.allclose(spread, batch.numpy().std((0, 1, 2)))


def test_a_difference_beyond_the_tolerance_is_told():
    own = Round(1.0, np.array([100.0, 100, 100]), np.array([60.0, 60, 60]))
    assert loaders.differing(own, own) is None
    assert "the spread of its pixels" in loaders.differing(own._replace(spread=np.array([60.0, 60, 63])), own)


@pytest.mark.long
def test_the_command_lists_every_peer_by_name_and_those_installed_do_the_same_work(data, tmp_path, run_cli):
    out = tmp_path / "bench.json"
    words = ["--batch-size", 8, "--width", 0.05, "--seconds", 0.05, "--device", "cpu", "--json", out, "--peers"]
    told = run_cli("throughput-bench", "--data", data, *words).stdout
    listed = {one["name"]: one for one in json.loads(out.read_text())["peers"]}
    assert list(listed) == [OURS.name, *(peer.name for peer in PEERS)]
    assert all(("img_per_s" in one) != ("absent" in one) and name in told for name, one in listed.items())
    assert listed[OURS.name]["ratio"] == 1
    for name in ("torch DataLoader + Pillow", "webdataset + Pillow", "webdataset + simplejpeg"):
        one = listed[name]
        assert one["version"] and 0 < one["p10"] <= one["img_per_s"] <= one["p90"] and one["ratio"] > 0, one
