"""Parquet files: columns, labels and names that do not fit are refused, missing ones are replaced."""

import re
import sys
from collections import Counter

import pytest

from shards.convert import ConvertOptions, write_dataset
from shards.sources.detect import find_source
from tests.support import source_layouts as layouts
from tests.support.image_kinds import JPEG, encoded, noise
from tests.support.source_checks import contents, listed, refused
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
        ({"image": ["a.jpg"], "label": [1]}, r"image \(string\), label"),
        ({"image": text, "label": [1]}, r"image \(struct<bytes: string"),
        ({"image": column, "label": [1.5]}, r"label \(double\)"),
        ({"image": column, "coarse": [1], "fine": [1]}, r"coarse .* fine .*; --label-key names another"),
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
    (notice,) = source.notices
    assert re.search(
        r"class 0 say several names, n01440764 .*train-0\.parquet, row 0.* and n01443537 .*train-1", notice
    )


@pytest.mark.parametrize("form", ["{}_{}.JPEG", "{1}_{0}.JPEG", "train/{1}/{0}.JPEG"])
def test_images_of_one_wnid_are_of_one_class(tmp_path, form):
    named = (("a", "n01440764", 0), ("b", "n01443537", 1), ("c", "n01440764", 1))
    rows = [(JPEG, form.format(stem, wnid), label) for stem, wnid, label in named]
    for names in (None, layouts.NAMES, tuple(layouts.CLASSES)):
        write_parquet(tmp_path / "train-0.parquet", rows, names)
        complaint = r"row 0 and .*row 2 both say n01440764, and .* 0 and 1: correct one, or say with --label-key"
        refused(tmp_path, complaint)
        source = find_source(tmp_path, scratch=tmp_path, label_key="label")
        assert source.classes[:2] == (names or ("0", "1"))[:2]
    # The label's own name contradicts the image's
    write_parquet(tmp_path / "train-0.parquet", rows[1:2], layouts.CLASSES[2:])
    refused(tmp_path, "row 0 has n01443537 in its image's name, and its label is n01491361")


@pytest.mark.parametrize(
    "train, val, classes, stored",
    [
        (["ant", "bee", "cat"], ["bee", "cat"], ("ant", "bee", "cat"), ["bee", "cat"]),
        (["cat", "bee"], ["bee", "cat"], ("cat", "bee"), ["bee", "cat"]),
        (["e\u0301", "b"], ["b", "\xe9"], ("e\u0301", "b"), ["b", "e\u0301"]),  # in two Unicode forms
    ],
)
def test_labels_go_by_the_names_in_their_own_file(tmp_path, train, val, classes, stored):
    write_parquet(tmp_path / "train-0.parquet", [(JPEG, None, n) for n in range(len(train))], train)
    write_parquet(tmp_path / "validation-0.parquet", [(JPEG, None, n) for n in range(len(val))], val)
    assert find_source(tmp_path).classes == classes
    assert [wnid for _, wnid in listed(tmp_path)["val"]] == stored


def test_names_that_other_files_lack_are_reported(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", [(JPEG, None, 0), (JPEG, None, 1)], ("ant", "bee"))
    write_parquet(tmp_path / "train-1.parquet", [(JPEG, None, 0)], ("cat",))
    assert [wnid for _, wnid in listed(tmp_path)["train"]] == ["ant", "bee", "cat"]
    write_parquet(tmp_path / "val-0.parquet", [(JPEG, None, 1)], ("ant", "dog"))
    refused(
        tmp_path, r"val-0\.parquet has images of class 'dog', which the train files .*train-0\.parquet\) do not name"
    )
    write_parquet(tmp_path / "val-0.parquet", [(JPEG, None, 1)], None)
    refused(tmp_path, r"val-0\.parquet does not name its labels, and .*train-0\.parquet does")
    write_parquet(tmp_path / "val-0.parquet", [(JPEG, None, 0)], ("ant", "ant"))
    refused(tmp_path, r"val-0\.parquet gives two of its labels one name")


def test_a_class_number_far_beyond_the_others_is_refused(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", [(JPEG, None, 0), (JPEG, None, 999_999)], None)
    refused(tmp_path, r"train-0\.parquet, row 1 has the class number 999999, and 999998 numbers below it have no image")
    write_parquet(tmp_path / "train-0.parquet", [(JPEG, None, 0), (JPEG, None, 999)], None)
    assert len(find_source(tmp_path).classes) == 1000


@pytest.mark.parametrize("folder", ["", "default"])
def test_the_folders_of_hugging_faces_converter_are_read(tmp_path, folder):
    for split, label in (("train", 1), ("validation", 0)):
        rows = [(JPEG, None, 0), (JPEG, None, label)]
        write_parquet(tmp_path / folder / split / "0000.parquet", rows, ("ant", "bee"))
    dataset = write_dataset(tmp_path, tmp_path / "set")
    assert {name: split.class_counts for name, split in dataset.splits.items()} == {"train": (1, 1), "val": (2, 0)}
    write_parquet(tmp_path / "other" / "train" / "0000.parquet", [(JPEG, None, 0)], ("ant",))
    if folder:
        refused(tmp_path, "holds default and other: give one of these folders as --imagenet-root")


@pytest.mark.parametrize("binary, text", [("binary_view", "string_view"), ("large_binary", "large_string")])
@pytest.mark.parametrize("struct", [True, False])
def test_columns_of_other_types_and_names_are_read(tmp_path, binary, text, struct):
    import pyarrow
    from pyarrow.parquet import write_table

    images = pyarrow.array([JPEG], getattr(pyarrow, binary)())
    if struct:
        paths = pyarrow.array(["a.jpg"], getattr(pyarrow, text)())
        images = pyarrow.StructArray.from_arrays([images, paths], ["bytes", "path"])
    write_table(pyarrow.table({"cls": pyarrow.array([0], pyarrow.int8()), "img": images}), tmp_path / "train-0.parquet")
    named = pyarrow.table(
        {"caption": ["dog"], "img": images, "species": pyarrow.array(["bee"], getattr(pyarrow, text)())}
    )
    assert contents(write_dataset(tmp_path, tmp_path / "one")).total() == 1
    write_table(named, tmp_path / "train-0.parquet")
    refused(tmp_path, "expected image .*; --label-key names another column of labels")
    options = ConvertOptions(label_key="species")
    dataset = write_dataset(tmp_path, tmp_path / "two", options)
    assert dataset.classes == ("bee",) and {jpeg for _, _, jpeg, _ in contents(dataset)} == {JPEG}


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
    assert not list((tmp_path / ".scratch").rglob(f"*{path.name}.bytes*"))
