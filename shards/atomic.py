"""Files that appear complete or not at all, and locks on folders, on file systems that lack some of POSIX too."""

import errno
import fcntl
import functools
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from shards.console import notice
from shards.errors import InputError

# How a file system says that it has no such call: FAT, SMB, FUSE and shared folders of virtual machines have not all
UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY}
NO_LOCKS = UNSUPPORTED | {errno.ENOLCK, errno.EBADF}  # EBADF: NFS locks exclusively only what is open for writing


def make_output_folder(out: Path, option: str = "--out") -> None:
    """Makes the folder of an option, and tries whether it can be written to. Raises InputError if it cannot."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        # A nameless file: processes of several machines may be trying the same folder
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(f"{option} {out} cannot be written ({error.strerror}): choose another folder") from None


def _temporary(path: Path) -> Path:
    """Threads of several machines may write to a shared folder, some under the same number."""
    return path.with_name(f".{path.name}.tmp-{os.uname().nodename}-{threading.get_native_id()}")


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write; it takes `path`'s name, synced, only when the block ends without an error.

    Until then it is `.NAME.tmp-HOST-THREAD` in the same folder, which is removed after an error and may be left by a
    kill. Raises: InputError when the disk is full or the folder cannot be written.
    """
    temporary = _temporary(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            sync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror}; make room, or choose another folder") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_copy(source: Path, path: Path) -> None:
    """Gives a file a second name, which appears at once; where the file system has no hard links, by a copy. Raises:
    InputError as `atomic_write` does."""
    temporary = _temporary(path)
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # whatever the reason is, a copy serves as well
        with open(source, "rb") as content, atomic_write(path) as file:
            shutil.copyfileobj(content, file, 2**20)
    else:
        os.replace(temporary, path)


def sync(file: int, call: Callable[[int], None] = os.fsync) -> None:
    """Brings an open file's data to the disk, where the file system can. Raises OSError when that fails."""
    try:
        call(file)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def _sync_folder(folder: Path) -> None:
    """Otherwise a power cut may lose a new name. A folder that cannot be opened to read is passed over."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        sync(handle)
    finally:
        os.close(handle)


class Flusher:
    """Syncs a file in the background while it is being written, so that the sync at its end has little left to do."""

    EVERY = 32 * 2**20  # bytes

    def __init__(self, file: int):
        self.file, self.unflushed = file, 0
        self.pending: Future[None] | None = None
        self.thread = ThreadPoolExecutor(1)

    def wrote(self, length: int) -> None:
        """This many more bytes are written. Raises OSError when earlier ones could not reach the disk."""
        self.unflushed += length
        if self.unflushed >= self.EVERY and (self.pending is None or self.pending.done()):
            self.wait()
            self.pending, self.unflushed = self.thread.submit(sync, self.file, os.fdatasync), 0

    def wait(self) -> None:
        """Waits for the sync in progress. Raises OSError as `wrote` does."""
        if self.pending:
            self.pending.result()

    def __enter__(self) -> "Flusher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.thread.shutdown()
        if kind is None:
            self.wait()


@contextmanager
def locked(folder: Path, wait: float = 0, shared: bool = False, named: str = "") -> Iterator[None]:
    """Locks a folder, so that no other command of this project writes to it; `shared`: but for those that share it,
    too; `named`: what users know it by, if not by its path. Where the file system has no locks, that is said once.
    Raises InputError when another still has the lock after `wait` seconds, or there is no such folder."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputError(f"{folder} cannot be opened: {error.strerror}") from None
    try:
        until = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    text = f"another command is writing to {named or folder}: wait for it, or choose another folder"
                    raise InputError(text) from None
                time.sleep(0.1)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise InputError(f"{folder} cannot be locked: {error.strerror}") from None
                _say_no_locks(folder, error.strerror)
                break
        yield
    finally:
        os.close(handle)


@functools.cache
def _say_no_locks(folder: Path, reason: str) -> None:
    notice(f"{folder} cannot be locked ({reason}): do not let two commands write there at the same time")
