"""Other loaders beside ours: they do the same work, and one that is missing or does other work has no figure."""

import json
import os
import sys

import numpy as np
import pytest
import torch

from bench import command
from bench.loaders import compare, ours, with_dataloader
from bench.loaders.base import LoaderSpec, arrive, pinned, write_image_set
from bench.loaders.compare import Turn, Work, compare_loaders, comparison_table, pixel_difference, pixel_statistics
from bench.loaders.ours import OURS
from bench.loaders.registry import OTHERS
from shards.dataset import Dataset

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def image_set(data, tmp_path_factory):
    return write_image_set(Dataset.load(data), tmp_path_factory.mktemp("loaders"))


def compared(image_set, *others):
    """A short comparison, by the loaders' names."""
    work = Work(image_set, 16, 2, CPU, 0.05)
    return {loader["name"]: loader for loader in compare_loaders(work, 1, others)}


# Loaders that go wrong, each in its way; at the top level, because they are pickled for another process


def brighter(images, batch_size, workers, device):
    return (batch.clamp(max=245) + 10 for batch in ours.batches(images, batch_size, workers, device))


def floats(images, batch_size, workers, device):
    return (batch.float() for batch in ours.batches(images, batch_size, workers, device))


def crash(images, batch_size, workers, device):
    print("first line\nlast line", file=sys.stderr, flush=True)
    os._exit(7)


def test_a_loader_has_its_ratio_and_one_that_is_missing_crashes_or_does_other_work_a_reason_and_no_figure(image_set):
    figures = compared(
        image_set,
        LoaderSpec("the same", "webdataset", ("webdataset",), ours.batches),
        LoaderSpec("missing", "none", ("no_such_module",), crash),
        LoaderSpec("unusable", "none", ("tests.bench.unusable",), crash),
        LoaderSpec("crashing", "none", (), crash),
        LoaderSpec("brighter", "none", (), brighter),
        LoaderSpec("floats", "none", (), floats),
    )
    own, same = figures[OURS.name], figures["the same"]
    assert next(iter(figures)) == OURS.name and same["version"]
    assert same["ratio"] == pytest.approx(own["img_per_s"] / same["img_per_s"])
    assert figures["missing"] == {"name": "missing", "absent": "not installed: no_such_module"}
    assert figures["unusable"]["absent"].startswith("tests.bench.unusable cannot be imported: No module named")
    assert own["decoded_on"] == same["decoded_on"] == "CPU"
    assert figures["crashing"]["absent"] == "its process ended with 7: last line"
    assert figures["brighter"]["absent"].startswith("does other work: the mean of its pixels is")
    assert "and should be N x 224 x 224 x 3 uint8" in figures["floats"]["absent"]
    assert comparison_table(list(figures.values())).count("absent: ") == 5


def test_pixel_statistics_are_each_colors_mean_and_spread_in_either_memory_layout():
    rng = np.random.default_rng(0)
    batch = torch.from_numpy(rng.integers(0, 256, (4, 224, 224, 3), np.uint8))
    mean, spread = pixel_statistics([batch[:2], batch[2:].movedim(-1, 1)])
    assert np.allclose(mean, batch.numpy().mean((0, 1, 2))) and np.allclose(spread, batch.numpy().std((0, 1, 2)))


def test_a_difference_beyond_the_tolerance_is_described():
    own = Turn(1.0, np.array([100.0, 100, 100]), np.array([60.0, 60, 60]))
    assert pixel_difference(own, own) is None
    assert "the spread of its pixels" in pixel_difference(own._replace(spread=np.array([60.0, 60, 63])), own)


class Unpinned:
    """Stands for a batch in the host's memory where there is no GPU: it records how it travels."""

    device = CPU

    def __init__(self, pinned=False):
        self.pinned, self.way = pinned, []

    def is_pinned(self):
        return self.pinned

    def pin_memory(self):
        self.way.append("pinned")
        return self

    def to(self, device, non_blocking):
        self.way.append((device.type, non_blocking))
        return self


def test_a_batch_arrives_on_a_gpu_from_pinned_memory_without_being_waited_for():
    cuda = torch.device("cuda", 0)
    assert arrive(Unpinned(), cuda).way == ["pinned", ("cuda", True)]
    assert arrive(Unpinned(pinned=True), cuda).way == [("cuda", True)]
    assert arrive(Unpinned(), CPU).way == [] and pinned(cuda) and not pinned(CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_of_every_loader_land_on_the_gpu(image_set):
    cuda = torch.device("cuda", 0)
    for loader in (OURS, *OTHERS):
        if not compare.not_installed(loader):
            batches = loader.batches(image_set, 8, 2, cuda)
            assert arrive(next(batches), cuda).device == cuda, loader.name
            turn = compare.measure(loader, Work(image_set, 8, 2, cuda, 0.05), check_pixels=True)
            assert turn.rate > 0 and loader.name


def test_a_loader_that_needs_a_gpu_is_no_row_of_a_cpus_table(image_set):
    assert with_dataloader.NVJPEG in OTHERS and with_dataloader.NVJPEG.decodes_on == "GPU"
    assert list(compared(image_set, with_dataloader.NVJPEG)) == [OURS.name]


def test_images_decoded_on_a_gpu_are_cropped_and_flipped_there(monkeypatch):
    image = torch.arange(3 * 256 * 256, dtype=torch.int32).reshape(3, 256, 256)
    monkeypatch.setattr(with_dataloader, "draw_crop", lambda: (5, 7, True))
    assert torch.equal(with_dataloader.random_crop(image), image[:, 5:229, 7:231].flip(-1))
    wide = torch.zeros(3, 256, 300)
    wide[:, :, 22 + 7 : 22 + 231] = 1  # the central patch begins at 22
    monkeypatch.setattr(with_dataloader, "draw_crop", lambda: (0, 7, False))
    assert with_dataloader.random_crop(wide).min() == 1


@pytest.mark.long
def test_the_command_lists_every_loader_by_name_and_those_installed_do_the_same_work(
    data, tmp_path, run_here, monkeypatch
):
    monkeypatch.setattr(command, "ROUNDS", 1)
    out = tmp_path / "bench.json"
    options = ["--batch-size", 8, "--width", 0.05, "--seconds", 0.05, "--device", "cpu", "--json", out, "--peers"]
    printed = run_here("throughput-bench", "--data", data, *options).stdout
    listed = {one["name"]: one for one in json.loads(out.read_text())["peers"]}
    assert list(listed) == [OURS.name, *(loader.name for loader in OTHERS if not loader.needs_gpu)]
    assert all(("img_per_s" in one) != ("absent" in one) and name in printed for name, one in listed.items())
    assert listed[OURS.name]["ratio"] == 1
    for name in ("torch DataLoader + Pillow", "webdataset + Pillow", "webdataset + simplejpeg"):
        one = listed[name]
        assert one["version"] and 0 < one["p10"] <= one["img_per_s"] <= one["p90"] and one["ratio"] > 0, one
