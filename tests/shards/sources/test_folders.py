"""Class folders: links, names of any alphabet, and a flat folder for validation."""

import os

import pytest

from shards.convert import ConvertOptions, write_dataset
from shards.errors import InputError
from tests.support import source_layouts as layouts
from tests.support.image_kinds import JPEG, encoded, noise
from tests.support.source_checks import contents, expected, listed, refused, tree
from tests.support.source_layouts import CLASSES, WORDS, in_split, write

pytestmark = pytest.mark.usefixtures("in_this_process")


def test_links_are_followed_once_and_suffixes_do_not_matter(tmp_path):
    train = tmp_path / "root" / "train"
    for name in ("b/1.JPEG", "b/2.jpg", "b/3.Jpeg", "b/4.PNG", "b/deep/er/5.JPG", "b/.hidden.jpg", "c/6.jpg"):
        write(train / name, JPEG)
    write(tmp_path / "elsewhere" / "7.jpg", JPEG)
    (train / "a").symlink_to(tmp_path / "elsewhere")  # a class folder on another disk
    (train / "c" / "8.jpg").symlink_to(tmp_path / "elsewhere" / "7.jpg")
    for place, target in (("b/loop", "."), ("b/deep/up", ".."), ("b/all", ".."), ("b/other", "../c")):
        (train / place).symlink_to(target)
    (train / "b" / "9.jpg").symlink_to("9.jpg")  # links to themselves alone
    (train / "self").symlink_to("self")
    write(train / "readme.txt", "of no class")
    names = {"a": ["a/7.jpg"], "b": [f"b/{name}" for name in ("1.JPEG", "2.jpg", "3.Jpeg", "4.PNG", "9.jpg")]}
    names["b"].append("b/deep/er/5.JPG")
    names["c"] = ["c/6.jpg", "c/8.jpg"]
    images = listed(tmp_path / "root")["train"]
    assert images == [(f"train/{name}", wnid) for wnid, files in names.items() for name in files]
    skipped = write_dataset(tmp_path / "root", tmp_path / "set").split("train").skipped
    assert [image.file for image in skipped] == ["train/b/9.jpg"] and "symbolic links" in skipped[0].reason


def test_two_classes_cannot_be_one_folder(tmp_path):
    write(tmp_path / "train" / "cat" / "1.jpg", JPEG)
    (tmp_path / "train" / "kitten").symlink_to("cat")
    refused(tmp_path, "cat and kitten are one folder")


def test_class_folders_may_have_their_validation_images_in_one_folder(tiny_samples, tmp_path):
    layouts.folders(tmp_path, in_split(tiny_samples, "train"))
    for sample in in_split(tiny_samples, "val"):
        write(tmp_path / "val" / f"{sample.stem}.JPEG", sample.jpeg)
    refused(tmp_path, r"has no labels for its validation images: put ILSVRC2012_devkit_t12\.tar\.gz, .* or val\.txt")
    write(tmp_path / "val.txt", layouts.mapping(tiny_samples))
    write(tmp_path / "synset_words.txt", "".join(f"{wnid} {words}\n" for wnid, words in WORDS.items()))
    dataset = write_dataset(tmp_path, tmp_path / "set")
    assert contents(dataset) == expected(tiny_samples) and dataset.words == WORDS


def test_a_validation_class_that_train_lacks_is_reported(tiny_samples, tmp_path):
    layouts.folders(tmp_path, tiny_samples)
    (tmp_path / "val" / CLASSES[0]).rename(tmp_path / "val" / "n99999999")
    refused(tmp_path, "val/n99999999 is a class that train lacks")


def test_names_with_spaces_and_of_any_alphabet_get_keys_of_their_own(tmp_path):
    for name in ("große Katze/bild 1.jpg", "große Katze/Bild 1.jpg", "猫/一.jpg", "猫/二.jpg"):
        write(tmp_path / "root" / "train" / name, encoded(noise(size=(16, 16 + len(tree(tmp_path))))))
    os.makedirs(os.fsencode(tmp_path / "root" / "train") + b"/\xff")
    with open(os.fsencode(tmp_path / "root" / "train") + b"/\xff/\xfe.jpg", "wb") as file:
        file.write(JPEG)
    dataset = write_dataset(tmp_path / "root", tmp_path / "set")
    stored = {jpeg: (key, wnid) for _, key, jpeg, wnid in contents(dataset)}
    assert len({key for key, _ in stored.values()}) == len(stored) == 5
    for path in (tmp_path / "root" / "train").rglob("*.jpg"):
        key, wnid = stored[path.read_bytes()]
        assert wnid == path.parent.name and key.isascii() and " " not in key
    again = write_dataset(tmp_path / "set", tmp_path / "again")
    assert contents(again) == contents(dataset)


