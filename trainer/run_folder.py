"""A run's folder: its `config.json`, its checkpoints, and whether it may take the run that is asked for.

Nothing here imports torch, so that a wrong folder is reported at once.
"""

import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.order import check_batch_size
from pipeline.samples import check_enough
from pipeline.stats import Stats
from shards.atomic import atomic_write, make_output_folder
from shards.dataset import FILE, Dataset
from shards.errors import InputError, reason
from shards.remote import locate
from trainer.config import PLATEAU, TrainConfig, check_towers

CONFIG = "config.json"
BEST = "best.safetensors"
BAD_SAMPLES = "bad-samples.json"
BEGIN = b'{"__metadata__":{"xxh3_128":"'  # of a checkpoint's header, which follows its length in 8 bytes


def write_config(run: Path, record: Mapping[str, Any]) -> None:
    with atomic_write(run / CONFIG) as file:
        file.write(json.dumps(record, indent=1).encode())


def check_is_run(folder: Path) -> None:
    """Raises InputError for a folder that no run was written to."""
    if not (folder / CONFIG).exists():
        raise InputError(f"{folder} is not a run: it holds no {CONFIG}: give the --out folder of `train`")


def bad_samples(run: Path) -> dict[str, str]:
    """Why each image that a run could not decode was skipped, by its name."""
    path = run / BAD_SAMPLES
    return dict(json.loads(path.read_text())) if path.exists() else {}


def add_bad_samples(run: Path, found: Mapping[str, str]) -> None:
    """Writes what is new to the run's `bad-samples.json`; there is none while all can be decoded."""
    known = bad_samples(run)
    if found.keys() - known.keys():
        with atomic_write(run / BAD_SAMPLES) as file:
            file.write(json.dumps(dict(sorted({**known, **found}.items())), indent=1).encode())


