"""Images in the layouts of their sources, and jobs that run in the test's own process."""

import os
import time
from urllib.parse import urlsplit

import pytest

from shards import convert, describe, verify
from shards.sources import copy_url, parquet, webdataset
from tests.support import source_layouts as layouts
from tests.support.faulty_proxy import faulty_proxy
from tests.support.image_kinds import encoded, noise
from tests.support.source_layouts import TRAIN, VAL


@pytest.fixture
def in_this_process(monkeypatch):
    """Jobs run where the test does, which is faster; what worker processes add is tested without this."""

    def run_here(function, jobs, *_, **__):
        return [function(*job) for job in jobs]

    for module in (convert, copy_url, describe, parquet, verify, webdataset):
        monkeypatch.setattr(module, "run_jobs", run_here)


@pytest.fixture(scope="module", params=["rendered", "real"])
def samples(request):
    """The images of every layout: rendered ones, and real ones of ImageNet where there are some."""
    root = request.getfixturevalue({"rendered": "images", "real": "real_images"}[request.param])
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return layouts.samples([path.read_bytes() for path in files[: TRAIN + VAL]])


@pytest.fixture
def tiny_samples():
    """Tiny images, each unlike the others, for the tests in which it does not matter what they show."""
    jpegs = [encoded(noise(size=(16 + number, 16))) for number in range(TRAIN + VAL)]
    return layouts.samples(jpegs)


@pytest.fixture
def proxy(s3, monkeypatch):
    """A proxy that fails on request, through which s3:// goes; its bucket `bucket` is empty, and libraries do not try
    again on their own."""
    import s3fs

    with faulty_proxy(urlsplit(os.environ["AWS_ENDPOINT_URL"]).port) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
        s3fs.S3FileSystem.clear_instance_cache()
        server.bucket = f"bucket{time.monotonic_ns()}"  # a port may come back
        s3.create_bucket(Bucket=server.bucket)
        yield server
    s3fs.S3FileSystem.clear_instance_cache()
