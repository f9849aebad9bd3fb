"""conv1's kernels as images, the towers apart (paper, figure 3)."""

import numpy as np
from torch import Tensor

from trainer.alexnet import AlexNet


def kernel_images(model: AlexNet) -> list[np.ndarray]:
    """An array a tower, kernels x 11 x 11 x 3 uint8, each kernel stretched to all of 0..255. All processes that share
    the model's towers must call, and get all towers."""
    weight: Tensor = model.shard_group("conv1").unshard(model.conv1.weight.detach())
    return np.split(stretched(weight.cpu().numpy()), model.variant.towers)


def stretched(kernels: np.ndarray) -> np.ndarray:
    """N x height x width x 3 uint8 of kernels N x 3 x height x width, each stretched to all of 0..255."""
    low, high = kernels.min(axis=(1, 2, 3), keepdims=True), kernels.max(axis=(1, 2, 3), keepdims=True)
    span = np.maximum(high - low, 1e-12)
    images: np.ndarray = ((kernels - low) / span * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    return images


def columns_of(kernels: int, most: int) -> int:
    """In how many columns they fill a grid without a gap: the largest divisor up to `most`."""
    return max(divisor for divisor in range(1, most + 1) if kernels % divisor == 0)
