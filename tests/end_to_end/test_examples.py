"""The example trains torchvision's ResNet through the loader, over ranks, and continues where it ended."""

import runpy
from contextlib import closing
from multiprocessing import get_context

import pytest
import torch

from tests.conftest import PROJECT, free_port
from tests.support import with_torchvision

assert with_torchvision.torchvision  # it is importable from here on

EXAMPLE = PROJECT / "examples" / "resnet50.py"
SMALL = ("--model", "resnet18", "--size", "32", "--batch-size", "24", "--epochs", "2", "--lr", "0.01")


def run(environ, *words):
    """The example, as torchrun starts it on a rank."""
    import os

    os.environ.update(environ)
    torch.set_num_threads(1)
    runpy.run_path(str(EXAMPLE))["main"]([*map(str, words), *SMALL])


def trained(out):
    state = torch.load(out / "checkpoint.pt")
    return state["step"], state["errors"], state["model"]


def test_it_trains_and_continues_to_the_same_weights(data, tmp_path, capsys):
    assert len(EXAMPLE.read_text().splitlines()) < 150
    run({}, "--data", data, "--out", tmp_path / "whole")
    step, errors, whole = trained(tmp_path / "whole")
    assert step == 2 * 96 // 24 and len(errors) == 2
    assert "epoch 2 top-1 error" in capsys.readouterr().out
    killed = torch.load(tmp_path / "whole" / "checkpoint.pt")  # with the last step saved, before it was evaluated
    killed |= {"errors": errors[:1], "train": {**killed["train"], "epoch": 1, "batch": 96 // 24}}
    torch.save(killed, tmp_path / "whole" / "checkpoint.pt")
    run({}, "--data", data, "--out", tmp_path / "whole")
    assert trained(tmp_path / "whole")[:2] == (step, errors)
    for steps in (3, 2, 9):  # in the middle of both epochs
        run({}, "--data", data, "--out", tmp_path / "parts", "--steps", steps)
    step, resumed_errors, parts = trained(tmp_path / "parts")
    assert step == 8 and resumed_errors == errors
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_batch_that_does_not_divide_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(SystemExit, match="--batch-size 24 does not divide by 5 processes: choose a multiple"):
        run({}, "--data", data, "--out", tmp_path)


def test_two_ranks_train_it(data, tmp_path):
    context, port = get_context("spawn"), str(free_port())
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        context.Process(
            target=run, args=({**common, "RANK": rank, "LOCAL_RANK": rank}, "--data", data, "--out", tmp_path)
        )
        for rank in ("0", "1")
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        with closing(rank):
            if rank.is_alive():
                rank.kill()
                rank.join()
    assert codes == [0, 0]
    step, errors, _ = trained(tmp_path)
    assert step == 8 and len(errors) == 2
