"""What figures were measured on: the processor, its cores and memory, the GPU, and the versions that matter."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
from nvidia import dali

from shards.processes import cores
from trainer.model_parallel import unsharded_layout
from trainer.rank import RankContext

PROJECT = Path(__file__).parents[2]


def describe_machine(context: RankContext) -> dict[str, Any]:
    """The machine, as reports record it: {"cpu", "cores", "memory_gib", "device", "gpus", "python", "torch", "dali",
    "commit"} and, with a GPU, "gpu", its name."""
    described = {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": memory_gib(),
        "device": context.device.type,
        "gpus": context.world_size,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "dali": dali.__version__,
        "commit": commit(),
    }
    if context.device_id is not None:
        described["gpu"] = torch.cuda.get_device_name(context.device)
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


def cpu_name() -> str:
    """The processor's model, as the kernel names it."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def memory_gib() -> float:
    """The machine's memory, to a tenth of a GiB."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def cpu_context() -> RankContext:
    """One process alone on this machine's cores, without a GPU."""
    return RankContext(torch.device("cpu"), 0, 1, unsharded_layout(), cores())
