"""Loaders as tests want them: of a data set with its own statistics, on two threads."""

import torch

from pipeline.loader import ONLY_RANK, Batch, Loader
from pipeline.order import Augmentation
from pipeline.preprocess import Preprocess
from pipeline.settings import Settings
from pipeline.stats import Stats


def loader_of(
    dataset, view="train", batch_size=16, split="train", rank_slice=ONLY_RANK, seed=0, color=True, max_bad=0.001
) -> Loader:
    """A loader; `color`: with color augmentation."""
    return Loader(
        *(dataset, split, view),
        batch_size=batch_size,
        settings=Settings(threads=2),
        rank_slice=rank_slice,
        augmentation=Augmentation(Stats.load(dataset.root) if color else None, seed),
        max_bad=max_bad,
    )


def model_input(batch: Batch, stats: Stats, mean="image"):
    """The batch as the model gets it, N x 3 x 224 x 224, NumPy."""
    return Preprocess(stats, mean, torch.device("cpu"))(batch.images, batch.color_shift).numpy()


def nchw(stats: Stats):
    """The mean crop, 3 x 224 x 224."""
    return stats.mean_crop().transpose(2, 0, 1)
