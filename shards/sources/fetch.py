"""Fetches files of a source at a URL to the copy of it on this disk: a job for a worker process, with many threads.

A file appears complete. The time of its last change is then a digest of its version at the URL, by which a continued
conversion knows what it need not fetch again.
"""

import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from shards.atomic import atomic_write
from shards.errors import InputError
from shards.processes import tick
from shards.storage import CONNECTIONS, Storage, StoredFile

POLL = 0.2  # seconds between two reports of what has arrived


def is_copied(path: Path, file: StoredFile) -> bool:
    """Whether `path` is a complete copy of this version of the file."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return int(status.st_mtime) == _stamp(file) and file.size in (None, status.st_size)


def _stamp(file: StoredFile) -> int:
    """The time of a copy's last change: a digest of the version, in seconds that all file systems have."""
    return int.from_bytes(hashlib.sha256(file.version.encode()).digest()[:4], "big") >> 1


def fetch_files(url: Storage, root: Path, files: Sequence[StoredFile]) -> None:
    """Fetches these files into the folder `root`. Raises InputError when one cannot be fetched."""
    _Fetching(url, root, files).run()


class _Fetching:
    """Threads that fetch files, and the count of bytes that have arrived, which the first thread reports."""

    def __init__(self, url: Storage, root: Path, files: Sequence[StoredFile]):
        self.url, self.root, self.files = url, root, files
        self.waiting = iter(files)
        self.bytes = self.reported = 0
        self.lock, self.stopped = threading.Lock(), threading.Event()
        self.errors: list[BaseException] = []

    def run(self) -> None:
        """Fetches them all. Raises what a thread raised first."""
        # Daemons: a process that ends does not wait for what is under way
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(min(CONNECTIONS, len(self.files)))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(POLL)
                    self._report()
            self._report()
        except BaseException:
            self.stopped.set()
            for thread in threads:
                thread.join(5 * POLL)  # to remove what is half fetched
            raise
        if self.errors:
            raise self.errors[0]

    def _work(self) -> None:
        try:
            for file in self.waiting:
                if self.stopped.is_set():
                    return
                self._fetch(file)
        except BaseException as error:
            self.errors.append(error)
            self.stopped.set()

    def _fetch(self, file: StoredFile) -> None:
        before = 0

        def arrived(length: int) -> None:
            nonlocal before
            if self.stopped.is_set():
                raise InputError(f"{self.url}/{file.name}: stopped")
            with self.lock:
                self.bytes += length - before
            before = length

        def check(part: Path) -> None:
            length = part.stat().st_size
            if file.size not in (None, length):
                raise ValueError(f"{length} bytes were received, and the list of files says {file.size}")

        with atomic_write(self.root / file.name) as empty:
            part = Path(empty.name)
            self.url.get(file.name, part, check, arrived)
            arrived(part.stat().st_size)
            os.utime(part, (_stamp(file), _stamp(file)))

    def _report(self) -> None:
        """Raises `shards.processes.Cancelled` when the job is to end."""
        with self.lock:
            new, self.reported = self.bytes - self.reported, self.bytes
        tick(new, new)
