"""Images in the layouts of their sources, and jobs that run in the test's own process."""

import pytest

from shards import convert, describe, parts, verify
from shards.sources import parquet, webdataset
from tests.support import source_layouts as layouts
from tests.support.image_kinds import encoded, noise
from tests.support.source_layouts import TRAIN, VAL


@pytest.fixture
def in_this_process(monkeypatch):
    """Jobs run where the test does, which is faster; what worker processes add is tested without this."""

    def run_here(function, jobs, *_, **__):
        return [function(*job) for job in jobs]

    for module in (convert, describe, parquet, parts, verify, webdataset):
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
