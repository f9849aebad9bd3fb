"""Batches of one split, in an order that does not depend on how many ranks read it or where reading began.

The way of a batch: `order` says which samples it has, `readers` brings their bytes to DALI, `graph` decodes and crops
them, and `bad_samples` steps in where that fails. One pipeline, which costs tenths of a second and more on a GPU, goes
on from epoch to epoch and works ahead across their boundary.
"""

import ctypes
import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from nvidia.dali.pipeline import OperatorConcurrency

from pipeline import graph
from pipeline.bad_samples import BadSamples
from pipeline.order import Augmentation, Draws, EpochOrder, RankSlice, check_batch_size, draw
from pipeline.readers import BatchReader
from pipeline.samples import Samples, check_enough
from pipeline.settings import Settings
from pipeline.view_graph import view_graph
from pipeline.views import View
from shards.dataset import Dataset
from shards.errors import InputError

BAD_LABEL = -1  # the label of an image that cannot be decoded; another image stands in for it
VIEWS = ("train", "center", "ten", "patch", "decode", "read")
ONLY_RANK, NO_COLOR_SHIFT = RankSlice(), Augmentation()


class Batch(NamedTuple):
    """This rank's part of a global batch.

    images: n x 224 x 224 x 3 uint8 on the loader's device ("center": n x 1 x 224 x 224 x 3; "ten": n x 10 x ...;
    "patch": n x 256 x 256 x 3), for `pipeline.preprocess` to make ready, or as a `View` has them, in its order in
    memory; labels: n int64, on the CPU, BAD_LABEL for an image that does not count; color_shift: n x 3 float32, on the
    CPU, what PCA color augmentation adds to each image's R, G and B on the 0..255 scale, None without it; valid: how
    many of the *global* batch are real, the rest being repeats of the split's last sample that fill up the last batch.
    """

    images: torch.Tensor
    labels: torch.Tensor
    color_shift: torch.Tensor | None
    valid: int


