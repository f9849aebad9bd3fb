"""A set of small images, read once into arrays: class folders in a folder, a tar or a .tar.gz."""

import gzip
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import xxhash

from paper.ablation import Images
from shards import tars
from shards.atomic import atomic_write
from shards.errors import InputError, Unreadable
from shards.hidden import is_hidden
from shards.images import MAX_BYTES, read_square
from shards.progress import Progress
from shards.sources.base import SourceImage
from shards.sources.folders import class_images, subfolders

LAYOUT = "expected train/CLASS/* and test/CLASS/* (or val/CLASS/*), in a folder, a .tar or a .tar.gz"
ENDINGS = (".tar", ".tar.gz", ".tgz")
TESTING = ("test", "val")
MOST_BYTES = 8 * 2**30  # of a .tar.gz, decompressed
MOST_IMAGES = 100_000  # of a split; of a larger one so many are drawn
BLOCK = 2**20


class ImageSet(NamedTuple):
    """name: of its file or folder; digest: the same for the same content; train, test: side x side, uint8."""

    name: str
    digest: str
    classes: tuple[str, ...]
    train: Images
    test: Images


class _Listing(NamedTuple):
    """classes, and each split's images; train first."""

    classes: tuple[str, ...]
    splits: tuple[list[SourceImage], ...]


def digest_of(data: Path) -> str:
    """What tells two sets apart: of a file its bytes, of a folder the names and sizes of its images. Raises
    InputError when there is no such set."""
    digest = xxhash.xxh3_128()
    if data.is_dir():
        listing = _list_folder(data)
        for split in listing.splits:
            for image in split:
                digest.update(f"{image.name}\0{image.length}\0".encode())
        return digest.hexdigest()
    with tars.opened(data) as file:
        while block := os.read(file, BLOCK):
            digest.update(block)
    return digest.hexdigest()


def check(data: Path) -> None:
    """Raises InputError when there is no such set: its images are listed, but not read."""
    with _listed(data):
        pass


def load(data: Path, digest: str, side: int, cache: Path) -> ImageSet:
    """The images of `data`, their shorter side scaled to `side` and the central square cut out, as `shard` does it.

    They are kept in the folder `cache`. Raises: InputError naming an image that cannot be read, or what is missing.
    """
    path = cache / f"images-{digest[:16]}-{side}.npz"
    if not path.exists():
        arrays = _read(data, side)
        with atomic_write(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # names of arrays, not allow_pickle
    with np.load(path, allow_pickle=False) as kept:
        splits = [
            Images(torch.from_numpy(kept[name]), torch.from_numpy(kept[f"{name}_labels"])) for name in ("train", "test")
        ]
        return ImageSet(data.name, digest, tuple(kept["classes"].tolist()), *splits)


def _read(data: Path, side: int) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    with _listed(data) as (listing, file):
        arrays["classes"] = np.array(listing.classes)
        chosen = [_some(split) for split in listing.splits]
        with Progress(f"reading {data.name}", sum(map(len, chosen))) as progress:
            for name, images in zip(("train", "test"), chosen, strict=True):
                pixels = np.empty((len(images), 3, side, side), np.uint8)
                for number, image in enumerate(images):
                    pixels[number] = _decode(data, image, file, side)
                    progress.advance()
                arrays[name] = pixels
                arrays[f"{name}_labels"] = np.array([image.label for image in images], np.int64)
    return arrays


def _some(images: list[SourceImage]) -> list[SourceImage]:
    """All, or where there are too many, some that are drawn, in the same order."""
    if len(images) <= MOST_IMAGES:
        return images
    drawn = np.random.default_rng(0).choice(len(images), MOST_IMAGES, replace=False)
    return [images[number] for number in np.sort(drawn)]


def _decode(data: Path, image: SourceImage, file: int | None, side: int) -> np.ndarray:
    where = f"{data / image.name}" if file is None else f"{data}: {image.name}"
    if image.length > MAX_BYTES:
        raise InputError(f"{where} has {image.length} bytes: take it out")
    try:
        content = (data / image.file).read_bytes() if file is None else os.pread(file, image.length, image.offset)
        pixels: np.ndarray = np.asarray(read_square(content, side)).transpose(2, 0, 1)
    except (OSError, Unreadable) as error:
        raise InputError(f"{where} cannot be read ({error}): take it out") from None
    return pixels


@contextmanager
def _listed(data: Path) -> Iterator[tuple[_Listing, int | None]]:
    """A set's images, and the open tar that they are byte ranges of, None for a folder."""
    if data.is_dir():
        yield _list_folder(data), None
        return
    if data.is_file() and not data.name.endswith(ENDINGS):
        raise InputError(f"{data} is no such set: {LAYOUT}")
    with tars.opened(data) as file:
        if os.pread(file, 2, 0) != b"\x1f\x8b":
            yield _list_tar(data, file), file
            return
        with tempfile.TemporaryFile() as unpacked:
            _decompress(data, unpacked.fileno())
            yield _list_tar(data, unpacked.fileno()), unpacked.fileno()


def _decompress(data: Path, to: int) -> None:
    total = 0
    try:
        with gzip.open(data) as stream:
            while block := stream.read(BLOCK):
                total += len(block)
                if total > MOST_BYTES:
                    raise InputError(f"{data} holds more than {MOST_BYTES >> 30} GiB: decompress it, or give a folder")
                os.write(to, block)
    except (OSError, EOFError) as error:
        raise InputError(f"{data} cannot be decompressed ({error}): bring an undamaged copy") from None


def _list_folder(data: Path) -> _Listing:
    classes = subfolders(data / "train") if (data / "train").is_dir() else ()
    testing = next((name for name in TESTING if (data / name).is_dir()), None)
    if not classes or testing is None:
        raise InputError(f"{data} holds no such set: {LAYOUT}")
    return _complete(data, classes, [list(class_images(data, split, classes)) for split in ("train", testing)])


def _list_tar(data: Path, file: int) -> _Listing:
    """Of members .../SPLIT/CLASS/...; a name is never used as a path."""
    found: dict[str, list[tuple[str, tars.Member]]] = {"train": [], **{name: [] for name in TESTING}}
    for member in tars.members(file, str(data)):
        parts = member.name.split("/")
        split = next((number for number, part in enumerate(parts[:-2]) if part in found), None)
        if split is not None and not is_hidden(member.name):
            found[parts[split]].append((parts[split + 1], member))
    classes = tuple(sorted({name for name, _ in found["train"]}))
    testing = next((name for name in TESTING if found[name]), None)
    if not classes or testing is None:
        raise InputError(f"{data} holds no such set: {LAYOUT}")
    numbers = {name: number for number, name in enumerate(classes)}
    splits = []
    for split_name in ("train", testing):
        for name, member in found[split_name]:
            if name not in numbers:
                raise InputError(f"{data}: {member.name} is of a class that train lacks: {LAYOUT}")
        images = [SourceImage("", m.offset, m.size, m.name, numbers[name]) for name, m in found[split_name]]
        splits.append(sorted(images, key=lambda image: image.name))
    return _complete(data, classes, splits)


def _complete(data: Path, classes: tuple[str, ...], splits: list[list[SourceImage]]) -> _Listing:
    if not all(splits):
        raise InputError(f"{data} holds no images to train on, or none to test on: {LAYOUT}")
    if len(classes) < 2:
        raise InputError(f"{data} holds one class: a study needs at least two")
    return _Listing(classes, tuple(splits))
