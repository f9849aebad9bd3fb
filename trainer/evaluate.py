"""Top-1 and top-5 error on a split (paper, section 4.1: ten crops, their softmax outputs averaged)."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.loader import BAD_LABEL, Loader
from pipeline.preprocess import Preprocess
from pipeline.samples import notice
from shards.dataset import Dataset
from shards.errors import InputError
from shards.progress import Progress
from shards.remote import Remote
from shards.wording import counted
from trainer import checkpoint
from trainer.alexnet import AlexNet, model_from_config
from trainer.launch import launch
from trainer.metrics import error_text
from trainer.model_parallel import LayoutError
from trainer.precision import Precision
from trainer.rank import RankContext
from trainer.run_folder import find_checkpoint

TOP = 5  # of the classes


@torch.inference_mode()
def evaluate(
    model: AlexNet,
    loader: Loader,
    preprocess: Preprocess,
    context: RankContext,
    precision: Precision,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    class_numbers: torch.Tensor | None = None,
) -> dict[str, Any] | None:
    """{"top1_error", "top5_error" (fractions), "samples"}: every sample of the loader's split counts exactly once,
    except those that cannot be decoded.

    `loader` has view "center" or "ten". All processes get the same numbers. With at most five classes every
    answer is right in the top 5, and "top5_error" is None. None when `should_stop`, which is called before each batch,
    returns True.

    Args: class_numbers: the model's number of each of the loader's classes, int64, where they differ.
    """
    model.eval()
    replicas = model.layout.replicas
    counts = torch.zeros(3, dtype=torch.int64, device=context.device)  # right in top 1, right in top 5, samples
    for batch in loader.epoch(0):
        if should_stop():
            model.train()
            return None
        if class_numbers is not None:
            labels = torch.where(batch.labels == BAD_LABEL, BAD_LABEL, class_numbers[batch.labels])
            batch = batch._replace(labels=labels)
        images, labels = context.gather_batch(batch, preprocess)
        with precision.autocast():
            probabilities = model.probabilities(images.flatten(0, 1))
        probabilities = probabilities.view(len(labels), -1, probabilities.shape[1]).mean(dim=1)
        # How many of this replica's images are real: the last batch is padded
        valid = len(range(batch.valid)[replicas.rank * len(labels) : (replicas.rank + 1) * len(labels)])
        labels, probabilities = labels[:valid], probabilities[:valid]
        ranked = probabilities.topk(min(TOP, model.classes), dim=1).indices == labels[:, None]
        counts += torch.stack([ranked[:, 0].sum(), ranked.sum(), (labels != BAD_LABEL).sum()])
        if progress:
            progress.advance(batch.valid)
    model.train()
    right1, right5, samples = replicas.all_reduce(counts).tolist()
    top5_error = 1 - right5 / samples if model.classes > TOP else None
    return {"top1_error": 1 - right1 / samples, "top5_error": top5_error, "samples": samples}


@dataclass(frozen=True)
class EvalOptions:
    """What to evaluate and how.

    checkpoint: a file, or a run's folder for its newest; split: by name; crops: 1 or 10; batch_size: of the global
    batch, images; decoding: what is chosen of `pipeline.settings.Settings`, by name; as_json: print one JSON object.
    """

    checkpoint: Path
    split: str
    crops: int
    batch_size: int
    decoding: Mapping[str, Any]
    as_json: bool


def run_evaluation(data: Path | Remote, gpus: int | None, device: str, options: EvalOptions) -> None:
    """Evaluates a checkpoint, a file or the newest of a run's folder, and prints the result. Raises InputError, before
    any process is started, for a checkpoint that is none, or that knows other classes."""
    options = replace(options, checkpoint=find_checkpoint(options.checkpoint))
    dataset = Dataset.load(data)
    dataset.split(options.split)
    classes = tuple(checkpoint.load(options.checkpoint)["config"]["classes"])
    class_numbers = match_classes(dataset, classes, options.checkpoint)
    launch(evaluate_rank, gpus, device, data, options, class_numbers, batch_size=options.batch_size)


def match_classes(dataset: Dataset, trained: tuple[str, ...], file: Path) -> torch.Tensor | None:
    """The number that a checkpoint, trained on these classes, has for each of the data set's, by their names; None
    where all are the same.

    A data set whose classes have no names, only their numbers, has to have as many. Raises InputError naming the first
    class that the checkpoint does not know.
    """
    classes = dataset.classes
    if trained == classes:
        return None
    numbers = {tuple(map(str, range(len(classes))))}
    if len(trained) == len(classes) and numbers & {trained, classes}:
        unnamed = file if trained in numbers else dataset.where
        notice(f"the classes of {unnamed} have no names: they are taken to be those of the other by their numbers")
        return None
    known = {name: number for number, name in enumerate(trained)}
    for number, name in enumerate(classes):
        if name not in known:
            instead = f", where class {number} is {trained[number]}" if number < len(trained) else ""
            raise InputError(
                f"class {number} of {dataset.where}, {name}, is none of the {counted(trained, 'class')} that {file} "
                f"was trained on{instead}: give a data set of these classes"
            )
    notice(f"{dataset.where} has {len(classes)} of the {len(trained)} classes of {file}, or in another order: by name")
    return torch.tensor([known[name] for name in classes])


def evaluate_rank(
    context: RankContext, data: Path | Remote, options: EvalOptions, class_numbers: torch.Tensor | None
) -> None:
    """One rank's part of `run_evaluation`; the first prints the result."""
    dataset, file = Dataset.load(data), options.checkpoint
    state = checkpoint.parse(file)
    config = checkpoint.config_of(state, file)
    stats = checkpoint.stats_of(state, file, dataset, notice if context.rank == 0 else lambda text: None)
    try:
        model = model_from_config(config, len(state["config"]["classes"]), context.layout)
    except LayoutError as error:  # its remedy names --parallel, which `eval` does not have
        raise InputError(f"{error.problem}: choose --gpus 1") from None
    model.load_unsharded(state["parameters"])
    model.to(context.device)
    split, crops, batch_size = options.split, options.crops, options.batch_size
    view = "ten" if crops == 10 else "center"
    if crops == 10:  # ten times the memory and work an image
        batch_size = ten_crop_batch_size(batch_size, context.world_size)
    settings = context.settings(dict(options.decoding), dataset.size)
    loader = Loader(dataset, split, view, batch_size=batch_size, settings=settings, rank_slice=context.rank_slice)
    precision = evaluation_precision(config.precision, context)
    with Progress(f"eval {split}", len(loader.samples), quiet=context.rank > 0) as progress:
        preprocess = Preprocess(stats, config.mean, context.device, precision.dtype)
        result = evaluate(model, loader, preprocess, context, precision, progress, class_numbers=class_numbers)
    assert result is not None
    if context.rank == 0:
        show(options, state["step"], result)


def show(options: EvalOptions, step: int, result: dict[str, Any]) -> None:
    """The result on standard output."""
    file, split, crops = options.checkpoint, options.split, options.crops
    if options.as_json:
        print(json.dumps({"checkpoint": str(file), "step": step, "split": split, "crops": crops, **result}))
    else:
        print(
            f"{file}, {split} split, {counted(result['samples'], 'image')}, {counted(crops, 'crop')}: "
            f"{error_text(result, digits=2)}"
        )


def evaluation_precision(name: str, context: RankContext) -> Precision:
    """The precision that a run was trained in, or fp32, with a line on stderr, where the device does not have it."""
    if name == "tf32" and context.device.type != "cuda":
        if context.rank == 0:
            print(f"trained in {name}, which needs a CUDA device: evaluating in fp32", file=sys.stderr)
        name = "fp32"
    return Precision(name, context.device)


def ten_crop_batch_size(batch_size: int, world_size: int) -> int:
    """A tenth as many images, rounded up to a multiple of `world_size`, so that their ten crops fill about a batch."""
    return -(-batch_size // 10 // world_size) * world_size
