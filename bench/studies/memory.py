"""Memory of the data path over epochs of 100,000 small images with a few oversized ones among them, on the CPU.

Each epoch puts the oversized images into other places of other batches, so that buffers which only ever grow would
show: resident memory is read after every epoch, and so is its peak within each (VmHWM, reset in between).
"""

import io
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from PIL import Image

from bench.harness.machine import cpu_context, describe_machine
from bench.harness.memory import process_memory, reset_peak_memory
from bench.harness.record import heading, json_option, write_report
from pipeline.loader import Loader
from pipeline.order import Augmentation
from pipeline.settings import Settings
from pipeline.stats import Stats
from shards import tars
from shards.describe import describe_tars
from shards.processes import cores

SHARDS, SMALL = 20, (72, 64)


def jpeg(size: tuple[int, int], seed: int) -> bytes:
    """A smooth image, so that the file of an oversized one is small."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_tars(root: Path, images: int, oversized: int, side: int) -> None:
    small, large = [jpeg(SMALL, seed) for seed in range(64)], jpeg((side * 4 // 3, side), 0)
    places = set(np.linspace(0, images - 1, oversized, dtype=int).tolist())
    for shard, numbers in enumerate(np.array_split(np.arange(images), SHARDS)):
        with open(root / f"train-{shard:03d}.tar", "wb") as file:
            for number in numbers.tolist():
                image = large if number in places else small[number % len(small)]
                for extension, content in (("jpg", image), ("cls", b"0")):
                    file.write(tars.header(f"{number}.{extension}".encode(), len(content)))
                    file.write(content + bytes(tars.padded(len(content)) - len(content)))
            file.write(bytes(1024))


def resident_memory() -> dict[str, float]:
    """Resident memory now and its peak since the last call, MiB."""
    memory = {"now": process_memory("VmRSS") / 2**20, "highest": process_memory("VmHWM") / 2**20}
    reset_peak_memory()
    return memory


@click.command(help=__doc__)
@click.option("--images", default=100_000, show_default=True, help="Images of an epoch.")
@click.option("--oversized", default=8, show_default=True, help="Oversized images among them.")
@click.option("--side", default=6000, show_default=True, help="The shorter side of an oversized image, pixels.")
@click.option("--epochs", default=5, show_default=True, help="Epochs to read.")
@json_option
def main(images: int, oversized: int, side: int, epochs: int, json_path: Path | None) -> None:
    report = heading(describe_machine(cpu_context())) | {"epochs": []}
    with tempfile.TemporaryDirectory(prefix="alexnet-memory-") as folder:
        write_tars(Path(folder), images, oversized, side)
        dataset = describe_tars(Path(folder))
        stats = Stats(np.zeros((256, 256, 3), np.float32), np.zeros(3), np.ones(3), np.eye(3), np.int64(1))
        settings, augmentation = Settings(cores()), Augmentation(stats)
        loader = Loader(dataset, "train", "train", batch_size=128, settings=settings, augmentation=augmentation)
        resident_memory()
        for epoch in range(epochs):
            began, count = time.perf_counter(), sum(len(batch.labels) for batch in loader.epoch(epoch))
            rate, memory = count / (time.perf_counter() - began), resident_memory()
            report["epochs"].append({"pictures": count, "img_per_s": rate, "mib": memory})
            print(f"epoch {epoch}: {memory['now']:.0f} MiB now, {memory['highest']:.0f} highest, {count} images")
    write_report(json_path, report)


if __name__ == "__main__":
    main()
