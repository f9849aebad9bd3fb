"""The records that `dataset.json` is made of: a split, its shards, and the images that are not in them."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Shard:
    """A tar: its file name, how many samples and bytes it holds, and its SHA-256 in hexadecimal."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class LeftOut:
    """A file of the source that is in no shard, by its name there, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Quarantined:
    """A sample that lies in a tar and not in its index, so that nothing reads it, and why."""

    shard: str
    key: str
    reason: str


@dataclass(frozen=True)
class Sizes:
    """Of a split's images, as a viewer sees them, in pixels: the largest width and height (which need not be one
    image's), the most pixels of one image, and of the shorter side the 0th, 10th, 50th, 90th and 100th percentile.
    """

    width: int
    height: int
    pixels: int
    shorter_side: tuple[int, ...]

    PERCENTILES: ClassVar = (0, 10, 50, 90, 100)

    @classmethod
    def of(cls, images: npt.ArrayLike) -> "Sizes":
        """From the (width, height) of each image, N x 2."""
        sides = np.asarray(images, np.int64).reshape(-1, 2)
        if not len(sides):
            return cls(0, 0, 0, (0,) * len(cls.PERCENTILES))
        shorter = np.percentile(sides.min(axis=1), cls.PERCENTILES, method="nearest")
        width, height = sides.max(axis=0).tolist()
        return cls(width, height, int(sides.prod(axis=1).max()), tuple(shorter.tolist()))


@dataclass(frozen=True)
class Split:
    """A split's shards in order and what else there is to know of it.

    `class_counts` has the samples of each class in the tars; `changed` counts the images whose bytes are not the
    source's, by what they were ("PNG", "CMYK JPEG"); `scaled_down` those made smaller for --max-pixels.
    """

    shards: tuple[Shard, ...]
    class_counts: tuple[int, ...]
    sizes: Sizes
    left_out: tuple[LeftOut, ...] = ()
    changed: dict[str, int] = field(default_factory=dict)
    scaled_down: int = 0
    quarantined: tuple[Quarantined, ...] = ()

    @property
    def samples(self) -> int:
        """Samples that are read: those in the tars but for the quarantined ones."""
        return sum(shard.samples for shard in self.shards) - len(self.quarantined)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    def samples_in(self, shard: Shard) -> int:
        """Samples of this shard that are read."""
        return shard.samples - sum(sample.shard == shard.name for sample in self.quarantined)

    def quarantined_in(self, shard: str) -> set[str]:
        """The keys that this shard's index leaves out."""
        return {sample.key for sample in self.quarantined if sample.shard == shard}
