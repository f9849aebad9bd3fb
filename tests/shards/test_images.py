"""An image is kept, re-encoded, scaled down or skipped, as the table in docs/shards.md says."""

import io
import subprocess
import sys

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from shards import images
from shards.errors import Unreadable
from shards.images import check_image, decode_jpeg, prepare, read_header
from shards.jpeg import MAX_PIXELS, read_jpeg_header
from tests.support.image_kinds import EPS, READABLE, UNREADABLE, encoded, gray, noise, patched, rotated, sampled, smooth


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"), float)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((one - other) ** 2))


@pytest.mark.parametrize("kind", READABLE)
def test_an_image_is_kept_or_becomes_a_common_jpeg(kind):
    data, change = READABLE[kind]
    prepared = prepare(data, None, 95)
    assert prepared.reencoded == change and not prepared.scaled_down
    if change is None:
        assert prepared.jpeg == data
    header = read_jpeg_header(prepared.jpeg)
    assert (header.incompatible, header.width, header.height) == (None, prepared.width, prepared.height)
    assert (prepared.width, prepared.height) == read_header(data)[:2] == ((30, 40) if kind == "rotated" else (40, 30))
    # Both libraries that read it afterwards see the same image
    assert np.array_equal(simplejpeg.decode_jpeg(prepared.jpeg), pixels(prepared.jpeg))


@pytest.mark.parametrize("kind", ["CMYK", "4:4:0", "4:1:1", "rotated", "palette PNG"])
def test_what_is_re_encoded_looks_the_same(kind):
    data, _ = READABLE[kind]
    assert psnr(pixels(prepare(data, None, 100).jpeg), pixels(data)) > 35


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_rotated_image_is_stored_upright(orientation):
    data = rotated(orientation)
    stored = prepare(data, None, 100).jpeg
    assert Image.open(io.BytesIO(stored)).getexif().get(0x0112, 1) == 1
    assert psnr(pixels(stored), pixels(data)) > 40
    square = pixels(prepare(data, 256, 100).jpeg)
    upright = np.asarray(images.scaled_square(Image.fromarray(pixels(data).astype(np.uint8)), 256), float)
    assert psnr(square, upright) > 35 > psnr(square, upright[::-1])


@pytest.mark.parametrize("size", [None, 256])
@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_is_not_a_complete_image_is_unreadable(kind, size):
    data, reason = UNREADABLE[kind]
    with pytest.raises(Unreadable, match=reason):
        prepare(data, size, 95)


def test_arithmetic_coding_is_recognized():
    assert read_jpeg_header(patched(encoded(noise()), 0xC0, 1, 0xC9)).incompatible == "arithmetic or lossless JPEG"


def test_sixteen_bits_are_scaled_and_alpha_lies_on_white():
    deep = encoded(Image.fromarray(np.full((30, 40), 257 * 100, np.uint16)), "PNG")
    clear = encoded(Image.new("RGBA", (40, 30), (0, 0, 0, 0)), "PNG")
    for data, value in ((deep, 100), (clear, 255)):
        assert np.abs(pixels(prepare(data, None, 95).jpeg) - value).max() <= 1


@pytest.mark.parametrize("kind", ["<u2", ">u2", "f4"])
def test_numbers_are_scaled_from_black_to_white(kind):
    image = gray(kind, 1 if kind == "f4" else 65535)
    found = pixels(prepare(encoded(image, "TIFF"), None, 100).jpeg)
    assert np.abs(found - np.asarray(smooth("L"), float)[:, :, None]).max() <= 2


@pytest.mark.parametrize(
    "image, reason",
    [
        (gray("f4", 255), r"floats from \S+ to 2\d+(\.\d+)?: only those from 0, black, to 1, white, are read"),
        (gray("f4", -1), "floats from -"),
        (gray("f4", np.nan), "floats from nan to nan"),
        (gray("i4", 2**30), "signed or 32-bit integers, of which nothing says what is white"),
    ],
)
def test_numbers_of_which_nothing_says_what_is_white_are_unreadable(image, reason):
    with pytest.raises(Unreadable, match=reason):
        prepare(encoded(image, "TIFF"), None, 95)


@pytest.mark.parametrize(
    "read", [lambda data: prepare(data, None, 95), lambda data: prepare(data, 256, 95), read_header]
)
def test_ghostscript_is_not_started(read, tmp_path, monkeypatch):
    script = tmp_path / "gs"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(Unreadable, match="not an image"):
        read(EPS)
    assert check_image(EPS)[0] == "not an image" and not (tmp_path / "ran").exists()


def test_an_animation_is_its_first_frame():
    data, _ = READABLE["animated GIF"]
    first = prepare(encoded(noise("L"), "GIF"), None, 95)
    assert prepare(data, None, 95).jpeg == first.jpeg


@pytest.mark.parametrize("make", [lambda: sampled("444"), lambda: encoded(smooth(), "PNG"), lambda: rotated(6)])
def test_large_images_are_scaled_down(make):
    data = make()
    prepared = prepare(data, None, 95, max_pixels=700)
    wide, high, _ = read_header(data)
    assert prepared.scaled_down and 600 < prepared.width * prepared.height <= 700
    assert prepared.width / prepared.height == pytest.approx(wide / high, rel=0.05)
    assert read_header(prepared.jpeg)[:2] == (prepared.width, prepared.height)
    assert not prepare(data, None, 95, max_pixels=1200).scaled_down


def test_a_strip_takes_no_more_memory_than_an_image():
    # If all of it were scaled, its longer side would have 1.5 million pixels
    code = (
        "import io, re; from PIL import Image; from shards.images import prepare; file = io.BytesIO();"
        "Image.new('RGB', (1, 6000)).save(file, 'JPEG'); stored = prepare(file.getvalue(), 256, 95);"
        "print(stored.width, stored.height, re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    width, height, kilobytes = map(int, done.stdout.split())
    assert (width, height) == (256, 256) and kilobytes < 250_000


def test_decoding_at_half_size_keeps_a_large_image():
    data = encoded(smooth(size=(1500, 1100)), quality=95)
    complete = images.scaled_square(Image.fromarray(simplejpeg.decode_jpeg(data)), 256)
    header = read_jpeg_header(data)
    assert decode_jpeg(data, header, 256, MAX_PIXELS).shape == (550, 750, 3)
    assert psnr(pixels(prepare(data, 256, 100).jpeg), np.asarray(complete, float)) > 42
    # At half its size, less than twice the wanted side would be left
    assert decode_jpeg(data, header, 300, MAX_PIXELS).shape == (1100, 1500, 3)


def test_damage_is_told_apart_from_warnings():
    complete = encoded(noise(size=(80, 60)))
    stray = complete[:-2] + b"\x12\x34\x56" * 40 + complete[-2:]
    cut = complete[: len(complete) * 2 // 3] + b"\xff\xd9"
    assert check_image(complete) == check_image(encoded(noise(), "PNG")) == (None, None)
    assert "truncated" in check_image(cut)[0]
    error, warning = check_image(stray)
    assert error is None and (warning is None or "extraneous" in warning)
    assert check_image(b"nothing")[0] == "not an image" and check_image(encoded(noise(), "PNG")[:-900])[0]
