"""DALI runs as the command line chooses, else as was tuned, else by its defaults."""

import os
import pwd

import pytest
from nvidia.dali import Pipeline
from nvidia.dali.pipeline import OperatorConcurrency

from pipeline.order import RankSlice
from pipeline.settings import (
    ENVIRONMENT,
    ON_GPU,
    Settings,
    choose_settings,
    prepare_environment,
    read_tuned,
    tuning_key,
    write_tuned,
)
from shards.dataset import Dataset
from shards.errors import InputError
from tests.support.loaders import loader_of
from trainer.config import DECODING


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


def test_a_gpu_that_decodes_has_defaults_of_its_own():
    assert choose_settings({}, {}, threads=2, gpu=True) == Settings(threads=2, **ON_GPU) != Settings(threads=2)
    assert choose_settings({"pipelines": 1}, {}, threads=2, gpu=True).pipelines == 1
    assert choose_settings({}, {"pipelines": 4}, threads=2, gpu=True).pipelines == 4
    assert choose_settings({"decode_on": "cpu"}, {}, threads=2, gpu=True) == Settings(threads=2, decode_on="cpu")


def test_every_setting_is_an_option():
    assert Settings._fields == DECODING


@pytest.mark.parametrize("chosen", [{}, {"operator_concurrency": "backend"}, {"operator_concurrency": "none"}])
def test_dali_runs_a_gpus_operators_concurrently_as_chosen(data, monkeypatch, chosen):
    monkeypatch.setattr(Pipeline, "build", lambda self: None)  # which needs the GPU
    (pipe,) = loader_of(Dataset.load(data), rank_slice=RankSlice(device_id=0), **chosen).pipelines(0).pipes
    assert pipe.concurrency == OperatorConcurrency[chosen.get("operator_concurrency", "full").upper()]


def test_what_cuda_reads_at_its_start_is_set_unless_the_user_has_set_it(monkeypatch):
    first, second = ENVIRONMENT
    monkeypatch.setenv(first, "7")
    monkeypatch.delenv(second, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    prepare_environment()
    assert os.environ[first] == "7" and os.environ[second] == ENVIRONMENT[second]


def test_tuned_settings_are_kept_under_their_key_beside_others():
    first, second = tuning_key(None, 2, 256), tuning_key(None, 2, None)
    assert first != second != tuning_key(None, 4, None)
    assert read_tuned(first) == {}
    write_tuned(first, Settings(threads=3))
    write_tuned(second, Settings(threads=4, prefetch=1))
    assert read_tuned(first) == Settings(threads=3)._asdict()
    assert read_tuned(second) == Settings(threads=4, prefetch=1)._asdict()


def test_a_cache_that_cannot_be_opened_is_passed_over(monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert read_tuned("here") == {} == read_tuned("here", quiet=True)
    assert capsys.readouterr().err.count("/dev/null/alexnet-dali/tuned.json: Not a directory") == 1
    with pytest.raises(InputError, match="the settings are not kept"):
        write_tuned("here", Settings(threads=3))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    assert read_tuned("here") == {} and not capsys.readouterr().err


@pytest.mark.parametrize("content", ["not json", "[]", '{"here": {"threds": 3}}', '{"here": 3}'])
def test_a_broken_tuning_is_named(cache, content):
    path = cache / "alexnet-dali" / "tuned.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(InputError, match=r"tuned.json is not a file that --tune wrote .*: remove it"):
        read_tuned("here")
