"""WebDataset tars as a source: the split in a tar's name, the class number in a sample's `.cls`, the class's name."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shards import tars
from shards.errors import InputError
from shards.hidden import visible
from shards.processes import run_jobs, tick
from shards.sources.base import Source, SourceImage, split_of
from shards.sources.labels import class_words


def find_webdataset(root: Path, workers: int) -> Source:
    """Tars of `KEY.jpg` (jpeg, png, webp) and `KEY.cls`, each named after its split."""
    grouped = tars_by_split(root)
    jobs = [(tar,) for group in grouped.values() for tar in group]
    names = class_names(run_jobs(read_classes, jobs, workers, "read labels", None))
    splits = {split: _images(group) for split, group in grouped.items()}
    return Source("webdataset", root, names, splits, class_words(root), tuple(tar for (tar,) in jobs))


def _images(group: list[Path]) -> Iterator[SourceImage]:
    for tar in group:
        with tars.opened(tar) as file:
            for sample in tars.samples(tar):
                if (fault := sample.fault) or sample.image is None:
                    raise InputError(_unusable(tar, sample, fault))
                label = read_label(file, str(tar), sample)
                name, offset, size = sample.image
                yield SourceImage(tar.name, offset, size, f"{tar.name}/{name}", label)


def _unusable(tar: Path, sample: tars.TarSample, fault: str | None) -> str:
    """The message for a sample that is not an image with a class."""
    rest = next((other for other in tars.samples(tar) if other.key == sample.key and other != sample), None)
    if rest:
        return f"{tar}: sample {sample.key}: {tars.repeated(sample.parts, rest.parts)}"
    remedy = "repair the tar, or train on it where it is: `python cli.py index` skips such samples"
    return f"{tar}: sample {sample.key} has {fault}: {remedy}"


def tars_by_split(root: Path) -> dict[str, list[Path]]:
    """A folder's tars in order, by the split in their names. Raises InputError when a name has none."""
    grouped: dict[str, list[Path]] = {}
    for tar in visible(root, "*.tar"):
        split = split_of(tar)
        if split is None:
            known = "train, val or test"
            raise InputError(f"{tar} has no split in its name: rename it so that {known} is a word of its name")
        grouped.setdefault(split, []).append(tar)
    if "train" not in grouped:
        raise InputError(f"{root} holds no tars of a train split, like train-000000.tar")
    return {split: grouped[split] for split in sorted(grouped, key=["train", "val", "test"].index)}


def read_label(file: int, where: str, sample: tars.TarSample) -> int:
    """A sample's class number. Raises InputError when `.cls` is not a number below a million."""
    part = sample.part("cls")
    assert part, "a sample without a class number has none to be read"
    _, offset, size = part
    text = os.pread(file, min(size, 32), offset)
    if size > len(text) or not re.fullmatch(rb"\s*\d{1,6}\s*", text):
        raise InputError(f"{where}: {sample.key}.cls holds {text!r} and should be a class number, like 7")
    return int(text)


def read_classes(tar: Path) -> dict[int, set[str]]:
    """A tar's class numbers, and the names that its samples give each."""
    classes: dict[int, set[str]] = {}
    with tars.opened(tar) as file:
        for sample in tars.samples(tar):
            if sample.part("cls"):
                name = class_name(sample, tars.description(file, sample))
                classes.setdefault(read_label(file, str(tar), sample), set()).update([name] if name else [])
            tick(1, 0)
    return classes


def class_name(sample: tars.TarSample, description: dict[str, Any]) -> str | None:
    """The name that a sample gives its class: its description's WNID, otherwise that at the beginning of its key."""
    if isinstance(wnid := description.get("wnid"), str):
        return wnid
    match = re.match(r"n\d{8}(?=_|$)", sample.name)
    return match.group() if match else None


def class_names(by_tar: Iterable[dict[int, set[str]]]) -> tuple[str, ...]:
    """The names of the classes 0, 1, ...: the name that all samples of a class give it, otherwise its number.

    Args: by_tar: what `read_classes` returns for each tar.
    """
    names: dict[int, set[str]] = {}
    for classes in by_tar:
        for label, given in classes.items():
            names.setdefault(label, set()).update(given)
    return tuple(
        next(iter(names[label])) if len(names.get(label, ())) == 1 else str(label)
        for label in range(max(names, default=-1) + 1)
    )
