"""FFCV over its own .beton file of JPEGs."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.loaders.base import ImageSet, LoaderSpec, endless
from pipeline.geometry import CROP, MARGIN, SIZE
from shards.formats import open_image


def random_crop() -> Any:
    """The random 224 x 224 crop of a 256 x 256 patch, which FFCV does not have."""
    from ffcv.pipeline.allocation_query import AllocationQuery  # optional
    from ffcv.pipeline.compiler import Compiler
    from ffcv.pipeline.operation import Operation

    class RandomCrop(Operation):  # type: ignore[misc]  # FFCV has no types
        def generate_code(self) -> Callable[[Any, Any], Any]:
            indices = Compiler.get_iterator()

            def crop(images, crops):  # type: ignore[no-untyped-def]  # compiled by numba
                for i in indices(len(images)):
                    y, x = np.random.randint(MARGIN + 1), np.random.randint(MARGIN + 1)
                    crops[i] = images[i, y : y + CROP, x : x + CROP]
                return crops

            crop.is_parallel = True  # type: ignore[attr-defined]  # where FFCV looks for it
            return crop

        def declare_state_and_memory(self, state: Any) -> tuple[Any, Any]:
            shape = (CROP, CROP, 3)
            return replace(state, shape=shape), AllocationQuery(shape, state.dtype)

    return RandomCrop()


def write_beton(files: list[str], path: Path) -> None:
    from ffcv.fields import RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=95)}  # FFCV re-encodes every image
    samples = [(open_image(Path(file).read_bytes()).convert("RGB"),) for file in files]
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(samples)


def batches(images: ImageSet, batch_size: int, workers: int, device: torch.device) -> Iterator[Tensor]:
    from ffcv.fields.decoders import CenterCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToDevice, ToTensor

    once = images._replace(repeats=1)
    folder = once.converted("ffcv", lambda folder: write_beton(once.files, folder / "images.beton"))
    steps = [CenterCropRGBImageDecoder((SIZE, SIZE), ratio=1), random_crop(), RandomHorizontalFlip(), ToTensor()]
    if device.type == "cuda":
        steps.append(ToDevice(device, non_blocking=True))
    options = {"indices": list(range(len(once.files))) * images.repeats, "pipelines": {"image": steps}}
    loader = Loader(
        str(folder / "images.beton"), batch_size, workers, order=OrderOption.RANDOM, drop_last=True, **options
    )
    return (batch for (batch,) in endless(loader))


FFCV = LoaderSpec("FFCV", "ffcv", ("ffcv",), batches)
