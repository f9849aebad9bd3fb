"""The command `study`: what it reads, what it keeps, what it refuses."""

import io
import json
import tarfile

import pytest
from click.testing import CliRunner
from PIL import Image

from cli import main
from paper import images
from shards.errors import InputError

SIDE = 8


def made_set(root, per_class=8, testing="val", side=12):
    for number, (split, name) in enumerate((s, c) for s in ("train", testing) for c in ("a", "b")):
        (root / split / name).mkdir(parents=True)
        for image in range(per_class):
            Image.new("RGB", (side + image, side), (40 * number, 30 * image, 99)).save(
                root / split / name / f"{image}.png"
            )
    return root


def as_tar(folder, path, mode, prefix=""):
    with tarfile.open(path, mode) as tar:
        tar.add(folder, prefix or ".")
    return path


def loaded(data, cache):
    cache.mkdir(exist_ok=True)
    return images.load(data, images.digest_of(data), SIDE, cache)


def test_a_folder_a_tar_and_a_compressed_tar_are_one_set(tmp_path):
    folder = made_set(tmp_path / "set", testing="test")
    sets = [
        loaded(data, tmp_path / f"cache{number}")
        for number, data in enumerate(
            [
                folder,
                as_tar(folder, tmp_path / "a.tar", "w", "some/prefix"),
                as_tar(folder, tmp_path / "a.tar.gz", "w:gz"),
            ]
        )
    ]
    for one in sets:
        assert one.classes == ("a", "b") and one.train.labels.tolist() == 8 * [0] + 8 * [1]
        assert one.train.images.shape == (16, 3, SIDE, SIDE)
        assert (one.train.images == sets[0].train.images).all() and (one.test.images == sets[0].test.images).all()
    assert sets[0].train.images[9, :, 0, 0].tolist() == [40, 30, 99]
    assert len({one.digest for one in sets}) == 3


def test_images_are_read_once(tmp_path):
    folder = made_set(tmp_path / "set")
    before, digest = loaded(folder, tmp_path), images.digest_of(folder)
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    assert (images.load(folder, digest, SIDE, tmp_path).train.images == before.train.images).all()
    assert images.digest_of(folder) != digest


def tar_of(path, names, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in names.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_names_in_a_tar_are_no_paths(tmp_path):
    png = io.BytesIO()
    Image.new("RGB", (4, 4)).save(png, "PNG")
    names = [f"../{split}/{name}/../../x" for split in ("train", "val") for name in ("a", "b")]
    tar = tar_of(tmp_path / "x.tar", {name: png.getvalue() for name in names})
    assert len(loaded(tar, tmp_path / "cache").train.labels) == 2
    assert not (tmp_path / "x").exists() and not (tmp_path.parent / "x").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"train/a/1": b"x"}, "expected train/CLASS"),
        ({"train/a/1": b"x", "val/a/1": b"x"}, "one class"),
        ({"train/a/1": b"x", "train/b/1": b"x", "val/c/1": b"x"}, "val/c/1 is of a class that train lacks"),
        (
            {"train/a/1": b"x", "train/b/1": b"x", "val/b/1": b"x"},
            r"train/a/1 cannot be read \(not an image\): take it",
        ),
    ],
)
def test_what_is_wrong_with_a_set_is_said(tmp_path, names, message):
    with pytest.raises(InputError, match=message):
        loaded(tar_of(tmp_path / "x.tar", names), tmp_path)


def test_a_compressed_tar_that_unfolds_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MOST_BYTES", 2**20)
    bomb = tar_of(tmp_path / "x.tar.gz", {"train/a/1": bytes(2**22)}, "w:gz")
    with pytest.raises(InputError, match="holds more than"):
        loaded(bomb, tmp_path)
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(bomb.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be decompressed"):
        loaded(cut, tmp_path)


def study(*words):
    return CliRunner().invoke(main, ["study", *map(str, words)])


def test_a_study_is_continued_and_other_images_are_refused(tmp_path):
    data, out = made_set(tmp_path / "set", per_class=16), tmp_path / "out"
    words = ("pooling", "--data", data, "--out", out, "--device", "cpu")
    first = study(*words, "--seeds", 1, "--json", tmp_path / "answer.json")
    assert first.exit_code == 0, first.output
    assert "pooling 2/2, beside complete: top-1 error" in first.output
    report = json.loads((out / "pooling.json").read_text())
    assert report == json.loads((tmp_path / "answer.json").read_text())
    assert report["seeds"] == 1 and report["machine"]["device"] == "cpu" and report["answer"]["seeds"] == 1
    assert (out / "pooling.svg").read_text().startswith("<svg")
    cells = sorted((out / "cells" / "parts").glob("*-seed*.json"))
    assert [path.name for path in cells] == ["complete-seed0.json", "pooling_2-2-seed0.json"]
    kept, lost = cells
    before = {path: json.loads(path.read_text()) for path in cells}
    stamp = kept.stat().st_mtime_ns
    lost.unlink()
    again = study(*words, "--seeds", 1)
    assert again.exit_code == 0 and kept.stat().st_mtime_ns == stamp
    assert json.loads(lost.read_text())["result"] == before[lost]["result"]  # the same seed, the same net
    assert json.loads((out / "pooling.json").read_text())["answer"] == report["answer"]
    (data / "train" / "a" / "0.png").unlink()
    other = study(*words)
    assert other.exit_code == 1 and "was made with images" in other.output and "choose another --out" in other.output


def test_what_a_study_needs_is_said_first(tmp_path):
    done = study("pooling", "--out", tmp_path)
    assert done.exit_code == 1 and "needs images: --data with a set such as Tiny ImageNet" in done.output
    done = study("pooling", "--out", tmp_path, "--data", tmp_path / "none")
    assert done.exit_code == 1 and "none cannot be read: No such file" in done.output


@pytest.mark.parametrize("content", [None, b"text\n"])
def test_what_is_no_set_is_refused_and_leaves_no_folder(tmp_path, content):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir() if content is None else data.write_bytes(content)
    done = CliRunner().invoke(main, ["study", "lrn", "--data", str(data), "--out", str(out), "--device", "cpu"])
    assert done.exit_code == 1 and f"no such set: {images.LAYOUT}" in done.output
    assert not out.exists()
