"""Images of a data set taken out of it, laid down anew, and read over and over: what a measurement works on."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipeline.loader import Batch, Loader
from shards.convert import ConvertOptions, write_dataset
from shards.dataset import Dataset

EPOCH = 12_800  # images of an epoch here, at least: ImageNet's beginnings of epochs are a hundred times rarer still
MOST_SHARDS = 256  # of an epoch, if the set has fewer: DALI holds every one open


def repeated(dataset: Dataset) -> Dataset:
    """The train split several times over, if it is small: or the beginnings of epochs would count for more than they do
    in ImageNet."""
    split = dataset.split("train")
    times = min(-(-EPOCH // split.samples), max(1, MOST_SHARDS // len(split.shards)))
    return replace(dataset, splits={"train": replace(split, shards=split.shards * times)})


def stream(dataset: Dataset, **options) -> Iterator[Batch]:
    """Training batches of the `longer` set without end; `options` are `Loader`'s."""
    loader = Loader(repeated(dataset), "train", "train", **options)
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1


def read_jpegs(dataset: Dataset, most: int | None = None) -> list[bytes]:
    """The first images of the train split, as they are stored; all, unless told how many."""
    loader = Loader(dataset, "train", "read", batch_size=1, threads=1)
    places = ((shard, sample) for shard, lines in enumerate(loader.entries) for sample in range(len(lines)))
    return [loader.jpeg(*where) for where in itertools.islice(places, most)]


def write_images(
    images: list[bytes], folder: Path, stored: int | None, processes: int, size: int | None = None
) -> Dataset:
    """Images as files, `folder`/images/train/CLASS/NUMBER.jpg, and as shards, `folder`/shards.

    Args: stored: the side of the squares that they are, or None; size: that of the squares to make of them.
    """
    for number, jpeg in enumerate(images):
        path = folder / "images" / "train" / str(number % 2) / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)
    dataset = write_dataset(folder / "images", folder / "shards", ConvertOptions(size=size, workers=processes))
    return replace(dataset, size=size or stored)
