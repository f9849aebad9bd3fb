"""What other programs use of the cores while something is measured: on a busy machine no figure can be trusted."""

import os
import platform
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from shards.processes import cores
from trainer.rank import RankContext

BUSY = 0.1  # of the cores: what others use beyond that spoils a measurement
TICKS = os.sysconf("SC_CLK_TCK")  # a second


class Others(NamedTuple):
    """cpus: that other programs used, CPU-seconds a second; cores: that there were."""

    cpus: float
    cores: int

    @property
    def spoil(self) -> bool:
        return self.cpus > BUSY * self.cores


class OtherPrograms:
    """A context manager whose `others` are what other programs used of this process's cores, and of other ranks', while
    the block ran. All ranks must enter and leave alike."""

    others: Others

    def __init__(self, context: RankContext):
        self.context = context

    def __enter__(self) -> "OtherPrograms":
        self.began, self.all, self.own = time.perf_counter(), used_by_all(), used_here()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            return  # other ranks may not get here
        own, everything = used_here() - self.own, used_by_all() - self.all
        seconds, here = time.perf_counter() - self.began, cores()
        machines: dict[str, tuple[float, int]] = {}
        for name, all_used, rank_used, count in self.context.gather((platform.node(), everything, own, here)):
            machines[name] = machines.get(name, (all_used, count))[0] - rank_used, count
        total = sum(count for _, count in machines.values())
        cpus = sum(max(0.0, rest) for rest, _ in machines.values()) / seconds
        self.others = Others(min(cpus, total), total)  # the kernel counts in hundredths of a second


def used_by_all() -> float:
    """CPU-seconds that all programs have used of the cores that this process may use."""
    own = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    lines = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    # user, nice, system, idle, iowait, irq, softirq, steal; what guests used is within the first two
    used = (values for name, *values in lines if name in own)
    return sum(int(value) for values in used for value in (*values[:3], *values[5:8])) / TICKS


def used_here() -> float:
    """CPU-seconds that this process and its descendants have used."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended just now, and its parent has its time
        process = int(path.parent.name)
        parents[process], ticks[process] = int(fields[1]), sum(map(int, fields[11:15]))

    def is_ours(process: int) -> bool:
        while process and process != os.getpid():
            process = parents.get(process, 0)
        return bool(process)

    return sum(used for process, used in ticks.items() if is_ours(process)) / TICKS


def load_average() -> float:
    """Of the last minute."""
    return round(os.getloadavg()[0], 2)


def busy_line(what: str, others: Others) -> str:
    """Says that `what` was measured while `others` spoiled it."""
    return f"{what} measured beside other programs, which used {others.cpus:.1f} of {others.cores} cores: doubtful"
