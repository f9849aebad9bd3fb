"""Batches resume at any step and stay as they were; unusable input is named, and a stale index rebuilt."""

import os
import shutil

import numpy as np
import pytest
import torch

from pipeline.compute_stats import complete
from pipeline.loader import BAD_LABEL
from pipeline.order import RankSlice
from pipeline.samples import small_set_note
from pipeline.stats import Stats
from shards.dataset import Dataset
from shards.errors import InputError
from shards.index import read_index, write_index
from tests.support.loaders import TOLERANCE, loader_of, overwritten

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
DEVICE_IDS = [pytest.param(None, id="cpu"), pytest.param(0, id="gpu", marks=[pytest.mark.gpu, needs_gpu])]


def test_an_epoch_resumes_bit_for_bit(data):
    unbroken = list(loader_of(Dataset.load(data), batch_size=12, seed=2).epoch(4))
    resumed = list(loader_of(Dataset.load(data), batch_size=12, seed=2).epoch(4, start=3))
    assert len(unbroken) == len(resumed) + 3
    for one, other in zip(unbroken[3:], resumed, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    assert not list(loader_of(Dataset.load(data), batch_size=12).epoch(4, start=len(unbroken)))


@pytest.mark.parametrize("device_id", DEVICE_IDS)
@pytest.mark.parametrize("view", ["train", "center"])
def test_pipelines_that_share_a_batch_give_the_same_batches(data, view, device_id):
    on = {"batch_size": 16, "rank_slice": RankSlice(device_id=device_id)}
    alone, shared = (loader_of(Dataset.load(data), view, pipelines=count, **on) for count in (1, 3))
    for epoch, start in ((0, 2), (1, 0)):  # from one epoch into the next, too
        batches = zip(alone.epoch(epoch, start), shared.epoch(epoch, start), strict=True)
        for one, other in batches:
            assert one.images.shape == other.images.shape and torch.equal(one.labels, other.labels)
            # A GPU decodes some images of each pipeline in its engine, which rounds otherwise
            distance = (one.images.float() - other.images.float()).abs().mean(dim=(-3, -2, -1)).max()
            assert distance == 0 if device_id is None else distance < 4 * TOLERANCE
            assert one.valid == other.valid


@pytest.mark.parametrize("count", [1, 3])
def test_pipelines_that_share_a_batch_skip_bad_samples_alike(data, tmp_path, count, capsys):
    copy, names = overwritten(data, tmp_path, [0, 2])
    batches = loader_of(Dataset.load(copy), max_bad=0.5, pipelines=count).epoch(0)
    labels = torch.cat([batch.labels for batch in batches]).tolist()
    assert labels.count(BAD_LABEL) == len(names) == 2
    assert all(f"{name} cannot be decoded" in capsys.readouterr().err for name in names[:1])


def test_batches_kept_are_not_overwritten(data):
    batches = loader_of(Dataset.load(data), batch_size=8).epoch(0)
    first = next(batches).images
    copy = first.clone()
    assert list(batches)
    assert torch.equal(first, copy)


@pytest.mark.gpu
@needs_gpu
def test_gpu_images_wait_for_a_gpu_that_is_behind(dataset):
    def sums(cycles):
        found = []
        for epoch in range(4):
            for batch in loader_of(dataset, rank_slice=RankSlice(device_id=0)).epoch(epoch):
                torch.cuda._sleep(cycles)  # DALI has the next batches ready long before this one is read
                found.append(batch.images.long().sum(dim=(1, 2, 3)))
        return torch.stack(found).cpu()

    assert torch.equal(sums(50_000_000), sums(0))


def test_bad_input_is_named(data, tmp_path):
    dataset = Dataset.load(data)
    with pytest.raises(InputError, match=r"--batch-size 9 does not divide by 2"):
        loader_of(dataset, batch_size=9, rank_slice=RankSlice(0, 2))
    with pytest.raises(
        InputError, match="fewer than one batch of 1000: choose a --batch-size of at most 96, such as 12 for"
    ):
        loader_of(dataset, batch_size=1000)
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    (copy / "stats.npz").write_bytes(b"PK no zip")
    with pytest.raises(InputError, match=r"stats\.npz cannot be read.*cli\.py index"):
        Stats.load(copy)
    (copy / "stats.npz").unlink()
    with pytest.raises(InputError, match=r"stats\.npz is missing.*cli\.py index"):
        Stats.load(copy)
    (copy / "train-000001.idx").unlink()
    complete(Dataset.load(copy))
    for name in ("stats.npz", "train-000001.idx"):
        assert (copy / name).exists()
    assert (copy / "train-000001.idx").read_text() == (data / "train-000001.idx").read_text()
    np.testing.assert_array_equal(Stats.load(copy).mean_image, Stats.load(data).mean_image)


@pytest.mark.parametrize("state", ["missing", "older", "a line less", "a line too far"])
def test_a_stale_index_is_rebuilt_with_a_notice(data, tmp_path, capsys, state):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    index, original = copy / "train-000001.idx", (data / "train-000001.idx").read_text()
    if state == "missing":
        index.unlink()
    elif state == "older":
        os.utime(index, (1, 1))
    elif state == "a line less":
        write_index(index, read_index(index)[1:])
    else:
        write_index(index, [*read_index(index)[1:], "jpg 99999999 5 x.jpg cls 512 1 x.cls"])
    assert len(loader_of(Dataset.load(copy)).samples) == 96
    assert "train-000001.idx" in (errors := capsys.readouterr().err) and "rebuilt" in errors
    assert index.read_text() == original
    loader_of(Dataset.load(copy))
    assert not capsys.readouterr().err


def threads():
    return len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("device_id", DEVICE_IDS)
@pytest.mark.parametrize("view", ["train", "center"])
def test_one_pipeline_serves_epoch_after_epoch(data, monkeypatch, view, device_id):
    dataset, on = Dataset.load(data), {"batch_size": 12, "rank_slice": RankSlice(device_id=device_id)}
    wanted = [list(loader_of(dataset, view, **on).epoch(epoch)) for epoch in range(3)]
    loader, built = loader_of(dataset, view, **on), []
    monkeypatch.setattr(loader, "_run_from", lambda place, run=loader._run_from: built.append(place) or run(place))
    for epoch in range(3):
        for one, other in zip(wanted[epoch], loader.epoch(epoch), strict=True):
            assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    assert built == [(0, 0)]
    # Elsewhere, and again after an epoch that was left unfinished, it takes another
    assert torch.equal(next(loader.epoch(1, start=2)).labels, wanted[1][2].labels)
    assert torch.equal(next(loader.epoch(1)).images, wanted[1][0].images)
    assert len(built) == 3


def test_a_loader_that_is_dropped_leaves_no_threads(data):
    loader = loader_of(Dataset.load(data), batch_size=12)
    next(loader.epoch(0))
    running = threads()
    del loader
    assert threads() < running
    before = threads()
    for _ in range(3):
        next(loader_of(Dataset.load(data), batch_size=12).epoch(0))
        assert threads() == before


def test_a_set_of_a_few_batches_is_told_what_to_choose():
    assert small_set_note(1_281_167, 128) is None and small_set_note(640, 128) is None
    leaves = "an epoch is 1 batch of 128 and leaves 72 of 200 samples out, others each time"
    assert small_set_note(200, 128) == f"{leaves}: a smaller --batch-size, such as 25, makes more of it"
    assert small_set_note(82, 82) == "an epoch is 1 batch of 82: a smaller --batch-size, such as 10, makes more of it"
    note = small_set_note(5, 2)
    assert note and note.endswith("1 of 5 samples out, others each time: a smaller --batch-size makes more of it")
