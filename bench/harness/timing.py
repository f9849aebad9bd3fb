"""How often a second something is done, over windows of time, by all ranks together, and what it uses meanwhile."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from trainer.rank import RankContext

WINDOWS = 5  # a measurement's time is cut into so many; the spread is over them
SAMPLED_EVERY = 0.05  # seconds between two looks at a GPU


class Timed(NamedTuple):
    """rates: of each window, over all ranks, a second; devices: each rank's median; cpu: CPU-seconds a second, over all
    ranks; gpu: share of the time in which a kernel ran, mean over ranks, None without a GPU; memory: the most bytes in
    use at any time, of the fullest rank: the process's, or all that is taken on its GPU."""

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
    """Times `step`, which does `count` things on this rank, for about so many seconds, on all ranks at once.

    A step, and a tenth of the time, go before and are not counted: buffers, caches, queues, TorchScript's profiling. A
    window has one step at least, so slow steps take longer than asked for.
    """

    def run(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        if context.device_id is not None:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    run(1)
    steps, spent = 0, 0.0
    while spent < seconds / 10:
        spent += context.all_reduce(run(1), dist.ReduceOp.MAX)  # of all, so that all make as many steps
        steps += 1
    steps = max(1, int(steps * seconds / WINDOWS / spent))
    own, rates = [], []
    with _Usage(context) as usage:
        for _ in range(WINDOWS):
            own.append(steps * count / run(steps))
            rates.append(context.all_reduce(own[-1], dist.ReduceOp.SUM))
    told = gathered((float(np.median(own)), usage.cpu, usage.gpu, usage.memory), context)
    devices, cpu, gpu, memory = zip(*told, strict=True)
    return Timed(rates, list(devices), sum(cpu), None if None in gpu else sum(gpu) / len(gpu), max(memory))


def gathered(value: object, context: RankContext) -> list:
    """Every rank's value, in the ranks' order."""
    if context.world_size == 1:
        return [value]
    values = [None] * context.world_size
    dist.all_gather_object(values, value)
    return values


class _Usage:
    """What this rank uses while the block runs: `cpu`, `gpu` and `memory` as in `Timed`."""

    def __init__(self, context: RankContext):
        self.device = context.device if context.device_id is not None else None
        self.gpu, self.memory = None, 0

    def __enter__(self) -> "_Usage":
        self.began, self.used = time.perf_counter(), time.process_time()
        self.ended = threading.Event()
        if self.device is None:
            Path("/proc/self/clear_refs").write_text("5")  # the kernel's record of the peak begins anew
        else:
            self.busy = [torch.cuda.utilization(self.device) / 100]
            self.watcher = threading.Thread(target=self._watch)
            self.watcher.start()
        return self

    def __exit__(self, *_) -> None:
        self.cpu = (time.process_time() - self.used) / (time.perf_counter() - self.began)
        if self.device is None:
            lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
            self.memory = next(int(line[1]) * 1024 for line in lines if line[0] == "VmHWM:")
        else:
            self.ended.set()
            self.watcher.join()
            self.gpu = sum(self.busy) / len(self.busy)

    def _watch(self) -> None:
        # DALI's memory is not torch's, so the device is asked
        while True:
            free, total = torch.cuda.mem_get_info(self.device)
            self.memory = max(self.memory, total - free)
            self.busy.append(torch.cuda.utilization(self.device) / 100)
            if self.ended.wait(SAMPLED_EVERY):
                return
