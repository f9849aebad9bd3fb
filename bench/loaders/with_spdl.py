"""SPDL: threads that decode, scale and crop in FFmpeg filters, over image files."""

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bench.loaders.base import ImageSet, LoaderSpec
from bench.loaders.transform import draw_crop
from pipeline.geometry import CROP, SIZE


def batches(images: ImageSet, batch_size: int, workers: int, device: torch.device) -> Iterator[Tensor]:
    from spdl import io as media  # optional
    from spdl.pipeline import PipelineBuilder

    files, rng = images.files, random.Random(0)
    scale = f"scale={SIZE}:{SIZE}:force_original_aspect_ratio=increase:flags=bilinear"

    def order() -> Iterator[str]:
        while True:
            yield from rng.sample(files, len(files))

    def load(path: str) -> Any:
        y, x, flip = draw_crop()
        crop = f"crop={CROP}:{CROP}:(iw-{SIZE})/2+{x}:(ih-{SIZE})/2+{y}"
        filters = [scale, "format=rgb24", crop, *(["hflip"] if flip else [])]
        return media.decode_packets(media.demux_image(path), filter_desc=",".join(filters))

    def batched(frames: list[Any]) -> Any:
        return media.to_torch(media.convert_frames(frames))

    builder = PipelineBuilder().add_source(order()).pipe(load, concurrency=workers)
    loader = builder.aggregate(batch_size).pipe(batched).add_sink().build(num_threads=workers + 1, max_failures=0)
    with loader.auto_stop():
        yield from loader


SPDL = LoaderSpec("SPDL", "spdl", ("spdl.io", "spdl.pipeline"), batches)
