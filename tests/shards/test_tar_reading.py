"""Tars are read as the standard library reads them, in constant memory."""

import bz2
import gzip
import io
import lzma
import os
import re
import subprocess
import sys
import tarfile

import pytest

from shards import tars
from shards.errors import InputError
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


A, B = make_tar({"a.jpg": JPEG}), make_tar({"b.jpg": JPEG, "c.jpg": JPEG})
CONTENT = tars.BLOCK + tars.padded(len(JPEG))  # bytes of a member


@pytest.mark.parametrize(
    "content",
    [
        A + B,
        A + bytes(300 * 512) + B + bytes(512 * 7),
        A[:CONTENT] + bytes(512) + B,
        A[:CONTENT] + bytes(512) + B[:CONTENT] + bytes(200_000) + bytes(-200_000 % 512) + B[CONTENT:],
        A[: CONTENT + 512] + B + bytes(100),
    ],
    ids=["two tars", "much padding", "one empty block", "holes", "an end that is cut"],
)
def test_nothing_hides_behind_empty_blocks(tmp_path, content):
    assert [member.name for member in members_of(content)] == ["a.jpg", "b.jpg", "c.jpg"]
    assert all(content[offset:][:size] == JPEG for _, offset, size in members_of(content))
    (tmp_path / "a.tar").write_bytes(content)
    with tars.opened(tmp_path / "a.tar") as file:
        assert list(tars.members(file, "a.tar")) == members_of(content)
    assert list(tars.members(b"x" * 100 + content, "a.tar", 100)) == [
        (name, offset + 100, size) for name, offset, size in members_of(content)
    ]


def test_bytes_behind_the_end_that_are_no_tar_are_reported():
    for junk in (b"x" * 5000, b"x", bytes(511) + b"x", bytes(70_000) + b"<html>"):
        with pytest.raises(InputError, match=r"a\.tar: \d+ bytes lie behind the tar's end, from byte \d+ on"):
            members_of(A + junk)
    with pytest.raises(InputError, match=r"declares \d+ bytes and \d+ are left"):
        members_of(A + B[:600])
    with pytest.raises(InputError, match="the tar has no end"):
        members_of(A + B[: 2 * CONTENT])


@pytest.mark.parametrize("command, compress", [("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress)])
def test_a_compressed_tar_is_called_so(tmp_path, command, compress):
    (tmp_path / "train-0.tar").write_bytes(compress(A))
    with pytest.raises(
        InputError, match=rf"train-0\.tar is compressed: decompress it \(`{command} -dc OLD > NEW\.tar`"
    ):
        list(tars.samples(tmp_path / "train-0.tar"))


def test_a_damaged_number_is_reported_in_words():
    for damaged in (A[:148] + b"99zz99\0 " + A[156:], member("a.jpg", b"12x")):
        with pytest.raises(InputError, match=r"no tar header at byte 0 \(a number that is not octal\)"):
            members_of(damaged)


@pytest.mark.parametrize(
    "names, fault",
    [
        (["a.JPG", "a.CLS"], None),
        (["a.Png", "a.cls", "a.JSON"], None),
        (["a.left.jpg", "a.right.jpg", "a.jpg", "a.cls"], None),
        (["a.tiff", "a.cls"], r"no image \(jpg, jpeg, png, webp\), only \.tiff, \.cls$"),
        (["a.1.jpg", "a.1.cls"], r"no image .*, only \.1\.jpg, \.1\.cls \(a key ends at the first dot"),
        (
            ["a.jpg", "a.cls", "a.1.jpg", "a.1.cls"],
            r"the files of several samples, \.jpg, .* \(a key ends at the first",
        ),
        ([f"a.{number}.jpg" for number in range(9)], r"\.5\.jpg and 3 more"),
    ],
)
def test_a_sample_has_one_image_and_one_class_or_says_what_it_has(tmp_path, names, fault):
    (tmp_path / "train-0.tar").write_bytes(make_tar(dict.fromkeys(names, b"0")))
    (sample,) = tars.samples(tmp_path / "train-0.tar")
    assert sample.fault is None if fault is None else re.search(fault, sample.fault)


def test_hidden_files_are_no_samples(tmp_path):
    junk = ["._a.jpg", "b/._a.jpg", "__MACOSX/a.jpg", "b/Thumbs.db", "desktop.ini", ".DS_Store", "@eaDir/a.jpg/b.jpg"]
    (tmp_path / "train-0.tar").write_bytes(make_tar(dict.fromkeys(["./a.jpg", *junk, ".b/c.jpg"], JPEG)))
    assert [sample.key for sample in tars.samples(tmp_path / "train-0.tar")] == ["./a", ".b/c"]


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
