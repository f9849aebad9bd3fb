"""Pictures of what the net is fed, and of what it learned: arrays in, one labelled grid out."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from pipeline.stats import Stats

GAP = 2  # pixels between tiles
CAPTION = 14  # pixels of text above a tile


def tiles(pictures: np.ndarray, columns: int, captions: Sequence[str] | None = None, scale: int = 1) -> Image.Image:
    """N x H x W x 3 uint8 pictures as a grid, row by row, each enlarged `scale` times under its caption."""
    height, width = (side * scale for side in pictures.shape[1:3])
    head = CAPTION if captions else 0
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + head + GAP) - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        x, y = i % columns * (width + GAP), i // columns * (height + head + GAP)
        if captions:
            draw.text((x, y), captions[i][: width // 6], fill="black")
        sheet.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST), (x, y + head))
    return sheet


def fed_batch(images: np.ndarray, labels: Sequence[int], classes: Sequence[str], stats: Stats) -> Image.Image:
    """A batch as the net is fed it (N x 3 x 224 x 224 float), the mean image put back so that an eye can read it."""
    pictures = (images + stats.mean_crop()).clip(0, 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    return tiles(pictures, columns=8, captions=[classes[label] for label in labels])


def kernels(weights: np.ndarray) -> Image.Image:
    """The first layer's kernels (K x 3 x 11 x 11), each stretched to the whole scale of grey, as in figure 3: tower 0's
    half above tower 1's."""
    low, high = weights.min(axis=(1, 2, 3), keepdims=True), weights.max(axis=(1, 2, 3), keepdims=True)
    pictures = ((weights - low) / np.maximum(high - low, 1e-12) * 255).round().astype(np.uint8)
    a_tower = len(weights) // 2
    columns = max(divisor for divisor in range(1, 17) if a_tower % divisor == 0)
    return tiles(pictures.transpose(0, 2, 3, 1), columns=columns, scale=4)
