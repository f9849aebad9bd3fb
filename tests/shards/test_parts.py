"""Parts of a conversion, each by a command of its own, are joined to the bytes of an unbroken one."""

import multiprocessing
import time

import pytest
from click.testing import CliRunner

from cli import main
from shards.convert import ConvertOptions, write_dataset
from shards.describe import load_or_describe
from shards.errors import InputError
from shards.parts import Part, holds_parts, join_parts, parse_part, write_part

OPTIONS = ConvertOptions(shard_size=300_000, workers=1)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def unbroken(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "set"
    write_dataset(images, out, OPTIONS)
    assert len(list(out.glob("train-*.tar"))) > 4 and len(list(out.glob("val-*.tar"))) > 1
    return files(out)


@pytest.mark.parametrize("parts", [1, 3, 40])  # 40: more than there are shards
def test_parts_in_any_order_are_joined_to_the_bytes_of_an_unbroken_run(
    images, unbroken, tmp_path, in_this_process, parts
):
    out = tmp_path / "set"
    for number in range(parts, 0, -1):
        write_part(images, out, OPTIONS, Part(number, parts))
        assert not (out / "dataset.json").exists() and holds_parts(out)
    join_parts(out)
    assert files(out) == unbroken
    assert write_part(images, out, OPTIONS, Part(1, parts)) == f"{out} is complete already"
    assert files(out) == unbroken


def test_parts_draw_the_same_images_for_validation(images, tmp_path, in_this_process):
    root, drawing = images / "train", ConvertOptions(kind="folders", shard_size=300_000, val_share=0.2, workers=1)
    classes = tmp_path / "classes"  # a folder called "train" would be taken for a split
    classes.symlink_to(root)
    write_dataset(classes, tmp_path / "unbroken", drawing)
    unbroken = files(tmp_path / "unbroken")
    assert unbroken.keys() >= {"val-000000.tar", "train-000002.tar"}
    out = tmp_path / "set"
    for number in (3, 1, 2):
        write_part(classes, out, drawing, Part(number, 3))
    dataset = join_parts(out)
    assert files(out) == unbroken and dataset.val_share == 0.2


def test_missing_parts_are_named_and_a_run_without_part_writes_them_too(images, unbroken, tmp_path, in_this_process):
    out = tmp_path / "set"
    for number in (2, 4):
        write_part(images, out, OPTIONS, Part(number, 4))
    with pytest.raises(InputError, match=r"2 parts of 4 not written \(1/4, 3/4\): run the same .* as its --part"):
        join_parts(out)
    with pytest.raises(InputError, match=r"`python cli.py index .*` joins its parts"):
        load_or_describe(out)
    write_dataset(images, out, OPTIONS)
    assert files(out) == unbroken


def test_a_shard_that_was_lost_since_is_named_with_its_part(images, unbroken, tmp_path, in_this_process):
    out = tmp_path / "set"
    for number in (1, 2, 3):
        write_part(images, out, OPTIONS, Part(number, 3))
    (out / "train-000004.idx").unlink()
    with pytest.raises(InputError, match=r"train-000004.tar or its .idx is missing .* shard --part 2/3` again"):
        join_parts(out)
    write_part(images, out, OPTIONS, Part(2, 3))
    join_parts(out)
    assert files(out) == unbroken


def test_parts_of_another_conversion_or_division_are_refused(images, tmp_path, in_this_process):
    out = tmp_path / "set"
    write_part(images, out, OPTIONS, Part(1, 3))
    with pytest.raises(InputError, match=r"--part 2/4: .* holds part 1/3: give all parts the same number"):
        write_part(images, out, OPTIONS, Part(2, 4))
    with pytest.raises(InputError, match="holds parts of another data set"):
        write_part(images, out, ConvertOptions(size=256, workers=1), Part(2, 3))
    with pytest.raises(InputError, match="is not a folder"):
        write_part(images / "none", tmp_path / "new", OPTIONS, Part(1, 3))
    assert not (tmp_path / "new").exists()


def test_parts_at_the_same_time_one_of_them_killed_give_the_same_bytes(images, unbroken, tmp_path):
    """In processes of their own, as the tasks of an array are."""
    out, context = tmp_path / "set", multiprocessing.get_context("spawn")
    running = [context.Process(target=write_part, args=(images, out, OPTIONS, Part(n, 3))) for n in (1, 2, 3)]
    for process in running:
        process.start()
    while not any(out.glob(".train-*.done")) and running[0].is_alive():
        time.sleep(0.002)
    running[0].kill()
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running[1:]] == [0, 0]
    (out / ".train-000003.tar.tmp-elsewhere-77").write_bytes(b"half")  # of part 1, as another kill would leave it
    write_part(images, out, OPTIONS, Part(1, 3))
    join_parts(out)
    assert files(out) == unbroken


