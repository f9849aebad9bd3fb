"""The images' transform, as people write it with Pillow or OpenCV: what every loader compared with ours computes.

Decode, scale the shorter side to 256, take the central 256 x 256 patch, a random 224 x 224 crop of it, and a random
horizontal flip: 224 x 224 x 3 uint8.
"""

import random
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from pipeline.geometry import CROP, MARGIN, SIZE
from shards.formats import open_image
from shards.images import scaled_sides


def draw_crop() -> tuple[int, int, bool]:
    """Where a crop lies in the 256 x 256 patch, down and across, and whether it is flipped."""
    return random.randint(0, MARGIN), random.randint(0, MARGIN), random.random() < 0.5


def transform_image(image: Image.Image) -> Tensor:
    """The transform of a decoded image, with Pillow."""
    image = image.convert("RGB")
    if min(image.size) != SIZE:
        image = image.resize(scaled_sides(*image.size, SIZE), Image.Resampling.BILINEAR)
    y, x, flip = draw_crop()
    x, y = x + (image.width - SIZE) // 2, y + (image.height - SIZE) // 2
    image = image.crop((x, y, x + CROP, y + CROP))
    return torch.from_numpy(np.array(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image))


def with_pillow(jpeg: bytes) -> Tensor:
    return transform_image(open_image(jpeg))


def with_simplejpeg(jpeg: bytes) -> Tensor:
    """Decoded by libjpeg-turbo itself, the rest with Pillow."""
    return transform_image(Image.fromarray(simplejpeg.decode_jpeg(jpeg)))


def with_opencv(jpeg: bytes) -> Tensor:
    import cv2  # optional

    cv2.setNumThreads(0)
    image = cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    height, width = image.shape[:2]
    if min(height, width) != SIZE:
        image = cv2.resize(image, scaled_sides(width, height, SIZE), interpolation=cv2.INTER_AREA)
    y, x, flip = draw_crop()
    y, x = y + (image.shape[0] - SIZE) // 2, x + (image.shape[1] - SIZE) // 2
    image = image[y : y + CROP, x : x + CROP]
    return torch.from_numpy(np.ascontiguousarray(image[:, ::-1] if flip else image))


def read_sample(files: list[str], number: int) -> dict[str, bytes]:
    """An image as litdata and MosaicML streaming store it."""
    return {"jpg": Path(files[number]).read_bytes()}


def stack_samples(samples: list[dict[str, bytes]]) -> Tensor:
    """A batch of such images, transformed with Pillow."""
    return torch.stack([with_pillow(sample["jpg"]) for sample in samples])
