"""What every layout is read as: a `Source`, whose splits are lists of images.

An image is a byte range of a file: a file of its own, a member of an archive (which is never unpacked), or a row of a
parquet file, once `shards.sources.parquet` has extracted it. Listing a source reads names and headers; an image's bytes
are read when it is written.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from shards.records import Skipped

KINDS = {
    "folders": "ROOT/train/CLASS/*.JPEG and, if there, ROOT/val/CLASS/*.JPEG, or ROOT/CLASS/*.JPEG alone, CLASS being "
    "any folder's name",
    "archives": "ROOT/ILSVRC2012_img_train.tar and, if there, ROOT/ILSVRC2012_img_val.tar with its labels",
    "kaggle": "ROOT/ILSVRC/Data/CLS-LOC/train/CLASS/*.JPEG, ROOT/LOC_val_solution.csv",
    "parquet": "ROOT/data/train-*.parquet, or in ROOT itself",
    "webdataset": "ROOT/*train*.tar of .jpg and .cls members",
}
MAX_CLASSES = 10**6  # a larger class number is a mistake, or an attack
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class SourceImage(NamedTuple):
    """Bytes `offset` to `offset + length` of `file` (relative to the source's root, or absolute) should be an image.

    `name` is its name in the source, for people and for its key; `length` -1 means that it is not a regular file.
    """

    file: str
    offset: int
    length: int
    name: str
    label: int


@dataclass(frozen=True)
class Source:
    """The images at a root. `classes[i]` names class number i (for ImageNet the sorted WNIDs), `words` says in English
    what some of them are, `splits` lists each split's images in a fixed order, `containers` are the archives that hold
    them all (none where every image is a file of its own). `notices` says what was found and not taken, or is doubtful;
    it is complete when all splits have been listed; `remarks` says what was decided, which is no fault.
    `label_files` are read for labels, beside the images, and `labels_digest` identifies the labels within archives,
    since their lengths do not. `left_out` is what the root holds beside all that is taken."""

    kind: str
    root: Path
    classes: tuple[str, ...]
    splits: Mapping[str, Iterable[SourceImage]]
    words: Mapping[str, str] = field(default_factory=dict)
    containers: tuple[Path, ...] = ()
    notices: list[str] = field(default_factory=list)
    label_files: tuple[Path, ...] = ()
    left_out: tuple[Skipped, ...] = ()
    labels_digest: str = ""
    remarks: tuple[str, ...] = ()


def split_of(path: Path) -> str | None:
    """The split in a file's name: "imagenet1k-validation-00.tar" belongs to val."""
    words = re.split(r"[^a-z]+", path.stem.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)
