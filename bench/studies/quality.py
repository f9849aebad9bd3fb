"""Images stored at 256 by the `--quality` of their JPEGs: size, fidelity, and what reading them costs.

    bytes       of a stored image, mean
    PSNR        of its central 224 crop, against the same crop of the scaled image that was never encoded
    pipeline    what training reads: random crops and flips; microseconds of a core an image
    patch       the whole 256 x 256 image, which `stats` reads
    stats       the same, and `stats`' sums; also of the originals

A core's time is measured instead of the clock's, so that the figures hold on a machine that others use, too.
Contestants are interleaved: in a round each runs once, and each round begins with another one. A ratio is of one round.
"""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.harness.datasets import endless_batches, read_jpegs, repeated
from bench.harness.machine import cpu_context, describe_machine
from bench.harness.record import heading, json_option, write_report
from bench.harness.turns import interleaved, ratios, summarize
from bench.studies.data_path import show
from bench.studies.sharding.codecs import pillow_decode, psnr
from bench.studies.sharding.conversion import write_tree
from pipeline.compute_stats import BATCH, Sums
from pipeline.geometry import CENTER, CROP, SIZE
from pipeline.loader import Batch, Loader
from pipeline.settings import Settings
from shards.convert import ConvertOptions, write_dataset
from shards.dataset import Dataset
from shards.formats import open_image
from shards.images import prepare, scaled_square
from shards.processes import cores

QUALITIES = (85, 90, 95)
CROPPED = np.s_[CENTER : CENTER + CROP, CENTER : CENTER + CROP]


def fidelity(images: list[bytes], quality: int) -> dict[str, float]:
    """PSNR of the central crops, dB: the median and the least."""
    scaled = [np.asarray(scaled_square(open_image(data).convert("RGB"), SIZE)) for data in images]
    stored = [pillow_decode(prepare(data, SIZE, quality).jpeg) for data in images]
    found = psnr([image[CROPPED] for image in stored], [image[CROPPED] for image in scaled])
    return {name: found[name] for name in ("median", "min")}


def cost(dataset: Dataset, view: str, use: Callable[[Batch], object], seconds: float) -> float:
    """Microseconds of a core an image of a view's batches, each of which is used."""
    loader = Loader(repeated(dataset), "train", view, batch_size=BATCH, settings=Settings(cores()))
    stream = endless_batches(loader)
    for _ in range(4):  # the queues are full then
        use(next(stream))
    images, began, spent = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        batch = next(stream)
        use(batch)
        images += len(batch.labels)
    return (time.process_time() - spent) / images * 1e6


def stats(dataset: Dataset, seconds: float) -> float:
    """The same of `stats`, with its sums."""
    with ThreadPoolExecutor(cores()) as pool:
        sums = Sums(pool, cores())
        return cost(dataset, "patch", lambda batch: sums.add(batch.images), seconds)


def contestants(dataset: Dataset, seconds: float) -> dict[str, Callable[[], float]]:
    """The costs to measure of a data set."""
    return {
        "pipeline": lambda: cost(dataset, "train", lambda batch: None, seconds),
        "patch": lambda: cost(dataset, "patch", lambda batch: None, seconds),
        "stats": lambda: stats(dataset, seconds),
    }


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n", 1))
@click.option("--images", type=click.Path(path_type=Path, exists=True), required=True, help="imagenet-sample.tar.")
@click.option("--rounds", default=7, show_default=True, help="Turns of each contestant.")
@click.option("--seconds", default=2.0, show_default=True, help="Length of a turn.")
@json_option
def main(images: Path, rounds: int, seconds: float, json_path: Path | None) -> None:
    report: dict[str, Any] = {**heading(describe_machine(cpu_context())), "batch_size": BATCH}
    with tempfile.TemporaryDirectory(prefix="alexnet-bench-") as name:
        folder = Path(name)
        write_tree(images, 1, folder / "images")
        originals = [path.read_bytes() for path in sorted((folder / "images").rglob("*.JPEG"))]
        options = {"originals": ConvertOptions()}
        options |= {f"quality {quality}": ConvertOptions(size=SIZE, quality=quality) for quality in QUALITIES}
        datasets = {kind: write_dataset(folder / "images", folder / kind, option) for kind, option in options.items()}
        turns = {
            (kind, name): run
            for kind, dataset in datasets.items()
            for name, run in contestants(dataset, seconds).items()
        }
        costs = interleaved(turns, rounds, warmup=1)
        for kind, dataset in datasets.items():
            print(kind)
            about: dict[str, Any] = {"bytes": float(np.mean([len(jpeg) for jpeg in read_jpegs(dataset)]))}
            if kind != "originals":
                about["psnr_db"] = fidelity(originals, options[kind].quality)
            about["us_per_image"] = {name: summarize(costs[kind, name]) for name in contestants(dataset, seconds)}
            about["rate of stats / patch"] = summarize(ratios(costs[kind, "patch"], costs[kind, "stats"]))
            for name, cost_of in about["us_per_image"].items():
                show(name, cost_of, "us", 0)
            show("rate of stats / patch", about["rate of stats / patch"], "target 0.9", 2)
            report[kind] = about
    write_report(json_path, report)


if __name__ == "__main__":
    main()
