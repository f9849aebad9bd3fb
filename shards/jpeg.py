"""Reads a JPEG's header: its size and coding, its orientation, and whether every decoder sees the same image in it."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from shards.errors import Unreadable

MAX_PIXELS = 64 * 2**20  # an image with more is taken for a decompression bomb; ImageNet's largest has 29 million
ORIENTATION = 0x0112  # EXIF tag
ORIENTATIONS = range(2, 9)  # its values that turn or mirror an image; 1 is upright
ARITHMETIC_OR_LOSSLESS, UNUSUAL_SAMPLING = "arithmetic or lossless JPEG", "JPEG of unusual chroma sampling"
ORIENTATION_KIND = "EXIF orientation"
SAMPLINGS = {(): "gray", ((1, 1),) * 3: "444", ((2, 1), (1, 1), (1, 1)): "422", ((2, 2), (1, 1), (1, 1)): "420"}

# Frame headers: all but 0xC4, 0xC8 and 0xCC of 0xC0..0xCF. Every decoder reads baseline, extended and progressive
# Huffman coding
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
COMMON_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
JFIF, EXIF, ADOBE = 0xE0, 0xE1, 0xEE
MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")  # one that ends a scan's data: no stuffed byte, no restart


@dataclass(frozen=True)
class JpegHeader:
    """Width and height as stored, in pixels, and the EXIF orientation. `incompatible` says why decoders disagree on
    the image, None when they agree; `decodes_to_rgb` whether simplejpeg can decode it to RGB."""

    width: int
    height: int
    incompatible: str | None
    decodes_to_rgb: bool
    orientation: int


class _Segments(NamedTuple):
    """The segments before the frame header, which begins with `marker` at byte `frame`."""

    frame: int
    marker: int
    jfif: bool
    adobe: int | None
    exif: bytes | None


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """None when `data` is not a JPEG. Raises Unreadable for a JPEG that has lost its end or its image, or has too many
    pixels."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    try:
        segments = _read_segments(data)
        frame = segments.frame
        bits = data[frame + 4]
        height, width = (data[frame + i] << 8 | data[frame + i + 1] for i in (5, 7))
        count = data[frame + 9]
        components = [(data[frame + 10 + 3 * i], data[frame + 11 + 3 * i]) for i in range(count)]
    except (IndexError, ValueError):
        raise Unreadable("truncated JPEG: it ends in its header") from None
    check_pixel_count(width, height)
    if not _has_end(data, frame):
        raise Unreadable("truncated JPEG: it has no end marker")
    orientation = _orientation(segments.exif)
    color = _color([identity for identity, _ in components], segments.jfif, segments.adobe)
    sampling = tuple((factors >> 4, factors & 15) for _, factors in components) if count == 3 else ()
    common = bits == 8 and segments.marker in COMMON_FRAMES
    incompatible = None
    if not common:
        incompatible = f"{bits}-bit JPEG" if bits != 8 else ARITHMETIC_OR_LOSSLESS
    elif color not in ("gray", "YCbCr"):
        incompatible = f"{color} JPEG"
    elif sampling not in SAMPLINGS:
        incompatible = UNUSUAL_SAMPLING
    elif orientation != 1:
        incompatible = ORIENTATION_KIND
    return JpegHeader(width, height, incompatible, common and color in ("gray", "YCbCr", "RGB"), orientation)


def check_pixel_count(width: int, height: int) -> None:
    """Raises Unreadable for an image of no pixels or of more than MAX_PIXELS."""
    if not width or not height:
        raise Unreadable(f"{width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise Unreadable(f"{width} x {height} is more than {MAX_PIXELS:,} pixels")


def _read_segments(data: bytes) -> _Segments:
    """Raises IndexError or ValueError when the data end before a frame header, Unreadable when there is none."""
    position, jfif, adobe, exif = 2, False, None, None
    while True:
        if data[position] != 0xFF:
            # Stray bytes between segments: decoders skip them with a warning, and so does this
            position = data.index(b"\xff", position)
        marker = data[position + 1]
        if marker in (0xFF, 0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            position += 1 if marker == 0xFF else 2
            continue
        if marker in (START_OF_SCAN, END_OF_IMAGE):
            raise Unreadable("a JPEG with no image in it")
        length = data[position + 2] << 8 | data[position + 3]
        if marker in FRAMES:
            return _Segments(position, marker, jfif, adobe, exif)
        if marker == JFIF:
            jfif = jfif or data[position + 4 : position + 9] == b"JFIF\0"
        elif marker == ADOBE and data[position + 4 : position + 9] == b"Adobe":
            adobe = data[position + 15]
        elif marker == EXIF and data[position + 4 : position + 10] == b"Exif\0\0" and exif is None:
            exif = data[position + 4 : position + 2 + length]
        position += 2 + length


def _orientation(exif: bytes | None) -> int:
    if exif is None:
        return 1
    tags = Image.Exif()
    try:
        tags.load(exif)
        orientation: int = tags.get(ORIENTATION, 1)
    except Exception:  # damaged EXIF is ignored: the image is none the worse for it
        return 1
    return orientation if orientation in ORIENTATIONS else 1


def _color(identities: list[int], jfif: bool, adobe: int | None) -> str:
    """How libjpeg interprets a JPEG's components."""
    if len(identities) == 1:
        return "gray"
    if len(identities) == 4:
        return "YCCK" if adobe == 2 else "CMYK"
    if len(identities) != 3:
        return f"{len(identities)}-component"
    if jfif:
        return "YCbCr"
    if adobe is not None:
        return "RGB" if adobe == 0 else "YCbCr"
    return "RGB" if bytes(identities) == b"RGB" else "YCbCr"


def _has_end(jpeg: bytes, frame: int) -> bool:
    """Whether the end-of-image marker is there, whatever follows it."""
    if jpeg.endswith(b"\xff\xd9"):
        return True
    return any(jpeg[match.end() - 1] == END_OF_IMAGE for match in MARKER.finditer(jpeg, frame))
