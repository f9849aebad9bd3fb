"""webdataset over the shards themselves, with three decoders."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.loaders.base import ImageSet, LoaderSpec, endless, pinned
from bench.loaders.transform import with_opencv, with_pillow, with_simplejpeg


def _batches(
    images: ImageSet, transform: Callable[[bytes], Tensor], batch_size: int, workers: int, device: torch.device
) -> Iterator[Tensor]:
    import webdataset  # only in the process that measures it

    tars = images.repeats * [str(tar) for tar in images.dataset.tars("train")]
    samples = webdataset.WebDataset(tars, shardshuffle=len(tars), empty_check=False).shuffle(1000).to_tuple("jpg")
    batches = samples.map_tuple(transform).batched(batch_size, partial=False)
    loader = webdataset.WebLoader(
        batches, batch_size=None, num_workers=workers, persistent_workers=True, pin_memory=pinned(device)
    )
    return (batch for (batch,) in endless(loader))


def pillow_batches(images: ImageSet, batch_size: int, workers: int, device: torch.device) -> Iterator[Tensor]:
    return _batches(images, with_pillow, batch_size, workers, device)


def simplejpeg_batches(images: ImageSet, batch_size: int, workers: int, device: torch.device) -> Iterator[Tensor]:
    return _batches(images, with_simplejpeg, batch_size, workers, device)


def opencv_batches(images: ImageSet, batch_size: int, workers: int, device: torch.device) -> Iterator[Tensor]:
    return _batches(images, with_opencv, batch_size, workers, device)


PILLOW = LoaderSpec("webdataset + Pillow", "webdataset", ("webdataset",), pillow_batches)
SIMPLEJPEG = LoaderSpec("webdataset + simplejpeg", "webdataset", ("webdataset", "simplejpeg"), simplejpeg_batches)
OPENCV = LoaderSpec("webdataset + OpenCV", "webdataset", ("webdataset", "cv2"), opencv_batches)
