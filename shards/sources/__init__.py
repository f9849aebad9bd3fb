"""Where people hold ImageNet, or any image-folder set: five layouts, each as splits of images.

An image is a stretch of a file: a file of its own, a member of an archive (which is never unpacked), or a row of a
parquet file as `shards.sources.parquet` lays it down. Catalog reads names and headers; images are read when they are
written.
"""

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from shards import tars
from shards.errors import InputError
from shards.processes import run_jobs, tick
from shards.sources import labels

KINDS = {
    "folders": "ROOT/train/WNID/*.JPEG and, if there, ROOT/val/WNID/*.JPEG",
    "archives": "ROOT/ILSVRC2012_img_train.tar and, if there, ROOT/ILSVRC2012_img_val.tar with its labels",
    "kaggle": "ROOT/ILSVRC/Data/CLS-LOC/train/WNID/*.JPEG, ROOT/LOC_val_solution.csv",
    "parquet": "ROOT/data/train-*.parquet, or in ROOT itself",
    "webdataset": "ROOT/*train*.tar of .jpg and .cls members",
}
EXPECTED = f"expected {KINDS['folders']}, or another layout of docs/shards.md ({', '.join(KINDS)})"
TRAIN_ARCHIVE, VAL_ARCHIVE = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
OFFICIAL = "ILSVRC2012_img_"  # so begin the names of all the official archives, some of which are of no use here
MOST_CLASSES = 10**6  # a class number above is a mistake, or was made to harm
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class SourceImage(NamedTuple):
    """Bytes `offset` to `offset + length` of `file` (relative to the source's root, or absolute) should be an image.

    `name` is its name in the source, for people and for its key; `length` -1 tells that it is no regular file.
    """

    file: str
    offset: int
    length: int
    name: str
    label: int


@dataclass(frozen=True)
class Source:
    """A layout found. `classes[i]` names class number i (for ImageNet the sorted WNIDs), `words` says in English what
    some of them are, `splits` lists each split's images in a fixed order, `containers` are the archives that hold
    them all (none where every image is a file of its own)."""

    kind: str
    root: Path
    classes: tuple[str, ...]
    splits: dict[str, Iterable[SourceImage]]
    words: dict[str, str] = field(default_factory=dict)
    containers: tuple[Path, ...] = ()


def find(root: Path, kind: str = "auto", scratch: Path | None = None, workers: int = 1) -> Source:
    """The source at `root`.

    Args: kind: one of KINDS, or "auto" to find out; scratch: a folder that parquet files are laid down in; processes:
    how many may read. Raises: InputError saying what is missing.
    """
    if not root.is_dir():
        raise InputError(f"--imagenet-root {root} is no folder: {EXPECTED}")
    if kind == "auto":
        kind = detect(root)
    if kind == "parquet":
        from shards.sources.parquet import find_parquet

        return find_parquet(root, scratch, workers)
    if kind == "webdataset":
        return webdataset(root, workers)
    return {"folders": folders, "archives": archives, "kaggle": kaggle}[kind](root)


def detect(root: Path) -> str:
    """Which of KINDS `root` holds. Raises InputError when it is none, or more than one."""
    found = []
    if (root / TRAIN_ARCHIVE).exists():
        found.append("archives")
    if _kaggle_data(root):
        found.append("kaggle")
    if (root / "train").is_dir():
        found.append("folders")
    if parquet_files(root):
        found.append("parquet")
    if any(split_of(tar) for tar in root.glob("*.tar") if not tar.name.startswith(OFFICIAL)):
        found.append("webdataset")
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"--imagenet-root {root} holds {' and '.join(found)}: say which with --source")
    what = "is empty" if not any(root.iterdir()) else "holds none of the known layouts"
    raise InputError(f"--imagenet-root {root} {what}: {EXPECTED}")


# Class folders


def folders(root: Path) -> Source:
    """`train/CLASS/**` and, if there, `val/CLASS/**`, or a flat `val/*` with its labels in `val.txt`. Files of any name
    count, in folders below the class's too; symbolic links are followed, and a folder is entered once."""
    layout = f"expected {KINDS['folders']}"
    train, val = root / "train", root / "val"
    if not train.is_dir():
        raise InputError(f"{root} has no folder train: {layout}")
    classes = _subfolders(train)
    if not classes:
        raise InputError(f"{train} has no class folders: {layout}")
    splits = {"train": _class_images(root, "train", classes)}
    if val.is_dir():
        inside = _subfolders(val)
        unknown = sorted(set(inside) - set(classes))
        if unknown:
            raise InputError(f"{val / unknown[0]} is a class that train lacks: move its images to a known one")
        if inside:
            splits["val"] = _class_images(root, "val", classes)
        elif any(val.iterdir()):
            splits["val"] = _flat_images(root, "val", labels.of_val(root, classes))
        else:
            raise InputError(f"{val} holds no class folders with files: fill it or remove it ({layout})")
    return Source("folders", root, classes, splits, labels.words(root))


