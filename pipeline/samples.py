"""The samples of one split: where each lies in which tar, its image's bytes and its name."""

import sys

from shards.dataset import Dataset
from shards.errors import InputError
from shards.index import components
from shards.tars import IMAGE_EXTENSIONS

SampleId = tuple[int, int]  # the number of its shard in the split, and its own in that shard's index


class Samples:
    """A split's samples, each named by a `SampleId`.

    `shards` and `tars` are the split's, in order; `entries` has the index lines of each shard. Raises: InputError when
    the split is absent, or a tar is missing or damaged. A missing or stale index is rebuilt, with a notice.
    """

    def __init__(self, dataset: Dataset, split: str):
        self.dataset, self.shards = dataset, dataset.split(split).shards
        self.tars = dataset.tars(split)
        self.entries = dataset.indices(split, notice)

    def __len__(self) -> int:
        return sum(self.shard_sizes)

    @property
    def shard_sizes(self) -> list[int]:
        return [len(entries) for entries in self.entries]

    def name(self, sample: SampleId) -> str:
        """The file name of a sample's first part."""
        shard, number = sample
        return components(self.entries[shard][number])[0][3]

    def key(self, sample: SampleId) -> str:
        """A sample's name after that of its tar."""
        return f"{self.shards[sample[0]].name}: {self.name(sample)}"

    def jpeg(self, sample: SampleId) -> bytes:
        """A sample's image as it is stored."""
        offset, size = self.part(sample, IMAGE_EXTENSIONS)
        with self.dataset.open(self.shards[sample[0]]) as file:
            file.seek(offset)
            return file.read(size)

    def part(self, sample: SampleId, extensions: tuple[str, ...]) -> tuple[int, int]:
        """Offset and size in its tar, in bytes, of a sample's first part with one of these extensions."""
        shard, number = sample
        parts = components(self.entries[shard][number])
        for extension, offset, size, _ in parts:
            if extension in extensions:
                return int(offset), int(size)
        raise InputError(f"{self.tars[shard]}: {parts[0][3]} stands alone, with no {' or '.join(extensions)}")


def notice(text: str) -> None:
    """A line for the user on standard error."""
    print(text, file=sys.stderr, flush=True)
