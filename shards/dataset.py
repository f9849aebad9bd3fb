"""`dataset.json`: what a data set holds and how it came to be. Written last, so its presence means a whole set."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shards.atomic import atomic_write
from shards.errors import InputError
from shards.index import current_index
from shards.remote import Remote

FILE = "dataset.json"
FORMAT = 2


@dataclass(frozen=True)
class Shard:
    """A tar: its file name, how many samples and bytes it holds, and its SHA-256 in hexadecimal."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class LeftOut:
    """A file of the source that is in no shard, by its name there, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Quarantined:
    """A sample that lies in a tar and not in its index, so that nothing reads it, and why."""

    shard: str
    key: str
    reason: str


@dataclass(frozen=True)
class Sizes:
    """Of a split's images, as a viewer sees them, in pixels: the largest width and height (which need not be one
    image's), the most pixels of one image, and of the shorter side the 0th, 10th, 50th, 90th and 100th percentile.
    """

    width: int
    height: int
    pixels: int
    shorter_side: tuple[int, ...]

    PERCENTILES = (0, 10, 50, 90, 100)

    @classmethod
    def of(cls, images: np.ndarray | list) -> "Sizes":
        """From the (width, height) of each image, N x 2."""
        sides = np.asarray(images, np.int64).reshape(-1, 2)
        if not len(sides):
            return cls(0, 0, 0, (0,) * len(cls.PERCENTILES))
        shorter = np.percentile(sides.min(axis=1), cls.PERCENTILES, method="nearest")
        return cls(*sides.max(axis=0).tolist(), int(sides.prod(axis=1).max()), tuple(shorter.tolist()))


@dataclass(frozen=True)
class Split:
    """A split's shards in order and what else there is to know of it.

    `class_counts` has the samples of each class in the tars; `changed` counts the images whose bytes are not the
    source's, by what they were ("PNG", "CMYK JPEG"); `scaled_down` those made smaller for --max-pixels.
    """

    shards: tuple[Shard, ...]
    class_counts: tuple[int, ...]
    sizes: Sizes
    left_out: tuple[LeftOut, ...] = ()
    changed: dict[str, int] = field(default_factory=dict)
    scaled_down: int = 0
    quarantined: tuple[Quarantined, ...] = ()

    @property
    def samples(self) -> int:
        """Samples that are read: those in the tars but for the quarantined ones."""
        return sum(shard.samples for shard in self.shards) - len(self.quarantined)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    def samples_in(self, shard: Shard) -> int:
        """Samples of this shard that are read."""
        return shard.samples - sum(sample.shard == shard.name for sample in self.quarantined)

    def quarantined_in(self, shard: str) -> set[str]:
        """The keys that this shard's index leaves out."""
        return {sample.key for sample in self.quarantined if sample.shard == shard}


