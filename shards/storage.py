"""A folder at a URL that fsspec knows (https://, s3://, gs:// ...): its files are read, written and listed, and what
fails is tried again, then reported in one line.

Credentials come from where the storage's own library looks for them, the environment first; of http(s), from ~/.netrc.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote, urlsplit

from shards.errors import InputError, reason

RETRY_DELAYS = (0.5, 1, 2, 4)  # seconds before a request is tried again
NO_ACCESS = {401: "401 Unauthorized", 403: "403 Forbidden", 407: "407 Proxy Authentication Required"}
TRY_AGAIN = {408, 425, 429}  # of HTTP's 4xx; the others mean that it is no use
NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
CONNECTIONS = 16  # to one storage at the same time, of a process
PARTS_AT_ONCE = 2  # of a file that is written, of 50 MiB each: more fill the memory of workers that upload a file each
MAX_NAME = 200  # bytes of a file's name, so that a temporary one fits into a file system's 255
# What tells a file's versions apart, by its name in the storages' libraries: a digest of its content, or a time
DIGESTS = ("ETag", "etag", "md5Hash", "content_md5", "blob_id")
TIMES = ("LastModified", "last_modified", "Last-Modified", "mtime", "updated", "created")
PAGE_BEGIN, PAGES = 200, (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"<script", b"<!--")

Result = TypeVar("Result")


class StoredFile(NamedTuple):
    """A file of a storage: its path in the folder, its bytes, and what changes when it is written again; None and ""
    where the storage does not tell."""

    name: str
    size: int | None
    version: str


def is_url(text: str) -> bool:
    """Whether a location is a URL and not a folder."""
    return "://" in text


@dataclass(frozen=True)
class Storage:
    """A folder at a URL. Whatever fails in it raises InputError, which names the URL and says what to do.

    Args: url: without credentials; if_missing: what to do when a file that is read is not there. Raises: InputError for
    a URL that holds credentials or parameters, or that no installed library reads.
    """

    url: str
    if_missing: str

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # a secret is not to be printed
        if parts.password is not None or ("@" in parts.netloc and parts.scheme in ("http", "https")):
            remedy = "remove them, and give them in the environment, as AWS_ACCESS_KEY_ID or ~/.netrc"
            raise InputError(f"{shown}: the URL holds credentials: {remedy}")
        if parts.query or parts.fragment or "::" in self.url or not (parts.netloc + parts.path).strip("/"):
            raise InputError(f"{shown}: give the plain URL of the folder, without parameters")
        object.__setattr__(self, "url", self.url.rstrip("/"))
        self._file_system()

    def __str__(self) -> str:
        return self.url

    def cat(self, name: str) -> bytes:
        """The content of a small file. Args: name: its path in the folder."""
        files, _ = self._file_system()
        content: bytes = self._retry(lambda: files.cat_file(self._path(name)), name, "fetched")
        self._check_no_page(name, content[:PAGE_BEGIN])
        return content

    def get(
        self,
        name: str,
        path: Path,
        check: Callable[[Path], None] = lambda _: None,
        arrived: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Fetches a file to the local `path`. Args: check: raises ValueError for a file that is not what was asked for,
        which is then fetched again; arrived: is told, now and then, how many of the file's bytes have."""
        from fsspec.callbacks import Callback

        files, _ = self._file_system()

        def fetch() -> None:
            callback = Callback(hooks={"arrived": lambda _, value, **__: arrived(value)})
            files.get_file(self._path(name), str(path), callback=callback)
            with open(path, "rb") as file:
                self._check_no_page(name, file.read(PAGE_BEGIN))
            check(path)

        self._retry(fetch, name, "fetched")

    def check_protocol_writes(self) -> None:
        """Raises InputError for a protocol that is known to be one to read with."""
        if self.url.startswith("http"):
            raise InputError(f"{self.url} cannot be written to: http(s) is for reading; give a bucket, such as s3://")

    def put(self, path: Path, name: str, sent: Callable[[int], None] = lambda _: None) -> None:
        """Writes a local file there, and compares the size that the storage says it has. Args: sent: is told, now and
        then, how many of the file's bytes have been."""
        from fsspec.callbacks import Callback

        self.check_protocol_writes()
        files, root = self._file_system()
        options = {"max_concurrency": PARTS_AT_ONCE} if self.url.startswith("s3") else {}

        def send() -> None:
            callback = Callback(hooks={"sent": lambda _, value, **__: sent(value)})
            files.put_file(str(path), f"{root}/{name}", callback=callback, **options)
            files.invalidate_cache()
            length = path.stat().st_size
            try:
                stored = files.info(f"{root}/{name}")["size"]
            except FileNotFoundError:
                stored = None
            if stored != length:
                raise ValueError(f"the storage then has {stored} of its {length} bytes")

        self._retry(send, name, "written")

    def list(self) -> dict[str, int | None]:
        """The files in the folder, by name, and their bytes, None where the storage does not tell; none when there is
        no such folder."""
        files, root = self._file_system()

        def fetch() -> dict[str, int | None]:
            files.invalidate_cache()
            try:
                found = files.ls(root, detail=True)
            except FileNotFoundError:
                return {}
            sizes = {about["name"]: about["size"] for about in found if about["type"] == "file"}
            return {path.removeprefix(f"{root}/"): size for path, size in sorted(sizes.items())}

        return self._retry(fetch, "", "listed")

    def walk(self) -> Iterator[Sequence[StoredFile]]:
        """The files in the folder and those within it, one folder's after another's, in no order; none when there is no
        such folder. A name is a path of plain names. Raises InputError for one that cannot be."""
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            pending: set[Future[tuple[Sequence[StoredFile], Sequence[str]]]] = {threads.submit(self._scan, "")}
            try:
                while pending:
                    ended, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for found, folders in [future.result() for future in ended]:
                        pending |= {threads.submit(self._scan, folder) for folder in folders}
                        known = all(file.size is not None for file in found)
                        yield found if known else list(threads.map(self._with_size, found))
            finally:
                threads.shutdown(wait=False, cancel_futures=True)

    def _scan(self, folder: str) -> tuple[Sequence[StoredFile], Sequence[str]]:
        """A folder's own files, and its folders, by their paths ("" for the storage's folder)."""
        files, _ = self._file_system()
        own = self._path(folder)

        def entries() -> Any:
            try:
                return files.ls(own, detail=True)
            except FileNotFoundError:
                return []

        found, folders = [], []
        for about in self._retry(entries, folder, "listed"):
            is_folder = about["type"] == "directory"
            if about["name"] == own and not is_folder:
                raise InputError(f"{self.url} is a file: give the folder that it lies in")
            # An empty object that stands for the folder itself
            if about["name"] == own or (about["name"] == f"{own}/" and not is_folder):
                continue
            name = self._name(folder, about["name"])
            path = f"{folder}/{name}".lstrip("/")
            if name and is_folder:
                folders.append(path)
            elif name:
                found.append(StoredFile(path, about["size"], _version(about)))
        return found, folders

    def _name(self, folder: str, path: str) -> str:
        """An entry's name in its folder, from what the storage's library calls its path; "" for what is no entry, as a
        web page's links to elsewhere."""
        if self._is_http:
            above, _, name = path.removesuffix("/").rpartition("/")
            if unquote(above) != unquote(self._path(folder)) or re.search(r"[?#]", name) or name in (".", ".."):
                return ""
            name = unquote(name)
        else:
            above, _, name = path.rpartition("/")
        no_name = name in ("", ".", "..") or re.search(r"[/\0]", name) or len(os.fsencode(name)) > MAX_NAME
        if no_name or (not self._is_http and above != self._path(folder)):
            remedy = "rename it there, or give a local copy without it"
            raise InputError(f"{self.url}: a file on a disk cannot be called {path[:300]!r}: {remedy}")
        return name

    def _with_size(self, file: StoredFile) -> StoredFile:
        """A web server's list of files has no sizes: each is asked for."""
        if file.size is not None:
            return file
        files, _ = self._file_system()
        about = self._retry(lambda: files.info(self._path(file.name)), file.name, "fetched")
        return file._replace(size=about["size"], version=_version(about))

    def _path(self, name: str) -> str:
        """What the storage's library calls a file or folder, "" for the storage's folder."""
        _, root = self._file_system()
        return f"{root}/{quote(name) if self._is_http else name}".rstrip("/")

    @property
    def _is_http(self) -> bool:
        return self.url.startswith("http")

    def remove(self, names: Iterable[str]) -> None:
        """Removes those of these files that are there."""
        files, root = self._file_system()
        present = self.list()
        paths = [f"{root}/{name}" for name in names if name in present]
        if paths:
            self._retry(lambda: files.rm(paths), "", "cleared")

    def _check_no_page(self, name: str, begin: bytes) -> None:
        """Raises InputError for the beginning of a web page: a server may answer any request with its login."""
        if self.url.startswith("http") and begin.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(PAGES):
            remedy = f"look at that URL in a browser; if it wants you to log in, {self._credentials}"
            raise InputError(f"{self.url}/{name}: the server sends a web page and not the file: {remedy}")

    def _retry(self, request: Callable[[], Result], name: str, done: str) -> Result:
        """What `request` returns, tried again after whatever a library raises. Args: name: of the file, to be reported,
        or empty; done: with a file when it succeeds ("fetched"). Raises InputError after the last try."""
        where = f"{self.url}/{name}".rstrip("/")
        for delay in (*RETRY_DELAYS, None):
            try:
                return request()
            except FileNotFoundError:
                if done == "fetched":
                    raise InputError(f"{where} is missing: {self.if_missing}") from None
                raise InputError(f"{where} cannot be {done}: there is no such bucket or folder: make it") from None
            except InputError:
                raise
            except Exception as error:
                if final := _final(error, done, self._credentials):
                    raise InputError(f"{where} {final}") from None
                if delay is None:
                    tries = f"tried {len(RETRY_DELAYS) + 1} times"
                    remedy = "; the same command continues when it can be reached" if done == "written" else ""
                    raise InputError(
                        f"{where} cannot be {done}, {tries}: {_without_parameters(error)}{remedy}"
                    ) from None
            time.sleep(delay)
        raise AssertionError("the last try returns or raises")

    @property
    def _credentials(self) -> str:
        """What to do when the storage does not let us in."""
        return f"give credentials that allow it in {'~/.netrc' if self.url.startswith('http') else 'the environment'}"

    def _file_system(self) -> tuple[Any, str]:
        """fsspec's file system, and the folder as it calls it."""
        options: dict[str, Any] = {"use_listings_cache": False}  # it would hold a million files, and old facts
        try:
            import fsspec

            if self.url.startswith("http"):
                import aiohttp

                # By default a download ends after five minutes, and a silent server is waited for as long
                timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
                # trust_env: ~/.netrc, and http_proxy, https_proxy and no_proxy in the environment
                options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
            if self.url.startswith("s3"):
                options["config_kwargs"] = {"max_pool_connections": CONNECTIONS}
            if self.url.startswith("file:"):
                options["auto_mkdir"] = True  # as buckets do
            files, root = fsspec.core.url_to_fs(self.url, **options)
            return files, root
        except ImportError as error:
            remedy = "`pip install 'alexnet-dali[remote]'` brings what http(s):// and s3:// need"
            raise InputError(f"{self.url} needs a library ({error}): {remedy}, other storage its own package") from None
        except ValueError as error:
            raise InputError(f"{self.url} is not a URL that fsspec reads: {error}") from None


