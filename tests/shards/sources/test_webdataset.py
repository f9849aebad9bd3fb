"""WebDataset tars that others wrote are a source: their keys, class numbers and images."""

import tarfile
from collections import Counter

import pytest
import webdataset as wds

from pipeline.compute_stats import complete
from pipeline.loader import Loader
from pipeline.settings import Settings
from pipeline.stats import Stats
from shards.convert import write_dataset
from shards.describe import describe_tars
from tests.support.image_kinds import encoded, noise
from tests.support.source_checks import contents, expected
from tests.support.source_layouts import in_split, make_tar, write

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.mark.parametrize("with_json", [False, True])
def test_tars_of_webdatasets_writer_are_read(tiny_samples, tmp_path, with_json):
    for split in ("train", "val"):
        pattern = str(tmp_path / f"{split}-%06d.tar")
        with wds.ShardWriter(pattern, maxcount=9, verbose=0) as writer:
            for sample in in_split(tiny_samples, split):
                more = {"json": {"wnid": sample.wnid, "caption": "ü" * 9}} if with_json else {"txt": "a fish"}
                writer.write(
                    {"__key__": f"some/folder.d/{sample.stem}", "jpg": sample.jpeg, "cls": sample.label, **more}
                )
    described = describe_tars(tmp_path)
    stored = contents(write_dataset(tmp_path, tmp_path / "set"))
    assert stored == expected(tiny_samples)
    assert Counter((split, key.rpartition("/")[2], *rest) for (split, key, *rest) in contents(described)) == stored


def test_names_with_spaces_and_of_any_alphabet_are_described(tmp_path):
    files, jpegs = {}, []
    for number, stem in enumerate(("a b", "große Katze", "猫", "a b/c d", "x" * 200)):
        jpegs.append(encoded(noise(size=(16 + number, 16))))
        files |= {
            f"{stem}.jpg": jpegs[-1],
            f"{stem}.cls": b"%d" % (number % 2),
            f"{stem}.my notes": b"what nobody reads",
        }
    write(tmp_path / "train-0.tar", make_tar(files, tarfile.PAX_FORMAT))
    dataset = describe_tars(tmp_path)
    assert {jpeg: wnid for _, _, jpeg, wnid in contents(dataset)} == {jpeg: str(n % 2) for n, jpeg in enumerate(jpegs)}
    complete(dataset, 1)  # DALI reads the index
    assert Stats.load(tmp_path).samples == len(jpegs)
    stored = {jpeg: key for _, key, jpeg, _ in contents(write_dataset(tmp_path, tmp_path / "set"))}
    assert set(stored) == set(jpegs) and len(set(stored.values())) == len(jpegs)


def test_the_first_of_a_samples_images_is_taken_as_dali_does(tmp_path):
    gray, color = encoded(noise("L")), encoded(noise())
    files = {"a.jpg": gray, "a.jpeg": color, "a.cls": b"0", "b.png": gray, "b.jpg": color, "b.cls": b"0"}
    write(tmp_path / "train-0.tar", make_tar(files))
    (jpegs,) = Loader(describe_tars(tmp_path), "train", "read", batch_size=2, settings=Settings(1)).pipelines(0).run()
    assert [bytes(jpegs.at(number)) for number in range(2)] == [gray, gray]
    assert {jpeg for _, _, jpeg, _ in contents(write_dataset(tmp_path, tmp_path / "set"))} == {gray}
