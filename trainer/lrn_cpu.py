"""Local response normalization on a CPU: forward and backward, each in about one pass over memory.

TorchScript's fuser is off on CPUs in the official wheels, so the batch is processed in blocks of images that stay in a
core's cache. Under torch.compile the same functions are traced into its graph, whose fuser needs the undivided batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.torchscript import script

K = 2.0  # section 3.3; its n = 5 and beta = 0.75 are written out below

# Numbers in a block: with the temporaries it takes four times as many bytes of each of two cores' caches.
# One image of 96 x 55 x 55 or 256 x 27 x 27; twice as many cost a quarter more time, measured (docs/speed.md)
BLOCK = 2**18


def _window_sum(x: Tensor) -> Tensor:
    """Sum over five neighbours along dim 2, the kernels of a tower; the window is cut off at the ends."""
    kernels = x.size(2)
    total = x.clone()
    for shift in range(1, min(3, kernels)):
        shared = kernels - shift
        after, before = x.narrow(2, shift, shared), x.narrow(2, 0, shared)
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            total.narrow(2, 0, shared).add_(after)
            total.narrow(2, shift, shared).add_(before)
        else:  # The same for torch.compile, which fuses padded terms into one pass, and writes into views into several
            inside = (0, 0) * (x.dim() - 3)
            total = total + F.pad(after, (*inside, 0, shift)) + F.pad(before, (*inside, shift, 0))
    return total


def _powers(d: Tensor) -> tuple[Tensor, Tensor]:
    """d^-0.75 and 1 / d, written over d; by roots, which a CPU takes faster than a power."""
    root = d.rsqrt_().sqrt_()
    square = root * root
    return root.mul_(square), square.mul_(square)


def _precise(x: Tensor) -> Tensor:
    """Half precisions as float32, others unchanged."""
    return x.float() if x.dtype == torch.float16 or x.dtype == torch.bfloat16 else x


def _factor(a: Tensor, k: float, alpha: float) -> Tensor:
    """d^-0.75, by which `a` is multiplied."""
    return _powers(_window_sum(a * a).mul_(alpha).add_(k))[0]


def _terms(grad: Tensor, a: Tensor, k: float, alpha: float) -> tuple[Tensor, Tensor]:
    """The gradient's two terms: it is the first minus 1.5 * alpha times the second."""
    power, inverse = _powers(_window_sum(a * a).mul_(alpha).add_(k))
    direct = power.mul_(grad)
    return direct, _window_sum(inverse.mul_(direct).mul_(a)).mul_(a)


def _forward(x: Tensor, k: float, alpha: float, block: int) -> Tensor:
    """Args: block: images at a time."""
    out = torch.empty_like(x)
    for first in range(0, x.size(0), block):
        last = min(first + block, x.size(0))
        a = _precise(x[first:last])
        torch.mul(_factor(a, k, alpha), a, out=out[first:last])
    return out


def _backward(grad: Tensor, x: Tensor, k: float, alpha: float, block: int) -> Tensor:
    out = torch.empty_like(x)
    for first in range(0, x.size(0), block):
        last = min(first + block, x.size(0))
        direct, crossed = _terms(_precise(grad[first:last]), _precise(x[first:last]), k, alpha)
        torch.sub(direct, crossed, alpha=1.5 * alpha, out=out[first:last])
    return out


_scripted_forward = script(_forward)
_scripted_backward = script(_backward)


def forward(x: Tensor, towers: int, alpha: float) -> Tensor:
    """The normalized x, as of `trainer.lrn.local_response_norm`."""
    x = _grouped(x, towers)
    if not torch.compiler.is_compiling():
        return _scripted_forward(x, K, alpha, _block(x)).flatten(1, 2)  # type: ignore[no-any-return]
    a = _precise(_along_memory(x, x))
    return _as_before(x, a * _factor(a, K, alpha)).flatten(1, 2)


def backward(grad: Tensor, x: Tensor, towers: int, alpha: float) -> Tensor:
    """The gradient of x from that of the normalized x."""
    grad, x = _grouped(grad, towers), _grouped(x, towers)
    if not torch.compiler.is_compiling():
        return _scripted_backward(grad, x, K, alpha, _block(x)).flatten(1, 2)  # type: ignore[no-any-return]
    # A view that the compiler has to write to memory: otherwise it reads the gradient as max pooling left it, in
    # another memory order, once for each term of the window, which took three times as long
    grad = _along_memory(grad, x).contiguous()
    grad = grad.as_strided(grad.shape, grad.stride())
    direct, crossed = _terms(_precise(grad), _precise(_along_memory(x, x)), K, alpha)
    return _as_before(x, direct - 1.5 * alpha * crossed).flatten(1, 2)


def _grouped(x: Tensor, towers: int) -> Tensor:
    return x.unflatten(1, (towers, -1))  # type: ignore[no-any-return, no-untyped-call]


def _block(x: Tensor) -> int:
    """How many images to process at a time."""
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
