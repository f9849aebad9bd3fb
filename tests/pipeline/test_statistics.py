"""The mean image and the color components are those of the training images, and damage to their file is named."""

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
import torch

from pipeline.compute_stats import EXACT, Sums, compute_stats
from pipeline.loader import BAD_LABEL
from pipeline.pixel_sums import compiled
from shards.dataset import Dataset
from tests.support.loaders import TOLERANCE, loader_of, overwritten, read_jpegs
from tests.support.reference import patch


def test_statistics_are_numpys(dataset):
    stats = compute_stats(dataset, threads=2)
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
    one_thread = compute_stats(dataset, threads=1)
    for name, array in vars(stats).items():
        np.testing.assert_array_equal(array, getattr(one_thread, name))
    pillows = [patch(jpeg) for jpeg, _ in read_jpegs(dataset, "train")]
    assert np.abs(np.mean(pillows, axis=0) - stats.mean_image).mean() < TOLERANCE


def test_the_sums_are_exact():
    images = torch.full((258, 256, 256, 3), 255, dtype=torch.uint8)
    images[0, 0, 0, 1] = 254
    with ThreadPoolExecutor() as pool:
        sums = Sums(pool, 3)
        sums.add(images[:EXACT])
        sums.add(images[EXACT:])
    mean, products = sums.moments()
    expected, pixels = np.full((3, 3), 255.0**2), 258 * 256**2
    expected[1] -= 255 / pixels
    expected[:, 1] -= 255 / pixels
    expected[1, 1] = 255.0**2 - (255**2 - 254**2) / pixels
    assert mean[0, 0, 1] == 255 - 1 / 258 and (products == expected).all()


@pytest.mark.parametrize(("threads", "batches"), [(1, [40]), (3, [1, 7, 32]), (17, [33, 7])])
def test_the_sums_depend_on_neither_batches_nor_threads(threads, batches):
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (40, 256, 256, 3))
    with ThreadPoolExecutor() as pool:
        sums = Sums(pool, threads)
        for part in torch.from_numpy(images.astype(np.uint8)).split(batches):
            sums.add(part)
    mean, products = sums.moments()
    np.testing.assert_array_equal(mean, images.sum(axis=0) / 40)
    pixels = images.reshape(-1, 3)
    np.testing.assert_array_equal(products, pixels.T @ pixels / len(pixels))


def test_a_bad_image_does_not_count_in_the_statistics(data, tmp_path):
    copy, _ = overwritten(data, tmp_path, [4])
    stats = compute_stats(Dataset.load(copy), threads=1)
    loader = loader_of(Dataset.load(copy), "patch", batch_size=5)
    patches = torch.cat(
        [batch.images[: batch.valid][batch.labels[: batch.valid] != BAD_LABEL] for batch in loader.epoch(0)]
    )
    assert stats.samples == len(patches) == 95
    np.testing.assert_allclose(stats.mean_image, patches.double().mean(dim=0), rtol=1e-6)


def test_sums_are_compiled_where_their_machine_code_cannot_be_kept():
    """As from a checkout that cannot be written to, by a user without a home: here, from a folder that cannot be."""
    code = {}
    exec(compile("def count(numbers):\n    numbers[0] = len(numbers)", "/dev/null/code.py", "exec"), code)
    with pytest.raises(RuntimeError, match="no locator available"):
        numba.njit(cache=True)(code["count"])
    numbers = np.zeros(3)
    compiled(code["count"])(numbers)
    assert numbers.tolist() == [3, 0, 0]
