"""What the machine can do at most, measured beside the stages: storage, libjpeg-turbo, matrix products, memory, link.

Each is measured with all ranks at it at once, and in a way that does nothing else: no loader, no model.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from nvidia import nvimgcodec

from bench.harness.jpeg_baseline import decoders
from bench.harness.timing import gathered, timed
from shards.dataset import Dataset, Shard
from trainer.precision import Precision
from trainer.rank import RankContext

IMAGES = 512  # that libjpeg-turbo decodes over and over
BLOCK = 2**20  # bytes of one read
MOST_READ = 2**30  # bytes of shards that are read to find the storage's rate
COPIED = 2**26  # bytes of a copy: beyond the caches
DECODED = 64  # images that nvImageCodec is given at once
SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices


class Limit(NamedTuple):
    """`rate` of `unit`s a second, all ranks together; `what` was measured; `cpu`: CPU-seconds of one, where told."""

    rate: float
    unit: str
    what: str
    cpu: float | None = None


def storage(dataset: Dataset, cold: bool, seconds: float, context: RankContext) -> Limit:
    """Reading the train split's shards, as many threads as cores, into a buffer that is thrown away: `cat`'s work."""
    shards, read, total = dataset.split("train").shards, [], 0
    for shard in shards[context.rank :: context.world_size] or shards:
        if total < MOST_READ:
            read.append(shard)
            total += shard.bytes

    def cat(shard: Shard) -> None:
        buffer = bytearray(BLOCK)
        with dataset.open(shard) as file:
            while file.readinto(buffer):
                pass

    with ThreadPoolExecutor(context.threads) as pool:

        def step() -> None:
            if cold:
                drop([dataset.root / shard.name for shard in read])
            list(pool.map(cat, read))

        found = timed(step, total, seconds, context)
    where = "cold" if cold else "warm"
    if dataset.remote:
        where = f"from {dataset.where}" if dataset.remote.by_dali else "from the cache of a URL's"
    return Limit(found.median, "bytes", f"reading the shards, {where}")


def drop(paths: list[Path]) -> None:
    """Has the kernel forget what it keeps of these files, unless a process has them mapped."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())  # what is not written yet would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def decode(jpegs: list[bytes], seconds: float, context: RankContext) -> Limit:
    """libjpeg-turbo alone, a process a core."""
    with decoders(jpegs, context.threads) as run:
        context.barrier()  # all begin together
        done = gathered(run(seconds), context)
    rate = sum(one.rate for one in done)
    cpu = sum(one.cpu * one.rate for one in done) / rate
    what = f"libjpeg-turbo decoding from memory, {context.threads * context.world_size} processes"
    return Limit(rate, "pictures", what, cpu)


def gpu_decode(jpegs: list[bytes], seconds: float, context: RankContext) -> Limit | None:
    """nvImageCodec alone, with the GPU's hardware decoder where it has one; None without a GPU."""
    if context.device_id is None:
        return None
    decoder = nvimgcodec.Decoder(device_id=context.device_id, max_num_cpu_threads=context.threads)
    streams = [nvimgcodec.CodeStream(jpeg) for jpeg in jpegs]
    batches = [streams[begin : begin + DECODED] for begin in range(0, len(streams), DECODED)]

    def step() -> None:
        for batch in batches:
            decoder.decode(batch)

    found = timed(step, len(jpegs), seconds, context)
    return Limit(found.median, "pictures", "nvImageCodec decoding on the GPU, from memory")


def matmul(precision: str, seconds: float, context: RankContext) -> Limit:
    """Matrix products, a multiply and an add counted as two; precision: see `trainer.precision`."""
    dtype = Precision(precision, context.device).dtype or torch.float32
    side = SIDE[context.device.type]
    a, b = (torch.randn(side, side, device=context.device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    found = timed(lambda: torch.mm(a, b, out=product), 2 * side**3, seconds, context)
    return Limit(found.median, "FLOP", f"{side} x {side} matrix products in {precision}")


def memory(seconds: float, context: RankContext) -> Limit:
    """Copies within the device's memory; bytes read and bytes written both count."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device=context.device)
    target = torch.ones_like(source)
    found = timed(lambda: target.copy_(source), 2 * COPIED, seconds, context)
    return Limit(found.median, "bytes", f"copies in the {context.device.type.upper()}'s memory, read and written")


def host_to_device(seconds: float, context: RankContext) -> Limit | None:
    """Pinned memory to a GPU; None without one."""
    if context.device_id is None:
        return None
    source = torch.zeros(COPIED, dtype=torch.uint8).pin_memory()
    target = torch.empty_like(source, device=context.device)
    found = timed(lambda: target.copy_(source, non_blocking=True), COPIED, seconds, context)
    return Limit(found.median, "bytes", "pinned memory to the GPU")


def between_ranks(seconds: float, context: RankContext) -> Limit | None:
    """All-gathers among all ranks; what each rank sends counts, (world_size - 1) times its part. None for one rank."""
    if context.world_size == 1:
        return None
    own = torch.zeros(COPIED // context.world_size, dtype=torch.uint8, device=context.device)
    every = [torch.empty_like(own) for _ in range(context.world_size)]
    found = timed(lambda: dist.all_gather(every, own), (context.world_size - 1) * own.nbytes, seconds, context)
    return Limit(found.median, "bytes", f"all-gathers among {context.world_size} ranks")


def measured(
    jpegs: list[bytes],
    dataset: Dataset,
    cold: bool,
    precision: str,
    seconds: float,
    context: RankContext,
    told_of: Callable,
) -> dict[str, Limit]:
    """Every limit that there is here, by its name.

    Args: jpegs: to decode; dataset: to read; cold: dropped from the page cache before each reading; precision: of the
    products; seconds: of each limit; told_of: hears of each one's name, rate and unit.
    """
    found: dict[str, Callable[[], Limit | None]] = {
        "storage": lambda: storage(dataset, cold, seconds, context),
        "libjpeg-turbo": lambda: decode(jpegs, seconds, context),
        "nvImageCodec": lambda: gpu_decode(jpegs, seconds, context),
        "matmul": lambda: matmul(precision, seconds, context),
        "memory": lambda: memory(seconds, context),
        "host to device": lambda: host_to_device(seconds, context),
        "between ranks": lambda: between_ranks(seconds, context),
    }
    limits = {}
    for name, measure in found.items():
        if (limit := measure()) is not None:
            limits[name] = limit
            told_of(name, limit.rate, limit.unit)
    return limits
