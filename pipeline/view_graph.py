"""The DALI graph of each view of `pipeline.views`: a JPEG in, the finished image out.

As in `pipeline.graph` no more is decoded than a view shows, and a mirrored image is a rectangle read backward.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import pipeline_def

from pipeline.graph import Node, Options, Reader, cut, decode, read, scale, seen_shape, with_margin
from pipeline.views import TRIES, CenterCrop, RandomResizedCrop, View

FLOAT = types.DALIDataType.FLOAT
DALI_DTYPE = {
    torch.float32: FLOAT,
    torch.float16: types.DALIDataType.FLOAT16,
    torch.uint8: types.DALIDataType.UINT8,
}


@pipeline_def
def view_graph(
    reader: Reader, draws: Callable[[], Any], view: View, drawn: int, decoder: Options, stored: int | None
) -> Node:
    """A view's images, N x size x size x 3 or N x 3 x size x size, of its dtype.

    Args: draws: called once a batch, gives `drawn` arrays with a row an image, those of `view.draw`; stored: the side
    of the squares that the data set holds, None when images have their own size.
    """
    encoded, random = read(reader), list[Node]()
    if drawn:
        random = list(fn.external_source(source=draws, num_outputs=drawn, batch=True, dtype=FLOAT))
    if isinstance(view, RandomResizedCrop):
        image = random_resized(encoded, random, view, decoder)
    elif isinstance(view, CenterCrop):
        image = center(encoded, view, decoder, stored)
    else:
        offset, flip = random
        image = cut(encoded, offset, flip, decoder, stored)
    return finished(image, view)


def random_resized(encoded: Node, random: list[Node], view: RandomResizedCrop, decoder: Options) -> Node:
    """A random box scaled to size x size, uint8. The box is cut before it is scaled, as torchvision does it."""
    sides, place, flip, *color = random
    anchor, extent = box(seen_shape(encoded), sides, place, view.ratio)
    start, end = flip * extent, (1.0 - flip) * extent
    image = scale(decode(encoded, anchor, extent, decoder), start, end, view.size)
    if color:
        brightness, contrast, saturation, hue = color
        image = fn.color_twist(image, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
    return image


def box(shape: Node, sides: Node, place: Node, ratio: tuple[float, float]) -> tuple[Node, Node]:
    """(anchor, extent), (down, across) in whole pixels, of the first of TRIES boxes that fits the image; where none
    does, of the largest centered one whose ratio is allowed: torchvision's `RandomResizedCrop.get_params`.

    Args: shape: the image's; sides, place: see `RandomResizedCrop.draw`.
    """
    area = fn.reductions.min(shape) * fn.reductions.max(shape)
    pixels = math.floor(sides * math.sqrt(area) + 0.5)
    fits = fn.reductions.min(fn.cast(pixels <= shape, dtype=FLOAT), axes=[1], keep_dims=True)
    numbers = constant([[number] for number in range(TRIES)])
    first = fn.reductions.min(numbers + (1.0 - fits) * float(TRIES))
    none = fn.cast(first >= float(TRIES), dtype=FLOAT)
    chosen = fn.reductions.sum(pixels * fn.cast(first == numbers, dtype=FLOAT), axes=[0])
    low, high = ratio
    limits = constant([1 / low, high])  # of the height to the width, and of the width to the height
    largest = math.min(shape, math.floor(area / shape * limits + 0.5))
    extent = math.min(math.max(chosen + none * largest, 1.0), shape)
    free = shape - extent
    drawn = math.min(math.floor(place * (free + 1.0)), free)
    return drawn + none * (math.floor(free / 2.0) - drawn), extent


def constant(values: list[Any]) -> Node:
    """Numbers that are the same for every image."""
    return types.Constant(np.array(values, np.float32), device="cpu")  # type: ignore[no-untyped-call]


def center(encoded: Node, view: CenterCrop, decoder: Options, stored: int | None) -> Node:
    """The central size x size of the image whose shorter side is scaled to `resize`, uint8: one resize of the rectangle
    that the crop shows, with the whole numbers of torchvision's Resize and CenterCrop."""
    shape = seen_shape(encoded)
    if stored == view.resize:  # nothing is scaled
        return decode(encoded, half(shape - view.size), shape * 0.0 + float(view.size), decoder)
    shorter = fn.reductions.min(shape)
    scaled = math.floor(shape * view.resize / shorter + 1e-3)  # a little more: float32 may be just below a whole number
    pixel = shape / scaled
    low = half(scaled - view.size) * pixel
    anchor, extent = with_margin(low, view.size, pixel, shape)
    image = decode(encoded, anchor, extent, decoder)
    return scale(image, low - anchor, low - anchor + view.size * pixel, view.size)


def half(number: Node) -> Node:
    """Half of a whole number, to a whole one as Python's `round` does it: to the even one if it is between two."""
    return math.floor((number + 1.0) / 4.0) + math.floor((number + 2.0) / 4.0)


def finished(image: Node, view: View) -> Node:
    """The image in a view's dtype and order in memory, normalized unless that is uint8."""
    if view.dtype == torch.uint8 and view.channels_last:
        return image
    plain = view.dtype == torch.uint8
    return fn.crop_mirror_normalize(
        image,
        mean=[0.0] if plain else [255 * value for value in view.mean],
        std=[1.0] if plain else [255 * value for value in view.std],
        dtype=DALI_DTYPE[view.dtype],
        output_layout="HWC" if view.channels_last else "CHW",
    )
