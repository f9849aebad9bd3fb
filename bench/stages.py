"""Measures each stage of training, and in the same run what the machine could do at most.

    read              the images' bytes out of the tars
    decode            read, and the images decoded in full
    patch             decode, and the central 256 x 256 patch of the scaled image
    pipeline          what training reads: rectangles decoded and scaled to crops, flipped; uint8
    eval              the center crop of the val split
    copy              crops from the host's memory to the GPU's
    feed              preprocessing: crops exchanged between towers, cast, mean subtracted, PCA color added
    exchange          what the ranks send one another in a step, and nothing else
    forward           the model's logits
    forward+backward  and all gradients
    model             and the optimizer's update: a training step on a batch that stays on the device
    pipeline beside   "pipeline" and "model" at the same time: the batches are dropped, and the model trains on its own
    model beside      the same, of the model
    train             pipeline, feed and model together, as training runs them

All ranks run a stage at once and their images add up; two towers work on the same images, so each counts half of them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from bench import limits
from bench.config import BenchConfig
from bench.harness.datasets import read_jpegs
from bench.harness.load import OtherPrograms
from bench.harness.timing import Timed
from bench.limits import Limit
from bench.model_stages import ModelStages
from bench.rank_setup import RankSetup
from bench.summary import ALL_RANKS_DECODE_ALL, NO_LRN, ONE_DEVICE, RESUMED, Results, build_report
from shards.dataset import Dataset
from shards.progress import Progress
from shards.remote import Remote
from trainer.rank import RankContext

FOLLOWING = {"other loaders": "with_peers", "scaling": "with_scaling"}  # what the command does next, by its option

Result = TypeVar("Result", Timed, Limit, float)


def measure_rank(
    context: RankContext, config: BenchConfig, data: Path | Remote, small: Path, result_path: Path
) -> None:
    """One rank's part: every rank takes every measurement; the first writes the report to `result_path`.

    Args: small: where some of the images are stored at 256, if the set holds originals.
    """
    setup = RankSetup.load(context, config, data)
    model, results = ModelStages(setup), Results()
    plan = measurements(setup, model, small, results)
    then = " and ".join(name for name, wanted in FOLLOWING.items() if getattr(config, wanted))
    quiet = context.rank > 0
    with Progress("measuring", len(plan), unit="measurements", lines=False, quiet=quiet, then=then) as progress:
        for measurement in plan:
            with OtherPrograms(context) as programs:
                line = measurement.run()
            results.others[measurement.name] = programs.others
            if programs.others.spoil:
                line += f" beside other programs, which use {programs.others.cpus:.1f} of {programs.others.cores} cores"
            progress.advance()
            progress.say(line)
    results.others["model beside"] = results.others["pipeline beside"]  # both are measured at once, by the first
    if limits.ENGINE in results.limits:
        results.limits[limits.ALL_DECODERS] = limits.all_decoders(results.limits)
        parts = (limits.ENGINE, limits.HYBRID, "libjpeg-turbo")
        results.others[limits.ALL_DECODERS] = max(results.others[part] for part in parts)
    results.flop_per_image, results.sent_per_image = model.flop_per_image(), model.sent_per_image
    if context.rank == 0:
        result_path.write_text(json.dumps(build_report(setup, results)))


@dataclass(frozen=True)
class Measurement(Generic[Result]):
    """One measurement: `take` takes it on all ranks, and `results` has it by its name afterwards."""

    name: str
    take: Callable[[], Result]
    results: dict[str, Result]

    def run(self) -> str:
        """Takes the measurement; returns the line that reports it."""
        result = self.results[self.name] = self.take()
        if isinstance(result, Limit):
            unit = "img" if result.unit == "pictures" else result.unit
            return f"{self.name}: {result.rate:,.0f} {unit}/s"
        return f"{self.name}: {result.median if isinstance(result, Timed) else result:,.0f} img/s"


def measurements(setup: RankSetup, model: ModelStages, small: Path, results: Results) -> list[Measurement[Any]]:
    """All that there is to measure here, in order, none of it begun."""
    context, config = setup.context, setup.config
    on_gpu, several = context.device_id is not None, context.world_size > 1
    available = limits.available(read_jpegs(setup.dataset, limits.IMAGES), setup.dataset, config, context)
    model_stages = {
        **({"copy": model.copy} if on_gpu and setup.settings.decode_on == "cpu" else {}),
        "feed": model.preprocess,
        **({"exchange": model.exchange} if several else {}),
        "forward": model.forward,
        "forward+backward": model.forward_backward,
        "model": model.update,
        "pipeline beside": lambda: model.beside[0],
        "model beside": lambda: model.beside[1],
        "train": model.train,
    }
    references = {
        RESUMED: lambda: model.resumed(results.stages["train"].median),
        NO_LRN: model.without_lrn,
        **({ONE_DEVICE: model.on_one_device} if several else {}),
    }
    stages = pipeline_stages(setup)
    return [
        Measurement("read", stages.pop("read"), results.stages),
        *(Measurement(name, take, results.limits) for name, take in available.items()),
        *(Measurement(name, take, results.stages) for name, take in stages.items()),
        *(Measurement(name, take, results.alternatives) for name, take in alternatives(setup, small).items()),
        *(Measurement(name, take, results.stages) for name, take in model_stages.items()),
        *(Measurement(name, take, results.references) for name, take in references.items()),
    ]


def pipeline_stages(setup: RankSetup) -> dict[str, Callable[[], Timed]]:
    """The stages that no model takes part in."""
    evaluated = "val" if "val" in setup.dataset.splits else "train"
    return {
        "read": lambda: read(setup),
        "decode": lambda: setup.time(setup.loader("decode").pipelines(0).run),
        "patch": lambda: setup.time(setup.loader("patch").pipelines(0).run),
        "pipeline": lambda: setup.time(setup.batches().__next__),
        "eval": lambda: setup.time(setup.loader("center", evaluated).pipelines(0).run),
    }


def read(setup: RankSetup) -> Timed:
    """The stage "read": a batch a step; cold, an epoch from its beginning."""
    loader = setup.loader("read")
    if not setup.config.cold:
        return setup.time(loader.pipelines(0).run)

    def epoch() -> None:
        limits.drop([Path(tar) for tar in loader.samples.tars])
        setup.context.barrier()  # otherwise one rank would read what another is about to drop
        pipe = loader.pipelines(0)
        for _ in range(loader.num_batches):
            pipe.run()

    return setup.time(epoch, loader.num_batches * setup.images)


def alternatives(setup: RankSetup, small: Path) -> dict[str, Callable[[], Timed]]:
    """The training pipeline with one thing changed, by that thing's name: what the advice rests on.

    Args: small: see `measure_rank`.
    """
    context, changes = setup.context, {}
    if setup.dataset.size is None:
        changes["256-shards"] = lambda: at_256(setup, small)
    if context.device_id is not None:
        other = "cpu" if setup.settings.decode_on == "device" else "device"
        changes[f"--decode-on {other}"] = lambda: setup.time(
            setup.batches(settings=setup.settings._replace(decode_on=other)).__next__
        )
    if context.world_size > 1:
        alone = context.rank_slice._replace(rank=0, world_size=1)
        changes[ALL_RANKS_DECODE_ALL] = lambda: setup.time(setup.batches(rank_slice=alone).__next__)
    return changes


def at_256(setup: RankSetup, small: Path) -> Timed:
    """The training pipeline on images that are stored at 256."""
    squares, world_size = Dataset.load(small / "shards"), setup.context.world_size
    images = squares.split("train").samples
    batch_size = min(setup.config.batch_size, images - images % world_size)
    return setup.time(setup.batches(squares, batch_size=batch_size).__next__, batch_size // world_size)
