"""Checkpoint files are complete, checksummed, few, and written while training continues."""

import errno
import json
import os
import random
import subprocess

import pytest
import torch
from safetensors import safe_open

from shards.errors import InputError
from trainer import checkpoint
from trainer.alexnet import AlexNet
from trainer.optimizer import PaperSGD

STATE = {"config": {"width": 0.05, "classes": ["a", "b"]}, "errors": [[5, 0.5]]}


@pytest.fixture
def trained():
    model = AlexNet(2, width=0.05)
    model.init_weights(seed=1)
    optimizer = PaperSGD(model.parameters(), lr=0.01)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


def test_what_is_written_is_read_and_restored(trained, tmp_path):
    writer = checkpoint.CheckpointWriter(tmp_path, writes=True, keep=2)
    writer.save(7, *trained, STATE)
    before = {name: value.clone() for name, value in trained[0].unsharded_state_dict().items()}
    trained[1].step()  # what is being written is of before this step
    writer.wait()
    state = checkpoint.load(tmp_path / "checkpoint-00000007.safetensors")
    assert state["step"] == 7 and state["config"] == STATE["config"]
    model = AlexNet(2, width=0.05)
    optimizer = PaperSGD(model.parameters(), lr=0.01)
    assert checkpoint.restore(state, model, optimizer) == 7
    for name, value in model.unsharded_state_dict().items():
        assert torch.equal(value, before[name])
        assert optimizer.state[dict(model.named_parameters())[name]]["velocity"].abs().max() > 0


def test_the_newest_and_the_best_are_kept(trained, tmp_path):
    writer = checkpoint.CheckpointWriter(tmp_path, writes=True, keep=2)
    for step in range(1, 6):
        writer.save(step, *trained, STATE, best=step in (1, 2))
    writer.wait()
    kept = [path.stem for path in checkpoint.list_checkpoints(tmp_path)]
    assert kept == ["checkpoint-00000005", "checkpoint-00000004"]
    assert checkpoint.load(tmp_path / checkpoint.BEST)["step"] == 2
    assert not list(tmp_path.glob(".*"))


def test_any_changed_byte_is_detected(trained, tmp_path):
    writer = checkpoint.CheckpointWriter(tmp_path, writes=True, keep=2)
    writer.save(1, *trained, STATE)
    writer.wait()
    path = checkpoint.list_checkpoints(tmp_path)[0]
    content, rng = path.read_bytes(), random.Random(0)
    end_of_header = 8 + int.from_bytes(content[:8], "little")
    places = [*range(60), *(rng.randrange(end_of_header) for _ in range(60)), end_of_header - 1, len(content) - 1]
    for place in places + [rng.randrange(len(content)) for _ in range(20)]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :])
        with pytest.raises(InputError, match=r"checkpoint-00000001.safetensors is not a readable checkpoint"):
            checkpoint.load(path)
    for other in (content[:-5], content + b" ", content[:20], b""):
        path.write_bytes(other)
        with pytest.raises(InputError, match="not a readable checkpoint"):
            checkpoint.load(path)


def test_weights_that_are_not_finite_are_not_written(trained, tmp_path):
    writer = checkpoint.CheckpointWriter(tmp_path, writes=True, keep=2)
    writer.save(1, *trained, STATE)
    with torch.no_grad():
        trained[0].fc7.weight[0, 0] = torch.nan
    writer.save(2, *trained, STATE)
    with pytest.raises(InputError, match=r"parameters.fc7.weight is not finite after step 2.*checkpoint-00000001"):
        writer.wait()
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["checkpoint-00000001.safetensors"]


def test_safetensors_reads_it_too(trained, tmp_path):
    writer = checkpoint.CheckpointWriter(tmp_path, writes=True, keep=2)
    writer.save(1, *trained, STATE)
    writer.wait()
    with safe_open(checkpoint.list_checkpoints(tmp_path)[0], "pt") as file:
        assert len(file.keys()) == 2 * len(list(trained[0].parameters()))
        assert torch.equal(file.get_tensor("parameters.fc8.bias"), trained[0].fc8.bias)
        assert json.loads(file.metadata()["state"])["step"] == 1


