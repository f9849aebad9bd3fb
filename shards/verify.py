"""Verifies a data set: every shard, index and sample is as `dataset.json` says, or is named. No tar is written to."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from shards import tars
from shards.atomic import locked
from shards.check_sample import SampleCheck, check_sample
from shards.dataset import COMPANIONS, FILE, Dataset
from shards.describe import unlisted_tars
from shards.errors import InputError
from shards.index import components, entry, plain, read_index, write_index
from shards.processes import cores, run_jobs, tick
from shards.records import Quarantined, Shard, sha256
from shards.sources.reported import contradictions
from shards.sources.sample_labels import Tally
from shards.wording import counted

SCHEMA = 1
# Earlier versions stopped at a tar's first empty block
RECOUNT = f"delete {FILE}, {COMPANIONS[0]} and the .idx files, and `python cli.py index` describes all of it"


class Problem(NamedTuple):
    """Something that is wrong with a sample, or with a shard (or the folder) when `key` is None."""

    split: str
    shard: str
    key: str | None
    reason: str


@dataclass
class Report:
    """What `verify` found. `bad` are samples, `damaged` are shards and indices, `warnings` are images that decode
    completely although their decoder warns, and remarks; `samples` and `bytes` were read."""

    bad: list[Problem] = field(default_factory=list)
    damaged: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    samples: int = 0
    bytes: int = 0

    @property
    def intact(self) -> bool:
        return not (self.bad or self.damaged)

    def described(self) -> dict[str, Any]:
        """What `verify --json` prints; two of its keys are older names."""
        problems = {"bad": self.bad, "damaged": self.damaged, "complaints": self.warnings}
        listed = {key: [problem._asdict() for problem in some] for key, some in problems.items()}
        return {"schema": SCHEMA, "whole": self.intact, "samples": self.samples, "bytes": self.bytes, **listed}

    def add(self, other: "Report") -> None:
        """Adds another shard's."""
        self.bad += other.bad
        self.damaged += other.damaged
        self.warnings += other.warnings
        self.samples += other.samples
        self.bytes += other.bytes


class ShardToVerify(NamedTuple):
    """A shard of a split, and what `dataset.json` says of it."""

    root: Path
    split: str
    shard: Shard
    samples: int  # that are not quarantined
    classes: tuple[str, ...]
    quarantined: set[str]
    is_ours: bool  # written by `shard`

    @property
    def tar(self) -> Path:
        return self.root / self.shard.name

    def problem(self, key: str | None, reason: str) -> Problem:
        return Problem(self.split, self.shard.name, key, reason)


def verify(root: Path, decode: bool = False, quarantine: bool = False, workers: int | None = None) -> Report:
    """Compares a data set with its description: each shard's length, SHA-256 and tar structure, its index, each
    sample's class number, name of class and image, and that no key comes twice in a shard.

    Args: decode: decode every image completely; quarantine: take the bad samples out of the indices and record them in
    `dataset.json`. Raises: InputError when there is no description.
    """
    with locked(root):
        dataset = Dataset.load(root)
        shards = [
            ShardToVerify(
                root=root,
                split=name,
                shard=shard,
                samples=split.samples_in(shard),
                classes=dataset.classes,
                quarantined=split.quarantined_in(shard.name),
                is_ours=bool(dataset.plan),
            )
            for name, split in dataset.splits.items()
            for shard in split.shards
        ]
        total = sum(split.samples for split in dataset.splits.values())
        jobs = [(shard, decode) for shard in shards]
        results = run_jobs(verify_shard, jobs, workers or cores(), "verify", total)
        report = Report()
        hashes: dict[str, dict[str, npt.NDArray[np.uint64]]] = {}
        first: dict[str, tuple[int, str]] = {}  # by name of a class, the first number and sample that have it
        for shard, (shard_report, hashed, tally) in zip(shards, results, strict=True):
            report.add(shard_report)
            report.warnings += [shard.problem(None, text) for text in contradictions(tally.reported, first)]
            hashes.setdefault(shard.split, {})[shard.shard.name] = hashed
        for name, by_shard in hashes.items():
            report.warnings += _shared_keys(root, name, by_shard)
        report.warnings += [Problem("", str(root), None, text) for text in unlisted_tars(dataset)]
        if quarantine and report.bad:
            _quarantine(dataset, report.bad)
        return report


