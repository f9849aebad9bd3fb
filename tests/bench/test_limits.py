"""A cold reading reads the disk, not the page cache."""

import os

import pytest

from bench import limits


def test_dropped_files_are_read_from_the_disk(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(2**20))

    def cached():
        with open(path, "rb") as file:
            try:
                return os.preadv(file.fileno(), [bytearray(4096)], 0, os.RWF_NOWAIT) > 0
            except BlockingIOError:
                return False
            except OSError as error:
                pytest.skip(f"this file system does not say what is cached: {error}")

    if not cached():
        pytest.skip("this file system keeps nothing cached")
    limits.drop([path])
    assert not cached()
