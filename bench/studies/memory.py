"""Memory of the data path over epochs of 100,000 small images with a few giants among them, on the CPU.

Each epoch puts the giants into other places of other batches, so that buffers which only ever grow would show: resident
memory is read after every epoch, and its highest value within each (VmHWM, set back in between).
"""

import io
import json
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from bench.harness.machine import describe_machine
from pipeline.loader import Loader
from pipeline.stats import Stats
from shards import tars
from shards.atomic import atomic_write
from shards.describe import describe_tars
from shards.processes import cores
from trainer.model_parallel import unsharded_layout
from trainer.rank import RankContext

SHARDS, SMALL = 20, (72, 64)


def jpeg(size: tuple[int, int], seed: int) -> bytes:
    """A smooth image, so that a giant's file is not one."""
    few = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(few).resize(size, Image.Resampling.BILINEAR).save(file, "JPEG", quality=90)
    return file.getvalue()


def write(root: Path, images: int, giants: int, side: int) -> None:
    small, giant = [jpeg(SMALL, seed) for seed in range(64)], jpeg((side * 4 // 3, side), 0)
    where = set(np.linspace(0, images - 1, giants, dtype=int).tolist())
    for shard, numbers in enumerate(np.array_split(np.arange(images), SHARDS)):
        with open(root / f"train-{shard:03d}.tar", "wb") as file:
            for number in numbers.tolist():
                image = giant if number in where else small[number % len(small)]
                for extension, content in (("jpg", image), ("cls", b"0")):
                    file.write(tars.header(f"{number}.{extension}".encode(), len(content)))
                    file.write(content + bytes(tars.padded(len(content)) - len(content)))
            file.write(bytes(1024))


def memory() -> dict[str, float]:
    """Resident memory now and at its highest since the last look, MiB."""
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    Path("/proc/self/clear_refs").write_text("5")  # sets the highest back (proc(5))
    return {"now": int(told["VmRSS"].split()[0]) / 1024, "highest": int(told["VmHWM"].split()[0]) / 1024}


@click.command()
@click.option("--images", default=100_000, show_default=True)
@click.option("--giants", default=8, show_default=True)
@click.option("--side", default=6000, show_default=True, help="Of a giant, its shorter one, pixels.")
@click.option("--epochs", default=5, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures there.")
def main(images: int, giants: int, side: int, epochs: int, json_path: Path | None) -> None:
    context = RankContext(torch.device("cpu"), 0, 1, unsharded_layout(), cores())
    report = {
        "schema": 1,
        "command": " ".join(["python", *sys.argv]),
        "machine": describe_machine(context),
        "epochs": [],
    }
    with tempfile.TemporaryDirectory(prefix="alexnet-memory-") as folder:
        write(Path(folder), images, giants, side)
        dataset = describe_tars(Path(folder))
        stats = Stats(np.zeros((256, 256, 3), np.float32), np.zeros(3), np.ones(3), np.eye(3), np.int64(1))
        loader = Loader(dataset, "train", "train", stats=stats, batch_size=128, threads=cores())
        memory()
        for epoch in range(epochs):
            began, seen = time.perf_counter(), sum(len(batch.labels) for batch in loader.epoch(epoch))
            one = {"pictures": seen, "img_per_s": seen / (time.perf_counter() - began), "mib": memory()}
            report["epochs"].append(one)
            print(f"epoch {epoch}: {one['mib']['now']:.0f} MiB now, {one['mib']['highest']:.0f} highest, {seen} images")
    if json_path:
        with atomic_write(json_path) as file:
            file.write(json.dumps(report, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
