"""How DALI is to run: what the command line chooses, then what was tuned, then the defaults."""

import pytest

from pipeline.settings import Settings, choose_settings, read_tuned, tuning_key, write_tuned
from shards.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache folder is an empty one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_the_command_line_goes_before_what_was_tuned_and_that_before_the_defaults():
    chosen = {"threads": None, "prefetch": 7, "affinity": False}
    made = choose_settings(chosen, {"threads": 5, "prefetch": 3, "affinity": True}, threads=2)
    assert made == Settings(threads=5, prefetch=7, affinity=False)
    assert choose_settings({}, {}, threads=2) == Settings(threads=2)


def test_a_tuning_is_kept_for_its_place_beside_others():
    first, second = tuning_key(None, 2, 256), tuning_key(None, 2, None)
    assert first != second != tuning_key(None, 4, None)
    assert read_tuned(first) == {}
    write_tuned(first, Settings(threads=3))
    write_tuned(second, Settings(threads=4, prefetch=1))
    assert read_tuned(first) == Settings(threads=3)._asdict()
    assert read_tuned(second) == Settings(threads=4, prefetch=1)._asdict()


@pytest.mark.parametrize("content", ["not json", "[]", '{"here": {"threds": 3}}', '{"here": 3}'])
def test_a_broken_tuning_is_named(cache, content):
    path = cache / "alexnet-dali" / "tuned.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(InputError, match=r"tuned.json is no file that --tune wrote .*: remove it"):
        read_tuned("here")
