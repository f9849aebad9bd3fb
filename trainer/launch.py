"""One process a device: started by the command itself, or by torchrun, srun or mpirun on one machine or several.

The processes are a mesh, replicas x towers. `--gpus 1` stays in this process, both towers on one device; `--gpus 2`
starts two, one a tower; `--gpus 8` is four replicas of two towers. Without CUDA devices they are CPU processes that
exchange over gloo; with them over NCCL.
"""

import gc
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from functools import partial
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from types import FrameType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import Store
from torch.distributed.elastic.multiprocessing.errors import record
from torch.multiprocessing.spawn import spawn

from pipeline.order import check_batch_size
from pipeline.settings import prepare_environment
from shards.console import drop_what_is_unread, notice
from shards.errors import InputError
from shards.processes import cores, shared_memory
from shards.wording import counted
from trainer.config import check_towers
from trainer.model_parallel import DenseShardGroup, Layout, Replicas, ShardGroup, unsharded_layout
from trainer.preemption import Preempted, heeded_signals
from trainer.rank import RankContext, reuse_memory
from trainer.rendezvous import rendezvous_store
from trainer.started import Started, started, unjoined_tasks

GRACE = 5.0  # seconds
MEETING = timedelta(seconds=90)  # for ranks that neither torchrun nor this command started

Work = Callable[..., None]  # called as work(context, *args)


