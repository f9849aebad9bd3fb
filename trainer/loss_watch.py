"""Finds a loss that is NaN or infinite without making Python wait for the device."""

import math
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor


class _Pending(NamedTuple):
    step: int
    loss: Tensor  # on the CPU
    copied: "torch.cuda.Event | None"  # when it is there


class LossWatch:
    """The losses of the last steps, each looked at as soon as the device has computed it."""

    def __init__(self) -> None:
        self.pending: deque[_Pending] = deque()

    def add(self, step: int, loss: Tensor) -> None:
        """Takes a scalar, on any device; a GPU's is copied when it is ready."""
        if not loss.is_cuda:
            self.pending.append(_Pending(step, loss, None))
            return
        on_cpu = torch.empty_like(loss, device="cpu", pin_memory=True)
        on_cpu.copy_(loss, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        self.pending.append(_Pending(step, on_cpu, copied))

    def first_bad(self, wait: bool) -> tuple[int, float] | None:
        """The first step whose loss is NaN or infinite, and that loss. Args: wait: for those that are not ready yet."""
        while self.pending:
            step, loss, copied = self.pending[0]
            if copied is not None and not copied.query():  # type: ignore[no-untyped-call]
                if not wait:
                    return None
                copied.synchronize()
            self.pending.popleft()
            if not math.isfinite(value := loss.item()):
                return step, value
        return None
