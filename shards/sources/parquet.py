"""Hugging Face's layout: parquet files of images (structs of `bytes` and `path`) and labels.

A row cannot be read without the hundred rows of its group, and a shuffled order asks for single rows. So the images
are first extracted, one after the other, into plain files beside the data set (as many bytes as the parquet files hold,
removed at the end), and then read from these as members of an archive are.

pyarrow is an optional extra. It reads in worker processes whose memory is limited (`shards.processes`): a parquet file
may declare any size. What it decompresses to is limited too, for one value can stand for a million rows.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from shards.atomic import atomic_write
from shards.errors import InputError
from shards.hidden import visible
from shards.processes import run_jobs, tick
from shards.records import Skipped
from shards.sources.base import KINDS, MAX_CLASSES, Source, SourceImage, split_of
from shards.sources.file_classes import Summary, class_wnids, file_classes, reported_by_names
from shards.sources.labels import class_words
from shards.sources.left_out import beside_files, missing_pieces
from shards.sources.reported import WNID_IN_PATH, several_names

BATCH = 16  # rows read from a file at once
WITH_WNID = re.compile(r"(.+)_(n\d{8})$")  # ImageNet's on Hugging Face: n01440764_10026_n01440764.JPEG
MAX_PATH = 4096
BINARY = ("binary", "large_binary", "binary_view")
TEXT = ("string", "large_string", "string_view")
LABELS = ("label", "labels", "cls", "class")  # columns that are the label where the schema names none
# Images are compressed already: a file that decompresses to more than MAX_RATIO times its size and ALLOWANCE bytes is
# an attack. A row counts as MIN_ROW bytes at least
MAX_RATIO, ALLOWANCE, MIN_ROW = 16, 256 * 2**20, 1024


class Columns(NamedTuple):
    """What a file's columns are called: of the images (a struct of `bytes` and `path`, or bytes alone) and the labels
    (class numbers, or the classes' names); and the names of the classes from Hugging Face's schema."""

    image: str
    is_struct: bool
    label: str
    names: tuple[str, ...] | None

    def of(self, part: str) -> list[str]:
        """The columns of the labels and of this part of the images, `bytes` or `path`."""
        if self.is_struct:
            return [f"{self.image}.{part}", self.label]
        return [self.image, self.label] if part == "bytes" else [self.label]


def find_parquet(root: Path, scratch: Path | None, workers: int, label_key: str | None = None) -> Source:
    """The source at `root`.

    Args: scratch: the folder for the plain files; label_key: the column of the labels, None to find it. Raises:
    InputError when pyarrow is absent, a file has other columns or labels that it does not name, and when files
    contradict each other or the WNIDs in their images' names (unless `label_key` says what counts).
    """
    _import_pyarrow()
    grouped = _group_by_split(root)
    paths = [path for group in grouped.values() for path in group]
    results = run_jobs(summarize, [(path, label_key) for path in paths], workers, "read parquet labels", None)
    summaries: dict[Path, Summary] = dict(zip(paths, results, strict=True))
    files = file_classes(summaries, grouped["train"])
    reported = reported_by_names(files, summaries)
    wnids = class_wnids(files, reported, trusted=label_key is not None)
    classes = tuple(wnids.get(number, name) for number, name in enumerate(files.classes))
    words = class_words(root, classes)
    if files.named:
        words |= {wnid: files.classes[number] for number, wnid in wnids.items()}

    def images(group: list[Path]) -> Iterator[SourceImage]:
        assert scratch is not None, "parquet files are extracted into a folder"
        jobs = [(path, scratch / f"{path.relative_to(root)}.bytes", label_key) for path in group]
        run_jobs(extract, jobs, workers, "extract parquet", sum(summaries[path].rows for path in group))
        for path, plain, _ in jobs:
            file = path.name if split_of(path) else f"{path.parent.name}/{path.name}"
            rows = json.loads(plain.with_suffix(".json").read_text())["rows"]
            for number, (offset, length, name, label) in enumerate(rows):
                class_number = files.numbers[path][label]
                yield SourceImage(str(plain.absolute()), offset, length, f"{file}/{name or number}", class_number)

    splits = {split: images(group) for split, group in grouped.items()}
    notices = _partial(paths) + several_names(reported)
    left_out = _left_out(root, paths, label_key, workers)
    return Source(
        kind="parquet",
        root=root,
        classes=classes,
        splits=splits,
        words=words,
        containers=tuple(paths),
        notices=notices,
        left_out=left_out,
        labels_digest=" ".join(summary.digest for summary in summaries.values()),
    )


def parquet_files(root: Path) -> list[Path]:
    """Parquet files with a split in their names, in `root/data` or `root` itself; or those in folders of such names
    (`train/0000.parquet`), which may lie in the one of a configuration (`default/train/0000.parquet`)."""
    for pattern in ("data/*.parquet", "*.parquet", "*/*.parquet", "*/*/*.parquet"):
        if paths := [path for path in visible(root, pattern) if _split_of(path, root)]:
            return paths
    return []


def _split_of(path: Path, root: Path) -> str | None:
    """The split in a file's name, or in that of its folder."""
    return split_of(path) or (split_of(path.parent) if path.parent != root else None)


def _group_by_split(root: Path) -> dict[str, list[Path]]:
    paths = parquet_files(root)
    if not paths:
        raise InputError(f"{root} holds no parquet files: expected {KINDS['parquet']}")
    configurations = sorted({path.parent.parent.name for path in paths if len(path.relative_to(root).parts) == 3})
    if len(configurations) > 1:
        raise InputError(f"{root} holds {' and '.join(configurations)}: give one of these folders as --imagenet-root")
    # Hugging Face's test split of ImageNet has no labels: each is -1
    grouped = {split: [path for path in paths if _split_of(path, root) == split] for split in ("train", "val")}
    if not grouped["train"]:
        raise InputError(f"{root} holds no train-*.parquet: expected {KINDS['parquet']}")
    return {split: group for split, group in grouped.items() if group}


def _left_out(root: Path, taken: list[Path], label_key: str | None, workers: int) -> tuple[Skipped, ...]:
    """What lies beside the files that are taken. A test split without labels is of no use."""
    tests = [path for path in parquet_files(root) if _split_of(path, root) == "test"]
    labeled = run_jobs(has_labels, [(path, label_key) for path in tests], workers, "read parquet labels", None)
    of_no_use = [path for path, some in zip(tests, labeled, strict=True) if not some]
    beside = beside_files(root, [*taken, *of_no_use], "only parquet files of train and val in one folder are read")
    return (*beside, *missing_pieces(taken))


def has_labels(path: Path, label_key: str | None) -> bool:
    """Whether the rows of a file have labels: ImageNet's test rows have -1, others have no such column or nothing."""
    pyarrow = _import_pyarrow()
    with _input_errors(path), pyarrow.parquet.ParquetFile(path, memory_map=False, pre_buffer=False) as file:
        label = next((name for name in (label_key, *LABELS) if name in file.schema_arrow.names), None)
        if label is None:
            return False
        batches = file.iter_batches(BATCH, columns=[label], use_threads=False)
        return any(value not in (None, "", -1) for batch in batches for value in batch.column(0).to_pylist())


def _partial(paths: list[Path]) -> list[str]:
    """A notice of folders that hold a part of a split."""
    folders = sorted({str(path.parent) for path in paths if "partial" in path.parent.name})
    return [
        f"{folder} holds the first part of its split alone, as Hugging Face converts large sets" for folder in folders
    ]


def summarize(path: Path, label_key: str | None) -> Summary:
    """Reads a file without its images."""
    first: dict[int | str, int] = {}
    wnids: dict[int | str, dict[str, int]] = {}
    digest = hashlib.sha256()
    with _opened(path, label_key) as (file, columns):
        for number, (_, name, label) in enumerate(_rows(file, path, columns, "path")):
            first.setdefault(label, number)
            digest.update(f"{label}\n".encode(errors="backslashreplace"))
            for wnid in WNID_IN_PATH.findall(name):
                wnids.setdefault(label, {}).setdefault(wnid, number)
        texts = sorted(label for label in first if isinstance(label, str))
        return Summary(first, wnids, tuple(texts) or columns.names, file.metadata.num_rows, digest.hexdigest())


def extract(path: Path, plain: Path, label_key: str | None) -> None:
    """Writes a file's images to `plain`, one after the other, and then (offset, length, name, label) of each to a
    `.json` beside it. What an earlier run extracted from the same file is kept."""
    table, stamp = plain.with_suffix(".json"), [path.stat().st_size, path.stat().st_mtime_ns, label_key]
    if plain.exists() and table.exists():
        known = json.loads(table.read_text())
        if known["of"] == stamp and plain.stat().st_size == known["bytes"]:
            tick(len(known["rows"]), known["bytes"])
            return
    plain.parent.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[int, int, str, int | str]] = []
    length = 0
    with _opened(path, label_key) as (source, columns), atomic_write(plain) as file:
        for data, name, label in _rows(source, path, columns, "bytes", "path"):
            stem = Path(name).stem
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
def _opened(path: Path, label_key: str | None) -> Iterator[tuple[Any, Columns]]:
    """A parquet file, and its columns that are read here."""
    pyarrow = _import_pyarrow()
    with _input_errors(path):
        file = pyarrow.parquet.ParquetFile(path, memory_map=False, pre_buffer=False)
    with file:
        yield file, _columns(path, file.schema_arrow, label_key)


