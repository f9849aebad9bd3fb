"""A conversion to a URL: the worker that wrote a shard uploads it and deletes its own copy; `dataset.json` comes last.

At the URL lies what an unfinished conversion's folder holds: finished shards, the plan, and a done marker for each
shard, uploaded after it. So what is finished there is known to the same command on any machine. On this one, what is
under way lies in a staging folder, of which nothing remains in the end.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from shards.atomic import atomic_write
from shards.cache import user_cache
from shards.convert import (
    ConvertOptions,
    check,
    combined,
    list_images,
    refuse_among_images,
    runner,
    shard_jobs,
    write_splits,
)
from shards.dataset import COMPANIONS, FILE, PLAN, Dataset
from shards.errors import InputError
from shards.output_folder import COPY, begin, claimed, done_marker, finish
from shards.parts import Part
from shards.processes import tick, tick_upload
from shards.remote import MAX_PREFETCH, MIN_SHARDS, Remote
from shards.sources.copy_url import RECORD
from shards.storage import Storage
from shards.wording import counted
from shards.write_shard import ShardJob, WrittenShard, parse_marker, write_shard

READ_BACK = ".read-back"  # the staging folder's cache of shards that the statistics are computed from
LEAST_READ_BACK = 2**30  # bytes of it, at least: of tiny shards, many are in use at the same time

Listing = Mapping[str, int | None]  # the files at the URL, by name, and their bytes


def target(url: str) -> Storage:
    """The place of an `--out`. Raises InputError when its protocol is not one to write with."""
    storage = Storage(url, "the same `python cli.py shard` command writes it again")
    storage.check_protocol_writes()
    return storage


@contextmanager
def uploading(
    root: Path | Storage, out: Storage, options: ConvertOptions, cache: Path | None = None
) -> Iterator[Dataset]:
    """Converts the source at `root`, and gives the data set of which all shards are uploaded, for the caller to add
    `stats.npz` to its `root`; at the end this and `dataset.json` are uploaded. A finished one is given as it is.

    Args: cache: for the staging folder, None for the user's. Raises: InputError as `shards.convert.write_dataset` does,
    and when the URL cannot be written to or holds another data set.
    """
    refuse_among_images(root, out)
    folder = _folder(out, cache)
    if options.cluster and isinstance(root, Path):  # whose workers have another current folder
        root = root.absolute()
    with _staging(out, folder):
        _try_writing(out, folder)
        if RECORD in out.list():
            _copy(out, RECORD, folder)
        listed = list_images(root, options, folder, partial(_finished, out, folder))
        if isinstance(listed, Dataset):
            yield listed
        else:
            listing = _claim(out, folder, listed.plan)
            discard = partial(_discard, out, folder, listed.splits)
            written = write_splits(listed, folder, options, _uploader(out, listing, options), discard)
            dataset = _read_back(written, out, folder)
            _check_present(dataset, out, "the same command writes it again")
            yield dataset
            _check_present(dataset, out, "the same command writes it again")
            _complete(dataset, out, folder)
            _clear(out)
        finish(folder)


def upload_part(root: Path, out: Storage, options: ConvertOptions, part: Part, cache: Path | None = None) -> str:
    """Writes a part's shards to the URL, which other parts may be writing to, and returns a line that says so.
    Arguments and errors are those of `uploading`."""
    folder = _folder(out, cache, str(part))
    with _staging(out, folder):
        _try_writing(out, folder)
        listed = list_images(root, options, folder, partial(_finished, out, folder))
        if isinstance(listed, Dataset):
            return f"{out} is complete already"
        write, written = _uploader(out, _claim(out, folder, listed.plan), options), 0
        for name in listed.splits:
            own = shard_jobs(listed, folder, name, options)[part.number - 1 :: part.parts]
            split = combined(write(name, own), len(listed.source.classes))
            if options.strict and split.skipped:
                out.remove(path.name for job in own for path in reversed(_files(job)))
                check(split, name, root, strict=True)
            written += len(own)
        _empty(folder)
    join = f"when all {part.parts} are written, the same command without --part completes the data set"
    return f"part {part}: {counted(written, 'shard')} at {out}; {join}"


def _folder(out: Storage, cache: Path | None, part: str = "") -> Path:
    """The staging folder of a conversion, or of a part of one."""
    name = hashlib.sha256(f"{out}{part}".encode()).hexdigest()[:32]
    return (cache or user_cache()).absolute() / "uploads" / name


@contextmanager
def _staging(out: Storage, folder: Path) -> Iterator[None]:
    """Makes and locks the staging folder of a URL. At the end it is deleted, unless it holds what another run continues
    with."""
    try:
        with claimed(folder, "--cache", str(out)):
            try:
                yield
            finally:
                if not (folder / PLAN).exists():
                    _empty(folder)
    finally:
        with suppress(OSError):  # it is not empty
            folder.rmdir()


def _copy(out: Storage, name: str, folder: Path) -> None:
    with atomic_write(folder / name) as file:
        file.write(out.cat(name))


def _try_writing(out: Storage, folder: Path) -> None:
    """Raises InputError when files cannot be listed, written or removed at the URL."""
    tried = folder / f".writable-{os.uname().nodename}-{os.getpid()}"  # others may be trying the same
    tried.touch()
    out.put(tried, tried.name)
    out.remove([tried.name])
    tried.unlink()


def _finished(out: Storage, folder: Path, plan: str) -> Dataset | None:
    """The data set at the URL if it is finished. Raises InputError when there is another, or a shard is missing."""
    if FILE not in out.list():
        return None
    dataset = Dataset.load(Remote(out.url, folder / READ_BACK))
    if dataset.plan != plan:
        raise InputError(f"{out} holds another data set (other images or options): choose another --out or empty it")
    _check_present(dataset, out, f"empty {out}, and the same command writes the data set again")
    _clear(out)  # what a kill at the very end may have left
    return dataset


def _check_present(dataset: Dataset, out: Storage, remedy: str) -> None:
    """Raises InputError when a shard or its index is not at the URL."""
    listing = out.list()
    for split in dataset.splits.values():
        for shard in split.shards:
            index = shard.name.removesuffix(".tar") + ".idx"
            if listing.get(shard.name) != shard.bytes or index not in listing:
                raise InputError(f"{out}/{shard.name} or its .idx is missing or has changed: {remedy}")


def _claim(out: Storage, folder: Path, plan: str) -> Listing:
    """Marks the URL and the staging folder as this plan's, and returns what is at the URL. Raises InputError when it
    holds parts of another data set."""
    listing = out.list()
    begun = out.cat(PLAN).decode() if PLAN in listing else None
    others = any(name.endswith((".tar", ".npz")) for name in listing)
    if begun != plan and (begun or others):
        raise InputError(f"{out} holds parts of another data set: choose another --out or empty it")
    if (folder / PLAN).exists() and (folder / PLAN).read_text() != plan:
        for pattern in ("*.tar", "*.idx", ".*.done", PLAN):  # its files were deleted at the URL
            for path in folder.glob(pattern):
                path.unlink()
    begin(folder, plan)
    if not begun:
        out.put(folder / PLAN, PLAN)
    return listing


def _uploader(
    out: Storage, listing: Listing, options: ConvertOptions
) -> Callable[[str, list[ShardJob]], list[WrittenShard]]:
    """What writes and uploads a split's shards but for those that are at the URL already."""
    run = runner(options)

    def write(name: str, jobs: list[ShardJob]) -> list[WrittenShard]:
        uploads = [(job, out, {path.name: listing.get(path.name) for path in _files(job)}) for job in jobs]
        images = sum(len(job.ids) for job in jobs)
        return run(upload_shard, uploads, label=f"shard and upload {name}", total=images)

    return write


