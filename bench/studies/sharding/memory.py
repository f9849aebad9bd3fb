"""Peak memory of converting N and 10 N images (`memory`), with all processes."""

import functools
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import simplejpeg

from bench.studies.sharding.contestants import command, convert
from bench.studies.sharding.rounds import Setup, alternate, compare

FEW, SMALL_SHARD = 10_000, 2**20  # images, and bytes of a tar, so that all processes have work even then
PROCESSES, LIMIT = 4, 1024  # MiB
SAMPLED_EVERY = 0.05  # seconds
IMAGENET = 1_281_167  # images of its train split


def write_tree(root: Path, count: int) -> None:
    """Class folders of small images."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    data = simplejpeg.encode_jpeg(pixels, 75)
    for number in range(count):
        path = root / "train" / f"class{number % 20:02d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def memory(setup: Setup) -> dict[str, Any]:
    roots = {count: setup.work / f"tree-{count}" for count in (FEW, 10 * FEW)}
    for count, root in roots.items():
        write_tree(root, count)

    def converting(count: int, out: Path) -> dict[str, float]:
        highest, shared = peak(command(convert, roots[count], out, PROCESSES, 0, SMALL_SHARD))
        return {f"{count} files, VmHWM": highest, f"{count} files, PSS": shared}

    print(f"memory: {PROCESSES} processes and their parent, target <= {LIMIT} MiB for any number of files")
    figures = alternate([functools.partial(converting, count) for count in roots], setup.rounds, setup.work)
    report: dict[str, Any] = {"processes": PROCESSES, "limit_mib": LIMIT, **compare(figures, "MiB")}
    few, many = (float(np.median(figures[f"{count} files, PSS"])) for count in roots)
    grown = (many - few) / (9 * FEW)
    report["grown_bytes_a_picture"] = grown * 2**20
    report["imagenet_mib"] = many + grown * (IMAGENET - 10 * FEW)
    print(
        f"  PSS grows by {grown * 2**20:.0f} bytes for each image; at that rate ImageNet's {IMAGENET:,} need ", end=""
    )
    print(f"{report['imagenet_mib']:,.0f} MiB")
    for root in roots.values():
        shutil.rmtree(root)
    return report


def peak(arguments: list[str]) -> tuple[float, float]:
    """A command's peak memory with all its descendants, MiB: the sum of each process's highest resident size, which
    counts shared pages once a process and so is the upper bound, and the highest sum of proportional sizes."""
    highest: dict[int, int] = {}
    most = 0
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None:
        total = 0
        for pid in family(process.pid):
            resident, shared = kib(pid, "status", "VmHWM:"), kib(pid, "smaps_rollup", "Pss:")
            highest[pid], total = max(resident, highest.get(pid, 0)), total + shared
        most = max(most, total)
        time.sleep(SAMPLED_EVERY)
    errors = process.communicate()[1].decode()
    if process.returncode:
        raise click.ClickException(f"{shlex.join(arguments)} failed:\n{errors}")
    if len(highest) <= PROCESSES:
        raise click.ClickException(f"only {len(highest)} processes of {PROCESSES} and their parent were seen")
    return sum(highest.values()) / 1024, most / 1024


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    pids = [pid]
    for parent in pids:  # which grows meanwhile
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                pids += map(int, children.read_text().split())
            except OSError:  # the thread has ended since
                continue
    return pids


def kib(pid: int, file: str, name: str) -> int:
    """A line of a process's file in /proc; 0 when the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)
