"""Describes WebDataset tars that others made, so that they can be trained on as they are. No tar is written to."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards import tars
from shards.atomic import locked
from shards.check_sample import check_sample, sha256
from shards.dataset import Dataset
from shards.errors import InputError
from shards.index import entry, plain, read_index, write_index
from shards.processes import cores, run_jobs, tick
from shards.records import Quarantined, Shard, Sizes, Split
from shards.sources.labels import class_words
from shards.sources.webdataset import class_names, tars_by_split


def describe_tars(root: Path, workers: int | None = None) -> Dataset:
    """Describes the WebDataset tars in a folder as they are: writes each one's index where there is none, and
    `dataset.json`. What cannot be trained on is left out of the index and named.

    Raises: InputError when tars tell no split, cannot be read, or have an index that does not fit them.
    """
    with locked(root):
        grouped = tars_by_split(root)
        jobs = [(tar,) for group in grouped.values() for tar in group]
        adopted = run_jobs(describe_tar, jobs, workers or cores(), "describe tars", None)
        classes = class_names(part.told for part in adopted)
        by_tar = dict(zip((tar for (tar,) in jobs), adopted, strict=True))
        splits = {}
        for name, group in grouped.items():
            parts = [by_tar[tar] for tar in group]
            images = np.concatenate([part.images for part in parts])
            counts = np.bincount(images[:, 0], minlength=len(classes))
            splits[name] = Split(
                shards=tuple(part.shard for part in parts),
                class_counts=tuple(counts.tolist()),
                sizes=Sizes.of(images[:, 1:]),
                quarantined=tuple(sample for part in parts for sample in part.quarantined),
            )
            if not splits[name].samples:
                first = splits[name].quarantined[0] if splits[name].quarantined else None
                why = f" ({first.shard}: {first.key}: {first.reason})" if first else ""
                raise InputError(f"{root}: no sample of the {name} split can be used{why}")
        known = class_words(root)
        dataset = Dataset(
            root=root,
            classes=classes,
            words={name: known[name] for name in classes if name in known},
            splits=splits,
            source="webdataset",
            seed=None,
            size=None,
            quality=None,
            max_pixels=None,
            plan="",
            versions={},
        )
        dataset.save()
        return dataset


@dataclass(frozen=True)
class Adopted:
    """One tar of others, described: `images` (N x 3 int32) has class number, width and height of each sample that can
    be used, `told` for each class number the names that its samples tell."""

    shard: Shard
    quarantined: tuple[Quarantined, ...]
    images: np.ndarray
    told: dict[int, set[str]]


def describe_tar(tar: Path) -> Adopted:
    """Describes a tar and writes its index where it has none."""
    entries, bad, images, told, count = [], [], [], {}, 0
    # Keys tell samples apart, so that of several with one key none can be told
    times = Counter(plain(sample.key) for sample in tars.samples(tar))
    with tars.opened(tar) as file:
        for sample in tars.samples(tar):
            found = check_sample(file, str(tar), sample, decode=False)
            count += 1
            key = plain(sample.key)
            wrong = "its key comes twice in the shard" if times[key] > 1 else found.wrong
            if wrong:
                bad.append(Quarantined(tar.name, key, wrong))
            else:
                entries.append(entry(sample.parts))
                images.append((found.label, found.width, found.height))
                told.setdefault(found.label, set()).update([found.told] if found.told else [])
            tick(1, sample.image.size if sample.image else 0)
    path = tar.with_suffix(".idx")
    if not path.exists():
        write_index(path, entries)
    elif sorted(read_index(path)) != sorted(entries):
        raise InputError(f"{path} does not list the samples of {tar.name} that can be used: delete it, then try again")
    shard = Shard(tar.name, count, tar.stat().st_size, sha256(tar))
    return Adopted(shard, tuple(bad), np.array(images, np.int32).reshape(-1, 3), told)
