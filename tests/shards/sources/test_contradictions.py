"""Labels that contradict what keys, names or `.json` tell are named by `shard`, `index` and `verify`."""

import json
import re

import pytest

from shards import verify as verifying
from shards.convert import ConvertOptions, write_dataset
from shards.dataset import Dataset
from shards.describe import describe_tars, load_or_describe
from shards.errors import InputError
from shards.verify import show, verify
from tests.support.image_kinds import JPEG
from tests.support.source_checks import contents, refused
from tests.support.source_layouts import make_tar, write

pytestmark = pytest.mark.usefixtures("in_this_process")
A, B, C = "n01440764", "n01443537", "n01484850"


@pytest.fixture(autouse=True)
def verify_here(monkeypatch):
    monkeypatch.setattr(verifying, "run_jobs", lambda function, jobs, *_: [function(*job) for job in jobs])


def put(root, *samples, name="train-0.tar"):
    """A tar of samples: each its key, its `.cls` (None for none) and what is in its `.json` (None for none)."""
    files = {}
    for key, label, about in samples:
        files[f"{key}.jpg"] = JPEG
        files |= {f"{key}.cls": str(label).encode()} if label is not None else {}
        files |= {f"{key}.json": json.dumps(about).encode()} if about is not None else {}
    write(root / name, make_tar(files))


TWO_CLASSES = rf"{A}_1 and .*{A}_2 both say {A}, and their class numbers are 0 and 1"


@pytest.mark.parametrize(
    "samples, complaint",
    [
        ([(f"{A}_1", 0, None), (f"{A}_2", 1, None)], TWO_CLASSES),
        ([(f"{A}/1", 0, None), (f"{A}/2", 1, None)], TWO_CLASSES.replace("_", "/")),
        ([("x1", 0, {"wnid": A}), ("x2", 1, {"wnid": A})], rf"x1 and .*x2 both say {A}, and"),
        (
            [("x1", 0, {"filename": f"{A}/1.JPEG"}), ("x2", 1, {"filename": f"{A}/2.JPEG"})],
            rf"x1 and .*x2 both say {A}, and",
        ),
        ([("x1", 0, {"label": "cat"}), ("x2", 1, {"label": "cat"})], "x1 and .*x2 both say cat, and"),
        ([("x1", 0, {"synset": A}), ("x2", 1, {"synset": A})], rf"x1 and .*x2 both say {A}, and"),
        ([("x1", 0, {"class_name": "cat"}), ("x2", 1, {"class_name": "cat"})], "x1 and .*x2 both say cat, and"),
        ([(f"1_{A}", 0, None), (f"2_{A}", 1, None)], rf"1_{A} and .*2_{A} both say {A}, and"),
        ([("x1", 0, {"label": 0}), ("x2", 1, {"label": 2})], r"x2: its \.cls is 1 and label in its \.json 2 \(1 such"),
        ([("x1", 0, {"cls": "0"}), ("x2", 1, {"cls": "2"})], r"x2: its \.cls is 1 and cls in its \.json 2"),
        ([(f"{A}_1", 0, {"wnid": B}), ("x", 1, None)], rf"{A}_1: its key and \.json say {B} and {A}"),
    ],
)
def test_tars_that_contradict_themselves_are_named_by_every_command(tmp_path, samples, complaint):
    put(tmp_path, *samples)
    refused(tmp_path, rf"train-0\.tar.*{complaint}.*: correct one, or say with --label-key cls that \.cls counts")
    with pytest.raises(InputError, match=rf"train-0\.tar.*{complaint}"):
        describe_tars(tmp_path)
    # The remedy works, and verify still names what was accepted
    assert [
        *write_dataset(tmp_path, tmp_path / "set", ConvertOptions(label_key="cls")).split("train").class_counts
    ] == [1, 1]
    classes = describe_tars(tmp_path, label_key="cls").classes
    assert len(set(classes)) == 2 and classes == Dataset.load(tmp_path / "set").classes
    with pytest.raises(InputError, match=r"--label-key does not count, for .* has dataset\.json: leave it out"):
        load_or_describe(tmp_path, label_key="cls")
    report = verify(tmp_path)
    assert report.intact and re.search(rf"warning: train-0\.tar: .*{complaint}", show(report, tmp_path, False))


def test_splits_that_number_their_classes_differently_are_named(tmp_path):
    put(tmp_path, (f"{A}_1", 0, None), (f"{B}_1", 1, None))
    put(tmp_path, (f"{A}_2", 1, None), (f"{B}_2", 0, None), name="val-0.tar")
    complaint = rf"val-0\.tar: {B}_2 and .*train-0\.tar: {B}_1 both say {B}, and their class numbers are 0 and 1"
    refused(tmp_path, complaint)
    with pytest.raises(InputError, match=complaint):
        describe_tars(tmp_path)


