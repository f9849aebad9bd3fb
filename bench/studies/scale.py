"""What 14 million samples cost a process of training at its start and an epoch, from index files that are made here.

start       seconds until a process that is not the first knows where every sample lies, and MiB that this takes
first       the same of the first, which reads the index files and leaves an array for the others
order       seconds to compute an epoch's order, by shards and of all samples, and MiB at its peak

It fails when a start or an order is beyond BOUNDS.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from bench.harness.fresh_process import run_in_fresh_process
from bench.harness.machine import cpu_context, describe_machine
from bench.harness.record import heading, json_option, write_report
from bench.studies.loader import IN_A_SHARD, write_large
from pipeline.order import EpochOrder
from pipeline.samples import Samples
from shards.dataset import Dataset

SHARDS = 11_000  # of IN_A_SHARD samples: 14.1 million, as many as ImageNet-21k
BOUNDS = {"seconds": 1.0, "mib": 40.0, "order shards": 5.0, "order full": 10.0, "order full mib": 1024.0}
STARTS = 3  # after the first
TIMEOUT = 600


def start(folder: Path, cache: Path) -> dict[str, float]:
    """What a process's start costs: "seconds" and "mib", of its resident memory."""
    os.environ["XDG_CACHE_HOME"] = str(cache)
    dataset = Dataset.load(folder)
    before, began = status_mib("VmRSS"), time.perf_counter()
    Samples(dataset, "train")
    return {"seconds": time.perf_counter() - began, "mib": status_mib("VmRSS") - before}


def order(sizes: list[int], shuffle: str) -> dict[str, float]:
    """What an epoch's order costs: "seconds" and "mib", at the peak."""
    Path("/proc/self/clear_refs").write_text("5")  # the kernel then records the peak from here on
    before, began = status_mib("VmRSS"), time.perf_counter()
    EpochOrder(sizes, 512, 0, shuffle).rows(0)
    return {"seconds": time.perf_counter() - began, "mib": status_mib("VmHWM") - before}


def status_mib(name: str) -> float:
    """A line of this process's /proc/self/status, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) / 1024


def beyond(found: dict[str, float]) -> list[str]:
    """What is beyond its bound, in words."""
    return [f"{name} is {found[name]:.1f}, and at most {most:g}" for name, most in BOUNDS.items() if found[name] > most]


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n", 1))
@click.option("--shards", default=SHARDS, show_default=True, help=f"Shards to make, of {IN_A_SHARD:,} samples each.")
@json_option
def main(shards: int, json_path: Path | None) -> None:
    report: dict[str, Any] = heading(describe_machine(cpu_context()))
    with tempfile.TemporaryDirectory(prefix="alexnet-scale-") as name:
        folder = Path(name)
        (folder / "set").mkdir()
        write_large(folder / "set", shards)
        index_bytes = sum(path.stat().st_size for path in (folder / "set").glob("*.idx"))
        runs = [run_in_fresh_process(TIMEOUT, start, folder / "set", folder / "cache") for _ in range(1 + STARTS)]
    found = {key: sorted(run[key] for run in runs[1:])[STARTS // 2] for key in runs[0]}
    for shuffle in ("shards", "full"):
        costs = run_in_fresh_process(TIMEOUT, order, [IN_A_SHARD] * shards, shuffle)
        found |= {f"order {shuffle}": costs["seconds"], f"order {shuffle} mib": costs["mib"]}
    report |= {"samples": shards * IN_A_SHARD, "index_bytes": index_bytes, "first_start": runs[0], "found": found}
    for key in ("samples", "index_bytes", "first_start", "found"):
        print(f"{key}: {report[key]}")
    write_report(json_path, report)
    if missed := beyond(found):
        sys.exit("; ".join(missed))


if __name__ == "__main__":
    main()
