"""Five layouts, one data set: what is read from each, what is refused, and what a hostile file cannot do."""

import io
import json
import os
import re
import resource
import subprocess
import sys
import tarfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from pipeline.compute_stats import complete
from pipeline.loader import Loader
from pipeline.settings import Settings
from pipeline.stats import Stats
from shards import convert, describe, tars
from shards.convert import ConvertOptions, write_dataset
from shards.dataset import Dataset
from shards.describe import describe_tars
from shards.errors import InputError
from shards.index import components, index_tar, read_index
from shards.sources import labels, parquet, webdataset
from shards.sources.base import KINDS
from shards.sources.detect import detect, find_source
from tests.conftest import PROJECT
from tests.support import source_layouts as layouts
from tests.support.image_kinds import encoded, noise
from tests.support.source_layouts import CLASSES, LAYOUTS, TRAIN, VAL, WORDS, of_split, tar_of, write, write_parquet

JPEG = encoded(noise())


def run_here(function, jobs, *_):
    return [function(*job) for job in jobs]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Jobs run where the test does; what worker processes add is tested by `in_workers`."""
    for module in (convert, describe, parquet, webdataset):
        monkeypatch.setattr(module, "run_jobs", run_here)


@pytest.fixture
def in_workers(in_this_process, monkeypatch):
    """Jobs run in worker processes, whose memory is limited."""
    monkeypatch.undo()


@pytest.fixture(scope="module", params=["rendered", "real"])
def images(request):
    """The images of every layout: rendered ones, and real ones of ImageNet where they are."""
    root = request.getfixturevalue({"rendered": "images", "real": "real_images"}[request.param])
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return layouts.samples([path.read_bytes() for path in files[: TRAIN + VAL]])


@pytest.fixture(scope="module")
def roots(images, tmp_path_factory):
    """Each layout in a folder of its own; nobody writes to them."""
    root = tmp_path_factory.mktemp("roots")
    for name, (build, *_) in LAYOUTS.items():
        build(root / name, images)
    return root


@pytest.fixture
def few():
    """Tiny images, each unlike the others, for the tests in which it does not matter what they show."""
    jpegs = [encoded(noise(size=(16 + number, 16))) for number in range(TRAIN + VAL)]
    return layouts.samples(jpegs)


def contents(dataset: Dataset) -> Counter:
    """(split, key, bytes, class) of all that training would read, by the indices."""
    found = Counter()
    for split in dataset.splits:
        for tar in dataset.tars(split):
            content = tar.read_bytes()
            for line in read_index(tar.with_suffix(".idx")):
                parts = {ext: (content[int(at) :][: int(size)], name) for ext, at, size, name in components(line)}
                key = parts["cls"][1].removesuffix(".cls")
                found[split, key, parts["jpg"][0], dataset.classes[int(parts["cls"][0])]] += 1
    return found


def expected(images) -> Counter:
    return Counter((sample.split, sample.stem, sample.jpeg, sample.wnid) for sample in images)


def listed(root: Path, kind="auto") -> dict[str, list[tuple[str, str]]]:
    """(name, class) of each image that a source lists, by split."""
    source = find_source(root, kind, root / ".scratch")
    return {
        split: [(image.name, source.classes[image.label]) for image in images]
        for split, images in source.splits.items()
    }


def refused(root: Path, pattern: str, kind="auto") -> None:
    """The source cannot be listed, and the message says why on one line."""
    with pytest.raises(InputError, match=pattern) as error:
        listed(root, kind)
    assert "\n" not in str(error.value)


def tree(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.lstat().st_size) for path in folder.rglob("*")}


# All layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_images(roots, images, tmp_path, layout):
    _, kind, worded = LAYOUTS[layout]
    before = tree(roots)
    dataset = write_dataset(roots / layout, tmp_path / "set", ConvertOptions(shard_size=300_000))
    assert contents(dataset) == expected(images)
    assert (dataset.source, dataset.classes) == (kind, CLASSES)
    assert dataset.words == (WORDS if worded else {})
    assert not any(split.skipped or split.reencoded for split in dataset.splits.values())
    assert tree(roots) == before and not list((tmp_path / "set").glob(".*"))
    assert dataset == Dataset.load(tmp_path / "set")


def test_public_tars_are_adopted_as_they_are(images, tmp_path):
    layouts.webdataset(tmp_path, images)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    dataset = describe_tars(tmp_path)
    assert contents(dataset) == expected(images) and dataset.classes == CLASSES
    assert {name: split.samples for name, split in dataset.splits.items()} == {"train": TRAIN, "val": VAL}
    assert [shard.name for shard in dataset.split("train").shards] == [f"imagenet1k-train-{n:04}.tar" for n in range(3)]
    assert {name: ((tmp_path / name).read_bytes(), (tmp_path / name).stat().st_mtime_ns) for name in before} == before
    assert dataset == Dataset.load(tmp_path)
    assert describe_tars(tmp_path) == dataset  # the indices that are there fit


def test_training_on_adopted_tars_sees_every_sample_once(images, tmp_path):
    layouts.webdataset(tmp_path, images)
    dataset = describe_tars(tmp_path)
    complete(dataset, 2)
    loader = Loader(dataset, "train", "train", batch_size=8, settings=Settings(2))
    order = loader.order(0)
    assert len({tuple(row) for row in order.reshape(-1, 2)}) == order.size // 2 == TRAIN
    of_key = {sample.stem: sample.label for sample in images}
    seen = 0
    for batch, rows in zip(loader.epoch(0), order, strict=True):
        keys = [components(loader.samples.entries[shard][sample])[0][3].split(".")[0] for shard, sample in rows]
        assert batch.labels.tolist() == [of_key[key] for key in keys]
        seen += batch.valid
    assert seen == TRAIN
    # The encoded images as DALI hands them out, the whole split once
    pipe = Loader(dataset, "val", "read", batch_size=VAL, settings=Settings(2)).pipeline(0)
    jpegs, _ = pipe.run()
    read = Counter(bytes(jpegs.at(number)) for number in range(VAL))
    assert read == Counter(sample.jpeg for sample in of_split(images, "val"))


def test_tars_of_ours_are_a_source_too(few, tmp_path):
    layouts.kaggle(tmp_path / "root", few)
    first = write_dataset(tmp_path / "root", tmp_path / "first")
    second = write_dataset(tmp_path / "first", tmp_path / "second")
    assert contents(second) == contents(first) == expected(few)
    assert (second.source, second.classes) == ("webdataset", CLASSES)


# Which layout


def test_no_layout_is_said_with_those_that_are_known(tmp_path):
    with pytest.raises(InputError, match="is empty: expected ROOT/train"):
        find_source(tmp_path)
    (tmp_path / "cat.jpg").touch()
    (tmp_path / "cats.tar").touch()  # tells no split
    with pytest.raises(InputError, match="holds none of the known layouts: expected ROOT/train") as error:
        find_source(tmp_path)
    assert all(kind in str(error.value) for kind in KINDS)
    with pytest.raises(InputError, match="is not a folder"):
        find_source(tmp_path / "cat.jpg")


def test_two_layouts_at_once_must_be_chosen_from(few, tmp_path):
    layouts.folders(tmp_path, few)
    layouts.webdataset(tmp_path, few[: TRAIN // 2] + few[-VAL:])
    refused(tmp_path, "holds folders and webdataset: say which with --source")
    assert [len(some) for some in listed(tmp_path, "folders").values()] == [TRAIN, VAL]
    assert [len(some) for some in listed(tmp_path, "webdataset").values()] == [TRAIN // 2, VAL]


@pytest.mark.parametrize(
    "kind, complaint",
    [
        ("folders", "has no folder train: expected ROOT/train/WNID"),
        ("archives", r"ILSVRC2012_img_train\.tar cannot be read: No such file"),
        ("kaggle", "holds no ILSVRC/Data/CLS-LOC/train"),
        ("parquet", "holds no parquet files: expected ROOT/data/train-"),
        ("webdataset", r"holds no tars of a train split, like train-000000\.tar"),
    ],
)
def test_a_layout_that_was_asked_for_and_is_not_there_is_said(tmp_path, kind, complaint):
    (tmp_path / "val").mkdir()
    refused(tmp_path, complaint, kind)


def test_other_official_archives_may_lie_beside(few, tmp_path):
    layouts.archives(tmp_path, few)
    for name in ("ILSVRC2012_img_test_v10102019.tar", "ILSVRC2012_img_train_t3.tar"):
        write(tmp_path / name, tar_of({}))
    assert detect(tmp_path) == "archives"


def test_tars_that_tell_no_split_are_named(few, tmp_path):
    layouts.webdataset(tmp_path, few)
    (tmp_path / "imagenet1k-validation-00.tar").rename(tmp_path / "more.tar")
    refused(tmp_path, r"more\.tar has no split in its name: rename it")
    with pytest.raises(InputError, match=r"more\.tar has no split in its name"):
        describe_tars(tmp_path)


# Class folders


def test_links_are_followed_once_and_suffixes_do_not_matter(tmp_path):
    train = tmp_path / "root" / "train"
    for name in ("b/1.JPEG", "b/2.jpg", "b/3.Jpeg", "b/4.PNG", "b/deep/er/5.JPG", "b/.hidden.jpg", "c/6.jpg"):
        write(train / name, JPEG)
    write(tmp_path / "elsewhere" / "7.jpg", JPEG)
    (train / "a").symlink_to(tmp_path / "elsewhere")  # a class folder that lies on another disk
    (train / "c" / "8.jpg").symlink_to(tmp_path / "elsewhere" / "7.jpg")
    for place, target in (("b/loop", "."), ("b/deep/up", ".."), ("b/all", ".."), ("b/other", "../c")):
        (train / place).symlink_to(target)
    (train / "b" / "9.jpg").symlink_to("9.jpg")  # links to nothing but themselves
    (train / "self").symlink_to("self")
    write(train / "readme.txt", "of no class")
    names = {"a": ["a/7.jpg"], "b": [f"b/{name}" for name in ("1.JPEG", "2.jpg", "3.Jpeg", "4.PNG", "9.jpg")]}
    names["b"].append("b/deep/er/5.JPG")
    names["c"] = ["c/6.jpg", "c/8.jpg"]
    found = listed(tmp_path / "root")["train"]
    assert found == [(f"train/{name}", wnid) for wnid, some in names.items() for name in some]
    skipped = write_dataset(tmp_path / "root", tmp_path / "set").split("train").skipped
    assert [image.file for image in skipped] == ["train/b/9.jpg"] and "symbolic links" in skipped[0].reason


def test_two_classes_cannot_be_one_folder(tmp_path):
    write(tmp_path / "train" / "cat" / "1.jpg", JPEG)
    (tmp_path / "train" / "kitten").symlink_to("cat")
    refused(tmp_path, "cat and kitten are one folder")


def test_class_folders_may_have_their_validation_images_in_one(few, tmp_path):
    layouts.folders(tmp_path, of_split(few, "train"))
    for sample in of_split(few, "val"):
        write(tmp_path / "val" / f"{sample.stem}.JPEG", sample.jpeg)
    refused(tmp_path, r"has no labels for its validation images: put ILSVRC2012_devkit_t12\.tar\.gz, .* or val\.txt")
    write(tmp_path / "val.txt", layouts.mapping(few))
    write(tmp_path / "synset_words.txt", "".join(f"{wnid} {words}\n" for wnid, words in WORDS.items()))
    dataset = write_dataset(tmp_path, tmp_path / "set")
    assert contents(dataset) == expected(few) and dataset.words == WORDS


def test_a_validation_class_that_train_lacks_is_named(few, tmp_path):
    layouts.folders(tmp_path, few)
    (tmp_path / "val" / CLASSES[0]).rename(tmp_path / "val" / "n99999999")
    refused(tmp_path, "val/n99999999 is a class that train lacks")


def test_names_with_blanks_and_of_any_alphabet_are_kept_apart(tmp_path):
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


# Labels of validation images


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
        (spoil_mapping, f"{STEM}.JPEG ²\n", "line 1: .* is not FILE CLASS"),
        (spoil_mapping, f"{STEM}.JPEG\n", "line 1: .* is not FILE CLASS"),
        (spoil_mapping, f"{STEM}.JPEG 1 2\n", "line 1: .* is not FILE CLASS"),
        (spoil_devkit, None, "has no labels for its validation images"),
        (spoil_devkit, b"", r"devkit_t12\.tar\.gz: the tar has no end"),
        (spoil_devkit, b"no gzip", r"devkit_t12\.tar\.gz cannot be read"),
    ],
)
def test_labels_that_cannot_be_read_or_do_not_fit_are_named(few, tmp_path, spoil, content, complaint):
    path = spoil(tmp_path, few)
    path.unlink()
    if content is not None:
        write(path, content)
    refused(tmp_path, complaint)


def test_labels_may_be_written_in_other_ways(few, tmp_path):
    layouts.official_tars(tmp_path, few)
    val = of_split(few, "val")
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
def test_a_devkit_of_other_content_is_refused(few, tmp_path, without, truth, complaint):
    layouts.archives(tmp_path, few)
    write(tmp_path / labels.DEVKIT, layouts.devkit(few, without, truth))
    refused(tmp_path, complaint)


def test_a_damaged_devkit_is_refused(few, tmp_path, monkeypatch):
    layouts.archives(tmp_path, few)
    whole = layouts.devkit(few)
    for part in (whole[: len(whole) // 2], whole[:-4]):
        write(tmp_path / labels.DEVKIT, part)
        refused(tmp_path, r"devkit_t12\.tar\.gz cannot be read .*: download it again")
    for begin in range(20, len(whole) - 40, 97):
        write(tmp_path / labels.DEVKIT, whole[:begin] + b"\xff" * 30 + whole[begin + 30 :])
        refused(tmp_path, r"devkit_t12\.tar\.gz cannot be read .*: download it again")
    monkeypatch.setattr(layouts, "meta", lambda: b"MATLAB 5.0 MAT-file, or so it says")
    write(tmp_path / labels.DEVKIT, layouts.devkit(few))
    refused(tmp_path, r"meta\.mat cannot be read .*: download it again")
    write(tmp_path / labels.DEVKIT, whole)
    monkeypatch.setattr(labels, "MAX_DEVKIT", 5000)
    refused(tmp_path, "decompresses to more than 5000 bytes: it is not the devkit")


def test_the_words_of_a_damaged_devkit_are_not_missed_where_val_txt_has_the_labels(few, tmp_path):
    layouts.archives_with_mapping(tmp_path, few)
    write(tmp_path / labels.DEVKIT, b"no gzip")
    assert [len(some) for some in listed(tmp_path).values()] == [TRAIN, VAL]


def test_without_scipy_the_devkit_asks_for_it_and_val_txt_does_not(few, tmp_path, monkeypatch):
    layouts.archives(tmp_path, few)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    refused(tmp_path, r"meta\.mat needs scipy: pip install '\.\[devkit\]', or write a val\.txt")
    write(tmp_path / "val.txt", layouts.mapping(few))
    dataset = write_dataset(tmp_path, tmp_path / "set")
    assert contents(dataset) == expected(few) and not dataset.words


# The official archives


def test_archives_of_other_content_are_refused(few, tmp_path):
    train = tmp_path / "ILSVRC2012_img_train.tar"
    for files, complaint in (
        ({"n01440764/1.JPEG": JPEG}, "holds no tars of classes"),
        ({"a/n01440764.tar": tar_of({"1.JPEG": JPEG}), "b/n01440764.tar": tar_of({})}, r"n01440764\.tar twice"),
        (
            {"n01440764.tar": tar_of({"1.JPEG": JPEG})[:1000]},
            r"img_train\.tar: n01440764\.tar: .*damaged or cut short",
        ),
        ({"n01440764.tar": b""}, r"img_train\.tar: n01440764\.tar: the tar has no end \(0 bytes\)"),
    ):
        write(train, tar_of(files))
        refused(tmp_path, complaint)
    layouts.official_tars(tmp_path, few)
    write(tmp_path / "val.txt", layouts.mapping(few))
    write(train, train.read_bytes()[:-20_000])
    refused(tmp_path, r"img_train\.tar: .*: it is damaged or cut short")


# Parquet


def test_without_pyarrow_the_message_says_how_to_get_it(few, tmp_path, monkeypatch):
    layouts.parquet(tmp_path, few)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    refused(tmp_path, r"reading parquet needs pyarrow: pip install '\.\[parquet\]'")


def test_parquet_files_of_other_columns_are_refused(tmp_path):
    import pyarrow
    from pyarrow import parquet

    text = pyarrow.array([{"bytes": "text", "path": "a.jpg"}])
    column = pyarrow.array([{"bytes": b"", "path": "a.jpg"}])
    for columns, found in (
        ({"text": ["a"]}, r"text \(string\): expected image"),
        ({"image": [b"jpeg"], "label": [1]}, r"image \(binary\), label"),
        ({"image": text, "label": [1]}, r"image \(struct<bytes: string"),
        ({"image": column, "label": ["one"]}, r"label \(string\)"),
        ({"image": column, "label": [True]}, r"label \(bool\)"),
        ({"image": pyarrow.array([{"path": "a.jpg"}]), "label": [1]}, r"image \(struct<path: string>\)"),
    ):
        (tmp_path / "data").mkdir(exist_ok=True)
        parquet.write_table(pyarrow.table(columns), tmp_path / "data" / "train-0.parquet")
        refused(tmp_path, rf"train-0\.parquet has the columns .*{found}")


@pytest.mark.parametrize("label", [-1, 10**6, 10**12, 2**63 - 1, None])
def test_parquet_labels_that_are_no_class_numbers_are_refused(tmp_path, label):
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


def test_damaged_parquet_is_named_wherever_the_damage_is(few, tmp_path):
    from pyarrow.parquet import read_metadata

    layouts.parquet(tmp_path, few)
    path = tmp_path / "data" / "train-00001-of-00003.parquet"
    whole = path.read_bytes()
    # The header of the second group's page of images, which is only read when these are
    page = read_metadata(path).row_group(1).column(0).dictionary_page_offset
    damages = [whole[:page] + b"\xff" * 15 + whole[page + 15 :], whole[:4] + b"\xff" * (len(whole) - 8) + whole[-4:]]
    for damaged in damages + [whole[:size] for size in (0, 3, len(whole) // 2, len(whole) - 1)]:
        path.write_bytes(damaged)
        refused(tmp_path, r"train-00001-of-00003\.parquet cannot be read as parquet \(.+\): bring an undamaged copy")
    assert not list((tmp_path / ".scratch").glob(f"*{path.name}.bytes*"))


def test_hostile_names_in_parquet_write_nothing_elsewhere(in_workers, tmp_path):
    root, out = tmp_path / "a" / "root", tmp_path / "a" / "out"
    names = [
        "../../evil.JPEG",
        str(tmp_path / "evil.JPEG"),
        "..",
        "a\0b.JPEG",
        "/",
        "x" * 10**6,
        "\n\r.JPEG",
        "../../evil.JPEG",
    ]
    write_parquet(
        root / "train-0.parquet", [(encoded(noise(size=(16, 16 + n))), name, n) for n, name in enumerate(names)]
    )
    before = tree(tmp_path)
    dataset = write_dataset(root, out, ConvertOptions(workers=1))
    assert {(path, size) for path, size in tree(tmp_path) if not path.startswith(str(out))} == before
    assert sum(size for _, size in tree(out)) < 50_000  # the long name is nowhere
    keys = [key for _, key, *_ in contents(dataset)]
    assert len(set(keys)) == len(keys) == len(names) and all("/" not in key and "." not in key for key in keys)


def bomb(path: Path, data: bytes, name: str, rows: int, dictionary: bool) -> None:
    """A small parquet file of very many rows, all of one value."""
    import pyarrow
    from pyarrow import parquet

    def many(value):
        return pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(rows, np.int8)), pyarrow.array([value]))

    image = pyarrow.StructArray.from_arrays([many(data), many(name)], ["bytes", "path"])
    table = pyarrow.table({"image": image, "label": pyarrow.array(np.zeros(rows, np.int8))})
    path.parent.mkdir(parents=True)
    parquet.write_table(table, path, store_schema=dictionary)


@pytest.mark.parametrize(
    "data, name, rows, dictionary",
    [
        (bytes(4_000_000), "a.jpg", 1_000_000, False),  # 4 TB of images
        (bytes(140_000_000), "a.jpg", 1000, False),  # more in a batch than a worker may hold
        (b"", "x" * 4_000_000, 1_000_000, False),
        (b"", "a.jpg", 5_000_000, False),
        (b"", "a.jpg", 1000, True),
    ],
    ids=["pictures", "huge images", "names", "rows", "dictionary columns"],
)
def test_a_parquet_bomb_ends_soon(in_workers, tmp_path, data, name, rows, dictionary):
    bomb(tmp_path / "root" / "train-0.parquet", data, name, rows, dictionary)
    assert (tmp_path / "root" / "train-0.parquet").stat().st_size < 10_000_000
    began = time.monotonic()
    with pytest.raises(InputError, match=r"train-0\.parquet (decompresses to|asks for too much|has the columns)"):
        write_dataset(tmp_path / "root", tmp_path / "set", ConvertOptions(workers=1))
    assert time.monotonic() - began < 15
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 3 * 2**20  # KiB
    assert not (tmp_path / "set").exists() or sum(size for _, size in tree(tmp_path / "set")) < 10**6


# Tars: what they hold


def found_in(content: bytes) -> list[tars.Member]:
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
            member = tarfile.TarInfo(name)
            member.size = 0 if name == "empty" else 511 + number % 3
            member.mtime = number + 0.5 if format == tarfile.PAX_FORMAT else number  # half seconds make a header more
            tar.addfile(member, io.BytesIO(bytes(member.size)))
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
                other = tarfile.TarInfo(f"{name[:50]}.other")
                other.type, other.linkname = kind, names[-1] if kind != tarfile.SYMTYPE else "k" * 100
                tar.addfile(other)
    content.seek(0)
    with tarfile.open(fileobj=content) as tar:
        known = [(member.name, member.offset_data, member.size) for member in tar if member.isreg()]
    assert [name for name, *_ in known] == names
    assert found_in(content.getvalue()) == known


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_more_than_8_gib_are_measured(tmp_path, format):
    big = tarfile.TarInfo("big.jpg")
    big.size = 9 * 2**30
    path = tmp_path / "train-0.tar"
    with open(path, "wb") as file:  # a file of holes
        file.write(big.tobuf(format))
        begin = file.tell()
        file.seek(begin + big.size)
        file.write(tar_of({"small.jpg": JPEG}))
    with tars.opened(path) as file:
        found = list(tars.members(file, "a.tar"))
    assert found == [("big.jpg", begin, big.size), ("small.jpg", begin + big.size + 512, len(JPEG))]


def raw(name: str, size: bytes, kind: bytes = b"0", data: bytes = b"", link: bytes = b"") -> bytes:
    """A member whose header says `size`, whatever that is."""
    block = bytearray(tars.header(os.fsencode(name), 0))
    block[124:136], block[156:157], block[148:156] = size.ljust(12, b"\0"), kind, b" " * 8
    block[157 : 157 + len(link)] = link
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block) + data.ljust(tars.padded(len(data)), b"\0")


def pax(records: bytes) -> bytes:
    return raw("pax", b"%011o" % len(records), b"x", records)


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    length += len(str(length + len(str(length))))
    return b"%d %s=%s\n" % (length, key, value)


def binary(number: int) -> bytes:
    return b"\x80" + number.to_bytes(11, "big")


def test_odd_headers_are_understood():
    def one(content):
        return found_in(content + bytes(1024))

    assert one(raw("a.jpg", binary(5), data=b"hello")) == [("a.jpg", 512, 5)]
    assert one(raw("a.jpg", b"    5 ", data=b"hello")) == [("a.jpg", 512, 5)]
    assert one(raw("a.jpg", b"5\0garbage", b"\0", data=b"hello")) == [("a.jpg", 512, 5)]
    assert one(raw("a.jpg", b"5", b"7", data=b"hello")) == [("a.jpg", 512, 5)]
    gnu = bytearray(raw("a.jpg", b"5", data=b"hello"))
    gnu[257:265], gnu[345:356] = b"ustar  \0", b"00000000012"  # GNU has a time where others have a folder
    gnu[148:154] = b"%06o" % (sum(gnu[:148]) + 8 * 32 + sum(gnu[156:512]))
    assert one(bytes(gnu)) == [("a.jpg", 512, 5)]
    assert one(pax(record(b"size", b"5") + record(b"path", b"b=c d")) + raw("a.jpg", b"0", data=b"hello")) == [
        ("b=c d", 1024 + 512, 5)
    ]
    # What is no record ends the records and takes nothing with it
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
        assert one(pax(record(b"path", b"b") + broken) + raw("a.jpg", b"0"))[0].name == "b"
    for size in (b"-5", b"9" * 5000, b"", b"five"):
        assert one(pax(record(b"size", size)) + raw("a.jpg", b"0"))[0].size == 0


@pytest.mark.parametrize(
    "name, told",
    [
        (b"\xff\xfe.jpg", r"\xff\xfe.jpg"),
        (b"two\nlines.jpg", r"two\nlines.jpg"),
        (b"\x1b[31mred.jpg", r"\x1b[31mred.jpg"),
        (b"bell\a\x7f\xc2\x85.jpg", r"bell\x07\x7f\x85.jpg"),
    ],
)
def test_names_that_no_terminal_should_see_are_spelt_out(tmp_path, name, told):
    for content in (
        raw(os.fsdecode(name), b"%o" % len(JPEG), data=JPEG),
        raw("long", b"%o" % len(name), b"L", name) + raw("short", b"%o" % len(JPEG), data=JPEG),
        pax(record(b"path", name)) + raw("short", b"%o" % len(JPEG), data=JPEG),
    ):
        assert [member.name for member in tars.members(content + bytes(1024), "a.tar")] == [told]
        write(tmp_path / "train-0.tar", GOOD + content + bytes(1024))
        dataset = describe_tars(tmp_path)
        assert [sample.key for sample in dataset.split("train").quarantined] == [told.removesuffix(".jpg")]
        assert dataset.fingerprint and json.loads((tmp_path / "dataset.json").read_text())
        (tmp_path / "train-0.idx").unlink()


GOOD = tar_of({"good.jpg": JPEG, "good.cls": b"0"})[: 2 * 512 + tars.padded(len(JPEG)) + 512]
HOSTILE = {
    "2^60 bytes": (raw("a.jpg", binary(2**60)), r"'a\.jpg' promises 1152921504606846976 bytes and \d+ are left"),
    "2^87 bytes": (raw("a.jpg", binary(2**87)), "promises"),
    "2^60 bytes in pax": (pax(record(b"size", b"%d" % 2**60)) + raw("a.jpg", b"0"), "promises"),
    "10^20 bytes in pax": (pax(record(b"size", b"9" * 20)) + raw("a.jpg", b"0"), "promises"),
    "negative size": (raw("a.jpg", b"-0000001000"), "negative size"),
    "negative name": (raw("a.jpg", b"-0000001000", b"L"), "negative size"),
    "negative binary size": (raw("a.jpg", b"\xff" * 12), "negative size"),
    "name of 2^60 bytes": (raw("a.jpg", binary(2**60), b"L"), "promises"),
    "name of a megabyte": (raw("a.jpg", b"%o" % 2**20, b"L", bytes(2**20)), "a name of 1048576 bytes"),
    "header of 2^60 bytes": (raw("a.jpg", binary(2**60), b"x"), "promises"),
    "global header of 2^60 bytes": (raw("a.jpg", binary(2**60), b"g"), "promises"),
    "wrong checksum": (raw("a.jpg", b"5")[:-20] + bytes(8) + b"wrong" + bytes(7), "no tar header at byte .*checksum"),
    "garbage": (b"\xff" * 512, "no tar header"),
    "text": (b"<html>not found</html>".ljust(1024), "no tar header"),
    "cut in a header": (raw("a.jpg", b"5")[:300], "the tar has no end"),
    "cut in a member": (raw("a.jpg", b"%o" % 5000, data=b"data"), r"'a\.jpg' promises 5000 bytes and 512 are left"),
    "no end": (b"", "the tar has no end"),
    "too many parts": (b"".join(raw(f"a.{n}", b"1", data=b"1") for n in range(65)) + bytes(1024), "more than 64 files"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_or_damaged_tar_is_refused_by_name(tmp_path, what):
    hostile, complaint = HOSTILE[what]
    tar, end = tmp_path / "train-0.tar", b"" if what.startswith(("cut", "no end")) else bytes(1024)
    write(tar, GOOD + hostile + end)
    message = rf"train-0\.tar: .*{complaint}"
    with pytest.raises(InputError, match=message):
        list(islice(tars.samples(tar), 100))  # which would not end if it were led back to where it has been
    with pytest.raises(InputError, match=message):
        index_tar(tar)
    refused(tmp_path, message)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=message):
        describe_tars(tmp_path)
    assert tree(tmp_path) == before


def test_what_only_bears_the_name_of_a_tar_is_refused(few, tmp_path):
    layouts.webdataset(tmp_path, few)
    (tmp_path / "train-folder.tar").mkdir()
    refused(tmp_path, r"train-folder\.tar is no file")
    (tmp_path / "train-folder.tar").rmdir()
    os.mkfifo(tmp_path / "train-pipe.tar")
    refused(tmp_path, r"train-pipe\.tar is no file")
    with pytest.raises(InputError, match=r"train-pipe\.tar is no file"):
        describe_tars(tmp_path)


def evil(tar: Path, elsewhere: Path) -> list[bytes]:
    """A tar of what is no file, of a size that no data follow, and of names that lead out of its folder; the images
    that it holds."""
    jpegs = [encoded(noise(size=(16, 16 + number))) for number in range(5)]
    stems = ["good", "../../evil", str(elsewhere / "evil"), "a/../../../evil_2", "C:\\evil_3"]
    secret = os.fsencode(elsewhere / "secret.jpg")
    links = b"".join(raw(f"link_{kind}.jpg", b"%o" % 5000, b"%d" % kind, link=secret) for kind in range(1, 7))
    files = {
        f"{stem}.{ext}": data
        for stem, jpeg in zip(stems, jpegs, strict=True)
        for ext, data in (("jpg", jpeg), ("cls", b"0"))
    }
    write(tar, links + tar_of(files))
    return jpegs


def test_names_links_and_devices_in_a_tar_reach_nothing_outside(tmp_path):
    write(tmp_path / "secret.jpg", JPEG)  # to which the links lead
    root, out = tmp_path / "a" / "b" / "root", tmp_path / "a" / "b" / "out"
    jpegs = evil(root / "train-0.tar", tmp_path)
    before = tree(tmp_path)
    dataset = write_dataset(root, out, ConvertOptions(kind="webdataset"))
    stored = {jpeg: key for _, key, jpeg, _ in contents(dataset)}
    assert set(stored) == set(jpegs) and all("/" not in key and "." not in key for key in stored.values())
    assert {(path, size) for path, size in tree(tmp_path) if not path.startswith(str(out))} == before
    adopted = describe_tars(root)
    complete(adopted, 1)
    assert adopted.split("train").samples == len(jpegs) and not adopted.split("train").quarantined
    added = {path for path, _ in tree(tmp_path) - before if not path.startswith(str(out))}
    assert added == {str(root / name) for name in ("train-0.idx", "dataset.json", "stats.npz")}
    with tarfile.open(root / "more-val-0.tar", "w") as tar:  # a class for what is only a link to an image
        member = tarfile.TarInfo("link.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
        member = tarfile.TarInfo("link.cls")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"0"))
    refused(root, r"more-val-0\.tar: sample link has no image: repair the tar, or train on it where it is")
    with pytest.raises(
        InputError, match=r"no sample of the val split can be used \(more-val-0\.tar: link: it has no image"
    ):
        describe_tars(root)


def test_links_in_the_official_archives_are_passed_over(few, tmp_path):
    evil(tmp_path / "inner.tar", tmp_path)
    write(
        tmp_path / "root" / "ILSVRC2012_img_train.tar",
        tar_of({"../n01440764.tar": (tmp_path / "inner.tar").read_bytes()}),
    )
    before = tree(tmp_path)
    dataset = write_dataset(tmp_path / "root", tmp_path / "set")
    assert dataset.classes == ("n01440764",) and dataset.split("train").samples == 5
    reasons = Counter(image.reason for image in dataset.split("train").skipped)
    assert reasons == {"not an image": 5}  # the .cls files
    assert {(path, size) for path, size in tree(tmp_path) if not path.startswith(str(tmp_path / "set"))} == before


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


# WebDataset tars of others


@pytest.mark.parametrize("described", [False, True])
def test_tars_of_webdatasets_writer_are_read(few, tmp_path, described):
    for split in ("train", "val"):
        pattern = str(tmp_path / f"{split}-%06d.tar")
        with wds.ShardWriter(pattern, maxcount=9, verbose=0) as writer:
            for sample in of_split(few, split):
                more = {"json": {"wnid": sample.wnid, "caption": "ü" * 9}} if described else {"txt": "a fish"}
                writer.write(
                    {"__key__": f"some/folder.d/{sample.stem}", "jpg": sample.jpeg, "cls": sample.label, **more}
                )
    adopted = describe_tars(tmp_path)
    stored = contents(write_dataset(tmp_path, tmp_path / "set"))
    assert stored == expected(few)
    assert Counter((split, key.rpartition("/")[2], *rest) for (split, key, *rest) in contents(adopted)) == stored


def test_samples_that_cannot_be_used_are_quarantined_with_the_reason(few, tmp_path):
    layouts.webdataset(tmp_path, few)
    files = {
        "no image.cls": b"1",
        "no_cls.jpg": JPEG,
        "text.jpg": JPEG,
        "text.cls": b"fish",
        "minus.jpg": JPEG,
        "minus.cls": b"-1",
        "million.jpg": JPEG,
        "million.cls": b"1000000",
        "long.jpg": JPEG,
        "long.cls": b"1" + b"\n" * 99 + b"2",
        "empty.jpg": b"",
        "empty.cls": b"1",
        "broken.jpg": JPEG[:-300],
        "broken.cls": b"1",
        "other.jpg": b"no image",
        "other.cls": b"1",
        "good.jpg": JPEG,
        "good.cls": b" 1\n",
        "good.json": b"{" * 60_000,
    }
    write(tmp_path / "more-train-0.tar", tar_of(files))
    dataset = describe_tars(tmp_path)
    reasons = {sample.key: sample.reason for sample in dataset.split("train").quarantined}
    assert {sample.shard for sample in dataset.split("train").quarantined} == {"more-train-0.tar"}
    for key, pattern in {
        "no_image": "no image",
        "no_cls": r"no \.cls",
        "text": r"text\.cls holds b'fish' and should be a class number",
        "minus": "b'-1'",
        "million": "b'1000000'",
        "long": "should be a class number",
        "empty": "no image",
        "broken": "truncated",
        "other": "not an image",
    }.items():
        assert re.search(pattern, reasons.pop(key)), key
    assert not reasons
    found = contents(dataset)
    assert found == expected(few) + Counter([("train", "good", JPEG, CLASSES[1])])
    refused(
        tmp_path, r"more-train-0\.tar: sample no_cls has no \.cls|text\.cls holds b'fish' and should be a class number"
    )


def test_names_with_blanks_and_of_any_alphabet_are_adopted(tmp_path):
    files, jpegs = {}, []
    for number, stem in enumerate(("a b", "große Katze", "猫", "a b/c d", "x" * 200)):
        jpegs.append(encoded(noise(size=(16 + number, 16))))
        files |= {
            f"{stem}.jpg": jpegs[-1],
            f"{stem}.cls": b"%d" % (number % 2),
            f"{stem}.my notes": b"what nobody reads",
        }
    write(tmp_path / "train-0.tar", tar_of(files, tarfile.PAX_FORMAT))
    dataset = describe_tars(tmp_path)
    assert {jpeg: wnid for _, _, jpeg, wnid in contents(dataset)} == {jpeg: str(n % 2) for n, jpeg in enumerate(jpegs)}
    complete(dataset, 1)  # DALI reads the index
    assert Stats.load(tmp_path).samples == len(jpegs)
    stored = {jpeg: key for _, key, jpeg, _ in contents(write_dataset(tmp_path, tmp_path / "set"))}
    assert set(stored) == set(jpegs) and len(set(stored.values())) == len(jpegs)


def test_of_a_samples_images_the_first_is_taken_as_dali_does(tmp_path):
    gray, color = encoded(noise("L")), encoded(noise())
    files = {"a.jpg": gray, "a.jpeg": color, "a.cls": b"0", "b.png": gray, "b.jpg": color, "b.cls": b"0"}
    write(tmp_path / "train-0.tar", tar_of(files))
    jpegs, _ = Loader(describe_tars(tmp_path), "train", "read", batch_size=2, settings=Settings(1)).pipeline(0).run()
    assert [bytes(jpegs.at(number)) for number in range(2)] == [gray, gray]
    assert {jpeg for _, _, jpeg, _ in contents(write_dataset(tmp_path, tmp_path / "set"))} == {gray}


def test_an_index_that_does_not_fit_is_refused_and_one_that_does_is_kept(few, tmp_path):
    layouts.webdataset(tmp_path, few)
    describe_tars(tmp_path)
    index = tmp_path / "imagenet1k-train-0001.idx"
    head, *lines = index.read_text().splitlines()
    other_order = "\n".join([head, *reversed(lines), ""])
    index.write_text(other_order)
    describe_tars(tmp_path)
    assert index.read_text() == other_order
    index.write_text("\n".join([f"v1.2 {len(lines) - 1}", *lines[1:], ""]))
    with pytest.raises(InputError, match=r"train-0001\.idx does not list the samples of .*0001\.tar .*: delete it"):
        describe_tars(tmp_path)


# As a user types it


def test_the_command_shards_kaggles_tree(few, tmp_path, run_cli):
    layouts.kaggle(tmp_path / "root", few)
    layouts.folders(tmp_path / "root", few[:8])
    done = run_cli("shard", "--source", "kaggle", "--imagenet-root", tmp_path / "root", "--out", tmp_path / "set")
    assert "train: 40 samples" in done.stdout and "val: 12 samples" in done.stdout
    dataset = Dataset.load(tmp_path / "set")
    assert contents(dataset) == expected(few) and dataset.words == WORDS
    assert Stats.load(tmp_path / "set").samples == TRAIN


def test_the_command_indexes_public_tars(few, tmp_path, run_cli):
    layouts.webdataset(tmp_path, few)
    tars_before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run_cli("index", tmp_path)
    assert contents(Dataset.load(tmp_path)) == expected(few)
    assert Stats.load(tmp_path).samples == TRAIN
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert tars_before.items() <= files.items() and len(files) == 2 * len(tars_before) + 2
