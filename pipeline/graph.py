"""The DALI graphs: a JPEG in, the crop that the model sees out (paper, sections 2 and 4.1).

One description serves CPU and GPU: only `decoder` differs. On a GPU the Huffman decoding may stay on the host
("mixed"), all else runs on the device.

The paper scales the shorter side to 256, cuts out the central 256 x 256 patch and takes a 224 x 224 crop of that at a
random offset. Two cuts and a resize compose to one resize of a rectangle of the original, so that is what runs here:
no pixel that the crop does not show is ever resampled, and a mirrored crop is the same rectangle read from right to
left. The whole-number rounding of "scale, then cut" is kept, so the result is that of the two-step way.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import pipeline_def

from pipeline.geometry import CENTER, CROP, FIVE_CROPS, MARGIN, SIZE
from shards.records import Sizes

Node = Any  # a value of the graph: one array an image
Reader = Callable[[], Any]  # called once a batch: its encoded images, a list of N one-dimensional uint8 tensors
Options = dict[str, Any]  # keyword arguments of a DALI operator

# What a GPU's decoder reserves, bytes a pixel of the largest image, and twice on the host, a thread: the ratios of
# NVIDIA's own figures for ImageNet (DALI's RN50 example: 211,025,920 and 140,544,512 for 5980 x 6430 pixels)
DEVICE_BYTES, HOST_BYTES = 211_025_920 / (5980 * 6430), 140_544_512 / (5980 * 6430)
MOST_RESERVED = 5980 * 6430  # pixels: an image beyond these makes the decoder allocate when it comes


def region(encoded: Node, offset: Node, flip: Node) -> tuple[Node, Node, Node, Node]:
    """The rectangle of the original that a crop shows, in its pixels, and the one to decode for it.

    Everything is a vector (down, across): an expression over vectors is one operator, however long it is, and each
    operator is a barrier over the batch.

    Args: offset: the crop's position in the 256 x 256 patch, (y, x) pixels; flip: (0, 1) to mirror it, else (0, 0).
    Returns: (anchor, extent) of the rectangle to decode, and (start, end) of the crop in it; mirrored, start and end
    swap their x: DALI reads the rectangle backwards.
    """
    shape = seen_shape(encoded)
    shorter = fn.reductions.min(shape)
    # The scaled image has whole pixels, and so has the offset of its central patch
    scaled = math.floor(shape * SIZE / shorter + 0.5)
    pixel = shape / scaled
    low = (math.floor((scaled - SIZE) / 2) + offset) * pixel
    anchor, extent = with_margin(low, CROP, pixel, shape)
    return anchor, extent, low - anchor + flip * CROP * pixel, low - anchor + (1.0 - flip) * CROP * pixel


def with_margin(low: Node, size: int, pixel: Node, shape: Node) -> tuple[Node, Node]:
    """(anchor, extent), in whole pixels, of the rectangle to decode for one that is scaled to size x size.

    Args: low: the corner of that; pixel: the original's pixels to one of the result; shape: the original's.
    """
    # The triangle filter reaches a pixel of the result to either side: so many of the original, and one for rounding
    reach = math.ceil(math.max(pixel, 1.0)) + 1
    anchor = math.max(math.floor(low) - reach, 0.0)
    return anchor, math.min(math.ceil(low + size * pixel) + reach, shape) - anchor


def decoder_options(gpu: bool, hw_decoder_load: float, largest: Sizes) -> Options:
    """DALI's options of a decoder that change its speed and memory and not its images.

    On a GPU the memory is reserved at once for the data set's largest image; otherwise an oversized one in mid-epoch
    would stop everything for a new and larger allocation. The CPU's decoder takes no such hint.
    """
    if not gpu:
        return {"device": "cpu"}
    pixels = min(largest.pixels, MOST_RESERVED)
    return {
        "device": "mixed",
        "hw_decoder_load": hw_decoder_load,
        "preallocate_width_hint": largest.width,
        "preallocate_height_hint": -(-pixels // largest.width),
        "device_memory_padding": int(DEVICE_BYTES * pixels),
        "host_memory_padding": int(HOST_BYTES * pixels),
    }


def read(reader: Reader) -> Node:
    """Encoded images, where they lie in memory."""
    return fn.external_source(source=reader, batch=True, no_copy=True, dtype=types.DALIDataType.UINT8, ndim=1)


def seen_shape(encoded: Node) -> Node:
    """An image's (height, width) as a viewer sees it, float32.

    Every decoder here gets its rectangle from this, even one that could do without: a header that cannot be read has to
    end the batch here. When a decoder of DALI 2.4 is the first to fail over one, it goes on with the batch's other
    images in memory that it has given back, and the process crashes now and then.
    """
    return fn.cast(fn.peek_image_shape(encoded)[:2], dtype=types.DALIDataType.FLOAT)


def decode(encoded: Node, anchor: Node, extent: Node, decoder: Options) -> Node:
    """The rectangle of an image at `anchor` (down, across), RGB, uint8, EXIF orientation applied.

    Args: decoder: see `decoder_options`.
    """
    return fn.decoders.image_slice(
        encoded,
        anchor,
        extent,
        axes=[0, 1],
        normalized_anchor=False,
        normalized_shape=False,
        output_type=types.DALIImageType.RGB,
        jpeg_fancy_upsampling=True,  # by default the two backends upsample chroma differently
        **decoder,
    )


def decode_all(encoded: Node, decoder: Options) -> Node:
    """The complete image, H x W x 3 uint8."""
    return decode(encoded, np.zeros(2, np.float32), seen_shape(encoded), decoder)


def decode_stored(encoded: Node, decoder: Options) -> Node:
    """The same by the decoder that takes no rectangle, which a GPU's JPEG engine does faster."""
    # Nothing changes the bytes: they only have to wait until the header has been read, see `seen_shape`
    encoded = fn.reshape(encoded, rel_shape=seen_shape(encoded)[:1] * 0.0 + 1.0)
    return fn.decoders.image(encoded, output_type=types.DALIImageType.RGB, jpeg_fancy_upsampling=True, **decoder)


