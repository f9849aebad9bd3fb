"""One process a device: started by the command itself, or by torchrun on one machine or several; and where each stands.

The processes are a mesh, replicas x towers. `--gpus 1` stays in this process, both towers on one device; `--gpus 2`
starts two, one a tower; `--gpus 8` is four replicas of two towers. Without CUDA devices they are CPU processes that
exchange over gloo; with them over NCCL.
"""

import gc
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import record

from shards.errors import InputError
from trainer.model_parallel import DenseShardGroup, Layout, Replicas, ShardGroup, unsharded_layout
from trainer.preemption import SIGNALS, Preempted
from trainer.rank import RankContext, reuse_memory
from trainer.rendezvous import rendezvous_store

GRACE = 5.0  # seconds


def launch(work: Callable, gpus: int | None, device: str, *args, parallel: str = "towers") -> None:
    """Runs `work(context, *args)` in one process a device and returns when all have ended.

    Args: work: a module's top-level function; gpus: how many, None for torchrun's number or else 1; device: auto, cuda
    or cpu; parallel: towers, data or hybrid, see `build_layout`.
    Raises: InputError for devices that are not there, and for whatever InputError a rank raised.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if by_torchrun and gpus not in (None, world_size):
        raise InputError(
            f"--gpus {gpus} but torchrun started {world_size} processes: make them equal, or leave --gpus out"
        )
    gpus = (world_size if by_torchrun else 1) if gpus is None else gpus
    if gpus < 1 or (parallel == "towers" and gpus > 1 and gpus % 2):
        remedy = "it takes 1 (both on one device) or an even number, or --parallel data"
        raise InputError(f"--gpus {gpus}: AlexNet has two towers, so {remedy}")
    here = int(os.environ["LOCAL_WORLD_SIZE"]) if by_torchrun else gpus
    kind = choose_device(device, here, quiet=int(os.environ.get("RANK", 0)) > 0)
    if by_torchrun:
        local_rank, rank = int(os.environ["LOCAL_RANK"]), int(os.environ["RANK"])
        # record: torchrun tells at last which rank failed first, and of what
        record(_work_at)(local_rank, here, rank, gpus, kind, parallel, "env://", work, args)
    elif gpus == 1:
        work(_rank_context(0, 1, 0, 1, kind, unsharded_layout()), *args)
    else:
        _start(work, gpus, kind, parallel, args)


def build_layout(parallel: str, kind: str, world_size: int) -> Layout:
    """This process's part, in a mesh of replicas x towers.

    parallel: "towers" (2012: each replica is two processes, a tower each), "data" (each process is a replica, both
    towers in it) or "hybrid" (each process runs the convolutions on its images and holds its share of the dense
    layers' neurons for all of them).
    """
    if world_size == 1:
        return unsharded_layout()
    towers = 2 if parallel == "towers" else 1
    # Replica-major, so that a replica's images lie together in the global batch
    mesh = init_device_mesh(kind, (world_size // towers, towers), mesh_dim_names=("replica", "tower"))
    alike = mesh["replica"].get_group() if world_size > towers else None
    if parallel == "hybrid":
        return Layout(ShardGroup(), DenseShardGroup(alike), Replicas())
    here = ShardGroup(mesh["tower"].get_group() if towers == 2 else None)
    return Layout(here, here, Replicas(alike))


def choose_device(device: str, gpus: int, quiet: bool = False) -> str:
    """The kind of device, cuda or cpu, for a `--device`; says so, once, when auto falls to the CPU."""
    have = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu":
        return "cpu"
    if have == 0:
        if device == "cuda":
            raise InputError("--device cuda, but torch finds no CUDA device here: use --device cpu or auto")
        if not quiet:
            where = {1: "one CPU process", 2: "two CPU processes"}.get(gpus, f"{gpus} CPU processes")
            print(f"No CUDA device here: the two towers run in {where}.", file=sys.stderr)
        return "cpu"
    if have < gpus:
        raise InputError(f"--gpus {gpus}, but this machine has {have}: use --gpus {have}, or --device cpu")
    return "cuda"


def _rank_context(local_rank: int, here: int, rank: int, world_size: int, kind: str, layout: Layout) -> RankContext:
    """`here`: how many of the `world_size` processes are on this machine."""
    device = torch.device(kind, local_rank) if kind == "cuda" else torch.device("cpu")
    threads = max(1, len(os.sched_getaffinity(0)) // here)
    torch.set_num_threads(threads)
    if kind == "cpu":
        reuse_memory()
    return RankContext(device, rank, world_size, layout, threads)


def _work_at(
    local_rank: int,
    here: int,
    rank: int,
    world_size: int,
    kind: str,
    parallel: str,
    address: str,
    work: Callable,
    args: tuple,
) -> None:
    """One rank's life: join the group, work, leave."""
    if kind == "cuda":
        torch.cuda.set_device(local_rank)
    store = rendezvous_store(address, rank, world_size)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    try:
        work(_rank_context(local_rank, here, rank, world_size, kind, build_layout(parallel, kind, world_size)), *args)
    finally:
        leave_group()


def leave_group() -> None:
    """Leaves the group and lets it end now: one that garbage keeps alive to the interpreter's end aborts that."""
    dist.destroy_process_group()
    gc.collect()


def _rank_main(
    rank, world_size: int, kind: str, parallel: str, address: str, words, work: Callable, args: tuple
) -> None:
    def speaking(call: Callable, *args) -> None:
        try:
            call(*args)
        except Preempted as stopped:
            words.put(stopped)
        except InputError as error:
            words.put(error)
            raise SystemExit(1) from None
        except Exception:
            words.put(RuntimeError(f"rank {rank} of {world_size} failed:\n{traceback.format_exc()}"))
            raise SystemExit(1) from None

    # The inner one speaks before the group is left, which the other ranks fail over: so the cause comes first
    speaking(_work_at, rank, world_size, rank, world_size, kind, parallel, address, partial(speaking, work), args)


def _start(work: Callable, world_size: int, kind: str, parallel: str, args: tuple) -> None:
    words = mp.get_context("spawn").SimpleQueue()
    # A file is the meeting place: no port to choose, and none to be taken by another
    with tempfile.TemporaryDirectory(prefix="alexnet-ranks-") as folder:
        address = (Path(folder) / "store").as_uri()
        arguments = (world_size, kind, parallel, address, words, work, args)
        ranks = mp.start_processes(_rank_main, arguments, nprocs=world_size, join=False, daemon=True)
        with _forwarding(ranks.pids()):
            failed, said = _wait(ranks.processes, words)
    for rank, code in failed.items():
        # A runtime that misses its peers aborts itself; any other signal is the end of the one whose fault it is
        if code < 0 and code != -signal.SIGABRT:
            raise InputError(f"rank {rank} of {world_size} was ended by {signal.Signals(-code).name}, and so all were")
    for error in sorted(said, key=lambda word: isinstance(word, Preempted)):
        raise error from None
    for rank, code in failed.items():
        raise RuntimeError(f"rank {rank} of {world_size} ended with exit code {code} and said nothing")


def _wait(processes: list, words) -> tuple[dict[int, int], list[Exception]]:
    """Waits until all ranks have ended; returns the exit codes of those that failed by themselves, by rank, the
    first ones first, and what ranks had to say, in order.

    When one fails the others have GRACE seconds to fail over its absence and end by themselves, and are then killed: a
    rank may be stuck in a call to its device, and takes SIGTERM for a request to finish its step.
    """
    said: list[Exception] = []
    try:
        while True:
            running = [process.sentinel for process in processes if process.is_alive()]
            failed = {rank: process.exitcode for rank, process in enumerate(processes) if process.exitcode}
            while not words.empty():
                said.append(words.get())
            # One that fails may be stuck itself, as it leaves the group
            if failed or not running or not all(isinstance(word, Preempted) for word in said):
                break
            wait_for_any(running, timeout=1.0)
        deadline = time.monotonic() + GRACE
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        # Behind those that failed first: what the absence of a killed one did to another may be heard before its end is
        failed |= {rank: p.exitcode for rank, p in enumerate(processes) if p.exitcode and rank not in failed}
    finally:
        for process in processes:
            process.kill()
            process.join()
    return failed, said


@contextmanager
def _forwarding(pids: list[int]) -> Iterator[None]:
    """Passes on to the ranks that this process is asked to stop; what they make of it ends them. A terminal's Ctrl-C
    reaches them by itself, too, which does no harm; a second one ends all at once."""
    asked = []

    def forward(number, _) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if number == signal.SIGINT else number)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
