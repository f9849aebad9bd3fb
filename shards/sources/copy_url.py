"""A source at a URL: its files are copied beside the data set that they become, and then read as a folder's are.

Everything is listed first: the copy begins as empty files of all names, so that a folder of no known layout is refused
before anything is fetched. What no layout reads stays empty.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shards.atomic import atomic_write
from shards.console import notice
from shards.dataset import FILE, PLAN
from shards.errors import InputError
from shards.hidden import is_hidden
from shards.output_folder import COPY, remove_copy
from shards.processes import run_jobs
from shards.progress import Progress
from shards.sources.base import SPLIT_NAMES
from shards.sources.detect import detect
from shards.sources.fetch import fetch_files, is_copied
from shards.sources.labels import ANNOTATIONS, DEVKIT, MAPPING, SOLUTION, WORDS
from shards.sources.left_out import OF_NO_USE, kind_of
from shards.storage import Storage, StoredFile
from shards.wording import counted

RECORD = ".source.json"  # beside the data set: which files and options gave it
LISTS = {SOLUTION, MAPPING, DEVKIT, ANNOTATIONS, *WORDS}
UNLABELED = re.compile(r"(ILSVRC/)?Data/CLS-LOC/test/")  # Kaggle's test images, which are of no use
# A library may hold half a gigabyte of a large file, of which it fetches several pieces at the same time
LARGE, LARGE_AT_ONCE = 64 * 2**20, 4
SMALL_JOB = 256  # files
BLOCK = 4096  # bytes of a disk, of which a file fills the last one in part
CHANGED = "it was listed a moment ago: run the same command again, which lists the files anew"


def source_at(url: str) -> Storage:
    """The place of a source. Raises InputError for a URL that cannot be read."""
    if url.startswith("file:"):
        raise InputError(f"{url} is a folder of this machine: give it as {url.removeprefix('file://')}")
    storage = Storage(url, CHANGED)
    if storage.url.rpartition("/")[2] in (".", ".."):
        raise InputError(f"{storage} is not a folder's plain URL: write it without the dots at its end")
    return storage


def list_files(url: Storage) -> list[StoredFile]:
    """The files at the URL that a source may have, sorted by name. Raises InputError when there are none, or they do
    not fit into folders."""
    files: list[StoredFile] = []
    with Progress(f"list {url}", None, unit="files") as progress:
        for found in url.walk():
            files += found
            progress.advance(len(found))
    files = _of_a_source(files)
    if not files:
        remedy = "is the bucket, and the folder in it, called so?"
        if url.url.startswith("http"):
            remedy = "a web server has to list its folders: copy the files here, or give a bucket, such as s3://"
        raise InputError(f"--imagenet-root {url}: no files are listed there; {remedy}")
    folders = {folder for file in files for folder in _folders_above(file.name)}
    both = [file for file in files if file.name in folders]
    if large := next((file for file in both if file.size), None):
        raise InputError(f"{url}/{large.name} is a file and a folder, which a disk cannot hold: rename one")
    empty = {file.name for file in both}  # such objects stand for folders
    return sorted(file for file in files if file.name not in empty)


def _folders_above(name: str) -> Iterator[str]:
    while name := name.rpartition("/")[0]:
        yield name


def _of_a_source(files: Sequence[StoredFile]) -> list[StoredFile]:
    """These files without what every layout passes over: hidden files, and data sets, finished or not, beside the
    images."""
    data_sets = {name.rpartition("/")[0] for name, *_ in files if name.endswith((f"/{FILE}", f"/{PLAN}"))}
    visible = [file for file in files if not any(map(is_hidden, file.name.split("/")))]
    if not data_sets:
        return visible
    rest = [file for file in visible if data_sets.isdisjoint(_folders_above(file.name))]
    # A class's folder, in which every file counts, may hold anything
    tops = {_top(file.name) for file in rest if kind_of(file.name) == "image"}
    return [
        file
        for file in visible
        if data_sets.isdisjoint(_folders_above(file.name))
        or _top(file.name) in tops
        or _top(file.name).lower() in (*SPLIT_NAMES, "data", "ilsvrc")
    ]


def _top(name: str) -> str:
    return name.partition("/")[0]


def is_read(name: str) -> bool:
    """Whether a layout may read what is in a file; of the others it looks at the name alone."""
    if "/" in name:
        return not UNLABELED.match(name)
    return name in LISTS or (name.endswith((".tar", ".parquet")) and not OF_NO_USE.match(name))


def copy_files(url: Storage, files: Sequence[StoredFile], folder: Path, kind: str, workers: int) -> Path:
    """Copies what is read of these files to a folder within `folder`, which is returned, but for what an earlier call
    has copied. Args: kind: of the source, "auto" to detect it; workers: how many processes may fetch.

    Raises: InputError for a source of no known layout, when the disk lacks the room, and when a file cannot be fetched.
    """
    root = folder / COPY / (url.url.rpartition("/")[2])
    read = [file for file in files if is_read(file.name)]
    _remove_others(root, {file.name for file in files})
    missing = [file for file in read if not is_copied(root / file.name, file)]
    _make_empty(root, files)
    if kind == "auto":
        try:
            with named_by_url(url, folder):
                detect(root)
        except InputError:
            if missing == read:  # nothing is copied yet
                remove_copy(folder)
            raise
    if missing:
        _say(url, root, read, missing)
    small, large = [file for file in missing if not _is_large(file)], [file for file in missing if _is_large(file)]
    for some, together, processes in ((small, SMALL_JOB, workers), (large, 1, min(workers, LARGE_AT_ONCE))):
        total = None if any(file.size is None for file in some) else sum(file.size or 0 for file in some)
        jobs = [(url, root, some[begin : begin + together]) for begin in range(0, len(some), together)]
        run_jobs(fetch_files, jobs, processes, f"copy {url}", total, unit="MB")
    return root


def _is_large(file: StoredFile) -> bool:
    return (file.size or 0) >= LARGE


@contextmanager
def named_by_url(url: Storage, folder: Path) -> Iterator[None]:
    """Errors that name the copy in `folder`, or a file in it, name the URL."""
    try:
        yield
    except InputError as error:
        raise InputError(by_url(str(error), url, folder)) from None


def by_url(text: str, url: Storage, folder: Path) -> str:
    """A text with the URL in place of the copy's folder."""
    above = url.url.rpartition("/")[0]
    return text.replace(str(folder.absolute() / COPY), above).replace(str(folder / COPY), above)


