"""DALI's webdataset index files (`.idx`): write, read, and build from a tar.

The first line is `v1.2 N`; each further line is a sample: `EXT OFFSET SIZE NAME` for each component, OFFSET being where
its bytes begin in the tar. DALI's reader follows the lines: their order is the samples' order, and a sample without a
line is skipped.
"""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path

import numpy as np

from shards import tars
from shards.atomic import atomic_write
from shards.errors import InputError
from shards.wording import counted

VERSION = "v1.2"
NOT_PLAIN = re.compile(r"[^!-~]")
# Where a sample's image and its class number, in ASCII, lie in its tar, bytes
POSITION = np.dtype([("offset", "<i8"), ("cls_offset", "<i8"), ("size", "<i4"), ("cls_size", "<i4")])


def read_index(path: Path) -> list[str]:
    """The samples' lines, as they are. Raises InputError when the file is missing or not a complete index."""
    remedy = f"rebuild it with `python cli.py index {path.parent}`"
    try:
        header, *entries = path.read_text().splitlines()
        version, count = header.split()
        complete = (
            version == VERSION and int(count) == len(entries) and all(len(line.split()) % 4 == 0 for line in entries)
        )
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {remedy}") from None
    except ValueError:
        complete = False
    if not complete:
        raise InputError(f"{path} is not a complete {VERSION} index: delete it and {remedy}")
    return entries


def write_index(path: Path, entries: Sequence[str]) -> None:
    """Writes the samples' lines, in their order."""
    with atomic_write(path) as file:
        file.write("\n".join([f"{VERSION} {len(entries)}", *entries, ""]).encode())


def entry(parts: Mapping[str, tars.Member], begin: int = 0) -> str:
    """A sample's line, its parts' offsets being counted from byte `begin` of the tar. Blanks separate, so a name's own
    become underscores; a part whose extension has some is skipped (no reader could name it)."""
    return " ".join(
        f"{extension} {begin + offset} {size} {plain(name)}"
        for extension, (name, offset, size) in parts.items()
        if not NOT_PLAIN.search(extension)
    )


def positions(entries: Sequence[str], tar: Path | str) -> np.ndarray:
    """The samples' lines as an array of `POSITION`.

    Raises: InputError when one lists no image or no class number, or numbers that no tar has.
    """
    found = []
    try:
        for line in entries:
            fields = line.split()
            extensions = fields[::4]
            image = 4 * next(i for i, extension in enumerate(extensions) if extension.lower() in tars.IMAGE_EXTENSIONS)
            number = 4 * next(i for i, extension in enumerate(extensions) if extension.lower() == "cls")
            found.append(tuple(map(int, (fields[at] for at in (image + 1, number + 1, image + 2, number + 2)))))
        return np.array(found, POSITION)
    except StopIteration:
        wanted = f"no {' or '.join(tars.IMAGE_EXTENSIONS)}, or no cls"
        raise InputError(f"{tar}: {fields[3]} stands alone, with {wanted}") from None
    except (ValueError, OverflowError) as error:
        raise InputError(f"the index of {tar} lists what cannot be ({error}): delete it, and rebuild it") from None


def end(where: np.ndarray) -> int:
    """Where the last of these parts ends in its tar, bytes; 2^63 - 1 when some begin before the tar does."""
    if not len(where):
        return 0
    sizes = np.stack([where["size"], where["cls_size"]]).astype(np.int64)
    offsets = np.stack([where["offset"], where["cls_offset"]])
    if min(sizes.min(), offsets.min()) < 0:
        return np.iinfo(np.int64).max
    return int((offsets + sizes).max())


def current_index(tar: Path, wanted: int, without: Set[str], notice: Callable[[str], None]) -> np.ndarray:
    """The positions of a tar's samples from its index, which is rebuilt where it is missing or stale, with a notice.

    Args: wanted: how many samples it has to list; without: keys that it must not list. Raises: InputError when the tar
    itself holds another number of samples.
    """
    path = tar.with_suffix(".idx")
    if not path.exists():
        stale = "is missing"
    elif path.stat().st_mtime_ns < tar.stat().st_mtime_ns:
        stale = "is older than its tar"
    else:
        entries = read_index(path)
        where = positions(entries, tar)
        if len(entries) != wanted:
            stale = f"lists {counted(entries, 'sample')} and its tar holds {wanted}"
        elif end(where) > tar.stat().st_size:
            stale = "points beyond its tar's end"
        else:
            return where
    entries = index_tar(tar, without)
    if len(entries) != wanted:
        remedy = f"`python cli.py verify {tar.parent}` says what is wrong"
        raise InputError(f"{tar} holds {counted(entries, 'sample')} that may be used, and not {wanted}: {remedy}")
    notice(f"{path} {stale}: it is rebuilt")
    with contextlib.suppress(InputError):  # a folder that cannot be written to does not need it either
        write_index(path, entries)
    return positions(entries, tar)


def plain(key: str) -> str:
    """A sample's key as an index spells it."""
    return NOT_PLAIN.sub("_", key)


def components(entry: str) -> list[list[str]]:
    """A sample's line as its components: [EXT, OFFSET, SIZE, NAME] each."""
    fields = entry.split()
    return [fields[i : i + 4] for i in range(0, len(fields), 4)]


def index_tar(tar: Path, without: Set[str] = frozenset()) -> list[str]:
    """The samples' lines of a tar, from its headers, except those with the keys `without`. Raises InputError when it
    cannot be read as a tar."""
    return [entry(sample.parts) for sample in tars.samples(tar) if plain(sample.key) not in without]
