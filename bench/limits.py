"""What the machine can do at most, measured beside the stages: storage, libjpeg-turbo, matrix products, memory, link.

Each is measured on all ranks at once, and alone: no loader, no model.
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import RawIOBase
from pathlib import Path
from typing import Any, NamedTuple, cast

import nvidia.nvimgcodec as nvimgcodec
import torch
import torch.distributed as dist

from bench.config import BenchConfig
from bench.harness.jpeg_baseline import decoders
from bench.harness.timing import timed
from shards.dataset import Dataset
from shards.records import Shard
from shards.wording import counted
from trainer.precision import Precision
from trainer.rank import RankContext

IMAGES = 512  # decoded again and again
READ_SIZE = 2**20  # bytes of one read
MAX_READ = 2**30  # bytes of shards that are read to measure the storage's rate
COPY_SIZE = 2**26  # bytes of a copy: beyond the caches
GPU_BATCH = 64  # images that nvImageCodec decodes at once
# nvImageCodec, and its parts that may decode a JPEG on a GPU; the hybrid decoder shares an image between a core and the
# GPU's multiprocessors
ENGINE, HYBRID, ALL_DECODERS = "JPEG engine", "hybrid decoder", "all decoders"
GPU_DECODERS = {
    "nvImageCodec": None,
    ENGINE: nvimgcodec.BackendKind.HW_GPU_ONLY,
    HYBRID: nvimgcodec.BackendKind.HYBRID_CPU_GPU,
}
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}


class Limit(NamedTuple):
    """`rate` of `unit` a second, all ranks together; `what` was measured; `cpu`: CPU-seconds of one, where measured."""

    rate: float
    unit: str
    what: str
    cpu: float | None = None


def storage(dataset: Dataset, cold: bool, seconds: float, context: RankContext) -> Limit:
    """Reading the train split's shards, a thread a core, into a buffer that is thrown away: what `cat` does."""
    shards, read, total = dataset.split("train").shards, [], 0
    for shard in shards[context.rank :: context.world_size] or shards:
        if total < MAX_READ:
            read.append(shard)
            total += shard.bytes

    def cat(shard: Shard) -> None:
        buffer = bytearray(READ_SIZE)
        with dataset.open(shard) as file:
            while cast(RawIOBase, file).readinto(buffer):
                pass

    with ThreadPoolExecutor(context.threads) as pool:

        def step() -> None:
            if cold:
                drop([dataset.root / shard.name for shard in read])
            list(pool.map(cat, read))

        rate = timed(step, total, seconds, context).median
    where = "cold" if cold else "warm"
    if dataset.remote:
        where = "from the cache of a URL's"
    return Limit(rate, "bytes", f"reading the shards, {where}")