def _files(job: ShardJob) -> tuple[Path, Path, Path]:
    """A shard's tar, index and done marker."""
    return job.tar, job.tar.with_suffix(".idx"), done_marker(job.tar)


def upload_shard(job: ShardJob, out: Storage, listing: Listing) -> WrittenShard:
    """Writes a shard, uploads its tar, its index and then its done marker, and deletes them here. One that is finished
    at the URL is left as it is. Args: listing: what the URL has of these files."""
    tar, index, marker = _files(job)
    if listing[marker.name]:
        done = parse_marker(out.cat(marker.name), job.plan)
        about = done and done.shard
        present = about and about.name == tar.name and about.bytes == listing[tar.name] and listing[index.name]
        if done and (present or not about):
            tick(len(job.ids), 0)
            return done
    written = write_shard(job)
    for path in (tar, index, marker) if written.shard else (marker,):
        out.put(path, path.name, _Uploaded().add)
    for path in (marker, index, tar):
        path.unlink(missing_ok=True)
    return written


class _Uploaded:
    """Reports what is uploaded of a file to the progress display."""

    def __init__(self) -> None:
        self.bytes = 0

    def add(self, bytes: int) -> None:
        """So many are, all in all: fewer than before when the upload is tried again."""
        tick_upload(bytes - self.bytes)
        self.bytes = bytes


def _read_back(dataset: Dataset, out: Storage, folder: Path) -> Dataset:
    """The data set as it is read at the URL, through a cache of some shards, where it has no `dataset.json` yet."""
    largest = max(shard.bytes for split in dataset.splits.values() for shard in split.shards)
    limit = max((MIN_SHARDS + MAX_PREFETCH) * largest, LEAST_READ_BACK)
    remote = Remote(out.url, folder / READ_BACK, limit=limit)
    copies = folder / READ_BACK / "set"
    copies.mkdir(parents=True, exist_ok=True)
    return replace(dataset, root=copies, remote=remote)


def _complete(dataset: Dataset, out: Storage, folder: Path) -> None:
    """Uploads what goes with the shards, and last of all the data set's description."""
    if (folder / RECORD).exists():
        out.put(folder / RECORD, RECORD)
    dataset.save()
    for name in (*COMPANIONS, FILE):
        if (dataset.root / name).exists():
            out.put(dataset.root / name, name)


def _discard(out: Storage, folder: Path, splits: tuple[str, ...]) -> None:
    """Removes what an unfinished conversion has uploaded, and the staging folder's content."""
    shard = re.compile(rf"({'|'.join(splits)})-\d+\.(tar|idx)")
    out.remove(name for name in out.list() if shard.fullmatch(name))
    _clear(out)
    _empty(folder)


def _clear(out: Storage) -> None:
    """Removes a conversion's hidden files at the URL. The plan goes last: it says whose the others are."""
    out.remove(name for name in out.list() if re.fullmatch(r"\..*\.done", name))
    out.remove([PLAN])


def _empty(folder: Path) -> None:
    """Removes what is in the staging folder but for the copy of a source, which `finish` removes."""
    for path in folder.iterdir():
        if path.name != COPY:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
