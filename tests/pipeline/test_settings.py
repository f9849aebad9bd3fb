"""How DALI is to run: what is chosen, what was tuned, and finding it."""

import json

import pytest

from pipeline import settings as module
from pipeline.settings import Settings, read_tuned, settings, tune, tuning_key, write_tuned
from shards.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache folder is an empty one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_the_command_line_goes_before_what_was_tuned_and_that_before_the_defaults():
    chosen = {"threads": None, "prefetch": 7, "affinity": False}
    made = settings(chosen, {"threads": 5, "prefetch": 3, "affinity": True}, threads=2)
    assert made == Settings(threads=5, prefetch=7, affinity=False)
    assert settings({}, {}, threads=2) == Settings(threads=2)


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


def test_tuning_finds_the_fastest_and_keeps_what_is_as_good_as_it(monkeypatch):
    def planted(trial: Settings) -> float:
        # Most by 3 threads and by a hardware share of 0.3; one per cent, which is noise, by a longer queue
        return 1000 - 100 * abs(trial.threads - 3) - 200 * abs(trial.hw_decoder_load - 0.3) + 10 * (trial.prefetch > 2)

    told = []
    found = tune(planted, Settings(threads=2), cores=4, gpu=True, say=told.append)
    assert found == Settings(threads=3, hw_decoder_load=0.3)
    assert len(told) == len(module.candidates(4, gpu=True)) and "threads: 2 900" in told[-2]
    assert "hw_decoder_load" not in module.candidates(4, gpu=False)


def test_train_takes_what_throughput_bench_tuned_and_says_so(data, tmp_path, run_cli, cache):
    where = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(cache)}
    tuned = run_cli(
        *("throughput-bench", "--tune", "--data", data, "--device", "cpu"),
        *("--batch-size", 16, "--seconds", 0.1, "--prefetch", 3),
        env=where,
    )
    assert "threads: " in tuned.stdout and "tuned.json" in tuned.stdout
    kept = next(iter(json.loads((cache / "alexnet-dali" / "tuned.json").read_text()).values()))
    run_cli(
        *("train", "--data", data, "--out", tmp_path / "run", "--device", "cpu", "--width", 0.05),
        *("--batch-size", 16, "--steps", 1, "--threads", 1),
        env=where,
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["decoding"] == {**kept, "threads": 1}
