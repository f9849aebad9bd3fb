"""An index lists the samples of its tar as DALI reads them, and other libraries read the tar too."""

import pytest
import webdataset as wds
from nvidia.dali import fn, pipeline_def

from shards.dataset import Dataset
from shards.errors import InputError
from shards.index import components, index_tar, read_index, write_index


def test_the_index_is_dalis_and_the_tars(data):
    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def reader(tar, index):
        return tuple(
            fn.readers.webdataset(
                paths=[str(tar)], index_paths=[str(index)], ext=["jpg", "cls"], missing_component_behavior="error"
            )
        )

    tar = data / "train-000001.tar"
    entries = read_index(tar.with_suffix(".idx"))
    assert entries == index_tar(tar)
    pipe = reader(tar, tar.with_suffix(".idx"))
    for entry in entries:
        for (_, offset, size, _), output in zip(components(entry), pipe.run(), strict=False):
            assert bytes(output.at(0)) == tar.read_bytes()[int(offset) :][: int(size)]


def test_the_webdataset_library_reads_it(data):
    tars = [str(tar) for tar in Dataset.load(data).tars("val")]
    read = list(wds.WebDataset(tars, shardshuffle=False).decode("pil").to_tuple("jpg", "cls"))
    assert len(read) == 22
    assert {label for _, label in read} == {0, 1, 2, 3} and all(min(image.size) >= 256 for image, _ in read)


@pytest.mark.parametrize(
    "bad, complaint",
    [
        ("v1.2 2\njpg 512 3 a.jpg\n", "not a complete"),
        ("v1.1 1\njpg 512 3 a.jpg\n", "not a complete"),
        ("v1.2 1\njpg 512 3\n", "not a complete"),
        ("", "not a complete"),
        (None, "missing"),
    ],
)
def test_a_bad_index_is_refused_by_name(tmp_path, bad, complaint):
    path = tmp_path / "train-000000.idx"
    if bad is not None:
        path.write_text(bad)
    with pytest.raises(InputError, match=rf"train-000000\.idx.*{complaint}.*cli\.py index"):
        read_index(path)
    write_index(path, ["jpg 512 3 a.jpg"])
    assert read_index(path) == ["jpg 512 3 a.jpg"]
