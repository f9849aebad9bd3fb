"""One image's bytes as found, to the bytes that a shard stores.

A JPEG keeps its bytes when every decoder, on CPU and GPU, sees the same image in it: 8 bits, Huffman coded, gray or
YCbCr with chroma at full, half-width or quarter resolution, upright, whole. Whatever else Pillow can read becomes such
a JPEG; what nothing reads, or what has lost its end, is `Unreadable`. docs/shards.md has the table.
"""

import io
import re
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

MOST_PIXELS = 64 * 2**20  # above this an image is taken for a decompression bomb; ImageNet's largest has 29 million
MOST_BYTES = 256 * 2**20  # and a file above this for no image
ORIENTATION = 0x0112  # EXIF tag
UNDECODABLE = ("GIF", "12-bit JPEG", "arithmetic or lossless JPEG")  # kinds that DALI's decoders refuse
SAMPLINGS = {(): "gray", ((1, 1),) * 3: "444", ((2, 1), (1, 1), (1, 1)): "422", ((2, 2), (1, 1), (1, 1)): "420"}

# Frame headers: all but 0xC4, 0xC8 and 0xCC of 0xC0..0xCF. Baseline, extended and progressive Huffman are read anywhere
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
COMMON_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")  # one that ends a scan's data: no stuffed byte, no restart

Image.MAX_IMAGE_PIXELS = None  # MOST_PIXELS is asked before anything is decoded


class Unreadable(Exception):
    """Not an image, or not a whole one; the message is the reason."""


class Prepared(NamedTuple):
    """What is stored: the JPEG, its width and height, why it is not the bytes that were found (None when it is: "PNG",
    "CMYK", ...; not told for squares, which are all encoded anew), and whether `max_pixels` made it smaller."""

    jpeg: bytes
    width: int
    height: int
    changed: str | None = None
    scaled_down: bool = False


@dataclass(frozen=True)
class Jpeg:
    """A JPEG's header. `odd` names what keeps decoders from agreeing on it, None for nothing; `plain` says that
    simplejpeg can decode it to RGB."""

    width: int
    height: int
    odd: str | None
    plain: bool
    orientation: int


