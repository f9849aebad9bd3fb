"""What one training process knows of itself: its device, its rank, its part of the model; and how ranks talk."""

import ctypes
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pipeline.loader import Batch, Loader
from pipeline.order import RankSlice
from pipeline.preprocess import Preprocess, to_device
from pipeline.settings import Settings, choose_settings, read_tuned, tuning_key
from trainer.model_parallel import Layout

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h

T = TypeVar("T")


@dataclass(frozen=True)
class RankContext:
    """A process's device, its rank of `world_size`, its part of the model, and its share of the CPU cores."""

    device: torch.device
    rank: int
    world_size: int
    layout: Layout
    threads: int

    @property
    def rank_slice(self) -> RankSlice:
        """Which part of each global batch this rank reads."""
        return RankSlice(self.rank, self.world_size, self.device_id)

    def settings(self, chosen: dict[str, Any], stored: int | None) -> Settings:
        """How DALI is to run on this rank: see `pipeline.settings.choose_settings`."""
        tuned = read_tuned(tuning_key(self.device_id, self.threads, stored), quiet=self.rank > 0)
        return choose_settings(chosen, tuned, self.threads, gpu=self.device_id is not None)

    def gather_batch(self, batch: Batch, preprocess: Preprocess) -> tuple[torch.Tensor, torch.Tensor]:
        """(the images that this rank's convolutions read, the labels of the images that its dense layers read) on its
        device, from what each rank has decoded of its replica's part of the global batch: 150,528 bytes an image are
        exchanged between two towers."""
        towers, dense, _ = self.layout
        images = towers.gather_batch(to_device(batch.images, self.device))
        color_shift = None
        if batch.color_shift is not None:
            color_shift = towers.gather_batch(to_device(batch.color_shift, self.device))
        return preprocess(images, color_shift), dense.gather_batch(to_device(batch.labels, self.device))

    def share_bad_samples(self, loader: Loader) -> None:
        """Marks a sample that is bad on one rank as bad on every rank. Raises InputError, on all, when these are
        too many."""
        for bad in self.gather(loader.bad_samples.reasons):
            loader.bad_samples.mark(bad)

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on all ranks."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Waits for all ranks."""
        self.broadcast(None)

    def broadcast(self, value: T) -> T:
        """The first rank's value, on all ranks."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values, device=torch.device("cpu"))
            dist.all_reduce(torch.zeros(1))  # so that the first waits for the others, too
        return values[0]

    def all_reduce(self, value: float, operation: dist.ReduceOp.RedOpType) -> float:
        """The sum or minimum (a torch.distributed.ReduceOp) of a number over all ranks."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, operation)
        return tensor.item()

    @property
    def device_id(self) -> int | None:
        """The CUDA device's number, None on a CPU."""
        return self.device.index if self.device.type == "cuda" else None


def reuse_memory() -> None:
    """Lets glibc keep freed memory for the next allocations. By default it maps each large tensor again, and the page
    faults of a step's 7 GB were half of the step on a virtual machine (docs/speed.md)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries do not have it
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
