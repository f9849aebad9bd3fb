"""Local response normalization against the paper's formula, written as loops; on a GPU, fused."""

import itertools
import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from trainer import lrn_cpu, lrn_gpu
from trainer.lrn import local_response_norm

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")


def by_the_paper(a, n=5, k=2.0, alpha=1e-4, beta=0.75):
    """Section 3.3, term by term: i counts kernels, the sum runs from max(0, i - n/2) to min(N - 1, i + n/2)."""
    b = torch.empty_like(a)
    kernels = a.shape[1]
    for i in range(kernels):
        total = sum(a[:, j] ** 2 for j in range(max(0, i - n // 2), min(kernels - 1, i + n // 2) + 1))
        b[:, i] = a[:, i] / (k + alpha * total) ** beta
    return b


@pytest.mark.parametrize("kernels", [1, 2, 4, 5, 12])
@pytest.mark.parametrize("alpha", [1e-4, 0.5])
def test_the_papers_formula(kernels, alpha):
    a = torch.randn(2, kernels, 3, 4, dtype=torch.float64) * 50
    expected = by_the_paper(a, alpha=alpha)
    torch.testing.assert_close(local_response_norm(a, alpha=alpha), expected, rtol=1e-12, atol=0)


def test_torchs_own_with_alpha_times_n():
    a = torch.randn(2, 12, 3, 3, dtype=torch.float64) * 50
    torchs = F.local_response_norm(a, 5, alpha=5e-4, beta=0.75, k=2.0)
    torch.testing.assert_close(local_response_norm(a), torchs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("towers", [1, 2])
def test_gradient(towers):
    a = torch.randn(2, 8, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: local_response_norm(x, towers, alpha=0.3), (a,))


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
    monkeypatch.setattr(lrn_cpu, "BLOCK", 2 * 8 * 3 * 3)  # two, two and one
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


FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])]


@pytest.mark.long
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_does_not_depend_on_memory_formats(device, dtype, tolerance, compiled):
    a, grad = torch.randn(2, 16, 5, 7) * 30, torch.randn(2, 16, 5, 7)
    exact = a.to(dtype).double().requires_grad_()
    expected = local_response_norm(exact, 2)
    expected.backward(grad.to(dtype).double())
    normalize = torch.compile(local_response_norm, fullgraph=True) if compiled else local_response_norm
    torch.compiler.reset()
    for a_format, grad_format in itertools.product(FORMATS.values(), FORMATS.values()):
        x = a.detach().to(device, dtype, copy=True).to(memory_format=a_format).requires_grad_()
        for _ in range(3):  # TorchScript fuses from the second call on
            x.grad = None
            b = normalize(x, 2)
            b.backward(grad.to(device, dtype).to(memory_format=grad_format))
        for found, exactly in ((b, expected), (x.grad, exact.grad)):
            assert found.dtype == dtype
            assert (found.cpu().double() - exactly).norm() < tolerance * exactly.norm()


# The fuser's own interpreter stands in for a GPU's compiler. Its switches hold for a process, hence one of its own
FUSED_HERE = """
import json, sys, torch
torch._C._jit_override_can_fuse_on_cpu(True)
torch._C._jit_set_te_must_use_llvm_cpu(False)
torch._C._jit_set_texpr_fuser_enabled(True)
from tests.trainer.test_lrn import groups_and_leftovers
from trainer import lrn_gpu
found = []
for dtype in (torch.float32, torch.bfloat16):
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = (torch.randn(2, 16, 3, 5) * 30).to(dtype).to(memory_format=memory_format)
        for towers in (1, 2):
            for call in (lambda: lrn_gpu.forward(x, towers, 1e-4), lambda: lrn_gpu.backward(x, x, towers, 1e-4)):
                for _ in range(2):
                    call()
                found.append(groups_and_leftovers(call))
print(json.dumps(found))
"""
VIEWS = ("aten::narrow", "aten::view", "aten::size", "aten::numel", "aten::mul(%", "aten::sub(%")


def groups_and_leftovers(call):
    """By the name of each scripted function that a call runs: how many fused groups are in the graph that TorchScript
    ran of it, and what was computed outside of them."""
    found, scripted = {}, lrn_gpu._scripted.copy()

    def looked_at(function):
        def run(*inputs):
            output = scripted[function](*inputs)
            graph = str(torch.jit.last_executed_optimized_graph()).partition("\nwith prim::")[0]
            lines = [line.strip() for line in graph.partition("block1()")[0].splitlines()]
            computed = [line for line in lines if "Tensor = aten::" in line and not any(view in line for view in VIEWS)]
            found[function.__name__] = [graph.count("= prim::TensorExprGroup_"), computed]
            return output

        return run

    with pytest.MonkeyPatch.context() as patched:
        for function in scripted:
            patched.setitem(lrn_gpu._scripted, function, looked_at(function))
        call()
    return found


FUSED = [{"_normalize": [1, []]}, {"_terms": [1, []], "_gradient": [1, []]}]  # forward, backward


@pytest.mark.long
def test_torchscript_fuses_each_expression_into_one_group():
    run = subprocess.run([sys.executable, "-c", FUSED_HERE], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(run.stdout)
    assert found == 8 * FUSED


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("towers", [1, 2])
def test_on_a_gpu_the_forward_is_two_kernels_and_the_backward_four(dtype, memory_format, towers):
    x = torch.randn(8, 96, 9, 9, device="cuda").to(dtype).to(memory_format=memory_format).requires_grad_()
    for _ in range(2):
        b = local_response_norm(x, towers)
        (grad,) = torch.autograd.grad(b, x, torch.ones_like(b))
    calls = (lambda: lrn_gpu.forward(x, towers, 1e-4), lambda: lrn_gpu.backward(grad, x, towers, 1e-4))
    with torch.no_grad():
        assert [groups_and_leftovers(call) for call in calls] == FUSED
    kernels = []
    for backward in (False, True):
        b = local_response_norm(x, towers)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            if backward:
                torch.autograd.grad(b, x, grad)
            else:
                b = local_response_norm(x, towers)
            torch.cuda.synchronize()
        on_gpu = torch.autograd.DeviceType.CUDA
        kernels.append([event.name for event in profile.events() if event.device_type == on_gpu])
    assert len(kernels[0]) <= 2 and len(kernels[1]) <= 4, kernels
