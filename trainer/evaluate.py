"""Top-1 and top-5 error on a split (paper, section 4.1: ten crops, their softmax outputs averaged)."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from pipeline.loader import BAD_LABEL, Batch, Loader
from pipeline.preprocess import Preprocess
from shards.console import notice
from shards.dataset import Dataset
from shards.errors import InputError
from shards.progress import Progress
from shards.remote import Remote
from shards.wording import counted
from trainer import checkpoint
from trainer.alexnet import AlexNet, model_from_config
from trainer.confusions import Confusions
from trainer.launch import launch
from trainer.metrics import error_text
from trainer.model_parallel import LayoutError
from trainer.precision import Precision
from trainer.rank import RankContext

TOP = 5  # of the classes


class Ensemble(nn.Module):
    """Models of the same classes that answer together: the mean of their softmax outputs, as the paper's ensembles."""

    def __init__(self, models: Sequence[AlexNet]):
        super().__init__()
        self.models = nn.ModuleList(models)
        self.layout, self.classes = models[0].layout, models[0].classes

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """N x classes."""
        return torch.stack([model.probabilities(images) for model in self.models]).mean(dim=0)  # type: ignore[operator]


@torch.inference_mode()
def evaluate(
    model: AlexNet | Ensemble,
    batches: Iterable[Batch],
    preprocess: Preprocess,
    context: RankContext,
    precision: Precision,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    confusion: torch.Tensor | None = None,
) -> dict[str, Any] | None:
    """{"top1_error", "top5_error" (fractions), "samples"}: every sample of the batches, those of a loader with view
    "center" or "ten", counts exactly once, except those that cannot be decoded.

    All processes get the same numbers. With at most five classes every answer is right in the top 5, and "top5_error"
    is None. None when `should_stop`, which is called before each batch, returns True.

    Args: confusion: classes x classes int64, to which is added how many images of each class (a row) were taken for
    each (a column).
    """
    model.eval()
    replicas = model.layout.replicas
    counts = torch.zeros(3, dtype=torch.int64, device=context.device)  # right in top 1, right in top 5, samples
    for batch in batches:
        if should_stop():
            model.train()
            return None
        images, labels = context.gather_batch(batch, preprocess)
        with precision.autocast():
            probabilities = model.probabilities(images.flatten(0, 1))
        probabilities = probabilities.view(len(labels), -1, probabilities.shape[1]).mean(dim=1)
        # How many of this replica's images are real: the last batch is padded
        valid = len(range(batch.valid)[replicas.rank * len(labels) : (replicas.rank + 1) * len(labels)])
        labels, probabilities = labels[:valid], probabilities[:valid]
        best = probabilities.topk(min(TOP, model.classes), dim=1).indices
        ranked, counted_labels = best == labels[:, None], labels != BAD_LABEL
        counts += torch.stack([ranked[:, 0].sum(), ranked.sum(), counted_labels.sum()])
        if confusion is not None:
            pairs = labels[counted_labels], best[counted_labels, 0]
            confusion.index_put_(pairs, confusion.new_ones(()), accumulate=True)
        if progress:
            progress.advance(batch.valid)
    model.train()
    if confusion is not None:
        replicas.all_reduce(confusion)
    right1, right5, samples = replicas.all_reduce(counts).tolist()
    top5_error = 1 - right5 / samples if model.classes > TOP else None
    return {"top1_error": 1 - right1 / samples, "top5_error": top5_error, "samples": samples}


def renumbered(batches: Iterable[Batch], numbers: torch.Tensor | None) -> Iterator[Batch]:
    """The batches with other class numbers. Args: numbers: int64, that of each of theirs; None for the same."""
    for batch in batches:
        if numbers is not None:
            labels = torch.where(batch.labels == BAD_LABEL, BAD_LABEL, numbers[batch.labels])
            batch = batch._replace(labels=labels)
        yield batch


@dataclass(frozen=True)
class EvalOptions:
    """What to evaluate and how.

    checkpoints: files, of which several answer together; split: by name; crops: 1 or 10; batch_size: of the global
    batch, images; decoding: what is chosen of `pipeline.settings.Settings`, by name; as_json: print one JSON object;
    per_class: also tell each class's error, and what is taken for what.
    """

    checkpoints: tuple[Path, ...]
    split: str
    crops: int
    batch_size: int
    decoding: Mapping[str, Any]
    as_json: bool
    per_class: bool = False


def run_evaluation(data: Path | Remote, gpus: int | None, device: str, options: EvalOptions) -> None:
    """Evaluates a checkpoint, or several together, and prints the result. Raises InputError, before any process is
    started, for a checkpoint that is none, or that knows other classes, and for several that cannot answer together."""
    dataset = Dataset.load(data)
    dataset.split(options.split)
    first, *others = options.checkpoints
    state = checkpoint.load(first)
    for file in others:
        _check_same(first, state, file, checkpoint.load(file))
    class_numbers = match_classes(dataset, tuple(state["config"]["classes"]), first)
    launch(evaluate_rank, gpus, device, data, options, class_numbers, batch_size=options.batch_size)


