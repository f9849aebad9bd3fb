"""What the loader costs a run besides decoding, on the CPU: between epochs, and Python's part of a batch.

epoch       seconds that the first batch of an epoch comes later than others, where epochs have 500 images
evaluation  the same before and after an evaluation of 100 images, together
python      milliseconds that the main thread works for a batch of 512 images of 256 x 256: images handed to DALI,
            draws and labels
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from bench.harness.datasets import endless_batches
from bench.harness.machine import cpu_context, describe_machine
from bench.harness.record import heading, json_option, write_report
from pipeline.compute_stats import complete
from pipeline.loader import Batch, Loader
from pipeline.order import Augmentation
from pipeline.settings import Settings
from pipeline.stats import Stats
from shards.convert import ConvertOptions, write_dataset
from shards.dataset import Dataset
from shards.processes import cores
from shards.synthetic import render_folders

EPOCH, EVALUATED, BATCH = 500, 100, 50  # images


def seconds_of(batches: Iterator[Batch]) -> list[float]:
    """How long each batch was waited for."""
    waits: list[float] = []
    while True:
        began = time.perf_counter()
        if next(batches, None) is None:
            return waits
        waits.append(time.perf_counter() - began)


def pauses(dataset: Dataset, epochs: int) -> dict[str, float]:
    """Medians over epochs of what their beginnings cost, seconds. An evaluation follows on every other epoch."""
    options: dict[str, Any] = {"batch_size": BATCH, "settings": Settings(cores())}
    train = Loader(dataset, "train", "train", augmentation=Augmentation(Stats.load(dataset.root)), **options)
    val = Loader(dataset, "val", "center", **options)
    alone: list[float] = []
    evaluated: list[float] = []
    around = 0.0
    for epoch in range(epochs):
        first, *others = seconds_of(train.epoch(epoch))
        late = first - statistics.median(others)
        if epoch > 2:  # before, the pipelines are built
            (evaluated if epoch % 2 else alone).append(late + around)
        around = 0.0
        if epoch % 2 == 0:
            first, *others = seconds_of(val.epoch(0))
            around = first - statistics.median(others)
    return {"epoch": statistics.median(alone), "evaluation": statistics.median(evaluated)}


def python_ms(dataset: Dataset, batches: int) -> float:
    """Milliseconds that the main thread works for a batch of 512 images, DALI's decoding left out."""
    augmentation = Augmentation(Stats.load(dataset.root))
    loader = Loader(dataset, "train", "train", batch_size=512, settings=Settings(cores()), augmentation=augmentation)
    stream = endless_batches(loader)
    for _ in range(4):
        next(stream)
    times = []
    for _ in range(batches):
        began = time.thread_time()
        next(stream)
        times.append(time.thread_time() - began)
    return 1000 * statistics.median(times)


def repeated_squares(dataset: Dataset, folder: Path) -> Dataset:
    """Some images over and over, 1,024 of them, in one tar at 256."""
    for number in range(1024 // EPOCH + 1):
        for path in (dataset.root.parent / "images" / "train").glob("*/*"):
            copy = folder / "images" / "train" / path.parent.name / f"{number}-{path.name}"
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.hardlink_to(path)
    squares = write_dataset(folder / "images", folder / "squares", ConvertOptions(size=256))
    complete(squares)
    return squares


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n", 1))
@click.option("--epochs", type=click.IntRange(5), default=13, show_default=True, help="Epochs of 500 images to read.")
@click.option("--batches", type=click.IntRange(1), default=12, show_default=True, help="Batches of 512 images to read.")
@json_option
def main(epochs: int, batches: int, json_path: Path | None) -> None:
    report = heading(describe_machine(cpu_context()))
    with tempfile.TemporaryDirectory(prefix="alexnet-loader-") as name:
        folder = Path(name)
        render_folders(folder / "images", classes=4, train=EPOCH, val=EVALUATED, seed=0)
        small = write_dataset(folder / "images", folder / "small", ConvertOptions(size=256))
        complete(small)
        report |= {"pause_s": pauses(small, epochs)}
        (folder / "more").mkdir()
        report |= {"python_ms": python_ms(repeated_squares(small, folder / "more"), batches)}
    for key in ("pause_s", "python_ms"):
        print(f"{key}: {report[key]}")
    write_report(json_path, report)


if __name__ == "__main__":
    main()
