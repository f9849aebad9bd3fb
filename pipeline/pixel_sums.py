"""Sums over the pixels of images, compiled for this machine's processor by numba."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from pipeline.geometry import SIZE

PART = 4 * SIZE  # pixels that are summed at a time: they and their sums stay in a core's first cache
PARTS = SIZE * SIZE // PART  # of an image

# numba widens sums and products to 64 bits, of which a vector holds half as many: those of a part fit into 32
int32, uint16 = numba.int32, numba.uint16


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The machine code of a function, which gives Python's lock back while it runs. It is kept for the next process
    where numba finds a folder for it: beside this file, or in the user's cache."""
    try:
        kept: Callable[..., Any] = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no such folder can be written to
        kept = numba.njit(nogil=True)(function)
    return kept


@compiled
def add_pixels(images: np.ndarray, totals: np.ndarray, begin: int, end: int) -> np.ndarray:
    """Adds the parts begin..end of some images to the sums of their numbers, and sums the products of their colors.

    Args: images: N x PARTS x 3 PART uint8, each pixel's R, G and B one after the other; totals: PARTS x 3 PART uint16.
    Returns: 6 int64, the sums over pixels of R R, G G, B B, R G, R B and G B.
    """
    products = np.zeros(6, np.int64)
    black = np.zeros(3 * PART, np.uint8)
    planes = np.empty((3, PART), np.uint8)
    # By index: an array from `for` is not known to lie in one piece, and numba makes no vectors of its numbers
    for image in range(0, len(images), 2):
        for number in range(begin, end):
            # Two images at a time, for the totals are read and written as often
            first, second = images[image, number], black
            if image + 1 < len(images):
                second = images[image + 1, number]
            total = totals[number]
            for i in range(3 * PART):
                total[i] += uint16(first[i]) + uint16(second[i])
            _add_products(first, planes, products)
            _add_products(second, planes, products)
    return products


@compiled
def _add_products(part: np.ndarray, planes: np.ndarray, products: np.ndarray) -> None:
    """Args: part: 3 PART uint8; planes: 3 x PART uint8, which becomes each color by itself."""
    for i in range(PART):
        planes[0, i] = part[3 * i]
        planes[1, i] = part[3 * i + 1]
        planes[2, i] = part[3 * i + 2]
    red, green, blue = planes
    rr = gg = bb = rg = rb = gb = int32(0)
    for i in range(PART):
        r, g, b = int32(red[i]), int32(green[i]), int32(blue[i])
        rr, gg, bb = int32(rr + r * r), int32(gg + g * g), int32(bb + b * b)
        rg, rb, gb = int32(rg + r * g), int32(rb + r * b), int32(gb + g * b)
    products[0] += rr
    products[1] += gg
    products[2] += bb
    products[3] += rg
    products[4] += rb
    products[5] += gb
