"""Writes a data set: tars, their indices and, last of all, `dataset.json`.

Shards are planned before any image is read, so each is a job of its own for a worker process, and the same source,
options and seed give the same bytes whatever the number of workers. A worker holds one image at a time; the list of
images is on disk. Every file appears whole or not at all, and a finished shard leaves a note of itself, so that a
conversion which was killed goes on with the shards that it had not finished.
"""

import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import xxhash

from shards import dataset as description
from shards import tars
from shards.atomic import Flusher, atomic_write, locked
from shards.catalog import Catalog, CatalogEntry
from shards.dataset import Dataset
from shards.errors import InputError, Unreadable
from shards.images import MAX_BYTES, Prepared, prepare
from shards.index import entry, write_index
from shards.processes import cores, run_jobs, tick
from shards.records import LeftOut, Shard, Sizes, Split
from shards.sources.base import Source
from shards.sources.detect import find_source
from shards.tars import BLOCK, padded

# Hidden files of a conversion that is not finished: which one it is, its list of images, parquet files laid down
PLAN, CATALOG, SCRATCH = ".plan", ".catalog", ".scratch"
PROBED = 64  # images prepared beforehand to estimate the stored size
MANY, SMALL = 16, 4 * 2**20  # a split is cut into so many shards, if they have so many bytes
END = bytes(2 * BLOCK)  # what ends a tar


@dataclass(frozen=True)
class Options:
    """How images are stored: `size` is the squares' side, pixels, or None to keep the images' own; `quality` of the
    JPEGs encoded anew; `max_pixels` above which an image is scaled down, None for never."""

    size: int | None = None
    quality: int = 95
    max_pixels: int | None = None


@dataclass(frozen=True)
class Written:
    """What became of a shard's images. `shard` is None when none of them could be read; `images` (N x 3 int32) has
    the class number, width and height of each that is stored."""

    shard: Shard | None
    left_out: tuple[LeftOut, ...]
    changed: dict[str, int]
    scaled_down: int
    images: np.ndarray

    def note(self) -> dict:
        """What is noted of it, in JSON's types."""
        left_out, shard = [asdict(left) for left in self.left_out], self.shard and asdict(self.shard)
        return {**vars(self), "left_out": left_out, "shard": shard, "images": self.images.tolist()}

    @classmethod
    def of(cls, note: dict) -> "Written":
        """From its note. Raises KeyError or TypeError when that is none."""
        parts = {"left_out": tuple(LeftOut(**left) for left in note["left_out"])}
        parts["shard"] = Shard(**note["shard"]) if note["shard"] else None
        parts["images"] = _table(note["images"])
        return cls(**{**note, **parts})


def write_dataset(
    root: Path,
    out: Path,
    *,
    kind: str = "auto",
    size: int | None = None,
    quality: int = 95,
    max_pixels: int | None = None,
    shard_size: int = 256 * 2**20,
    workers: int | None = None,
    seed: int = 0,
    strict: bool = False,
) -> Dataset:
    """Writes the source at `root` to the folder `out`, train in a seeded global shuffle, and returns what was written.

    Args: kind: of `shards.sources.base.KINDS`, or "auto"; size, quality, max_pixels: see `Options`; shard_size: bytes,
    about; workers: one a core when None; strict: fail when an image is left out. Raises: InputError for a source of
    no known layout, a folder that cannot be written or holds another data set, a full disk, and when nothing is left
    of a split.
    """
    options, workers = Options(size, quality, max_pixels), workers or cores()
    with _claimed(out):
        source = find_source(root, kind, out / SCRATCH, workers)
        # Archives need not be listed to know whether this very conversion is already finished
        plan = _plan(options, shard_size, seed, source, _stamp(source)) if source.containers else None
        if plan and (finished := _finished(out, plan)):
            return finished
        (out / CATALOG).unlink(missing_ok=True)
        catalog = Catalog(out / CATALOG)
        for name, images in source.splits.items():
            catalog.add(name, images, source.classes)
        plan = plan or _plan(options, shard_size, seed, source, catalog.digest())
        if finished := _finished(out, plan):
            return finished
        _begin(out, plan)
        splits = {}
        for name in source.splits:
            splits[name] = _write_split(out, name, source, catalog, options, shard_size, workers, seed, plan)
            if not splits[name].shards:
                _discard(out, source)
                if not splits[name].left_out:
                    raise InputError(f"{root}: the {name} split is empty")
                first = splits[name].left_out[0]
                raise InputError(f"no image of the {name} split can be read ({first.file}: {first.reason})")
            if strict and splits[name].left_out:
                first, count = splits[name].left_out[0], len(splits[name].left_out)
                _discard(out, source)  # or the command could not be repeated with the image mended
                raise InputError(f"--strict: {first.file} cannot be used ({first.reason}), {count} such in {name}")
        catalog.close()
        dataset = Dataset(
            root=out,
            classes=source.classes,
            words={name: source.words[name] for name in source.classes if name in source.words},
            splits=splits,
            source=source.kind,
            seed=seed,
            size=size,
            quality=quality,
            max_pixels=max_pixels,
            plan=plan,
            versions={name: version(name) for name in ("numpy", "pillow", "simplejpeg", "xxhash")},
        )
        dataset.save()
        _clear(out)
        return dataset


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """Makes the folder, keeps other commands out of it meanwhile, and removes it again when nothing came of it."""
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise InputError(f"--out {out} cannot be written ({error.strerror}): choose another folder") from None
    try:
        with locked(out):
            try:
                yield
            finally:
                if not (out / PLAN).exists():  # nothing was begun: it was finished already, or refused
                    _clear(out)
    finally:
        if made and not any(out.iterdir()):
            out.rmdir()


