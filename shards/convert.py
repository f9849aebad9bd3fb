"""Converts images to a data set: tars, their indices and, last of all, `dataset.json`.

Shards are planned before any image is read, so each is a job of its own for a worker process, and the same source,
options and seed give the same bytes for any number of workers. A worker holds one image at a time; the list of images
is on disk. Every file appears complete or not at all, and a finished shard leaves a done marker, so that a conversion
that was killed continues with the shards that it had not finished.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shards.catalog import Catalog, CatalogEntry
from shards.dataset import FORMAT, PLAN, Dataset
from shards.errors import InputError, Unreadable
from shards.images import prepare
from shards.output_folder import CATALOG, SCRATCH, begin, claimed, discard, finish, load_finished
from shards.processes import cores, run_jobs
from shards.records import Sizes, Split
from shards.sources.base import Source
from shards.sources.copy_url import (
    by_url,
    copy_files,
    holds_images_at,
    key_of_files,
    list_files,
    named_by_url,
    read_record,
    write_record,
)
from shards.sources.detect import find_source
from shards.sources.left_out import give_notice, holds_images, notices
from shards.sources.reported import with_names_compared, without_train_images
from shards.storage import Storage
from shards.tars import BLOCK
from shards.wording import counted
from shards.write_shard import (
    ImageOptions,
    ShardJob,
    WrittenShard,
    image_table,
    library_versions,
    read_image,
    write_shard,
)

IMAGE_FOLDERS = ("train", "val", "data", "Data", "ILSVRC")  # of a source's root, in all layouts
PROBED = 64  # images prepared beforehand to estimate the stored size
MIN_SHARDS, SMALL_SHARD = 16, 4 * 2**20  # a small split is cut into this many shards, if they have this many bytes


@dataclass(frozen=True)
class ConvertOptions:
    """How a source is converted; the defaults are the command line's.

    kind: of `shards.sources.base.KINDS`, or "auto" to detect it
    size: pixels a side of the squares that are stored, None to keep the images' own size
    quality: of re-encoded JPEGs
    max_pixels: a larger image is scaled down to this many, None for never
    shard_size: bytes of a tar, about
    workers: processes, None for one a core
    seed: of the train split's order
    strict: fail when an image is skipped
    val_share: of each class's training images, is drawn for validation where there is no val split; None for none
    label_key: where the label is in parquet files (a column) and WebDataset tars, None to find it
    cluster: a Dask scheduler's address whose workers write the shards, None for processes of this machine
    """

    kind: str = "auto"
    size: int | None = None
    quality: int = 90
    max_pixels: int | None = None
    shard_size: int = 256 * 2**20
    workers: int | None = None
    seed: int = 0
    strict: bool = False
    val_share: float | None = None
    label_key: str | None = None
    cluster: str | None = None

    @property
    def image(self) -> ImageOptions:
        """The part that decides how an image is stored."""
        return ImageOptions(self.size, self.quality, self.max_pixels)


DEFAULTS = ConvertOptions()


def write_dataset(root: Path | Storage, out: Path, options: ConvertOptions = DEFAULTS) -> Dataset:
    """Writes the source at `root`, a folder or a URL, to the folder `out`, train in a seeded global shuffle, and
    returns the data set.

    Raises: InputError for a source of no known layout, a folder that cannot be written or holds another data set, a
    full disk, and when nothing is left of a split.
    """
    refuse_among_images(root, out)
    if options.cluster:  # whose workers have another current folder
        root, out = root.absolute() if isinstance(root, Path) else root, out.absolute()
    with claimed(out):
        listed = list_images(root, options, out, partial(load_finished, out))
        if isinstance(listed, Dataset):
            return listed
        begin(out, listed.plan)
        write = partial(write_shards, runner(options))
        dataset = write_splits(listed, out, options, write, partial(discard, out, listed.splits))
        dataset.save()
        finish(out)
        return dataset


class Listed(NamedTuple):
    """A source whose images are listed in the file `catalog`, in these splits; `plan` identifies the data set that it
    becomes; `where` is the source's folder or URL, to be shown."""

    source: Source
    catalog: Path
    splits: tuple[str, ...]
    plan: str
    where: str


Finished = Callable[[str], Dataset | None]  # the data set of a plan, if it is finished
Notice = Callable[[Sequence[str], bool], None]  # `give_notice`


def list_images(root: Path | Storage, options: ConvertOptions, folder: Path, finished: Finished) -> Listed | Dataset:
    """Lists the source at `root` in `folder`; or returns the data set, where there is a finished one of its plan. Gives
    notice of what is not taken. Raises InputError as `write_dataset` does."""
    if isinstance(root, Storage):
        return _list_copy(root, options, folder, finished)
    return _list_folder(root, options, folder, finished)


