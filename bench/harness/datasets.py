"""What a measurement of the data path reads: some of a data set's images, written again and read over and over."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.loader import Batch, Loader
from pipeline.samples import Samples
from shards.convert import ConvertOptions, write_dataset
from shards.dataset import Dataset

MIN_EPOCH = 12_800  # images: an epoch of ImageNet begins a hundred times more rarely still
MAX_SHARDS = 256  # of an epoch, unless the data set has more


def repeated(dataset: Dataset, least: int = MIN_EPOCH) -> Dataset:
    """The train split several times over, if it has fewer than `least` images. Otherwise the beginnings of epochs would
    count for more than they do in ImageNet."""
    split = dataset.split("train")
    times = min(-(-least // split.samples), max(1, MAX_SHARDS // len(split.shards)))
    return replace(dataset, splits={"train": replace(split, shards=split.shards * times)})


def endless_batches(loader: Loader) -> Iterator[Batch]:
    """The batches of epoch after epoch."""
    for epoch in itertools.count():
        yield from loader.epoch(epoch)


def stream(dataset: Dataset, **options: Any) -> Iterator[Batch]:
    """Training batches of the `repeated` data set without end; `options` are `Loader`'s."""
    yield from endless_batches(Loader(repeated(dataset), "train", "train", **options))


def read_jpegs(dataset: Dataset, limit: int | None = None) -> list[bytes]:
    """The first `limit` images of the train split as they are stored, all by default."""
    samples = Samples(dataset, "train")
    ids = ((shard, number) for shard, size in enumerate(samples.shard_sizes) for number in range(size))
    return [samples.jpeg(sample) for sample in itertools.islice(ids, limit)]


def write_images(
    images: list[bytes], folder: Path, stored: int | None, processes: int, size: int | None = None
) -> Dataset:
    """Images as files, `folder`/images/train/CLASS/NUMBER.jpg, and as shards, `folder`/shards.

    Args: stored: the side of the squares that they are, or None; size: the side of the squares to store instead.
    """
    for number, jpeg in enumerate(images):
        path = folder / "images" / "train" / str(number % 2) / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)
    dataset = write_dataset(folder / "images", folder / "shards", ConvertOptions(size=size, workers=processes))
    return replace(dataset, size=size or stored)
