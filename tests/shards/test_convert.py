"""A conversion stores every image that can be read, as the options say, and names every one that it skips."""

import io
import json
import os
import shutil
import tarfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from shards.convert import ConvertOptions, write_dataset
from shards.dataset import Dataset
from shards.errors import InputError
from shards.records import Sizes
from tests.support.image_kinds import READABLE, UNREADABLE, encoded, noise


def members(tar) -> dict[str, bytes]:
    with tarfile.open(tar) as file:
        return {member.name: file.extractfile(member).read() for member in file}


def test_original_bytes_are_kept(images, data):
    dataset = Dataset.load(data)
    found = {}
    for split in dataset.splits:
        for tar in dataset.tars(split):
            stored = members(tar)
            for name in [name for name in stored if name.endswith(".json")]:
                about = json.loads(stored[name])
                source = images / about["file"]
                image = Image.open(source)
                assert stored[name[:-4] + "jpg"] == source.read_bytes()
                assert (about["width"], about["height"], about["wnid"]) == (*image.size, source.parent.name)
                assert dataset.classes[int(stored[name[:-4] + "cls"])] == source.parent.name
                found[about["file"]] = split
    assert found == {str(p.relative_to(images)): p.relative_to(images).parts[0] for p in images.glob("*/*/*.jpg")}
    assert dataset.classes == tuple(sorted(p.name for p in (images / "train").iterdir()))


@pytest.mark.parametrize("size", [None, 256])
def test_any_number_of_workers_writes_the_same_bytes(images, tmp_path, size):
    for workers in (1, 2):
        write_dataset(images, tmp_path / str(workers), ConvertOptions(size=size, shard_size=700_000, workers=workers))
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in "12")
    assert one == two and len([name for name in one if name.endswith(".tar")]) > 3


def test_the_seed_decides_the_order_of_train(images, tmp_path):
    def order(out):
        return [name for tar in Dataset.load(out).tars("train") for name in members(tar) if name.endswith(".jpg")]

    for seed in (0, 1):
        write_dataset(images, tmp_path / str(seed), ConvertOptions(seed=seed))
    first, second = (order(tmp_path / n) for n in "01")
    assert sorted(first) == sorted(second) and first != second and sorted(first) != first


def test_squares_are_the_papers(images, tmp_path):
    out = tmp_path / "set"
    write_dataset(images, out, ConvertOptions(size=256, quality=100))
    stored = members(out / "train-000000.tar")
    for name in [name for name in stored if name.endswith(".json")][:10]:
        about = json.loads(stored[name])
        image = Image.open(images / about["file"])
        shorter = min(image.size)
        width, height = (int(np.floor(side * 256 / shorter + 0.5)) for side in image.size)
        scaled = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)
        top, left = (height - 256) // 2, (width - 256) // 2
        square = np.asarray(Image.open(io.BytesIO(stored[name[:-4] + "jpg"])), np.float32)
        assert square.shape == (256, 256, 3) and (about["width"], about["height"]) == (256, 256)
        assert np.abs(square - scaled[top : top + 256, left : left + 256]).mean() < 1  # JPEG's own loss at quality 100


def test_every_kind_of_image_is_stored_or_named(tmp_path):
    folder = tmp_path / "root" / "train" / "n01440764"
    folder.mkdir(parents=True)
    kinds = {**READABLE, **UNREADABLE}
    for number, (made, _) in enumerate(kinds.values()):
        (folder / f"n01440764_{number}.JPEG").write_bytes(made)
    os.mkfifo(folder / "n01440764_pipe.JPEG")  # reading it would wait for ever
    split = write_dataset(tmp_path / "root", tmp_path / "set").split("train")
    assert split.samples == len(READABLE)
    changed = [change for _, change in READABLE.values() if change]
    assert split.reencoded == dict(sorted(Counter(changed).items()))
    assert len(split.skipped) == len(UNREADABLE) + 1
    reasons = {skipped.file: skipped.reason for skipped in split.skipped}
    assert reasons["train/n01440764/n01440764_pipe.JPEG"] == "not a regular file"
    for number, kind in enumerate(kinds):
        name = f"train/n01440764/n01440764_{number}.JPEG"
        assert (name in reasons) == (kind in UNREADABLE), kind


def test_large_images_are_counted_and_the_largest_is_recorded(tmp_path):
    folder = tmp_path / "root" / "train" / "a"
    folder.mkdir(parents=True)
    for number, size in enumerate([(40, 30), (300, 200), (30, 90), (500, 400)]):
        (folder / f"{number}.jpg").write_bytes(encoded(noise(size=size)))
    split = write_dataset(tmp_path / "root", tmp_path / "as-is").split("train")
    assert (split.scaled_down, split.sizes) == (0, Sizes(500, 400, 200_000, (30, 30, 200, 400, 400)))
    split = write_dataset(tmp_path / "root", tmp_path / "limited", ConvertOptions(max_pixels=50_000)).split("train")
    assert split.scaled_down == 2 and split.sizes.pixels <= 50_000 and split.reencoded == {}
    assert Dataset.load(tmp_path / "limited").max_pixels == 50_000


def spoilt(images, tmp_path):
    root = tmp_path / "spoilt"
    shutil.copytree(images, root)
    folder = root / "train" / "disc" if (root / "train" / "disc").exists() else sorted((root / "train").iterdir())[0]
    (folder / "notes.txt").write_text("not an image")
    (folder / "broken.JPEG").write_bytes(encoded(noise())[:-300])
    (folder / "gone.JPEG").symlink_to(tmp_path / "nowhere")
    (folder / "really.JPEG").write_bytes(encoded(noise(), "PNG"))
    return root


def test_unreadable_files_are_skipped_and_named(images, tmp_path):
    root = spoilt(images, tmp_path)
    dataset = write_dataset(root, tmp_path / "set")
    split = Dataset.load(tmp_path / "set").split("train")
    assert split.samples == 97 and split.reencoded == {"PNG": 1} and sum(split.class_counts) == 97
    reasons = {skipped.file.rsplit("/", 1)[1]: skipped.reason for skipped in split.skipped}
    assert reasons["notes.txt"] == "not an image"
    assert reasons["broken.JPEG"].startswith("truncated") and "No such file" in reasons["gone.JPEG"]
    assert len(reasons) == 3 and dataset == Dataset.load(tmp_path / "set")


def test_strict_refuses_them(images, tmp_path):
    with pytest.raises(InputError, match=r"--strict: train/\w+/\w+\.\w+ cannot be used .* 3 such in train"):
        write_dataset(spoilt(images, tmp_path), tmp_path / "set", ConvertOptions(strict=True))
    assert not (tmp_path / "set").exists()
    write_dataset(images, tmp_path / "set", ConvertOptions(strict=True))  # mended, the command goes through


def test_nothing_left_is_an_error(tmp_path):
    (tmp_path / "root/train/a").mkdir(parents=True)
    (tmp_path / "root/train/a/x.JPEG").write_text("no")
    with pytest.raises(InputError, match=r"no image of the train split can be read \(train/a/x\.JPEG: not an image"):
        write_dataset(tmp_path / "root", tmp_path / "set")
    assert not list((tmp_path / "set").glob("*.tar"))
