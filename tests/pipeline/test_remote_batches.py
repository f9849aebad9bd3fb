"""Batches from a URL are those from the folder, through a cache of any size, by any number of ranks."""

import contextlib
import shutil
import threading
from dataclasses import replace

import pytest
import torch

from pipeline.compute_stats import complete
from pipeline.loader import Loader
from pipeline.order import Augmentation, RankSlice
from pipeline.settings import Settings
from shards.convert import ConvertOptions, write_dataset
from shards.dataset import Dataset
from shards.errors import InputError
from shards.remote import Remote
from tests.support.remote_sets import assert_same_batches, cached, loader_at

pytest.importorskip("aiohttp", reason="aiohttp is not installed: http is not tested")
pytestmark = pytest.mark.usefixtures("quick_retries")


LARGEST = 420_000  # no shard of the rendered set is larger


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_batches_are_those_of_the_folder(data, tmp_path, serve, scheme):
    url = serve(data).url if scheme == "http" else data.as_uri()
    near, far = loader_at(data), loader_at(Remote(url, tmp_path))
    assert_same_batches(near.epoch(1), far.epoch(1))
    assert near.keys(1, 0) == far.keys(1, 0)
    assert_same_batches(list(near.epoch(2))[5:], far.epoch(2, start=5))
    for view in ("center", "ten", "patch"):
        options = (view, 5, "val")
        assert_same_batches(loader_at(data, *options).epoch(0), loader_at(Remote(url, tmp_path), *options).epoch(0))
    assert near.samples.jpeg((1, 2)) == far.samples.jpeg((1, 2))


def test_two_ranks_share_the_batches_of_one_and_fetch_nothing_twice(data, tmp_path, serve):
    server = serve(data)
    batches = list(loader_at(data, batch_size=12).epoch(0))
    ranks = [loader_at(Remote(server.url, tmp_path), batch_size=12, rank_slice=RankSlice(rank, 2)) for rank in (0, 1)]
    for batch, *shares in zip(batches, *(rank.epoch(0) for rank in ranks), strict=True):
        assert torch.equal(batch.images, torch.cat([share.images for share in shares]))
    tars = [name for name in server.requested if name.endswith(".tar")]
    assert sorted(tars) == sorted(path.name for path in data.glob("train-*.tar"))


def test_a_cache_smaller_than_the_set_stays_within_its_bounds(data, tmp_path, serve):
    server, limit = serve(data), 4 * LARGEST
    assert sum(path.stat().st_size for path in data.glob("train-*.tar")) > 2 * limit
    largest, ends = [], threading.Event()

    def watch():
        while not ends.wait(0.002):
            with contextlib.suppress(FileNotFoundError):  # one was deleted while they were counted
                largest.append(sum(path.stat().st_size for path in cached(tmp_path).values()))

    watching = threading.Thread(target=watch)
    watching.start()
    near, far = loader_at(data, batch_size=7), loader_at(Remote(server.url, tmp_path, limit), batch_size=7)
    for epoch in (0, 1):
        assert_same_batches(near.epoch(epoch), far.epoch(epoch))
    ends.set()
    watching.join()
    assert 0 < max(largest) <= limit
    # The second epoch had to fetch some again; DALI reads ahead into the third, by one shard and the next
    tars = [name for name in server.requested if name.endswith(".tar")]
    assert len(near.samples.tars) < len(tars) <= 2 * len(near.samples.tars) + 2


def test_a_full_shuffle_of_a_url_needs_a_cache_for_all_shards(data, tmp_path):
    options = {"augmentation": Augmentation(seed=3, shuffle="full")}
    near, far = loader_at(data, **options), loader_at(Remote(data.as_uri(), tmp_path), **options)
    for epoch in (0, 1):
        assert_same_batches(near.epoch(epoch), far.epoch(epoch))
    with pytest.raises(InputError, match=r"--shuffle full reads all shards at once.*choose --shuffle shards, raise"):
        loader_at(Remote(data.as_uri(), tmp_path, 4 * LARGEST), **options)


def test_a_data_set_that_changed_is_not_read_with_the_old_shards(data, tmp_path, serve, images):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    server = serve(copy)
    list(loader_at(Remote(server.url, tmp_path / "cache")).epoch(0))
    shutil.rmtree(copy)
    complete(write_dataset(images, copy, ConvertOptions(shard_size=400_000, seed=9, workers=1)))
    assert_same_batches(loader_at(copy).epoch(0), loader_at(Remote(server.url, tmp_path / "cache")).epoch(0))


def test_a_val_split_alone_can_be_evaluated_from_a_url(data, tmp_path, serve):
    alone = replace(Dataset.load(data), root=tmp_path / "alone")
    shutil.copytree(data, alone.root, ignore=shutil.ignore_patterns("train-*", "stats.npz"))
    replace(alone, splits={"val": alone.split("val")}).save()
    far = Dataset.load(Remote(serve(alone.root).url, tmp_path / "cache"))
    loader = Loader(far, "val", "center", batch_size=5, settings=Settings(threads=1))
    assert_same_batches(loader_at(data, "center", 5, "val").epoch(0), loader.epoch(0))
