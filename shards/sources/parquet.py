"""Hugging Face's layout: parquet files of `image` (a struct of `bytes` and `path`) and `label`.

A row cannot be read without the hundred rows of its group, and a shuffled order asks for single rows. So the images
are first extracted, one after the other, into plain files beside the data set (as many bytes as the parquet files hold,
removed at the end), and then read from these as members of an archive are.

pyarrow is an optional extra. It reads in worker processes whose memory is limited (`shards.processes`): a parquet file
may declare any size. What it decompresses to is limited too, for one value can stand for a million rows.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from shards.atomic import atomic_write
from shards.errors import InputError
from shards.processes import run_jobs, tick
from shards.sources.base import KINDS, MAX_CLASSES, Source, SourceImage, split_of
from shards.sources.labels import class_words

BATCH = 16  # rows read from a file at once
WITH_WNID = re.compile(r"(.+)_(n\d{8})$")  # ImageNet's on Hugging Face: n01440764_10026_n01440764.JPEG
MAX_PATH = 4096
BINARY, TEXT = ("binary", "large_binary"), ("string", "large_string", "null")
# Images are compressed already: a file that decompresses to more than MAX_RATIO times its size and ALLOWANCE bytes is
# an attack. A row counts as MIN_ROW bytes at least
MAX_RATIO, ALLOWANCE, MIN_ROW = 16, 256 * 2**20, 1024


class Summary(NamedTuple):
    """A parquet file without its images: the WNIDs in the images' names by label, the names of the classes from Hugging
    Face's schema, and the number of rows."""

    wnids: dict[int, set[str]]
    names: list[str] | None
    rows: int


def find_parquet(root: Path, scratch: Path | None, workers: int) -> Source:
    """The source at `root`. `scratch` is the folder for the plain files. Raises InputError when pyarrow is absent or a
    file has other columns, or class numbers that it does not name."""
    _import_pyarrow()
    grouped = _group_by_split(root)
    paths = [path for group in grouped.values() for path in group]
    results = run_jobs(summarize, [(path,) for path in paths], workers, "read parquet labels", None)
    summaries: dict[Path, Summary] = dict(zip(paths, results, strict=True))
    classes, words = _classes(summaries)

    def images(group: list[Path]) -> Iterator[SourceImage]:
        assert scratch is not None, "parquet files are extracted into a folder"
        jobs = [(path, scratch / f"{path.name}.bytes") for path in group]
        run_jobs(extract, jobs, workers, "extract parquet", sum(summaries[path].rows for path in group))
        for path, plain in jobs:
            rows = json.loads(plain.with_suffix(".json").read_text())["rows"]
            for number, (offset, length, name, label) in enumerate(rows):
                yield SourceImage(str(plain.absolute()), offset, length, f"{path.name}/{name or number}", label)

    splits = {split: images(group) for split, group in grouped.items()}
    return Source("parquet", root, classes, splits, class_words(root) if words is None else words, tuple(paths))


def parquet_files(root: Path) -> list[Path]:
    """Parquet files with a split in their names, in `root/data` or `root` itself."""
    paths = sorted((root / "data").glob("*.parquet")) or sorted(root.glob("*.parquet"))
    return [path for path in paths if split_of(path)]


def _group_by_split(root: Path) -> dict[str, list[Path]]:
    paths = parquet_files(root)
    if not paths:
        raise InputError(f"{root} holds no parquet files: expected {KINDS['parquet']}")
    # Hugging Face's test split of ImageNet has no labels: each is -1
    grouped = {split: [path for path in paths if split_of(path) == split] for split in ("train", "val")}
    if not grouped["train"]:
        raise InputError(f"{root} holds no train-*.parquet: expected {KINDS['parquet']}")
    return {split: group for split, group in grouped.items() if group}


def _classes(summaries: Mapping[Path, Summary]) -> tuple[tuple[str, ...], dict[str, str] | None]:
    """The classes' names, and what they are in English where the files say it: ImageNet's WNIDs name its classes, and
    the schema's names describe them in words."""
    names = next((summary.names for summary in summaries.values() if summary.names), None)
    candidates: dict[int, set[str]] = {}
    for path, summary in summaries.items():
        highest = max(summary.wnids, default=0)
        if names and highest >= len(names):
            raise InputError(f"{path} has label {highest}, and {len(names)} classes are named")
        for label, some in summary.wnids.items():
            candidates.setdefault(label, set()).update(some)
    wnids = {label: next(iter(some)) for label, some in sorted(candidates.items()) if len(some) == 1}
    if names:
        classes = tuple(wnids.get(label) or name for label, name in enumerate(names))
        return classes, {wnid: names[label] for label, wnid in wnids.items()}
    return tuple(wnids.get(label) or str(label) for label in range(1 + max(candidates, default=0))), None


