"""Local response normalization on a GPU: fused, the forward into one kernel beside a copy, the backward into two.

A kernel's neighbours are views of the same memory, shifted by one or two kernels, and all that follows is one
pointwise expression over five views. TorchScript's fuser makes one CUDA kernel of such an expression, as torch.compile
does, which traces the same functions; additions to views in place it leaves alone: they were 113 calls (docs/speed.md).

The functions work on A x kernels x S as they lie in memory, S numbers from one kernel's to the next: 1 in channels-last
memory. They compute in float32.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.torchscript import script

K = 2.0  # section 3.3; its n = 5 and beta = 0.75 are written out below


def forward(x: Tensor, towers: int, alpha: float) -> Tensor:
    """The normalized x, as of `trainer.lrn.local_response_norm`."""
    values = _as_stored(x, x, towers)
    return _as_shaped(_compiled(_normalize)(values, _padded(values), _channels(values), K, alpha), x)


def backward(grad: Tensor, x: Tensor, towers: int, alpha: float) -> Tensor:
    """The gradient of x from that of the normalized x, in whatever memory format that is."""
    grad, values = _as_stored(grad, x, towers), _as_stored(x, x, towers)
    padded, channels = _padded(values), _channels(values)
    terms = _compiled(_terms)(grad, padded, channels, K, alpha)
    # A view that torch.compile has to write to memory: otherwise it computes each term once for each of the windows
    # that it is in, which took 13 ms instead of 1 (docs/speed.md)
    terms = terms.as_strided(terms.shape, terms.stride())
    return _as_shaped(_compiled(_gradient)(grad, padded, _padded(terms), channels, K, alpha), x)


def _memory_format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


def _as_stored(tensor: Tensor, x: Tensor, towers: int) -> Tensor:
    """A tensor of x's shape, brought to x's memory format, as A x kernels of a tower x S."""
    kernels, memory_format = x.shape[1] // towers, _memory_format(x)
    tensor = tensor.contiguous(memory_format=memory_format)
    if memory_format == torch.channels_last:
        return tensor.permute(0, 2, 3, 1).reshape(-1, kernels, 1)
    return tensor.reshape(-1, kernels, x.shape[2] * x.shape[3])


def _as_shaped(stored: Tensor, x: Tensor) -> Tensor:
    """The inverse."""
    n, c, h, w = x.shape
    if _memory_format(x) == torch.channels_last:
        return stored.reshape(n, h, w, c).permute(0, 3, 1, 2)
    return stored.reshape(x.shape)


def _padded(values: Tensor) -> Tensor:
    """The values with half a window on either side, from which `_window` takes the neighbours.

    For torch.compile these are zeros around each tower, which it makes no memory of. For TorchScript they are margins
    of the whole memory, whatever they hold: zeros around each tower would take a second kernel and longer rows.
    """
    if torch.compiler.is_compiling():
        return F.pad(values, (0, 0, 2, 2))
    margin, flat = 2 * values.shape[2], values.flatten()
    padded = flat.new_empty(len(flat) + 2 * margin)
    padded.narrow(0, margin, len(flat)).copy_(flat)
    return padded


def _channels(values: Tensor) -> Tensor:
    """The numbers of a tower's kernels, kernels x 1. torch.compile's functions do not use them."""
    return values if torch.compiler.is_compiling() else _channel_numbers(values.shape[1], values.device)


@functools.cache
def _channel_numbers(kernels: int, device: torch.device) -> Tensor:
    return torch.arange(kernels, device=device)[:, None]


def _neighbour(padded: Tensor, place: int, like: Tensor) -> Tensor:
    """For each number of `like` the one at this place, 0 to 4, of its window; float32."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return padded.narrow(0, place * like.size(2), like.numel()).view(like.size()).float()
    return padded.narrow(1, place, like.size(1)).float()


def _window(padded: Tensor, like: Tensor, channels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """For each number of `like` the five of its window, 0 beyond the tower's border."""
    last = like.size(1) - 1
    a, b, c = _neighbour(padded, 0, like), _neighbour(padded, 1, like), _neighbour(padded, 2, like)
    d, e = _neighbour(padded, 3, like), _neighbour(padded, 4, like)
    # What lies beyond the border in memory is a number of another tower or place. (The fuser has no masked_fill)
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        a, b = torch.where(channels > 1, a, 0.0), torch.where(channels > 0, b, 0.0)
        d, e = torch.where(channels < last, d, 0.0), torch.where(channels < last - 1, e, 0.0)
    return a, b, c, d, e


def _normalize(x: Tensor, padded: Tensor, channels: Tensor, k: float, alpha: float) -> Tensor:
    a, b, c, d, e = _window(padded, x, channels)
    root = ((a * a + b * b + c * c + d * d + e * e) * alpha + k).rsqrt()
    return (c * (root * root.sqrt())).type_as(x)


def _terms(grad: Tensor, padded: Tensor, channels: Tensor, k: float, alpha: float) -> Tensor:
    """g * x * d^-1.75, of which the gradient needs the windows' sums."""
    a, b, c, d, e = _window(padded, grad, channels)
    root = ((a * a + b * b + c * c + d * d + e * e) * alpha + k).rsqrt()
    return (grad.float() * c * (root * root.sqrt()) * (root * root)).type_as(grad)


def _gradient(grad: Tensor, padded: Tensor, terms: Tensor, channels: Tensor, k: float, alpha: float) -> Tensor:
    """The gradient. Args: terms: those of `_terms`, padded."""
    a, b, c, d, e = _window(padded, grad, channels)
    root = ((a * a + b * b + c * c + d * d + e * e) * alpha + k).rsqrt()
    s, t, u, v, w = _window(terms, grad, channels)
    return (grad.float() * (root * root.sqrt()) - c * (s + t + u + v + w) * (1.5 * alpha)).type_as(grad)


_scripted = {function: script(function) for function in (_normalize, _terms, _gradient)}


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function as TorchScript compiles it, or the plain one where torch.compile is tracing."""
    return function if torch.compiler.is_compiling() else _scripted[function]
