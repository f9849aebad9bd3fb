"""DALI runs as the command line chooses, else as was tuned, else by its defaults."""

import pytest

from pipeline.settings import Settings, choose_settings, read_tuned, tuning_key, write_tuned
from shards.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty folder as the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_the_command_line_overrides_what_was_tuned_and_that_overrides_the_defaults():
    chosen = {"threads": None, "prefetch": 7, "affinity": False}
    settings = choose_settings(chosen, {"threads": 5, "prefetch": 3, "affinity": True}, threads=2)
    assert settings == Settings(threads=5, prefetch=7, affinity=False)
    assert choose_settings({}, {}, threads=2) == Settings(threads=2)


def test_tuned_settings_are_kept_under_their_key_beside_others():
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
    with pytest.raises(InputError, match=r"tuned.json is not a file that --tune wrote .*: remove it"):
        read_tuned("here")
