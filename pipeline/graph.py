"""The DALI graph: a JPEG in, the crop that the net is fed out (paper, sections 2 and 4.1).

One description serves CPU and GPU: only `device` differs. On a GPU the Huffman decoding may stay on the host
("mixed"), all else runs on the device.

The paper scales the shorter side to 256, cuts out the central 256 x 256 patch and takes a 224 x 224 crop of that at a
random offset. Two cuts and a resize compose to one resize of a rectangle of the original, so that is what runs here:
no pixel that the crop does not show is ever resampled, and a mirrored crop is the same rectangle read from right to
left. The whole-number rounding of "scale, then cut" is kept, so the result is that of the two-step way.
"""

from collections.abc import Callable

import numpy as np
from nvidia.dali import fn, math, pipeline_def, types

from shards.tars import IMAGE_EXTENSIONS

SIZE = 256  # shorter side after scaling, and side of the central patch (section 2)
CROP = 224  # side of what the net sees (section 4.1)
MARGIN = SIZE - CROP  # crop offsets are 0..MARGIN, both ends included
CENTRE = MARGIN // 2

# Section 4.1: "the four corner patches and the center patch as well as their horizontal reflections": (y, x) offsets
FIVE_CROPS = ((0, 0), (0, MARGIN), (MARGIN, 0), (MARGIN, MARGIN), (CENTRE, CENTRE))


def region(shape, y, x, flip, side):
    """The rectangle of the original that a crop shows, as (start, end), each (y, x) in pixels of the original.

    Args: shape: the picture's (height, width), float32; y, x: the crop's offset in the 256 x 256 patch, pixels;
    flip: 0 or 1, mirrored when 1 (then start and end swap their x: DALI reads the rectangle backwards); side: pixels.
    """
    height, width = shape[0], shape[1]
    shorter = math.min(height, width)
    # The scaled picture has whole pixels, and so has the offset of its central patch
    scaled_height = math.floor(height * SIZE / shorter + 0.5)
    scaled_width = math.floor(width * SIZE / shorter + 0.5)
    top = (math.floor((scaled_height - SIZE) / 2) + y) * height / scaled_height
    left = (math.floor((scaled_width - SIZE) / 2) + x) * width / scaled_width
    tall, wide = side * height / scaled_height, side * width / scaled_width
    start = fn.stack(top, left + wide * flip)
    end = fn.stack(top + tall, left + wide * (1 - flip))
    return start, end


def read(paths: list[str], index_paths: list[str]):
    """The reader: encoded pictures and the ASCII class numbers, in the order in which the index files list them."""
    return fn.readers.webdataset(
        paths=paths,
        index_paths=index_paths,
        ext=[";".join(IMAGE_EXTENSIONS), "cls"],
        missing_component_behavior="error",
        name="reader",
    )


def decode(encoded, device: str):
    """RGB pictures, H x W x 3 uint8, EXIF orientation applied."""
    return fn.decoders.image(encoded, **decoding(device))


def decoding(device: str) -> dict:
    """What every decoder here is told. The backends upsample chroma differently unless told otherwise."""
    return {
        "device": "mixed" if device == "gpu" else "cpu",
        "output_type": types.RGB,
        "jpeg_fancy_upsampling": True,
    }


def cut(encoded, y, x, flip, device: str, stored: int | None):
    """The 224 x 224 crop at (y, x) of the 256 x 256 patch, mirrored where `flip` is 1, uint8. No more is decoded than
    the rectangle that it shows.

    Args: stored: the side of the squares that the set holds, pixels, or None when pictures have their own size.
    """
    if stored == SIZE:
        # The patch itself is stored: the crop is a rectangle of it, and nothing is resampled
        anchor = fn.cast(fn.stack(y, x), dtype=types.INT32)
        shown = fn.decoders.image_slice(encoded, anchor, np.int32([CROP, CROP]), axes=[0, 1], **decoding(device))
        return fn.flip(shown, horizontal=fn.cast(flip, dtype=types.INT32))
    shape = fn.cast(fn.peek_image_shape(encoded)[:2], dtype=types.FLOAT)
    start, end = region(shape, y, x, flip, CROP)
    low, high = math.min(start, end), math.max(start, end)
    # The triangle filter reaches a pixel of the result to either side: so many of the original, and one for rounding
    reach = math.ceil(math.max((high - low) / CROP, 1.0)) + 1
    first = math.max(math.floor(low) - reach, 0.0)
    last = math.min(math.ceil(high) + reach, shape)
    anchor, extent = fn.cast(first, dtype=types.INT32), fn.cast(last - first, dtype=types.INT32)
    shown = fn.decoders.image_slice(encoded, anchor, extent, axes=[0, 1], **decoding(device))
    return scale(shown, start - first, end - first, CROP)


def crop(picture, shape, y, x, flip, side):
    """The same of a decoded picture, of any side up to the patch's own: several of one picture."""
    return scale(picture, *region(fn.cast(shape[:2], dtype=types.FLOAT), y, x, flip, side), side)


def scale(picture, start, end, side):
    """A rectangle scaled to side x side, uint8; by the triangle filter, wide enough to antialias."""
    return fn.resize(picture, roi_start=start, roi_end=end, size=(side, side), interp_type=types.INTERP_LINEAR)


@pipeline_def
def train_graph(paths: list[str], index_paths: list[str], draws: Callable, device: str, stored: int | None):
    """Random crop and flip (section 4.1); mean and lighting are `pipeline.feed`'s.

    Args: draws: called once a batch, gives (y, x, flip) as float32 arrays. Outputs: crops N x 224 x 224 x 3 uint8,
    class numbers in ASCII.
    """
    encoded, label = read(paths, index_paths)
    y, x, flip = fn.external_source(source=draws, num_outputs=3, batch=True, dtype=types.FLOAT)
    return cut(encoded, y, x, flip, device, stored), label


@pipeline_def
def eval_graph(paths: list[str], index_paths: list[str], crops: int, device: str, stored: int | None):
    """The centre crop (crops=1), or the paper's ten stacked: N x crops x 224 x 224 x 3 uint8."""
    encoded, label = read(paths, index_paths)
    if crops == 1:
        y, x, flip = (fn.cast(types.Constant(place, device="cpu"), dtype=types.FLOAT) for place in (CENTRE, CENTRE, 0))
        return fn.stack(cut(encoded, y, x, flip, device, stored)), label
    picture, shape = decode(encoded, device), fn.peek_image_shape(encoded)
    views = [crop(picture, shape, y, x, flip, CROP) for flip in (0, 1) for y, x in FIVE_CROPS]
    return fn.stack(*views), label


@pipeline_def
def probe_graph(device: str):
    """Decodes what is fed to it: to find the picture that a batch failed over."""
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    return decode(encoded, device), fn.peek_image_shape(encoded)


@pipeline_def
def stage_graph(paths: list[str], index_paths: list[str], stage: str, device: str):
    """The way up to a stage: "read" (the JPEGs' bytes), "decode" (H x W x 3 uint8) or "patch" (the central patch,
    N x 256 x 256 x 3 uint8: what the mean image and the components are taken over)."""
    encoded, label = read(paths, index_paths)
    if stage == "read":
        return encoded, label
    picture = decode(encoded, device)
    return picture if stage == "decode" else crop(picture, fn.peek_image_shape(encoded), 0, 0, 0, SIZE), label