def test_a_class_of_several_names_is_called_by_its_number_and_named(tmp_path, capfd):
    put(tmp_path / "in", (f"{A}_1", 0, None), (f"{B}_1", 0, None), (f"{C}_1", 1, None))
    expected = rf"notice: images of class 0 say several names, {A} \(.*{A}_1\) and {B} "
    assert describe_tars(tmp_path / "in").classes == ("0", C)
    assert re.search(expected, capfd.readouterr().err)
    assert write_dataset(tmp_path / "in", tmp_path / "set").classes == ("0", C)
    assert re.search(expected, capfd.readouterr().err)
    with pytest.raises(InputError, match=r"--strict: .*several names"):
        write_dataset(tmp_path / "in", tmp_path / "strict", ConvertOptions(strict=True))
    assert verify(tmp_path / "in").intact


def test_what_is_wider_than_a_class_does_not_contradict_it(tmp_path):
    about = {"category": "Birds", "class": "Aves", "parent": "n01503061"}
    put(tmp_path, *((f"x{number}", number % 2, {"wnid": (A, B)[number % 2], **about}) for number in range(4)))
    assert describe_tars(tmp_path).classes == (A, B)


def test_file_names_that_contradict_their_folder_are_named(tmp_path, capfd):
    for name in (f"{A}/{A}_1.JPEG", f"{A}/{B}_2.JPEG", f"{B}/{B}_1.JPEG"):
        write(tmp_path / "in" / "train" / name, JPEG)
    named = rf"train/{A}/{B}_2\.JPEG has {B} in its name and is of class {A} \(1 such\)"
    dataset = write_dataset(tmp_path / "in", tmp_path / "set")
    assert re.search(f"notice: {named}", capfd.readouterr().err) and dataset.split("train").class_counts == (2, 1)
    with pytest.raises(InputError, match=f"--strict: {named}"):
        write_dataset(tmp_path / "in", tmp_path / "strict", ConvertOptions(strict=True))
    (warning,) = verify(tmp_path / "set").warnings
    assert warning.key == f"{B}_2" and warning.reason.startswith(f"its key and .json say {A} and {B}")


def test_a_list_that_contradicts_names_is_named(tmp_path, capfd):
    for name in (f"train/{A}/1.JPEG", f"train/{B}/1.JPEG", f"val/{A}_1.JPEG"):
        write(tmp_path / "in" / name, JPEG)
    write(tmp_path / "in" / "val.txt", f"{A}_1.JPEG {B}\n")
    write_dataset(tmp_path / "in", tmp_path / "set")
    assert f"val/{A}_1.JPEG has {A} in its name and is of class {B}" in capfd.readouterr().err


def test_a_class_number_far_beyond_the_others_is_refused(tmp_path):
    put(tmp_path, ("a", 0, None), ("b", 999_999, None))
    complaint = r"train-0\.tar: b has the class number 999999, and 999998 numbers below it have no image"
    refused(tmp_path, complaint)
    with pytest.raises(InputError, match=complaint):
        describe_tars(tmp_path)
    put(tmp_path / "few", ("a", 0, None), ("b", 999, None))  # a part of ImageNet, by ImageNet's numbers
    assert len(describe_tars(tmp_path / "few").classes) == 1000


def test_verify_knows_our_own_classes_that_are_numbers(tmp_path):
    for name in ("0", "1", "10", "2"):
        write(tmp_path / "in" / "train" / name / f"{name}.JPEG", JPEG)
    dataset = write_dataset(tmp_path / "in", tmp_path / "set")
    assert verify(tmp_path / "set").intact
    (tar,) = dataset.tars("train")
    content = tar.read_bytes()
    tar.write_bytes(content.replace(b'"wnid": "0"', b'"wnid": "1"'))  # whose class number is 0, as its name is
    (bad,) = verify(tmp_path / "set").bad
    assert bad.reason == "its class number 0 is 0 and it says 1"


@pytest.mark.parametrize(
    "labels, key, classes",
    [
        ([{"label": 1}, {"label": 0}], "label", ("0", "1")),
        ([{"label": "1"}, {"label": "0"}], "json.label", ("0", "1")),
        ([{"species": "cat"}, {"species": "ant"}], "species", ("ant", "cat")),
        ([{"about": {"species": "cat"}}, {"about": {"species": "ant"}}], "about.species", ("ant", "cat")),
    ],
)
def test_labels_may_be_in_json(tmp_path, labels, key, classes):
    put(tmp_path, *((f"x{number}", None, about) for number, about in enumerate(labels)))
    refused(tmp_path, r"sample x0 has no \.cls, only .*say with --label-key where its label is \(it has \.jpg, \.json")
    dataset = write_dataset(tmp_path, tmp_path / "set", ConvertOptions(label_key=key))
    assert dataset.classes == classes
    assert {sample: name for _, sample, _, name in contents(dataset)} == {"x0": classes[1], "x1": classes[0]}
    with pytest.raises(InputError, match=r"--label-key .*: training reads \.cls.*shard --label-key"):
        describe_tars(tmp_path, label_key=key)


