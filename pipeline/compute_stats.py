"""Computing the training set's statistics, and completing a data set that lacks them or its index files."""

import os
from pathlib import Path

import numpy as np

from pipeline.geometry import SIZE
from pipeline.loader import BAD_LABEL, Loader
from pipeline.settings import Settings
from pipeline.stats import FILE, Stats
from shards.dataset import Dataset
from shards.index import index_tar, write_index
from shards.progress import Progress


def compute_stats(dataset: Dataset, threads: int) -> Stats:
    """One pass over the complete train split through DALI, on the CPU, in 64-bit accumulators; images that cannot be
    decoded do not count."""
    total = np.zeros((SIZE, SIZE, 3), np.int64)
    products = np.zeros((3, 3), np.float64)
    samples = 0
    loader = Loader(dataset, "train", "patch", batch_size=32, settings=Settings(threads))
    with Progress("stats", len(loader.samples)) as progress:
        for batch in loader.epoch(0):
            counted = batch.labels[: batch.valid] != BAD_LABEL
            patches = batch.images[: batch.valid][counted].numpy()
            samples += len(patches)
            total += patches.sum(axis=0, dtype=np.int64)
            for patch in patches:
                pixels = patch.reshape(-1, 3).astype(np.float64)
                products += pixels.T @ pixels
            progress.advance(batch.valid)
    mean_image = total / samples
    channel_mean = mean_image.mean(axis=(0, 1))
    covariance = products / (samples * SIZE * SIZE) - np.outer(channel_mean, channel_mean)
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    # Largest first; an eigenvector's sign is arbitrary, so that its largest entry is made positive
    eigenvalues, eigenvectors = eigenvalues[::-1], eigenvectors[:, ::-1]
    eigenvectors = eigenvectors * np.sign(eigenvectors[np.abs(eigenvectors).argmax(axis=0), range(3)])
    return Stats(mean_image.astype(np.float32), channel_mean, eigenvalues.copy(), eigenvectors, np.int64(samples))


def complete(dataset: Dataset, threads: int | None = None) -> None:
    """Adds what a data set in a folder lacks, and rewrites nothing: an index for each tar, and `stats.npz`."""
    for name, split in dataset.splits.items():
        for tar in map(Path, dataset.tars(name)):
            if not tar.with_suffix(".idx").exists():
                write_index(tar.with_suffix(".idx"), index_tar(tar, split.quarantined_in(tar.name)))
    if not (dataset.root / FILE).exists():
        compute_stats(dataset, threads or len(os.sched_getaffinity(0))).save(dataset.root)
