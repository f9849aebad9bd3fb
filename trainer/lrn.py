"""Local response normalization (paper, section 3.3), its backward written out.

    b = a / (k + alpha * sum of a^2 over n neighbouring kernels)^beta        k = 2, n = 5, alpha = 1e-4, beta = 0.75

alpha is not divided by n, as the paper prints it; torch.nn.functional.local_response_norm divides, so the same sums
there take alpha = 5e-4.

The backward computes the denominator again, so that autograd keeps one tensor, x, instead of ten:

    dx = g * d^-beta - 2 * alpha * beta * x * windowsum(g * x * d^(-beta - 1))      d = k + alpha * windowsum(x^2)

`lrn_gpu` and `lrn_cpu` compute the two, each in as few passes over memory as its device allows, by TorchScript or,
where the model is compiled, by torch.compile.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from trainer import lrn_cpu, lrn_gpu


class _LocalResponseNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, towers: int, alpha: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.towers, ctx.alpha = towers, alpha
        return _for(x).forward(x, towers, alpha)  # type: ignore[no-any-return]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return _for(x).backward(grad, x, ctx.towers, ctx.alpha), None, None


def _for(x: Tensor) -> ModuleType:
    # lrn_gpu computes in float32, and at least one image
    return lrn_gpu if x.is_cuda and x.dtype != torch.float64 and x.numel() else lrn_cpu


def local_response_norm(x: Tensor, towers: int = 1, alpha: float = 1e-4) -> Tensor:
    """Normalizes N x C x H x W over five neighbouring kernels of the same tower, in x's memory format.

    Args: towers: how many towers the C kernels belong to, C / towers consecutive ones each; no window crosses their
    border.
    Half precisions are computed in float32 and returned in their own dtype.
    """
    normalized: Tensor = _LocalResponseNorm.apply(x, towers, alpha)  # type: ignore[no-untyped-call]
    return normalized
