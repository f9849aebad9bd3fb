"""`verify` finds a data set intact or names what is not; `--quarantine` takes that out of the index alone."""

import json
import re
import shutil
import subprocess
import tarfile
from dataclasses import replace

import pytest

from pipeline.compute_stats import complete
from pipeline.loader import Loader
from pipeline.settings import Settings
from shards import tars
from shards.convert import ConvertOptions, write_dataset
from shards.dataset import Dataset
from shards.describe import describe_tars
from shards.errors import InputError
from shards.index import components, read_index, write_index
from shards.verify import verify
from tests.support.image_kinds import READABLE, UNREADABLE, encoded, noise

SHARD = "train-000001.tar"


@pytest.fixture
def copy(data, tmp_path):
    """The rendered data set, to be damaged."""
    shutil.copytree(data, tmp_path / "set")
    return tmp_path / "set"


def member(copy, extension, number=3):
    """The `number`th sample of SHARD: its key, and where the part of that extension lies."""
    with tarfile.open(copy / SHARD) as tar:
        names = [one for one in tar if one.name.endswith(f".{extension}")]
    return names[number].name.partition(".")[0], names[number]


def overwrite(copy, at, content, shard=SHARD):
    with open(copy / shard, "r+b") as file:
        file.seek(at)
        file.write(content)


def bad_samples(report):
    return [(problem.shard, problem.key) for problem in report.bad]


def test_an_intact_data_set_is_found_so(data):
    for decode in (False, True):
        report = verify(data, decode=decode)
        assert report.intact and report.samples == 118 and not report.warnings
        assert report.bytes == sum(split.bytes for split in Dataset.load(data).splits.values())


def test_a_changed_image_is_named_and_can_be_quarantined(copy):
    key, part = member(copy, "jpg")
    overwrite(copy, part.offset_data + part.size // 2, b"\x13")
    before = (copy / SHARD).read_bytes()
    report = verify(copy)
    assert bad_samples(report) == [(SHARD, key)] and not report.damaged
    assert "not those that were written" in report.bad[0].reason
    assert not verify(copy, quarantine=True).intact
    dataset = Dataset.load(copy)
    assert [(sample.shard, sample.key) for sample in dataset.split("train").quarantined] == [(SHARD, key)]
    assert dataset.split("train").samples == 95 and (copy / SHARD).read_bytes() == before
    assert verify(copy, decode=True).intact
    # ... and an index that is rebuilt skips it as well
    (copy / SHARD).with_suffix(".idx").unlink()
    complete(dataset)
    assert verify(copy).intact
    loader = Loader(dataset, "train", "patch", batch_size=5, settings=Settings(1))
    assert len(loader.samples) == 95 and sum(batch.valid for batch in loader.epoch(0)) == 95


def test_a_data_set_without_a_sample_is_another_data_set(copy):
    before = Dataset.load(copy).fingerprint
    _, part = member(copy, "jpg")
    overwrite(copy, part.offset_data, b"no image")
    verify(copy, quarantine=True)
    assert Dataset.load(copy).fingerprint != before


@pytest.mark.parametrize(
    "content, reason",
    [(b"9", "none of the 4 classes"), (b"x", "should be a class number"), (b"\0", "should be a class number")],
)
def test_a_class_number_out_of_range_is_named(copy, content, reason):
    key, part = member(copy, "cls")
    overwrite(copy, part.offset_data, content)
    report = verify(copy)
    assert bad_samples(report) == [(SHARD, key)] and reason in report.bad[0].reason


def test_another_class_number_is_named(copy):
    key, part = member(copy, "cls")
    number = (copy / SHARD).read_bytes()[part.offset_data :][:1]
    overwrite(copy, part.offset_data, b"%d" % ((int(number) + 1) % 4))
    assert bad_samples(verify(copy)) == [(SHARD, key)] and "and it says" in verify(copy).bad[0].reason


def test_a_change_that_harms_no_sample_is_reported_of_the_shard(copy):
    _, part = member(copy, "jpg")
    overwrite(copy, part.offset_data - 1, b"\x01")  # the header's padding... which its checksum covers
    report = verify(copy)
    assert not report.bad and "no tar header" in report.damaged[0].reason
    overwrite(copy, part.offset_data - 1, b"\0")
    _, part = member(copy, "cls")
    overwrite(copy, part.offset_data + 100, b"\x01")  # behind the number, where nobody looks
    report = verify(copy)
    assert not report.bad and "SHA-256" in report.damaged[0].reason
    assert not verify(copy, quarantine=True).intact and not Dataset.load(copy).split("train").quarantined


def test_a_tar_cut_short_names_each_sample_that_is_gone(copy):
    entries = read_index((copy / SHARD).with_suffix(".idx"))
    _, offset, *_ = components(entries[-2])[0]
    with open(copy / SHARD, "r+b") as file:
        file.truncate(int(offset) + 100)
    report = verify(copy)
    keys = [components(entry)[0][3].partition(".")[0] for entry in entries]
    assert bad_samples(report) == [(SHARD, key) for key in keys[-2:]]
    assert any("bytes, and dataset.json says" in problem.reason for problem in report.damaged)


def test_missing_tars_and_indices_are_named(copy):
    (copy / SHARD).unlink()
    (copy / "train-000000.idx").unlink()
    reasons = {problem.shard: problem.reason for problem in verify(copy).damaged}
    assert "cannot be read" in reasons[SHARD] and "is missing" in reasons["train-000000.tar"]


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda lines: lines[1:], "lacks"),
        (lambda lines: [lines[0].replace(lines[0].split()[1], "1536"), *lines[1:]], "elsewhere"),
        (lambda lines: [*lines, lines[0].replace(components(lines[0])[0][3].partition(".")[0], "ghost")], "tar lacks"),
    ],
    ids=["a line less", "another offset", "a line more"],
)
def test_an_index_that_does_not_fit_its_tar_is_named(copy, change, reason):
    path = (copy / SHARD).with_suffix(".idx")
    write_index(path, change(read_index(path)))
    assert any(reason in problem.reason for problem in verify(copy).damaged)