class RankSpec(NamedTuple):
    """What a process needs to know to become a rank.

    kind: of device, cuda or cpu; parallel: see `build_layout`; address: where the ranks meet, as in
    `trainer.rendezvous`.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    kind: str
    parallel: str
    address: str


def launch(
    work: Work, gpus: int | None, device: str, *args: Any, parallel: str | None = None, batch_size: int | None = None
) -> None:
    """Runs `work(context, *args)` in one process a device and returns when all have ended.

    Args: work: a module's top-level function; gpus: how many, None for as many as were started, or else 1; device:
    auto, cuda or cpu; parallel: towers, data or hybrid, see `build_layout`; None for towers in a command that has no
    --parallel; batch_size: of the global batch, which the devices share.
    Raises: InputError for devices that do not exist, and for whatever InputError a rank raised.
    """
    process = started()
    if process and gpus not in (None, process.world_size):
        raise InputError(
            f"--gpus {gpus} but {process.by} started {counted(process.world_size, 'process')}: make them equal, or "
            "leave --gpus out"
        )
    gpus = (process.world_size if process else 1) if gpus is None else gpus
    check_towers(gpus, parallel)
    by_torchrun = process is not None and process.by == "torchrun"
    if batch_size is not None and not by_torchrun:  # whose summary has what a rank raises, in the loader
        check_batch_size(batch_size, gpus)
    prepare_environment()
    if process is None and (hint := unjoined_tasks()):
        notice(hint)
    if process:
        spec = _joining(process, device, parallel or "towers")
        # record: in the end torchrun names the rank that failed first, and its error
        (record(_run_rank) if by_torchrun else _run_rank)(spec, work, args)
        return
    spec = RankSpec(0, gpus, 0, gpus, choose_device(device, gpus), parallel or "towers", "env://")
    if gpus == 1:
        work(_rank_context(spec, unsharded_layout()), *args)
    else:
        _start(spec, work, args)


def _joining(process: Started, device: str, parallel: str) -> RankSpec:
    """What a process that was started beside others needs to know. Raises InputError when it has no device."""
    quiet, local_rank = process.rank > 0, process.local_rank
    # Another launcher than torchrun may show each task its own device alone
    kind = choose_device(device, process.local_world_size if process.by == "torchrun" else 1, quiet)
    devices = torch.cuda.device_count() if kind == "cuda" else 1
    if devices == 1 and process.by != "torchrun":
        local_rank = 0
    if local_rank is None or (kind == "cuda" and local_rank >= devices):
        named = f"LOCAL_RANK is {local_rank}" if local_rank is not None else "LOCAL_RANK is not set"
        raise InputError(
            f"{named}, and there are {devices} devices: set it to the task's number on its machine, from 0"
        )
    return RankSpec(process.rank, process.world_size, local_rank, process.local_world_size, kind, parallel, "env://")


def build_layout(parallel: str, kind: str, world_size: int) -> Layout:
    """This process's part, in a mesh of replicas x towers.

    parallel: "towers" (2012: each replica is two processes, a tower each), "data" (each process is a replica, both
    towers in it) or "hybrid" (each process runs the convolutions on its images and holds its share of the dense
    layers' neurons for all of them).
    """
    if world_size == 1:
        return unsharded_layout()
    towers = 2 if parallel == "towers" else 1
    # Replica-major, so that a replica's images are contiguous in the global batch
    mesh = init_device_mesh(kind, (world_size // towers, towers), mesh_dim_names=("replica", "tower"))
    replicas = mesh["replica"].get_group() if world_size > towers else None
    if parallel == "hybrid":
        return Layout(ShardGroup(), DenseShardGroup(replicas), Replicas())
    group = ShardGroup(mesh["tower"].get_group() if towers == 2 else None)
    return Layout(group, group, Replicas(replicas))


def choose_device(device: str, gpus: int, quiet: bool = False) -> str:
    """The kind of device, cuda or cpu, for a `--device`; says so, once, when auto falls back to the CPU."""
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu":
        return "cpu"
    if available == 0:
        if device == "cuda":
            raise InputError("--device cuda, but torch finds no CUDA device here: use --device cpu or auto")
        if not quiet:
            notice(f"No CUDA device here: this runs on the CPU, in {counted(gpus, 'process')}.")
        return "cpu"
    if available < gpus:
        raise InputError(f"--gpus {gpus}, but this machine has {available}: use --gpus {available}, or --device cpu")
    return "cuda"


def _rank_context(spec: RankSpec, layout: Layout) -> RankContext:
    device = torch.device(spec.kind, spec.local_rank) if spec.kind == "cuda" else torch.device("cpu")
    threads = max(1, cores() // spec.local_world_size)
    torch.set_num_threads(threads)
    if spec.kind == "cpu":
        reuse_memory()
    return RankContext(device, spec.rank, spec.world_size, layout, threads)


def _run_rank(spec: RankSpec, work: Work, args: tuple[Any, ...]) -> None:
    """One rank's life: join the process group, work, leave."""
    if spec.kind == "cuda":
        torch.cuda.set_device(spec.local_rank)
    store = _meet(spec)
    backend = "cpu:gloo,cuda:nccl" if spec.kind == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=spec.rank, world_size=spec.world_size)
    try:
        work(_rank_context(spec, build_layout(spec.parallel, spec.kind, spec.world_size)), *args)
    finally:
        leave_group()


def _meet(spec: RankSpec) -> Store:
    """The store of all ranks. Raises InputError when those that another launcher than torchrun was to start do not
    come: nobody would end the ones that wait."""
    if spec.address != "env://" or "TORCHELASTIC_RUN_ID" in os.environ:
        return rendezvous_store(spec.address, spec.rank, spec.world_size)
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    if spec.rank == 0:
        notice(f"Waiting at {where} for the other ranks of {spec.world_size}")
    try:
        return rendezvous_store(spec.address, spec.rank, spec.world_size, MEETING)
    except (dist.DistError, RuntimeError) as error:
        raise InputError(
            f"rank {spec.rank}: the {spec.world_size} ranks did not meet at {where} within {MEETING.seconds} s "
            f"({str(error).splitlines()[0][:200]}): start all of them at one time, with the same MASTER_ADDR and "
            "MASTER_PORT"
        ) from None


def leave_group() -> None:
    """Leaves the process group and frees it now: one that garbage keeps alive aborts the interpreter at its end."""
    dist.destroy_process_group()
    gc.collect()


