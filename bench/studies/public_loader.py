"""What `pipeline.ImageLoader` costs beside the stage "pipeline" of `throughput-bench`: the same crops, on the CPU.

pipeline    that stage: training's crops, 8 bits
public      the same crops through the public loader, with labels
float32     the same, normalized to float32, as other models want them
resized     random resized crops, normalized to float32

All read the same images, interleaved; `ratio` is each round's rate over that of "pipeline".
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch

from bench.harness.datasets import endless_batches, read_jpegs, repeated, write_images
from bench.harness.machine import cpu_context, describe_machine
from bench.harness.record import heading, json_option, write_report
from bench.harness.turns import interleaved, ratios, summarize
from bench.loaders.base import endless
from pipeline.image_loader import ImageLoader
from pipeline.loader import Loader
from pipeline.order import Augmentation
from pipeline.settings import choose_settings, read_tuned, tuning_key
from pipeline.stats import Stats
from pipeline.views import PaperCrop, RandomResizedCrop, View
from shards.dataset import Dataset
from shards.processes import cores
from shards.progress import Progress


def readers(folder: Path, statistics: Path, batch_size: int) -> dict[str, Iterator[object]]:
    """Each contestant's batches without end."""
    dataset = Dataset.load(folder)
    settings = choose_settings({}, read_tuned(tuning_key(None, cores(), dataset.size)), cores())
    augmentation = Augmentation(Stats.load(statistics))
    loader = Loader(
        dataset, "train", "train", batch_size=batch_size, settings=settings, augmentation=augmentation, max_bad=0.001
    )
    views: dict[str, View] = {
        "public": PaperCrop(dtype=torch.uint8, channels_last=True),
        "float32": PaperCrop(),
        "resized": RandomResizedCrop(),
    }
    public = {name: endless(ImageLoader(folder, view, batch_size)) for name, view in views.items()}
    return {"pipeline": endless_batches(loader), **public}


def rate(batches: Iterator[object], batch_size: int, seconds: float) -> float:
    """Images a second; what was decoded ahead is used up first."""
    for _ in range(4):
        next(batches)
    began, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        next(batches)
        count += batch_size
    return count / passed


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n", 1))
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="A folder of shards.")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Images of a batch.")
@click.option("--seconds", default=2.0, show_default=True, help="How long a turn is timed.")
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True, help="Turns of each.")
@json_option
def main(data: Path, batch_size: int, seconds: float, rounds: int, json_path: Path | None) -> None:
    dataset, rates = Dataset.load(data), dict[str, list[float]]()
    with tempfile.TemporaryDirectory(prefix="alexnet-public-") as name:
        written = write_images(read_jpegs(dataset, 2048), Path(name), dataset.size, cores())
        repeated(written).save()  # an epoch as long as those of the bench
        turns: dict[str, Callable[[], float]] = {}
        with Progress("loaders", 4 * rounds, unit="turns", lines=False) as progress:

            def turn(batches: Iterator[object]) -> float:
                progress.advance()
                return rate(batches, batch_size, seconds)

            for contestant, batches in readers(written.root, dataset.root, batch_size).items():
                turns[contestant] = lambda batches=batches: turn(batches)  # type: ignore[misc]
            rates = interleaved(turns, rounds)
    report: dict[str, Any] = heading(describe_machine(cpu_context()))
    report |= {"stored": dataset.size, "batch_size": batch_size}
    for contestant, values in rates.items():
        ratio = summarize(ratios(values, rates["pipeline"]))
        report[contestant] = {"img_per_s": summarize(values), "ratio": ratio}
        print(f"{contestant:<10}{report[contestant]['img_per_s']['median']:>8,.0f} img/s  ratio {ratio['median']:.3f}")
    write_report(json_path, report)


if __name__ == "__main__":
    main()
