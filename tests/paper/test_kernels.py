"""The number for figure 3, on kernels whose colors are known."""

import numpy as np
import pytest

from paper.kernels import chroma, specialization
from trainer.kernels import stretched

RNG = np.random.default_rng(0)


def gray(count):
    return np.repeat(RNG.normal(size=(count, 1, 11, 11)), 3, axis=1)


def colorful(count):
    """What answers to a red-green difference alone."""
    pattern = RNG.normal(size=(count, 1, 11, 11))
    return np.concatenate([pattern, -pattern, 0 * pattern], axis=1)


def test_gray_kernels_have_no_chroma_and_color_opponent_ones_nothing_else():
    assert chroma(gray(5)) == pytest.approx(0, abs=1e-12) and chroma(colorful(5)) == pytest.approx(1)
    assert chroma(RNG.normal(size=(200, 3, 11, 11))).mean() == pytest.approx(2 / 3, abs=0.01)
    assert chroma(7 * gray(1) + 7 * colorful(1)) == pytest.approx(chroma(gray(1) + colorful(1)), abs=0.1)


def test_towers_that_share_out_gray_and_color_differ_as_no_random_halves_do():
    found = specialization(np.concatenate([gray(24), colorful(24)]))
    assert found["chroma"] == pytest.approx([0, 1]) and found["difference"] == pytest.approx(1)
    assert found["p"] == 0 and 0 < found["by_chance"] < 0.2


def test_towers_that_hold_the_same_mixture_differ_no_more_than_by_chance():
    found = specialization(np.concatenate([gray(12), colorful(12), gray(12), colorful(12)]))
    assert found["difference"] == pytest.approx(0) and found["p"] == 1
    ps = [specialization(RNG.normal(size=(48, 3, 11, 11)))["p"] for _ in range(12)]
    assert 0.2 < np.mean(ps) < 0.8


def test_kernels_are_stretched_to_be_looked_at():
    images = stretched(colorful(2).astype(np.float32))
    assert images.shape == (2, 11, 11, 3) and images.dtype == np.uint8
    assert images.min(axis=(1, 2, 3)).tolist() == [0, 0] and images.max(axis=(1, 2, 3)).tolist() == [255, 255]
