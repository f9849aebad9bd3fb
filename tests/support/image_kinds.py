"""An image of every kind that data sets contain, generated here."""

import io

import numpy as np
import simplejpeg
from PIL import Image


def encoded(image: Image.Image, kind="JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(mode="RGB", size=(40, 30)) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), np.uint8).squeeze()
    return Image.frombytes(mode, size, pixels.tobytes())


def smooth(mode="RGB", size=(40, 30)) -> Image.Image:
    """Smooth gradients, which JPEG keeps, with no two corners alike."""
    return noise(mode, (4, 3)).resize(size, Image.Resampling.BILINEAR)


def rotated(orientation: int) -> bytes:
    """A JPEG with this EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(smooth(), quality=100, subsampling=0, exif=exif)


def patched(jpeg: bytes, marker: int, offset: int, value: int) -> bytes:
    """A JPEG with one byte of its first such segment changed, counted from the marker."""
    at = jpeg.index(bytes([0xFF, marker])) + offset
    return jpeg[:at] + bytes([value]) + jpeg[at + 1 :]


def sampled(sampling: str) -> bytes:
    return simplejpeg.encode_jpeg(np.asarray(smooth()), 95, "RGB", sampling)


def thumbnailed() -> bytes:
    """A JPEG whose EXIF segment holds a complete small JPEG, with its end marker."""
    jpeg, small = encoded(noise()), encoded(noise(size=(16, 16)))
    part = b"Exif\0\0" + small
    return jpeg[:2] + b"\xff\xe1" + (len(part) + 2).to_bytes(2, "big") + part + jpeg[2:]


def cmyk() -> bytes:
    return encoded(smooth("CMYK"), quality=100)


JPEG = encoded(noise())

# By kind: the file's bytes, and why `prepare` re-encodes it (None: it is kept to the byte)
READABLE = {
    "color": (encoded(noise()), None),
    "gray": (encoded(noise("L")), None),
    "progressive": (encoded(noise(), progressive=True), None),
    "4:4:4": (sampled("444"), None),
    "4:2:2": (sampled("422"), None),
    "4:2:0": (sampled("420"), None),
    "padded": (encoded(noise()) + bytes(100), None),
    "600 bytes behind the end": (encoded(noise()) + b"trailer " * 75, None),
    "thumbnail": (thumbnailed(), None),
    "damaged EXIF": (encoded(noise(), exif=b"Exif\0\0nothing like it"), None),
    "upright EXIF": (rotated(1), None),
    "4:4:0": (sampled("440"), "JPEG of unusual chroma sampling"),
    "4:1:1": (sampled("411"), "JPEG of unusual chroma sampling"),
    "RGB": (encoded(noise(), keep_rgb=True), "RGB JPEG"),
    "CMYK": (cmyk(), "CMYK JPEG"),
    "YCCK": (patched(cmyk(), 0xEE, 15, 2), "YCCK JPEG"),
    "rotated": (rotated(6), "EXIF orientation"),
    "PNG": (encoded(noise(), "PNG"), "PNG"),
    "16-bit PNG": (encoded(Image.fromarray(np.full((30, 40), 30000, np.uint16)), "PNG"), "PNG"),
    "alpha PNG": (encoded(noise("RGBA"), "PNG"), "PNG"),
    "palette PNG": (encoded(noise().quantize(16), "PNG"), "PNG"),
    "GIF": (encoded(noise("L"), "GIF"), "GIF"),
    "animated GIF": (encoded(noise("L"), "GIF", save_all=True, append_images=[noise("L").rotate(180)]), "GIF"),
    "WebP": (encoded(noise(), "WEBP"), "WEBP"),
    "BMP": (encoded(noise(), "BMP"), "BMP"),
}

# By kind: the file's bytes, and a pattern of the reason
UNREADABLE = {
    "zero bytes": (b"", "empty"),
    "text": (b"hello, I am a text", "not an image"),
    "JPEG cut short": (encoded(noise())[:-300], "truncated"),
    "JPEG cut in its header": (encoded(noise())[:100], "truncated"),
    "JPEG cut behind a thumbnail": (thumbnailed()[:-300], "truncated"),
    "JPEG of a header alone": (encoded(noise())[:20] + b"\xff\xd9", "no image"),
    "PNG cut short": (encoded(noise(), "PNG")[:-900], "truncated|broken|not an image"),
    "12-bit JPEG": (patched(encoded(noise()), 0xC0, 4, 12), "."),
    "no width": (patched(patched(encoded(noise()), 0xC0, 7, 0), 0xC0, 8, 0), "pixels"),
    "PNG bomb": (encoded(Image.new("1", (20_000, 20_000)), "PNG"), "pixels"),
    "JPEG bomb": (patched(patched(encoded(noise()), 0xC0, 5, 255), 0xC0, 7, 255), "pixels"),
}
