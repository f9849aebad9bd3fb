"""The sizes of images, patches and crops (paper, sections 2 and 4.1), in pixels."""

import math

SIZE = 256  # shorter side after scaling, and side of the central patch (section 2)
CROP = 224  # side of what the model sees (section 4.1)
MARGIN = SIZE - CROP  # crop offsets are 0..MARGIN, both ends included
CENTER = MARGIN // 2

# Section 4.1: "the four corner patches and the center patch as well as their horizontal reflections": (y, x) offsets
FIVE_CROPS = ((0, 0), (0, MARGIN), (MARGIN, 0), (MARGIN, MARGIN), (CENTER, CENTER))


def rectangle(width: int, height: int, down: float, across: float) -> tuple[float, float, float, float]:
    """What a crop shows of an image: (left, top, right, bottom) in the image's pixels, as `graph.region` has it.

    Args: down, across: where the crop begins in the 256 x 256 patch, pixels.
    """
    corner, extent = [], []
    for side, offset in ((width, across), (height, down)):
        scaled = math.floor(side * SIZE / min(width, height) + 0.5)
        pixel = side / scaled
        corner.append((math.floor((scaled - SIZE) / 2) + offset) * pixel)
        extent.append(CROP * pixel)
    return corner[0], corner[1], corner[0] + extent[0], corner[1] + extent[1]
