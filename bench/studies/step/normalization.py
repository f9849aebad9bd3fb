"""The normalization, forward and backward, beside torch's: time, kept tensors, and on a GPU kernels and bytes."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.harness.turns import interleaved, ratios, summarize
from bench.studies.step.contestants import BATCH, plain_normalize, seconds
from trainer.lrn import local_response_norm
from trainer.precision import compile_model

Normalize = Callable[[Tensor], Tensor]
SHAPES = {"96 x 55 x 55": (96, 55, 55), "256 x 27 x 27": (256, 27, 27)}
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


class Normalization(nn.Module):
    """Ours, for two towers in one process."""

    def forward(self, x: Tensor) -> Tensor:
        return local_response_norm(x, towers=2)


def normalizers(device: torch.device) -> dict[str, Normalize]:
    ours = Normalization()
    return {"torch": plain_normalize, "TorchScript": ours, "compiled": compile_model(ours, device)}


def measure_normalization(device: torch.device, rounds: int) -> dict[str, Any]:
    """The figures of each layer's shape in each memory format, on a GPU also in bf16."""
    layers = {}
    # A GPU computes 128 images in less time than Python takes to launch the work
    batch = BATCH if device.type == "cpu" else 4 * BATCH
    dtypes = {"": torch.float32} | ({", bf16": torch.bfloat16} if device.type == "cuda" else {})
    for (shape_name, shape), (format_name, memory_format), (dtype_name, dtype) in itertools.product(
        SHAPES.items(), FORMATS.items(), dtypes.items()
    ):
        torch.compiler.reset()
        x, grad = (
            torch.randn(batch, *shape, device=device).to(dtype).to(memory_format=memory_format) for _ in range(2)
        )
        name = f"{shape_name}, {format_name}{dtype_name}"
        layers[name] = measure_layer(x.relu_().requires_grad_(), grad, rounds)
    return layers


def measure_layer(x: Tensor, grad: Tensor, rounds: int) -> dict[str, Any]:
    named = normalizers(x.device)
    kept = {name: kept_tensors(normalize, x) for name, normalize in named.items()}
    passes = {name: functools.partial(time_pass, normalize, x, grad) for name, normalize in named.items()}
    times = interleaved(passes, rounds, warmup=2)
    return {
        "seconds": {name: summarize(values) for name, values in times.items()},
        "times_torch": {name: summarize(ratios(times["torch"], times[name])) for name in ("TorchScript", "compiled")},
        "tensors_kept_for_the_backward": kept,
        **gpu_figures(named, x, grad, times),
    }


def time_pass(normalize: Normalize, x: Tensor, grad: Tensor) -> float:
    """Seconds of a forward and a backward pass."""
    x.grad = None
    return seconds(lambda: torch.autograd.backward(normalize(x), grad), x.device)


def kept_tensors(normalize: Normalize, x: Tensor) -> int:
    """How many different tensors of the input's size autograd keeps for the backward pass."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        normalize(x)
    return sum(tensor.numel() >= x.numel() for tensor in kept.values())


def gpu_figures(named: dict[str, Normalize], x: Tensor, grad: Tensor, times: dict[str, list[float]]) -> dict[str, Any]:
    """On a GPU: how many kernels are launched, and the share of a copy's bandwidth that is reached. A copy is two
    passes over the tensor; the least that the normalization needs is two forward and three backward."""
    if x.device.type != "cuda":
        return {}
    launched = {}
    for name, normalize in named.items():
        for _ in range(3):
            torch.autograd.backward(normalize(x), grad)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            torch.autograd.backward(normalize(x), grad)
            torch.cuda.synchronize()
        on_gpu = torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]  # documented, and not in __all__
        launched[name] = sum(event.device_type == on_gpu for event in profile.events())
    copy = float(np.median([seconds(lambda: grad.clone(), x.device) for _ in range(20)]))
    share = {name: 2.5 * copy / float(np.median(values)) for name, values in times.items()}
    return {"kernels_launched": launched, "share_of_copy_bandwidth": share}


def fuser(device: torch.device) -> dict[str, bool]:
    """Whether TorchScript's own fuser makes one kernel of several operations."""
    x = torch.randn(2, 96, 8, 8, device=device, requires_grad=True)
    for _ in range(3):
        torch.autograd.backward(local_response_norm(x, 2).sum())
    graph = str(torch.jit.last_executed_optimized_graph())  # type: ignore[attr-defined]  # not in __all__
    return {
        "fused": "prim::TensorExprGroup" in graph,
        "can_fuse_on_cpu": torch._C._jit_can_fuse_on_cpu(),
        "llvm": torch._C._llvm_enabled(),
    }
