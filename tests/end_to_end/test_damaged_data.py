"""Training on a data set that lost parts or has undecodable images names them, and goes on where it can."""

import os
import shutil

import pytest

from shards.index import components, read_index
from tests.end_to_end.conftest import SMALL
from trainer import metrics


def test_a_data_set_that_lost_its_parts_is_named_and_mended(data, unbroken, tmp_path, run_here):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    words = ["train", "--data", copy, "--out", tmp_path / "run", "--steps", 1, *SMALL]
    (copy / "stats.npz").unlink()
    done = run_here(*words, check=False)
    assert done.returncode != 0 and "stats.npz is missing" in done.stderr and "cli.py index" in done.stderr
    run_here("index", copy)
    (copy / "val-000000.idx").unlink()
    assert "val-000000.idx is missing: it is rebuilt" in run_here(*words).stderr
    assert (copy / "val-000000.idx").read_bytes() == (data / "val-000000.idx").read_bytes()


def test_training_skips_a_bad_image_and_goes_on(data, unbroken, tmp_path, run_cli, run_here):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    entry = components(read_index(copy / "train-000001.idx")[2])
    with open(copy / "train-000001.tar", "r+b") as file:
        file.seek(int(entry[0][1]))
        file.write(bytes(int(entry[0][2])))
    os.utime(copy / "train-000001.idx")  # it fits its tar as before
    # Two epochs: the first finds it, on one rank, and the second begins with both knowing
    words = ["train", "--data", copy, "--steps", 24, *SMALL]
    for gpus in (1, 2):
        done = (run_here if gpus == 1 else run_cli)(*words, "--out", tmp_path / str(gpus), "--gpus", gpus)
        assert f"{entry[0][3]} cannot be decoded (not an image): skipped, 1 so far" in done.stderr
    one, two = (metrics.read(tmp_path / str(gpus), "train") for gpus in (1, 2))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for ours, theirs in zip(one, two, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2)
    done = run_here(*words, "--out", tmp_path / "x", "--max-bad", 0, check=False)
    assert done.returncode == 0  # one may always be bad
