"""A folder for each class, whose files are images of that class; and the walk through such folders."""

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from shards.errors import InputError
from shards.hidden import entries
from shards.sources.base import KINDS, SPLIT_NAMES, Source, SourceImage
from shards.sources.labels import ANNOTATIONS, class_words, compared, find_labels, val_labels
from shards.sources.left_out import beside, holds_images
from shards.sources.match import Labels, normal

IN_CLASSES = "only class folders are read: put it into one"
VAL_NAMES = ("valid", "validation", "test")  # what a folder of validation images is called beside val


def find_folders(root: Path) -> Source:
    """`train/CLASS/**` and, if there, `val/CLASS/**`, or a flat `val/*` with its labels in `val.txt`; or `val/CLASS/**`
    alone, or `CLASS/**` alone. Files of any name count, in nested folders too; symbolic links are followed, and a
    folder is entered once."""
    layout = f"expected {KINDS['folders']}"
    train = root / "train"
    if holds_val_alone(root):
        return _val_alone(root)
    if not train.is_dir() and class_folders(root):
        return _train_alone(root)
    if not train.is_dir():
        raise InputError(f"{root} has no folder train: {layout}")
    classes = subfolders(train)
    if not classes:
        raise InputError(f"{train} has no class folders: {layout}")
    splits = {"train": class_images(root, "train", classes)}
    notices: list[str] = []
    val, whys = _val_folder(root, classes)
    labels = _val_labels(root, classes) if val == "val" else None
    if labels:
        splits["val"] = flat_images(root, "val", labels, notices)
    elif val:
        splits["val"] = compared(class_images(root, val, classes), root, val, classes, notices)
    label_files = labels.files if labels else ()
    # The test images of Tiny ImageNet have no labels, as those of Kaggle's tree have none
    unlabeled = ("test",) if root / "val" / ANNOTATIONS in label_files else ()
    read = val or "val"
    left_out = [
        *beside(root, "", ("train", read, *unlabeled), f"only the folders train and {read} are read", whys),
        *beside(root, "train", classes, IN_CLASSES),
        *(beside(root, val, subfolders(root / val), IN_CLASSES) if val and not labels else ()),
    ]
    words = class_words(root, classes)
    remarks = [f"{root / val} is taken for validation, for there is no folder val"] if val in VAL_NAMES else []
    return Source(
        "folders", root, classes, splits, words, (), notices, label_files, tuple(left_out), remarks=tuple(remarks)
    )


def _val_folder(root: Path, classes: tuple[str, ...]) -> tuple[str | None, dict[str, str]]:
    """The folder of the validation images: `val`, otherwise one of VAL_NAMES whose folders are all train's classes; and
    of each before it that has others, why it is not taken."""
    if (root / "val").is_dir():
        return "val", {}
    known = set(map(normal, classes))
    whys: dict[str, str] = {}
    for name in VAL_NAMES:
        folders = subfolders(root / name) if (root / name).is_dir() else ()
        unknown = [folder for folder in folders if normal(folder) not in known]
        if folders and not unknown:
            return name, whys
        if unknown:
            whys[name] = f"class {unknown[0]} is not in train, so {name} is not taken for validation"
    return None, whys


def class_folders(root: Path) -> tuple[str, ...]:
    """The folders of `root` itself that hold images; () where they are not classes: fewer than two, or called like
    splits."""
    names = subfolders(root)
    if not SPLIT_NAMES.keys().isdisjoint(name.lower() for name in names):
        return ()
    holding = tuple(name for name in names if holds_images(root / name))
    return holding if len(holding) > 1 else ()


def _train_alone(root: Path) -> Source:
    """Class folders in `root` itself, all of them to train on."""
    classes = class_folders(root)
    remark = f"{root} has no folder train, so its {len(classes)} folders with images are the classes to train on"
    return Source(
        *("folders", root, classes, {"train": class_images(root, "", classes)}, class_words(root, classes)),
        left_out=tuple(beside(root, "", classes, IN_CLASSES)),
        remarks=(f"{remark}, from {classes[0]} to {classes[-1]}",),
    )


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
    return Source("folders", root, classes, images, class_words(root, classes), left_out=tuple(left_out))


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
    """A split's images, class by class; `split` is its folder, "" for `root` itself. Links inside one class's folder
    to another's are not followed."""
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
            path = f"{split}/{folder}" if split else folder
            boxes = f"{path}/{folder}_boxes.txt"  # Tiny ImageNet's, of no use here
            yield from (image for image in _files(root, path, label, entered) if image.name != boxes)


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
