"""Tar headers that the standard library would not write."""

import os
from pathlib import Path

from shards import tars
from tests.support.image_kinds import encoded, noise
from tests.support.source_layouts import make_tar, write


def member(name: str, size: bytes, kind: bytes = b"0", data: bytes = b"", link: bytes = b"") -> bytes:
    """A tar's member whose header declares `size`, in whatever form."""
    block = bytearray(tars.header(os.fsencode(name), 0))
    block[124:136], block[156:157], block[148:156] = size.ljust(12, b"\0"), kind, b" " * 8
    block[157 : 157 + len(link)] = link
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block) + data.ljust(tars.padded(len(data)), b"\0")


def pax(records: bytes) -> bytes:
    """An extended header of these records."""
    return member("pax", b"%011o" % len(records), b"x", records)


def record(key: bytes, value: bytes) -> bytes:
    """A line of an extended header."""
    length = len(key) + len(value) + 3
    length += len(str(length + len(str(length))))
    return b"%d %s=%s\n" % (length, key, value)


def binary(number: int) -> bytes:
    """GNU's form of a size that is too large for octal digits."""
    return b"\x80" + number.to_bytes(11, "big")


def write_evil_tar(tar: Path, elsewhere: Path) -> list[bytes]:
    """Writes a tar of links and devices that declare data they do not have, and of names that lead out of its folder.
    Returns the images in it."""
    jpegs = [encoded(noise(size=(16, 16 + number))) for number in range(5)]
    stems = ["good", "../../evil", str(elsewhere / "evil"), "a/../../../evil_2", "C:\\evil_3"]
    secret = os.fsencode(elsewhere / "secret.jpg")
    links = b"".join(member(f"link_{kind}.jpg", b"%o" % 5000, b"%d" % kind, link=secret) for kind in range(1, 7))
    files = {
        f"{stem}.{ext}": data
        for stem, jpeg in zip(stems, jpegs, strict=True)
        for ext, data in (("jpg", jpeg), ("cls", b"0"))
    }
    write(tar, links + make_tar(files))
    return jpegs