def _columns(path: Path, schema: Any, label_key: str | None) -> Columns:
    """Which columns are the images and the labels, by Hugging Face's schema, their names and their types.

    Raises: InputError when there are none, or several.
    """
    types = {column.name: column.type for column in schema}
    features = _features((schema.metadata or {}).get(b"huggingface", b"{}"))
    images = [name for name, kind in types.items() if _is_image(kind, features.get(name, {}).get("_type"))]
    labels = [name for name, kind in types.items() if _is_label(kind)]
    for preferred in (["image"], [name for name in images if features.get(name, {}).get("_type") == "Image"]):
        images = [name for name in images if name in preferred] or images
    class_labels = [name for name in labels if features.get(name, {}).get("_type") == "ClassLabel"]
    if label_key is not None:
        labels = [name for name in labels if name == label_key]
    else:
        labels = [name for name in labels if name == LABELS[0]] or class_labels or [x for x in labels if x in LABELS]
    if len(images) != 1 or len(labels) != 1:
        shown = ", ".join(f"{name} ({kind})" for name, kind in types.items())[:200]
        wanted = "image (a struct of bytes and path) and label; --label-key names another column of labels"
        raise InputError(f"{path} has the columns {shown}: expected {wanted}")
    names = features.get(labels[0], {}).get("names")
    known = tuple(map(str, names)) if isinstance(names, list) and names else None
    return Columns(images[0], _is_struct(types[images[0]]), labels[0], known)


