"""How colorful the first layer's kernels are, and whether the towers differ in it more than chance lets two halves
differ (figure 3: one tower's kernels are "largely color-agnostic", the other's "largely color-specific")."""

from typing import TypedDict

import numpy as np

HALVES = 10_000  # random ones, to compare the towers with


class Specialization(TypedDict):
    """chroma: the mean of each tower's kernels; difference: of the two, absolute; by_chance: the mean difference of
    random halves of the same kernels; p: the share of random halves that differ at least as much."""

    chroma: list[float]
    difference: float
    by_chance: float
    p: float


def chroma(kernels: np.ndarray) -> np.ndarray:
    """The share of each kernel's energy that is color: 0 for one that weighs R, G and B alike in every pixel, 1 for one
    that answers to no gray image, 2/3 on average for random weights. Args: kernels: N x 3 x height x width."""
    color = kernels - kernels.mean(axis=1, keepdims=True)
    energy = (kernels**2).sum(axis=(1, 2, 3))
    share: np.ndarray = (color**2).sum(axis=(1, 2, 3)) / np.maximum(energy, np.finfo(np.float64).tiny)
    return share


def specialization(kernels: np.ndarray) -> Specialization:
    """Of kernels whose first half is one tower's."""
    shares = chroma(kernels.astype(np.float64))
    half = len(shares) // 2
    towers = shares[:half].mean(), shares[half:].mean()
    mixed = np.random.default_rng(0).permuted(np.tile(shares, (HALVES, 1)), axis=1)
    random = np.abs(mixed[:, :half].mean(axis=1) - mixed[:, half:].mean(axis=1))
    difference = abs(towers[0] - towers[1])
    return {
        "chroma": [float(tower) for tower in towers],
        "difference": float(difference),
        "by_chance": float(random.mean()),
        "p": float((random >= difference * (1 - 1e-9)).mean()),
    }
