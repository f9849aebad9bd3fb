"""Files that nobody means: hidden ones, and what Windows, macOS and network drives leave beside a user's own."""

from pathlib import Path

SYSTEM_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "lost+found"}


def is_hidden(path: str) -> bool:
    """Whether a file is to be passed over, by its path in a folder or a tar: its name begins with a dot, or it or a
    folder above it is an operating system's. (A folder above may begin with a dot: tars begin with "./".)"""
    name = path.rpartition("/")[2]
    return name.startswith(".") or not SYSTEM_NAMES.isdisjoint(path.lower().split("/"))


def visible(folder: Path, pattern: str = "*") -> list[Path]:
    """What a folder holds of this pattern, sorted, without what is hidden."""
    return sorted(path for path in folder.glob(pattern) if not is_hidden(path.name))