def test_broken_checkpoints_are_set_aside_and_no_longer_count(trained, tmp_path):
    writer, messages = checkpoint.CheckpointWriter(tmp_path, writes=True, keep=1), []
    writer.save(1, *trained, STATE)
    writer.wait()
    for step in (2, 3):
        (tmp_path / f"checkpoint-{step:08d}.safetensors").write_bytes(b"torn")
    assert checkpoint.newest_valid(tmp_path, messages.append).name == "checkpoint-00000001.safetensors"
    assert ["checkpoint-00000003" in messages[0], "checkpoint-00000002" in messages[1]] == [True, True]
    # With `keep=1` the broken ones, newer by their names, would otherwise be what is kept
    writer.save(2, *trained, STATE)
    writer.wait()
    assert [checkpoint.load(path)["step"] for path in checkpoint.list_checkpoints(tmp_path)] == [2]
    checkpoint.list_checkpoints(tmp_path)[0].write_bytes(b"torn")
    with pytest.raises(InputError, match="no checkpoint can be read, of 1"):
        checkpoint.newest_valid(tmp_path, messages.append)
    assert checkpoint.newest_valid(tmp_path / "nowhere", messages.append) is None


def no_link(*_):
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("link", [os.link, no_link])
def test_the_best_is_resumed_from_when_nothing_newer_is_there(trained, tmp_path, monkeypatch, link):
    monkeypatch.setattr(os, "link", link)
    writer = checkpoint.CheckpointWriter(tmp_path, writes=True, keep=2)
    for step in (1, 2, 3):
        writer.save(step, *trained, STATE, best=step == 2)
    writer.wait()
    best, names = tmp_path / checkpoint.BEST, "best checkpoint-00000002 checkpoint-00000003"
    assert " ".join(sorted(path.stem for path in tmp_path.iterdir())) == names
    assert checkpoint.newest_valid(tmp_path, print).stem == "checkpoint-00000003"
    (tmp_path / "checkpoint-00000003.safetensors").unlink()
    assert checkpoint.newest_valid(tmp_path, print).stem == "checkpoint-00000002"
    # As a run leaves it that was killed before it gave the best its other name
    (tmp_path / "checkpoint-00000002.safetensors").unlink()
    writer.save(1, *trained, STATE)
    writer.wait()
    assert checkpoint.newest_valid(tmp_path, print) == best and str(best) in checkpoint.last_good_hint(tmp_path)
    best.write_bytes(b"\xff" * 8 + b"torn")
    assert checkpoint.newest_valid(tmp_path, print).stem == "checkpoint-00000001"


def test_what_a_killed_writer_left_is_removed(tmp_path):
    for name in ("checkpoint-00000001.safetensors", "config.json", "metrics.jsonl"):
        (tmp_path / f".{name}.tmp-host-77").touch()
    checkpoint.CheckpointWriter(tmp_path, writes=True, keep=1)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_is_reported_at_the_next_check(trained, tmp_path):
    writer = checkpoint.CheckpointWriter(tmp_path / "gone", writes=True, keep=1)
    writer.check()
    writer.save(1, *trained, STATE)
    while not writer.pending.done():
        pass
    with pytest.raises(InputError, match="No such file"):
        writer.check()
    writer.wait()  # once is enough


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 5 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_leaves_the_one_before_intact(trained, small_disk):
    writer = checkpoint.CheckpointWriter(small_disk, writes=True, keep=9)
    step = 0
    with pytest.raises(InputError, match=r"No space left on device; make room.*good checkpoint is .*-0000000[1-4]"):
        while step < 9:
            writer.save(step := step + 1, *trained, STATE)
    assert checkpoint.load(checkpoint.newest_valid(small_disk, print))["step"] == step - 2
    assert not list(small_disk.glob(".*"))


def test_before_any_update_velocities_are_zero(tmp_path):
    model = AlexNet(2, width=0.05)
    model.init_weights(seed=1)
    writer = checkpoint.CheckpointWriter(tmp_path, writes=True, keep=1)
    writer.save(1, model, PaperSGD(model.parameters(), lr=0.01), STATE)
    writer.wait()
    state = checkpoint.load(checkpoint.list_checkpoints(tmp_path)[0])
    assert not any(value.any() for value in state["velocity"].values())
