"""Local response normalization (paper, section 3.3): forward and backward, each in one pass over memory.

    b = a / (k + alpha * sum of a^2 over n neighbouring kernels)^beta        k = 2, n = 5, alpha = 1e-4, beta = 0.75

alpha is not divided by n, as the paper prints it; torch.nn.functional.local_response_norm divides, so the same sums
there take alpha = 5e-4.

The backward is written out and computes the denominator again, so that autograd keeps one tensor, x, instead of ten:

    dx = g * d^-beta - 2 * alpha * beta * x * windowsum(g * x * d^(-beta - 1))      d = k + alpha * windowsum(x^2)

There is one definition and two compilers. TorchScript is the default; its fuser is off on CPUs in the official wheels,
so there the batch is processed in blocks that stay in a core's cache, and memory is still read and written about once.
Under torch.compile the same functions are traced into its graph, whose fuser needs the undivided batch.
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Numbers in a block: with the temporaries it takes four times as many bytes of each of two cores' caches.
# One image of 96 x 55 x 55 or 256 x 27 x 27; twice as many cost a quarter more time, measured (docs/speed.md)
BLOCK = 2**18


def _window_sum(x: Tensor, n: int) -> Tensor:
    """Sum over n neighbours along dim 2, the kernels of a tower; the window is cut off at the ends."""
    kernels = x.size(2)
    total = x.clone()
    for shift in range(1, min(n // 2 + 1, kernels)):
        shared = kernels - shift
        after, before = x.narrow(2, shift, shared), x.narrow(2, 0, shared)
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            total.narrow(2, 0, shared).add_(after)
            total.narrow(2, shift, shared).add_(before)
        else:  # The same for torch.compile, which fuses padded terms into one pass, and writes into views into several
            inside = (0, 0) * (x.dim() - 3)
            total = total + F.pad(after, (*inside, 0, shift)) + F.pad(before, (*inside, shift, 0))
    return total


def _powers(d: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """d^-beta and 1 / d, written over d; the paper's beta of 0.75 by roots, which a CPU takes faster than a power."""
    if beta == 0.75:
        root = d.rsqrt_().sqrt_()
        square = root * root
        return root.mul_(square), square.mul_(square)
    return d.pow(-beta), d.reciprocal()


def _precise(x: Tensor) -> Tensor:
    """Half precisions as float32, others unchanged."""
    return x.float() if x.dtype == torch.float16 or x.dtype == torch.bfloat16 else x


def _factor(a: Tensor, n: int, k: float, alpha: float, beta: float) -> Tensor:
    """d^-beta, by which `a` is multiplied."""
    return _powers(_window_sum(a * a, n).mul_(alpha).add_(k), beta)[0]


def _terms(grad: Tensor, a: Tensor, n: int, k: float, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """The gradient's two terms: it is the first minus 2 * alpha * beta times the second."""
    power, inverse = _powers(_window_sum(a * a, n).mul_(alpha).add_(k), beta)
    direct = power.mul_(grad)
    return direct, _window_sum(inverse.mul_(direct).mul_(a), n).mul_(a)


def _forward(x: Tensor, n: int, k: float, alpha: float, beta: float, block: int) -> Tensor:
    """Args: block: images at a time."""
    out = torch.empty_like(x)
    for first in range(0, x.size(0), block):
        last = min(first + block, x.size(0))
        a = _precise(x[first:last])
        torch.mul(_factor(a, n, k, alpha, beta), a, out=out[first:last])
    return out


def _backward(grad: Tensor, x: Tensor, n: int, k: float, alpha: float, beta: float, block: int) -> Tensor:
    out = torch.empty_like(x)
    for first in range(0, x.size(0), block):
        last = min(first + block, x.size(0))
        direct, crossed = _terms(_precise(grad[first:last]), _precise(x[first:last]), n, k, alpha, beta)
        torch.sub(direct, crossed, alpha=2.0 * alpha * beta, out=out[first:last])
    return out


with warnings.catch_warnings():
    # torch 2.10 and later call torch.jit.script deprecated; this project uses TorchScript on purpose
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
    _scripted_forward = torch.jit.script(_forward)
    _scripted_backward = torch.jit.script(_backward)


class _LocalResponseNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *constants: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.constants = constants
        if not torch.compiler.is_compiling():
            return _scripted_forward(x, *constants, _block(x))  # type: ignore[no-any-return]
        a = _precise(_along_memory(x, x))
        return _as_before(x, a * _factor(a, *constants))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        if not torch.compiler.is_compiling():
            return _scripted_backward(grad, x, *ctx.constants, _block(x)), None, None, None, None
        grad = _along_memory(grad, x)
        if not x.is_cuda:
            # A view that the compiler has to write to memory: otherwise it reads the gradient as max pooling left it,
            # in another memory order, once for each term of the window, which took three times as long
            grad = grad.contiguous()
            grad = grad.as_strided(grad.shape, grad.stride())
        direct, crossed = _terms(_precise(grad), _precise(_along_memory(x, x)), *ctx.constants)
        *_, alpha, beta = ctx.constants
        return _as_before(x, direct - 2.0 * alpha * beta * crossed), None, None, None, None


def _block(x: Tensor) -> int:
    """How many images to process at a time."""
    if x.is_cuda:
        return len(x)
    return max(1, BLOCK * len(x) // x.numel()) if x.numel() else 1


def _along_memory(tensor: Tensor, x: Tensor) -> Tensor:
    """A tensor of x's shape as pixels x towers x kernels where x is in channels-last memory, otherwise unchanged:
    torch.compile's loops go along the dimensions, and across the memory they take up to ten times as long."""
    return tensor.permute(0, 3, 4, 1, 2).flatten(0, 2) if x.stride(2) == 1 else tensor


def _as_before(x: Tensor, tensor: Tensor) -> Tensor:
    """The inverse, in x's dtype."""
    if x.stride(2) == 1:
        shape = (x.shape[0], *x.shape[3:])
        tensor = tensor.unflatten(0, shape).permute(0, 3, 4, 1, 2)  # type: ignore[no-untyped-call]
    return tensor.to(x.dtype)


def local_response_norm(
    x: Tensor, towers: int = 1, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> Tensor:
    """Normalizes N x C x H x W over n neighbouring kernels of the same tower, in x's memory format.

    Args: towers: how many towers the C kernels belong to, C / towers consecutive ones each; no window crosses their
    border.
    Half precisions are computed in float32 and returned in their own dtype.
    """
    grouped = x.unflatten(1, (towers, -1))  # type: ignore[no-untyped-call]
    normalized: Tensor = _LocalResponseNorm.apply(grouped, n, k, alpha, beta)  # type: ignore[no-untyped-call]
    return normalized.flatten(1, 2)
