"""A rendered data set, for a machine that holds none: ten classes of shapes and textures in random colors.

Form alone identifies a class: colors, background, context, size and (where the form allows) rotation are drawn at
random, and no class turns into another when mirrored.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from shards.errors import InputError

# Forms are drawn over a mask of this many pixels a side, then scaled to the image
MASK = 256

Mask = npt.NDArray[np.bool_]
Grid = npt.NDArray[np.float64]


def render_folders(root: Path, *, classes: int = 10, train: int, val: int, seed: int = 0) -> None:
    """Writes `train/CLASS/NNNN.jpg` and `val/CLASS/NNNN.jpg`, `train` and `val` images in all, the same for a seed.

    Images are 256 to 320 pixels on the shorter side. Raises InputError when there are fewer classes than that, or too
    few images.
    """
    if not 2 <= classes <= len(FORMS):
        raise InputError(f"rendered classes: {classes} asked for, there are 2 to {len(FORMS)}")
    if train < classes:
        raise InputError(f"rendered images: {train} for training are fewer than the {classes} classes")
    for split, (name, count) in enumerate((("train", train), ("val", val))):
        for i in range(count):
            label = i % classes
            folder = root / name / FORMS[label].__name__.strip("_")
            folder.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng([seed, split, i])
            render(label, rng).save(folder / f"{name}_{i:05d}.jpg", quality=90)


def render(label: int, rng: np.random.Generator) -> Image.Image:
    """One image of a class."""
    width, height = int(rng.integers(256, 321)), int(rng.integers(256, 321))
    mask = Image.fromarray((FORMS[label](rng) * 255).astype(np.uint8)).resize((width, height))
    share = np.asarray(mask, np.float32)[..., None] / 255
    front, back = _two_colors(rng)
    # The light falls off to one side, so that no single pixel identifies the colors
    left, right = rng.uniform(-40, 40, 2).tolist()
    slope = np.linspace(left, right, width, dtype=np.float32)[None, :, None]
    noise = rng.normal(0, 8, (height, width, 1)).astype(np.float32)
    return Image.fromarray((share * front + (1 - share) * back + slope + noise).clip(0, 255).astype(np.uint8))


def _two_colors(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Two RGB colors that an eye can tell apart."""
    while True:
        colors = rng.uniform(0, 255, (2, 3)).astype(np.float32)
        if np.abs(colors[0] - colors[1]).sum() > 200:
            return colors


def _grid(rng: np.random.Generator, turn: float = 0.0) -> tuple[Grid, Grid]:
    """The mask's coordinates, in units of its side, turned by an angle about its middle: (across, down)."""
    down, across = np.mgrid[-0.5 : 0.5 : MASK * 1j, -0.5 : 0.5 : MASK * 1j]
    return across * np.cos(turn) - down * np.sin(turn), across * np.sin(turn) + down * np.cos(turn)


def _waves(position: Grid, rng: np.random.Generator) -> Mask:
    return np.sin(2 * np.pi * (position * rng.uniform(4, 12) + rng.uniform())) > 0


def _around(rng: np.random.Generator) -> tuple[Grid, Grid]:
    """Coordinates about a random middle, in units of a random radius."""
    across, down = _grid(rng)
    radius = rng.uniform(0.18, 0.34)
    x, y = rng.uniform(-0.14, 0.14, 2)
    return (across - x) / radius, (down - y) / radius


def _polygon(points: list[tuple[float, float]], rng: np.random.Generator) -> Mask:
    """A filled polygon, its points in units of a random radius about a random middle."""
    radius, (x, y) = rng.uniform(0.2, 0.36) * MASK, rng.uniform(0.38, 0.62, 2) * MASK
    mask = Image.new("1", (MASK, MASK))
    ImageDraw.Draw(mask).polygon([(x + across * radius, y + down * radius) for across, down in points], fill=1)
    return np.asarray(mask)


def horizontal(rng: np.random.Generator) -> Mask:
    return _waves(_grid(rng, rng.uniform(-0.15, 0.15))[1], rng)


def vertical(rng: np.random.Generator) -> Mask:
    return _waves(_grid(rng, rng.uniform(-0.15, 0.15))[0], rng)


def diagonal(rng: np.random.Generator) -> Mask:
    # Either way, since a mirror swaps them
    return _waves(_grid(rng, rng.choice([-1, 1]) * rng.uniform(0.65, 0.92))[0], rng)


def checkers(rng: np.random.Generator) -> Mask:
    across, down = _grid(rng, rng.uniform(-0.2, 0.2))
    return _waves(across, rng) ^ _waves(down, rng)


def disc(rng: np.random.Generator) -> Mask:
    across, down = _around(rng)
    return across**2 + down**2 < 1


def ring(rng: np.random.Generator) -> Mask:
    across, down = _around(rng)
    distance = across**2 + down**2
    return (distance < 1.2) & (distance > 0.45)


def square(rng: np.random.Generator) -> Mask:
    turn = rng.uniform(-0.2, 0.2)
    return _polygon(
        [(np.sin(turn + k * np.pi / 2 + np.pi / 4), np.cos(turn + k * np.pi / 2 + np.pi / 4)) for k in range(4)], rng
    )


def triangle(rng: np.random.Generator) -> Mask:
    turn = rng.uniform(-0.2, 0.2) + np.pi
    return _polygon([(np.sin(turn + k * 2 * np.pi / 3), np.cos(turn + k * 2 * np.pi / 3)) for k in range(3)], rng)


def cross(rng: np.random.Generator) -> Mask:
    across, down = _around(rng)
    return ((np.abs(across) < 0.28) & (np.abs(down) < 1)) | ((np.abs(down) < 0.28) & (np.abs(across) < 1))


def dots(rng: np.random.Generator) -> Mask:
    across, down = _grid(rng, rng.uniform(-0.3, 0.3))
    spacing = rng.uniform(5, 9)
    return ((across * spacing) % 1 - 0.5) ** 2 + ((down * spacing) % 1 - 0.5) ** 2 < 0.08


FORMS = (horizontal, vertical, diagonal, checkers, disc, ring, square, triangle, cross, dots)
