"""Our own loader: WebDataset shards through DALI."""

import itertools
from collections.abc import Iterator

from torch import Tensor

from bench.harness.datasets import stream
from bench.loaders.base import ImageSet, LoaderSpec
from pipeline.loader import Loader
from pipeline.stats import Stats


def batches(images: ImageSet, batch_size: int, workers: int) -> Iterator[Tensor]:
    stats = Stats.load(images.source)
    # First the one epoch of these images that the other loaders begin with too, whose pixels are compared
    first = Loader(images.dataset, "train", "train", stats=stats, batch_size=batch_size, threads=workers).epoch(0)
    rest = stream(images.dataset, stats=stats, batch_size=batch_size, threads=workers)
    return (batch.images for batch in itertools.chain(first, rest))


OURS = LoaderSpec("ours (DALI)", "alexnet-dali", (), batches)
