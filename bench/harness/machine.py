"""What figures were measured on: the processor, its cores and memory, the GPU, and the versions that matter."""

from typing import Any

import torch
from nvidia import dali

from bench.harness.host import describe_host
from shards.processes import cores
from trainer.model_parallel import unsharded_layout
from trainer.rank import RankContext


def describe_machine(context: RankContext) -> dict[str, Any]:
    """The machine, as reports record it: what `describe_host` tells, and "dali", its version."""
    return {**describe_host(context.device, context.world_size), "dali": dali.__version__}


def cpu_context() -> RankContext:
    """One process alone on this machine's cores, without a GPU."""
    return RankContext(torch.device("cpu"), 0, 1, unsharded_layout(), cores())
