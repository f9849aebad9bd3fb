"""The front door: every command says what it does in one line, and its options in whole sentences."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli import __version__, main
from trainer.config import GROUPS

PROJECT = Path(__file__).parents[2]
COMMANDS = sorted(main.commands)


def run(*words):
    done = CliRunner().invoke(main, words, prog_name="cli.py", terminal_width=80)
    assert done.exit_code == 0, done.output
    return done.output


def test_help_says_units_and_defaults():
    text = " ".join(run("train", "--help").split())
    assert "--batch-size IMAGES" in text and "default: 128" in text and "[default: 90, as in the paper]" in text


def test_every_command_says_in_one_line_of_80_columns_what_it_does():
    text = run("--help")
    for name in COMMANDS:
        line = next(line for line in text.splitlines() if line.split()[:1] == [name])
        assert len(line) <= 80 and line.endswith("."), line
        assert not line.endswith("..."), f"{name}: its first line is cut off"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_whole_sentences(name):
    for param in main.commands[name].params:
        if isinstance(param, click.Option):
            sentence = re.sub(r"\s*\[default: .*\]$", "", param.help or "")
            assert sentence[:1].isupper() and sentence.endswith("."), f"{name} {param.opts}: {param.help!r}"


def test_the_options_of_training_stand_in_groups():
    lines = run("train", "--help").splitlines()
    headings = [line.rstrip(":") for line in lines if re.fullmatch(r"[A-Z][a-z ]+:", line)]
    assert headings == [*GROUPS, "Other options"]


def test_short_help_and_version():
    assert run("-h") == run("--help") and run("eval", "-h") == run("eval", "--help")
    assert run("--version").split()[-1] == __version__


def test_the_shell_completes_commands_and_options():
    # What the installed command does for a shell that asks: see the README
    words = {"COMP_WORDS": "alexnet-dali tr", "COMP_CWORD": "1", "_ALEXNET_DALI_COMPLETE": "bash_complete"}
    code = "import cli; cli.main(prog_name='alexnet-dali')"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=words, capture_output=True, text=True)
    assert done.stdout.split() == ["plain,train"], done.stderr


def test_help_needs_neither_torch_nor_dali():
    code = (
        "import sys, cli; cli.main(['train', '-h'], standalone_mode=False); print({'torch', 'nvidia'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("set()")
