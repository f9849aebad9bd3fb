"""Files that nobody means: hidden ones, and what Windows, macOS and network drives leave beside a user's own."""

import os
from pathlib import Path

from shards.errors import InputError

SYSTEM_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "lost+found"}


def is_hidden(path: str) -> bool:
    """Whether a file is to be passed over, by its path in a folder or a tar: its name begins with a dot, or it or a
    folder above it is an operating system's. (A folder above may begin with a dot: tars begin with "./".)"""
    name = path.rpartition("/")[2]
    return name.startswith(".") or not SYSTEM_NAMES.isdisjoint(path.lower().split("/"))


def visible(folder: Path, pattern: str = "*") -> list[Path]:
    """What a folder holds of this pattern, which may name folders in it, sorted, without what is hidden."""
    return sorted(path for path in folder.glob(pattern) if not any(map(is_hidden, path.relative_to(folder).parts)))


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, sorted by name, without what is hidden. Raises InputError when it cannot be read."""
    try:
        with os.scandir(folder) as found:
            some = [entry for entry in found if not is_hidden(entry.name)]
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from None
    return sorted(some, key=lambda entry: entry.name)
