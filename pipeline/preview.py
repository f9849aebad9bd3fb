"""Images of what the model sees: arrays in, one labeled grid out."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from pipeline.geometry import CENTER, CROP, rectangle
from pipeline.loader import Batch, Loader
from pipeline.order import Augmentation
from pipeline.settings import Settings
from pipeline.stats import Stats
from shards.atomic import atomic_write
from shards.dataset import Dataset
from shards.formats import open_image

GAP = 2  # pixels between tiles
CAPTION, LETTERS = 24, 16  # pixels of a caption above a tile, and of its letters
COLUMNS = 4  # of images and what becomes of them
TRANSPARENT = "#0000"
INK, RECTANGLE, AROUND = "#1f2328", "#e5342b", "#fff"


class Tile(NamedTuple):
    """An image, 224 x 224 x 3 uint8, and what is written above it."""

    image: np.ndarray
    caption: str


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
    for i, image in enumerate(images):
        x, y = i % columns * (width + GAP), i // columns * (height + head + GAP)
        if captions:
            write_text(sheet, (x + 2, y + 2), captions[i], width - 4)
        sheet.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), (x, y + head))
    return sheet


def write_text(sheet: Image.Image, corner: tuple[int, int], text: str, most: int) -> None:
    """A line, cut off with an ellipsis where it is wider than `most` pixels."""
    font = ImageFont.load_default(LETTERS)
    shown = text
    while len(shown) > 1 and font.getlength(shown) > most:
        shown = shown[:-2] + "…"
    ImageDraw.Draw(sheet).text(corner, shown, fill=INK, font=font)


def batch_grid(batch: Batch, classes: Sequence[str]) -> Image.Image:
    """A training batch as the model sees it, its colors shifted, but the mean not subtracted, for human eyes."""
    images = batch.images.cpu().float()
    if batch.color_shift is not None:
        images += batch.color_shift[:, None, None, :]
    captions = [classes[int(label)] for label in batch.labels]
    return tiles(images.clamp(0, 255).round().byte().numpy(), columns=min(8, len(images)), captions=captions)


def sheet(dataset: Dataset, split: str, stats: Stats | None, images: int, seed: int) -> Image.Image:
    """Some images of a split, or all of a smaller one, each beside what the model is fed of it, a rectangle on the
    image showing where that is; then the ten test crops of the split's first image.

    Args: stats: those of the training set: the images are an epoch's first and are shown cropped, flipped if drawn so,
    and with their color shift; None: they are cropped as for testing.
    """
    images = min(images, dataset.split(split).samples)
    shown = [*(_trained(dataset, split, stats, images, seed) if stats else _tested(dataset, split, images))]
    rows = tiles(np.stack([tile.image for tile in shown]), COLUMNS, [tile.caption for tile in shown])
    ten = next(_loader(dataset, split, "ten", 1).epoch(0)).images[0].numpy()
    names = ["top left", "top right", "bottom left", "bottom right", "center"]
    crops = tiles(ten, len(names), names + [f"{name}, flipped" for name in names])
    crops = crops.resize((rows.width, round(crops.height * rows.width / crops.width)), Image.Resampling.LANCZOS)
    both = Image.new("RGB", (rows.width, rows.height + 10 * GAP + CAPTION + crops.height), "white")
    both.paste(rows, (0, 0))
    write_text(both, (2, rows.height + 10 * GAP), f"The ten test crops of the first image of {split}:", both.width)
    both.paste(crops, (0, both.height - crops.height))
    return both


def _loader(
    dataset: Dataset, split: str, view: str, batch_size: int, augmentation: Augmentation | None = None
) -> Loader:
    settings, augmentation = Settings(threads=1), augmentation or Augmentation()
    return Loader(dataset, split, view, batch_size=batch_size, settings=settings, augmentation=augmentation)


def _trained(dataset: Dataset, split: str, stats: Stats, images: int, seed: int) -> Iterator[Tile]:
    """Four tiles an image: the image, its crop, the crop flipped, and with its color shift."""
    train = _loader(dataset, split, "train", images, Augmentation(stats, seed))
    batch, (down, across, flips, shifts) = next(train.epoch(0)), train.draws(0, 0)
    assert shifts is not None
    for i, (shard, sample) in enumerate(train.order(0)[0].tolist()):
        flipped = batch.images[i].numpy()
        shifted = (flipped + shifts[i]).clip(0, 255).round().astype(np.uint8)
        jpeg = train.samples.jpeg((shard, sample))
        yield Tile(_complete(jpeg, float(down[i]), float(across[i])), _name(dataset, int(batch.labels[i])))
        yield Tile(flipped[:, :: -1 if flips[i] else 1], "cropped")
        yield Tile(flipped, "flipped" if flips[i] else "not flipped")
        yield Tile(shifted, f"color {', '.join(f'{part:+.0f}' for part in shifts[i])}")


def _tested(dataset: Dataset, split: str, images: int) -> Iterator[Tile]:
    """Two tiles an image: the image, and its center crop. The images are spread over the split, for it may be stored
    class by class."""
    loader = _loader(dataset, split, "center", 1)
    for number in range(images):
        start = number * loader.num_batches // images
        batch, ((shard, sample),) = next(loader.epoch(0, start)), loader.order(0)[start].tolist()
        jpeg = loader.samples.jpeg((shard, sample))
        yield Tile(_complete(jpeg, CENTER, CENTER), _name(dataset, int(batch.labels[0])))
        yield Tile(batch.images[0, 0].numpy().copy(), "center crop")


def _name(dataset: Dataset, label: int) -> str:
    if label < 0:
        return "cannot be decoded"
    name = dataset.classes[label]
    return dataset.words.get(name, name)


def _complete(jpeg: bytes, down: float, across: float) -> np.ndarray:
    """An image scaled to fit a tile, with the rectangle that a crop at this offset of its patch shows."""
    image = ImageOps.exif_transpose(open_image(jpeg)).convert("RGB")
    scale = CROP / max(image.size)
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    corners = [round(side * scale) for side in rectangle(image.width, image.height, down, across)]
    box = (corners[0], corners[1], min(corners[2], small.width) - 1, min(corners[3], small.height) - 1)
    draw = ImageDraw.Draw(small)
    draw.rectangle(box, outline=AROUND, width=4)
    draw.rectangle((box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1), outline=RECTANGLE, width=2)
    return np.asarray(ImageOps.pad(small, (CROP, CROP), color="white"))


def write(image: Image.Image, path: Path) -> None:
    """Writes an image in the format of the path's suffix, completely or not at all."""
    with atomic_write(path) as file:
        image.save(file, Image.registered_extensions()[path.suffix.lower()], quality=95)
