"""Jobs in worker processes: results in the jobs' order, one progress display, and nobody left behind.

A worker ends when its parent does, however that ended; Ctrl-C is the parent's alone to hear; a worker that is killed is
an error in one line; and a worker's memory is limited, so that a hostile file ends one job and not the machine.
"""

import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from shards.errors import InputError
from shards.progress import Progress

MEMORY = 2 * 2**30  # bytes of data that a worker may hold
REPORT_EVERY = 64  # images between a worker's reports


class Stopped(Exception):
    """The parent asked its workers to stop."""


class _Worker:
    """What `tick` knows in a worker process: the parent's counters and stop sign, and what is not yet reported."""

    counters = stop = None
    images = bytes = 0


def tick(images: int, bytes: int) -> None:
    """For a job to call: so many more images, of so many bytes, are done. Raises Stopped when the job should end."""
    if _Worker.counters is None:
        return  # the job runs in no worker
    _Worker.images += images
    _Worker.bytes += bytes
    if _Worker.images >= REPORT_EVERY:
        report()
        if _Worker.stop.is_set():
            raise Stopped


def report() -> None:
    with _Worker.counters.get_lock():
        _Worker.counters[0] += _Worker.images
        _Worker.counters[1] += _Worker.bytes
    _Worker.images = _Worker.bytes = 0


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def run_jobs(function: Callable, jobs: Sequence[tuple], workers: int, label: str, total: int | None) -> list:
    """`function(*job)` for every job, in at most `workers` processes, and what they return, in the jobs' order.

    Args: function: a module's own, whose jobs call `tick`; label, total: of the progress display, total in images or
    None when nobody knows. Raises: what a job raised first, after the others have ended; InputError when a worker was
    killed.
    """
    if not jobs:
        return []
    context = multiprocessing.get_context("spawn")
    counters, stop = context.Array("q", 2), context.Event()
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _begin, (counters, stop))
    with Progress(label, total) as progress:
        try:
            # Processes inherit that Ctrl-C is held back, from their first moment; here it is heard afterwards
            before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            try:
                pending = futures = [pool.submit(_job, function, job) for job in jobs]
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            while pending:
                ended, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in ended:
                    future.result()  # raises what the worker raised
                progress.advance(counters[0] - progress.done, counters[1] - progress.bytes)
            return [future.result() for future in futures]
        except BrokenProcessPool:
            remedy = "run the same command again to continue, with fewer --workers if memory is short"
            raise InputError(f"a worker process of {label!r} was killed: {remedy}") from None
        finally:
            # After an error or Ctrl-C the workers drop what they have in hand and clear it away
            stop.set()
            pool.shutdown(cancel_futures=True)


def _begin(counters, stop) -> None:
    _Worker.counters, _Worker.stop = counters, stop
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _job(function: Callable, job: tuple):
    try:
        return function(*job)
    finally:
        report()
