"""What a model takes images for: the best classes of each, by the paper's ten crops (section 4.1)."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from inference.trained import Trained
from pipeline.geometry import CENTER, CROP, FIVE_CROPS, SIZE
from shards.console import notice
from shards.errors import InputError, Unreadable
from shards.hidden import visible
from shards.images import read_square

SCHEMA = 1
STDIN = "-"


class Answer(NamedTuple):
    """A class that an image is taken for, and how likely the model thinks that is."""

    name: str
    words: str | None
    probability: float


def find_images(given: Sequence[str]) -> tuple[list[str], list[tuple[str, Unreadable]]]:
    """The files that arguments mean: "-" is an image on standard input, a folder all files in it and below that are not
    hidden, a pattern like photos/*.jpg what it matches; and each argument that means none, with the reason. Raises
    InputError when all are such."""
    files: list[str] = []
    missing: list[tuple[str, Unreadable]] = []
    for name in given:
        path = Path(name)
        if name == STDIN or path.is_file():
            found = [name]
        elif path.is_dir():
            found = [str(file) for file in visible(path, "**/*") if file.is_file()]
        else:
            pattern = path.relative_to(path.anchor)
            found = sorted(map(str, Path(path.anchor).glob(str(pattern)))) if pattern.name else []
        if not found:
            missing.append((name, Unreadable("a folder without files" if path.is_dir() else "there is no such file")))
        files += found
    if not files:
        raise InputError(f"{given[0]}: there is no such image: give files, folders, or a pattern that matches some")
    return files, missing


def read(file: str) -> bytes:
    """An image's bytes. Raises Unreadable."""
    try:
        return sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
    except OSError as error:
        raise Unreadable(str(error.strerror)) from None


def crops(square: np.ndarray, count: int) -> np.ndarray:
    """The center crop (count 1) or the paper's ten, count x 224 x 224 x 3, of a 256 x 256 x 3 patch."""
    if count == 1:
        return square[None, CENTER : CENTER + CROP, CENTER : CENTER + CROP]
    views = np.stack([square[y : y + CROP, x : x + CROP] for y, x in FIVE_CROPS])
    return np.concatenate([views, views[:, :, ::-1]])


class Predictor:
    """Answers for one image after another.

    Args: crops: 1, or 10, whose softmax outputs are averaged; top: how many classes to name.
    """

    def __init__(self, trained: Trained, crops: int, top: int):
        self.trained, self.crops = trained, crops
        self.top = min(top, len(trained.classes))
        self.preprocess = trained.preprocess()

    @torch.inference_mode()
    def answers(self, data: bytes) -> list[Answer]:
        """The likeliest classes of an image, the best first. Raises Unreadable."""
        patch = np.asarray(read_square(data, SIZE))
        views = torch.from_numpy(np.ascontiguousarray(crops(patch, self.crops))).to(self.trained.device)
        best = self.trained.model.probabilities(self.preprocess(views, None)).mean(dim=0).topk(self.top)
        names = [self.trained.classes[number] for number in best.indices.tolist()]
        return [
            Answer(name, self.trained.words.get(name), probability)
            for name, probability in zip(names, best.values.tolist(), strict=True)
        ]

    def of_files(self, files: Iterable[str]) -> Iterator[tuple[str, list[Answer] | Unreadable]]:
        """Each file and its answers, or why it cannot be read."""
        for file in files:
            try:
                yield file, self.answers(read(file))
            except Unreadable as error:
                yield file, error


def run(predictor: Predictor, files: Iterable[str], missing: Iterable[tuple[str, Unreadable]], as_json: bool) -> bool:
    """Prints the answers to all files, names those that cannot be read or are missing on standard error, and returns
    whether all could be read."""
    images: list[dict[str, Any]] = []
    unreadable: list[dict[str, str]] = []
    for file, answers in chain(missing, predictor.of_files(files)):
        if isinstance(answers, Unreadable):
            unreadable.append({"file": file, "reason": str(answers)})
            notice(f"{file} cannot be read: {answers}")
        elif as_json:
            images.append({"file": file, "top": [answer._asdict() for answer in answers]})
        else:
            print(file, *map(_line, answers), sep="\n", flush=True)
    if as_json:
        trained = predictor.trained
        about = {"schema": SCHEMA, "checkpoint": str(trained.file), "step": trained.step, "crops": predictor.crops}
        print(json.dumps({**about, "images": images, "unreadable": unreadable}, indent=1))
    return not unreadable


def _line(answer: Answer) -> str:
    return f"  {answer.probability:6.1%}  {answer.name}{f'  {answer.words}' if answer.words else ''}"
