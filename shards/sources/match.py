"""Which line of a list of labels is an image's, and which class it means."""

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from shards.errors import InputError

# An image that was re-encoded has another of these than its line in the list
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


class Line(NamedTuple):
    """A line of a list: its number, the image and the class that it names."""

    number: int
    file: str
    named: str


class LabelList(NamedTuple):
    """A list of labels: its file and its lines."""

    path: Path
    lines: list[Line]


class _Entry(NamedTuple):
    """A line with the folders of its image, and the number of its class (None for one that train lacks)."""

    path: Path
    line: Line
    folders: tuple[str, ...]
    label: int | None

    @property
    def where(self) -> str:
        return f"{self.path}, line {self.line.number} ({self.line.file} {self.line.named})"


class Labels:
    """The class numbers of a split's images by their names in it, from all lists at once.

    A line is an image's when it names the image's path or an end of it, with the suffix or without one; where no line
    does, one with another suffix will do (images are re-encoded). An image whose lines name two classes, and a line
    that two images could claim, are errors: a guess would be a wrong label that nobody sees.
    """

    def __init__(self, lists: Sequence[LabelList], classes: Sequence[str]):
        self.lists = lists
        self.classes = {normal(name): label for label, name in enumerate(classes)}
        self.by_name: dict[str, list[_Entry]] = {}
        self.by_stem: dict[str, list[_Entry]] = {}
        self.claimed: dict[tuple[Path, int], str] = {}  # by a line's list and number, the image that it is of
        for path, lines in lists:
            for line, label in zip(lines, class_numbers(path, lines, classes), strict=True):
                *folders, name = _parts(line.file) or ("",)
                entry = _Entry(path, line, tuple(folders), label)
                self.by_name.setdefault(name, []).append(entry)
                if (stem := _stem(name)) != name:
                    self.by_stem.setdefault(stem, []).append(entry)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(path for path, _ in self.lists)

    def __call__(self, name: str) -> int:
        """The class number of the image of this name in its split. Raises InputError when no line, or more than one
        class, is given to it, and when train lacks the class."""
        entries = self._entries(name)
        if not entries:
            paths = " or ".join(map(str, self.files))
            raise InputError(f"{paths} has no label for {name}: bring the labels of these very images")
        first = entries[0]
        for entry in entries:
            if entry.label is None:
                raise InputError(
                    f"{entry.path} says that {name} is of class {entry.line.named}, which the train split lacks"
                )
            if entry.label != first.label:
                raise InputError(f"{name} is given two classes: {first.where} and {entry.where}: remove the wrong line")
            other = self.claimed.setdefault((entry.path, entry.line.number), name)
            if other != name:
                raise InputError(
                    f"{entry.where} could be of {other} and of {name}: give each its path in a line of its own"
                )
        assert first.label is not None
        for folder in _parts(name)[:-1]:
            if self.classes.get(folder, first.label) != first.label:
                raise InputError(f"{name} is given two classes: {first.where} and its folder {folder}: correct one")
        return first.label

    def compare(self, name: str, label: int) -> None:
        """Raises InputError when a line gives an image of class `label` another one."""
        for entry in self._entries(name):
            if entry.label != label:
                raise InputError(f"{name} is given two classes: {entry.where} and its folder: correct one")

    def unclaimed(self) -> list[str]:
        """For each list, what it says of images that were not asked for; empty where there are none."""
        found = []
        for path, lines in self.lists:
            rest = [line for line in lines if (path, line.number) not in self.claimed]
            if rest:
                found.append(
                    f"{path} has labels for {len(rest)} of {len(lines)} images that are not there, like {rest[0].file}"
                )
        return found

    def _entries(self, name: str) -> list[_Entry]:
        """The lines that are of this image."""
        *folders, base = _parts(name)
        stem = PurePosixPath(base).stem
        candidates = self.by_name.get(base, []) + (self.by_name.get(stem, []) if stem != base else [])
        for some in (candidates, self.by_stem.get(_stem(base), [])):
            if fitting := [entry for entry in some if _ends_alike(entry.folders, folders)]:
                return fitting
        return []


def class_numbers(path: Path, lines: Sequence[Line], classes: Sequence[str]) -> list[int | None]:
    """The number of the class that each line names, by the class's name or its number from 0; None for a name that is
    not a class's. Where classes are called by numbers, a number is a name.

    Raises: InputError for a number without a class, and when some of the numbers can only be names and others cannot.
    """
    by_name = {normal(name): label for label, name in enumerate(classes)}
    if len(by_name) < len(classes):
        raise InputError(f"{path}: two classes have one name in two Unicode forms: rename one of their folders")
    names = [normal(line.named) for line in lines]
    by_value = _by_value(classes)
    numbers = {name: int(name) for name in names if name.isdecimal()}
    as_names = {name: by_name.get(name, by_value.get(value)) for name, value in numbers.items()}
    if numbers and None in as_names.values():
        # Not all of them are classes' names, so they are meant to be numbers
        for line, name in zip(lines, names, strict=True):
            if name not in numbers:
                continue
            if numbers[name] >= len(classes):
                form = f"FILE CLASS with CLASS from 0 to {len(classes) - 1} or a WNID"
                raise InputError(f"{path}, line {line.number}: {f'{line.file} {line.named}'[:80]!r} is not {form}")
            if as_names[name] not in (None, numbers[name]):
                other = next(other for other, label in as_names.items() if label is None)
                raise InputError(
                    f"{path}, line {line.number}: {line.named} is the name of a class, and the number of class "
                    f"{classes[numbers[name]]}, and {other} can only be a number: write the classes' names"
                )
        as_names = dict(numbers)
    return [as_names[name] if name in numbers else by_name.get(name) for name in names]


def normal(name: str) -> str:
    """A name in one of the forms in which Unicode can write it: file systems and editors differ in theirs."""
    return unicodedata.normalize("NFC", name)


def _by_value(classes: Sequence[str]) -> dict[int, int]:
    """The classes that are called by numbers, by these; "007" is 7, unless another class is called that too."""
    labels: dict[int, list[int]] = {}
    for label, name in enumerate(classes):
        if name.isdecimal():
            labels.setdefault(int(name), []).append(label)
    return {value: some[0] for value, some in labels.items() if len(some) == 1}


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(normal(name).replace("\\", "/")).parts


def _stem(name: str) -> str:
    """The name without an image's suffix."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in SUFFIXES else name


def _ends_alike(some: Iterable[str], others: Iterable[str]) -> bool:
    """Whether one of two paths ends with the other."""
    return all(one == other for one, other in zip(reversed(tuple(some)), reversed(tuple(others)), strict=False))
