"""A run that cannot continue says why, and which checkpoint to return to."""

import math
import re
import shutil
import time
from pathlib import Path

import pytest

from shards.atomic import locked
from shards.errors import InputError
from tests.support.training_runs import STEP, assert_same_run, newest, run
from trainer import checkpoint
from trainer import train as training
from trainer.run_folder import list_resumable
from trainer.train_step import TrainStep


def test_two_commands_do_not_write_to_one_run(small_data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "locked", lambda out, wait: locked(out, 0.2))
    with (
        pytest.raises(InputError, match="another command is writing to"),
        locked(tmp_path),
    ):
        run(small_data, tmp_path)


def test_a_broken_newest_checkpoint_is_named_and_the_one_before_is_used(small_data, unbroken, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    last, before = checkpoint.list_checkpoints(out)[:2]
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    step = checkpoint.load(before)["step"]
    run(small_data, out)
    output = capsys.readouterr()
    assert f"{last} is not a readable checkpoint (its digest does not match its content)" in output.err
    assert f"Resumed after step {step}" in output.err
    assert_same_run(out, unbroken)
    for path in list_resumable(out):
        path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="no checkpoint can be read, of 4"):
        run(small_data, out)


@pytest.mark.parametrize("at", [8, 9])  # between checkpoints, and where one is due
def test_a_loss_that_is_nan_ends_the_run_and_names_images_and_checkpoint(small_data, tmp_path, monkeypatch, at):
    real, calls = TrainStep.__call__, iter(range(1, 100))

    def planted(*arguments):
        loss = real(*arguments)
        return loss * math.nan if next(calls) == at else loss

    monkeypatch.setattr(*STEP, planted)
    with pytest.raises(InputError) as raised:
        run(small_data, tmp_path / "run", batch_size=10, checkpoint_every=3)
    message = str(raised.value)
    assert f"the loss is nan at step {at}, on the images train-00000" in message and "lower --lr (now 0.001)" in message
    assert "the last good checkpoint is" in message and "checkpoint-00000006.safetensors" in message
    listed = re.search(r"and 2 more, see (\S+): ", message).group(1)
    assert len(Path(listed).read_text().splitlines()) == 10
    assert [checkpoint.load(path)["step"] for path in checkpoint.list_checkpoints(tmp_path / "run")] == [6, 3]


def test_an_lr_that_is_too_high_ends_the_run_without_a_checkpoint_of_it(small_data, tmp_path):
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step|is not finite after step"):
        run(small_data, tmp_path / "run", lr=1e4, checkpoint_every=1)
    for path in checkpoint.list_checkpoints(tmp_path / "run"):
        assert all(tensor.isfinite().all() for tensor in checkpoint.load(path)["parameters"].values())


def test_a_full_disk_is_reported_at_the_next_step(small_data, tmp_path, monkeypatch):
    written = []

    def full(path, tensors, state):
        written.append(state["step"])
        raise InputError(f"cannot write {path}: No space left on device; make room, or choose another folder")

    monkeypatch.setattr(checkpoint, "write", full)
    monkeypatch.setattr(training, "lr_at", lambda *_: time.sleep(0.05) or 0.001)  # the thread has time to fail
    with pytest.raises(InputError, match=r"checkpoint-00000005.*No space left.*there is no checkpoint before it"):
        run(small_data, tmp_path / "run")
    assert written == [5]


def test_an_error_in_an_evaluation_loses_no_step(small_data, unbroken, tmp_path, monkeypatch):
    def fails(*arguments, **keywords):
        raise InputError("too many images of val are bad")

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", fails)
        with pytest.raises(InputError, match="of val are bad"):
            run(small_data, tmp_path / "run", checkpoint_every=1000)
    assert newest(tmp_path / "run")["step"] == 8
    run(small_data, tmp_path / "run")
    assert_same_run(tmp_path / "run", unbroken)


def test_an_error_in_the_data_loses_no_step(small_data, tmp_path, monkeypatch):
    real, calls = training.Trainer._next_batch, iter(range(1, 100))

    def fails(self):
        if next(calls) == 5:
            raise InputError("too many images of train are bad")
        return real(self)

    monkeypatch.setattr(training.Trainer, "_next_batch", fails)
    with pytest.raises(InputError, match="of train are bad"):
        run(small_data, tmp_path / "run", checkpoint_every=1000)
    assert newest(tmp_path / "run")["step"] == 4
