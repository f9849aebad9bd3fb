"""`dataset.json`: what a data set holds and how it came to be. Written last, so its presence means a whole set."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from shards.errors import InputError
from shards.files import atomic_write

FILE = "dataset.json"
FORMAT = 1


@dataclass(frozen=True)
class Shard:
    """A tar: its file name, how many samples and bytes it holds, and its SHA-256 in hexadecimal."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class LeftOut:
    """A file of the source that is in no shard, relative to the source's root, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Split:
    """A split's shards in order, what was left out, and how many pictures are not stored with their original bytes."""

    shards: tuple[Shard, ...]
    left_out: tuple[LeftOut, ...]
    reencoded: int

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)


@dataclass(frozen=True)
class Dataset:
    """A data set in the folder `root`. `classes[i]` names class number i; `plan` identifies the source and the options
    it was written with; `size` is None when pictures keep their own."""

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, Split]
    size: int | None
    quality: int
    seed: int
    source: str
    plan: str
    versions: dict[str, str]

    @classmethod
    def load(cls, root: Path) -> "Dataset":
        """Raises InputError when there is no data set, or its description is damaged or of another format."""
        path = root / FILE
        if not root.is_dir():
            raise InputError(f"{root} is no folder: give the --out of `python cli.py shard`")
        try:
            content = json.loads(path.read_text())
            if content.pop("format") != FORMAT:
                raise InputError(f"{path} is of another format than {FORMAT}: write the data set again")
            splits = {
                name: Split(
                    tuple(Shard(**shard) for shard in split["shards"]),
                    tuple(LeftOut(**left) for left in split["left_out"]),
                    split["reencoded"],
                )
                for name, split in content.pop("splits").items()
            }
            dataset = cls(root=root, classes=tuple(content.pop("classes")), splits=splits, **content)
        except FileNotFoundError:
            raise InputError(
                f"{root} holds no {FILE}: `python cli.py shard` writes it when a data set is whole"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged ({error!r}): write the data set again") from None
        for split in splits.values():
            for shard in split.shards:
                if Path(shard.name).name != shard.name:
                    raise InputError(f"{path} names a shard outside its folder: {shard.name!r}")
        return dataset

    def save(self) -> None:
        content = {"format": FORMAT, **asdict(self)}
        del content["root"]
        with atomic_write(self.root / FILE) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")

    def split(self, name: str) -> Split:
        """Raises InputError when there is none of that name."""
        if name not in self.splits:
            raise InputError(f"{self.root} has no {name} split, only {', '.join(self.splits)}")
        return self.splits[name]

    def tars(self, split: str) -> list[Path]:
        """The split's tars in order. Raises InputError when one is missing or has another length than was written."""
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

    @property
    def fingerprint(self) -> str:
        """Identifies the classes and every byte of the shards, in whatever folder they lie."""
        parts = [*self.classes, *(shard.sha256 for split in self.splits.values() for shard in split.shards)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
