"""The classes of parquet files, each of which numbers them in an order of its own."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from shards.errors import InputError
from shards.sources.match import normal
from shards.sources.reported import WNID, merged, refuse_contradictions, refuse_gaps, reported_names


class Summary(NamedTuple):
    """A parquet file without its images: of each label the first row, and the WNIDs in its images' names with the first
    row of each; the names of the file's own labels if any; the number of rows and a digest of their labels."""

    first: dict[int | str, int]
    wnids: dict[int | str, dict[str, int]]
    names: tuple[str, ...] | None
    rows: int
    digest: str  # of all labels

    @property
    def has_text(self) -> bool:
        """Whether its labels are names themselves."""
        return any(isinstance(label, str) for label in self.first)

    def name(self, label: int | str) -> str:
        """The name of one of its labels."""
        return label if isinstance(label, str) else (self.names or ())[label]


class FileClasses(NamedTuple):
    """The names of the classes, and for each file the class number of each of its labels; `named` is False where no
    file names its labels, so that the names are numbers."""

    classes: tuple[str, ...]
    numbers: dict[Path, dict[int | str, int]]
    named: bool


def file_classes(summaries: Mapping[Path, Summary], train: Iterable[Path]) -> FileClasses:
    """The classes of all files, in the order of the train files' own names.

    Raises: InputError when a file has a label without a name, or a class that no train file names.
    """
    lists = {summary.names: path for path, summary in summaries.items() if summary.names}
    for path, summary in summaries.items():
        highest = max((label for label in summary.first if isinstance(label, int)), default=0)
        if summary.names and highest >= len(summary.names) and not summary.has_text:
            raise InputError(f"{path} has label {highest}, and {len(summary.names)} classes are named")
    if len(lists) > 1 or any(summary.has_text for summary in summaries.values()):
        return _by_name(summaries, list(train))
    names = next(iter(lists), None)
    # One list of names holds for all files; without any, numbers have to do
    used = {label: f"{path}, row {row}" for path, some in summaries.items() for label, row in some.first.items()}
    labels = {label: image for label, image in used.items() if isinstance(label, int)}
    highest = max(labels, default=0)
    if names and highest >= len(names):
        raise InputError(
            f"{labels[highest]}: label {highest} has no name, and {lists[names]} names {len(names)} classes"
        )
    if not names:
        refuse_gaps(labels)
    classes = names or tuple(map(str, range(1 + highest)))
    return FileClasses(classes, {path: {label: label for label in labels} for path in summaries}, names is not None)


def _by_name(summaries: Mapping[Path, Summary], train: list[Path]) -> FileClasses:
    """Each label means the class of its name in its own file."""
    classes: dict[str, str] = {}
    for path, summary in summaries.items():
        names = summary.names or ()
        if not names:
            other = next(other for other, some in summaries.items() if some.names)
            raise InputError(
                f"{path} does not name its labels, and {other} does: files differ in their names, so all need them"
            )
        if len(set(map(normal, names))) < len(names):
            raise InputError(f"{path} gives two of its labels one name, and other files number the names otherwise")
        if path in train:
            for name in names:
                classes.setdefault(normal(name), name)
    if all(summaries[path].has_text for path in train):
        classes = dict(sorted(classes.items(), key=lambda item: item[1]))
    number = {name: at for at, name in enumerate(classes)}
    numbers: dict[Path, dict[int | str, int]] = {path: {} for path in summaries}
    for path, summary in summaries.items():
        for label in summary.first:
            name = summary.name(label)
            if normal(name) not in number:
                raise InputError(f"{path} has images of class {name!r}, which the train files ({train[0]}) do not name")
            numbers[path][label] = number[normal(name)]
    return FileClasses(tuple(classes.values()), numbers, True)


def reported_by_names(files: FileClasses, summaries: Mapping[Path, Summary]) -> dict[int, dict[str, str]]:
    """The WNIDs that the images' names tell, by class number."""
    return merged(
        {files.numbers[path][label]: {wnid: f"{path}, row {row}" for wnid, row in wnids.items()}}
        for path, summary in summaries.items()
        for label, wnids in summary.wnids.items()
    )


def class_wnids(files: FileClasses, reported: dict[int, dict[str, str]], trusted: bool) -> dict[int, str]:
    """The classes' WNIDs, as far as their images' names tell them.

    Raises: InputError, unless the labels are `trusted`, when these contradict them or WNIDs as their names.
    """
    remedy = "correct one, or say with --label-key COLUMN that the labels count"
    if not trusted:
        refuse_contradictions(reported, remedy)
        for number, wnids in reported.items():
            for wnid, image in wnids.items():
                name = files.classes[number]
                if WNID.fullmatch(name) and name != wnid:
                    raise InputError(f"{image} has {wnid} in its image's name, and its label is {name}: {remedy}")
    names = reported_names(reported)
    return {number: name for number, name in names.items() if not WNID.fullmatch(files.classes[number])}
