"""The three ways to share the model over two CPU processes: the time and bytes of a step on a resident batch.

    towers  a tower each, as in 2012
    data    the full model each
    hybrid  the convolutions each, the dense layers' neurons shared

They are interleaved, two new processes for each turn, and the median of all steps counts. CPU processes of one machine
exchange through memory, so the times show what computing and copying cost, not what a network would.
"""

import functools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, TypedDict

import click
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket  # torch checks a hook's annotations
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from bench.harness.machine import describe_machine
from bench.harness.model_step import ModelOptions, ModelStep
from bench.harness.record import heading, json_option, write_report
from bench.harness.traffic import bytes_received, counting_saved, held_bytes
from bench.harness.turns import interleaved
from trainer.launch import launch
from trainer.rank import RankContext

LAYOUTS = ("towers", "data", "hybrid")


class Turn(TypedDict):
    """A layout's turn: each step's time; in one step, the bytes of activations that a process sends and of gradients
    that are summed, and those that it received over TCP, by the kernel's count; the bytes of a process's parameters,
    gradients and velocity, and of what one step keeps for its backward pass."""

    seconds: list[float]
    activations: int
    gradients: int
    received: float
    held: int
    saved: int
    machine: dict[str, Any]


def measure_rank(context: RankContext, result: Path, batch_size: int, width: float, steps: int) -> None:
    """One rank's part of a turn; the first rank writes the `Turn` to `result`."""
    layout, summed = context.layout, 0
    step = ModelStep(context, 1000, ModelOptions(width=width))

    def count_bytes(group: dist.ProcessGroup, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        nonlocal summed
        summed += bucket.buffer().nbytes
        return allreduce_hook(group, bucket)

    if isinstance(step.trained, DistributedDataParallel):
        step.trained.register_comm_hook(layout.gradient_group, count_bytes)
    share = batch_size * layout.towers.size // context.world_size
    labels = torch.randint(1000, (batch_size if layout.is_hybrid else share,))
    images, seconds = torch.randn(share, 3, 224, 224), []
    groups = {id(group): group for group in (layout.towers, layout.dense)}.values()
    with counting_saved(step.model.parameters()) as saved:
        step.update(images, labels)
    saved_bytes, received = saved(), bytes_received()
    for _ in range(steps):
        began, summed = time.perf_counter(), 0
        sent = sum(group.bytes_sent for group in groups)
        step.update(images, labels)
        seconds.append(time.perf_counter() - began)
    sent = sum(group.bytes_sent for group in groups) - sent
    if context.rank == 0:
        machine = describe_machine(context)
        turn: Turn = {
            "seconds": seconds,
            "activations": sent,
            "gradients": summed,
            "received": (bytes_received() - received) / steps,
            "held": held_bytes(step.model.parameters(), step.optimizer),
            "saved": saved_bytes,
            "machine": machine,
        }
        result.write_text(json.dumps(turn))


def take_turn(parallel: str, batch_size: int, width: float, steps: int, processes: int = 2) -> Turn:
    """A layout's turn, in new processes."""
    with tempfile.TemporaryDirectory(prefix="alexnet-parallel-") as folder:
        result = Path(folder) / "turn.json"
        launch(measure_rank, processes, "cpu", result, batch_size, width, steps, parallel=parallel)
        turn: Turn = json.loads(result.read_text())
    return turn


def figures(turns: list[Turn], batch_size: int) -> dict[str, Any]:
    """A layout's figures: its steps of all turns."""
    seconds = [spent for turn in turns for spent in turn["seconds"]]
    sent = {"activations": turns[0]["activations"], "gradients": turns[0]["gradients"]}
    return {"seconds": seconds, **sent, "img_per_s": batch_size / statistics.median(seconds)}


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n", 1))
@click.option("--batch-size", default=64, show_default=True, help="Images of the global batch.")
@click.option("--width", default=1.0, show_default=True, help="The share of the paper's kernels and neurons.")
@click.option("--rounds", default=3, show_default=True, help="Turns of each layout.")
@click.option("--steps", default=3, show_default=True, help="Timed steps in a turn, after one that is not timed.")
@json_option
def main(batch_size: int, width: float, rounds: int, steps: int, json_path: Path | None) -> None:
    contestants = {parallel: functools.partial(take_turn, parallel, batch_size, width, steps) for parallel in LAYOUTS}
    turns = interleaved(contestants, rounds)
    layouts = {parallel: figures(turns[parallel], batch_size) for parallel in LAYOUTS}
    for parallel, layout in layouts.items():
        activations, gradients = layout["activations"] / 1e6, layout["gradients"] / 1e6
        sent = f"{activations:.1f} MB of activations, {gradients:.1f} MB of gradients summed"
        print(f"{parallel:<8}{layout['img_per_s']:>7.1f} img/s, in each step of a process: {sent}")
    report = heading(turns[LAYOUTS[-1]][-1]["machine"])
    write_report(json_path, {**report, "batch_size": batch_size, "width": width, "layouts": layouts})


if __name__ == "__main__":
    main()
