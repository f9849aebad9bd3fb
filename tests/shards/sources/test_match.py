"""A list's line is the label of one image: what could be read two ways is an error that names both."""

import unicodedata

import pytest

from shards.convert import ConvertOptions, write_dataset
from shards.errors import InputError
from tests.support.image_kinds import JPEG
from tests.support.source_checks import contents, listed, refused
from tests.support.source_layouts import make_tar, write

pytestmark = pytest.mark.usefixtures("in_this_process")
CLASSES = ("n01440764", "n01443537", "n01484850")
A, B, C = CLASSES


def folders(root, val, lines, classes=CLASSES, name="val.txt"):
    """A class folder each, validation images of these names, and a list of these lines."""
    for number, wnid in enumerate(classes):
        write(root / "train" / wnid / f"{number}.JPEG", JPEG)
    for file in val:
        write(root / "val" / file, JPEG)
    write(root / name, "".join(f"{line}\n" for line in lines))


def val_classes(root):
    """The class of each validation image, by its name in the split."""
    return {name.partition("val/")[2]: wnid for name, wnid in listed(root)["val"]}


@pytest.mark.parametrize(
    "lines, expected",
    [
        ([f"1.jpg {A}", f"1.png {B}"], {"1.jpg": A, "1.png": B}),
        ([f"a/1.jpg {A}", f"b/1.jpg {B}"], {"a/1.jpg": A, "b/1.jpg": B}),
        ([f"/data/val/a/1.jpg {A}", f"b/1 {B}"], {"a/1.jpg": A, "b/1.jpg": B}),
        ([f"val\\a\\1.jpg {A}", f"val\\b\\1.jpg {B}"], {"a/1.jpg": A, "b/1.jpg": B}),
        ([f"x.JPEG {C}"], {"x.png": C}),  # encoded again since
        ([f"x.JPEG {C}", f"x.JPEG {C}"], {"x.JPEG": C}),
        ([f"2012.1 {A}", f"2012.2 {B}"], {"2012.1.jpg": A, "2012.2.jpg": B}),
        ([f"2012.1 {A}", f"2012.2 {B}"], {"2012.1": A, "2012.2": B}),
    ],
)
def test_each_image_gets_the_line_with_its_own_name(tmp_path, lines, expected):
    folders(tmp_path, expected, lines)
    assert val_classes(tmp_path) == expected


@pytest.mark.parametrize(
    "files, lines, complaint",
    [
        (
            ["1.jpg"],
            [f"1.jpg {A}", f"1.jpg {B}"],
            rf"1\.jpg is given two classes: .*line 1 \(1\.jpg {A}\) and .*line 2 ",
        ),
        (["1.jpg"], [f"1.jpg {A}", f"1 {B}"], "two classes: .*line 1 .* and .*line 2 "),
        (["1.jpg"], [f"a/1.jpg {A}", f"b/1.jpg {B}"], "two classes: .*line 1 .* and .*line 2 "),
        (["a/1.jpg", "b/1.jpg"], [f"1.jpg {A}"], r"line 1 .* could be of a/1\.jpg and of b/1\.jpg"),
        (["1.jpg", "1.png"], [f"1 {A}"], r"line 1 .* could be of 1\.jpg and of 1\.png"),
        (["1.jpg", "1.png"], [f"1.png {A}"], r"line 1 .* could be of 1\.jpg and of 1\.png"),
        (["a/1.jpg"], [f"b/1.jpg {A}"], r"has no label for a/1\.jpg"),
        (["2012.1", "2012.2"], [f"2012.2 {A}"], r"has no label for 2012\.1"),
    ],
)
def test_a_line_is_of_one_image_and_an_image_of_one_class(tmp_path, files, lines, complaint):
    folders(tmp_path, files, lines)
    refused(tmp_path, complaint)


def test_kaggles_table_is_read_by_whole_names_too(tmp_path):
    heading = "ImageId,PredictionString"
    folders(
        tmp_path, ["1.jpg", "1.png"], [heading, f"1.jpg,{A} 1 2 3 4", f"1.png,{B} 1 2 3 4"], name="LOC_val_solution.csv"
    )
    assert val_classes(tmp_path) == {"1.jpg": A, "1.png": B}
    folders(tmp_path, [], [heading, f"1.jpg,{A} 1 2 3 4 {B} 1 2 3 4", f"1.png,{B}"], name="LOC_val_solution.csv")
    refused(tmp_path, rf"1\.jpg is given two classes: .*line 2 \(1\.jpg {A}\) and .*line 2 \(1\.jpg {B}\)")


def test_lists_that_disagree_are_named(tmp_path):
    folders(tmp_path, ["1.jpg"], [f"1.jpg {A}"])
    write(tmp_path / "LOC_val_solution.csv", f"ImageId,PredictionString\n1,{B} 1 2 3 4\n")
    refused(tmp_path, r"two classes: .*val\.txt, line 1 .* and .*LOC_val_solution\.csv, line 2 ")


@pytest.mark.parametrize("line", [f"1.jpg {B}", f"{A}/1.jpg {B}", f"1 {B}", "1.jpg 1"])
def test_a_list_that_disagrees_with_class_folders_is_named(tmp_path, line, capfd):
    folders(tmp_path / "in", [f"{A}/1.jpg"], [line])
    refused(tmp_path / "in", rf"{A}/1\.jpg is given two classes: .*val\.txt, line 1 \({line}\) and its folder")
    write(tmp_path / "in" / "val.txt", f"{A}/1.jpg {A}\n")
    assert val_classes(tmp_path / "in") == {f"{A}/1.jpg": A}
    write(tmp_path / "in" / "val.txt", "a list of something else\n")
    assert write_dataset(tmp_path / "in", tmp_path / "set").split("val").class_counts == (1, 0, 0)
    assert "val.txt, line 1: 'a list of something else' is not FILE CLASS" in capfd.readouterr().err


