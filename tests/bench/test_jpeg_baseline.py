"""The JPEG baseline: processes decode images from memory at once."""

from bench.harness.datasets import read_jpegs
from bench.harness.jpeg_baseline import decoders
from shards.dataset import Dataset


def test_processes_decode_at_once(data):
    images = read_jpegs(Dataset.load(data), 5)
    assert len(images) == 5 and all(image.startswith(b"\xff\xd8") for image in images)
    with decoders(images, 2) as decode:
        decoded = decode(0.2)
    assert decoded.rate > 10 and 0 < decoded.cpu < 0.1
