"""A run's folder: its `config.json`, its checkpoints, and whether it may take the run that is asked for.

Nothing here imports torch, so that a wrong folder is reported at once.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards.atomic import atomic_write
from shards.errors import InputError
from trainer.config import TrainConfig

CONFIG = "config.json"
BEST = "best.safetensors"


def write_config(run: Path, record: Mapping[str, Any]) -> None:
    with atomic_write(run / CONFIG) as file:
        file.write(json.dumps(record, indent=1).encode())


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


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a `--checkpoint` means: the file itself, or the newest in the folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"--checkpoint {path} does not exist: give a run's folder or a checkpoint file")
    newest = next(iter(list_resumable(path)), None)
    if newest is None:
        raise InputError(
            f"--checkpoint {path} holds no checkpoint-*.safetensors: give the --out folder of a training run"
        )
    return newest


def check_run_folder(config: TrainConfig, fingerprint: str, resume: bool) -> None:
    """Raises InputError unless `config.out` can take this run: it is free, or holds the same one and that is to be
    resumed. Args: fingerprint: the data set's."""
    path = config.out / CONFIG
    if path.exists():
        if not resume:
            raise InputError(
                f"{config.out} holds a run already: continue it with --resume auto, or choose another --out"
            )
        if differing := _differences(path, config, fingerprint):
            raise InputError(f"{config.out} holds a run that differs ({'; '.join(differing)}): choose another --out")
    elif list_resumable(config.out):
        raise InputError(f"{config.out} holds checkpoints of a run but not its {CONFIG}: choose another --out")
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        # A nameless file: processes of several machines may be trying the same folder
        with tempfile.TemporaryFile(dir=config.out):
            pass
    except OSError as error:
        raise InputError(f"--out {config.out} cannot be written: {error.strerror}") from None


def _differences(path: Path, config: TrainConfig, fingerprint: str) -> list[str]:
    """In what a recorded run differs from the one asked for, of the things in which it must not."""
    try:
        record = json.loads(path.read_text())
        before = TrainConfig.from_recorded(record, config.out).recorded()
        was = {"dataset": record["dataset"], **{name: before[name] for name in config.must_agree}}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a run's configuration ({error!r}): choose another --out") from None
    now = {"dataset": fingerprint, **{name: config.recorded()[name] for name in config.must_agree}}
    return [f"{name} was {was[name]}, now {now[name]}" for name in was if was[name] != now[name]]
