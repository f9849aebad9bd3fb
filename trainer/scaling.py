"""`throughput-bench --scaling`: how the speed grows with threads and ranks, and changes with batch and pictures.

threads   the training pipeline, one rank
ranks     a whole step on resident data, the same global batch over so many ranks
batch     the same on one rank, other batches
pictures  the training pipeline, one rank with all threads, pictures stored at other sizes
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.stats import Stats
from shards.manifest import Dataset
from shards.progress import Progress
from shards.remote import Remote
from shards.workers import cores
from trainer.launch import Place, launch
from trainer.limits import PICTURES
from trainer.sample import jpegs, laid_down, stream
from trainer.steps import Steps
from trainer.timing import Timed, timed

SIZES = (256, 384, 512)  # at which pictures are stored
MOST_RANKS = 8


def scale(
    data: Path | Remote,
    folder: Path,
    batch_size: int,
    net: dict,
    seconds: float,
    decoding: dict,
    device: str,
    parallel: str,
) -> list[dict]:
    """{"axis", "what", "points": [{"x", "img_per_s", "p10", "p90"}, ...]} for each axis.

    Args: folder: for what is laid down meanwhile; net: `trainer.steps.Steps`' options; seconds: of each point;
    decoding: DALI's settings that are chosen; parallel: how ranks share the net.
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
        launch(_alone, 1, device, dataset, folder / "scaling", told, sizes, batch_size, net, seconds, decoding, made)
        axes = json.loads(told.read_text())
        points = []
        for ranks in numbers:
            launch(_together, ranks, device, told, batch_size, len(dataset.classes), net, seconds, parallel=parallel)
            points.append(made("ranks", ranks, json.loads(told.read_text())))
    axes.insert(1, {"axis": "ranks", "what": f"a step of {batch_size} pictures, shared", "points": points})
    return axes


def powers(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [2**power for power in range(most.bit_length())]


def _told(found: Timed) -> dict:
    return {"img_per_s": found.median, **found.spread}


def _alone(
    place: Place,
    dataset: Dataset,
    folder: Path,
    told: Path,
    sizes: tuple[list[int], list[int]],
    batch_size: int,
    net: dict,
    seconds: float,
    decoding: dict,
    made: Callable[[str, int | str, dict], dict],
) -> None:
    """Every axis but the ranks. Args: sizes: numbers of threads, and batches; made: makes a point, and says so."""
    stats = Stats.load(dataset.root)
    settings = place.settings(decoding, dataset.size)._asdict()  # or the points would not be of the run's own pipeline
    shared = {"stats": stats, "batch_size": batch_size, **place.loading, **settings}

    def pipeline(of: Dataset, what: str, x: int | str, **changed) -> dict:
        options = {**shared, **changed}
        batch = min(batch_size, of.split("train").samples)
        step = stream(of, **{**options, "batch_size": batch}).__next__
        return made(what, x, _told(timed(step, batch, seconds, place)))

    def step(batch: int) -> dict:
        return made("pictures a batch", batch, _step(place, batch, len(dataset.classes), net, seconds))

    threads, batches = sizes
    sample = jpegs(dataset, PICTURES)
    sets = {str(size): laid_down(sample, folder / str(size), None, place.threads, size=size) for size in SIZES}
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
            "what": "the training pipeline, pictures stored at other sizes",
            "points": [pipeline(of, "stored", name) for name, of in sets.items()],
        },
    ]
    told.write_text(json.dumps(axes))


def _together(place: Place, told: Path, batch_size: int, classes: int, net: dict, seconds: float) -> None:
    found = _step(place, batch_size, classes, net, seconds)
    if place.rank == 0:
        told.write_text(json.dumps(found))


def _step(place: Place, batch_size: int, classes: int, net: dict, seconds: float) -> dict:
    """A whole step of a global batch on resident data."""
    steps = Steps(place, classes, **net)
    here = batch_size * place.layout.towers.size // place.world
    images = torch.randn(here, 3, 224, 224, device=place.device)
    labels = torch.randint(classes, (here,), device=place.device)
    return _told(timed(lambda: steps.update(images, labels), batch_size // place.world, seconds, place))


def table(axes: list[dict]) -> str:
    """For people."""
    lines = []
    for axis in axes:
        points = ", ".join(f"{point['x']}: {point['img_per_s']:,.0f}" for point in axis["points"])
        lines.append(f"img/s by {axis['axis']} ({axis['what']}): {points}")
    return "\n".join(lines)
