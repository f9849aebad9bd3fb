"""Parquet files: columns, labels and names that do not fit are refused, missing ones are replaced."""

import sys
from collections import Counter

import pytest

from shards.convert import write_dataset
from shards.sources.detect import find_source
from tests.support import source_layouts as layouts
from tests.support.image_kinds import JPEG, encoded, noise
from tests.support.source_checks import contents, refused
from tests.support.source_layouts import write_parquet

pytestmark = pytest.mark.usefixtures("in_this_process")


def test_without_pyarrow_the_message_says_how_to_install_it(tiny_samples, tmp_path, monkeypatch):
    layouts.parquet(tmp_path, tiny_samples)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    refused(tmp_path, r"reading parquet needs pyarrow: pip install '\.\[parquet\]'")


def test_parquet_files_of_other_columns_are_refused(tmp_path):
    import pyarrow
    from pyarrow.parquet import write_table

    text = pyarrow.array([{"bytes": "text", "path": "a.jpg"}])
    column = pyarrow.array([{"bytes": b"", "path": "a.jpg"}])
    for columns, reported in (
        ({"text": ["a"]}, r"text \(string\): expected image"),
        ({"image": [b"jpeg"], "label": [1]}, r"image \(binary\), label"),
        ({"image": text, "label": [1]}, r"image \(struct<bytes: string"),
        ({"image": column, "label": ["one"]}, r"label \(string\)"),
        ({"image": column, "label": [True]}, r"label \(bool\)"),
        ({"image": pyarrow.array([{"path": "a.jpg"}]), "label": [1]}, r"image \(struct<path: string>\)"),
    ):
        (tmp_path / "data").mkdir(exist_ok=True)
        write_table(pyarrow.table(columns), tmp_path / "data" / "train-0.parquet")
        refused(tmp_path, rf"train-0\.parquet has the columns .*{reported}")


@pytest.mark.parametrize("label", [-1, 10**6, 10**12, 2**63 - 1, None])
def test_parquet_labels_that_are_not_class_numbers_are_refused(tmp_path, label):
    for names in (layouts.NAMES, None):
        write_parquet(tmp_path / "train-0.parquet", [(JPEG, "a.jpg", 1), (JPEG, "b.jpg", label)], names)
        refused(tmp_path, rf"train-0\.parquet, row 1: label {label} is not a class number")


def test_parquet_labels_beyond_the_names_are_refused(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", [(JPEG, "a.jpg", 8)])
    refused(tmp_path, r"train-0\.parquet has label 8, and 8 classes are named")


def test_parquet_without_names_or_paths_still_has_classes_and_keys(tmp_path):
    rows = [(JPEG, None, 2), (None, "../../evil.JPEG", 2), (encoded(noise("L")), "/etc/passwd", 0)]
    write_parquet(tmp_path / "in" / "train-0.parquet", rows, None)
    dataset = write_dataset(tmp_path / "in", tmp_path / "set")
    assert dataset.classes == ("0", "1", "2")
    assert contents(dataset) == Counter([("train", "0", JPEG, "2"), ("train", "passwd", rows[2][0], "0")])
    assert [image.reason for image in dataset.split("train").skipped] == ["empty file"]


def test_images_whose_names_disagree_name_no_class(tmp_path):
    rows = [(JPEG, "a_n01440764.JPEG", 0), (JPEG, "b_n01443537.JPEG", 0), (JPEG, "c_n01484850.JPEG", 1)]
    write_parquet(tmp_path / "train-0.parquet", rows[::2])
    write_parquet(tmp_path / "train-1.parquet", rows[1:2])
    source = find_source(tmp_path, scratch=tmp_path)
    assert source.classes[:3] == (layouts.NAMES[0], "n01484850", layouts.NAMES[2])
    assert source.words == {"n01484850": layouts.NAMES[1]}


def test_damaged_parquet_is_reported_wherever_the_damage_is(tiny_samples, tmp_path):
    from pyarrow.parquet import read_metadata

    layouts.parquet(tmp_path, tiny_samples)
    path = tmp_path / "data" / "train-00001-of-00003.parquet"
    content = path.read_bytes()
    # The header of the second group's page of images, which is only read with the images
    page = read_metadata(path).row_group(1).column(0).dictionary_page_offset
    damages = [
        content[:page] + b"\xff" * 15 + content[page + 15 :],
        content[:4] + b"\xff" * (len(content) - 8) + content[-4:],
    ]
    for damaged in damages + [content[:size] for size in (0, 3, len(content) // 2, len(content) - 1)]:
        path.write_bytes(damaged)
        refused(tmp_path, r"train-00001-of-00003\.parquet cannot be read as parquet \(.+\): bring an undamaged copy")
    assert not list((tmp_path / ".scratch").glob(f"*{path.name}.bytes*"))
