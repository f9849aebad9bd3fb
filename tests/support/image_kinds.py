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


def gray(kind: str, white: float) -> Image.Image:
    """The smooth image in one channel of another NumPy type, `white` for 255."""
    return Image.fromarray((np.asarray(smooth("L"), float) * (white / 255)).astype(kind))


def clear(mode="RGB", opacity=0) -> Image.Image:
    """The smooth image, its left half as opaque as `opacity`, its right half completely."""
    image, alpha = smooth(mode), Image.new("L", (40, 30), 255)
    alpha.paste(opacity, (0, 0, 20, 30))
    image.putalpha(alpha)
    return image


def animated(kind: str, **options) -> bytes:
    """The smooth image and then another."""
    return encoded(smooth(), kind, save_all=True, append_images=[smooth().rotate(180)], **options)


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

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\n%%EOF\n"
PALETTE = smooth().quantize(16)
TRANSPARENT = "DALI ignores the transparency"

# Images as others store them, by kind: the file's bytes, and why they are not trained on as they are (None: they are)
ADOPTED = {
    "JPEG": (encoded(smooth()), None),
    "CMYK JPEG": (cmyk(), None),
    "JPEG and another": (animated("MPO"), None),
    "PNG": (encoded(smooth(), "PNG"), None),
    "animated PNG": (animated("PNG"), None),
    "16-bit PNG": (encoded(gray("u2", 65535), "PNG"), None),
    "palette PNG": (encoded(PALETTE, "PNG"), None),
    "opaque RGBA PNG": (encoded(clear(opacity=255), "PNG"), None),
    "opaque LA PNG": (encoded(clear("L", 255), "PNG"), None),
    "animated WebP": (animated("WEBP", lossless=True), None),
    "opaque RGBA TIFF": (encoded(clear(opacity=255), "TIFF"), None),
    "16-bit TIFF": (encoded(gray("<u2", 65535), "TIFF"), None),
    "16-bit TIFF, big-endian": (encoded(gray(">u2", 65535), "TIFF"), None),
    "TIFF of two pages": (animated("TIFF"), None),
    "LZW TIFF": (encoded(smooth(), "TIFF", compression="tiff_lzw"), None),
    "BMP": (encoded(smooth(), "BMP"), None),
    "JPEG 2000": (encoded(smooth(), "JPEG2000"), None),
    "PPM": (encoded(smooth(), "PPM"), None),
    "12-bit JPEG": (patched(encoded(smooth()), 0xC0, 4, 12), "DALI cannot decode 12-bit JPEG"),
    "GIF": (encoded(smooth(), "GIF"), "DALI cannot decode GIF"),
    "animated GIF": (animated("GIF"), "DALI cannot decode GIF"),
    "ICO": (encoded(smooth(), "ICO"), "DALI cannot decode ICO"),
    "TGA": (encoded(smooth(), "TGA"), "DALI cannot decode TGA"),
    "QOI": (encoded(smooth(), "QOI"), "DALI cannot decode QOI"),
    "RGBA PNG": (encoded(clear(), "PNG"), TRANSPARENT),
    "half opaque RGBA PNG": (encoded(clear(opacity=128), "PNG"), TRANSPARENT),
    "LA PNG": (encoded(clear("L"), "PNG"), TRANSPARENT),
    "palette PNG with a transparent color": (encoded(PALETTE, "PNG", transparency=bytes(range(16))), TRANSPARENT),
    "RGBA WebP": (encoded(clear(), "WEBP", lossless=True, exact=True), TRANSPARENT),
    "RGBA TIFF": (encoded(clear(), "TIFF"), TRANSPARENT),
    "LA TIFF": (encoded(clear("L", 255), "TIFF"), "DALI cannot decode TIFF of gray with transparency"),
    "TIFF of floats": (encoded(gray("f4", 255.0), "TIFF"), "DALI cannot decode TIFF of floats"),
    "TIFF of 32 bits": (encoded(gray("i4", 2**30), "TIFF"), "DALI cannot decode TIFF of signed or 32-bit integers"),
    "TIFF of one bit": (encoded(smooth("1"), "TIFF"), "DALI cannot decode TIFF of 1 bit"),
    "PPM of odd values": (
        b"P5 40 30 100\n" + (np.asarray(smooth("L")) // 3).tobytes(),
        "DALI cannot decode PPM of values",
    ),
    "EPS": (EPS, "not an image"),
    "DDS": (encoded(smooth(), "DDS"), "not an image"),
}
if "AVIF" in Image.SAVE:  # Pillow has it from 11.3 on
    ADOPTED["AVIF"] = (encoded(smooth(), "AVIF"), "DALI cannot decode AVIF")
