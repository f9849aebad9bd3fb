"""Decoding, scaling and encoding by each library (`libraries`), and decoding at reduced size (`scaled_decoding`)."""

import functools
import io
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from bench.studies.sharding.contestants import SIZE, Pixels, decode, encode, square
from bench.studies.sharding.rounds import Contestant, Pair, Setup, alternate, compare, sample_images
from shards.formats import open_image
from shards.images import decode_jpeg, scaled_sides
from shards.jpeg import MAX_PIXELS, read_jpeg_header

T = TypeVar("T")
Functions = dict[str, Callable[[Any], object] | None]  # by the library's name, None for one that is absent


def scale_then_crop(pixels: Pixels, resample: Image.Resampling = Image.Resampling.BILINEAR) -> Pixels:
    """The scaled image, and of it the central square: more work than `square` for the same result."""
    image = Image.fromarray(pixels)
    width, height = scaled_sides(*image.size, SIZE)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    return np.asarray(image.resize((width, height), resample).crop((left, top, left + SIZE, top + SIZE)))


def pillow_decode(data: bytes) -> Pixels:
    return np.asarray(open_image(data).convert("RGB"))


def pillow_encode(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def opencv() -> Functions:
    """OpenCV's functions by step, None where it is absent."""
    try:
        import cv2
    except ImportError:
        return dict.fromkeys(("decode", "resize", "encode"))
    cv2.setNumThreads(1)
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]

    def read(data: bytes) -> Any:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)

    def area(pixels: Pixels) -> Any:
        height, width = pixels.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        cut = pixels[top : top + side, left : left + side]
        return cv2.resize(cut, (SIZE, SIZE), interpolation=cv2.INTER_AREA)

    def write(pixels: Pixels) -> Any:
        return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95, *sampling])[1]

    return {"decode": read, "resize": area, "encode": write}


def turbojpeg_decode() -> Callable[[bytes], object] | None:
    """PyTurboJPEG's decoding, None where it is absent."""
    with suppress(ImportError, OSError, RuntimeError):  # libjpeg-turbo may be missing or too old for it
        import turbojpeg

        return functools.partial(turbojpeg.TurboJPEG().decode, pixel_format=turbojpeg.TJPF_RGB)
    return None


def choices() -> dict[str, Functions]:
    """What each library does in each step."""
    cv2 = opencv()
    return {
        "decode": {
            "simplejpeg": decode,
            "Pillow": pillow_decode,
            "OpenCV": cv2["decode"],
            "PyTurboJPEG": turbojpeg_decode(),
        },
        "resize": {
            "Pillow, whole then crop": scale_then_crop,
            "Pillow, box": square,
            "OpenCV, INTER_AREA": cv2["resize"],
        },
        "encode": {"simplejpeg": encode, "Pillow": pillow_encode, "OpenCV": cv2["encode"]},
    }


def mean_time(name: str, function: Callable[[T], object], items: Sequence[T], unit: float) -> Contestant:
    """A contestant: a call's mean time over the items, in units, of which a second has `unit`."""

    def contestant(_: Path) -> dict[str, float]:
        began = time.perf_counter()
        for item in items:
            function(item)
        return {name: unit * (time.perf_counter() - began) / len(items)}

    return contestant


def libraries(setup: Setup) -> dict[str, Any]:
    data = [image for _, image in sample_images(setup.images)]
    pixels = [decode(image) for image in data]
    inputs: dict[str, list[Any]] = {
        "decode": data,
        "resize": pixels,
        "encode": [square(image) for image in pixels],
    }
    report: dict[str, Any] = {"pictures": len(data)}
    for step, functions in choices().items():
        print(f"libraries, {step}: {len(data)} images, one process")
        contestants = [mean_time(name, function, inputs[step], 1e6) for name, function in functions.items() if function]
        figures = alternate(contestants, setup.rounds, setup.work)
        absent = [name for name, function in functions.items() if not function]
        report[step] = {**compare(figures, "us an image"), "absent": absent}
        if absent:
            print(f"  absent: {'; '.join(absent)}")
    return report


def decode_reduced(data: bytes) -> Pixels:
    """As `shard --size 256` decodes a plain JPEG: at reduced size where it is large enough."""
    jpeg = read_jpeg_header(data)
    assert jpeg is not None
    return np.asarray(decode_jpeg(data, jpeg, SIZE, MAX_PIXELS))


def full(data: bytes) -> Pixels:
    return square(decode(data))


def reduced(data: bytes) -> Pixels:
    return square(decode_reduced(data))


def is_plain(data: bytes) -> bool:
    jpeg = read_jpeg_header(data)
    return jpeg is not None and jpeg.decodes_to_rgb


def scaled_decoding(setup: Setup) -> dict[str, Any]:
    data = [image for _, image in sample_images(setup.images) if is_plain(image)]
    affected = [image for image in data if decode_reduced(image).shape != decode(image).shape]
    report: dict[str, Any] = {"pictures": len(data), "affected": len(affected)}
    print(f"scaled_decoding: {len(affected)} of {len(data)} images are decoded at reduced size")
    if not affected:
        return report
    report["psnr_db"] = quality(affected)
    for name, values in report["psnr_db"].items():
        print(f"  {name:<34}{values['median']:>10.2f} dB, least {values['min']:.2f}")
    contestants = [
        mean_time(f"{function.__name__}, {name}", function, images, 1e3)
        for name, images in (("affected", affected), ("all", data))
        for function in (full, reduced)
    ]
    figures = alternate(contestants, setup.rounds, setup.work)
    pairs: list[Pair] = [(f"reduced, {name}", f"full, {name}", "") for name in ("affected", "all")]
    report["decode_and_scale"] = compare(figures, "ms an image", pairs)
    for ours, theirs, _ in pairs:
        saved = 1 - np.median(figures[ours]) / np.median(figures[theirs])
        print(f"  {ours}: {saved:.1%} of the time saved")
    return report


def quality(images: list[bytes]) -> dict[str, dict[str, Any]]:
    """How close images that are decoded at reduced size, and at full size, come to a Lanczos-scaled one."""
    decoded = [decode(image) for image in images]
    stored = [reduced(image) for image in images]
    triangle = [square(image) for image in decoded]
    lanczos = [scale_then_crop(image, Image.Resampling.LANCZOS) for image in decoded]
    return {
        "reduced, to full + Lanczos": psnr(stored, lanczos),
        "reduced, to full + triangle": psnr(stored, triangle),
        "full + triangle, to full + Lanczos": psnr(triangle, lanczos),
    }


def psnr(images: list[Pixels], references: list[Pixels]) -> dict[str, Any]:
    """Over all three channels together, dB."""
    pairs = zip(images, references, strict=True)
    errors = [float(np.mean((image.astype(float) - reference) ** 2)) for image, reference in pairs]
    values = [float(10 * np.log10(255**2 / max(error, 1e-9))) for error in errors]
    return {"median": float(np.median(values)), "min": min(values), "raw": values}
