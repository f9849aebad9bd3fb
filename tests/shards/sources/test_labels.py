"""The labels of a flat validation folder: each way to write them is read, and what does not fit is refused."""

import sys

import pytest

from shards.convert import ConvertOptions, write_dataset
from shards.sources import labels
from tests.support import source_layouts as layouts
from tests.support.source_checks import contents, expected, listed, refused
from tests.support.source_layouts import TRAIN, VAL, WORDS, in_split, write

pytestmark = pytest.mark.usefixtures("in_this_process")


def spoil_solution(root, images):
    layouts.kaggle(root, images)
    return root / "LOC_val_solution.csv"


def spoil_mapping(root, images):
    layouts.archives_with_mapping(root, images)
    return root / "val.txt"


def spoil_devkit(root, images):
    layouts.archives(root, images)
    return root / "ILSVRC2012_devkit_t12.tar.gz"


STEM = "ILSVRC2012_val_00000001"


HEADING = "ImageId,PredictionString\n"


@pytest.mark.parametrize(
    "spoil, content, complaint",
    [
        (spoil_solution, None, "has no labels for its validation images"),
        (spoil_solution, "", r"has no label for .*ILSVRC2012_val_00000001\.JPEG"),
        (spoil_solution, f"{HEADING}{STEM},n99999999 1 2 3 4\n", "is of class n99999999, which the train split lacks"),
        (spoil_solution, f"Image,Prediction\n{STEM},n01440764\n", "is not Kaggle's list of ImageId,PredictionString"),
        (spoil_solution, f"{HEADING}{STEM}\n", "is not Kaggle's list"),
        (spoil_solution, f"{HEADING}{STEM},\n", "is not Kaggle's list"),
        (spoil_solution, f"{HEADING}{STEM},{'n' * 200_000}\n", "is not Kaggle's list"),
        (spoil_solution, b"\xff\xfe\x00\x01" * 99, r"LOC_val_solution\.csv has no label for"),
        (spoil_mapping, None, "has no labels for its validation images"),
        (spoil_mapping, "nothing_00000001.JPEG 0\n", r"val\.txt has no label for ILSVRC2012_val_00000001\.JPEG"),
        (spoil_mapping, f"\n{STEM}.JPEG 8\n", r"val\.txt, line 2: .*8' is not FILE CLASS with CLASS from 0 to 7"),
        (spoil_mapping, f"{STEM}.JPEG -1\n", "is of class -1, which the train split lacks"),
        (spoil_mapping, f"{STEM}.JPEG ²\n", "is of class ², which the train split lacks"),
        (spoil_mapping, f"{STEM}.JPEG\n", "line 1: .* is not FILE CLASS"),
        (spoil_mapping, f"{STEM}.JPEG 1 2\n", "line 1: .* is not FILE CLASS"),
        (spoil_devkit, None, "has no labels for its validation images"),
        (spoil_devkit, b"", r"devkit_t12\.tar\.gz: the tar has no end"),
        (spoil_devkit, b"no gzip", r"devkit_t12\.tar\.gz cannot be read"),
    ],
)
def test_labels_that_cannot_be_read_or_do_not_fit_are_reported(tiny_samples, tmp_path, spoil, content, complaint):
    path = spoil(tmp_path, tiny_samples)
    path.unlink()
    if content is not None:
        write(path, content)
    refused(tmp_path, complaint)


def test_labels_may_be_written_in_other_ways(tiny_samples, tmp_path):
    layouts.official_tars(tmp_path, tiny_samples)
    val = in_split(tiny_samples, "val")
    lines = [f"{sample.stem}.JPEG,{sample.wnid}" for sample in val[:6]]
    lines += [f"val/{sample.stem}.JPEG\t{sample.label}" for sample in val[6:]]
    write(tmp_path / "val.txt", "\ufeff" + "\r\n".join(lines))  # as Windows has it
    assert [wnid for _, wnid in listed(tmp_path)["val"]] == [sample.wnid for sample in val]


@pytest.mark.parametrize(
    "without, truth, complaint",
    [
        ("meta.mat", None, r"holds no meta\.mat: it is not the devkit"),
        ("ground_truth", None, r"holds no ILSVRC2012_validation_ground_truth\.txt"),
        ("", "1\n2\n99\n", r"ground_truth\.txt is not a list of ILSVRC2012 ids"),
        ("", "one\ntwo\n", r"ground_truth\.txt is not a list of ILSVRC2012 ids"),
        ("", "1\n2\n3\n", r"has no label for ILSVRC2012_val_00000004\.JPEG"),
        ("", "9\n" * VAL, "is of class n01482330, which the train split lacks"),  # a synset above the classes
    ],
)
def test_a_devkit_of_other_content_is_refused(tiny_samples, tmp_path, without, truth, complaint):
    layouts.archives(tmp_path, tiny_samples)
    write(tmp_path / labels.DEVKIT, layouts.devkit(tiny_samples, without, truth))
    refused(tmp_path, complaint)


