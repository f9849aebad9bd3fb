"""A cold reading reads the disk, not the page cache; a GPU's decoders add up, and the cores count once."""

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


def test_a_gpus_decoders_are_its_engine_and_the_cores_at_what_they_are_better_at():
    rates = {"libjpeg-turbo": 20_921.0, "nvImageCodec": 24_020.0, limits.ENGINE: 23_649.0, limits.HYBRID: 16_683.0}
    measured = {name: limits.Limit(rate, "pictures", name) for name, rate in rates.items()}
    every = limits.all_decoders(measured)
    assert every.rate == 23_649 + 20_921 and every.what.startswith("the sum of JPEG engine and libjpeg-turbo")
    measured[limits.HYBRID] = measured[limits.HYBRID]._replace(rate=30_000.0)
    assert limits.all_decoders(measured).rate == 23_649 + 30_000


def test_a_part_of_the_decoder_that_is_missing_is_none_and_not_an_error(monkeypatch):
    """Here without a GPU no part is there but nvImageCodec's CPU decoder."""
    no_device = -99999  # nvImageCodec's number for the CPU alone
    monkeypatch.setitem(limits.GPU_DECODERS, "cores", limits.nvimgcodec.BackendKind.CPU_ONLY)
    assert limits.gpu_decoder(limits.ENGINE, no_device, 1) is None
    assert limits.gpu_decoder("cores", no_device, 1) is not None
