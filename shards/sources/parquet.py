"""Hugging Face's layout: parquet files of `image` (a struct of `bytes` and `path`) and `label`.

A row cannot be read without the hundred rows of its group, and a shuffled order asks for single rows. So the images
are first laid down one after the other in plain files beside the data set (as many bytes as the parquet files hold,
removed at the end), and then read from these as members of an archive are.

pyarrow is an optional extra. It reads in worker processes whose memory is limited (`shards.processes`): a parquet file
may promise any size. What it unfolds to is limited too, for one value can stand for a million rows.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.atomic import atomic_write
from shards.errors import InputError
from shards.processes import run_jobs, tick
from shards.sources import KINDS, MOST_CLASSES, Source, SourceImage, labels, parquet_files, split_of

ROWS = 16  # taken out of a file at once
WITH_WNID = re.compile(r"(.+)_(n\d{8})$")  # ImageNet's on Hugging Face: n01440764_10026_n01440764.JPEG
LONGEST_PATH = 4096
BINARY, TEXT = ("binary", "large_binary"), ("string", "large_string", "null")
# Images are compressed already: what unfolds to more than so many times the file and so many bytes was made to harm.
# A row counts as so many bytes at least
MOST_TIMES, SPARE, ROW = 16, 256 * 2**20, 1024


def find_parquet(root: Path, scratch: Path | None, workers: int) -> Source:
    """The source at `root`. `scratch` is the folder for the plain files. Raises InputError when pyarrow is absent or a
    file has other columns, or class numbers that it does not name."""
    _pyarrow()
    paths = parquet_files(root)
    if not paths:
        raise InputError(f"{root} holds no parquet files: expected {KINDS['parquet']}")
    grouped: dict[str, list[Path]] = {}
    for path in paths:
        grouped.setdefault(split_of(path), []).append(path)
    if "train" not in grouped:
        raise InputError(f"{root} holds no train-*.parquet: expected {KINDS['parquet']}")
    # Hugging Face's test split of ImageNet has no labels: every one is -1
    grouped = {split: grouped[split] for split in ("train", "val") if split in grouped}
    paths = [path for group in grouped.values() for path in group]
    read = run_jobs(summarise, [(path,) for path in paths], workers, "read parquet labels", None)
    summaries = dict(zip(paths, read, strict=True))
    named = next((summary["names"] for summary in read if summary["names"]), None)
    told: dict[int, set[str]] = {}
    for path, summary in summaries.items():
        highest = max(summary["told"], default=0)
        if named and highest >= len(named):
            raise InputError(f"{path} has label {highest}, and {len(named)} classes are named")
        for label, wnids in summary["told"].items():
            told.setdefault(label, set()).update(wnids)
    # ImageNet's WNIDs name its classes, and the list of names says in words what they are
    wnids = {label: next(iter(found)) for label, found in sorted(told.items()) if len(found) == 1}
    numbers = range(len(named) if named else 1 + max(told, default=0))
    classes = tuple(wnids.get(label) or (named[label] if named else str(label)) for label in numbers)
    words = {wnid: named[label] for label, wnid in wnids.items()} if named else labels.words(root)

    def images(group: list[Path]) -> Iterator[SourceImage]:
        jobs = [(path, scratch / f"{path.name}.bytes") for path in group]
        total = sum(summaries[path]["rows"] for path in group)
        run_jobs(lay_down, jobs, workers, "lay down parquet", total)
        for path, plain in jobs:
            rows = json.loads(plain.with_suffix(".json").read_text())["rows"]
            for number, (offset, length, name, label) in enumerate(rows):
                yield SourceImage(str(plain.absolute()), offset, length, f"{path.name}/{name or number}", label)

    splits = {split: images(group) for split, group in grouped.items()}
    return Source("parquet", root, classes, splits, words, tuple(paths))


def summarise(path: Path) -> dict:
    """What a file tells without its images: `told` (each label, with the WNIDs in its images' names), `names` (of
    the classes, from Hugging Face's schema) and the number of `rows`."""
    told: dict[int, set[str]] = {}
    with _opened(path) as file:
        for _, stem, label in _rows(file, path, ["image.path", "label"]):
            found = WITH_WNID.match(stem)
            told.setdefault(label, set()).update([found.group(2)] if found else [])
        described = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        rows = file.metadata.num_rows
    try:
        names = [str(name) for name in json.loads(described)["info"]["features"]["label"]["names"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        names = None
    return {"told": told, "names": names, "rows": rows}


def lay_down(path: Path, plain: Path) -> None:
    """Writes a file's images to `plain`, one after the other, and then (offset, length, name, label) of each to a
    `.json` beside it. What an earlier run laid down of the same file is left as it is."""
    about, stamp = plain.with_suffix(".json"), [path.stat().st_size, path.stat().st_mtime_ns]
    if plain.exists() and about.exists():
        known = json.loads(about.read_text())
        if known["of"] == stamp and plain.stat().st_size == known["bytes"]:
            tick(len(known["rows"]), known["bytes"])
            return
    plain.parent.mkdir(exist_ok=True)
    rows, length = [], 0
    with _opened(path) as source, atomic_write(plain) as file:
        for data, stem, label in _rows(source, path, ["image.bytes", "image.path", "label"]):
            found = WITH_WNID.match(stem)
            file.write(data)
            rows.append((length, len(data), f"{found.group(1) if found else stem}.JPEG" if stem else "", label))
            length += len(data)
            tick(1, len(data))
    with atomic_write(about) as file:
        file.write(json.dumps({"of": stamp, "bytes": length, "rows": rows}).encode())


def _pyarrow():
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError("reading parquet needs pyarrow: pip install '.[parquet]'") from None
    return pyarrow


@contextmanager
def _opened(path: Path) -> Iterator:
    """A parquet file with the columns that we want."""
    pyarrow = _pyarrow()
    with _damage(path):
        file = pyarrow.parquet.ParquetFile(path, memory_map=False, pre_buffer=False)
    with file:
        columns = {column.name: column.type for column in file.schema_arrow}
        image, label = (columns.get(name, pyarrow.null()) for name in ("image", "label"))
        inside = {part.name: str(part.type) for part in image} if pyarrow.types.is_struct(image) else {}
        fits = inside.get("bytes") in BINARY and inside.get("path", "null") in TEXT
        if not (fits and pyarrow.types.is_integer(label)):
            found = ", ".join(f"{name} ({kind})" for name, kind in columns.items())[:200]
            raise InputError(f"{path} has the columns {found}: expected image (a struct of bytes and path) and label")
        yield file


def _rows(file, path: Path, columns: list[str]) -> Iterator[tuple[bytes, str, int]]:
    """Each row's image (empty where it has none, or none is asked for), its name without suffix, and its label."""
    left = MOST_TIMES * path.stat().st_size + SPARE
    number = 0
    with _damage(path):
        for batch in file.iter_batches(ROWS, columns=columns, use_threads=False):
            for row in batch.to_pylist():
                image, label = row.get("image") or {}, row["label"]
                data, name = image.get("bytes") or b"", image.get("path") or ""
                left -= max(len(data) + len(name), ROW)
                if left < 0:
                    raise InputError(f"{path} unfolds to more than {MOST_TIMES} times its size: it was made to harm")
                if label is None or not 0 <= label < MOST_CLASSES:
                    raise InputError(f"{path}, row {number}: label {label} is no class number")
                yield data, Path(name).stem if len(name) <= LONGEST_PATH else "", label
                number += 1


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What pyarrow raises at a damaged file becomes InputError."""
    pyarrow = _pyarrow()
    try:
        yield
    except MemoryError:  # pyarrow's own is one too
        raise InputError(f"{path} asks for too much memory: it is damaged, or was made to harm") from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{path} cannot be read as parquet ({reason}): bring an undamaged copy") from None
