"""Batches from an s3:// bucket are those from the folder. The server, moto's, is a process of its own on loopback."""

import os
import socket
import subprocess
import sys
import time

import pytest

from shards.dataset import Dataset
from shards.errors import InputError
from shards.remote import Remote
from tests.conftest import free_port
from tests.support.remote_sets import assert_same_batches, cached, loader_at

pytest.importorskip("aiohttp", reason="aiohttp is not installed: http is not tested")
pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture(scope="module")
def bucket(data):
    """The rendered set in a bucket of moto's server; its URL, and the environment set for it."""
    pytest.importorskip("moto.server", reason="moto[server] is not installed: s3:// is not tested")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs", reason="s3fs is not installed: s3:// is not tested")
    port = free_port()
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    old = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        end = time.monotonic() + 60
        while True:
            with socket.socket() as waiting:
                if waiting.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < end and server.poll() is None
            time.sleep(0.05)
        client = boto3.client("s3")
        client.create_bucket(Bucket="alexnet")
        for path in data.iterdir():
            client.upload_file(str(path), "alexnet", f"some/set/{path.name}")
        yield "s3://alexnet/some/set"
    finally:
        server.kill()
        server.wait()
        for name, value in old.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def test_s3_gives_the_batches_of_the_folder(data, bucket, tmp_path):
    where = Remote(bucket, tmp_path)
    near, far = loader_at(data), loader_at(where)
    assert_same_batches(near.epoch(1), far.epoch(1))
    assert_same_batches(list(near.epoch(2))[5:], far.epoch(2, start=5))
    assert_same_batches(loader_at(data, "ten", 5, "val").epoch(0), loader_at(where, "ten", 5, "val").epoch(0))
    assert near.samples.jpeg((1, 2)) == far.samples.jpeg((1, 2))
    assert cached(tmp_path)


def test_missing_s3_shards_are_reported(data, bucket, tmp_path):
    import boto3

    client = boto3.client("s3")
    for path in data.iterdir():
        client.upload_file(str(path), "alexnet", f"half/{path.name}")
    client.put_object(Bucket="alexnet", Key="half/train-000001.tar", Body=b"short")
    with pytest.raises(InputError, match=r"half/train-000001\.tar cannot be fetched.*5 bytes were received"):
        list(loader_at(Remote("s3://alexnet/half", tmp_path)).epoch(0))
    client.delete_object(Bucket="alexnet", Key="half/train-000001.tar")
    with pytest.raises(InputError, match=r"half/train-000001\.tar is missing: copy a complete data set there"):
        list(loader_at(Remote("s3://alexnet/half", tmp_path)).epoch(0))
    with pytest.raises(InputError, match=r"s3://alexnet/none/dataset\.json is missing"):
        Dataset.load(Remote("s3://alexnet/none", tmp_path))
