"""A folder for each class, whose files are images of that class; and the walk through such folders."""

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from shards.errors import InputError
from shards.hidden import entries
from shards.sources.base import KINDS, Source, SourceImage
from shards.sources.labels import ANNOTATIONS, class_words, compared, find_labels, val_labels
from shards.sources.left_out import beside
from shards.sources.match import Labels, normal

IN_CLASSES = "only class folders are read: put it into one"


def find_folders(root: Path) -> Source:
    """`train/CLASS/**` and, if there, `val/CLASS/**`, or a flat `val/*` with its labels in `val.txt`; or `val/CLASS/**`
    alone. Files of any name count, in nested folders too; symbolic links are followed, and a folder is entered once."""
    layout = f"expected {KINDS['folders']}"
    train, val = root / "train", root / "val"
    if holds_val_alone(root):
        return _val_alone(root)
    if not train.is_dir():
        raise InputError(f"{root} has no folder train: {layout}")
    classes = subfolders(train)
    if not classes:
        raise InputError(f"{train} has no class folders: {layout}")
    splits = {"train": class_images(root, "train", classes)}
    notices: list[str] = []
    labels = None
    if val.is_dir():
        labels = _val_labels(root, classes)
        if labels:
            splits["val"] = flat_images(root, "val", labels, notices)
        else:
            splits["val"] = compared(class_images(root, "val", classes), root, "val", classes, notices)
    label_files = labels.files if labels else ()
    # The test images of Tiny ImageNet have no labels, as those of Kaggle's tree have none
    unlabeled = ("test",) if root / "val" / ANNOTATIONS in label_files else ()
    left_out = [
        *beside(root, "", ("train", "val", *unlabeled), "only the folders train and val are read"),
        *beside(root, "train", classes, IN_CLASSES),
        *(beside(root, "val", subfolders(val), IN_CLASSES) if val.is_dir() and not labels else ()),
    ]
    words = class_words(root)
    return Source("folders", root, classes, splits, words, (), notices, label_files, tuple(left_out))


def holds_val_alone(root: Path) -> bool:
    """Whether there are class folders to evaluate on, and none to train on."""
    val = root / "val"
    return not (root / "train").is_dir() and val.is_dir() and bool(subfolders(val))


def _val_alone(root: Path) -> Source:
    """Raises InputError when the images to train on may be there under another name."""
    classes = subfolders(root / "val")
    if others := list(beside(root, "", ("val",), "rename it, if it is what to train on")):
        raise InputError(f"{root} has no folder train, and holds {others[0].file}: {others[0].reason}")
    left_out = beside(root, "val", classes, IN_CLASSES)
    images = {"val": class_images(root, "val", classes)}
    return Source("folders", root, classes, images, class_words(root), left_out=tuple(left_out))


def _val_labels(root: Path, classes: tuple[str, ...]) -> Labels | None:
    """The labels of images that lie in no class folders; None where they do."""
    val = root / "val"
    val_classes = subfolders(val)
    known = {normal(name) for name in classes}
    unknown = [name for name in val_classes if normal(name) not in known]
    if len(unknown) == len(val_classes) and (labels := find_labels(root, val, classes)):
        return labels
    if unknown:
        raise InputError(f"{val / unknown[0]} is a class that train lacks: move its images to a known one")
    if val_classes:
        return None
    if entries(val):
        return val_labels(root, val, classes)  # which says what is missing
    layout = f"expected {KINDS['folders']}"
    raise InputError(f"{val} holds no class folders with files: fill it or remove it ({layout})")


def subfolders(folder: Path) -> tuple[str, ...]:
    """The names of a folder's own folders, sorted."""
    return tuple(entry.name for entry in entries(folder) if os.path.isdir(entry))


def class_images(root: Path, split: str, classes: Iterable[str]) -> Iterator[SourceImage]:
    """A split's images, class by class. Links inside one class's folder to another's are not followed."""
    owners: dict[tuple[int, int], str] = {}
    for name in subfolders(root / split):
        other = owners.setdefault(_identity(os.stat(root / split / name)), name)
        if other != name:
            raise InputError(f"{root / split}: {other} and {name} are one folder: an image has one class")
    entered = {_identity(os.stat(root / split)), *owners}
    folders: dict[str, str] = {}
    for name in owners.values():
        other = folders.setdefault(normal(name), name)
        if other != name:
            raise InputError(f"{root / split}: {other} and {name} are one name in two Unicode forms: rename one")
    for label, name in enumerate(classes):
        if folder := folders.get(normal(name)):
            boxes = f"{split}/{folder}/{folder}_boxes.txt"  # Tiny ImageNet's, of no use here
            yield from (image for image in _files(root, f"{split}/{folder}", label, entered) if image.name != boxes)


def flat_images(root: Path, folder: str, labels: Labels, notices: list[str]) -> Iterator[SourceImage]:
    """The images of a folder of all classes, whose labels are known by name, and a notice of labels left over."""
    lists = {str(path) for path in labels.files}
    for image in _files(root, folder, 0, {_identity(os.stat(root / folder))}):
        if str(root / image.name) not in lists:
            yield image._replace(label=labels(image.name.removeprefix(f"{folder}/")))
    notices += labels.unclaimed()


def _files(root: Path, folder: str, label: int, entered: set[tuple[int, int]]) -> Iterator[SourceImage]:
    """The files of a folder and of those inside it, sorted, without the folders that were entered before."""
    for entry in entries(root / folder):
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


def _identity(status: os.stat_result) -> tuple[int, int]:
    """The same for two paths to one folder."""
    return status.st_dev, status.st_ino
