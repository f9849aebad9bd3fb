"""The label of a WebDataset sample, and what its key and its `.json` tell of the class besides."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from shards import tars
from shards.errors import InputError
from shards.sources.match import normal
from shards.sources.reported import WNID, WNID_IN_PATH, merged, reported_names

PATHS = ("filename", "file")  # fields of a .json that hold an image's path
NUMBERS = ("label", "cls", "class")  # fields of a .json that hold a class number, or a class's name
# Fields of a .json that may hold a class's name. "class" and "category" may be a wider one than `.cls` is, so that only
# a WNID counts there; in fields beside these it may be a parent's
NAMES = ("label", "label_name", "class_name", "classname")
WNID_FIELDS = ("wnid", "synset", "synset_id", "class", "cls", *NAMES)
MAX_NAME = 1024  # bytes of a class's name
REMEDY = "correct one, or say with --label-key cls that .cls counts"


@dataclass
class Tally:
    """The labels of a tar's samples, with the first sample of each; the names that samples of each label report, as of
    `shards.sources.reported`; how many samples contradict themselves, the key of the first and how it does; links."""

    first: dict[int | str, str] = field(default_factory=dict)
    reported: dict[int, dict[str, str]] = field(default_factory=dict)
    contradictory: int = 0
    contradiction: tuple[str, str] | None = None
    digest: str = ""  # of all keys and labels, when it is complete
    links: list[str] = field(default_factory=list)  # the names of members that are passed over, for no file is in them

    def add(self, where: str, key: str, label: int | str, name: str | None, contradiction: str | None) -> None:
        """Counts a sample of the tar `where`."""
        sample = f"{where}: {key}"
        self.first.setdefault(label, sample)
        if name and isinstance(label, int):
            self.reported.setdefault(label, {}).setdefault(name, sample)
        if contradiction:
            self.contradictory += 1
            self.contradiction = self.contradiction or (key, contradiction)


def read_label(file: int, where: str, sample: tars.TarSample) -> int:
    """A sample's class number. Raises InputError when `.cls` is not a number below a million."""
    part = sample.part("cls")
    assert part, "a sample without a class number has none to be read"
    _, offset, size = part
    text = os.pread(file, min(size, 32), offset)
    if size > len(text) or not re.fullmatch(rb"\s*\d{1,6}\s*", text):
        raise InputError(
            f"{where}: {sample.key}.cls holds {text!r} and should be a class number, like 7 "
            "(`python cli.py shard --label-key cls` takes names)"
        )
    return int(text)


def read_label_of(file: int, where: str, sample: tars.TarSample, key: str | None) -> int | str:
    """A sample's label: its class number in `.cls`, or what it has under `key`, a number or a class's name: the part of
    that extension, or that field of its `.json`. Raises InputError when it has none there."""
    if key is None:
        return read_label(file, where, sample)
    part = sample.part(key.removeprefix("."))
    value: Any
    if part:
        value = os.pread(file, min(part.size, MAX_NAME + 1), part.offset).decode("utf-8", "replace").strip()
    else:
        value = tars.description(file, sample)
        for name in key.removeprefix("json.").split("."):
            value = value.get(name) if isinstance(value, dict) else None
    text = str(value).strip() if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not text or len(text) > MAX_NAME or (text.isdecimal() and len(text) > 6) or text.startswith("-"):
        found = f"{value!r}"[:80] if value is not None else f"no such part or field ({hint(file, sample)})"
        raise InputError(f"{where}: sample {sample.key} has under --label-key {key} {found} and should have a class")
    return int(text) if text.isdecimal() else normal(text)


def hint(file: int, sample: tars.TarSample) -> str:
    """What a sample has, for --label-key to choose from."""
    fields = [name for name, value in tars.description(file, sample).items() if isinstance(value, int | str)]
    parts = ", ".join(f".{extension}" for extension in sample.parts)
    return f"it has {parts}" + (f", and in .json {', '.join(fields)[:200]}" if fields else "")


def tells(sample: tars.TarSample, description: dict[str, Any], label: int | str) -> tuple[str | None, str | None]:
    """The name that a sample tells its class, and how it contradicts itself or its class number (None for neither).

    The name is its description's WNID, otherwise one in its key or its file's path, otherwise a name that is described.
    """
    wnid = description.get("wnid")
    wnids = _wnids(sample, description, wnid)
    if not isinstance(wnid, str):
        texts = (description.get(name) for name in NAMES) if not wnids else ()
        names = (text[:MAX_NAME] for text in texts if isinstance(text, str) and text and not text.isdecimal())
        wnid = wnids[0] if wnids else next(names, None)
    if any(other != wnids[0] for other in wnids):
        other = next(other for other in wnids if other != wnids[0])
        return wnid, f"its key and .json say {wnids[0]} and {other}"
    for name in NUMBERS if isinstance(label, int) else ():
        value = description.get(name)
        if isinstance(value, str) and value.isdecimal() and len(value) < 7:
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and value != label:
            return wnid, f"its .cls is {label} and {name} in its .json {value}"
    return wnid, None


def class_names(reported: Iterable[dict[int, dict[str, str]]], highest: int) -> tuple[str, ...]:
    """The names of the classes 0 to `highest`: the name that all samples of a class tell and no other's do, otherwise
    its number.

    Args: reported: what each tar's samples report.
    """
    names = reported_names(merged(reported))
    taken = set(names.values())
    return tuple(
        names.get(label, f"unnamed {label}" if str(label) in taken else str(label)) for label in range(highest + 1)
    )


def _wnids(sample: tars.TarSample, description: dict[str, Any], wnid: Any) -> list[str]:
    """The WNIDs of a sample, its description's first."""
    if isinstance(wnid, str) and not WNID.fullmatch(wnid):
        return []  # a set of other classes, whose images may still be called by their first
    values = map(description.get, WNID_FIELDS)
    wnids = [value for value in values if isinstance(value, str) and WNID.fullmatch(value)]
    wnids += WNID_IN_PATH.findall(sample.key)
    for name in PATHS:
        if isinstance(path := description.get(name), str):
            wnids += WNID_IN_PATH.findall(path)
    return wnids
