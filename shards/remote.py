"""Data sets in object storage: small files are copied, shards are read through a bounded cache on the local disk.

A data set's folder may be a URL that fsspec knows (https://, s3://, gs:// ...). `dataset.json`, `stats.npz` and the
indices are copied into a folder of the cache whose name depends on what `dataset.json` says, so that another data set
at the same URL never meets the old one's shards. The tars of `s3://` DALI's reader can read itself; all others are
fetched whole, ahead of their use, and the least recently used are deleted.

The cache's state is its files and their locks (flock), which the kernel takes back from a killed process: a shard being
read is locked shared, one being fetched exclusively, and who wants to delete one has to lock it exclusively first. So
any number of processes share a cache, fetch nothing twice and delete nothing that is in use.

Credentials come from where the storage's own library looks for them, the environment first.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from shards.atomic import atomic_write, locked
from shards.check_sample import sha256
from shards.errors import InputError
from shards.index import components, read_index
from shards.records import Shard

LIMIT = 64 * 2**30  # bytes of a cache whose size is not given
FEWEST = 4  # shards a cache has to hold: two splits, each at a seam where ranks read this shard and the next
AHEAD = 4  # shards that are fetched while one is read, at most
CONNECTIONS = 16  # for small files
PAUSES = (0.5, 1, 2, 4)  # seconds before a fetch is tried again
PATIENCE = 120  # seconds to wait for others: to close a shard when the cache has no room, and to look at its folder
CACHED = ".cached"  # ends the name of each shard in a cache, so that nothing else is ever deleted there
PLAIN_NAME = re.compile(r"[\w-][\w.-]*\.tar", re.ASCII)


def is_url(text: str) -> bool:
    """Whether a data set's place is a URL and not a folder."""
    return "://" in text


