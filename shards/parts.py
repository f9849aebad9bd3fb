"""A conversion by several commands that know nothing of each other, such as the tasks of a Slurm array.

Part 3 of 16 lists and plans what the complete conversion would, and writes the shards 2, 18, 34, ... of every split.
It keeps its list of images in a folder of its own, and when its shards are written it leaves a record; once every part
has, they are joined: `dataset.json` is made from the shards' done markers.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from shards.atomic import atomic_write, locked, make_output_folder
from shards.convert import (
    ConvertOptions,
    check,
    combined,
    dataset_of,
    list_images,
    refuse_among_images,
    runner,
    shard_jobs,
    shard_path,
    write_shards,
)
from shards.dataset import PLAN, Dataset, from_content
from shards.errors import InputError
from shards.output_folder import claim_plan, done_marker, finish, load_finished
from shards.sources.left_out import give_notice
from shards.sources.reported import without_train_images
from shards.wording import counted
from shards.write_shard import ShardJob, WrittenShard, read_marker


class Part(NamedTuple):
    """The `number`th, from 1, of so many parts."""

    number: int
    parts: int

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"

    def folder(self, out: Path) -> Path:
        return out / f".part-{self.number}-of-{self.parts}"

    def record(self, out: Path) -> Path:
        """The file that says that the part is written."""
        return out / f".part-{self.number}-of-{self.parts}.json"


def parse_part(text: str) -> Part:
    """From "3/16". Raises InputError."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--part {text}: write it like 3/16, the parts being 1/16 to 16/16")
    return Part(int(match[1]), int(match[2]))


def write_part(root: Path, out: Path, options: ConvertOptions, part: Part) -> str:
    """Writes a part's shards to the folder `out`, which other parts may be writing to, and returns a line that says so.
    Raises InputError as `shards.convert.write_dataset` does."""
    refuse_among_images(root, out)
    with _claimed(out, part):
        listed = list_images(root, options, part.folder(out), partial(load_finished, out))
        if isinstance(listed, Dataset):
            return f"{out} is complete already"
        claim_plan(out, listed.plan)
        _refuse_other_division(out, part)
        shards, written = {}, 0
        for name in listed.splits:
            jobs = shard_jobs(listed, out, name, options)
            own = jobs[part.number - 1 :: part.parts]
            _remove_half_written(own)
            split = combined(write_shards(runner(options), name, own), len(listed.source.classes))
            if options.strict and split.skipped:
                _remove(own)  # so that the image can be mended and the command repeated
                check(split, name, root, strict=True)
            shards[name], written = len(jobs), written + len(own)
        content = dataset_of(listed, out, options, {}).content() | {"shards": shards}
        with atomic_write(part.record(out)) as file:
            file.write(json.dumps(content).encode())
        join = f"when all {part.parts} are written, `python cli.py index {out}` joins them"
        return f"part {part}: {counted(written, 'shard')} in {out}; {join}"


@contextmanager
def _claimed(out: Path, part: Part) -> Iterator[None]:
    """Makes the folder and locks the part's own within it, which is removed at the end, or when nothing was begun; a
    complete conversion would lock them all."""
    is_new, own = not out.exists(), part.folder(out)
    make_output_folder(out)
    try:
        with locked(out, shared=True):
            own.mkdir(exist_ok=True)
            with locked(own):
                try:
                    yield
                except BaseException:
                    if not (out / PLAN).exists():
                        shutil.rmtree(own)
                    raise
                shutil.rmtree(own, ignore_errors=True)
    finally:
        if is_new and not any(out.iterdir()):
            out.rmdir()


def _refuse_other_division(out: Path, part: Part) -> None:
    """Raises InputError when the conversion was divided otherwise."""
    for other in _records(out):
        if other.parts != part.parts:
            raise InputError(f"--part {part}: {out} holds part {other}: give all parts the same number behind the /")


def _remove_half_written(jobs: list[ShardJob]) -> None:
    """What a kill has left of this part's shards. Others may be writing theirs."""
    for job in jobs:
        for leftover in job.tar.parent.glob(f".*{job.tar.stem}.*.tmp-*"):
            leftover.unlink(missing_ok=True)


def _remove(jobs: list[ShardJob]) -> None:
    for job in jobs:
        for path in (done_marker(job.tar), job.tar.with_suffix(".idx"), job.tar):
            path.unlink(missing_ok=True)


def _records(out: Path) -> list[Part]:
    """The parts that are written."""
    found = (re.fullmatch(r"\.part-(\d+)-of-(\d+)\.json", path.name) for path in out.glob(".part-*.json"))
    return sorted(Part(int(match[1]), int(match[2])) for match in found if match)


def holds_parts(out: Path) -> bool:
    """Whether a folder holds parts that are not joined."""
    return bool(_records(out))


def join_parts(out: Path, strict: bool = False) -> Dataset:
    """Completes the data set whose parts are all written. Raises InputError naming those that are not."""
    with locked(out):
        parts = _records(out)
        of = parts[0].parts
        missing = sorted({*range(1, of + 1)} - {part.number for part in parts})
        if missing:
            named = ", ".join(f"{number}/{of}" for number in missing[:20]) + (", ..." if len(missing) > 20 else "")
            remedy = "run the same `python cli.py shard` command with each as its --part"
            raise InputError(f"{out}: {counted(missing, 'part')} of {of} not written ({named}): {remedy}")
        content: dict[str, Any] = json.loads(parts[0].record(out).read_text())
        described = from_content(out, content)
        splits = {}
        for name, shards in content["shards"].items():
            written = [_written(out, name, number, described.plan, of) for number in range(shards)]
            splits[name] = combined(written, len(described.classes))
            check(splits[name], name, out, strict)
        give_notice(without_train_images(splits, described.classes), strict=False)
        described.splits.update(splits)
        described.save()
        finish(out)
        return described


def _written(out: Path, split: str, number: int, plan: str, parts: int) -> WrittenShard:
    tar = shard_path(out, split, number)
    written = read_marker(tar, plan)
    if written is None:
        again = f"run `python cli.py shard --part {Part(number % parts + 1, parts)}` again"
        raise InputError(f"{tar} or its .idx is missing or has changed since it was written: {again}")
    return written
