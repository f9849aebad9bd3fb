"""Speed of the data path beside what it can be compared with, in one run: images a second on this machine's cores.

    raw         libjpeg-turbo (simplejpeg) decoding the same JPEGs from memory, a process for each core
    read        the images' bytes out of the tars; compared with `cat` of the same shards, in bytes
    decode      read, and every image decoded entirely
    pipeline    what training reads: `Loader.epoch`'s batches of uint8 crops and labels, random crops and flips
    fed         the same, and mean, lighting and cast: float32 as the model's input
    DataLoader  torch's, a worker for each core, Pillow: decoded, scaled to 256, cropped, flipped, collated as uint8

Contestants are interleaved: in a round each runs once, and each round begins with another one. A ratio is of one round.
"""

import functools
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor

from bench.harness.datasets import endless_batches, read_jpegs
from bench.harness.jpeg_baseline import Decoded, decoders
from bench.harness.machine import cpu_context, describe_machine
from bench.harness.record import heading, json_option, write_report
from bench.harness.turns import Summary, interleaved, ratios, summarize
from bench.loaders.base import endless
from bench.loaders.transform import with_pillow
from bench.studies.sharding.conversion import write_tree
from pipeline.compute_stats import complete
from pipeline.geometry import SIZE
from pipeline.loader import Batch, Loader
from pipeline.order import Augmentation
from pipeline.preprocess import Preprocess
from pipeline.settings import Settings
from pipeline.stats import Stats
from shards.convert import ConvertOptions, write_dataset
from shards.dataset import Dataset
from shards.processes import cores

BATCH = 64
COPIES = 10  # of each image: otherwise the beginning of an epoch would count for more than it does in ImageNet
Contestant = Callable[[float], float]  # the seconds to run for; images a second


class Ratio(NamedTuple):
    """Two contestants, the one over the other, and the targets of the ratio by data set."""

    over: str
    under: str
    originals: tuple[float, float]
    at_256: tuple[float, float]


RATIOS = {
    "decode / raw": Ratio("decode", "raw", (0.90, 1.0), (0.90, 1.0)),
    "pipeline / raw": Ratio("pipeline", "raw", (0.72, 0.90), (0.65, 0.85)),
    "pipeline / DataLoader": Ratio("pipeline", "DataLoader", (1.8, 2.5), (3.0, 4.0)),
    "read / cat": Ratio("read", "cat", (0.5, 0.9), (0.5, 0.9)),
}


def rate(step: Callable[[], int], seconds: float) -> float:
    """What a step counts, a second. Two steps are not timed: they fill queues."""
    step(), step()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        count += step()
    return count / (time.perf_counter() - began)


