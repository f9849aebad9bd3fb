"""`info` shows what a data set holds, as a table and as JSON."""

import json
from dataclasses import replace

import numpy as np
from click.testing import CliRunner

from cli import main
from shards.dataset import Dataset
from shards.info import describe, table
from shards.records import Skipped


def test_info_is_a_table(data, run_cli):
    table = run_cli("info", data).stdout
    lines = {line[:31].strip(): line[31:].split() for line in table.splitlines()[1:]}
    assert lines["samples"] == ["96", "22"] and "4 classes from folders" in table.splitlines()[0]
    about = json.loads(run_cli("info", data, "--json").stdout)
    train = about["splits"]["train"]
    assert about["schema"] == 1 and train["samples_per_class"] == {
        "min": 24,
        "median": 24,
        "max": 24,
        "empty_classes": 0,
    }
    assert 256 <= train["shorter_side_percentiles"]["0"] <= train["shorter_side_percentiles"]["100"] <= 320
    assert np.isclose(train["bytes_per_sample"] * 96, train["bytes"], rtol=1e-3)


def test_info_lists_the_classes_with_their_words_and_counts(data):
    dataset = Dataset.load(data)
    names = tuple(f"n{number:08d}" for number in range(1000))
    splits = {key: replace(split, class_counts=(*range(1000),)) for key, split in dataset.splits.items()}
    about = describe(replace(dataset, classes=names, words={names[0]: "tench, Tinca tinca"}, splits=splits))
    assert about["class_list"][999] == {
        "number": 999,
        "name": "n00000999",
        "words": None,
        "samples": {"train": 999, "val": 999},
    }
    first, complete = (table(about, all_classes).splitlines() for all_classes in (False, True))
    head = next(i for i, line in enumerate(first) if line.split()[:2] == ["number", "class"])
    assert first[head].split()[2:] == ["train", "val"]
    assert first[head + 1].split() == ["0", "n00000000", "tench,", "Tinca", "tinca", "0", "0"]
    assert len(first) == head + 12 and first[-1] == "and 990 more: --classes shows all"
    assert len(complete) == head + 1001 and complete[-1].split() == ["999", "n00000999", "999", "999"]


def test_a_class_name_cannot_change_the_terminal(data):
    dataset = Dataset.load(data)
    names = ("\x1b[31mred", "caf\udce9", "x" * 300, "plain")
    text = table(describe(replace(dataset, classes=names, words={})))
    assert "?[31mred" in text and "caf?" in text and "x" * 57 + "..." in text and "x" * 58 not in text


def test_the_remedy_that_info_names_works(data):
    done = CliRunner().invoke(main, ["info", str(data), "--classes"])
    assert done.exit_code == 0 and len(done.stdout.splitlines()) == 1 + 13 + 1 + 1 + 4


def test_info_names_what_was_found_and_not_taken(data):
    dataset = replace(Dataset.load(data), left_out=(Skipped("validation/", "a folder with images"),))
    about = describe(dataset)
    assert about["left_out"] == [{"file": "validation/", "reason": "a folder with images"}]
    assert "not taken: validation/: a folder with images" in table(about).splitlines()
