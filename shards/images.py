"""From an image's bytes in the source to the bytes that a shard stores: kept, re-encoded, scaled down or skipped.

A JPEG keeps its bytes when every decoder, on CPU and GPU, sees the same image in it: 8 bits, Huffman coded, gray or
YCbCr with chroma at full, half-width or quarter resolution, upright, complete. What `shards.formats` opens besides
becomes such a JPEG; what it does not, or what has lost its end, is `Unreadable`. docs/shards.md has the table.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps

from shards.errors import Unreadable
from shards.formats import dali_problem, open_image
from shards.jpeg import MAX_PIXELS, ORIENTATION, JpegHeader, read_jpeg_header

MAX_BYTES = 256 * 2**20  # a larger file is not taken for an image

# What turns an image upright, by its EXIF orientation
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPS_SIDES = (5, 6, 7, 8)


class Prepared(NamedTuple):
    """What is stored: the JPEG, its width and height, why it was re-encoded ("PNG", "CMYK JPEG", ...; None when it has
    the source's bytes, and for squares, which are all re-encoded), and whether `max_pixels` made it smaller."""

    jpeg: bytes
    width: int
    height: int
    reencoded: str | None = None
    scaled_down: bool = False


class _Decoded(NamedTuple):
    """An upright RGB image, perhaps decoded at reduced size; its sides as stored, its orientation, and its kind."""

    image: Image.Image
    sides: tuple[int, int]
    orientation: int
    kind: str | None


def prepare(data: bytes, size: int | None, quality: int, max_pixels: int | None = None) -> Prepared:
    """With `size` None an image keeps its size, and a common JPEG its bytes, to the byte; with a size its shorter side
    is scaled to that and the central size x size square cut out (section 2). An image of more than `max_pixels` is
    scaled down to as many.

    Raises: Unreadable.
    """
    with _reading(data):
        return _prepare(data, size, quality, max_pixels or MAX_PIXELS)


def read_square(data: bytes, size: int) -> Image.Image:
    """What `prepare` makes of an image with a size, before it is encoded. Raises Unreadable."""
    with _reading(data):
        return scaled_square(_decode(data, read_jpeg_header(data), size, MAX_PIXELS).image, size)


@contextmanager
def _reading(data: bytes) -> Iterator[None]:
    """Whatever goes wrong as an image is read is raised as Unreadable: a hostile file can make a decoder raise
    anything."""
    if not data:
        raise Unreadable("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of unusual EXIF and palettes; both are handled here
            yield
    except Unreadable:
        raise
    except MemoryError:
        raise Unreadable("decoding it takes too much memory") from None
    except Exception as error:
        raise Unreadable(_reason(error)) from None


def _prepare(data: bytes, size: int | None, quality: int, max_pixels: int) -> Prepared:
    header = read_jpeg_header(data)
    if header and not header.incompatible and not size and header.width * header.height <= max_pixels:
        return Prepared(data, header.width, header.height)
    image, sides, orientation, kind = _decode(data, header, size, max_pixels)
    if size:
        return Prepared(_encode(scaled_square(image, size), quality), size, size)
    too_large = sides[0] * sides[1] > max_pixels
    if too_large:
        width, height = _upright_sides(sides, orientation)
        shrink = (max_pixels / (width * height)) ** 0.5
        # Rounded down, so that the product is at most max_pixels
        image = image.resize((max(1, int(width * shrink)), max(1, int(height * shrink))), Image.Resampling.BILINEAR)
    return Prepared(_encode(image, quality), *image.size, reencoded=kind, scaled_down=too_large)


def _decode(data: bytes, header: JpegHeader | None, size: int | None, max_pixels: int) -> _Decoded:
    if header and header.decodes_to_rgb:
        image = Image.fromarray(decode_jpeg(data, header, size, max_pixels))
        if header.orientation in TRANSPOSES:
            image = image.transpose(TRANSPOSES[header.orientation])
        return _Decoded(image, (header.width, header.height), header.orientation, header.incompatible)
    opened = open_image(data)
    kind = header.incompatible if header else opened.format
    image = _to_rgb(ImageOps.exif_transpose(opened), opened.format)
    return _Decoded(image, opened.size, opened.getexif().get(ORIENTATION, 1), kind)


def check_image(data: bytes) -> tuple[str | None, str | None]:
    """Decodes a stored image completely. Returns what is wrong with it and what its decoder merely warns of, each None
    for nothing: a truncated image is wrong, stray bytes between its segments are not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = read_jpeg_header(data)
            if not header or not header.decodes_to_rgb:
                open_image(data).load()
                return None, None
            try:
                simplejpeg.decode_jpeg(data)
            except ValueError as warning:
                _check_not_truncated(warning)
                simplejpeg.decode_jpeg(data, strict=False)
                return None, str(warning)
            return None, None
    except MemoryError:
        return "decoding it takes too much memory", None
    except Exception as error:  # a hostile file can make a decoder raise anything
        return _reason(error), None


class ImageHeader(NamedTuple):
    """An image's width and height as a viewer sees them, and why DALI does not decode it to what `prepare` would store
    of it, None when it does."""

    width: int
    height: int
    problem: str | None


def read_header(data: bytes) -> ImageHeader:
    """From an image's header alone, but for one that may be transparent, which is decoded. Raises Unreadable."""
    with _reading(data):
        header = read_jpeg_header(data)
        if header:
            sides = _upright_sides((header.width, header.height), header.orientation)
            return ImageHeader(*sides, dali_problem(header))
        opened = open_image(data)
        sides = _upright_sides(opened.size, opened.getexif().get(ORIENTATION, 1))
        return ImageHeader(*sides, dali_problem(opened))


def scaled_sides(width: int, height: int, size: int) -> tuple[int, int]:
    """An image's width and height with the shorter one scaled to `size`, the longer one rounded."""
    shorter = min(width, height)
    return (2 * width * size + shorter) // (2 * shorter), (2 * height * size + shorter) // (2 * shorter)


def scaled_square(image: Image.Image, size: int) -> Image.Image:
    """Shorter side scaled to `size`, the central square cut out; by the triangle filter, which DALI's resize uses too,
    so that images stored at 256 and at their own size look alike to the model.

    The square alone is resampled, so a strip of 1 x 6000 pixels costs no more than any other image.
    """
    width, height = scaled_sides(*image.size, size)
    left, top = (width - size) // 2, (height - size) // 2
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def decode_jpeg(data: bytes, header: JpegHeader, size: int | None, max_pixels: int) -> npt.NDArray[np.uint8]:
    """H x W x 3. An image of at least four times the sides that `size` or `max_pixels` leave is decoded at half its
    size, and so on: docs/shards.md says what that costs in PSNR. What the decoder only warns of is accepted."""
    factor, shorter = 1, min(header.width, header.height)
    wanted = size or shorter * min(1.0, (max_pixels / (header.width * header.height)) ** 0.5)
    while factor < 8 and shorter // (2 * factor) >= 2 * wanted:
        factor *= 2
    reduced: dict[str, Any] = {}
    if factor > 1:
        reduced = {"min_height": -(-header.height // factor), "min_width": -(-header.width // factor)}
    pixels: npt.NDArray[np.uint8]
    try:
        pixels = simplejpeg.decode_jpeg(data, **reduced)
    except ValueError as warning:
        _check_not_truncated(warning)
        pixels = simplejpeg.decode_jpeg(data, strict=False, **reduced)
    return pixels


def _upright_sides(sides: tuple[int, int], orientation: int) -> tuple[int, int]:
    width, height = sides
    return (height, width) if orientation in SWAPS_SIDES else (width, height)


def _encode(image: Image.Image, quality: int) -> bytes:
    # Half-resolution chroma is JPEG's usual economy; whoever asks for quality 95 and more does not want it
    jpeg: bytes = simplejpeg.encode_jpeg(np.asarray(image), quality, "RGB", "444" if quality >= 95 else "420")
    return jpeg


def _check_not_truncated(warning: ValueError) -> None:
    """Raises Unreadable when libjpeg's warning means that the image is not all there."""
    if "remature end" in str(warning):
        raise Unreadable("truncated JPEG: its data end early")


def _reason(error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "not an image" if "cannot identify" in reason else reason


def _to_rgb(image: Image.Image, kind: str | None) -> Image.Image:
    """Any mode as 8-bit RGB, transparency on white. Args: kind: Pillow's format. Raises Unreadable for numbers of which
    nothing says what is black and what is white."""
    if image.mode == "F":
        values = np.asarray(image)
        lowest, highest = values.min(), values.max()
        if not 0 <= lowest <= highest <= 1:
            raise Unreadable(f"floats from {lowest:g} to {highest:g}: only those from 0, black, to 1, white, are read")
        image = _from_floats(values * 255)
    elif image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PPM", "PNG")):
        image = _from_floats(np.asarray(image, np.float32) / 257)
    elif image.mode == "I":
        raise Unreadable("signed or 32-bit integers, of which nothing says what is white: store them with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _from_floats(values: npt.NDArray[np.floating]) -> Image.Image:
    """Values from 0 to 255 as a gray image."""
    return Image.fromarray(np.rint(values).astype(np.uint8))
