"""The machine that figures were measured on, but for DALI: the processor, its cores and memory, the GPU, torch."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from shards.processes import cores, cpu_name

PROJECT = Path(__file__).parents[2]


def describe_host(device: torch.device, gpus: int = 1) -> dict[str, Any]:
    """{"cpu", "cores", "memory_gib", "device", "gpus", "python", "torch", "commit"} and, with a GPU, "gpu", its name.
    Args: gpus: how many devices were used."""
    described = {
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_gib": memory_gib(),
        "device": device.type,
        "gpus": gpus,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "commit": commit(),
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def commit() -> str | None:
    """The commit that is checked out here, with "-dirty" where files differ from it; None outside a checkout."""
    if not (PROJECT / ".git").exists():
        return None
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def memory_gib() -> float:
    """The machine's memory, to a tenth of a GiB."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
