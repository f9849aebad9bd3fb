"""The rate at which all ranks together do something, over several windows of time, and what they use meanwhile."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from bench.harness.memory import process_memory, reset_peak_memory
from trainer.rank import RankContext

WINDOWS = 5  # into which a measurement's time is divided; the spread is over them
# Seconds of steps before a GPU is timed, at least: on an H200 the first second of training made 19,600 img/s, and the
# ones after it 27,200
GPU_WARM_UP = 1.0
SAMPLED_EVERY = 0.05  # seconds between two samples of a GPU's use


class Timed(NamedTuple):
    """rates: a second, in each window, by all ranks; devices: each rank's median; cpu: CPU-seconds a second, by all
    ranks; gpu: the share of the time in which a kernel ran, the mean over ranks, None without a GPU; memory: the peak
    of the rank that uses most, in bytes: its process's memory, or all that is in use on its GPU."""

    rates: list[float]
    devices: list[float]
    cpu: float
    gpu: float | None
    memory: int

    @property
    def median(self) -> float:
        return float(np.median(self.rates))

    @property
    def spread(self) -> dict[str, float]:
        return {"p10": float(np.percentile(self.rates, 10)), "p90": float(np.percentile(self.rates, 90))}


def timed(step: Callable[[], object], count: float, seconds: float, context: RankContext) -> Timed:
    """Times `step`, which does `count` things on this rank, for about `seconds`, on all ranks at once.

    A first step and another tenth of the time (on a GPU GPU_WARM_UP at least) are not counted: they fill buffers,
    caches and queues, and TorchScript profiles in them. A window has one step at least, so slow steps take longer than
    `seconds`.
    """
    return _timed(step, count, seconds, context, on_device=context.device_id is not None)[0]


def timed_beside(
    step: Callable[[], object], other: Callable[[], object], count: float, seconds: float, context: RankContext
) -> tuple[Timed, Timed]:
    """Times `step` as `timed` does while a thread of its own repeats `other` as fast as it can, and `other`, too; a
    call of either counts for `count`."""
    with _repeated(other) as ends:
        result, windows = _timed(step, count, seconds, context, on_device=False)
    calls = np.arange(len(ends))
    # A call that a window's border divides counts for the part of its time that lies within
    done = [np.interp(window, ends, calls) for window in windows]
    own = [float(count * np.diff(calls)[0] / np.diff(window)[0]) for calls, window in zip(done, windows, strict=True)]
    rates = [context.all_reduce(rate, dist.ReduceOp.SUM) for rate in own]
    return result, result._replace(rates=rates, devices=context.gather(float(np.median(own))))


@contextmanager
def _repeated(step: Callable[[], object]) -> Iterator[list[float]]:
    """Repeats `step` in a thread while the block runs, which begins after the first call; gives the times at which
    calls ended, of which the last is after the block's end. Raises what `step` raises, at the block's end."""
    ends: list[float] = []
    begun, over = threading.Event(), threading.Event()

    def repeat() -> None:
        try:
            while not ends or not over.is_set():
                step()
                ends.append(time.perf_counter())
                begun.set()
        finally:
            begun.set()

    with ThreadPoolExecutor(1) as pool:
        thread = pool.submit(repeat)
        begun.wait()
        try:
            yield ends
        finally:
            over.set()
        thread.result()


Window = tuple[float, float]  # when it began and ended, by time.perf_counter


def _timed(
    step: Callable[[], object], count: float, seconds: float, context: RankContext, on_device: bool
) -> tuple[Timed, list[Window]]:
    """What `timed` returns, and its windows. Args: on_device: the GPU's own clock says when a window ends, and then
    there are none of the host's."""

    def run(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        if context.device_id is not None:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    run(1)
    warm_up = seconds / 10 if context.device_id is None else max(seconds / 10, GPU_WARM_UP)
    steps, spent = 0, 0.0
    while spent < warm_up:
        spent += context.all_reduce(run(1), dist.ReduceOp.MAX)  # so that all ranks make as many steps
        steps += 1
    steps = max(1, int(steps * seconds / WINDOWS / spent))
    own: list[float] = []
    windows: list[Window] = []
    with _Usage(context) as usage:
        if on_device:
            own = [steps * count / window for window in _device_windows(step, steps)]
        else:
            for _ in range(WINDOWS):
                began = time.perf_counter()
                own.append(steps * count / run(steps))
                windows.append((began, time.perf_counter()))
    rates = [context.all_reduce(rate, dist.ReduceOp.SUM) for rate in own]
    ranks = context.gather((float(np.median(own)), usage.cpu, usage.gpu, usage.memory))
    busy = [gpu for _, _, gpu, _ in ranks if gpu is not None]
    result = Timed(
        rates,
        devices=[median for median, *_ in ranks],
        cpu=sum(cpu for _, cpu, *_ in ranks),
        gpu=sum(busy) / len(busy) if busy else None,
        memory=max(memory for *_, memory in ranks),
    )
    return result, windows


def _device_windows(step: Callable[[], object], steps: int) -> list[float]:
    """The seconds of each window of `steps` on a GPU, which goes on from one to the next, as training does: waiting at
    each one's end, of six steps, gave 22,874 img/s where `train` logged 30,131 on the same H200."""

    def mark() -> "torch.cuda.Event":
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    marks = [mark()]
    for _ in range(WINDOWS):
        for _ in range(steps):
            step()
        marks.append(mark())
    torch.cuda.synchronize()
    return [began.elapsed_time(ended) / 1e3 for began, ended in itertools.pairwise(marks)]


class _Usage:
    """What this rank uses while the block runs: `cpu`, `gpu` and `memory` as in `Timed`."""

    def __init__(self, context: RankContext):
        self.device = context.device if context.device_id is not None else None
        self.cpu, self.memory = 0.0, 0
        self.gpu: float | None = None

    def __enter__(self) -> "_Usage":
        self.began, self.used = time.perf_counter(), time.process_time()
        self.ended = threading.Event()
        if self.device is None:
            reset_peak_memory()
        else:
            self.busy = [torch.cuda.utilization(self.device) / 100]
            self.watcher = threading.Thread(target=self._watch)
            self.watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu = (time.process_time() - self.used) / (time.perf_counter() - self.began)
        if self.device is None:
            self.memory = process_memory("VmHWM")
        else:
            self.ended.set()
            self.watcher.join()
            self.gpu = sum(self.busy) / len(self.busy)

    def _watch(self) -> None:
        # DALI's memory is not allocated by torch, so this is the device's own figure
        while True:
            free, total = torch.cuda.mem_get_info(self.device)
            self.memory = max(self.memory, total - free)
            self.busy.append(torch.cuda.utilization(self.device) / 100)
            if self.ended.wait(SAMPLED_EVERY):
                return
