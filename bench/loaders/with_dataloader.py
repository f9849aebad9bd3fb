"""torch's DataLoader over image files, with Pillow's or torchvision's transforms."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.loaders.base import ImageSet, LoaderSpec, endless
from bench.loaders.transform import with_pillow
from pipeline.geometry import CROP, SIZE


class Files(Dataset[Tensor]):
    def __init__(self, files: list[str], transform: Callable[[bytes], Tensor]):
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Tensor:
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


def _batches(images: ImageSet, transform: Callable[[bytes], Tensor], batch_size: int, workers: int) -> Iterator[Tensor]:
    loader = DataLoader(
        Files(images.files, transform),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
    )
    return endless(loader)


def pillow_batches(images: ImageSet, batch_size: int, workers: int) -> Iterator[Tensor]:
    return _batches(images, with_pillow, batch_size, workers)


def torchvision_batches(images: ImageSet, batch_size: int, workers: int) -> Iterator[Tensor]:
    return _batches(images, TorchvisionTransform(), batch_size, workers)


PILLOW = LoaderSpec("torch DataLoader + Pillow", "torch", ("torch",), pillow_batches)
TORCHVISION = LoaderSpec(
    "torch DataLoader + torchvision v2", "torchvision", ("torchvision.transforms.v2",), torchvision_batches
)
