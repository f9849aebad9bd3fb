"""`throughput-bench --scaling`: how the speed grows with threads and ranks, and changes with batch and images.

threads   the training pipeline, one rank
ranks     a whole step on resident data, the same global batch over so many ranks
batch     the same on one rank, other batches
images  the training pipeline, one rank with all threads, images stored at other sizes
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from bench.harness.datasets import read_jpegs, stream, write_images
from bench.harness.model_step import ModelOptions, ModelStep
from bench.harness.timing import Timed, timed
from bench.limits import IMAGES
from pipeline.stats import Stats
from shards.dataset import Dataset
from shards.processes import cores
from shards.progress import Progress
from shards.remote import Remote
from trainer.launch import launch
from trainer.rank import RankContext

SIZES = (256, 384, 512)  # at which images are stored
MOST_RANKS = 8


def scale(
    data: Path | Remote,
    folder: Path,
    batch_size: int,
    model: dict,
    seconds: float,
    decoding: dict,
    device: str,
    parallel: str,
) -> list[dict]:
    """{"axis", "what", "points": [{"x", "img_per_s", "p10", "p90"}, ...]} for each axis.

    Args: folder: for what is laid down meanwhile; model: `ModelOptions`, by name; seconds: of each point;
    decoding: DALI's settings that are chosen; parallel: how ranks share the model.
    """
    told, dataset = folder / "scaling.json", Dataset.load(data)
    most = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else cores()
    numbers = [ranks for ranks in powers(min(most, MOST_RANKS)) if batch_size % ranks == 0]
    threads = sorted({*powers(cores()), cores()})
    batches = [batch for batch in (batch_size // 4, batch_size // 2, batch_size) if batch]
    total = len(numbers) + len(threads) + len(batches) + len(SIZES) + (dataset.size is None)
    with Progress("scaling", total, unit="points", lines=False) as progress:

        def made(what: str, x: int | str, point: dict) -> dict:
            progress.advance()
            progress.say(f"{x} {what}: {point['img_per_s']:,.0f} img/s")
            return {"x": x, **point}

        sizes = (threads, batches)
        launch(_alone, 1, device, dataset, folder / "scaling", told, sizes, batch_size, model, seconds, decoding, made)
        axes = json.loads(told.read_text())
        points = []
        for ranks in numbers:
            launch(_together, ranks, device, told, batch_size, len(dataset.classes), model, seconds, parallel=parallel)
            points.append(made("ranks", ranks, json.loads(told.read_text())))
    axes.insert(1, {"axis": "ranks", "what": f"a step of {batch_size} images, shared", "points": points})
    return axes


def powers(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [2**power for power in range(most.bit_length())]


def _told(found: Timed) -> dict:
    return {"img_per_s": found.median, **found.spread}


def _alone(
    context: RankContext,
    dataset: Dataset,
    folder: Path,
    told: Path,
    sizes: tuple[list[int], list[int]],
    batch_size: int,
    model: dict,
    seconds: float,
    decoding: dict,
    made: Callable[[str, int | str, dict], dict],
) -> None:
    """Every axis but the ranks. Args: sizes: numbers of threads, and batches; made: makes a point, and says so."""
    stats = Stats.load(dataset.root)
    settings = context.settings(
        decoding, dataset.size
    )._asdict()  # or the points would not be of the run's own pipeline
    shared = {"stats": stats, "batch_size": batch_size, **context.loading, **settings}

    def pipeline(of: Dataset, what: str, x: int | str, **changed) -> dict:
        options = {**shared, **changed}
        batch = min(batch_size, of.split("train").samples)
        step = stream(of, **{**options, "batch_size": batch}).__next__
        return made(what, x, _told(timed(step, batch, seconds, context)))

    def step(batch: int) -> dict:
        return made("images a batch", batch, _step(context, batch, len(dataset.classes), model, seconds))

    threads, batches = sizes
    sample = read_jpegs(dataset, IMAGES)
    sets = {str(size): write_images(sample, folder / str(size), None, context.threads, size=size) for size in SIZES}
    if dataset.size is None:
        sets["originals"] = dataset
    axes = [
        {
            "axis": "threads",
            "what": "the training pipeline, one rank",
            "points": [pipeline(dataset, "threads", count, threads=count) for count in threads],
        },
        {
            "axis": "batch",
            "what": "a step on resident data, one rank",
            "points": [step(batch) for batch in batches],
        },
        {
            "axis": "pictures",
            "what": "the training pipeline, images stored at other sizes",
            "points": [pipeline(of, "stored", name) for name, of in sets.items()],
        },
    ]
    told.write_text(json.dumps(axes))


def _together(context: RankContext, told: Path, batch_size: int, classes: int, model: dict, seconds: float) -> None:
    found = _step(context, batch_size, classes, model, seconds)
    if context.rank == 0:
        told.write_text(json.dumps(found))


def _step(context: RankContext, batch_size: int, classes: int, model: dict, seconds: float) -> dict:
    """A whole step of a global batch on resident data."""
    steps = ModelStep(context, classes, ModelOptions(**model))
    here = batch_size * context.layout.towers.size // context.world_size
    images = torch.randn(here, 3, 224, 224, device=context.device)
    labels = torch.randint(classes, (here,), device=context.device)
    return _told(timed(lambda: steps.update(images, labels), batch_size // context.world_size, seconds, context))


def table(axes: list[dict]) -> str:
    """For people."""
    lines = []
    for axis in axes:
        points = ", ".join(f"{point['x']}: {point['img_per_s']:,.0f}" for point in axis["points"])
        lines.append(f"img/s by {axis['axis']} ({axis['what']}): {points}")
    return "\n".join(lines)
