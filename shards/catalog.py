"""The list of a conversion's images, in SQLite: otherwise every process would hold a million file names in memory."""

import hashlib
import os
import re
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import xxhash

from shards.sources.base import SourceImage

MAX_KEY = 80  # characters; a tar's plain header holds names of 100 bytes
CHUNK = 500  # rows a query


class CatalogEntry(NamedTuple):
    """An image to store: its byte range in a file, its name in the source, its class number and its key."""

    file: bytes
    offset: int
    length: int
    name: str
    label: int
    key: str


# Keys are file names without suffix where these are unique in the split; otherwise with the class before them, then
# also with the suffix behind them; otherwise numbers. A key ends at the first dot, and DALI's index separates by blanks
SCHEMES = (
    lambda name, wnid: os.path.splitext(os.path.basename(name))[0],
    lambda name, wnid: f"{wnid}_{os.path.splitext(os.path.basename(name))[0]}",
    lambda name, wnid: f"{wnid}_{os.path.basename(name)}",
)


def key_of(name: str, wnid: str, scheme: int) -> str:
    """A sample's key by one of SCHEMES, of ASCII letters, digits, `_` and `-` only."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", SCHEMES[scheme](name, wnid))


class Catalog:
    """A table of images in the file `path`, one split after the other, each in its source's order."""

    def __init__(self, path: Path):
        # It need not survive a crash, for a conversion that is continued lists its images again; nor be locked, for its
        # folder is, and not every file system has locks
        self.table = sqlite3.connect(f"{_uri(path)}?nolock=1", uri=True, isolation_level=None)
        self.table.executescript("pragma journal_mode = off; pragma synchronous = off; pragma temp_store = file")
        self.table.execute(
            "create table if not exists image (id integer primary key, split text, file blob, offset integer, "
            "length integer, name text, label integer, key text)"
        )

    @classmethod
    def open(cls, path: Path) -> "Catalog":
        """A complete catalog, to read from."""
        catalog = cls.__new__(cls)
        catalog.table = sqlite3.connect(f"{_uri(path)}?mode=ro&immutable=1", uri=True)
        return catalog

    def close(self) -> None:
        self.table.close()

    def add(self, split: str, images: Iterable[SourceImage], classes: Sequence[str]) -> None:
        """Adds a split's images and gives them their keys."""
        self.table.execute("begin")
        self.table.executemany(
            "insert into image (split, file, offset, length, name, label, key) values (?, ?, ?, ?, ?, ?, ?)",
            (
                (split, os.fsencode(file), offset, length, _plain(name), label, key_of(name, classes[label], 0))
                for file, offset, length, name, label in images
            ),
        )
        for scheme in range(len(SCHEMES)):
            self.table.create_function(
                "key_of", 2, lambda name, label, scheme=scheme: key_of(name, classes[label], scheme), deterministic=True
            )
            if scheme:
                self.table.execute("update image set key = key_of(name, label) where split = ?", [split])
            query = "select count(*) - count(distinct key), max(length(key)) from image where split = ?"
            repeated, longest = self.table.execute(query, [split]).fetchone()
            if not repeated and (longest or 0) <= MAX_KEY:
                break
        else:
            first = "(select min(id) from image where split = ?1)"
            self.table.execute(f"update image set key = printf('%09d', id - {first}) where split = ?1", [split])
        self.table.execute("commit")

    def draw_val(self, share: float, seed: int) -> None:
        """Moves this share of each class of train to val, by seed and the images' names alone: at least one image, and
        none of a class that has but one."""
        self.table.create_function("drawn", 1, lambda name: xxhash.xxh3_128_digest(f"{seed} {name}".encode()))
        self.table.execute(
            "update image set split = 'val' where id in (select id from (select id, count(*) over (partition by label) "
            "as number, row_number() over (partition by label order by drawn(name), id) as place from image where "
            "split = 'train') where number > 1 and "
            "place <= max(1, min(number - 1, cast(number * ? + 0.5 as integer))))",
            [share],
        )

    def counts(self, split: str) -> dict[int, int]:
        """How many images of each class a split has."""
        query = "select label, count(*) from image where split = ? group by label order by label"
        return dict(self.table.execute(query, [split]))

    def lengths(self, split: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """A split's ids and the bytes of its images, int64, in the source's order."""
        rows = self.table.execute("select id, length from image where split = ? order by id", [split])
        flat = np.fromiter((number for row in rows for number in row), np.int64).reshape(-1, 2)
        return flat[:, 0], flat[:, 1]

    def images(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> list[CatalogEntry]:
        """The images of these ids, in their order."""
        by_id: dict[int, CatalogEntry] = {}
        for begin in range(0, len(ids), CHUNK):
            some = [int(identity) for identity in ids[begin : begin + CHUNK]]
            marks = ",".join("?" * len(some))
            query = f"select id, file, offset, length, name, label, key from image where id in ({marks})"
            by_id.update((row[0], CatalogEntry(*row[1:])) for row in self.table.execute(query, some))
        return [by_id[int(identity)] for identity in ids]

    def digest(self) -> str:
        """SHA-256 over every image's split, name and length."""
        digest = hashlib.sha256()
        for row in self.table.execute("select split, name, length from image order by id"):
            digest.update(repr(row).encode())
        return digest.hexdigest()


def _uri(path: Path) -> str:
    return f"file:{quote(os.fsencode(path.absolute()))}"


def _plain(name: str) -> str:
    """File names are bytes; what is not UTF-8 is escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
