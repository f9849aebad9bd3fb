"""Proves a data set whole, or names what is not. No tar is written to."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from shards import dataset as description
from shards import tars
from shards.atomic import locked
from shards.check_sample import Found, check_sample, sha256
from shards.dataset import Dataset
from shards.errors import InputError
from shards.index import components, entry, plain, read_index, write_index
from shards.processes import cores, run_jobs, tick
from shards.records import Quarantined, Shard

SCHEMA = 1


class Problem(NamedTuple):
    """Something that is wrong with a sample, or with a shard when `key` is None."""

    split: str
    shard: str
    key: str | None
    reason: str


@dataclass
class Report:
    """What `verify` found. `bad` are samples, `damaged` are shards and indices, `complaints` are images that decode
    wholly although their decoder complains; `samples` and `bytes` were read."""

    bad: list[Problem] = field(default_factory=list)
    damaged: list[Problem] = field(default_factory=list)
    complaints: list[Problem] = field(default_factory=list)
    samples: int = 0
    bytes: int = 0

    @property
    def whole(self) -> bool:
        return not (self.bad or self.damaged)

    def described(self) -> dict:
        """What `verify --json` prints."""
        kinds = ("bad", "damaged", "complaints")
        found = {kind: [problem._asdict() for problem in getattr(self, kind)] for kind in kinds}
        return {"schema": SCHEMA, "whole": self.whole, "samples": self.samples, "bytes": self.bytes, **found}


def verify(root: Path, decode: bool = False, quarantine: bool = False, workers: int | None = None) -> Report:
    """Holds a data set against its description: each shard's length, SHA-256 and tar structure, its index, each
    sample's class number, name of class and image, and that no key comes twice in a split.

    Args: decode: decode every image wholly; quarantine: take the bad samples out of the indices and note them in
    `dataset.json`. Raises: InputError when there is no description.
    """
    with locked(root):
        dataset = Dataset.load(root)
        jobs = [
            (root, name, shard, dataset.classes, split.quarantined_in(shard.name), decode)
            for name, split in dataset.splits.items()
            for shard in split.shards
        ]
        total = sum(split.samples for split in dataset.splits.values())
        report = Report()
        keys: dict[str, list[tuple[str, np.ndarray]]] = {}
        for (_, name, shard, *_), (part, hashes) in zip(
            jobs, run_jobs(verify_shard, jobs, workers or cores(), "verify", total), strict=True
        ):
            report.bad += part.bad
            report.damaged += part.damaged
            report.complaints += part.complaints
            report.samples += part.samples
            report.bytes += part.bytes
            keys.setdefault(name, []).append((shard.name, hashes))
        for name, hashed in keys.items():
            report.bad += _repeated(root, name, hashed)
        if quarantine and report.bad:
            _quarantine(dataset, report.bad)
        return report


def verify_shard(
    root: Path, split: str, shard: Shard, classes: tuple[str, ...], quarantined: set[str], decode: bool
) -> tuple[Report, np.ndarray]:
    """One shard's problems, and a hash of each key in its index (uint64)."""
    report, tar = Report(), root / shard.name

    def damaged(reason: str) -> None:
        report.damaged.append(Problem(split, shard.name, None, reason))

    try:
        indexed = {plain(sample.key): sample for sample in map(_indexed, read_index(tar.with_suffix(".idx")))}
    except InputError as error:
        damaged(str(error))
        indexed = None
    hashes = np.array([_hash(key) for key in indexed or ()], np.uint64)
    try:
        with tars.opened(tar) as file:
            if (length := os.fstat(file).st_size) != shard.bytes:
                damaged(f"it has {length} bytes, and {description.FILE} says {shard.bytes}")
            found: dict[str, tars.TarSample] = {}
            times: Counter[str] = Counter()
            try:
                for sample in tars.samples(tar):
                    found[plain(sample.key)] = sample
                    times[plain(sample.key)] += 1
            except InputError as error:
                damaged(str(error))
            for key, sample in {**found, **(indexed or {})}.items():
                if key in quarantined:
                    continue
                if times[key] > 1:
                    # The index leaves a sample out by its key, so all of them go
                    repeated = Problem(split, shard.name, key, "its key comes twice in the shard")
                    report.bad += [repeated] * times[key]
                    continue
                seen = check_sample(file, shard.name, sample, decode)
                if wrong := seen.wrong or _misnamed(seen, classes):
                    report.bad.append(Problem(split, shard.name, key, wrong))
                elif seen.complaint:
                    report.complaints.append(Problem(split, shard.name, key, seen.complaint))
                report.samples += 1
                tick(1, sample.image.size if sample.image else 0)
            if indexed is not None and not report.damaged:
                _compare(found, indexed, quarantined, damaged)
            if times.total() != shard.samples and not report.damaged:
                damaged(f"it holds {times.total()} samples, and {description.FILE} says {shard.samples}")
        report.bytes = length
        if sha256(tar) != shard.sha256 and not (report.damaged or report.bad or quarantined):
            damaged("its bytes changed (SHA-256) although no image or class in it did: bring an undamaged copy")
    except InputError as error:
        damaged(str(error))
    return report, hashes