@dataclass(frozen=True)
class Remote:
    """A data set's folder in object storage.

    Args: url: without credentials; cache: the cache's folder, None for `$XDG_CACHE_HOME/alexnet-dali`; limit: bytes of
    the shards in it, None for 64 GiB. Raises: InputError for a URL that holds credentials or parameters, or that no
    installed library reads.
    """

    url: str
    cache: Path | None = None
    limit: int | None = None

    def __post_init__(self):
        parts = urlsplit(self.url)
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # a secret is not to be printed
        if parts.password is not None or ("@" in parts.netloc and parts.scheme in ("http", "https")):
            remedy = "credentials come from the environment, as AWS_ACCESS_KEY_ID or ~/.netrc"
            raise InputError(f"{shown}: the URL holds credentials; leave them out: {remedy}")
        if parts.query or parts.fragment or "::" in self.url or not (parts.netloc + parts.path).strip("/"):
            raise InputError(f"{shown}: give the plain URL of the data set's folder, without parameters")
        object.__setattr__(self, "url", self.url.rstrip("/"))
        self._files()

    def __str__(self) -> str:
        return self.url

    @property
    def by_dali(self) -> bool:
        """Whether DALI's reader reads the tars itself: `s3://`, unless a cache is asked for."""
        return self.url.startswith("s3://") and self.cache is None and self.limit is None

    def copy_description(self) -> Path:
        """Copies `dataset.json` and `stats.npz`, and returns the local folder they and the other copies are in."""
        described = self._small("dataset.json")
        name = re.sub(r"[^\w-]", "_", self.url.rpartition("/")[2])
        folder = self._cache.root / f"{name}-{hashlib.sha256(self.url.encode() + described).hexdigest()[:32]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--cache {folder.parent} cannot be written: {error.strerror}") from None
        for file, content in (("dataset.json", described), ("stats.npz", self._small("stats.npz"))):
            _write_if_new(folder / file, content)
        return folder

    def check_names(self, shards: Iterable[Shard]) -> None:
        """Raises InputError for names that may lead out of the cache or mean something in a URL."""
        for shard in shards:
            if not PLAIN_NAME.fullmatch(shard.name):
                raise InputError(f"{self.url}/dataset.json names a shard that is no plain tar: {shard.name!r}")

    def tars(self, shards: Sequence[Shard]) -> list[str]:
        """The shards' URLs. Raises InputError for a cache that is too small for them, and, where DALI reads them, for
        one that is not there or of another length."""
        if self.by_dali:
            self._each(self._check_length, shards)
        elif self.ahead(shards) < 1:
            size = f"a cache of {self._cache.limit} bytes does not hold {FEWEST} shards of {_largest(shards)}"
            raise InputError(f"{self.url}: {size}: raise --cache-size")
        return [f"{self.url}/{shard.name}" for shard in shards]

    def ahead(self, shards: Sequence[Shard]) -> int:
        """How many of these shards may be fetched ahead, so that they and those in use fit into the cache."""
        return min(AHEAD, self._cache.limit // max(1, _largest(shards)) - FEWEST + 1)

    def indices(self, folder: Path, shards: Sequence[tuple[Shard, int]]) -> list[list[str]]:
        """The lines of each shard's index, which is copied first. Args: shards: each with the samples that its index
        has to list. Raises: InputError when one is missing or does not fit its tar."""

        def copied(wanted: tuple[Shard, int]) -> list[str]:
            shard, samples = wanted
            path = (folder / shard.name).with_suffix(".idx")
            if not path.exists():
                _write_if_new(path, self._small(path.name))
            entries = read_index(path)
            parts = [part for line in entries for part in components(line)]
            inside = all(0 <= int(offset) <= int(offset) + int(size) <= shard.bytes for _, offset, size, _ in parts)
            if len(entries) != samples or not inside:
                path.unlink()
                remedy = "make it anew with `python cli.py index` in the folder that was copied there"
                raise InputError(f"{self.url}/{path.name} does not fit its tar: {remedy}")
            return entries

        return self._each(copied, shards)

    def open(self, folder: Path, shard: Shard) -> BinaryIO:
        """A shard to read. Through the cache it is fetched unless it is there, and stays until the file is closed."""
        if self.by_dali:
            files, root = self._files()
            return files.open(f"{root}/{shard.name}", cache_type="none")
        path = folder / f"{shard.name}{CACHED}"
        return self._cache.open(path, shard.bytes, lambda part: self._download(shard, part))

    def _download(self, shard: Shard, part: Path) -> None:
        """Fetches a whole shard into a file, and checks it. Raises InputError when it cannot be had."""
        files, root = self._files()

        def fetch() -> None:
            files.get_file(f"{root}/{shard.name}", str(part))
            if (length := part.stat().st_size) != shard.bytes:
                raise ValueError(f"{length} bytes came, and dataset.json says {shard.bytes}")
            if shard.sha256 and sha256(part) != shard.sha256:
                raise ValueError("its SHA-256 is not the one in dataset.json")

        self._retried(fetch, shard.name)

    def _small(self, name: str) -> bytes:
        files, root = self._files()
        return self._retried(lambda: files.cat_file(f"{root}/{name}"), name)

    def _check_length(self, shard: Shard) -> None:
        files, root = self._files()
        length = self._retried(lambda: files.size(f"{root}/{shard.name}"), shard.name)
        if length != shard.bytes:
            raise InputError(f"{self.url}/{shard.name} has {length} bytes, and dataset.json says {shard.bytes}")

    def _retried(self, fetch: Callable[[], Any], name: str) -> Any:
        """What `fetch` returns, which is tried again after whatever a library raises. Raises InputError at last."""
        for pause in (*PAUSES, None):
            try:
                return fetch()
            except FileNotFoundError:
                remedy = "copy a whole data set there, made by `python cli.py shard` or `index`"
                raise InputError(f"{self.url}/{name} is missing: {remedy}") from None
            except PermissionError as error:
                raise InputError(f"{self.url}/{name} cannot be read ({error}): give credentials for it") from None
            except Exception as error:
                if pause is None:
                    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                    tries = f"tried {len(PAUSES) + 1} times"
                    raise InputError(f"{self.url}/{name} cannot be fetched, {tries}: {reason}") from None
            time.sleep(pause)

    def _each(self, work: Callable, items: Iterable) -> list:
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            return list(threads.map(work, items))

    def _files(self) -> tuple[Any, str]:
        """fsspec's file system, and the data set's folder as it calls it."""
        options = {}
        try:
            import fsspec

            if self.url.startswith("http"):
                import aiohttp

                # The default ends a download after five minutes, and waits as long for a server that says nothing
                options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)}
            return fsspec.core.url_to_fs(self.url, **options)
        except ImportError as error:
            remedy = "`pip install 'alexnet-dali[remote]'` brings what http(s):// and s3:// need"
            raise InputError(f"{self.url} needs a library ({error}): {remedy}, other storage its own package") from None
        except ValueError as error:
            raise InputError(f"{self.url} is no URL that fsspec reads: {error}") from None

    @property
    def _cache(self) -> "Cache":
        default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alexnet-dali"
        return Cache(self.cache or default, self.limit or LIMIT)


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
            fcntl.flock(file, fcntl.LOCK_SH)
            if os.fstat(file.fileno()).st_nlink:  # it was not deleted in between
                os.utime(file.fileno())
                return file
            file.close()

    def fetch(self, path: Path, size: int, download: Callable[[Path], None]) -> None:
        """Brings a file into the cache unless it is there or another process or thread does. Arguments as of `open`."""
        part = path.with_name(f".{path.name}.part-{size}")  # the name tells others how long it will be
        while not path.exists():
            file, ours = self._reserve(part)
            with file:
                if not ours:
                    # Until the other is done or gave up; then look again. Shared: the file may be the whole shard by
                    # then, and in the hands of readers that wait for us elsewhere
                    fcntl.flock(file, fcntl.LOCK_SH)
                    continue
                if path.exists():  # since we looked
                    part.unlink()
                    return
                try:
                    download(part)
                    _sync(part)
                    with locked(self.root, wait=PATIENCE):
                        part.rename(path)
                except BaseException:
                    part.unlink(missing_ok=True)
                    raise

    def _reserve(self, part: Path) -> tuple[BinaryIO, bool]:
        """Opens the part and makes room for it; and whether it is ours to write, or another's already."""
        end = time.monotonic() + PATIENCE
        while True:
            with locked(self.root, wait=PATIENCE):
                try:
                    file = open(part, "ab")  # noqa: SIM115 - the caller closes it
                except OSError as error:
                    raise InputError(f"{part.parent} cannot be written: {error.strerror}") from None
                if not _lock(file) or not os.fstat(file.fileno()).st_nlink:  # another's, or what another gave up
                    return file, False
                if self._make_room():
                    return file, True
                part.unlink()
                file.close()
            if time.monotonic() > end:
                raise InputError(f"{self.root}: all that is in the cache is in use; raise --cache-size {self.limit}")
            time.sleep(0.1)

    def _make_room(self) -> bool:
        """Deletes what was not used for longest until the rest fits, with what is being fetched; whether it does."""
        files = []
        for pattern in (f"*/*{CACHED}", f"*/.*{CACHED}.part-*"):
            for path in self.root.glob(pattern):
                with contextlib.suppress(FileNotFoundError):  # a fetch that failed
                    about = path.stat()
                    _, fetched, size = path.name.rpartition(".part-")
                    files.append((about.st_mtime_ns, path, int(size) if fetched else about.st_size))
        total = sum(size for _, _, size in files)
        for _, path, size in sorted(files):
            if total <= self.limit:
                break
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                if _lock(file):
                    path.unlink()
                    total -= size
        return total <= self.limit


