"""What a loader to compare with has to give, and the images that all of them read."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from bench.harness.datasets import read_jpegs, write_images
from shards.dataset import Dataset
from shards.processes import cores

MAX_IMAGES = 2048
T = TypeVar("T")


class ImageSet(NamedTuple):
    """The same images as files and as shards; loaders write their own format beside them.

    folder: of these images; source: of the data set that they come from, and of its statistics; dataset: the shards;
    repeats: how often an epoch has each image.
    """

    folder: Path
    source: Path
    dataset: Dataset
    repeats: int = 1

    @property
    def files(self) -> list[str]:
        """The paths of an epoch's images."""
        return self.repeats * sorted(map(str, (self.folder / "images").rglob("*.jpg")))

    def converted(self, format_name: str, write: Callable[[Path], None]) -> Path:
        """The folder of the images in another format; `write` fills it when it is not there yet."""
        path = self.folder / f"{format_name}-{self.repeats}"
        if not path.exists():
            unfinished = self.folder / f"{path.name}.unfinished"
            unfinished.mkdir()
            write(unfinished)
            unfinished.rename(path)
        return path


class LoaderSpec(NamedTuple):
    """A loader to compare with.

    package: its distribution's name on PyPI; modules: what has to be importable; batches: from the images, the batch
    size, the number of workers and the device that trains to batches without end, N x 224 x 224 x 3 or
    N x 3 x 224 x 224, uint8, on that device or, for `arrive` to copy, in the host's memory, best in pinned pages;
    decodes_on: where it decodes for a GPU; needs_gpu: whether it does not run for a CPU.
    """

    name: str
    package: str
    modules: tuple[str, ...]
    batches: Callable[[ImageSet, int, int, torch.device], Iterator[Tensor]]
    decodes_on: str = "CPU"
    needs_gpu: bool = False


def arrive(batch: Tensor, device: torch.device) -> Tensor:
    """The batch on the device that trains, its copy queued and not waited for."""
    if device.type == "cpu" or batch.device == device:
        return batch
    return (batch if batch.is_pinned() else batch.pin_memory()).to(device, non_blocking=True)


def pinned(device: torch.device) -> bool:
    """Whether a DataLoader is to put its batches into pinned memory, from which a GPU copies by itself."""
    return device.type == "cuda"


def write_image_set(dataset: Dataset, folder: Path) -> ImageSet:
    """The first images of a data set, at most MAX_IMAGES, written to `folder`/loaders."""
    folder = folder / "loaders"
    written = write_images(read_jpegs(dataset, MAX_IMAGES), folder, dataset.size, cores())
    return ImageSet(folder, dataset.root, written)


def endless(epoch: Iterable[T]) -> Iterator[T]:
    """One epoch after another."""
    while True:
        yield from epoch
