"""Where pictures come from: class folders, `train/WNID/*` and, if there, `val/WNID/*`."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.errors import InputError

LAYOUT = "expected ROOT/train/WNID/*.JPEG and, if there, ROOT/val/WNID/*.JPEG"
LONGEST_KEY = 80  # a tar's plain header holds names of 100 bytes


@dataclass(frozen=True)
class Picture:
    """A file that should be a picture, its class number and its class's name."""

    path: Path
    label: int
    wnid: str


@dataclass(frozen=True)
class Source:
    """Pictures by split, each listed by class and file name; class numbers are the sorted WNIDs."""

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, list[Picture]]


def find_folders(root: Path) -> Source:
    """Lists class folders. Raises InputError saying what is missing."""
    if not root.is_dir():
        raise InputError(f"--imagenet-root {root} is no folder: {LAYOUT}")
    if not any(root.iterdir()):
        raise InputError(f"--imagenet-root {root} is empty: {LAYOUT}")
    if not (root / "train").is_dir():
        raise InputError(f"--imagenet-root {root} has no folder train: {LAYOUT}")
    classes = _folders(root / "train")
    if not classes:
        raise InputError(f"{root / 'train'} has no class folders: {LAYOUT}")
    splits = {"train": _pictures(root / "train", classes)}
    if (root / "val").is_dir():
        unknown = sorted(set(_folders(root / "val")) - set(classes))
        if unknown:
            raise InputError(
                f"{root / 'val' / unknown[0]} is a class that train lacks: move its pictures to a known one"
            )
        splits["val"] = _pictures(root / "val", classes)
        if not splits["val"]:
            raise InputError(f"{root / 'val'} holds no class folders with files: fill it or remove it ({LAYOUT})")
    if not splits["train"]:
        raise InputError(f"{root / 'train'}: the class folders are empty: {LAYOUT}")
    return Source(root, tuple(classes), splits)


def keys(pictures: Sequence[Picture]) -> list[str]:
    """A split's sample keys: the file names without suffix where they are unique, else with the class before them, and
    with the suffix behind; else numbers."""
    schemes = (
        lambda picture: picture.path.stem,
        lambda picture: f"{picture.wnid}_{picture.path.stem}",
        lambda picture: f"{picture.wnid}_{picture.path.name}",
    )
    for scheme in schemes:
        # A key ends at the first dot, and DALI's index separates by blanks
        found = [re.sub(r"[^A-Za-z0-9_-]", "_", scheme(picture)) for picture in pictures]
        if len(set(found)) == len(found) and max(map(len, found), default=0) <= LONGEST_KEY:
            return found
    return [f"{number:09d}" for number in range(len(pictures))]


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _pictures(root: Path, classes: Sequence[str]) -> list[Picture]:
    found = []
    for label, wnid in enumerate(classes):
        if (root / wnid).is_dir():
            with os.scandir(root / wnid) as entries:
                names = sorted(entry.name for entry in entries if not entry.is_dir())
            found += [Picture(root / wnid / name, label, wnid) for name in names]
    return found
