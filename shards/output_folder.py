"""The folder that a conversion writes to: locked, continued after a kill, refused when it holds another data set.

An unfinished conversion has hidden files there: its plan (which conversion it is), its catalog (the list of images),
the images extracted from parquet files, and a done marker for each finished shard; what `shard --part` needs is told in
`shards.parts`.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.atomic import atomic_write, locked, make_output_folder
from shards.dataset import FILE, PLAN, Dataset
from shards.errors import InputError
from shards.hidden import visible
from shards.progress import Progress

CATALOG, SCRATCH, PARTS = ".catalog", ".scratch", ".part-*"
COPY = ".source"  # the folder of a copy of what is at a URL: `shards.sources.copy_url`


def done_marker(tar: Path) -> Path:
    """The file that says that a tar and its index are finished."""
    return tar.with_name(f".{tar.stem}.done")


@contextmanager
def claimed(out: Path, option: str = "--out", named: str = "") -> Iterator[None]:
    """Creates and locks the folder of an option, and removes it at the end if it is new and still empty. Args: named:
    as of `locked`."""
    is_new = not out.exists()
    make_output_folder(out, option)
    try:
        with locked(out, named=named):
            try:
                yield
            finally:
                if not (out / PLAN).exists():  # nothing was begun: it was finished already, or refused
                    clear(out)
    finally:
        if is_new and not any(out.iterdir()):
            out.rmdir()


def load_finished(out: Path, plan: str) -> Dataset | None:
    """The data set of this plan if it is finished. Raises InputError when there is another."""
    if not (out / FILE).exists():
        return None
    dataset = Dataset.load(out)
    if dataset.plan != plan:
        raise InputError(f"{out} holds another data set (other images or options): choose another --out or empty it")
    for split in dataset.splits:
        dataset.tars(split)
    finish(out)  # what a kill at the very end may have left
    return dataset


def begin(out: Path, plan: str) -> None:
    """Marks the folder as this plan's, and removes the half-written files of a killed run."""
    for leftover in out.glob(".*.tmp-*"):
        leftover.unlink()
    claim_plan(out, plan)


def claim_plan(out: Path, plan: str) -> None:
    """Marks the folder as this plan's, where others may be doing so at the same time."""
    # The statistics (.npz) of another data set would be taken for this one's. They and tars are looked for first, since
    # those that another part of this conversion writes come after its plan
    others = visible(out, "*.tar") or any(out.glob("*.npz"))
    begun = (out / PLAN).read_text() if (out / PLAN).exists() else None
    if begun != plan and (begun or others):
        raise InputError(f"{out} holds parts of another data set: choose another --out or empty it")
    if begun is None:
        with atomic_write(out / PLAN) as file:
            file.write(plan.encode())


def discard(out: Path, splits: Iterable[str]) -> None:
    """Removes what an unfinished conversion has written to a folder that it had claimed."""
    for name in splits:
        for path in [*out.glob(f"{name}-[0-9]*.tar"), *out.glob(f"{name}-[0-9]*.idx")]:
            path.unlink()
    clear(out)


def finish(out: Path) -> None:
    """Removes the hidden files of a conversion that is complete, the copy of its source too."""
    remove_copy(out)
    clear(out)


def remove_copy(folder: Path) -> None:
    """Removes the copy of a source at a URL, if there is one: as many files as it has images, perhaps."""
    if not (folder / COPY).exists():
        return
    with Progress("remove the copy", None, unit="files") as progress:
        for within, _, names in os.walk(folder / COPY):
            for name in names:
                os.unlink(os.path.join(within, name))
            progress.advance(len(names))
    shutil.rmtree(folder / COPY)


def clear(out: Path) -> None:
    """Removes the hidden files of a conversion but for the copy of its source, which the next one need not fetch again.
    The plan goes last: it says whose the others are."""
    for folder in [out / SCRATCH, *(path for path in out.glob(PARTS) if path.is_dir())]:
        shutil.rmtree(folder, ignore_errors=True)
    for path in [*out.glob(PARTS), *out.glob(".*.tmp-*"), *out.glob(".*.done"), out / CATALOG, out / PLAN]:
        path.unlink(missing_ok=True)
