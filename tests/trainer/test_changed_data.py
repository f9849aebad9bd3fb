"""A run goes on with the data that it began with, or says in words what has changed."""

import shutil
from contextlib import ExitStack
from dataclasses import replace

import pytest

from pipeline.stats import Stats
from shards.dataset import Dataset
from shards.errors import InputError
from shards.verify import verify
from tests.support.loaders import overwritten
from tests.support.training_runs import assert_same_run, run
from trainer import checkpoint
from trainer.config import TrainConfig
from trainer.run_folder import bad_samples, check_run_folder, describe_data, write_config
from trainer.train import claim_run_folder

SHORT = {"final_crops": 1, "checkpoint_every": 3}


def test_samples_that_are_quarantined_after_a_run_began_keep_their_places(small_data, tmp_path):
    copy, names = overwritten(small_data, tmp_path, [0, 1])
    unbroken, out = tmp_path / "unbroken", tmp_path / "run"
    run(copy, unbroken, steps=12, max_bad=0.5, **SHORT)
    assert {name.split(": ")[1] for name in bad_samples(unbroken)} == {*names} and all(bad_samples(unbroken).values())
    with pytest.raises(InputError, match=r"verify .* --decode --quarantine.* can be resumed \(`train --resume auto`\)"):
        run(copy, out, steps=12, **SHORT)
    assert len(verify(copy, decode=True, quarantine=True, workers=1).bad) == len(names)
    assert Dataset.load(copy).split("train").samples == 32 - len(names)
    run(copy, out, steps=12, **SHORT)
    assert_same_run(out, unbroken)
    # The run and its checkpoints are still those of the data set that it began with
    run(copy, out, steps=14, **SHORT)


def test_a_run_goes_on_with_the_mean_that_it_began_with_whatever_the_data_set_has(small_data, tmp_path, capsys):
    copy, out = tmp_path / "set", tmp_path / "run"
    shutil.copytree(small_data, copy)
    run(small_data, tmp_path / "unbroken", steps=9, **SHORT)
    run(copy, out, steps=5, **SHORT)
    stats = Stats.load(copy)
    replace(stats, mean_image=stats.mean_image * 0, eigenvalues=stats.eigenvalues * 25).save(copy)
    run(copy, out, steps=7, **SHORT)
    assert capsys.readouterr().err.count("stats.npz is not what the run began with: it goes on with the mean") == 1
    (copy / "stats.npz").unlink()
    run(copy, out, steps=9, **SHORT)
    ours, theirs = (checkpoint.load(checkpoint.list_checkpoints(folder)[0]) for folder in (out, tmp_path / "unbroken"))
    assert all((ours["parameters"][name] == value).all() for name, value in theirs["parameters"].items())


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda d: replace(d, classes=("a", *d.classes[1:])), "class 0 was .*, now a"),
        (lambda d: replace(d, classes=(*d.classes, "a")), "it had 4 classes, now 5"),
        (lambda d: replace(d, splits={"train": d.split("train")}), "val had 22 samples, now 0"),
        (lambda d: replace(d, quality=50, plan="x", splits=other_bytes(d)), "its quality was 90, now 50"),
        (
            lambda d: replace(d, splits=other_bytes(d)),
            "other images, or.*dataset.json was of 20",
        ),
    ],
)
def test_another_data_set_is_refused_with_what_it_has_otherwise(data, tmp_path, change, words):
    dataset = Dataset.load(data)
    config = TrainConfig(data, tmp_path, resume="auto")
    write_config(tmp_path, {**config.recorded(), **describe_data(dataset)})
    assert check_run_folder(config, dataset, resume=True)
    with pytest.raises(InputError, match=f"holds a run of another data set \\(.*{words}.*: give it the one") as refused:
        check_run_folder(config, change(dataset), resume=True)
    assert dataset.fingerprint[:8] not in str(refused.value)


def other_bytes(dataset: Dataset) -> dict[str, object]:
    split = dataset.split("train")
    return {**dataset.splits, "train": replace(split, shards=tuple(replace(s, sha256="0") for s in split.shards))}


def test_a_run_that_another_command_began_meanwhile_is_refused_within_the_lock(data, tmp_path):
    config, dataset = TrainConfig(data, tmp_path), Dataset.load(data)
    assert check_run_folder(config, dataset, resume=False) is None  # the folder is free
    write_config(tmp_path, {**config.recorded(), **describe_data(dataset)})  # the other, which has the lock, and ends
    with pytest.raises(InputError, match="holds a run already"), ExitStack() as stack:
        claim_run_folder(config, dataset, stack)
