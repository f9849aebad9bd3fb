"""The paper's figures 3 and 4 from a run of one's own: kernels, guesses, and nearest neighbors in the last hidden
layer."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from inference.predict import Answer, Predictor, crops
from inference.trained import Trained
from pipeline.geometry import SIZE
from pipeline.preview import tiles, write
from pipeline.samples import Samples
from shards.dataset import Dataset
from shards.errors import Unreadable
from shards.images import read_square
from shards.progress import Progress
from trainer.evaluate import match_classes
from trainer.kernels import columns_of, kernel_images

INK, PALE, RIGHT, WRONG = "#1f2328", "#59636e", "#f28b90", "#a8c7ee"  # of text, of remarks, of bars
MARGIN, LINE = 24, 20  # pixels
KERNEL_COLUMNS, KERNEL_SCALE = 12, 8  # of conv1.png
GUESSES, QUERIES, NEIGHBORS = 8, 5, 6  # images of figure 4
FEATURES_BATCH = 32


class Shown(NamedTuple):
    """An image of a data set: its 256 x 256 x 3 patch, the name of its class, its stored bytes."""

    patch: np.ndarray
    name: str
    jpeg: bytes


def draw_all(trained: Trained, dataset: Dataset, split: str, out: Path, seed: int, search: int) -> list[str]:
    """Writes conv1.png, guesses.png and neighbors.png into a folder; a line for each.

    Args: split: of the images to guess; search: how many training images to look for neighbors in.
    """
    out.mkdir(parents=True, exist_ok=True)
    names = names_by_number(trained, dataset, match_classes(dataset, trained.classes, trained.file))
    asked = list(some_images(dataset, split, names, GUESSES, seed))
    nearest = neighbors(trained, dataset, names, asked, search)
    pictures = {
        "conv1.png": ("the first layer's kernels, as figure 3", kernels(trained)),
        "guesses.png": ("guesses at images, as figure 4, left", guesses(trained, asked)),
        "neighbors.png": ("the nearest training images, as figure 4, right", nearest),
    }
    for name, (_, picture) in pictures.items():
        write(picture, out / name)
    return [f"{out / name}: {what}" for name, (what, _) in pictures.items()]


def names_by_number(trained: Trained, dataset: Dataset, numbers: torch.Tensor | None) -> list[str]:
    """The name of each of a data set's classes. Args: numbers: of `match_classes`."""
    return [trained.classes[number] for number in (range(len(dataset.classes)) if numbers is None else numbers)]


def some_images(dataset: Dataset, split: str, names: list[str], count: int, seed: int) -> Iterator[Shown]:
    """Random images of a split, those that can be read, all of a smaller one."""
    samples = Samples(dataset, split)
    ends = np.cumsum(samples.shard_sizes)
    for number in np.random.default_rng(seed).permutation(len(samples)):
        if count == 0:
            return
        shard = int(np.searchsorted(ends, number, side="right"))
        sample = (shard, int(number - ends[shard] + samples.shard_sizes[shard]))
        jpeg = samples.jpeg(sample)
        try:
            patch = np.asarray(read_square(jpeg, SIZE))
        except Unreadable:
            continue
        count -= 1
        yield Shown(patch, names[samples.label(sample)], jpeg)


def kernel_grids(trained: Trained, scale: int, ground: str = "white") -> list[tuple[str, Image.Image]]:
    """What each tower's grid of conv1's kernels shows, and the grid. Args: scale: the side, pixels, that a pixel is
    drawn with; ground: the color between the kernels."""
    towers = kernel_images(trained.model)
    names = [f"Tower {number + 1}" if len(towers) > 1 else "One tower" for number in range(len(towers))]
    return [
        (
            f"{name}: {len(images)} kernels of 11 x 11 x 3 in conv1, after step {trained.step:,}",
            tiles(images, columns=columns_of(len(images), KERNEL_COLUMNS), scale=scale, ground=ground),
        )
        for name, images in zip(names, towers, strict=True)
    ]


def kernels(trained: Trained) -> Image.Image:
    """conv1's kernels, large, the towers apart, each under its caption."""
    grids, line = kernel_grids(trained, scale=KERNEL_SCALE), 2 * LINE
    remark = "The first layer's kernels (the paper's figure 3), each stretched to the full range of its colors."
    height = MARGIN + line + sum(grid.height + line + MARGIN for _, grid in grids)
    sheet = Image.new("RGB", (max(grids[0][1].width, 880) + 2 * MARGIN, height), "white")
    _text(sheet, (MARGIN, MARGIN), remark, PALE, 18)
    y = MARGIN + line
    for caption, grid in grids:
        _text(sheet, (MARGIN, y), caption, INK, 22)
        sheet.paste(grid, (MARGIN, y + line))
        y += line + grid.height + MARGIN
    return sheet


