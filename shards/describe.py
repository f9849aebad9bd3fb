"""Describes WebDataset tars that others made, so that they can be trained on as they are. No tar is written to."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards import tars
from shards.atomic import locked
from shards.check_sample import check_sample
from shards.dataset import COMPANIONS, FILE, PLAN, Dataset
from shards.errors import InputError
from shards.hidden import visible
from shards.index import entry, plain, read_index, write_index
from shards.processes import cores, run_jobs, tick
from shards.records import Quarantined, Shard, Sizes, Split, sha256
from shards.sources.labels import class_words
from shards.sources.left_out import compressed_tars, give_notice, links_in, notices
from shards.sources.reported import refuse_gaps, without_train_images
from shards.sources.sample_labels import Tally, class_names
from shards.sources.webdataset import beside_tars, check_labels, tars_by_split
from shards.wording import counted


@dataclass(frozen=True)
class DescribedTar:
    """A tar: `images` (N x 3) has class number, width and height of each sample that can be used, `tally` what these
    tell of their classes."""

    shard: Shard
    quarantined: tuple[Quarantined, ...]
    images: npt.NDArray[np.int32]
    tally: Tally


def load_or_describe(
    root: Path, workers: int | None = None, label_key: str | None = None, strict: bool = False
) -> Dataset:
    """The data set in a folder, which is described first where nobody has. Gives notice of what lies beside it. Args
    and raises as `describe_tars`."""
    unfinished = (root / PLAN).exists()
    if (
        not root.is_dir()
        or (root / FILE).exists()
        or unfinished
        or not (visible(root, "*.tar") or compressed_tars(root))
    ):
        dataset = Dataset.load(root)
        if label_key is not None:
            remedy = f"delete {FILE} and {COMPANIONS[0]}, so that the labels are read again"
            raise InputError(f"--label-key does not count, for {root} has {FILE}: leave it out, or {remedy}")
        give_notice([*notices(dataset.left_out), *unlisted_tars(dataset)], strict)
        return dataset
    return describe_tars(root, workers, label_key, strict)


def describe_tars(
    root: Path, workers: int | None = None, label_key: str | None = None, strict: bool = False
) -> Dataset:
    """Describes the WebDataset tars in a folder as they are: writes each one's index where there is none, and
    `dataset.json`. What cannot be trained on is named there and is not in the index.

    Args: label_key: "cls" when the class numbers count, whatever keys and `.json` tell; strict: fail when a sample
    cannot be used, something lies beside the tars, or labels are doubtful. Raises: InputError when tars have no split
    in their names, cannot be read, or have an index that does not fit them, and when labels contradict what keys and
    `.json` tell.
    """
    if label_key not in (None, "cls"):
        remedy = f"`python cli.py shard --label-key {label_key}` writes tars that have it"
        raise InputError(f"--label-key {label_key}: training reads .cls, and tars stay as they are here: {remedy}")
    with locked(root):
        grouped = tars_by_split(root, to_train=False)
        paths = [tar for group in grouped.values() for tar in group]
        left_out = beside_tars(root, paths)
        give_notice(notices(left_out), strict)
        described = run_jobs(describe_tar, [(tar,) for tar in paths], workers or cores(), "describe tars", None)
        by_path = dict(zip(paths, described, strict=True))
        doubts = [] if label_key is not None else check_labels(paths, [tar.tally for tar in described])
        doubts += [line for tar in described for line in links_in(tar.shard.name, tar.tally.links)]
        give_notice(doubts, strict)
        classes = _classes([tar.tally for tar in described])
        known = class_words(root, classes)
        dataset = Dataset(
            root=root,
            classes=classes,
            words={name: known[name] for name in classes if name in known},
            splits={
                name: _split(root, name, [by_path[path] for path in group], len(classes))
                for name, group in grouped.items()
            },
            source="webdataset",
            seed=None,
            size=None,
            quality=None,
            max_pixels=None,
            plan="",
            versions={},
            left_out=left_out,
        )
        bad = [f"{sample.shard}: {sample.key}: {sample.reason}" for tar in described for sample in tar.quarantined]
        if strict and bad:
            raise InputError(f"--strict: {bad[0]}; {counted(bad, 'such sample')}")
        give_notice(without_train_images(dataset.splits, classes), strict=False)
        dataset.save()
        return dataset


def _classes(tallies: list[Tally]) -> tuple[str, ...]:
    """The names of the classes. Raises InputError when class numbers leave out too many."""
    first = {label: image for tally in tallies for label, image in tally.first.items()}
    numbers = {label: image for label, image in first.items() if isinstance(label, int)}
    refuse_gaps(numbers)
    return class_names((tally.reported for tally in tallies), max(numbers, default=-1))


def unlisted_tars(dataset: Dataset) -> list[str]:
    """Notices of tars that lie beside a data set's own, and that nothing reads."""
    listed = {shard.name for split in dataset.splits.values() for shard in split.shards}
    others = [tar.name for tar in visible(dataset.root, "*.tar") if tar.name not in listed]
    remedy = (
        f"move it away, or delete {FILE} and {COMPANIONS[0]}, so that `python cli.py index` writes them for all tars"
    )
    more = f", as are {len(others) - 1} more" if len(others) > 1 else ""
    return [f"{others[0]} is not listed in {FILE}{more}: {remedy}"] if others else []