def holds_images_at(url: Storage) -> bool:
    """Whether a folder at a URL, or one inside it, has a file that is an image by its name."""
    return any(kind_of(name) == "image" for found in url.walk() for name, *_ in found)


def key_of_files(files: Sequence[StoredFile], options: str) -> str:
    """Identifies these files in these versions, with the options of a conversion."""
    digest = hashlib.sha256(options.encode())
    for file in files:
        digest.update(repr(file).encode())
    return digest.hexdigest()


def read_record(folder: Path) -> dict[str, str]:
    """The plan that a conversion in `folder` had, by its `key_of_files`; nothing where there was none."""
    try:
        return dict(json.loads((folder / RECORD).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def write_record(folder: Path, key: str, plan: str) -> None:
    with atomic_write(folder / RECORD) as file:
        file.write(json.dumps({key: plan}).encode())


def _remove_others(root: Path, names: Collection[str]) -> None:
    """Removes from the copy what is no longer at the URL, and half a file that a kill has left."""
    for folder, folders, found in os.walk(root, topdown=False):
        for name in found:
            path = os.path.join(folder, name)
            if os.path.relpath(path, root) not in names:
                os.unlink(path)
        for name in folders:
            if not os.listdir(path := os.path.join(folder, name)):
                os.rmdir(path)


def _make_empty(root: Path, files: Sequence[StoredFile]) -> None:
    """Makes an empty file of each name that is not there yet. Raises InputError when that is not possible."""
    try:
        for folder in sorted({file.name.rpartition("/")[0] for file in files}):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for file in files:
            os.close(os.open(root / file.name, os.O_CREAT | os.O_WRONLY, 0o666))
    except OSError as error:
        raise InputError(f"{error.filename} cannot be written ({error.strerror}): choose another --out") from None


def _say(url: Storage, root: Path, read: Sequence[StoredFile], missing: Sequence[StoredFile]) -> None:
    """Says what is going to be copied. Raises InputError when the disk lacks the room."""
    size, unknown = sum(file.size or 0 for file in missing), any(file.size is None for file in missing)
    amount = f"{counted(len(missing), 'file')} ({'at least ' if unknown else ''}{_shown(size)})"
    rest = f"; the other {len(read) - len(missing):,} are there" if len(missing) < len(read) else ""
    until = "it is removed when the data set is complete; until then the same command continues with it"
    notice(f"{amount} of {url} to copy to {root}{rest}; {until}")
    on_disk = sum(-(-(file.size or 0) // BLOCK) * BLOCK for file in missing)
    if (free := shutil.disk_usage(root).free) < on_disk:
        raise InputError(f"{root} has room for {_shown(free)}, and {url} needs {_shown(on_disk)}: choose another --out")


def _shown(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
