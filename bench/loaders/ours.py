"""Our own loader: WebDataset shards through DALI."""

import itertools
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from bench.harness.datasets import stream
from bench.loaders.base import ImageSet, LoaderSpec
from pipeline.loader import Loader
from pipeline.order import Augmentation
from pipeline.settings import Settings
from pipeline.stats import Stats


def batches(images: ImageSet, batch_size: int, workers: int) -> Iterator[Tensor]:
    settings, augmentation = Settings(workers), Augmentation(Stats.load(images.source))
    options: dict[str, Any] = {"batch_size": batch_size, "settings": settings, "augmentation": augmentation}
    # First the one epoch of these images that the other loaders begin with too, whose pixels are compared
    first = Loader(images.dataset, "train", "train", **options).epoch(0)
    rest = stream(images.dataset, **options)
    return (batch.images for batch in itertools.chain(first, rest))


OURS = LoaderSpec("ours (DALI)", "alexnet-dali", (), batches)
