"""Files that appear complete or not at all, and locks on folders."""

import fcntl
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from shards.errors import InputError


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write; it takes `path`'s name, synced, only when the block ends without an error.

    Until then it is `.NAME.tmp-PID` in the same folder, which is removed after an error and may be left by a kill.
    Raises: InputError when the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror}; make room, or choose another folder") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # otherwise a power cut may lose the new name
    finally:
        os.close(folder)


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
            self.pending, self.unflushed = self.thread.submit(os.fdatasync, self.file), 0

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
def locked(folder: Path, wait: float = 0) -> Iterator[None]:
    """Locks a folder, so that no other command of this project writes to it. Raises InputError when one still has the
    lock after `wait` seconds, or there is no such folder."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputError(f"{folder} cannot be opened: {error.strerror}") from None
    try:
        until = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    text = f"another command is writing to {folder}: wait for it, or choose another folder"
                    raise InputError(text) from None
                time.sleep(0.1)
        yield
    finally:
        os.close(handle)
