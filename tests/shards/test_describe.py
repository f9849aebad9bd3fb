"""WebDataset tars are described as they are, and samples that cannot be used are quarantined with the reason."""

import re
import shutil
from collections import Counter
from dataclasses import replace

import pytest

from pipeline.compute_stats import complete
from pipeline.loader import Loader
from pipeline.settings import Settings
from pipeline.stats import Stats
from shards.dataset import Dataset
from shards.describe import describe_tars
from shards.errors import InputError
from shards.index import index_tar, write_index
from shards.verify import verify
from tests.support import source_layouts as layouts
from tests.support.image_kinds import ADOPTED, JPEG
from tests.support.source_checks import contents, expected, refused
from tests.support.source_layouts import CLASSES, TRAIN, VAL, in_split, make_tar, write

pytestmark = pytest.mark.usefixtures("in_this_process")


def test_public_tars_are_described_as_they_are(samples, tmp_path):
    layouts.webdataset(tmp_path, samples)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    dataset = describe_tars(tmp_path)
    assert contents(dataset) == expected(samples) and dataset.classes == CLASSES
    assert {name: split.samples for name, split in dataset.splits.items()} == {"train": TRAIN, "val": VAL}
    assert [shard.name for shard in dataset.split("train").shards] == [f"imagenet1k-train-{n:04}.tar" for n in range(3)]
    assert {name: ((tmp_path / name).read_bytes(), (tmp_path / name).stat().st_mtime_ns) for name in before} == before
    assert dataset == Dataset.load(tmp_path)
    assert describe_tars(tmp_path) == dataset  # the indices that are there fit


def test_training_on_described_tars_sees_every_sample_once(samples, tmp_path):
    layouts.webdataset(tmp_path, samples)
    dataset = describe_tars(tmp_path)
    complete(dataset, 2)
    loader = Loader(dataset, "train", "train", batch_size=8, settings=Settings(2))
    order = loader.order(0)
    assert len({tuple(row) for row in order.reshape(-1, 2)}) == order.size // 2 == TRAIN
    labels = {sample.stem: sample.label for sample in samples}
    seen = 0
    for batch, rows in zip(loader.epoch(0), order, strict=True):
        keys = [loader.samples.name((shard, sample)).split(".")[0] for shard, sample in rows.tolist()]
        assert batch.labels.tolist() == [labels[key] for key in keys]
        seen += batch.valid
    assert seen == TRAIN
    # The encoded images as DALI returns them, all of the split once
    pipe = Loader(dataset, "val", "read", batch_size=VAL, settings=Settings(2)).pipelines(0)
    (jpegs,) = pipe.run()
    read = Counter(bytes(jpegs.at(number)) for number in range(VAL))
    assert read == Counter(sample.jpeg for sample in in_split(samples, "val"))


def test_images_that_dali_does_not_see_as_they_are_meant_are_quarantined(tiny_samples, tmp_path):
    """And `verify` says the same of a set that was described when they were not known to be."""
    layouts.webdataset(tmp_path, tiny_samples)
    tar = tmp_path / "more-train-0.tar"
    kinds = {re.sub(r"\W", "_", kind): expected for kind, expected in ADOPTED.items()}
    write(
        tar,
        make_tar(
            {
                f"{key}.{part}": data
                for key, (image, _) in kinds.items()
                for part, data in (("jpg", image), ("cls", b"1"))
            }
        ),
    )
    dataset = describe_tars(tmp_path)
    reasons = {sample.key: sample.reason for sample in dataset.split("train").quarantined}
    assert reasons.keys() == {key for key, (_, problem) in kinds.items() if problem}
    assert all(reason.startswith(kinds[key][1]) for key, reason in reasons.items())
    replace(dataset, splits={name: replace(split, quarantined=()) for name, split in dataset.splits.items()}).save()
    write_index(tar.with_suffix(".idx"), index_tar(tar))
    assert {problem.key: problem.reason for problem in verify(tmp_path, quarantine=True).bad} == reasons
    assert verify(tmp_path).intact


def test_samples_that_cannot_be_used_are_quarantined_with_the_reason(tiny_samples, tmp_path):
    layouts.webdataset(tmp_path, tiny_samples)
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
    write(tmp_path / "more-train-0.tar", make_tar(files))
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
    assert contents(dataset) == expected(tiny_samples) + Counter([("train", "good", JPEG, CLASSES[1])])
    refused(
        tmp_path, r"more-train-0\.tar: sample no_cls has no \.cls|text\.cls holds b'fish' and should be a class number"
    )


def test_an_index_that_does_not_fit_is_refused_and_one_that_does_is_kept(tiny_samples, tmp_path):
    layouts.webdataset(tmp_path, tiny_samples)
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


def test_the_command_indexes_public_tars(tiny_samples, tmp_path, run_here):
    layouts.webdataset(tmp_path, tiny_samples)
    tars_before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run_here("index", tmp_path)
    assert contents(Dataset.load(tmp_path)) == expected(tiny_samples)
    assert Stats.load(tmp_path).samples == TRAIN
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert tars_before.items() <= files.items() and len(files) == 2 * len(tars_before) + 2


def test_tars_of_a_val_split_alone_can_be_evaluated_on(data, tmp_path, capsys):
    for tar in data.glob("val-*.tar"):
        shutil.copy(tar, tmp_path)
    dataset = describe_tars(tmp_path, workers=1)
    complete(dataset)
    assert [*dataset.splits] == ["val"] and dataset.classes == Dataset.load(data).classes
    assert "there is no train split: the set can be evaluated on" in capsys.readouterr().err
    assert not (tmp_path / "stats.npz").exists() and all(
        tar.with_suffix(".idx").exists() for tar in tmp_path.glob("*.tar")
    )