class Ahead:
    """Shards that are opened one after the other, in an order known before, while threads fetch the next ones."""

    def __init__(self, open_shard: Callable[[Shard], BinaryIO], order: Sequence[Shard], ahead: int):
        self.open_shard, self.order, self.ahead = open_shard, order, ahead
        self.begun = 0  # this many of the order are fetched or being fetched

    def open(self, position: int) -> BinaryIO:
        """The shard at a position of the order, once it is there."""
        file = self.open_shard(self.order[position])  # waits for the thread that fetches it, by the file's lock
        for number in range(max(self.begun, position + 1), min(position + 1 + self.ahead, len(self.order))):
            # A daemon: a run that ends does not wait for shards that it no longer needs
            threading.Thread(target=self._fetch, args=(self.order[number],), daemon=True).start()
            self.begun = number + 1
        return file

    def _fetch(self, shard: Shard) -> None:
        with contextlib.suppress(InputError):  # who opens it tries again, and tells
            self.open_shard(shard).close()


def _largest(shards: Iterable[Shard]) -> int:
    return max((shard.bytes for shard in shards), default=0)


def _lock(file: BinaryIO) -> bool:
    """Locks a file exclusively, unless another has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _write_if_new(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:
        with atomic_write(path) as file:
            file.write(content)


def locate(data: str | Path, cache: Path | None = None, cache_size: int | None = None) -> "Path | Remote":
    """Where a data set is: its folder, or, for a URL, the remote folder with its cache. Raises InputError for a cache
    without a URL."""
    if is_url(str(data)):
        return Remote(str(data), cache, cache_size)
    if cache or cache_size:
        raise InputError("--cache and --cache-size are for a data set at a URL: leave them out")
    return Path(data)
