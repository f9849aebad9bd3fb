"""A cache stays within its bounds and shares its files: none is fetched twice, none deleted while in use."""

import random
import threading
import time
from multiprocessing import get_context

import pytest

from shards import cache as cache_module
from shards.cache import Cache
from shards.errors import InputError


def ten(letter, calls, pause=0.0):
    def download(part):
        calls.append(letter)
        time.sleep(pause)
        part.write_bytes(letter.encode() * 10)

    return download


def names(cache):
    return "".join(sorted(path.name.removesuffix(".cached") for path in cache.root.glob("*/*.cached")))


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "set").mkdir()
    return Cache(tmp_path, 30)


def test_the_least_recently_used_file_is_deleted_and_never_one_in_use(cache, monkeypatch):
    def get(letter):
        return cache.open(cache.root / "set" / f"{letter}.cached", 10, ten(letter, calls))

    calls = []
    for letter in "abcad":
        file = get(letter)
        assert file.read() == letter.encode() * 10
        file.close()
    assert names(cache) == "acd" and "".join(calls) == "abcd"
    with get("a"), get("c"), get("d"):
        monkeypatch.setattr(cache_module, "LOCK_TIMEOUT", 0.3)
        with pytest.raises(InputError, match="every file in the cache is in use: raise --cache-size"):
            get("e")
        assert names(cache) == "acd" and not list(cache.root.glob("*/.*"))
    get("e").close()
    assert names(cache) == "cde"


def test_a_killed_fetch_is_started_again_and_its_leftover_is_deleted(cache):
    calls = []
    (cache.root / "set" / ".a.cached.part-10").write_bytes(b"a")
    (cache.root / "set" / ".b.cached.part-25").write_bytes(b"b")
    for letter in "acd":
        cache.open(cache.root / "set" / f"{letter}.cached", 10, ten(letter, calls)).close()
    assert names(cache) == "acd" and not list(cache.root.glob("*/.*"))


def test_other_files_in_the_folder_are_left_alone(cache):
    (cache.root / "set" / "mine.tar").write_bytes(bytes(1000))
    for letter in "abcde":
        cache.open(cache.root / "set" / f"{letter}.cached", 10, ten(letter, [])).close()
    assert (cache.root / "set" / "mine.tar").exists() and names(cache) == "cde"


def fetch_all(root, log, seed):
    """In a process: opens six files in random order, forty times, in a cache with room for three."""
    rng, cache = random.Random(seed), Cache(root, 30)
    for _ in range(40):
        letter = rng.choice("abcdef")
        calls = []
        with cache.open(root / "set" / f"{letter}.cached", 10, ten(letter, calls, 0.001)) as file:
            assert file.read() == letter.encode() * 10
            total = 10 * len(list(root.glob("*/*.cached")))
        with open(log, "a") as lines:
            lines.write(f"{total}\n")


def test_processes_share_a_cache(cache, tmp_path):
    log = tmp_path / "log"
    workers = [get_context("spawn").Process(target=fetch_all, args=(tmp_path, log, seed)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    totals = list(map(int, log.read_text().split()))
    assert len(totals) == 120 and max(totals) <= 30


def test_readers_fetch_a_file_once_and_hold_it_together(cache):
    calls, path, together = [], cache.root / "set" / "a.cached", threading.Barrier(8, timeout=20)

    def hold():
        with cache.open(path, 10, ten("a", calls, 0.2)):
            together.wait()  # as ranks do, each with the shard open

    threads = [threading.Thread(target=hold, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == ["a"] and not together.broken
