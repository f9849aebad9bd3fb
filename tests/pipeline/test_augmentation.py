"""Crops, flips and colors are drawn as the paper says."""

import numpy as np
import torch

from pipeline.stats import Stats
from shards.dataset import Dataset
from tests.support.loaders import loader_of, model_input, nchw


def test_color_shifts_spread_along_the_components(data):
    loader = loader_of(Dataset.load(data), batch_size=8)
    shift = np.concatenate([loader.draws(epoch, batch)[3] for epoch in range(300) for batch in range(10)])
    stats = Stats.load(data)
    # alpha ~ N(0, 0.1) along each component times its standard deviation, not its variance: that would drown an image
    along = shift @ stats.eigenvectors
    np.testing.assert_allclose(along.std(axis=0), 0.1 * np.sqrt(stats.eigenvalues), rtol=0.03)
    np.testing.assert_allclose(along.mean(axis=0), 0, atol=0.02 * np.sqrt(stats.eigenvalues[0]) * 0.1)


def test_color_augmentation_can_be_turned_off(data):
    stats = Stats.load(data)
    plain, shifted = (loader_of(Dataset.load(data), color=color) for color in (False, True))
    one, other = next(plain.epoch(0)), next(shifted.epoch(0))
    assert one.color_shift is None and torch.equal(one.images, other.images)
    np.testing.assert_allclose(model_input(one, stats), one.images.numpy().transpose(0, 3, 1, 2) - nchw(stats))


def test_crop_offsets_reach_both_ends(data):
    loader = loader_of(Dataset.load(data), batch_size=8)
    y, x, flip, _ = (
        np.concatenate(draw) for draw in zip(*(loader.draws(0, batch) for batch in range(200)), strict=True)
    )
    assert {y.min(), x.min()} == {0} and {y.max(), x.max()} == {32}
    assert 0.4 < flip.mean() < 0.6