def _stamp(source: Source) -> str:
    """Identifies archives by their names and lengths."""
    return repr([(str(path.relative_to(source.root)), path.stat().st_size) for path in source.containers])


def _plan(options: Options, shard_size: int, seed: int, source: Source, images: str) -> str:
    """Identifies what is to be written: the options, the classes, and what tells the images."""
    told = [description.FORMAT, asdict(options), shard_size, seed, source.kind, source.classes, images]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _finished(out: Path, plan: str) -> Dataset | None:
    """The data set if it is there already. Raises InputError when there is another."""
    if not (out / description.FILE).exists():
        return None
    dataset = Dataset.load(out)
    if dataset.plan != plan:
        raise InputError(f"{out} holds another data set (other images or options): choose another --out or empty it")
    for split in dataset.splits:
        dataset.tars(split)
    _clear(out)  # what a kill at the very end may have left
    return dataset


def _begin(out: Path, plan: str) -> None:
    """Marks the folder as this plan's, and removes the half-written files of a killed run."""
    begun = (out / PLAN).read_text() if (out / PLAN).exists() else None
    if begun != plan and (begun or any(out.glob("*.tar")) or any(out.glob("*.npz"))):
        raise InputError(f"{out} holds parts of another data set: choose another --out or empty it")
    for leftover in out.glob(".*.tmp-*"):
        leftover.unlink()
    with atomic_write(out / PLAN) as file:
        file.write(plan.encode())


def _discard(out: Path, source: Source) -> None:
    """Removes what an unfinished conversion has written to a folder that it had claimed."""
    for name in source.splits:
        for path in [*out.glob(f"{name}-[0-9]*.tar"), *out.glob(f"{name}-[0-9]*.idx")]:
            path.unlink()
    _clear(out)


def _clear(out: Path) -> None:
    """Removes the hidden files of a conversion. The plan goes last: as long as it is there, the rest is known."""
    shutil.rmtree(out / SCRATCH, ignore_errors=True)
    for path in [*out.glob(".*.tmp-*"), *out.glob(".*.done"), out / CATALOG, out / PLAN]:
        path.unlink(missing_ok=True)


def _write_split(
    out: Path,
    name: str,
    source: Source,
    catalog: Catalog,
    options: Options,
    shard_size: int,
    workers: int,
    seed: int,
    plan: str,
) -> Split:
    ids, lengths = catalog.lengths(name)
    if name == "train":
        order = np.random.default_rng(seed).permutation(len(ids))
        ids, lengths = ids[order], lengths[order]
    if options.size:
        lengths[:] = _typical_length(source.root, catalog.images(ids[:PROBED]), options)
    jobs = [
        (out / f"{name}-{number:06d}.tar", part, source.root, source.classes, options, plan)
        for number, part in enumerate(_parts(ids, lengths, shard_size))
    ]
    written = run_jobs(write_shard, jobs, workers, f"shard {name}", len(ids))
    images = np.concatenate([_table([]), *(shard.images for shard in written)])
    counts = np.bincount(images[:, 0], minlength=len(source.classes))
    changed = sum((Counter(shard.changed) for shard in written), Counter())
    return Split(
        shards=tuple(shard.shard for shard in written if shard.shard),
        class_counts=tuple(counts.tolist()),
        sizes=Sizes.of(images[:, 1:]),
        left_out=tuple(left for shard in written for left in shard.left_out),
        changed=dict(sorted(changed.items())),
        scaled_down=sum(shard.scaled_down for shard in written),
    )


