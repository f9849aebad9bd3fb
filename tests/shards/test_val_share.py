"""`--val-share`: a validation split drawn from the training images, class by class."""

import json
from collections import Counter

import pytest

from shards.convert import ConvertOptions, write_dataset
from shards.dataset import Dataset
from shards.errors import InputError
from shards.info import describe, table
from shards.verify import verify
from tests.support.image_kinds import encoded, noise
from tests.support.source_checks import contents
from tests.support.source_layouts import write

pytestmark = pytest.mark.usefixtures("in_this_process")
SIZES = {"a": 20, "b": 5, "c": 2, "d": 1}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    # Written in another order than their names'
    for name, size in reversed(SIZES.items()):
        for number in reversed(range(size)):
            write(root / name / f"{name}{number}.jpg", encoded(noise(size=(16 + number, 16 + ord(name)))))
    return root


def drawn(photos, out, **options):
    return write_dataset(photos, out, ConvertOptions(workers=1, **{"val_share": 0.1, **options}))


def keys(dataset, split):
    return {key for name, key, *_ in contents(dataset) if name == split}


def test_each_class_gives_its_share_and_every_image_is_there_once(photos, tmp_path, capsys):
    dataset = drawn(photos, tmp_path / "set")
    assert dataset.split("train").class_counts == (18, 4, 1, 1) and dataset.split("val").class_counts == (2, 1, 1, 0)
    stored = Counter(jpeg for _, _, jpeg, _ in contents(dataset).elements())
    assert stored == Counter(path.read_bytes() for path in photos.rglob("*.jpg"))
    assert "1 class of a single image, like d" in capsys.readouterr().err
    assert verify(tmp_path / "set", workers=1).intact


def test_a_large_share_leaves_an_image_of_each_class_to_train_on(photos, tmp_path):
    assert drawn(photos, tmp_path / "set", val_share=0.99).split("train").class_counts == (1, 1, 1, 1)


def test_the_seed_alone_decides(photos, tmp_path):
    first, again = drawn(photos, tmp_path / "1"), drawn(photos, tmp_path / "2")
    other = drawn(photos, tmp_path / "3", seed=1)
    assert first.fingerprint == again.fingerprint and keys(first, "val") != keys(other, "val")
    assert len(keys(other, "val")) == 4


def test_the_share_is_recorded(photos, tmp_path):
    dataset = drawn(photos, tmp_path / "set")
    assert json.loads((tmp_path / "set" / "dataset.json").read_text())["val_share"] == 0.1
    assert Dataset.load(tmp_path / "set") == dataset == drawn(photos, tmp_path / "set")
    assert "0.1 of each class drawn for val" in table(describe(dataset))
    with pytest.raises(InputError, match="holds another data set"):
        drawn(photos, tmp_path / "set", val_share=0.2)


def test_without_two_images_of_a_class_nothing_can_be_drawn(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "root" / name / "1.jpg", encoded(noise()))
    with pytest.raises(InputError, match=r"--val-share 0\.1: no class of .*root has two images"):
        drawn(tmp_path / "root", tmp_path / "set")
    assert not (tmp_path / "set").exists()
