"""DALI is given images where they lie in mapped tars; what happens to these tars and their labels meanwhile is safe."""

import os
import shutil

import numpy as np
import pytest
import torch

from pipeline.loader import BAD_LABEL
from pipeline.order import EpochOrder
from pipeline.readers import MappedTars, map_file
from pipeline.samples import Samples
from shards.dataset import Dataset
from shards.errors import InputError
from tests.support.loaders import loader_of, overwritten


def mappings(folder):
    return [line for line in open("/proc/self/maps").read().splitlines() if str(folder) in line]


def test_a_mapping_lives_as_long_as_anybody_reads_it(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"0123456789")
    with open(path, "rb") as file:
        before = len(os.listdir("/proc/self/fd"))
        mapped = map_file(file.fileno(), 10)
        assert len(os.listdir("/proc/self/fd")) == before
    assert "r--p" in mappings(tmp_path)[0]  # private: FUSE may refuse to share one
    path.unlink()
    part = np.frombuffer(mapped[2:5], np.uint8)
    del mapped
    assert bytes(part) == b"234" and len(mappings(tmp_path)) == 1
    with pytest.raises((TypeError, ValueError)):
        part[0] = 1
    del part
    assert not mappings(tmp_path)


@pytest.mark.parametrize("shuffle", ["shards", "full"])
def test_by_shards_no_more_tars_stay_mapped_than_batches_read(data, tmp_path, shuffle):
    copy = shutil.copytree(data, tmp_path / "copy")
    samples = Samples(Dataset.load(copy), "train")
    tars = MappedTars(samples, keep=shuffle == "full")
    rows = EpochOrder(samples.shard_sizes, 4, seed=0, shuffle=shuffle).rows(0)
    for batch in rows:
        of_batch = tars.of(batch)
        for tar, where, sample in zip(of_batch, samples.positions(batch), batch.tolist(), strict=True):
            image = bytes(tar[where["offset"] : where["offset"] + where["size"]])
            assert image == samples.jpeg(tuple(sample))
        del of_batch, tar
        if shuffle == "shards":
            assert len(mappings(copy)) == 1
    assert len(mappings(copy)) == (1 if shuffle == "shards" else len(samples.tars))


def test_a_tar_that_became_shorter_is_named_and_kills_nothing(data, tmp_path):
    copy = shutil.copytree(data, tmp_path / "copy")
    loader = loader_of(Dataset.load(copy))
    with open(copy / "train-000001.tar", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(InputError, match=r"train-000001\.tar has become shorter, 5000 bytes of \d+: bring it back"):
        list(loader.epoch(0))
    (copy / "train-000001.tar").unlink()
    with pytest.raises(InputError, match=r"train-000001\.tar cannot be read: No such file"):
        list(loader.epoch(0))


def test_a_class_number_that_is_none_is_named(data, tmp_path):
    copy = shutil.copytree(data, tmp_path / "copy")
    loader = loader_of(Dataset.load(copy))
    (where,) = loader.samples.positions(np.array([(1, 3)]))
    with open(copy / "train-000001.tar", "r+b") as file:
        file.seek(where["cls_offset"])
        file.write(b"x")
    name = loader.samples.name((1, 3))
    with pytest.raises(InputError, match=rf"train-000001\.tar: {name} has the class number b'x'.*cli\.py verify"):
        list(loader.epoch(0))


def test_a_sample_that_another_rank_found_bad_is_replaced_though_dali_has_it_already(data, tmp_path, capsys):
    copy, _ = overwritten(data, tmp_path, [2])
    wanted = list(loader_of(Dataset.load(data), batch_size=8).epoch(0))
    loader = loader_of(Dataset.load(copy), batch_size=8)
    order = loader.order(0).reshape(-1, 2).tolist()
    place = order.index([1, 2]) // 8
    batches = loader.epoch(0, start=max(0, place - 1))
    got = [next(batches)] if place else []  # DALI has the next batch by now, with the bad image
    loader.bad_samples.mark({(1, 2): "found elsewhere"})
    got += list(batches)
    bad = 0
    for one, other in zip(wanted[max(0, place - 1) :], got, strict=True):
        good = other.labels != BAD_LABEL
        bad += int((~good).sum())
        assert torch.equal(one.images[good], other.images[good]) and torch.equal(one.labels[good], other.labels[good])
    assert bad == 1 and capsys.readouterr().err.count("cannot be decoded") == 1


def test_a_batch_of_bad_samples_alone_shows_another(data, tmp_path):
    copy, _ = overwritten(data, tmp_path, [0])
    loader = loader_of(Dataset.load(copy), "center", batch_size=1)
    labels = torch.cat([batch.labels for batch in loader.epoch(0)]).tolist()
    undamaged = loader_of(Dataset.load(data), "center", batch_size=1)
    wanted = torch.cat([batch.labels for batch in undamaged.epoch(0)]).tolist()
    first = loader.samples.shard_sizes[0]
    assert labels == [*wanted[:first], BAD_LABEL, *wanted[first + 1 :]]