def prepare(data: bytes, size: int | None, quality: int, max_pixels: int | None = None) -> Prepared:
    """With `size` None an image keeps its size, and a common JPEG its bytes, to the byte; with a size its shorter side
    is scaled to that and the central size x size square cut out (section 2). An image of more than `max_pixels` is
    scaled down to as many.

    Raises: Unreadable.
    """
    if not data:
        raise Unreadable("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd EXIF and palettes; both are dealt with here
            return _prepare(data, size, quality, max_pixels or MOST_PIXELS)
    except Unreadable:
        raise
    except MemoryError:
        raise Unreadable("decoding it takes too much memory") from None
    except Exception as error:  # a hostile file can make a decoder raise anything
        raise Unreadable(_reason(error)) from None


def _prepare(data: bytes, size: int | None, quality: int, max_pixels: int) -> Prepared:
    jpeg = jpeg_header(data)
    if jpeg and not jpeg.odd and not size and jpeg.width * jpeg.height <= max_pixels:
        return Prepared(data, jpeg.width, jpeg.height)
    if jpeg and jpeg.plain:
        image = _upright(Image.fromarray(_decoded(data, jpeg, size, max_pixels)), jpeg.orientation)
        found, orientation = (jpeg.width, jpeg.height), jpeg.orientation
    else:
        opened = Image.open(io.BytesIO(data))
        _not_too_large(*opened.size)
        image, found = _rgb(ImageOps.exif_transpose(opened)), opened.size
        orientation = opened.getexif().get(ORIENTATION, 1)
    if size:
        return Prepared(_encoded(scaled_square(image, size), quality), size, size)
    too_large = found[0] * found[1] > max_pixels
    if too_large:
        width, height = found[::-1] if orientation in TURNS_SIDES else found
        shrink = (max_pixels / (width * height)) ** 0.5
        # Rounded down, so that the product is at most max_pixels
        image = image.resize((max(1, int(width * shrink)), max(1, int(height * shrink))), Image.Resampling.BILINEAR)
    changed = jpeg.odd if jpeg else opened.format
    return Prepared(_encoded(image, quality), *image.size, changed=changed, scaled_down=too_large)


def check(data: bytes) -> tuple[str | None, str | None]:
    """Decodes a stored image wholly. Returns what is wrong with it and what its decoder merely complains of, None for
    nothing: a truncated image is wrong, stray bytes between its parts are not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            jpeg = jpeg_header(data)
            if not jpeg or not jpeg.plain:
                opened = Image.open(io.BytesIO(data))
                _not_too_large(*opened.size)
                opened.load()
                return None, None
            try:
                simplejpeg.decode_jpeg(data)
            except ValueError as complaint:
                _not_truncated(complaint)
                simplejpeg.decode_jpeg(data, strict=False)
                return None, str(complaint)
            return None, None
    except MemoryError:
        return "decoding it takes too much memory", None
    except Exception as error:  # a hostile file can make a decoder raise anything
        return _reason(error), None


def read_header(data: bytes) -> tuple[int, int, str]:
    """An image's width and height as a viewer sees them, and its kind ("JPEG", "CMYK JPEG", "PNG", ...), from its
    header alone. Raises Unreadable."""
    try:
        jpeg = jpeg_header(data)
        if jpeg:
            sides, orientation, kind = (jpeg.width, jpeg.height), jpeg.orientation, jpeg.odd or "JPEG"
        else:
            opened = Image.open(io.BytesIO(data))
            _not_too_large(*opened.size)
            sides, orientation, kind = opened.size, opened.getexif().get(ORIENTATION, 1), opened.format
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(_reason(error)) from None
    width, height = sides[::-1] if orientation in TURNS_SIDES else sides
    return width, height, kind


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


def jpeg_header(data: bytes) -> Jpeg | None:
    """What a JPEG says of itself; None when it is none. Raises Unreadable when it is one and has lost its end or its
    image, or has too many pixels."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    position, jfif, adobe, exif = 2, False, None, None
    try:
        while True:
            if data[position] != 0xFF:
                # Stray bytes between segments: a decoder skips them and complains, and so is this image's state
                position = data.index(b"\xff", position)
            marker = data[position + 1]
            if marker in (0xFF, 0x00, 0x01) or 0xD0 <= marker <= 0xD8:
                position += 1 if marker == 0xFF else 2
                continue
            if marker in (0xDA, 0xD9):
                raise Unreadable("a JPEG with no image in it")
            length = data[position + 2] << 8 | data[position + 3]
            if marker in FRAMES:
                break
            if marker == 0xE0:
                jfif = jfif or data[position + 4 : position + 9] == b"JFIF\0"
            elif marker == 0xEE and data[position + 4 : position + 9] == b"Adobe":
                adobe = data[position + 15]
            elif marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0" and exif is None:
                exif = data[position + 4 : position + 2 + length]
            position += 2 + length
        bits = data[position + 4]
        height, width = (data[position + i] << 8 | data[position + i + 1] for i in (5, 7))
        count = data[position + 9]
        parts = [(data[position + 10 + 3 * i], data[position + 11 + 3 * i]) for i in range(count)]
    except (IndexError, ValueError):
        raise Unreadable("truncated JPEG: it ends in its header") from None
    _not_too_large(width, height)
    if not _ends(data, position):
        raise Unreadable("truncated JPEG: it has no end marker")
    orientation = _orientation(exif)
    color = _color(count, [identity for identity, _ in parts], jfif, adobe)
    sampling = tuple((factors >> 4, factors & 15) for _, factors in parts) if count == 3 else ()
    common = bits == 8 and marker in COMMON_FRAMES
    odd = None
    if not common:
        odd = f"{bits}-bit JPEG" if bits != 8 else "arithmetic or lossless JPEG"
    elif color not in ("gray", "YCbCr"):
        odd = f"{color} JPEG"
    elif sampling not in SAMPLINGS:
        odd = "JPEG of unusual chroma sampling"
    elif orientation != 1:
        odd = "EXIF orientation"
    return Jpeg(width, height, odd, common and color in ("gray", "YCbCr", "RGB"), orientation)


# EXIF's orientations: what turns an image upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNS_SIDES = (5, 6, 7, 8)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _orientation(exif: bytes | None) -> int:
    if exif is None:
        return 1
    tags = Image.Exif()
    try:
        tags.load(exif)
        found = tags.get(ORIENTATION, 1)
    except Exception:  # damaged EXIF says nothing, and the image does not suffer
        return 1
    return found if found in TURNS else 1


def _color(count: int, identities: list[int], jfif: bool, adobe: int | None) -> str:
    """How libjpeg understands a JPEG's components."""
    if count == 1:
        return "gray"
    if count == 4:
        return "YCCK" if adobe == 2 else "CMYK"
    if count != 3:
        return f"{count}-component"
    if jfif:
        return "YCbCr"
    if adobe is not None:
        return "RGB" if adobe == 0 else "YCbCr"
    return "RGB" if bytes(identities) == b"RGB" else "YCbCr"


def _ends(jpeg: bytes, frame: int) -> bool:
    """Whether the end-of-image marker is there, with whatever behind it."""
    if jpeg.endswith(b"\xff\xd9"):
        return True
    return any(jpeg[found.end() - 1] == 0xD9 for found in MARKER.finditer(jpeg, frame))


def _decoded(data: bytes, jpeg: Jpeg, size: int | None, max_pixels: int) -> np.ndarray:
    """H x W x 3 uint8. An image of at least four times the sides that are wanted is decoded at half of its own, and
    so on: docs/shards.md says what that costs in PSNR. What the decoder only complains of is taken as it is."""
    factor, shorter = 1, min(jpeg.width, jpeg.height)
    wanted = size or shorter * min(1.0, (max_pixels / (jpeg.width * jpeg.height)) ** 0.5)
    while factor < 8 and shorter // (2 * factor) >= 2 * wanted:
        factor *= 2
    sides = {"min_height": -(-jpeg.height // factor), "min_width": -(-jpeg.width // factor)} if factor > 1 else {}
    try:
        return simplejpeg.decode_jpeg(data, **sides)
    except ValueError as complaint:
        _not_truncated(complaint)
        return simplejpeg.decode_jpeg(data, strict=False, **sides)


def _encoded(image: Image.Image, quality: int) -> bytes:
    # Half-resolution chroma is JPEG's usual economy; whoever asks for quality 95 and more does not want it
    return simplejpeg.encode_jpeg(np.asarray(image), quality, "RGB", "444" if quality >= 95 else "420")


def _not_truncated(complaint: ValueError) -> None:
    if "remature end" in str(complaint):
        raise Unreadable("truncated JPEG: its data end early")


def _not_too_large(width: int, height: int) -> None:
    if not width or not height:
        raise Unreadable(f"{width} x {height} pixels")
    if width * height > MOST_PIXELS:
        raise Unreadable(f"{width} x {height} is more than {MOST_PIXELS:,} pixels")


def _reason(error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "not an image" if "cannot identify" in reason else reason


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: 16 bits scaled to 8, what shines through laid on white."""
    if image.mode.startswith("I"):
        image = image.point(lambda value: value / 257).convert("L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
