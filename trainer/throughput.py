"""Images per second of each stage of training, measured one after the other in one run, and which of them bounds it.

    read      tar bytes through DALI's reader, warm cache
    decode    read, and the pictures decoded whole
    pipeline  everything the train pipeline does: decode, resize, crop, flip, lighting, mean
    model     forward, backward and update on a batch that stays on the device
    train     pipeline and model together, as `train` runs them

Each stage contains those before it, except `model`, which stands alone.
"""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from nvidia import dali

from pipeline.feed import Feed
from pipeline.loader import Batch, Loader
from pipeline.stats import Stats, complete
from shards.errors import InputError
from shards.files import atomic_write
from shards.manifest import Dataset
from shards.remote import Remote
from shards.synthetic import render_folders
from shards.writer import write_dataset
from trainer.alexnet import AlexNet
from trainer.launch import Place, launch
from trainer.loop import train_step
from trainer.precision import Precision
from trainer.recipe import PaperSGD
from trainer.towers import replicate
from trainer.tuning import tune_rank

SCHEMA = 1
WINDOWS = 5  # a stage's time is cut into so many; the spread is over them


def bench(
    data: Path | Remote | None,
    json_path: Path | None,
    batch_size: int,
    width: float,
    seconds: float,
    tune: bool,
    decoding: dict,
    gpus,
    device,
) -> None:
    """Prints each stage's images per second and the bottleneck; writes them to `json_path` as JSON.

    Args: data: a data set's place, None to render one of 512 pictures; seconds: a stage's time; tune: find
    settings, see `trainer.tuning`, instead; decoding: what is chosen of `pipeline.settings.Settings`, by name.
    Raises: InputError.
    """
    if json_path and not json_path.absolute().parent.is_dir():
        raise InputError(f"--json {json_path}: there is no such folder; make it first")
    with tempfile.TemporaryDirectory(prefix="alexnet-bench-") as folder:
        if data is None:
            data = Path(folder) / "shards"
            render_folders(Path(folder) / "images", classes=10, train=512, val=0, seed=0)
            complete(write_dataset(Path(folder) / "images", data))
            described = "512 rendered pictures"
        else:
            described = str(data)
        if tune:
            launch(tune_rank, gpus, device, data, batch_size, decoding, seconds / 10)
        else:
            launch(bench_rank, gpus, device, data, described, json_path, batch_size, width, seconds, decoding)


def bench_rank(
    place: Place,
    data: Path | Remote,
    described: str,
    json_path,
    batch_size: int,
    width: float,
    seconds: float,
    decoding: dict,
) -> None:
    """One rank's part: every rank runs every stage, their images per second add up."""
    dataset = Dataset.load(data)
    stats = Stats.load(dataset.root)
    settings = place.settings(decoding, dataset.size)
    shared = {"stats": stats, "batch_size": batch_size, **place.loading, **settings._asdict()}
    # What one rank counts for a step: with two towers both work on every image of the global batch
    images = batch_size // place.world
    rates = {}
    for stage in ("read", "decode", "pipeline"):
        pipe = Loader(dataset, "train", "train" if stage == "pipeline" else stage, **shared).pipeline(0)
        rates[stage] = measure(pipe.run, images, seconds, place)
        del pipe

    net = AlexNet(len(dataset.classes), width, layout=place.layout)
    net.initialise(seed=0)
    net.to(place.device)
    optimiser = PaperSGD(net.parameters(), lr=0.01)
    trained, precision = replicate(net, place.layout), Precision("fp32", place.device)
    rng = torch.Generator(place.device)
    loader = Loader(dataset, "train", "train", **shared)
    batches = endless(loader)

    feed = Feed(stats, "image", place.device)
    resident = [tensor.clone() for tensor in place.whole(next(batches), feed)]

    def update(images: torch.Tensor, labels: torch.Tensor) -> None:
        train_step(trained, place.layout, optimiser, images, labels, rng, 0, 0, precision)

    rates["model"] = measure(lambda: update(*resident), images, seconds, place)
    rates["train"] = measure(lambda: update(*place.whole(next(batches), feed)), images, seconds, place)
    if place.rank == 0:
        medians = {stage: float(np.median(values)) for stage, values in rates.items()}
        report = {
            "schema": SCHEMA,
            "machine": machine(place),
            "data": {"name": described, "samples": loader.samples, "bytes_per_picture": picture_bytes(dataset)},
            "batch_size": batch_size,
            "width": width,
            "seconds_per_stage": seconds,
            "decoding": settings._asdict(),
            "stages": [
                {"name": stage, "img_per_s": medians[stage], **spread(values)} for stage, values in rates.items()
            ],
            "bottleneck": bottleneck(medians),
        }
        show(report)
        if json_path:
            with atomic_write(json_path) as file:
                file.write(json.dumps(report, indent=1).encode() + b"\n")


def measure(step: Callable[[], object], images: int, seconds: float, place: Place) -> list[float]:
    """Images per second over all ranks, one number a window; each rank makes `images` of them a step."""

    def run(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        if place.device_id is not None:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    run(2)  # warm-up: buffers, caches, TorchScript's profiling runs
    steps = place.over_ranks(max(1.0, seconds / WINDOWS / run(1)), dist.ReduceOp.MIN)
    return [place.over_ranks(int(steps) * images / run(int(steps)), dist.ReduceOp.SUM) for _ in range(WINDOWS)]


def endless(loader: Loader) -> Iterator[Batch]:
    """Epoch after epoch."""
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1


def spread(rates: list[float]) -> dict:
    """The 10th and 90th percentile."""
    return {"p10": float(np.percentile(rates, 10)), "p90": float(np.percentile(rates, 90))}


def bottleneck(rates: dict[str, float]) -> str:
    """The stage to make faster first: "model", or the part of the pipeline that adds most time to an image.

    The pipeline runs ahead of the model, so the slower of the two bounds training. Within the pipeline, reading is a
    part of decoding and decoding of the whole, so each is charged what it adds to the one before.
    """
    if rates["model"] <= rates["pipeline"]:
        return "model"
    times = [1 / rates[stage] for stage in ("read", "decode", "pipeline")]
    added = dict(zip(("read", "decode", "pipeline"), np.diff([0, *times]), strict=True))
    return max(added, key=added.get)


def picture_bytes(dataset: Dataset) -> int:
    """Mean bytes a picture takes in the train split's tars."""
    split = dataset.split("train")
    return sum(shard.bytes for shard in split.shards) // split.samples


def machine(place: Place) -> dict:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")]
    described = {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "device": place.device.type,
        "gpus": place.world,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "dali": dali.__version__,
    }
    if place.device_id is not None:
        described["gpu"] = torch.cuda.get_device_name(place.device)
    return described


def show(report: dict) -> None:
    """The table for people."""
    where = report["machine"]
    kind = where.get("gpu", where["cpu"])
    print(f"{kind}, {where['cores']} cores, {where['memory_gib']} GiB; {report['data']['name']}")
    print(f"{'stage':<10}{'img/s':>10}{'p10':>10}{'p90':>10}")
    for stage in report["stages"]:
        print(f"{stage['name']:<10}{stage['img_per_s']:>10.0f}{stage['p10']:>10.0f}{stage['p90']:>10.0f}")
    print(f"Bound by: {report['bottleneck']}")
