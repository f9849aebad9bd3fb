"""`dataset.json`: what a data set holds and how it was made. Written last, so its presence means a complete one."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from shards import index
from shards.atomic import atomic_write
from shards.cache import user_cache
from shards.errors import InputError, reason
from shards.hidden import visible
from shards.index import current_index, index_tar, read_index
from shards.index_cache import cached_positions
from shards.records import Quarantined, Shard, Sizes, Skipped, Split, from_json, to_json
from shards.remote import Remote

FILE = "dataset.json"
PLAN = ".plan"  # in a folder whose conversion is not finished: see `shards.output_folder`
FORMAT = 2
VAL_REMEDY = "`shard --val-share 0.1` draws one; `eval --split train` measures on the training images"
COMPANIONS = ("stats.npz",)  # files that `pipeline.stats` adds beside it, to be copied with it

Record = TypeVar("Record", Shard, Skipped, Quarantined)


@dataclass(frozen=True)
class Dataset:
    """A data set in the folder `root`, which has copies of the small files only when it is `remote`.

    `classes[i]` names class number i, `words` says in English what some of them are; `source` is the layout it was made
    from, `plan` identifies that source and the options; `size` is None when images keep their own, and so is
    `max_pixels` when none was too large; `seed` and `quality` are None for tars that others made; `left_out` lay beside
    the images that were taken; `val_share` of each class was drawn for validation, None where none was. `masked` are
    samples of a split that have been quarantined since a run began that reads it: see `as_quarantined`.
    """

    root: Path
    classes: tuple[str, ...]
    words: dict[str, str]
    splits: dict[str, Split]
    source: str
    seed: int | None
    size: int | None
    quality: int | None
    max_pixels: int | None
    plan: str
    versions: dict[str, str]
    left_out: tuple[Skipped, ...] = ()
    val_share: float | None = None
    remote: Remote | None = None
    masked: dict[str, tuple[Quarantined, ...]] = field(default_factory=dict)

    @classmethod
    def load(cls, where: Path | Remote) -> "Dataset":
        """Raises InputError when there is no data set, or its description is damaged or of another format."""
        remote = where if isinstance(where, Remote) else None
        root = where.copy_metadata(FILE, _companions) if isinstance(where, Remote) else where
        path = f"{where}/{FILE}"
        if not root.is_dir():
            state = "is a file" if root.exists() else "does not exist"
            raise InputError(f"{root} {state}: give the folder of a data set, the --out of `python cli.py shard`")
        try:
            content = json.loads((root / FILE).read_text())
            if content["format"] != FORMAT:
                raise InputError(f"{path} is of another format than {FORMAT}: write the data set again")
            dataset = from_content(root, content)
        except FileNotFoundError:
            raise InputError(f"{root} holds no {FILE}: {_remedy(root)}") from None
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            remedy = "look at what the server sends there, and copy the data set again" if remote else "write it again"
            raise InputError(f"{path} is damaged ({reason(error)}): {remedy}") from None
        for split in dataset.splits.values():
            for shard in split.shards:
                if Path(shard.name).name != shard.name:
                    raise InputError(f"{path} names a shard outside its folder: {shard.name!r}")
            if remote:
                remote.check_names(split.shards)
        return replace(dataset, remote=remote)

    def save(self) -> None:
        """Writes `dataset.json`, complete or not at all."""
        # One shard, class or file a line, so that a person can read it and `diff` too
        with atomic_write(self.root / FILE) as file:
            file.write(_lines(self.content()).encode() + b"\n")

    def content(self) -> dict[str, Any]:
        """What `dataset.json` holds: the inverse of `from_content`."""
        content = {"format": FORMAT, **asdict(self)}
        del content["root"], content["remote"], content["masked"]
        words = content.pop("words")
        if self.val_share is None:
            del content["val_share"]
        content["classes"] = [
            {"wnid": name, **({"words": words[name]} if name in words else {})} for name in self.classes
        ]
        content["splits"] = {name: to_json(split) for name, split in content["splits"].items()}
        return content

    def split(self, name: str) -> Split:
        """Raises InputError when there is no split of that name."""
        if name not in self.splits:
            remedy = f" ({VAL_REMEDY})" if name == "val" else ""
            raise InputError(f"{self.where} has no {name} split, only {', '.join(self.splits)}{remedy}")
        return self.splits[name]

    @property
    def where(self) -> str:
        """The folder or the URL, to be shown."""
        return str(self.remote or self.root)

    def tars(self, split: str) -> list[Path] | list[str]:
        """The paths or URLs of the split's tars, in order. Raises InputError when one is missing or has another length
        than was written, as far as that is known before it is fetched."""
        if self.remote:
            return self.remote.tar_urls(self.split(split).shards)
        tars = []
        remedy = "bring it back, or write the data set to a new folder"
        for shard in self.split(split).shards:
            tar = self.root / shard.name
            if not tar.is_file():
                raise InputError(f"{tar} is missing, and {FILE} lists it: {remedy}")
            if (length := tar.stat().st_size) != shard.bytes:
                raise InputError(f"{tar} has {length} bytes, and {FILE} says {shard.bytes}: {remedy}")
            tars.append(tar)
        return tars

    def positions(self, split: str, notice: Callable[[str], None]) -> np.ndarray:
        """Where each sample of the split lies, `shards.index.POSITION`: shard after shard, one that is listed again
        left out. In a folder, an index that is missing or stale is rebuilt, with a notice; a remote one raises
        InputError."""
        described = self.split(split)
        shards = {shard.name: (shard, described.samples_in(shard)) for shard in described.shards}

        def read() -> Iterator[np.ndarray]:
            if self.remote:
                yield from self.remote.indices(self.root, [*shards.values()])
                return
            for name, (shard, samples) in shards.items():
                if self.masked_in(split, name):
                    yield index.positions(self.lines(split, shard), self.root / name)
                else:
                    yield current_index(self.root / name, samples, described.quarantined_in(name), notice)

        def state() -> bytes:
            paths = [self.root / name for name in shards]
            facts = [_stamp(path) for tar in paths for path in (tar, tar.with_suffix(".idx"))]
            return repr((list(shards.values()), described.quarantined, facts)).encode()

        where = hashlib.sha256(os.fsencode(self.root.resolve())).hexdigest()[:32]
        samples = sum(samples for _, samples in shards.values())

        def path() -> Path:
            return (self.root if self.remote else user_cache() / "indices") / f"{split}-{where}"

        return cached_positions(path, state, samples, read, notice)

    def lines(self, split: str, shard: Shard) -> list[str]:
        """The lines of a shard's index, which has been read before, for the samples' names."""
        path = (self.root / shard.name).with_suffix(".idx")
        if (self.remote or path.exists()) and not self.masked_in(split, shard.name):
            return read_index(path)
        return index_tar(self.root / shard.name, self.split(split).quarantined_in(shard.name))

    def open(self, shard: Shard) -> BinaryIO:
        """A tar to read. Raises InputError when it has to be fetched and cannot be."""
        return self.remote.open(self.root, shard) if self.remote else open(self.root / shard.name, "rb")

    def with_quarantined(self, split: str, bad: Iterable[Quarantined]) -> "Dataset":
        """The same data set with more samples quarantined. The caller writes their indices."""
        changed = replace(self.splits[split], quarantined=(*self.splits[split].quarantined, *bad))
        return replace(self, splits={**self.splits, split: changed})

    def as_quarantined(self, counts: Mapping[str, int]) -> "Dataset":
        """The same as when only so many samples of each split were quarantined: those that were added to them since are
        `masked`. They are in the order of the samples again, and not to be read."""
        splits, masked = {}, {}
        for name, split in self.splits.items():
            count = counts.get(name, 0)
            splits[name] = replace(split, quarantined=split.quarantined[:count])
            masked[name] = split.quarantined[count:]
        return replace(self, splits=splits, masked=masked)

    def masked_in(self, split: str, shard: str) -> set[str]:
        """The keys of a shard's samples that are `masked`."""
        return {sample.key for sample in self.masked.get(split, ()) if sample.shard == shard}

    @property
    def fingerprint(self) -> str:
        """Identifies the classes, every byte of each split's shards and their quarantined samples, in any place."""
        parts = [*self.classes]
        for name, split in self.splits.items():
            parts += [name, *(shard.sha256 for shard in split.shards)]
            parts += [f"{sample.shard} {sample.key}" for sample in split.quarantined]
        # A class folder's name may not be UTF-8
        return hashlib.sha256("\n".join(parts).encode(errors="surrogatepass")).hexdigest()