def drop(paths: list[Path]) -> None:
    """Drops these files from the kernel's page cache, unless a process has them mapped."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())  # pages that are not written yet would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def decode(jpegs: list[bytes], seconds: float, context: RankContext) -> Limit:
    """libjpeg-turbo alone, a process a core."""
    with decoders(jpegs, context.threads) as run:
        context.barrier()  # all begin together
        decoded = context.gather(run(seconds))
    rate = sum(one.rate for one in decoded)
    cpu = sum(one.cpu * one.rate for one in decoded) / rate
    what = f"libjpeg-turbo decoding from memory, {counted(context.threads * context.world_size, 'process')}"
    return Limit(rate, "pictures", what, cpu)


def gpu_decode(jpegs: list[bytes], part: str, seconds: float, context: RankContext) -> Limit:
    """nvImageCodec alone, or one part of it alone: see GPU_DECODERS. An image that the part cannot decode does not
    count, and on a GPU that has no such part the rate is 0."""
    decoder = gpu_decoder(part, context.device_id, context.threads)
    if decoder is None:
        return Limit(0.0, "pictures", f"{part}: this GPU has none")
    streams = [nvimgcodec.CodeStream(jpeg) for jpeg in jpegs]
    batches = [streams[begin : begin + GPU_BATCH] for begin in range(0, len(streams), GPU_BATCH)]

    def step() -> int:
        return sum(image is not None for batch in batches for image in decoder.decode(batch))

    decoded = step()
    rate = timed(step, decoded, seconds, context).median if decoded else 0.0
    return Limit(rate, "pictures", f"{part} decoding on the GPU, from memory")


def gpu_decoder(part: str, device_id: int | None, threads: int) -> Any:
    """A decoder of nvImageCodec that has no other parts; None where the GPU does not have this one."""
    kind = GPU_DECODERS[part]
    if kind is None:
        return nvimgcodec.Decoder(device_id=device_id, max_num_cpu_threads=threads)
    try:
        return nvimgcodec.Decoder(device_id=device_id, max_num_cpu_threads=threads, backends=[nvimgcodec.Backend(kind)])
    except RuntimeError:
        return None


def all_decoders(measured: Mapping[str, Limit]) -> Limit:
    """What a GPU and the cores beside it decode at most, from each part measured alone: the JPEG engine, and the cores
    at whichever serves them better, libjpeg-turbo or their half of the hybrid decoder."""
    cores = max(("libjpeg-turbo", HYBRID), key=lambda name: measured[name].rate)
    rate = measured[ENGINE].rate + measured[cores].rate
    return Limit(rate, "pictures", f"the sum of {ENGINE} and {cores}, each measured alone")


def matmul(precision: str, seconds: float, context: RankContext) -> Limit:
    """Matrix products, a multiply and an add counted as two; precision: see `trainer.precision`."""
    dtype = Precision(precision, context.device).dtype or torch.float32
    side = MATRIX_SIDE[context.device.type]
    a, b = (torch.randn(side, side, device=context.device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    rate = timed(lambda: torch.mm(a, b, out=product), 2 * side**3, seconds, context).median
    return Limit(rate, "FLOP", f"{side} x {side} matrix products in {precision}")


def memory(seconds: float, context: RankContext) -> Limit:
    """Copies within the device's memory; bytes read and bytes written both count."""
    source = torch.zeros(COPY_SIZE, dtype=torch.uint8, device=context.device)
    target = torch.ones_like(source)
    rate = timed(lambda: target.copy_(source), 2 * COPY_SIZE, seconds, context).median
    return Limit(rate, "bytes", f"copies in the {context.device.type.upper()}'s memory, read and written")


def host_to_device(seconds: float, context: RankContext) -> Limit:
    """Pinned memory to a GPU."""
    source = torch.zeros(COPY_SIZE, dtype=torch.uint8).pin_memory()
    target = torch.empty_like(source, device=context.device)
    rate = timed(lambda: target.copy_(source, non_blocking=True), COPY_SIZE, seconds, context).median
    return Limit(rate, "bytes", "pinned memory to the GPU")


def between_ranks(seconds: float, context: RankContext) -> Limit:
    """All-gathers among all ranks; what each rank sends counts, (world_size - 1) times its part."""
    own = torch.zeros(COPY_SIZE // context.world_size, dtype=torch.uint8, device=context.device)
    every = [torch.empty_like(own) for _ in range(context.world_size)]
    rate = timed(lambda: dist.all_gather(every, own), (context.world_size - 1) * own.nbytes, seconds, context).median
    return Limit(rate, "bytes", f"all-gathers among {context.world_size} ranks")


def available(
    jpegs: list[bytes], dataset: Dataset, config: BenchConfig, context: RankContext
) -> dict[str, Callable[[], Limit]]:
    """By name, a function that measures each limit that there is here; each takes half of a stage's time.

    Args: jpegs: to decode; dataset: to read.
    """
    seconds, precision = config.seconds / 2, config.model.precision
    on_gpu = context.device_id is not None
    limits: dict[str, Callable[[], Limit]] = {
        "storage": lambda: storage(dataset, config.cold, seconds, context),
        "libjpeg-turbo": lambda: decode(jpegs, seconds, context),
    }
    if on_gpu:
        limits |= {part: partial(gpu_decode, jpegs, part, seconds, context) for part in GPU_DECODERS}
    limits["matmul"] = lambda: matmul(precision, seconds, context)
    limits["memory"] = lambda: memory(seconds, context)
    if on_gpu:
        limits["host to device"] = lambda: host_to_device(seconds, context)
    if context.world_size > 1:
        limits["between ranks"] = lambda: between_ranks(seconds, context)
    return limits
