"""The numbers that a step computes with; weights, velocity and the normalization's inside stay float32 in all of them.

fp32 is the default, and exact on a GPU too. tf32 lets a GPU's matrix products read 10 bits of mantissa (CUDA alone).
bf16 and fp16 run convolutions and dense layers in half the bytes under torch.autocast; fp16's gradients are scaled, so
that small ones do not vanish, and a step whose gradients overflow is skipped.
"""

import os
import shlex
import shutil
import tempfile
from typing import Any

import torch
from torch import nn
from torch.utils._triton import has_triton

from shards.errors import InputError


class Precision:
    """Autocast and gradient scaling for a `--precision`.

    Args: name: fp32, tf32, bf16 or fp16; world_size: how many processes train. When the gradients of one overflow all
    skip the step, because each may hold another part of the model.
    Raises: InputError for tf32 where there is no CUDA device.
    """

    def __init__(self, name: str, device: torch.device, world_size: int = 1):
        if name == "tf32" and device.type != "cuda":
            raise InputError("--precision tf32 needs a CUDA device: choose fp32 or bf16")
        self.device, self.dtype = device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
        if device.type == "cuda":
            # By default torch lets cuDNN use tf32 for convolutions
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
        scaler = _synchronized_scaler() if name == "fp16" and world_size > 1 else torch.amp.GradScaler
        self.scaler = scaler(device.type, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        """The context for the forward pass and the loss."""
        return torch.autocast(self.device, self.dtype, enabled=self.dtype is not None)

    def backward(self, loss: torch.Tensor) -> None:
        """The gradients of the loss, scaled in fp16."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step, unless fp16's gradients have overflowed, which the device decides."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(optimizer)  # which all processes share; what step does by itself they would not
        self.scaler.step(optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: empty except in fp16."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scaler.load_state_dict(state)


def _synchronized_scaler() -> type[torch.amp.GradScaler]:
    """A scaler whose processes share an overflow."""
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler  # a second to import

    return ShardedGradScaler


def check_compiler(device: torch.device) -> None:
    """Raises InputError where the compiler that torch.compile needs is missing, or cannot be called."""
    if device.type == "cpu":
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise InputError(f"--compile needs a C++ compiler, and {compiler} is not installed: install it, or set CXX")
        cache = "TORCHINDUCTOR_CACHE_DIR"
        for name, folder in (("TMPDIR", tempfile.gettempdir()), (cache, os.environ.get(cache, "/"))):
            if shlex.quote(folder) != folder:
                remedy = f"set {name} to another, or leave --compile out"
                raise InputError(f"--compile: torch does not quote names of folders, and {folder!r} needs it: {remedy}")
    elif not has_triton():
        raise InputError("--compile needs Triton on a GPU, and it is not installed: pip install triton")


def compile_model(module: nn.Module, device: torch.device) -> nn.Module:
    """A module compiled by torch.compile. Raises InputError as `check_compiler` does."""
    check_compiler(device)
    # On a CPU it is no faster with this optimization, and takes a seventh more memory
    options: dict[str, Any] | None = {"layout_optimization": False} if device.type == "cpu" else None
    compiled: nn.Module = torch.compile(module, dynamic=False, options=options)  # type: ignore[assignment]
    return compiled
