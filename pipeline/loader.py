"""Batches of one split, in an order that does not depend on how many ranks read it or where reading began.

The order of an epoch is computed, not left to a shuffle buffer: shards are permuted and the samples within a shard are
permuted, by a generator seeded with (seed, epoch). Each rank then writes index files that list just its own samples, in
that order, and DALI's reader follows them. So every sample comes exactly once by construction, a resumed epoch is
an index that begins later, and two ranks see the two halves of the very batches that one rank would see. The random
draws of a batch (crop, flip, lighting) come from (seed, epoch, batch) alike.

An image that DALI fails over is found by decoding its batch's images one by one. From then on its place in the order
stays, another image stands there and its label says that it does not count: so ranks need not agree on a new order,
and every good sample still comes exactly once.

The price: a new pipeline each epoch (tenths of a second), and neighbours in an epoch come from the same shard, which
is why the shards themselves are written in a shuffled order.
"""

import ctypes
import functools
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline import graph
from shards.cache import Prefetcher
from shards.dataset import Dataset
from shards.errors import InputError
from shards.images import check_image
from shards.index import components, write_index
from shards.tars import IMAGE_EXTENSIONS

BAD_LABEL = -1  # the label of an image that cannot be decoded; another stands in its place
VIEWS = ("train", "center", "ten", "patch", "decode", "read")


class Batch(NamedTuple):
    """This rank's part of a global batch.

    images: n x 224 x 224 x 3 uint8 on the loader's device ("center": n x 1 x 224 x 224 x 3; "ten": n x 10 x ...;
    "patch": n x 256 x 256 x 3), for `pipeline.preprocess` to make ready; labels: n int64, on the CPU, BAD_LABEL for an image that
    does not count; light: n x 3 float32, on the CPU, each image's lighting on the 0..255 scale, None but in training;
    valid: how many of the *global* batch are real, the rest being repeats of the split's last sample that fill up the
    last batch.
    """

    images: torch.Tensor
    labels: torch.Tensor
    color_shift: torch.Tensor | None
    valid: int


