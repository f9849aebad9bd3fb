"""Every layout of a source gives the same images, classes and words."""

import pytest

from pipeline.stats import Stats
from shards.convert import ConvertOptions, write_dataset
from shards.dataset import Dataset
from tests.support import source_layouts as layouts
from tests.support.source_checks import contents, expected, tree
from tests.support.source_layouts import CLASSES, LAYOUTS, TRAIN, WORDS

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def roots(samples, tmp_path_factory):
    """Each layout in a folder of its own, which no test writes to."""
    root = tmp_path_factory.mktemp("roots")
    for name, (build, *_) in LAYOUTS.items():
        build(root / name, samples)
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_images(roots, samples, tmp_path, layout):
    _, kind, has_words = LAYOUTS[layout]
    before = tree(roots)
    dataset = write_dataset(roots / layout, tmp_path / "set", ConvertOptions(shard_size=300_000))
    assert contents(dataset) == expected(samples)
    assert (dataset.source, dataset.classes) == (kind, CLASSES)
    assert dataset.words == (WORDS if has_words else {})
    assert not any(split.skipped or split.reencoded for split in dataset.splits.values())
    assert tree(roots) == before and not list((tmp_path / "set").glob(".*"))
    assert dataset == Dataset.load(tmp_path / "set")


def test_our_own_tars_are_a_source_too(tiny_samples, tmp_path):
    layouts.kaggle(tmp_path / "root", tiny_samples)
    first = write_dataset(tmp_path / "root", tmp_path / "first")
    second = write_dataset(tmp_path / "first", tmp_path / "second")
    assert contents(second) == contents(first) == expected(tiny_samples)
    assert (second.source, second.classes) == ("webdataset", CLASSES)


def test_the_command_shards_kaggles_tree(tiny_samples, tmp_path, run_here):
    layouts.kaggle(tmp_path / "root", tiny_samples)
    layouts.folders(tmp_path / "root", tiny_samples[:8])
    done = run_here("shard", "--source", "kaggle", "--imagenet-root", tmp_path / "root", "--out", tmp_path / "set")
    assert "train: 40 samples" in done.stdout and "val: 12 samples" in done.stdout
    dataset = Dataset.load(tmp_path / "set")
    assert contents(dataset) == expected(tiny_samples) and dataset.words == WORDS
    assert Stats.load(tmp_path / "set").samples == TRAIN
