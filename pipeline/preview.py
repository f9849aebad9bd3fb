"""Images of what the model sees: arrays in, one labeled grid out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from pipeline.geometry import CROP
from pipeline.loader import Batch, Loader
from pipeline.order import Augmentation
from pipeline.settings import Settings
from pipeline.stats import Stats
from shards.atomic import atomic_write
from shards.dataset import Dataset
from shards.formats import open_image

GAP = 2  # pixels between tiles
TRANSPARENT = "#0000"
CAPTION = 14  # pixels of text above a tile


def tiles(
    images: np.ndarray, columns: int, captions: Sequence[str] | None = None, scale: int = 1, ground: str = "white"
) -> Image.Image:
    """N x H x W x 3 uint8 images as a grid, row by row, each enlarged `scale` times under its caption. Args: ground:
    the color between them, or TRANSPARENT."""
    height, width = (side * scale for side in images.shape[1:3])
    head = CAPTION if captions else 0
    rows = -(-len(images) // columns)
    size = columns * (width + GAP) - GAP, rows * (height + head + GAP) - GAP
    sheet = Image.new("RGBA" if ground == TRANSPARENT else "RGB", size, ground)
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        x, y = i % columns * (width + GAP), i // columns * (height + head + GAP)
        if captions:
            draw.text((x, y), captions[i][: width // 6], fill="black")
        sheet.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), (x, y + head))
    return sheet


def batch_grid(batch: Batch, classes: Sequence[str]) -> Image.Image:
    """A training batch as the model sees it, its colors shifted, but the mean not subtracted, for human eyes."""
    images = batch.images.cpu().float()
    if batch.color_shift is not None:
        images += batch.color_shift[:, None, None, :]
    return tiles(
        images.clamp(0, 255).round().byte().numpy(), columns=8, captions=[classes[int(label)] for label in batch.labels]
    )


def sheet(dataset: Dataset, stats: Stats, images: int, seed: int) -> Image.Image:
    """The first images of an epoch, or all of a smaller split, a row each: decoded, cropped, flipped if drawn so, and
    with their color shift; then the ten test crops of the first image of the split."""
    images, settings = min(images, dataset.split("train").samples), Settings(threads=1)
    train = Loader(
        dataset, "train", "train", batch_size=images, settings=settings, augmentation=Augmentation(stats, seed)
    )
    batch, (_, _, flips, shifts) = next(train.epoch(0)), train.draws(0, 0)
    assert shifts is not None
    rows, captions = [], []
    for i, (shard, sample) in enumerate(train.order(0)[0].tolist()):
        flipped = batch.images[i].numpy()
        shifted = (flipped + shifts[i]).clip(0, 255).round().astype(np.uint8)
        rows += [_complete(train.samples.jpeg((shard, sample))), flipped[:, :: -1 if flips[i] else 1], flipped, shifted]
        name = dataset.classes[int(batch.labels[i])]
        shift_text = ", ".join(f"{part:+.0f}" for part in shifts[i])
        captions += [
            dataset.words.get(name, name),
            "cropped",
            "flipped" if flips[i] else "not flipped",
            f"color {shift_text}",
        ]
    ten = next(Loader(dataset, "train", "ten", batch_size=1, settings=settings).epoch(0)).images[0].numpy()
    names = ["top left", "top right", "bottom left", "bottom right", "center"]
    names += [f"{name}, flipped" for name in names]
    rows_grid, crops = tiles(np.stack(rows), columns=4, captions=captions), tiles(ten, columns=5, captions=names)
    both = Image.new("RGB", (max(rows_grid.width, crops.width), rows_grid.height + crops.height + 10 * GAP), "white")
    both.paste(rows_grid, (0, 0))
    both.paste(crops, (0, rows_grid.height + 10 * GAP))
    return both


def write(image: Image.Image, path: Path) -> None:
    """Writes an image in the format of the path's suffix, completely or not at all."""
    with atomic_write(path) as file:
        image.save(file, Image.registered_extensions()[path.suffix.lower()], quality=95)


def _complete(jpeg: bytes) -> np.ndarray:
    """An image scaled to fit a tile."""
    image = ImageOps.exif_transpose(open_image(jpeg)).convert("RGB")
    return np.asarray(ImageOps.pad(image, (CROP, CROP), color="white"))
