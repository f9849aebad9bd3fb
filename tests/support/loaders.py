"""Loaders as tests want them, what comes out of them, and data sets with damaged images to read."""

import os
import shutil
import tarfile

import torch

from pipeline.loader import ONLY_RANK, Batch, Loader
from pipeline.order import Augmentation
from pipeline.preprocess import Preprocess
from pipeline.settings import Settings
from pipeline.stats import Stats

# Mean absolute difference an image may have from Pillow's rendering, on the 0..255 scale. Both decode with
# libjpeg-turbo and resample with the same triangle filter; they round in other places, by at most one level a pixel.
TOLERANCE = 0.5
# ... and the most that one pixel may have: a level, and what float32 adds. It does not bound the outermost pixels:
# at an image's own border DALI repeats its last pixel and Pillow omits what is beyond, a difference of up to 7 levels
MOST = 1.01


def loader_of(
    dataset, view="train", batch_size=16, split="train", rank_slice=ONLY_RANK, seed=0, max_bad=0.001, **more
) -> Loader:
    """A loader; of `more`: `color`, whether with color augmentation, and what `Settings` has other than by default."""
    color = more.pop("color", True)
    return Loader(
        *(dataset, split, view),
        batch_size=batch_size,
        settings=Settings(**{"threads": 2, **more}),
        rank_slice=rank_slice,
        augmentation=Augmentation(Stats.load(dataset.root) if color else None, seed),
        max_bad=max_bad,
    )


def model_input(batch: Batch, stats: Stats, mean="image"):
    """The batch as the model gets it, N x 3 x 224 x 224, NumPy."""
    return Preprocess(stats, mean, torch.device("cpu"))(batch.images, batch.color_shift).numpy()


def nchw(stats: Stats):
    """The mean crop, 3 x 224 x 224."""
    return stats.mean_crop().transpose(2, 0, 1)


def read_jpegs(dataset, split):
    """[(jpeg, label)] of a split in stored order, read with the standard library."""
    samples = []
    for path in dataset.tars(split):
        with tarfile.open(path) as tar:
            bytes_of = {member.name: tar.extractfile(member).read() for member in tar}
        samples += [
            (data, int(bytes_of[name[:-3] + "cls"])) for name, data in bytes_of.items() if name.endswith(".jpg")
        ]
    return samples


def overwritten(data, tmp_path, numbers, content=bytes):
    """A copy of the data set with some of the images of one shard overwritten, and their names."""
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    tar = copy / "train-000001.tar"
    with tarfile.open(tar) as file:
        members = [member for member in file if member.name.endswith(".jpg")]
    with open(tar, "r+b") as file:
        for number in numbers:
            file.seek(members[number].offset_data)
            file.write(content(members[number].size))
    os.utime(tar.with_suffix(".idx"))  # it fits its tar as before
    return copy, [members[number].name for number in numbers]