def _companions(description: bytes) -> tuple[str, ...]:
    """The files that a description's data set has beside it: those of a train split are computed from that."""
    try:
        return COMPANIONS if "train" in json.loads(description)["splits"] else ()
    except (ValueError, KeyError, TypeError):
        return ()  # it is damaged, which `load` reports


def _remedy(root: Path) -> str:
    """What to do with a folder that is not a data set, by what it seems to be."""
    if (root / PLAN).exists() and any(root.glob(".part-*.json")):
        return f"its conversion is not finished; `python cli.py index {root}` joins its parts when all are written"
    if (root / PLAN).exists():
        return "its conversion is not finished; the same `python cli.py shard` command continues it"
    if visible(root, "*.tar"):
        return f"`python cli.py index {root}` writes one for tars that others made"
    if (root / "metrics.jsonl").exists():
        return "it is a training run; give the folder of a data set, the --out of `python cli.py shard`"
    if not visible(root):
        return "it is empty; give the folder of a data set, the --out of `python cli.py shard`"
    return f"if it holds images, `python cli.py shard --imagenet-root {root} --out DIR` makes a data set of them"


def _stamp(path: Path) -> tuple[int, int] | None:
    """A file's size and the time of its last change, None when there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def from_content(root: Path, content: dict[str, Any]) -> Dataset:
    """From the content of JSON; wrong types raise TypeError, missing parts KeyError."""
    classes = tuple(_typed(entry["wnid"], str) for entry in _typed(content["classes"], list))
    splits = {}
    for name, split_content in _typed(content["splits"], dict).items():
        split = from_json(_typed(split_content, dict))
        splits[name] = Split(
            shards=_records(Shard, split["shards"]),
            class_counts=tuple(_typed(count, int) for count in split["class_counts"]),
            sizes=Sizes(**{**_typed(split["sizes"], dict), "shorter_side": tuple(split["sizes"]["shorter_side"])}),
            skipped=_records(Skipped, split["skipped"]),
            reencoded=_typed(split["reencoded"], dict),
            scaled_down=_typed(split["scaled_down"], int),
            quarantined=_records(Quarantined, split["quarantined"]),
        )
    return Dataset(
        root=root,
        classes=classes,
        words={entry["wnid"]: _typed(entry["words"], str) for entry in content["classes"] if "words" in entry},
        splits=splits,
        source=_typed(content["source"], str),
        seed=_typed(content["seed"], int | None),
        size=_typed(content["size"], int | None),
        quality=_typed(content["quality"], int | None),
        max_pixels=_typed(content["max_pixels"], int | None),
        plan=_typed(content["plan"], str),
        versions=_typed(content["versions"], dict),
        left_out=_records(Skipped, content.get("left_out", [])),
        val_share=_typed(content.get("val_share"), float | None),
    )


def _records(kind: type[Record], entries: Any) -> tuple[Record, ...]:
    """Dataclass instances from JSON objects, each field of its declared type."""
    types = {field.name: field.type for field in fields(kind)}
    for entry in _typed(entries, list):
        for name, value in _typed(entry, dict).items():
            _typed(value, types[name])
    return tuple(kind(**entry) for entry in entries)


def _typed(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{str(value)[:40]!r} should be {getattr(kind, '__name__', kind)}")
    return value


def _lines(value: Any, indent: int = 0) -> str:
    """JSON whose innermost objects and lists take a line each."""
    margin = " " * (indent + 1)
    if isinstance(value, dict) and any(isinstance(item, (dict, list, tuple)) and item for item in value.values()):
        items = [f"{margin}{json.dumps(name)}: {_lines(item, indent + 1)}" for name, item in value.items()]
        return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"
    if isinstance(value, (list, tuple)) and any(isinstance(item, (dict, list, tuple)) for item in value):
        return "[\n" + ",\n".join(margin + _lines(item, indent + 1) for item in value) + "\n" + " " * indent + "]"
    return json.dumps(value)