@dataclass(frozen=True)
class Dataset:
    """A data set in the folder `root`, which has copies of the small files only when it is `remote`.

    `classes[i]` names class number i, `words` says in English what some of them are; `source` is the layout it was made
    from, `plan` identifies that source and the options; `size` is None when images keep their own, and so is
    `max_pixels` when none was too large; `seed` and `quality` are None for tars that others made.
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
    remote: Remote | None = None

    @classmethod
    def load(cls, where: Path | Remote) -> "Dataset":
        """Raises InputError when there is no data set, or its description is damaged or of another format."""
        remote = where if isinstance(where, Remote) else None
        root, path = (remote.copy_description(), f"{remote}/{FILE}") if remote else (where, where / FILE)
        if not root.is_dir():
            raise InputError(f"{root} is no folder: give the --out of `python cli.py shard`")
        try:
            content = json.loads((root / FILE).read_text())
            if content["format"] != FORMAT:
                raise InputError(f"{path} is of another format than {FORMAT}: write the data set again")
            dataset = _dataset(root, content)
        except FileNotFoundError:
            remedy = "`python cli.py shard` writes it when a data set is whole"
            if any(root.glob("*.tar")):
                remedy = f"`python cli.py index {root}` writes one for tars that others made"
            raise InputError(f"{root} holds no {FILE}: {remedy}") from None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise InputError(f"{path} is damaged ({error!r}): write the data set again") from None
        for split in dataset.splits.values():
            for shard in split.shards:
                if Path(shard.name).name != shard.name:
                    raise InputError(f"{path} names a shard outside its folder: {shard.name!r}")
            if remote:
                remote.check_names(split.shards)
        return replace(dataset, remote=remote)

    def save(self) -> None:
        """Writes `dataset.json`, whole or not at all."""
        content = {"format": FORMAT, **asdict(self)}
        del content["root"], content["remote"]
        words = content.pop("words")
        content["classes"] = [
            {"wnid": name, **({"words": words[name]} if name in words else {})} for name in self.classes
        ]
        # One shard, class or file a line, so that a person can read it and `diff` too
        with atomic_write(self.root / FILE) as file:
            file.write(_lines(content).encode() + b"\n")

    def split(self, name: str) -> Split:
        """Raises InputError when there is none of that name."""
        if name not in self.splits:
            raise InputError(f"{self.where} has no {name} split, only {', '.join(self.splits)}")
        return self.splits[name]

    @property
    def where(self) -> str:
        """The folder or the URL, to be shown."""
        return str(self.remote or self.root)

    def tars(self, split: str) -> list[Path] | list[str]:
        """The paths or URLs of the split's tars, in order. Raises InputError when one is missing or has another length
        than was written, as far as that can be told before it is fetched."""
        if self.remote:
            return self.remote.tars(self.split(split).shards)
        tars = []
        remedy = "bring it back, or write the data set to a new folder"
        for shard in self.split(split).shards:
            tar = self.root / shard.name
            if not tar.is_file():
                raise InputError(f"{tar} is missing, and {FILE} lists it: {remedy}")
            if (found := tar.stat().st_size) != shard.bytes:
                raise InputError(f"{tar} has {found} bytes, and {FILE} says {shard.bytes}: {remedy}")
            tars.append(tar)
        return tars

    def indices(self, split: str, notice: Callable[[str], None]) -> list[list[str]]:
        """The lines of the index of each of the split's tars. In a folder, one that is missing or stale is made anew,
        with a notice; a remote one raises InputError."""
        described = self.split(split)
        wanted = [(shard, described.samples_in(shard)) for shard in described.shards]
        if self.remote:
            return self.remote.indices(self.root, wanted)
        return [
            current_index(self.root / shard.name, samples, described.quarantined_in(shard.name), notice)
            for shard, samples in wanted
        ]

    def open(self, shard: Shard) -> BinaryIO:
        """A tar to read. Raises InputError when it has to be fetched and cannot be."""
        return self.remote.open(self.root, shard) if self.remote else open(self.root / shard.name, "rb")

    def with_quarantined(self, split: str, bad: Iterable[Quarantined]) -> "Dataset":
        """The same with more samples quarantined. Their indices are the caller's to write."""
        changed = replace(self.splits[split], quarantined=(*self.splits[split].quarantined, *bad))
        return replace(self, splits={**self.splits, split: changed})

    @property
    def fingerprint(self) -> str:
        """Identifies the classes, every byte of each split's shards and what is left out of them, wherever they lie."""
        parts = [*self.classes]
        for name, split in self.splits.items():
            parts += [name, *(shard.sha256 for shard in split.shards)]
            parts += [f"{sample.shard} {sample.key}" for sample in split.quarantined]
        # A class folder's name may be no UTF-8
        return hashlib.sha256("\n".join(parts).encode(errors="surrogatepass")).hexdigest()


def _dataset(root: Path, content: dict[str, Any]) -> Dataset:
    """From what JSON says; wrong types raise TypeError, missing parts KeyError."""
    classes = tuple(_typed(entry["wnid"], str) for entry in _typed(content["classes"], list))
    splits = {}
    for name, split in _typed(content["splits"], dict).items():
        splits[name] = Split(
            shards=_records(Shard, split["shards"]),
            class_counts=tuple(_typed(count, int) for count in split["class_counts"]),
            sizes=Sizes(**{**_typed(split["sizes"], dict), "shorter_side": tuple(split["sizes"]["shorter_side"])}),
            left_out=_records(LeftOut, split["left_out"]),
            changed=_typed(split["changed"], dict),
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
    )


def _records(kind: type, entries: list) -> tuple:
    """Dataclass instances from JSON objects, each field of its declared type."""
    fields = {name: about.type for name, about in kind.__dataclass_fields__.items()}
    for entry in _typed(entries, list):
        for name, value in _typed(entry, dict).items():
            _typed(value, fields[name])
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
