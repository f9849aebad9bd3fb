"""Long streams: every good sample once among damaged ones, and an order that is a good shuffle."""

import random
import re
from collections import Counter

import numpy as np
import pytest

from pipeline.loader import BAD_LABEL, Loader
from pipeline.settings import Settings
from shards import tars
from shards.dataset import Dataset
from shards.describe import describe_tars
from shards.index import index_tar, write_index
from shards.records import Shard, Sizes, Split
from tests.support.image_kinds import UNREADABLE, encoded, noise

SAMPLES, A_SHARD = 10_000, 2500
# DALI may decode what is there of these and say nothing: conversion and `verify --decode` tell them
SILENT = ("JPEG cut short", "JPEG cut behind a thumbnail", "PNG bomb")


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


def as_it_is(root) -> Dataset:
    """The tars described without a look at what they hold, as if the damage had come later."""
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
    loader = Loader(as_it_is(root), "train", "train", batch_size=50, settings=Settings(threads=2), max_bad=0.01)
    seen = Counter(label for batch in loader.epoch(0) for label in batch.labels.tolist())
    named = re.findall(r"train-\d\.tar: s(\d+)\.jpg cannot be decoded", capsys.readouterr().err)
    loud = set(map(int, named))
    assert len(named) == len(loud) == seen.pop(BAD_LABEL) and loud <= set(bad)
    assert {bad[number] for number in set(bad) - loud} <= set(SILENT)
    assert seen == Counter(number for number in range(SAMPLES) if number not in loud)


def test_what_dali_does_not_tell_is_told_before(damaged):
    root, bad = damaged
    for index in root.glob("*.idx"):
        index.unlink()
    quarantined = describe_tars(root).split("train").quarantined
    assert sorted(sample.key for sample in quarantined) == sorted(f"s{number}" for number in bad)


def test_the_order_is_a_good_shuffle(data):
    loader = Loader(Dataset.load(data), "train", "train", batch_size=96, settings=Settings(threads=1))
    epochs, bins = 600, 8
    first = np.cumsum([0] + [len(entries) for entries in loader.samples.entries])
    orders = np.array([[first[shard] + i for shard, i in loader.order(epoch)[0]] for epoch in range(epochs)])
    positions = orders.argsort(axis=1)  # of each sample, in each epoch
    # Each sample's position is uniform: chi-square of 8 bins over 600 epochs, its mean over the 96 samples. Shards stay
    # together, so that samples of one are not independent; whole shards are, and there are few. Mean 7, wide bounds
    counts = np.stack([(positions // (96 // bins) == bin).sum(axis=0) for bin in range(bins)])
    chi = ((counts - epochs / bins) ** 2 / (epochs / bins)).sum(axis=0)
    assert 4 < chi.mean() < 10 and chi.max() < 35
    # Epochs tell nothing of one another
    correlations = [np.corrcoef(positions[i], positions[i + 1])[0, 1] for i in range(epochs - 1)]
    assert abs(np.mean(correlations)) < 0.03
    # A shuffle buffer of a quarter of the set, as readers have it, leaves samples near where they were stored
    rng, buffered = np.random.default_rng(0), []
    for _ in range(50):
        waiting, out = list(range(24)), []
        for following in [*range(24, 96), *[None] * 24]:
            out.append(waiting.pop(rng.integers(len(waiting))))
            waiting += [following] if following is not None else []
        buffered.append(np.corrcoef(np.argsort(out), np.arange(96))[0, 1])
    stored = [np.corrcoef(order, np.arange(96))[0, 1] for order in positions[:50]]
    assert abs(np.mean(stored)) < 0.1 < 0.6 < np.mean(buffered)
