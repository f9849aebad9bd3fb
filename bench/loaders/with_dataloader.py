"""torch's DataLoader over image files, decoded and transformed by its workers, or by torchvision's nvJPEG on a GPU."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.loaders.base import ImageSet, LoaderSpec, endless, pinned
from bench.loaders.transform import draw_crop, with_pillow, with_simplejpeg
from pipeline.geometry import CROP, SIZE

T = TypeVar("T")


class Files(Dataset[T]):
    def __init__(self, files: list[str], transform: Callable[[bytes], T]):
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> T:
        return self.transform(Path(self.files[number]).read_bytes())


class TorchvisionTransform:
    """The transform with torchvision v2."""

    def __init__(self) -> None:
        from torchvision.transforms import v2  # optional

        steps = [v2.Resize(SIZE), v2.CenterCrop(SIZE), v2.RandomCrop(CROP), v2.RandomHorizontalFlip()]
        self.transform = v2.Compose(steps)

    def __call__(self, jpeg: bytes) -> Tensor:
        from torchvision.io import ImageReadMode, decode_jpeg

        encoded = torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)
        transformed: Tensor = self.transform(decode_jpeg(encoded, mode=ImageReadMode.RGB))
        return transformed


def _batches(
    images: ImageSet, transform: Callable[[bytes], Tensor], batch_size: int, workers: int, device: torch.device
) -> Iterator[Tensor]:
    loader = DataLoader(
        Files(images.files, transform),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=pinned(device),
    )
    return endless(loader)


def pillow_batches(images: ImageSet, batch_size: int, workers: int, device: torch.device) -> Iterator[Tensor]:
    return _batches(images, with_pillow, batch_size, workers, device)


def simplejpeg_batches(images: ImageSet, batch_size: int, workers: int, device: torch.device) -> Iterator[Tensor]:
    return _batches(images, with_simplejpeg, batch_size, workers, device)


def torchvision_batches(images: ImageSet, batch_size: int, workers: int, device: torch.device) -> Iterator[Tensor]:
    return _batches(images, TorchvisionTransform(), batch_size, workers, device)


def nvjpeg_batches(images: ImageSet, batch_size: int, workers: int, device: torch.device) -> Iterator[Tensor]:
    """Workers that read the files, a batch of which torchvision decodes at once on the device."""
    from torchvision.io import ImageReadMode, decode_jpeg

    loader: DataLoader[NDArray[np.uint8]] = DataLoader(
        Files(images.files, as_array),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
        collate_fn=list,
    )
    for encoded in endless(loader):
        decoded = decode_jpeg(list(map(torch.from_numpy, encoded)), mode=ImageReadMode.RGB, device=device)
        yield torch.stack([random_crop(image) for image in decoded])


def as_array(jpeg: bytes) -> NDArray[np.uint8]:
    """An array, because a worker sends each tensor as an open file, of which a batch would be too many."""
    return np.array(np.frombuffer(jpeg, np.uint8))


def random_crop(image: Tensor) -> Tensor:
    """The transform of a decoded image, 3 x height x width, on its device."""
    if min(image.shape[1:]) != SIZE:
        from torchvision.transforms.v2.functional import resize

        image = resize(image, [SIZE])
    y, x, flip = draw_crop()
    y, x = y + (image.shape[1] - SIZE) // 2, x + (image.shape[2] - SIZE) // 2
    image = image[:, y : y + CROP, x : x + CROP]
    return image.flip(-1) if flip else image


PILLOW = LoaderSpec("torch DataLoader + Pillow", "torch", ("torch",), pillow_batches)
SIMPLEJPEG = LoaderSpec("torch DataLoader + simplejpeg", "torch", ("torch", "simplejpeg"), simplejpeg_batches)
NVJPEG = LoaderSpec(
    "torch DataLoader + torchvision nvJPEG", "torchvision", ("torchvision.io",), nvjpeg_batches, "GPU", needs_gpu=True
)
TORCHVISION = LoaderSpec(
    "torch DataLoader + torchvision v2", "torchvision", ("torchvision.transforms.v2",), torchvision_batches
)
