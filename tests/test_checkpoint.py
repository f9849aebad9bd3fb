"""Checkpoint files: whole, checksummed, few, and written beside the steps."""

import random

import pytest
import torch

from shards.errors import InputError
from trainer import checkpoint
from trainer.alexnet import AlexNet
from trainer.recipe import PaperSGD

CONFIG = {"width": 0.05, "classes": ["a", "b"]}


@pytest.fixture
def trained():
    net = AlexNet(2, width=0.05)
    net.initialise(seed=1)
    optimiser = PaperSGD(net.parameters(), lr=0.01)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimiser.step()
    return net, optimiser


def test_what_is_written_is_read_and_restored(trained, tmp_path):
    writer = checkpoint.Writer(tmp_path, writes=True, keep=2)
    writer.save(7, *trained, CONFIG)
    before = {name: value.clone() for name, value in trained[0].canonical_state().items()}
    trained[1].step()  # what is being written is of before
    writer.wait()
    state = checkpoint.read(tmp_path / "checkpoint-00000007.safetensors")
    assert state["step"] == 7 and state["config"] == CONFIG
    net = AlexNet(2, width=0.05)
    optimiser = PaperSGD(net.parameters(), lr=0.01)
    assert checkpoint.restore(state, net, optimiser) == 7
    for name, value in net.canonical_state().items():
        assert torch.equal(value, before[name])
        assert optimiser.state[dict(net.named_parameters())[name]]["velocity"].abs().max() > 0


def test_the_newest_and_the_best_are_kept(trained, tmp_path):
    writer = checkpoint.Writer(tmp_path, writes=True, keep=2)
    for step in range(1, 6):
        writer.save(step, *trained, CONFIG, best=step in (1, 2))
    writer.wait()
    assert [path.name[:-12] for path in checkpoint.all_of(tmp_path)] == ["checkpoint-00000005", "checkpoint-00000004"]
    assert checkpoint.read(tmp_path / checkpoint.BEST)["step"] == 2
    assert not list(tmp_path.glob(".*"))


def test_any_byte_that_is_not_the_one_written_is_found(trained, tmp_path):
    writer = checkpoint.Writer(tmp_path, writes=True, keep=2)
    writer.save(1, *trained, CONFIG)
    writer.wait()
    path = checkpoint.all_of(tmp_path)[0]
    whole, rng = path.read_bytes(), random.Random(0)
    end_of_header = 8 + int.from_bytes(whole[:8], "little")
    places = [rng.randrange(end_of_header) for _ in range(60)] + [rng.randrange(len(whole)) for _ in range(20)]
    for place in places:
        if whole[place : place + 1] == b" ":
            continue  # fills up the header, and is nothing
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(InputError, match=r"checkpoint-00000001.safetensors is (no readable|not a) checkpoint"):
            checkpoint.read(path)
    path.write_bytes(whole[:-5])
    with pytest.raises(InputError, match="no readable checkpoint"):
        checkpoint.read(path)


def test_weights_that_are_not_finite_are_not_written(trained, tmp_path):
    writer = checkpoint.Writer(tmp_path, writes=True, keep=2)
    writer.save(1, *trained, CONFIG)
    with torch.no_grad():
        trained[0].fc7.weight[0, 0] = torch.nan
    writer.save(2, *trained, CONFIG)
    with pytest.raises(InputError, match=r"parameters.fc7.weight is not finite after step 2.*checkpoint-00000001"):
        writer.wait()
    assert [path.name for path in checkpoint.all_of(tmp_path)] == ["checkpoint-00000001.safetensors"]