def test_strict_names_the_image_and_the_same_command_works_once_it_is_mended(images, tmp_path, in_this_process):
    root, out = tmp_path / "root", tmp_path / "set"
    for number, image in enumerate(sorted(images.glob("train/*/*.jpg"))[:6]):
        (root / "train" / "a").mkdir(parents=True, exist_ok=True)
        (root / "train" / "a" / f"{number}.jpg").write_bytes(image.read_bytes())
    whole = (root / "train" / "a" / "3.jpg").read_bytes()
    (root / "train" / "a" / "3.jpg").write_bytes(bytes(len(whole)))
    strict = ConvertOptions(strict=True, workers=1)
    with pytest.raises(InputError, match=r"--strict: train/a/3\.jpg cannot be used"):
        write_part(root, out, strict, Part(1, 1))
    (root / "train" / "a" / "3.jpg").write_bytes(whole)
    write_part(root, out, strict, Part(1, 1))
    assert join_parts(out).split("train").samples == 6


def test_joined_parts_are_told_of_as_an_unbroken_run_is(images, tmp_path, run_here):
    root = tmp_path / "root"
    (root / "train").mkdir(parents=True)
    for folder in sorted((images / "train").iterdir())[:2]:
        (root / "train" / folder.name).symlink_to(folder)
    (root / "train" / "fish").mkdir()
    (root / "train" / "fish" / "notes.txt").write_text("not an image")
    told = [run_here("shard", root, "--out", tmp_path / "unbroken", "--workers", 1).stdout]
    for part in ("1/2", "2/2"):
        run_here("shard", root, "--out", tmp_path / "set", "--workers", 1, "--part", part)
    told.append(run_here("index", tmp_path / "set").stdout)
    lines = [[line for line in text.splitlines() if line.startswith(("train:", "  "))] for text in told]
    assert lines[0] == lines[1] and lines[0][0].endswith(", 1 skipped")
    assert lines[0][1] == "  skipped: train/fish/notes.txt: not an image"


def test_the_commands_write_parts_and_join_them(images, tmp_path):
    out = tmp_path / "set"
    words = ["shard", "--imagenet-root", str(images), "--out", str(out), "--workers", "1", "--part"]
    done = CliRunner().invoke(main, [*words, "1/2"])
    assert done.exit_code == 0 and f"when all 2 are written, `python cli.py index {out}` joins them" in done.stdout
    done = CliRunner().invoke(main, ["index", str(out)])
    assert done.exit_code == 1 and "1 part of 2 not written (2/2)" in done.stderr
    assert CliRunner().invoke(main, [*words, "2/2"]).exit_code == 0
    assert CliRunner().invoke(main, ["index", str(out)]).exit_code == 0
    assert (out / "stats.npz").exists() and not list(out.glob(".*"))
    done = CliRunner().invoke(main, [*words, "1/2", "--cluster", "dask://127.0.0.1:8786"])
    assert done.exit_code == 1 and "leave one of the two out" in done.stderr


@pytest.mark.parametrize("text", ["0/4", "5/4", "3", "a/b", "1/0", "-1/4", "1/4/4"])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(InputError, match="write it like 3/16"):
        parse_part(text)
