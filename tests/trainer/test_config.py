"""Every option of training is written once: command line, config.json, check on resuming and documents agree."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from cli import length_of, main
from shards.dataset import Dataset
from shards.errors import InputError
from trainer.config import FACTS, GROUPS, OPTIONS, TrainConfig, options_table, read_options
from trainer.run_folder import check_run_folder, write_config

PROJECT = Path(__file__).parents[2]
TRAIN = main.commands["train"]
CONFIG = TrainConfig("data", Path("run"))
SET = Dataset(Path("data"), ("a",), {}, {}, "folders", 0, None, 90, None, "", {})
RECORDED = {
    "dataset": SET.fingerprint,
    "classes": ["a"],
    "versions": {},
    "decoding": {"threads": 3},
    **CONFIG.recorded(),
}


def test_config_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, trainer.config, cli; assert not {'torch', 'nvidia'} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


def test_the_command_line_has_every_option_with_its_default_and_help():
    params = {param.name: param for param in TRAIN.params if param.name not in ("config", "help")}
    assert params.keys() == OPTIONS.keys() == {about.name for about in fields(TrainConfig)}
    for name, param in params.items():
        assert OPTIONS[name].help in param.help and OPTIONS[name].help.endswith(".") and OPTIONS[name].group in GROUPS
    assert parse("--data", "data", "--out", "run") == CONFIG


def test_config_json_holds_every_option_but_the_call_and_gives_the_same_run_back():
    assert set(OPTIONS) - set(CONFIG.recorded()) == {"out", "resume"} and CONFIG.recorded()["epochs"] == 90
    read = TrainConfig.from_recorded(json.loads(json.dumps(RECORDED)), Path("run"))
    assert read == replace(CONFIG, epochs=90) and read.recorded() == CONFIG.recorded()


def test_a_run_recorded_before_an_option_was_added_has_its_default():
    old = {name: value for name, value in RECORDED.items() if name not in ("cache", "threads", "cuda_graphs", "keep")}
    assert TrainConfig.from_recorded(old, Path("run")).keep == 3


CHANGED = {
    **{"batch_size": 64, "recipe": "large-batch", "lr": 0.1, "lr_steps": (1,), "patience": 2, "seed": 1},
    **{"dropout": 0.0, "width": 0.5, "mean": "channel", "variant": "one-tower", "activation": "tanh", "norm": False},
    **{"pool": "2/2", "lighting": False, "precision": "bf16", "compile": True, "shuffle": "full"},
}


def test_a_resumed_run_must_agree_in_what_makes_it_the_run_that_it_is():
    assert set(CHANGED) == set(CONFIG.must_agree)
    assert replace(CONFIG, lr_steps="plateau").must_agree == (*CONFIG.must_agree, "eval_every")


@pytest.mark.parametrize("name", CHANGED)
def test_what_differs_on_resuming_is_named(tmp_path, name):
    config = replace(CONFIG, out=tmp_path)
    write_config(tmp_path, RECORDED)
    check_run_folder(config, SET, resume=True)
    check_run_folder(replace(config, keep=7, gpus=2, steps=5), SET, resume=True)
    with pytest.raises(InputError, match=f"{name} was .*, now "):
        check_run_folder(replace(config, **{name: CHANGED[name]}), SET, resume=True)


def test_a_run_that_is_older_than_an_option_had_its_default(tmp_path):
    config = replace(CONFIG, out=tmp_path)
    write_config(tmp_path, {name: value for name, value in RECORDED.items() if name != "shuffle"})
    check_run_folder(config, SET, resume=True)
    with pytest.raises(InputError, match="shuffle was shards, now full"):
        check_run_folder(replace(config, shuffle="full"), SET, resume=True)


def parse(*words):
    context = TRAIN.make_context("train", [*map(str, words)])
    with context:
        return TrainConfig(**length_of(context.params))


def test_a_config_file_gives_options_and_the_command_line_goes_before_it(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**RECORDED, "width": 0.5, "norm": False, "lr_steps": [3, 4]}))
    toml = 'data = "sets"\nout = "runs/a"\nwidth = 0.25\nlr-steps = "1,2"\nlr = 1\nlrn = true\n'
    (tmp_path / "options.toml").write_text(toml.replace("lrn = true", "norm = true\nprofile = [2, 3]"))
    words = ("--config", tmp_path / "config.json", "--out", "b", "--width", 0.1)
    config = parse(*words)
    assert (config.width, config.norm, config.lr_steps, config.epochs) == (0.1, False, (3, 4), 90)
    assert parse(*words, "--lrn").norm and parse(*words, "--steps", 5).epochs is None
    config = parse("--config", tmp_path / "options.toml")
    assert (config.data, config.out, config.width, config.lr_steps) == ("sets", Path("runs/a"), 0.25, (1, 2))
    assert config.lr == 1.0 and config.profile == (2, 3) and config.batch_size == 128
    with pytest.raises(InputError, match="--epochs and --steps"):
        parse(*words, "--steps", 5, "--epochs", 1)


@pytest.mark.parametrize(
    "content, complaints",
    [
        ("width = 0.1\nwidht = 0.5\nsize = 2", ["widht is not an option", "size is not an option"]),
        ('batch_size = "many"', ["batch_size: 'many' is not a whole number"]),
        ("lr = true\nnorm = 1", ["lr: True is not a number", "norm: 1 is not true or false"]),
        ("width = 2.5\ndropout = 1", ["width: 2.5 is more than 1", "dropout: 1 is not less than 1"]),
        ("lr = nan\ndropout = nan", ["lr: nan is not a finite number", "dropout: nan is not a finite number"]),
        ("lr = inf", ["lr: inf is not a finite number"]),
        ("lr = 0\nepochs = 0", ["lr: 0 is not more than 0", "epochs: 0 is less than 1"]),
        ('variant = "papers"', ["variant: 'papers' is none of paper, release-2012, one-tower"]),
        ('lr_steps = "a"', ["lr_steps: 'a' is not a list of epochs: write it like 25,51,79"]),
        ("profile = [1]", ["profile: [1] is not a list of whole numbers"]),
        ("width =", ["is not TOML"]),
    ],
)
def test_unknown_and_mistyped_keys_are_named_with_the_file(tmp_path, content, complaints):
    path = tmp_path / "options.toml"
    path.write_text(content)
    with pytest.raises(InputError) as error:
        read_options(path)
    assert all(complaint in str(error.value) for complaint in [str(path), *complaints])


@pytest.mark.parametrize("content", ["[]", "3", "{", '"text"'])
def test_a_file_of_no_options_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"give a run's config.json, or TOML"):
        read_options(tmp_path / "config.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_options(tmp_path / "nowhere.toml")


def test_the_documents_table_is_made_from_the_options():
    text = (PROJECT / "docs" / "options.md").read_text()
    assert text == options_table(), "run `python -m trainer.config`"
    assert all(f"`{name}`" in text for name in OPTIONS) and not set(FACTS) & set(OPTIONS)
