"""One picture's bytes as found, to the bytes that a shard stores."""

import io
import warnings
from dataclasses import dataclass

from PIL import Image, ImageOps

# Pictures above this many pixels are taken for decompression bombs; ImageNet's largest has 29 million
MOST_PIXELS = 200_000_000


class Unreadable(Exception):
    """Not a picture, or not a whole one; the message is the reason."""


@dataclass(frozen=True)
class Prepared:
    """What is stored: the JPEG, its width and height as seen (EXIF orientation applied), and whether it was encoded
    anew."""

    jpeg: bytes
    width: int
    height: int
    reencoded: bool


def prepare(data: bytes, size: int | None, quality: int) -> Prepared:
    """With `size` None a colour or grey JPEG keeps its bytes, to the byte; any other picture becomes a JPEG of its own
    size. With a size the shorter side is scaled to it and the central size x size square cut out (section 2).

    Raises: Unreadable.
    """
    if not data:
        raise Unreadable("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of big pictures and odd EXIF; both are dealt with here
            return _prepare(data, size, quality)
    except Unreadable:
        raise
    except Exception as error:  # a hostile file can make a decoder raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Unreadable("not a picture" if "cannot identify" in reason else reason) from None


def _prepare(data: bytes, size: int | None, quality: int) -> Prepared:
    picture = Image.open(io.BytesIO(data))
    if picture.width * picture.height > MOST_PIXELS:
        raise Unreadable(f"{picture.width} x {picture.height} is more than {MOST_PIXELS:,} pixels")
    if picture.format == "JPEG" and not _ends(data):
        raise Unreadable("truncated JPEG: it has no end marker")
    if size is None and picture.format == "JPEG" and picture.mode in ("RGB", "L"):
        # Transposing orientations (5 to 8) swap the sides that a viewer, and DALI's decoder, sees
        turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        width, height = reversed(picture.size) if turned else picture.size
        return Prepared(data, width, height, reencoded=False)
    picture = _rgb(ImageOps.exif_transpose(picture))
    if size is not None:
        picture = scaled_square(picture, size)
    file = io.BytesIO()
    # Half-resolution chroma is JPEG's usual economy; whoever asks for quality 95 and more does not want it
    picture.save(file, "JPEG", quality=quality, subsampling="4:4:4" if quality >= 95 else "4:2:0")
    return Prepared(file.getvalue(), *picture.size, reencoded=True)


def scaled_square(picture: Image.Image, size: int) -> Image.Image:
    """Shorter side scaled to `size`, the central square cut out; by the triangle filter, which DALI's resize uses too,
    so that pictures stored at 256 and at their own size look alike to the net."""
    shorter = min(picture.size)
    width, height = ((2 * side * size + shorter) // (2 * shorter) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    scaled = picture.resize((width, height), Image.Resampling.BILINEAR)
    return scaled.crop((left, top, left + size, top + size))


def _ends(jpeg: bytes) -> bool:
    """Whether the end-of-image marker is there, some padding behind it allowed."""
    return b"\xff\xd9" in jpeg[-64:] or jpeg.rstrip(b"\0").endswith(b"\xff\xd9")


def _rgb(picture: Image.Image) -> Image.Image:
    """Any mode as RGB: 16 bits scaled to 8, what shines through laid on white."""
    if picture.mode.startswith("I"):
        picture = picture.point(lambda value: value / 257).convert("L")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")
