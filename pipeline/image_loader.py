"""The loader for any PyTorch model: iterate over it for an epoch's batches of images and labels."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from pipeline.loader import BAD_LABEL, Batch, Loader
from pipeline.order import SHUFFLES, Augmentation, RankSlice
from pipeline.preprocess import to_device
from pipeline.settings import choose_settings, prepare_environment, read_tuned, tuning_key
from pipeline.views import View
from shards.dataset import Dataset
from shards.errors import InputError
from shards.processes import cores
from shards.remote import locate
from shards.wording import counted

STATE_VERSION = 1


class ImageBatch(NamedTuple):
    """images: n x 3 x size x size, as the view has them; labels: n int64 class numbers; both on the loader's device."""

    images: torch.Tensor
    labels: torch.Tensor


@dataclass(eq=False)
class ImageLoader:
    """An epoch's batches for each `for images, labels in loader`, of one rank.

    A random view's epochs are shuffled, each otherwise, and drop the last partial global batch; a `CenterCrop` gives
    every sample exactly once, over all ranks, in shard order. Order and draws follow from (seed, epoch, batch) alone:
    ranks that share a global batch see its parts, whatever their number, and a resumed epoch is the rest of the
    unbroken one.

    A batch is the caller's: it may be held as long as wanted, and its memory is used again once nothing refers to it.
    Every label is a class number. An image that cannot be decoded is named on stderr and left out of its batch, which
    is then smaller; so is the last batch of a `CenterCrop`, and a rank for which none of that is left gets one batch
    less: evaluate the model itself, not its DistributedDataParallel, which would wait for all ranks. A batch of which
    nothing is left does not come; of several ranks in training, which need as many steps each, it is an error.

    Args:
        data: the folder or URL of a data set that `shard` or `index` of `cli.py` made.
        view: what the images show: `RandomResizedCrop`, `PaperCrop` or `CenterCrop`.
        batch_size: images of this rank's batch; the global batch has world_size times as many.
        split: by default "train" for a random view and "val" for another.
        device: where images are decoded and batches arrive: "cpu", "cuda", "cuda:1". Make a CUDA device's loader before
            anything else uses CUDA: it asks for more queues to the device, which is read at CUDA's start.
        rank, world_size: by default those of torch.distributed or, before it is initialized, of torchrun's environment;
            otherwise 0 and 1.
        seed: of order and draws.
        shuffle: "shards", shards and the samples in each, or "full", all samples at once.
        max_bad: the fraction of the split's samples that may be undecodable, one sample at least.
        threads: of the CPU, by default a core each of this rank's share; prefetch: batches worked ahead; decode_on:
            "device", or "cpu" for a CUDA device whose CPU decodes. By default as `throughput-bench --tune` found.
        cache, cache_size: for a URL: the folder, and the bytes of shards in it.
    Raises:
        InputError: what the data or the options are and should be, in one line.
    """

    data: str | Path
    view: View
    batch_size: int
    _: KW_ONLY
    split: str | None = None
    device: str | torch.device = "cpu"
    rank: int | None = None
    world_size: int | None = None
    seed: int = 0
    shuffle: str = "shards"
    max_bad: float = 0.001
    threads: int | None = None
    prefetch: int | None = None
    decode_on: str | None = None
    cache: str | Path | None = None
    cache_size: int | None = None

    def __post_init__(self) -> None:
        self._check()
        self.device = _device(self.device)
        self.rank, self.world_size = _rank(self.rank, self.world_size)
        self.split = self.split or ("train" if self.view.random else "val")
        self._read(Dataset.load(locate(self.data, Path(self.cache) if self.cache else None, self.cache_size)))
        self._epoch, self._batch, self._passes = 0, 0, 0
        self._begins_here = True  # the next pass: it was placed there, and not left there

    def _check(self) -> None:
        """Raises InputError for an argument that is impossible whatever the data."""
        if not isinstance(self.data, (str, Path)):
            raise InputError(f"data {self.data!r}: give the folder or URL of a data set")
        if not isinstance(self.view, View):
            raise InputError(f"view {self.view!r}: give one, as RandomResizedCrop(224), PaperCrop() or CenterCrop(224)")
        for name, least in (("batch_size", 1), ("seed", 0), ("threads", 1), ("prefetch", 1)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Integral) and int(value) >= least):
                raise InputError(f"{name} {value!r}: give a whole number, {least} or more")
        for name, values in (("shuffle", SHUFFLES), ("decode_on", (None, "device", "cpu"))):
            if getattr(self, name) not in values:
                raise InputError(f"{name} {getattr(self, name)!r} is not one of {', '.join(map(repr, values))}")
        if not 0 <= self.max_bad <= 1:
            raise InputError(f"max_bad {self.max_bad} is not a share of the samples: give 0 to 1")

    def _read(self, dataset: Dataset) -> None:
        """Reads from this data set from now on."""
        assert isinstance(self.device, torch.device) and self.split and self.world_size and self.rank is not None
        rank_slice = RankSlice(self.rank, self.world_size, self.device.index)
        samples, global_batch = dataset.split(self.split).samples, self.batch_size * self.world_size
        if self.view.random and samples < global_batch:
            most = f"at most {samples // self.world_size} for {counted(samples, 'sample')}"
            raise InputError(f"batch_size {self.batch_size} on {counted(self.world_size, 'rank')}: choose {most}")
        threads = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size)))
        tuned = read_tuned(tuning_key(self.device.index, threads, dataset.size), quiet=self.rank > 0)
        chosen = {"threads": self.threads, "prefetch": self.prefetch, "decode_on": self.decode_on}
        self._loader = Loader(
            *(dataset, self.split, self.view),
            batch_size=global_batch,
            settings=choose_settings(chosen, tuned, threads, gpu=self.device.type == "cuda"),
            rank_slice=rank_slice,
            augmentation=Augmentation(seed=self.seed, shuffle=self.shuffle),
            max_bad=self.max_bad,
        )
        self.dataset, self.samples = dataset, samples  # samples of the split, over all ranks

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class number."""
        return self.dataset.classes

    def __len__(self) -> int:
        """This rank's batches of a whole epoch."""
        batches = self._loader.num_batches
        last = self.samples - (batches - 1) * self._loader.batch_size
        return batches if self._part_of(last) else batches - 1

    def __iter__(self) -> Iterator[ImageBatch]:
        """The batches of the next epoch, or after `load_state_dict` of the rest of one. One pass at a time: a new one
        ends the one before. It begins when its first batch is asked for: frameworks make some that they never read."""
        if not self._begins_here:
            self.set_epoch(self._epoch + 1)
        self._begins_here = False
        self._passes += 1
        number = self._passes
        for batch in self._loader.epoch(self._epoch, self._batch):
            self._batch += 1
            kept = self._kept(batch)
            if len(kept.labels):
                yield kept
            if number != self._passes:
                raise RuntimeError("another pass over this ImageLoader was begun: make a second one to read twice")
        self.set_epoch(self._epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """The next pass is over this epoch, from its beginning; without, passes count by themselves from 0."""
        if not (isinstance(epoch, Integral) and int(epoch) >= 0):
            raise InputError(f"epoch {epoch!r}: they are numbered from 0")
        self._epoch, self._batch, self._begins_here = epoch, 0, True

    def state_dict(self) -> dict[str, Any]:
        """Where reading goes on after the batches that were handed out: a few numbers, the same on every rank. A state
        may be loaded by any number of ranks with the same global batch."""
        quarantined = {name: len(split.quarantined) for name, split in self.dataset.splits.items()}
        return {"epoch": self._epoch, "batch": self._batch, "quarantined": quarantined, **self._same()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next pass goes on where `state` was taken, with the very batches that came after it; samples of a folder
        that were quarantined since then are left out of them. Raises InputError for a state of other data or options,
        whose batches would not be those."""
        if not _is_state(state):
            raise InputError("this is not a loader's state: give what state_dict returned")
        before = self.dataset.as_quarantined(state.get("quarantined", {}))
        if self.dataset.fingerprint != before.fingerprint == state.get("data") and not before.remote:
            self._read(before)
        for name, own in self._same().items():
            if state.get(name) != own:
                remedy = "make the loader as it was, or begin an epoch anew with set_epoch"
                raise InputError(f"this state is of {name} {state.get(name)!r}, and the loader's is {own!r}: {remedy}")
        self.set_epoch(state["epoch"])
        self._batch = state["batch"]

    def _same(self) -> dict[str, Any]:
        """What a state is only good for."""
        return {
            "version": STATE_VERSION,
            "data": self.dataset.fingerprint,
            "split": self.split,
            "global_batch_size": self._loader.batch_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "view": repr(self.view),
        }

    def _part_of(self, valid: int) -> int:
        """How many of this rank's images are among the first `valid` of a global batch."""
        begin: int = self._loader.rank_slice.of(self._loader.batch_size).start
        return max(0, min(self.batch_size, valid - begin))

    def _kept(self, batch: Batch) -> ImageBatch:
        """The images that count, on the device, N x 3 x H x W."""
        images, labels = batch.images, batch.labels
        if self.view.channels_last:
            images = images.permute(0, 3, 1, 2)
        good = labels != BAD_LABEL
        good[self._part_of(batch.valid) :] = False
        if not good.any() and self.view.random and self._loader.rank_slice.world_size > 1:
            remedy = (
                "choose a larger batch_size, or take such out with `python cli.py verify DIR --decode --quarantine`"
            )
            raise InputError(f"{self.dataset.where}: no image of a rank's batch can be decoded: {remedy}")
        assert isinstance(self.device, torch.device)
        if not good.all():
            kept = good.nonzero()[:, 0]
            images, labels = images.index_select(0, kept.to(images.device)), labels[kept]
            if self.view.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
        return ImageBatch(to_device(images, self.device), to_device(labels, self.device))


def _is_state(state: Any) -> bool:
    """Whether this has a state's form, of whatever loader it is."""
    if not isinstance(state, Mapping) or not isinstance(quarantined := state.get("quarantined", {}), Mapping):
        return False
    numbers = [state.get("epoch"), state.get("batch"), *quarantined.values()]
    return all(isinstance(number, Integral) and int(number) >= 0 for number in numbers)


def _device(device: int | str | torch.device) -> torch.device:
    """The device with its number, None of a CPU."""
    try:
        found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"device {device!r} is not one of torch's: choose cpu or cuda") from None
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type == "cuda":
        prepare_environment()
        if (found.index or 0) < torch.cuda.device_count():
            return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)
    raise InputError(f"device {found} is not here: choose cpu, or cuda where there is an NVIDIA GPU")


def _rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """As given, as torch.distributed or torchrun's environment has them, otherwise the only one."""
    if (rank is None) != (world_size is None):
        raise InputError("give rank and world_size together, or neither")
    if rank is None or world_size is None:
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= rank < world_size:
        raise InputError(f"rank {rank} is not one of {world_size}: they are numbered from 0")
    return rank, world_size