def _split(root: Path, name: str, described: list[DescribedTar], classes: int) -> Split:
    """Raises InputError when none of a split's samples can be used."""
    images = np.concatenate([tar.images for tar in described])
    split = Split(
        shards=tuple(tar.shard for tar in described),
        class_counts=tuple(np.bincount(images[:, 0], minlength=classes).tolist()),
        sizes=Sizes.of(images[:, 1:]),
        quarantined=tuple(sample for tar in described for sample in tar.quarantined),
    )
    if not split.samples:
        first = split.quarantined[0] if split.quarantined else None
        why = f" ({first.shard}: {first.key}: {first.reason})" if first else ""
        raise InputError(f"{root}: no sample of the {name} split can be used{why}")
    return split


def describe_tar(tar: Path) -> DescribedTar:
    """Describes a tar and writes its index where it has none."""
    entries, bad, images, count = [], [], [], 0
    tally = Tally()
    repeated = _repeated(tar)
    with tars.opened(tar) as file:
        for sample in tars.samples(tar, tally.links):
            check = check_sample(file, str(tar), sample, decode=False)
            count += 1
            key = plain(sample.key)
            if problem := repeated.get(key, check.problem):
                bad.append(Quarantined(tar.name, key, problem))
            else:
                entries.append(entry(sample.parts))
                images.append((check.label, check.width, check.height))
                tally.add(str(tar), key, check.label, check.class_name, check.contradiction)
            tick(1, sample.image.size if sample.image else 0)
    path = tar.with_suffix(".idx")
    if not path.exists():
        write_index(path, entries)
    elif sorted(read_index(path)) != sorted(entries):
        raise InputError(f"{path} does not list the samples of {tar.name} that can be used: delete it, then try again")
    shard = Shard(tar.name, count, tar.stat().st_size, sha256(tar))
    return DescribedTar(shard, tuple(bad), np.array(images, np.int32).reshape(-1, 3), tally)


def _repeated(tar: Path) -> dict[str, str]:
    """The keys that come more than once in a tar, and why. Samples are identified by their keys: of several with one
    key, none can be used."""
    extensions: dict[str, tuple[str, ...]] = {}
    repeated = {}
    for sample in tars.samples(tar):
        key = plain(sample.key)
        if key in extensions:
            repeated[key] = tars.repeated(extensions[key], sample.parts)
        extensions[key] = tuple(sample.parts)
    return repeated
