"""`dataset.json` describes what is in the folder, byte for byte; one that does not is refused by name."""

import hashlib
import json
import shutil

import pytest

from shards.dataset import Dataset
from shards.errors import InputError
from shards.index import read_index


def test_dataset_json_counts_and_checksums(data):
    dataset = Dataset.load(data)
    assert {name: split.samples for name, split in dataset.splits.items()} == {"train": 96, "val": 22}
    for split in dataset.splits.values():
        for shard in split.shards:
            content = (data / shard.name).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)
            assert len(read_index((data / shard.name).with_suffix(".idx"))) == shard.samples
    assert not list(data.glob(".*"))


def test_a_tar_cut_short_is_named(data, tmp_path):
    shutil.copytree(data, tmp_path / "set")
    with open(tmp_path / "set" / "train-000001.tar", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(InputError, match=r"train-000001\.tar has 5000 bytes, and dataset\.json says"):
        Dataset.load(tmp_path / "set").tars("train")


@pytest.mark.parametrize(
    "content, complaint",
    [
        (None, r"holds no dataset\.json"),
        ("{", "damaged"),
        ('{"format": 99}', "another format"),
        ('{"format": 1}', "damaged"),
    ],
)
def test_a_damaged_description_is_refused(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=complaint):
        Dataset.load(tmp_path)


def test_a_description_cannot_name_files_elsewhere(data, tmp_path):
    described = json.loads((data / "dataset.json").read_text())
    described["splits"]["train"]["shards"][0]["name"] = "../../etc/passwd"
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match="outside its folder"):
        Dataset.load(tmp_path)
