"""Local response normalization against the paper's formula, written as loops."""

import pytest
import torch
import torch.nn.functional as F

from trainer import lrn
from trainer.lrn import local_response_norm


def by_the_paper(a, n=5, k=2.0, alpha=1e-4, beta=0.75):
    """Section 3.3, term by term: i counts kernels, the sum runs from max(0, i - n/2) to min(N - 1, i + n/2)."""
    b = torch.empty_like(a)
    kernels = a.shape[1]
    for i in range(kernels):
        total = sum(a[:, j] ** 2 for j in range(max(0, i - n // 2), min(kernels - 1, i + n // 2) + 1))
        b[:, i] = a[:, i] / (k + alpha * total) ** beta
    return b


@pytest.mark.parametrize("kernels", [1, 2, 4, 5, 12])
@pytest.mark.parametrize("constants", [{}, {"n": 3, "k": 1.0, "alpha": 0.5, "beta": 0.6}])
def test_the_papers_formula(kernels, constants):
    a = torch.randn(2, kernels, 3, 4, dtype=torch.float64) * 50
    torch.testing.assert_close(local_response_norm(a, **constants), by_the_paper(a, **constants), rtol=1e-12, atol=0)


def test_torchs_own_with_alpha_times_n():
    a = torch.randn(2, 12, 3, 3, dtype=torch.float64) * 50
    torchs = F.local_response_norm(a, 5, alpha=5e-4, beta=0.75, k=2.0)
    torch.testing.assert_close(local_response_norm(a), torchs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("towers", [1, 2])
@pytest.mark.parametrize("beta", [0.75, 0.5])
def test_gradient(towers, beta):
    a = torch.randn(2, 8, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: local_response_norm(x, towers, alpha=0.3, beta=beta), (a,))


def test_no_window_crosses_the_border_between_towers():
    a = torch.randn(2, 12, 3, 3, dtype=torch.float64, requires_grad=True)
    both = local_response_norm(a, towers=2, alpha=0.1)
    alone = torch.cat([local_response_norm(half, alpha=0.1) for half in a.chunk(2, dim=1)], dim=1)
    assert torch.equal(both, alone)
    assert not torch.allclose(both, local_response_norm(a, alpha=0.1))
    # Nor does a gradient
    (gradient,) = torch.autograd.grad(both[:, :6].sum(), a)
    assert gradient[:, :6].abs().min() > 0 and gradient[:, 6:].abs().max() == 0


def test_channels_last_gives_the_same():
    a = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    last = a.to(memory_format=torch.channels_last).requires_grad_()
    a.requires_grad_()
    for x in (a, last):
        local_response_norm(x, 2).pow(2).sum().backward()
    torch.testing.assert_close(a.grad, last.grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    a = (torch.randn(2, 8, 3, 3) * 200).to(dtype)  # squares that float16 cannot hold
    out = local_response_norm(a)
    assert out.dtype == dtype
    torch.testing.assert_close(out, local_response_norm(a.float()).to(dtype))


def test_one_tensor_is_kept_for_the_backward():
    kept = []
    a = torch.randn(2, 8, 3, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        local_response_norm(a, 2)
    assert kept == [a.data_ptr()]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_memory_format_stays(memory_format):
    a = torch.randn(2, 8, 5, 5).to(memory_format=memory_format).requires_grad_()
    b = local_response_norm(a, 2)
    b.backward(torch.ones_like(b))
    assert b.is_contiguous(memory_format=memory_format) and a.grad.is_contiguous(memory_format=memory_format)


def test_blocks_of_images_are_the_batch(monkeypatch):
    a = torch.randn(5, 8, 3, 3, requires_grad=True)
    undivided = local_response_norm(a, 2)
    (undivided_grad,) = torch.autograd.grad(undivided.square().sum(), a)
    monkeypatch.setattr(lrn, "BLOCK", 2 * 8 * 3 * 3)  # two, two and one
    in_blocks = local_response_norm(a, 2)
    assert torch.equal(in_blocks, undivided)
    assert torch.equal(torch.autograd.grad(in_blocks.square().sum(), a)[0], undivided_grad)


def test_an_empty_batch_gives_an_empty_batch():
    assert local_response_norm(torch.empty(0, 8, 3, 3)).shape == (0, 8, 3, 3)


@pytest.mark.long
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_compiled_is_the_same_and_fully_traced(dtype, tolerance, memory_format):
    torch.compiler.reset()
    a = (torch.randn(2, 8, 5, 5) * 50).to(dtype).to(memory_format=memory_format).requires_grad_()
    results = []
    for normalize in (local_response_norm, torch.compile(local_response_norm, fullgraph=True)):
        b = normalize(a, 2, alpha=0.01)
        assert b.is_contiguous(memory_format=memory_format)
        results.append((b.detach(), *torch.autograd.grad(b.square().sum(), a)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=tolerance, atol=tolerance)