def test_tiny_imagenet_is_read_as_it_is_shipped(tiny_samples, tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    wnids = sorted({sample.wnid for sample in tiny_samples})
    for sample in tiny_samples:
        folder = f"train/{sample.wnid}/images" if sample.split == "train" else "val/images"
        write(root / folder / f"{sample.stem}.JPEG", sample.jpeg)
    for wnid in wnids:
        write(root / "train" / wnid / f"{wnid}_boxes.txt", f"{wnid}_0.JPEG\t0\t62\t2\t31\n")
    lines = [f"{sample.stem}.JPEG\t{sample.wnid}\t0\t32\t44\t62\n" for sample in in_split(tiny_samples, "val")]
    write(root / "val" / "val_annotations.txt", "".join(lines))
    write(root / "test" / "images" / "test_0.JPEG", tiny_samples[0].jpeg)
    write(root / "wnids.txt", "".join(f"{wnid}\n" for wnid in reversed(wnids)))
    write(root / "words.txt", "".join(f"{wnid}\t{words}\n" for wnid, words in WORDS.items()) + "n00001740\tentity\n")
    dataset = write_dataset(root, tmp_path / "set", ConvertOptions(strict=True))
    assert contents(dataset) == expected(tiny_samples) and dataset.words == WORDS
    assert not any(split.skipped for split in dataset.splits.values())
    write(root / "val" / "val_annotations.txt", "val_0.JPEG n01440764\n")
    refused(root, r"line 1: .* is not Tiny ImageNet's FILE WNID X Y X Y with tabs between them")


def test_a_damaged_devkit_is_refused(tiny_samples, tmp_path, monkeypatch):
    layouts.archives(tmp_path, tiny_samples)
    devkit = layouts.devkit(tiny_samples)
    for part in (devkit[: len(devkit) // 2], devkit[:-4]):
        write(tmp_path / labels.DEVKIT, part)
        refused(tmp_path, r"devkit_t12\.tar\.gz cannot be read .*: download it again")
    for begin in range(20, len(devkit) - 40, 97):
        write(tmp_path / labels.DEVKIT, devkit[:begin] + b"\xff" * 30 + devkit[begin + 30 :])
        refused(tmp_path, r"devkit_t12\.tar\.gz cannot be read .*: download it again")
    monkeypatch.setattr(layouts, "meta", lambda: b"MATLAB 5.0 MAT-file, or so it says")
    write(tmp_path / labels.DEVKIT, layouts.devkit(tiny_samples))
    refused(tmp_path, r"meta\.mat cannot be read .*: download it again")
    write(tmp_path / labels.DEVKIT, devkit)
    monkeypatch.setattr(labels, "MAX_DEVKIT", 5000)
    refused(tmp_path, "decompresses to more than 5000 bytes: it is not the devkit")


def test_a_damaged_devkit_does_not_matter_where_val_txt_has_the_labels(tiny_samples, tmp_path):
    layouts.archives_with_mapping(tmp_path, tiny_samples)
    write(tmp_path / labels.DEVKIT, b"no gzip")
    assert [len(images) for images in listed(tmp_path).values()] == [TRAIN, VAL]


def test_a_list_that_counts_from_1_contradicts_the_devkit(tiny_samples, tmp_path):
    layouts.archives(tmp_path, tiny_samples)
    sample = next(sample for sample in in_split(tiny_samples, "val") if sample.label == 5)
    write(tmp_path / "val.txt", f"{sample.stem}.JPEG {sample.label + 1}\n")
    refused(tmp_path, rf"{sample.stem}\.JPEG is given two classes: .*val\.txt, line 1 .* and .*devkit.*, line ")


def test_without_scipy_the_devkit_asks_for_it_and_val_txt_does_not(tiny_samples, tmp_path, monkeypatch):
    layouts.archives(tmp_path, tiny_samples)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    refused(tmp_path, r"meta\.mat needs scipy: pip install '\.\[devkit\]', or write a val\.txt")
    write(tmp_path / "val.txt", layouts.mapping(tiny_samples))
    dataset = write_dataset(tmp_path, tmp_path / "set")
    assert contents(dataset) == expected(tiny_samples) and not dataset.words
