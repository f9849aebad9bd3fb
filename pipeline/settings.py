"""How DALI runs: threads, queue, decoder. None of it changes an image; all of it changes the speed.

`throughput-bench --tune` tries settings on the machine at hand and keeps the fastest in a file of the user's cache
folder, an entry for each kind of machine and of shards; `train`, `eval` and `throughput-bench` take them from there.
The command line overrides what was tuned, and that overrides DALI's own defaults.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from shards.atomic import atomic_write
from shards.cache import user_cache
from shards.console import notice
from shards.errors import InputError
from shards.processes import cpu_name


class Settings(NamedTuple):
    """threads: CPU threads of one rank's pipelines together; prefetch: batches that DALI works ahead; affinity: threads
    are bound to cores; decode_on: "device", the model's own, or "cpu"; hw_decoder_load: the fraction of JPEGs that a
    GPU's hardware decoder takes, where there is one; pipelines: that share each batch; operator_concurrency: which of
    DALI's operators run at the same time where a GPU decodes, a name of its OperatorConcurrency in small letters."""

    threads: int
    prefetch: int = 2
    affinity: bool = False
    decode_on: str = "device"
    hw_decoder_load: float = 0.65
    pipelines: int = 1
    operator_concurrency: str = "full"


TUNED = "tuned.json"  # in the user's cache folder
# Where a GPU decodes: measured while a model trained beside it (docs/data-path-speed.md)
ON_GPU = {"pipelines": 3}
# What CUDA and nvImageCodec read when they start. More queues to the GPU, and decoding in several streams, let the
# many small kernels of decoding run between the model's long ones
ENVIRONMENT = {"CUDA_DEVICE_MAX_CONNECTIONS": "32", "NVIMGCODEC_DEFAULT_NUM_CUDA_STREAMS": "4"}


def prepare_environment() -> None:
    """Sets ENVIRONMENT, except what the user has set. To be called before anything asks for a CUDA device."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def choose_settings(chosen: Mapping[str, Any], tuned: Mapping[str, Any], threads: int, gpu: bool = False) -> Settings:
    """Each setting as `chosen` on the command line (None: not chosen), else as `tuned`, else its default; `threads` is
    the default number of threads, `gpu` whether the model's device is one."""
    given = {name: value for name, value in chosen.items() if value is not None}
    on_gpu = ON_GPU if gpu and given.get("decode_on", tuned.get("decode_on")) != "cpu" else {}
    return Settings(**{"threads": threads, **on_gpu, **tuned, **given})


def tuning_key(device_id: int | None, cores: int, stored: int | None) -> str:
    """The key under which tuned settings are kept: a rank's device and cores, and the images' size."""
    device = cpu_name() if device_id is None else torch.cuda.get_device_name(device_id)
    return f"{device}, {cores} cores a rank, {f'images of {stored} x {stored}' if stored else 'originals'}"


def read_tuned(key: str, quiet: bool = False) -> dict[str, Any]:
    """The tuned settings under a `tuning_key`, by name; {} without any. A file that cannot be opened is passed over,
    which is said unless `quiet`. Raises InputError for a broken one."""
    try:
        path = user_cache() / TUNED
        content = path.read_text()
    except (FileNotFoundError, InputError):
        return {}
    except OSError as error:
        if not quiet:
            notice(f"What --tune may have found is not used: {path}: {error.strerror}")
        return {}
    try:
        kept: dict[str, Any] = json.loads(content).get(key, {})
        Settings(**{"threads": 1, **kept})
        return kept
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a file that --tune wrote ({error}): remove it, and tune again") from None


def write_tuned(key: str, tuned: Settings) -> Path:
    """Keeps tuned settings under a `tuning_key`, beside those of other keys. Returns the file. Raises InputError when
    it cannot be written."""
    path = user_cache() / TUNED
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = json.loads(path.read_text()) if path.exists() else {}
    except OSError as error:
        raise InputError(f"the settings are not kept, {path} cannot be written: {error.strerror}") from None
    with atomic_write(path) as file:
        file.write(json.dumps({**kept, key: tuned._asdict()}, indent=1).encode() + b"\n")
    return path
