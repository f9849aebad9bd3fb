"""What a process receives over TCP, by the kernel's own count, and what a training step keeps in memory."""

import os
import socket
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# In Linux's struct tcp_info (linux/tcp.h), which only grows: tcpi_bytes_received
TCP_INFO, BYTES_RECEIVED = 11, 128


def bytes_received() -> int:
    """By all TCP connections that this process has now, since they were made."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                    info = connection.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 256)
                    total += struct.unpack_from("Q", info, BYTES_RECEIVED)[0]
        except OSError:
            continue  # closed since it was listed, the listing's own file for one
    return total


def held_bytes(parameters: Iterable[Tensor], optimizer: torch.optim.Optimizer) -> int:
    """Of parameters, their gradients, and what the optimizer keeps of them."""
    total = 0
    for parameter in parameters:
        total += parameter.nbytes + (0 if parameter.grad is None else parameter.grad.nbytes)
        kept = optimizer.state.get(parameter, {}).values()
        total += sum(value.nbytes for value in kept if isinstance(value, Tensor))
    return total


@contextmanager
def counting_saved(parameters: Iterable[Tensor]) -> Iterator[Callable[[], int]]:
    """A function that tells the bytes of all tensors that were kept for backward passes inside, each storage once,
    without the parameters'."""
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sum(storages.values())