def kaggle(root: Path) -> Source:
    """Kaggle's tree: `ILSVRC/Data/CLS-LOC/train/WNID/*`, a flat `val`, `LOC_val_solution.csv` and, for the words,
    `LOC_synset_mapping.txt`. Its test images have no labels and are not taken."""
    data = _kaggle_data(root)
    if data is None:
        raise InputError(f"{root} holds no ILSVRC/Data/CLS-LOC/train: expected {KINDS['kaggle']}")
    place = str(data.relative_to(root))
    classes = _subfolders(data / "train")
    if not classes:
        raise InputError(f"{data / 'train'} has no class folders: expected {KINDS['kaggle']}")
    splits = {"train": _class_images(root, f"{place}/train", classes)}
    if (data / "val").is_dir():
        splits["val"] = _flat_images(root, f"{place}/val", labels.of_val(root, classes))
    return Source("kaggle", root, classes, splits, labels.words(root))


def _kaggle_data(root: Path) -> Path | None:
    places = (root / "ILSVRC" / "Data" / "CLS-LOC", root / "Data" / "CLS-LOC")
    return next((place for place in places if (place / "train").is_dir()), None)


def _subfolders(folder: Path) -> tuple[str, ...]:
    return tuple(entry.name for entry in _entries(folder) if os.path.isdir(entry))


def _class_images(root: Path, split: str, classes: Iterable[str]) -> Iterator[SourceImage]:
    """A split's images, class by class. A class's folder is its own: links in another's do not lead there."""
    owners: dict[tuple[int, int], str] = {}
    for name in _subfolders(root / split):
        other = owners.setdefault(_identity(os.stat(root / split / name)), name)
        if other != name:
            raise InputError(f"{root / split}: {other} and {name} are one folder: an image has one class")
    entered = {_identity(os.stat(root / split)), *owners}
    for label, name in enumerate(classes):
        if (root / split / name).is_dir():
            yield from _files(root, f"{split}/{name}", label, entered)


def _flat_images(root: Path, folder: str, label_of: Callable[[str], int]) -> Iterator[SourceImage]:
    for image in _files(root, folder, 0, {_identity(os.stat(root / folder))}):
        yield image._replace(label=label_of(image.name))


def _files(root: Path, folder: str, label: int, entered: set[tuple[int, int]]) -> Iterator[SourceImage]:
    """The files of a folder and of those below it, sorted, but for the folders that were entered before."""
    for entry in _entries(root / folder):
        name = f"{folder}/{entry.name}"
        try:
            about = entry.stat()
        except OSError:
            yield SourceImage(name, 0, 0, name, label)  # a link to nowhere: reading it will say so
            continue
        if not stat.S_ISDIR(about.st_mode):
            yield SourceImage(name, 0, about.st_size if stat.S_ISREG(about.st_mode) else -1, name, label)
        elif _identity(about) not in entered:
            entered.add(_identity(about))
            yield from _files(root, name, label, entered)


