"""Data sets in object storage: small files are copied, shards are read through a bounded cache on the local disk.

A data set's folder may be a URL that fsspec knows (https://, s3://, gs:// ...). `dataset.json`, the statistics and the
indices are copied into a folder of the cache whose name depends on the content of `dataset.json`, so that another data
set at the same URL is never mixed with the old one's shards. Shards are fetched complete, ahead of their use, and the
least recently used are deleted.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from shards.atomic import atomic_write
from shards.cache import SUFFIX, Cache, user_cache
from shards.errors import InputError
from shards.index import end, positions, read_index
from shards.records import Shard, sha256
from shards.storage import Storage, is_url

DEFAULT_LIMIT = 64 * 2**30  # bytes of a cache whose size is not given
MIN_SHARDS = 4  # that a cache has to hold: two splits, each where some ranks still read one shard and others the next
MAX_PREFETCH = 4  # shards that are fetched while one is read
CONNECTIONS = 16  # for small files
COPY_THERE = "copy a complete data set there, or repeat the `python cli.py shard` command that writes it there"
PLAIN_NAME = re.compile(r"[\w-][\w.-]*\.tar", re.ASCII)


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self._storage.url)

    def __str__(self) -> str:
        return self.url

    def copy_metadata(self, description_name: str, companions: Callable[[bytes], Sequence[str]]) -> Path:
        """Copies the data set's description and the files that, as `companions` says, go with it, and returns the local
        folder of the copies, whose name depends on the description."""
        description = self._storage.cat(description_name)
        name = re.sub(r"[^\w-]", "_", self.url.rpartition("/")[2])
        folder = self._cache.root / f"{name}-{hashlib.sha256(self.url.encode() + description).hexdigest()[:32]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--cache {folder.parent} cannot be written: {error.strerror}") from None
        copies = {description_name: description} | {name: self._storage.cat(name) for name in companions(description)}
        for file, content in copies.items():
            _write_if_new(folder / file, content)
        return folder

    def check_names(self, shards: Iterable[Shard]) -> None:
        """Raises InputError for names that may lead out of the cache or mean something in a URL."""
        for shard in shards:
            if not PLAIN_NAME.fullmatch(shard.name):
                raise InputError(f"{self.url}/dataset.json names a shard that is not a plain tar: {shard.name!r}")

    def tar_urls(self, shards: Sequence[Shard]) -> list[str]:
        """Raises InputError for a cache that is too small for these shards."""
        if self.prefetch_depth(shards) < 1:
            size = f"a cache of {self._cache.limit} bytes does not hold {MIN_SHARDS} shards of {_largest(shards)}"
            raise InputError(f"{self.url}: {size}: raise --cache-size")
        return [f"{self.url}/{shard.name}" for shard in shards]

    def prefetch_depth(self, shards: Sequence[Shard]) -> int:
        """How many of these shards may be fetched ahead, so that they and those in use fit into the cache."""
        return min(MAX_PREFETCH, self._cache.limit // max(1, _largest(shards)) - MIN_SHARDS + 1)

    def holds(self, shards: Sequence[Shard]) -> bool:
        """Whether all of these shards fit into the cache at once."""
        return sum(shard.bytes for shard in shards) <= self._cache.limit

    def indices(self, folder: Path, shards: Sequence[tuple[Shard, int]]) -> Iterator[np.ndarray]:
        """The positions of each shard's samples, from its index, which is copied first. Args: shards: each with the
        samples that its index has to list. Raises: InputError when one is missing or does not fit its tar."""
        paths = [(folder / shard.name).with_suffix(".idx") for shard, _ in shards]
        missing = [path for path in paths if not path.exists()]
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            list(threads.map(lambda path: _write_if_new(path, self._storage.cat(path.name)), missing))
        for path, (shard, samples) in zip(paths, shards, strict=True):
            where = positions(read_index(path), f"{self.url}/{shard.name}")
            if len(where) != samples or end(where) > shard.bytes:
                path.unlink()
                remedy = "rebuild it with `python cli.py index` in the folder that was copied there"
                raise InputError(f"{self.url}/{path.name} does not fit its tar: {remedy}")
            yield where

    def open(self, folder: Path, shard: Shard) -> BinaryIO:
        """A shard to read: it is fetched unless it is in the cache, and stays there until the file is closed."""
        path = folder / f"{shard.name}{SUFFIX}"
        return self._cache.open(path, shard.bytes, lambda part: self._download(shard, part))

    def _download(self, shard: Shard, part: Path) -> None:
        """Fetches a complete shard into a file, and checks it. Raises InputError when it cannot be fetched."""

        def check(path: Path) -> None:
            if (length := path.stat().st_size) != shard.bytes:
                raise ValueError(f"{length} bytes were received, and dataset.json says {shard.bytes}")
            if shard.sha256 and sha256(path) != shard.sha256:
                raise ValueError("its SHA-256 is not the one in dataset.json")

        self._storage.get(shard.name, part, check)

    @property
    def _storage(self) -> Storage:
        return Storage(self.url, COPY_THERE)

    @property
    def _cache(self) -> Cache:
        try:
            return Cache(self.cache or user_cache(), self.limit or DEFAULT_LIMIT)
        except InputError as error:
            raise InputError(f"{error}, or give --cache") from None


def _largest(shards: Iterable[Shard]) -> int:
    return max((shard.bytes for shard in shards), default=0)


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
