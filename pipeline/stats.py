"""The training set's mean image and RGB principal components (paper, sections 2 and 4.1), as `stats.npz`."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.graph import CENTER, CROP, SIZE
from pipeline.loader import BAD_LABEL, Loader
from shards.atomic import atomic_write
from shards.dataset import Dataset
from shards.errors import InputError
from shards.index import index_tar, write_index
from shards.progress import Progress

FILE = "stats.npz"


@dataclass(frozen=True)
class Stats:
    """mean_image 256 x 256 x 3 float32; channel_mean 3; eigenvalues 3, largest first; eigenvectors 3 x 3, one a column.

    All on the 0..255 scale, over every pixel of every training image's central patch; eigenvalues are variances.
    """

    mean_image: np.ndarray
    channel_mean: np.ndarray
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    samples: int

    def mean_crop(self) -> np.ndarray:
        """The central 224 crop of the mean image, 224 x 224 x 3 float32: subtracted whatever the crop's own offset
        is, as the 2012 code does, so it is one constant."""
        return self.mean_image[CENTER : CENTER + CROP, CENTER : CENTER + CROP]

    def lighting_axes(self) -> np.ndarray:
        """3 x 3: column i is p_i * s_i, so that light = axes @ alpha.

        The paper's formula (section 4.1) multiplies by the eigenvalue; on a 0..255 scale (lambda in the thousands) this
        would drown the image. The 2012 code multiplies by its square root, the standard deviation, and so do we.
        """
        return (self.eigenvectors * np.sqrt(np.maximum(self.eigenvalues, 0))).astype(np.float32)

    def described(self) -> dict:
        """What `stats --json` prints."""
        return {
            "samples": int(self.samples),
            "channel_mean": self.channel_mean.tolist(),
            "standard_deviations": np.sqrt(np.maximum(self.eigenvalues, 0)).tolist(),
            "components": self.eigenvectors.T.tolist(),
        }

    def table(self) -> str:
        """The same for a person."""
        about = self.described()

        def row(values) -> str:
            return " ".join(f"{value:9.4f}" for value in values)

        lines = [f"{about['samples']:,} images, on the 0..255 scale", f"{'':22}{'R':>9} {'G':>9} {'B':>9}"]
        lines.append(f"{'mean':<22}{row(about['channel_mean'])}")
        for spread, component in zip(about["standard_deviations"], about["components"], strict=True):
            lines.append(f"{f'component, s = {spread:.2f}':<22}{row(component)}")
        return "\n".join(lines)

    def save(self, root: Path) -> None:
        with atomic_write(root / FILE) as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, root: Path) -> "Stats":
        """Raises InputError when the file is missing, is not one of ours or has arrays of other shapes."""
        path = root / FILE
        try:
            with np.load(path, allow_pickle=False) as arrays:
                stats = cls(**{name: arrays[name] for name in cls.__dataclass_fields__})
        except FileNotFoundError:
            raise InputError(f"{path} is missing: compute it with `python cli.py index {root}`") from None
        except Exception as error:  # numpy raises whatever the damage leads to
            remedy = f"delete it and run `python cli.py index {root}`"
            raise InputError(f"{path} cannot be read ({error}): {remedy}") from None
        if stats.mean_image.shape != (SIZE, SIZE, 3) or stats.eigenvectors.shape != (3, 3):
            raise InputError(f"{path} holds arrays of other shapes: delete it and run `python cli.py index {root}`")
        return stats


def compute(dataset: Dataset, threads: int) -> Stats:
    """One pass over the whole train split through DALI, on the CPU, in 64-bit accumulators; what cannot be decoded does
    not count."""
    total = np.zeros((SIZE, SIZE, 3), np.int64)
    products = np.zeros((3, 3), np.float64)
    samples = 0
    loader = Loader(dataset, "train", "patch", batch_size=32, threads=threads)
    with Progress("stats", loader.samples) as progress:
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
    """Adds what a data set lacks, and rewrites nothing: an index for each tar, and `stats.npz`."""
    for name, split in dataset.splits.items():
        for tar in dataset.tars(name):
            if not tar.with_suffix(".idx").exists():
                write_index(tar.with_suffix(".idx"), index_tar(tar, split.quarantined_in(tar.name)))
    if not (dataset.root / FILE).exists():
        compute(dataset, threads or len(os.sched_getaffinity(0))).save(dataset.root)
