"""The three ways to share the model over two CPU processes: a step's time and bytes, on batches that are there already.

    towers  a tower each, as in 2012        data  the whole model each        hybrid  convolutions each, neurons shared

They take turns, a process pair each time; the median of its steps counts. On CPU processes of one machine the link is
memory, so the times show what computing and copying cost, not what a network would.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import click
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from bench.harness.machine import describe_machine
from shards.atomic import atomic_write
from trainer.alexnet import AlexNet
from trainer.launch import launch
from trainer.model_parallel import replicate
from trainer.optimizer import PaperSGD
from trainer.precision import Precision
from trainer.rank import RankContext
from trainer.train_step import TrainStep


def steps(context: RankContext, out: Path, batch_size: int, width: float, count: int) -> None:
    layout, summed = context.layout, [0]
    model = AlexNet(1000, width, layout=layout)
    model.init_weights(seed=0)
    trained, optimizer = replicate(model, layout), PaperSGD(model.parameters(), lr=0.01)
    update = TrainStep(trained, layout, optimizer, Precision("fp32", context.device), context.device, seed=0)

    def hook(group, bucket):
        summed[0] += bucket.buffer().nbytes
        return allreduce_hook(group, bucket)

    if trained is not model:
        trained.register_comm_hook(layout.replicas.group or layout.dense.group, hook)
    share = batch_size * layout.towers.size // context.world_size
    labels = torch.randint(1000, (batch_size if layout.is_hybrid else share,))
    images, times = torch.randn(share, 3, 224, 224), []
    for step in range(count + 1):
        began, summed[0], layout.dense.bytes_sent, layout.towers.bytes_sent = time.perf_counter(), 0, 0, 0
        update(images, labels, step)
        times.append(time.perf_counter() - began)
    sent = layout.dense.bytes_sent + (layout.towers.bytes_sent if layout.towers is not layout.dense else 0)
    if context.rank == 0:
        found = {
            "seconds": times[1:],
            "activations": sent,
            "gradients": summed[0],
            "machine": describe_machine(context),
        }
        out.write_text(json.dumps(found))


@click.command()
@click.option("--batch-size", default=64, show_default=True)
@click.option("--width", default=1.0, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option(
    "--steps", "count", default=3, show_default=True, help="Of each in a round, after one that is not counted."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures there.")
def main(batch_size: int, width: float, rounds: int, count: int, json_path: Path | None) -> None:
    found = {}
    with tempfile.TemporaryDirectory(prefix="alexnet-parallel-") as folder:
        for number in range(rounds):
            for parallel in ("towers", "data", "hybrid"):
                out = Path(folder) / f"{parallel}-{number}.json"
                launch(steps, 2, "cpu", out, batch_size, width, count, parallel=parallel)
                one = json.loads(out.read_text())
                found.setdefault(parallel, {**one, "seconds": []})["seconds"] += one["seconds"]
    where = [one.pop("machine") for one in found.values()].pop()
    report = {"schema": 1, "command": " ".join(["python", *sys.argv]), "machine": where, "batch_size": batch_size}
    for parallel, one in found.items():
        one["img_per_s"] = batch_size / statistics.median(one["seconds"])
        sent = f"{one['activations'] / 1e6:.1f} MB of activations, {one['gradients'] / 1e6:.1f} MB of gradients summed"
        print(f"{parallel:<8}{one['img_per_s']:>7.1f} img/s, a process and step: {sent}")
    if json_path:
        with atomic_write(json_path) as file:
            file.write(json.dumps({**report, "width": width, "layouts": found}, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
