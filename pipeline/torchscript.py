"""TorchScript, quietly: torch 2.10 and later call it deprecated, and this project uses it on purpose."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import torch
from torch import nn


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        yield


def script(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled."""
    with _quiet():
        compiled: Callable[..., Any] = torch.jit.script(function)
        return compiled


def save(module: nn.Module, file: BinaryIO, extra_files: dict[str, str]) -> None:
    """Writes a module, compiled, as torch.jit.load reads it."""
    with _quiet():
        torch.jit.save(torch.jit.script(module), file, extra_files)