def _features(schema: bytes) -> dict[str, dict[str, Any]]:
    """Hugging Face's description of each column, as far as there is one."""
    try:
        features = json.loads(schema)["info"]["features"]
        return {name: about for name, about in features.items() if isinstance(about, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _is_struct(kind: Any) -> bool:
    """Whether a column is a struct."""
    return bool(_import_pyarrow().types.is_struct(kind))


def _is_image(kind: Any, feature: str | None) -> bool:
    """Whether a column of this type can hold images: a struct of bytes and perhaps a path, or bytes alone."""
    if not _is_struct(kind):
        return str(kind) in BINARY and feature in (None, "Image")
    fields = {part.name: str(part.type) for part in kind}
    return fields.get("bytes") in BINARY and fields.get("path", "null") in (*TEXT, "null")


def _is_label(kind: Any) -> bool:
    """Whether a column of this type can hold class numbers, or classes' names."""
    return bool(_import_pyarrow().types.is_integer(kind)) or str(kind) in TEXT


def _rows(file: Any, path: Path, columns: Columns, *parts: str) -> Iterator[tuple[bytes, str, int | str]]:
    """Each row's image (empty where it has none, or none is asked for), its name, and its label."""
    left = MAX_RATIO * path.stat().st_size + ALLOWANCE
    wanted = list(dict.fromkeys(name for part in parts for name in columns.of(part)))
    number = 0
    with _input_errors(path):
        for batch in file.iter_batches(BATCH, columns=wanted, use_threads=False):
            for row in batch.to_pylist():
                image, label = row.get(columns.image) or {}, row[columns.label]
                if not columns.is_struct:
                    image = {"bytes": image or b""}
                data, name = image.get("bytes") or b"", image.get("path") or ""
                left -= max(len(data) + len(name) + (len(label) if isinstance(label, str) else 0), MIN_ROW)
                if left < 0:
                    remedy = "bring a copy from a source that you trust"
                    raise InputError(f"{path} decompresses to more than {MAX_RATIO} times its size: {remedy}")
                if label in (None, "") or (isinstance(label, int) and not 0 <= label < MAX_CLASSES):
                    raise InputError(f"{path}, row {number}: label {label} is not a class number")
                yield data, name if len(name) <= MAX_PATH else "", label
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