def _parts(ids: np.ndarray, lengths: np.ndarray, shard_size: int) -> list[np.ndarray]:
    """Cuts a split into shards of equal size: of `shard_size` bytes at most, about, and of a small split some sixteen,
    so that there is work for several processes."""
    if not len(ids):
        return []
    # Three headers, the class number's block, the description's block, and the image in whole blocks
    filled = np.cumsum(5 * BLOCK + -(-np.maximum(lengths, 0) // BLOCK) * BLOCK)
    number = max(-(-int(filled[-1]) // shard_size), min(MANY, int(filled[-1]) // SMALL), 1)
    cuts = np.searchsorted(filled, filled[-1] * np.arange(1, number) / number)
    return [part for part in np.split(ids, cuts) if len(part)]


def _typical_length(root: Path, images: list[CatalogEntry], options: Options) -> int:
    """Mean bytes of the first images as they will be stored; the same for the same source, so the plan is too."""
    lengths = []
    for image in images:
        try:
            lengths.append(len(prepare(_read(root, image), **asdict(options)).jpeg))
        except Unreadable:
            continue
    return sum(lengths) // len(lengths) if lengths else 0


def write_shard(tar: Path, ids: np.ndarray, root: Path, classes: tuple, options: Options, plan: str) -> Written:
    """Writes one tar, its index and then its note, and no tar when none of the samples can be read. What the note says
    is done is not done again."""
    note = tar.with_name(f".{tar.stem}.done")
    if (written := _noted(note, tar, plan)) is not None:
        tick(len(ids), 0)
        return written
    catalog = Catalog.open(tar.with_name(CATALOG))
    entries, left_out, changed, scaled_down, stored = [], [], Counter(), 0, []
    digest, length = hashlib.sha256(), 0
    try:
        with atomic_write(tar) as file, Flusher(file.fileno()) as flusher:
            for image in catalog.images(ids):
                try:
                    prepared = prepare(_read(root, image), options.size, options.quality, options.max_pixels)
                except Unreadable as error:
                    left_out.append(LeftOut(image.name, str(error)))
                    tick(1, 0)
                    continue
                pieces, parts = _sample(image, prepared, classes[image.label])
                entries.append(entry(parts, length))
                for piece in pieces:
                    digest.update(piece)
                    length += len(piece)
                _write(file.fileno(), pieces)
                flusher.wrote(len(prepared.jpeg))
                changed.update([prepared.reencoded] if prepared.reencoded else [])
                scaled_down += prepared.scaled_down
                stored.append((image.label, prepared.width, prepared.height))
                tick(1, len(prepared.jpeg))
            if not entries:
                raise _Empty
            digest.update(END)
            file.write(END)
        write_index(tar.with_suffix(".idx"), entries)
        shard = Shard(tar.name, len(entries), length + len(END), digest.hexdigest())
    except _Empty:
        shard = None
    finally:
        catalog.close()
    written = Written(shard, tuple(left_out), dict(changed), scaled_down, _table(stored))
    with atomic_write(note) as file:
        file.write(json.dumps({"plan": plan, **written.note()}).encode())
    return written


def _write(file: int, pieces: list[bytes]) -> None:
    """All of the pieces in one system call, or in as many as it takes when the disk is nearly full."""
    done = os.writev(file, pieces)
    if done < sum(map(len, pieces)):
        rest = memoryview(b"".join(pieces))[done:]
        while rest:
            rest = rest[os.write(file, rest) :]


def _table(images: list) -> np.ndarray:
    return np.array(images, np.int32).reshape(-1, 3)


class _Empty(Exception):
    """None of a shard's images can be read."""


def _noted(note: Path, tar: Path, plan: str) -> Written | None:
    """What a shard's note says, if it is of this plan and the tar and index are there."""
    try:
        told = json.loads(note.read_text())
        if told.pop("plan") != plan:
            return None
        written = Written.of(told)
        if written.shard and (tar.stat().st_size != written.shard.bytes or not tar.with_suffix(".idx").exists()):
            return None
        return written
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read(root: Path, image: CatalogEntry) -> bytes:
    """An image's bytes. Raises Unreadable when they are not there."""
    if image.length < 0:
        raise Unreadable("not a regular file")
    if image.length > MAX_BYTES:
        raise Unreadable(f"{image.length} bytes are more than {MAX_BYTES}")
    try:
        file = os.open(os.path.join(os.fsencode(root), image.file), os.O_RDONLY | os.O_NONBLOCK)
        try:
            data = os.pread(file, image.length, image.offset)
        finally:
            os.close(file)
    except OSError as error:
        raise Unreadable(error.strerror) from None
    if len(data) < image.length:
        raise Unreadable("it became shorter while the data set was written")
    return data


def _sample(image: CatalogEntry, prepared: Prepared, wnid: str) -> tuple[list[bytes], dict[str, tars.Member]]:
    """A sample's bytes in the tar, in three pieces (the second is the image), and where its parts lie in them."""
    about = {
        "wnid": wnid,
        "file": image.name,
        "width": prepared.width,
        "height": prepared.height,
        "xxh3": xxhash.xxh3_64_hexdigest(prepared.jpeg),  # finds the one sample that a disk spoilt
    }
    parts, pieces, length = {}, [], 0
    members = (("jpg", prepared.jpeg), ("cls", b"%d" % image.label), ("json", json.dumps(about).encode()))
    for extension, data in members:
        name = f"{image.key}.{extension}"
        parts[extension] = tars.Member(name, length + BLOCK, len(data))
        pieces += [tars.header(name.encode(), len(data)), data, bytes(padded(len(data)) - len(data))]
        length += BLOCK + padded(len(data))
    return [pieces[0], pieces[1], b"".join(pieces[2:])], parts
