"""Batches from an s3:// bucket are those from the folder. The server, moto's, is a process of its own on loopback."""

import pytest

from shards.dataset import Dataset
from shards.errors import InputError
from shards.remote import Remote
from tests.support.remote_sets import assert_same_batches, cached, loader_at

pytest.importorskip("aiohttp", reason="aiohttp is not installed: http is not tested")
pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture(scope="module")
def bucket(data, s3):
    """The URL of the rendered set in a bucket."""
    s3.create_bucket(Bucket="alexnet")
    for path in data.iterdir():
        s3.upload_file(str(path), "alexnet", f"some/set/{path.name}")
    return "s3://alexnet/some/set"


def test_s3_gives_the_batches_of_the_folder(data, bucket, tmp_path):
    where = Remote(bucket, tmp_path)
    near, far = loader_at(data), loader_at(where)
    assert_same_batches(near.epoch(1), far.epoch(1))
    assert_same_batches(list(near.epoch(2))[5:], far.epoch(2, start=5))
    assert_same_batches(loader_at(data, "ten", 5, "val").epoch(0), loader_at(where, "ten", 5, "val").epoch(0))
    assert near.samples.jpeg((1, 2)) == far.samples.jpeg((1, 2))
    assert cached(tmp_path)


def test_missing_s3_shards_are_reported(data, bucket, s3, tmp_path):
    for path in data.iterdir():
        s3.upload_file(str(path), "alexnet", f"half/{path.name}")
    s3.put_object(Bucket="alexnet", Key="half/train-000001.tar", Body=b"short")
    with pytest.raises(InputError, match=r"half/train-000001\.tar cannot be fetched.*5 bytes were received"):
        list(loader_at(Remote("s3://alexnet/half", tmp_path)).epoch(0))
    s3.delete_object(Bucket="alexnet", Key="half/train-000001.tar")
    with pytest.raises(InputError, match=r"half/train-000001\.tar is missing: copy a complete data set there"):
        list(loader_at(Remote("s3://alexnet/half", tmp_path)).epoch(0))
    with pytest.raises(InputError, match=r"s3://alexnet/none/dataset\.json is missing"):
        Dataset.load(Remote("s3://alexnet/none", tmp_path))