def test_val_alone_can_be_converted_to_be_evaluated_on(tmp_path, capsys):
    for number, name in enumerate(("a", "b")):
        write(tmp_path / "images" / "val" / name / f"{number}.jpg", JPEG)
    dataset = write_dataset(tmp_path / "images", tmp_path / "set", ConvertOptions(strict=True))
    assert list(dataset.splits) == ["val"] and dataset.classes == ("a", "b") and dataset.split("val").samples == 2
    assert "there is no train split: the set can be evaluated on, and not trained on" in capsys.readouterr().err
    write(tmp_path / "images" / "training" / "a" / "1.jpg", JPEG)  # a train split under another name
    refused(tmp_path / "images", r"has no folder train, and holds training/: a folder with images \(rename it")


def class_folders(root, sizes):
    """ROOT/CLASS/N.jpg, as many as each class's size says."""
    for name, size in sizes.items():
        for number in range(size):
            write(root / name / f"{number}.jpg", encoded(noise(size=(16, 16 + number))))


def test_class_folders_alone_are_the_classes_to_train_on(tmp_path, capsys):
    class_folders(tmp_path / "photos", {"cats": 3, "red foxes": 2})
    write(tmp_path / "photos" / "notes" / "read.txt", "no image")
    write(tmp_path / "photos" / "words.txt", "cats,domestic cat\nred foxes\tVulpes vulpes\n")
    options = ConvertOptions(strict=True, workers=1)
    dataset = write_dataset(tmp_path / "photos", tmp_path / "photos" / "set", options)
    assert dataset.classes == ("cats", "red foxes") and dataset.split("train").class_counts == (3, 2)
    assert dataset.words == {"cats": "domestic cat", "red foxes": "Vulpes vulpes"}
    errors = capsys.readouterr().err
    assert "its 2 folders with images are the classes to train on, from cats to red foxes" in errors
    assert "--val-share 0.1 draws a tenth of each class; without it training is not evaluated" in errors
    # The data set inside is no class
    assert write_dataset(tmp_path / "photos", tmp_path / "photos" / "set", options) == dataset
    with pytest.raises(InputError, match="lies among the images"):
        write_dataset(tmp_path / "photos", tmp_path / "photos" / "cats" / "set", options)


@pytest.mark.parametrize(
    "sizes, complaint",
    [
        ({"cats": 2}, "if its folders are classes, move them to"),
        ({"Train/cats": 2, "Train/dogs": 2}, "call Train train, if it holds class folders"),
        ({"training/cats": 2, "validation/cats": 2}, "call training train"),
    ],
)
def test_folders_that_may_not_be_classes_are_not_guessed_at(tmp_path, sizes, complaint):
    class_folders(tmp_path, sizes)
    refused(tmp_path, complaint)


@pytest.mark.parametrize("name", ["valid", "validation", "test"])
def test_a_test_folder_with_train_s_classes_is_for_validation(tmp_path, capsys, name):
    class_folders(tmp_path / "root", {"train/a": 2, "train/b": 2, f"{name}/b": 1})
    dataset = write_dataset(tmp_path / "root", tmp_path / "set", ConvertOptions(strict=True, workers=1))
    assert dataset.split("val").class_counts == (0, 1) and not dataset.left_out
    assert capsys.readouterr().err.count(f"{name} is taken for validation, for there is no folder val") == 1
    with pytest.raises(InputError, match=r"--val-share 0\.1: .* has validation images of its own: leave it out"):
        write_dataset(tmp_path / "root", tmp_path / "other", ConvertOptions(val_share=0.1, workers=1))


@pytest.mark.parametrize("name", ["valid", "validation", "test"])
def test_a_test_folder_with_a_class_that_train_lacks_is_not_taken(tmp_path, capsys, name):
    class_folders(tmp_path / "root", {"train/a": 2, "train/b": 2, f"{name}/b": 1, f"{name}/unknown": 1})
    dataset = write_dataset(tmp_path / "root", tmp_path / "set", ConvertOptions(workers=1))
    why = f"a folder with images (class unknown is not in train, so {name} is not taken for validation)"
    assert list(dataset.splits) == ["train"] and f"not taken: {name}/: {why}" in capsys.readouterr().err


def test_a_test_folder_beside_the_validation_images_is_not_taken(tmp_path, capsys):
    class_folders(tmp_path / "root", {"train/a": 2, "train/b": 2, "valid/a": 1, "test/unknown": 1})
    dataset = write_dataset(tmp_path / "root", tmp_path / "set", ConvertOptions(workers=1))
    assert dataset.split("val").class_counts == (1, 0)
    why = "a folder with images (only the folders train and valid are read)"
    assert f"not taken: test/: {why}" in capsys.readouterr().err
