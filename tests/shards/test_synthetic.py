"""Rendered images are the same for a seed, and only their form identifies their class."""

import numpy as np
import pytest

from shards.errors import InputError
from shards.synthetic import FORMS, render, render_folders


def test_rendered_images_are_the_same_for_a_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        render_folders(tmp_path / name, classes=10, train=20, val=10, seed=seed)
    a, b, c = ([p.read_bytes() for p in sorted((tmp_path / n).glob("*/*/*.jpg"))] for n in "abc")
    assert a == b != c and len(a) == len(set(a)) == 30
    with pytest.raises(InputError, match="2 to 10"):
        render_folders(tmp_path / "d", classes=11, train=20, val=10)


def test_mean_color_does_not_identify_the_rendered_classes():
    # Nearest class center by mean color, on images not used for the centers: near chance, so form must be learned
    def colors(first):
        return np.array(
            [
                [np.asarray(render(k, np.random.default_rng([first, k, i]))).mean((0, 1)) for i in range(20)]
                for k in range(len(FORMS))
            ]
        )

    centers, held_out = colors(0).mean(axis=1), colors(1)
    nearest = ((held_out[:, :, None] - centers) ** 2).sum(-1).argmin(-1)
    assert (nearest == np.arange(len(FORMS))[:, None]).mean() < 0.3
