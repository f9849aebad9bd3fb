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

    Args: shape: the picture's (height, width, channels); y, x: the crop's offset in the 256 x 256 patch, pixels;
    flip: 0 or 1, mirrored when 1 (then start and end swap their x: DALI reads the rectangle backwards); side: pixels.
    """
    height, width = fn.cast(shape[0], dtype=types.FLOAT), fn.cast(shape[1], dtype=types.FLOAT)
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
    # The two backends upsample chroma differently unless told otherwise
    return fn.decoders.image(
        encoded,
        device="mixed" if device == "gpu" else "cpu",
        output_type=types.RGB,
        jpeg_fancy_upsampling=True,
    )


def crop(picture, shape, y, x, flip, side):
    """A side x side x 3 uint8 crop of the scaled picture; the triangle filter, wide enough to antialias."""
    start, end = region(shape, y, x, flip, side)
    return fn.resize(picture, roi_start=start, roi_end=end, size=(side, side), interp_type=types.INTERP_LINEAR)


def to_net(cropped, mean_image, light):
    """Crop minus mean image plus lighting, 3 x 224 x 224 float32; `light` is one RGB triple a picture."""
    planes = fn.crop_mirror_normalize(cropped, mean=-light, std=1.0, dtype=types.FLOAT, output_layout="CHW")
    return planes - mean_image


@pipeline_def
def train_graph(paths: list[str], index_paths: list[str], mean_image: np.ndarray, draws: Callable, device: str):
    """Random crop, flip and lighting (section 4.1), one draw of each for a picture.

    Args: mean_image: 3 x 224 x 224 float32; draws: called once a batch, gives (y, x, flip, light) as float32 arrays,
    light N x 3. Outputs: images N x 3 x 224 x 224 float32, class numbers in ASCII.
    """
    encoded, label = read(paths, index_paths)
    y, x, flip, light = fn.external_source(source=draws, num_outputs=4, batch=True, dtype=types.FLOAT)
    cropped = crop(decode(encoded, device), fn.peek_image_shape(encoded), y, x, flip, CROP)
    return to_net(cropped, types.Constant(mean_image, device=device), light), label


@pipeline_def
def eval_graph(paths: list[str], index_paths: list[str], mean_image: np.ndarray, crops: int, device: str):
    """The centre crop (crops=1), or the paper's ten stacked: images N x crops x 3 x 224 x 224 float32."""
    encoded, label = read(paths, index_paths)
    picture, shape = decode(encoded, device), fn.peek_image_shape(encoded)
    mean = types.Constant(mean_image, device=device)
    no_light = types.Constant(np.zeros(3, np.float32))
    places = [(CENTRE, CENTRE, 0)] if crops == 1 else [(y, x, flip) for flip in (0, 1) for y, x in FIVE_CROPS]
    views = [to_net(crop(picture, shape, y, x, flip, CROP), mean, no_light) for y, x, flip in places]
    return fn.stack(*views), label


@pipeline_def
def stage_graph(paths: list[str], index_paths: list[str], stage: str, device: str):
    """The way up to a stage: "read" (the JPEGs' bytes), "decode" (H x W x 3 uint8) or "patch" (the central patch,
    N x 256 x 256 x 3 uint8: what the mean image and the components are taken over)."""
    encoded, label = read(paths, index_paths)
    if stage == "read":
        return encoded, label
    picture = decode(encoded, device)
    return picture if stage == "decode" else crop(picture, fn.peek_image_shape(encoded), 0, 0, 0, SIZE), label
