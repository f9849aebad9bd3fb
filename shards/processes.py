"""Jobs in worker processes: results in the jobs' order, one progress display, and no process left behind.

A worker ends when its parent does, however that ended; only the parent reacts to Ctrl-C, and not within a wait; that a
worker was killed is an error in one line; and a worker's memory is limited, so that a hostile file ends one job and not
the machine.
"""

import multiprocessing
import os
import platform
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.sharedctypes import SynchronizedArray
from multiprocessing.synchronize import Event
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, ClassVar, TypeVar

from shards.errors import InputError
from shards.progress import Progress

WORKER_MEMORY = 2 * 2**30  # bytes of data that a worker may hold
REPORT_EVERY = 64  # images between a worker's reports

Result = TypeVar("Result")


class Cancelled(Exception):
    """The parent asked its workers to end."""


class _Worker:
    """What `tick` needs in a worker process: the counters and the event that it shares with its parent (None in any
    other process), and what is not yet reported."""

    counters: ClassVar["SynchronizedArray[int] | None"] = None
    cancelled: ClassVar[Event | None] = None
    images: ClassVar[int] = 0
    bytes: ClassVar[int] = 0


def tick(images: int, bytes: int) -> None:
    """For a job to call when it has done this many more images, of this many bytes; with none while it waits. Raises
    Cancelled when the job should end."""
    if _Worker.counters is None:
        return  # the job does not run in a worker
    _Worker.images += images
    _Worker.bytes += bytes
    if _Worker.images >= REPORT_EVERY or not images:
        _report()
        if _Worker.cancelled and _Worker.cancelled.is_set():
            raise Cancelled


def tick_upload(bytes: int) -> None:
    """For a job to call when it has uploaded this many more bytes; fewer than none for those that were lost."""
    counters = _Worker.counters
    if counters is not None:
        with counters.get_lock():
            counters[2] += bytes


def _report() -> None:
    counters = _Worker.counters
    if counters is not None:
        with counters.get_lock():
            counters[0] += _Worker.images
            counters[1] += _Worker.bytes
        _Worker.images = _Worker.bytes = 0


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_name() -> str:
    """The processor's model, as the kernel names it; its architecture where it names none."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def run_jobs(
    function: Callable[..., Result],
    jobs: Sequence[tuple[Any, ...]],
    workers: int,
    label: str,
    total: int | None,
    unit: str = "img",
) -> list[Result]:
    """`function(*job)` for every job, in at most `workers` processes; returns the results in the jobs' order.

    Args: function: a module's own, not a script's, whose jobs call `tick`; label, total, unit: of the progress
    display, total in images, or what `unit` names, or None when it is unknown. Raises: what a job raised first, after
    the others have ended; InputError when a worker was killed.
    """
    if not jobs:
        return []
    context = multiprocessing.get_context("spawn")
    with shared_memory():
        counters, cancelled = context.Array("q", 3), context.Event()
        pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _begin, (counters, cancelled))
    with Progress(label, total, unit=unit) as progress, interrupts_noted() as interrupts:
        try:
            with _interrupts_blocked(), _main_hidden():
                futures = [pool.submit(_job, function, job) for job in jobs]
            pending: set[Future[Result]] = set(futures)
            while pending:
                ended, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in ended:
                    future.result()  # raises what the worker raised
                images, stored, uploaded = counters[:]
                progress.advance(images - progress.done, stored - progress.bytes, uploaded - progress.uploaded)
                if interrupts:
                    raise KeyboardInterrupt
            return [future.result() for future in futures]
        except BrokenProcessPool:
            if interrupts:
                raise KeyboardInterrupt from None
            remedy = "run the same command again to continue, with fewer --workers if memory is short"
            raise InputError(f"a worker process of {label!r} was killed: {remedy}") from None
        finally:
            # After an error or Ctrl-C the workers drop their job and remove its half-written files
            cancelled.set()
            pool.shutdown(cancel_futures=True)


@contextmanager
def shared_memory() -> Iterator[None]:
    """Raises InputError when what processes share, locks or files, cannot be made."""
    try:
        yield
    except OSError as error:
        remedy = "make room there (a container has --shm-size for it)"
        where = f"/dev/shm or the folder for temporary files cannot be written: {error.strerror}"
        raise InputError(f"{where}: {remedy}") from None


@contextmanager
def interrupts_noted() -> Iterator[list[int]]:
    """Ctrl-C only adds to the list, which the caller looks at between its waits; at the end it raises
    KeyboardInterrupt if the caller did not. Raised within a wait or a submit, it would leave locks that are never
    released, and the command would hang. The second ends the workers where they are."""
    interrupts: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        interrupts.append(number)
        if len(interrupts) > 1:
            for worker in multiprocessing.active_children():
                worker.kill()

    # Another thread gets no signals, and another handler (a script's, or SIG_IGN of `nohup`) is there on purpose
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupts
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupts:
        raise KeyboardInterrupt


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes that are started inherit that Ctrl-C is blocked, from their first moment; this one gets it later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Processes that are started do not import the script that runs: no job needs it, and it may come from standard
    input, or call this very function without `if __name__ == "__main__":` before the call."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _begin(counters: "SynchronizedArray[int]", cancelled: Event) -> None:
    _Worker.counters, _Worker.cancelled = counters, cancelled
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = WORKER_MEMORY if hard == resource.RLIM_INFINITY else min(WORKER_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _job(function: Callable[..., Result], job: tuple[Any, ...]) -> Result:
    if _Worker.cancelled and _Worker.cancelled.is_set():
        raise Cancelled  # it waited in the workers' queue when the parent cancelled
    try:
        return function(*job)
    finally:
        _report()
