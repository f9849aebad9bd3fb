"""What losing nothing costs a step: a full-width checkpoint (488 MB), and agreeing on when to stop.

    held       how long `CheckpointWriter.save` blocks the loop; a run's first save,
               whose copies need new memory, and a later one
    written    from then until the file is complete on the disk, in the writer's thread
    lock       the longest that another Python thread had to wait meanwhile, beyond a sleep of a millisecond
    at once    the loop blocked all the while instead: torch.save to the same folder, and fsync
    bytes      the same thread with safetensors' own `save` instead of ours, which builds all bytes in memory
    agreeing   `PreemptionHandler.should_stop` of two processes, in a loop of real steps: its share of a step

The ways of writing are interleaved. On the CPU: copies from a GPU go through pinned memory, and are not measured here.
"""

import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import safetensors.torch
import torch

from bench.harness.machine import describe_machine
from bench.harness.model_step import ModelOptions, ModelStep
from bench.harness.record import heading, json_option, write_report
from bench.harness.turns import interleaved
from shards.atomic import atomic_write
from trainer import checkpoint
from trainer.launch import launch
from trainer.optimizer import PaperSGD
from trainer.preemption import PreemptionHandler
from trainer.rank import RankContext
from trainer.run_folder import list_checkpoints


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def longest_wait(work: Callable[[], object]) -> float:
    """The longest time, while the work runs, that a thread which wants to run each millisecond did not."""
    waits, ended = [0.0], threading.Event()

    def tick() -> None:
        while not ended.is_set():
            waits.append(seconds(lambda: time.sleep(0.001)))

    thread = threading.Thread(target=tick)
    thread.start()
    work()
    ended.set()
    thread.join()
    return max(waits)


class Writing:
    """The ways of writing one model's checkpoint; each returns its seconds by name."""

    def __init__(self, context: RankContext, folder: Path, width: float):
        step = ModelStep(context, 1000, ModelOptions(width=width))
        assert isinstance(step.optimizer, PaperSGD)  # whose velocity a checkpoint holds
        self.model, self.optimizer, self.folder = step.model, step.optimizer, folder
        for parameter in self.model.parameters():
            self.optimizer.state[parameter]["velocity"] = torch.zeros_like(parameter)
        self.tensors: dict[str, torch.Tensor] = {}

    def in_a_thread(self) -> dict[str, float]:
        """As `train` writes it, by a new run's writer: twice, because the first time needs new memory."""
        writer = checkpoint.CheckpointWriter(self.folder, writes=True, keep=1)
        state: dict[str, Any] = {"config": {}, "errors": []}

        def save() -> None:
            writer.save(1, self.model, self.optimizer, state)

        first = seconds(save)
        writer.wait()
        held, began = seconds(save), time.perf_counter()
        lock = longest_wait(writer.wait)
        written = time.perf_counter() - began
        self.tensors = writer.copies
        return {"held first": first, "held": held, "written": written, "lock": lock}

    def at_once(self) -> dict[str, float]:
        def save() -> None:
            with atomic_write(self.folder / "at-once.pt") as file:
                torch.save(self.tensors, file)

        return {"at once": seconds(save)}

    def by_bytes(self) -> dict[str, float]:
        def save() -> None:
            with atomic_write(self.folder / "bytes.safetensors") as file:
                file.write(safetensors.torch.save(self.tensors))

        began = time.perf_counter()
        lock = longest_wait(save)
        return {"bytes": time.perf_counter() - began, "bytes lock": lock}


def measure_writing(context: RankContext, folder: Path, rounds: int, width: float, result: Path) -> None:
    writing = Writing(context, folder, width)
    # The first turn of all is `in_a_thread`'s, whose tensors the others write too
    ways = {way.__name__: way for way in (writing.in_a_thread, writing.at_once, writing.by_bytes)}
    figures: dict[str, list[float]] = {}
    for turns in interleaved(ways, rounds).values():
        figures |= {name: [turn[name] for turn in turns] for name in turns[0]}
    size = list_checkpoints(folder)[0].stat().st_size
    result.write_text(json.dumps({"bytes_written": size, "seconds": figures, "machine": describe_machine(context)}))


def measure_agreeing(context: RankContext, steps: int, result: Path) -> None:
    step = ModelStep(context, 1000, ModelOptions(width=0.25))
    images, labels = torch.randn(32, 3, 224, 224), torch.randint(1000, (32,))
    agreeing, total = [], []
    with PreemptionHandler(context.world_size) as stop:
        for _ in range(steps):
            began = time.perf_counter()
            step.update(images, labels)
            agreeing.append(seconds(stop.should_stop))
            total.append(time.perf_counter() - began)
    if context.rank == 0:
        result.write_text(json.dumps({"agreeing": agreeing[1:], "step": total[1:]}))


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n", 1))
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Where to write.  [default: a folder in /tmp]"
)
@click.option("--rounds", default=3, show_default=True, help="Turns of each way of writing.")
@click.option("--width", default=1.0, show_default=True, help="The share of the paper's kernels and neurons.")
@click.option(
    "--steps", default=40, show_default=True, help="Steps of two processes that agree, at a quarter of the width."
)
@json_option
def main(out: Path | None, rounds: int, width: float, steps: int, json_path: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="alexnet-checkpoint-", dir=out) as name:
        folder = Path(name)
        launch(measure_writing, 1, "cpu", folder, rounds, width, folder / "written.json")
        launch(measure_agreeing, 2, "cpu", steps, folder / "agreed.json")
        written, agreed = (json.loads((folder / f"{one}.json").read_text()) for one in ("written", "agreed"))
    figures = written["seconds"] | agreed
    medians = {name: statistics.median(values) for name, values in figures.items()}
    for name, median in medians.items():
        print(f"{name:<12}{1e3 * median:>10.2f} ms")
    print(f"agreeing / step: {medians['agreeing'] / medians['step']:.2%}")
    report = {**heading(written["machine"]), "bytes_written": written["bytes_written"]}
    write_report(json_path, {**report, "seconds": figures, "median": medians})


if __name__ == "__main__":
    main()
