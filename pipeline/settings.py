"""How DALI is to run: threads, queue, decoder. None of it changes an image; all of it changes the speed.

`throughput-bench --tune` tries settings on the machine at hand and keeps the fastest in a file of the user's cache
folder, an entry for each kind of machine and of shards; `train`, `eval` and `throughput-bench` take them from there.
What the command line says goes before what was tuned, and that before DALI's own defaults.
"""

import json
import os
import platform
from pathlib import Path
from typing import NamedTuple

import torch

from shards.atomic import atomic_write
from shards.errors import InputError


class Settings(NamedTuple):
    """threads: CPU threads of one rank's pipeline; prefetch: batches that DALI works ahead; affinity: threads are bound
    to cores; decode_on: "device", where the model is, or "cpu", wherever that is; hw_decoder_load: the share of JPEGs
    that a GPU's hardware decoder takes, where there is one."""

    threads: int
    prefetch: int = 2
    affinity: bool = False
    decode_on: str = "device"
    hw_decoder_load: float = 0.65


def choose_settings(chosen: dict, tuned: dict, threads: int) -> Settings:
    """`chosen` on the command line (None: not), else `tuned`, else the defaults with so many threads."""
    said = {name: value for name, value in chosen.items() if value is not None}
    return Settings(**{"threads": threads, **tuned, **said})


def tuning_key(device_id: int | None, cores: int, stored: int | None) -> str:
    """The name under which a tuning is kept: the device and the cores of a rank, and the images' size."""
    if device_id is None:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        device = next(names, platform.machine())
    else:
        device = torch.cuda.get_device_name(device_id)
    return f"{device}, {cores} cores a rank, {f'images of {stored} x {stored}' if stored else 'originals'}"


def tuned_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alexnet-dali" / "tuned.json"


def read_tuned(place: str) -> dict:
    """What was tuned for a place, by `Settings`' names, if anything. Raises InputError for a broken file."""
    path = tuned_file()
    try:
        kept = json.loads(path.read_text()).get(place, {})
        Settings(**{"threads": 1, **kept})
        return kept
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no file that --tune wrote ({error}): remove it, and tune again") from None


def write_tuned(place: str, found: Settings) -> Path:
    """Keeps a tuning, beside those of other places."""
    path = tuned_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text()) if path.exists() else {}
    with atomic_write(path) as file:
        file.write(json.dumps({**kept, place: found._asdict()}, indent=1).encode() + b"\n")
    return path
