"""One process a device: started by the command itself, or by torchrun; and where each of them stands.

`--gpus 1` stays in this process, both towers on one device. `--gpus 2` starts two, one a tower. Without CUDA devices
the towers run as CPU processes that exchange over gloo; with them over NCCL.
"""

import gc
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh

from pipeline.feed import Feed, to_device
from pipeline.loader import Batch, Loader
from pipeline.settings import Settings, place_of, read_tuned, settings
from shards.errors import InputError
from trainer.towers import Towers


@dataclass(frozen=True)
class Place:
    """Where a process stands: its device, its rank of `world`, the towers it holds, and its share of the CPU cores."""

    device: torch.device
    rank: int
    world: int
    towers: Towers
    threads: int

    @property
    def loading(self) -> dict:
        """What a `pipeline.loader.Loader` has to know of this place."""
        return {"threads": self.threads, "rank": self.rank, "world": self.world, "device_id": self.device_id}

    def settings(self, chosen: dict, stored: int | None) -> Settings:
        """How DALI is to run here: see `pipeline.settings.settings`."""
        return settings(chosen, read_tuned(place_of(self.device_id, self.threads, stored)), self.threads)

    def whole(self, batch: Batch, feed: Feed) -> tuple[torch.Tensor, torch.Tensor]:
        """The global batch, (images as the net is fed them, labels) on this device, from what each rank has decoded of
        it: 150,528 bytes a picture cross between the towers."""
        images, labels = (self.towers.gather_batch(to_device(part, self.device)) for part in batch[:2])
        light = None if batch.light is None else self.towers.gather_batch(to_device(batch.light, self.device))
        return feed(images, light), labels

    def agree_on_bad(self, loader: Loader) -> None:
        """Tells every rank of the samples that any has found to be bad. Raises InputError, on all, when these are too
        many."""
        if self.world > 1:
            found = [None] * self.world
            dist.all_gather_object(found, loader.bad)
            for bad in found:
                loader.note_bad(bad)

    def over_ranks(self, value: float, operation) -> float:
        """The sum or minimum (a torch.distributed.ReduceOp) of a number over all ranks."""
        if self.world == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, operation)
        return tensor.item()

    @property
    def device_id(self) -> int | None:
        """The CUDA device's number, None on a CPU."""
        return self.device.index if self.device.type == "cuda" else None


def launch(work: Callable, gpus: int | None, device: str, *args) -> None:
    """Runs `work(place, *args)` in one process a device and returns when all have ended.

    Args: work: a module's top-level function; gpus: 1 or 2, None for torchrun's number or else 1; device: auto, cuda
    or cpu.
    Raises: InputError for devices that are not there, and for whatever InputError a rank raised.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if by_torchrun and gpus not in (None, world):
        raise InputError(f"--gpus {gpus} but torchrun started {world} processes: make them equal, or leave --gpus out")
    gpus = (world if by_torchrun else 1) if gpus is None else gpus
    if gpus not in (1, 2):
        raise InputError(
            f"--gpus {gpus}: AlexNet has two towers, so it takes 1 (both on one device) or 2 (one on each)"
        )
    kind = choose_device(device, gpus, quiet=int(os.environ.get("RANK", 0)) > 0)
    if by_torchrun:
        _work_at(int(os.environ["LOCAL_RANK"]), int(os.environ["RANK"]), gpus, kind, "env://", work, args)
    elif gpus == 1:
        work(_place(0, 0, 1, kind, Towers()), *args)
    else:
        _start(work, gpus, kind, args)


def choose_device(device: str, gpus: int, quiet: bool = False) -> str:
    """The kind of device, cuda or cpu, for a `--device`; says so, once, when auto falls to the CPU."""
    have = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu":
        return "cpu"
    if have == 0:
        if device == "cuda":
            raise InputError("--device cuda, but torch finds no CUDA device here: use --device cpu or auto")
        if not quiet:
            where = "two CPU processes" if gpus == 2 else "one CPU process"
            print(f"No CUDA device here: the two towers run in {where}.", file=sys.stderr)
        return "cpu"
    if have < gpus:
        raise InputError(f"--gpus {gpus}, but this machine has {have}: use --gpus {have}, or --device cpu")
    return "cuda"


def _place(local_rank: int, rank: int, world: int, kind: str, towers: Towers) -> Place:
    device = torch.device(kind, local_rank) if kind == "cuda" else torch.device("cpu")
    threads = max(1, len(os.sched_getaffinity(0)) // world)
    torch.set_num_threads(threads)
    return Place(device, rank, world, towers, threads)


def _work_at(local_rank: int, rank: int, world: int, kind: str, store: str, work: Callable, args: tuple) -> None:
    """One rank's life: join the group, work, leave."""
    if kind == "cuda":
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", init_method=store, rank=rank, world_size=world)
    try:
        group = None
        if world > 1:
            # One replica of two towers; more replicas only lengthen the first dimension
            mesh = init_device_mesh(kind, (world // 2, 2), mesh_dim_names=("replica", "tower"))
            group = mesh["tower"].get_group()
        work(_place(local_rank, rank, world, kind, Towers(group)), *args)
    finally:
        leave_group()


def leave_group() -> None:
    """Leaves the group and lets it end now: one that garbage keeps alive to the interpreter's end aborts that."""
    dist.destroy_process_group()
    gc.collect()


def _rank_main(rank: int, world: int, kind: str, store: str, complaints, work: Callable, args: tuple) -> None:
    def work_or_complain(place: Place, *args) -> None:
        try:
            work(place, *args)
        except InputError as error:
            # Before the group is left, which the other rank will fail over
            complaints.put(str(error))
            raise

    _work_at(rank, rank, world, kind, store, work_or_complain, args)


def _start(work: Callable, world: int, kind: str, args: tuple) -> None:
    complaints = mp.get_context("spawn").SimpleQueue()
    # A file is the meeting place: no port to choose, and none to be taken by another
    with tempfile.TemporaryDirectory(prefix="alexnet-ranks-") as folder:
        store = (Path(folder) / "store").as_uri()
        # It tells of each process that it ends because another failed; what failed is told below
        logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
        try:
            mp.start_processes(_rank_main, (world, kind, store, complaints, work, args), nprocs=world)
        except (mp.ProcessRaisedException, mp.ProcessExitedException):
            if complaints.empty():
                raise
            raise InputError(complaints.get()) from None