def cut(encoded: Node, offset: Node, flip: Node, decoder: Options, stored: int | None) -> Node:
    """The 224 x 224 crop at `offset` of the 256 x 256 patch, mirrored or not, uint8. No more is decoded than the
    rectangle that it shows.

    Args: offset, flip: see `region`; stored: the side of the squares that the data set holds, pixels, None when
    images have their own size.
    """
    if stored == SIZE and decoder["device"] == "mixed":
        return cut_stored(decode_stored(encoded, decoder), offset, flip)
    if stored == SIZE:
        # The patch itself is stored: the crop is a rectangle of it, and nothing is resampled
        shown = decode(encoded, offset, math.min(seen_shape(encoded), float(CROP)), decoder)
        return fn.flip(shown, horizontal=fn.cast(flip[1], dtype=types.DALIDataType.INT32))
    anchor, extent, start, end = region(encoded, offset, flip)
    return scale(decode(encoded, anchor, extent, decoder), start, end, CROP)


def cut_stored(patch: Node, offset: Node, flip: Node) -> Node:
    """The same from the complete patch, in one kernel for all of a batch. On a GPU that is faster than decoding a
    rectangle: the JPEG engine decodes complete images anyway, and `fn.flip` launches a kernel an image."""
    place = offset / float(MARGIN)
    return fn.crop_mirror_normalize(
        patch,
        crop=(CROP, CROP),
        crop_pos_y=place[0],
        crop_pos_x=place[1],
        mirror=fn.cast(flip[1], dtype=types.DALIDataType.INT32),
        mean=[0.0],
        std=[1.0],
        dtype=types.DALIDataType.UINT8,
        output_layout="HWC",
    )


def scale(image: Node, start: Node, end: Node, side: int) -> Node:
    """A rectangle scaled to side x side, uint8; by the triangle filter, wide enough to antialias."""
    return fn.resize(
        image, roi_start=start, roi_end=end, size=(side, side), interp_type=types.DALIInterpType.INTERP_LINEAR
    )


def patch(encoded: Node, decoder: Options, stored: int | None) -> Node:
    """The central 256 x 256 patch of the scaled image, uint8. Args: stored: as in `cut`."""
    image, shape = decode_all(encoded, decoder), seen_shape(encoded)
    if stored == SIZE:
        return image
    scaled = math.floor(shape * SIZE / fn.reductions.min(shape) + 0.5)
    low = math.floor((scaled - SIZE) / 2) * shape / scaled
    return scale(image, low, low + SIZE * shape / scaled, SIZE)


@pipeline_def
def train_graph(reader: Reader, draws: Callable[[], Any], decoder: Options, stored: int | None) -> Node:
    """Random crop and flip (section 4.1); mean and color are `pipeline.preprocess`'s.

    Args: draws: called once a batch, gives each image's (offset, flip) for `region`, N x 2 float32. Output: crops
    N x 224 x 224 x 3 uint8.
    """
    encoded = read(reader)
    offset, flip = fn.external_source(source=draws, num_outputs=2, batch=True, dtype=types.DALIDataType.FLOAT)
    return cut(encoded, offset, flip, decoder, stored)


@pipeline_def
def eval_graph(reader: Reader, crops: int, decoder: Options, stored: int | None) -> Node:
    """The center crop (crops=1), or the paper's ten stacked: N x crops x 224 x 224 x 3 uint8."""
    encoded = read(reader)
    if crops == 1:
        return fn.stack(cut(encoded, _vector(CENTER, CENTER), _vector(0, 0), decoder, stored))
    square = patch(encoded, decoder, stored)
    views = [square[y : y + CROP, x : x + CROP] for y, x in FIVE_CROPS]
    return fn.stack(*views, *(fn.flip(view) for view in views))


def _vector(down: float, across: float) -> Node:
    return types.Constant(np.array([down, across], np.float32), device="cpu")  # type: ignore[no-untyped-call]


@pipeline_def
def probe_graph(decoder: Options) -> Node:
    """Decodes the images given by `feed_input`: to find the one that a batch failed over."""
    encoded = fn.external_source(name="encoded", dtype=types.DALIDataType.UINT8, ndim=1)
    return decode_all(encoded, decoder)


@pipeline_def
def stage_graph(reader: Reader, stage: str, decoder: Options, stored: int | None) -> Node:
    """Everything up to a stage: "read" (the JPEGs' bytes), "decode" (H x W x 3 uint8) or "patch" (the central patch,
    N x 256 x 256 x 3 uint8: what the mean image and the components are taken over)."""
    encoded = read(reader)
    if stage == "read":
        return encoded
    return decode_all(encoded, decoder) if stage == "decode" else patch(encoded, decoder, stored)
