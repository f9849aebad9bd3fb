"""What a batch's images show and how they are laid out: the views of `pipeline.ImageLoader`.

A view says what is random and draws it, from a generator that is seeded with (seed, epoch, batch);
`pipeline.view_graph` has DALI do it. All give N x 3 x size x size images.
"""

from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import ClassVar

import numpy as np
import torch

from pipeline.geometry import CROP, MARGIN, SIZE
from shards.errors import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of R, G, B on the 0..1 scale
DTYPES = (torch.float32, torch.float16, torch.uint8)
TRIES = 10  # boxes that are drawn for an image, as torchvision draws them: the first that fits is taken


@dataclass(frozen=True)
class View:
    """What all views have.

    size: side of the images, pixels; dtype: float32, float16, or uint8 for 0..255 as decoded, a quarter of the bytes,
    which the model's device then normalizes itself; mean, std: of R, G and B on the 0..1 scale, used as
    (image / 255 - mean) / std, and not for uint8; channels_last: the order in memory, NHWC instead of NCHW. The shape
    is N x 3 x size x size in either.
    """

    random: ClassVar[bool] = True  # random views are shuffled, and drop the last partial batch of an epoch

    size: int = CROP
    _: KW_ONLY
    dtype: torch.dtype = torch.float32
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"a view's dtype {self.dtype} is not one of {', '.join(map(str, DTYPES))}")
        if not isinstance(self.size, Integral) or self.size < 1:
            raise InputError(f"a view's size {self.size} is not a number of pixels: choose 1 or more")
        if np.shape(self.mean) != (3,) or np.shape(self.std) != (3,) or min(self.std) <= 0:
            raise InputError("a view's mean and std are three numbers each, for R, G and B, and std above 0")

    def draw(self, rng: np.random.Generator, images: int) -> list[np.ndarray]:
        """The random draws of a global batch, float32 arrays with a row for each image, as its graph takes them."""
        return []


@dataclass(frozen=True)
class RandomResizedCrop(View):
    """A random box of the image, scaled to size x size, mirrored or not: torchvision's RandomResizedCrop and
    RandomHorizontalFlip, with antialiasing.

    scale: the box's share of the image's area, at least and at most; ratio: its width / height, likewise; flip: the
    probability of mirroring; brightness, contrast, saturation: each multiplied by a factor of 1 - x to 1 + x; hue:
    turned by -x to x of a full turn. Color is off by default; where it is on it is DALI's `color_twist`: one linear map
    of R, G and B, with contrast about mid-gray, where torchvision applies four steps in a random order.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"scale {self.scale} is not two shares of the area, as (0.08, 1.0)")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise InputError(f"ratio {self.ratio} is not two ratios of width to height, as (3 / 4, 4 / 3)")
        if not 0 <= self.flip <= 1:
            raise InputError(f"flip {self.flip} is not a probability: choose 0 to 1")
        if not all(0 <= x <= 1 for x in (self.brightness, self.contrast, self.saturation)) or not 0 <= self.hue <= 0.5:
            raise InputError("brightness, contrast and saturation are from 0 to 1, and hue is from 0 to 0.5")

    @property
    def colored(self) -> bool:
        """Whether colors vary."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))

    def draw(self, rng: np.random.Generator, images: int) -> list[np.ndarray]:
        """Of each image: TRIES boxes' (height, width), as shares of the square root of its area, n x TRIES x 2; the
        place of the box in what it leaves free, (down, across) from 0 to 1; flip, (0, 0 or 1); and, if they vary,
        factors of brightness, contrast and saturation, and the turn of the hue in degrees."""
        area = rng.uniform(*self.scale, (images, TRIES))
        low, high = np.log(self.ratio).tolist()
        ratio = np.exp(rng.uniform(low, high, (images, TRIES)))
        sides = np.sqrt(np.stack([area / ratio, area * ratio], axis=-1))
        place = rng.uniform(0, 1, (images, 2))
        flip = np.stack([np.zeros(images), rng.uniform(0, 1, images) < self.flip], axis=1)
        draws = [sides, place, flip]
        if self.colored:
            draws += [rng.uniform(1 - x, 1 + x, images) for x in (self.brightness, self.contrast, self.saturation)]
            draws.append(rng.uniform(-360 * self.hue, 360 * self.hue, images))
        return [draw.astype(np.float32) for draw in draws]


@dataclass(frozen=True)
class PaperCrop(View):
    """The paper's (section 4.1): a random 224 x 224 crop of the central 256 x 256 of the image whose shorter side is
    scaled to 256, mirrored half the time. The same images as `train` of this project gets for the same seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size != CROP:
            raise InputError(f"PaperCrop is of {CROP} x {CROP} pixels: choose RandomResizedCrop for another size")

    def draw(self, rng: np.random.Generator, images: int) -> list[np.ndarray]:
        """Offsets and flips as `pipeline.graph.region` takes them, n x 2 each; drawn as `pipeline.order.draw` does."""
        offset = rng.integers(0, MARGIN + 1, (2, images)).T
        flip = rng.integers(0, 2, images)
        return [part.astype(np.float32, order="C") for part in (offset, np.stack([np.zeros_like(flip), flip], axis=1))]


@dataclass(frozen=True)
class CenterCrop(View):
    """For validation: the shorter side scaled to `resize` pixels, then the central size x size: torchvision's Resize
    and CenterCrop, with antialiasing. Every sample once, in shard order."""

    random: ClassVar[bool] = False

    resize: int = SIZE

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize < self.size:
            raise InputError(f"a center crop of {self.size} does not fit into {self.resize}: choose a larger resize")