def _list_copy(url: Storage, options: ConvertOptions, folder: Path, finished: Finished) -> Listed | Dataset:
    """`list_images` of a copy of the files at a URL, in `folder`. Which files and options gave which plan is recorded,
    by which a finished data set is known before anything is copied."""
    files = list_files(url)
    deciding = replace(options, kind="", workers=None, strict=False, cluster=None)
    key = key_of_files(files, repr((FORMAT, url.url, deciding)))
    known = read_record(folder)
    if (dataset := finished(known.get(key, ""))) and options.kind in ("auto", dataset.source):
        return dataset
    if known and key not in known and (folder / PLAN).exists():
        remedy = "choose another --out or empty it"
        raise InputError(f"the files at {url}, or the options, have changed since the conversion was begun: {remedy}")

    def notice(lines: Sequence[str], strict: bool) -> None:
        give_notice([by_url(line, url, folder) for line in lines], strict)

    root = copy_files(url, files, folder, options.kind, options.workers or cores())
    with named_by_url(url, folder):
        listed = _list_folder(root, options, folder, finished, notice)
    write_record(folder, key, listed.plan)
    return listed._replace(where=str(url)) if isinstance(listed, Listed) else listed


def _list_folder(
    root: Path, options: ConvertOptions, folder: Path, finished: Finished, notice: Notice = give_notice
) -> Listed | Dataset:
    source = find_source(root, options.kind, folder / SCRATCH, options.workers or cores(), options.label_key)
    notice(notices(source.left_out), options.strict)
    notice([*source.remarks, *_about_val(source, options.val_share)], False)
    # Archives need not be listed to know whether this very conversion is already finished
    plan = _plan(options, source, _stamp(source)) if source.containers else None
    if plan and (dataset := finished(plan)):
        return dataset
    path = folder / CATALOG
    path.unlink(missing_ok=True)
    catalog = Catalog(path)
    for name, images in source.splits.items():
        catalog.add(name, with_names_compared(images, source.classes, source.notices), source.classes)
    names = list(source.splits)
    if options.val_share:
        names.insert(1, "val")
        _draw_val(catalog, options.val_share, options.seed, source)
    notice(source.notices, options.strict)
    plan = plan or _plan(options, source, catalog.digest())
    catalog.close()
    return finished(plan) or Listed(source, path, tuple(names), plan, str(root))


def refuse_among_images(root: Path | Storage, out: Path | Storage) -> None:
    """Raises InputError when shards at `out` would be taken for images at `root` the next time."""
    among = False
    if isinstance(root, Storage) and isinstance(out, Storage):
        if f"{out}/".startswith(f"{root}/"):
            top = out.url[len(root.url) :].strip("/").partition("/")[0]
            among = top in ("", *IMAGE_FOLDERS) or holds_images_at(Storage(f"{root}/{top}", root.if_missing))
    elif isinstance(root, Path) and isinstance(out, Path) and out.resolve().is_relative_to(root.resolve()):
        inside = out.resolve().relative_to(root.resolve()).parts
        among = not inside or inside[0] in IMAGE_FOLDERS or holds_images(root / inside[0])
    if among:
        raise InputError(f"--out {out} lies among the images of --imagenet-root {root}: choose another folder")


def _about_val(source: Source, val_share: float | None) -> list[str]:
    """A notice where there is nothing to evaluate on. Raises InputError where no share can be drawn for it."""
    root = source.root
    if val_share is None:
        none = f"{root} has no images for validation: --val-share 0.1 draws a tenth of each class"
        return [] if "val" in source.splits else [f"{none}; without it training is not evaluated"]
    if "val" in source.splits:
        raise InputError(f"--val-share {val_share:g}: {root} has validation images of its own: leave it out")
    if "train" not in source.splits:
        raise InputError(f"--val-share {val_share:g}: {root} has no images to train on: leave it out")
    return []


def _draw_val(catalog: Catalog, share: float, seed: int, source: Source) -> None:
    """Draws the val split, and gives notice of classes that are too small for it. Raises InputError when all are."""
    catalog.draw_val(share, seed)
    train, val = catalog.counts("train"), catalog.counts("val")
    small = [source.classes[label] for label in train if label not in val]
    if not val:
        raise InputError(f"--val-share {share:g}: no class of {source.root} has two images: add some, or leave it out")
    if small:
        number = counted(small, "class")
        text = f"{number} of a single image, like {small[0]}: it is for training, and validation has none of the class"
        give_notice([text], strict=False)


def _stamp(source: Source) -> str:
    """Identifies archives by their names and lengths."""
    return repr([(str(path.relative_to(source.root)), path.stat().st_size) for path in source.containers])


def _plan(options: ConvertOptions, source: Source, images: str) -> str:
    """Identifies the data set to be written: the options, the classes, and what identifies the images."""
    content = [FORMAT, options.image._asdict(), options.shard_size, options.seed, source.kind, source.classes, images]
    content += [options.label_key] if options.label_key is not None else []
    content += [f"val_share {options.val_share}"] if options.val_share is not None else []
    content += [source.labels_digest] if source.labels_digest else []
    content += [hashlib.sha256(path.read_bytes()).hexdigest() for path in source.label_files]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def shard_jobs(listed: Listed, out: Path, name: str, options: ConvertOptions) -> list[ShardJob]:
    """A split's shards, to be written to `out`."""
    source, catalog = listed.source, Catalog.open(listed.catalog)
    ids, lengths = catalog.lengths(name)
    if name == "train":
        order = np.random.default_rng(options.seed).permutation(len(ids))
        ids, lengths = ids[order], lengths[order]
    if options.size:
        lengths[:] = _typical_length(source.root, catalog.images(ids[:PROBED]), options.image)
    catalog.close()
    return [
        ShardJob(
            tar=shard_path(out, name, number),
            catalog=listed.catalog,
            ids=some,
            root=source.root,
            classes=source.classes,
            options=options.image,
            plan=listed.plan,
        )
        for number, some in enumerate(_parts(ids, lengths, options.shard_size))
    ]


