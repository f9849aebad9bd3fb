"""The paper's update rule (section 5), and LARS, calculated by hand; how few operations they are."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.support.dispatched import Dispatched
from trainer.alexnet import AlexNet
from trainer.launch import build_layout, leave_group
from trainer.model_parallel import ShardGroup, unsharded_layout
from trainer.optimizer import LARS, PaperSGD, build_optimizer


def test_three_steps_by_hand():
    weight = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = PaperSGD([weight], lr=0.1)
    steps = [
        # gradient, lr, velocity, weight:       v = 0.9 v - 0.0005 * lr * w - lr * g;  w = w + v
        (1.0, 0.1, -0.1001, 1.8999),  #         0 - 0.0005 * 0.1 * 2 - 0.1 * 1
        (-2.0, 0.1, 0.109815005, 2.009715005),  # -0.09009 - 0.000094995 + 0.2
        (0.5, 0.01, 0.093823455924975, 2.103538460924975),  # 0.0988335045 - 0.000010048575025 - 0.005
    ]
    for gradient, lr, velocity, value in steps:
        optimizer.param_groups[0]["lr"] = lr
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        assert optimizer.state[weight]["velocity"].item() == pytest.approx(velocity, rel=1e-12)
        assert weight.item() == pytest.approx(value, rel=1e-12)


def test_torchs_sgd_is_the_same_until_the_lr_changes():
    ours, torchs = (torch.nn.Parameter(torch.linspace(-1, 1, 7, dtype=torch.float64)) for _ in range(2))
    a = PaperSGD([ours], lr=0.1)
    b = torch.optim.SGD([torchs], lr=0.1, momentum=0.9, weight_decay=0.0005)

    def step():
        for parameter, optimizer in ((ours, a), (torchs, b)):
            optimizer.zero_grad()
            (parameter**2).sum().backward()
            optimizer.step()

    for _ in range(4):
        step()
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)
    for optimizer in (a, b):
        optimizer.param_groups[0]["lr"] = 0.01
    step()
    assert not torch.allclose(ours, torchs, rtol=1e-3)


def alone(layers):
    """One process holds each parameter."""
    return dict.fromkeys(layers.parameters(), ShardGroup())


def test_lars_is_algorithm_1_for_each_parameter():
    layers = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2)).double()
    torch.nn.init.zeros_(layers[1].bias)
    weights = [parameter.detach().numpy().copy() for parameter in layers.parameters()]
    velocities = [np.zeros_like(weight) for weight in weights]
    optimizer, rng = LARS(layers.parameters(), 0.1, alone(layers)), np.random.default_rng(0)
    for lr in (0.1, 0.1, 0.01):
        optimizer.param_groups[0]["lr"] = lr
        for parameter, w, v in zip(layers.parameters(), weights, velocities, strict=True):
            g = rng.normal(size=w.shape)
            parameter.grad = torch.from_numpy(g.copy())
            norm, grad_norm = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
            local = LARS.TRUST * norm / (grad_norm + 0.0005 * norm) if norm else 1
            v[:] = 0.9 * v - local * lr * (g + 0.0005 * w)
            w += v
        optimizer.step()
        assert optimizer.param_groups[0]["weight_decay"] == 0.0005
    for parameter, value in zip(layers.parameters(), weights, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-12)


def test_lars_takes_the_norm_of_millions_of_numbers():
    layers = torch.nn.ParameterList([0.01 * torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0))])
    weight = next(layers.parameters())
    norm, weight.grad = weight.detach().double().norm(), torch.ones_like(weight)
    before = weight.detach().clone()
    LARS(layers.parameters(), 1.0, alone(layers)).step()
    moved = LARS.TRUST * norm / (4096 + 0.0005 * norm) * (1 + 0.0005 * before.double())
    torch.testing.assert_close((before - weight.detach()).double().mean(), moved.mean(), rtol=1e-5, atol=0)


def ready(recipe, device="cpu"):
    """An optimizer with its velocities begun and its gradients given."""
    model = AlexNet(10, width=0.05).to(device)
    optimizer = build_optimizer(recipe, model, lr=0.01)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return optimizer


@pytest.mark.parametrize("recipe, most", [("paper", 4), ("large-batch", 32)])
def test_a_step_is_few_operations(recipe, most):
    optimizer = ready(recipe)
    with Dispatched() as under:
        optimizer.step()
    on_gpus = [name for name in under.names if name not in ("aten::view", "aten::linalg_vector_norm")]  # rows' norms
    # LARS for each parameter by itself was 294
    assert on_gpus.count("aten::_fused_sgd_") == 2 and len(on_gpus) <= most, on_gpus


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
@pytest.mark.parametrize("recipe, most", [("paper", 4), ("large-batch", 48)])
def test_on_a_gpu_a_step_is_few_kernels(recipe, most):
    optimizer = ready(recipe, "cuda")
    optimizer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        optimizer.step()
        torch.cuda.synchronize()
    kernels = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert 0 < len(kernels) <= most, kernels  # of LARS 16 scale a gradient each


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
@pytest.mark.parametrize("recipe", ["paper", "large-batch"])
def test_a_step_can_be_recorded_as_a_cuda_graph(recipe):
    optimizers = [ready(recipe, "cuda") for _ in range(2)]
    weights = [[weight for group in one.param_groups for weight in group["params"]] for one in optimizers]
    for ours, others in zip(*weights, strict=True):
        ours.data.copy_(others)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizers[0].step()
    graph.replay()
    optimizers[1].step()
    for recorded, plain in zip(*weights, strict=True):
        torch.testing.assert_close(recorded, plain)


def lars_step(layout):
    """The unsharded weights after one LARS step of a narrow model whose gradients are random numbers."""
    model = AlexNet(3, width=0.05, layout=layout).double()
    model.init_weights(seed=0)
    optimizer, rng = build_optimizer("large-batch", model, lr=1.0), torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        unsharded = torch.randn(model.unsharded_state_dict()[name].shape, generator=rng, dtype=torch.float64)
        # Far more in one half than in the other: a half's norm is not its share of the unsharded one's
        unsharded[: len(unsharded) // 2] *= 10
        parameter.grad = model.shard_group(name).shard(unsharded).clone()
    optimizer.step()
    return model.unsharded_state_dict()


def lars_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    exchanged, all_reduce = [], dist.all_reduce
    dist.all_reduce = lambda tensor, **group: exchanged.append(tensor.shape) or all_reduce(tensor, **group)
    try:
        for parallel in ("towers", "hybrid", "data"):
            exchanged.clear()
            result = lars_step(build_layout(parallel, "cpu", 2))
            torch.save([result, list(exchanged)], f"{folder}/{parallel}-{rank}.pt")
    finally:
        leave_group()


def test_lars_takes_norms_of_unsharded_parameters_in_any_layout(tmp_path):
    mp.start_processes(lars_rank, (str(tmp_path),), nprocs=2)
    unsharded = lars_step(unsharded_layout())
    # In one exchange: of eight layers, of the three dense ones, and none where each process holds all
    for parallel, exchanges in (("towers", [(2, 16)]), ("hybrid", [(2, 6)]), ("data", [])):
        for rank in (0, 1):
            result, exchanged = torch.load(tmp_path / f"{parallel}-{rank}.pt")
            assert exchanged == exchanges
            for name, value in result.items():
                torch.testing.assert_close(value, unsharded[name], rtol=1e-12, atol=1e-12)
