"""Only one data set is ever in a folder, and a file there is complete or does not exist."""

import errno

import pytest

from shards.atomic import atomic_write
from shards.convert import ConvertOptions, write_dataset
from shards.errors import InputError
from tests.support.image_kinds import encoded, noise


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


@pytest.mark.parametrize("out", ["images", "images/train", "images/train/a/b", "link", "link/val/set"])
def test_shards_are_not_written_among_the_images(tmp_path, out):
    for split in ("train", "val"):
        (tmp_path / "images" / split / "a").mkdir(parents=True)
        (tmp_path / "images" / split / "a" / "0.jpg").write_bytes(encoded(noise()))
    (tmp_path / "link").symlink_to("images")
    before = {path for path in tmp_path.rglob("*")}
    for root in ("images", "link"):
        with pytest.raises(InputError, match=f"--out .*{out} lies among the images of --imagenet-root .*{root}"):
            write_dataset(tmp_path / root, tmp_path / out)
    assert {path for path in tmp_path.rglob("*")} == before


def test_shards_in_a_folder_beside_the_images_are_no_images(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "0.jpg").write_bytes(encoded(noise()))
    options = ConvertOptions(strict=True, workers=1)
    first = write_dataset(tmp_path, tmp_path / "sets" / "one", options)
    assert write_dataset(tmp_path, tmp_path / "sets" / "one", options) == first and not first.left_out


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