def verify_shard(job: ShardToVerify, decode: bool) -> tuple[Report, npt.NDArray[np.uint64], Tally]:
    """One shard's problems, a hash of each key in its index, and what its samples tell of their classes."""
    report, tally = Report(), Tally()
    indexed: dict[str, tars.TarSample] | None = None
    try:
        samples = map(_indexed, read_index(job.tar.with_suffix(".idx")))
        indexed = {plain(sample.key): sample for sample in samples}
    except InputError as error:
        report.damaged.append(job.problem(None, str(error)))
    try:
        with tars.opened(job.tar) as file:
            _verify_tar(job, file, indexed, decode, report, tally)
        if sha256(job.tar) != job.shard.sha256 and report.intact and not job.quarantined:
            reason = "its bytes changed (SHA-256) although no image or class in it did: bring an undamaged copy"
            report.damaged.append(job.problem(None, reason))
    except InputError as error:
        report.damaged.append(job.problem(None, str(error)))
    if tally.contradiction:
        key, reason = tally.contradiction
        report.warnings.append(job.problem(key, f"{reason} ({tally.contradictory} such in this shard)"))
    return report, np.array([_hash(key) for key in indexed or ()], np.uint64), tally


def _verify_tar(
    job: ShardToVerify,
    file: int,
    indexed: dict[str, tars.TarSample] | None,
    decode: bool,
    report: Report,
    tally: Tally,
) -> None:
    """Adds to the report what is wrong with an open tar, with its samples, and with its index if that can be read; and
    to the tally what they tell of their classes."""
    report.bytes = os.fstat(file).st_size
    if report.bytes != job.shard.bytes:
        reason = f"it has {report.bytes} bytes, and {FILE} says {job.shard.bytes}"
        report.damaged.append(job.problem(None, reason))
    in_tar: dict[str, tars.TarSample] = {}
    times: Counter[str] = Counter()
    repeated: dict[str, str] = {}
    try:
        for sample in tars.samples(job.tar):
            key = plain(sample.key)
            if key in in_tar:
                repeated[key] = tars.repeated(in_tar[key].parts, sample.parts)
            in_tar[key] = sample
            times[key] += 1
    except InputError as error:
        report.damaged.append(job.problem(None, str(error)))
    for key, sample in {**in_tar, **(indexed or {})}.items():
        if key in job.quarantined:
            continue
        if key in repeated:
            # The index skips a sample by its key, so all of them go
            report.bad += [job.problem(key, repeated[key])] * times[key]
            continue
        check = check_sample(file, job.shard.name, sample, decode)
        if problem := check.problem or _wrong_class(check, job):
            report.bad.append(job.problem(key, problem))
        else:
            tally.add(job.shard.name, key, check.label, check.class_name, check.contradiction)
            report.warnings += [job.problem(key, check.warning)] if check.warning else []
        report.samples += 1
        tick(1, sample.image.size if sample.image else 0)
    # Quarantined samples do not count: an earlier version took Thumbs.db and the like for samples, which are bad
    count = sum(number for key, number in times.items() if key not in job.quarantined)
    if count != job.samples and not report.damaged:
        reason = f"it holds {counted(count, 'sample')} not quarantined, and {FILE} says {job.samples}: {RECOUNT}"
        report.damaged.append(job.problem(None, reason))
    if indexed is not None and not report.damaged:
        report.damaged += [job.problem(None, reason) for reason in _compare(in_tar, indexed, job.quarantined)]


def _wrong_class(check: SampleCheck, job: ShardToVerify) -> str | None:
    """What is wrong with a sample's class number, None for nothing."""
    if check.label >= len(job.classes):
        return f"its class number {check.label} is none of the {counted(job.classes, 'class')}"
    name = job.classes[check.label]
    # In tars that others made, a class whose samples disagree on its name is called by its number
    if check.class_name in (None, name) or (name == str(check.label) and not job.is_ours):
        return None
    return f"its class number {check.label} is {name} and it says {check.class_name}"