def _entries(folder: Path) -> list[os.DirEntry]:
    """What a folder holds, sorted; hidden entries are passed over, as `ls` does."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from None
    return sorted(found, key=lambda entry: entry.name)


def _identity(about: os.stat_result) -> tuple[int, int]:
    """Tells whether two names are of one folder."""
    return about.st_dev, about.st_ino


# The official archives


def archives(root: Path) -> Source:
    """`ILSVRC2012_img_train.tar`, a tar of one tar a class, and `ILSVRC2012_img_val.tar`, whose labels come from the
    devkit or a mapping beside it. Neither is unpacked: a member of a member is a stretch of the outer file."""
    train, val = root / TRAIN_ARCHIVE, root / VAL_ARCHIVE
    with tars.opened(train) as file:
        inner = sorted(
            (Path(member.name).stem, member)
            for member in tars.members(file, str(train))
            if member.name.endswith(".tar")
        )
    if not inner:
        raise InputError(f"{train} holds no tars of classes: it should hold n01440764.tar and its like")
    classes = tuple(wnid for wnid, _ in inner)
    twice = next((wnid for wnid, after in pairwise(classes) if wnid == after), None)
    if twice:
        raise InputError(f"{train} holds {twice}.tar twice: bring an undamaged copy")

    def train_images() -> Iterator[SourceImage]:
        with tars.opened(train) as file:
            for label, (wnid, outer) in enumerate(inner):
                where = f"{train}: {outer.name}"
                for name, offset, size in tars.members(file, where, outer.offset, outer.offset + outer.size):
                    yield SourceImage(TRAIN_ARCHIVE, offset, size, f"train/{wnid}/{name}", label)

    def val_images(label_of: Callable[[str], int]) -> Iterator[SourceImage]:
        with tars.opened(val) as file:
            for name, offset, size in tars.members(file, str(val)):
                yield SourceImage(VAL_ARCHIVE, offset, size, f"val/{name}", label_of(name))

    splits, containers = {"train": train_images()}, (train,)
    if val.exists():
        splits["val"], containers = val_images(labels.of_val(root, classes)), (train, val)
    return Source("archives", root, classes, splits, labels.words(root), containers)


# WebDataset tars


def webdataset(root: Path, workers: int) -> Source:
    """Tars of `KEY.jpg` (jpeg, png, webp) and `KEY.cls`, whose names tell the split."""
    grouped = tars_by_split(root)
    jobs = [(tar,) for group in grouped.values() for tar in group]
    names = label_names(run_jobs(told_classes, jobs, workers, "read labels", None))

    def images(group: list[Path]) -> Iterator[SourceImage]:
        for tar in group:
            with tars.opened(tar) as file:
                for sample in tars.samples(tar):
                    if sample.image is None or "cls" not in sample.parts:
                        missing = "image" if sample.image is None else ".cls"
                        remedy = "mend the tar, or train on it where it is: `python cli.py index` leaves such out"
                        raise InputError(f"{tar}: sample {sample.key} has no {missing}: {remedy}")
                    label = read_label(file, str(tar), sample)
                    name, offset, size = sample.image
                    yield SourceImage(tar.name, offset, size, f"{tar.name}/{name}", label)

    containers = tuple(tar for (tar,) in jobs)
    splits = {split: images(group) for split, group in grouped.items()}
    return Source("webdataset", root, names, splits, labels.words(root), containers)


def tars_by_split(root: Path) -> dict[str, list[Path]]:
    """A folder's tars in order, by the split that their names tell. Raises InputError when one tells none."""
    grouped: dict[str, list[Path]] = {}
    for tar in sorted(root.glob("*.tar")):
        split = split_of(tar)
        if split is None:
            known = "train, val or test"
            raise InputError(f"{tar} does not tell its split: rename it so that {known} is a word of its name")
        grouped.setdefault(split, []).append(tar)
    if "train" not in grouped:
        raise InputError(f"{root} holds no tars of a train split, like train-000000.tar")
    return {split: grouped[split] for split in sorted(grouped, key=["train", "val", "test"].index)}


def split_of(path: Path) -> str | None:
    """The split that a file's name tells: "imagenet1k-validation-00.tar" is val's."""
    words = re.split(r"[^a-z]+", path.stem.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def read_label(file: int, where: str, sample: tars.TarSample) -> int:
    """A sample's class number. Raises InputError when `.cls` is no number below a million."""
    _, offset, size = sample.parts["cls"]
    text = os.pread(file, min(size, 32), offset)
    if size > len(text) or not re.fullmatch(rb"\s*\d{1,6}\s*", text):
        raise InputError(f"{where}: {sample.key}.cls holds {text!r} and should be a class number, like 7")
    return int(text)


def told_classes(tar: Path) -> dict[int, set[str]]:
    """A tar's class numbers, and the names that its samples tell of each."""
    told: dict[int, set[str]] = {}
    with tars.opened(tar) as file:
        for sample in tars.samples(tar):
            if "cls" in sample.parts:
                name = told_class(sample, tars.description(file, sample))
                told.setdefault(read_label(file, str(tar), sample), set()).update([name] if name else [])
            tick(1, 0)
    return told


def told_class(sample: tars.TarSample, about: dict) -> str | None:
    """The class that a sample tells by name: its description's WNID, or that which its key begins with."""
    if isinstance(about.get("wnid"), str):
        return about["wnid"]
    found = re.match(r"n\d{8}(?=_|$)", sample.name)
    return found.group() if found else None


def label_names(told: Iterable[dict[int, set[str]]]) -> tuple[str, ...]:
    """The names of the classes 0, 1, ...: what the samples of a class tell if they agree, else its number."""
    names: dict[int, set[str]] = {}
    for some in told:
        for label, found in some.items():
            names.setdefault(label, set()).update(found)
    return tuple(
        next(iter(names[label])) if len(names.get(label, ())) == 1 else str(label)
        for label in range(max(names, default=-1) + 1)
    )


def parquet_files(root: Path) -> list[Path]:
    """Parquet files whose names tell a split, in `root/data` or `root` itself."""
    found = sorted((root / "data").glob("*.parquet")) or sorted(root.glob("*.parquet"))
    return [path for path in found if split_of(path)]
