"""Files are written, copied and locked on file systems that lack some of POSIX: no sync, no hard links, no locks."""

import errno
import fcntl
import os

import pytest

from shards import atomic
from shards.atomic import atomic_copy, atomic_write, locked
from shards.cache import Cache
from shards.errors import InputError


def failing(number):
    def call(*_):
        raise OSError(number, os.strerror(number))

    return call


def write(path, content=b"content"):
    with atomic_write(path) as file:
        file.write(content)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_what_cannot_be_synced_is_written_all_the_same(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", failing(number))
    monkeypatch.setattr(atomic.sync, "__defaults__", (os.fsync,))
    write(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_sync_that_fails_is_an_error(tmp_path, monkeypatch, number):
    monkeypatch.setattr(atomic.sync, "__defaults__", (failing(number),))
    with pytest.raises(InputError, match=f"cannot write {tmp_path}/file: {os.strerror(number)}"):
        write(tmp_path / "file")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("link", [os.link, failing(errno.EPERM), failing(errno.ENOTSUP), failing(errno.EMLINK)])
def test_a_second_name_is_a_link_or_else_a_copy(tmp_path, monkeypatch, link):
    monkeypatch.setattr(os, "link", link)
    (tmp_path / "second").write_bytes(b"replaced")
    write(tmp_path / "first")
    atomic_copy(tmp_path / "first", tmp_path / "second")
    assert (tmp_path / "second").read_bytes() == b"content"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EBADF])
def test_without_locks_a_folder_is_written_to_and_that_is_said_once(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(fcntl, "flock", failing(number))
    for _ in range(2):
        with locked(tmp_path):
            write(tmp_path / "file")
    assert capsys.readouterr().err.count(f"{tmp_path} cannot be locked ({os.strerror(number)})") == 1


def test_a_cache_without_locks_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    (tmp_path / "set").mkdir()
    with pytest.raises(InputError, match="choose a folder on a local disk with --cache"):
        Cache(tmp_path, 30).open(tmp_path / "set" / "a.cached", 10, lambda part: part.write_bytes(b"0123456789"))


def test_a_cache_on_nfs_locks_only_what_nfs_locks(tmp_path, monkeypatch):
    """There a lock for readers wants a file that is open to read, an exclusive one a file that is open to write."""
    flock = fcntl.flock

    def nfs(file, how):
        number = file if isinstance(file, int) else file.fileno()
        mode = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
        refused = os.O_RDONLY if how & fcntl.LOCK_EX else os.O_WRONLY
        if mode == refused and not os.path.isdir(f"/proc/self/fd/{number}"):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return flock(file, how)

    monkeypatch.setattr(fcntl, "flock", nfs)
    (tmp_path / "set").mkdir()
    cache = Cache(tmp_path, 20)
    for letter in "abcabc":
        content = letter.encode() * 10
        with cache.open(tmp_path / "set" / f"{letter}.cached", 10, lambda part: part.write_bytes(content)) as file:  # noqa: B023
            assert file.read() == content
    assert len(list(tmp_path.glob("*/*"))) == 2


def test_a_cache_that_cannot_be_written_is_read(tmp_path, monkeypatch):
    """It is another user's, or on a disk that was mounted to read."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.cached").write_bytes(b"filled before")
    monkeypatch.setattr(os, "utime", failing(errno.EROFS))
    with Cache(tmp_path, 30).open(tmp_path / "set" / "a.cached", 10, failing(errno.EROFS)) as file:
        assert file.read() == b"filled before"