def _final(error: Exception, done: str, credentials: str) -> str | None:
    """What is wrong with a URL, where it is no use to ask again; None where it may be. Args: done: with a file when it
    succeeds; credentials: what to do when they are wrong."""
    status: Any = getattr(error, "status", None)  # HTTP's, of aiohttp
    # botocore has NoCredentialsError, PartialCredentialsError and more
    if isinstance(error, PermissionError) or status in NO_ACCESS or "Credentials" in type(error).__name__:
        why = NO_ACCESS.get(status) or error
        return f"cannot be {'read' if done == 'fetched' else done} ({why}): {credentials}"
    if isinstance(status, int) and 400 <= status < 500 and status not in TRY_AGAIN:
        return f"cannot be {done}: the server answers {status}"
    if isinstance(error, NotImplementedError):
        return f"cannot be {done}: its library in fsspec is for reading; give a bucket, such as s3://"
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"cannot be {done}: {error.strerror}: make room"
    return None


def _version(about: dict[str, Any]) -> str:
    return str(next((about[name] for name in (*DIGESTS, *TIMES) if about.get(name)), ""))


def _without_parameters(error: Exception) -> str:
    """An error in a short line, without the parameters of URLs, which may be signatures."""
    return re.sub(r"\?[^\s'\"]*", "", reason(error))
