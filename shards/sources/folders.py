"""A folder for each class, whose files are images of that class; and the walk through such folders."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from shards.errors import InputError
from shards.sources.base import KINDS, Source, SourceImage
from shards.sources.labels import class_words, val_labels


def find_folders(root: Path) -> Source:
    """`train/CLASS/**` and, if there, `val/CLASS/**`, or a flat `val/*` with its labels in `val.txt`. Files of any name
    count, in nested folders too; symbolic links are followed, and a folder is entered once."""
    layout = f"expected {KINDS['folders']}"
    train, val = root / "train", root / "val"
    if not train.is_dir():
        raise InputError(f"{root} has no folder train: {layout}")
    classes = subfolders(train)
    if not classes:
        raise InputError(f"{train} has no class folders: {layout}")
    splits = {"train": class_images(root, "train", classes)}
    if val.is_dir():
        val_classes = subfolders(val)
        unknown = sorted(set(val_classes) - set(classes))
        if unknown:
            raise InputError(f"{val / unknown[0]} is a class that train lacks: move its images to a known one")
        if val_classes:
            splits["val"] = class_images(root, "val", classes)
        elif any(val.iterdir()):
            splits["val"] = flat_images(root, "val", val_labels(root, classes))
        else:
            raise InputError(f"{val} holds no class folders with files: fill it or remove it ({layout})")
    return Source("folders", root, classes, splits, class_words(root))


def subfolders(folder: Path) -> tuple[str, ...]:
    """The names of a folder's own folders, sorted."""
    return tuple(entry.name for entry in _entries(folder) if os.path.isdir(entry))


def class_images(root: Path, split: str, classes: Iterable[str]) -> Iterator[SourceImage]:
    """A split's images, class by class. Links inside one class's folder to another's are not followed."""
    owners: dict[tuple[int, int], str] = {}
    for name in subfolders(root / split):
        other = owners.setdefault(_identity(os.stat(root / split / name)), name)
        if other != name:
            raise InputError(f"{root / split}: {other} and {name} are one folder: an image has one class")
    entered = {_identity(os.stat(root / split)), *owners}
    for label, name in enumerate(classes):
        if (root / split / name).is_dir():
            yield from _files(root, f"{split}/{name}", label, entered)


def flat_images(root: Path, folder: str, label_of: Callable[[str], int]) -> Iterator[SourceImage]:
    """The images of a folder of all classes, whose labels are known by name."""
    for image in _files(root, folder, 0, {_identity(os.stat(root / folder))}):
        yield image._replace(label=label_of(image.name))


def _files(root: Path, folder: str, label: int, entered: set[tuple[int, int]]) -> Iterator[SourceImage]:
    """The files of a folder and of those inside it, sorted, without the folders that were entered before."""
    for entry in _entries(root / folder):
        name = f"{folder}/{entry.name}"
        try:
            status = entry.stat()
        except OSError:
            yield SourceImage(name, 0, 0, name, label)  # a broken link: reading it gives the reason
            continue
        if not stat.S_ISDIR(status.st_mode):
            yield SourceImage(name, 0, status.st_size if stat.S_ISREG(status.st_mode) else -1, name, label)
        elif _identity(status) not in entered:
            entered.add(_identity(status))
            yield from _files(root, name, label, entered)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, sorted; hidden entries are skipped, as `ls` does."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from None
    return sorted(visible, key=lambda entry: entry.name)


def _identity(status: os.stat_result) -> tuple[int, int]:
    """The same for two paths to one folder."""
    return status.st_dev, status.st_ino
