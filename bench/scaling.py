"""`throughput-bench --scaling`: how the speed grows with threads and ranks, and changes with batch and images.

threads   the training pipeline, one rank
ranks     a training step on a resident batch, the same global batch over 1, 2, 4, ... ranks
batch     the same on one rank, other batches
pictures  the training pipeline, one rank with all threads, images stored at other sizes
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from bench.config import BenchConfig
from bench.harness.datasets import read_jpegs, write_images
from bench.harness.model_step import ModelStep
from bench.harness.timing import Timed, timed
from bench.limits import IMAGES
from bench.rank_setup import RankSetup, with_compilation
from bench.schema import Axis, Point
from pipeline.geometry import CROP
from pipeline.settings import Settings
from shards.dataset import Dataset
from shards.processes import cores
from shards.progress import Progress
from shards.remote import Remote
from shards.wording import counted
from trainer.launch import launch
from trainer.rank import RankContext

SIZES = (256, 384, 512)  # at which images are stored
ORIGINALS = "originals"
MAX_RANKS = 8

ReportPoint = Callable[[str, int | str, Timed], Point]  # from an axis, its value, and the measurement there


class AxisValues(NamedTuple):
    """The values of each axis."""

    threads: list[int]
    ranks: list[int]
    batch: list[int]
    pictures: list[str]


def measure(config: BenchConfig, data: Path | Remote, folder: Path) -> list[Axis]:
    """Every axis, each point for half of a stage's time. Args: data: the data set; folder: for temporary files."""
    result_path, dataset = folder / "scaling.json", Dataset.load(data)
    values = axis_values(config, dataset)
    with Progress(
        "scaling",
        sum(len(axis) for axis in (values.threads, values.ranks, values.batch, values.pictures)),
        unit="points",
        lines=False,
    ) as progress:

        def report(axis: str, x: int | str, result: Timed) -> Point:
            progress.advance()
            progress.say(f"{point_name(axis, x)}: {result.median:,.0f} img/s")
            return {"x": x, "img_per_s": result.median, "p10": result.spread["p10"], "p90": result.spread["p90"]}

        launch(measure_alone, 1, config.device, config, data, folder / "scaling", values, report, result_path)
        axes: list[Axis] = json.loads(result_path.read_text())
        points = []
        for ranks in values.ranks:
            what = (config, len(dataset.classes), result_path)
            launch(measure_shared, ranks, config.device, *what, parallel=config.parallel)
            points.append(report("ranks", ranks, Timed(**json.loads(result_path.read_text()))))
    axes.insert(1, {"axis": "ranks", "what": f"a step of {config.batch_size} images, shared", "points": points})
    return axes


def point_name(axis: str, x: int | str) -> str:
    """A point of an axis, to be shown."""
    if axis == "pictures":
        return f"{x} stored"
    of_batch = " a batch" if axis == "batch" else ""
    return counted(int(x), {"threads": "thread", "ranks": "rank", "batch": "image"}[axis]) + of_batch


def axis_values(config: BenchConfig, dataset: Dataset) -> AxisValues:
    """The values of each axis on this machine."""
    has_gpus = config.device != "cpu" and torch.cuda.is_available()
    devices = torch.cuda.device_count() if has_gpus else cores()
    batch_size = config.batch_size
    return AxisValues(
        threads=sorted({*powers(cores()), cores()}),
        ranks=[ranks for ranks in powers(min(devices, MAX_RANKS)) if batch_size % ranks == 0],
        batch=[batch for batch in (batch_size // 4, batch_size // 2, batch_size) if batch],
        pictures=[*map(str, SIZES), *([ORIGINALS] if dataset.size is None else [])],
    )


def powers(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [2**power for power in range(most.bit_length())]


def measure_alone(
    context: RankContext,
    config: BenchConfig,
    data: Path | Remote,
    folder: Path,
    values: AxisValues,
    report: ReportPoint,
    result_path: Path,
) -> None:
    """Every axis but the ranks, by one rank, which writes them to `result_path`.

    Args: folder: for images stored at other sizes.
    """
    setup = RankSetup.load(context, config, data)
    jpegs = read_jpegs(setup.dataset, IMAGES)
    stored = {
        str(size): write_images(jpegs, folder / str(size), None, context.threads, size=size) for size in SIZES
    } | {ORIGINALS: setup.dataset}
    axes: list[Axis] = [
        {
            "axis": "threads",
            "what": "the training pipeline, one rank",
            "points": [
                report("threads", count, time_pipeline(setup, setup.dataset, setup.settings._replace(threads=count)))
                for count in values.threads
            ],
        },
        {
            "axis": "batch",
            "what": "a step on resident data, one rank",
            "points": [
                report("batch", batch, time_step(context, setup.config, len(setup.dataset.classes), batch))
                for batch in values.batch
            ],
        },
        {
            "axis": "pictures",
            "what": "the training pipeline, images stored at other sizes",
            "points": [
                report("pictures", name, time_pipeline(setup, stored[name], setup.settings)) for name in values.pictures
            ],
        },
    ]
    result_path.write_text(json.dumps(axes))


def measure_shared(context: RankContext, config: BenchConfig, classes: int, result_path: Path) -> None:
    """A training step of a global batch by several ranks; the first writes the measurement to `result_path`."""
    result = time_step(context, with_compilation(config, context), classes, config.batch_size)
    if context.rank == 0:
        result_path.write_text(json.dumps(result._asdict()))


def time_pipeline(setup: RankSetup, dataset: Dataset, settings: Settings) -> Timed:
    """The training pipeline on a data set, as DALI runs with these settings."""
    batch_size = min(setup.config.batch_size, dataset.split("train").samples)
    step = setup.batches(dataset, batch_size=batch_size, settings=settings).__next__
    return timed(step, batch_size, setup.config.seconds / 2, setup.context)


def time_step(context: RankContext, config: BenchConfig, classes: int, batch_size: int) -> Timed:
    """A training step of a global batch that stays on the device. Args: config: as `with_compilation` returns it."""
    step = ModelStep(context, classes, config.model)
    here = batch_size * context.layout.towers.size // context.world_size
    images = torch.randn(here, 3, CROP, CROP, device=context.device)
    # The hybrid layout's dense layers read the images of all ranks
    labelled = batch_size if context.layout.is_hybrid else here
    labels = torch.randint(classes, (labelled,), device=context.device)
    share = batch_size // context.world_size
    return timed(lambda: step.update(images, labels), share, config.seconds / 2, context)


def table(axes: list[Axis]) -> str:
    """A line for each axis."""
    lines = []
    for axis in axes:
        points = ", ".join(f"{point['x']}: {point['img_per_s']:,.0f}" for point in axis["points"])
        lines.append(f"img/s by {axis['axis']} ({axis['what']}): {points}")
    return "\n".join(lines)
