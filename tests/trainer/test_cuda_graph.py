"""With `--cuda-graphs` a replayed update is the plain one, and where graphs do not work they are refused.

Without a GPU a tape of torch's operations stands in for a graph: it replays them on the tensors with which they were
recorded, whatever Python would do by now."""

import json
import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from shards.errors import InputError
from trainer import cuda_graph
from trainer.alexnet import AlexNet
from trainer.config import TrainConfig
from trainer.cuda_graph import GraphedStep, check_cuda_graphs, choose_compilation
from trainer.model_parallel import unsharded_layout
from trainer.optimizer import build_optimizer
from trainer.precision import Precision, compile_model
from trainer.started import Started
from trainer.train import with_compilation
from trainer.train_step import TrainStep

CPU = torch.device("cpu")
BATCH = 8


class Tape(TorchDispatchMode):
    """Records the operations under it."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        outputs = operation(*args, **(kwargs or {}))
        self.calls.append((operation, args, kwargs or {}, outputs))
        return outputs

    def replay(self):
        """The same again, each result written to where it was; without autograd, whose work is on the tape."""
        with torch._C._AutoDispatchBelowAutograd():
            for operation, args, kwargs, outputs in self.calls:
                again = operation(*args, **kwargs)
                for old, new in zip(tensors(outputs), tensors(again), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def tensors(outputs):
    return [
        one for one in (outputs if isinstance(outputs, tuple | list) else [outputs]) if isinstance(one, torch.Tensor)
    ]


@pytest.fixture
def tapes(monkeypatch):
    """The tapes that stood in for graphs."""
    recorded = []

    def capture(work, rng):
        for _ in range(cuda_graph.WARM_UP_CALLS):
            work()
        with Tape() as tape:
            result = work()
        recorded.append(tape)
        return tape.replay, result

    monkeypatch.setattr(cuda_graph, "capture", capture)
    return recorded


def updates(device, cuda_graphs, precision="fp32", recipe="paper", count=5, compiled=False):
    """Losses, parameters and velocities after some updates of a narrow model, the rate falling at each."""
    model = AlexNet(10, width=0.1)
    model.init_weights(seed=1)
    model.to(device)
    optimizer, how = build_optimizer(recipe, model, lr=0.01), Precision(precision, device)
    trained = compile_model(model, device) if compiled else model
    update = TrainStep(trained, unsharded_layout(), optimizer, how, device, 5, cuda_graphs)
    data = torch.Generator().manual_seed(2)
    losses = []
    for step in range(count):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (step + 1)
        images = (50 * torch.randn(BATCH, 224, 224, 3, generator=data)).movedim(-1, 1).to(device)
        labels = torch.randint(10, (BATCH,), generator=data)
        labels[step] = -1  # a bad image, another one each time
        losses.append(update(images, labels.to(device), step))
    velocities = {f"velocity {number}": of["velocity"] for number, of in enumerate(optimizer.state.values())}
    return {"losses": torch.stack(losses), **model.unsharded_state_dict(), **velocities}


@pytest.mark.parametrize(
    "precision, recipe", [("fp32", "paper"), ("bf16", "paper"), ("fp16", "paper"), ("fp32", "large-batch")]
)
def test_replayed_updates_are_the_plain_ones_bit_for_bit(tapes, precision, recipe):
    replayed, plain = (updates(CPU, graphs, precision, recipe) for graphs in (True, False))
    assert len(tapes) == 1 and len(set(plain["losses"].tolist())) == 5
    for name, value in plain.items():
        assert torch.equal(replayed[name], value), name


def test_nothing_that_is_recorded_reads_a_value_or_moves_one_between_devices(tapes):
    updates(CPU, True, "fp16", count=1)
    names = {operation.name() for operation, *_ in tapes[0].calls}
    assert {"aten::convolution_backward", "aten::rsqrt_", "aten::rand.generator"} <= names  # model, LRN, dropout: all
    assert not [name for name in names if any(word in name for word in ("_local_scalar_dense", "nonzero", "unique"))]


@pytest.mark.parametrize("triton", [True, False])
def test_one_gpu_compiles_and_records_unless_told_otherwise(monkeypatch, triton):
    monkeypatch.setattr(cuda_graph, "has_triton", lambda: triton)
    assert choose_compilation(None, None, "cuda", 1) == (triton, True)
    assert choose_compilation(None, None, "cuda", 2) == choose_compilation(None, None, "cpu", 1) == (False, False)
    assert choose_compilation(True, False, "cpu", 1) == (True, False)
    assert choose_compilation(False, True, "cuda", 1) == (False, True)


@pytest.mark.parametrize(
    "gpus, triton, more, line",
    [
        (1, True, {}, None),
        (1, False, {}, "Not compiled, for Triton is not installed: pip install triton"),
        (1, False, {"compile": False}, None),
        (2, True, {}, r"On 2 GPUs the step is not compiled, .* \(--compile\), and not recorded as a CUDA graph"),
        (2, True, {"compile": True}, None),
    ],
)
def test_what_is_left_out_on_gpus_is_said_once(tmp_path, monkeypatch, capsys, gpus, triton, more, line):
    monkeypatch.setattr(cuda_graph, "has_triton", lambda: triton)
    monkeypatch.setattr("trainer.train.choose_device", lambda *_, **__: "cuda")
    config = TrainConfig("data", tmp_path, gpus=gpus, **more)
    decided = with_compilation(config)
    (tmp_path / "config.json").write_text(json.dumps({"compile": decided.compile}))
    with_compilation(config)  # a run that goes on
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (line is not None) and all(re.match(line, one) for one in lines)


def test_ranks_that_were_started_together_say_it_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("trainer.train.choose_device", lambda *_, **__: "cuda")
    for rank in range(4):
        started = Started(rank, 4, None, 1, "RANK and WORLD_SIZE")
        monkeypatch.setattr("trainer.train.started", lambda started=started: started)
        with_compilation(TrainConfig("data", tmp_path))
    assert capsys.readouterr().err.count("On 4 GPUs the step is not compiled") == 1


def test_a_run_goes_on_as_it_began(data, tmp_path):
    for recorded in (True, False):
        (tmp_path / "config.json").write_text(json.dumps({"compile": recorded, "cuda_graphs": recorded}))
        config = with_compilation(TrainConfig(data, tmp_path, device="cpu"))
        assert config.compile is config.cuda_graphs is recorded
    asked = with_compilation(TrainConfig(data, tmp_path, device="cpu", compile=True))
    assert asked.compile is True and asked.cuda_graphs is False


def test_a_tensor_of_another_shape_is_refused(tapes):
    doubled = GraphedStep(lambda x: 2 * x, torch.Generator())
    assert torch.equal(doubled(torch.ones(3)), torch.full((3,), 2.0))
    kept, other = doubled(torch.arange(3.0)), doubled(torch.zeros(3))
    assert torch.equal(kept, 2 * torch.arange(3.0)) and torch.equal(other, torch.zeros(3))
    with pytest.raises(ValueError, match=r"recorded for \(3,\), called with \(4,\)"):
        doubled(torch.ones(4))


def test_where_graphs_do_not_work_they_are_refused(data, tmp_path, run_here):
    with pytest.raises(InputError, match="--gpus 1, or leave it out"):
        check_cuda_graphs(torch.device("cuda", 0), world_size=2)
    for command in (["train", "--out", tmp_path / "run", "--steps", 1], ["throughput-bench", "--seconds", 0.1]):
        refused = run_here(*command, "--data", data, "--batch-size", 8, "--device", "cpu", "--cuda-graphs", check=False)
        assert refused.returncode == 1
        assert refused.stderr.splitlines()[-1] == "Error: --cuda-graphs needs a CUDA device: leave it out on a CPU"
    refused = run_here("throughput-bench", "--scaling", "--cuda-graphs", check=False)
    assert "--scaling also measures several ranks, and --cuda-graphs works with one" in refused.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "precision, recipe", [("fp32", "paper"), ("bf16", "paper"), ("fp16", "paper"), ("bf16", "large-batch")]
)
def test_on_a_gpu_replayed_updates_are_the_plain_ones(precision, recipe, compiled):
    device = torch.device("cuda", 0)
    replayed = updates(device, True, precision, recipe, compiled=compiled)
    plain, exact = updates(device, False, precision, recipe), updates(device, False, "fp32", recipe)
    for name, value in plain.items():
        if compiled and precision != "fp32":
            # Fused steps round to half precision at other places: as far from fp32's result, not the same distance
            far, plainly_far = ((one[name] - exact[name]).norm() for one in (replayed, plain))
            assert far <= 1.5 * plainly_far + 1e-3 * exact[name].norm(), name
        else:
            torch.testing.assert_close(replayed[name], value, rtol=1e-3, atol=1e-3 * value.abs().max().item())
