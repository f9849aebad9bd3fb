"""Computing the training set's statistics, and completing a data set that lacks them or its index files."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from pipeline.geometry import SIZE
from pipeline.loader import BAD_LABEL, Loader
from pipeline.settings import Settings
from pipeline.stats import FILE, Stats
from shards.dataset import Dataset
from shards.index import index_tar, write_index
from shards.processes import interrupts_noted
from shards.progress import Progress

EXACT = 255  # so many images' sums fit into 16 bits, and their products of two colors, a band at a time, into 32
# float32 holds a sum of so many products of int8 exactly, for it is at most 2^22; a band of an image has so many rows
BLOCK = 256
# A matrix product is slow on rows of one pixel's R, G and B: of 16 pixels' it has more sums than are wanted, sooner
ROW = 16 * 3
LENGTH = SIZE * SIZE * 3  # of an image, bytes
BANDS = 16  # of an image
BATCH = 64  # images: so many of a band stay in a core's cache, and are enough for each call to be worth it
MIDDLE = 128  # what is taken from each number before it is multiplied, so that it fits into int8


def products_of(rows: torch.Tensor) -> torch.Tensor:
    """The sums over n rows of the products of each two numbers in a row, exactly. Args: rows: n x ROW int8, n a
    multiple of BLOCK. Returns: ROW x ROW, float64."""
    # A CPU with VNNI adds up products of int8 in 32 bits; others' instructions cut them off at 16
    if torch.cpu._is_vnni_supported():
        return torch._int_mm(rows.mT, rows).double()
    blocks = rows.float().view(-1, BLOCK, ROW)
    return (blocks.mT @ blocks).sum(dim=0, dtype=torch.float64)


def unpaired(sums: np.ndarray) -> np.ndarray:
    """The sums of single numbers, from the sums modulo 2^16 of each and 256 times the next one; the last has none.
    Args: sums: n uint16, over at most EXACT images. Returns: n uint16."""
    single: np.ndarray = sums.copy()
    # The sum of what follows counts 256 times, so that modulo 2^16 only its last 8 bits matter: these are right already
    single[:-1] -= sums[1:] << 8
    return single


class Sums:
    """Sums over images. They are exact, so that they depend neither on the batches nor on the number of threads.

    total: of each pixel's R, G and B, one after the other, LENGTH; products: of each two numbers of a row of ROW, less
    MIDDLE, for each band of pixels, BANDS x ROW x ROW; samples: how many images.
    """

    def __init__(self, pool: ThreadPoolExecutor, threads: int):
        self.pool, self.threads = pool, threads
        self.total = np.zeros(LENGTH)
        self.products = torch.zeros(BANDS, ROW, ROW, dtype=torch.float64)
        self.samples = 0
        self.pairs = np.zeros(LENGTH, np.uint16)  # one batch's sums, as `unpaired` takes them
        self.centered = torch.empty(threads, EXACT * LENGTH // BANDS, dtype=torch.uint8)  # a band's, for each thread

    def add(self, images: torch.Tensor) -> None:
        """Adds at most EXACT images, N x SIZE x SIZE x 3 uint8: each thread sums some bands of all of them."""
        images = images.flatten(1)
        list(self.pool.map(self._add_bands, [images] * self.threads, range(self.threads)))
        self.pairs[-1] = images[:, -1].sum()
        self.total += unpaired(self.pairs)
        self.samples += len(images)

    @torch.inference_mode()
    def _add_bands(self, images: torch.Tensor, thread: int) -> None:
        width = LENGTH // BANDS
        centered = self.centered[thread, : len(images) * width].view(len(images), width)
        rows = centered.view(torch.int8).view(-1, ROW)
        # Bytes are added two by two, as one number of 16 bits: to widen each of them first takes three times as long
        even = images.view(torch.int16)
        odd = torch.from_numpy(images.numpy()[:, 1:-1].view(np.int16))
        for number in range(thread, BANDS, self.threads):
            pairs = slice(number * width // 2, (number + 1) * width // 2)
            self.pairs[0::2][pairs] = even[:, pairs].sum(dim=0, dtype=torch.int16)
            self.pairs[1:-1:2][pairs] = odd[:, pairs].sum(dim=0, dtype=torch.int16)
            band = images[:, number * width : (number + 1) * width]
            torch.bitwise_xor(band, MIDDLE, out=centered)  # x - 128 in two's complement
            self.products[number] += products_of(rows)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean image, SIZE x SIZE x 3, and the mean products of a pixel's colors, 3 x 3."""
        pairs = self.products.sum(dim=0).view(ROW // 3, 3, ROW // 3, 3)
        centered = pairs.diagonal(dim1=0, dim2=2).sum(dim=-1).numpy()
        colors, pixels = self.total.reshape(-1, 3).sum(axis=0), self.samples * SIZE * SIZE
        # (x - m)(y - m) + m(x + y) - m m = x y, and all of these sums are whole numbers
        products = centered + MIDDLE * (colors[:, None] + colors) - MIDDLE**2 * pixels
        return self.total.reshape(SIZE, SIZE, 3) / self.samples, products / pixels


@contextmanager
def summing(threads: int) -> Iterator[Sums]:
    """Sums with threads of their own, and one of torch's in each: more would wait in loops, on cores that decode."""
    before = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield Sums(pool, threads)
    torch.set_num_threads(before)


def compute_stats(dataset: Dataset, threads: int) -> Stats:
    """One pass over the complete train split through DALI, on the CPU, so that the numbers are the same on every
    machine; images that cannot be decoded do not count."""
    loader = Loader(dataset, "train", "patch", batch_size=BATCH, settings=Settings(threads))
    with interrupts_noted() as interrupts, summing(threads) as sums, Progress("stats", len(loader.samples)) as progress:
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
        compute_stats(dataset, threads or len(os.sched_getaffinity(0))).save(dataset.root)


def _write_missing_indices(dataset: Dataset) -> None:
    for name, split in dataset.splits.items():
        for tar in map(Path, dataset.tars(name)):
            if not tar.with_suffix(".idx").exists():
                write_index(tar.with_suffix(".idx"), index_tar(tar, split.quarantined_in(tar.name)))