@pytest.mark.parametrize(
    "extension, texts", [("txt", (b"1\n", b"0\n")), ("cls", (b"cat", b"ant")), ("class", (b"7", b"0"))]
)
def test_labels_may_be_in_other_files(tmp_path, extension, texts):
    write(
        tmp_path / "train-0.tar",
        make_tar({"a.jpg": JPEG, f"a.{extension}": texts[0], "b.jpg": JPEG, f"b.{extension}": texts[1]}),
    )
    dataset = write_dataset(tmp_path, tmp_path / "set", ConvertOptions(label_key=extension))
    names = {sample: name for _, sample, _, name in contents(dataset)}
    assert names == {"a": texts[0].decode().strip(), "b": texts[1].decode().strip()}


@pytest.mark.parametrize(
    "labels, complaint",
    [
        ([{"label": 1}, {"label": "cat"}], r"x0 has the label 1, and .*x1 'cat': use numbers or names"),
        ([{"label": 1}, {}], r"sample x1 has under --label-key label no such part or field \(it has \.jpg, \.json\)"),
        ([{"label": [1]}], r"sample x0 has under --label-key label \[1\] and should have a class"),
        ([{"label": -1}], "has under --label-key label -1 and should have a class"),
        ([{"label": True}], "has under --label-key label True and should have a class"),
    ],
)
def test_labels_that_are_no_classes_are_named(tmp_path, labels, complaint):
    put(tmp_path, *((f"x{number}", None, about) for number, about in enumerate(labels)))
    with pytest.raises(InputError, match=complaint):
        write_dataset(tmp_path, tmp_path / "set", ConvertOptions(label_key="label"))


def test_names_of_classes_are_the_same_in_every_unicode_form(tmp_path):
    put(tmp_path, ("a", "e\u0301", None), ("b", "b", None))
    put(tmp_path, ("c", "\xe9", None), name="val-0.tar")
    dataset = write_dataset(tmp_path, tmp_path / "set", ConvertOptions(label_key="cls"))
    assert dataset.classes == ("b", "\xe9") and dataset.split("val").class_counts == (0, 1)
    put(tmp_path, ("c", "d", None), name="val-0.tar")
    with pytest.raises(InputError, match="c is of class 'd', which the train split lacks"):
        write_dataset(tmp_path, tmp_path / "other", ConvertOptions(label_key="cls"))


def test_label_key_is_refused_where_it_does_not_count(tmp_path):
    write(tmp_path / "in" / "train" / A / "1.JPEG", JPEG)
    with pytest.raises(InputError, match="--label-key is for parquet files and WebDataset tars"):
        write_dataset(tmp_path / "in", tmp_path / "set", ConvertOptions(label_key="label"))


def test_classes_without_train_images_are_named(tmp_path, capfd):
    put(tmp_path / "in", ("a", 0, None), ("b", 1, None))
    put(tmp_path / "in", ("c", 1, None), ("d", 2, None), name="val-0.tar")  # which counts from 1
    named = "notice: 1 of 3 classes have no train image, like 2, and val has 1 image of them, like of 2"
    describe_tars(tmp_path / "in")
    assert named in capfd.readouterr().err
    write_dataset(tmp_path / "in", tmp_path / "set")
    assert named in capfd.readouterr().err


def test_the_same_command_with_other_labels_in_the_tars_is_not_finished(tmp_path):
    put(tmp_path / "in", ("a", 0, None), ("b", 1, None))
    write_dataset(tmp_path / "in", tmp_path / "set")
    assert write_dataset(tmp_path / "in", tmp_path / "set").split("train").class_counts == (1, 1)
    put(tmp_path / "in", ("a", 1, None), ("b", 1, None))  # of the same length
    with pytest.raises(InputError, match="holds another data set"):
        write_dataset(tmp_path / "in", tmp_path / "set")


def test_where_no_tar_has_class_numbers_the_remedy_is_named(tmp_path):
    put(tmp_path, ("a", None, {"label": 3}))
    with pytest.raises(
        InputError, match=r"no sample .* can be used .*no \.cls.*`python cli\.py shard --label-key` takes labels"
    ):
        describe_tars(tmp_path)
    put(tmp_path, ("a", "cat", None))
    refused(tmp_path, r"a\.cls holds b'cat' and should be a class number, like 7 \(.*--label-key cls` takes names\)")
