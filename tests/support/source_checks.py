"""What a source lists and what a data set holds, as tests compare them."""

from collections import Counter
from pathlib import Path

import pytest

from shards.dataset import Dataset
from shards.errors import InputError
from shards.index import components, read_index
from shards.sources.detect import find_source


def contents(dataset: Dataset) -> Counter:
    """(split, key, bytes, class) of all that training would read, by the indices."""
    counts = Counter()
    for split in dataset.splits:
        for tar in dataset.tars(split):
            content = tar.read_bytes()
            for line in read_index(tar.with_suffix(".idx")):
                parts = {ext: (content[int(at) :][: int(size)], name) for ext, at, size, name in components(line)}
                key = parts["cls"][1].removesuffix(".cls")
                counts[split, key, parts["jpg"][0], dataset.classes[int(parts["cls"][0])]] += 1
    return counts


def expected(samples) -> Counter:
    """What `contents` should be of these samples."""
    return Counter((sample.split, sample.stem, sample.jpeg, sample.wnid) for sample in samples)


def listed(root: Path, kind="auto") -> dict[str, list[tuple[str, str]]]:
    """(name, class) of each image that a source lists, by split."""
    source = find_source(root, kind, root / ".scratch")
    return {
        split: [(image.name, source.classes[image.label]) for image in images]
        for split, images in source.splits.items()
    }


def refused(root: Path, pattern: str, kind="auto") -> None:
    """The source cannot be listed, and the message says why on one line."""
    with pytest.raises(InputError, match=pattern) as error:
        listed(root, kind)
    assert "\n" not in str(error.value)


def tree(folder: Path) -> set[tuple[str, int]]:
    """The path and size of everything in a folder."""
    return {(str(path), path.lstat().st_size) for path in folder.rglob("*")}
