"""The kinds of image that are opened, and which of them DALI decodes to what `shard` would store. The one list of them.

What a file's first bytes say counts, not its name. Pillow opens more kinds than these: EPS, for instance, by starting
Ghostscript on it. What is not listed here is not an image.
"""

import functools
import io
from typing import Any

from PIL import Image
from PIL.ImageFile import ImageFile

from shards.jpeg import ORIENTATION_KIND, UNUSUAL_SAMPLING, JpegHeader, check_pixel_count

OPENED = (
    *("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "AVIF"),
    *("ICO", "DIB", "PCX", "SGI", "QOI", "TGA"),
)
# What DALI decodes, measured with DALI 2.4: by format, Pillow's modes. Of several images in a file it takes the first
DALI_DECODES = {
    "PNG": {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "I"},
    "WEBP": {"RGB", "RGBA"},
    "BMP": {"1", "L", "P", "RGB", "RGBA"},
    "TIFF": {"L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B"},
    "JPEG2000": {"L", "RGB", "RGBA", "I;16"},
    "PPM": {"1", "L", "RGB", "I"},
}
MODES = {"1": "1 bit", "F": "floats", "I": "signed or 32-bit integers", "LA": "gray with transparency"}  # in words
# And JPEGs that are common but for this
DALI_DECODES_JPEG = {None, ORIENTATION_KIND, UNUSUAL_SAMPLING, "RGB JPEG", "CMYK JPEG", "YCCK JPEG"}
TIFF_COMPRESSIONS = {"raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "jpeg", "packbits", "zstd"}
MAX_VALUES = {255, 65535}  # of PPM: DALI takes any other one for these

Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is checked before anything is decoded


def open_image(data: bytes) -> ImageFile:
    """Opens an image with Pillow, without decoding it. Raises Unreadable when it has too many pixels, and whatever
    Pillow does when it is not an image."""
    opened = Image.open(io.BytesIO(data), formats=_installed())
    check_pixel_count(*opened.size)
    return opened


@functools.cache
def _installed() -> tuple[str, ...]:
    """Those that this Pillow has: AVIF, for instance, came with 11.3."""
    Image.init()
    return tuple(name for name in OPENED if name in Image.OPEN)


def is_transparent(image: Image.Image) -> bool:
    """Whether any pixel is. The image is decoded where its header says that it may be."""
    if not image.has_transparency_data:
        return False
    return image.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def dali_problem(image: ImageFile | JpegHeader) -> str | None:
    """Why DALI does not decode an image to what `shard` would store of it, None when it does. Raises what Pillow does
    for an image that may be transparent and cannot be decoded."""
    if isinstance(image, JpegHeader):
        return None if image.incompatible in DALI_DECODES_JPEG else f"DALI cannot decode {image.incompatible}"
    kind, mode = str(image.format), image.mode
    if kind not in DALI_DECODES:
        return f"DALI cannot decode {kind}"
    if mode not in DALI_DECODES[kind]:
        return f"DALI cannot decode {kind} of {MODES.get(mode, mode)}"
    if kind == "TIFF" and (compression := image.info.get("compression", "raw")) not in TIFF_COMPRESSIONS:
        return f"DALI cannot decode TIFF of compression {compression}"
    if kind == "PPM" and (most := _max_value(image)) not in MAX_VALUES:
        return f"DALI cannot decode PPM of values up to {most}"
    return f"DALI ignores the transparency of this {kind}" if is_transparent(image) else None


def _max_value(image: ImageFile) -> int:
    """The value of white in a PPM, which its header says."""
    arguments: Any = image.tile[0][3]  # of Pillow's decoder: (mode, value), where it is not one of the usual
    return int(arguments[1]) if isinstance(arguments, tuple) else 255
