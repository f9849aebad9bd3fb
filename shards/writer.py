"""Writes a data set: tars, their indices and, last of all, `dataset.json`.

Shards are planned before anything is read, so each is a job of its own for a worker process, and the same source,
options and seed give the same bytes whatever the number of workers. A worker holds one picture at a time. Every file
appears whole or not at all.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL

from shards import manifest
from shards.errors import InputError
from shards.files import atomic_write
from shards.images import Unreadable, prepare
from shards.index import write_index
from shards.manifest import Dataset, LeftOut, Shard, Split
from shards.progress import Progress
from shards.sources import Picture, Source, keys

BLOCK = 512  # a tar is made of these
PLAN = ".plan"  # in a folder whose data set is not finished: which one it is to be
PROBED = 64  # pictures prepared beforehand to estimate the stored size


@dataclass(frozen=True)
class Sample:
    """A picture to store: where it lies, its name in the source, and what its members say."""

    path: Path
    file: str
    key: str
    label: int
    wnid: str


@dataclass(frozen=True)
class Written:
    """What became of a shard; `shard` is None when no picture of it could be read."""

    shard: Shard | None
    left_out: tuple[LeftOut, ...]
    reencoded: int


def write_dataset(
    source: Source,
    out: Path,
    *,
    size: int | None = None,
    quality: int = 95,
    shard_size: int = 256 * 2**20,
    workers: int | None = None,
    seed: int = 0,
    strict: bool = False,
) -> Dataset:
    """Writes `source` to the folder `out`, train in a seeded global shuffle, and returns what was written.

    Args: size: None to keep the pictures' bytes, else the side of the stored squares, pixels; quality: of JPEGs encoded
    anew; shard_size: bytes, about; workers: processes, one a core when None; strict: fail when a picture is left out.
    Raises: InputError for a folder that cannot be written or holds another data set, a full disk, and when nothing is
    left of a split.
    """
    plan = _plan(source, size, quality, shard_size, seed)
    if finished := _claim(out, plan):
        return finished
    splits = {}
    for name, pictures in source.splits.items():
        samples = _samples(source.root, pictures, np.random.default_rng(seed) if name == "train" else None)
        jobs = [
            (out / f"{name}-{number:06d}.tar", part, size, quality)
            for number, part in enumerate(_parts(samples, size, quality, shard_size))
        ]
        written = _run(jobs, workers or len(os.sched_getaffinity(0)), name, len(samples))
        splits[name] = Split(
            tuple(shard.shard for shard in written if shard.shard),
            tuple(left for shard in written for left in shard.left_out),
            sum(shard.reencoded for shard in written),
        )
        if not splits[name].shards:
            first = splits[name].left_out[0]
            _discard(out, source.splits)
            raise InputError(f"no picture of the {name} split can be read ({first.file}: {first.reason})")
        if strict and splits[name].left_out:
            first, count = splits[name].left_out[0], len(splits[name].left_out)
            _discard(out, source.splits)  # or the command could not be repeated with the picture mended
            raise InputError(f"--strict: {first.file} cannot be used ({first.reason}), {count} such in {name}")
    versions = {"pillow": PIL.__version__, "numpy": np.__version__}
    dataset = Dataset(out, source.classes, splits, size, quality, seed, "folders", plan, versions)
    dataset.save()
    (out / PLAN).unlink()
    return dataset


def _plan(source: Source, size: int | None, quality: int, shard_size: int, seed: int) -> str:
    """Identifies what is to be written: the options, and every file's place and bytes."""
    digest = hashlib.sha256(json.dumps([manifest.FORMAT, size, quality, shard_size, seed, source.classes]).encode())
    for split, pictures in source.splits.items():
        for picture in pictures:
            place = picture.path.relative_to(source.root)
            digest.update(os.fsencode(f"\n{split} {_bytes(picture.path)} {place}"))
    return digest.hexdigest()


def _claim(out: Path, plan: str) -> Dataset | None:
    """Makes the folder ready and clears what a killed run left; returns the data set if it is there already."""
    if (out / manifest.FILE).exists():
        dataset = Dataset.load(out)
        if dataset.plan == plan:
            for split in dataset.splits:
                dataset.tars(split)
            return dataset
        raise InputError(f"{out} holds another data set (other pictures or options): choose another --out or empty it")
    try:
        out.mkdir(parents=True, exist_ok=True)
        begun = (out / PLAN).read_text() if (out / PLAN).exists() else None
        if begun != plan and (begun or any(out.glob("*.tar")) or any(out.glob("*.npz"))):
            raise InputError(f"{out} holds parts of another data set: choose another --out or empty it")
        for leftover in out.glob(".*.tmp-*"):
            leftover.unlink()
    except OSError as error:
        raise InputError(f"--out {out} cannot be written ({error.strerror}): choose another folder") from None
    with atomic_write(out / PLAN) as file:
        file.write(plan.encode())
    return None


def _discard(out: Path, splits: Iterable[str]) -> None:
    """Removes what an unfinished conversion has written to a folder that it had claimed."""
    for name in splits:
        for path in [*out.glob(f"{name}-[0-9]*.tar"), *out.glob(f"{name}-[0-9]*.idx")]:
            path.unlink()
    (out / PLAN).unlink()