def test_an_index_in_another_order_fits(copy):
    path = (copy / SHARD).with_suffix(".idx")
    write_index(path, read_index(path)[::-1])
    assert verify(copy).intact


def write_tar(path, samples):
    """A tar that others made: no checksum of its images."""
    with open(path, "wb") as file:
        for key, parts in samples:
            for extension, content in parts.items():
                file.write(tars.header(f"{key}.{extension}".encode(), len(content)))
                file.write(content + bytes(tars.padded(len(content)) - len(content)))
        file.write(bytes(1024))


def test_images_without_a_checksum_are_decoded(tmp_path, run_here):
    whole = encoded(noise(size=(300, 280)))
    cut = whole[: len(whole) * 2 // 3] + b"\xff\xd9"  # its header and its end are there, its middle is not
    write_tar(tmp_path / "train-0.tar", [(f"a{i}", {"jpg": whole, "cls": b"0"}) for i in range(4)])
    write_tar(
        tmp_path / "train-1.tar",
        [("b", {"jpg": cut, "cls": b"1"}), ("a2", {"png": encoded(noise(), "PNG"), "cls": b"1"})],
    )
    run_here("index", tmp_path)
    done = run_here("verify", tmp_path, check=False)
    assert done.returncode == 0 and "train-1.tar: a2: an earlier shard has this key too" in done.stdout
    done = run_here("verify", tmp_path, "--decode", "--json", "--quarantine", check=False)
    report = json.loads(done.stdout)
    assert done.returncode == 1 and report["schema"] == 1 and not report["whole"] and report["samples"] == 6
    assert [(bad["shard"], bad["key"]) for bad in report["bad"]] == [("train-1.tar", "b")]
    assert "truncated" in report["bad"][0]["reason"] and report["damaged"] == []
    done = run_here("verify", tmp_path, "--decode")
    assert done.stdout.rstrip().endswith("intact")
    about = json.loads(run_here("info", tmp_path, "--json").stdout)
    assert about["splits"]["train"]["samples"] == 5 and about["splits"]["train"]["quarantined"] == 1
    assert [components(line)[0][3] for line in read_index(tmp_path / "train-1.idx")] == ["a2.png"]


def test_keys_that_every_shard_counts_anew_are_no_fault(tmp_path):
    for number in range(3):
        parts = {"jpg": encoded(noise(size=(16 + number, 16))), "cls": b"0"}
        write_tar(tmp_path / f"train-{number}.tar", [(f"{key:06}", parts) for key in range(4)])
    describe_tars(tmp_path, workers=1)
    report = verify(tmp_path, quarantine=True, workers=1)
    assert report.intact and Dataset.load(tmp_path).split("train").samples == 12
    (remark,) = report.warnings
    assert remark[:3] == ("train", "train-1.tar", "000000") and "and 3 more keys" in remark.reason


def test_samples_with_the_same_key_are_all_quarantined(tmp_path, run_here):
    parts = {"jpg": encoded(noise()), "cls": b"0"}
    write_tar(tmp_path / "train-0.tar", [("a", parts), ("b", parts), ("a", parts)])
    output = run_here("index", tmp_path).stdout
    assert output.count("a: its key comes twice in the shard") == 2
    assert Dataset.load(tmp_path).split("train").samples == 1 and verify(tmp_path, decode=True).intact


def test_an_unsorted_tar_is_called_so_and_can_be_sorted(tmp_path):
    parts = {key: encoded(noise(size=(16 + number, 16))) for number, key in enumerate("abc")}
    write_tar(tmp_path / "train-0.tar", [(key, {"jpg": jpeg}) for key, jpeg in parts.items()])
    images = (tmp_path / "train-0.tar").read_bytes()[:-1024]
    write_tar(tmp_path / "train-0.tar", [(key, {"cls": b"0"}) for key in parts])
    (tmp_path / "train-0.tar").write_bytes(images + (tmp_path / "train-0.tar").read_bytes())
    with pytest.raises(
        InputError, match=r"train-0\.tar: a: its \.jpg and \.cls lie apart: the tar is not sorted"
    ) as error:
        describe_tars(tmp_path, workers=1)
    with pytest.raises(InputError, match=r"sample a: its \.jpg and \.cls lie apart: the tar is not sorted by name"):
        write_dataset(tmp_path, tmp_path.with_name("set"), ConvertOptions(workers=1))
    mend = re.search("`(.*)`", str(error.value))[1]
    for old, new in (("OLD.tar", "train-0.tar"), ("NEW.tar", "sorted/train-0.tar")):
        mend = mend.replace(old, new)
    (tmp_path / "sorted").mkdir()
    subprocess.run(mend, shell=True, check=True, cwd=tmp_path)
    assert describe_tars(tmp_path / "sorted", workers=1).split("train").samples == 3
    assert verify(tmp_path / "sorted", workers=1).intact


def test_tars_of_which_an_earlier_version_saw_the_first_part_can_be_described_again(tmp_path):
    parts = {"jpg": encoded(noise()), "cls": b"0"}
    write_tar(tmp_path / "train-0.tar", [("a", parts)])
    first = (tmp_path / "train-0.tar").read_bytes()
    write_tar(tmp_path / "train-0.tar", [("b", parts)])
    (tmp_path / "train-0.tar").write_bytes(first + (tmp_path / "train-0.tar").read_bytes())
    dataset = describe_tars(tmp_path, workers=1)
    train = dataset.split("train")
    shard = replace(train.shards[0], samples=1)
    replace(dataset, splits={"train": replace(train, shards=(shard,))}).save()
    index = tmp_path / "train-0.idx"
    write_index(index, read_index(index)[:1])
    (problem,) = verify(tmp_path, workers=1).damaged
    assert (
        "it holds 2 samples not quarantined, and dataset.json says 1: delete dataset.json, stats.npz" in problem.reason
    )
    for name in ("dataset.json", "train-0.idx"):
        (tmp_path / name).unlink()
    assert describe_tars(tmp_path, workers=1).split("train").samples == 2 and verify(tmp_path, workers=1).intact


def test_an_index_of_nonsense_is_named(copy):
    path = (copy / SHARD).with_suffix(".idx")
    path.write_text("v1.2 1\njpg many 5 a.jpg\n")
    assert any(problem.shard == SHARD and "index" in problem.reason for problem in verify(copy).damaged)


def test_names_with_blanks_fit_their_index(tmp_path, run_here):
    parts = {"jpg": encoded(noise()), "cls": b"0"}
    write_tar(tmp_path / "train-0.tar", [("a b", parts), ("grün", {**parts, "jpg": b"none"}), ("c", parts)])
    run_here("index", tmp_path)
    assert Dataset.load(tmp_path).split("train").samples == 2 and verify(tmp_path).intact
    (tmp_path / "train-0.idx").unlink()
    run_here("index", tmp_path)
    assert verify(tmp_path).intact and len(read_index(tmp_path / "train-0.idx")) == 2


def test_what_dali_does_not_decode_is_not_in_the_index(tmp_path, run_here):
    kinds = ("GIF", "12-bit JPEG", "PNG bomb", "CMYK", "PNG")
    encodings = [{**READABLE, **UNREADABLE}[kind][0] for kind in kinds]
    samples = [(f"k{i}", {"jpg": data, "cls": b"0"}) for i, data in enumerate(encodings)]
    write_tar(tmp_path / "train-0.tar", samples)
    run_here("index", tmp_path)
    dataset = Dataset.load(tmp_path)
    assert [sample.key for sample in dataset.split("train").quarantined] == ["k0", "k1", "k2"]
    loader = Loader(dataset, "train", "patch", batch_size=2, settings=Settings(1))
    assert sum(batch.valid for batch in loader.epoch(0)) == 2
