"""A folder at a URL is listed, read and written alike wherever it is."""

from itertools import chain

import pytest

from shards.errors import InputError
from shards.storage import Storage

pytest.importorskip("aiohttp", reason="aiohttp is not installed: URLs are not tested")
pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture(params=["file", "memory", "s3"])
def storage(request, tmp_path):
    """A folder in which nothing is yet."""
    if request.param == "s3":
        request.getfixturevalue("s3").create_bucket(Bucket="storage")
    urls = {"file": (tmp_path / "far").as_uri(), "memory": "memory://far", "s3": "s3://storage/far"}
    return Storage(urls[request.param], "look elsewhere")


def test_what_is_put_is_listed_and_read_until_it_is_removed(storage, tmp_path):
    near, back = tmp_path / "near", tmp_path / "back"
    near.write_bytes(b"12345")
    assert storage.list() == {} and not [*chain(*storage.walk())]
    storage.put(near, "a.bin")
    storage.put(near, "deep/b.bin")
    assert storage.list() == {"a.bin": 5}
    assert {(file.name, file.size) for file in chain(*storage.walk())} == {("a.bin", 5), ("deep/b.bin", 5)}
    versions = {file.name: file.version for file in chain(*storage.walk())}
    near.write_bytes(b"54321")
    storage.put(near, "a.bin")
    changed = {file.name for file in chain(*storage.walk()) if file.version != versions[file.name]}
    assert changed == {"a.bin"}
    near.write_bytes(b"12345")
    storage.put(near, "a.bin")
    storage.get("deep/b.bin", back)
    assert storage.cat("a.bin") == back.read_bytes() == b"12345"
    storage.remove(["a.bin", "nothing"])
    assert storage.list() == {}
    with pytest.raises(InputError, match=rf"{storage}/a.bin is missing: look elsewhere"):
        storage.cat("a.bin")


def test_what_a_library_lists_for_the_folder_itself_is_no_entry():
    fsspec = pytest.importorskip("fsspec")
    from fsspec.implementations.memory import MemoryFileSystem

    class Marked(MemoryFileSystem):
        """Lists an empty object `folder/` as the folder, within itself, as gcsfs does."""

        protocol = "marked"
        store, pseudo_dirs = {}, [""]

        def ls(self, path, detail=True, **options):
            own = {"name": self._strip_protocol(path), "size": 0, "type": "directory"}
            return [own, *super().ls(path, detail=True, **options)]

    fsspec.register_implementation("marked", Marked, clobber=True)
    fsspec.filesystem("marked").pipe("marked://far/deep/a.bin", b"1")
    assert [file.name for file in chain(*Storage("marked://far", "").walk())] == ["deep/a.bin"]


def test_a_page_is_a_file_where_no_web_server_sends_it(storage, tmp_path):
    (tmp_path / "page").write_text("<!doctype html>")
    storage.put(tmp_path / "page", "page.html")
    assert storage.cat("page.html") == b"<!doctype html>"


def test_a_web_server_is_not_written_to(tmp_path, serve):
    server = serve(tmp_path)
    with pytest.raises(InputError, match=r"cannot be written to: http\(s\) is for reading; give a bucket"):
        Storage(server.url, "").put(tmp_path, "a")
    assert not server.requested


def test_no_bucket_and_no_room_are_said(s3, tmp_path, monkeypatch):
    (tmp_path / "near").write_bytes(b"1")
    with pytest.raises(InputError, match="s3://nobody/x/near cannot be written: there is no such bucket or folder"):
        Storage("s3://nobody/x", "").put(tmp_path / "near", "near")
    if not (full := tmp_path.__class__("/dev/full")).exists():
        pytest.skip("/dev/full is absent")
    s3.create_bucket(Bucket="one")
    Storage("s3://one/x", "").put(tmp_path / "near", "near")
    with pytest.raises(InputError, match="s3://one/x/near cannot be fetched: No space left on device: make room"):
        Storage("s3://one/x", "").get("near", full)
