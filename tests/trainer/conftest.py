"""A small data set, and a run on it that nothing happened to, which other runs are compared with."""

import pytest

from pipeline.compute_stats import complete
from shards.convert import ConvertOptions, write_dataset
from shards.synthetic import render_folders
from tests.support.training_runs import run
from trainer import metrics


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """32 images to train on and 8 to evaluate on, in two classes."""
    root = tmp_path_factory.mktemp("small")
    render_folders(root / "images", classes=2, train=32, val=8, seed=3)
    complete(write_dataset(root / "images", root / "shards", ConvertOptions(shard_size=200_000, workers=1)))
    return root / "shards"


@pytest.fixture(scope="session")
def unbroken(small_data, tmp_path_factory):
    """The folder of a run that was neither killed nor stopped."""
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    run(small_data, out)
    lines = metrics.read(out)
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 3, 6, 9, 12, 15, 18, 20]
    assert [(line["step"], line["crops"]) for line in lines if line["kind"] == "eval"] == [
        *((8, 1), (16, 1), (20, 1), (20, 10))
    ]
    return out
