"""The data path against the paper's words, and its order against "every sample exactly once"."""

import shutil
import tarfile

import numpy as np
import pytest
import torch
from reference import fed, patch

from pipeline import graph
from pipeline.loader import Loader
from pipeline.stats import Stats, complete, compute
from shards.errors import InputError
from shards.manifest import Dataset
from shards.writer import write_dataset

# Mean absolute difference a picture may have from Pillow's rendering, on the 0..255 scale. Both decode with
# libjpeg-turbo and resample with the same triangle filter; they round in other places, by at most one level a pixel.
TOLERANCE = 0.5


def jpegs(dataset, split):
    """[(jpeg, label)] of a split in stored order, read with the standard library."""
    found = []
    for path in dataset.tars(split):
        with tarfile.open(path) as tar:
            bytes_of = {member.name: tar.extractfile(member).read() for member in tar}
        found += [(data, int(bytes_of[name[:-3] + "cls"])) for name, data in bytes_of.items() if name.endswith(".jpg")]
    return found


@pytest.fixture(scope="session", params=["rendered", "real", "real at 256"])
def dataset(request, tmp_path_factory):
    """Rendered pictures, real ImageNet ones, and these stored at 256."""
    if request.param == "rendered":
        return Dataset.load(request.getfixturevalue("data"))
    size = 256 if request.param.endswith("256") else None
    source = request.getfixturevalue("real_images")
    made = write_dataset(source, tmp_path_factory.mktemp("set") / "set", size=size, shard_size=2**21, processes=1)
    complete(made)
    return made


def loader_of(dataset, view="train", batch_size=16, split="train", **more):
    return Loader(dataset, split, view, stats=Stats.load(dataset.root), batch_size=batch_size, threads=2, **more)


def test_training_pictures_are_the_papers_given_the_same_draws(dataset):
    loader = loader_of(dataset, seed=5)
    stored, order, mean = jpegs(dataset, "train"), loader.order(epoch=1), Stats.load(dataset.root).mean_crop()
    first = np.cumsum([0] + [len(entries) for entries in loader.entries])
    assert len(stored) == first[-1]
    flips = 0
    for number, batch in enumerate(loader.epoch(1)):
        y, x, flip, light = loader.draws(1, number)
        flips += flip.sum()
        for i, (shard, sample) in enumerate(order[number]):
            jpeg, label = stored[first[shard] + sample]
            assert batch.labels[i] == label
            difference = np.abs(batch.images[i].numpy() - fed(jpeg, mean, y[i], x[i], flip[i], light[i]))
            assert difference.mean() < TOLERANCE
    assert 0 < flips < loader.batches * 16


def test_a_crop_one_pixel_off_or_unflipped_exceeds_the_tolerance(dataset):
    # The tolerance can fail: it tells a crop from its neighbours
    jpeg, _ = jpegs(dataset, "train")[0]
    mean = np.zeros((3, 224, 224), np.float32)
    true = fed(jpeg, mean)
    for wrong in (
        fed(jpeg, mean, y=17),
        fed(jpeg, mean, x=15),
        fed(jpeg, mean, flip=1),
        fed(jpeg, mean, light=(1, 0, 1)),
    ):
        assert np.abs(true - wrong).mean() > TOLERANCE


def test_test_crops_are_the_papers(dataset):
    mean = Stats.load(dataset.root).mean_crop()
    offsets = [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]
    stored = jpegs(dataset, "train")[:6]
    ten = next(loader_of(dataset, "ten", batch_size=6).epoch(0)).images.numpy()
    centre = next(loader_of(dataset, "centre", batch_size=6).epoch(0)).images.numpy()
    assert ten.shape == (6, 10, 3, 224, 224) and centre.shape == (6, 1, 3, 224, 224)
    for (jpeg, _), crops, middle in zip(stored, ten, centre, strict=True):
        wanted = [fed(jpeg, mean, y, x, flip) for flip in (0, 1) for y, x in offsets]
        assert np.abs(crops - wanted).mean(axis=(1, 2, 3)).max() < TOLERANCE
        assert np.array_equal(middle[0], crops[4])


