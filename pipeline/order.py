"""An epoch's order and its random draws, as functions of (seed, epoch, batch) alone.

The order of an epoch is computed, not left to a shuffle buffer: shards are permuted and the samples within a shard are
permuted, or all samples at once, by a generator seeded with (seed, epoch). The draws of a batch (crop, flip, color)
come from (seed, epoch, batch). So a resumed epoch is one that begins later, and two ranks see the two halves of the
very batches that one rank would see.

By shards, neighbors in an epoch come from the same shard, which is why the shards themselves are written in a shuffled
order. It reads each shard once and from end to end; all samples at once want storage that is quick in any order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.geometry import MARGIN
from pipeline.stats import Stats
from shards.errors import InputError

SHUFFLES = ("shards", "full")  # shards and the samples in each, or all samples
COLOR_DEVIATION = 0.1  # of the normal draws along the principal components (section 4.1)


class RankSlice(NamedTuple):
    """Which part of each global batch a process reads: that of rank `rank`, of `world_size` equal parts.

    device_id: the CUDA device that decodes it; None for the CPU.
    """

    rank: int = 0
    world_size: int = 1
    device_id: int | None = None

    def of(self, batch_size: int) -> slice:
        """This rank's images of a global batch."""
        part = batch_size // self.world_size
        return slice(self.rank * part, (self.rank + 1) * part)


def check_batch_size(batch_size: int, world_size: int) -> None:
    """Raises InputError for a global batch that the devices cannot share equally."""
    if batch_size % world_size:
        raise InputError(f"--batch-size {batch_size} does not divide by {world_size} devices: choose a multiple")


class Augmentation(NamedTuple):
    """What is random about the training images.

    stats: the data set's, whose principal components the colors vary along (PCA color augmentation); None: the colors
    stay as they are. seed: of the order, the crops, the flips and the colors; shuffle: of SHUFFLES.
    """

    stats: Stats | None = None
    seed: int = 0
    shuffle: str = "shards"


class Draws(NamedTuple):
    """A batch's random draws, float32, n of each.

    y, x: the crops' offsets, pixels; flip: 1 for a mirrored crop; color_shift: n x 3, what is added to R, G and B on
    the 0..255 scale, None without color augmentation.
    """

    y: np.ndarray
    x: np.ndarray
    flip: np.ndarray
    color_shift: np.ndarray | None

    def part(self, images: slice) -> "Draws":
        """Those of some of the batch's images."""
        shift = self.color_shift
        y, x, flip = (np.ascontiguousarray(draw[images]) for draw in self[:3])
        return Draws(y, x, flip, None if shift is None else np.ascontiguousarray(shift[images]))


def draw(augmentation: Augmentation, epoch: int, batch: int, batch_size: int) -> Draws:
    """The draws of a global batch."""
    rng = np.random.default_rng([augmentation.seed, epoch, batch])
    y, x = rng.integers(0, MARGIN + 1, (2, batch_size)).astype(np.float32)
    flip = rng.integers(0, 2, batch_size).astype(np.float32)
    shift = None
    if augmentation.stats:
        alpha = rng.normal(0, COLOR_DEVIATION, (batch_size, 3))
        shift = (alpha @ augmentation.stats.color_axes().T).astype(np.float32)
    return Draws(y, x, flip, shift)


class EpochOrder:
    """In which order a split's samples come, over all ranks, batch by batch.

    Args: shard_sizes: the samples of each shard; seed: shuffles, and the last partial batch is dropped; None: samples
    come as they are stored in every epoch, and repeats of the last one fill up the last batch; shuffle: of SHUFFLES.
    """

    def __init__(self, shard_sizes: Sequence[int], batch_size: int, seed: int | None, shuffle: str = "shards"):
        if shuffle not in SHUFFLES:
            raise InputError(f"--shuffle {shuffle} is not one of {', '.join(SHUFFLES)}")
        self.shard_sizes, self.batch_size, self.seed = np.array(shard_sizes, np.int64), batch_size, seed
        self.shuffle = None if seed is None else shuffle
        samples = int(self.shard_sizes.sum())
        self.num_batches = -(-samples // batch_size) if seed is None else samples // batch_size

    def following(self, epoch: int, batch: int) -> tuple[int, int]:
        """The epoch and number of the batch after this one. Without a seed there is but one epoch, over and over."""
        if batch + 1 < self.num_batches:
            return epoch, batch + 1
        return (epoch if self.seed is None else epoch + 1), 0

    def rows(self, epoch: int) -> np.ndarray:
        """The epoch's samples as (shard, number in the shard): num_batches x batch_size x 2, int32."""
        rng = None if self.seed is None else np.random.default_rng([self.seed, epoch])
        sizes = self.shard_sizes
        shards = np.arange(len(sizes))
        if rng and self.shuffle == "shards":
            shards = rng.permutation(len(sizes))
        rows = np.empty((int(sizes.sum()), 2), np.int32)
        begin = 0
        for shard in shards.tolist():
            run = rows[begin : begin + sizes[shard]]
            run[:, 0] = shard
            run[:, 1] = rng.permutation(len(run)) if rng and self.shuffle == "shards" else np.arange(len(run))
            begin += len(run)
        if rng and self.shuffle == "full":
            rows = rng.permutation(rows.view(np.int64)[:, 0]).view(np.int32).reshape(-1, 2)  # pairs, as one number each
        wanted = self.num_batches * self.batch_size
        if wanted > len(rows):
            rows = np.concatenate([rows, np.repeat(rows[-1:], wanted - len(rows), axis=0)])
        return rows[:wanted].reshape(self.num_batches, self.batch_size, 2)
