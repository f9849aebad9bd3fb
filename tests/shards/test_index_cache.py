"""Where a large split's samples lie is kept as an array; whatever changes an index or a tar makes it stale."""

import os
import pwd
import shutil

import numpy as np
import pytest

from shards import index_cache
from shards.dataset import Dataset
from shards.errors import InputError
from shards.index import POSITION, positions, read_index, write_index
from shards.remote import Remote


@pytest.fixture
def copy(data, tmp_path, monkeypatch):
    monkeypatch.setattr(index_cache, "MIN_CACHED", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shutil.copytree(data, tmp_path / "copy")


def kept(tmp_path):
    return list((tmp_path / "cache" / "alexnet-dali" / "indices").glob("*"))


def load(folder):
    notices: list[str] = []
    return Dataset.load(folder).positions("train", notices.append), notices


def test_the_array_lists_what_the_index_files_do(copy, tmp_path, monkeypatch):
    names = [shard.name for shard in Dataset.load(copy).split("train").shards]
    lines = [line for name in names for line in read_index((copy / name).with_suffix(".idx"))]
    first, notices = load(copy)
    assert not notices and len(kept(tmp_path)) == 1
    assert np.array_equal(first, positions(lines, "a.tar")) and len(first) == 96
    # From now on no index is read
    monkeypatch.setattr("shards.dataset.current_index", None)
    again, _ = load(copy)
    assert np.array_equal(again, first) and isinstance(again.base, np.memmap)


@pytest.mark.parametrize("change", ["index", "tar", "missing", "cut short", "other bytes"])
def test_a_stale_array_is_made_again(copy, tmp_path, change):
    first = load(copy)[0].copy()
    (path,) = kept(tmp_path)
    index = copy / "train-000001.idx"
    if change == "index":
        write_index(index, read_index(index)[::-1])
    elif change == "tar":
        os.utime(index.with_suffix(".tar"))
    elif change == "missing":
        index.unlink()
    elif change == "cut short":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.write_bytes(b"x" * path.stat().st_size)
    again, notices = load(copy)
    assert bool(notices) == (change in ("tar", "missing"))  # its index is older than the tar, or gone
    assert np.array_equal(again, first) == (change != "index")
    assert np.array_equal(load(copy)[0], again) and not load(copy)[1] and kept(tmp_path) == [path]


def test_without_a_folder_to_keep_it_in_the_array_is_made_each_time(copy, tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    found, notices = load(copy)
    assert len(found) == 96 and len(notices) == 1 and "the indices are not cached" in notices[0]


def test_a_user_without_a_home_folder_has_no_array_and_no_cache(copy, monkeypatch):
    """As in a container that runs as some user id: $HOME is not set, and the system does not know the user."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    found, notices = load(copy)
    assert len(found) == 96 and "set HOME or XDG_CACHE_HOME" in notices[0]
    with pytest.raises(InputError, match=r"there is no home folder for a cache: set HOME .* or give --cache"):
        Dataset.load(Remote(copy.as_uri()))


@pytest.mark.parametrize(
    "line", ["jpg 0 3 a.jpg", "cls 0 1 a.cls", "jpg x 3 a.jpg cls 0 1 a.cls", "jpg 0 9999999999 a cls 0 1 b"]
)
def test_a_line_that_no_sample_has_is_refused(line):
    with pytest.raises(InputError, match=r"a\.tar"):
        positions([line], "a.tar")


def test_parts_before_the_tars_beginning_do_not_fit_it():
    from shards.index import end

    assert end(np.array([(512, 2048, 100, 1)], POSITION)) == 2049
    assert end(np.array([(-512, 2048, 100, 1)], POSITION)) > 2**60
