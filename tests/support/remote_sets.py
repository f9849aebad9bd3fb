"""Data sets at URLs, the batches from them, and the cache that they are read through."""

import torch

from pipeline.loader import Loader
from pipeline.order import Augmentation
from pipeline.settings import Settings
from pipeline.stats import Stats
from shards.dataset import Dataset


def loader_at(where, view="train", batch_size=8, split="train", **more):
    """A loader of the data set in a folder or at a URL."""
    dataset = Dataset.load(where)
    options = {"settings": Settings(threads=1), "augmentation": Augmentation(Stats.load(dataset.root), seed=3), **more}
    return Loader(dataset, split, view, batch_size=batch_size, **options)


def assert_same_batches(wanted, got):
    for one, other in zip(wanted, got, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        assert one.valid == other.valid and (one.color_shift is None or torch.equal(one.color_shift, other.color_shift))


def cached(cache):
    """The paths of the shards in a cache, by name."""
    return {path.name.removesuffix(".cached"): path for path in cache.glob("*/*.cached")}
