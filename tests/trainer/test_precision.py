"""A step in fewer bits, and a compiled one, do nearly what the plain step does."""

import tempfile

import pytest
import torch

from shards.errors import InputError
from trainer import checkpoint
from trainer.alexnet import VARIANTS, AlexNet
from trainer.launch import launch
from trainer.model_parallel import ShardGroup, unsharded_layout
from trainer.optimizer import LARS, PaperSGD
from trainer.precision import Precision, compile_model
from trainer.train_step import TrainStep

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])]


def steps(precision, build=lambda model: model, count=2):
    """Losses and the change of each parameter over some updates of a narrow model."""
    model = AlexNet(10, width=0.1)
    model.init_weights(seed=1)
    before = {name: value.clone() for name, value in model.unsharded_state_dict().items()}
    optimizer, data = PaperSGD(model.parameters(), lr=0.01), torch.Generator().manual_seed(2)
    images, labels = 50 * torch.randn(8, 224, 224, 3, generator=data).movedim(-1, 1), torch.arange(8)
    update = TrainStep(build(model), unsharded_layout(), optimizer, precision, CPU, seed=5)
    losses = [update(images, labels, step).item() for step in range(count)]
    assert all(value.dtype == torch.float32 for value in model.unsharded_state_dict().values())
    return losses, {name: value - before[name] for name, value in model.unsharded_state_dict().items()}


@pytest.mark.parametrize("name, tolerance", [("bf16", 0.05), ("fp16", 0.02)])
def test_half_precisions_take_nearly_the_same_steps(name, tolerance):
    losses, moved = steps(Precision("fp32", CPU))
    half = Precision(name, CPU)
    half_losses, half_moved = steps(half)
    assert half_losses == pytest.approx(losses, rel=tolerance) and half_losses != losses
    for key, value in moved.items():
        assert (half_moved[key] - value).norm() < 10 * tolerance * value.norm(), key
    assert half.scaler.is_enabled() == (name == "fp16")


def curve(name, device):
    """The losses of a narrow model that learns eight images by heart."""
    model = AlexNet(8, width=0.1, dropout=0, variant=VARIANTS["release-2012"])
    model.init_weights(seed=1)
    model.to(device)
    optimizer, data = PaperSGD(model.parameters(), lr=0.0005), torch.Generator().manual_seed(2)
    images = 50 * torch.randn(8, 224, 224, 3, generator=data).movedim(-1, 1)
    images += 60 * torch.randn(8, 3, 1, 1, generator=data)
    update = TrainStep(model, unsharded_layout(), optimizer, Precision(name, device), device, seed=5)
    images, labels = images.to(device), torch.arange(8, device=device)
    return torch.tensor([update(images, labels, step).item() for step in range(50)])


@pytest.mark.long
@pytest.mark.parametrize("device", DEVICES)
def test_bf16_learns_along_the_curve_of_fp32(device):
    fp32, bf16 = (curve(name, torch.device(device)) for name in ("fp32", "bf16"))
    assert fp32[0] > 2 and fp32[-1] < 0.1
    torch.testing.assert_close(bf16, fp32, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("optimizer_of", [PaperSGD, LARS])
@pytest.mark.parametrize("device", DEVICES)
def test_an_overflow_in_fp16_skips_the_step_and_halves_the_scale(device, optimizer_of):
    precision = Precision("fp16", torch.device(device))
    weight = torch.nn.Parameter(torch.ones(3, device=device))
    more = {"shard_groups": {weight: ShardGroup()}} if optimizer_of is LARS else {}
    optimizer = optimizer_of([weight], lr=0.1, **more)
    before, velocity = precision.scaler.get_scale(), optimizer.state[weight]["velocity"]
    precision.backward(weight.sum() * float("inf"))
    precision.step(optimizer)
    assert weight.tolist() == [1, 1, 1] and velocity.tolist() == [0, 0, 0]
    assert precision.scaler.get_scale() == before / 2
    optimizer.zero_grad()
    precision.backward(weight.sum())
    precision.step(optimizer)
    local = LARS.TRUST / (1 + 0.0005) if optimizer_of is LARS else 1
    assert weight[0].item() == pytest.approx(1 - local * 0.1 * (1 + 0.0005))


def overflow_in_some(context, out, ranks):
    """The parts of a layer that these ranks hold overflow."""
    precision = Precision("fp16", context.device, context.world_size)
    weight = torch.nn.Parameter(torch.ones(3))
    precision.backward(weight.sum() * (float("inf") if context.rank in ranks else 1.0))
    precision.step(PaperSGD([weight], lr=0.1))
    torch.save([weight.detach(), precision.scaler.get_scale()], out / str(context.rank))


@pytest.mark.parametrize("ranks", [(1,), (0, 1)])
def test_an_overflow_in_some_tower_skips_the_step_in_both(tmp_path, ranks):
    launch(overflow_in_some, 2, "cpu", tmp_path, ranks)
    for rank in range(2):
        weight, scale = torch.load(tmp_path / str(rank))
        assert torch.equal(weight, torch.ones(3)) and scale == Precision("fp16", CPU).scaler.get_scale() / 2


def test_the_scale_is_in_the_checkpoint(tmp_path):
    precision = Precision("fp16", CPU)
    weight = torch.nn.Parameter(torch.ones(3))
    precision.backward(weight.sum() * float("inf"))
    precision.step(PaperSGD([weight], lr=0.1))
    model = AlexNet(2, width=0.05)
    model.init_weights(seed=0)
    optimizer = PaperSGD(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    writer = checkpoint.CheckpointWriter(tmp_path, writes=True, keep=1)
    writer.save(1, model, optimizer, {"config": {}, "errors": [], "precision": precision.state_dict()})
    writer.wait()
    other = Precision("fp16", CPU)
    other.load_state_dict(checkpoint.parse(checkpoint.list_checkpoints(tmp_path)[0])["precision"])
    assert other.state_dict() == precision.state_dict()


@pytest.mark.long
def test_a_compiled_step_is_the_plain_one():
    losses, moved = steps(Precision("fp32", CPU))
    compiled_losses, compiled_moved = steps(Precision("fp32", CPU), lambda model: compile_model(model, CPU))
    assert compiled_losses == pytest.approx(losses, rel=2e-3)
    for key, value in moved.items():
        assert (compiled_moved[key] - value).norm() < 0.01 * value.norm(), key


def test_a_model_is_traced_without_breaks_except_for_dropouts_random_numbers():
    model = AlexNet(10, width=0.05, dropout=0)
    model.init_weights(seed=1)
    images = torch.randn(2, 3, 224, 224).to(memory_format=torch.channels_last)  # as preprocessing returns them
    torch.compile(model, backend="aot_eager", fullgraph=True)(images).sum().backward()
    assert model.conv1.weight.grad.abs().max() > 0


def test_tf32_on_a_cpu_is_refused():
    with pytest.raises(InputError, match="--precision tf32 needs a CUDA device"):
        Precision("tf32", CPU)


@pytest.mark.parametrize("name", ["my tmp", "my'tmp", "Größe"])
def test_compiling_in_a_folder_that_needs_quotes_is_refused(monkeypatch, tmp_path, name):
    (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    with pytest.raises(InputError, match=r"--compile: .* set TMPDIR to another, or leave --compile out"):
        compile_model(AlexNet(2, width=0.05), CPU)


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="no-such-compiler is not installed"):
        compile_model(AlexNet(2, width=0.05), CPU)
