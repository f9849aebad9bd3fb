"""The numbers that a step computes with; weights, velocity and the normalization's inside stay float32 in all of them.

fp32 is the default, and exact on a GPU too. tf32 lets a GPU's matrix products read 10 bits of mantissa (CUDA alone).
bf16 and fp16 run convolutions and dense layers in half the bytes under torch.autocast; fp16's gradients are scaled, so
that small ones do not vanish, and a step whose gradients overflowed is left out.
"""

import os
import shutil

import torch
from torch import nn
from torch.utils._triton import has_triton

from shards.errors import InputError

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


class Precision:
    """Args: name: one of PRECISIONS; world_size: how many processes train. One whose gradients overflow has all of them
    leave the step out, for each may hold another part of the model.
    Raises: InputError for tf32 where there is no CUDA device.
    """

    def __init__(self, name: str, device: torch.device, world_size: int = 1):
        if name == "tf32" and device.type != "cuda":
            raise InputError("--precision tf32 is a CUDA device's: choose fp32 or bf16")
        self.device, self.dtype = device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
        if device.type == "cuda":
            # torch's own default lets cuDNN take tf32 for convolutions
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
        scaler = _common_scaler() if name == "fp16" and world_size > 1 else torch.amp.GradScaler
        self.scaler = scaler(device.type, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        """In it the model is run forwards, and the loss computed."""
        return torch.autocast(self.device, self.dtype, enabled=self.dtype is not None)

    def backward(self, loss: torch.Tensor) -> None:
        """The gradients of the loss, of fp16's scaled one."""
        self.scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def state_dict(self) -> dict:
        """What a checkpoint keeps of it: nothing but in fp16."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.scaler.load_state_dict(state)


def _common_scaler() -> type[torch.amp.GradScaler]:
    """One whose processes tell each other of an overflow."""
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler  # a second to import

    return ShardedGradScaler


def check_compiler(device: torch.device) -> None:
    """Raises InputError where the compiler that torch.compile needs is missing."""
    if device.type == "cpu":
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise InputError(f"--compile needs a C++ compiler, and there is no {compiler}: install it, or set CXX")
    elif not has_triton():
        raise InputError("--compile needs Triton on a GPU, and it is not there: pip install triton")


def compile_model(trained: nn.Module, device: torch.device) -> nn.Module:
    """`trained` by torch.compile. Raises InputError as `check_compiler` does."""
    check_compiler(device)
    if device.type == "cpu":
        # No faster with it, and takes a seventh more memory
        return torch.compile(trained, dynamic=False, options={"layout_optimization": False})
    return torch.compile(trained, dynamic=False)
