"""libjpeg-turbo alone, a process a core, decoding JPEGs that lie in memory: what no loader on these cores can pass.

Imports neither torch nor DALI, so that the processes are there at once.
"""

import multiprocessing
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import simplejpeg


class Decoded(NamedTuple):
    """What processes did together: `rate` pictures a second, at `cpu` CPU-seconds a picture."""

    rate: float
    cpu: float


@contextmanager
def decoders(jpegs: list[bytes], processes: int) -> Iterable:
    """A function of the seconds to decode for, which returns what so many processes then `Decoded`, turning the
    pictures over and over, each process from another one on."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_hold, initargs=(jpegs,)) as pool:

        def decode(seconds: float) -> Decoded:
            begins = [number * len(jpegs) // processes for number in range(processes)]
            done = list(pool.map(_decode, begins, [seconds] * processes))
            return Decoded(sum(count / spent for count, spent, _ in done), _mean_cost(done))

        decode(0.0)  # starts the processes
        yield decode


def _mean_cost(done: list[tuple[int, float, float]]) -> float:
    return sum(cpu for _, _, cpu in done) / sum(count for count, _, _ in done)


def _hold(jpegs: list[bytes]) -> None:
    _hold.jpegs = jpegs


def _decode(begin: int, seconds: float) -> tuple[int, float, float]:
    """(pictures, seconds, CPU-seconds)"""
    count, began, cpu = 0, time.perf_counter(), time.process_time()
    while not count or time.perf_counter() - began < seconds:
        simplejpeg.decode_jpeg(_hold.jpegs[(begin + count) % len(_hold.jpegs)], strict=False)
        count += 1
    return count, time.perf_counter() - began, time.process_time() - cpu
