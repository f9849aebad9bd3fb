"""The data sets that the pipeline's tests read."""

import pytest

from pipeline.compute_stats import complete
from shards.convert import ConvertOptions, write_dataset
from shards.dataset import Dataset


@pytest.fixture(scope="session", params=["rendered", "real", "real at 256"])
def dataset(request, tmp_path_factory):
    """Rendered images, real ImageNet ones, and these stored at 256."""
    if request.param == "rendered":
        return Dataset.load(request.getfixturevalue("data"))
    size = 256 if request.param.endswith("256") else None
    source = request.getfixturevalue("real_images")
    written = write_dataset(
        source, tmp_path_factory.mktemp("set") / "set", ConvertOptions(size=size, shard_size=2**21, workers=1)
    )
    complete(written)
    return written
