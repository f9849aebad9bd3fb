"""Writes one shard of a conversion: a tar, its index and its done marker. A worker process runs it."""

import hashlib
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from shards import tars
from shards.atomic import Flusher, atomic_write
from shards.catalog import Catalog, CatalogEntry
from shards.errors import Unreadable
from shards.images import MAX_BYTES, Prepared, prepare
from shards.index import entry, write_index
from shards.output_folder import done_marker
from shards.processes import tick
from shards.records import Shard, Skipped, from_json, to_json

END = bytes(2 * tars.BLOCK)  # what ends a tar


class ImageOptions(NamedTuple):
    """How images are stored, as `shards.convert.ConvertOptions` has it."""

    size: int | None
    quality: int
    max_pixels: int | None


class ShardJob(NamedTuple):
    """A shard to write: `ids` are its images in the catalog, in their order; `root` is the source's."""

    tar: Path
    catalog: Path
    ids: npt.NDArray[np.int64]
    root: Path
    classes: tuple[str, ...]
    options: ImageOptions
    plan: str


@dataclass
class WrittenShard:
    """What became of a shard's images. `shard` is None when none of them can be read; `images` (N x 3) has the class
    number, width and height of each that is stored."""

    shard: Shard | None = None
    skipped: list[Skipped] = field(default_factory=list)
    reencoded: dict[str, int] = field(default_factory=dict)
    scaled_down: int = 0
    images: npt.NDArray[np.int32] = field(default_factory=lambda: image_table([]))


class _NothingReadable(Exception):
    """None of a shard's images can be read."""


def write_shard(job: ShardJob) -> WrittenShard:
    """Writes a tar, its index and then its done marker, and no tar when none of the images can be read. A shard that
    has its marker already is not written again."""
    if (done := read_marker(job.tar, job.plan)) is not None:
        tick(len(job.ids), 0)
        return done
    written = WrittenShard()
    try:
        with atomic_write(job.tar) as file:
            entries, length, sha256 = _write_samples(file, job, written)
        write_index(job.tar.with_suffix(".idx"), entries)
        written.shard = Shard(job.tar.name, len(entries), length, sha256)
    except _NothingReadable:
        pass
    with atomic_write(done_marker(job.tar)) as file:
        content = to_json(asdict(written)) | {"images": written.images.tolist()}
        file.write(json.dumps({"plan": job.plan, **content}).encode())
    return written


def _write_samples(file: BinaryIO, job: ShardJob, written: WrittenShard) -> tuple[list[str], int, str]:
    """Writes the tar and counts in `written` what becomes of each image. Returns the index's lines, the tar's bytes and
    its SHA-256. Raises _NothingReadable."""
    entries, stored, digest, length = [], [], hashlib.sha256(), 0
    reencoded: Counter[str] = Counter()
    catalog = Catalog.open(job.catalog)
    try:
        with Flusher(file.fileno()) as flusher:
            for image in catalog.images(job.ids):
                try:
                    prepared = prepare(read_image(job.root, image), *job.options)
                except Unreadable as error:
                    written.skipped.append(Skipped(image.name, str(error)))
                    tick(1, 0)
                    continue
                pieces, parts = _sample(image, prepared, job.classes[image.label])
                entries.append(entry(parts, length))
                for piece in pieces:
                    digest.update(piece)
                    length += len(piece)
                _write(file.fileno(), pieces)
                flusher.wrote(len(prepared.jpeg))
                reencoded.update([prepared.reencoded] if prepared.reencoded else [])
                written.scaled_down += prepared.scaled_down
                stored.append((image.label, prepared.width, prepared.height))
                tick(1, len(prepared.jpeg))
            if not entries:
                raise _NothingReadable
            digest.update(END)
            file.write(END)
    finally:
        catalog.close()
    written.reencoded, written.images = dict(reencoded), image_table(stored)
    return entries, length + len(END), digest.hexdigest()


def _write(file: int, pieces: list[bytes]) -> None:
    """All of the pieces in one system call, or in as many as it takes when the disk is nearly full."""
    done = os.writev(file, pieces)
    if done < sum(map(len, pieces)):
        rest = memoryview(b"".join(pieces))[done:]
        while rest:
            rest = rest[os.write(file, rest) :]


def read_marker(tar: Path, plan: str) -> WrittenShard | None:
    """What a shard's done marker says, if it is of this plan and the tar and index are there."""
    try:
        written = parse_marker(done_marker(tar).read_bytes(), plan)
        length = written and written.shard and tar.stat().st_size
    except OSError:
        return None
    if written and written.shard and (length != written.shard.bytes or not tar.with_suffix(".idx").exists()):
        return None
    return written


def parse_marker(text: bytes, plan: str) -> WrittenShard | None:
    """What a done marker's content says, if it is one of this plan."""
    try:
        content = json.loads(text)
        return _written(from_json(content)) if content.pop("plan") == plan else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _written(content: dict[str, Any]) -> WrittenShard:
    """Raises KeyError or TypeError when the content is not a done marker's."""
    return WrittenShard(
        shard=Shard(**content["shard"]) if content["shard"] else None,
        skipped=[Skipped(**skipped) for skipped in content["skipped"]],
        reencoded=content["reencoded"],
        scaled_down=content["scaled_down"],
        images=image_table(content["images"]),
    )


def image_table(images: list[tuple[int, int, int]]) -> npt.NDArray[np.int32]:
    """(class number, width, height) of each image, N x 3."""
    return np.array(images, np.int32).reshape(-1, 3)


def library_versions() -> dict[str, str]:
    """Of the libraries that decide the bytes of a shard."""
    return {name: version(name) for name in ("numpy", "pillow", "simplejpeg", "xxhash")}


def read_image(root: Path, image: CatalogEntry) -> bytes:
    """An image's bytes in the source. Raises Unreadable when they are not there."""
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
    description = {
        "wnid": wnid,
        "file": image.name,
        "width": prepared.width,
        "height": prepared.height,
        "xxh3": xxhash.xxh3_64_hexdigest(prepared.jpeg),  # finds the one sample that a disk damaged
    }
    parts, pieces, length = {}, [], 0
    members = (("jpg", prepared.jpeg), ("cls", b"%d" % image.label), ("json", json.dumps(description).encode()))
    for extension, data in members:
        name = f"{image.key}.{extension}"
        parts[extension] = tars.Member(name, length + tars.BLOCK, len(data))
        pieces += [tars.header(name.encode(), len(data)), data, bytes(tars.padded(len(data)) - len(data))]
        length += tars.BLOCK + tars.padded(len(data))
    return [pieces[0], pieces[1], b"".join(pieces[2:])], parts