def recorded_options(run: Path) -> dict[str, Any]:
    """The options that the run in a folder records; {} where there is none that can be read."""
    try:
        record = json.loads((run / CONFIG).read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def list_checkpoints(run: Path) -> list[Path]:
    """A run's numbered checkpoints, the newest first."""
    return sorted(run.glob("checkpoint-*.safetensors"), reverse=True)


def list_resumable(run: Path) -> list[Path]:
    """The same with the best one in its place, after the numbered one of its step: a run that was killed, or whose disk
    became full, may have written it alone."""
    paths = list_checkpoints(run)
    best = run / BEST
    if not best.exists():
        return paths
    try:
        name = numbered(int(read_state(best)["step"]))
    except (OSError, ValueError, KeyError, TypeError):
        name = numbered(0)  # it cannot be read, and will be found out when nothing else is left
    return [*(path for path in paths if path.name >= name), best, *(path for path in paths if path.name < name)]


def numbered(step: int) -> str:
    """The name of a step's checkpoint."""
    return f"checkpoint-{step:08d}.safetensors"


def read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint holds beside its tensors. Raises OSError, ValueError, KeyError or TypeError if it has none."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, path.stat().st_size)))  # a damaged length may be of exabytes
    state: dict[str, Any] = json.loads(header["__metadata__"]["state"])
    return state


def check_begins(path: Path) -> None:
    """Raises InputError for a file that is not a checkpoint, by its first bytes."""
    try:
        with open(path, "rb") as file:
            begins = file.read(8 + len(BEGIN))[8:] == BEGIN
    except OSError as error:
        raise InputError(f"{path} is not a readable checkpoint ({error.strerror})") from None
    if not begins:
        remedy = "give a run's folder, or a checkpoint-*.safetensors in it"
        raise InputError(f"{path} is not a readable checkpoint (it does not begin as `train` writes them): {remedy}")


def find_checkpoint(path: Path, which: str = "newest", option: str = "--checkpoint") -> Path:
    """The checkpoint that a `--checkpoint` means: the file itself, or the newest or best in the folder.

    Args: which: "newest", or "best", by validation top-1 error; option: for messages. Raises InputError when there is
    none.
    """
    if path.is_file():
        check_begins(path)
        return path
    if not path.is_dir():
        raise InputError(f"{option} {path} does not exist: give a run's folder or a checkpoint file")
    if which == "best" and (path / BEST).exists():
        return path / BEST
    newest = next(iter(list_resumable(path)), None)
    if newest is not None and which == "best":
        raise InputError(f"{option} {path} holds no {BEST}, for it was not evaluated: give --which newest")
    if newest is None:
        raise InputError(f"{option} {path} holds no checkpoint-*.safetensors: give the --out folder of a training run")
    return newest


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """What `config.json` and the checkpoints hold of a run's data set: what identifies it, and, to say in words what
    another one has otherwise, what it holds and how and when it was made."""
    path, splits = dataset.root / FILE, dataset.splits.items()
    return {
        "dataset": dataset.fingerprint,
        "classes": list(dataset.classes),
        "words": dataset.words,
        "data": dataset.where,  # a URL in its plain form
        "dataset_facts": {
            "samples": {name: split.samples for name, split in splits},
            "quarantined": {name: len(split.quarantined) for name, split in splits},
            **{name: getattr(dataset, name) for name in ("source", "size", "quality", "seed")},
            "date": datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", "seconds"),
        },
    }


def check_start(config: TrainConfig) -> Dataset:
    """A run's data set, as the run began with it. Raises InputError for what can be known before torch and DALI are
    imported, which takes seconds, and before any process is started."""
    dataset = Dataset.load(locate(config.data, config.cache, config.cache_size))
    if config.lr_steps == PLATEAU and "val" not in dataset.splits:
        raise InputError(
            f"--lr-steps {PLATEAU}, but {dataset.where} has no val split to see one on: name epochs instead"
        )
    check_towers(1 if config.gpus is None else config.gpus, config.parallel)
    check_batch_size(config.batch_size, config.gpus or 1)
    for split in ("train", *dataset.splits.keys() & {"val"}):
        dataset.tars(split)
    record = check_run_folder(config, dataset, resumes(config))
    dataset = as_begun(dataset, record)
    check_enough(dataset, "train", config.batch_size, config.gpus or 1)
    if record is None:
        Stats.load(dataset.root)
        if config.init:
            find_checkpoint(config.init, option="--init")
    return dataset


def resumes(config: TrainConfig) -> bool:
    """Whether a run in the folder is to be continued, as by a worker that torchrun starts again."""
    return config.resume == "auto" or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def check_run_folder(config: TrainConfig, dataset: Dataset, resume: bool) -> dict[str, Any] | None:
    """The record of the run that `config.out` holds, None when it is free. Raises InputError unless it can take this
    run: it is free, or holds the same one and that is to be resumed."""
    path, record = config.out / CONFIG, None
    if path.exists():
        if not resume:
            raise InputError(
                f"{config.out} holds a run already: continue it with --resume auto, or choose another --out"
            )
        record = _checked_record(path, config, dataset)
    elif list_resumable(config.out):
        raise InputError(f"{config.out} holds checkpoints of a run but not its {CONFIG}: choose another --out")
    make_output_folder(config.out)
    return record


def as_begun(dataset: Dataset, record: Mapping[str, Any] | None) -> Dataset:
    """The data set as a run saw it that began with this record: samples that were quarantined since are masked. Where
    it has become another one, it is returned as it is."""
    if record is None or dataset.fingerprint == record["dataset"]:
        return dataset
    before = dataset.as_quarantined(record.get("dataset_facts", {}).get("quarantined", {}))
    return before if before.fingerprint == record["dataset"] else dataset


def _checked_record(path: Path, config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """A run's record. Raises InputError for one that differs from the run asked for, where it must not."""
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        before = TrainConfig.from_recorded(record, config.out).recorded()
        dataset = as_begun(dataset, record)
        changes = [] if dataset.fingerprint == record["dataset"] else _changes(record, describe_data(dataset))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a run's configuration ({reason(error)}): choose another --out") from None
    now = config.recorded()
    if differing := [
        f"{name} was {before[name]}, now {now[name]}"
        for name in config.must_agree
        if now[name] is not None and before[name] != now[name]  # None: as the run has it
    ]:
        raise InputError(f"{config.out} holds a run that differs ({'; '.join(differing)}): choose another --out")
    if changes:
        remedy = "give it the one that it began with, or choose another --out"
        raise InputError(f"{config.out} holds a run of another data set ({'; '.join(changes)}): {remedy}")
    if dataset.remote and any(dataset.masked.values()):
        remedy = "copy it into a folder, and give that as --data"
        raise InputError(f"samples of {dataset.where} were quarantined since {config.out} began: {remedy}")
    return record


def _changes(record: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, what a data set has otherwise than the one that a run recorded."""
    was, classes, facts = record["classes"], now["classes"], record.get("dataset_facts", {})
    words = []
    if len(was) != len(classes):
        words.append(f"it had {len(was)} classes, now {len(classes)}")
    elif was != classes:
        number = next(number for number, name in enumerate(was) if name != classes[number])
        words.append(f"class {number} was {was[number]}, now {classes[number]}")
    for name, value in now["dataset_facts"].items():
        before = facts.get(name)
        if isinstance(before, dict):  # a number a split
            numbers = {split: (before.get(split, 0), value.get(split, 0)) for split in {**before, **value}}
            words += [f"{split} had {a} {name}, now {b}" for split, (a, b) in numbers.items() if a != b]
        elif name in facts and before != value and name != "date":
            words.append(f"its {name} was {before}, now {value}")
    if not words:
        words.append("it holds other images, or the same in other bytes or another order")
    if record["data"] != now["data"]:
        words.append(f"it was in {record['data']}, now in {now['data']}")
    elif "date" in facts:
        words.append(f"its {FILE} was of {facts['date']}, now of {now['dataset_facts']['date']}")
    return words
