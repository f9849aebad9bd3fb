"""Data sets in object storage: small files are copied, shards are read through a bounded cache on the local disk.

A data set's folder may be a URL that fsspec knows (https://, s3://, gs:// ...). `dataset.json`, the statistics and the
indices are copied into a folder of the cache whose name depends on the content of `dataset.json`, so that another data
set at the same URL is never mixed with the old one's shards. Shards are fetched complete, ahead of their use, and the
least recently used are deleted.

Credentials come from where the storage's own library looks for them, the environment first; of http(s), from ~/.netrc.
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import numpy as np

from shards.atomic import atomic_write
from shards.cache import SUFFIX, Cache
from shards.check_sample import sha256
from shards.errors import InputError
from shards.index import end, positions, read_index
from shards.index_cache import user_cache
from shards.records import Shard

DEFAULT_LIMIT = 64 * 2**30  # bytes of a cache whose size is not given
MIN_SHARDS = 4  # that a cache has to hold: two splits, each where some ranks still read one shard and others the next
MAX_PREFETCH = 4  # shards that are fetched while one is read
CONNECTIONS = 16  # for small files
RETRY_DELAYS = (0.5, 1, 2, 4)  # seconds before a fetch is tried again
NO_ACCESS = {401: "401 Unauthorized", 403: "403 Forbidden", 407: "407 Proxy Authentication Required"}
TRY_AGAIN = {408, 425, 429}  # of HTTP's 4xx; the others mean that it is no use
GIVE_CREDENTIALS = "give credentials in the environment or in ~/.netrc"
PAGE_BEGIN, PAGES = 200, (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"<script", b"<!--")
PLAIN_NAME = re.compile(r"[\w-][\w.-]*\.tar", re.ASCII)

Item = TypeVar("Item")
Result = TypeVar("Result")


def is_url(text: str) -> bool:
    """Whether a data set's location is a URL and not a folder."""
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

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # a secret is not to be printed
        if parts.password is not None or ("@" in parts.netloc and parts.scheme in ("http", "https")):
            remedy = "remove them, and give them in the environment, as AWS_ACCESS_KEY_ID or ~/.netrc"
            raise InputError(f"{shown}: the URL holds credentials: {remedy}")
        if parts.query or parts.fragment or "::" in self.url or not (parts.netloc + parts.path).strip("/"):
            raise InputError(f"{shown}: give the plain URL of the data set's folder, without parameters")
        object.__setattr__(self, "url", self.url.rstrip("/"))
        self._file_system()

    def __str__(self) -> str:
        return self.url

    def copy_metadata(self, description_name: str, companions: Callable[[bytes], Sequence[str]]) -> Path:
        """Copies the data set's description and the files that, as `companions` says, go with it, and returns the local
        folder of the copies, whose name depends on the description."""
        description = self._read_small(description_name)
        name = re.sub(r"[^\w-]", "_", self.url.rpartition("/")[2])
        folder = self._cache.root / f"{name}-{hashlib.sha256(self.url.encode() + description).hexdigest()[:32]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--cache {folder.parent} cannot be written: {error.strerror}") from None
        copies = {description_name: description} | {name: self._read_small(name) for name in companions(description)}
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
        self._map(lambda path: _write_if_new(path, self._read_small(path.name)), missing)
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
        files, root = self._file_system()

        def fetch() -> None:
            files.get_file(f"{root}/{shard.name}", str(part))
            with open(part, "rb") as file:
                self._check_no_page(shard.name, file.read(PAGE_BEGIN))
            if (length := part.stat().st_size) != shard.bytes:
                raise ValueError(f"{length} bytes were received, and dataset.json says {shard.bytes}")
            if shard.sha256 and sha256(part) != shard.sha256:
                raise ValueError("its SHA-256 is not the one in dataset.json")

        self._retry(fetch, shard.name)

    def _read_small(self, name: str) -> bytes:
        files, root = self._file_system()
        content: bytes = self._retry(lambda: files.cat_file(f"{root}/{name}"), name)
        self._check_no_page(name, content[:PAGE_BEGIN])
        return content

    def _check_no_page(self, name: str, begin: bytes) -> None:
        """Raises InputError for the beginning of a web page: a server may answer any request with its login."""
        if begin.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(PAGES):
            remedy = f"look at that URL in a browser; if it wants you to log in, {GIVE_CREDENTIALS}"
            raise InputError(f"{self.url}/{name}: the server sends a web page and not the file: {remedy}")

    def _retry(self, fetch: Callable[[], Result], name: str) -> Result:
        """What `fetch` returns, tried again after whatever a library raises. Raises InputError after the last try."""
        for delay in (*RETRY_DELAYS, None):
            try:
                return fetch()
            except FileNotFoundError:
                remedy = "copy a complete data set there, written by `python cli.py shard` or `index`"
                raise InputError(f"{self.url}/{name} is missing: {remedy}") from None
            except InputError:
                raise
            except Exception as error:
                if final := _final(error):
                    raise InputError(f"{self.url}/{name} {final}") from None
                if delay is None:
                    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                    tries = f"tried {len(RETRY_DELAYS) + 1} times"
                    raise InputError(f"{self.url}/{name} cannot be fetched, {tries}: {reason}") from None
            time.sleep(delay)
        raise AssertionError("the last try returns or raises")

    def _map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            return list(threads.map(function, items))

    def _file_system(self) -> tuple[Any, str]:
        """fsspec's file system, and the data set's folder as it calls it."""
        options = {}
        try:
            import fsspec

            if self.url.startswith("http"):
                import aiohttp

                # By default a download ends after five minutes, and a silent server is waited for as long
                timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
                # trust_env: ~/.netrc, and http_proxy, https_proxy and no_proxy in the environment
                options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
            files, root = fsspec.core.url_to_fs(self.url, **options)
            return files, root
        except ImportError as error:
            remedy = "`pip install 'alexnet-dali[remote]'` brings what http(s):// and s3:// need"
            raise InputError(f"{self.url} needs a library ({error}): {remedy}, other storage its own package") from None
        except ValueError as error:
            raise InputError(f"{self.url} is not a URL that fsspec reads: {error}") from None

    @property
    def _cache(self) -> Cache:
        try:
            return Cache(self.cache or user_cache(), self.limit or DEFAULT_LIMIT)
        except InputError as error:
            raise InputError(f"{error}, or give --cache") from None


def _final(error: Exception) -> str | None:
    """What is wrong with a URL, where it is no use to ask again; None where it may be."""
    status: Any = getattr(error, "status", None)  # HTTP's, of aiohttp
    # botocore has NoCredentialsError, PartialCredentialsError and more
    if isinstance(error, PermissionError) or status in NO_ACCESS or "Credentials" in type(error).__name__:
        reason = NO_ACCESS.get(status) or error
        return f"cannot be read ({reason}): {GIVE_CREDENTIALS}"
    if isinstance(status, int) and 400 <= status < 500 and status not in TRY_AGAIN:
        return f"cannot be fetched: the server answers {status}"
    return None


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
