"""Tars are read as the standard library reads them, in constant memory."""

import io
import os
import subprocess
import sys
import tarfile

import pytest

from shards import tars
from tests.conftest import PROJECT
from tests.support.image_kinds import JPEG
from tests.support.source_layouts import make_tar
from tests.support.tar_headers import binary, member, pax, record


def members_of(content: bytes) -> list[tars.Member]:
    return list(tars.members(content, "a.tar"))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_are_read_as_the_standard_library_reads_them(format):
    content = io.BytesIO()
    names = ["a.jpg", "b c.JPEG", "./d.jpg", "x/y/z.cls", "d" * 90 + "/" + "e" * 90, "f" * 100, "empty"]
    if format != tarfile.USTAR_FORMAT:
        names += [
            "g" * 300,
            "h/" * 300 + "i.jpg",
            "große Katze.jpg",
            "猫" * 60,
            "j" * 101,
        ]
    with tarfile.open(fileobj=content, mode="w", format=format, pax_headers={"comment": "global"}) as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 0 if name == "empty" else 511 + number % 3
            info.mtime = number + 0.5 if format == tarfile.PAX_FORMAT else number  # half a second takes an extra header
            tar.addfile(info, io.BytesIO(bytes(info.size)))
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
                other = tarfile.TarInfo(f"{name[:50]}.other")
                other.type, other.linkname = kind, names[-1] if kind != tarfile.SYMTYPE else "k" * 100
                tar.addfile(other)
    content.seek(0)
    with tarfile.open(fileobj=content) as tar:
        known = [(member.name, member.offset_data, member.size) for member in tar if member.isreg()]
    assert [name for name, *_ in known] == names
    assert members_of(content.getvalue()) == known


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_more_than_8_gib_are_read(tmp_path, format):
    big = tarfile.TarInfo("big.jpg")
    big.size = 9 * 2**30
    path = tmp_path / "train-0.tar"
    with open(path, "wb") as file:  # a file of holes
        file.write(big.tobuf(format))
        begin = file.tell()
        file.seek(begin + big.size)
        file.write(make_tar({"small.jpg": JPEG}))
    with tars.opened(path) as file:
        in_tar = list(tars.members(file, "a.tar"))
    assert in_tar == [("big.jpg", begin, big.size), ("small.jpg", begin + big.size + 512, len(JPEG))]


def test_unusual_headers_are_understood():
    def one(content):
        return members_of(content + bytes(1024))

    assert one(member("a.jpg", binary(5), data=b"hello")) == [("a.jpg", 512, 5)]
    assert one(member("a.jpg", b"    5 ", data=b"hello")) == [("a.jpg", 512, 5)]
    assert one(member("a.jpg", b"5\0garbage", b"\0", data=b"hello")) == [("a.jpg", 512, 5)]
    assert one(member("a.jpg", b"5", b"7", data=b"hello")) == [("a.jpg", 512, 5)]
    gnu = bytearray(member("a.jpg", b"5", data=b"hello"))
    gnu[257:265], gnu[345:356] = b"ustar  \0", b"00000000012"  # GNU has a time where others have a folder
    gnu[148:154] = b"%06o" % (sum(gnu[:148]) + 8 * 32 + sum(gnu[156:512]))
    assert one(bytes(gnu)) == [("a.jpg", 512, 5)]
    assert one(pax(record(b"size", b"5") + record(b"path", b"b=c d")) + member("a.jpg", b"0", data=b"hello")) == [
        ("b=c d", 1024 + 512, 5)
    ]
    # What is not a record ends the records and changes none before it
    for broken in (
        b"",
        b"0 path=b\n",
        b"99 path=b\n",
        b"path=b\n",
        b"5",
        b"6 path=b\n",
        b"9" * 5000 + b" path=b\n",
        b"\0" * 99,
    ):
        assert one(pax(record(b"path", b"b") + broken) + member("a.jpg", b"0"))[0].name == "b"
    for size in (b"-5", b"9" * 5000, b"", b"five"):
        assert one(pax(record(b"size", size)) + member("a.jpg", b"0"))[0].size == 0


CROWD = """
import resource, sys
from pathlib import Path
from shards.describe import describe_tar

used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
described = describe_tar(Path(sys.argv[1]))
print(described.shard.samples, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used)
"""


def test_a_million_empty_members_take_no_memory(tmp_path):
    thousand = b"".join(tars.header(b"%d.jpg" % number, 0) for number in range(1000))
    with open(tmp_path / "train-0.tar", "wb") as file:
        for _ in range(1000):
            file.write(thousand)
        file.write(bytes(1024))
    command = [sys.executable, "-c", CROWD, str(tmp_path / "train-0.tar")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    samples, grown = map(int, done.stdout.split())
    os.truncate(tmp_path / "train-0.tar", 0)
    assert samples == 0 and grown < 20_000  # KiB
