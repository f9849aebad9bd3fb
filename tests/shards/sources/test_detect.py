"""A source's layout is detected; where there is none, or a choice, the message says what to do."""

import pytest

from shards.describe import describe_tars
from shards.errors import InputError
from shards.sources.base import KINDS
from shards.sources.detect import detect, find_source
from tests.support import source_layouts as layouts
from tests.support.source_checks import listed, refused
from tests.support.source_layouts import TRAIN, VAL, make_tar, write

pytestmark = pytest.mark.usefixtures("in_this_process")


def test_without_a_layout_the_message_lists_the_known_ones(tmp_path):
    with pytest.raises(InputError, match="is empty: expected ROOT/train"):
        find_source(tmp_path)
    (tmp_path / "cat.jpg").touch()
    (tmp_path / "cats.tar").touch()  # has no split in its name
    with pytest.raises(InputError, match="holds none of the known layouts: expected ROOT/train") as error:
        find_source(tmp_path)
    assert all(kind in str(error.value) for kind in KINDS)
    with pytest.raises(InputError, match="is not a folder"):
        find_source(tmp_path / "cat.jpg")


def test_of_two_layouts_one_must_be_chosen(tiny_samples, tmp_path):
    layouts.folders(tmp_path, tiny_samples)
    layouts.webdataset(tmp_path, tiny_samples[: TRAIN // 2] + tiny_samples[-VAL:])
    refused(tmp_path, "holds folders and webdataset: say which with --source")
    assert [len(images) for images in listed(tmp_path, "folders").values()] == [TRAIN, VAL]
    assert [len(images) for images in listed(tmp_path, "webdataset").values()] == [TRAIN // 2, VAL]


@pytest.mark.parametrize(
    "kind, complaint",
    [
        ("folders", "has no folder train: expected ROOT/train/CLASS"),
        ("archives", r"ILSVRC2012_img_train\.tar cannot be read: No such file"),
        ("kaggle", "holds no ILSVRC/Data/CLS-LOC/train"),
        ("parquet", "holds no parquet files: expected ROOT/data/train-"),
        ("webdataset", r"holds no tars of a train split, like train-000000\.tar"),
    ],
)
def test_a_requested_layout_that_is_absent_is_reported(tmp_path, kind, complaint):
    (tmp_path / "val").mkdir()
    refused(tmp_path, complaint, kind)


def test_other_official_archives_may_lie_beside_them(tiny_samples, tmp_path):
    layouts.archives(tmp_path, tiny_samples)
    for name in ("ILSVRC2012_img_test_v10102019.tar", "ILSVRC2012_img_train_t3.tar"):
        write(tmp_path / name, make_tar({}))
    assert detect(tmp_path) == "archives"


def test_tars_without_a_split_in_their_names_are_reported(tiny_samples, tmp_path):
    layouts.webdataset(tmp_path, tiny_samples)
    (tmp_path / "imagenet1k-validation-00.tar").rename(tmp_path / "more.tar")
    refused(tmp_path, r"more\.tar has no split in its name: rename it")
    with pytest.raises(InputError, match=r"more\.tar has no split in its name"):
        describe_tars(tmp_path)