def _rank_main(rank: int, spec: RankSpec, errors: "SimpleQueue[Exception]", work: Work, args: tuple[Any, ...]) -> None:
    """A process that `_start` has started."""
    drop_what_is_unread()

    def reporting(call: Work, *args: Any) -> None:
        try:
            call(*args)
        except Preempted as preempted:
            errors.put(preempted)
        except InputError as error:
            errors.put(error)
            raise SystemExit(1) from None
        except Exception:
            errors.put(RuntimeError(f"rank {rank} of {spec.world_size} failed:\n{traceback.format_exc()}"))
            raise SystemExit(1) from None

    # The inner one reports before the group is left, which makes the other ranks fail: so the cause comes first
    reporting(_run_rank, spec._replace(rank=rank, local_rank=rank), partial(reporting, work), args)


def _start(spec: RankSpec, work: Work, args: tuple[Any, ...]) -> None:
    """Runs all ranks in processes of this machine. Raises the error of the rank that failed first."""
    with ExitStack() as stack:
        with shared_memory():
            errors: SimpleQueue[Exception] = multiprocessing.get_context("spawn").SimpleQueue()
            # The ranks meet at a file: there is no port to choose, and none that another process could take
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="alexnet-ranks-"))
        spec = spec._replace(address=f"{folder}/store")
        arguments = (spec, errors, work, args)
        ranks = spawn(_rank_main, arguments, spec.world_size, join=False, daemon=True)  # type: ignore[no-untyped-call]
        with _forwarding(ranks.pids()):
            failed, reported = _wait(ranks.processes, errors)
    for rank, code in failed.items():
        # A runtime that misses its peers aborts itself; any other signal ended the rank that is at fault
        if code < 0 and code != -signal.SIGABRT:
            name = signal.Signals(-code).name
            raise InputError(f"rank {rank} of {spec.world_size} was ended by {name}, and so all were")
        if code > 1:  # one that reports its error ends with 1
            raise RuntimeError(f"rank {rank} of {spec.world_size} ended with exit code {code} and reported no error")
    for error in sorted(reported, key=lambda error: isinstance(error, Preempted)):
        raise error from None
    for rank, code in failed.items():
        raise RuntimeError(f"rank {rank} of {spec.world_size} ended with exit code {code} and reported no error")


def _wait(processes: Sequence[BaseProcess], errors: "SimpleQueue[Exception]") -> tuple[dict[int, int], list[Exception]]:
    """Waits until all ranks have ended; returns the exit codes of those that failed by themselves, by rank, the
    first ones first, and the errors that ranks reported, in order.

    When one fails the others have GRACE seconds to fail over its absence and end by themselves, and are then killed: a
    rank may be stuck in a call to its device, and takes SIGTERM for a request to finish its step.
    """
    reported: list[Exception] = []
    try:
        while True:
            running = [process.sentinel for process in processes if process.is_alive()]
            failed = {rank: process.exitcode for rank, process in enumerate(processes) if process.exitcode}
            while not errors.empty():
                reported.append(errors.get())
            # One that fails may itself be stuck as it leaves the group
            if failed or not running or not all(isinstance(error, Preempted) for error in reported):
                break
            wait_for_any(running, timeout=1.0)
        deadline = time.monotonic() + GRACE
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        # After those that failed first: another rank's error over a killed one's absence may be reported before its end
        failed |= {rank: p.exitcode for rank, p in enumerate(processes) if p.exitcode and rank not in failed}
    finally:
        for process in processes:
            process.kill()
            process.join()
    return failed, reported


@contextmanager
def _forwarding(pids: list[int]) -> Iterator[None]:
    """Forwards requests to stop to the ranks, which then end by themselves. A terminal's Ctrl-C reaches them directly,
    too, which does no harm; a second one ends all at once."""
    received: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if number == signal.SIGINT else number)

    before = {number: signal.signal(number, forward) for number in heeded_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
