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
from bench.harness.memory import process_memory, reset_peak_memory
from bench.harness.record import heading, json_option, write_report
from pipeline.order import EpochOrder
from pipeline.samples import Samples
from shards.dataset import Dataset
from shards.index import write_index
from shards.records import Shard, Sizes, Split

SHARDS, IN_A_SHARD = 11_000, 1281  # 14.1 million samples, as many as ImageNet-21k has
IMAGE, SAMPLE = 110_000, 111_616  # bytes of an image, and of its sample in a tar
BOUNDS = {"seconds": 1.0, "mib": 40.0, "order shards": 5.0, "order full": 10.0, "order full mib": 1024.0}
STARTS = 3  # after the first
TIMEOUT = 600


def write_large(folder: Path, count: int) -> None:
    """A data set of `count` shards: its index files are real, and its tars are empty."""
    shards = []
    for number in range(count):
        tar = folder / f"train-{number:06d}.tar"
        offsets = range(512, IN_A_SHARD * SAMPLE, SAMPLE)
        names = [f"{number:06d}_{sample:08d}" for sample in range(IN_A_SHARD)]
        lines = [f"jpg {o} {IMAGE} {n}.jpg cls {o + 110_592} 3 {n}.cls" for o, n in zip(offsets, names, strict=True)]
        with open(tar, "wb") as file:
            file.truncate(IN_A_SHARD * SAMPLE + 1024)
        write_index(tar.with_suffix(".idx"), lines)
        shards.append(Shard(tar.name, IN_A_SHARD, tar.stat().st_size, ""))
    split = Split(tuple(shards), (IN_A_SHARD,) * count, Sizes.of([(500, 400)]))
    classes = tuple(map(str, range(count)))
    Dataset(folder, classes, {}, {"train": split}, "webdataset", None, None, None, None, "", {}).save()


def start(folder: Path, cache: Path) -> dict[str, float]:
    """What a process's start costs: "seconds" and "mib", of its resident memory."""
    os.environ["XDG_CACHE_HOME"] = str(cache)
    dataset = Dataset.load(folder)
    before, began = process_memory("VmRSS"), time.perf_counter()
    Samples(dataset, "train")
    return {"seconds": time.perf_counter() - began, "mib": (process_memory("VmRSS") - before) / 2**20}


def order(sizes: list[int], shuffle: str) -> dict[str, float]:
    """What an epoch's order costs: "seconds" and "mib", at the peak."""
    reset_peak_memory()
    before, began = process_memory("VmRSS"), time.perf_counter()
    EpochOrder(sizes, 512, 0, shuffle).rows(0)
    return {"seconds": time.perf_counter() - began, "mib": (process_memory("VmHWM") - before) / 2**20}


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
