"""WebDataset tars as a source: the split in a tar's name, the class number in a sample's `.cls`, the class's name."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from shards import tars
from shards.errors import InputError
from shards.hidden import visible
from shards.processes import run_jobs, tick
from shards.records import Skipped
from shards.sources.base import Source, SourceImage, split_of
from shards.sources.labels import class_words
from shards.sources.left_out import beside_files, compressed_tars, links_in, missing_pieces
from shards.sources.reported import merged, refuse_contradictions, refuse_gaps, several_names
from shards.sources.sample_labels import REMEDY, Tally, class_names, hint, read_label_of, tells


def find_webdataset(root: Path, workers: int, label_key: str | None = None) -> Source:
    """Tars of `KEY.jpg` (jpeg, png, webp) and `KEY.cls`, each named after its split.

    Args: label_key: an extension or a field of `.json` that holds the label, None for `.cls`. Raises: InputError when
    labels contradict what keys and `.json` tell, unless `label_key` says what counts.
    """
    grouped = tars_by_split(root)
    jobs = [(tar, label_key) for group in grouped.values() for tar in group]
    tallies: list[Tally] = run_jobs(read_labels, jobs, workers, "read labels", None)
    notices = [] if label_key is not None else check_labels([tar for tar, _ in jobs], tallies)
    notices += [line for (tar, _), tally in zip(jobs, tallies, strict=True) for line in links_in(tar.name, tally.links)]
    numbers, classes = _classes(tallies, len(grouped["train"]))
    splits = {split: _images(group, numbers, label_key) for split, group in grouped.items()}
    paths = tuple(tar for tar, _ in jobs)
    left_out = beside_tars(root, paths)
    return Source(
        kind="webdataset",
        root=root,
        classes=classes,
        splits=splits,
        words=class_words(root, classes),
        containers=paths,
        notices=notices,
        left_out=left_out,
        labels_digest=" ".join(tally.digest for tally in tallies),
    )


def _images(group: list[Path], numbers: dict[int | str, int], label_key: str | None) -> Iterator[SourceImage]:
    for tar in group:
        with tars.opened(tar) as file:
            for sample in tars.samples(tar):
                fault = sample.fault if label_key is None or sample.image is None else None
                if fault or sample.image is None:
                    raise InputError(_unusable(tar, file, sample, fault))
                label = read_label_of(file, str(tar), sample, label_key)
                name, offset, size = sample.image
                yield SourceImage(tar.name, offset, size, f"{tar.name}/{name}", numbers[label])


def check_labels(paths: Sequence[Path], tallies: Sequence[Tally]) -> list[str]:
    """Notices of what is doubtful about the labels of these tars. Raises InputError when they contradict what keys and
    `.json` tell."""
    for path, tally in zip(paths, tallies, strict=True):
        if tally.contradiction:
            key, reason = tally.contradiction
            raise InputError(f"{path}: sample {key}: {reason} ({tally.contradictory} such in this tar): {REMEDY}")
    reported = merged(tally.reported for tally in tallies)
    refuse_contradictions(reported, REMEDY)
    return several_names(reported)


def _classes(tallies: Sequence[Tally], train: int) -> tuple[dict[int | str, int], tuple[str, ...]]:
    """The class number of each label, and the classes' names. Args: train: how many of the tars are of the train split,
    which come first."""
    first: dict[int | str, str] = {}
    for tally in tallies:
        first = {**tally.first, **first}
    texts = sorted(label for label in first if isinstance(label, str))
    numbers = {label: sample for label, sample in first.items() if isinstance(label, int)}
    if not texts:
        refuse_gaps(numbers)
        highest = max(numbers, default=-1)
        return {label: label for label in numbers}, class_names((tally.reported for tally in tallies), highest)
    if numbers:
        number, sample = next(iter(numbers.items()))
        raise InputError(f"{sample} has the label {number}, and {first[texts[0]]} {texts[0]!r}: use numbers or names")
    known = {label for tally in tallies[:train] for label in tally.first}
    if unknown := [label for label in texts if label not in known]:
        raise InputError(f"{first[unknown[0]]} is of class {unknown[0]!r}, which the train split lacks")
    return {label: number for number, label in enumerate(texts)}, tuple(texts)


def _unusable(tar: Path, file: int, sample: tars.TarSample, fault: str | None) -> str:
    """The message for a sample that is not an image with a class."""
    rest = next((other for other in tars.samples(tar) if other.key == sample.key and other != sample), None)
    if rest:
        return f"{tar}: sample {sample.key}: {tars.repeated(sample.parts, rest.parts)}"
    remedy = "repair the tar, or train on it where it is: `python cli.py index` skips such samples"
    if sample.image and not sample.part("cls"):
        remedy = f"say with --label-key where its label is ({hint(file, sample)})"
    return f"{tar}: sample {sample.key} has {fault}: {remedy}"


def tars_by_split(root: Path, to_train: bool = True) -> dict[str, list[Path]]:
    """A folder's tars in order, by the split in their names. Raises InputError when a name has none, or when they are
    `to_train` on and none is of the train split."""
    grouped: dict[str, list[Path]] = {}
    for tar in visible(root, "*.tar"):
        split = split_of(tar)
        if split is None:
            known = "train, val or test"
            raise InputError(f"{tar} has no split in its name: rename it so that {known} is a word of its name")
        grouped.setdefault(split, []).append(tar)
    if "train" not in grouped and (to_train or not grouped):
        hint = compressed_tars(root)
        raise InputError(
            f"{root} holds no tars of a train split, like train-000000.tar" + (f": {hint}" if hint else "")
        )
    return {split: grouped[split] for split in sorted(grouped, key=["train", "val", "test"].index)}


def beside_tars(root: Path, taken: Sequence[Path]) -> tuple[Skipped, ...]:
    """What a folder holds beside the tars that are taken, and what these lack."""
    why = "only the plain .tar files of the folder itself are read"
    return (*beside_files(root, taken, why), *missing_pieces(taken))


def read_labels(tar: Path, label_key: str | None) -> Tally:
    """A tar's labels, and what its samples tell of them."""
    tally, digest = Tally(), hashlib.sha256()
    with tars.opened(tar) as file:
        for sample in tars.samples(tar, tally.links):
            if label_key is not None or sample.part("cls"):
                label, about = read_label_of(file, str(tar), sample, label_key), tars.description(file, sample)
                tally.add(str(tar), sample.key, label, *tells(sample, about, label))
                digest.update(f"{sample.key} {label}\n".encode(errors="backslashreplace"))
            tick(1, 0)
    tally.digest = digest.hexdigest()
    return tally
