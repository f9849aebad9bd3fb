"""Where one training process stands: its device, its rank, its part of the model, and what ranks tell one another."""

import ctypes
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pipeline.loader import Batch, Loader
from pipeline.preprocess import Preprocess, to_device
from pipeline.settings import Settings, read_tuned, settings, tuning_key
from trainer.model_parallel import Layout

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


@dataclass(frozen=True)
class RankContext:
    """Where a process stands: its device, its rank of `world_size`, its part of the model, and its share of the CPU cores."""

    device: torch.device
    rank: int
    world_size: int
    layout: Layout
    threads: int

    @property
    def loader_options(self) -> dict:
        """What a `pipeline.loader.Loader` has to know of this place."""
        return {"threads": self.threads, "rank": self.rank, "world_size": self.world_size, "device_id": self.device_id}

    def settings(self, chosen: dict, stored: int | None) -> Settings:
        """How DALI is to run here: see `pipeline.settings.settings`."""
        return settings(chosen, read_tuned(tuning_key(self.device_id, self.threads, stored)), self.threads)

    def gather_batch(self, batch: Batch, preprocess: Preprocess) -> tuple[torch.Tensor, torch.Tensor]:
        """(images as the convolutions here are fed them, labels of the images that the dense layers here read) on
        this device, from what each rank has decoded of its replica's part of the global batch: 150,528 bytes an image
        cross between two towers."""
        towers, dense, _ = self.layout
        images = towers.gather_batch(to_device(batch.images, self.device))
        light = None if batch.color_shift is None else towers.gather_batch(to_device(batch.color_shift, self.device))
        return preprocess(images, light), dense.gather_batch(to_device(batch.labels, self.device))

    def share_bad_samples(self, loader: Loader) -> None:
        """Tells every rank of the samples that any has found to be bad. Raises InputError, on all, when these are too
        many."""
        if self.world_size > 1:
            found = [None] * self.world_size
            dist.all_gather_object(found, loader.bad)
            for bad in found:
                loader.mark_bad(bad)

    def barrier(self) -> None:
        """Waits for all ranks."""
        self.broadcast(None)

    def broadcast(self, value):
        """What the first rank gives, on all."""
        told = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(told, device=torch.device("cpu"))
            dist.all_reduce(torch.zeros(1))  # the first waits for the others, too
        return told[0]

    def all_reduce(self, value: float, operation) -> float:
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
    """Lets glibc keep what is freed for what is allocated next. By default it maps each large tensor anew, and the
    page faults of a step's 7 GB were half of the step on a virtual machine (docs/speed.md)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
