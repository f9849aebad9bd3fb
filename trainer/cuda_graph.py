"""`--cuda-graphs`: work on a GPU whose kernels were recorded once and are launched together from then on.

A step of this model is some hundred kernels, each of which Python has to launch; a small batch is through with one before
the next is launched. What is recorded is replayed with the same tensors at the same addresses, so it holds where a step
does the same each time: in one process, whose step waits for nobody.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from shards.errors import InputError

WARM_UP = 3  # calls: TorchScript specializes in the second, and cuDNN and cuBLAS must have their workspaces


def check_cuda_graphs(device: torch.device, world_size: int) -> None:
    """Raises InputError where CUDA graphs do not hold."""
    if device.type != "cuda":
        raise InputError("--cuda-graphs is a CUDA device's: leave it out on a CPU")
    if world_size > 1:
        raise InputError("--cuda-graphs holds for a step that waits for no other device: --gpus 1, or leave it out")


class GraphedStep:
    """`work(*tensors)`, a tensor, as a CUDA graph: recorded in the first call, replayed in that one and all others.

    Args: work: reads no tensor's value and changes nothing but tensors, so that doing it WARM_UP times more is no harm;
    rng: the generator that it draws from, a CUDA device's. A replay draws from it as it is then.
    Raises: ValueError for tensors of other shapes than the first call's.
    """

    def __init__(self, work: Callable[..., Tensor], rng: torch.Generator):
        self.work, self.rng = work, rng
        self.read, self.replay, self.made = None, None, None

    def __call__(self, *given: Tensor) -> Tensor:
        if self.replay is None:
            self.read = [tensor.clone() for tensor in given]
            before = self.rng.get_state()
            self.replay, self.made = record(lambda: self.work(*self.read), self.rng)
            self.rng.set_state(before)
        for read, tensor in zip(self.read, given, strict=True):
            if read.shape != tensor.shape:
                raise ValueError(f"recorded for {tuple(read.shape)}, called with {tuple(tensor.shape)}")
            read.copy_(tensor)
        self.replay()
        return self.made.clone()  # the next replay writes over it


def record(work: Callable[[], Tensor], rng: torch.Generator) -> tuple[Callable[[], None], Tensor]:
    """(what replays `work`, where its result then lies)."""
    stream, graph = torch.cuda.Stream(rng.device), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream(rng.device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            work()
    graph.register_generator_state(rng)
    # thread_local: DALI's threads and the one that pins memory go on calling CUDA meanwhile
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        made = work()
    return graph.replay, made