def _samples(root: Path, pictures: Sequence[Picture], rng: np.random.Generator | None) -> list[Sample]:
    """The split's samples in the order they are stored: as listed, or shuffled."""
    named = list(zip(pictures, keys(pictures), strict=True))
    order = range(len(named)) if rng is None else rng.permutation(len(named))
    return [
        Sample(picture.path, str(picture.path.relative_to(root)), key, picture.label, picture.wnid)
        for picture, key in (named[i] for i in order)
    ]


def _parts(samples: list[Sample], size: int | None, quality: int, shard_size: int) -> Iterator[list[Sample]]:
    """Cuts the samples into shards of about `shard_size` bytes, each of one sample at least."""
    if size is None:
        lengths = [_bytes(sample.path) for sample in samples]
    else:
        lengths = [_typical_length(samples, size, quality)] * len(samples)
    part, filled = [], 0
    for sample, length in zip(samples, lengths, strict=True):
        # Three headers, the class number's block, the description's block, and the picture in whole blocks
        taken = 5 * BLOCK + _padded(length)
        if part and filled + taken > shard_size:
            yield part
            part, filled = [], 0
        part.append(sample)
        filled += taken
    if part:
        yield part


def _typical_length(samples: list[Sample], size: int, quality: int) -> int:
    """Mean bytes of the first pictures as they will be stored; the same for the same source, so the plan is too."""
    lengths = []
    for sample in samples[:PROBED]:
        try:
            lengths.append(len(prepare(sample.path.read_bytes(), size, quality).jpeg))
        except (Unreadable, OSError):
            continue
    return sum(lengths) // len(lengths) if lengths else 0


def _bytes(path: Path) -> int:
    """A file's length; 0 for one that is gone, which reading it will tell."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _run(jobs: list[tuple], workers: int, label: str, total: int) -> list[Written]:
    """Runs the jobs in worker processes, shows their progress, returns what they wrote in the jobs' order."""
    context = multiprocessing.get_context("spawn")
    images, stored, stop = context.Value("q", 0), context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _begin_worker, (images, stored, stop))
    with pool, Progress(f"shard {label}", total) as progress:
        try:
            pending = futures = [pool.submit(_write_shard, *job) for job in jobs]
            while pending:
                ended, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in ended:
                    future.result()  # raises what the worker raised
                progress.advance(images.value - progress.done, stored.value - progress.bytes)
            return [future.result() for future in futures]
        except BaseException:
            # Ctrl-C, a full disk: the workers drop what they have in hand and clear it away
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _begin_worker(images, stored, stop) -> None:
    """In each worker: Ctrl-C is the parent's to hear; the counters and the stop sign are the parent's too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _write_shard.shared = (images, stored, stop)


class _Stopped(Exception):
    """The parent asked the workers to stop."""


def _write_shard(tar: Path, samples: list[Sample], size: int | None, quality: int) -> Written:
    """Writes one tar and its index, and nothing when none of the samples can be read."""
    images, stored, stop = _write_shard.shared
    entries, left_out, reencoded = [], [], 0
    digest, length = hashlib.sha256(), 0
    try:
        with atomic_write(tar) as file:
            for sample in samples:
                if stop.is_set():
                    raise _Stopped
                with images.get_lock():
                    images.value += 1
                try:
                    prepared = prepare(sample.path.read_bytes(), size, quality)
                except Unreadable as error:
                    left_out.append(LeftOut(sample.file, str(error)))
                    continue
                except OSError as error:
                    left_out.append(LeftOut(sample.file, error.strerror))
                    continue
                reencoded += prepared.reencoded and size is None
                about = {
                    "wnid": sample.wnid,
                    "file": sample.file,
                    "width": prepared.width,
                    "height": prepared.height,
                }
                members = (
                    ("jpg", prepared.jpeg),
                    ("cls", str(sample.label).encode()),
                    ("json", json.dumps(about).encode()),
                )
                components = []
                for extension, data in members:
                    name = f"{sample.key}.{extension}"
                    components.append(f"{extension} {length + BLOCK} {len(data)} {name}")
                    for block in _member(name, data):
                        digest.update(block)
                        file.write(block)
                        length += len(block)
                entries.append(" ".join(components))
                with stored.get_lock():
                    stored.value += len(prepared.jpeg)
            if not entries:
                raise _Stopped
            end = bytes(2 * BLOCK)
            digest.update(end)
            file.write(end)
        write_index(tar.with_suffix(".idx"), entries)
    except _Stopped:
        return Written(None, tuple(left_out), reencoded)
    shard = Shard(tar.name, len(entries), length + 2 * BLOCK, digest.hexdigest())
    return Written(shard, tuple(left_out), reencoded)


def _member(name: str, data: bytes) -> Iterable[bytes]:
    """A tar member's header, data and padding. Owner and time are fixed: the bytes depend on the content alone."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    return header.tobuf(tarfile.USTAR_FORMAT), data, bytes(_padded(len(data)) - len(data))
