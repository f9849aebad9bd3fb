"""The official archives: members that are images are read, other content is refused or skipped."""

from collections import Counter

import pytest

from shards.convert import write_dataset
from tests.support import source_layouts as layouts
from tests.support.image_kinds import JPEG
from tests.support.source_checks import refused, tree
from tests.support.source_layouts import make_tar, write
from tests.support.tar_headers import write_evil_tar

pytestmark = pytest.mark.usefixtures("in_this_process")


def test_archives_of_other_content_are_refused(tiny_samples, tmp_path):
    train = tmp_path / "ILSVRC2012_img_train.tar"
    for files, complaint in (
        ({"n01440764/1.JPEG": JPEG}, "holds no tars of classes"),
        ({"a/n01440764.tar": make_tar({"1.JPEG": JPEG}), "b/n01440764.tar": make_tar({})}, r"n01440764\.tar twice"),
        (
            {"n01440764.tar": make_tar({"1.JPEG": JPEG})[:1000]},
            r"img_train\.tar: n01440764\.tar: .*damaged or cut short",
        ),
        ({"n01440764.tar": b""}, r"img_train\.tar: n01440764\.tar: the tar has no end \(0 bytes\)"),
    ):
        write(train, make_tar(files))
        refused(tmp_path, complaint)
    layouts.official_tars(tmp_path, tiny_samples)
    write(tmp_path / "val.txt", layouts.mapping(tiny_samples))
    write(train, train.read_bytes()[:-20_000])
    refused(tmp_path, r"img_train\.tar: .*: it is damaged or cut short")


def test_links_in_the_official_archives_are_skipped(tiny_samples, tmp_path):
    write_evil_tar(tmp_path / "inner.tar", tmp_path)
    write(
        tmp_path / "root" / "ILSVRC2012_img_train.tar",
        make_tar({"../n01440764.tar": (tmp_path / "inner.tar").read_bytes()}),
    )
    before = tree(tmp_path)
    dataset = write_dataset(tmp_path / "root", tmp_path / "set")
    assert dataset.classes == ("n01440764",) and dataset.split("train").samples == 5
    reasons = Counter(image.reason for image in dataset.split("train").skipped)
    assert reasons == {"not an image": 5}  # the .cls files
    assert {(path, size) for path, size in tree(tmp_path) if not path.startswith(str(tmp_path / "set"))} == before
