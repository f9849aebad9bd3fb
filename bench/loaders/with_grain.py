"""grain over an ArrayRecord file, with Pillow."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bench.loaders.base import ImageSet, LoaderSpec
from bench.loaders.transform import with_pillow


def batches(images: ImageSet, batch_size: int, workers: int, device: torch.device) -> Iterator[Tensor]:
    import grain  # optional
    from array_record.python.array_record_module import ArrayRecordWriter

    once = images._replace(repeats=1)

    def write(folder: Path) -> None:
        writer = ArrayRecordWriter(str(folder / "images.array_record"), "group_size:1")
        for file in once.files:
            writer.write(Path(file).read_bytes())
        writer.close()

    file = once.converted("array_record", write) / "images.array_record"
    samples = grain.MapDataset.source(grain.sources.ArrayRecordDataSource([str(file)])).seed(0).shuffle().repeat()
    decoded = samples.map(lambda jpeg: with_pillow(jpeg).numpy()).to_iter_dataset()
    options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
    loader = decoded.batch(batch_size, drop_remainder=True).mp_prefetch(options)
    return (torch.from_numpy(batch) for batch in loader)


GRAIN = LoaderSpec("grain", "grain", ("grain", "array_record.python.array_record_module"), batches)
