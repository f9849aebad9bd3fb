"""An epoch has every sample once, in an order of its own that is a good shuffle, whatever the number of ranks."""

import itertools
import time

import numpy as np
import pytest
import torch

from pipeline.loader import ONLY_RANK, Loader
from pipeline.order import Augmentation, EpochOrder, RankSlice
from pipeline.settings import Settings
from shards.dataset import Dataset
from tests.support.loaders import loader_of, read_jpegs


def test_every_sample_once_an_epoch_in_an_order_of_its_own(data):
    loader = loader_of(Dataset.load(data), batch_size=12)
    orders = [list(map(tuple, loader.order(epoch).reshape(-1, 2))) for epoch in (0, 1)]
    everything = [(shard, i) for shard, size in enumerate(loader.samples.shard_sizes) for i in range(size)]
    assert len(loader.samples.shard_sizes) > 1  # more than one shard, or this shows less than it says
    assert sorted(orders[0]) == sorted(orders[1]) == everything
    assert orders[0] != orders[1] != everything
    assert orders[0] == list(map(tuple, loader_of(Dataset.load(data), batch_size=12).order(0).reshape(-1, 2)))


def test_the_order_is_a_good_shuffle(data):
    loader = Loader(Dataset.load(data), "train", "train", batch_size=96, settings=Settings(threads=1))
    epochs, bins = 600, 8
    first = np.cumsum([0, *loader.samples.shard_sizes])
    orders = np.array([[first[shard] + i for shard, i in loader.order(epoch)[0]] for epoch in range(epochs)])
    positions = orders.argsort(axis=1)  # of each sample, in each epoch
    # Each sample's position is uniform: chi-square of 8 bins over 600 epochs, its mean over the 96 samples. Shards stay
    # together, so that samples of one are not independent; the shards are, and there are few. Mean 7, wide bounds
    counts = np.stack([(positions // (96 // bins) == bin).sum(axis=0) for bin in range(bins)])
    chi = ((counts - epochs / bins) ** 2 / (epochs / bins)).sum(axis=0)
    assert 4 < chi.mean() < 10 and chi.max() < 35
    # Epochs tell nothing of one another
    correlations = [np.corrcoef(positions[i], positions[i + 1])[0, 1] for i in range(epochs - 1)]
    assert abs(np.mean(correlations)) < 0.03
    # A shuffle buffer of a quarter of the set, as readers have it, leaves samples near where they were stored
    rng, buffered = np.random.default_rng(0), []
    for _ in range(50):
        waiting, out = list(range(24)), []
        for following in [*range(24, 96), *[None] * 24]:
            out.append(waiting.pop(rng.integers(len(waiting))))
            waiting += [following] if following is not None else []
        buffered.append(np.corrcoef(np.argsort(out), np.arange(96))[0, 1])
    stored = [np.corrcoef(order, np.arange(96))[0, 1] for order in positions[:50]]
    assert abs(np.mean(stored)) < 0.1 < 0.6 < np.mean(buffered)


def test_a_full_shuffle_has_every_sample_once_and_neighbors_of_different_shards():
    order = EpochOrder([500, 1, 0, 300, 700], 50, seed=1, shuffle="full")
    epochs = [order.rows(epoch).reshape(-1, 2).tolist() for epoch in range(3)]
    everything = [[shard, number] for shard, size in enumerate(order.shard_sizes) for number in range(size)]
    assert order.num_batches == 30
    for one, other in itertools.pairwise(epochs):
        assert one != other
        assert len({tuple(row) for row in one}) == len(one) == 1500 and all(row in everything for row in one)
    shards = order.rows(0).reshape(-1, 2)[:, 0]
    # Of two samples drawn at random, the second is of another shard with 1 - sum of the squared shares, 0.63
    assert 0.58 < np.mean(shards[1:] != shards[:-1]) < 0.68
    by_shards = EpochOrder([500, 1, 0, 300, 700], 50, seed=1).rows(0).reshape(-1, 2)[:, 0]
    assert np.mean(by_shards[1:] != by_shards[:-1]) < 0.01


def test_an_order_of_a_million_samples_is_quick():
    for shuffle in ("shards", "full"):
        order = EpochOrder([1281] * 1000, 512, seed=0, shuffle=shuffle)
        began = time.process_time()
        rows = order.rows(0)
        assert time.process_time() - began < 2  # some hundredths of a second, on a machine with nothing else to do
        assert rows.nbytes < 11e6


def test_batches_of_a_full_shuffle_resume_and_are_shared(data):
    dataset = Dataset.load(data)

    def loader(rank_slice=ONLY_RANK, shuffle="full"):
        augmentation = Augmentation(seed=1, shuffle=shuffle)
        options = {"settings": Settings(threads=1), "rank_slice": rank_slice, "augmentation": augmentation}
        return Loader(dataset, "train", "train", batch_size=12, **options)

    alone = list(loader().epoch(1))
    assert [batch.labels.tolist() for batch in alone] != [
        batch.labels.tolist() for batch in loader(ONLY_RANK, "shards").epoch(1)
    ]
    for batch, resumed in zip(alone[3:], loader().epoch(1, start=3), strict=True):
        assert torch.equal(batch.images, resumed.images) and torch.equal(batch.labels, resumed.labels)
    ranks = [loader(RankSlice(rank, 2)).epoch(1) for rank in (0, 1)]
    for batch, *shares in zip(alone, *ranks, strict=True):
        assert torch.equal(batch.images, torch.cat([share.images for share in shares]))
        assert torch.equal(batch.labels, torch.cat([share.labels for share in shares]))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_batches_of_one(data, world_size):
    dataset = Dataset.load(data)
    alone = list(loader_of(dataset, batch_size=12, seed=1).epoch(0))
    parts = [
        list(loader_of(dataset, batch_size=12, seed=1, rank_slice=RankSlice(rank, world_size)).epoch(0))
        for rank in range(world_size)
    ]
    for batch, *shares in zip(alone, *parts, strict=True):
        assert torch.equal(batch.images, torch.cat([share.images for share in shares]))
        assert torch.equal(batch.labels, torch.cat([share.labels for share in shares]))


@pytest.mark.parametrize("batch_size, world_size", [(1, 1), (4, 2), (16, 2), (64, 2)])
def test_test_splits_come_complete_at_any_batch_size(data, batch_size, world_size):
    dataset = Dataset.load(data)
    labels = [label for _, label in read_jpegs(dataset, "val")]
    ranks = [
        list(loader_of(dataset, "center", batch_size, "val", rank_slice=RankSlice(rank, world_size)).epoch(0))
        for rank in range(world_size)
    ]
    got = []
    for shares in zip(*ranks, strict=True):
        got += torch.cat([share.labels for share in shares])[: shares[0].valid].tolist()
    assert got == labels
