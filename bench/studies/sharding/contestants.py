"""Contestants that run in an interpreter of their own: `python -m bench.studies.sharding.contestants NAME ARGUMENTS`
prints one JSON object.

Nothing here imports torch before it is needed: its seconds would count as conversion.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from shards.convert import ConvertOptions, write_dataset
from shards.images import scaled_square

Pixels = NDArray[np.uint8]
Figures = dict[str, Any]
SIZE = 256
QUALITY = 95  # full chroma, the costlier choice
SHARD = 256 * 2**20  # bytes, of our tars and ShardWriter's alike


def convert(source: str, out: str, processes: str, size: str, shard_size: str) -> Figures:
    """Our command without its statistics step."""
    began = time.perf_counter()
    options = ConvertOptions(
        size=int(size) or None, quality=QUALITY, shard_size=int(shard_size), workers=int(processes)
    )
    dataset = write_dataset(Path(source), Path(out), options)
    return {"inside": time.perf_counter() - began, "images": dataset.split("train").samples}


def shardwriter(source: str, out: str) -> Figures:
    """webdataset's ShardWriter."""
    import webdataset  # imports torch

    began, count = time.perf_counter(), 0
    with webdataset.ShardWriter(f"{out}/train-%06d.tar", maxsize=SHARD, verbose=0) as sink:
        for label, folder in enumerate(sorted(Path(source, "train").iterdir())):
            for file in sorted(folder.iterdir()):
                about = {"wnid": folder.name, "file": file.name}
                sink.write({"__key__": file.stem, "jpg": file.read_bytes(), "cls": label, "json": about})
                count += 1
    seconds = time.perf_counter() - began
    return {"inside": seconds, "synced": seconds + sync(Path(out)), "images": count}


def bare(source: str, processes: str) -> Figures:
    """Decoding, scaling and encoding in several processes, and nothing else."""
    files, count = sorted(map(str, Path(source).glob("train/*/*"))), int(processes)
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        # Each times itself from its own first image, so that starting the interpreters does not count
        seconds = max(pool.map(bare_loop, [files[first::count] for first in range(count)]))
    return {"inside": seconds, "images": len(files)}


def bare_loop(files: list[str]) -> float:
    began = time.perf_counter()
    for file in files:
        encode(square(decode(Path(file).read_bytes())))
    return time.perf_counter() - began


def decode(data: bytes) -> Pixels:
    pixels: Pixels = simplejpeg.decode_jpeg(data, strict=False)
    return pixels


def encode(pixels: Pixels) -> bytes:
    jpeg: bytes = simplejpeg.encode_jpeg(pixels, QUALITY, "RGB", "444")
    return jpeg


def square(pixels: Pixels) -> Pixels:
    return np.asarray(scaled_square(Image.fromarray(pixels), SIZE))


def sync(folder: Path) -> float:
    """Brings a folder's files to the disk. Returns the seconds that it took."""
    began = time.perf_counter()
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - began


CONTESTANTS: dict[str, Callable[..., Figures]] = {job.__name__: job for job in (convert, shardwriter, bare)}


def command(contestant: Callable[..., Figures], *arguments: object) -> list[str]:
    """The command line that runs a contestant."""
    return [sys.executable, "-m", "bench.studies.sharding.contestants", contestant.__name__, *map(str, arguments)]


def run(contestant: Callable[..., Figures], images: int, *arguments: object) -> Figures:
    """What the contestant printed, and `whole`: its seconds with the interpreter's start.

    Raises: ClickException when it fails or leaves an image out, because its time could not be compared then.
    """
    began = time.perf_counter()
    ended = subprocess.run(command(contestant, *arguments), capture_output=True, text=True)
    whole = time.perf_counter() - began
    if ended.returncode:
        raise click.ClickException(f"{contestant.__name__} failed:\n{ended.stderr}")
    printed: Figures = json.loads(ended.stdout)
    if printed["images"] != images:
        raise click.ClickException(f"{contestant.__name__} wrote {printed['images']} images of {images}")
    return {"whole": whole, **printed}


if __name__ == "__main__":
    print(json.dumps(CONTESTANTS[sys.argv[1]](*sys.argv[2:])))
