"""What losing nothing costs a step: a full-width checkpoint (488 MB), and agreeing on when to stop.

    held       how long `Writer.save` holds the loop: the first of a run, whose copies need new memory, and a later one
    written    from then until the file is whole on the disk, in the thread
    lock       the longest that another thread of Python had to wait meanwhile; of a millisecond's sleep at the most
    at once    the loop held all the while instead: torch.save to the same folder, and fsync
    bytes      the same thread with safetensors' own `save` in the place of ours, which makes one text of it all
    agreeing   `PreemptionHandler.should_stop` of two processes, in a loop of real steps: its share of a step

The kinds of writing take turns. On the CPU: copies from a GPU go through pinned memory, and are not measured here.
"""

import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import click
import safetensors.torch
import torch

from bench.harness.machine import describe_machine
from shards.atomic import atomic_write
from trainer import checkpoint
from trainer.alexnet import AlexNet
from trainer.launch import launch
from trainer.model_parallel import replicate
from trainer.optimizer import PaperSGD
from trainer.precision import Precision
from trainer.preemption import PreemptionHandler
from trainer.rank import RankContext
from trainer.train_step import TrainStep


def timed(function: Callable, *arguments) -> float:
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def longest_wait(function: Callable) -> float:
    """While the function runs: the longest time that a thread which wants to run each millisecond did not."""
    waits, ended = [0.0], threading.Event()

    def tick() -> None:
        while not ended.is_set():
            waits.append(timed(time.sleep, 0.001))

    thread = threading.Thread(target=tick)
    thread.start()
    function()
    ended.set()
    thread.join()
    return max(waits)


def measure(context: RankContext, folder: Path, rounds: int, width: float, out: Path) -> None:
    model = AlexNet(1000, width)
    model.init_weights(seed=0)
    optimizer = PaperSGD(model.parameters(), lr=0.01)
    for parameter in model.parameters():
        optimizer.state[parameter]["velocity"] = torch.zeros_like(parameter)
    found = {name: [] for name in ("held first", "held", "written", "lock", "at once", "bytes", "bytes lock")}
    state = {"config": {}, "errors": []}
    for _ in range(rounds):
        writer = checkpoint.CheckpointWriter(folder, writes=True, keep=1)
        for held in ("held first", "held"):
            found[held].append(timed(writer.save, 1, model, optimizer, state))
            began = time.perf_counter()
            wait = longest_wait(writer.wait)
            if held == "held":
                found["written"].append(time.perf_counter() - began)
                found["lock"].append(wait)
        tensors = writer.copies

        def at_once(tensors=tensors) -> None:
            with atomic_write(folder / "at-once.pt") as file:
                torch.save(tensors, file)

        def by_bytes(tensors=tensors) -> None:
            with atomic_write(folder / "bytes.safetensors") as file:
                file.write(safetensors.torch.save(tensors))

        found["at once"].append(timed(at_once))
        began = time.perf_counter()
        found["bytes lock"].append(longest_wait(by_bytes))
        found["bytes"].append(time.perf_counter() - began)
    size = checkpoint.list_checkpoints(folder)[0].stat().st_size
    out.write_text(json.dumps({"bytes_written": size, "seconds": found, "machine": describe_machine(context)}))


def agree(context: RankContext, steps: int, out: Path) -> None:
    model = AlexNet(1000, 0.25, layout=context.layout)
    model.init_weights(seed=0)
    trained, optimizer = replicate(model, context.layout), PaperSGD(model.parameters(), lr=0.01)
    update = TrainStep(trained, context.layout, optimizer, Precision("fp32", context.device), context.device, seed=0)
    images, labels = torch.randn(32, 3, 224, 224), torch.randint(1000, (32,))
    spent, all_of_it = [], []
    with PreemptionHandler(context.world_size) as stop:
        for step in range(steps):
            began = time.perf_counter()
            update(images, labels, step)
            spent.append(timed(stop.should_stop))
            all_of_it.append(time.perf_counter() - began)
    if context.rank == 0:
        out.write_text(json.dumps({"agreeing": spent[1:], "step": all_of_it[1:]}))


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Where to write.  [default: a folder in /tmp]"
)
@click.option("--rounds", default=3, show_default=True)
@click.option("--width", default=1.0, show_default=True)
@click.option("--steps", default=40, show_default=True, help="Of two processes that agree, at a quarter of the width.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures there.")
def main(out: Path | None, rounds: int, width: float, steps: int, json_path: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="alexnet-checkpoint-", dir=out) as name:
        folder = Path(name)
        launch(measure, 1, "cpu", folder, rounds, width, folder / "written.json")
        launch(agree, 2, "cpu", steps, folder / "agreed.json")
        written, agreed = (json.loads((folder / f"{one}.json").read_text()) for one in ("written", "agreed"))
    seconds = written["seconds"] | agreed
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:<12}{1e3 * median:>10.2f} ms")
    print(f"agreeing / step: {medians['agreeing'] / medians['step']:.2%}")
    if json_path:
        report = {
            "schema": 1,
            "command": " ".join(["python", *sys.argv]),
            **written,
            "seconds": seconds,
            "median": medians,
        }
        with atomic_write(json_path) as file:
            file.write(json.dumps(report, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