def guesses(trained: Trained, asked: list[Shown]) -> Image.Image:
    """Images, what they are, and the model's five best guesses with bars; the right one's bar is red."""
    predictor, columns = Predictor(trained, 10, 5), 4
    width, height = SIZE + MARGIN, SIZE + 7 * LINE + MARGIN
    sheet = Image.new("RGB", (columns * width + MARGIN, -(-len(asked) // columns) * height + MARGIN), "white")
    for number, image in enumerate(asked):
        x, y = MARGIN + number % columns * width, MARGIN + number // columns * height
        sheet.paste(Image.fromarray(image.patch), (x, y))
        _text(sheet, (x, y + SIZE + 4), _short(trained.words.get(image.name, image.name)))
        _bars(sheet, (x, y + SIZE + 4 + LINE), predictor.answers(image.jpeg), image.name)
    return sheet


def _bars(sheet: Image.Image, corner: tuple[int, int], answers: list[Answer], right: str) -> None:
    draw, (x, y) = ImageDraw.Draw(sheet), corner
    for answer in answers:
        fill = RIGHT if answer.name == right else WRONG
        draw.rectangle((x, y + 2, x + max(1, round(answer.probability * SIZE)), y + LINE - 3), fill=fill)
        _text(sheet, (x + 4, y), _short(answer.words or answer.name))
        y += LINE


def neighbors(trained: Trained, dataset: Dataset, names: list[str], asked: list[Shown], search: int) -> Image.Image:
    """Images and, right of each, the training images whose outputs of fc7 are nearest to its own (Euclidean)."""
    asked = asked[:QUERIES]
    wanted = features(trained, asked)
    known: list[Shown] = []
    distances: list[torch.Tensor] = []
    total = min(search, dataset.split("train").samples)
    images = some_images(dataset, "train", names, total, seed=0)
    with Progress("neighbors", total) as progress:
        while batch := list(itertools.islice(images, FEATURES_BATCH)):
            known += batch
            distances.append(torch.cdist(wanted, features(trained, batch)))
            progress.advance(len(batch))
    nearest = torch.cat(distances, dim=1).topk(min(NEIGHBORS, len(known)), largest=False).indices.tolist()
    rows = [[image, *(known[i] for i in row)] for image, row in zip(asked, nearest, strict=True)]
    side, gap = SIZE // 2, MARGIN // 2
    cell, columns = (side + gap, side + LINE + gap), len(rows[0])
    sheet = Image.new("RGB", (2 * MARGIN + columns * cell[0] + gap, MARGIN + LINE + len(rows) * cell[1] + gap), "white")
    _text(sheet, (MARGIN, gap), "Asked")
    _text(sheet, (MARGIN + cell[0] + 2 * gap, gap), f"Nearest of {len(known):,} training images")
    for down, row in enumerate(rows):
        for across, image in enumerate(row):
            corner = (MARGIN + across * cell[0] + (2 * gap if across else 0), MARGIN + LINE + down * cell[1])
            sheet.paste(Image.fromarray(image.patch).resize((side, side), Image.Resampling.BILINEAR), corner)
            words = trained.words.get(image.name, image.name)
            _text(sheet, (corner[0], corner[1] + side), _short(words, 18), PALE, 12)
    return sheet


@torch.inference_mode()
def features(trained: Trained, images: list[Shown]) -> torch.Tensor:
    """fc7's output for each image's center crop, N x neurons."""
    kept: list[torch.Tensor] = []
    handle = trained.model.fc8.register_forward_pre_hook(lambda layer, inputs: kept.append(inputs[0]))
    try:
        views = np.concatenate([crops(image.patch, 1) for image in images])
        trained.model(trained.preprocess()(torch.from_numpy(views).to(trained.device), None))
    finally:
        handle.remove()
    return kept[0].cpu()


def _short(text: str, most: int = 34) -> str:
    text = text.split(",")[0]
    return text if len(text) <= most else text[: most - 1] + "…"


def _text(sheet: Image.Image, corner: tuple[float, float], text: str, fill: str = INK, size: int = 14) -> None:
    ImageDraw.Draw(sheet).text(corner, text, fill=fill, font=ImageFont.load_default(size))
