"""Our command beside GNU tar and webdataset's ShardWriter (`keep`), and beside a bare loop (`size256`)."""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.studies.sharding.contestants import SHARD, SIZE, bare, convert, run, shardwriter, sync
from bench.studies.sharding.rounds import Contestant, Pair, Setup, alternate, compare, sample_images

SHM = Path("/dev/shm")


def write_tree(images: Path, copies: int, root: Path) -> tuple[int, int]:
    """Class folders with every image `copies` times, in the page cache. Returns the number of files and of bytes."""
    count = length = 0
    for name, data in sample_images(images):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in range(copies):
            path.with_name(f"{path.stem}_{number}{path.suffix}").write_bytes(data)
            count, length = count + 1, length + len(data)
    for path in root.glob("train/*/*"):
        path.read_bytes()
    return count, length


def our_command(setup: Setup, count: int, root: Path, size: int) -> Contestant:
    """Our command as a contestant; size 0 keeps the images' bytes."""

    def contestant(out: Path) -> dict[str, float]:
        figures = run(convert, count, root, out, setup.processes, size, SHARD)
        return {"ours": figures["whole"], "ours, inside": figures["inside"]}

    return contestant


def keep(setup: Setup) -> dict[str, Any]:
    root = setup.work / "tree"
    count, length = write_tree(setup.images, setup.copies, root)

    def tar(out: Path) -> dict[str, float]:
        began = time.perf_counter()
        subprocess.run(["tar", "cf", out / "all.tar", "-C", root, "train"], check=True)
        seconds = time.perf_counter() - began
        return {"tar": seconds, "tar + fsync": seconds + sync(out)}

    def writer(out: Path) -> dict[str, float]:
        # Its interpreter waits for torch, which is not ShardWriter's work: its loop alone is compared
        figures = run(shardwriter, count, root, out)
        return {"ShardWriter": figures["inside"], "ShardWriter + fsync": figures["synced"]}

    pairs: list[Pair] = [("ours", other, ">= 1.0, try for 1.5") for other in ("tar", "tar + fsync")]
    pairs += [("ours", other, ">= 5") for other in ("ShardWriter", "ShardWriter + fsync")]
    places: dict[str, Any] = {}
    for name, place in (("disk", setup.work), ("tmpfs", SHM)):
        print(f"keep, to {name}: {count:,} files, {length / 1e6:,.0f} MB, {setup.processes} processes")
        if name == "tmpfs" and not fits_in_memory(2 * length):
            print("  skipped: /dev/shm or the memory is too small")
            continue
        with tempfile.TemporaryDirectory(prefix="sharding-", dir=place) as folder:
            seconds = alternate([our_command(setup, count, root, 0), tar, writer], setup.rounds, Path(folder))
        kind = subprocess.run(["stat", "-f", "-c", "%T", place], capture_output=True, text=True).stdout.strip()
        places[name] = {"filesystem": kind, **compare(seconds, "s", pairs, count)}
    shutil.rmtree(root)
    return {"files": count, "bytes": length, "processes": setup.processes, "places": places}


def fits_in_memory(length: int) -> bool:
    """Whether `length` bytes fit into /dev/shm, and into the available memory."""
    if not SHM.is_dir():
        return False
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    available = next(int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:")
    return min(shutil.disk_usage(SHM).free, available) > length


def size256(setup: Setup) -> dict[str, Any]:
    root = setup.work / "tree"
    count, length = write_tree(setup.images, setup.copies_256, root)

    def loop(_: Path) -> dict[str, float]:
        figures = run(bare, count, root, setup.processes)
        return {"bare loop": figures["inside"], "bare loop, whole": figures["whole"]}

    print(f"size256: {count:,} files, {length / 1e6:,.0f} MB, {setup.processes} processes")
    pairs: list[Pair] = [("ours", other, ">= 0.8, then 0.9") for other in ("bare loop", "bare loop, whole")]
    seconds = alternate([our_command(setup, count, root, SIZE), loop], setup.rounds, setup.work)
    compared = compare(seconds, "s", pairs, count)
    shutil.rmtree(root)
    return {"files": count, "bytes": length, "processes": setup.processes, **compared}
