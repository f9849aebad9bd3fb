"""What a source's folder holds beside what is taken from it. It is named: nobody sees that images are missing."""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from shards.console import notice
from shards.dataset import FILE, PLAN
from shards.errors import InputError
from shards.hidden import entries, is_hidden
from shards.records import Skipped
from shards.sources.match import SUFFIXES
from shards.wording import counted

ARCHIVE = re.compile(r"\.(tar(\.(gz|bz2|xz|zst|lz4|part\w*|\d+))?|tgz|tbz2?|txz|zip|7z|rar|parquet)$", re.IGNORECASE)
COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4)|tgz|tbz2?|txz)$", re.IGNORECASE)
# Archives of ImageNet that are of no use here: test images without labels, boxes, other tasks; Kaggle's one, unpacked
OF_NO_USE = re.compile(
    r"ILSVRC2012_(img_test|img_train_t3|devkit|bbox)|imagenet[_-]object[_-]localization", re.IGNORECASE
)
# train-000000.tar, train-00000-of-00003.parquet, and with a hash behind it
NUMBERED = re.compile(r"(.*?)(\d+)(?:-of-(\d+))?(?:-[0-9a-f]{16}|\D*)\.(?:tar|parquet)")
MOST_ABSENT = 10  # pieces for each that is there; where more are, the numbers count something else
SHOWN = 10  # of what is left out, in messages


def beside(
    root: Path, folder: str, taken: Collection[str], why: str, whys: Mapping[str, str] | None = None
) -> Iterator[Skipped]:
    """What a folder within `root` ("" is the root itself) holds of images, archives and folders of such, beside the
    entries that are taken: each folder, and of files the first, with their count.

    Args: why: the reason and what to do, for the message; whys: of folders that have one of their own.
    """
    files: dict[str, list[str]] = {}
    for entry in entries(root / folder):
        name = f"{folder}/{entry.name}" if folder else entry.name
        if entry.name in taken:
            continue
        if os.path.isdir(entry):
            if kind := next(filter(None, map(kind_of, _names_below(entry.path))), None):
                yield Skipped(f"{name}/", f"a folder with {kind}s ({(whys or {}).get(entry.name, why)})")
        elif kind := kind_of(entry.name):
            files.setdefault(kind, []).append(name)
    for kind, (first, *more) in files.items():
        yield Skipped(first, f"an {kind} ({why})" if not more else f"an {kind}, as are {len(more)} more there ({why})")


def holds_images(folder: Path) -> bool:
    """Whether a folder, or one inside it, has a file that is an image by its name."""
    return any(kind_of(name) == "image" for name in _names_below(str(folder)))


def beside_files(root: Path, files: Iterable[Path], why: str) -> Iterator[Skipped]:
    """What `root` and the folders of these files, which are taken, hold beside them. Args: why: as of `beside`."""
    taken: dict[str, set[str]] = {"": set()}
    for path in files:
        parts = path.relative_to(root).parts
        for depth, part in enumerate(parts):
            taken.setdefault("/".join(parts[:depth]), set()).add(part)
    for folder, names in sorted(taken.items()):
        yield from beside(root, folder, names, why)


def missing_pieces(files: Iterable[Path]) -> Iterator[Skipped]:
    """Pieces that a numbered set lacks: a gap in 000000, 000001, ..., or fewer than "-of-00003" says."""
    sets: dict[tuple[Path, str, str | None], dict[int, str]] = {}
    for path in files:
        if match := NUMBERED.fullmatch(path.name):
            before, number, count = match.groups()
            sets.setdefault((path.parent, before, count), {})[int(number)] = number
    for (_, before, count), numbers in sets.items():
        first = 0 if count and int(count) not in numbers else min(numbers)
        size = int(count) if count else max(numbers) + 1 - first
        absent = size - len(numbers)
        if absent <= 0 or (not count and absent > (MOST_ABSENT if first < 2 else 1) * len(numbers)):
            continue
        number = next(number for number in range(first, first + size) if number not in numbers)
        width = len(numbers[min(numbers)])
        name = f"{before}{number:0{width}}" + (f"-of-{count}" if count else "")
        more = f", as are {absent - 1} more" if absent > 1 else ""
        yield Skipped(name, f"it is missing{more} (there are {len(numbers)} of {counted(size, 'piece')})")


def compressed_tars(folder: Path) -> str | None:
    """A hint for a folder in which tars were looked for, and only compressed ones are; None when there are none."""
    names = [
        entry.name for entry in entries(folder) if COMPRESSED.search(entry.name) and not OF_NO_USE.match(entry.name)
    ]
    return f"{names[0]} is compressed: decompress it, with gunzip or the like, into a plain .tar" if names else None


def links_in(tar: str, names: Sequence[str]) -> list[str]:
    """A line for the links and sparse files of a tar, which have no image of their own; none when there are none."""
    if not names:
        return []
    more = f", as are {len(names) - 1} more" if len(names) > 1 else ""
    remedy = "write the tar again with `tar --dereference --hard-dereference`"
    return [f"not taken: {tar}: {names[0]}: a link or a sparse file{more}: {remedy}"]


def notices(left_out: Iterable[Skipped]) -> list[str]:
    """A line for each, of the first."""
    lines = [f"not taken: {skipped.file}: {skipped.reason}" for skipped in left_out]
    return lines[:SHOWN] + ([f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])


def give_notice(lines: Sequence[str], strict: bool) -> None:
    """Prints a source's notices. Raises InputError when there are some although that is not allowed."""
    if strict and lines:
        raise InputError(f"--strict: {'; '.join(lines)}")
    for text in lines:
        notice(f"notice: {text}")


def kind_of(name: str) -> str | None:
    """What a file is by its name or path: an image, an archive of images, or neither."""
    if is_hidden(name) or OF_NO_USE.match(name):
        return None
    if os.path.splitext(name)[1].lower() in SUFFIXES:
        return "image"
    return "archive" if ARCHIVE.search(name) else None


def _names_below(folder: str) -> Iterator[str]:
    """The names of all files in a folder and in those inside it, without data sets, which `shard` writes there too."""
    for _, folders, names in os.walk(folder):
        if FILE in names or PLAN in names:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield from names
