"""Images in, verified tars out: what is stored, in which order, and what is refused."""

import errno
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections import Counter

import numpy as np
import pytest
import webdataset as wds
from nvidia.dali import fn, pipeline_def
from PIL import Image

from shards.atomic import atomic_write
from shards.catalog import Catalog
from shards.convert import ConvertOptions, write_dataset
from shards.dataset import Dataset
from shards.errors import InputError
from shards.index import components, index_tar, read_index, write_index
from shards.records import Sizes
from shards.sources.base import SourceImage
from shards.synthetic import FORMS, render, render_folders
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


def test_dataset_json_counts_and_checksums(data):
    dataset = Dataset.load(data)
    assert {name: split.samples for name, split in dataset.splits.items()} == {"train": 96, "val": 22}
    for split in dataset.splits.values():
        for shard in split.shards:
            content = (data / shard.name).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)
            assert len(read_index((data / shard.name).with_suffix(".idx"))) == shard.samples
    assert not list(data.glob(".*"))


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


def test_the_index_is_dalis_and_the_tars(data):
    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def reader(tar, index):
        return tuple(
            fn.readers.webdataset(
                paths=[str(tar)], index_paths=[str(index)], ext=["jpg", "cls"], missing_component_behavior="error"
            )
        )

    tar = data / "train-000001.tar"
    entries = read_index(tar.with_suffix(".idx"))
    assert entries == index_tar(tar)
    pipe = reader(tar, tar.with_suffix(".idx"))
    for entry in entries:
        for (_, offset, size, _), output in zip(components(entry), pipe.run(), strict=False):
            assert bytes(output.at(0)) == tar.read_bytes()[int(offset) :][: int(size)]


def test_the_webdataset_library_reads_it(data):
    tars = [str(tar) for tar in Dataset.load(data).tars("val")]
    read = list(wds.WebDataset(tars, shardshuffle=False).decode("pil").to_tuple("jpg", "cls"))
    assert len(read) == 22
    assert {label for _, label in read} == {0, 1, 2, 3} and all(min(image.size) >= 256 for image, _ in read)


@pytest.mark.parametrize(
    "bad, complaint",
    [
        ("v1.2 2\njpg 512 3 a.jpg\n", "whole"),
        ("v1.1 1\njpg 512 3 a.jpg\n", "whole"),
        ("v1.2 1\njpg 512 3\n", "whole"),
        ("", "whole"),
        (None, "missing"),
    ],
)
def test_a_bad_index_is_refused_by_name(tmp_path, bad, complaint):
    path = tmp_path / "train-000000.idx"
    if bad is not None:
        path.write_text(bad)
    with pytest.raises(InputError, match=rf"train-000000\.idx.*{complaint}.*cli\.py index"):
        read_index(path)
    write_index(path, ["jpg 512 3 a.jpg"])
    assert read_index(path) == ["jpg 512 3 a.jpg"]


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


def test_large_images_are_counted_and_the_largest_is_told(tmp_path):
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


def test_a_folder_with_another_data_set_is_refused(images, data, tmp_path):
    out = tmp_path / "set"
    first = write_dataset(images, out, ConvertOptions(seed=0))
    stamps = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert write_dataset(images, out, ConvertOptions(seed=0)) == first  # the same: nothing is done
    assert stamps == {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    with pytest.raises(InputError, match="holds another data set"):
        write_dataset(images, out, ConvertOptions(seed=1))
    assert stamps == {p.name: p.stat().st_mtime_ns for p in out.iterdir()}  # what was looked at leaves no trace
    (out / "dataset.json").unlink()
    with pytest.raises(InputError, match="parts of another data set"):
        write_dataset(images, out, ConvertOptions(seed=1))
    (tmp_path / "stale").mkdir()
    (tmp_path / "stale" / "stats.npz").touch()  # another set's mean would be taken for this one's
    with pytest.raises(InputError, match="parts of another data set"):
        write_dataset(images, tmp_path / "stale")


def test_a_tar_cut_short_is_named(data, tmp_path):
    shutil.copytree(data, tmp_path / "set")
    with open(tmp_path / "set" / "train-000001.tar", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(InputError, match=r"train-000001\.tar has 5000 bytes, and dataset\.json says"):
        Dataset.load(tmp_path / "set").tars("train")


def test_an_unwritable_folder_is_named(images, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--out .*file/set cannot be written"):
        write_dataset(images, tmp_path / "file" / "set")


def test_an_error_while_writing_leaves_nothing(tmp_path):
    with (
        pytest.raises(InputError, match=r"cannot write .*file: No space left"),
        atomic_write(tmp_path / "file") as file,
    ):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(KeyError), atomic_write(tmp_path / "file") as file:
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_keys_are_unique_and_plain(tmp_path):
    def of(*files):
        catalog = Catalog(tmp_path / f"{len(list(tmp_path.iterdir()))}")
        classes = sorted({file.split("/")[0] for file in files})
        images = [SourceImage(file, 0, 0, file, classes.index(file.split("/")[0])) for file in files]
        catalog.add("val", [SourceImage("x", 0, 0, "x", 0)], classes)  # another split's keys are its own
        catalog.add("train", images, classes)
        return [image.key for image in catalog.images(catalog.lengths("train")[0])]

    assert of("n01/n01_1.JPEG", "n02/n02_1.JPEG") == ["n01_1", "n02_1"]
    assert of("cat/x.jpg", "dog/1.jpg") == ["x", "1"]
    assert of("cat/1.jpg", "dog/1.jpg") == ["cat_1", "dog_1"]
    assert of("cat/1.jpg", "cat/1.png") == ["cat_1_jpg", "cat_1_png"]
    assert of("cat/a b.jpg", "cat/a.b.jpg", "cat/a_b.jpg") == ["000000000", "000000001", "000000002"]
    assert of("cat/" + "x" * 200 + ".jpg") == ["000000000"]


@pytest.mark.parametrize(
    "content, complaint",
    [
        (None, r"holds no dataset\.json"),
        ("{", "damaged"),
        ('{"format": 99}', "another format"),
        ('{"format": 1}', "damaged"),
    ],
)
def test_a_damaged_description_is_refused(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=complaint):
        Dataset.load(tmp_path)


def test_a_description_cannot_name_files_elsewhere(data, tmp_path):
    described = json.loads((data / "dataset.json").read_text())
    described["splits"]["train"]["shards"][0]["name"] = "../../etc/passwd"
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match="outside its folder"):
        Dataset.load(tmp_path)


def test_rendered_images_are_the_same_for_a_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        render_folders(tmp_path / name, classes=10, train=20, val=10, seed=seed)
    a, b, c = ([p.read_bytes() for p in sorted((tmp_path / n).glob("*/*/*.jpg"))] for n in "abc")
    assert a == b != c and len(a) == len(set(a)) == 30
    with pytest.raises(InputError, match="2 to 10"):
        render_folders(tmp_path / "d", classes=11, train=20, val=10)


def test_mean_color_does_not_tell_the_rendered_classes():
    # Nearest class center by mean color, on images not used for the centers: near chance, so form must be learned
    def colors(first):
        return np.array(
            [
                [np.asarray(render(k, np.random.default_rng([first, k, i]))).mean((0, 1)) for i in range(20)]
                for k in range(len(FORMS))
            ]
        )

    centers, held_out = colors(0).mean(axis=1), colors(1)
    nearest = ((held_out[:, :, None] - centers) ** 2).sum(-1).argmin(-1)
    assert (nearest == np.arange(len(FORMS))[:, None]).mean() < 0.3