def test_statistics_are_numpys(dataset):
    stats = compute(dataset, threads=2)
    # Over the pipeline's own patches, so that only the arithmetic is compared
    patches = [batch.images.numpy()[: batch.valid] for batch in loader_of(dataset, "patch", batch_size=7).epoch(0)]
    patches = np.concatenate(patches).astype(np.float64)
    assert stats.samples == len(patches) == dataset.split("train").samples
    np.testing.assert_allclose(stats.mean_image, patches.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(stats.channel_mean, patches.mean(axis=(0, 1, 2)), rtol=1e-6)
    covariance = np.cov(patches.reshape(-1, 3).T, bias=True)
    rebuilt = stats.eigenvectors @ np.diag(stats.eigenvalues) @ stats.eigenvectors.T
    np.testing.assert_allclose(rebuilt, covariance, rtol=1e-6)
    assert (np.diff(stats.eigenvalues) <= 0).all()
    pillows = [patch(jpeg) for jpeg, _ in jpegs(dataset, "train")]
    assert np.abs(np.mean(pillows, axis=0) - stats.mean_image).mean() < TOLERANCE


def test_lighting_spreads_as_the_components_say(data):
    loader = loader_of(Dataset.load(data), batch_size=8)
    light = np.concatenate([loader.draws(epoch, batch)[3] for epoch in range(300) for batch in range(10)])
    stats = Stats.load(data)
    # alpha ~ N(0, 0.1) along each component times its standard deviation, not its variance: that would drown a picture
    along = light @ stats.eigenvectors
    np.testing.assert_allclose(along.std(axis=0), 0.1 * np.sqrt(stats.eigenvalues), rtol=0.03)
    np.testing.assert_allclose(along.mean(axis=0), 0, atol=0.02 * np.sqrt(stats.eigenvalues[0]) * 0.1)


def test_crop_offsets_reach_both_ends(data):
    loader = loader_of(Dataset.load(data), batch_size=8)
    y, x, flip, _ = (
        np.concatenate(draw) for draw in zip(*(loader.draws(0, batch) for batch in range(200)), strict=True)
    )
    assert {y.min(), x.min()} == {0} and {y.max(), x.max()} == {32}
    assert 0.4 < flip.mean() < 0.6


def test_every_sample_once_an_epoch_in_an_order_of_its_own(data):
    loader = loader_of(Dataset.load(data), batch_size=12)
    orders = [list(map(tuple, loader.order(epoch).reshape(-1, 2))) for epoch in (0, 1)]
    everything = [(shard, i) for shard, entries in enumerate(loader.entries) for i in range(len(entries))]
    assert len(loader.entries) > 1  # more than one shard, or this shows less than it says
    assert sorted(orders[0]) == sorted(orders[1]) == everything
    assert orders[0] != orders[1] != everything
    assert orders[0] == list(map(tuple, loader_of(Dataset.load(data), batch_size=12).order(0).reshape(-1, 2)))


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_batches_of_one(data, world):
    dataset = Dataset.load(data)
    whole = list(loader_of(dataset, batch_size=12, seed=1).epoch(0))
    parts = [list(loader_of(dataset, batch_size=12, seed=1, rank=rank, world=world).epoch(0)) for rank in range(world)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(batch.images, torch.cat([share.images for share in shares]))
        assert torch.equal(batch.labels, torch.cat([share.labels for share in shares]))


def test_an_epoch_resumes_bit_for_bit(data):
    unbroken = list(loader_of(Dataset.load(data), batch_size=12, seed=2).epoch(4))
    resumed = list(loader_of(Dataset.load(data), batch_size=12, seed=2).epoch(4, start=3))
    assert len(unbroken) == len(resumed) + 3
    for one, other in zip(unbroken[3:], resumed, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    assert not list(loader_of(Dataset.load(data), batch_size=12).epoch(4, start=len(unbroken)))


@pytest.mark.parametrize("batch_size, world", [(1, 1), (4, 2), (16, 2), (64, 2)])
def test_test_splits_come_whole_at_any_batch_size(data, batch_size, world):
    dataset = Dataset.load(data)
    labels = [label for _, label in jpegs(dataset, "val")]
    ranks = [
        list(loader_of(dataset, "centre", batch_size, "val", rank=rank, world=world).epoch(0)) for rank in range(world)
    ]
    got = []
    for shares in zip(*ranks, strict=True):
        got += torch.cat([share.labels for share in shares])[: shares[0].valid].tolist()
    assert got == labels


def test_batches_kept_are_not_overwritten(data):
    batches = loader_of(Dataset.load(data), batch_size=8).epoch(0)
    first = next(batches).images
    copy = first.clone()
    assert list(batches)
    assert torch.equal(first, copy)


def test_bad_input_is_named(data, tmp_path):
    dataset = Dataset.load(data)
    with pytest.raises(InputError, match=r"--batch-size 9 does not divide by 2"):
        loader_of(dataset, batch_size=9, world=2)
    with pytest.raises(InputError, match="choose a smaller --batch-size"):
        loader_of(dataset, batch_size=1000)
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    (copy / "train-000001.idx").unlink()
    with pytest.raises(InputError, match=r"train-000001\.idx.*cli\.py index"):
        loader_of(Dataset.load(copy))
    (copy / "stats.npz").write_bytes(b"PK no zip")
    with pytest.raises(InputError, match=r"stats\.npz cannot be read.*cli\.py index"):
        Stats.load(copy)
    (copy / "stats.npz").unlink()
    with pytest.raises(InputError, match=r"stats\.npz is missing.*cli\.py index"):
        Stats.load(copy)
    complete(Dataset.load(copy))
    for name in ("stats.npz", "train-000001.idx"):
        assert (copy / name).exists()
    assert (copy / "train-000001.idx").read_text() == (data / "train-000001.idx").read_text()
    np.testing.assert_array_equal(Stats.load(copy).mean_image, Stats.load(data).mean_image)


def test_a_picture_broken_on_disk_names_its_shard(data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    tar = copy / "train-000001.tar"
    with tarfile.open(tar) as file:
        member = next(member for member in file if member.name.endswith(".jpg"))
    with open(tar, "r+b") as file:
        file.seek(member.offset_data)
        file.write(bytes(member.size))
    with pytest.raises(InputError, match=rf"train-000001\.tar: {member.name} cannot be decoded"):
        list(loader_of(Dataset.load(copy)).epoch(0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_gpu_pictures_are_the_cpus(dataset):
    cpu, gpu = (next(loader_of(dataset, seed=5, device_id=device).epoch(0)).images for device in (None, 0))
    assert gpu.is_cuda
    # nvJPEG's inverse DCT rounds otherwise than libjpeg-turbo's
    assert (cpu - gpu.cpu()).abs().mean(dim=(1, 2, 3)).max() < 2 * TOLERANCE


def test_the_pattern_of_ten_crops_is_symmetric():
    assert len(set(graph.FIVE_CROPS)) == 5 and (graph.CENTRE, graph.CENTRE) in graph.FIVE_CROPS
