"""A hostile or damaged tar is refused by name, and its names, links and devices reach nothing outside."""

import io
import json
import os
import tarfile
from itertools import islice

import pytest

from pipeline.compute_stats import complete
from shards import tars
from shards.convert import ConvertOptions, write_dataset
from shards.describe import describe_tars
from shards.errors import InputError
from shards.index import index_tar
from tests.support import source_layouts as layouts
from tests.support.image_kinds import JPEG
from tests.support.source_checks import contents, refused, tree
from tests.support.source_layouts import make_tar, write
from tests.support.tar_headers import binary, member, pax, record, write_evil_tar

pytestmark = pytest.mark.usefixtures("in_this_process")


GOOD = make_tar({"good.jpg": JPEG, "good.cls": b"0"})[: 2 * 512 + tars.padded(len(JPEG)) + 512]


HOSTILE = {
    "2^60 bytes": (member("a.jpg", binary(2**60)), r"'a\.jpg' declares 1152921504606846976 bytes and \d+ are left"),
    "2^87 bytes": (member("a.jpg", binary(2**87)), "declares"),
    "2^60 bytes in pax": (pax(record(b"size", b"%d" % 2**60)) + member("a.jpg", b"0"), "declares"),
    "10^20 bytes in pax": (pax(record(b"size", b"9" * 20)) + member("a.jpg", b"0"), "declares"),
    "negative size": (member("a.jpg", b"-0000001000"), "negative size"),
    "negative name": (member("a.jpg", b"-0000001000", b"L"), "negative size"),
    "negative binary size": (member("a.jpg", b"\xff" * 12), "negative size"),
    "name of 2^60 bytes": (member("a.jpg", binary(2**60), b"L"), "declares"),
    "name of a megabyte": (member("a.jpg", b"%o" % 2**20, b"L", bytes(2**20)), "a name of 1048576 bytes"),
    "header of 2^60 bytes": (member("a.jpg", binary(2**60), b"x"), "declares"),
    "global header of 2^60 bytes": (member("a.jpg", binary(2**60), b"g"), "declares"),
    "wrong checksum": (
        member("a.jpg", b"5")[:-20] + bytes(8) + b"wrong" + bytes(7),
        "no tar header at byte .*checksum",
    ),
    "garbage": (b"\xff" * 512, "no tar header"),
    "text": (b"<html>not found</html>".ljust(1024), "no tar header"),
    "cut in a header": (member("a.jpg", b"5")[:300], "the tar has no end"),
    "cut in a member": (member("a.jpg", b"%o" % 5000, data=b"data"), r"'a\.jpg' declares 5000 bytes and 512 are left"),
    "no end": (b"", "the tar has no end"),
    "too many parts": (
        b"".join(member(f"a.{n}", b"1", data=b"1") for n in range(65)) + bytes(1024),
        "more than 64 files",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_or_damaged_tar_is_refused_by_name(tmp_path, what):
    hostile, complaint = HOSTILE[what]
    tar, end = tmp_path / "train-0.tar", b"" if what.startswith(("cut", "no end")) else bytes(1024)
    write(tar, GOOD + hostile + end)
    message = rf"train-0\.tar: .*{complaint}"
    with pytest.raises(InputError, match=message):
        list(islice(tars.samples(tar), 100))  # which would never end if a header led back to where it has been
    with pytest.raises(InputError, match=message):
        index_tar(tar)
    refused(tmp_path, message)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=message):
        describe_tars(tmp_path)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "name, escaped",
    [
        (b"\xff\xfe.jpg", r"\xff\xfe.jpg"),
        (b"two\nlines.jpg", r"two\nlines.jpg"),
        (b"\x1b[31mred.jpg", r"\x1b[31mred.jpg"),
        (b"bell\a\x7f\xc2\x85.jpg", r"bell\x07\x7f\x85.jpg"),
    ],
)
def test_unprintable_names_are_escaped(tmp_path, name, escaped):
    for content in (
        member(os.fsdecode(name), b"%o" % len(JPEG), data=JPEG),
        member("long", b"%o" % len(name), b"L", name) + member("short", b"%o" % len(JPEG), data=JPEG),
        pax(record(b"path", name)) + member("short", b"%o" % len(JPEG), data=JPEG),
    ):
        assert [member.name for member in tars.members(content + bytes(1024), "a.tar")] == [escaped]
        write(tmp_path / "train-0.tar", GOOD + content + bytes(1024))
        dataset = describe_tars(tmp_path)
        assert [sample.key for sample in dataset.split("train").quarantined] == [escaped.removesuffix(".jpg")]
        assert dataset.fingerprint and json.loads((tmp_path / "dataset.json").read_text())
        (tmp_path / "train-0.idx").unlink()


def test_what_only_has_the_name_of_a_tar_is_refused(tiny_samples, tmp_path):
    layouts.webdataset(tmp_path, tiny_samples)
    (tmp_path / "train-folder.tar").mkdir()
    refused(tmp_path, r"train-folder\.tar is not a regular file")
    (tmp_path / "train-folder.tar").rmdir()
    os.mkfifo(tmp_path / "train-pipe.tar")
    refused(tmp_path, r"train-pipe\.tar is not a regular file")
    with pytest.raises(InputError, match=r"train-pipe\.tar is not a regular file"):
        describe_tars(tmp_path)


def test_names_links_and_devices_in_a_tar_reach_nothing_outside(tmp_path):
    write(tmp_path / "secret.jpg", JPEG)  # the target of the links
    root, out = tmp_path / "a" / "b" / "root", tmp_path / "a" / "b" / "out"
    jpegs = write_evil_tar(root / "train-0.tar", tmp_path)
    before = tree(tmp_path)
    dataset = write_dataset(root, out, ConvertOptions(kind="webdataset"))
    stored = {jpeg: key for _, key, jpeg, _ in contents(dataset)}
    assert set(stored) == set(jpegs) and all("/" not in key and "." not in key for key in stored.values())
    assert {(path, size) for path, size in tree(tmp_path) if not path.startswith(str(out))} == before
    described = describe_tars(root)
    complete(described, 1)
    assert described.split("train").samples == len(jpegs) and not described.split("train").quarantined
    added = {path for path, _ in tree(tmp_path) - before if not path.startswith(str(out))}
    assert added == {str(root / name) for name in ("train-0.idx", "dataset.json", "stats.npz")}
    with tarfile.open(root / "more-val-0.tar", "w") as tar:  # a class number for what is only a link to an image
        info = tarfile.TarInfo("link.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
        info = tarfile.TarInfo("link.cls")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"0"))
    refused(root, r"more-val-0\.tar: sample link has no image .*: repair the tar, or train on it where it is")
    with pytest.raises(
        InputError, match=r"no sample of the val split can be used \(more-val-0\.tar: link: it has no image"
    ):
        describe_tars(root)
