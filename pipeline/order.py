"""An epoch's order and its random draws, as functions of (seed, epoch, batch) alone.

The order of an epoch is computed, not left to a shuffle buffer: shards are permuted and the samples within a shard are
permuted, by a generator seeded with (seed, epoch). The draws of a batch (crop, flip, color) come from (seed, epoch,
batch). So a resumed epoch is one that begins later, and two ranks see the two halves of the very batches that one rank
would see.

The price: neighbors in an epoch come from the same shard, which is why the shards themselves are written in a shuffled
order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.geometry import MARGIN
from pipeline.stats import Stats

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


class Augmentation(NamedTuple):
    """What is random about the training images.

    stats: the data set's, whose principal components the colors vary along (PCA color augmentation); None: the colors
    stay as they are. seed: of the order, the crops, the flips and the colors.
    """

    stats: Stats | None = None
    seed: int = 0


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
    come as they are stored, and repeats of the last one fill up the last batch.
    """

    def __init__(self, shard_sizes: Sequence[int], batch_size: int, seed: int | None):
        self.shard_sizes, self.batch_size, self.seed = shard_sizes, batch_size, seed
        samples = sum(shard_sizes)
        self.num_batches = -(-samples // batch_size) if seed is None else samples // batch_size

    def rows(self, epoch: int) -> np.ndarray:
        """The epoch's samples as (shard, number in the shard): num_batches x batch_size x 2."""
        sizes = self.shard_sizes
        if self.seed is None:
            runs = [(shard, np.arange(size)) for shard, size in enumerate(sizes)]
        else:
            rng = np.random.default_rng([self.seed, epoch])
            runs = [(shard, rng.permutation(sizes[shard])) for shard in rng.permutation(len(sizes))]
        rows = np.concatenate([np.stack([np.full(len(run), shard), run], axis=1) for shard, run in runs])
        wanted = self.num_batches * self.batch_size
        rows = np.concatenate([rows[:wanted], np.repeat(rows[-1:], max(0, wanted - len(rows)), axis=0)])
        return rows.reshape(self.num_batches, self.batch_size, 2)
