"""What a run's model answers, for its page: kernels, confusions and guesses; and what is missing for them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from inference.figures import GUESSES, Shown, kernel_grids, names_by_number, some_images
from inference.predict import Answer, Predictor
from inference.trained import Trained
from pipeline.preview import TRANSPARENT
from report.runs import Run
from shards.dataset import Dataset
from shards.errors import InputError
from shards.remote import Remote, locate
from trainer.evaluate import EvalOptions, Measured, match_classes, measure
from trainer.launch import choose_device, launch
from trainer.rank import RankContext
from trainer.run_folder import as_begun, find_checkpoint, list_resumable

SPLIT = "val"
MOST_IN_BATCH = 128
KERNEL_SCALE = 4


class Guess(NamedTuple):
    """An image, the name of its class, and the model's five best guesses."""

    image: Shown
    answers: list[Answer]


@dataclass
class Answers:
    """file: of the checkpoint; kernels: a caption and a picture a tower; dataset: the run's, where it is at hand;
    measured: by the center crop of `val`; missing: what is not here, why, and how to get it."""

    file: Path | None = None
    kernels: list[tuple[str, Image.Image]] = field(default_factory=list)
    dataset: Dataset | None = None
    measured: Measured | None = None
    guesses: list[Guess] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def ask(run: Run, data: Path | Remote | None, which: str, device: str) -> Answers:
    """Asks a run's checkpoint. Args: data: the data set; None for that of `config.json`; which: newest or best.

    Raises InputError for a `data` that is none, or of other classes, and for a checkpoint that cannot be read.
    """
    answers = Answers()
    try:
        where = data or locate(run.config.data, run.config.cache, run.config.cache_size)
        answers.dataset = dataset = as_begun(Dataset.load(where), run.record)
    except InputError as error:
        if data:
            raise
        remedy = "give it with --data, as in `python cli.py report RUN --out FILE --data DIR`"
        answers.missing.append(f"Confusions, guesses and skipped images need the data set. {error}. Or {remedy}.")
    if not list_resumable(run.folder):
        answers.missing.append("Kernels, confusions and guesses need a checkpoint, and the run has written none yet.")
        return answers
    answers.file = find_checkpoint(run.folder, which)
    trained = Trained.load(answers.file, torch.device(choose_device(device, 1, quiet=True)))
    answers.words = trained.words
    answers.kernels = kernel_grids(trained, KERNEL_SCALE, TRANSPARENT)
    if answers.dataset is None:
        return answers
    if dataset.fingerprint != run.record["dataset"]:
        answers.missing.append(f"{dataset.where} is another data set than the run's: its answers are to that one.")
    if SPLIT not in dataset.splits:
        answers.missing.append(f"Confusions and guesses need a {SPLIT} split, and {dataset.where} has none.")
        return answers
    try:
        numbers = match_classes(dataset, trained.classes, answers.file)
    except InputError as error:
        if data:
            raise
        answers.missing.append(f"Confusions and guesses need the run's own data set: {error}, with --data.")
        return answers
    _answer(answers, trained, where, numbers, device)
    return answers


def _answer(
    answers: Answers, trained: Trained, where: Path | Remote, numbers: torch.Tensor | None, device: str
) -> None:
    """Adds what needs the model and the images."""
    assert answers.dataset and answers.file
    batch_size = min(MOST_IN_BATCH, answers.dataset.split(SPLIT).samples)
    options = EvalOptions((answers.file,), SPLIT, 1, batch_size, {}, as_json=False)
    launch(_measure, 1, device, where, options, numbers, answers)
    predictor = Predictor(trained, 10, 5)
    names = names_by_number(trained, answers.dataset, numbers)
    for image in some_images(answers.dataset, SPLIT, names, GUESSES, seed=0):
        answers.guesses.append(Guess(image, predictor.answers(image.jpeg)))


def _measure(
    context: RankContext, where: Path | Remote, options: EvalOptions, numbers: torch.Tensor | None, answers: Answers
) -> None:
    answers.measured = measure(context, where, options, numbers)
