"""litdata over its own optimized chunks, with Pillow."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bench.loaders.base import ImageSet, LoaderSpec, endless, pinned
from bench.loaders.transform import read_sample, stack_samples


def batches(images: ImageSet, batch_size: int, workers: int, device: torch.device) -> Iterator[Tensor]:
    import litdata  # optional

    def write(folder: Path) -> None:
        os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = str(images.folder / "litdata-cache")
        read = functools.partial(read_sample, images.files)
        numbers = list(range(len(images.files)))  # litdata would move files whose names it is given
        litdata.optimize(read, numbers, str(folder), chunk_bytes="64MB", num_workers=1, verbose=False)

    samples = litdata.StreamingDataset(str(images.converted("litdata", write)), shuffle=True, drop_last=True)
    options = {"num_workers": workers, "persistent_workers": True, "collate_fn": stack_samples}
    options["pin_memory"] = pinned(device)
    return endless(litdata.StreamingDataLoader(samples, batch_size=batch_size, **options))


LITDATA = LoaderSpec("litdata", "litdata", ("litdata",), batches)
