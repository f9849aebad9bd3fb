"""Compiling a function with TorchScript, quietly."""

import warnings
from collections.abc import Callable
from typing import Any

import torch


def script(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled. torch 2.10 and later call torch.jit.script deprecated; this project uses it on purpose."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
        compiled: Callable[..., Any] = torch.jit.script(function)
        return compiled
