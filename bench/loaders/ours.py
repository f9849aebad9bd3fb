"""Our own loader: WebDataset shards through DALI."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bench.harness.datasets import MIN_EPOCH, endless_batches, repeated
from bench.loaders.base import ImageSet, LoaderSpec
from pipeline.loader import Loader
from pipeline.order import Augmentation, RankSlice
from pipeline.settings import choose_settings
from pipeline.stats import Stats


def batches(images: ImageSet, batch_size: int, workers: int, device: torch.device) -> Iterator[Tensor]:
    settings = choose_settings({}, {}, workers, gpu=device.type == "cuda")
    augmentation = Augmentation(Stats.load(images.source))
    options: dict[str, Any] = {"batch_size": batch_size, "settings": settings, "augmentation": augmentation}
    options["rank_slice"] = RankSlice(0, 1, device.index if device.type == "cuda" else None)
    # First the one epoch of these images that the other loaders begin with too, whose pixels are compared
    first = Loader(images.dataset, "train", "train", **options).epoch(0)
    rest = endless_batches(
        Loader(repeated(images.dataset, max(MIN_EPOCH, len(images.files))), "train", "train", **options)
    )
    return (batch.images for batch in itertools.chain(first, rest))


OURS = LoaderSpec("ours (DALI)", "alexnet-dali", (), batches, "GPU and CPU")
