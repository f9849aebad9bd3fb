"""What a source's folder holds beside what is taken is named, and an error under --strict; hidden files are neither."""

import gzip
import io
import re
import shutil
import tarfile

import pytest

from shards.convert import ConvertOptions, write_dataset
from shards.dataset import Dataset
from shards.describe import describe_tars, load_or_describe
from shards.errors import InputError
from shards.verify import verify
from tests.support import source_layouts as layouts
from tests.support.image_kinds import JPEG
from tests.support.source_checks import contents, expected
from tests.support.source_layouts import CLASSES, VAL, make_tar, write, write_parquet

pytestmark = pytest.mark.usefixtures("in_this_process")
JUNK = b"\0\5\x16\7" + bytes(300)  # how macOS keeps what another file system cannot
PART = make_tar({"n01440764_1.jpg": JPEG, "n01440764_1.cls": b"0"})


def flatten_half(root):
    for path in sorted((root / "val").glob("*/*"))[: VAL // 2]:
        path.rename(root / "val" / path.name)


def pack_a_class(root):
    images = {path.name: path.read_bytes() for path in (root / "train" / CLASSES[2]).iterdir()}
    write(root / "train" / f"{CLASSES[2]}.tar", make_tar(images))
    shutil.rmtree(root / "train" / CLASSES[2])
    shutil.rmtree(root / "val")


def add(name, content=b"x"):
    return lambda root: write(root / name, content)


def remove(name):
    return lambda root: (root / name).unlink()


def add_train_member(root):
    archive = root / "ILSVRC2012_img_train.tar"
    archive.write_bytes(archive.read_bytes() + make_tar({"n02000000.tar.gz": b"x", "a.JPEG": JPEG}))


# The layout, what is changed in it, and what is named
LEFT_OUT = {
    "validation": ("folders", add("validation/1.JPEG", JPEG), "validation/: a folder with images"),
    "a link": ("folders", lambda root: (root / "valid").symlink_to("val"), "valid/: a folder with images"),
    "test": ("folders", add("test/1.JPEG", JPEG), "test/: a folder with images"),
    "half-prepared val": ("folders", flatten_half, r"val/ILSVRC.*JPEG: an image, as are 5 more there"),
    "half-extracted train": ("folders", pack_a_class, rf"train/{CLASSES[2]}\.tar: an archive"),
    "an image beside classes": ("folders", add("train/a.png"), r"train/a\.png: an image \("),
    "the packed val": ("folders", add("ILSVRC2012_img_val.tar"), r"ILSVRC2012_img_val\.tar: an archive"),
    "a second download": ("archives", add("ILSVRC2012_img_val (1).tar"), r"img_val \(1\)\.tar: an archive"),
    "a folder of val": ("archives", add("val/a/1.JPEG"), "val/: a folder with images"),
    "members of no class": ("archives", add_train_member, r"train\.tar: n02000000\.tar\.gz: not a tar of .* 1 more"),
    "beside Kaggle's classes": ("kaggle", add("ILSVRC/Data/CLS-LOC/train/a.JPEG"), r"train/a\.JPEG: an image"),
    "parquet elsewhere": ("parquet", add("train-1.parquet"), r"train-1\.parquet: an archive"),
    "labeled test rows": (
        "parquet",
        lambda root: write_parquet(root / "data/test-00001-of-00002.parquet", [(JPEG, "a.JPEG", 1)]),
        r"data/test-00001-of-00002\.parquet: an archive",
    ),
    "a missing parquet file": (
        "parquet",
        remove("data/train-00001-of-00003.parquet"),
        r"train-00001-of-00003: it is missing \(there are 2 of 3 pieces\)",
    ),
    "a compressed tar": ("webdataset", add("more-train-1.tar.gz"), r"more-train-1\.tar\.gz: an archive"),
    "a folder of tars": ("webdataset", add("more/train-1.tar", PART), "more/: a folder with archives"),
    "a missing tar": ("webdataset", remove("imagenet1k-train-0001.tar"), "train-0001: it is missing .* 2 of 3"),
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_what_is_not_taken_is_named(tiny_samples, tmp_path, capsys, what):
    layout, change, pattern = LEFT_OUT[what]
    root, out = tmp_path / "root", tmp_path / "set"
    layouts.LAYOUTS[layout][0](root, tiny_samples)
    write_dataset(root, tmp_path / "before", ConvertOptions(strict=True))
    assert capsys.readouterr().err == ""
    change(root)
    with pytest.raises(InputError, match=f"--strict: not taken: .*{pattern}"):
        write_dataset(root, out, ConvertOptions(strict=True))
    assert not out.exists()
    dataset = write_dataset(root, out)
    (notice,) = [line for line in capsys.readouterr().err.splitlines() if "not taken" in line]
    (skipped,) = Dataset.load(out).left_out
    assert notice == f"notice: not taken: {skipped.file}: {skipped.reason}" and dataset == Dataset.load(out)
    if layout == "webdataset":
        with pytest.raises(InputError, match=f"--strict: not taken: .*{pattern}"):
            describe_tars(root, strict=True)
        assert describe_tars(root).left_out == (skipped,)


@pytest.mark.parametrize(
    "numbers, missing",
    [
        (["000000", "000001", "000009"], "train-000002: it is missing, as are 6 more"),
        (["1", "2", "4"], "train-3: it is missing (there are 3 of 4 pieces)"),
        (["00001-of-00003", "00002-of-00003"], "train-00000-of-00003: it is missing"),
        (["00001-of-00002", "00002-of-00002"], None),
        (["000010", "000011"], None),
        (["20240101", "20250101"], None),
        (["9", "10", "11"], None),
    ],
)
def test_pieces_that_a_numbered_set_lacks_are_named(tmp_path, numbers, missing):
    for number, name in enumerate(numbers):
        jpeg = {f"n01440764_{number}.jpg": JPEG, f"n01440764_{number}.cls": b"0"}
        write(tmp_path / f"train-{name}.tar", make_tar(jpeg))
    named = [f"{skipped.file}: {skipped.reason}" for skipped in describe_tars(tmp_path).left_out]
    assert [text.startswith(missing or "nothing") for text in named] == ([True] if missing else [])


def test_samples_that_cannot_be_used_are_an_error_under_strict(tmp_path):
    write(tmp_path / "train-0.tar", make_tar({"a.jpg": JPEG, "a.cls": b"0", "b.jpg": JPEG}))
    with pytest.raises(InputError, match=r"--strict: train-0\.tar: b: it has no \.cls, only \.jpg"):
        describe_tars(tmp_path, strict=True)
    assert not (tmp_path / "dataset.json").exists() and describe_tars(tmp_path).split("train").samples == 1


def test_a_tar_that_was_added_later_is_named(tmp_path, capsys):
    write(tmp_path / "train-0.tar", PART)
    load_or_describe(tmp_path)
    write(tmp_path / "train-1.tar", PART)
    assert load_or_describe(tmp_path).split("train").samples == 1
    assert "train-1.tar is not listed in dataset.json" in capsys.readouterr().err
    (warning,) = verify(tmp_path, workers=1).warnings
    assert "train-1.tar is not listed in dataset.json" in warning.reason
    with pytest.raises(InputError, match=r"--strict: train-1\.tar is not listed"):
        load_or_describe(tmp_path, strict=True)


def test_a_compressed_tar_alone_is_named(tmp_path):
    write(tmp_path / "train-000.tar.gz", gzip.compress(PART))
    for read in (load_or_describe, lambda root: write_dataset(root, tmp_path.with_name("set"))):
        with pytest.raises(InputError, match=r"train-000\.tar\.gz is compressed: decompress it, with gunzip"):
            read(tmp_path)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_hidden_files_are_passed_over(tiny_samples, tmp_path, capsys, layout):
    layouts.LAYOUTS[layout][0](tmp_path / "root", tiny_samples)
    for path in [*(tmp_path / "root").rglob("*")]:
        folder = path if path.is_dir() else path.parent
        for name in (f"._{path.name}", ".DS_Store", "Thumbs.db", "desktop.ini", f"__MACOSX/._{path.name}"):
            write(folder / name, JUNK)
    if layout.startswith("archives"):
        for archive in (tmp_path / "root").glob("ILSVRC*img*.tar"):
            members = make_tar({"._n01440764.tar": JUNK, "__MACOSX/._n01440764.tar": JUNK, "Thumbs.db": JUNK})
            archive.write_bytes(members + archive.read_bytes())
    assert contents(write_dataset(tmp_path / "root", tmp_path / "set", ConvertOptions(strict=True))) == expected(
        tiny_samples
    )
    if layout == "webdataset":
        assert contents(describe_tars(tmp_path / "root", strict=True)) == expected(tiny_samples)
    assert capsys.readouterr().err == ""


def tar_with_link(kind, extension="jpg"):
    """A sample, and another whose files are links to it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in {f"a.{extension}": JPEG, "a.cls": b"0"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name in (f"b.{extension}", "b.cls"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, name.replace("b", "a", 1)
            tar.addfile(info)
    return file.getvalue()


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, b"S"], ids=["hard", "symbolic", "sparse"])
def test_links_in_tars_are_named_and_refused_under_strict(tmp_path, capsys, kind):
    named = r"train-0\.tar: b\.jpg: a link or a sparse file, as are 1 more: write the tar again"
    write(tmp_path / "tars" / "train-0.tar", tar_with_link(kind))
    with pytest.raises(InputError, match=named):
        write_dataset(tmp_path / "tars", tmp_path / "out", ConvertOptions(strict=True))
    with pytest.raises(InputError, match=named):
        describe_tars(tmp_path / "tars", strict=True)
    assert describe_tars(tmp_path / "tars").split("train").samples == 1
    assert re.search(named, capsys.readouterr().err)


def test_links_in_official_archives_are_named_and_refused_under_strict(tmp_path):
    inner = tar_with_link(tarfile.LNKTYPE, "JPEG")
    write(tmp_path / "ILSVRC2012_img_train.tar", make_tar({"n01440764.tar": inner}))
    with pytest.raises(InputError, match=r"train\.tar: n01440764\.tar: b\.JPEG: a link"):
        write_dataset(tmp_path, tmp_path.with_name("out"), ConvertOptions(strict=True))