def _misnamed(seen: Found, classes: tuple[str, ...]) -> str | None:
    """What is wrong with a sample's class number, None for nothing."""
    if seen.label >= len(classes):
        return f"its class number {seen.label} is none of the {len(classes)} classes"
    name = classes[seen.label]
    # A class whose samples disagree on its name is called by its number
    if seen.told in (None, name) or name == str(seen.label):
        return None
    return f"its class number {seen.label} is {name} and it says {seen.told}"


def _compare(found: dict, indexed: dict, quarantined: set[str], damaged) -> None:
    """Holds an index against its tar; any order will do."""
    remedy = "delete the .idx and run `python cli.py index`"
    for key, sample in found.items():
        if key in quarantined:
            if key in indexed:
                damaged(f"its index lists {key}, which is quarantined: {remedy}")
        elif key not in indexed:
            damaged(f"its index lacks {key}: {remedy}")
        elif entry(indexed[key].parts) != entry(sample.parts):
            damaged(f"its index has {key} elsewhere than the tar: {remedy}")
    for key in indexed:
        if key not in found:
            damaged(f"its index has {key}, which the tar lacks: {remedy}")


def _indexed(line: str) -> tars.TarSample:
    """A sample as its index describes it."""
    parts = {ext: tars.Member(name, int(offset), int(size)) for ext, offset, size, name in components(line)}
    folder, _, name = next(iter(parts.values())).name.rpartition("/")
    key = name.partition(".")[0]
    return tars.TarSample(f"{folder}/{key}" if folder else key, parts)


def _hash(key: str) -> int:
    return xxhash.xxh3_64_intdigest(os.fsencode(key))


def _repeated(root: Path, split: str, hashed: list[tuple[str, np.ndarray]]) -> Iterator[Problem]:
    """Samples whose key a sample before them has."""
    every = np.concatenate([hashes for _, hashes in hashed])
    kinds, counts = np.unique(every, return_counts=True)
    suspects, first = set(kinds[counts > 1].tolist()), {}
    if not suspects:
        return
    for shard, hashes in hashed:
        if suspects.isdisjoint(hashes.tolist()):
            continue
        for line in read_index((root / shard).with_suffix(".idx")):
            key = _indexed(line).key
            if _hash(key) in suspects and first.setdefault(key, shard) != shard:
                yield Problem(split, shard, key, f"its key is also in {first[key]}")


def _quarantine(dataset: Dataset, bad: Iterable[Problem]) -> None:
    """Takes samples out of the indices, after noting them."""
    for split in dataset.splits:
        some = [Quarantined(problem.shard, problem.key, problem.reason) for problem in bad if problem.split == split]
        dataset = dataset.with_quarantined(split, some)
    dataset.save()
    for shard in sorted({problem.shard for problem in bad}):
        path = (dataset.root / shard).with_suffix(".idx")
        gone = {problem.key for problem in bad if problem.shard == shard}
        write_index(path, [line for line in read_index(path) if _indexed(line).key not in gone])


def show(report: Report, root: Path, quarantined: bool) -> str:
    """The report for a person: a line for each problem, then what it comes to."""
    lines = [f"bad: {problem.shard}: {problem.key}: {problem.reason}" for problem in report.bad]
    lines += [f"damaged: {problem.shard}: {problem.reason}" for problem in report.damaged]
    lines += [f"odd, yet whole: {problem.shard}: {problem.key}: {problem.reason}" for problem in report.complaints]
    verdict = f"{root}: {report.samples:,} samples, {report.bytes / 1e6:,.1f} MB: "
    if report.whole:
        return "\n".join([*lines, f"{verdict}whole"])
    verdict += f"{len(report.bad)} bad, {len(report.damaged)} of the shards and indices damaged"
    if report.bad:
        advice = "--quarantine takes the bad samples out of the index"
        verdict += "; the bad are out of the index now" if quarantined else f"; {advice}"
    return "\n".join([*lines, verdict])
