"""Images that cannot be decoded are named and skipped, every good one comes once, and too many stop the run."""

import random
import re
from collections import Counter

import pytest
import torch

from pipeline import graph
from pipeline.loader import BAD_LABEL, Loader
from pipeline.order import RankSlice
from pipeline.settings import Settings
from shards import tars
from shards.dataset import Dataset
from shards.describe import describe_tars
from shards.errors import InputError
from shards.index import index_tar, write_index
from shards.records import Shard, Sizes, Split
from tests.support.image_kinds import UNREADABLE, encoded, noise
from tests.support.loaders import loader_of, overwritten

SAMPLES, A_SHARD = 10_000, 2500
# DALI may decode what is there of these without an error; conversion and `verify --decode` name them
SILENT = ("JPEG cut short", "JPEG cut behind a thumbnail", "PNG bomb")


@pytest.mark.parametrize("world_size", [1, 2])
def test_bad_images_are_named_and_every_good_one_comes_once(data, tmp_path, capsys, world_size):
    copy, names = overwritten(data, tmp_path, [2, 3, 5])
    undamaged, harmed = (
        [
            loader_of(Dataset.load(root), batch_size=8, rank_slice=RankSlice(rank, world_size), max_bad=0.05)
            for rank in range(world_size)
        ]
        for root in (data, copy)
    )
    for epoch in (0, 1):
        skipped = 0
        for one, other in zip(undamaged, harmed, strict=True):
            for wanted, got in zip(one.epoch(epoch), other.epoch(epoch), strict=True):
                good = got.labels != BAD_LABEL
                skipped += int((~good).sum())
                assert torch.equal(wanted.images[good], got.images[good])
                assert torch.equal(wanted.labels[good], got.labels[good])
        assert skipped == 3
    errors = capsys.readouterr().err
    assert all(f"train-000001.tar: {name} cannot be decoded (not an image)" in errors for name in names)
    # From the middle of an epoch, by a loader that knows of nothing, the stream is the same
    fresh = loader_of(Dataset.load(copy), batch_size=8, max_bad=0.05)
    for wanted, got in zip(
        list(harmed[0].epoch(1))[5:] if world_size == 1 else (), fresh.epoch(1, start=5), strict=False
    ):
        good = got.labels != BAD_LABEL
        assert torch.equal(wanted.labels, got.labels) and torch.equal(wanted.images[good], got.images[good])


def test_too_many_bad_images_stop_it(data, tmp_path):
    copy, _ = overwritten(data, tmp_path, [2, 7])
    allowed = r"train-000001\.tar: .* max_bad \(`train --max-bad`\) allows 1 such: .* verify .*--quarantine"
    with pytest.raises(InputError, match=allowed):
        list(loader_of(Dataset.load(copy)).epoch(0))


def test_a_failure_without_a_bad_image_is_reported_as_it_is(data, monkeypatch):
    loader = loader_of(Dataset.load(data))
    monkeypatch.setattr(graph, "train_graph", failing_graph)
    with pytest.raises(InputError, match=r"train-\d+\.tar.*can each be decoded: out of memory"):
        list(loader.epoch(0))


def failing_graph(reader, draws, **options):
    class Failing:
        def build(self):
            pass

        def run(self, stream):
            reader()
            raise RuntimeError("out of memory")

    return Failing()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """10,000 samples, each a class of its own, among them three of every kind of damage; and which these are."""
    root, rng, bad = tmp_path_factory.mktemp("stream"), random.Random(0), {}
    good = [encoded(noise(size=(16 + i, 20))) for i in range(8)]
    kinds = [kind for kind in UNREADABLE if kind != "zero bytes"] * 3  # which no tar's index lists
    for number, kind in zip(rng.sample(range(SAMPLES), len(kinds)), kinds, strict=True):
        bad[number] = kind
    for shard in range(SAMPLES // A_SHARD):
        with open(root / f"train-{shard}.tar", "wb") as file:
            for number in range(shard * A_SHARD, (shard + 1) * A_SHARD):
                image = UNREADABLE[bad[number]][0] if number in bad else good[number % len(good)]
                for extension, content in (("jpg", image), ("cls", b"%d" % number)):
                    file.write(tars.header(f"s{number}.{extension}".encode(), len(content)))
                    file.write(content + bytes(tars.padded(len(content)) - len(content)))
            file.write(bytes(1024))
    return root, bad


def described_as_undamaged(root) -> Dataset:
    """The tars described without reading their images, as if the damage had come later."""
    shards = []
    for tar in sorted(root.glob("*.tar")):
        write_index(tar.with_suffix(".idx"), index_tar(tar))
        shards.append(Shard(tar.name, A_SHARD, tar.stat().st_size, ""))
    split = Split(tuple(shards), (1,) * SAMPLES, Sizes.of([]))
    classes = tuple(map(str, range(SAMPLES)))
    return Dataset(root, classes, {}, {"train": split}, "webdataset", None, None, None, None, "", {})


@pytest.mark.long
def test_every_good_sample_of_a_long_stream_comes_once_and_the_bad_are_named(damaged, capsys):
    root, bad = damaged
    loader = Loader(
        described_as_undamaged(root), "train", "train", batch_size=50, settings=Settings(threads=2), max_bad=0.01
    )
    seen = Counter(label for batch in loader.epoch(0) for label in batch.labels.tolist())
    named = re.findall(r"train-\d\.tar: s(\d+)\.jpg cannot be decoded", capsys.readouterr().err)
    loud = set(map(int, named))
    assert len(named) == len(loud) == seen.pop(BAD_LABEL) and loud <= set(bad)
    assert {bad[number] for number in set(bad) - loud} <= set(SILENT)
    assert seen == Counter(number for number in range(SAMPLES) if number not in loud)


def test_what_dali_decodes_without_an_error_is_found_by_describing(damaged):
    root, bad = damaged
    for index in root.glob("*.idx"):
        index.unlink()
    quarantined = describe_tars(root).split("train").quarantined
    assert sorted(sample.key for sample in quarantined) == sorted(f"s{number}" for number in bad)
