"""MosaicML streaming over its own MDS shards, with Pillow."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bench.loaders.base import ImageSet, LoaderSpec, endless, pinned
from bench.loaders.transform import read_sample, stack_samples


def batches(images: ImageSet, batch_size: int, workers: int, device: torch.device) -> Iterator[Tensor]:
    import streaming  # optional

    def write(folder: Path) -> None:
        with streaming.MDSWriter(out=str(folder / "mds"), columns={"jpg": "bytes"}) as writer:
            for number in range(len(images.files)):
                writer.write(read_sample(images.files, number))

    streaming.base.util.clean_stale_shared_memory()
    local = str(images.converted("mosaicml", write) / "mds")
    samples = streaming.StreamingDataset(local=local, shuffle=True, batch_size=batch_size)
    loader: DataLoader[Tensor] = DataLoader(
        samples,
        batch_size,
        num_workers=workers,
        persistent_workers=True,
        drop_last=True,
        collate_fn=stack_samples,
        pin_memory=pinned(device),
    )
    return endless(loader)


MOSAICML = LoaderSpec("MosaicML streaming", "mosaicml-streaming", ("streaming",), batches)
