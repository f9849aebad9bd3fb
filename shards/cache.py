"""A bounded cache of fetched shards on the local disk, which any number of processes share, and their prefetching.

The cache's state is its files and their locks (flock), which the kernel releases when a process is killed: a shard that
is being read is locked shared, one that is being fetched exclusively, and whoever wants to delete one has to lock it
exclusively first. So no shard is fetched twice, and none is deleted while it is in use.
"""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shards.atomic import locked, sync
from shards.errors import InputError
from shards.records import Shard

LOCK_TIMEOUT = 120  # seconds to wait for other processes: to close a shard when the cache is full, and for its lock
SUFFIX = ".cached"  # ends the name of each shard in a cache, so that nothing else is ever deleted there
PART = ".part-"  # stands between the name of a file that is being fetched and the size that it will have


def user_cache() -> Path:
    """The project's folder in the user's cache folder. Raises InputError for a user without a home folder."""
    if parent := os.environ.get("XDG_CACHE_HOME"):
        return Path(parent) / "alexnet-dali"
    try:
        return Path.home() / ".cache" / "alexnet-dali"
    except RuntimeError:  # no $HOME, and a user whom the system does not know, as in a container
        raise InputError("there is no home folder for a cache: set HOME or XDG_CACHE_HOME") from None


@dataclass(frozen=True)
class Cache:
    """Files fetched into the folders of `root`, of at most `limit` bytes together."""

    root: Path
    limit: int

    def open(self, path: Path, size: int, download: Callable[[Path], None]) -> BinaryIO:
        """A file of the cache, which nobody deletes before it is closed.

        Args: path: in a folder of `root`; size: bytes; download: writes the file given to it. Raises: InputError when
        there is no room, or `download` does.
        """
        while True:
            try:
                file = open(path, "rb")  # noqa: SIM115 - the caller closes it
            except FileNotFoundError:
                self.fetch(path, size, download)
                continue
            _lock(file, fcntl.LOCK_SH)
            if os.fstat(file.fileno()).st_nlink:  # it was not deleted in between
                with contextlib.suppress(OSError):  # another user's, or on a read-only disk: it only looks less used
                    os.utime(file.fileno())
                return file
            file.close()

    def fetch(self, path: Path, size: int, download: Callable[[Path], None]) -> None:
        """Brings a file into the cache unless it is there or another process or thread does. Arguments as of `open`."""
        part = path.with_name(f".{path.name}{PART}{size}")
        while not path.exists():
            file, ours = self._reserve(part)
            with file:
                if not ours:
                    # Waits until the other has finished or given up, then checks again. The lock is shared, because
                    # by then the file may be the complete shard, held by readers that wait for this process elsewhere
                    _lock(file, fcntl.LOCK_SH)
                    continue
                if path.exists():  # it was fetched since the check above
                    part.unlink()
                    return
                try:
                    download(part)
                    _sync(part)
                    with locked(self.root, wait=LOCK_TIMEOUT):
                        part.rename(path)
                except BaseException:
                    part.unlink(missing_ok=True)
                    raise

    def _reserve(self, part: Path) -> tuple[BinaryIO, bool]:
        """Opens the part file and makes room for it; and whether it is ours to write or another's already."""
        end = time.monotonic() + LOCK_TIMEOUT
        while True:
            with locked(self.root, wait=LOCK_TIMEOUT):
                try:
                    # NFS locks a file for readers only if it is open to read, and exclusively only if to write
                    file = open(part, "a+b")  # noqa: SIM115 - the caller closes it
                except OSError as error:
                    raise InputError(f"{part.parent} cannot be written: {error.strerror}") from None
                if not _try_lock(file) or not os.fstat(file.fileno()).st_nlink:  # another's, or given up by another
                    return file, False
                if self._make_room():
                    return file, True
                part.unlink()
                file.close()
            if time.monotonic() > end:
                raise InputError(f"{self.root}: every file in the cache is in use: raise --cache-size {self.limit}")
            time.sleep(0.1)

    def _make_room(self) -> bool:
        """Deletes the least recently used files until the rest fits, with those being fetched; whether it does."""
        files = []
        for pattern in (f"*/*{SUFFIX}", f"*/.*{SUFFIX}{PART}*"):
            for path in self.root.glob(pattern):
                with contextlib.suppress(FileNotFoundError):  # a fetch that failed
                    status = path.stat()
                    _, fetching, final_size = path.name.rpartition(PART)
                    files.append((status.st_mtime_ns, path, int(final_size) if fetching else status.st_size))
        total = sum(size for _, _, size in files)
        for _, path, size in sorted(files):
            if total <= self.limit:
                break
            # Another user's file cannot be opened to write, and so neither locked exclusively nor deleted
            with contextlib.suppress(FileNotFoundError, PermissionError), open(path, "r+b") as file:
                if _try_lock(file):
                    path.unlink()
                    total -= size
        return total <= self.limit


class Prefetcher:
    """Opens shards one after the other, in an order known in advance, while threads fetch the next `depth`."""

    def __init__(self, open_shard: Callable[[Shard], BinaryIO], order: Sequence[Shard], depth: int):
        self.open_shard, self.order, self.depth = open_shard, order, depth
        self.started = 0  # this many shards of the order are fetched or being fetched

    def open(self, position: int) -> BinaryIO:
        """The shard at a position of the order, once it is there."""
        file = self.open_shard(self.order[position])  # waits for the thread that fetches it, by the file's lock
        for number in range(max(self.started, position + 1), min(position + 1 + self.depth, len(self.order))):
            # A daemon: a run that ends does not wait for shards that it no longer needs
            threading.Thread(target=self._fetch, args=(self.order[number],), daemon=True).start()
            self.started = number + 1
        return file

    def _fetch(self, shard: Shard) -> None:
        with contextlib.suppress(InputError):  # whoever opens the shard tries again, and reports the error
            self.open_shard(shard).close()


def _try_lock(file: BinaryIO) -> bool:
    """Locks a file exclusively, unless another has locked it."""
    try:
        _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock(file: BinaryIO, how: int) -> None:
    """Raises BlockingIOError when it would have to wait and may not, InputError where the file system has no locks."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        raise
    except OSError as error:
        folder = Path(file.name).parent.parent
        remedy = "choose a folder on a local disk with --cache"
        raise InputError(
            f"{folder}: its file system cannot lock the cache's files ({error.strerror}): {remedy}"
        ) from None


def _sync(path: Path) -> None:
    with open(path, "r+b") as file:
        sync(file.fileno())
