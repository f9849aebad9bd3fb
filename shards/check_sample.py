"""One sample of a finished tar, read through: what it holds and what is wrong with it."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import xxhash

from shards import images, tars
from shards.errors import InputError, Unreadable
from shards.sources.webdataset import class_name, read_label


class Found(NamedTuple):
    """What a sample holds: its class number, its image's width and height, the class that it tells by name; what is
    wrong with it, and what its decoder only complains of (None for nothing)."""

    label: int
    width: int
    height: int
    told: str | None
    wrong: str | None
    complaint: str | None


def check_sample(file: int, where: str, sample: tars.TarSample, decode: bool) -> Found:
    """Reads a sample's parts from an open tar. With `decode` its image is decoded wholly, else its header is read and
    its end looked for. An image whose checksum is known (ours tell it) is held against that."""
    label, width, height, told, complaint = -1, 0, 0, None, None

    def found(wrong: str | None) -> Found:
        return Found(label, width, height, told, wrong, complaint)

    if sample.image is None:
        return found(f"it has no image ({', '.join(tars.IMAGE_EXTENSIONS[:4])})")
    if "cls" not in sample.parts:
        return found("it has no .cls")
    try:
        label = read_label(file, where, sample)
    except InputError as error:
        return found(str(error).partition(": ")[2])
    about = tars.description(file, sample)
    told = class_name(sample, about)
    if sample.image.size > images.MAX_BYTES:
        return found(f"its image has {sample.image.size} bytes, more than {images.MAX_BYTES}")
    data = os.pread(file, sample.image.size, sample.image.offset)
    checksum = about.get("xxh3")
    if isinstance(checksum, str) and checksum != xxhash.xxh3_64_hexdigest(data):
        return found("its bytes are not those that were written (xxh3)")
    try:
        width, height, kind = images.read_header(data)
    except Unreadable as error:
        return found(str(error))
    if kind in images.UNDECODABLE:
        return found(f"DALI decodes no {kind}: `python cli.py shard` stores it as another JPEG, if it can be read")
    wrong = None
    if decode:
        wrong, complaint = images.check_image(data)
    return found(wrong)


def sha256(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