def test_kaggles_table_may_not_disagree_with_class_folders(tmp_path):
    kaggle = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    for name in (f"train/{A}/1.JPEG", f"train/{B}/1.JPEG", f"val/{A}/ILSVRC2012_val_00000001.JPEG"):
        write(kaggle / name, JPEG)
    write(tmp_path / "LOC_val_solution.csv", f"ImageId,PredictionString\nILSVRC2012_val_00000001,{B} 1 2 3 4\n")
    refused(tmp_path, rf"is given two classes: .*LOC_val_solution\.csv, line 2 .* and its folder {A}")


@pytest.mark.parametrize("line", ["my cat.jpg\tgreat white", "my cat.jpg,great white", 'my cat.jpg, "great white"'])
def test_names_may_have_blanks_in_them(tmp_path, line):
    folders(tmp_path, ["my cat.jpg"], [line], ("ant", "great white"))
    assert val_classes(tmp_path) == {"my cat.jpg": "great white"}


def test_the_validation_archive_may_have_folders(tmp_path):
    write(
        tmp_path / "ILSVRC2012_img_train.tar",
        make_tar({f"{wnid}.tar": make_tar({f"{wnid}_1.JPEG": JPEG}) for wnid in CLASSES}),
    )
    write(tmp_path / "ILSVRC2012_img_val.tar", make_tar({"a/1.JPEG": JPEG, "b/1.JPEG": JPEG}))
    write(tmp_path / "val.txt", f"a/1.JPEG {A}\nb/1.JPEG {C}\n")
    assert val_classes(tmp_path) == {"a/1.JPEG": A, "b/1.JPEG": C}


TWELVE = tuple(str(number) for number in range(12))


@pytest.mark.parametrize(
    "classes, named, meant",
    [
        (TWELVE, TWELVE, TWELVE),  # which are sorted as text: "10" is the class number 2
        (TWELVE[1:], TWELVE[1:], TWELVE[1:]),
        (("001", "002", "010"), ("1", "2", "10"), ("001", "002", "010")),
        (("000", "001", "002"), ("0", "1", "2"), ("000", "001", "002")),
        (("100", "200", "300"), ("0", "1", "2"), ("100", "200", "300")),
        (CLASSES, ("0", "2", B), (A, C, B)),
    ],
)
def test_a_class_folders_own_name_wins_over_a_number(tmp_path, classes, named, meant):
    files = [f"v{number}.jpg" for number in range(len(named))]
    folders(tmp_path, files, [f"{file} {name}" for file, name in zip(files, named, strict=True)], classes)
    assert val_classes(tmp_path) == dict(zip(files, meant, strict=True))


def test_numbers_that_are_names_and_numbers_are_refused(tmp_path):
    # Folders from 1 and a list from 0: is its 1 the folder 1, or the second folder?
    folders(tmp_path, ["0.jpg", "1.jpg"], ["0.jpg 0", "1.jpg 1"], TWELVE[1:])
    refused(
        tmp_path, r"val\.txt, line 2: 1 is the name of a class, and the number of class 10, and 0 can only be a number"
    )


def test_a_list_longer_than_the_images_is_reported(tmp_path, capfd):
    folders(tmp_path / "in", ["1.jpg"], [f"1.jpg {A}", f"2.jpg {B}", f"3.jpg {B}"])
    with pytest.raises(
        InputError, match=r"--strict: .*val\.txt has labels for 2 of 3 images that are not there, like 2\.jpg"
    ):
        write_dataset(tmp_path / "in", tmp_path / "set", ConvertOptions(strict=True))
    write_dataset(tmp_path / "in", tmp_path / "set")
    assert "notice: " in (said := capfd.readouterr().err) and "labels for 2 of 3 images that are not there" in said


def test_the_same_command_with_other_labels_is_not_finished(tmp_path):
    folders(tmp_path / "in", ["1.jpg"], [f"1.jpg {A}"])
    write_dataset(tmp_path / "in", tmp_path / "set")
    write(tmp_path / "in" / "val.txt", f"1.jpg {B}\n")
    with pytest.raises(InputError, match="holds another data set"):
        write_dataset(tmp_path / "in", tmp_path / "set")
    write(tmp_path / "in" / "val.txt", f"1.jpg {A}\n")
    assert sum(write_dataset(tmp_path / "in", tmp_path / "set").split("val").class_counts) == 1


def test_the_list_may_lie_among_its_images(tmp_path):
    folders(tmp_path, ["1.jpg"], [f"1.jpg {C}"], name="val/val.txt")
    assert val_classes(tmp_path) == {"1.jpg": C}


@pytest.mark.parametrize("composed", ["NFC", "NFD"])
def test_names_are_the_same_in_every_unicode_form(tmp_path, composed):
    other = {"NFC": "NFD", "NFD": "NFC"}[composed]
    name, listed_name = (unicodedata.normalize(form, "é") for form in (composed, other))
    folders(tmp_path / "flat", [f"{name}1.jpg"], [f"{listed_name}1.jpg {listed_name}"], (name, "b"))
    assert val_classes(tmp_path / "flat") == {f"{name}1.jpg": name}
    for split, folder in (("train", name), ("val", listed_name)):
        write(tmp_path / "classes" / split / folder / "1.jpg", JPEG)
    dataset = write_dataset(tmp_path / "classes", tmp_path / "set")
    assert dataset.classes == (name,) and len(contents(dataset)) == 2
    write(tmp_path / "classes" / "train" / listed_name / "2.jpg", JPEG)
    refused(tmp_path / "classes", "are one name in two Unicode forms")