class ImagesInTars(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The images of the train split, read from the tars and transformed with Pillow."""

    def __init__(self, loader: Loader):
        rows = loader.order(0).reshape(-1, 2)
        where = loader.samples.positions(rows)
        tars = [loader.samples.tars[shard] for shard in rows[:, 0].tolist()]
        self.samples = list(zip(tars, where["offset"].tolist(), where["size"].tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        tar, offset, size = self.samples[number]
        with open(tar, "rb") as file:
            file.seek(offset)
            return with_pillow(file.read(size)), 0


class Contestants:
    """Those of one data set, whose images `decode` decodes alone."""

    def __init__(self, dataset: Dataset, decode: Callable[[float], Decoded]):
        self.dataset, self.jpeg_baseline = dataset, decode
        self.stats = Stats.load(dataset.root)

    def by_name(self) -> dict[str, Contestant]:
        return {
            "raw": lambda seconds: self.jpeg_baseline(seconds).rate,
            "cat": self.cat,
            "read": lambda seconds: self.stage("read", seconds),
            "decode": lambda seconds: self.stage("decode", seconds),
            "pipeline": lambda seconds: self.batches(seconds, lambda batch: None),
            "fed": self.preprocessed,
            "DataLoader": self.torch_loader,
        }

    def loader(self, view: str) -> Loader:
        settings, augmentation = Settings(cores()), Augmentation(self.stats)
        return Loader(self.dataset, "train", view, batch_size=BATCH, settings=settings, augmentation=augmentation)

    def stage(self, view: str, seconds: float) -> float:
        pipe = self.loader(view).pipelines(0)
        return rate(lambda: len(pipe.run()[0]), seconds)

    def batches(self, seconds: float, use: Callable[[Batch], object]) -> float:
        batches = endless_batches(self.loader("train"))

        def step() -> int:
            batch = next(batches)
            use(batch)
            return len(batch.labels)

        return rate(step, seconds)

    def preprocessed(self, seconds: float) -> float:
        preprocess = Preprocess(self.stats, "image", torch.device("cpu"))
        return self.batches(seconds, lambda batch: preprocess(batch.images, batch.color_shift))

    def torch_loader(self, seconds: float) -> float:
        loader = torch.utils.data.DataLoader(
            ImagesInTars(self.loader("read")),
            batch_size=BATCH,
            shuffle=True,
            drop_last=True,
            num_workers=cores(),
            persistent_workers=True,
            multiprocessing_context="forkserver",
        )
        batches: Iterator[tuple[Tensor, Tensor]] = endless(loader)
        return rate(lambda: len(next(batches)[1]), seconds)

    def cat(self, seconds: float) -> float:
        """The bytes that `cat` reads, in images of the mean size."""
        tars = [str(tar) for tar in self.dataset.tars("train")]
        size = sum(os.path.getsize(tar) for tar in tars)

        def step() -> int:
            with open(os.devnull, "wb") as nowhere:
                # Through a pipe: `cat` to /dev/null alone may copy nothing
                first = subprocess.Popen(["cat", *tars], stdout=subprocess.PIPE)
                subprocess.run(["cat"], stdin=first.stdout, stdout=nowhere, check=True)
                first.wait()
            return size

        return rate(step, seconds) * self.dataset.split("train").samples / size


def measure(dataset: Dataset, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Each contestant's images a second in each round; a shorter round before them is not counted."""
    with decoders(read_jpegs(dataset), cores()) as decode:
        contestants = Contestants(dataset, decode).by_name()

        def lasting(seconds: float) -> dict[str, Callable[[], float]]:
            return {name: functools.partial(run, seconds) for name, run in contestants.items()}

        interleaved(lasting(min(1.0, seconds)), 1)
        return interleaved(lasting(seconds), rounds)


def show(name: str, summary: Summary, unit: str, digits: int) -> None:
    """A line of the table."""
    low, middle, high = (f"{summary[key]:>10,.{digits}f}" for key in ("p10", "median", "p90"))
    print(f"  {name:<24}{middle}{low}{high} {unit}")


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n", 1))
@click.option("--images", type=click.Path(path_type=Path, exists=True), required=True, help="imagenet-sample.tar.")
@click.option("--rounds", default=5, show_default=True, help="Turns of each contestant.")
@click.option("--seconds", default=5.0, show_default=True, help="Length of a turn.")
@json_option
def main(images: Path, rounds: int, seconds: float, json_path: Path | None) -> None:
    report: dict[str, Any] = {**heading(describe_machine(cpu_context())), "batch_size": BATCH}
    with tempfile.TemporaryDirectory(prefix="alexnet-bench-") as folder:
        write_tree(images, COPIES, Path(folder) / "images")
        for name, size in (("originals", None), ("at 256", SIZE)):
            dataset = write_dataset(Path(folder) / "images", Path(folder) / name, ConvertOptions(size=size))
            complete(dataset)
            rates = measure(dataset, rounds, seconds)
            print(f"{name}: {dataset.split('train').samples} images, {cores()} cores")
            speeds = {contestant: summarize(values) for contestant, values in rates.items()}
            for contestant, speed in speeds.items():
                show(contestant, speed, "img/s", 0)
            compared = {}
            for ratio_name, ratio in RATIOS.items():
                compared[ratio_name] = summarize(ratios(rates[ratio.over], rates[ratio.under]))
                targets = ratio.at_256 if size else ratio.originals
                show(ratio_name, compared[ratio_name], f"target {targets[0]}, then {targets[1]}", 2)
            report[name] = {"img_per_s": speeds, "ratios": compared}
    write_report(json_path, report)


if __name__ == "__main__":
    main()