def _check_same(first: Path, one: dict[str, Any], file: Path, other: dict[str, Any]) -> None:
    """Raises InputError unless two checkpoints answer about the same classes from the same input."""
    for what in ("classes", "mean"):
        if one["config"][what] != other["config"][what]:
            raise InputError(f"{first} and {file} differ in their {what}: give checkpoints that agree in them")
    if one["stats"].keys() != other["stats"].keys() or not all(
        torch.equal(tensor, other["stats"][name]) for name, tensor in one["stats"].items()
    ):
        raise InputError(f"{first} and {file} subtract other mean images: give checkpoints of the same training set")


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
    found = f"{dataset.where} has {len(classes)} of the {len(trained)} classes of {file}, perhaps in another order"
    notice(f"{found}: they are matched by name")
    return torch.tensor([known[name] for name in classes])


class Measured(NamedTuple):
    """result: what `evaluate` returned; confusions: what was taken for what; steps: of the checkpoints; bad: why
    images that this rank was given cannot be decoded, by their names."""

    result: dict[str, Any]
    confusions: Confusions
    steps: list[int]
    bad: dict[str, str]


def evaluate_rank(
    context: RankContext, data: Path | Remote, options: EvalOptions, class_numbers: torch.Tensor | None
) -> None:
    """One rank's part of `run_evaluation`; the first prints the result."""
    measured = measure(context, data, options, class_numbers)
    if context.rank == 0:
        show(options, measured.steps, measured.result, measured.confusions)


def measure(
    context: RankContext, data: Path | Remote, options: EvalOptions, class_numbers: torch.Tensor | None
) -> Measured:
    """One rank's part of an evaluation; all ranks get the result. Args: class_numbers: of `match_classes`."""
    dataset, states = Dataset.load(data), [checkpoint.parse(file) for file in options.checkpoints]
    file, state = options.checkpoints[0], states[0]
    config = checkpoint.config_of(state, file)
    stats = checkpoint.stats_of(state, file, dataset, notice if context.rank == 0 else lambda text: None)
    loaded = [_model(one, name, context) for one, name in zip(states, options.checkpoints, strict=True)]
    model = loaded[0] if len(loaded) == 1 else Ensemble(loaded)
    split, crops, batch_size = options.split, options.crops, options.batch_size
    view = "ten" if crops == 10 else "center"
    if crops == 10:  # ten times the memory and work an image
        batch_size = ten_crop_batch_size(batch_size, context.world_size)
    settings = context.settings(dict(options.decoding), dataset.size)
    loader = Loader(dataset, split, view, batch_size=batch_size, settings=settings, rank_slice=context.rank_slice)
    precision = evaluation_precision(config.precision, context)
    classes = state["config"]["classes"]
    confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64, device=context.device)
    with Progress(f"eval {split}", len(loader.samples), quiet=context.rank > 0) as progress:
        preprocess = Preprocess(stats, config.mean, context.device, precision.dtype)
        batches = renumbered(loader.epoch(0), class_numbers)
        result = evaluate(model, batches, preprocess, context, precision, progress, confusion=confusion)
    assert result is not None
    steps = [one["step"] for one in states]
    return Measured(result, Confusions(confusion, classes, dataset.words), steps, loader.bad_samples.named())


def _model(state: dict[str, Any], file: Path, context: RankContext) -> AlexNet:
    """A checkpoint's model, this rank's part, on its device."""
    try:
        classes = len(state["config"]["classes"])
        model = model_from_config(checkpoint.config_of(state, file), classes, context.layout)
    except LayoutError as error:  # its remedy names --parallel, which `eval` does not have
        raise InputError(f"{error.problem}: choose --gpus 1") from None
    model.load_unsharded(state["parameters"])
    return model.to(context.device)


def show(options: EvalOptions, steps: list[int], result: dict[str, Any], confusions: Confusions) -> None:
    """The result on standard output."""
    files, split, crops = [*map(str, options.checkpoints)], options.split, options.crops
    if options.as_json:
        several = {"checkpoints": files, "steps": steps} if len(files) > 1 else {}
        about = {"checkpoint": files[0], "step": steps[0], **several, "split": split, "crops": crops, **result}
        print(json.dumps(about | (confusions.described() if options.per_class else {})))
        return
    print(
        f"{' + '.join(files)}, {split} split, {counted(result['samples'], 'image')}, {counted(crops, 'crop')}: "
        f"{error_text(result, digits=2)}"
    )
    if options.per_class:
        print(confusions.table())


def evaluation_precision(name: str, context: RankContext) -> Precision:
    """The precision that a run was trained in, or fp32, with a line on stderr, where the device does not have it."""
    if name == "tf32" and context.device.type != "cuda":
        if context.rank == 0:
            notice(f"trained in {name}, which needs a CUDA device: evaluating in fp32")
        name = "fp32"
    return Precision(name, context.device)


def ten_crop_batch_size(batch_size: int, world_size: int) -> int:
    """A tenth as many images, rounded up to a multiple of `world_size`, so that their ten crops fill about a batch."""
    return -(-batch_size // 10 // world_size) * world_size
