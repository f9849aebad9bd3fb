"""The training set's mean image and RGB principal components (paper, sections 2 and 4.1), as `stats.npz`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.geometry import CENTER, CROP, SIZE
from shards.atomic import atomic_write
from shards.errors import InputError
from shards.wording import counted

FILE = "stats.npz"
SHAPES = {
    "mean_image": (SIZE, SIZE, 3),
    "channel_mean": (3,),
    "eigenvalues": (3,),
    "eigenvectors": (3, 3),
}


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

    @classmethod
    def from_moments(cls, mean_image: np.ndarray, products: np.ndarray, samples: int) -> "Stats":
        """From the mean image and the mean products of a pixel's colors, 3 x 3, over all of its pixels."""
        channel_mean = mean_image.mean(axis=(0, 1))
        covariance = products - np.outer(channel_mean, channel_mean)
        eigenvalues, eigenvectors = np.linalg.eigh(covariance)
        # Largest first; an eigenvector's sign is arbitrary, so that its largest entry is made positive
        eigenvalues, eigenvectors = eigenvalues[::-1], eigenvectors[:, ::-1]
        eigenvectors = eigenvectors * np.sign(eigenvectors[np.abs(eigenvectors).argmax(axis=0), range(3)])
        return cls(mean_image.astype(np.float32), channel_mean, eigenvalues.copy(), eigenvectors, np.int64(samples))

    def mean_crop(self) -> np.ndarray:
        """The central 224 crop of the mean image, 224 x 224 x 3 float32: subtracted whatever the crop's own offset
        is, as the 2012 code does, so it is one constant."""
        crop: np.ndarray = self.mean_image[CENTER : CENTER + CROP, CENTER : CENTER + CROP]
        return crop

    def color_axes(self) -> np.ndarray:
        """3 x 3: column i is p_i * s_i, so that color_shift = axes @ alpha.

        The paper's formula (section 4.1) multiplies by the eigenvalue; on a 0..255 scale (lambda in the thousands) this
        would drown the image. The 2012 code multiplies by its square root, the standard deviation, and so do we.
        """
        axes: np.ndarray = (self.eigenvectors * np.sqrt(np.maximum(self.eigenvalues, 0))).astype(np.float32)
        return axes

    def described(self) -> dict[str, Any]:
        """What `stats --json` prints."""
        return {
            "samples": int(self.samples),
            "channel_mean": self.channel_mean.tolist(),
            "standard_deviations": np.sqrt(np.maximum(self.eigenvalues, 0)).tolist(),
            "components": self.eigenvectors.T.tolist(),
        }

    def table(self) -> str:
        """The same as a table for people."""
        about = self.described()

        def row(values: Iterable[float]) -> str:
            return " ".join(f"{value:9.4f}" for value in values)

        lines = [f"{counted(about['samples'], 'image')}, on the 0..255 scale", f"{'':22}{'R':>9} {'G':>9} {'B':>9}"]
        lines.append(f"{'mean':<22}{row(about['channel_mean'])}")
        for spread, component in zip(about["standard_deviations"], about["components"], strict=True):
            lines.append(f"{f'component, s = {spread:.2f}':<22}{row(component)}")
        return "\n".join(lines)

    def save(self, root: Path) -> None:
        with atomic_write(root / FILE) as file:
            np.savez(file, **vars(self))

    def equals(self, other: "Stats") -> bool:
        """Whether all numbers are the same."""
        return all(np.array_equal(value, getattr(other, name)) for name, value in vars(self).items())

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Stats":
        """From the arrays by their names. Raises KeyError for one that is missing, ValueError for one that is of
        another shape or not finite."""
        found = {name: np.asarray(arrays[name], np.float32 if name == "mean_image" else np.float64) for name in SHAPES}
        for name, shape in SHAPES.items():
            if found[name].shape != shape:
                raise ValueError(f"{name} is not of shape {shape}")
            if not np.isfinite(found[name]).all():
                raise ValueError(f"{name} holds NaN or infinite numbers")
        return cls(**found, samples=int(arrays["samples"]))

    @classmethod
    def load(cls, root: Path) -> "Stats":
        """Raises InputError when the file is missing, is not one of ours or has arrays of other shapes."""
        path = root / FILE
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls.of(arrays)
        except FileNotFoundError:
            raise InputError(f"{path} is missing: compute it with `python cli.py index {root}`") from None
        except Exception as error:  # numpy raises whatever the damage leads to
            remedy = f"delete it and run `python cli.py index {root}`"
            raise InputError(f"{path} cannot be read ({type(error).__name__}): {remedy}") from None