def shard_path(out: Path, split: str, number: int) -> Path:
    return out / f"{split}-{number:06d}.tar"


def _parts(ids: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], shard_size: int) -> list[npt.NDArray[np.int64]]:
    """Cuts a split into shards of equal size: of `shard_size` bytes at most, about, and a small split into some
    sixteen, so that there is work for several processes."""
    if not len(ids):
        return []
    # Three headers, the class number's block, the description's block, and the image in full blocks
    filled = np.cumsum(5 * BLOCK + -(-np.maximum(lengths, 0) // BLOCK) * BLOCK)
    number = max(-(-int(filled[-1]) // shard_size), min(MIN_SHARDS, int(filled[-1]) // SMALL_SHARD), 1)
    cuts = np.searchsorted(filled, filled[-1] * np.arange(1, number) / number)
    return [part for part in np.split(ids, cuts) if len(part)]


def _typical_length(root: Path, images: list[CatalogEntry], options: ImageOptions) -> int:
    """Mean bytes of the first images as they will be stored; the same for the same source, so the plan is too."""
    lengths = []
    for image in images:
        try:
            lengths.append(len(prepare(read_image(root, image), *options).jpeg))
        except Unreadable:
            continue
    return sum(lengths) // len(lengths) if lengths else 0


def write_splits(
    listed: Listed,
    out: Path,
    options: ConvertOptions,
    write: Callable[[str, list[ShardJob]], list[WrittenShard]],
    discard: Callable[[], None],
) -> Dataset:
    """Has `write(split, jobs)` write each split's shards to `out`, and returns the data set that they are. Where a
    split cannot be used, `discard` removes them: otherwise the command could not be repeated with the image mended."""
    source, splits = listed.source, {}
    for name in listed.splits:
        splits[name] = combined(write(name, shard_jobs(listed, out, name, options)), len(source.classes))
        try:
            check(splits[name], name, listed.where, options.strict)
        except InputError:
            discard()
            raise
    give_notice(without_train_images(splits, source.classes), strict=False)
    return dataset_of(listed, out, options, splits)


Runner = Callable[..., list[Any]]  # `shards.processes.run_jobs` without its `workers`


def runner(options: ConvertOptions) -> Runner:
    if not options.cluster:
        return partial(run_jobs, workers=options.workers or cores())
    from shards.cluster import run_on_cluster

    return partial(run_on_cluster, options.cluster)


def write_shards(run: Runner, name: str, jobs: list[ShardJob]) -> list[WrittenShard]:
    images = sum(len(job.ids) for job in jobs)
    return run(write_shard, [(job,) for job in jobs], label=f"shard {name}", total=images)


def combined(written: list[WrittenShard], classes: int) -> Split:
    """A split from what became of its shards."""
    stored = np.concatenate([image_table([]), *(shard.images for shard in written)])
    reencoded = sum((Counter(shard.reencoded) for shard in written), Counter[str]())
    return Split(
        shards=tuple(shard.shard for shard in written if shard.shard),
        class_counts=tuple(np.bincount(stored[:, 0], minlength=classes).tolist()),
        sizes=Sizes.of(stored[:, 1:]),
        skipped=tuple(skipped for shard in written for skipped in shard.skipped),
        reencoded=dict(sorted(reencoded.items())),
        scaled_down=sum(shard.scaled_down for shard in written),
    )


def check(split: Split, name: str, root: Path | str, strict: bool) -> None:
    """Raises InputError when a split has no image, or has skipped one although that is not allowed."""
    first = split.skipped[0] if split.skipped else None
    if not split.shards and not first:
        raise InputError(f"{root}: the {name} split is empty")
    if not split.shards and first:
        raise InputError(f"no image of the {name} split can be read ({first.file}: {first.reason})")
    if strict and first:
        count = f"{len(split.skipped)} such in {name}"
        raise InputError(f"--strict: {first.file} cannot be used ({first.reason}), {count}")


def dataset_of(listed: Listed, out: Path, options: ConvertOptions, splits: dict[str, Split]) -> Dataset:
    source = listed.source
    return Dataset(
        root=out,
        classes=source.classes,
        words={name: source.words[name] for name in source.classes if name in source.words},
        splits=splits,
        source=source.kind,
        seed=options.seed,
        size=options.size,
        quality=options.quality,
        max_pixels=options.max_pixels,
        plan=listed.plan,
        val_share=options.val_share,
        left_out=source.left_out,
        versions=library_versions(),
    )