class Loader:
    """Epochs of one split of a data set for one rank.

    Args:
        view: "train" (random crop, flip and color; shuffled; the last partial batch of an epoch is dropped), "center"
            or "ten" (the test crops; in shard order; every sample exactly once), "patch" (the 256 x 256 patch,
            likewise); "decode" and "read" stop after that stage and serve `pipeline` alone, to be measured; or a
            `pipeline.views.View`, shuffled like "train" if it is random, otherwise in shard order.
        batch_size: of the global batch, images; each rank decodes an equal part of it.
        settings: how DALI runs; its `decode_on` may have the CPU decode whatever the device of `rank_slice`.
        augmentation: of the "train" view.
        max_bad: the fraction of the split's samples that may be bad, one sample at least.
    Raises:
        InputError: the split is absent or smaller than a training batch, a tar is missing or damaged, or more samples
        are bad than may be. A missing or stale index is rebuilt, with a notice.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        view: str | View,
        *,
        batch_size: int,
        settings: Settings,
        rank_slice: RankSlice = ONLY_RANK,
        augmentation: Augmentation = NO_COLOR_SHIFT,
        max_bad: float = 0.001,
    ):
        if not isinstance(view, View) and view not in VIEWS:
            raise ValueError(f"view {view!r} is not one of {VIEWS}")
        check_batch_size(batch_size, rank_slice.world_size)
        self.dataset, self.view, self.batch_size = dataset, view, batch_size
        self.settings, self.rank_slice, self.augmentation = settings, rank_slice, augmentation
        self.samples = Samples(dataset, split)
        self.shuffled = view.random if isinstance(view, View) else view == "train"
        seed = augmentation.seed if self.shuffled else None
        self.epoch_order = EpochOrder(self.samples.shard_sizes, batch_size, seed, augmentation.shuffle)
        self.num_batches = self.epoch_order.num_batches
        if dataset.remote and self.epoch_order.shuffle == "full" and not dataset.remote.holds(self.samples.shards):
            remedy = "choose --shuffle shards, raise --cache-size, or copy the data set into a folder"
            raise InputError(f"{dataset.where}: --shuffle full reads all shards at once, more than the cache: {remedy}")
        self._running: Pipelines | None = None  # that are kept
        self.device_id = rank_slice.device_id if settings.decode_on == "device" else None
        largest = dataset.split(split).sizes
        self.decoder = graph.decoder_options(self.device_id is not None, settings.hw_decoder_load, largest)
        probe = self._options(batch_size=1, num_threads=1, prefetch_queue_depth=1)
        self.bad_samples = BadSamples(self.samples, max_bad, probe)
        if self.shuffled:
            check_enough(dataset, split, batch_size)

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes pipelines of its own when it reads: they cannot be copied."""
        return {**vars(self), "_running": None}

    def order(self, epoch: int) -> np.ndarray:
        """The epoch's samples as rows (shard, number), num_batches x batch_size x 2, over all ranks."""
        return self.epoch_order.rows(epoch)

    def draws(self, epoch: int, batch: int) -> Draws:
        """The random draws of a training batch for this rank."""
        return draw(self.augmentation, epoch, batch, self.batch_size).part(self.rank_slice.of(self.batch_size))

    def keys(self, epoch: int, batch: int) -> list[str]:
        """The images of a batch over all ranks, as their tar's name and their own."""
        return [self.samples.key((shard, number)) for shard, number in self.order(epoch)[batch].tolist()]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The epoch's batches from number `start` on: the same ones whether or not the earlier were read. A batch's
        images are DALI's memory: read them, or queue a GPU's work on them, before the next batch is asked for.

        The epoch that follows on the one before goes on without a pause; any other place costs a new pipeline."""
        _trim_heap()
        for batch in range(start, self.num_batches):
            yield self._batch(epoch, batch)

    def _batch(self, epoch: int, batch: int) -> Batch:
        # Images that are bound to torch's stream go back to DALI when that has read them, however far Python is ahead
        stream = None if self.device_id is None else torch.cuda.current_stream(self.device_id)
        place = (epoch if self.shuffled else 0, batch)
        while True:
            running, self._running = self._running, None  # it is not kept after an error
            if not running or running.following != place:
                running = None  # the old one's memory goes before the new one's comes
                running = self._run_from(place)
            try:
                outputs = running.run(stream)
                break
            except PipelineError as error:
                self.bad_samples.find([read.rows for read in error.reader.ahead], error.cause)
        self._running = running
        images = [torch.utils.dlpack.from_dlpack(output.as_tensor()) for output in outputs]
        labels = torch.from_numpy(np.concatenate([_labels(reader) for reader in running.readers]))
        shift = self.draws(epoch, batch).color_shift if self.view == "train" else None
        return Batch(
            images[0] if len(images) == 1 else torch.cat(images),
            labels,
            None if shift is None else torch.from_numpy(shift),
            valid=min(self.batch_size, len(self.samples) - batch * self.batch_size),
        )

    def pipelines(self, epoch: int) -> "Pipelines":
        """DALI pipelines of their own from an epoch's beginning on, built; their outputs are the view's images. Past
        the epoch's end others follow."""
        running = self._run_from((epoch, 0))
        for reader in running.readers:
            reader.ahead = deque(maxlen=0)  # nobody will ask for the labels
        return running

    def _run_from(self, place: tuple[int, int]) -> "Pipelines":
        """Pipelines from a batch (epoch, number) on, built."""
        _trim_heap()
        count = min(self.settings.pipelines, self.batch_size // self.rank_slice.world_size)
        running = Pipelines([], [])
        for part in _divided(self.rank_slice.of(self.batch_size), count):
            reader = BatchReader(self.samples, self.epoch_order, part, self.bad_samples, place)
            running.readers.append(reader)
            running.pipes.append(self._graph(reader, part, place, -(-self.settings.threads // count)))
            running.pipes[-1].build()
        return running

    def _graph(self, reader: BatchReader, part: slice, place: tuple[int, int], threads: int) -> Any:
        options = self._options(
            batch_size=part.stop - part.start, num_threads=threads, prefetch_queue_depth=self.settings.prefetch
        )
        options["stored"] = self.dataset.size
        if isinstance(self.view, View):
            draws = view_draws(self.view, self.augmentation.seed, self.epoch_order, part, place)
            drawn = len(self.view.draw(np.random.default_rng(0), 1))
            return view_graph(reader, lambda: next(draws), self.view, drawn, **options)
        if self.view in ("patch", "decode", "read"):
            return graph.stage_graph(reader, self.view, **options)
        if self.view == "train":
            cuts = _cuts(self.augmentation, self.epoch_order, part, place)
            return graph.train_graph(reader, lambda: next(cuts), **options)
        return graph.eval_graph(reader, 1 if self.view == "center" else 10, **options)

    def _options(self, **options: int) -> dict[str, Any]:
        """DALI's options of a pipeline that decodes as this loader does."""
        running: dict[str, Any] = {"set_affinity": self.settings.affinity, "device_id": self.device_id}
        if self.device_id is not None:
            running["concurrency"] = OperatorConcurrency[self.settings.operator_concurrency.upper()]
        return {"decoder": self.decoder, **running, **options}


class PipelineError(Exception):
    """One of several pipelines failed. Args: reader: what feeds it; cause: DALI's error."""

    def __init__(self, reader: BatchReader, cause: RuntimeError):
        super().__init__(str(cause))
        self.reader, self.cause = reader, cause


class Pipelines(NamedTuple):
    """DALI pipelines that work at the same time, each on its part of the batch, and what feeds each.

    On a GPU three of a third of the batch each are faster than one (docs/data-path-speed.md)."""

    pipes: list[Any]
    readers: list[BatchReader]

    @property
    def following(self) -> tuple[int, int]:
        """The (epoch, number) of the batch that comes out next."""
        return self.readers[0].following

    def run(self, stream: "torch.cuda.Stream | None" = None) -> list[Any]:
        """Each pipeline's part of the next batch, DALI's tensor lists, bound to a stream if one is given. Raises
        PipelineError."""
        outputs = []
        for pipe, reader in zip(self.pipes, self.readers, strict=True):
            try:
                outputs.append(pipe.run(stream)[0])
            except RuntimeError as error:
                raise PipelineError(reader, error) from error
        return outputs


def _divided(part: slice, count: int) -> list[slice]:
    """A part of the batch in `count` parts that differ by one image at most."""
    ends = [part.start + (part.stop - part.start) * number // count for number in range(count + 1)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def _labels(reader: BatchReader) -> np.ndarray:
    """The class numbers of what has come out of a reader's pipeline, BAD_LABEL for what stands in for a bad sample."""
    read = reader.take()
    labels = reader.labels(read)
    labels[read.stands_in] = BAD_LABEL
    return labels


def _cuts(
    augmentation: Augmentation, order: EpochOrder, part: slice, place: tuple[int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The draws of batch after batch from `place` on as `graph.region` takes them: offsets and flips, n x 2 float32.
    It knows no loader: DALI would keep that, and that DALI's threads."""
    while True:
        y, x, flip, _ = draw(augmentation, *place, order.batch_size).part(part)
        yield np.stack([y, x], axis=1), np.stack([np.zeros_like(flip), flip], axis=1)
        place = order.following(*place)


def view_draws(
    view: View, seed: int, order: EpochOrder, part: slice, place: tuple[int, int]
) -> Iterator[list[np.ndarray]]:
    """A view's draws for batch after batch from `place` on, as DALI takes them."""
    while True:
        rng = np.random.default_rng([seed, *place])
        yield [np.ascontiguousarray(draw[part]) for draw in view.draw(rng, order.batch_size)]
        place = order.following(*place)


def _trim_heap() -> None:
    """Returns to the system what DALI has freed: glibc keeps it, and with it, epoch by epoch, the buffers that
    oversized images needed."""
    ctypes.CDLL(None).malloc_trim(0)
