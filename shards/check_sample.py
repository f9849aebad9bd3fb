"""One sample of a finished tar, checked: what it holds and what is wrong with it."""

import os
from typing import NamedTuple

import xxhash

from shards import images, tars
from shards.errors import InputError, Unreadable
from shards.sources.sample_labels import read_label, tells


class SampleCheck(NamedTuple):
    """What a sample holds: its class number, its image's width and height, the name that it gives its class, how that
    contradicts itself; what is wrong with it, and what its decoder only warns of (None for nothing)."""

    label: int = -1
    width: int = 0
    height: int = 0
    class_name: str | None = None
    contradiction: str | None = None
    problem: str | None = None
    warning: str | None = None


def check_sample(file: int, where: str, sample: tars.TarSample, decode: bool) -> SampleCheck:
    """Reads a sample's parts from an open tar. With `decode` its image is decoded completely, otherwise its header is
    read and its end looked for. An image whose checksum is known (our tars have it) is compared with that."""
    if (fault := sample.fault) or sample.image is None:
        elsewhere = sample.image is not None and sample.part("cls") is None
        remedy = " (`python cli.py shard --label-key` takes labels from elsewhere)" if elsewhere else ""
        return SampleCheck(problem=f"it has {fault}{remedy}")
    try:
        label = read_label(file, where, sample)
    except InputError as error:
        return SampleCheck(problem=str(error).partition(": ")[2])
    description = tars.description(file, sample)
    name, contradiction = tells(sample, description, label)
    labeled = SampleCheck(label, class_name=name, contradiction=contradiction)
    if sample.image.size > images.MAX_BYTES:
        return labeled._replace(problem=f"its image has {sample.image.size} bytes, more than {images.MAX_BYTES}")
    data = os.pread(file, sample.image.size, sample.image.offset)
    checksum = description.get("xxh3")
    if isinstance(checksum, str) and checksum != xxhash.xxh3_64_hexdigest(data):
        return labeled._replace(problem="its bytes are not those that were written (xxh3)")
    try:
        width, height, undecodable = images.read_header(data)
    except Unreadable as error:
        return labeled._replace(problem=str(error))
    check = labeled._replace(width=width, height=height)
    if undecodable:
        return check._replace(problem=f"{undecodable}: `python cli.py shard` stores it as a JPEG, if it can be read")
    if decode:
        problem, warning = images.check_image(data)
        return check._replace(problem=problem, warning=warning)
    return check