def _compare(
    in_tar: dict[str, tars.TarSample], indexed: dict[str, tars.TarSample], quarantined: set[str]
) -> Iterator[str]:
    """How an index differs from its tar; any order will do."""
    remedy = "delete the .idx and run `python cli.py index`"
    for key, sample in in_tar.items():
        if key in quarantined:
            if key in indexed:
                yield f"its index lists {key}, which is quarantined: {remedy}"
        elif key not in indexed:
            yield f"its index lacks {key}: {remedy}"
        elif entry(indexed[key].parts) != entry(sample.parts):
            yield f"its index has {key} elsewhere than the tar: {remedy}"
    for key in indexed:
        if key not in in_tar:
            yield f"its index has {key}, which the tar lacks: {remedy}"


def _indexed(line: str) -> tars.TarSample:
    """A sample as its index describes it. Raises InputError when that is nonsense."""
    try:
        parts = {ext: tars.Member(name, int(offset), int(size)) for ext, offset, size, name in components(line)}
    except ValueError:
        raise InputError(f"its index says {line[:80]!r}: delete the .idx and run `python cli.py index`") from None
    folder, _, name = next(iter(parts.values())).name.rpartition("/")
    key = name.partition(".")[0]
    return tars.TarSample(f"{folder}/{key}" if folder else key, parts)


def _hash(key: str) -> int:
    return xxhash.xxh3_64_intdigest(os.fsencode(key))


def _shared_keys(root: Path, split: str, hashes: dict[str, npt.NDArray[np.uint64]]) -> Iterator[Problem]:
    """A remark on a split whose shards have keys in common, by the keys' hashes: nothing is wrong with such samples,
    for shards may count their own, but a shard may also have been copied."""
    unique, counts = np.unique(np.concatenate([*hashes.values()]), return_counts=True)
    repeated, seen = unique[counts > 1], set[int]()
    for shard, hashed in hashes.items():
        some = set(np.intersect1d(hashed, repeated).tolist())
        if some & seen:
            keys = (_indexed(line).key for line in read_index((root / shard).with_suffix(".idx")))
            key = next(key for key in keys if _hash(key) in seen)
            more = f", and {len(repeated) - 1} more keys are in several shards" if len(repeated) > 1 else ""
            reason = f"an earlier shard has this key too{more}: that is no harm, unless a shard was copied"
            yield Problem(split, shard, key, reason)
            return
        seen |= some


def _quarantine(dataset: Dataset, bad: Iterable[Problem]) -> None:
    """Takes samples out of the indices, after recording them."""
    for split in dataset.splits:
        some = [
            Quarantined(problem.shard, problem.key, problem.reason)
            for problem in bad
            if problem.split == split and problem.key is not None
        ]
        dataset = dataset.with_quarantined(split, some)
    dataset.save()
    for shard in sorted({problem.shard for problem in bad}):
        path = (dataset.root / shard).with_suffix(".idx")
        gone = {problem.key for problem in bad if problem.shard == shard}
        write_index(path, [line for line in read_index(path) if _indexed(line).key not in gone])


def show(report: Report, root: Path, quarantined: bool) -> str:
    """The report for a person: a line for each problem, then a summary."""
    lines = []
    for word, problems in (("bad", report.bad), ("damaged", report.damaged), ("warning", report.warnings)):
        for _, shard, key, reason in problems:
            lines.append(": ".join(filter(None, (word, shard, key, reason))))
    summary = f"{root}: {counted(report.samples, 'sample')}, {report.bytes / 1e6:,.1f} MB: "
    if report.intact:
        return "\n".join([*lines, f"{summary}intact"])
    summary += f"{len(report.bad)} bad, {len(report.damaged)} of the shards and indices damaged"
    if report.bad:
        advice = "--quarantine takes the bad samples out of the index"
        summary += "; the bad are out of the index now" if quarantined else f"; {advice}"
    return "\n".join([*lines, summary])
