"""Local response normalisation (paper, section 3.3), our own, fused with TorchScript: forward and backward.

    b = a / (k + alpha * sum of a^2 over n neighbouring kernels)^beta        k = 2, n = 5, alpha = 1e-4, beta = 0.75

alpha is not divided by n, as the paper prints it; torch.nn.functional.local_response_norm divides, so the same sums
there take alpha = 5e-4.

The backward is written out, so that autograd keeps two tensors (x and the denominator's base) instead of ten:

    dx = g * d^-beta - 2 * alpha * beta * x * windowsum(g * x * d^(-beta - 1))      d = k + alpha * windowsum(x^2)
"""

import warnings

import torch
from torch import Tensor


def _window_sum(x: Tensor, n: int) -> Tensor:
    """Sum over n neighbours along dim 2 of N x towers x kernels x H x W; the window is cut off at the ends."""
    kernels = x.size(2)
    total = x.clone()
    for shift in range(1, n // 2 + 1):
        if shift < kernels:
            total.narrow(2, 0, kernels - shift).add_(x.narrow(2, shift, kernels - shift))
            total.narrow(2, shift, kernels - shift).add_(x.narrow(2, 0, kernels - shift))
    return total


def _power(d: Tensor, beta: float) -> Tensor:
    """d^-beta; the paper's 0.75 by two square roots, which a CPU takes far faster than a power."""
    if beta == 0.75:
        root = d.sqrt()
        return (root * root.sqrt()).reciprocal()
    return d.pow(-beta)


def _forward(x: Tensor, n: int, k: float, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    d = _window_sum(x * x, n) * alpha + k
    return x * _power(d, beta), d


def _backward(grad: Tensor, x: Tensor, d: Tensor, n: int, alpha: float, beta: float) -> Tensor:
    direct = grad * _power(d, beta)
    return direct - (2.0 * alpha * beta) * x * _window_sum(direct * x / d, n)


with warnings.catch_warnings():
    # torch 2.10 and later call torch.jit.script deprecated; the project's user asks for TorchScript by name
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
    _scripted_forward, _scripted_backward = torch.jit.script(_forward), torch.jit.script(_backward)


class _LocalResponseNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, n, k, alpha, beta):
        # torch.compile traces the same functions into its own graph, and cannot look into TorchScript's
        fuse = _forward if torch.compiler.is_compiling() else _scripted_forward
        b, d = fuse(x, n, k, alpha, beta)
        ctx.save_for_backward(x, d)
        ctx.constants = (n, alpha, beta)
        return b

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, d = ctx.saved_tensors
        fuse = _backward if torch.compiler.is_compiling() else _scripted_backward
        return fuse(grad, x, d, *ctx.constants), None, None, None, None


def local_response_norm(
    x: Tensor, towers: int = 1, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> Tensor:
    """Normalises N x C x H x W over n neighbouring kernels of the same tower.

    `towers`: how many towers the C kernels belong to, each C / towers of them in a row; no window crosses their border.
    Half precisions are computed in float32 and returned as they came.
    """
    precise = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    by_tower = precise.unflatten(1, (towers, -1))
    return _LocalResponseNorm.apply(by_tower, n, k, alpha, beta).flatten(1, 2).to(x.dtype)
