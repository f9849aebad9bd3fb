"""Batches of one split, in an order that does not depend on how many ranks read it or where reading began.

The order of an epoch is computed, not left to a shuffle buffer: shards are permuted and the samples within a shard are
permuted, by a generator seeded with (seed, epoch). Each rank then writes index files that list just its own samples, in
that order, and DALI's reader follows them. So every sample comes exactly once by construction, a resumed epoch is
an index that begins later, and two ranks see the two halves of the very batches that one rank would see. The random
draws of a batch (crop, flip, lighting) come from (seed, epoch, batch) alike.

The price: a new pipeline each epoch (tenths of a second), and neighbours in an epoch come from the same shard, which
is why the shards themselves are written in a shuffled order.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline import graph
from shards.errors import InputError
from shards.images import Unreadable, prepare
from shards.index import components, read_index, write_index
from shards.manifest import Dataset
from shards.tars import IMAGE_EXTENSIONS

VIEWS = ("train", "centre", "ten", "patch", "decode", "read")


class Batch(NamedTuple):
    """This rank's part of a global batch.

    images: n x 3 x 224 x 224 float32 on the loader's device ("ten": n x 10 x 3 x 224 x 224; "patch": n x 256 x 256 x 3
    uint8); labels: n int64, on the CPU; valid: how many of the *global* batch are real, the rest being repeats of
    the split's last sample that fill up the last batch.
    """

    images: torch.Tensor
    labels: torch.Tensor
    valid: int


class Loader:
    """Epochs of one split of a data set for one rank.

    Args:
        view: "train" (random crop, flip, lighting; shuffled; the last partial batch of an epoch is dropped), "centre"
            or "ten" (the test crops; in shard order; every sample exactly once), "patch" (the 256 x 256 patch,
            likewise); "decode" and "read" stop after that stage and serve `pipeline` alone, to be measured.
        stats: the set's `pipeline.stats.Stats`, for the views that subtract the mean.
        batch_size: of the global batch; each of `world` ranks decodes an equal part of it.
        device_id: the CUDA device that decodes, or None for the CPU.
        threads: CPU threads of this rank's pipeline.
    Raises:
        InputError: the split is absent or smaller than a training batch, an index is missing or a picture is broken.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        view: str,
        *,
        batch_size: int,
        threads: int,
        stats=None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        device_id: int | None = None,
    ):
        if view not in VIEWS:
            raise ValueError(f"view {view!r} is none of {VIEWS}")
        if batch_size % world:
            raise InputError(f"--batch-size {batch_size} does not divide by {world} devices: choose a multiple")
        self.view, self.batch_size, self.seed, self.rank, self.world = view, batch_size, seed, rank, world
        self.stats, self.threads, self.device_id = stats, threads, device_id
        self.tars = dataset.tars(split)
        self.entries = [read_index(tar.with_suffix(".idx")) for tar in self.tars]
        self.samples = sum(map(len, self.entries))
        if view == "train" and self.samples < batch_size:
            raise InputError(
                f"{dataset.root}: the {split} split holds {self.samples} samples, fewer than one batch "
                f"of {batch_size}: choose a smaller --batch-size"
            )
        self.batches = self.samples // batch_size if view == "train" else -(-self.samples // batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """The epoch's samples as rows (shard, sample), batches x batch_size x 2, over all ranks."""
        sizes = [len(entries) for entries in self.entries]
        if self.view == "train":
            rng = np.random.default_rng([self.seed, epoch])
            runs = [(shard, rng.permutation(sizes[shard])) for shard in rng.permutation(len(sizes))]
        else:
            runs = [(shard, np.arange(size)) for shard, size in enumerate(sizes)]
        rows = np.concatenate([np.stack([np.full(len(run), shard), run], axis=1) for shard, run in runs])
        wanted = self.batches * self.batch_size
        rows = np.concatenate([rows[:wanted], np.repeat(rows[-1:], max(0, wanted - len(rows)), axis=0)])
        return rows.reshape(self.batches, self.batch_size, 2)

    def draws(self, epoch: int, batch: int) -> tuple[np.ndarray, ...]:
        """(y, x, flip, light) of a training batch for this rank, float32; light is n x 3 on the 0..255 scale."""
        rng = np.random.default_rng([self.seed, epoch, batch])
        n, mine = self.batch_size, self._mine
        y, x = rng.integers(0, graph.MARGIN + 1, (2, n))
        flip = rng.integers(0, 2, n)
        light = rng.normal(0, 0.1, (n, 3)) @ self.stats.lighting_axes().T
        return tuple(np.ascontiguousarray(draw[mine], dtype=np.float32) for draw in (y, x, flip, light))

    def _rows(self, epoch: int, start: int) -> np.ndarray:
        """This rank's samples of an epoch from batch `start` on, as rows (shard, sample)."""
        return self.order(epoch)[start:, self._mine].reshape(-1, 2)

    @property
    def _mine(self) -> slice:
        part = self.batch_size // self.world
        return slice(self.rank * part, (self.rank + 1) * part)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The epoch's batches from number `start` on: the same ones whether or not the earlier were read."""
        if start >= self.batches:
            return
        pipe = self.pipeline(epoch, start)
        for batch in range(start, self.batches):
            try:
                images, labels = pipe.run()
            except RuntimeError as error:
                rows = self._rows(epoch, batch)[: pipe.max_batch_size]
                raise InputError(self._broken(rows, error)) from error
            valid = min(self.batch_size, self.samples - batch * self.batch_size)
            yield Batch(torch.from_dlpack(images.as_tensor()), self._labels(labels), valid)

    def pipeline(self, epoch: int, start: int = 0):
        """The DALI pipeline of an epoch from batch `start` on, built. Past the epoch's end it begins again."""
        rows = self._rows(epoch, start)
        tars, indices = [], []
        with tempfile.TemporaryDirectory(prefix="alexnet-index-") as folder:
            # A run of samples of one shard is one (tar, index) pair of the reader
            for number, run in enumerate(np.split(rows, np.flatnonzero(np.diff(rows[:, 0])) + 1)):
                shard = run[0, 0]
                index = Path(folder) / f"{number}.idx"
                write_index(index, [self.entries[shard][sample] for sample in run[:, 1]])
                tars.append(str(self.tars[shard]))
                indices.append(str(index))
            pipe = self._graph(tars, indices, epoch, start)
            pipe.build()  # reads the indices, which may go then
        return pipe

    def _graph(self, tars: list[str], indices: list[str], epoch: int, start: int):
        device = "cpu" if self.device_id is None else "gpu"
        settings = {
            "batch_size": self.batch_size // self.world,
            "num_threads": self.threads,
            "device_id": self.device_id,
            "device": device,
        }
        if self.view in ("patch", "decode", "read"):
            return graph.stage_graph(tars, indices, self.view, **settings)
        mean = self.stats.mean_crop()
        if self.view == "train":
            # DALI calls this once a batch, in order, ahead of the batch that is being used
            count = iter(range(start, 2**62))
            return graph.train_graph(tars, indices, mean, lambda: self.draws(epoch, next(count)), **settings)
        return graph.eval_graph(tars, indices, mean, 1 if self.view == "centre" else 10, **settings)

    def _labels(self, ascii_numbers) -> torch.Tensor:
        return torch.tensor([int(bytes(ascii_numbers.at(i))) for i in range(len(ascii_numbers))])

    def _broken(self, rows: np.ndarray, error: RuntimeError) -> str:
        """Which of these samples ended the pipeline: DALI does not say, so each is decoded on its own."""
        for shard, sample in rows:
            _, offset, size, name = next(
                component for component in components(self.entries[shard][sample]) if component[0] in IMAGE_EXTENSIONS
            )
            with open(self.tars[shard], "rb") as file:
                file.seek(int(offset))
                try:
                    prepare(file.read(int(size)), graph.SIZE, quality=95)
                except Unreadable as reason:
                    return f"{self.tars[shard]}: {name} cannot be decoded ({reason}): write the data set again"
        tars = sorted({self.tars[shard].name for shard in rows[:, 0]})
        return f"DALI failed on a batch from {', '.join(tars)}: {' '.join(str(error).split())[:300]}"