def summarize(path: Path) -> Summary:
    """Reads a file without its images."""
    wnids: dict[int, set[str]] = {}
    with _opened(path) as file:
        for _, stem, label in _rows(file, path, ["image.path", "label"]):
            match = WITH_WNID.match(stem)
            wnids.setdefault(label, set()).update([match.group(2)] if match else [])
        schema = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        rows = file.metadata.num_rows
    try:
        names = [str(name) for name in json.loads(schema)["info"]["features"]["label"]["names"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return Summary(wnids, None, rows)
    return Summary(wnids, names, rows)


def extract(path: Path, plain: Path) -> None:
    """Writes a file's images to `plain`, one after the other, and then (offset, length, name, label) of each to a
    `.json` beside it. What an earlier run extracted from the same file is kept."""
    table, stamp = plain.with_suffix(".json"), [path.stat().st_size, path.stat().st_mtime_ns]
    if plain.exists() and table.exists():
        known = json.loads(table.read_text())
        if known["of"] == stamp and plain.stat().st_size == known["bytes"]:
            tick(len(known["rows"]), known["bytes"])
            return
    plain.parent.mkdir(exist_ok=True)
    rows: list[tuple[int, int, str, int]] = []
    length = 0
    with _opened(path) as source, atomic_write(plain) as file:
        for data, stem, label in _rows(source, path, ["image.bytes", "image.path", "label"]):
            match = WITH_WNID.match(stem)
            file.write(data)
            rows.append((length, len(data), f"{match.group(1) if match else stem}.JPEG" if stem else "", label))
            length += len(data)
            tick(1, len(data))
    with atomic_write(table) as file:
        file.write(json.dumps({"of": stamp, "bytes": length, "rows": rows}).encode())


def _import_pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError("reading parquet needs pyarrow: pip install '.[parquet]'") from None
    return pyarrow


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A parquet file with the columns that are read here."""
    pyarrow = _import_pyarrow()
    with _input_errors(path):
        file = pyarrow.parquet.ParquetFile(path, memory_map=False, pre_buffer=False)
    with file:
        columns = {column.name: column.type for column in file.schema_arrow}
        image, label = (columns.get(name, pyarrow.null()) for name in ("image", "label"))
        fields = {part.name: str(part.type) for part in image} if pyarrow.types.is_struct(image) else {}
        fits = fields.get("bytes") in BINARY and fields.get("path", "null") in TEXT
        if not (fits and pyarrow.types.is_integer(label)):
            shown = ", ".join(f"{name} ({kind})" for name, kind in columns.items())[:200]
            raise InputError(f"{path} has the columns {shown}: expected image (a struct of bytes and path) and label")
        yield file


def _rows(file: Any, path: Path, columns: list[str]) -> Iterator[tuple[bytes, str, int]]:
    """Each row's image (empty where it has none, or none is asked for), its name without suffix, and its label."""
    left = MAX_RATIO * path.stat().st_size + ALLOWANCE
    number = 0
    with _input_errors(path):
        for batch in file.iter_batches(BATCH, columns=columns, use_threads=False):
            for row in batch.to_pylist():
                image, label = row.get("image") or {}, row["label"]
                data, name = image.get("bytes") or b"", image.get("path") or ""
                left -= max(len(data) + len(name), MIN_ROW)
                if left < 0:
                    remedy = "bring a copy from a source that you trust"
                    raise InputError(f"{path} decompresses to more than {MAX_RATIO} times its size: {remedy}")
                if label is None or not 0 <= label < MAX_CLASSES:
                    raise InputError(f"{path}, row {number}: label {label} is not a class number")
                yield data, Path(name).stem if len(name) <= MAX_PATH else "", label
                number += 1


@contextmanager
def _input_errors(path: Path) -> Iterator[None]:
    """What pyarrow raises at a damaged file becomes InputError."""
    pyarrow = _import_pyarrow()
    try:
        yield
    except MemoryError:  # pyarrow's own is a MemoryError too
        raise InputError(f"{path} asks for too much memory: it is damaged or malicious") from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{path} cannot be read as parquet ({reason}): bring an undamaged copy") from None
