"""The samples of one split: where each lies in which tar, its image's bytes and its name."""

import numpy as np

from shards.console import notice
from shards.dataset import Dataset
from shards.errors import InputError
from shards.index import components, index_tar
from shards.wording import counted

SampleId = tuple[int, int]  # the number of its shard in the split, and its own in that shard's index


class Samples:
    """A split's samples, each named by a `SampleId`.

    `shards` and `tars` are the split's, in order, and `shard_sizes` the samples of each; `masked` says of those that
    were quarantined after a run began why they are bad. Raises: InputError when the split is absent, or a tar is
    missing or damaged. A missing or stale index is rebuilt, with a notice.
    """

    def __init__(self, dataset: Dataset, split: str):
        described = dataset.split(split)
        self.dataset, self.split, self.shards = dataset, split, described.shards
        self.tars = dataset.tars(split)
        self.shard_sizes = [described.samples_in(shard) for shard in described.shards]
        self._positions = dataset.positions(split, notice)
        # Where each shard's samples begin in that array; a shard that is listed again has no others there
        sizes = {shard.name: size for shard, size in zip(self.shards, self.shard_sizes, strict=True)}
        begins = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
        self._begins = np.array([begins[shard.name] for shard in self.shards], np.int64)
        self.masked = {
            (number, row): "it is quarantined"
            for number in range(len(self.shards))
            for row in self._masked_rows(number)
        }
        self._lines: tuple[int, list[str]] = (-1, [])  # of the shard that was last asked for a name

    def _masked_rows(self, number: int) -> list[int]:
        shard, described = self.shards[number], self.dataset.split(self.split)
        later = self.dataset.masked_in(self.split, shard.name)
        if not later:
            return []
        left = {*index_tar(self.dataset.root / shard.name, described.quarantined_in(shard.name) | later)}
        return [row for row, line in enumerate(self.dataset.lines(self.split, shard)) if line not in left]

    def __len__(self) -> int:
        return sum(self.shard_sizes)

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Where samples (rows of (shard, number)) lie in their tars, `shards.index.POSITION`."""
        where: np.ndarray = self._positions[self._begins[rows[:, 0]] + rows[:, 1]]
        return where

    def name(self, sample: SampleId) -> str:
        """The file name of a sample's first part."""
        shard, number = sample
        if self._lines[0] != shard:
            self._lines = (shard, self.dataset.lines(self.split, self.shards[shard]))
        return components(self._lines[1][number])[0][3]

    def key(self, sample: SampleId) -> str:
        """A sample's name after that of its tar."""
        return f"{self.shards[sample[0]].name}: {self.name(sample)}"

    def jpeg(self, sample: SampleId) -> bytes:
        """A sample's image as it is stored."""
        return self._part(sample, "offset", "size")

    def label(self, sample: SampleId) -> int:
        """A sample's class number."""
        return int(self._part(sample, "cls_offset", "cls_size"))

    def _part(self, sample: SampleId, offset: str, size: str) -> bytes:
        (where,) = self.positions(np.array([sample]))
        with self.dataset.open(self.shards[sample[0]]) as file:
            file.seek(where[offset])
            return file.read(where[size])


ENOUGH = 8  # batches of an epoch, to be proposed where a set is smaller


def check_enough(dataset: Dataset, split: str, batch_size: int, devices: int = 1) -> None:
    """Raises InputError when a split has fewer samples than a training batch, which these devices share equally."""
    samples = dataset.split(split).samples
    if samples < batch_size:
        most = samples - samples % devices
        remedy = f"choose a --batch-size of at most {most}" if most else "use fewer devices, or more images"
        if (some := samples // ENOUGH // devices * devices) and some < most:
            remedy += f", such as {some} for {ENOUGH} batches an epoch"
        raise InputError(
            f"{dataset.where}: the {split} split holds {counted(samples, 'sample')}, fewer than one batch "
            f"of {batch_size}: {remedy}"
        )


def small_set_note(samples: int, batch_size: int) -> str | None:
    """A line for a training set so small that an epoch is a few batches, or leaves over a tenth of it or more, and what
    to choose; None for any other."""
    batches, left = divmod(samples, batch_size)
    if batches > ENOUGH // 2 and left * 10 < samples:
        return None
    leaves = f" and leaves {left} of {samples} samples out, others each time" if left else ""
    some = f", such as {samples // ENOUGH}," if 0 < samples // ENOUGH < batch_size else ""
    remedy = f"a smaller --batch-size{some} makes more of it"
    return f"an epoch is {counted(batches, 'batch')} of {batch_size}{leaves}: {remedy}"
