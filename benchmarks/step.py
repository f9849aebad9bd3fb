"""The normalisation and the whole step beside torch's own, on batches that are there already, in one run.

    LRN     forward and backward on its two layers' shapes: torch.nn.functional's, ours by TorchScript, ours by
            torch.compile; and whether TorchScript's fuser took part
    step    ours; with torch.nn.functional's LRN in it ("plain"); without any (the LRN's tax); compiled

Contestants take turns; a ratio is of medians.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shards.files import atomic_write
from trainer import alexnet, lrn
from trainer.alexnet import AlexNet, Variant
from trainer.launch import launch
from trainer.loop import train_step
from trainer.precision import Precision
from trainer.recipe import PaperSGD
from trainer.throughput import machine
from trainer.towers import whole

SHAPES = {"conv1's": (96, 55, 55), "conv2's": (256, 27, 27)}


def torchs(x: torch.Tensor, towers: int = 1, alpha: float = 1e-4) -> torch.Tensor:
    by_tower = x.unflatten(1, (towers, -1)).flatten(0, 1)
    return (
        F.local_response_norm(by_tower, 5, alpha=5 * alpha, beta=0.75, k=2.0).unflatten(0, (-1, towers)).flatten(1, 2)
    )


def medians(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each; a round goes before that is not counted."""
    times = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            began = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def both_ways(norm: Callable, x: torch.Tensor, grad: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        torch.autograd.grad(norm(x, 2), x, grad)

    return run


def fused() -> bool:
    """Whether TorchScript's fuser made a kernel of what it last ran."""
    lrn.local_response_norm(torch.rand(2, 96, 8, 8), 2)
    return "prim::TensorExprGroup" in str(torch.jit.last_executed_optimized_graph())


def stepping(batch: int, variant: Variant, norm: Callable, compiled: bool = False) -> Callable[[], None]:
    net = AlexNet(1000, variant=variant)
    net.initialise(seed=0)
    optimiser, precision, rng = (
        PaperSGD(net.parameters(), 0.01),
        Precision("fp32", torch.device("cpu")),
        torch.Generator(),
    )
    trained = torch.compile(net) if compiled else net
    images, labels = 50 * torch.randn(batch, 3, 224, 224), torch.randint(1000, (batch,))
    images = images.contiguous(memory_format=torch.channels_last)

    def run() -> None:
        alexnet.local_response_norm = norm
        train_step(trained, whole(), optimiser, images, labels, rng, 0, 0, precision)

    return run


def measure(place, batch: int, rounds: int, told: Path | None, command: str) -> None:
    report = {"schema": 1, "command": command, "machine": machine(place), "batch_size": batch, "lrn": {}}
    report["torchscript_fused"] = fused()
    for name, shape in SHAPES.items():
        x, grad = torch.rand(batch, *shape, requires_grad=True), torch.rand(batch, *shape)
        norms = {"torch's": torchs, "TorchScript": lrn.local_response_norm}
        norms["compiled"] = torch.compile(lrn.local_response_norm)
        report["lrn"][name] = medians({one: both_ways(norm, x, grad) for one, norm in norms.items()}, rounds)
    paper = alexnet.VARIANTS["paper"]
    seconds = medians(
        {
            "ours": stepping(batch, paper, lrn.local_response_norm),
            "plain": stepping(batch, paper, torchs),
            "without LRN": stepping(batch, paper._replace(norm=False), lrn.local_response_norm),
            "compiled": stepping(batch, paper, lrn.local_response_norm, compiled=True),
        },
        rounds,
    )
    report["step"] = {name: batch / value for name, value in seconds.items()}
    for name, times in report["lrn"].items():
        ratios = ", ".join(
            f"{one} {1e3 * t:.0f} ms ({times['torch' + chr(39) + 's'] / t:.2f})" for one, t in times.items()
        )
        print(f"LRN on {name} shape, batch {batch}: {ratios}")
    print("step: " + ", ".join(f"{name} {rate:.1f} img/s" for name, rate in report["step"].items()))
    print(f"TorchScript's fuser took part: {report['torchscript_fused']}")
    if told:
        with atomic_write(told) as file:
            file.write(json.dumps(report, indent=1).encode() + b"\n")


@click.command()
@click.option("--batch-size", default=128, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures there.")
def main(batch_size: int, rounds: int, json_path: Path | None) -> None:
    launch(measure, 1, "cpu", batch_size, rounds, json_path, " ".join(["python", *sys.argv]))


if __name__ == "__main__":
    main()
