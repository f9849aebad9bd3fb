"""ImageNet's official archives: a tar of one tar for each class, and a flat one for validation."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from shards import tars
from shards.errors import InputError
from shards.hidden import is_hidden
from shards.records import Skipped
from shards.sources.base import Source, SourceImage
from shards.sources.labels import class_words, val_labels
from shards.sources.left_out import beside, links_in
from shards.sources.match import Labels

TRAIN_ARCHIVE, VAL_ARCHIVE = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def find_archives(root: Path) -> Source:
    """`ILSVRC2012_img_train.tar` and `ILSVRC2012_img_val.tar`, whose labels come from the devkit or a mapping beside
    it. Neither is unpacked: a member of a member is a byte range of the outer file."""
    train, val = root / TRAIN_ARCHIVE, root / VAL_ARCHIVE
    class_tars, others = _class_tars(train)
    classes = tuple(wnid for wnid, _ in class_tars)
    notices: list[str] = []
    splits, containers = {"train": _train_images(train, class_tars, notices)}, [train]
    labels = val_labels(root, None, classes) if val.exists() else None
    if labels:
        splits["val"] = _val_images(val, labels, notices)
        containers.append(val)
    label_files = labels.files if labels else ()
    left_out = [*beside(root, "", (TRAIN_ARCHIVE, VAL_ARCHIVE), f"only {TRAIN_ARCHIVE} and {VAL_ARCHIVE} are read")]
    if others:
        more = f", as are {len(others) - 1} more members" if len(others) > 1 else ""
        left_out.append(Skipped(f"{TRAIN_ARCHIVE}: {others[0]}", f"not a tar of a class{more}"))
    words = class_words(root, classes)
    return Source("archives", root, classes, splits, words, tuple(containers), notices, label_files, tuple(left_out))


def _class_tars(train: Path) -> tuple[list[tuple[str, tars.Member]], list[str]]:
    """Each WNID and the member that is its tar, sorted, and the names of the other members."""
    with tars.opened(train) as file:
        members = [member for member in tars.members(file, str(train)) if not is_hidden(member.name)]
    class_tars = sorted((Path(member.name).stem, member) for member in members if member.name.endswith(".tar"))
    if not class_tars:
        raise InputError(f"{train} holds no tars of classes: it should hold n01440764.tar and the like")
    twice = next((wnid for (wnid, _), (next_wnid, _) in pairwise(class_tars) if wnid == next_wnid), None)
    if twice:
        raise InputError(f"{train} holds {twice}.tar twice: bring an undamaged copy")
    return class_tars, [member.name for member in members if not member.name.endswith(".tar")]


def _train_images(train: Path, class_tars: list[tuple[str, tars.Member]], notices: list[str]) -> Iterator[SourceImage]:
    with tars.opened(train) as file:
        for label, (wnid, outer) in enumerate(class_tars):
            where, links = f"{train}: {outer.name}", list[str]()
            for name, offset, size in tars.members(file, where, outer.offset, outer.offset + outer.size, links):
                if not is_hidden(name):
                    yield SourceImage(TRAIN_ARCHIVE, offset, size, f"train/{wnid}/{name}", label)
            notices += links_in(f"{TRAIN_ARCHIVE}: {outer.name}", links)


def _val_images(val: Path, labels: Labels, notices: list[str]) -> Iterator[SourceImage]:
    links: list[str] = []
    with tars.opened(val) as file:
        for name, offset, size in tars.members(file, str(val), passed_over=links):
            if not is_hidden(name):
                yield SourceImage(VAL_ARCHIVE, offset, size, f"val/{name}", labels(name))
    notices += [*links_in(VAL_ARCHIVE, links), *labels.unclaimed()]