class Loader:
    """Epochs of one split of a data set for one rank.

    Args:
        view: "train" (random crop, flip, lighting; shuffled; the last partial batch of an epoch is dropped), "center"
            or "ten" (the test crops; in shard order; every sample exactly once), "patch" (the 256 x 256 patch,
            likewise); "decode" and "read" stop after that stage and serve `pipeline` alone, to be measured.
        stats: the set's `pipeline.stats.Stats`, whose components light the "train" view.
        batch_size: of the global batch; each of `world_size` ranks decodes an equal part of it.
        device_id: the CUDA device that decodes, unless `decode_on` has the CPU do it; None for the CPU.
        threads, prefetch, affinity, decode_on, hw_decoder_load: of this rank's pipeline: `pipeline.settings.Settings`.
        lighting: whether the "train" view's images are lit.
        max_bad: the share of the split's samples that may be bad, one sample at least.
    Raises:
        InputError: the split is absent or smaller than a training batch, a tar is missing or damaged, or more samples
        are bad than may be. A missing or stale index is made anew, with a notice.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        view: str,
        *,
        batch_size: int,
        threads: int,
        prefetch: int = 2,
        affinity: bool = False,
        decode_on: str = "device",
        hw_decoder_load: float = 0.65,
        stats=None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device_id: int | None = None,
        max_bad: float = 0.001,
        lighting: bool = True,
    ):
        if view not in VIEWS:
            raise ValueError(f"view {view!r} is none of {VIEWS}")
        if batch_size % world_size:
            raise InputError(f"--batch-size {batch_size} does not divide by {world_size} devices: choose a multiple")
        self.view, self.batch_size, self.seed, self.rank, self.world_size = view, batch_size, seed, rank, world_size
        self.stats, self.prefetch = stats, prefetch
        device_id = device_id if decode_on == "device" else None
        self.running = {"num_threads": threads, "set_affinity": affinity, "device_id": device_id}
        self.dataset, self.stored = dataset, dataset.size
        self.lit = lighting and view == "train"
        described = dataset.split(split)
        self.decoder = graph.decoder_options(device_id is not None, hw_decoder_load, described.sizes)
        self.shards, self.tars = described.shards, dataset.tars(split)
        self.entries = dataset.indices(split, self._notice)
        self.samples = sum(map(len, self.entries))
        self.bad: dict[tuple[int, int], str] = {}  # (shard, sample) and why
        self.max_bad_count = max(1, int(max_bad * self.samples))
        if view == "train" and self.samples < batch_size:
            raise InputError(
                f"{dataset.where}: the {split} split holds {self.samples} samples, fewer than one batch "
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
        n, mine = self.batch_size, self._rank_slice
        y, x = rng.integers(0, graph.MARGIN + 1, (2, n))
        flip = rng.integers(0, 2, n)
        light = rng.normal(0, 0.1, (n, 3)) @ self.stats.lighting_axes().T
        return tuple(np.ascontiguousarray(draw[mine], dtype=np.float32) for draw in (y, x, flip, light))

    def _cuts(self, epoch: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """The draws of a batch as `graph.region` takes them: offsets and flips, n x 2 float32."""
        y, x, flip, _ = self.draws(epoch, batch)
        return np.stack([y, x], axis=1), np.stack([np.zeros_like(flip), flip], axis=1)

    def _rows(self, epoch: int, start: int) -> np.ndarray:
        """This rank's samples of an epoch from batch `start` on, as rows (shard, sample)."""
        return self.order(epoch)[start:, self._rank_slice].reshape(-1, 2)

    @property
    def _rank_slice(self) -> slice:
        part = self.batch_size // self.world_size
        return slice(self.rank * part, (self.rank + 1) * part)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The epoch's batches from number `start` on: the same ones whether or not the earlier were read. A batch's
        images are DALI's memory, to be read, or a GPU told to, before the next batch is asked for."""
        if start >= self.batches:
            return
        pipe, order = self.pipeline(epoch, start), self.order(epoch)[:, self._rank_slice]
        # Images that are bound to torch's stream go back to DALI when that has read them, however far Python is ahead
        device_id = self.running["device_id"]
        stream = None if device_id is None else torch.cuda.current_stream(device_id)
        for batch in range(start, self.batches):
            while True:
                try:
                    images, labels = pipe.run(stream)
                    break
                except RuntimeError as error:
                    self._find_bad(order[batch : batch + self.prefetch + 1], error)
                    pipe = self.pipeline(epoch, batch)
            valid = min(self.batch_size, self.samples - batch * self.batch_size)
            light = torch.from_numpy(self.draws(epoch, batch)[3]) if self.lit else None
            labels = self._labels(labels)
            if self.bad:
                labels[[tuple(row) in self.bad for row in order[batch].tolist()]] = BAD_LABEL
            yield Batch(torch.from_dlpack(images.as_tensor()), labels, light, valid)

    def pipeline(self, epoch: int, start: int = 0):
        """The DALI pipeline of an epoch from batch `start` on, built. Past the epoch's end others follow."""
        _trim_heap()
        if self.dataset.remote and not self.dataset.remote.read_by_dali:
            fetched = self._fetched(epoch, start)
            return self._graph(functools.partial(graph.fetched_reader, lambda: next(fetched)), epoch, start)
        rows = self._replace_bad(self._rows(epoch, start))
        tars, indices = [], []
        with tempfile.TemporaryDirectory(prefix="alexnet-index-") as folder:
            # A run of samples of one shard is one (tar, index) pair of the reader
            for number, run in enumerate(np.split(rows, np.flatnonzero(np.diff(rows[:, 0])) + 1)):
                shard = run[0, 0]
                index = Path(folder) / f"{number}.idx"
                write_index(index, [self.entries[shard][sample] for sample in run[:, 1]])
                tars.append(str(self.tars[shard]))
                indices.append(str(index))
            pipe = self._graph(functools.partial(graph.tar_reader, tars, indices), epoch, start)
            try:
                pipe.build()  # reads the indices, which may go then
            except RuntimeError as error:
                if not self.dataset.remote:
                    raise
                reason = " ".join(str(error).partition("encountered:")[2].split())[:200]
                remedy = "set AWS_ENDPOINT_URL and AWS_REGION for it, or have it read through --cache DIR"
                raise InputError(f"DALI cannot read {self.dataset.where} ({reason}): {remedy}") from None
        return pipe

    def _fetched(self, epoch: int, start: int) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
        """The images and class numbers as DALI's reader would give them, a batch at a time, from shards that are
        fetched ahead. The next epoch follows: DALI works ahead, and so its first shards are there when it begins."""
        batch, images, numbers = self.batch_size // self.world_size, [], []
        for number in itertools.count(epoch):
            rows = self._replace_bad(self._rows(number, start if number == epoch else 0))
            runs = np.split(rows, np.flatnonzero(np.diff(rows[:, 0])) + 1)
            order = [self.shards[run[0, 0]] for run in runs]
            prefetcher = Prefetcher(self.dataset.open, order, self.dataset.remote.prefetch_depth(self.shards))
            for position, run in enumerate(runs):
                with prefetcher.open(position) as file:
                    for shard, sample in run.tolist():
                        for extensions, parts in ((IMAGE_EXTENSIONS, images), (("cls",), numbers)):
                            offset, size = self._part(shard, sample, extensions)
                            parts.append(np.frombuffer(os.pread(file.fileno(), size, offset), np.uint8))
                        if len(images) == batch:
                            yield images, numbers
                            images, numbers = [], []

    def _graph(self, reader: Callable, epoch: int, start: int):
        settings = {
            "batch_size": self.batch_size // self.world_size,
            "prefetch_queue_depth": self.prefetch,
            "decoder": self.decoder,
            **self.running,
        }
        if self.view in ("patch", "decode", "read"):
            return graph.stage_graph(reader, self.view, **settings)
        settings["stored"] = self.stored
        if self.view == "train":
            # DALI calls this once a batch, in order, ahead of the batch that is being used
            count = iter(range(start, 2**62))
            return graph.train_graph(reader, lambda: self._cuts(epoch, next(count)), **settings)
        return graph.eval_graph(reader, 1 if self.view == "center" else 10, **settings)

    def _labels(self, ascii_numbers) -> torch.Tensor:
        digits = np.asarray(ascii_numbers.as_tensor())
        return torch.from_numpy(digits.view(f"S{digits.shape[1]}")[:, 0].astype(np.int64))

    def _replace_bad(self, rows: np.ndarray) -> np.ndarray:
        """The same rows, the nearest good one before (or else after) in the place of each bad one."""
        if not self.bad:
            return rows
        good = np.array([tuple(row) not in self.bad for row in rows.tolist()])
        if not good.any():
            raise InputError(f"{self.dataset.where}: no sample that is left of the epoch can be decoded")
        nearest = np.maximum.accumulate(np.where(good, np.arange(len(rows)), -1))
        return rows[np.where(nearest < 0, good.argmax(), nearest)]

    def _find_bad(self, batches: np.ndarray, error: RuntimeError) -> None:
        """Which samples DALI failed over, in the first of these batches that has any: it does not say, so each is
        decoded on its own.

        Raises: InputError when none is found, or too many have been.
        """
        for rows in batches:
            samples = [row for row in dict.fromkeys(map(tuple, rows.tolist())) if row not in self.bad]
            found = {row: reason for row in samples if (reason := self._undecodable(*row))}
            if found:
                self.mark_bad(found)
                return
        tars = sorted({self.shards[shard].name for shard in batches[0, :, 0]})
        raise InputError(
            f"DALI failed on a batch from {', '.join(tars)}, whose images can each be decoded: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error

    def mark_bad(self, found: dict[tuple[int, int], str]) -> None:
        """Takes samples, (shard, sample) and why, for bad from now on. Raises InputError when these are too many."""
        for (shard, sample), reason in found.items():
            if (shard, sample) not in self.bad:
                self.bad[shard, sample] = reason
                name = components(self.entries[shard][sample])[0][3]
                told = f"{self.tars[shard]}: {name} cannot be decoded ({reason})"
                self._notice(f"{told}: left out, {len(self.bad)} so far")
                if len(self.bad) > self.max_bad_count:
                    folder = "DIR" if self.dataset.remote else self.dataset.root
                    remedy = f"`python cli.py verify {folder} --decode --quarantine` takes them out"
                    raise InputError(f"{told}, and --max-bad allows {self.max_bad_count} such: {remedy}, or allow more")

    def keys(self, epoch: int, batch: int) -> list[str]:
        """The images of a batch over all ranks, as their tar's name and their own."""
        rows = self.order(epoch)[batch].tolist()
        return [f"{self.shards[shard].name}: {components(self.entries[shard][sample])[0][3]}" for shard, sample in rows]

    def jpeg(self, shard: int, sample: int) -> bytes:
        """A sample's image as it is stored."""
        offset, size = self._part(shard, sample, IMAGE_EXTENSIONS)
        with self.dataset.open(self.shards[shard]) as file:
            file.seek(offset)
            return file.read(size)

    def _part(self, shard: int, sample: int, extensions: tuple[str, ...]) -> tuple[int, int]:
        """Offset and size in its tar, in bytes, of a sample's first part with such an extension."""
        parts = components(self.entries[shard][sample])
        for extension, offset, size, _ in parts:
            if extension in extensions:
                return int(offset), int(size)
        raise InputError(f"{self.tars[shard]}: {parts[0][3]} stands alone, with no {' or '.join(extensions)}")

    def _undecodable(self, shard: int, sample: int) -> str | None:
        """Why a sample's image cannot be decoded, None when it can."""
        data = self.jpeg(shard, sample)
        settings = {**self.running, "num_threads": 1, "batch_size": 1, "prefetch_queue_depth": 1}
        pipe = graph.probe_graph(decoder=self.decoder, **settings)
        pipe.build()
        try:
            pipe.feed_input("encoded", [np.frombuffer(data, np.uint8)])
            pipe.run()
        except RuntimeError as error:
            # DALI's own words are of its insides; ours say what the image is
            return check_image(data)[0] or "DALI: " + " ".join(str(error).split())[-120:]
        return None

    def _notice(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _trim_heap() -> None:
    """Returns to the system what DALI has freed: glibc keeps it, and with it, epoch by epoch, the rooms that giant
    images needed."""
    ctypes.CDLL(None).malloc_trim(0)
