"""`--cuda-graphs`: record a step's GPU kernels once, and launch them together from then on.

A step of this model is some hundred kernels, each of which Python has to launch; with a small batch a kernel ends
before the next is launched. A recorded step is replayed with the same tensors at the same addresses, so it works where
a step does the same each time: in one process, whose step waits for no other.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._triton import has_triton

from shards.errors import InputError

WARM_UP_CALLS = 3  # TorchScript specializes in the second, and cuDNN and cuBLAS must have their workspaces


def check_cuda_graphs(device: torch.device, world_size: int) -> None:
    """Raises InputError where CUDA graphs do not work."""
    if device.type != "cuda":
        raise InputError("--cuda-graphs needs a CUDA device: leave it out on a CPU")
    if world_size > 1:
        raise InputError("--cuda-graphs needs a step that waits for no other device: --gpus 1, or leave it out")


def choose_compilation(compile: bool | None, cuda_graphs: bool | None, kind: str, world_size: int) -> tuple[bool, bool]:
    """Whether to compile the step and whether to record it, as asked for, or where None: both on one GPU, the first
    where torch.compile has its compiler. Args: kind: of device, cuda or cpu."""
    alone = kind == "cuda" and world_size == 1
    return (alone and has_triton()) if compile is None else compile, alone if cuda_graphs is None else cuda_graphs


def left_out(compile: bool | None, kind: str, world_size: int) -> str | None:
    """What `choose_compilation` leaves out on GPUs, and why, as a line for the user; None where it leaves out nothing,
    or was asked for it."""
    if kind != "cuda" or compile is not None:
        return None
    if world_size > 1:
        return (
            f"On {world_size} GPUs the step is not compiled, which has never been tried there (--compile), "
            "and not recorded as a CUDA graph, for it waits for the others"
        )
    return None if has_triton() else "Not compiled, for Triton is not installed: pip install triton, or --no-compile"


class GraphedStep:
    """`work(*inputs)`, which returns a tensor, as a CUDA graph: captured in the first call, replayed in every call.

    Args: work: reads no tensor's value and changes nothing but tensors, so that doing it WARM_UP_CALLS times more does
    no harm; rng: the generator that it draws from, a CUDA device's. A replay draws from its state at that time.
    Raises: ValueError for tensors of other shapes than the first call's.
    """

    def __init__(self, work: Callable[..., Tensor], rng: torch.Generator):
        self.work, self.rng = work, rng
        self.inputs: list[Tensor] = []
        self.replay: Callable[[], None] | None = None
        self.output: Tensor | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.replay is None:
            self.inputs = [tensor.clone() for tensor in inputs]
            state = self.rng.get_state()
            self.replay, self.output = capture(lambda: self.work(*self.inputs), self.rng)
            self.rng.set_state(state)
        for own, tensor in zip(self.inputs, inputs, strict=True):
            if own.shape != tensor.shape:
                raise ValueError(f"recorded for {tuple(own.shape)}, called with {tuple(tensor.shape)}")
            own.copy_(tensor)
        self.replay()
        assert self.output is not None
        return self.output.clone()  # the next replay overwrites it


def capture(work: Callable[[], Tensor], rng: torch.Generator) -> tuple[Callable[[], None], Tensor]:
    """(what replays `work`, the tensor that then holds its result)."""
    stream = torch.cuda.Stream(rng.device)  # type: ignore[no-untyped-call]
    graph = torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream(rng.device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_CALLS):
            work()
    graph.register_generator_state(rng)
    # thread_local: DALI's threads and the one that pins memory go on calling CUDA meanwhile
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        output = work()
    return graph.replay, output
