"""The records that `dataset.json` is made of: a split, its shards, and the images that are not in them."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

# Fields whose JSON keys are older names: those of format 2 of `dataset.json`, of done markers and of `info --json`
JSON_KEYS = {"skipped": "left_out", "reencoded": "changed"}
FIELDS = {key: name for name, key in JSON_KEYS.items()}


def to_json(fields: dict[str, Any]) -> dict[str, Any]:
    """A record's fields by their JSON keys, in the same order."""
    return {JSON_KEYS.get(name, name): value for name, value in fields.items()}


def from_json(content: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `to_json`."""
    return {FIELDS.get(key, key): value for key, value in content.items()}


@dataclass(frozen=True)
class Shard:
    """A tar: its file name, how many samples and bytes it holds, and its SHA-256 in hexadecimal."""

    name: str
    samples: int
    bytes: int
    sha256: str


def sha256(path: Path) -> str:
    """A file's SHA-256, as a `Shard` has it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Skipped:
    """A file of the source that is in no shard, by its name there, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Quarantined:
    """A sample that is in a tar and not in its index, so that nothing reads it, and why."""

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
    """A split's shards in order, and facts about its images.

    `class_counts` has the samples of each class in the tars; `reencoded` counts the images whose bytes are not the
    source's, by what they were ("PNG", "CMYK JPEG"); `scaled_down` those made smaller for --max-pixels.
    """

    shards: tuple[Shard, ...]
    class_counts: tuple[int, ...]
    sizes: Sizes
    skipped: tuple[Skipped, ...] = ()
    reencoded: dict[str, int] = field(default_factory=dict)
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
        """The keys of this shard's samples that its index must not list."""
        return {sample.key for sample in self.quarantined if sample.shard == shard}
