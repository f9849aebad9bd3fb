"""Computing the training set's statistics, and completing a data set that lacks them or its index files."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pipeline.geometry import SIZE
from pipeline.loader import BAD_LABEL, Loader
from pipeline.pixel_sums import PART, PARTS, add_pixels
from pipeline.settings import Settings
from pipeline.stats import FILE, Stats
from shards.dataset import Dataset
from shards.index import index_tar, write_index
from shards.processes import cores, interrupts_noted
from shards.progress import Progress

EXACT = 257  # so many images' sums of a byte fit into 16 bits
BATCH = 128  # images
PAIRS = np.array([[0, 3, 4], [3, 1, 5], [4, 5, 2]])  # where `add_pixels` puts the products of each two colors


class Sums:
    """Sums over images. They are exact, so that they depend neither on the batches nor on the number of threads.

    total: of each pixel's R, G and B, SIZE x SIZE x 3; products: of a pixel's colors, 3 x 3; samples: how many images.
    """

    def __init__(self, pool: ThreadPoolExecutor, threads: int):
        self.pool, self.threads = pool, threads
        self.total = np.zeros((SIZE, SIZE, 3), np.uint64)
        self.products = np.zeros((3, 3), np.int64)
        self.samples = 0

    def add(self, images: torch.Tensor) -> None:
        """Adds at most EXACT images, N x SIZE x SIZE x 3 uint8: each thread sums some parts of all of them."""
        assert len(images) <= EXACT
        parts = images.numpy().reshape(len(images), PARTS, 3 * PART)
        totals = np.zeros((PARTS, 3 * PART), np.uint16)
        bounds = [PARTS * thread // self.threads for thread in range(self.threads + 1)]
        products = self.pool.map(partial(add_pixels, parts, totals), bounds[:-1], bounds[1:])
        self.products += np.sum(list(products), axis=0)[PAIRS]
        self.total += totals.reshape(self.total.shape)
        self.samples += len(images)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean image, SIZE x SIZE x 3, and the mean products of a pixel's colors, 3 x 3."""
        return self.total / self.samples, self.products / (self.samples * SIZE * SIZE)


def compute_stats(dataset: Dataset, threads: int) -> Stats:
    """One pass over the complete train split through DALI, on the CPU, so that the numbers are the same on every
    machine; images that cannot be decoded do not count."""
    loader = Loader(dataset, "train", "patch", batch_size=BATCH, settings=Settings(threads))
    samples = len(loader.samples)
    with interrupts_noted() as interrupts, ThreadPoolExecutor(threads) as pool, Progress("stats", samples) as progress:
        sums = Sums(pool, threads)
        for batch in loader.epoch(0):
            images, counted = batch.images[: batch.valid], batch.labels[: batch.valid] != BAD_LABEL
            sums.add(images if counted.all() else images[counted])
            progress.advance(batch.valid)
            if interrupts:
                raise KeyboardInterrupt
    return Stats.from_moments(*sums.moments(), sums.samples)


def complete(dataset: Dataset, threads: int | None = None) -> None:
    """Adds what a data set lacks, and rewrites nothing: an index for each tar in a folder, and `stats.npz` where there
    is a train split."""
    if not dataset.remote:
        _write_missing_indices(dataset)
    if "train" in dataset.splits and not (dataset.root / FILE).exists():
        compute_stats(dataset, threads or cores()).save(dataset.root)


def _write_missing_indices(dataset: Dataset) -> None:
    for name, split in dataset.splits.items():
        for tar in map(Path, dataset.tars(name)):
            if not tar.with_suffix(".idx").exists():
                write_index(tar.with_suffix(".idx"), index_tar(tar, split.quarantined_in(tar.name)))
